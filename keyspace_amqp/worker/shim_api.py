"""The types of the shim's interface to the worker. bridge.py implements them with the
compiled module; the tests have an implementation without it.

Worker thread only, except `Shim.log`. Nothing here waits.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Protocol

from ..jobs import Job, JobResult
from ..tables.stats import Text
from ..values import value


class OutboxState(enum.IntEnum):
    """OUTBOX_* in shim/api.h."""

    CLOSED = 0
    HELD = 1
    OPEN = 2


class Queue(Protocol):
    """The consumer's end of a queue of records from Redis' main thread."""

    @property
    def pushed(self) -> int:
        """Return the number of records pushed so far. After reading it, the worker sees
        everything that the main thread did before it pushed the last of them."""
        ...

    @property
    def released(self) -> int:
        """Return the number of records released so far, by earlier workers of this load
        too."""
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
        """Return the oldest records that are contiguous in memory; empty if there are
        none. The result is the queue's own memory and valid until `release`; slices are
        copies."""
        ...

    def release(self, size: int, count: int) -> None:
        """Return memory to the queue: the oldest `count` records, which have `size`
        bytes."""
        ...


# The parts that are the same in messages: `first`, `second`, `third` of messages_t in shim/api.h.
Template = tuple[bytes, bytes, bytes]


@value
class LaidOut:
    """Messages of events. `events`: their number; `size`: the bytes of their records.
    `times`: for each run of events of the same time (Unix time in milliseconds), the place behind
    the last of them, and that time."""

    events: int
    size: int
    frames: bytes
    times: Sequence[tuple[int, int]]


class Layout(Protocol):
    """Lays out the messages of many events."""

    def lay_out(
        self, records: bytes, at: int, size: int, template: Template, body_max: int,
        number: int, most: int,
    ) -> LaidOut:  # fmt: skip
        """Lay out the messages of the first plain events from `at` on, whose records begin before
        `size`; see messages_write in shim/api.h. `number`: that of the first event. `most`: events,
        at most."""
        ...


class Counters(Protocol):
    """The array of counters that STATS and INFO show; the index is a `Stat`."""

    def __setitem__(self, place: int, number: int, /) -> None: ...


class PendingJob(Protocol):
    """A job for Redis' main thread, from its creation to `free`."""

    @property
    def done(self) -> bool:
        """True when the main thread has run it."""
        ...

    def submit(self) -> None:
        """Give the job to the main thread. Call it once."""
        ...

    def result(self) -> JobResult:
        """Return the replies of a job that is done."""
        ...

    def free(self) -> None:
        """Free a job that is done. Call it once."""
        ...

    def abandon(self) -> None:
        """Give up a submitted job. Call it once, instead of `free`."""
        ...


class Shim(Protocol):
    """The functions and data that the shim offers to the worker."""

    @property
    def events(self) -> Queue: ...

    @property
    def requests(self) -> Queue: ...

    @property
    def counters(self) -> Counters: ...

    @property
    def layout(self) -> Layout: ...

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
        """Return a descriptor that becomes readable when records or finished jobs wait."""
        ...

    @property
    def slice_call(self) -> int:
        """Return the number of the system call of `set_slice`."""
        ...

    def set_slice(self, nice: int, nanoseconds: int) -> int:
        """Set the nice value and the time slice of the calling thread; 0: the usual slice.
        Return 0, or the error's number."""
        ...

    def before_wait(self) -> None:
        """Ask the shim to make `wake_fd` readable when new records come."""
        ...

    def after_wait(self) -> None:
        """Clear `wake_fd`; new records do not make it readable any more."""
        ...

    def log(self, level: str, line: str) -> None:
        """Write a line to Redis' log. `level`: debug, verbose, notice or warning. Any
        thread."""
        ...

    def set_text(self, text: Text, value: str) -> None:
        """Show a text in STATS and INFO."""
        ...

    def numbers(self) -> list[int]:
        """Return all counters and gauges as STATS shows them, including the shim's own;
        the index is a `Stat`."""
        ...

    def reset_numbers(self, forgotten: int) -> None:
        """Set the shim's own counters to 0. `forgotten`: of the events that the worker has taken
        in all, those that do not count as matched any more."""
        ...

    def make_job(self, job: Job) -> PendingJob: ...

    def outbox_state(self) -> OutboxState: ...

    def outbox_start(self, prefix: str, key: bytes) -> None:
        """Set the start of the ids of elements, and the list that takes events from the first
        one after the load on; empty: none. To be called before `ready`."""
        ...

    def outbox_wants(self, wanted: bool) -> None:
        """Ask for the records of events that are in the list, or for none."""
        ...

    def outbox_booked(self, count: int) -> None:
        """Tell that so many more elements are in the worker's counts."""
        ...

    def outbox_taken(self, count: int) -> None:
        """Tell that so many more records of events in the list were released."""
        ...

    def command_done(self, handle: int, reply: bytes) -> None:
        """Send an encoded reply to a client's command. Call it once for each handle."""
        ...

    def flush_done(self, flush_id: int) -> None:
        """Tell the main thread, which waits for the flush, that it is done."""
        ...

    def ready(self, ok: bool) -> bool:
        """Tell the main thread that the worker is ready, or that it cannot start. False: it
        has to end, because the load did not wait so long."""
        ...
