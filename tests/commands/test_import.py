"""FALLBACK IMPORT: the list of the older C module is taken over, whole and in order."""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp import commands
from keyspace_amqp.cluster.slots import slot_of
from keyspace_amqp.commands.legacy import from_legacy
from keyspace_amqp.demo.servers import RabbitServer, free_port, wait_for
from keyspace_amqp.fallback import from_element, to_element
from keyspace_amqp.message import Event, body
from keyspace_amqp.tables.events import CLASS_LETTERS
from keyspace_amqp.tables.keys import KEY
from tests.commands.handler import FakeHandler, Run, refused
from tests.commands.test_live_commands import error, run
from tests.fix_cluster import StartCluster
from tests.fix_faults import Load, Probe, delivered
from tests.fix_servers import MODULE, Mailbox, StartRedis, arguments_for, list_length, once, settled
from tests.pure.resp import to_resp

OLD = "REDIS_MODULE-key_evt_amqp-fallback_storage"


def put(client: redis.Redis, elements: Sequence[bytes], key: str = OLD) -> None:
    for at in range(0, len(elements), 5000):
        client.rpush(key, *elements[at : at + 5000])


def numbered(count: int, first: int = 0) -> list[bytes]:
    return [b"0\nexpired\nold:%d" % number for number in range(first, first + count)]


def take_over(client: redis.Redis, key: str = OLD) -> int:
    """Repeats the command until nothing is left, as users have to."""
    total = 0
    while taken := run(client, f"FALLBACK IMPORT {key}"):
        total += taken
    return total


def bodies(elements: Sequence[bytes]) -> list[bytes]:
    """The bodies of messages made of elements of our list."""
    events = [from_element(element) for element in elements]
    assert None not in events
    return [body(event) for event in events if event is not None]


# ---- elements --------------------------------------------------------------------


@given(
    st.integers(0, 2**31 - 1),
    st.binary(min_size=1, max_size=20).filter(lambda name: b"\n" not in name),
    st.binary(max_size=20),
)
@example(0, b"set", b"a\nb\n\n")
def test_an_element_is_the_body_of_its_message(db: int, name: bytes, key: bytes) -> None:
    element = b"%d\n%b\n%b" % (db, name, key)
    event = from_legacy(element, "id-1", 17)
    assert event is not None
    assert (event.db, event.name, event.key) == (db, name, key)
    assert body(event) == element
    assert from_element(to_element(event)) == event


@pytest.mark.parametrize(
    "element",
    [
        b"", b"0", b"0\nset", b"\nset\nk", b"x\nset\nk", b"-1\nset\nk", b"+1\nset\nk",
        b" 1\nset\nk", b"1 \nset\nk", b"0\n\nk", b"2147483648\nset\nk", b"9" * 5000 + b"\nset\nk",
        "\u0661\nset\nk".encode(), to_element(Event("t-1", 1, 0, "g", b"del", b"k")),
    ],
    ids=lambda element: repr(element[:20]),
)  # fmt: skip
def test_no_element(element: bytes) -> None:
    assert from_legacy(element, "id-1", 17) is None


def test_the_class_comes_from_the_name() -> None:
    def letter(name: bytes) -> str:
        event = from_legacy(b"0\n%b\nk" % name, "id-1", 17)
        assert event is not None
        return event.letter

    names = [b"expired", b"evicted", b"set", b"del", b"hset", b"zincr", b"xadd", b"SET", b"ours"]
    assert "".join(map(letter, names)) == "xe$ghzt??"


def test_classes_are_those_of_redis(family: str, start_redis: StartRedis) -> None:
    """For all events of a few commands, compared with the classes in which Redis notifies."""
    client = start_redis(family, arguments_for(free_port(), events="Anm")).client()
    for line in (
        "SET a 1 PX 1", "INCR b", "APPEND b 1", "SETRANGE b 0 1", "RENAME b c", "COPY c d",
        "EXPIRE c 100", "PERSIST c", "DEL c", "GET none", "RPUSH l 1 2 3", "LPUSH l 1", "LPOP l",
        "RPOP l", "LTRIM l 0 1", "LSET l 0 x", "SADD s 1 2", "SREM s 1", "SUNIONSTORE t s",
        "HSET h a 1", "HINCRBY h a 1", "HDEL h a", "ZADD z 1 a 2 b", "ZINCRBY z 1 a", "ZPOPMIN z",
        "ZUNIONSTORE y 1 z", "XADD x * a 1", "XGROUP CREATE x g $", "XTRIM x MAXLEN 0", "PFADD p 1",
        "SETBIT q 1 1", "INCRBYFLOAT b 1.5", "GEOADD geo 1 1 m", "SORT l ALPHA STORE m",
    ):  # fmt: skip
        client.execute_command(*line.split())
    wait_for(lambda: client.exists("a") == 0, 30)
    settled(client, queue_length=0)
    seen = {}
    for element in client.lrange(KEY, 0, -1):
        event = from_element(element)
        assert event is not None
        seen[event.name] = event.letter
        assert event.letter in CLASS_LETTERS
    assert len(seen) > 35
    derived = {name: from_legacy(b"0\n%b\nk" % name, "i-1", 1) for name in seen}
    assert {name: event.letter for name, event in derived.items() if event} == seen


# ---- the command's way, without servers ---------------------------------------------

FALLBACK = b"keyspaceamqp.fallback"


def looked(*elements: bytes, length: int | None = None, listed: int = 0) -> Any:
    """The result of a look at the old list and the length of ours."""
    count = len(elements) if length is None else length
    return [(to_resp(list(elements)), 0), (to_resp(count), 0), (to_resp(listed), 0)]


def moved(*elements: bytes, length: int) -> Any:
    return [(to_resp(list(elements)), 0), (to_resp(length), 0), (b"+OK\r\n", 0)]


def test_the_job_takes_away_what_it_has_put() -> None:
    handler, elements = FakeHandler(), numbered(2)
    results = [looked(*elements), moved(*elements, length=7), looked()]
    job = Run(handler, FALLBACK, b"IMPORT", b"old", results=results)
    expect, push, cut = job.jobs[1].commands
    assert (expect.name, expect.arguments) == ("LRANGE", [b"old", b"0", b"1"])
    assert expect.expected == to_resp(elements)
    assert (push.name, push.arguments[0], push.write) == ("RPUSH", KEY, True)
    assert bodies(push.arguments[1:]) == elements
    assert (cut.name, cut.arguments, cut.write) == ("LTRIM", [b"old", b"2", b"-1"], True)
    assert handler.calls == [f"imported {KEY.decode()} 7 2"]
    assert job.reply == 2


def test_a_list_that_is_not_known_yet() -> None:
    handler = FakeHandler()
    handler.list_keys, handler.keys_found = None, [KEY]
    results = [looked(*numbered(2)), moved(*numbered(2), length=2), looked()]
    assert Run(handler, FALLBACK, b"IMPORT", b"old", results=results).reply == 2
    handler.list_keys = handler.keys_found = []
    with pytest.raises(commands.CommandError, match="no slot of its own"):
        Run(handler, FALLBACK, b"IMPORT", b"old", results=[looked(*numbered(2))[:2]])


def test_a_list_that_somebody_changes_at_the_same_time() -> None:
    elements = numbered(2)
    changed = [(to_resp([b"other"]), 0), (None, 0), (None, 0)]
    text = refused(FALLBACK, b"IMPORT", b"old", results=[looked(*elements), changed])
    assert text == "another client changes the list at the same time"


def test_what_was_taken_over_before_an_error_is_told() -> None:
    elements = numbered(3)
    paused: Any = [(to_resp(elements[2:]), 0), (None, errno.EBUSY), (None, 0)]
    results = [
        looked(*elements[:2], length=3), moved(*elements[:2], length=2),
        looked(elements[2], listed=2), paused,
    ]  # fmt: skip
    handler = FakeHandler()
    with pytest.raises(commands.CommandError) as raised:
        Run(handler, FALLBACK, b"IMPORT", b"old", results=results)
    assert "writes are paused" in str(raised.value)
    assert "(taken over: 2 elements before it)" in str(raised.value)
    assert handler.calls == [f"imported {KEY.decode()} 2 2"]


def test_it_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the list is, the client gets a number before its time is up."""
    now = iter(range(100))
    monkeypatch.setattr(time, "monotonic", lambda: next(now) * 0.7)
    result = Run(
        FakeHandler(), FALLBACK, b"IMPORT", b"old",
        results=[looked(b"0\nset\nk", length=99), moved(b"0\nset\nk", length=1)] * 2,
    )  # fmt: skip
    assert result.reply == 2


# ---- real servers ---------------------------------------------------------------------

BINARY = [
    b"0\nset\n\x00\xff\xfe",
    b"0\nset\na\nb\n\nc",
    b"15\ndel\n",
    b"0\nours: of a module\nkey with blanks ",
    b"2147483647\nexpired\n" + bytes(range(256)),
    b"0\nset\n" + b"x" * 70_000,
]


def test_all_is_taken_over(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The broker is away, so that the list can be looked at; then it comes back."""
    arguments = arguments_for(free_port(), mailbox, events="$")
    server = start_redis(family, arguments)
    client = server.client()
    client.set("before", 1)
    settled(client, fallback_length=1)
    elements = [*BINARY, *numbered(5000)]
    random.Random(7).shuffle(elements)
    put(client, elements)
    begin = int(time.time() * 1000)
    assert run(client, f"FALLBACK IMPORT {OLD}") == len(elements)
    assert client.exists(OLD) == 0
    client.set("after", 1)
    settled(client, fallback_length=len(elements) + 2, fallback_found=len(elements), dropped=0)
    listed = client.lrange(KEY, 0, -1)
    expected = [b"0\nset\nbefore", *elements, b"0\nset\nafter"]
    assert bodies(listed) == expected
    for element in listed[1:-1]:
        event = from_element(element)
        assert event is not None
        assert begin - 1000 <= event.time_ms <= int(time.time() * 1000) + 1000
    assert run(client, f"FALLBACK IMPORT {OLD}") == 0
    client.config_set("keyspaceamqp.port", broker.port)
    numbers = delivered(client, mailbox, expected, what=lambda message: message.body)
    assert numbers["confirmed"] == len(expected)
    assert numbers["fallback_drained"] == len(expected)


def test_with_the_broker_there_and_events_that_flow(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, probe: Probe
) -> None:
    """Redis answers meanwhile, no event comes twice, events of both kinds are in order."""
    server = start_redis(arguments=arguments_for(broker, mailbox, events="$"))
    client = server.client()
    client.set("load", 1)
    settled(client, confirmed=1)
    expected: list[bytes] = []
    with Load(server, batch=5, pause=0.001) as load:
        for count in (100_000, 10_000, 10_000):
            elements = numbered(count, first=len(expected))
            put(client, elements)
            load.more(100)
            with probe(server):
                begin = time.monotonic()
                assert take_over(client) == count
                print(f"taken over in {time.monotonic() - begin:.2f} s")
                load.more(100)
            assert client.exists(OLD) == 0
            expected += [element.split(b"\n", 2)[2] for element in elements]
    numbers = settled(client, 120, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    messages = mailbox.receive()
    keys = [message.event[2] for message in messages]
    assert [key for key in keys if key.startswith(b"old:")] == expected
    # If the broker stands still for a moment, messages in flight may be sent again. Events that it
    # confirms while they are pushed behind unread elements count as found.
    first = [message.event[2] for message in once(messages)]
    assert 0 <= numbers["fallback_found"] - 120_000 <= len(messages) - len(first)
    assert [key for key in first if not key.startswith(b"old:")] == [b"load", *load.keys]
    assert len(first) == 120_001 + len(load.keys)


def test_events_of_the_old_list_are_events(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Redis' events about the removal of elements from that key are forwarded like any other; a
    mask can exclude them."""
    client = start_redis(arguments=arguments_for(broker, mailbox, events="A")).client()
    put(client, numbered(3))
    assert take_over(client) == 3
    settled(client, confirmed=6)
    found = [message.event for message in mailbox.receive()]
    ours = [event for event in found if event[2] == OLD.encode()]
    assert [name for _, name, _ in ours] == [b"rpush", b"ltrim", b"del"]
    run(client, "KEYMASK SET !^REDIS_MODULE-")
    put(client, numbered(3))
    assert take_over(client) == 3
    settled(client, confirmed=9)
    assert {message.event[1] for message in mailbox.receive()} == {b"expired"}


def test_an_element_that_is_no_event(start_redis: StartRedis) -> None:
    """Elements before it are taken over; it and those behind it stay."""
    client = start_redis(arguments=arguments_for(free_port(), events="$")).client()
    elements = numbered(4500)
    put(client, [*elements[:4400], b"no\xffne\r\nof ours", *elements[4400:]])
    said = error(client, f"FALLBACK IMPORT {OLD}")
    assert "the first element, 'no\\\\xffne\\r\\nof ours', is not db, event and key" in said
    assert said.endswith("(taken over: 4400 elements before it)")
    assert client.llen(OLD) == 101
    assert bodies(client.lrange(KEY, 0, -1)) == elements[:4400]
    said = error(client, f"FALLBACK IMPORT {OLD}")
    assert said.endswith("Nothing was lost")
    settled(client, fallback_length=4400, fallback_found=4400)
    client.lpop(OLD)
    assert take_over(client) == 100
    assert bodies(client.lrange(KEY, 0, -1)) == elements
    settled(client, fallback_length=4500, fallback_found=4500, dropped=0)


def test_refusals(family: str, start_redis: StartRedis) -> None:
    """After each refusal both lists are as they were."""
    arguments = arguments_for(free_port(), events="$", size=10)
    server = start_redis(family, arguments, ["repl-diskless-sync-delay 0"])
    client = server.client()
    client.set("listed", 1)
    settled(client, fallback_length=1)
    put(client, numbered(10))
    said = error(client, f"FALLBACK IMPORT {OLD}")
    assert said == "no room for 10 elements: the list has 1 of fallback-size 10"
    client.config_set("keyspaceamqp.fallback-size", -1)
    said = error(client, f"FALLBACK IMPORT {OLD}")
    assert said == "there is no fallback list to import into: fallback-size is -1"
    client.config_set("keyspaceamqp.fallback-size", 11)
    assert "this is a list of this module" in error(client, f"FALLBACK IMPORT {KEY.decode()}")
    client.set("text", 1)
    settled(client, fallback_length=2)
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        run(client, "FALLBACK IMPORT text")
    assert run(client, "FALLBACK IMPORT nothing-there") == 0
    for words in ("FALLBACK IMPORT", "FALLBACK IMPORT a b"):
        assert "wrong arguments" in error(client, words)
    client.config_set("keyspaceamqp.fallback-size", 12)
    client.execute_command("CLIENT", "PAUSE", 100_000, "WRITE")
    assert "writes are paused" in error(client, f"FALLBACK IMPORT {OLD}")
    client.execute_command("CLIENT", "UNPAUSE")
    assert client.lrange(OLD, 0, -1) == numbered(10)
    assert list_length(client) == 2
    replica = start_redis(
        family, arguments_for(free_port(), events="$"), [f"replicaof 127.0.0.1 {server.port}"]
    ).client()
    wait_for(lambda: replica.exists(OLD) == 1, 30)
    with pytest.raises(redis.exceptions.ReadOnlyError):
        run(replica, f"FALLBACK IMPORT {OLD}")
    assert take_over(client) == 10
    wait_for(lambda: replica.exists(OLD) == 0, 30)
    assert replica.lrange(KEY, 0, -1) == client.lrange(KEY, 0, -1)
    settled(client, fallback_length=12, fallback_found=10, dropped=0)


def test_just_after_a_load(family: str, start_redis: StartRedis) -> None:
    """The command waits until the node knows its list."""
    client = start_redis(family, arguments=None).client()
    elements = numbered(10)
    put(client, elements)
    # Not in one pipeline: newer servers look up commands before they run those before them.
    client.execute_command("MODULE", "LOAD", str(MODULE), *arguments_for(free_port(), events="$"))
    assert client.execute_command("KEYSPACEAMQP.FALLBACK", "IMPORT", OLD) == 10
    assert bodies(client.lrange(KEY, 0, -1)) == elements
    settled(client, fallback_length=10, fallback_found=10, dropped=0)


def test_the_place_of_our_list_is_taken(start_redis: StartRedis) -> None:
    client = start_redis(arguments=arguments_for(free_port(), events="$")).client()
    client.set(KEY, "something else")
    put(client, numbered(3))
    with pytest.raises(redis.exceptions.ResponseError, match="WRONGTYPE"):
        run(client, f"FALLBACK IMPORT {OLD}")
    assert client.lrange(OLD, 0, -1) == numbered(3)
    client.delete(KEY)
    assert take_over(client) == 3


def test_killed_in_the_middle(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """With appendfsync always, each element is in exactly one of the two lists afterwards, and both
    together are in order."""
    arguments = arguments_for(free_port(), mailbox, events="$")
    options = ["appendonly yes", "appendfsync always", "save ''"]
    server = start_redis(arguments=arguments, options=options)
    client = server.client()
    elements = numbered(60_000)
    put(client, elements)
    for part in (0.05, 0.2):
        talker = server.client()
        connection = talker.connection_pool.get_connection()
        for _ in range(10):  # each takes over only a part
            connection.send_command("KEYSPACEAMQP.FALLBACK", "IMPORT", OLD)
        wait_for(lambda part=part, client=client: list_length(client) > part * 60_000, 30, "import")
        server.kill()
        connection.disconnect()
        server.start()
        client = server.client()
        ours, theirs = client.lrange(KEY, 0, -1), client.lrange(OLD, 0, -1)
        print(f"killed with {len(ours)} of {len(elements)} taken over")
        assert theirs
        assert bodies(ours) + theirs == elements
        settled(client, fallback_length=len(ours), fallback_found=len(ours))
    take_over(client)
    client.config_set("keyspaceamqp.port", broker.port)
    keys = [element.split(b"\n", 2)[2] for element in elements]
    delivered(client, mailbox, keys, confirmed=len(keys))


def test_cluster(family: str, broker: RabbitServer, start_cluster: StartCluster) -> None:
    """Whichever node is asked: the one that has the key's slot takes the list over, into the list
    that it works with. Its replica then has all of it."""
    bench = start_cluster(family, broker, events="$")
    bench.write(30)
    bench.checked()
    elements = [*BINARY, *numbered(6000)]
    with bench.cluster.client() as client:
        for node in bench.cluster.nodes:
            with node.client() as local:
                local.config_set("keyspaceamqp.port", free_port())
        put(client, elements)
        owner = client.nodes_manager.get_node_from_slot(slot_of(OLD.encode())).port
    asked = next(node for node in bench.cluster.primaries() if node.port != owner)
    has = next(node for node in bench.cluster.primaries() if node.port == owner)
    with asked.client(protocol=3) as other, has.client() as client:
        assert "slot is not served by this node" in error(other, f"FALLBACK IMPORT {OLD} LOCAL")
        reply = run(other, f"FALLBACK IMPORT {OLD}")
        assert reply == {b"result": len(elements), b"nodes": 6, b"of": 6, b"missing": []}
        assert client.exists(OLD) == 0
        settled(client, fallback_length=len(elements), fallback_found=len(elements))
        (key,) = client.keys("keyspaceamqp:*")
        listed = client.lrange(key, 0, -1)
        assert bodies(listed) == elements
        port = client.info("replication")["slave0"]["port"]
    replica_node = next(node for node in bench.cluster.nodes if node.port == port)
    with replica_node.client(max_connections=1) as replica:
        replica.execute_command("READONLY")
        wait_for(lambda: replica.lrange(key, 0, -1) == listed, 30, "the list on the replica")
        wait_for(lambda: replica.exists(OLD) == 0, 30)
    for node in bench.cluster.nodes:
        with node.client() as local:
            local.config_set("keyspaceamqp.port", broker.port)
    for node in bench.cluster.primaries():
        with node.client() as local:
            settled(local, 60, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    arrived = [message.body for message in bench.mailbox.receive()]
    assert arrived == elements
