"""The compiled module as the worker uses it, in types: bridge.py is the real one, the
tests have one of their own.

Worker thread only, all of it. Nothing here waits.
"""

from __future__ import annotations

from typing import Protocol

from ..jobs import Job, JobResult
from ..tables.stats import Text


class Queue(Protocol):
    """The taking end of a queue of records from Redis' main thread."""

    @property
    def pushed(self) -> int:
        """Return the number of records that were ever pushed. Who has read it sees
        everything that the main thread did before it pushed the last of them."""
        ...

    @property
    def length(self) -> int:
        """Return the number of records in the queue."""
        ...

    @property
    def size(self) -> int:
        """Return the number of bytes of the records in the queue."""
        ...

    @property
    def limit(self) -> int:
        """Return the number of bytes above which no event is pushed."""
        ...

    def take(self) -> bytes:
        """Return the oldest records that lie together in memory; empty if there are
        none. It is memory of the queue: its slices are copies, and it is valid until
        `release`."""
        ...

    def release(self, size: int, count: int) -> None:
        """Give the first bytes of what was taken back: `count` whole records."""
        ...


class Counters(Protocol):
    """The counters that STATS and INFO show, by the value of a `Stat`."""

    def __setitem__(self, place: int, number: int, /) -> None: ...


class PendingJob(Protocol):
    """A job for Redis' main thread, from its making to `free`."""

    @property
    def done(self) -> bool:
        """True when the main thread has run it."""
        ...

    def submit(self) -> None:
        """Hand the job over. Once."""
        ...

    def result(self) -> JobResult:
        """Return the replies of a job that is done."""
        ...

    def free(self) -> None:
        """End a job that is done. Once."""
        ...


class Shim(Protocol):
    """One load of the module, as the worker sees it."""

    @property
    def events(self) -> Queue: ...

    @property
    def requests(self) -> Queue: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def clustered(self) -> bool:
        """True if the server runs in cluster mode."""
        ...

    @property
    def port(self) -> int:
        """Return the server's port."""
        ...

    @property
    def wake_fd(self) -> int:
        """Return a descriptor that becomes readable when there is something to do."""
        ...

    def before_wait(self) -> None:
        """Ask Redis to announce new records on `wake_fd`, from now on."""
        ...

    def after_wait(self) -> None:
        """Empty `wake_fd`; announcements end."""
        ...

    def log(self, level: str, line: str) -> None:
        """Write a line to Redis' log; `level`: debug, verbose, notice, warning."""
        ...

    def set_text(self, text: Text, value: str) -> None:
        """Show a text in STATS and INFO."""
        ...

    def numbers(self) -> list[int]:
        """Return all counters and gauges as STATS shows them, those of the shim among
        them, by the value of a `Stat`."""
        ...

    def reset_numbers(self) -> None:
        """Start the shim's own counters again."""
        ...

    def make_job(self, job: Job) -> PendingJob: ...

    def command_done(self, handle: int, reply: bytes) -> None:
        """End a client's command with an encoded reply. Once for each handle."""
        ...

    def flush_done(self, flush_id: int) -> None:
        """Tell the main thread, which waits for it, that a flush is done."""
        ...

    def ready(self, ok: bool) -> None:
        """Tell the main thread that the worker runs, or that it cannot."""
        ...
