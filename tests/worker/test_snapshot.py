"""The pace of snapshots, with a clock and a main thread of the test: the rate holds, few events
wait at any time, and everything ends."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.jobs import Job, JobError, JobResult, SnapshotStep
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.worker.snapshot import (
    LOOK_EVERY,
    SHOWN_AFTER,
    STEP_EVENTS,
    STEP_EVERY,
    WAITING_BYTES,
    WAITING_EVENTS,
    Snapshot,
)


class Publisher:
    state = "connected"
    flushing = False


class World:
    """`keys`: those that no step has looked at; `size`: bytes of an event; `waiting`: events that
    the broker has not confirmed; `steps`: time and number of the events of each step."""

    def __init__(self, keys: int = 1000, size: int = 100) -> None:
        self.now = 100.0
        self.keys, self.size = keys, size
        self.most_per_step = STEP_EVENTS
        self.waiting = self.queue_bytes = 0
        self.fallback_size, self.queue_limit = 10_000_000, 64 * 1024 * 1024
        self.obstacle = b""
        self.error = b""  # what the main thread replies
        self.publisher = Publisher()
        self.lines: list[str] = []
        self.steps: list[tuple[float, int]] = []
        self.jobs: list[tuple[list[bytes], Callable[[JobResult], None]]] = []
        self.snapshot = Snapshot(
            self.submit,
            self.publisher,
            self.numbers,
            lambda: (self.fallback_size, self.queue_limit),
            lambda level, line: self.lines.append(line),
            lambda: self.now,
        )
        self.replies: list[Any] = []

    def submit(self, job: Job, done: Callable[[JobResult], None]) -> None:
        (step,) = job.commands
        assert isinstance(step, SnapshotStep)
        self.jobs.append((list(step.arguments), done))

    def numbers(self) -> list[int]:
        numbers = [0] * len(Stat)
        numbers[Stat.FALLBACK_LENGTH] = self.waiting // 3
        numbers[Stat.IN_FLIGHT] = self.waiting // 4
        numbers[Stat.QUEUE_LENGTH] = self.waiting - self.waiting // 3 - self.waiting // 4
        numbers[Stat.QUEUE_BYTES] = self.queue_bytes
        return numbers

    def start(self, rate: int = 10_000, *masks: bytes) -> None:
        self.snapshot.start(rate, masks, self.replies.append)

    def run_jobs(self) -> list[list[bytes]]:
        """Run the jobs as the main thread would; return their words."""
        jobs, self.jobs = self.jobs, []
        for words, done in jobs:
            done(JobResult([(self.reply(words), 0)]))
        return [words for words, _ in jobs]

    def reply(self, words: list[bytes]) -> bytes:
        if self.error:
            return b"-%b\r\n" % self.error
        if words[0] == b"START":
            return b":%d\r\n" % self.keys
        if words[0] == b"STOP":
            return b"+OK\r\n"
        most, size = map(int, words[1:])
        events = min(most, self.keys, self.most_per_step, -(-size // self.size))
        if self.obstacle:
            events = 0
        self.keys -= events
        self.waiting += events
        if events:
            self.steps.append((self.now, events))
        done = not self.keys and events < most
        return b"*5\r\n:%d\r\n+%b\r\n" % (done, self.obstacle) + b"".join(
            b":%d\r\n" % number for number in (events, events, events * self.size)
        )

    def turn(self) -> None:
        """A turn of the worker, and one of the main thread."""
        self.snapshot.poll()
        self.run_jobs()

    def go_on(self, seconds: float, confirms: float = 1e9) -> None:
        """Let time pass, with so many confirms in a second; the worker wakes up when it asks to."""
        until = self.now + seconds
        while self.now < until:
            at = self.snapshot.wake_at()
            after = min(until if at is None else max(at, self.now + 0.0001), until)
            self.waiting = max(0, self.waiting - int(confirms * (after - self.now)))
            self.now = after
            self.turn()

    @property
    def events(self) -> int:
        return sum(events for _, events in self.steps)


@pytest.fixture
def world() -> World:
    return World()


# ---- from the start to the end ---------------------------------------------------------


def test_a_snapshot_from_its_start_to_its_end(world: World) -> None:
    world.start(10_000)
    assert world.snapshot.runs
    assert world.run_jobs() == [[b"START", b"ALL"]]
    assert world.replies == [1000]
    assert (world.snapshot.state, world.snapshot.total) == ("running", 1000)
    world.go_on(0.2)
    assert (world.snapshot.state, world.snapshot.runs) == ("done", False)
    assert world.events == world.snapshot.events == world.snapshot.looked == 1000
    assert world.snapshot.wake_at() is None
    assert "1000 keys, at most 10000 events per second" in world.lines[0]
    assert world.lines[1] == "snapshot: done; looked at 1000 of 1000 keys, 1000 events"


def test_masks(world: World) -> None:
    world.start(1, b"^a b", b"!c\\")
    assert world.run_jobs() == [[b"START", b"^a\\x20b !c\\\\"]]


def test_the_next_snapshot_begins_anew(world: World) -> None:
    for number in range(1, 4):
        world.keys = 1000
        world.start()
        world.run_jobs()
        assert world.snapshot.looked == 0
        world.go_on(1)
        assert (world.snapshot.state, world.snapshot.looked) == ("done", 1000)
        assert world.snapshot.events == 1000 * number


def test_a_start_that_is_refused(world: World) -> None:
    world.error = b"READONLY a replica"
    world.start()
    world.run_jobs()
    assert isinstance(world.replies[0], JobError)
    assert (world.snapshot.state, world.snapshot.runs) == ("none", False)
    world.turn()
    assert world.jobs == []


def test_stop(world: World) -> None:
    assert world.snapshot.stop() == 0
    world.start(1000)
    world.run_jobs()
    world.go_on(0.5)
    assert world.snapshot.stop() == 1
    assert (world.snapshot.state, world.snapshot.runs) == ("stopped", False)
    assert world.run_jobs() == [[b"STOP"]]
    events = world.events
    world.go_on(1)
    assert 0 < world.events == events < 1000
    assert world.snapshot.stop() == 0


def test_a_step_of_a_snapshot_that_was_stopped(world: World) -> None:
    """Its result comes after the start of another one: its events count, for no snapshot."""
    world.start()
    world.run_jobs()
    world.go_on(0.02)
    world.now += 1
    world.snapshot.poll()
    world.snapshot.stop()
    world.start()
    assert [words[0] for words, _ in world.jobs] == [b"STEP", b"STOP", b"START"]
    world.run_jobs()
    assert (world.snapshot.looked, world.snapshot.runs) == (0, True)
    assert world.snapshot.events == world.events > 0
    world.go_on(1)
    assert world.snapshot.state == "done"
    assert world.snapshot.events == world.events == 1000


@pytest.mark.parametrize("error", [b"", b"READONLY a replica"])
def test_each_start_has_an_answer(world: World, error: bytes) -> None:
    """Another node may have sent STOP, and even START, before the main thread has answered."""
    world.start()
    assert world.snapshot.stop() == 1
    world.start(10_000, b"x")
    assert [words[0] for words, _ in world.jobs] == [b"START", b"STOP", b"START"]
    world.error = error
    world.run_jobs()
    assert [type(reply) for reply in world.replies] == [JobError if error else int] * 2
    assert world.snapshot.runs is not bool(error)
    world.error = b""
    world.go_on(1)
    assert world.snapshot.state == ("stopped" if error else "done")


def test_a_start_that_is_refused_changes_nothing(world: World) -> None:
    """Also of what is shown about the last snapshot."""
    world.start()
    world.run_jobs()
    world.go_on(1)
    world.error = b"masks: too large"
    world.start()
    world.run_jobs()
    assert isinstance(world.replies[1], JobError)
    snapshot = world.snapshot
    assert (snapshot.state, snapshot.looked, snapshot.total) == ("done", 1000, 1000)


def test_the_main_thread_has_ended_it(world: World) -> None:
    """It is heard of at the next step, also while the broker is away."""
    for state in ("connected", "disconnected"):
        world.error = b""
        world.start()
        world.run_jobs()
        world.publisher.state = state
        world.error = b"this server became a replica"
        world.go_on(0.2)
        assert world.snapshot.state == "ended (this server became a replica)"
        assert not world.snapshot.runs


def test_a_job_that_is_lost(world: World) -> None:
    world.start()
    world.run_jobs()
    world.now += 1
    world.snapshot.poll()
    assert world.snapshot.job_done is not None
    world.jobs.clear()
    world.snapshot.repair(job_lost=False)
    world.go_on(1)
    assert world.events == 0
    world.snapshot.repair(job_lost=True)
    world.go_on(1)
    assert world.snapshot.state == "done"


def test_a_start_that_fails_in_the_handler(world: World) -> None:
    """The main thread has not heard of it, and says so at the next step."""
    submit, world.snapshot._submit = world.snapshot._submit, lambda job, done: 1 // 0
    with pytest.raises(ZeroDivisionError):
        world.start()
    world.snapshot._submit = submit
    world.error = b"no snapshot is under way"
    world.go_on(1)
    assert world.snapshot.state == "ended (no snapshot is under way)"
    world.error = b""
    world.start()
    world.run_jobs()
    world.go_on(1)
    assert world.snapshot.state == "done"


# ---- the pace ----------------------------------------------------------------------------


@given(
    rate=st.integers(1, 1_000_000),
    pauses=st.lists(st.tuples(st.booleans(), st.floats(0.001, 3)), max_size=20),
)
def test_the_rate_holds_at_all_times(rate: int, pauses: list[tuple[bool, float]]) -> None:
    """Also after the snapshot had to wait, or the worker was busy."""
    world = World(keys=10**9)
    world.start(rate)
    world.run_jobs()
    for away, seconds in pauses:
        world.publisher.state = "connecting" if away else "connected"
        world.now += seconds / 2
        world.turn()
        world.waiting = 0
        world.go_on(seconds / 20)
    for first in range(len(world.steps)):
        events = sum(events for _, events in world.steps[first:])
        seconds = world.steps[-1][0] - world.steps[first][0]
        assert events <= rate * (seconds + LOOK_EVERY) + 1
    times = [at for at, _ in world.steps]
    gaps = [after - before for before, after in itertools.pairwise(times)]
    assert all(gap >= STEP_EVERY * 0.99 for gap in gaps)


@pytest.mark.parametrize("rate", [1, 7, 100, 10_000, 50_000])
def test_the_rate_is_reached(rate: int) -> None:
    world = World(keys=10**9)
    world.start(rate)
    world.run_jobs()
    world.go_on(20)
    assert 19 * rate <= world.events <= 20.2 * rate


@given(
    cap=st.sampled_from([-1, 0, 1, 100, 10_000_000]),
    queue_limit=st.sampled_from([0, 1024 * 1024, 64 * 1024 * 1024]),
    size=st.sampled_from([30, 1000, 100_000, 5_000_000]),
    confirms=st.sampled_from([0, 10, 1000, 100_000]),
)
def test_few_events_wait(cap: int, queue_limit: int, size: int, confirms: int) -> None:
    """Whatever the broker does: not half of the list, nor a quarter of the queue or 16 MiB, and
    one event more."""
    world = World(keys=10**9, size=size)
    world.fallback_size, world.queue_limit = cap, queue_limit
    world.start(1_000_000)
    world.run_jobs()
    most = 0
    for _ in range(300):
        world.go_on(0.02, confirms)
        most = max(most, world.waiting)
    assert most <= WAITING_EVENTS
    assert cap <= 0 or most <= max(1, cap // 2)
    limit = min(WAITING_BYTES, queue_limit // 4 or WAITING_BYTES)
    assert most * size <= limit + size
    assert world.events > 0


def test_small_events_before_large_ones(world: World) -> None:
    """A limit in bytes holds for the events that wait now, whatever those before them were."""
    for world.queue_limit in (0, 64 * 1024 * 1024):
        world.keys, world.size = 10**9, 50
        world.start(1_000_000)
        world.run_jobs()
        world.go_on(2)
        assert world.events > 50_000
        world.size = 1_000_000
        world.steps.clear()
        world.go_on(5, confirms=0)
        assert 10 < world.events <= WAITING_BYTES // world.size + 2
        world.snapshot.stop()
        world.run_jobs()
        world.start(1_000_000)  # those of the one before still wait
        world.run_jobs()
        world.go_on(5, confirms=0)
        assert world.events <= WAITING_BYTES // world.size + 2
        world.snapshot.stop()
        world.run_jobs()
        world.waiting = 0
        world.steps.clear()


def test_it_waits_for_events_of_clients(world: World) -> None:
    world.start()
    world.run_jobs()
    world.waiting = WAITING_EVENTS
    world.go_on(5, confirms=0)
    assert (world.events, world.snapshot.state) == (0, "waits (others are to be delivered first)")
    world.waiting = 0
    world.queue_bytes = world.queue_limit // 4 + 1
    world.go_on(5)
    assert world.events == 0
    world.queue_bytes = 0
    world.go_on(1)
    assert world.snapshot.state == "done"


@pytest.mark.parametrize("state", ["connecting", "blocked", "disconnected", "replica", "stopping"])
def test_it_waits_for_the_broker(world: World, state: str) -> None:
    world.start()
    world.run_jobs()
    world.publisher.state = state
    world.go_on(SHOWN_AFTER / 2)
    assert world.snapshot.state == "running"  # a short wait is not shown
    world.go_on(SHOWN_AFTER)
    assert (world.events, world.snapshot.state) == (0, f"waits (the broker: {state})")
    world.publisher.state = "connected"
    world.go_on(1)
    assert world.snapshot.state == "done"


@pytest.mark.parametrize("state", ["idle", "connected", "unconfirmed"])
def test_it_begins_before_there_is_a_connection(world: World, state: str) -> None:
    """The first event opens it."""
    world.publisher.state = state
    world.start()
    world.run_jobs()
    world.go_on(0.05)
    assert world.events > 0


def test_it_does_not_lengthen_a_flush(world: World) -> None:
    """Redis waits for its end."""
    world.start()
    world.run_jobs()
    world.publisher.flushing = True
    world.go_on(1)
    assert world.events == 0
    at = world.snapshot.wake_at()
    assert at is not None
    assert at > world.now - LOOK_EVERY  # and the worker does not spin
    world.publisher.flushing = False
    world.go_on(1)
    assert world.snapshot.state == "done"


def test_the_main_thread_says_why_it_waits(world: World) -> None:
    world.start()
    world.run_jobs()
    world.obstacle = b"Redis is near its maxmemory"
    world.go_on(3)
    assert world.snapshot.state == "waits (Redis is near its maxmemory)"
    world.obstacle = b""
    world.go_on(1)
    assert world.snapshot.state == "done"
