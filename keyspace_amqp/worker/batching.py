"""Pauses of the worker under load, so that it handles events in batches.

A turn of the loop for each event takes ten times the CPU, which Redis and the broker may
need, and Redis' main thread has to wake the worker for each. So above a certain rate the
worker sleeps before each turn. The throttle is fed here too, because it samples at the
same times. Worker thread; `Batching.pause` sleeps for up to LONGEST_PAUSE, and for up to LONG_PAUSE
after a request or the result of a job. Nothing else here waits.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Protocol

from ..publisher.express import Express
from ..publisher.window import Window
from ..tables.stats import Stat
from .intake import Intake
from .job_queue import JobQueue
from .shim_api import Queue
from .throttle import Throttle

# Above BUSY events and confirms a second, the worker sleeps for PAUSE seconds before each turn, or
# for LONG_PAUSE while the broker has enough messages, or the throttle holds them back. At 20,000
# events a second this takes a fifth of a core instead of a whole one. Pauses of 3 ms and more in
# all cases made Redis' own latency worse, because the work after them comes in larger batches.
BUSY = 8000
PAUSE = 0.001
LONG_PAUSE = 0.005
# With the caches cold, a turn takes 0.6 ms before it has handled one event. So in the express the
# worker sleeps for as long as the broker has more than half a window to do, up to LONGEST_PAUSE.
LONGEST_PAUSE = 0.03
# The shortest time over which the rate is measured (seconds).
COUNT_EVERY = 0.01


class Publisher(Protocol):
    """The properties of the publisher that are used here; see publisher.py."""

    @property
    def counts(self) -> list[int]: ...

    express: Express
    window: Window

    @property
    def flushing(self) -> bool: ...


class Batching:
    """Measures the rate, and sleeps. `queue`: the events that `intake` takes. `requests`, `jobs`:
    a request, or the result of a job, ends a long sleep."""

    def __init__(
        self,
        queue: Queue,
        requests: Queue,
        jobs: JobQueue,
        intake: Intake,
        publisher: Publisher,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._queue = queue
        self._requests = requests
        self._jobs = jobs
        self._intake = intake
        self._publisher = publisher
        self._clock = clock
        self._sleep = sleep
        self._throttle = Throttle()
        self._schedstat = -1  # the scheduler statistics of the main thread; -1: not open
        self._counted = self._confirmed = 0
        self._counted_at = self._sampled_at = 0.0
        self._confirm_rate = 0.0  # a second
        self._busy = False

    def open(self) -> None:
        """Open the scheduler statistics of the main thread, if Linux has them."""
        with contextlib.suppress(OSError):
            self._schedstat = os.open(f"/proc/self/task/{os.getpid()}/schedstat", os.O_RDONLY)

    def close(self) -> None:
        if self._schedstat >= 0:
            os.close(self._schedstat)
            self._schedstat = -1

    def pause(self) -> None:
        """Sleep, if many events come, no flush is under way, and they may wait."""
        now = self._clock()
        if now - self._counted_at >= COUNT_EVERY:
            self._count(now)
        if self._busy and not self._publisher.flushing:
            rest = self._length()
            while rest > 0:
                self._sleep(min(rest, LONG_PAUSE))
                rest -= LONG_PAUSE
                self._sample(self._clock())
                if rest > 0 and (self._is_called or not self._intake.relaxed):
                    break

    @property
    def _is_called(self) -> bool:
        """True if Redis' main thread has left something other than events."""
        return self._requests.length > 0 or self._jobs.count_finished() > 0

    def _length(self) -> float:
        """Return how long to sleep, in seconds."""
        spare, relaxed = self._publisher.window.spare, self._intake.relaxed
        usual = PAUSE if relaxed else 0.0
        if not self._publisher.express.is_running:
            return LONG_PAUSE if relaxed and spare > 0 else usual
        if spare > 0:
            longest = LONGEST_PAUSE if relaxed else LONG_PAUSE
            return max(LONG_PAUSE, min(spare / max(self._confirm_rate, 1.0), longest))
        if self._throttle.rate is not None:
            return LONG_PAUSE if relaxed else PAUSE
        return usual

    def _count(self, now: float) -> None:
        # Confirms count too: without pauses they also come one by one.
        confirmed = self._publisher.counts[Stat.CONFIRMED]
        handled = self._queue.pushed + confirmed
        elapsed = now - self._counted_at
        self._busy = handled - self._counted > BUSY * elapsed
        self._confirm_rate = (confirmed - self._confirmed) / elapsed
        self._counted, self._confirmed, self._counted_at = handled, confirmed, now
        self._sample(now)

    def _sample(self, now: float) -> None:
        if self._schedstat >= 0 and now - self._sampled_at >= COUNT_EVERY:
            self._sampled_at = now
            ran, waited, _ = os.pread(self._schedstat, 100, 0).split()
            self._throttle.sample(now, int(ran) / 1e9, int(waited) / 1e9)

    def message_limit(self) -> int | None:
        """Return the number of messages that may be sent now; None: any number."""
        return self._throttle.grant(self._clock())

    def sent(self, count: int) -> None:
        """Note that so many messages were sent."""
        self._throttle.sent(count, self._clock())

    def wake_at(self) -> float | None:
        """Return the time of the next sample while messages are held back, else None."""
        return self._sampled_at + COUNT_EVERY if self._throttle.rate is not None else None
