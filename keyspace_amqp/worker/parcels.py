"""Parcels: records of events, and their messages laid out at once.

An event of the plain form (no value, no subkeys) becomes a message without any object in between,
if all messages have the same form: text, a fixed routing key, no headers. Its id, like that of its
neighbours, begins with the id of the load and all but the last three digits of its number. All
other events are made into objects, which live until their messages are laid out.

Pure; worker thread.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable, Sequence

from ..broker.frames import Frames, Template
from ..failures import STRIKES
from ..message import EVENT_BYTES, Event
from .records import HEAD, LISTED_BIT, PARSE_BYTES, Kind, Reader, first_records

# Of a record: its length, the key's length, the time, the name's length.
_HEAD = struct.Struct("=IIQ4xH")
# From this byte on, up to the key, most records of a queue are the same: the database, the length
# of the name, the kind, the class, the name.
_SAME = 16
_SAME_HEAD = struct.Struct("=iHBB")
_DIGITS = [b"%03d" % number for number in range(1000)]
_LONG = struct.Struct(">Q").pack
_SHORT = struct.Struct(">I").pack
# Sizes of messages, and starts of records, that are remembered, at most.
_MANY = 4096
# Bytes of records that are looked at for each event, about.
_RECORD_BYTES = 512


class Parcel:
    """See publisher/express.py. `numbers`: those of the events in the shim's queue."""

    __slots__ = ("_data", "_failures", "_numbers", "_reader", "count", "size", "times")

    def __init__(
        self, data: bytes, numbers: range, times: Sequence[tuple[int, int]], reader: Reader
    ) -> None:
        self._data = data
        self._numbers = numbers
        self._reader = reader
        self._failures = 0  # exceptions in a row
        self.count = len(numbers)
        self.size = len(data) + self.count * (EVENT_BYTES - HEAD.size)
        self.times = times

    def events(self) -> list[Event | None]:
        """Make the events anew; None: the handler has failed over it STRIKES times in a row."""
        events: list[Event | None] = []
        at = 0
        while len(events) < self.count:
            rest, numbers = self._data[at:], self._numbers[len(events) :]
            try:
                some, size = self._reader.parse(rest, numbers)
                events += some
            except Exception:
                self._failures += 1
                if self._failures < STRIKES:
                    raise
                events.append(None)
                size, _ = first_records(rest, 1, 1)
            at += size
        return events


class _Constants:
    """The parts of messages that are the same in many of them.

    `starts`: of bodies, by the part of a record before the key; None: the event is not plain.
    `heads`: by the size of the body, what comes before the last three digits of the id. `tails`:
    what comes between them and the body, for the second `second`.
    """

    def __init__(self, frames: Frames, run_id: str) -> None:
        self.frames = frames
        self.starts: dict[bytes, bytes | None] = {}
        self.heads: dict[int, bytes] = {}
        self.tails: dict[int, bytes] = {}
        self._run_id = run_id
        self._thousand = -1
        self._second = -1
        self._id_start = b""
        self._template: Template | None = None

    def choose(self, thousand: int) -> bool:
        """Choose the numbers from `thousand` * 1000 on; return False if their messages do not
        consist of such parts."""
        if thousand != self._thousand:
            self._thousand = thousand
            self._id_start = f"{self._run_id}-{thousand}".encode()
            self._template = self.frames.template(len(self._id_start) + 3) if thousand else None
            self.heads.clear()
            self.tails.clear()
        return self._template is not None

    def set_time(self, time_ms: int) -> None:
        """Set the time of the next messages."""
        if time_ms // 1000 != self._second:
            self._second = time_ms // 1000
            self.tails.clear()

    def head(self, size: int) -> bytes:
        assert self._template is not None
        if len(self.heads) >= _MANY:
            self.heads.clear()
        parts = (self._template.first, _LONG(size), self._template.second, self._id_start)
        self.heads[size] = b"".join(parts)
        return self.heads[size]

    def tail(self, size: int) -> bytes:
        assert self._template is not None
        if len(self.tails) >= _MANY:
            self.tails.clear()
        self.tails[size] = _LONG(self._second) + self._template.third + _SHORT(size)
        return self.tails[size]

    def start(self, same: bytes) -> bytes | None:
        """Return the start of the body; None: the event is not plain."""
        db, _, kind, bit = _SAME_HEAD.unpack_from(same)
        name = same[_SAME_HEAD.size :]
        plain = kind == Kind.EVENT and not bit & LISTED_BIT and name.isascii()
        if len(self.starts) >= _MANY:
            self.starts.clear()
        self.starts[same] = b"%d\n%b\n" % (db, name) if plain else None
        return self.starts[same]


class _Packing:
    """A parcel that is being made: the first `count` records have `at` bytes."""

    def __init__(self, data: bytes, numbers: range) -> None:
        self.data = data
        self.numbers = numbers
        self.at = self.count = 0
        self.parts: list[bytes] = []
        self.times: list[tuple[int, int]] = []

    @property
    def has_next(self) -> bool:
        """True if there is a number for another event, and its record is there as a whole."""
        left = len(self.data) - self.at
        if self.count == len(self.numbers) or left < HEAD.size:
            return False
        total: int = _HEAD.unpack_from(self.data, self.at)[0]
        return total <= left

    def add_events(self, reader: Reader, frames: Frames, most: int) -> bool:
        """Add the next events, at most `most`, by way of objects; return False if there are none
        that can be sent."""
        numbers = self.numbers[self.count :][:most]
        events, size = reader.parse(self.data[self.at :], numbers)
        self.parts.append(frames.marshal(events))
        for event in events:
            self.count += 1
            if self.times and self.times[-1][1] == event.time_ms:
                self.times.pop()
            self.times.append((self.count, event.time_ms))
        self.at += size
        return bool(events)

    def add_plain(self, constants: _Constants) -> None:
        """Add the next events of the plain form, up to the next thousand."""
        thousand, low = divmod(self.numbers[self.count], 1000)
        if not constants.choose(thousand):
            return
        starts, heads, tails = constants.starts, constants.heads, constants.tails
        data, parts, times = self.data, self.parts, self.times
        unpack, head_size, end = _HEAD.unpack_from, HEAD.size, constants.frames.end
        largest = constants.frames.body_max
        at, count, size = self.at, self.count, len(data)
        last = size - head_size
        before = -1
        for digits in itertools.islice(_DIGITS, low, low + len(self.numbers) - count):
            if at > last:
                break
            total, key_len, time_ms, name_len = unpack(data, at)
            behind = at + total
            if behind > size:
                break
            key_at = at + head_size + name_len
            same = data[at + _SAME : key_at]
            start = starts.get(same) or constants.start(same)
            key = data[key_at : key_at + key_len]
            body_size = len(start) + key_len if start else 0
            if not start or body_size > largest or not (key.isascii() or _is_text(key)):
                break
            if time_ms != before:
                if count > self.count:
                    times.append((count, before))
                before = time_ms
                constants.set_time(time_ms)
            head = heads.get(body_size) or constants.head(body_size)
            tail = tails.get(body_size) or constants.tail(body_size)
            parts += (head, digits, tail, start, key, end)
            at = behind
            count += 1
        if count > self.count:
            times.append((count, before))
        self.at, self.count = at, count


def _is_text(data: bytes) -> bool:
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True


class Packer:
    """Makes parcels. `frames`: makes messages for the present connection; returns None if there is
    none, or if it takes messages one by one only."""

    def __init__(self, run_id: str, frames: Callable[[], Frames | None]) -> None:
        self._run_id = run_id
        self._reader = Reader(run_id)
        self._frames = frames
        self._constants: _Constants | None = None

    @property
    def is_ready(self) -> bool:
        """True if there is a connection that takes messages which are laid out."""
        return self._frames() is not None

    def pack(self, data: bytes, numbers: range) -> tuple[Parcel, bytes, int] | None:
        """Return the parcel of the first records, one for each of `numbers` at most, with its
        messages and the bytes of the records. It ends before the first event that is in the list
        already, and has at most PARSE_BYTES and one event more.

        None: the events have to go one by one, because the handler fails over one of them.
        """
        try:
            return self._pack(data, numbers)
        except Exception:
            return None  # whoever takes them one by one finds out which one it is, and logs it

    def _pack(self, data: bytes, numbers: range) -> tuple[Parcel, bytes, int] | None:
        frames = self._frames()
        if frames is None:
            return None
        if self._constants is None or self._constants.frames is not frames:
            self._constants = _Constants(frames, self._run_id)
        if frames.template(0) is not None:
            first = _HEAD.unpack_from(data)[0]
            size = max(first, min(PARSE_BYTES, _RECORD_BYTES * len(numbers)))
            packing = _Packing(bytes(data[:size]), numbers)
            while packing.has_next:
                before = packing.count
                packing.add_plain(self._constants)
                if packing.count == before and not packing.add_events(self._reader, frames, 1):
                    break
        else:
            size, _ = first_records(data, min(PARSE_BYTES, len(data)), len(numbers))
            packing = _Packing(bytes(data[:size]), numbers)
            packing.add_events(self._reader, frames, len(numbers))
        if not packing.count:
            return None
        kept = packing.data[: packing.at]
        parcel = Parcel(kept, numbers[: packing.count], packing.times, self._reader)
        return parcel, b"".join(packing.parts), packing.at
