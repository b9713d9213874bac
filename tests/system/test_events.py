"""Events become messages: all of them, in order, byte for byte.

The oracle is Redis itself: a subscriber of its own keyevent notifications says
what there was to forward.
"""

from __future__ import annotations

import functools
import random
import re
import time
from collections.abc import Iterator

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from tests.fix_outbox import modes
from tests.fix_servers import (
    MODULE,
    Mailbox,
    StartRedis,
    arguments_for,
    linked,
    once,
    settled,
    stats,
)
from tests.servers import ALL, SOME, at_least

NOTIFY = ["notify-keyspace-events KEA", "client-output-buffer-limit pubsub 0 0 0"]
CHANNEL = re.compile(rb"__keyevent@(\d+)__:(.*)", re.DOTALL)


class Witness:
    """Reads Redis' own notifications; events of the module's keys are not meant
    to be forwarded (rule 15)."""

    def __init__(self, server: RedisServer) -> None:
        self._subscription = server.client().pubsub()
        self._subscription.psubscribe("__keyevent@*__:*")
        wait_for(lambda: self._subscription.get_message(timeout=1), 30)

    def events(self, client: redis.Redis) -> list[tuple[int, bytes, bytes]]:
        """All events so far: up to one that is made here to mark the end."""
        end = f"end-{random.random()}".encode()
        client.set(end, 1)
        events = []
        while True:
            message = self._subscription.get_message(timeout=10)
            assert message is not None, "the notifications stop before the mark"
            found = CHANNEL.fullmatch(message["channel"])
            assert found is not None
            key = message["data"]
            if not key.startswith(b"keyspaceamqp:{"):
                events.append((int(found[1]), found[2], key))
            if key == end:
                return events


def tells_databases(client: redis.Redis) -> bool:
    """False if the server tells a module the wrong database of `move_to` in a transaction: Valkey
    9.1.1 and 9.1.2, see docs/versions.md."""
    version = str(client.info("server").get("valkey_version", "0"))
    return version not in ("9.1.1", "9.1.2")


def random_commands(client: redis.Redis, source: random.Random, count: int) -> Iterator[None]:
    """Runs random commands on all types, in several databases, in every way that a client has;
    yields after each."""
    keys = [
        *(b"key:%d" % number for number in range(30)),
        b"",
        b"\0",
        b"\xff\xfe\0\n",
        b"new\nline",
        b"blank key",
        b"\r\n",
        "ключ".encode(),
        bytes(range(256)),
        b"x" * 5000,
    ]
    key = lambda: source.choice(keys)  # noqa: E731  # short, as the table below needs it
    small = lambda: source.randint(0, 5)  # noqa: E731
    commands = [
        lambda: ("SET", key(), small()),
        lambda: ("SET", key(), small(), "PX", source.randint(1, 20)),
        lambda: ("APPEND", key(), "x"),
        lambda: ("INCR", key()),
        lambda: ("SETRANGE", key(), small(), "y"),
        lambda: ("GETDEL", key()),
        lambda: ("LPUSH", key(), small()),
        lambda: ("RPUSH", key(), small(), small()),
        lambda: ("LPOP", key()),
        lambda: ("LMOVE", key(), key(), "LEFT", "RIGHT"),
        lambda: ("SADD", key(), small()),
        lambda: ("SREM", key(), small()),
        lambda: ("SMOVE", key(), key(), small()),
        lambda: ("SUNIONSTORE", key(), key(), key()),
        lambda: ("HSET", key(), small(), small()),
        lambda: ("HDEL", key(), small()),
        lambda: ("HINCRBY", key(), small(), 1),
        lambda: ("ZADD", key(), small(), small()),
        lambda: ("ZREM", key(), small()),
        lambda: ("ZPOPMIN", key()),
        lambda: ("XADD", key(), "*", "f", small()),
        lambda: ("XTRIM", key(), "MAXLEN", 1),
        lambda: ("DEL", key(), key()),
        lambda: ("RENAME", key(), key()),
        lambda: ("COPY", key(), key(), "REPLACE"),
        lambda: ("EXPIRE", key(), 100),
        lambda: ("PEXPIRE", key(), 1),
        lambda: ("PERSIST", key()),
        lambda: ("MOVE", key(), small()),
        lambda: ("EVAL", "redis.call('SET', KEYS[1], 1) redis.call('DEL', KEYS[1])", 1, key()),
        lambda: ("SELECT", small()),
        lambda: ("SORT", key(), "STORE", key()),
        lambda: ("PFADD", key(), small()),
        lambda: ("SETBIT", key(), small(), 1),
        lambda: ("GEOADD", key(), 13, 38, small()),
    ]
    done = 0
    sound = tells_databases(client)
    while done < count:
        many = source.choice([1, 1, 1, 10, 100])
        with client.pipeline(transaction=source.random() < 0.3 and sound) as pipeline:
            for _ in range(many):
                pipeline.execute_command(*source.choice(commands)())
            pipeline.execute(raise_on_error=False)
        done += many
        yield


@pytest.mark.parametrize(
    ("family", "outbox", "seed"),
    [
        *((family, "off", seed) for family in SOME for seed in (1, 2)),
        *((family, mode, 3) for family in ALL for mode in modes(family)),
    ],
)
def test_messages_are_what_redis_itself_notifies(
    family: str,
    outbox: str,
    seed: int,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    server = start_redis(family, arguments_for(broker, mailbox), NOTIFY)
    witness = Witness(server)
    source = random.Random(seed)
    # One connection, so that SELECT means something.
    client = server.client(single_connection_client=True)
    for _ in random_commands(client, source, 8000):
        pass
    if outbox != "off":  # so many events again that are read from the list
        client.execute_command("KEYSPACEAMQP.DISCONNECT")
        for _ in random_commands(client, source, 8000):
            pass
        client.execute_command("KEYSPACEAMQP.CONNECT")
    client.execute_command("SELECT", 0)
    # Keys with a short life: their expiry is an event too.
    wait_for(lambda: client.info("keyspace") and _no_short_lives(client), 30)
    expected = witness.events(client)
    if outbox != "off":
        # What had no confirm at the DISCONNECT came again.
        settled(client, fallback_length=0, queue_length=0, in_flight=0, outbox_missed=0)
    messages = once(mailbox.receive(len(expected) if outbox == "off" else None))
    assert [_comparable(family, *message.event) for message in messages] == [
        _comparable(family, *event) for event in expected
    ]
    assert len(expected) > 3000
    numbers = settled(client, confirmed=len(expected), dropped=0)
    assert numbers["events_seen"] == numbers["events_matched"] == len(expected)
    assert mailbox.count() == 0
    ids = {message.properties.message_id for message in messages}
    assert len(ids) == len(messages)


def _comparable(family: str, db: int, name: bytes, key: bytes) -> tuple[int | None, bytes, bytes]:
    """Return an event, without its database if the server may give modules a wrong one: that of the
    client for MOVE and COPY within MULTI, on Valkey 9.1."""
    unsure = name in (b"move_to", b"copy_to", b"expired") and at_least(family, valkey="9.1")
    return None if unsure else db, name, key


def _no_short_lives(client: redis.Redis) -> bool:
    """True if all keys that expire within a second are gone."""
    for db in range(6):
        client.execute_command("SELECT", db)
        for key in client.scan_iter(count=1000):
            if 0 <= client.pttl(key) < 1000:
                return False
    client.execute_command("SELECT", 0)
    return True


def test_properties(broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis) -> None:
    server = start_redis(arguments=arguments_for(broker, mailbox, mode=1))
    client = server.client()
    before = int(time.time())
    client.set("a", 1)
    (first,) = mailbox.receive(1)
    client.execute_command("KEYSPACEAMQP.CONFIG", "SET", "delivery-mode", "2")
    client.set("b", 1)
    (second,) = mailbox.receive(1)
    assert first.body == b"0\nset\na"
    assert first.properties.content_type == "text/plain"
    assert first.properties.delivery_mode == 1
    assert second.properties.delivery_mode == 2
    assert before - 1 <= first.properties.timestamp <= time.time() + 1
    run, number = first.properties.message_id.split("-")
    assert second.properties.message_id == f"{run}-{int(number) + 1}"


def test_message_ids_differ_between_nodes_and_restarts(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    servers = [start_redis(arguments=arguments_for(broker, mailbox)) for _ in range(2)]
    for server in servers:
        server.client().set("a", 1)
    mailbox_first = mailbox.receive(2)
    servers[0].stop()
    servers[0].start()
    servers[0].client().set("a", 1)
    messages = [*mailbox_first, *mailbox.receive(1)]
    assert len({message.properties.message_id for message in messages}) == 3


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ("g", [b"expire", b"del"]),
        ("$", [b"set", b"incrby"]),
        ("l", [b"rpush", b"lpop"]),
        ("s", [b"sadd"]),
        ("h", [b"hset"]),
        ("z", [b"zadd"]),
        ("t", [b"xadd"]),
        ("x", [b"expired"]),
        ("n", [b"new"] * 6),
        ("m", [b"keymiss"]),
        ("$x", [b"set", b"incrby", b"expired"]),
        (
            "A",
            [
                b"set",
                b"incrby",
                b"rpush",
                b"lpop",
                b"sadd",
                b"hset",
                b"zadd",
                b"xadd",
                b"expire",
                b"del",
                b"expired",
            ],
        ),
    ],
)
def test_classes(
    events: str,
    expected: list[bytes],
    family: str,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    server = start_redis(family, arguments_for(broker, mailbox, events))
    client = server.client()
    client.set("string", 1)
    client.incr("string")
    client.rpush("list", 1, 2)
    client.lpop("list")
    client.sadd("set", 1)
    client.hset("hash", "f", 1)
    client.zadd("zset", {"a": 1})
    client.xadd("stream", {"f": 1})
    client.get("missing")
    client.expire("string", 1000)
    client.delete("string")
    # The expiry comes last, in its own time.
    before = [name for name in expected if name != b"expired"]
    assert [m.event[1] for m in mailbox.receive(len(before))] == before
    if b"expired" in expected:
        client.sadd("short", 1)
        client.pexpire("short", 20)  # shorter: the command itself may delete it, as `del`
        wait_for(lambda: not client.exists("short"), 30)
        rest = mailbox.receive(1 if events != "A" else 3)
        assert rest[-1].event == (0, b"expired", b"short")
    settled(client, dropped=0, fallback_length=0)
    assert mailbox.count() == 0


def test_evictions(broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis) -> None:
    """The default classes: expired and evicted."""
    server = start_redis(
        arguments=arguments_for(broker, mailbox, "xe", size=-1),  # a list may be evicted too
        options=["maxmemory 8mb", "maxmemory-policy allkeys-random"],
    )
    client = server.client()
    for number in range(3000):
        client.set(f"k{number}", "x" * 5000)
    evicted = int(client.info("stats")["evicted_keys"])
    assert evicted > 0
    events = [message.event for message in mailbox.receive(evicted)]
    assert {event for _, event, _ in events} == {b"evicted"}
    assert len({key for _, _, key in events}) == evicted


def test_masks_decide(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    arguments = arguments_for(broker, mailbox, masks=("^user:.*$", "x y", "\\n"))
    server = start_redis(family, arguments)
    client = server.client()
    for key in ["user:1", "a user:", "axb", "a x y b", "user:\n", "\\n"]:
        client.set(key, 1)
    assert [m.event[2] for m in mailbox.receive(4)] == [b"user:1", b"a x y b", b"user:\n", b"\\n"]
    numbers = settled(client, confirmed=4)
    assert (numbers["events_seen"], numbers["events_matched"]) == (6, 4)


def test_masks_that_exclude(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """From the load's arguments, the parameter (a reload of redis.conf among them) and
    KEYMASK."""
    server = start_redis(arguments=arguments_for(broker, mailbox, masks=("!^tmp:", "^!", "^a")))
    client = server.client()
    for key in ("a", "!b", "tmp:1", "c"):
        client.set(key, 1)
    client.config_set("keyspaceamqp.masks", "\\x21^tmp:")
    for key in ("tmp:2", "d"):
        client.set(key, 1)
    client.config_rewrite()
    settled(client, confirmed=3)
    server.stop()
    server.start()
    client = server.client()
    keymask = functools.partial(client.execute_command, "KEYSPACEAMQP.KEYMASK")
    assert keymask("LIST") == [b"!^tmp:"]
    for key in ("tmp:3", "e"):
        client.set(key, 1)
    settled(client, confirmed=1)
    assert keymask("ADD", "!!", "^!f") == 3
    assert keymask("TEST", "!f", "WHY") == [0, b"mask !! excludes it"]
    assert keymask("DEL", "!!") == 2
    assert keymask("TEST", "!f", "WHY") == [1, b"mask ^!f matches it"]
    for key in ("!f", "g"):
        client.set(key, 1)
    settled(client, confirmed=2)
    assert [m.event[2] for m in mailbox.receive()] == [b"a", b"!b", b"d", b"e", b"!f"]


def test_a_sign_that_excludes_nothing_is_refused(start_redis: StartRedis) -> None:
    server = start_redis(arguments=None)
    client = server.client()
    given = [*map(str, arguments_for(free_port())), "^a", "!"]
    with pytest.raises(redis.exceptions.ResponseError):
        client.execute_command("MODULE", "LOAD", str(MODULE), *given)
    assert "argument 12, masks: '!' is not accepted; give !^tmp: to exclude" in server.log()
    client.execute_command("MODULE", "LOAD", str(MODULE))
    with pytest.raises(redis.exceptions.ResponseError, match="nothing stands behind a !"):
        client.config_set("keyspaceamqp.masks", "^a \\x21")
    assert client.execute_command("KEYSPACEAMQP.KEYMASK", "LIST") == [b"ALL"]


def test_a_change_of_masks_is_in_order_with_events(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """New masks apply only to events behind the change, however full the queue is."""
    server = start_redis(arguments=arguments_for(broker, mailbox))
    client = server.client()
    expected = []
    for number in range(20):
        with client.pipeline(transaction=False) as pipeline:
            for index in range(500):
                pipeline.set(f"{number}:{index}", 1)
            pipeline.execute()
        expected += [f"{number}:{index}".encode() for index in range(500) if number % 2 == 0]
        client.config_set("keyspaceamqp.masks", "" if number % 2 == 0 else "ALL")
    assert [message.event[2] for message in mailbox.receive(len(expected))] == expected
    settled(client, confirmed=len(expected))
    assert mailbox.count() == 0


def test_hostile_masks_stall_nothing(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    masks = tuple(f"^{'a*' * 6}{letter}$" for letter in "bcdefghijklmnopqrstu")
    server = start_redis(arguments=arguments_for(broker, mailbox, masks=masks))
    client = server.client()
    for _ in range(20):
        client.set("a" * 10_000, 1)
    client.set("aaab", 1)
    assert mailbox.receive(1)[0].event[2] == b"aaab"
    # The worker answers, so it has finished compiling the masks.
    assert client.execute_command("KEYSPACEAMQP.KEYMASK", "TEST", "a" * 10_000) == 0
    settled(client, events_seen=21, events_matched=1)


def test_connects_lazily(broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis) -> None:
    server = start_redis(arguments=arguments_for(broker, mailbox, masks=("^forwarded",)))
    client = server.client()
    client.set("other", 1)
    wait_for(lambda: stats(client)["queue_length"] == 0 and stats(client)["events_seen"] == 1, 30)
    assert stats(client)["state"] == "idle"
    client.set("forwarded", 1)
    mailbox.receive(1)
    assert stats(client)["state"] == "connected"


def test_a_million_bytes_of_key(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    server = start_redis(arguments=arguments_for(broker, mailbox))
    key = bytes(range(256)) * 4096
    server.client().set(key, 1)
    assert mailbox.receive(1)[0].event == (0, b"set", key)


def test_nothing_of_a_replica_and_nothing_of_loading(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Rule 14: a replica and the loading of a data set publish nothing, a promoted replica does."""
    primary = start_redis(family, arguments_for(broker, mailbox), ["appendonly yes"])
    replica = start_redis(
        family, arguments_for(broker, mailbox), [f"replicaof 127.0.0.1 {primary.port}"]
    )
    client, other = primary.client(), replica.client()
    linked(other)
    for number in range(100):
        client.set(f"k{number}", number)
    assert client.wait(1, 10_000) == 1
    assert [m.event[2] for m in mailbox.receive(100)] == [b"k%d" % n for n in range(100)]
    settled(client, fallback_length=0, queue_length=0)  # a list would be loaded, and sent again
    assert stats(other)["state"] == "replica"
    assert stats(other)["events_seen"] == 0
    client.execute_command("DEBUG", "RELOAD")
    client.execute_command("DEBUG", "LOADAOF")
    primary.stop()
    primary.start()
    wait_for(lambda: stats(client)["state"] == "idle", 30)
    assert stats(client)["events_seen"] == 0
    other.replicaof("NO", "ONE")
    other.set("promoted", 1)
    assert [m.event[2] for m in mailbox.receive(1)] == [b"promoted"]
    other.execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
    wait_for(lambda: stats(other)["state"] == "replica", 30)
    settled(other)
    assert mailbox.count() == 0
