"""The time from an event to its confirm, in the counters of the publisher."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.fallback import to_element
from keyspace_amqp.message import Event
from keyspace_amqp.publisher.actions import Send
from keyspace_amqp.publisher.storing import STORE_AFTER
from keyspace_amqp.tables.parameters import INT64_MAX
from keyspace_amqp.tables.stats import CONFIRM_BOUNDS, FIRST_REASON, HELP, Stat
from tests.publisher.bench import Bench, away, connected
from tests.publisher.simulated import event_of, wall_at

BUCKETS = [stat for stat in Stat if stat.name.startswith("CONFIRM_MS_LE_")]
NAMES = [stat.name.lower() for stat in BUCKETS]


def event_at(number: int, time_ms: int) -> Event:
    event = event_of(number)
    event.time_ms = time_ms
    return event


def counted(bench: Bench) -> list[int]:
    return [bench.count(stat) for stat in BUCKETS]


def naive(ages: Sequence[int]) -> list[int]:
    """Per bucket the number of events; each event is in the first bucket whose bound is not below
    its age."""
    bounds = [*CONFIRM_BOUNDS, float("inf")]
    first = [next(n for n, bound in enumerate(bounds) if age <= bound) for age in ages]
    return [first.count(n) for n in range(len(bounds))]


def test_the_names_say_the_bounds() -> None:
    assert [f"confirm_ms_le_{bound}" for bound in (*CONFIRM_BOUNDS, "inf")] == NAMES
    assert set(HELP) == set(Stat)
    assert all(stat.name.startswith("DROPPED_") is (stat >= FIRST_REASON) for stat in Stat
               if stat is not Stat.DROPPED)  # fmt: skip


# At a bound, beside it, in the future, and long ago.
ages = st.one_of(
    st.sampled_from([edge for bound in CONFIRM_BOUNDS for edge in (bound - 1, bound, bound + 1)]),
    st.integers(-5000, 10**7),
)


@given(st.lists(st.lists(ages, min_size=1, max_size=30), min_size=1, max_size=4))
def test_every_event_counts_in_its_bucket(batches: list[list[int]]) -> None:
    """Confirms come in any order; an event from the future has the age 0."""
    bench = connected()
    numbers, tags = itertools.count(1), 0
    for batch in batches:
        now = wall_at(bench.now)
        bench.publisher.add([event_at(next(numbers), now - age) for age in batch])
        bench.settle()
        tags += len(batch)
        bench.ack(tags, multiple=True)
    all_ages = [age for batch in batches for age in batch]
    assert counted(bench) == naive(all_ages)
    assert bench.count(Stat.CONFIRM_MS_SUM) == sum(max(age, 0) for age in all_ages)


def test_the_time_is_that_of_the_confirm() -> None:
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.now += 0.020
    bench.ack(1)
    bench.now += 0.010
    bench.ack(2)
    assert bench.count(Stat.CONFIRM_MS_LE_25) == 1
    assert bench.count(Stat.CONFIRM_MS_LE_50) == 1
    assert bench.count(Stat.CONFIRM_MS_SUM) == 50


def test_what_goes_again_counts_once_and_from_its_beginning() -> None:
    bench = connected()
    bench.emit(1)
    bench.settle()
    bench.nack(1)
    bench.lose_link()
    bench.wait(0.200)
    bench.link_up()
    bench.ack(1)
    assert sum(counted(bench)) == 1
    assert bench.count(Stat.CONFIRM_MS_LE_250) == 1


def test_what_was_in_the_list_counts_from_its_emission() -> None:
    """The event's time is in the element, also in one that an earlier load has stored."""
    bench = away(found=1)
    bench.emit(1)
    bench.wait(STORE_AFTER)
    bench.now += 3
    actions = bench.link_up()
    bench.ack(sum(len(a.events) for a in actions if isinstance(a, Send)), multiple=True)
    assert bench.count(Stat.CONFIRMED) == 2
    assert bench.count(Stat.CONFIRM_MS_LE_5000) == 2


def test_a_sum_that_no_number_holds() -> None:
    """Anybody may push an element with a time near 1970."""
    bench = connected()
    bench.publisher.counts[Stat.CONFIRM_MS_SUM] = INT64_MAX - 5
    bench.list.elements = [to_element(event_at(1, 0)), to_element(event_at(2, INT64_MAX))]
    bench.wait(2)
    bench.ack(2, multiple=True)
    assert bench.count(Stat.CONFIRM_MS_SUM) == INT64_MAX
    assert (bench.count(Stat.CONFIRM_MS_LE_INF), bench.count(Stat.CONFIRM_MS_LE_1)) == (1, 1)


def test_reset() -> None:
    bench = connected()
    bench.emit(1)
    bench.settle()
    bench.now += 0.003
    bench.ack(1)
    assert bench.count(Stat.CONFIRM_MS_SUM) > 0
    bench.publisher.reset_stats()
    assert sum(counted(bench)) == bench.count(Stat.CONFIRM_MS_SUM) == 0
