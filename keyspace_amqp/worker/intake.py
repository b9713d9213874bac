"""The intake: takes events from the queue and gives them to the publisher.

It decides how many events are taken, from which event on new masks apply, when memory is
so full that events go to the list although the broker is connected, and when the oldest
events are dropped. Worker thread; nothing here waits.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..config import Config
from ..failures import Strikes
from ..message import Event
from ..tables.stats import Stat
from .records import Reader, record_size
from .shim_api import Queue

# Memory of waiting events, as fractions of the queue's limit. Above PRESSURE_ON, events go
# to the list even if the broker is connected, until memory is below PRESSURE_OFF. From
# OVERFLOW on, the oldest are dropped if the publisher is full or cannot send or store.
PRESSURE_ON = 1 / 2
PRESSURE_OFF = 1 / 4
OVERFLOW = 7 / 8


class Receiver(Protocol):
    """The methods of the publisher that the intake uses; see publisher.py."""

    @property
    def can_only_wait(self) -> bool: ...

    def room(self) -> int: ...

    def add(self, events: Sequence[Event]) -> None: ...

    def drop_oldest(self, size: int, keep: int = 0) -> int: ...

    def give_up(self) -> None: ...

    def set_pressure(self, pressure: bool) -> None: ...

    def gauges(self) -> Mapping[Stat, int]: ...


class Intake:
    """See the module's docstring. `failed` is called in the `except` block of an exception
    for which an event is dropped, with a text for the log."""

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
        # Masks and databases that apply after so many events.
        self._changes: collections.deque[tuple[int, Config]] = collections.deque()
        self._taken = 0  # events taken out of the queue
        self._strikes = Strikes()  # by the number of the event

    def configure(self, config: Config, pushed: int) -> None:
        """Take new parameters. Their masks and databases apply to all events after the
        first `pushed`."""
        old, self._config = self._config, config
        if (config.masks, config.databases) != (old.masks, old.databases):
            self._changes.append((pushed, config))

    @property
    def waiting(self) -> int:
        """Return the number of events in the queue."""
        return self._queue.length

    def memory(self) -> int:
        """Return the bytes of the events in the queue and in the publisher."""
        return self._queue.size + self._receiver.gauges()[Stat.QUEUE_BYTES]

    @property
    def relaxed(self) -> bool:
        """True if so little memory is used that events may wait for a moment."""
        return self.memory() < self._queue.limit * PRESSURE_OFF

    def take(self, until: int) -> None:
        """Take events up to the one with the number `until`, as many as the publisher
        has room for."""
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
                # A single event may need nearly the whole limit: one that fits is kept.
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
            # Released only when the publisher has them: an exception before loses nothing.
            events, size, count = self._parse(data, room)
            receiver.add(events)
            self._release(size, count)
        memory = self.memory()
        if memory > limit * PRESSURE_ON:
            receiver.set_pressure(True)
        elif memory < limit * PRESSURE_OFF:
            receiver.set_pressure(False)

    def take_rest(self, is_late: Callable[[], bool]) -> list[Event]:
        """Take and return the events of the queue, until `is_late`. The publisher does
        not get them."""
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
            if not self._strikes.failed(self._taken):
                raise
            # One event must not block all that come after it.
            self._failed("the handler cannot parse an event")
            self._receiver.give_up()
            parsed = [], record_size(data), 1
        return parsed

    def _release(self, size: int, count: int) -> None:
        """Return the memory of parsed records to the queue."""
        self._queue.release(size, count)
        self._taken += count
