"""Pauses under load, with a simulated clock. Without the compiled module."""

from __future__ import annotations

import pathlib
import types
from collections.abc import Callable

import pytest

from keyspace_amqp.message import Event
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.worker import batching
from keyspace_amqp.worker.batching import (
    BUSY,
    COUNT_EVERY,
    LONG_PAUSE,
    LONGEST_PAUSE,
    PAUSE,
    Batching,
)
from keyspace_amqp.worker.intake import Intake
from keyspace_amqp.worker.leftovers import Leftovers
from tests.worker.fakes import Failures, FakeQueue, NoOutbox, event


class Publisher:
    """The members of the publisher that batching and the intake use."""

    can_only_wait = False

    def __init__(self) -> None:
        self.counts = [0] * len(Stat)
        self.flushing = False
        self.express = types.SimpleNamespace(is_running=True)
        self.queue_bytes = 0
        self.window = types.SimpleNamespace(spare=0)

    def room(self) -> int:
        return 0

    def add(self, events: list[Event]) -> None: ...

    def drop_oldest(self, size: int, keep: int = 0) -> int:
        return 0

    def drop_untaken(self, count: int) -> None: ...

    def give_up(self, *, leftover: bool) -> None: ...

    def set_pressure(self, pressure: bool) -> None: ...

    @property
    def waiting(self) -> tuple[int, int]:
        return 0, self.queue_bytes


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.queue = FakeQueue(limit=1000)
        self.publisher = Publisher()
        leftovers = Leftovers(6379)
        intake = Intake(
            self.queue,
            self.publisher,
            leftovers,
            "run",
            Failures(),
            NoOutbox(),  # type: ignore[arg-type]
        )
        self.requests = FakeQueue()
        self.finished = 0
        self.meanwhile: Callable[[], object] = lambda: None  # in each part of a pause
        self.slept: list[float] = []
        jobs = types.SimpleNamespace(count_finished=lambda: self.finished)
        self.batching = Batching(
            self.queue,
            self.requests,
            jobs,  # type: ignore[arg-type]
            intake,
            self.publisher,
            lambda: self.now,
            self._sleep,
        )
        self.batching.pause()

    def _sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.meanwhile()

    def pauses(
        self, events: int = 0, confirms: int = 0, seconds: float = COUNT_EVERY
    ) -> list[float]:
        """Return the pauses after so many events and confirms in so many seconds."""
        self.queue.pushed += events
        self.publisher.counts[Stat.CONFIRMED] += confirms
        self.now += seconds
        self.slept.clear()
        self.batching.pause()
        return list(self.slept)


MANY = int(BUSY * COUNT_EVERY) + 2


def test_nobody_sleeps_where_few_events_come() -> None:
    world = World()
    assert world.pauses() == []
    assert world.pauses(events=MANY - 4) == []


@pytest.mark.parametrize(("events", "confirms"), [(MANY, 0), (0, MANY), (MANY // 2, MANY // 2 + 1)])
def test_many_events_or_confirms(events: int, confirms: int) -> None:
    """Confirms also come one by one without pauses."""
    world = World()
    assert world.pauses(events, confirms) == [PAUSE]
    assert world.pauses(events, confirms) == [PAUSE]
    assert world.pauses() == []


def test_for_long_while_the_broker_has_enough_to_do() -> None:
    world = World()
    world.publisher.window.spare = 2000
    world.publisher.express.is_running = False
    assert world.pauses(MANY) == [LONG_PAUSE]


def test_until_half_a_window_is_left() -> None:
    """In the express. A pause has parts, between which requests are looked for."""
    world = World()
    confirms = int(50_000 * COUNT_EVERY)
    for spare, seconds in (
        (1, LONG_PAUSE),
        (600, 600 / 50_000),
        (1250, 1250 / 50_000),
        (2000, LONGEST_PAUSE),
    ):
        world.publisher.window.spare = spare
        pauses = world.pauses(confirms=confirms)
        assert sum(pauses) == pytest.approx(seconds)
        assert max(pauses) <= LONG_PAUSE
    assert sum(world.pauses(events=MANY)) == pytest.approx(LONGEST_PAUSE)  # no confirms at all


def test_a_request_or_a_result_ends_a_long_pause() -> None:
    world = World()
    world.publisher.window.spare = 2000
    world.finished = 1
    assert world.pauses(MANY) == [LONG_PAUSE]
    world.finished = 0
    world.requests.push(b"request")
    assert world.pauses(MANY) == [LONG_PAUSE]


def test_memory_that_fills_ends_a_long_pause() -> None:
    world = World()
    world.publisher.window.spare = 2000
    world.meanwhile = lambda: setattr(world.publisher, "queue_bytes", 100 * len(world.slept))
    assert world.pauses(MANY) == [LONG_PAUSE] * 3


def test_longer_while_messages_are_held_back() -> None:
    world = World()
    world.batching._throttle.rate = 10_000.0
    assert world.pauses(MANY) == [LONG_PAUSE]
    world.publisher.queue_bytes = 250  # memory fills
    assert world.pauses(MANY) == [PAUSE]
    world.publisher.express.is_running = False  # events have to be stored soon
    assert world.pauses(MANY) == []
    world.publisher.queue_bytes = 0
    assert world.pauses(MANY) == [PAUSE]


def test_the_rate_is_looked_at_once_in_a_while() -> None:
    world = World()
    assert world.pauses(MANY) == [PAUSE]
    assert world.pauses(seconds=COUNT_EVERY / 2) == [PAUSE]  # as it was
    assert world.pauses(seconds=COUNT_EVERY) == []


def test_nobody_sleeps_while_redis_waits() -> None:
    world = World()
    world.publisher.flushing = True
    assert world.pauses(MANY) == []


def test_nobody_sleeps_while_memory_fills() -> None:
    world = World()
    world.publisher.queue_bytes = 249
    assert world.pauses(MANY) == [PAUSE]
    world.publisher.queue_bytes = 250
    assert world.pauses(MANY) == []
    world.publisher.queue_bytes = 250 - len(event(b"k"))
    world.queue.push(event(b"k"))
    assert world.pauses(MANY) == []
    world.publisher.window.spare = 2000  # unless the broker is the limit
    assert world.pauses(MANY) == [LONG_PAUSE]


def test_counters_that_start_again() -> None:
    world = World()
    assert world.pauses(confirms=10 * MANY) == [PAUSE]
    world.publisher.counts[Stat.CONFIRMED] = 0
    assert world.pauses(events=MANY) == []
    assert world.pauses(events=MANY) == [PAUSE]


def test_nothing_is_held_back_without_numbers_of_linux() -> None:
    world = World()
    assert world.pauses(MANY) == [PAUSE]
    assert (world.batching.message_limit(), world.batching.wake_at()) == (None, None)


def test_a_redis_that_lacks_a_core(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages are held back, and the worker wakes to take the next sample."""
    path = tmp_path / "schedstat"
    path.write_text("0 0 1")
    opened = batching.os.open
    asked: list[str] = []

    def open_(name: str, flags: int) -> int:
        asked.append(name)
        return opened(path, flags)

    monkeypatch.setattr(batching.os, "open", open_)
    world = World()
    world.batching.open()
    monkeypatch.undo()
    assert asked == [f"/proc/self/task/{batching.os.getpid()}/schedstat"]
    for number in range(100):
        waited = int(number * COUNT_EVERY * 0.4e9)
        path.write_text(f"{int(number * COUNT_EVERY * 0.6e9)} {waited} 1")
        world.pauses()
    assert world.batching.wake_at() == pytest.approx(world.now + COUNT_EVERY)
    samples = []
    monkeypatch.setattr(world.batching._throttle, "sample", lambda *s: samples.append(s))
    world.publisher.window.spare = 2000
    world.meanwhile = lambda: setattr(world, "now", world.now + COUNT_EVERY / 2)
    world.pauses(MANY)
    assert len(samples) == 1 + (len(world.slept) - 1) // 2 > 1  # as often as without a long pause
    world.publisher.window.spare = 0
    world.meanwhile = lambda: None
    world.batching.message_limit()
    world.batching.sent(world.batching.message_limit() or 0)
    world.now += 0.01
    assert world.batching.message_limit() == pytest.approx(100, abs=1)  # the slowest rate
    world.batching.close()
    assert world.pauses() == []
    world.batching.close()


def test_a_linux_without_these_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str, flags: int) -> int:
        raise OSError("no such file")

    monkeypatch.setattr(batching.os, "open", fail)
    world = World()
    world.batching.open()
    monkeypatch.undo()
    assert world.pauses(MANY) == [PAUSE]
    world.batching.close()
