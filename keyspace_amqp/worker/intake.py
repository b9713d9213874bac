"""The intake: takes events from the queue and gives them to the publisher.

It decides how many events are taken, when memory is so full that events go to the list although
the broker is connected, and when the oldest events are dropped. Events that can only wait stay
in the queue. Worker thread; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from ..failures import STRIKES
from ..message import EVENT_BYTES, Event
from .leftover_file import Origin, Writer
from .leftovers import Leftovers
from .outbox import Handed
from .parcels import Packer, Parcel
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

_T = TypeVar("_T")


class Receiver(Protocol):
    """The methods of the publisher that the intake uses; see publisher.py."""

    @property
    def can_only_wait(self) -> bool: ...

    @property
    def waiting(self) -> tuple[int, int]: ...

    def room(self) -> int: ...

    def express_room(self, most: int | None) -> int | None: ...

    def add_parcel(self, parcel: Parcel, frames: bytes) -> None: ...

    def add(self, events: Sequence[Event]) -> None: ...

    def drop_oldest(self, size: int, keep: int = 0) -> int: ...

    def recover(self, events: Sequence[Event], *, more: bool) -> None: ...

    def drop_untaken(self, count: int) -> None: ...

    def give_up(self, *, leftover: bool) -> None: ...

    def set_pressure(self, pressure: bool) -> None: ...


class Outbox(Protocol):
    """The members of the outbox that the intake uses; see outbox.py."""

    prefix: str

    @property
    def handed_count(self) -> int: ...

    def add(self, events: Sequence[Event], place: tuple[int, int]) -> None: ...

    def next_handed(self, number: int) -> Handed | None: ...

    def released(self, number: int, count: int) -> None: ...


class Intake:
    """See the module's docstring. `leftovers`: the file of an earlier load. `failed` is called
    in the `except` block of an exception for which an event is dropped, with a text for the
    log. `packer`: None: events go one by one."""

    def __init__(
        self,
        queue: Queue,
        receiver: Receiver,
        leftovers: Leftovers,
        run_id: str,
        failed: Callable[[str], None],
        outbox: Outbox,
        packer: Packer | None = None,
    ) -> None:
        self._outbox = outbox
        self._outbox_reader = Reader(outbox.prefix)
        self._queue = queue
        self._receiver = receiver
        self._leftovers = leftovers
        self._failed = failed
        self._run_id = run_id
        self._reader = Reader(run_id)
        self._packer = packer
        # Events taken out of the queue by earlier workers of this load.
        self._taken_before = queue.released
        self._failures = 0  # exceptions in a row over the next event

    @property
    def waiting(self) -> int:
        """Return the number of events in the queue, without those that are in the list already."""
        return self._queue.length - self._outbox.handed_count

    def memory(self) -> int:
        """Return the bytes that the events in the queue and in the publisher take as records."""
        objects, size = self._receiver.waiting
        return self._queue.size + size - objects * _OBJECT_BYTES

    @property
    def taken(self) -> int:
        """Return the number of events taken out of the queue by this worker."""
        return self._queue.released - self._taken_before

    @property
    def relaxed(self) -> bool:
        """True if so little memory is used that events may wait for a moment."""
        return self.memory() < self._queue.limit * PRESSURE_OFF

    def room(self, most: int | None) -> int:
        """Return how many events the publisher has room for now. `most`: how many messages should
        be sent, at most; None: any number."""
        room = self._express_room(most)
        return self._receiver.room() if room is None else room

    def _express_room(self, most: int | None) -> int | None:
        if self._packer is None or self._leftovers.pending or not self._packer.is_ready:
            return None
        return self._receiver.express_room(most)

    def take(self, until: int, most: int | None = None) -> None:
        """Take the leftovers and then events up to the one with the number `until`, as many
        as the publisher has room for. `most`: see `room`."""
        queue, receiver = self._queue, self._receiver
        limit = queue.limit
        while queue.released < until or self._leftovers.pending:
            if self._take_listed(until):
                continue
            over = self.memory() - int(limit * OVERFLOW)
            # In the express, no room may mean that there is more in a moment.
            express_room = self._express_room(most) if over < 0 else None
            room = receiver.room() if express_room is None else express_room
            too_much = over >= 0 and (receiver.can_only_wait or room <= 0)
            if too_much and self._drop_oldest(over + 1, until):
                continue
            if room <= 0:
                break
            if self._leftovers.pending:
                self._take_leftovers(room)
            elif not self._take_queue(room, until, express=express_room is not None):
                break
        memory = self.memory()
        if memory > limit * PRESSURE_ON:
            receiver.set_pressure(True)
        elif memory < limit * PRESSURE_OFF:
            receiver.set_pressure(False)

    def _take_leftovers(self, most: int) -> None:
        """Move up to `most` events from the file of leftovers to the publisher."""
        leftovers = self._leftovers
        if peeked := self._attempt(lambda: leftovers.peek(most), leftover=True):
            events, step = peeked
            self._receiver.recover(events, more=True)
            leftovers.advance(step)
        else:
            leftovers.skip()
        if not leftovers.pending:
            self._receiver.recover([], more=False)

    def _take_queue(self, most: int, until: int, *, express: bool) -> bool:
        """Move up to `most` events from the queue to the publisher; return False if there
        is none up to `until`. `express`: as a parcel, if possible."""
        taken = self._queue.released
        numbers = range(taken + 1, min(taken + most, until) + 1)
        if not numbers or not (data := self._queue.take()):
            return False
        if starts_listed(data):  # it has come since _take_listed looked
            return True
        if express and (packed := self._pack(data, numbers)) is not None:
            parcel, frames, size = packed
            self._receiver.add_parcel(parcel, frames)
            self._queue.release(size, parcel.count)
            return True
        events, size = self._attempt(lambda: self._reader.parse(data, numbers)) or ([], 0)
        # Released only when the publisher has them: an exception before loses nothing.
        self._receiver.add(events)
        if events:
            self._queue.release(size, len(events))
        else:
            self._queue.release(*first_records(data, 1, 1))  # the one that was given up
        return True

    def _pack(self, data: bytes, numbers: range) -> tuple[Parcel, bytes, int] | None:
        """Return a parcel of events; None: they have to go one by one. Then, if the handler fails
        over one of them, it is found out over which."""
        assert self._packer is not None
        try:
            return self._packer.pack(data, numbers)
        except Exception:
            self._failed("the handler cannot lay out messages")
            return None

    def _take_listed(self, until: int) -> bool:
        """Move the next events, which are in the list already, to what the publisher knows of it;
        return False if the next one is not in the list, or if there is none up to `until`.

        If their places in the list are not known, they are left to it: they will be read.
        """
        queue = self._queue
        data = queue.take() if queue.released < until else b""
        if not data or not starts_listed(data):
            return False
        handed = self._outbox.next_handed(queue.released + 1)
        last = until if handed is None else min(handed.last, until)
        size, count = first_of_a_kind(data, last - queue.released, listed=True)
        if handed is not None and handed.place is not None:
            numbers = range(handed.id, handed.id + count)
            try:
                events, size = self._outbox_reader.parse(data[:size], numbers, listed=True)
                count = len(events)
                self._outbox.add(events, handed.place)
            except Exception:
                self._failed("the handler cannot parse an event that is in the list")
                handed.place = None
        self._outbox.released(queue.released + 1, count)
        queue.release(size, count)
        return True

    def _drop_oldest(self, size: int, until: int) -> int:
        """Drop the oldest events, of at least `size` bytes if possible; return how many.

        Of the queue only those up to the number `until`. The newest one stays, because a single
        event may need nearly the whole limit.
        """
        queue, receiver = self._queue, self._receiver
        untaken = queue.length
        # While the file has more events than were read, dropping these would only make room
        # for those. Reading and dropping the whole file would not help.
        if not self._leftovers.pending and (
            dropped := receiver.drop_oldest(size, keep=int(not untaken))
        ):
            return dropped
        data = queue.take()
        most = min(untaken - 1, until - queue.released)
        plain, _ = first_of_a_kind(data, most, listed=False)
        size, count = first_records(data, min(size, plain), most)
        if count > 0:
            queue.release(size, count)
            receiver.drop_untaken(count)
        return max(count, 0)

    def write_some(self, writer: Writer) -> bool:
        """Move the next records of the queue to a file of leftovers; return False if there are
        none. The publisher does not get them."""
        data = self._queue.take()
        if not data:
            return False
        if starts_listed(data):
            size, count = first_of_a_kind(data, len(data), listed=True)
            self._outbox.released(self._queue.released + 1, count)
            self._queue.release(size, count)
            return True
        size, count = first_of_a_kind(data, len(data), listed=False)
        first = self._queue.released + 1
        writer.records(Origin(self._run_id), range(first, first + count), data[:size])
        self._queue.release(size, count)
        return True

    def _attempt(self, work: Callable[[], _T], *, leftover: bool = False) -> _T | None:
        """Return what `work` returns. None: it has raised STRIKES exceptions in a row, and
        its first event is lost, because one event must not block all that come after it."""
        try:
            result = work()
        except Exception:
            self._failures += 1
            if self._failures < STRIKES:
                raise
            self._failed("the handler cannot parse an event")
            self._receiver.give_up(leftover=leftover)
            result = None
        self._failures = 0
        return result
