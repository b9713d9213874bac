"""The time that the worker sleeps where many events come, and the pace of messages.

A turn of the loop for each event takes ten times the CPU, which Redis and the broker
may need, and Redis' main thread has to wake a worker that waits for each. So where
many events come, they are dealt with many at a time. Worker thread; `Naps.take` sleeps
for up to LONG_NAP, and nothing else here waits.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Protocol

from ..tables.stats import Stat
from .intake import Intake
from .interface import Queue
from .pace import Pace

# From BUSY events and confirms a second on, the worker sleeps for NAP seconds before each
# turn, or for LONG_NAP while the broker has enough to do. At 20,000 events a second it
# takes a fifth of a core this way, instead of all of it. Naps of 3 ms and more in all
# cases made Redis' own latency worse, because the work after them comes in larger lumps.
BUSY = 8000
NAP = 0.001
LONG_NAP = 0.005
# The rate is looked at no more often than this (seconds).
COUNT_EVERY = 0.01


class Source(Protocol):
    """The publisher, as far as naps depend on it; publisher.py has the meanings."""

    @property
    def counts(self) -> list[int]: ...

    @property
    def broker_is_busy(self) -> bool: ...

    @property
    def flushing(self) -> bool: ...


class Naps:
    """Counts what comes, and sleeps. `queue`: of events, from which `intake` takes them."""

    def __init__(
        self,
        queue: Queue,
        intake: Intake,
        publisher: Source,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._queue = queue
        self._intake = intake
        self._publisher = publisher
        self._clock = clock
        self._sleep = sleep
        self._pace = Pace()
        self._schedstat = -1  # in this file Linux tells of the main thread
        self._counted = 0
        self._counted_at = 0.0
        self._busy = False

    def open(self) -> None:
        """Open the file in which Linux tells of the main thread, if it exists."""
        with contextlib.suppress(OSError):
            self._schedstat = os.open(f"/proc/self/task/{os.getpid()}/schedstat", os.O_RDONLY)

    def close(self) -> None:
        if self._schedstat >= 0:
            os.close(self._schedstat)
            self._schedstat = -1

    def take(self) -> None:
        """Sleep, if many events come and nobody waits for what this delays."""
        now = self._clock()
        if now - self._counted_at >= COUNT_EVERY:
            self._count(now)
        if self._busy and not self._publisher.flushing and self._intake.relaxed:
            self._sleep(LONG_NAP if self._publisher.broker_is_busy else NAP)

    def _count(self, now: float) -> None:
        # Confirms too: without naps they also come one by one.
        dealt = self._queue.pushed + self._publisher.counts[Stat.CONFIRMED]
        self._busy = dealt - self._counted > BUSY * (now - self._counted_at)
        self._counted, self._counted_at = dealt, now
        if self._schedstat >= 0:
            ran, waited, _ = os.pread(self._schedstat, 100, 0).split()
            self._pace.look(now, int(ran) / 1e9, int(waited) / 1e9)

    def most(self) -> int | None:
        """Return the number of messages that may be sent now; None: any number."""
        return self._pace.allows(self._clock())

    def wake_at(self) -> float | None:
        """Return the time of the next look at the main thread, while it brakes."""
        return self._counted_at + COUNT_EVERY if self._pace.rate is not None else None
