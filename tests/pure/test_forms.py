"""What messages look like: routing keys, formats, headers, properties and values, with
real servers; and what the pure functions make of any event."""

from __future__ import annotations

import base64
import dataclasses
import json
import time
from typing import Any

import pytest
import redis
from cloudevents.core.bindings.amqp import AMQPMessage, from_binary
from cloudevents.core.formats.json import JSONFormat
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.demo.servers import RabbitServer, wait_for
from keyspace_amqp.fallback import from_element, to_element
from keyspace_amqp.message import Event, Format, Value
from tests.fix_servers import Mailbox, Message, StartRedis, arguments_for, linked, settled

PLAIN = dataclasses.replace(DEFAULTS, events="A")


def form(node: str = "here:6379", **changed: Any) -> Format:
    return Format(dataclasses.replace(PLAIN, **changed), node)


def event(key: bytes = b"session:42:x", name: bytes = b"expired", **more: Any) -> Event:
    return Event(**({"message_id": "a1-7", "time_ms": 1_700_000_000_123, "db": 3, "letter": "x",
                     "name": name, "key": key} | more))  # fmt: skip


# ---- routing keys ------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "key", "expected"),
    [
        ("redis.{db}.{event}.{class}", b"a", b"redis.3.expired.expired"),
        ("{node}", b"a", b"here:6379"),
        ("{key}", b"session:42:x", b"session:42:x"),
        ("{key:1}-{key:2}-{key:3}-{key:4}", b"session:42:x", b"session-42-x-"),
        ("{key:2}", b"a:b:c:d", b"b"),
        ("{key:*}", b"session:42:x", b"session.42.x"),
        ("{key:*}", b"a.b:c", b"a%2Eb.c"),
        ("{key}", b"a.b*c#d%e f\xff\n", b"a%2Eb%2Ac%23d%25e%20f%FF%0A"),
        ("{{{key:1}}}", b"a", b"{a}"),
        ("fixed", b"a", b"fixed"),
        ("", b"a", b""),
    ],
)
def test_a_routing_key(template: str, key: bytes, expected: bytes) -> None:
    made = form(routing_key=template)
    assert made.routing_key(event(key)) == expected
    assert (made.fixed_key == expected) is ("{" not in template)


@given(st.binary(max_size=2000))
@example(b"k" * 255)
@example(b"k" * 256)
@example(b"." * 85)
def test_no_routing_key_is_too_long(key: bytes) -> None:
    """What is cut is still different for different keys, and counted."""
    made = form(routing_key="{key}")
    first, other = made.routing_key(event(key)), made.routing_key(event(key + b"x" * 256))
    assert len(first) <= 255
    assert len(other) == 255
    assert first != other
    assert made.cut == 1 + (len(first) == 255 and b"~" in first[-17:] and len(key) > 84)


# ---- elements of the list ----------------------------------------------------

values = st.one_of(
    st.none(),
    st.builds(
        Value,
        type=st.sampled_from(["string", "hash"]),
        length=st.integers(10_000, 2**40),
        data=st.one_of(st.none(), st.binary(max_size=50)),
        before=st.booleans(),
    ),
)
words = st.one_of(st.binary(max_size=50), st.sampled_from([b"", b" ", b"1 2 3", b" \n "]))


@given(words, words, values)
def test_an_element_keeps_all_of_an_event(name: bytes, key: bytes, value: Value | None) -> None:
    whole = event(key, name, value=value)
    element = to_element(whole)
    assert from_element(element) == whole
    assert element.startswith(b"1 " if value is None else b"2 ")


@given(words, words, values, st.data())
def test_a_damaged_element_is_an_event_or_none(
    name: bytes, key: bytes, value: Value | None, data: st.DataObject
) -> None:
    element = bytearray(to_element(event(key, name, value=value)))
    place = data.draw(st.integers(0, len(element) - 1))
    element[place] = data.draw(st.integers(0, 255))
    found = from_element(bytes(element))
    if found is not None:
        for shape in ("text", "json", "cloudevents"):
            made = form(format=shape, headers=True, routing_key="{event}.{key:*}")
            made.body(found)
            made.routing_key(found)
            assert made.headers is not None
            made.headers(found)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b"2 a1-7 1 3 x 2 3 string 9 0 4 ab", b"2 a1-7 1 3 x 2 4 string 9 0 4 ab"),
        (b" 9 0 4 ", b" 9 0 5 "),
        (b" 9 0 4 ", b" 9 0 -2 "),
        (b" 9 0 4 ", b" 3 0 4 "),
        (b" 9 0 4 ", b" 9 0 99 "),
        (b"2 a1-7", b"3 a1-7"),
    ],
)
def test_lengths_of_an_element_that_do_not_agree(right: bytes, wrong: bytes) -> None:
    element = b"2 a1-7 1 3 x 2 3 string 9 0 4 ab key data"
    found = from_element(element)
    assert found is not None
    assert (found.name, found.key) == (b"ab", b"key")
    assert found.value == Value("string", 9, b"data", before=False)
    assert right in element
    assert from_element(element.replace(right, wrong)) is None


# ---- formats -----------------------------------------------------------------


@given(st.integers(0, 2**63 - 1))
@example(253_402_300_800_000)
@example(2**63 - 1)
def test_a_cloudevent_of_any_time(time_ms: int) -> None:
    """Anybody can push an element with any time."""
    made = form(format="cloudevents").headers
    assert made is not None
    headers = made(event(time_ms=time_ms))
    assert ("cloudEvents:time" in headers) is (time_ms < 253_402_300_800_000)


@given(words, words, values, st.integers(0, 2**63 - 1))
def test_json_tells_all(name: bytes, key: bytes, value: Value | None, time_ms: int) -> None:
    text = form(format="json").body(event(key, name, value=value, time_ms=time_ms))
    item = json.loads(text)
    shown = item["key"].encode() if "key" in item else base64.b64decode(item["key_base64"])
    assert shown == key
    assert ("key" in item) != ("key_base64" in item)
    assert (item["db"], item["class"], item["id"]) == (3, "expired", "a1-7")
    assert item["time_ms"] == time_ms
    assert ("value" in item) is (value is not None)
    if value is not None:
        assert item["value"]["length"] == value.length
        assert item["value"]["before"] is value.before
        assert ("cut" in item["value"]) is (value.data is not None)


# The second and third look like the places for a size, and for an id and a time, that
# frames.py looks for in its example.
@pytest.mark.parametrize(
    "message_type",
    ["iii", "\x11\x12\x13\x14\x15\x16\x17\x18", "i" * 30 + "\1\2\3\4\5\6\7\x08"],
)
def test_a_node_and_a_type_of_any_bytes(
    message_type: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    server = start_redis(arguments=arguments_for(broker, mailbox))
    client = server.client()
    client.config_set("keyspaceamqp.headers", "on")
    client.config_set("keyspaceamqp.message-type", message_type)
    client.config_set("keyspaceamqp.node-name", b"n\xff")
    client.set("a", 1)
    (message,) = mailbox.receive(1)
    assert message.properties.type == message_type
    assert message.properties.headers["node"] == "n\\xff"
    settled(client, confirmed=1, handler_errors=0)


def test_a_cut_text_is_still_text() -> None:
    cut = Value("string", 6, "aé€".encode()[:5], before=False)
    item = json.loads(form(format="json").body(event(value=cut)))
    assert item["value"]["data"] == "aé"
    assert item["value"]["cut"] is True
    binary = Value("string", 9, b"a\xff\xfe", before=True)
    item = json.loads(form(format="json").body(event(value=binary)))
    assert base64.b64decode(item["value"]["data_base64"]) == b"a\xff\xfe"


def cloud_event(message: Message) -> Any:
    """As the official SDK reads it."""
    properties = {"content-type": message.properties.content_type}
    headers = message.properties.headers
    return from_binary(AMQPMessage(properties, headers, message.body), JSONFormat())


def test_cloudevents(broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis) -> None:
    server = start_redis(
        arguments=arguments_for(broker, mailbox),
        options=["keyspaceamqp.format cloudevents", "keyspaceamqp.node-name node-1"],
    )
    client = server.client(db=2)
    begin = time.time()
    client.set("user:ä", 1)
    client.set(b"\xff\0", 1)
    client.set("k" * 200_000, 1)  # more than a frame, and than a header may have
    first, second, third = map(cloud_event, mailbox.receive(3))
    assert first.get_specversion() == "1.0"
    assert first.get_type() == "redis.keyspace.set"
    assert first.get_source() == "/redis/node-1/2"
    assert first.get_subject() == "user:ä"
    assert begin - 2 < first.get_time().timestamp() < begin + 30
    assert first.get_id() != second.get_id()
    assert first.get_data()["key"] == "user:ä"
    assert second.get_subject() is None
    assert base64.b64decode(second.get_data()["key_base64"]) == b"\xff\0"
    assert third.get_subject() is None
    assert third.get_data()["key"] == "k" * 200_000
    settled(server.client(), confirmed=3)


def test_routing_to_a_topic_exchange(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """People bind what they want; a key too long is cut, and counted."""
    with broker.connection() as connection:
        channel = connection.channel()
        channel.queue_bind(mailbox.name, "amq.topic", "redis.0.expired.session.#")
        channel.queue_bind(mailbox.name, "amq.topic", "redis.0.set.long.#")
    server = start_redis(arguments=arguments_for(broker, mailbox))
    client = server.client()
    client.config_set("keyspaceamqp.exchange", "amq.topic")
    client.config_set("keyspaceamqp.routing-key", "redis.{db}.{event}.{key:*}")
    client.set("session:42:data", 1, px=1)
    client.set("other:42", 1, px=1)
    client.set("long:" + "x" * 300, 1)
    messages = mailbox.receive(2)
    assert sorted(m.event[2][:10] for m in messages) == [b"long:xxxxx", b"session:42"]
    settled(client, routing_keys_cut=1)
    client.execute_command("KEYSPACEAMQP.STATS", "RESET")
    settled(client, routing_keys_cut=0)


def test_headers_and_properties(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    options = {
        "headers": "on", "deduplication-header": "on", "app-id": "shop", "message-type": "event",
        "priority": "7", "expiration": "3600000", "node-name": "one", "mandatory": "off",
    }  # fmt: skip
    server = start_redis(
        arguments=arguments_for(broker, mailbox),
        options=[f"keyspaceamqp.{name} {value}" for name, value in options.items()],
    )
    client = server.client()
    client.set("a", 1)
    client.lpush("b", 1)
    first, second = (message.properties for message in mailbox.receive(2))
    assert first.headers == {
        "db": 0, "event": "set", "class": "string", "node": "one", "sequence": 1,
        "x-deduplication-header": first.message_id,
    }  # fmt: skip
    assert (second.headers["event"], second.headers["class"]) == ("lpush", "list")
    assert second.headers["sequence"] == 2
    assert (first.app_id, first.type, first.priority) == ("shop", "event", 7)
    assert first.expiration == "3600000"
    # Not mandatory: the broker does not tell that nobody wants them.
    client.config_set("keyspaceamqp.routing-key", "nowhere")
    client.set("a", 2)
    settled(client, confirmed=3, returned=0)
    client.config_set("keyspaceamqp.mandatory", "on")
    client.set("a", 2)
    settled(client, confirmed=4, returned=1)


def test_databases(broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis) -> None:
    """A change holds for the events behind it."""
    server = start_redis(
        arguments=arguments_for(broker, mailbox), options=["keyspaceamqp.databases 0,2-3"]
    )
    clients = [server.client(db=db) for db in range(5)]
    for number, client in enumerate(clients):
        client.set(f"k{number}", 1)
    clients[0].config_set("keyspaceamqp.databases", "1")
    for number, client in enumerate(clients):
        client.set(f"k{number}", 1)
    settled(clients[0], confirmed=4, events_seen=10, events_matched=4)
    assert [message.event[0] for message in mailbox.receive(4)] == [0, 2, 3, 1]


def test_classes_that_are_not_in_A(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Misses, new keys, and what Redis 8.2 added; set while it runs."""
    server = start_redis(family, arguments_for(broker, mailbox, "x"))
    client = server.client()
    client.set("before", 1)  # not of the class
    client.config_set("keyspaceamqp.events", "Amn")
    client.get("missing")
    client.set("a", 1)
    client.xadd("s", {"f": 1})
    names = [message.event[1] for message in mailbox.receive(5)]
    assert names == [b"keymiss", b"new", b"set", b"new", b"xadd"]
    if family != "redis-8.2":
        with pytest.raises(redis.ResponseError, match="no class o"):
            client.config_set("keyspaceamqp.events", "o")
        return
    client.config_set("keyspaceamqp.format", "json")
    client.config_set("keyspaceamqp.events", "oc")
    client.set("a", 2)
    client.delete("a")
    client.set("a", 1)
    client.execute_command("SUNIONSTORE", "a", "nothing")
    client.set("s", 1)
    settled(client, confirmed=8)
    found = [json.loads(message.body) for message in mailbox.receive(3)]
    assert [(item["event"], item["class"]) for item in found] == [
        ("overwritten", "overwritten"), ("overwritten", "overwritten"),
        ("type_changed", "type_changed"),
    ]  # fmt: skip


# ---- values ------------------------------------------------------------------


def valued(mailbox: Mailbox, count: int) -> list[tuple[str, str, Any]]:
    items = [json.loads(message.body) for message in mailbox.receive(count)]
    return [(item["event"], item.get("key", "-"), item.get("value")) for item in items]


def string(text: str, length: int | None = None, *, before: bool = False) -> dict[str, Any]:
    length = len(text) if length is None else length
    return {"type": "string", "length": length, "data": text, "cut": length > len(text),
            "before": before}  # fmt: skip


VALUE = ["keyspaceamqp.format json", "keyspaceamqp.value 8"]


def test_values_that_an_event_leaves(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    server = start_redis(family, arguments_for(broker, mailbox), options=VALUE)
    client = server.client()
    client.set("a", "short")
    client.set("b", "x" * 100)
    client.incr("n", 12)
    client.hset("h", mapping={"f": 1, "g": 2})
    client.rpush("l", *range(7))
    with client.pipeline() as transaction:
        transaction.append("a", "!")
        transaction.append("a", "?")
        transaction.execute()
    client.eval("redis.call('SET', KEYS[1], 'by lua')", 1, "a")
    encoding = client.object("encoding", "n")
    assert valued(mailbox, 8) == [
        ("set", "a", string("short")),
        ("set", "b", string("x" * 8, 100)),
        ("incrby", "n", string("12")),
        ("hset", "h", {"type": "hash", "length": 2, "before": False}),
        ("rpush", "l", {"type": "list", "length": 7, "before": False}),
        ("append", "a", string("short!")),
        ("append", "a", string("short!?")),
        ("set", "a", string("by lua")),
    ]
    assert encoding == b"int"  # as without us
    assert client.object("encoding", "a") == b"embstr"


def test_values_before_the_end(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Redis 7.2 and later say what a key held that is deleted, expires or is evicted."""
    server = start_redis(family, arguments_for(broker, mailbox, "gxe"), options=VALUE)
    client = server.client()
    keeps = family != "redis-7.0"

    def end(name: str, key: str, text: str) -> tuple[str, str, Any]:
        return name, key, string(text, before=True) if keeps else None

    client.set("a", "deleted")
    client.set("b", 77)
    client.rpush("l", 1, 2, 3)
    client.set("d", "old")
    client.delete("a")
    client.unlink("b")
    client.delete("l")
    client.rename("d", "e")
    client.sunionstore("e", "nothing")  # what it deletes is no string of the next event
    client.set("c", "gone", px=1)
    wait_for(lambda: not client.exists("c"))
    assert valued(mailbox, 8) == [
        end("del", "a", "deleted"),
        end("del", "b", "77"),
        ("del", "l", {"type": "list", "length": 3, "before": True} if keeps else None),
        end("rename_from", "d", "old"),
        ("rename_to", "e", string("old")),
        end("del", "e", "old"),
        ("expire", "c", string("gone") if keeps else None),
        end("expired", "c", "gone"),
    ]
    client.set("f", "evicted")
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", 1)
    wait_for(lambda: client.dbsize() == 0)
    client.config_set("maxmemory", 0)
    assert valued(mailbox, 1) == [end("evicted", "f", "evicted")]


def test_a_deletion_by_a_time_that_is_over(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Redis 7.0 would delete a key if somebody looks at it between such a command and its
    event, and tell nobody but its replica."""
    server = start_redis(family, arguments_for(broker, mailbox, "g$"), options=VALUE)
    replica = start_redis(family, arguments_for(broker, mailbox, "g$"))
    client, copy = server.client(), replica.client()
    copy.replicaof("127.0.0.1", server.port)
    linked(copy)
    client.set("k", "v", pxat=1)
    client.set("e", "v")
    client.expire("e", -1)
    client.set("end", 1)
    wait_for(lambda: copy.exists("end"))
    assert client.exists("k", "e") == 0
    wait_for(lambda: copy.dbsize() == client.dbsize() == 1)
    told = [("set", "k"), ("expire", "k"), ("set", "e"), ("del", "e"), ("set", "end")]
    if family == "valkey-8.1":  # tells of such keys in class x, or not at all
        told = [("set", "e"), ("set", "end")]
    found = valued(mailbox, len(told))
    assert [(name, key) for name, key, _ in found] == told
    if family == "redis-8.2":
        assert found[3][2] == string("v", before=True)


def test_a_value_is_left_out_rather_than_its_event(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    server = start_redis(
        arguments=arguments_for(broker, mailbox),
        options=[
            "keyspaceamqp.format json",
            "keyspaceamqp.value 1048576",
            "keyspaceamqp.queue-limit 1048576",
        ],
    )
    client = server.client()
    client.set("big", "x" * 1048576)
    client.set("small", "x")
    settled(client, confirmed=2, dropped=0)
    assert valued(mailbox, 2) == [("set", "big", None), ("set", "small", string("x"))]


def test_too_large_is_what_the_message_is(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The broker has a limit for the body that it gets, in whatever form."""
    server = start_redis(
        arguments=arguments_for(broker, mailbox),
        options=["keyspaceamqp.format json", "keyspaceamqp.value 10000"],
    )
    client = server.client()
    size = "application:{}(rabbit, max_message_size{})."
    before = broker.ctl("eval", "{ok, N} = application:get_env(rabbit, max_message_size), N.")
    broker.ctl("eval", size.format("set_env", ", 3000"))
    try:
        client.set("big", "x" * 5000)
        client.set("b", 2)
        settled(client, confirmed=1, dropped_too_large=1, fallback_length=0)
    finally:
        broker.ctl("eval", size.format("set_env", f", {int(before)}"))
    assert valued(mailbox, 1) == [("set", "b", string("2"))]


def test_values_wait_in_the_list(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """As they were at their event, not as they are when the broker is there."""
    server = start_redis(arguments=arguments_for(broker, mailbox), options=VALUE)
    client = server.client()
    client.execute_command("KEYSPACEAMQP.DISCONNECT")
    for number in range(50):
        client.set(b"\xff key", b"\0%d \xff" % number)
    settled(client, fallback_length=50, queue_length=0)
    client.set(b"\xff key", b"later")
    client.execute_command("KEYSPACEAMQP.CONNECT")
    found = [json.loads(m.body)["value"] for m in mailbox.receive(51)]
    assert [base64.b64decode(v["data_base64"]) for v in found[:50]] == [
        b"\0%d \xff" % number for number in range(50)
    ]
    assert found[50]["data"] == "later"


def test_values_cost_nothing_when_they_are_off(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Nothing is read of a key then: not without the parameter, nor in a form that has no
    place for it."""
    server = start_redis(arguments=arguments_for(broker, mailbox))
    client = server.client()

    def looks() -> int:
        return int(client.info("commandstats").get("cmdstat_getrange", {}).get("calls", 0))

    for name, value, expected in [
        ("value", 0, 0), ("value", 8, 0), ("format", "json", 1), ("format", "text", 1),
        ("format", "cloudevents", 2), ("value", 0, 2),
    ]:  # fmt: skip
        client.config_set(f"keyspaceamqp.{name}", value)
        client.set("a", 1)
        assert looks() == expected
    settled(client, confirmed=6)
