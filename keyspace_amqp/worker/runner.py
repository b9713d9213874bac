"""The worker's jobs that are with Redis' main thread, and what happens to their results.

The main thread runs jobs one after the other, so the results are read in that order
too. Worker thread; nothing here waits.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

from ..jobs import Job, JobResult
from .interface import PendingJob, Shim

Done = Callable[[JobResult], None]


class Runner:
    """Hands jobs over and their results back. `failed` is called within the handling of
    an exception over a result."""

    def __init__(self, shim: Shim, failed: Callable[[], None]) -> None:
        self._shim = shim
        self._failed = failed
        self._pending: collections.deque[tuple[PendingJob, Done]] = collections.deque()

    def submit(self, job: Job, done: Done) -> None:
        """Hand a job over; `done` gets the result in a later turn."""
        pending = self._shim.make_job(job)
        self._pending.append((pending, done))
        pending.submit()

    def count_finished(self) -> int:
        """Return the number of jobs, from the oldest on, that the main thread has run."""
        unfinished = (n for n, (job, _) in enumerate(self._pending) if not job.done)
        return next(unfinished, len(self._pending))

    def finish(self, count: int) -> None:
        """Pass the results of the oldest `count` jobs on, which are finished."""
        for _ in range(count):
            self._finish(*self._pending.popleft())

    def _finish(self, job: PendingJob, done: Done) -> None:
        try:
            done(job.result())
        except Exception:
            self._failed()
        finally:
            job.free()

    def expects(self, done: Done) -> bool:
        """True if a job whose result `done` gets is still to come."""
        return any(waits == done for _, waits in self._pending)

    def end(self) -> None:
        """Free the jobs that are finished. The others stay with the main thread."""
        for _ in range(self.count_finished()):
            job, _ = self._pending.popleft()
            job.free()
