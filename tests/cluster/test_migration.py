"""Atomic slot migrations (Valkey 9, Redis 8.4): each change is published once, by the node that
has answered the client; what copies and removes keys publishes nothing; lists go with their slots.
"""

from __future__ import annotations

import collections
import itertools
import threading
from collections.abc import Iterator

import pytest
import redis

from keyspace_amqp.cluster.slots import key_of, slot_of
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from keyspace_amqp.fallback import to_element
from keyspace_amqp.message import Event
from keyspace_amqp.tables.keys import refused_key
from tests.fix_cluster import Bench, StartCluster, Writer
from tests.fix_migration import BOTH, Migration, slow_down
from tests.fix_servers import settled, stats

# Every class of events: the copies of all types of keys have some.
ALL_EVENTS = "An"
# Left to the source, so that it stays a primary.
KEPT = 20


def most_slots(bench: Bench, node: RedisServer) -> tuple[int, int]:
    """The slots of a node but for the first few; the one of its list is among them."""
    first, *_, last = map(int, bench.slots_of(node))
    return first + KEPT, last


def keys_in(node_slots: tuple[int, int], count: int, prefix: str) -> list[bytes]:
    """So many keys in these slots."""
    names = (b"%s:%d" % (prefix.encode(), number) for number in itertools.count())
    first, last = node_slots
    return list(itertools.islice((k for k in names if first <= slot_of(k) <= last), count))


def fill(client: redis.Redis, names: list[bytes]) -> None:
    """Make keys of all types."""
    for number, name in enumerate(names):
        match number % 7:
            case 0:
                client.set(name, b"v")
            case 1:
                client.set(name, b"v", ex=1000)
            case 2:
                client.hset(name, mapping={"a": 1, "b": 2})
            case 3:
                client.rpush(name, *range(600))  # too long to be sent in one piece
            case 4:
                client.sadd(name, "a", "b")
            case 5:
                client.zadd(name, {"a": 1, "b": 2})
            case 6:
                client.xadd(name, {"a": 1})


@BOTH
def test_a_quiet_migration_publishes_nothing(
    family: str, broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """There and back, and once more cancelled in the middle: no message for keys that only move."""
    bench = start_cluster(family, broker, events=ALL_EVENTS)
    source, target, _ = bench.cluster.primaries()
    slots = most_slots(bench, source)
    with source.client() as client:
        fill(client, keys_in(slots, 700, "key"))
        before = settled(client, queue_length=0, in_flight=0, fallback_length=0)["events_seen"]
    bench.mailbox.receive()
    Migration(bench.cluster, source, target, *slots).wait()
    bench.cluster.wait_settled()
    Migration(bench.cluster, target, source, *slots).wait()
    bench.cluster.wait_settled()
    slow_down(source, 10_000)
    cancelled = Migration(bench.cluster, source, target, *slots)
    wait_for(lambda: used(target) > 100)
    cancelled.cancel()
    with source.client() as client:
        assert client.dbsize() == 700
        assert settled(client)["events_seen"] == before
    with target.client() as client:
        assert settled(client)["events_seen"] == 0
    assert bench.mailbox.receive() == []


def used(node: RedisServer) -> int:
    """How many commands that make keys a node has run: those of an import are among them."""
    with node.client() as client:
        calls = client.info("commandstats")
    names = ("set", "hset", "hmset", "rpush", "sadd", "zadd", "restore", "xadd")
    return sum(calls.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names)


@BOTH
def test_the_target_dies_while_it_imports(
    family: str, broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """It starts again with a part of the keys, and removes them. Nothing is published."""
    bench = start_cluster(
        family,
        broker,
        ["appendonly yes", "cluster-replica-no-failover yes", "cluster-require-full-coverage no"],
        events=ALL_EVENTS,
        replicas=0,
    )
    source, target, _ = bench.cluster.primaries()
    slots = most_slots(bench, source)
    with source.client() as client:
        fill(client, keys_in(slots, 700, "key"))
        settled(client, queue_length=0, in_flight=0, fallback_length=0)
    bench.mailbox.receive()
    slow_down(source, 10_000)
    migration = Migration(bench.cluster, source, target, *slots)
    wait_for(lambda: used(target) > 200)
    target.kill()
    bench.restart(target)
    with target.client() as client:
        wait_for(lambda: client.dbsize() == 0)
        settled(client)
    with source.client() as client:
        assert client.dbsize() == 700
        settled(client)
    print(target.log()[-6000:])
    assert bench.mailbox.receive() == []


@BOTH
def test_the_replica_of_the_target_takes_over_an_import(
    family: str, broker: RabbitServer, start_cluster: StartCluster
) -> None:
    bench = start_cluster(family, broker, events=ALL_EVENTS)
    source, target, _ = bench.cluster.primaries()
    heir = bench.cluster.replica_of(target)
    slots = most_slots(bench, source)
    with source.client() as client:
        fill(client, keys_in(slots, 700, "key"))
        settled(client, queue_length=0, in_flight=0, fallback_length=0)
    bench.mailbox.receive()
    slow_down(source, 10_000)
    Migration(bench.cluster, source, target, *slots)
    wait_for(lambda: used(heir) > 200)
    target.kill()
    bench.wait_role(heir, "primary")
    bench.cluster.wait_settled()
    with heir.client() as client:
        wait_for(lambda: client.dbsize() == 0)
        settled(client)
    print(heir.log()[-6000:])
    bench.restart(target)
    assert bench.mailbox.receive() == []


@BOTH
def test_a_load_in_the_middle_of_an_import(
    family: str, broker: RabbitServer, start_cluster: StartCluster
) -> None:
    bench = start_cluster(family, broker, events=ALL_EVENTS)
    source, target, _ = bench.cluster.primaries()
    slots = most_slots(bench, source)
    with source.client() as client:
        fill(client, keys_in(slots, 700, "key"))
        settled(client, queue_length=0, in_flight=0, fallback_length=0)
    bench.mailbox.receive()
    slow_down(source, 10_000)
    migration = Migration(bench.cluster, source, target, *slots)
    wait_for(lambda: used(target) > 100)
    with target.client() as client:
        client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
        client.execute_command("MODULE", "LOAD", *target.module)
        wait_for(lambda: used(target) > 200)
        migration.cancel()
        settled(client)
    assert collections.Counter(m.event[1] for m in bench.mailbox.receive()) == {}
