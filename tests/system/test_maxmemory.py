"""Near `maxmemory` the module costs no data and no errors (rule 21).

Each test compares a server with the module to a bare server of the same run, or counts what must
not happen at all.
"""

from __future__ import annotations

import dataclasses

import pytest
import redis

from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tables.keys import KEY
from tests.fix_faults import delivered
from tests.fix_outbox import AND_ATOMIC
from tests.fix_servers import Mailbox, StartRedis, arguments_for, list_length, settled, stats
from tests.servers import NEW_REDIS, NEW_VALKEY, REDIS, SOME, at_least

MIB = 1024 * 1024
# Long names: the event of an eviction needs more memory in the list than the eviction has freed.
FILL = """
for number = 1, tonumber(ARGV[1]) do
    redis.call('SET', string.rep('k', 50) .. number, 'v', 'EX', 3600)
end
"""
KEYS = 40_000
POLICIES = ["volatile-random", "volatile-ttl", "allkeys-random", "allkeys-lru", "allkeys-lfu"]
REFUSED = "Redis is near its maxmemory"


def used(client: redis.Redis) -> int:
    """Bytes that count towards maxmemory."""
    memory = client.info("memory")
    return int(memory["used_memory"] - memory["mem_not_counted_for_evict"])


def evictions(client: redis.Redis) -> int:
    return int(client.info("stats")["evicted_keys"])


def list_bytes(client: redis.Redis) -> int:
    return int(client.memory_usage(KEY, samples=0) or 0)


def free_memory(client: redis.Redis) -> None:
    """Free all memory for the list: what waits in memory goes there."""
    client.config_set("maxmemory", 0)
    settled(client, queue_length=0)


# ---- evictions ---------------------------------------------------------------------------


@dataclasses.dataclass
class Squeezed:
    """What a server has done when its memory was made smaller than its data."""

    evicted: int
    errors: int
    limit: int  # maxmemory
    key_bytes: float  # of one key


def squeeze(client: redis.Redis, policy: str) -> Squeezed:
    """Takes a megabyte from a server that is full of keys, and then writes some."""
    client.config_set("maxmemory-policy", policy)
    empty = used(client)
    client.eval(FILL, 0, KEYS)
    full = used(client)
    client.config_set("maxmemory", full - MIB)
    errors = 0
    for number in range(300):
        try:
            client.set(f"w:{number}", number, ex=3600)
        except redis.exceptions.OutOfMemoryError:
            errors += 1
    last: list[int] = []

    def at_rest() -> bool:
        """The megabyte is gone, and nothing was evicted for a while."""
        last.append(evictions(client))
        rest = len(last) > 20 and len(set(last[-20:])) == 1
        return rest and used(client) < full - MIB / 2

    wait_for(at_rest, 60)
    return Squeezed(last[-1], errors, full - MIB, (full - empty) / KEYS)


@pytest.mark.parametrize(
    ("family", "outbox", "policy"),
    [
        *((family, "off", policy) for family in SOME for policy in POLICIES),
        (REDIS, "reply", "volatile-ttl"),
        (NEW_REDIS, "atomic", "allkeys-lru"),
        (NEW_VALKEY, "reply", "allkeys-random"),
        (NEW_VALKEY, "atomic", "allkeys-lfu"),
    ],
)
def test_evictions_do_not_feed_themselves(
    family: str, outbox: str, policy: str, start_redis: StartRedis
) -> None:
    """With the broker away, Redis evicts as many keys as it does without the module, and those
    that make room for the list's share."""
    bare = squeeze(start_redis(family, None).client(), policy)
    client = start_redis(family, arguments_for(free_port(), events="xe")).client()
    found = squeeze(client, policy)
    assert found.errors == bare.errors == 0
    room = found.limit * DEFAULTS.fallback_memory / 100
    assert list_bytes(client) <= 1.1 * room  # the module measures a part of the list
    # The table of keys grows and shrinks in large steps, so the numbers of two servers differ.
    assert found.evicted < 1.4 * bare.evicted + 2 * room / found.key_bytes
    free_memory(client)
    numbers = settled(client)
    # With an outbox, or on a slow machine, there is a list already while other keys are evicted.
    lost = numbers["dropped_fallback_evicted"] if policy.startswith("allkeys") else 0
    assert numbers["dropped"] == lost
    # The evictions of the list itself make no event.
    of_list = evictions(client) - lost - list_length(client)
    assert 0 <= of_list <= (5 if lost else 0)


@pytest.mark.parametrize("policy", ["volatile-lru", "allkeys-random"])
def test_evictions_with_a_broker(
    family: str, policy: str, broker: RabbitServer, start_redis: StartRedis
) -> None:
    """The broker takes the events: no list is needed. On a slow machine there would be one, which
    may be evicted too."""
    bare = squeeze(start_redis(family, None).client(), policy)
    mailbox = Mailbox(broker)
    client = start_redis(family, arguments_for(broker, mailbox, "e", size=-1)).client()
    found = squeeze(client, policy)
    assert found.errors == bare.errors == 0
    assert found.evicted < 1.4 * bare.evicted
    client.config_set("maxmemory", 0)
    settled(client, confirmed=evictions(client), dropped=0)
    mailbox.receive()


@pytest.mark.parametrize(("percent", "policy"), [(0, "allkeys-lru"), (20, "volatile-random")])
def test_the_share_is_a_parameter(
    family: str, percent: int, policy: str, start_redis: StartRedis
) -> None:
    """The list takes it, and no more."""
    server = start_redis(
        family,
        arguments_for(free_port(), events="l"),
        [f"maxmemory-policy {policy}", f"keyspaceamqp.fallback-memory {percent}"],
    )
    client = server.client()
    client.eval(FILL, 0, KEYS)
    client.config_set("keyspaceamqp.events", "$")
    limit = used(client)
    client.config_set("maxmemory", limit)
    client.eval(FILL, 0, KEYS)
    wait_for(lambda: REFUSED in stats(client)["last_error"], 30, "a refusal")
    share = limit * percent / 100
    # A push of up to 256 kB that would exceed the share is not made.
    assert share - MIB / 2 <= list_bytes(client) <= 1.1 * share
    numbers = settled(client, dropped=0)
    assert numbers["queue_length"] + numbers["fallback_length"] == KEYS
    assert numbers["fallback_length"] == list_length(client)
    client.config_set("keyspaceamqp.fallback-memory", percent + 10)
    wait_for(lambda: stats(client)["fallback_pushed"] > numbers["fallback_length"], 30)


# ---- the outbox ----------------------------------------------------------------------------


SCRIPT = """
for number = 1, tonumber(ARGV[1]) do
    redis.call('SET', 'one', number)
end
"""


# The modes that a server has.
OUTBOX = pytest.mark.parametrize(
    ("family", "mode"),
    [(name, "reply") for name in SOME]
    + [(name, "atomic") for name in SOME if at_least(name, redis="7.2", valkey="7.2")],
)


@OUTBOX
def test_evictions_do_not_feed_themselves_through_the_outbox(
    family: str, mode: str, start_redis: StartRedis
) -> None:
    """An eviction makes an element, at once or even in one transaction with it."""
    bare = squeeze(start_redis(family, None).client(), "volatile-random")
    arguments = arguments_for(free_port(), events="xe")
    client = start_redis(family, arguments, [f"keyspaceamqp.outbox {mode}"]).client()
    found = squeeze(client, "volatile-random")
    assert found.errors == bare.errors == 0
    room = found.limit * DEFAULTS.fallback_memory / 100
    assert list_bytes(client) <= 1.1 * room
    assert found.evicted < 1.4 * bare.evicted + 2 * room / found.key_bytes
    assert stats(client)["dropped"] == 0
    free_memory(client)
    assert list_length(client) == evictions(client)


@OUTBOX
def test_the_outbox_keeps_the_bound_within_one_command(
    family: str, mode: str, start_redis: StartRedis
) -> None:
    """A script makes many events, and memory gets near maxmemory while they are put into the list.
    Nothing can be evicted. Redis is not asked for each event."""
    server = start_redis(
        family,
        arguments_for(free_port(), events="$"),
        ["maxmemory-policy noeviction", f"keyspaceamqp.outbox {mode}"],
    )
    client = server.client()
    fill(client)
    client.set("one", 0)
    settled(client, outbox=mode, fallback_length=401, queue_length=0)
    client.config_set("maxmemory", int(used(client) / 0.8))
    client.eval(SCRIPT, 0, 50_000)
    limit = client.info("memory")["maxmemory"]
    # What one push of 256 kB takes may be above the limit, and what clients have at this moment.
    assert 0.8 * limit < used(client) < 0.9 * limit + MIB / 2
    client.set("one", "more")
    numbers = settled(client, dropped=0)
    assert numbers["fallback_length"] + numbers["queue_length"] == 401 + 50_000 + 1
    wait_for(lambda: stats(client)["fallback_length"] == list_length(client) > 1000, 30)
    asked = client.info("commandstats").get("cmdstat_memory|usage", {"calls": 0})
    assert asked["calls"] < 100
    free_memory(client)
    assert list_length(client) == 401 + 50_000 + 1


# ---- errors of clients --------------------------------------------------------------------


def fill(client: redis.Redis) -> None:
    """Takes some megabytes that no eviction frees, by a script that leaves nothing in buffers."""
    client.eval("for i = 1, 400 do redis.call('SET', 'big:' .. i, string.rep('x', 10000)) end", 0)


def set_one_key(client: redis.Redis, count: int) -> int:
    """Sets the same key again and again; returns how often Redis has refused. A pipeline of 500
    takes 60 kB of Valkey 9.1."""
    errors = 0
    for first in range(0, count, 500):
        with client.pipeline(transaction=False) as pipeline:
            for number in range(first, first + 500):
                pipeline.set("one", number)
            replies = pipeline.execute(raise_on_error=False)
        errors += sum(isinstance(reply, redis.exceptions.OutOfMemoryError) for reply in replies)
    return errors


def limited(server: RedisServer, room: int) -> redis.Redis:
    """A client of a server that has some data, and then so many bytes of room."""
    client = server.client()
    fill(client)
    client.set("one", 0)
    client.config_set("maxmemory", used(client) + room)
    return client


@AND_ATOMIC
@pytest.mark.parametrize(
    ("policy", "room", "count"), [("noeviction", MIB, 20_000), ("volatile-lru", MIB // 4, 5000)]
)
def test_clients_get_no_errors(
    family: str,
    policy: str,
    room: int,
    count: int,
    broker: RabbitServer,
    start_redis: StartRedis,
) -> None:
    """Nothing can be evicted, and the clients need no more memory: they are not refused because of
    the list, and all events arrive later, in their order."""
    policies = [f"maxmemory-policy {policy}"]
    bare = limited(start_redis(family, None, policies), room)
    assert set_one_key(bare, count) == 0
    mailbox = Mailbox(broker)
    server = start_redis(family, arguments_for(free_port(), mailbox, "$"), policies)
    client = limited(server, room)
    assert set_one_key(client, count) == 0
    wait_for(lambda: REFUSED in stats(client)["last_error"], 30)
    assert set_one_key(client, 500) == 0
    settled(client, dropped=0)
    assert used(client) < client.info("memory")["maxmemory"]
    assert "events wait in memory" in server.log()
    client.config_set("keyspaceamqp.port", broker.port)
    expected = [b"big:%d" % number for number in range(1, 401)] + [b"one"] * (1 + count + 500)
    delivered(client, mailbox, expected, timeout=120)


# ---- events that wait, and losses ----------------------------------------------------------


def test_events_wait_in_memory_and_then_the_oldest_are_lost(
    family: str, broker: RabbitServer, start_redis: StartRedis
) -> None:
    """What waits does not count towards maxmemory. The list is delivered although memory is
    above maxmemory, and so is what waits."""
    mailbox = Mailbox(broker)
    server = start_redis(
        family,
        arguments_for(free_port(), mailbox, "l"),
        ["maxmemory-policy noeviction", f"keyspaceamqp.queue-limit {MIB}"],
    )
    client = server.client()
    client.eval(FILL, 0, KEYS)
    client.config_set("keyspaceamqp.events", "g")
    for number in range(300):
        client.persist("k" * 50 + str(number + 1))
    settled(client, fallback_length=300, queue_length=0)
    client.config_set("maxmemory", MIB)
    before = used(client)
    for first in range(301, 15_001, 300):
        with client.pipeline(transaction=False) as pipeline:
            for number in range(first, first + 300):
                pipeline.persist("k" * 50 + str(number))
            pipeline.execute()
    wait_for(lambda: stats(client)["dropped_no_memory"] > 0, 30)
    numbers = settled(client, fallback_length=300)
    assert numbers["queue_bytes"] > MIB / 2
    assert used(client) < before + MIB / 2
    assert "Redis is near its maxmemory" in server.log()
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("refused", 1)
    client.config_set("keyspaceamqp.port", broker.port)
    numbers = settled(client, fallback_length=0, queue_length=0, in_flight=0)
    lost = numbers["dropped_no_memory"]
    assert numbers["dropped"] == lost + numbers["dropped_queue_full"]
    arrived = [int(message.event[2][50:]) for message in mailbox.receive()]
    assert arrived == sorted(set(arrived))
    assert arrived[:300] == list(range(1, 301))
    assert len(arrived) == 15_000 - numbers["dropped"]
    with pytest.raises(redis.exceptions.OutOfMemoryError):
        client.set("refused", 1)
