"""Refused messages: how many are sent again, and when."""

from __future__ import annotations

import pytest

from keyspace_amqp.publisher.retries import REFUSED_MAX, Retries
from keyspace_amqp.publisher.window import WINDOW
from tests.publisher.objects.parts import Clock


def make_retries(clock: Clock) -> Retries:
    return Retries(clock, lambda: 1.0)


def test_a_first_refusal_waits_for_its_time_and_then_all_may_go() -> None:
    clock = Clock()
    retries = make_retries(clock)
    retries.begin()
    assert retries.due_at == clock.now + 0.1
    assert not retries.is_due
    clock.now += 0.1
    assert retries.is_due
    assert retries.limit == WINDOW


def test_refusals_before_the_next_attempt_are_one_round() -> None:
    clock = Clock()
    retries = make_retries(clock)
    retries.begin()
    due_at = retries.due_at
    clock.now += 0.05
    retries.refused()
    assert retries.due_at == due_at
    assert retries.limit == 1


def test_each_round_waits_twice_as_long_up_to_the_bound() -> None:
    clock = Clock()
    retries = make_retries(clock)
    retries.begin()
    delays = []
    for _ in range(10):
        delays.append(retries.due_at - clock.now)
        clock.now = retries.due_at
        retries.refused()
    powers = [0.1 * 2**n for n in range(8)]
    assert delays == pytest.approx([*powers, REFUSED_MAX, REFUSED_MAX])


def test_a_confirm_makes_the_next_attempt_due_and_larger() -> None:
    clock = Clock()
    retries = make_retries(clock)
    retries.begin()
    clock.now += 1
    retries.refused()
    assert not retries.is_due
    retries.confirmed(1)
    assert retries.is_due
    assert retries.limit == 2
    retries.confirmed(2)
    assert retries.limit == 4
    retries.confirmed(10 * WINDOW)
    assert retries.limit == WINDOW
    retries.refused()
    assert retries.due_at == pytest.approx(clock.now + 0.1)


def test_a_new_connection_starts_anew() -> None:
    clock = Clock()
    retries = make_retries(clock)
    for _ in range(5):
        clock.now += REFUSED_MAX
        retries.refused()
    retries.link_lost(renewed=False)
    assert retries.is_due
    assert retries.limit == WINDOW
    retries.link_lost(renewed=True)  # because of refused messages
    assert not retries.is_due
    assert retries.limit == 1
