"""Fakes of the compiled module, for tests of the worker's parts without it.

The types are those of keyspace_amqp/worker/shim_api.py.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence

from keyspace_amqp.jobs import Job, JobResult
from keyspace_amqp.tables.stats import Stat, Text
from keyspace_amqp.worker.outbox import Handed
from keyspace_amqp.worker.records import HEAD, SUBKEYED, VALUED, Kind
from keyspace_amqp.worker.shim_api import OutboxState


def record(
    kind: Kind,
    payload: bytes = b"",
    *,
    name: bytes = b"",
    time_ms: int = 0,
    db: int = 0,
    bit: int = 0,
) -> bytes:
    """A record as the shim lays it out."""
    size = HEAD.size + len(name) + len(payload)
    padding = -size % 8
    head = HEAD.pack(size + padding, len(payload), time_ms, db, len(name), kind, bit)
    return head + name + payload + bytes(padding)


def event(key: bytes, name: bytes = b"set", *, time_ms: int = 7, db: int = 0) -> bytes:
    """The record of an event of the class `$`."""
    return record(Kind.EVENT, key, name=name, time_ms=time_ms, db=db, bit=3)


def valued(key: bytes, length: int, data: bytes | None, *, kind: int = 1, before: int = 0) -> bytes:
    """The record of an event with what its key holds."""
    head = VALUED.pack(length, len(key), kind, before, data is not None)
    return record(Kind.VALUED, head + key + (data or b""), name=b"set", bit=3)


def subkeyed(inner: bytes, names: Sequence[bytes], total: int | None = None) -> bytes:
    """The record of the event in another record, with these subkeys."""
    _, payload_len, time_ms, db, name_len, kind, bit = HEAD.unpack_from(inner)
    at = HEAD.size + name_len
    listed = counted(*names)
    head = SUBKEYED.pack(len(names) if total is None else total, len(listed), kind)
    return record(Kind.SUBKEYED, head + listed + inner[at : at + payload_len],
                  name=inner[HEAD.size : at], time_ms=time_ms, db=db, bit=bit)  # fmt: skip


def counted(*arguments: bytes) -> bytes:
    """Arguments in a payload."""
    return b"".join(struct.pack("=I", len(argument)) + argument for argument in arguments)


class FakeQueue:
    """A queue in which up to `together` records are contiguous in memory."""

    def __init__(self, limit: int = 1_000_000, together: int = 1000) -> None:
        self.limit = limit
        self.together = together
        self.pushed = 0
        self.released = 0
        self._records: list[bytes] = []

    def push(self, *records: bytes) -> None:
        self._records += records
        self.pushed += len(records)

    @property
    def length(self) -> int:
        return len(self._records)

    @property
    def size(self) -> int:
        return sum(map(len, self._records))

    @property
    def records(self) -> Sequence[bytes]:
        return self._records

    def take(self) -> bytes:
        return b"".join(self._records[: self.together])

    def release(self, size: int, count: int) -> None:
        assert size == len(b"".join(self._records[:count])), "whole records"
        assert count <= self.together, "what was taken"
        del self._records[:count]
        self.released += count


class FakeJob:
    """A job with the main thread; the test runs it."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.submitted = self.done = self.freed = self.abandoned = False
        self._result = JobResult([])

    def submit(self) -> None:
        assert not self.submitted
        self.submitted = True

    def run(self, *replies: tuple[bytes | None, int]) -> None:
        """Run the job as the main thread would."""
        assert self.submitted
        self.done = True
        self._result = JobResult(list(replies))

    def result(self) -> JobResult:
        assert self.done
        assert not self.freed
        return self._result

    def free(self) -> None:
        assert self.done, "the main thread has it"
        assert not self.freed
        self.freed = True

    def abandon(self) -> None:
        assert self.submitted
        assert not self.freed
        assert not self.abandoned
        self.abandoned = True


class FakeShim:
    """The shim of one load of the module; the test plays the main thread."""

    clustered = False
    port = 6379
    wake_fd = -1

    def __init__(self) -> None:
        self.events = FakeQueue()
        self.requests = FakeQueue()
        self.counters = [0] * len(Stat)
        self.texts: dict[Text, str] = {}
        self.lines: list[tuple[str, str]] = []
        self.jobs: list[FakeJob] = []
        self.replies: dict[int, bytes] = {}
        self.heard: list[object] = []
        self.nice_error: OSError | None = None
        self.outbox = OutboxState.CLOSED

    def before_wait(self) -> None:
        self.heard.append("before_wait")

    def after_wait(self) -> None:
        self.heard.append("after_wait")

    def log(self, level: str, line: str) -> None:
        self.lines.append((level, line))

    def set_text(self, text: Text, value: str) -> None:
        self.texts[text] = value

    def numbers(self) -> list[int]:
        return list(self.counters)

    def reset_numbers(self, forgotten: int) -> None:
        self.heard.append(("reset_numbers", forgotten))

    def make_job(self, job: Job) -> FakeJob:
        self.jobs.append(FakeJob(job))
        return self.jobs[-1]

    def outbox_state(self) -> OutboxState:
        return self.outbox

    def outbox_start(self, prefix: str, key: bytes) -> None:
        self.heard.append(("outbox_start", key))

    def outbox_wants(self, wanted: bool) -> None:
        self.heard.append(("outbox_wants", wanted))

    def outbox_booked(self, count: int) -> None:
        self.heard.append(("outbox_booked", count))

    def outbox_taken(self, count: int) -> None:
        self.heard.append(("outbox_taken", count))

    def command_done(self, handle: int, reply: bytes) -> None:
        assert handle not in self.replies, "once"
        self.replies[handle] = reply

    def flush_done(self, flush_id: int) -> None:
        self.heard.append(("flush_done", flush_id))

    def ready(self, ok: bool) -> bool:
        self.heard.append(("ready", ok))
        return True

    def set_nice(self, nice: int) -> None:
        self.heard.append(("nice", nice))
        if self.nice_error is not None:
            raise self.nice_error


class NoOutbox:
    """An outbox that hands over nothing."""

    prefix = "outbox"
    handed_count = 0

    def add(self, events: object, place: object) -> None: ...

    def next_handed(self, number: int) -> Handed | None:
        return None

    def released(self, number: int, count: int) -> None: ...


class Failures:
    """Collects the texts with which `failed` is called."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def __call__(self, what: str = "") -> None:
        self.told.append(what)


def keys_of(events: Iterable[object]) -> Sequence[bytes]:
    return [event.key for event in events]  # type: ignore[attr-defined]  # of events
