"""The leftovers: events that a stop can neither deliver nor put into the list.

At a stop the list cannot be written: Redis saves its own files before it tells modules of
a shutdown, and a change of the data set within MODULE UNLOAD would make Redis replicate
that command. The leftovers go to a file. The next load delivers the events of the file after
the list, and before new events.

The file stays until all its events are safe. It is in the server's working directory, which is
its `dir`. Worker thread; nothing here waits, except for the disk.
"""

from __future__ import annotations

import collections
import contextlib
import itertools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Protocol

from ..counts import counted
from ..fallback import JOB_ELEMENTS, to_element
from ..message import Event
from . import log
from .leftover_file import UNREADABLE, Reading, Step, Writer

if TYPE_CHECKING:
    import pathlib

# Exceptions in a row over the same events, before they are given up.
_ATTEMPTS = 3


class Leftovers:
    """The file for the server on this port. It need not exist."""

    def __init__(self, port: int) -> None:
        self._name = f"keyspaceamqp-{port}.leftover"
        self._reading: Reading | None = None
        self._readable = False  # a file is there, and could be read so far

    @property
    def path(self) -> pathlib.Path:
        """The path of the file, in the server's directory."""
        import pathlib  # see imports.py

        return pathlib.Path(self._name)

    # ---- a load ------------------------------------------------------------

    def open(self) -> None:
        """Begin to read the file, if it exists."""
        try:
            self._reading = Reading(open(self._name, "rb"))  # noqa: PTH123, SIM115
        except FileNotFoundError:
            return
        except OSError as error:
            self._set_aside(error)
            return
        self._readable = True
        self._go_on(Reading.fill)
        if self.pending:
            size = self.path.stat().st_size
            log.write("notice", f"{self.path} has {size} bytes of events, which come first")

    @property
    def pending(self) -> bool:
        """True if the file may have events that were not read yet."""
        return self._reading is not None

    @property
    def needed(self) -> bool:
        """True if a file is there with events that may not be safe elsewhere."""
        return self._readable

    def peek(self, most: int) -> tuple[list[Event], Step]:
        """Return the next events, of up to `most` elements or records, and the step behind
        them. There may be no events although the file is pending."""
        assert self._reading is not None
        try:
            return self._reading.peek(most)
        except UNREADABLE as error:
            self._set_aside(error)
            return [], (0, 0)

    def advance(self, step: Step) -> None:
        """Go on behind the events that `peek` has returned with this step."""
        self._go_on(lambda reading: reading.advance(step))

    def skip(self) -> None:
        """Go on behind one event, over which the handler fails."""
        self._go_on(Reading.skip)

    def _go_on(self, move: Callable[[Reading], None]) -> None:
        if self._reading is None:
            return
        try:
            move(self._reading)
        except UNREADABLE as error:
            self._set_aside(error)
        else:
            if self._reading.done:
                self.close()

    def close(self) -> None:
        """Stop reading."""
        if self._reading is not None:
            self._reading.close()
            self._reading = None

    def _set_aside(self, error: Exception) -> None:
        """Rename a file that cannot be read, so that the next one does not replace it."""
        self.close()
        self._readable = False
        text = f"{self.path} cannot be read: {str(error) or repr(error)}"
        with contextlib.suppress(OSError):
            text += f"; it is {self.path.replace(self.path.with_suffix('.unreadable'))} now"
        log.write("warning", text)

    def remove(self) -> None:
        """Delete the file that was read, because its events are safe. If that fails, log it."""
        if not self._readable:
            return
        self._readable = False
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            text = f"{self.path} cannot be deleted: {error}; its events, which are safe, come again"
            log.write("warning", f"{text} at the next load")

    # ---- a stop --------------------------------------------------------------

    def writer(self) -> Writer:
        """Begin a new file. Raises OSError."""
        return Writer(self.path)

    def write_rest(self, writer: Writer) -> None:
        """Write what was not read. To be called while the file is pending. Raises OSError."""
        assert self._reading is not None
        self._reading.write(writer)
        self.close()

    def keep(self, writer: Writer) -> None:
        """Replace the old file by the new one, or delete both if nothing was written. Raises
        OSError."""
        if writer.is_empty:
            writer.discard()
            self.remove()
        else:
            writer.keep()


class Rest(Protocol):
    """The events that the publisher does not have; see intake.py."""

    @property
    def waiting(self) -> int: ...

    def write_some(self, writer: Writer) -> bool: ...


def store(
    file: Leftovers,
    events: Iterable[Event],
    rest: Rest,
    is_late: Callable[[], bool],
    is_alone: Callable[[], bool],
    sink: log.Sink,
    failed: Callable[[str], None],
) -> None:
    """Make the file hold exactly the events that are not delivered, at the end of a load: these
    `events`, then those that were not read from the old file, then the rest until `is_late`.

    `is_alone`: see `log_lost`. `failed` is called in the `except` block of an exception that is
    a defect.
    """
    waiting = collections.deque(events)
    before = len(waiting) + rest.waiting
    cut = 0
    why = "there was no time to write them"
    try:
        if not before and not file.pending:
            file.remove()
            return
        writer = file.writer()
        try:
            try:
                _write(writer, waiting, file, rest, is_late, failed)
            except OSError as error:
                if file.pending or (file.needed and waiting):
                    raise  # the old file has events that the new one lacks, and stays
                writer.rewind()
                why = f"{file.path} could not be written: {error}"
            try:
                file.keep(writer)
            except OSError as error:
                if file.needed:
                    raise
                cut = writer.rewind_to_disk()
                why = f"{file.path} could not be written: {error}"
                file.keep(writer)
        except BaseException:
            writer.discard()
            raise
    except OSError as error:
        before -= rest.waiting
        why = f"{file.path} could not be written: {error}"
        if file.needed:
            why += "; the old file stays, and its events are not lost"
        log_lost(before, rest.waiting, why, is_alone, sink)
        return
    log_lost(len(waiting) + cut, rest.waiting, why, is_alone, sink)
    if not writer.is_empty:
        sink(
            "notice",
            f"{counted(writer.count, 'event')} came too late for the fallback list, and went to "
            f"{file.path} for the next load",
        )


def log_lost(
    lost: int, queued: int, why: str, is_alone: Callable[[], bool], sink: log.Sink
) -> None:
    """Log how many events are lost, with those that are still in the queue.

    `is_alone` tells if Redis has gone on without this worker. Then the events in the queue stay
    there: the unload was refused, and the next worker delivers them.
    """
    if is_alone():
        if queued:
            sink(
                "warning",
                f"{counted(queued, 'event')} left in the queue, for the next handler: {why}",
            )
        queued = 0
    if lost + queued:
        sink("warning", f"{counted(lost + queued, 'event')} lost: {why}")


def _write(
    writer: Writer,
    waiting: collections.deque[Event],
    file: Leftovers,
    rest: Rest,
    is_late: Callable[[], bool],
    failed: Callable[[str], None],
) -> None:
    """Write all events; each leaves its place when it is in the file. An exception loses no
    events but those over which it comes again and again. Raises OSError."""
    failures = 0
    while True:
        try:
            if waiting:
                batch = list(itertools.islice(waiting, 1 if failures else JOB_ELEMENTS))
                writer.elements([to_element(event) for event in batch])
                for _ in batch:
                    waiting.popleft()
            elif file.pending:
                file.write_rest(writer)
            elif is_late() or not rest.write_some(writer):
                return
            failures = 0
        except OSError:
            raise
        except Exception:
            failed("the handler cannot write leftovers")
            writer.rewind()
            failures += 1
            if failures < _ATTEMPTS:
                continue
            if not waiting:
                raise OSError("the handler cannot write them") from None
            waiting.popleft()
            failures = 0
