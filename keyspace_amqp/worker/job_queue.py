"""The queue of jobs that Redis' main thread runs for the worker.

The main thread runs jobs in the order of submission, and their results are read in the
same order. Worker thread; nothing here waits.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

from ..jobs import Job, JobResult
from .shim_api import PendingJob, Shim

Done = Callable[[JobResult], None]


class JobQueue:
    """Submits jobs, and passes each result to the callback that came with the job. `failed`
    is called in the `except` block of an exception of such a callback. `before`: called with
    the number of results that were passed on before, each time one is about to be."""

    def __init__(
        self, shim: Shim, failed: Callable[[], None], before: Callable[[int], None]
    ) -> None:
        self.finished = 0  # jobs whose results were passed on
        self._shim = shim
        self._failed = failed
        self._before = before
        self._pending: collections.deque[tuple[PendingJob, Done]] = collections.deque()

    def submit(self, job: Job, done: Done) -> None:
        """Give a job to the main thread; `done` gets the result in a later turn."""
        pending = self._shim.make_job(job)
        self._pending.append((pending, done))
        pending.submit()

    def count_finished(self) -> int:
        """Return how many of the oldest jobs the main thread has run."""
        unfinished = (n for n, (job, _) in enumerate(self._pending) if not job.done)
        return next(unfinished, len(self._pending))

    def finish(self, count: int) -> None:
        """Pass on the results of the oldest `count` jobs, all of which are finished."""
        for _ in range(count):
            self._before(self.finished)
            self.finished += 1
            self._finish(*self._pending.popleft())

    def _finish(self, job: PendingJob, done: Done) -> None:
        try:
            done(job.result())
        except Exception:
            self._failed()
        finally:
            job.free()

    def expects(self, done: Done) -> bool:
        """True if a job with this callback has not been passed on yet."""
        return any(callback == done for _, callback in self._pending)

    def end(self) -> None:
        """Abandon all jobs, because the worker ends."""
        for job, _ in self._pending:
            job.abandon()
        self._pending.clear()
