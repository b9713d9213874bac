"""Snapshots, with real servers: each key has an event, and a consumer who applies all messages in
their order has a copy of the data at the end, whatever clients do meanwhile."""

from __future__ import annotations

import json
import pathlib
import random
import signal
import time

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tables.keys import KEY
from tests.fix_outbox import EVERY_OUTBOX, SOME_OUTBOX
from tests.fix_servers import (
    EVERY_FAMILY,
    MODULE,
    Mailbox,
    StartRedis,
    arguments_for,
    list_length,
    settled,
    stats,
)
from tests.fix_snapshot import (
    OPTIONS,
    Changes,
    copy_of,
    data_of,
    finished,
    no_time_to_live,
)
from tests.servers import at_least

START = "KEYSPACEAMQP.SNAPSHOT START"
# The part of the main thread's time that a snapshot may take, at most. Its steps take a twentieth,
# and the turns of the event loop around them, with the looks of the test, a hundredth. It was a
# ninth to a quarter without the pauses between steps, or without the limit of their time.
MOST_OF_REDIS = 0.09


@EVERY_FAMILY
def test_a_copy_of_data_that_changes(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    keeps_a_copy(family, broker, mailbox, start_redis)


@EVERY_OUTBOX
def test_a_copy_with_an_outbox(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    keeps_a_copy(family, broker, mailbox, start_redis)


def keeps_a_copy(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The data is from before the events; several databases; the tables of keys grow meanwhile."""
    server = start_redis(family, arguments_for(broker, mailbox), OPTIONS)
    client = server.client()
    rng = random.Random(family)
    client.execute_command("KEYSPACEAMQP.KEYMASK", "CLEAR")
    before = Changes(client, rng, 2000, databases=3)
    before.make(2000)
    client.select(0)
    client.mset({f"calm:{number}": "x" * 50 for number in range(500)})
    client.execute_command("KEYSPACEAMQP.KEYMASK", "SET", "ALL")
    with server.client() as writer:
        changes = Changes(writer, rng, 4000, databases=3)
        for _ in range(3):
            assert client.execute_command(f"{START} RATE 5000") > 500
            assert changes.run_until_done([client]) > 0
    no_time_to_live(client, 3)
    found = finished(client)
    settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    copy = copy_of(mailbox.receive())
    assert copy.data == data_of(client, 3)
    assert sum(copy.snapshots.values()) == found["snapshot_events"]
    calm = [copy.snapshots[0, b"calm:%d" % number] for number in range(500)]
    assert min(calm) >= 3


# ---- which keys, and what the messages say ------------------------------------------------


def test_masks_and_databases(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The masks of the snapshot limit those of the parameters further; `events` does not matter."""
    options = ["keyspaceamqp.databases 0,2", "keyspaceamqp.headers on"]
    server = start_redis(family, arguments_for(broker, mailbox, "x", masks=("a", "!z")), options)
    client = server.client()
    for db in range(4):
        client.select(db)
        client.mset(dict.fromkeys(["ax", "bx", "ay", "axz", "a\nx\0", b"\xffax"], "v"))
    client.rpush("ax:list", 1, 2, 3)
    client.select(2)
    client.rpush("ax:list", 1, 2, 3)
    assert client.execute_command(f"{START} MASK x !^ay !^axz") == 6 + 7
    found = finished(client)
    assert found["snapshot_looked"] in (13, 14)  # on a slow machine there is a list
    assert found["snapshot_events"] == 7
    settled(client, confirmed=7, events_matched=7, events_seen=7, dropped=0)
    messages = mailbox.receive(7)
    expected = [b"ax", b"a\nx\0", b"\xffax"]
    assert sorted(message.event for message in messages) == sorted(
        [(db, b"snapshot", key) for db in (0, 2) for key in expected]
        + [(2, b"snapshot", b"ax:list")]
    )
    assert {message.properties.headers["class"] for message in messages} == {"snapshot"}


def test_all_types_and_a_value_that_is_cut(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    options = ["keyspaceamqp.format json", "keyspaceamqp.value 5"]
    client = start_redis(family, arguments_for(broker, mailbox, "x"), options).client()
    client.set("s", "123456789 and more than that")
    client.rpush("l", 1, 2, 3)
    client.sadd("set", 1, 2)
    client.hset("h", mapping={"f": 1})
    client.zadd("z", {"a": 1})
    client.xadd("x", {"f": 1})
    client.execute_command(START)
    settled(client, confirmed=6)
    items = {item["key"]: item["value"] for item in map(json.loads, bodies(mailbox, 6))}
    assert {key: (value["type"], value["length"]) for key, value in items.items()} == {
        "s": ("string", 28), "l": ("list", 3), "set": ("set", 2), "h": ("hash", 1),
        "z": ("zset", 1), "x": ("stream", 1),
    }  # fmt: skip
    assert (items["s"]["data"], items["s"]["cut"], items["s"]["before"]) == ("12345", True, False)


def bodies(mailbox: Mailbox, count: int) -> list[bytes]:
    return [message.body for message in mailbox.receive(count)]


def test_large_values_come_one_after_the_other(
    family: str, own_broker: RabbitServer, start_redis: StartRedis
) -> None:
    """Never more of them wait than a part of the queue's limit, though the broker answers nothing.
    So nothing is dropped, and each event has room for its value."""
    mailbox = Mailbox(own_broker)
    options = ["keyspaceamqp.format json", "keyspaceamqp.value 1000000"]
    options += ["keyspaceamqp.queue-limit 4000000", "keyspaceamqp.fallback-size -1"]
    client = start_redis(family, arguments_for(own_broker, mailbox, "x"), options).client()
    for number in range(40):
        client.set(f"k:{number}", "v" * 900_000)
    client.execute_command(f"{START} MASK ^k:0$")
    finished(client)
    settled(client, confirmed=1)
    own_broker.signal(signal.SIGSTOP)
    client.execute_command(f"{START} MASK !^k:0$")
    wait_for(lambda: stats(client)["snapshot"] != "running", 30)
    assert stats(client)["snapshot"] == "waits (others are to be delivered first)"
    own_broker.signal(signal.SIGCONT)
    finished(client)
    settled(client, confirmed=40, dropped=0)
    assert min(map(len, bodies(mailbox, 40))) > 900_000


def test_the_list_is_not_in_it(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    client = start_redis(family, arguments_for(free_port(), mailbox, "$")).client()
    client.mset({f"k:{number}": 1 for number in range(10)})
    wait_for(lambda: list_length(client) == 10, 30)
    client.rpush("keyspaceamqp:{7}:refused", "x")  # of another node, say
    client.execute_command(START)
    wait_for(lambda: stats(client)["snapshot"].startswith("waits (the broker: "), 60)
    assert stats(client)["snapshot_events"] == 0
    client.execute_command("KEYSPACEAMQP.CONFIG", "SET", "port", broker.port)
    found = finished(client)
    assert (found["snapshot_looked"], found["snapshot_events"]) in ((12, 10), (11, 10))
    settled(client, confirmed=20)
    assert {message.event[2] for message in mailbox.receive(20)} == {
        b"k:%d" % number for number in range(10)
    }


@SOME_OUTBOX
def test_it_keeps_the_outbox_open(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """While writes are paused, it waits: else events of clients would go through memory, too."""
    client = start_redis(family, arguments_for(broker, mailbox, "x")).client()
    client.mset({f"k:{number}": "v" for number in range(60)})
    client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
    client.execute_command(START)
    finished(client, "waits (writes are paused)")
    client.execute_command("CLIENT", "UNPAUSE")
    finished(client)
    numbers = settled(client, confirmed=60, fallback_length=0, in_flight=0, dropped=0)
    assert (numbers["outbox"], numbers["outbox_missed"]) == (outbox, 0)


# ---- traces -------------------------------------------------------------------------------


@EVERY_FAMILY
@pytest.mark.parametrize("options", [OPTIONS, OPTIONS[:1]], ids=["values", "no values"])
def test_nobody_sees_the_looks(
    family: str, options: list[str], broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Keys are not touched: neither their times of access nor the server's statistics change, no
    event but ours is emitted, and a key that is past its time stays as it is (not on Redis 7.0:
    there it is removed, as by a SCAN, and its event is captured)."""
    server = start_redis(family, arguments_for(broker, mailbox, "Am"), options)
    client = server.client()
    client.config_set("maxmemory-policy", "allkeys-lfu")
    client.mset({f"k:{number}": number for number in range(200)})
    client.mset({f"short:{number}": f"text {number}" for number in range(200)})
    client.mset({f"long:{number}": "x" * 500 for number in range(200)})
    client.execute_command(START)  # reads the first values by a command
    finished(client)
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.set("late", 1, px=1)
    began = client.time()
    wait_for(lambda: client.time() > (began[0] + 1, began[1]), 30)
    names = ["k:7", "short:7", "long:7"]
    frequencies = [client.object("freq", name) for name in names]
    settled(client, queue_length=0, in_flight=0, fallback_length=0)
    mailbox.receive()

    def seen() -> list[int]:
        stats = client.info("stats")
        # On a slow machine events may go through the list. To read it is a hit.
        reads = client.info("commandstats").get("cmdstat_lrange", {}).get("calls", 0)
        hits = stats["keyspace_hits"] - reads
        return [hits, stats["keyspace_misses"], stats["expired_keys"]]

    before = seen()
    commands = client.info("commandstats").get("cmdstat_getex")
    client.execute_command(START)
    found = finished(client)
    settled(client, queue_length=0, in_flight=0, fallback_length=0)
    assert client.info("commandstats").get("cmdstat_getex") == commands
    after = seen()
    items = [json.loads(message.body) for message in mailbox.receive()]
    stays = family != "redis-7.0" or at_least(family, redis="7.2")
    if stays:
        assert after == before
    assert [client.object("freq", name) for name in names] <= frequencies
    assert found["snapshot_looked"] in (601, 602)  # on a slow machine there is a list
    assert {item["key"] for item in items if item["event"] == "snapshot"} == {
        f"{kind}:{number}" for kind in ("k", "short", "long") for number in range(200)
    }
    others = [(item["event"], item["key"]) for item in items if item["event"] != "snapshot"]
    assert others == ([] if stays else [("expired", "late")])


def processor_time(server: RedisServer) -> float:
    """Return the seconds that the main thread has run."""
    path = pathlib.Path(f"/proc/{server.pid}/task/{server.pid}/schedstat")
    return int(path.read_text().split()[0]) / 1e9


def test_redis_does_not_notice(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """A snapshot at the highest rate takes a small part of the time of Redis' main thread while it
    publishes. The steps set its pace: only one key in a hundred has an event. A busy machine
    makes the part smaller."""
    server = start_redis(family, arguments_for(broker, mailbox, "x"))
    client = server.client()
    client.execute_command("DEBUG", "POPULATE", 100_000, "key", 10)
    worked, began = processor_time(server), time.monotonic()
    assert client.execute_command(f"{START} RATE 1000000 MASK 77$") == 100_000
    found = finished(client)
    part = (processor_time(server) - worked) / (time.monotonic() - began)
    assert found["snapshot_looked"] >= 100_000
    assert found["snapshot_events"] == 1000
    assert part < MOST_OF_REDIS


# ---- ends -----------------------------------------------------------------------------------


def test_its_ends(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """A snapshot is not taken up again, and another one can be started after each end."""
    server = start_redis(family, arguments_for(broker, mailbox, "x"), ["save 1000 1000000"])
    client = server.client()

    def begin() -> None:
        client.flushall()
        client.mset({f"k:{number}": 1 for number in range(1000)})
        assert client.execute_command(f"{START} RATE 100") in (1000, 1001)  # perhaps a list
        wait_for(lambda: stats(client)["snapshot_events"] > 0, 30)

    begin()
    with pytest.raises(redis.ResponseError, match="is under way; SNAPSHOT STOP ends it"):
        client.execute_command(START)
    assert client.execute_command("KEYSPACEAMQP.SNAPSHOT STOP") == 1
    assert client.execute_command("KEYSPACEAMQP.SNAPSHOT STOP") == 0
    found = finished(client, "stopped")
    assert 0 < found["snapshot_looked"] < 1000
    begin()
    client.execute_command("SWAPDB", 0, 1)
    finished(client, "ended (databases were exchanged by SWAPDB)")
    begin()
    client.flushall()  # there is nothing left to look at
    assert finished(client)["snapshot_looked"] < 1000
    begin()
    client.execute_command("KEYSPACEAMQP.DISCONNECT")
    wait_for(lambda: stats(client)["snapshot"] == "waits (the broker: disconnected)", 30)
    client.execute_command("KEYSPACEAMQP.CONNECT")
    finished(client)
    begin()
    client.execute_command("REPLICAOF", "127.0.0.1", free_port())
    finished(client, "ended (this server became a replica, or has loaded a data set)")
    with pytest.raises(redis.exceptions.ReadOnlyError, match="is a replica"):
        client.execute_command(START)
    client.execute_command("REPLICAOF", "NO", "ONE")
    begin()
    client.execute_command("DEBUG", "RELOAD")
    finished(client, "ended (this server became a replica, or has loaded a data set)")
    begin()
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    client.execute_command("MODULE", "LOAD", str(MODULE))
    assert (stats(client)["snapshot"], stats(client)["snapshot_keys"]) == ("none", 0)


def test_a_refused_mask(family: str, start_redis: StartRedis) -> None:
    client = start_redis(family, arguments_for(free_port())).client()
    with pytest.raises(redis.ResponseError, match="masks: "):
        client.execute_command(START, "MASK", "x" * 3_000_000)
    wait_for(lambda: stats(client)["snapshot"] == "none", 30)
    assert client.exists(KEY) == 0
