"""The intake: takes events from the queue and gives them to the publisher.

It decides how many events are taken, from which event on new masks apply, when memory is
so full that events go to the list although the broker is connected, and when the oldest
events are dropped. Events that can only wait go through the masks and stay records, on the
shelf. Worker thread; nothing here waits.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeVar

from ..config import Config
from ..failures import STRIKES
from ..masks import ALL
from ..message import EVENT_BYTES, Event
from ..publisher.shelf import Shelf
from ..tables.stats import Stat
from .leftover_file import Origin, Writer
from .leftovers import Leftovers
from .outbox import Handed
from .records import HEAD, Reader, first_of_a_kind, first_records, starts_listed
from .shim_api import Queue

# Memory of waiting events, as fractions of the queue's limit. An event counts with the bytes
# of its record: only a few thousand are objects at a time, and no event is lost because of
# what these take. Above PRESSURE_ON, events go to the list even if the broker is connected,
# until memory is below PRESSURE_OFF. From OVERFLOW on, the oldest are dropped if the
# publisher is full or cannot send or store.
PRESSURE_ON = 1 / 2
PRESSURE_OFF = 1 / 4
OVERFLOW = 7 / 8
# The bytes that an event takes as objects above those of its record, whose padding is
# between 0 and 7 bytes.
_OBJECT_BYTES = EVENT_BYTES - HEAD.size - 4
_NO_END = 2**63

_T = TypeVar("_T")


class Receiver(Protocol):
    """The methods of the publisher that the intake uses; see publisher.py."""

    shelf: Shelf

    @property
    def can_only_wait(self) -> bool: ...

    def room(self) -> int: ...

    def add(self, events: Sequence[Event], *, shelved: bool = False) -> None: ...

    def drop_oldest(self, size: int, keep: int = 0) -> int: ...

    def recover(self, events: Sequence[Event], *, more: bool) -> None: ...

    def give_up(self, *, shelved: bool = False) -> None: ...

    def set_pressure(self, pressure: bool) -> None: ...

    def gauges(self) -> Mapping[Stat, int]: ...

    def add_listed(self, events: Sequence[Event], place: tuple[int, int]) -> None: ...


class Outbox(Protocol):
    """The members of the outbox that the intake uses; see outbox.py."""

    prefix: str

    @property
    def handed_count(self) -> int: ...

    def next_handed(self, number: int) -> Handed | None: ...

    def released(self, count: int) -> None: ...


class Intake:
    """See the module's docstring. `leftovers`: the file of an earlier load. `failed` is called
    in the `except` block of an exception for which an event is dropped, with a text for the
    log."""

    def __init__(
        self,
        queue: Queue,
        receiver: Receiver,
        leftovers: Leftovers,
        run_id: str,
        config: Config,
        failed: Callable[[str], None],
        outbox: Outbox,
    ) -> None:
        self._outbox = outbox
        self._outbox_reader = Reader(outbox.prefix)
        self._queue = queue
        self._receiver = receiver
        self._shelf = receiver.shelf
        self._leftovers = leftovers
        self._failed = failed
        self._run_id = run_id
        self._reader = Reader(run_id, config)
        self._shelf_reader = Reader(run_id)  # the masks have let these events through
        self._config = config
        self._filter = config  # its masks and databases apply to the next event
        # Masks and databases that apply after so many events.
        self._changes: collections.deque[tuple[int, Config]] = collections.deque()
        # Events taken out of the queue by earlier workers of this load.
        self._taken_before = queue.released
        self._failures = 0  # exceptions in a row over the next event

    def configure(self, config: Config, pushed: int) -> None:
        """Take new parameters. Their masks and databases apply to all events after the
        first `pushed`."""
        old, self._config = self._config, config
        if (config.masks, config.databases) != (old.masks, old.databases):
            self._changes.append((pushed, config))

    @property
    def waiting(self) -> int:
        """Return the number of events in the queue and on the shelf, without those that are in
        the list already."""
        return self.queued + self._shelf.count

    @property
    def not_listed(self) -> int:
        """Return the number of events that come before new ones; 1 also stands for a file."""
        return self.waiting + self._leftovers.pending

    @property
    def queued(self) -> int:
        """Return the number of events in the queue, without those that are in the list already."""
        return self._queue.length - self._outbox.handed_count

    def memory(self) -> int:
        """Return the bytes that the events in the queue, on the shelf and in the publisher
        take as records."""
        gauges = self._receiver.gauges()
        objects = gauges[Stat.QUEUE_LENGTH] - self._shelf.count
        return self._queue.size + gauges[Stat.QUEUE_BYTES] - objects * _OBJECT_BYTES

    @property
    def taken(self) -> int:
        """Return the number of events taken out of the queue by this worker."""
        return self._queue.released - self._taken_before

    @property
    def relaxed(self) -> bool:
        """True if so little memory is used that events may wait for a moment."""
        return self.memory() < self._queue.limit * PRESSURE_OFF

    def take(self, until: int) -> None:
        """Take the leftovers and then events up to the one with the number `until`, as many
        as the publisher has room for."""
        queue, receiver = self._queue, self._receiver
        limit = queue.limit
        while True:
            self._change_filter()
            room = receiver.room()
            over = self.memory() - int(limit * OVERFLOW)
            stuck = receiver.can_only_wait
            too_much = over >= 0 and (stuck or room <= 0)
            if (too_much or (stuck and room <= 0)) and self._sift(until):
                continue
            if too_much and self._drop_oldest(over + 1):
                continue
            if room <= 0:
                break
            if self._leftovers.pending:
                self._take_leftovers(room)
            elif not (self._take_shelf(room) or self._take_queue(room, until)):
                break
        memory = self.memory()
        if memory > limit * PRESSURE_ON:
            receiver.set_pressure(True)
        elif memory < limit * PRESSURE_OFF:
            receiver.set_pressure(False)

    def _change_filter(self) -> None:
        """Apply the masks and databases that hold from the next event on."""
        while self._changes and self._queue.released >= self._changes[0][0]:
            self._filter = self._changes.popleft()[1]
            self._reader.set_filter(self._filter)

    def _take_leftovers(self, most: int) -> None:
        """Move up to `most` events from the file of leftovers to the publisher."""
        leftovers = self._leftovers
        if peeked := self._attempt(lambda: leftovers.peek(most)):
            events, step = peeked
            self._receiver.recover(events, more=True)
            leftovers.advance(step)
        else:
            leftovers.skip()
        if not leftovers.pending:
            self._receiver.recover([], more=False)

    def _take_shelf(self, most: int) -> bool:
        """Move up to `most` events from the shelf to the publisher; return False if it is
        empty."""
        data, numbers = self._shelf.take()
        if not numbers:
            return False
        reader = self._shelf_reader
        parsed = self._attempt(lambda: reader.parse(data, numbers[:most]), shelved=True)
        events, size, count = parsed or ([], *first_records(data, 1, 1))
        # Released only when the publisher has them: an exception before loses nothing.
        self._receiver.add(events, shelved=True)
        self._shelf.release(size, count)
        return True

    def _take_queue(self, most: int, until: int) -> bool:
        """Move up to `most` events from the queue to the publisher; return False if there
        is none up to `until`."""
        numbers = self._next(most, until)
        if not numbers or not (data := self._queue.take()):
            return False
        if starts_listed(data):
            self._take_listed(data, len(numbers))
            return True
        parsed = self._attempt(lambda: self._reader.parse(data, numbers))
        events, size, count = parsed or ([], *first_records(data, 1, 1))
        self._receiver.add(events)
        self._release(size, count)
        return True

    def _sift(self, until: int) -> bool:
        """Move the next records of the queue to the shelf, without those that the masks do
        not let through; return False if there is none up to `until`."""
        numbers = self._next(until, until)
        if not numbers or not (data := self._queue.take()):
            return False
        if starts_listed(data):
            self._take_listed(data, len(numbers))
            return True
        sifted = self._attempt(lambda: self._reader.sift(data, numbers))
        records, kept, size, count = sifted or (b"", [], *first_records(data, 1, 1))
        self._shelf.put(records, kept)
        self._release(size, count)
        return True

    def _take_listed(self, data: bytes, most: int) -> None:
        """Move the next events, which are in the list already, to what the publisher knows of it.

        If their places in the list are not known, they are left to it: they will be read.
        """
        handed = self._outbox.next_handed(self._queue.released + 1)
        if handed is not None:
            most = min(most, handed.last + 1 - handed.number)
        size, count = first_of_a_kind(data, most, listed=True)
        if handed is not None and handed.place is not None:
            numbers = range(handed.id, handed.id + count)
            try:
                reader = self._outbox_reader
                events, size, count = reader.parse(data[:size], numbers, listed_ones=True)
                self._receiver.add_listed(events, handed.place)
            except Exception:
                self._failed("the handler cannot parse an event that is in the list")
                handed.place = None
        self._outbox.released(count)
        self._release(size, count)

    def _next(self, most: int, until: int) -> range:
        """Return the numbers of the next `most` events in the queue, up to `until` and up to
        the next change of the masks."""
        if self._changes:
            until = min(until, self._changes[0][0])
        taken = self._queue.released
        return range(taken + 1, min(taken + most, until) + 1)

    def _drop_oldest(self, size: int) -> int:
        """Drop the oldest events, of at least `size` bytes if possible; return how many. The
        newest one stays, because a single event may need nearly the whole limit."""
        shelf = self._shelf
        # While the file has more events than were read, dropping these would only make room
        # for those. Reading and dropping the whole file would not help.
        if not self._leftovers.pending and (
            dropped := self._receiver.drop_oldest(size, keep=int(not shelf.count))
        ):
            return dropped
        data, numbers = shelf.take()
        size, count = first_records(data, size, min(len(numbers), shelf.count - 1))
        if count > 0:
            shelf.drop(size, count)
        return count

    def write_some(self, writer: Writer) -> bool:
        """Move the next records of the shelf and of the queue to a file of leftovers; return
        False if there are none. The publisher does not get them."""
        shelf = self._shelf
        shelved, numbers = shelf.take()
        if numbers:
            writer.records(Origin(self._run_id, "ALL", (ALL,)), numbers, shelved)
            shelf.hand_over(len(shelved), len(numbers))
            return True
        self._change_filter()
        data = self._queue.take()
        if not data:
            return False
        most = len(self._next(len(data), _NO_END))
        if starts_listed(data):
            size, count = first_of_a_kind(data, most, listed=True)
            self._outbox.released(count)
            self._release(size, count)
            return True
        size, count = first_of_a_kind(data, most, listed=False)
        origin = Origin(self._run_id, self._filter.databases, self._filter.masks)
        writer.records(origin, self._next(count, _NO_END), data[:size])
        self._release(size, count)
        return True

    def _attempt(self, work: Callable[[], _T], *, shelved: bool = False) -> _T | None:
        """Return what `work` returns. None: it has raised STRIKES exceptions in a row, and
        its first event is lost, because one event must not block all that come after it."""
        try:
            result = work()
        except Exception:
            self._failures += 1
            if self._failures < STRIKES:
                raise
            self._failed("the handler cannot parse an event")
            self._receiver.give_up(shelved=shelved)
            result = None
        self._failures = 0
        return result

    def _release(self, size: int, count: int) -> None:
        """Return the memory of parsed records to the queue."""
        self._queue.release(size, count)
