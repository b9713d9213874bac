"""Parcels in flight: confirms in any order, and the way back to entries."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.message import Event
from keyspace_amqp.publisher.entry import SENT
from keyspace_amqp.publisher.express import SETTLE, SETTLE_EVERY, Express
from keyspace_amqp.publisher.memory import Memory
from keyspace_amqp.publisher.window import LATE_AFTER, Window
from keyspace_amqp.tables.stats import Stat
from tests.publisher.objects.parts import Clock, make_ledger, numbers_of
from tests.publisher.simulated import BEGIN_MS, SimulatedParcel


def event_at(number: int) -> Event:
    """An event with this number, emitted at about this time."""
    return Event(f"t-{number}", BEGIN_MS - number // 3, number, "g", b"del", b"k")


class Bench:
    """The express with what it changes; event and tag have the same number."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.ledger = make_ledger(self.clock)
        self.window = Window(self.clock)
        self.memory = Memory()
        self.express = Express(self.window, self.memory, self.ledger, self.clock)
        self.parcels: list[SimulatedParcel] = []

    def send(self, count: int) -> None:
        first = self.window.next_tag
        parcel = SimulatedParcel([event_at(tag) for tag in range(first, first + count)])
        self.parcels.append(parcel)
        assert self.express.send(parcel) == first

    @property
    def confirmed(self) -> int:
        return self.ledger.counts[Stat.CONFIRMED]

    @property
    def times(self) -> list[int]:
        return sorted(self.ledger._emitted)


parcel_sizes = st.lists(st.integers(1, 7), min_size=1, max_size=6)


@given(sizes=parcel_sizes, seed=st.integers(0, 2**32), leaves=st.integers(0, 10))
def test_confirms_in_any_order(sizes: list[int], seed: int, leaves: int) -> None:
    """Any confirms, again and again, some of messages that were never sent. At any moment each
    event counts once, by its own time, and the way back has all the others."""
    chance = random.Random(seed)
    bench = Bench()
    sizes = list(sizes)
    bench.send(sizes.pop())
    done: set[int] = set()
    for number in range(10):
        if number == leaves:
            break
        if sizes and chance.random() < 0.5 and bench.express.is_running:
            bench.send(sizes.pop())
        last = bench.window.next_tag - 1
        below = chance.choice([0, 0, chance.randint(0, last + 2)])
        tags = [chance.randint(1, last + 2) for _ in range(chance.choice([0, 1, 3, 9]))]
        if chance.random() < 0.5:
            tags.sort()
        bench.express.confirmed(below, tags)
        if bench.express.is_running or below or tags:
            done |= {tag for tag in (*range(1, below + 1), *tags) if tag <= last}
        assert bench.confirmed == len(done)
        assert bench.times == sorted(event_at(tag).time_ms for tag in done)
        assert bench.window.count == last - len(done) == bench.express.in_flight
        assert bench.window.unanswered == last - max(done, default=0)
        if len(done) == last:
            assert not bench.express.is_running
            assert bench.window.bytes == 0
            return
    left = [tag for tag in range(1, bench.window.next_tag) if tag not in done]
    bench.express.leave()
    assert numbers_of(bench.memory) == left
    assert numbers_of(bench.window.in_flight()) == left
    assert bench.window.count == bench.memory.in_flight == len(left)
    assert bench.window.bytes == sum(entry.size for entry in bench.memory)
    assert all(entry.state is SENT for entry in bench.memory)
    assert not bench.express.is_running
    assert bench.express.in_flight == 0
    # From now on the window takes the confirms.
    for tag in chance.sample(left, len(left)):
        assert numbers_of(bench.window.settle(0, [tag])) == [tag]
    assert bench.window.count == bench.window.bytes == len(bench.window) == 0


def test_messages_keep_the_time_of_their_sending() -> None:
    bench = Bench()
    bench.send(3)
    bench.clock.now += 0.5
    bench.send(3)
    bench.express.confirmed(1, [])
    bench.express.leave()
    start = bench.clock.now - 0.5
    assert [entry.at for entry in bench.memory] == [start] * 2 + [start + 0.5] * 3
    oldest = bench.window.oldest
    assert oldest is not None
    assert numbers_of([oldest[0]]) == [2]
    assert oldest[1] == start
    bench.clock.now = start + LATE_AFTER
    assert numbers_of(bench.window.late()) == [2, 3]


def test_the_oldest_message_becomes_late() -> None:
    bench = Bench()
    assert bench.express.late_at is None
    bench.send(2)
    bench.clock.now += 0.5
    bench.send(2)
    assert bench.express.late_at == bench.clock.now - 0.5 + LATE_AFTER
    bench.express.confirmed(2, [])
    assert bench.express.late_at == bench.clock.now + LATE_AFTER


def test_an_exception_on_the_way_back_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.send(2)
    bench.send(2)

    def fail() -> Sequence[Event]:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(bench.parcels[1], "events", fail)
    with pytest.raises(RuntimeError):
        bench.express.leave()
    assert bench.express.in_flight == 4
    assert not bench.memory
    monkeypatch.undo()
    bench.express.leave()
    assert numbers_of(bench.memory) == [1, 2, 3, 4]


def test_an_event_that_cannot_be_made_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    bench.send(3)
    monkeypatch.setattr(bench.parcels[0], "events", lambda: [event_at(1), None, event_at(3)])
    bench.express.leave()
    assert numbers_of(bench.memory) == [1, 3]
    assert bench.ledger.counts[Stat.DROPPED_HANDLER_ERROR] == 1
    assert bench.window.count == 2
    assert numbers_of(bench.window.settle(3)) == [1, 3]


@pytest.mark.parametrize("tags", [[1, 2], [3], [3, 2]])
def test_an_exception_over_a_confirm_loses_nothing(
    tags: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench()
    bench.send(3)

    def fail(times: Sequence[int]) -> None:
        monkeypatch.undo()
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(bench.ledger, "confirmed", fail)
    with pytest.raises(RuntimeError):
        bench.express.confirmed(0, tags)
    bench.express.leave()
    assert numbers_of(bench.memory) == [1, 2, 3]


def test_after_the_way_back_tags_go_on() -> None:
    bench = Bench()
    bench.send(3)
    bench.express.leave()
    bench.memory.confirmed(len(bench.window.settle(3)))
    bench.send(2)
    bench.express.confirmed(0, [5])
    bench.express.confirmed(0, [2])  # a confirm of an older message, once more
    bench.express.confirmed(4, [])
    assert bench.confirmed == 2
    assert not bench.express.is_running


def test_newer_events_wait_for_memory_for_a_moment() -> None:
    bench = Bench()
    assert bench.express.may_settle()
    bench.clock.now += SETTLE - 0.001
    assert bench.express.may_settle()
    until = bench.express.settles_until
    assert until is not None
    bench.clock.now = until
    assert not bench.express.may_settle()
    assert bench.express.settles_until is None
    bench.clock.now += SETTLE_EVERY - SETTLE - 0.001
    assert not bench.express.may_settle()
    bench.clock.now += 0.002
    assert bench.express.may_settle()
