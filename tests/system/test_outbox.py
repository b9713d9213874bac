"""The outbox in use: when an event is in the list, how the mode is set and changed, and what stands
in its way."""

from __future__ import annotations

import collections
import pathlib
import re

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, ServerError, free_port, wait_for
from keyspace_amqp.fallback import to_element
from keyspace_amqp.message import Event
from keyspace_amqp.tables.keys import KEY
from tests.fix_faults import Background, Load, Notifications, delivered, start_faulty
from tests.fix_outbox import (
    ATOMIC,
    EVERY_OUTBOX,
    SOME_OUTBOX,
    Clients,
    Told,
    check_same,
    has_atomic,
    keys_there,
    lengths_within,
    listed,
    modes,
    of_messages,
    replayed,
    without_events,
)
from tests.fix_servers import (
    MODULE,
    Mailbox,
    StartRedis,
    arguments_for,
    list_length,
    once,
    outbox_options,
    settled,
    stats,
)
from tests.servers import ALL, SOME

# Of `atomic`, with what to use instead.
REFUSAL = r"outbox: 'atomic' is not accepted: .*; give reply or off"
WITHOUT_ATOMIC = [family for family in ALL if not has_atomic(family)]


def write(client: redis.Redis, prefix: str, count: int) -> list[bytes]:
    """SETs so many numbered keys, one by one and in pipelines; the keys."""
    keys = [b"%b:%d" % (prefix.encode(), number) for number in range(count)]
    for key in keys[:5]:
        client.set(key, 1)
    with client.pipeline(transaction=False) as pipeline:
        for key in keys[5:]:
            pipeline.set(key, 1)
        pipeline.execute()
    return keys


def keys_of(told: list[Told]) -> list[bytes]:
    return [event.key for event in told]


def is_open(client: redis.Redis) -> bool:
    """True if events go to the list at once."""
    return not stats(client)["outbox"].endswith("(waits)")


# ---- when events are in the list ---------------------------------------------------


@EVERY_OUTBOX
def test_the_event_is_there_before_the_answer(
    family: str, outbox: str, start_redis: StartRedis
) -> None:
    """From the first write on, and whatever the command is. All events of one turn of the event
    loop are there with the first of its answers."""
    client = start_redis(family, arguments_for(free_port(), events="A")).client()
    lengths = []
    for number in range(50):
        client.set(f"one:{number}", 1)
        lengths.append(list_length(client))
    assert lengths == list(range(1, 51))
    with client.pipeline(transaction=True) as pipeline:
        pipeline.set("a", 1).rpush("b", 1).llen(KEY).execute()
    assert list_length(client) == 52
    client.eval("for n = 1, 30 do redis.call('SET', 'script:' .. n, 1) end", 0)
    assert list_length(client) == 82
    client.mset({"c": 1, "d": 1})
    client.execute_command("SELECT", 5)
    client.set("e", 1)
    client.execute_command("SELECT", 0)
    client.delete("c", "missing")
    client.get("missing")
    assert list_length(client) == 86
    told = listed(client)
    assert told[-4:] == [
        Told(told[-4].message_id, 0, b"set", b"c"),
        Told(told[-3].message_id, 0, b"set", b"d"),
        Told(told[-2].message_id, 5, b"set", b"e"),
        Told(told[-1].message_id, 0, b"del", b"c"),
    ]
    assert len({event.message_id for event in told}) == 86
    numbers = settled(client, fallback_length=86, queue_length=0, events_matched=86, dropped=0)
    assert (numbers["outbox"], numbers["outbox_missed"], numbers["events_seen"]) == (outbox, 0, 86)


@ATOMIC
def test_the_event_is_there_with_the_write(family: str, start_redis: StartRedis) -> None:
    """`atomic`: for the next command of the same pipeline, and in one transaction for others."""
    options = ["appendonly yes", "appendfsync always"]
    server = start_redis(family, arguments_for(free_port(), events="$"), options)
    client = server.client()
    with client.pipeline(transaction=False) as pipeline:
        pipeline.set("a", 1).llen(KEY).mset({"b": 1, "c": 1}).llen(KEY)
        assert pipeline.execute()[1::2] == [1, 3]
    with client.pipeline(transaction=True) as pipeline:
        pipeline.set("d", 1).execute_command("SELECT", 2)
        pipeline.set("e", 1).execute_command("SELECT", 0)
        pipeline.execute()
    client.set("f", 1)
    (path,) = (server.folder / "appendonlydir").glob("*.incr.aof")
    words = path.read_bytes().upper().split(b"\r\n")
    found = [word for word in words if word in (b"MULTI", b"SET", b"MSET", b"RPUSH", b"EXEC")]
    assert b" ".join(found).decode() == (
        "MULTI SET RPUSH EXEC MULTI MSET RPUSH EXEC MULTI SET SET RPUSH EXEC MULTI SET RPUSH EXEC"
    )


@pytest.mark.parametrize("family", [family for family in ALL if has_atomic(family)])
def test_replies_before_the_end_of_a_turn(family: str, start_redis: StartRedis) -> None:
    """With I/O threads, replies may leave before the turn ends: then `reply` puts each event into
    the list at once. Without them, it puts all events of a turn there together. Newer servers can
    change the number of threads while they run."""
    client = start_redis(
        family, arguments_for(free_port(), events="$"), ["keyspaceamqp.outbox reply"]
    ).client()
    wait_for(lambda: is_open(client), 30)
    wait_for(lambda: lengths_within(client) == [0, 0], 10)
    try:
        client.config_set("io-threads", 3)
    except redis.exceptions.ResponseError:
        options = ["keyspaceamqp.outbox reply", "io-threads 3"]
        client = start_redis(family, arguments_for(free_port(), events="$"), options).client()
        wait_for(lambda: is_open(client), 30)
        assert lengths_within(client) == [1, 2]
        return
    assert lengths_within(client) == [1, 2]
    client.config_set("io-threads", 1)
    wait_for(lambda: lengths_within(client) == [0, 0], 10)


@SOME_OUTBOX
def test_a_steady_flow(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The broker is there, and many clients write. Events arrive in the order of the outbox, and
    hardly any arrives twice; the list ends empty, and nothing was missed."""
    server = start_redis(family, arguments_for(broker, mailbox, "A"))
    client = server.client()
    with Clients(server, "flow") as clients:
        clients.more(5000)
    # KEYS does not show keys that are about to expire.
    wait_for(lambda: client.info("keyspace")["db0"]["expires"] == 0, 30)
    numbers = settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    assert (numbers["outbox"], numbers["outbox_missed"]) == (outbox, 0)
    assert numbers["fallback_found"] == 0
    messages = mailbox.receive()
    told = of_messages(messages)
    assert not without_events(clients.answered, told)
    assert replayed(told) == keys_there(client)
    order = [int(event.message_id.rpartition("-")[2]) for event in told]
    assert order == list(range(1, len(told) + 1))
    assert numbers["reconnects"] or len(messages) == len(told)


@SOME_OUTBOX
def test_only_what_is_wanted(family: str, outbox: str, start_redis: StartRedis) -> None:
    """Masks, databases and classes decide before the list, and the module's own keys and pushes
    make no events."""
    server = start_redis(
        family,
        arguments_for(free_port(), events="$lx", masks=("^k", "^keyspaceamqp")),
        ["keyspaceamqp.databases 0"],
    )
    client = server.client(single_connection_client=True)
    with Notifications(server):
        for key in ("k:1", "other", "k:2"):
            client.set(key, 1)
        client.sadd("k:set", 1)
        client.execute_command("SELECT", 1)
        client.set("k:3", 1)
        client.execute_command("SELECT", 0)
        client.rpush("k:4", 1)
        client.rpush("keyspaceamqp:{else}:fallback", 1)
    assert keys_of(listed(client)) == [b"k:1", b"k:2", b"k:4"]
    numbers = settled(client, fallback_length=3, events_matched=3, outbox_missed=0)
    # Without those of the module's own pushes: they would never end.
    assert numbers["events_seen"] < 20


# ---- setting the mode ----------------------------------------------------------------


@pytest.mark.parametrize("family", WITHOUT_ATOMIC)
def test_atomic_is_refused(family: str, start_redis: StartRedis) -> None:
    """At load and by CONFIG SET, with what to use instead."""
    server = start_redis(
        family, arguments_for(free_port()), ["keyspaceamqp.outbox atomic"], start=False
    )
    with pytest.raises(ServerError):
        server.start()
    assert re.search(REFUSAL, server.log())
    client = start_redis(family, None).client()
    loadex = ["MODULE", "LOADEX", str(MODULE), "CONFIG", "keyspaceamqp.outbox"]
    with pytest.raises(redis.exceptions.ResponseError):
        client.execute_command(*loadex, "atomic")
    client.execute_command(*loadex, "reply")
    with pytest.raises(redis.exceptions.ResponseError, match=REFUSAL):
        client.config_set("keyspaceamqp.outbox", "atomic")
    assert client.config_get("keyspaceamqp.outbox") == {"keyspaceamqp.outbox": "reply"}
    settled(client, outbox="reply")
    client.config_set("keyspaceamqp.outbox", "off")
    settled(client, outbox="off")


@pytest.mark.parametrize("family", SOME)
def test_other_values_are_refused(family: str, start_redis: StartRedis) -> None:
    client = start_redis(family).client()
    for wrong in ("", "on", "OFF ", "atomic2"):
        with pytest.raises(redis.exceptions.ResponseError, match=r"off.*reply"):
            client.config_set("keyspaceamqp.outbox", wrong)
    settled(client, outbox="off")


@pytest.mark.parametrize("there", [True, False], ids=["broker up", "broker away"])
@pytest.mark.parametrize("family", SOME)
def test_changed_under_load(
    family: str, there: bool, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """From each mode to each other one: nothing is lost or there twice, and the order is that of
    the writes."""
    port = broker.port if there else free_port()
    server = start_redis(family, arguments_for(port, mailbox, "$"))
    client = server.client()
    ways = ["reply", "atomic", "off", "atomic", "reply", "off"]
    with Load(server, batch=20, pause=0.002) as load:
        for mode in [mode for mode in ways if mode in ("off", *modes(family))] * 2:
            load.more(300)
            client.config_set("keyspaceamqp.outbox", mode)
            # Some changes come while the one before is still under way.
            if mode != "reply":
                wait_for(lambda m=mode: stats(client)["outbox"] == m, 30)
        load.more(300)
    client.config_set("keyspaceamqp.port", broker.port)
    delivered(client, mailbox, load.keys, outbox="off")


@SOME_OUTBOX
def test_a_save_while_it_opens(family: str, outbox: str, start_redis: StartRedis) -> None:
    """While the outbox opens, events are collected for a moment. A save finds those of all writes
    before it, too, at whatever moment it comes."""
    server = start_redis(family, arguments_for(free_port(), events="$"), ["save ''"])
    for size in (0, 1, 20, 200, 1000):
        client = server.client()
        with Load(server, batch=20) as load:
            load.more(100)
            for count in (0, size):
                with client.pipeline(transaction=False) as pipeline:
                    pipeline.config_set("keyspaceamqp.outbox", "off")
                    pipeline.config_set("keyspaceamqp.outbox", outbox)
                    pipeline.execute()
                # So the save comes sooner or later.
                write(client, f"save:{size}:{count}", 5 + count)
                client.save()
        server.kill()
        server.start()
        check_same(server.client(), lambda: listed(server.client()))


@SOME_OUTBOX
def test_unloaded_and_loaded_under_load(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """What is captured while the module is loaded arrives once, in order. The last load has the
    broker."""
    server = start_redis(family, None)
    client = server.client()
    ends = [*[free_port()] * 3, broker.port]
    loads = []
    with Load(server, batch=20, pause=0.002) as load:
        for port in ends:
            arguments = map(str, arguments_for(port, mailbox, "$"))
            config = ["CONFIG", "keyspaceamqp.outbox", outbox]
            with client.pipeline(transaction=True) as pipeline:
                pipeline.execute_command(
                    "MODULE", "LOADEX", str(MODULE), *config, "ARGS", *arguments
                )
                pipeline.set(f"begin:{len(loads)}", 1)
                pipeline.execute()
            load.more(500)
            with client.pipeline(transaction=False) as pipeline:
                pipeline.set(f"end:{len(loads)}", 1)
                if port != broker.port:
                    pipeline.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
                pipeline.execute()
            loads.append(port)
            load.more(100)
    settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    arrived = [message.event[2] for message in once(mailbox.receive())]
    assert len(set(arrived)) == len(arrived)
    numbers = [int(key[5:]) for key in arrived if key.startswith(b"load:")]
    assert numbers == sorted(numbers)
    for number in range(len(ends)):
        begin, end = arrived.index(b"begin:%d" % number), arrived.index(b"end:%d" % number)
        between = [int(key[5:]) for key in arrived[begin + 1 : end]]
        assert between == list(range(between[0], between[0] + len(between)))


@ATOMIC
def test_an_unload_in_a_transaction_that_writes(family: str, start_redis: StartRedis) -> None:
    """The server would call the module at the end of the transaction, so the unload is refused, and
    the event is where it belongs."""
    server = start_redis(family, arguments_for(free_port(), events="$"))
    client = server.client()
    with client.pipeline(transaction=True) as pipeline:
        pipeline.set("a", 1).execute_command("MODULE", "UNLOAD", "keyspaceamqp")
        _, refusal = pipeline.execute(raise_on_error=False)
    assert isinstance(refusal, redis.exceptions.ResponseError)
    assert "not unloaded: unload the module outside of a transaction that writes" in server.log()
    assert keys_of(listed(client)) == [b"a"]
    client.set("b", 1)
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    assert keys_of(listed(client)) == [b"a", b"b"]


# ---- what stands in the way -----------------------------------------------------------


class Misses(Background):
    """A client that reads keys that do not exist, in a `with`. `keys`: those of its answers."""

    def __init__(self, server: RedisServer) -> None:
        self.keys: list[bytes] = []
        self._server = server
        super().__init__()

    def _run(self) -> None:
        with self._server.client() as client:
            while not self._stop.wait(0.002):
                key = b"miss:%d" % len(self.keys)
                client.get(key)
                self.keys.append(key)


@EVERY_OUTBOX
def test_reads_while_writes_are_paused(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Class m: events come from reads, which go on under CLIENT PAUSE WRITE. A push would abort the
    server. They go through memory, are counted, and arrive in order."""
    server = start_redis(family, arguments_for(free_port(), mailbox, "$m"))
    client = server.client()
    with Misses(server) as misses, Load(server, batch=5, pause=0.002) as load:
        for _ in range(3):
            wait_for(lambda: is_open(client), 30)
            load.more(100)
            missed = stats(client)["outbox_missed"]
            client.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
            try:
                before = len(misses.keys)
                wait_for(lambda n=before: len(misses.keys) >= n + 100, 30)
                # The worker may try to open it again, and events then wait for a second.
                wait_for(lambda n=missed: stats(client)["outbox_missed"] >= n + 100, 30)
                assert stats(client)["outbox"] == f"{outbox} (waits)"
            finally:
                client.client_unpause()
        wait_for(lambda: is_open(client), 30)
        load.more(100)
    settled(client, queue_length=0, dropped=0, outbox=outbox)
    client.config_set("keyspaceamqp.port", broker.port)
    settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    arrived = [message.event[2] for message in once(mailbox.receive())]
    assert [key for key in arrived if key.startswith(b"miss")] == misses.keys
    assert [key for key in arrived if key.startswith(b"load")] == load.keys


@EVERY_OUTBOX
def test_a_key_of_another_type(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Under the list's name. Events wait in memory; when it is gone, they go to the list, before
    newer ones."""
    client = start_redis(family, arguments_for(free_port(), mailbox, "$")).client()
    expected = write(client, "before", 20)
    client.delete(KEY)
    client.set(KEY, "in the way")
    lost = len(expected)
    waiting = write(client, "waits", 100)
    wait_for(lambda: "WRONGTYPE" in stats(client)["last_error"], 30)
    numbers = settled(client, queue_length=100, fallback_length=0, outbox_missed=100)
    assert numbers["outbox"] == f"{outbox} (waits)"
    assert numbers["dropped_fallback_removed"] == lost
    client.delete(KEY)
    wait_for(lambda: is_open(client), 30)
    waiting += write(client, "after", 20)
    assert keys_of(listed(client)) == waiting
    client.config_set("keyspaceamqp.port", broker.port)
    numbers = delivered(client, mailbox, waiting, dropped=lost)
    assert numbers["outbox_missed"] == 100


@SOME_OUTBOX
def test_commands_while_it_is_open(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """PEEK, LEN, DRAIN and PURGE under load: what was not purged arrives once, in order."""
    server = start_redis(family, arguments_for(free_port(), mailbox, "$"))
    client = server.client()
    fallback = "KEYSPACEAMQP.FALLBACK"
    purged = 0
    with Load(server, batch=10, pause=0.002) as load:
        for _ in range(3):
            load.more(300)
            assert 0 < client.execute_command(fallback, "LEN") <= len(load.keys) + 10
            peeked = client.execute_command(fallback, "PEEK", 3)
            assert client.lrange(KEY, 0, 2) == peeked
            client.execute_command(fallback, "DRAIN")
            purged += client.execute_command(fallback, "PURGE")
        load.more(300)
    assert is_open(client)
    client.config_set("keyspaceamqp.port", broker.port)
    numbers = settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=purged)
    assert numbers["dropped_purged"] == purged > 300
    arrived = [message.event[2] for message in once(mailbox.receive())]
    assert len(arrived) == len(load.keys) - purged
    places = {key: place for place, key in enumerate(load.keys)}
    assert arrived == sorted(arrived, key=places.__getitem__)


@SOME_OUTBOX
def test_elements_of_somebody_else(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Pushed between those of the outbox: all are delivered, in the order of the list."""
    client = start_redis(family, arguments_for(broker, mailbox, "$")).client()
    for number in range(200):
        event = Event(f"somebody-{number}", 1000, 0, "$", b"set", b"theirs:%d" % number)
        with client.pipeline(transaction=number % 2 == 0) as pipeline:
            pipeline.set(f"ours:{number}", 1).rpush(KEY, to_element(event)).execute()
    settled(client, fallback_length=0, confirmed=400, fallback_found=200, dropped=0)
    arrived = [message.event[2] for message in once(mailbox.receive())]
    for owner in (b"ours", b"theirs"):
        theirs = [key for key in arrived if key.startswith(owner)]
        assert theirs == [b"%b:%d" % (owner, number) for number in range(200)]


@SOME_OUTBOX
def test_flushed_while_it_is_open(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """FLUSHALL takes what is in the list, and nothing that comes after it."""
    client = start_redis(family, arguments_for(free_port(), mailbox, "$")).client()
    for number in range(5):
        write(client, f"gone:{number}", 20)
        client.flushall()
        expected = write(client, f"kept:{number}", 20)
        assert keys_of(listed(client)) == expected
    numbers = settled(client, fallback_length=20, queue_length=0)
    assert numbers["dropped"] == numbers["dropped_fallback_flushed"] == 5 * 20 + 4 * 20
    client.config_set("keyspaceamqp.port", broker.port)
    delivered(client, mailbox, expected, dropped=180)


# Appended to worker/loop.py in a copy of the handler: while a file named `late` is in the server's
# directory, the worker takes no requests.
_LATE = """

import pathlib as _pathlib

def _take(self, _function=Requests.take):
    while _pathlib.Path("late").exists():
        time.sleep(0.01)
    _function(self)
Requests.take = _take
"""


def _expire(client: redis.Redis) -> None:
    client.pexpire(KEY, 20)
    wait_for(lambda: not client.exists(KEY), 10)


def _evict(client: redis.Redis) -> None:
    client.expire(KEY, 1000)  # the only key that `volatile-ttl` may evict
    client.config_set("maxmemory", 1)
    wait_for(lambda: not client.exists(KEY), 10)
    client.config_set("maxmemory", 0)


def _swap(client: redis.Redis) -> None:
    with client.pipeline(transaction=True) as pipeline:
        pipeline.swapdb(0, 1).execute_command("SELECT", 1)
        pipeline.flushdb().execute_command("SELECT", 0)
        pipeline.execute()


def _rename(client: redis.Redis) -> None:
    client.rename(KEY, "other")
    client.delete("other")


# How others take the list away, and the reason that is counted.
WAYS_TO_LOSE = [
    (redis.Redis.flushall, "flushed"),
    (redis.Redis.flushdb, "flushed"),
    (_swap, "flushed"),
    (_expire, "expired"),
    (_evict, "evicted"),
    (lambda client: client.delete(KEY), "removed"),
    (_rename, "removed"),
]


@SOME_OUTBOX
def test_losses_while_the_worker_is_late(
    family: str, outbox: str, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """It hears of all of them at once, and each is counted with its own reason."""
    options = [*outbox_options(outbox), "maxmemory-policy volatile-ttl"]
    # No event of the ways themselves: it would be lost with the next way.
    arguments = arguments_for(free_port(), events="$", masks=("^lost",))
    server = start_faulty(start_redis, family, tmp_path, _LATE, arguments, options)
    client = server.client()
    ways = [*WAYS_TO_LOSE, *reversed(WAYS_TO_LOSE), *WAYS_TO_LOSE[::2]]
    late = server.folder / "late"
    write(client, "lost:first", 3)
    # After that the worker has looked at the list: what is lost before has the last reason.
    wait_for(lambda: client.execute_command("KEYSPACEAMQP.FALLBACK", "PURGE") == 3, 30)
    late.touch()
    expected = collections.Counter(dropped_purged=3)
    for number, (take_away, reason) in enumerate(ways):
        count = 10 + number
        write(client, f"lost:{number}", count)
        assert list_length(client) == count
        take_away(client)
        assert list_length(client) == 0
        expected[f"dropped_fallback_{reason}"] += count
    late.unlink()
    settled(client, fallback_length=0, queue_length=0, dropped=expected.total(), **expected)


@SOME_OUTBOX
def test_a_replica_and_a_promotion(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """A replica has the primary's list, and pushes nothing itself; promoted, it does at once. A
    demoted node does not."""
    nodes = [start_redis(family, arguments_for(free_port(), mailbox, "$")) for _ in range(2)]
    old, new = (node.client() for node in nodes)
    new.replicaof("127.0.0.1", str(nodes[0].port))
    wait_for(lambda: new.info("replication")["master_link_status"] == "up", 30)
    expected = write(old, "old", 50)
    assert old.wait(1, 10_000) == 1
    wait_for(lambda: list_length(new) == 50, 30)
    new.replicaof("NO", "ONE")
    expected += write(new, "new", 50)
    wait_for(lambda: is_open(new), 30)
    settled(new, fallback_length=100, queue_length=0, dropped=0)
    expected += write(new, "newer", 50)
    assert keys_of(listed(new)) == expected
    old.replicaof("127.0.0.1", str(nodes[1].port))
    wait_for(lambda: stats(old)["state"] == "replica" and list_length(old) == 150, 30)
    new.config_set("keyspaceamqp.port", broker.port)
    delivered(new, mailbox, expected)
