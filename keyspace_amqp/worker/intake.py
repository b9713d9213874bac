"""The way of events from the queue to the publisher.

Decides how many are taken, from which event on new masks hold, when events go to the
list although the broker is connected, and when the oldest are given up. Worker thread;
nothing here waits.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..config import Config
from ..message import Event
from ..tables.stats import Stat
from .interface import Queue
from .records import Reader, record_size

# Memory of waiting events, in parts of the queue's limit. Above PRESSURE_ON they go to
# the list even if the broker is connected, until it is below PRESSURE_OFF. From OVERFLOW
# on the oldest are given up, if nothing else has helped.
PRESSURE_ON = 1 / 2
PRESSURE_OFF = 1 / 4
OVERFLOW = 7 / 8
# An event is given up when the handler has failed over it so often.
ATTEMPTS = 3


class Receiver(Protocol):
    """The publisher, as far as it takes events in; publisher.py has the meanings."""

    @property
    def can_only_wait(self) -> bool: ...

    def room(self) -> int: ...

    def add(self, events: Sequence[Event]) -> None: ...

    def drop_oldest(self, size: int, keep: int = 0) -> int: ...

    def give_up(self) -> None: ...

    def set_pressure(self, pressure: bool) -> None: ...

    def gauges(self) -> Mapping[Stat, int]: ...


class Intake:
    """See the module's text. `failed` is called within the handling of an exception over
    an event that is given up, with words for the log."""

    def __init__(
        self,
        queue: Queue,
        receiver: Receiver,
        run_id: str,
        config: Config,
        failed: Callable[[str], None],
    ) -> None:
        self._queue = queue
        self._receiver = receiver
        self._failed = failed
        self._reader = Reader(run_id, config)
        self._config = config
        # New masks and databases hold for the events behind so many.
        self._changes: collections.deque[tuple[int, Config]] = collections.deque()
        self._taken = 0  # events taken out of the queue
        self._failures = 0  # in a row, over the event that is next

    def configure(self, config: Config, pushed: int) -> None:
        """Take new parameters: their masks and databases hold for all events but the
        first `pushed`."""
        old, self._config = self._config, config
        if (config.masks, config.databases) != (old.masks, old.databases):
            self._changes.append((pushed, config))

    @property
    def waiting(self) -> int:
        """Return the number of events in the queue."""
        return self._queue.length

    def memory(self) -> int:
        """Return the bytes of events that wait, in the queue and in the publisher."""
        return self._queue.size + self._receiver.gauges()[Stat.QUEUE_BYTES]

    @property
    def relaxed(self) -> bool:
        """True if events that wait for a moment fill nothing."""
        return self.memory() < self._queue.limit * PRESSURE_OFF

    def take(self, until: int) -> None:
        """Take events, the first to the one with number `until`, as many as the
        publisher has room for."""
        queue, receiver = self._queue, self._receiver
        limit = queue.limit
        while True:
            if self._changes and self._taken >= self._changes[0][0]:
                self._reader.set_filter(self._changes.popleft()[1])
                continue
            room = receiver.room()
            memory = self.memory()
            over = memory - int(limit * OVERFLOW)
            if over >= 0 and (room <= 0 or receiver.can_only_wait):
                # A single event may need nearly all that there is.
                if receiver.drop_oldest(over + 1, keep=int(memory <= limit)):
                    continue
                if room <= 0:
                    break
            if room <= 0 or self._taken >= until:
                break
            room = min(room, until - self._taken)
            if self._changes:
                room = min(room, self._changes[0][0] - self._taken)
            data = queue.take()
            if not data:
                break
            # Given back when they are safe: an exception before that loses nothing.
            events, size, count = self._parse(data, room)
            receiver.add(events)
            self._release(size, count)
        memory = self.memory()
        if memory > limit * PRESSURE_ON:
            receiver.set_pressure(True)
        elif memory < limit * PRESSURE_OFF:
            receiver.set_pressure(False)

    def take_rest(self, is_late: Callable[[], bool]) -> list[Event]:
        """Take all events that the queue has, until it is late. The publisher does not
        get them."""
        rest: list[Event] = []
        while not is_late() and (data := self._queue.take()):
            events, size, count = self._parse(data, len(data))
            self._release(size, count)
            rest += events
        return rest

    def _parse(self, data: bytes, most: int) -> tuple[list[Event], int, int]:
        try:
            parsed = self._reader.parse(data, most, self._taken + 1)
        except Exception:
            self._failures += 1
            if self._failures < ATTEMPTS:
                raise
            # It must not stop all that come after it.
            self._failed("the handler fails over an event")
            self._receiver.give_up()
            parsed = [], record_size(data), 1
        self._failures = 0
        return parsed

    def _release(self, size: int, count: int) -> None:
        """Give the memory of parsed records back."""
        self._queue.release(size, count)
        self._taken += count
