"""The form of the file of leftovers; leftovers.py says what the file is for.

The file is a sequence of commands in the protocol of Redis, oldest events first:

    RPUSH <list> <element> ...                           events that were objects
    RECORDS <layout> <run id> <databases> <masks> <first> <numbers> <data>
                                                         events that still were records

`data` is records as shim/api.h lays them out; `layout` says how. They still have to pass
`databases` and `masks`; only earlier versions write others than ALL. `numbers` are the numbers of
their events in the queue, 8 bytes each; if it is empty, they are consecutive from `first` on.

It is written and read piece by piece, so it takes little memory, however large it is. Any
thread; `keyspace-amqp leftovers` reads it too. Nothing here waits, except for the disk.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
import os
import struct
import sys
from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, BinaryIO, Protocol

from ..config import format_masks, parse_databases, parse_masks, raw
from ..fallback import JOB_ELEMENTS, from_element
from ..masks import ALL, compile_masks
from ..message import Event
from ..tables.keys import KEY
from ..values import value
from .records import HEAD, VALUED, Reader, check_records

if TYPE_CHECKING:
    import pathlib

# The form of the records in the file. Records of another one cannot be read.
# Whoever changes SUBKEYED, which it does not name, gives it another first number.
LAYOUT = f"1 {sys.byteorder} {HEAD.format} {VALUED.format}".encode()
_RECORDS = b"RECORDS"
# Bytes after which the file is synchronized with the disk, so that the last time is short.
_SYNC_EVERY = 16 * 1024 * 1024
_COPY_BYTES = 1024 * 1024
_NO_LIMIT = sys.maxsize - 2  # two bytes follow a word
# The longest line with a length: a type, 19 digits and the line's end.
_LINE_BYTES = 22
# The exceptions of a file that cannot be read or is damaged.
UNREADABLE = (OSError, ValueError, OverflowError, MemoryError, struct.error)


@value
class Origin:
    """The load that has captured records, and the values of two parameters that they still
    have to pass; see `Config`."""

    run_id: str
    databases: str = "ALL"
    masks: tuple[bytes, ...] = (ALL,)

    def filter(self) -> Callable[[Event], bool]:
        """Return a function that is True for the events that pass. Raises ValueError."""
        wants_db, matches = parse_databases(self.databases), compile_masks(self.masks)
        return lambda event: (wants_db is None or wants_db(event.db)) and matches(event.key)

    def words(self) -> list[bytes]:
        return [self.run_id.encode(), raw(self.databases), format_masks(self.masks)]

    @classmethod
    def of(cls, run_id: bytes, databases: bytes, masks: bytes) -> Origin:
        """Return the origin with these `words`. Raises ValueError."""
        origin = cls(run_id.decode("ascii"), databases.decode("ascii"), parse_masks(masks))
        parse_databases(origin.databases)
        return origin


# ---- writing --------------------------------------------------------------------------


class Writer:
    """Writes a new file of leftovers beside the old one, and then replaces it.

    All methods raise OSError. An exception leaves a whole number of commands in the file after
    `rewind`.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self.count = 0  # events
        self._path = path
        self._new = path.with_suffix(".new")
        # Without a buffer: on a full disk, its rest would fail again wherever it is written.
        self._file = self._new.open("wb", buffering=0)
        self._end = 0  # of the last whole command
        self._synced = 0  # so many bytes are on the disk
        self._safe = (0, 0)  # of what is on the disk: the last whole command's end, the events

    def elements(self, elements: Sequence[bytes]) -> None:
        """Add elements of the list."""
        if elements:
            self._add(len(elements), _command(b"RPUSH", KEY, *elements))

    def records(self, origin: Origin, numbers: Sequence[int], data: bytes) -> None:
        """Add records; `numbers` are those of their events, a range if they are consecutive."""
        first = numbers[0] if numbers else 0
        packed = b"" if isinstance(numbers, range) else array("Q", numbers).tobytes()
        words = [_RECORDS, LAYOUT, *origin.words(), b"%d" % first, packed]
        head = b"*%d\r\n%b$%d\r\n" % (len(words) + 1, b"".join(map(_bulk, words)), len(data))
        self._add(len(numbers), head, data, b"\r\n")  # perhaps not all of them pass

    def copy(self, head: bytes, file: BinaryIO) -> None:
        """Add a head and the rest of another file, which are whole commands together."""
        self._write(head)
        while piece := file.read(_COPY_BYTES):
            self._write(piece)
            self._sync(_SYNC_EVERY)
        self._add(0)

    def _add(self, count: int, *parts: bytes) -> None:
        """Add a command with so many events, or the last parts of it."""
        for part in parts:
            self._write(part)
        self._sync(_SYNC_EVERY)
        self._end = self._file.tell()
        self.count += count
        if self._end == self._synced:
            self._safe = self.mark

    def _write(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[self._file.write(rest) :]

    def _sync(self, least: int) -> None:
        """Write to the disk what is not there yet, if it has at least `least` bytes."""
        if self._file.tell() - self._synced >= least:
            os.fsync(self._file.fileno())
            self._synced = self._file.tell()
            self._safe = self.mark

    @property
    def mark(self) -> tuple[int, int]:
        """Return the place behind the last whole command, for `rewind`."""
        return self._end, self.count

    @property
    def is_empty(self) -> bool:
        """True if no command is in the file."""
        return self._end == 0

    def rewind(self, mark: tuple[int, int] | None = None) -> None:
        """Remove what an exception has left behind the last whole command, or behind a mark."""
        self._end, self.count = mark or self.mark
        os.ftruncate(self._file.fileno(), self._end)
        self._file.seek(self._end)
        self._synced = min(self._synced, self._end)
        self._safe = min(self._safe, self.mark)

    def rewind_to_disk(self) -> int:
        """Remove what is perhaps not on the disk; return the number of its events."""
        count = self.count
        self.rewind(self._safe)
        return count - self.count

    def keep(self) -> None:
        """Replace the old file, and wait until the new one is on the disk."""
        self._sync(0)
        self._file.close()
        self._new.replace(self._path)
        # The rename is durable when the directory is on the disk.
        directory = os.open(".", os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def discard(self) -> None:
        """Remove the new file; the old one stays. Raises nothing."""
        with contextlib.suppress(OSError):
            self._file.close()
        with contextlib.suppress(OSError):
            self._new.unlink()


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


def _command(*words: bytes) -> bytes:
    return b"*%d\r\n%b" % (len(words), b"".join(map(_bulk, words)))


# ---- reading --------------------------------------------------------------------------


# How far a block is read: bytes and records, or elements.
Step = tuple[int, int]


class Block(Protocol):
    """Some of the events in a file: those of a command, or a part of them. The methods are
    those of Reading."""

    def __bool__(self) -> bool: ...

    def peek(self, most: int) -> tuple[list[Event], Step]: ...

    def advance(self, step: Step) -> None: ...

    def skip(self) -> None: ...

    def write(self, writer: Writer) -> None: ...


class _Elements:
    def __init__(self, elements: Sequence[bytes]) -> None:
        self._elements = collections.deque(elements)

    def __bool__(self) -> bool:
        return bool(self._elements)

    def peek(self, most: int) -> tuple[list[Event], Step]:
        events: list[Event] = []
        for element in itertools.islice(self._elements, most):
            event = from_element(element)
            if event is None:
                if events:
                    break
                raise ValueError(f"{element[:200]!r} is no event")
            events.append(event)
        return events, (0, len(events))

    def advance(self, step: Step) -> None:
        for _ in range(step[1]):
            self._elements.popleft()

    def skip(self) -> None:
        self._elements.popleft()

    def write(self, writer: Writer) -> None:
        writer.elements(self._elements)


class _Records:
    def __init__(self, origin: Origin, numbers: Sequence[int], data: bytes) -> None:
        self._origin = origin
        self._reader = Reader(origin.run_id)
        self._passes = origin.filter()
        self._numbers = numbers
        self._data = data

    def __bool__(self) -> bool:
        return bool(self._numbers)

    def peek(self, most: int) -> tuple[list[Event], Step]:
        events, size = self._reader.parse(self._data, self._numbers[:most])
        return list(filter(self._passes, events)), (size, len(events))

    def advance(self, step: Step) -> None:
        size, count = step
        self._data, self._numbers = self._data[size:], self._numbers[count:]

    def skip(self) -> None:
        (size,) = HEAD.unpack_from(self._data)[:1]
        self.advance((size, 1))

    def write(self, writer: Writer) -> None:
        writer.records(self._origin, self._numbers, self._data)


class Reading:
    """A file of leftovers from its beginning to its end. Methods raise UNREADABLE."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        # No length in it is larger. The size of a pipe is not known.
        self._size = os.fstat(file.fileno()).st_size if file.seekable() else _NO_LIMIT
        self._left = 0  # elements of the RPUSH at hand that are not read yet
        self._block: Block = _Elements([])
        self.done = False  # true when the file was read to its end

    def peek(self, most: int) -> tuple[list[Event], Step]:
        """Return the next events, of up to `most` elements or records, and the step behind
        them. There may be no events before the file is done."""
        self.fill()
        return self._block.peek(most)

    def advance(self, step: Step) -> None:
        """Go on behind the events that `peek` has returned with this step."""
        self._block.advance(step)
        self.fill()

    def skip(self) -> None:
        """Go on behind one element or record."""
        self._block.skip()
        self.fill()

    def fill(self) -> None:
        """Read on, if the block at hand is used up."""
        while not self._block and not self.done:
            if not self._left and not self._begin():
                self.done = True
                return
            if self._left:
                count = min(self._left, JOB_ELEMENTS)
                self._block = _Elements([self._word() for _ in range(count)])
                self._left -= count

    def _begin(self) -> bool:
        """Begin the next command; return False at the end of the file."""
        if not self._file.peek(1):  # type: ignore[attr-defined]  # a BufferedReader
            return False
        count = self._length(b"*")
        name = self._word()
        if name == b"RPUSH" and count >= 2 and self._word() == KEY:
            self._left = count - 2
        elif name == _RECORDS and count > 1:
            layout, *words = [self._word() for _ in range(count - 1)]
            if layout != LAYOUT:
                shown = layout[:100].decode("ascii", "backslashreplace")
                raise ValueError(f"its records have the form {shown!r}, not {LAYOUT.decode()!r}")
            self._block = _records(words)
        else:
            raise ValueError("it has a command that a stop does not write")
        return True

    def _length(self, tag: bytes) -> int:
        line = self._file.readline(_LINE_BYTES)
        if not line.endswith(b"\r\n") or line[:1] != tag or not line[1:-2].isdigit():
            raise ValueError("incomplete" if not line.endswith(b"\n") else "no protocol of Redis")
        if (length := int(line[1:-2])) > self._size:
            raise ValueError("incomplete")
        return length

    def _word(self) -> bytes:
        length = self._length(b"$")
        word = self._file.read(length + 2)
        if len(word) != length + 2:
            raise ValueError("incomplete")
        return word[:-2]

    def write(self, writer: Writer) -> None:
        """Write what is left to a new file. To be called before the file is done."""
        position, mark = self._file.tell(), writer.mark
        head = b"*%d\r\n%b%b" % (self._left + 2, _bulk(b"RPUSH"), _bulk(KEY))
        try:
            if self._block:
                self._block.write(writer)
            writer.copy(head if self._left else b"", self._file)
        except BaseException:
            self._file.seek(position)
            writer.rewind(mark)
            raise

    def close(self) -> None:
        self._file.close()


def _records(words: Sequence[bytes]) -> _Records:
    """Return the block of a command with these words behind its layout. Raises ValueError."""
    run_id, databases, masks, first, packed, data = words
    count = check_records(data)
    numbers: Sequence[int] = range(int(first), int(first) + count)
    if packed:
        numbers = array("Q", packed)
        if len(numbers) != count:
            raise ValueError("a number of records is wrong")
    return _Records(Origin.of(run_id, databases, masks), numbers, data)
