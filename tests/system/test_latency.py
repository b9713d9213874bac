"""How long it took: from an event to its confirm, in STATS; and how long Redis waited for
the module, in Redis' own LATENCY."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

import pytest
import redis
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.demo.servers import RabbitServer, free_port, wait_for
from keyspace_amqp.fallback import to_element
from keyspace_amqp.message import Event
from keyspace_amqp.publisher.actions import Send
from keyspace_amqp.publisher.flush import STORE_GRACE
from keyspace_amqp.publisher.publisher import STORE_AFTER
from keyspace_amqp.publisher.window import STALLED_AFTER
from keyspace_amqp.tables.parameters import INT64_MAX
from keyspace_amqp.tables.stats import CONFIRM_BOUNDS, FIRST_REASON, HELP, Stat
from tests.fix_faults import Proxy
from tests.fix_servers import (
    MODULE,
    Mailbox,
    StartRedis,
    arguments_for,
    list_length,
    settled,
    stats,
)
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
    """Per bucket the events, each for itself in the first bucket that it is not above."""
    bounds = [*CONFIRM_BOUNDS, float("inf")]
    first = [next(n for n, bound in enumerate(bounds) if age <= bound) for age in ages]
    return [first.count(n) for n in range(len(bounds))]


def test_the_names_say_the_bounds() -> None:
    assert [f"confirm_ms_le_{bound}" for bound in (*CONFIRM_BOUNDS, "inf")] == NAMES
    assert set(HELP) == set(Stat)
    assert all(stat.name.startswith("DROPPED_") is (stat >= FIRST_REASON) for stat in Stat
               if stat is not Stat.DROPPED)  # fmt: skip


# At a bound, beside it, before the time, and far behind.
ages = st.one_of(
    st.sampled_from([edge for bound in CONFIRM_BOUNDS for edge in (bound - 1, bound, bound + 1)]),
    st.integers(-5000, 10**7),
)


@given(st.lists(st.lists(ages, min_size=1, max_size=30), min_size=1, max_size=4))
def test_every_event_counts_in_its_bucket(batches: list[list[int]]) -> None:
    """In any order; those from the future count as none."""
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
    bench.now += 0.200
    bench.link_up()
    bench.ack(1)
    assert sum(counted(bench)) == 1
    assert bench.count(Stat.CONFIRM_MS_LE_250) == 1


def test_what_was_in_the_list_counts_from_its_emission() -> None:
    """Its time is in the element; also what an earlier life has stored."""
    bench = away(found=1)
    bench.emit(1)
    bench.wait(STORE_AFTER)
    bench.now += 3
    actions = bench.link_up()
    bench.ack(sum(len(a.events) for a in actions if isinstance(a, Send)), multiple=True)
    assert bench.count(Stat.CONFIRMED) == 2
    assert bench.count(Stat.CONFIRM_MS_LE_5000) == 2


def test_a_sum_that_no_number_holds() -> None:
    """Anybody may push an element whose time is that of the first computers."""
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


# ---- real servers -----------------------------------------------------------------


def test_stats_tell_of_an_outage(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """What came while the link was dead took as long as that."""
    with Proxy(broker.port) as proxy:
        client = start_redis(arguments=arguments_for(proxy.port, mailbox, events="$")).client()
        for number in range(20):
            client.set(f"a{number}", 1)
        numbers = settled(client, confirmed=20)
        assert sum(numbers[name] for name in NAMES) == 20
        proxy.deaf = True
        begin = client.time()
        client.set("b", 1)
        wait_for(lambda: client.time()[0] > begin[0] + 1, 30)
        proxy.deaf = False
        numbers = settled(client, confirmed=21, fallback_length=0)
        assert numbers["confirm_ms_le_5000"] + numbers["confirm_ms_le_inf"] >= 1
        assert sum(numbers[name] for name in NAMES) == 21
        assert numbers["confirm_ms_sum"] > 1000
        shown = client.info("keyspaceamqp")
        assert all(shown[f"keyspaceamqp_{name}"] == numbers[name] for name in NAMES)
        client.execute_command("KEYSPACEAMQP.STATS", "RESET")
        numbers = settled(client, confirmed=0, confirm_ms_sum=0)
        assert sum(numbers[name] for name in NAMES) == 0
        wait_for(lambda: stats(client)["fallback_length"] == 0, 30)


# ---- Redis' own LATENCY ---------------------------------------------------------------


def watched(client: redis.Redis) -> dict[str, int]:
    """What Redis has noted of the module: per event the longest time in milliseconds."""
    found = {name.decode(): longest for name, _, _, longest, *_ in client.latency_latest()}
    return {name: longest for name, longest in found.items() if name.startswith("keyspaceamqp")}


@pytest.mark.parametrize("threshold", [1, 0])
def test_a_long_job(family: str, threshold: int, start_redis: StartRedis) -> None:
    """An element of 25 MB has to be copied by the main thread. 0: nobody wants to know."""
    client = start_redis(family, arguments_for(free_port(), events="$")).client()
    client.config_set("latency-monitor-threshold", threshold)
    client.set("small", 1)
    wait_for(lambda: list_length(client) == 1, 30)
    client.set(b"k" * 25_000_000, 1)
    wait_for(lambda: list_length(client) == 2, 30)
    if threshold == 0:
        assert watched(client) == {}
    else:
        assert watched(client)["keyspaceamqp-job"] >= 1
        assert len(client.latency_history("keyspaceamqp-job")) >= 1


def test_waits_for_the_handler(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """A save and an unload give a broker that is silent some time."""
    server = start_redis(family, None)
    client = server.client()
    client.config_set("latency-monitor-threshold", 1)
    with Proxy(broker.port) as proxy:
        arguments = [str(a) for a in arguments_for(proxy.port, mailbox, events="$")]
        client.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
        assert watched(client)["keyspaceamqp-load"] >= 1
        client.set("a", 1)
        settled(client, confirmed=1)
        for wait, command, least in (
            ("save", ("SAVE",), STORE_GRACE),
            ("unload", ("MODULE", "UNLOAD", "keyspaceamqp"), STALLED_AFTER),
        ):
            proxy.deaf = True
            begin = time.monotonic()
            with client.pipeline(transaction=False) as pipeline:
                pipeline.set("b", 1)
                pipeline.execute_command(*command)
                pipeline.execute()
            longest = (time.monotonic() - begin) * 1000
            assert least * 1000 / 2 <= watched(client)[f"keyspaceamqp-{wait}"] <= longest
            proxy.deaf = False
            if wait == "save":
                settled(client, fallback_length=0, in_flight=0)
        client.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
        settled(client, fallback_length=0, queue_length=0, in_flight=0)
