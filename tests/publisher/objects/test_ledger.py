"""The ledger: the one equation of the books, log lines, and times of confirms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.publisher.actions import Log
from keyspace_amqp.publisher.ledger import LOG_EVERY, RETURNS_LOG_EVERY, Ledger
from keyspace_amqp.tables.parameters import INT64_MAX
from keyspace_amqp.tables.stats import CONFIRM_BOUNDS, FIRST_REASON, Stat
from tests.publisher.objects.parts import Clock
from tests.publisher.simulated import BEGIN_MS

EMPTY = dict.fromkeys((Stat.FALLBACK_LENGTH, Stat.QUEUE_LENGTH, Stat.IN_FLIGHT), 0)
REASONS = [stat for stat in Stat if stat >= FIRST_REASON]


def make_ledger(clock: Clock | None = None, now_ms: int = BEGIN_MS) -> Ledger:
    return Ledger(clock or Clock(), lambda: now_ms)


def texts(logs: list[Log]) -> list[str]:
    assert all(log.level == "warning" for log in logs)
    return [log.text for log in logs]


# ---- the equation ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "difference"),
    [
        (lambda ledger: ledger.matched(3), 3),
        (lambda ledger: ledger.found(3), 3),
        (lambda ledger: ledger.found(-3), -3),
        (lambda ledger: ledger.confirmed([BEGIN_MS] * 3), -3),
        (lambda ledger: ledger.published(3), 0),
        (lambda ledger: ledger.refused(3), 0),
        (lambda ledger: ledger.returned("why"), 0),
        (lambda ledger: ledger.pushed(3), 0),
        (lambda ledger: ledger.drained(3), 0),
        (lambda ledger: ledger.reconnected(), 0),
        *[(lambda ledger, r=reason: ledger.dropped(r, 3, "why"), -3) for reason in REASONS],
    ],
)
def test_what_moves_the_balance(call: Callable[[Ledger], None], difference: int) -> None:
    ledger = make_ledger()
    call(ledger)
    assert ledger.difference(EMPTY) == difference


@pytest.mark.parametrize("gauge", EMPTY)
def test_events_on_their_way_are_on_the_other_side(gauge: Stat) -> None:
    ledger = make_ledger()
    ledger.matched(3)
    assert ledger.difference({**EMPTY, gauge: 3}) == 0
    assert ledger.difference({**EMPTY, gauge: 4}) == -1


def test_bytes_are_not_events() -> None:
    assert make_ledger().difference({**EMPTY, Stat.QUEUE_BYTES: 1000}) == 0


def test_the_way_of_events_through_the_books() -> None:
    ledger = make_ledger()
    ledger.matched(10)
    assert ledger.difference({**EMPTY, Stat.QUEUE_LENGTH: 10}) == 0
    ledger.published(4)
    assert ledger.difference({**EMPTY, Stat.QUEUE_LENGTH: 6, Stat.IN_FLIGHT: 4}) == 0
    ledger.pushed(5)
    ledger.dropped(Stat.DROPPED_QUEUE_FULL, 1, "why")
    assert ledger.difference({**EMPTY, Stat.FALLBACK_LENGTH: 5, Stat.IN_FLIGHT: 4}) == 0
    ledger.confirmed([BEGIN_MS] * 4)
    assert ledger.difference({**EMPTY, Stat.FALLBACK_LENGTH: 5}) == 0
    ledger.found(-5)
    assert ledger.difference(EMPTY) == 0


def test_each_count_goes_to_its_own_counter() -> None:
    ledger = make_ledger()
    ledger.matched(1)
    ledger.found(2)
    ledger.published(3)
    ledger.confirmed([BEGIN_MS] * 4)
    ledger.refused(5)
    ledger.returned("why")
    ledger.pushed(6)
    ledger.drained(7)
    ledger.reconnected()
    ledger.dropped(Stat.DROPPED_PURGED, 8, "why")
    assert {stat: ledger.counts[stat] for stat in Stat if ledger.counts[stat]} == {
        Stat.EVENTS_MATCHED: 1,
        Stat.FALLBACK_FOUND: 2,
        Stat.PUBLISHED: 3,
        Stat.CONFIRMED: 4,
        Stat.NACKED: 5,
        Stat.RETURNED: 1,
        Stat.FALLBACK_PUSHED: 6,
        Stat.FALLBACK_DRAINED: 7,
        Stat.RECONNECTS: 1,
        Stat.DROPPED_PURGED: 8,
    }


def test_a_reset_does_not_change_how_many_events_came_in() -> None:
    ledger = make_ledger()
    ledger.matched(10)
    for kept in (4, 4, 0):
        ledger.reset({**EMPTY, Stat.QUEUE_LENGTH: kept})
        assert (ledger.taken, ledger.counts[Stat.EVENTS_MATCHED]) == (10, kept)
    ledger.matched(3)
    assert (ledger.taken, ledger.counts[Stat.EVENTS_MATCHED]) == (13, 3)


@pytest.mark.parametrize(
    ("counted", "waiting", "found", "lost"),
    [
        (5, 5, 0, 0),
        (5, 8, 3, 0),  # in a place and not counted
        (5, 3, 0, 2),  # counted and in no place
        (8, 8, 3, 0),  # three were taken twice: they will be delivered a second time
        (2, 5, 0, 0),  # in their places, and not counted yet
    ],
)
@pytest.mark.parametrize("before", [0, 7])
def test_the_balance_after_an_exception(
    before: int, counted: int, waiting: int, found: int, lost: int
) -> None:
    """Five events came in, after a reset."""
    ledger = make_ledger()
    ledger.matched(before)
    ledger.reset(EMPTY)
    ledger.matched(counted)
    gauges = {**EMPTY, Stat.QUEUE_LENGTH: waiting}
    ledger.balance(gauges, before + 5)
    assert ledger.difference(gauges) == 0
    assert ledger.counts[Stat.EVENTS_MATCHED] == 5
    assert ledger.counts[Stat.FALLBACK_FOUND] == found
    assert ledger.counts[Stat.DROPPED_HANDLER_ERROR] == lost


def test_a_reset_carries_over_what_is_on_its_way() -> None:
    ledger = make_ledger()
    ledger.matched(20)
    ledger.found(5)
    ledger.confirmed([BEGIN_MS] * 3)
    ledger.dropped(Stat.DROPPED_STOPPED, 2, "why")
    gauges = {Stat.FALLBACK_LENGTH: 9, Stat.QUEUE_LENGTH: 7, Stat.IN_FLIGHT: 4}
    assert ledger.difference(gauges) == 0
    ledger.reset(gauges)
    assert ledger.difference(gauges) == 0
    assert {stat: ledger.counts[stat] for stat in Stat if ledger.counts[stat]} == {
        Stat.EVENTS_MATCHED: 11,
        Stat.FALLBACK_FOUND: 9,
    }
    assert ledger.untimed == 0


# ---- log lines -------------------------------------------------------------------------


def test_the_first_loss_is_logged_at_once_and_later_ones_together() -> None:
    clock = Clock()
    ledger = make_ledger(clock)
    assert ledger.logs(all_of_them=False) == []
    ledger.dropped(Stat.DROPPED_STOPPED, 2, "first")
    assert ledger.wake_times() == [clock.now]
    assert texts(ledger.logs(all_of_them=False)) == ["2 events lost: first"]
    assert ledger.wake_times() == []
    began = clock.now
    for why in ("second", "third"):
        clock.now += 1
        ledger.dropped(Stat.DROPPED_STOPPED, 3, why)
    assert ledger.wake_times() == [began + LOG_EVERY]
    clock.now = began + LOG_EVERY - 0.001
    assert ledger.logs(all_of_them=False) == []
    clock.now = began + LOG_EVERY
    assert texts(ledger.logs(all_of_them=False)) == ["6 events lost: third"]
    clock.now += LOG_EVERY
    assert ledger.logs(all_of_them=False) == []


def test_each_reason_has_a_time_of_its_own() -> None:
    clock = Clock()
    ledger = make_ledger(clock)
    ledger.dropped(Stat.DROPPED_STOPPED, 1, "one")
    ledger.logs(all_of_them=False)
    clock.now += 1
    ledger.dropped(Stat.DROPPED_STOPPED, 1, "one")
    ledger.dropped(Stat.DROPPED_PURGED, 1, "other")
    assert texts(ledger.logs(all_of_them=False)) == ["1 event lost: other"]


def test_at_the_end_all_is_logged() -> None:
    ledger = make_ledger()
    for _ in range(2):
        ledger.dropped(Stat.DROPPED_STOPPED, 1, "why")
        assert texts(ledger.logs(all_of_them=True)) == ["1 event lost: why"]
    assert ledger.logs(all_of_them=True) == []


def test_no_loss_is_no_line() -> None:
    ledger = make_ledger()
    ledger.dropped(Stat.DROPPED_STOPPED, 0, "why")
    assert ledger.logs(all_of_them=True) == []
    assert ledger.wake_times() == []


def test_messages_that_reach_no_queue_are_logged_less_often() -> None:
    clock = Clock()
    ledger = make_ledger(clock)
    ledger.returned("why")
    assert texts(ledger.logs(all_of_them=False)) == ["1 message reached no queue: why"]
    for _ in range(3):
        ledger.returned("why")
    assert ledger.wake_times() == [clock.now + RETURNS_LOG_EVERY]
    clock.now += RETURNS_LOG_EVERY
    assert texts(ledger.logs(all_of_them=False)) == ["3 messages reached no queue: why"]


# ---- times of confirms -----------------------------------------------------------------

BUCKETS = range(Stat.CONFIRM_MS_LE_1, Stat.CONFIRM_MS_LE_INF + 1)


def times_of(*ages: int) -> list[int]:
    """Times of emission, so many milliseconds ago."""
    return [BEGIN_MS - age for age in ages]


def bucket_of(age: int) -> int:
    bounds = [*CONFIRM_BOUNDS, age]
    return next(place for place, bound in enumerate(bounds) if age <= bound)


@pytest.mark.parametrize("bound", CONFIRM_BOUNDS)
def test_a_bound_belongs_to_its_bucket(bound: int) -> None:
    place = CONFIRM_BOUNDS.index(bound)
    for age, bucket in ((bound, place), (bound + 1, place + 1)):
        ledger = make_ledger()
        ledger.confirmed(times_of(age))
        ledger.time_confirms()
        assert [ledger.counts[stat] for stat in BUCKETS].index(1) == bucket
        assert ledger.counts[Stat.CONFIRM_MS_SUM] == age


AGES = st.lists(st.integers(0, 6000) | st.sampled_from([0, 10**7]), max_size=30)


@given(parts=st.lists(AGES, max_size=3))
def test_times_agree_with_one_bucket_after_the_other(parts: list[list[int]]) -> None:
    ledger = make_ledger()
    for part in parts:
        ledger.confirmed(times_of(*part))
    ages = [age for part in parts for age in part]
    assert ledger.untimed == len(ages)
    ledger.time_confirms()
    assert ledger.untimed == 0
    ledger.time_confirms()  # nothing is counted twice
    buckets = [ledger.counts[stat] for stat in BUCKETS]
    assert buckets == [
        sum(bucket_of(age) == place for age in ages) for place in range(len(BUCKETS))
    ]
    assert ledger.counts[Stat.CONFIRM_MS_SUM] == sum(ages)


def test_the_time_of_the_first_confirm_counts() -> None:
    """One look at the clock for all confirms of a poll."""
    times = iter([BEGIN_MS + 5, BEGIN_MS + 900])
    ledger = Ledger(Clock(), lambda: next(times))
    ledger.confirmed(times_of(0))
    ledger.confirmed(times_of(0))
    ledger.time_confirms()
    assert ledger.counts[Stat.CONFIRM_MS_LE_5] == 2
    ledger.confirmed(times_of(0))
    ledger.time_confirms()
    assert ledger.counts[Stat.CONFIRM_MS_LE_1000] == 1


def test_no_event_takes_less_than_no_time() -> None:
    """Its clock, on another node, may be ahead of this one."""
    ledger = make_ledger()
    ledger.confirmed(times_of(-50, 3))
    ledger.time_confirms()
    assert ledger.counts[Stat.CONFIRM_MS_LE_1] == 1
    assert ledger.counts[Stat.CONFIRM_MS_LE_5] == 1
    assert ledger.counts[Stat.CONFIRM_MS_SUM] == 3


def test_the_sum_stays_in_its_field_of_64_bits() -> None:
    ledger = make_ledger(now_ms=2**62)
    for _ in range(3):
        ledger.confirmed([0])
        ledger.time_confirms()
    assert ledger.counts[Stat.CONFIRM_MS_SUM] == INT64_MAX
