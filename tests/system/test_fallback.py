"""With the broker away events go to the list, and come back from it in order."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import redis

from keyspace_amqp import message
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.fallback import JOB_ELEMENTS, from_element, to_element
from keyspace_amqp.publisher.window import WINDOW
from keyspace_amqp.tables.keys import KEY
from tests.fix_faults import delivered, stored_soon
from tests.fix_outbox import AND_OUTBOX, with_outbox
from tests.fix_servers import (
    Mailbox,
    StartRedis,
    arguments_for,
    linked,
    list_length,
    once,
    replicated,
    settled,
    stats,
)
from tests.servers import NEW_REDIS, REDIS, SOME


def write(client: redis.Redis, first: int, count: int) -> list[bytes]:
    """SETs numbered keys in pipelines; the keys."""
    keys = [b"k%d" % number for number in range(first, first + count)]
    for at in range(0, count, 500):
        with client.pipeline(transaction=False) as pipeline:
            for key in keys[at : at + 500]:
                pipeline.set(key, 1)
            pipeline.execute()
    return keys


def keys_of(messages: list) -> list[bytes]:
    return [item.event[2] for item in messages]


@AND_OUTBOX
def test_an_outage(family: str, own_broker: RabbitServer, start_redis: StartRedis) -> None:
    """The broker is killed under load, is away, and comes back: everything arrives, in order, and
    repeated messages have the same message_id."""
    mailbox = Mailbox(own_broker).keep()
    server = start_redis(family, arguments_for(own_broker, mailbox))
    client = server.client()
    expected = write(client, 0, 3000)
    wait_for(lambda: stats(client)["confirmed"] > 0, 30)
    own_broker.kill()
    expected += write(client, 3000, 3000)
    wait_for(lambda: list_length(client) == stats(client)["fallback_length"] > 0, 30)
    expected += write(client, 6000, 1)
    numbers = settled(client, queue_length=0, in_flight=0, dropped=0)
    assert numbers["state"] in ("disconnected", "connecting")
    assert numbers["last_error"]
    own_broker.start()
    # Only messages in flight when the broker died may come twice.
    delivered(
        client, mailbox, expected, repeated=WINDOW, confirmed=6001, returned=0, state="connected"
    )
    assert list_length(client) == 0


def test_elements_are_for_people_too(start_redis: StartRedis) -> None:
    server = start_redis(arguments=arguments_for(free_port()))
    client = server.client()
    before = int(time.time() * 1000)
    client.execute_command("SELECT", 0)
    client.hset("session:42", "f", 1)
    client.set(b"\0\n\xff", 1)
    wait_for(lambda: list_length(client) == 2, 30)
    first, second = client.lrange(KEY, 0, -1)
    assert first.split(b" ")[3:] == [b"0", b"h", b"4", b"hset", b"session:42"]
    event = from_element(second)
    assert event is not None
    assert (event.db, event.name, event.key) == (0, b"set", b"\0\n\xff")
    assert before - 1000 <= event.time_ms <= int(time.time() * 1000) + 1000


def test_events_are_in_the_list_soon(start_redis: StartRedis) -> None:
    """Rule 12 asks for 100 ms."""
    server = start_redis(arguments=arguments_for(free_port()))
    client = server.client()
    write(client, 0, 1)
    wait_for(lambda: list_length(client) == 1, 30)
    stored_soon(client)


@AND_OUTBOX
@pytest.mark.parametrize("persistence", ["rdb", "aof"])
def test_the_list_outlives_redis(
    family: str, persistence: str, broker: RabbitServer, start_redis: StartRedis
) -> None:
    """Redis stops and starts while the broker is away; then the broker comes back, without a new
    event."""
    mailbox = Mailbox(broker)
    options = {"rdb": ["save 3600 1000000"], "aof": ["appendonly yes", "appendfsync always"]}
    server = start_redis(family, arguments_for(free_port(), mailbox), options[persistence])
    client = server.client()
    expected = write(client, 0, 2500)
    if persistence == "aof":
        wait_for(lambda: list_length(client) == 2500, 30)
        server.kill()
    else:
        # At once: the last events are still in memory when the shutdown begins.
        server.stop()
    server.start()
    numbers = settled(client, fallback_length=2500, fallback_found=2500, confirmed=0)
    assert numbers["events_seen"] == 0
    client.config_set("keyspaceamqp.port", broker.port)
    settled(client, fallback_length=0, confirmed=2500, fallback_drained=2500)
    assert keys_of(mailbox.receive()) == expected


@pytest.mark.parametrize("options", [["save 3600 1000000000"], ["appendonly yes"]])
def test_a_long_list_outlives_redis(
    options: list[str], broker: RabbitServer, start_redis: StartRedis
) -> None:
    """Redis stops cleanly with 50,000 elements in the list, and has them when it is
    back: their number is known soon, none goes through the file of leftovers, and they are
    delivered in order."""
    mailbox = Mailbox(broker)
    server = start_redis(NEW_REDIS, arguments_for(free_port(), mailbox), options)
    client = server.client()
    count = 50_000
    expected = write(client, 0, count)
    wait_for(lambda: list_length(client) == count, 60)
    assert server.stop() == 0
    assert list(server.folder.glob("*.leftover")) == []
    begin = time.monotonic()
    server.start()
    loaded = time.monotonic() - begin
    numbers = settled(client, fallback_length=count, fallback_found=count, queue_length=0)
    print(f"loaded in {loaded:.1f} s, known {time.monotonic() - begin - loaded:.1f} s later")
    assert (list_length(client), numbers["events_seen"]) == (count, 0)
    client.config_set("keyspaceamqp.port", broker.port)
    delivered(client, mailbox, expected, timeout=120, confirmed=count, fallback_drained=count)


@AND_OUTBOX
def test_pushes_and_trims_are_replicated(
    family: str, broker: RabbitServer, start_redis: StartRedis
) -> None:
    """A promoted replica has the list and drains it (rule 11)."""
    mailbox = Mailbox(broker)
    primary = start_redis(family, arguments_for(free_port(), mailbox))
    replica = start_redis(
        family, arguments_for(free_port(), mailbox), [f"replicaof 127.0.0.1 {primary.port}"]
    )
    client, other = primary.client(), replica.client()
    linked(other)
    expected = write(client, 0, 1000)
    # No client writes after this: the push must reach the replica by itself.
    wait_for(lambda: list_length(other) == 1000, 30)
    assert other.lrange(KEY, 0, -1) == client.lrange(KEY, 0, -1)
    assert stats(other)["fallback_length"] == 0  # not the replica's to deliver
    primary.kill()
    other.replicaof("NO", "ONE")
    settled(other, fallback_length=1000, fallback_found=1000)
    other.config_set("keyspaceamqp.port", broker.port)
    settled(other, fallback_length=0, confirmed=1000)
    assert keys_of(mailbox.receive()) == expected


def test_a_demoted_node_hands_its_list_over(broker: RabbitServer, start_redis: StartRedis) -> None:
    mailbox = Mailbox(broker)
    nodes = [start_redis(arguments=arguments_for(free_port(), mailbox)) for _ in range(2)]
    first, second = (node.client() for node in nodes)
    expected = write(first, 0, 500)
    wait_for(lambda: list_length(first) == 500, 30)
    second.replicaof("127.0.0.1", str(nodes[0].port))
    linked(second)
    second.replicaof("NO", "ONE")
    settled(second, fallback_length=500)
    first.replicaof("127.0.0.1", str(nodes[1].port))
    settled(first, fallback_length=0, state="replica")
    second.config_set("keyspaceamqp.port", broker.port)
    settled(second, fallback_length=0, confirmed=500)
    assert keys_of(mailbox.receive()) == expected


@pytest.mark.parametrize("how", ["FAILOVER", "REPLICAOF"])
def test_a_planned_promotion_needs_no_full_copy(
    how: str, family: str, broker: RabbitServer, start_redis: StartRedis
) -> None:
    """The list is being delivered. FAILOVER has the old primary write nothing after the promotion;
    with REPLICAOF NO ONE this takes a DISCONNECT before it."""
    mailbox = Mailbox(broker)
    # A ping takes its place in the stream of replication too.
    options = ["repl-ping-replica-period 3600", "repl-diskless-sync-delay 0"]
    first = start_redis(family, arguments_for(free_port(), mailbox), options)
    second = start_redis(
        family,
        arguments_for(broker, mailbox),
        [*options, f"replicaof 127.0.0.1 {first.port}"],
    )
    old, new = first.client(), second.client()
    linked(new)
    expected = write(old, 0, 10_000)
    wait_for(lambda: list_length(old) == len(expected), 30)
    old.config_set("keyspaceamqp.port", broker.port)
    wait_for(lambda: stats(old)["confirmed"] > 0, 30)
    before = new.info("stats")
    if how == "FAILOVER":
        old.execute_command("FAILOVER", "TO", "127.0.0.1", second.port)
        wait_for(lambda: old.role()[0] == b"slave", 30)
    else:
        old.execute_command("KEYSPACEAMQP.DISCONNECT")
        settled(old, in_flight=0)
        # Nothing is to be removed from the list any more: that would be a write.
        wait_for(lambda: list_length(old) == stats(old)["fallback_length"], 30)
        replicated(old, new)
        new.replicaof("NO", "ONE")
        settled(new)
        old.replicaof("127.0.0.1", str(second.port))
    linked(old)
    after = new.info("stats")
    assert after["sync_full"] == before["sync_full"]
    assert after["sync_partial_ok"] == before["sync_partial_ok"] + 1
    settled(new, fallback_length=0, state="connected")
    assert keys_of(once(mailbox.receive())) == expected


@with_outbox([REDIS])
def test_a_cap_keeps_the_newest(family: str, broker: RabbitServer, start_redis: StartRedis) -> None:
    mailbox = Mailbox(broker)
    server = start_redis(family, arguments_for(free_port(), mailbox, size=700))
    client = server.client()
    expected = write(client, 0, 5000)
    numbers = settled(client, fallback_length=700, dropped=4300, queue_length=0)
    assert numbers["dropped_fallback_full"] == 4300
    assert list_length(client) == 700
    client.config_set("keyspaceamqp.fallback-size", 0)
    expected += write(client, 5000, 3000)
    settled(client, fallback_length=3700, dropped=4300)
    client.config_set("keyspaceamqp.port", broker.port)
    settled(client, fallback_length=0, confirmed=3700)
    assert keys_of(mailbox.receive()) == expected[4300:]


def test_without_a_list_events_wait_in_memory_and_the_oldest_go(
    broker: RabbitServer, start_redis: StartRedis
) -> None:
    """fallback-size below 0 means no list; queue-limit says how much can wait."""
    mailbox = Mailbox(broker)
    server = start_redis(arguments=arguments_for(free_port(), mailbox, size=-1))
    client = server.client()
    client.config_set("keyspaceamqp.queue-limit", 1024 * 1024)
    expected = write(client, 0, 59_000)
    # The reply to the second one comes when the worker has taken these. If it is late, the queue is
    # full, and what comes then is lost.
    for _ in range(2):
        client.execute_command("KEYSPACEAMQP.KEYMASK", "TEST", "k")
    expected += write(client, 59_000, 1000)
    numbers = settled(client, fallback_length=0, events_seen=60_000)
    assert numbers["dropped"] == numbers["dropped_queue_full"] > 10_000
    # The events that the handler has in hand take more memory than their records.
    assert numbers["queue_bytes"] <= 1024 * 1024 + 2 * JOB_ELEMENTS * 300
    assert list_length(client) == 0
    client.config_set("keyspaceamqp.port", broker.port)
    kept = 60_000 - numbers["dropped"]
    settled(client, confirmed=kept, queue_length=0)
    arrived = keys_of(mailbox.receive())
    # In order, and the newest is among them: the oldest are given up.
    came = set(arrived)
    assert arrived == [key for key in expected if key in came]
    assert arrived[-1] == expected[-1]


@pytest.mark.parametrize("why", ["list off", "writes paused"])
def test_events_that_can_only_wait_take_little_memory(
    family: str, why: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """They stay records of about 50 bytes. As objects they would not fit into queue-limit, and
    most would be lost."""
    size = -1 if why == "list off" else 0
    server = start_redis(
        family,
        arguments_for(free_port(), mailbox, "$", size=size, masks=("^key",)),
        [f"keyspaceamqp.queue-limit {4 * 1024 * 1024}"],
    )
    client = server.client()
    script = """for number = 1, 50000 do
        redis.call('SET', string.format('key:%012d', number), '')
        if number % 2 == 0 then redis.call('SET', 'no mask lets this through', '') end
    end"""
    with client.pipeline() as pipeline:
        pipeline.eval(script, 0)
        if why == "writes paused":
            pipeline.execute_command("CLIENT", "PAUSE", 600_000, "WRITE")
        pipeline.execute()
    numbers = settled(client, events_seen=75_000, events_matched=50_000, dropped=0)
    assert numbers["queue_length"] == 50_000
    assert numbers["queue_bytes"] < 4 * 1024 * 1024
    client.config_set("keyspaceamqp.port", broker.port)
    if why == "writes paused":
        client.execute_command("CLIENT", "UNPAUSE")
    expected = [b"key:%012d" % number for number in range(1, 50_001)]
    delivered(client, mailbox, expected)


def _delete(client: redis.Redis) -> None:
    client.delete(KEY)


def _flush(client: redis.Redis) -> None:
    client.flushall()


def _rename(client: redis.Redis) -> None:
    client.rename(KEY, "elsewhere")


def _swap(client: redis.Redis) -> None:
    client.swapdb(0, 1)


def _expire(client: redis.Redis) -> None:
    client.pexpire(KEY, 20)


def _pop(client: redis.Redis) -> None:
    client.lpop(KEY, 40)


def _trim(client: redis.Redis) -> None:
    client.ltrim(KEY, 0, 59)


TEXTS = {
    "dropped_fallback_expired": "the fallback list expired",
    "dropped_fallback_flushed": "FLUSHALL, FLUSHDB or SWAPDB removed the fallback list",
    "dropped_fallback_removed": "a client removed elements of the fallback list",
}


@AND_OUTBOX
@pytest.mark.parametrize(
    ("damage", "reason", "lost"),
    [
        (_delete, "dropped_fallback_removed", 100),
        (_flush, "dropped_fallback_flushed", 100),
        (_rename, "dropped_fallback_removed", 100),
        (_swap, "dropped_fallback_flushed", 100),
        (_expire, "dropped_fallback_expired", 100),
        (_pop, "dropped_fallback_removed", 40),
        (_trim, "dropped_fallback_removed", 40),
    ],
)
def test_what_others_do_to_the_list_is_counted(
    family: str,
    damage: Callable[[redis.Redis], None],
    reason: str,
    lost: int,
    broker: RabbitServer,
    start_redis: StartRedis,
) -> None:
    """Rule 15: changes by others are noticed, counted and logged, and make no event."""
    mailbox = Mailbox(broker)
    server = start_redis(family, arguments_for(free_port(), mailbox, "$lgx"))
    client = server.client()
    write(client, 0, 100)
    settled(client, fallback_length=100)
    seen = stats(client)["events_seen"]
    damage(client)
    numbers = settled(client, dropped=lost)
    assert numbers[reason] == lost
    assert f"{lost} events lost: {TEXTS[reason]}\n" in server.log()
    extra = 1 if damage is _rename else 0  # rename_to, of a key that is not ours
    assert numbers["events_seen"] == seen + extra
    if damage is _swap:
        return  # the keys are in another database now
    write(client, 100, 100)
    client.config_set("keyspaceamqp.port", broker.port)
    settled(client, fallback_length=0, queue_length=0, in_flight=0)
    arrived = [m.event for m in mailbox.receive()]
    assert not [event for event in arrived if event[2].startswith(b"keyspaceamqp")]
    assert [event[2] for event in arrived][-100:] == [b"k%d" % n for n in range(100, 200)]


def test_elements_put_there_by_somebody_are_delivered(
    broker: RabbitServer, start_redis: StartRedis
) -> None:
    mailbox = Mailbox(broker)
    server = start_redis(arguments=arguments_for(broker, mailbox, "$"))
    client = server.client()
    event = message.Event("somebody-1", 1000, 3, "$", b"set", b"theirs")
    client.rpush(KEY, "garbage", to_element(event), "more garbage")
    numbers = settled(client, fallback_length=0, fallback_found=3, confirmed=1, dropped=2)
    assert numbers["dropped_unreadable"] == 2
    (arrived,) = mailbox.receive(1)
    assert arrived.event == (3, b"set", b"theirs")
    assert arrived.properties.message_id == "somebody-1"


def test_a_key_of_another_type_in_the_way(
    own_broker: RabbitServer, start_redis: StartRedis
) -> None:
    """With the broker there, events do not need the list; without it they wait in memory, and STATS
    and the log show the error."""
    mailbox = Mailbox(own_broker).keep()
    server = start_redis(arguments=arguments_for(own_broker, mailbox, "$", masks=("^k",)))
    client = server.client()
    expected = write(client, 0, 10)
    settled(client, confirmed=10, fallback_length=0)
    client.set(KEY, "in the way")
    expected += write(client, 10, 100)
    settled(client, confirmed=110)
    own_broker.kill()
    expected += write(client, 110, 100)
    wait_for(lambda: "WRONGTYPE" in stats(client)["last_error"], 30)
    settled(client, queue_length=100, dropped=0)
    client.delete(KEY)
    settled(client, queue_length=0, fallback_length=100)
    own_broker.start()
    settled(client, confirmed=210)
    assert keys_of(once(mailbox.receive())) == expected


def test_disconnect_and_connect(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    server: RedisServer = start_redis(arguments=arguments_for(broker, mailbox))
    client = server.client()
    expected = write(client, 0, 100)
    settled(client, confirmed=100)
    assert client.execute_command("KEYSPACEAMQP.DISCONNECT") == b"OK"
    expected += write(client, 100, 100)
    settled(client, state="disconnected", fallback_length=100)
    assert client.execute_command("KEYSPACEAMQP.CONNECT") == b"OK"
    settled(client, state="connected", confirmed=200, fallback_length=0)
    assert keys_of(once(mailbox.receive())) == expected


@pytest.mark.parametrize(
    ("family", "outbox"), [*((family, "off") for family in SOME), (REDIS, "reply")]
)
def test_paused_writes_do_not_stop_the_server(
    family: str, broker: RabbitServer, start_redis: StartRedis
) -> None:
    """While writes are paused, Redis asserts that nothing is replicated. So events wait in memory,
    and go to the list afterwards."""
    mailbox = Mailbox(broker)
    server = start_redis(family, arguments_for(free_port(), mailbox))
    client = server.client()
    with client.pipeline(transaction=False) as pipeline:
        for number in range(100):
            pipeline.set(f"k{number}", 1)
        pipeline.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
        pipeline.execute()
    wait_for(lambda: "paused" in stats(client)["last_error"], 30)
    assert list_length(client) == 0
    client.client_unpause()
    settled(client, fallback_length=100, dropped=0)
    assert list_length(client) == 100


def test_a_poisoned_list_does_not_stall_the_rest(
    broker: RabbitServer, start_redis: StartRedis
) -> None:
    """Any client may push to the list: elements that cannot become a message are given up."""
    mailbox = Mailbox(broker)
    client = start_redis(arguments=arguments_for(broker, mailbox, "$")).client()
    poison = [
        b"1 %b 1000 0 $ 3 set k" % (b"x" * 300),
        b"1 id -5 0 $ 3 set k",
        b"1 id 99999999999999999999999 0 $ 3 set k",
        b"1 id 1000 0 $ 3000 set k",
    ]
    client.rpush(KEY, *poison)
    numbers = settled(client, dropped=4, fallback_length=0)
    assert numbers["dropped_unreadable"] == 4
    expected = write(client, 0, 10)
    assert keys_of(mailbox.receive(10)) == expected
    assert stats(client)["handler_errors"] == 0


def test_a_message_that_the_broker_does_not_take(
    broker: RabbitServer, start_redis: StartRedis
) -> None:
    """The broker closes the channel for each message above max_message_size (128 MiB)."""
    mailbox = Mailbox(broker)
    server = start_redis(
        arguments=arguments_for(broker, mailbox, "$"),
        options=["keyspaceamqp.queue-limit 1073741824", "proto-max-bulk-len 512mb"],
    )
    client = server.client(socket_timeout=60)
    expected = write(client, 0, 10)
    client.set(b"x" * (134217728 + 1000), 1)
    expected += write(client, 10, 10)
    numbers = settled(client, confirmed=20, dropped=1)
    assert numbers["dropped_too_large"] == 1
    assert keys_of(once(mailbox.receive())) == expected
