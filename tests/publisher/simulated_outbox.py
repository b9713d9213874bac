"""Redis' main thread with an outbox, line by line as in shim/outbox.c, and the worker's jobs."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from keyspace_amqp.fallback import push_job, to_element
from keyspace_amqp.jobs import Job, JobResult, OutboxStep
from keyspace_amqp.message import Event
from keyspace_amqp.worker.records import HEAD, LISTED_BIT, Kind, ListChanged, Listed, Reader
from keyspace_amqp.worker.shim_api import OutboxState
from tests.publisher.simulated import BEGIN_MS, SimulatedList, event_of
from tests.worker.fakes import FakeJob, FakeShim, record

CLOSED, HELD, OPEN = OutboxState.CLOSED, OutboxState.HELD, OutboxState.OPEN

# As in shim/outbox.c.
HOLD_SECONDS = 1.0

OK, CLOSED_ERROR = (b"+OK\r\n", 0), (b"-ERR closed\r\n", 0)


def record_of(event: Event) -> bytes:
    return record(Kind.EVENT, event.key, name=event.name, time_ms=BEGIN_MS, db=event.db)


def event_in(data: bytes) -> Event:
    """The event in such a record, but for its id."""
    return event_of(HEAD.unpack_from(data)[3])


_BIT_AT = HEAD.size - 1


def in_list(data: bytes) -> bytes:
    """The record of an event that is in the list already."""
    return data[:_BIT_AT] + bytes([data[_BIT_AT] | LISTED_BIT]) + data[_BIT_AT + 1 :]


class OutboxShim(FakeShim):
    """The shim's side of the worker's parts: what shim/outbox.c has for the worker thread."""

    def __init__(self) -> None:
        super().__init__()
        self.prefix = ""
        self.wants = False
        self.unbooked = self.in_queue = 0

    def outbox_start(self, prefix: str, key: bytes) -> None:
        self.prefix, self.start_key = prefix, key

    def outbox_wants(self, wanted: bool) -> None:
        self.wants = wanted

    def outbox_booked(self, count: int) -> None:
        self.unbooked -= count

    def outbox_taken(self, count: int) -> None:
        self.in_queue -= count


class MainThread:
    """Collects events, stores them, runs jobs. `requests`: those about lists, or what the worker
    does for another kind of request. `clock`: seconds."""

    def __init__(self, there: SimulatedList, clock: Callable[[], float]) -> None:
        self.list = there
        self.shim = OutboxShim()
        self.requests: collections.deque[ListChanged | Listed | Callable[[], None]] = (
            collections.deque()
        )
        self.mode = "off"
        self.key: bytes | None = None
        self.pending: list[bytes] = []  # records of this turn; the first `listed` are in the list
        self.listed = self.length = self.untold = self.untold_id = self.first_id = 0
        self.next_id = 1
        self.emitted = self.missed = self.jobs_run = 0
        self.refuses_writes = False
        self.behind = False  # the worker is: so many requests wait
        self._held_at = 0.0
        self._clock = clock

    @property
    def state(self) -> OutboxState:
        return self.shim.outbox

    # Events

    def emit(self, events: Sequence[Event]) -> None:
        """Those of one command or script."""
        for event in events:
            self.emitted += 1
            if self.state is CLOSED:
                self.missed += self.mode != "off"
                self.shim.events.push(record_of(event))
            else:
                self.pending.append(record_of(event))
        if self.mode == "atomic":
            self.store()

    def store(self) -> None:
        if self.state is not OPEN or self.listed == len(self.pending):
            return
        if not self._push():
            self.close()

    def before_save(self) -> None:
        self.store()
        if self.state is HELD:
            self.close()

    def _push(self) -> bool:
        if self.refuses_writes:
            return False
        new = self.pending[self.listed :]
        numbers = range(self.next_id, self.next_id + len(new))
        events, _ = Reader(self.shim.prefix).parse(b"".join(new), numbers)
        assert self.key is not None
        length = self.list.run(push_job(self.key, list(map(to_element, events)), 0)).reply(0)
        if not isinstance(length, int):
            return False
        if not self.listed:
            self.first_id = self.next_id
        self.length = length
        self.listed = len(self.pending)
        self.next_id += len(new)
        return True

    def tell(self, *, at_once: bool) -> None:
        if self.listed:
            if not self.untold:
                self.untold_id = self.first_id
            self.untold += self.listed
            self.shim.unbooked += self.listed
        if self.untold and (at_once or not self.behind):
            self._send()
        del self.pending[: self.listed]
        self.listed = 0

    def _send(self) -> None:
        shim = self.shim
        wanted = shim.wants and self.untold == self.listed
        assert self.key is not None
        told = Listed(self.jobs_run, shim.events.pushed + 1, self.untold_id, self.length,
                      self.untold, self.listed if wanted else 0, self.key)  # fmt: skip
        self.untold = 0
        self.requests.append(told)
        if wanted:
            shim.in_queue += self.listed
            shim.events.push(*map(in_list, self.pending[: self.listed]))

    def close(self) -> None:
        self.tell(at_once=True)
        self.missed += len(self.pending)
        self.shim.events.push(*self.pending)
        self.pending.clear()
        self.shim.outbox = CLOSED

    def leave(self) -> None:
        if self.pending:
            self.close()

    def set_mode(self, mode: str, *, has_list: bool) -> None:
        self.mode = mode
        if mode == "off" or not has_list:
            self.close()

    def start(self) -> None:
        """The worker of a load is ready."""
        if self.shim.start_key:
            self._set_key(self.shim.start_key)
            self.shim.outbox = OPEN

    def renew(self) -> None:
        """Another worker is about to start."""
        self.close()
        self.untold = 0
        self.shim.wants = False
        self.shim.unbooked = 0
        self.requests.clear()
        self.jobs_run = 0
        self.shim.jobs.clear()
        self.refuses_writes = False

    def _set_key(self, key: bytes) -> None:
        self.tell(at_once=True)
        self.key = key

    # The event loop

    def end_turn(self) -> None:
        if self.state is HELD and self.pending and self._clock() - self._held_at > HOLD_SECONDS:
            self.close()
        self.store()
        if self.state is OPEN:
            self.tell(at_once=False)

    def run_jobs(self, run: Callable[[Job], JobResult]) -> bool:
        """Runs all submitted jobs: those of the outbox here, others by `run`."""
        waiting = [job for job in self.shim.jobs if job.submitted and not job.done]
        if waiting:
            self.tell(at_once=True)
        for job in waiting:
            self._run(job, run)
            self.jobs_run += 1
        self.shim.jobs.clear()
        return bool(waiting)

    def _run(self, job: FakeJob, run: Callable[[Job], JobResult]) -> None:
        (step, *_) = job.job.commands
        if not isinstance(step, OutboxStep):
            job.run(*run(job.job).replies)
        elif step.open:
            job.run(OK if self._open(step.arguments[0]) else CLOSED_ERROR)
        else:
            job.run(OK if self._hold() else CLOSED_ERROR)

    def _hold(self) -> bool:
        if self.mode == "off":
            return False
        self.store()
        self.tell(at_once=True)
        self._held_at = self._clock()
        self.shim.outbox = HELD
        return True

    def _open(self, key: bytes) -> bool:
        if self.mode == "off" or self.state is not HELD:
            return False
        if not key:
            self.close()
            return True
        held = len(self.pending)
        self._set_key(key)
        self.shim.outbox = OPEN
        self.store()
        if self.state is not OPEN:
            return False
        self.missed += held
        self.tell(at_once=True)
        return True

    # For checks

    def waiting(self) -> list[bytes]:
        """The records of events that are nowhere but here and in the queue."""
        queue = self.shim.events
        queued = [one for one in queue.records if not one[_BIT_AT] & LISTED_BIT]
        return queued + self.pending[self.listed :]
