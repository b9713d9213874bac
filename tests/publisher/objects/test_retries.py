"""Refused messages: when they are sent again, in which order, and in how many rounds."""

from __future__ import annotations

import pytest

from keyspace_amqp.publisher.entry import DONE, REFUSED, WAITING
from keyspace_amqp.publisher.retries import REFUSED_MAX, REFUSED_QUIET, Retries
from tests.publisher.objects.parts import Clock, make_entries, numbers_of


def make_retries(clock: Clock) -> Retries:
    return Retries(clock, lambda: 1.0)


def test_nothing_waits_at_first() -> None:
    retries = make_retries(Clock())
    assert not retries
    assert retries.due_at is None
    assert retries.take(10) == []


def test_a_refusal_waits_for_its_time() -> None:
    clock = Clock()
    retries = make_retries(clock)
    assert retries.add(make_entries(2, REFUSED))
    assert retries
    assert retries.due_at == clock.now + 0.1
    assert not retries.is_due
    clock.now += 0.1
    assert retries.is_due


def test_no_refused_entries_are_no_refusal() -> None:
    """An answer about tags that were settled before."""
    retries = make_retries(Clock())
    assert not retries.add([])
    assert retries.is_due
    assert not retries


def test_refusals_before_the_next_attempt_are_one_round() -> None:
    clock = Clock()
    retries = make_retries(clock)
    assert retries.add(make_entries(1, REFUSED))
    due_at = retries.due_at
    assert due_at is not None
    clock.now += 0.05
    assert not retries.add(make_entries(1, REFUSED, first=2))
    assert retries.due_at == due_at
    clock.now = due_at
    assert retries.is_due
    assert numbers_of(retries.take(10)) == [1, 2]


def test_each_round_waits_twice_as_long_up_to_the_bound() -> None:
    clock = Clock()
    retries = make_retries(clock)
    delays = []
    for _ in range(6):
        assert retries.add(make_entries(1, REFUSED))
        assert retries.due_at is not None
        delays.append(retries.due_at - clock.now)
        clock.now = retries.due_at
        retries.take(1)
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, REFUSED_MAX, REFUSED_MAX])


@pytest.mark.parametrize(("over", "delay"), [(0.0, 0.2), (0.001, 0.1)])
def test_a_quiet_time_ends_the_trouble(over: float, delay: float) -> None:
    """It counts from the last attempt, not from the refusal."""
    clock = Clock()
    retries = make_retries(clock)
    retries.add(make_entries(1, REFUSED))
    assert retries.due_at is not None
    clock.now = retries.due_at + REFUSED_QUIET + over
    retries.take(1)
    assert retries.add(make_entries(1, REFUSED))
    assert retries.due_at == pytest.approx(clock.now + delay)


def test_take_keeps_the_order_and_the_rest() -> None:
    retries = make_retries(Clock())
    retries.add(make_entries(5, REFUSED))
    assert retries.take(0) == []
    assert numbers_of(retries.take(2)) == [1, 2]
    assert numbers_of(retries.entries) == [3, 4, 5]
    assert numbers_of(retries.take(10)) == [3, 4, 5]
    assert not retries


def test_entries_that_were_given_up_are_skipped() -> None:
    retries = make_retries(Clock())
    entries = make_entries(3, REFUSED)
    retries.add(entries)
    entries[0].state = DONE
    assert numbers_of(retries.entries) == [2, 3]
    assert numbers_of(retries.take(1)) == [2]
    entries[2].state = DONE
    assert retries  # known only when they are taken
    assert retries.take(1) == []
    assert not retries


def test_without_a_connection_refused_messages_simply_wait() -> None:
    clock = Clock()
    retries = make_retries(clock)
    entries = make_entries(2, REFUSED)
    retries.add(entries)
    entries[0].state = DONE
    retries.clear()
    assert [entry.state for entry in entries] == [DONE, WAITING]
    assert not retries
    assert retries.due_at is None
