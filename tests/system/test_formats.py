"""What messages look like with real servers: routing keys, formats, headers, values."""

from __future__ import annotations

import base64
import json
import re
import time
from typing import Any

import pytest
import redis
from cloudevents.core.bindings.amqp import AMQPMessage, from_amqp
from cloudevents.core.formats.json import JSONFormat

from keyspace_amqp.demo.servers import RabbitServer, wait_for
from tests.fix_brokers import message_limit
from tests.fix_faults import Notifications
from tests.fix_outbox import with_outbox
from tests.fix_servers import (
    EVERY_FAMILY,
    Mailbox,
    Message,
    StartRedis,
    arguments_for,
    linked,
    settled,
)
from tests.servers import REDIS, at_least


# frames.py finds the places of a size, an id and a time in an example message by their values. The
# second and the third type look like these.
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


def cloud_event(message: Message) -> Any:
    """The event as the official SDK reads it, which sees the mode by itself."""
    properties = {"content-type": message.properties.content_type}
    headers = message.properties.headers or {}
    return from_amqp(AMQPMessage(properties, headers, message.body), JSONFormat())


@pytest.mark.parametrize(
    "options",
    [
        ["format cloudevents"],
        ["format cloudevents", "cloudevents-prefix cloudEvents_"],
        ["format cloudevents-structured"],
    ],
    ids=["binary", "underscore", "structured"],
)
def test_cloudevents(
    options: list[str], broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    server = start_redis(
        arguments=arguments_for(broker, mailbox),
        options=[f"keyspaceamqp.{option}" for option in [*options, "node-name node-1"]],
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
    assert {event.get_datacontenttype() for event in (first, second)} == {"application/json"}
    settled(server.client(), confirmed=3)


def knative_event(message: Message) -> dict[str, Any]:
    """The attributes and the data by the rules that Knative has published for RabbitMQ: the type
    of the content tells the mode, and attributes are headers with the prefix `ce-`."""
    properties = message.properties
    if properties.content_type.startswith("application/cloudevents"):
        assert properties.content_type == "application/cloudevents+json"
        event = dict(json.loads(message.body))
    else:
        headers = {name.lower(): value for name, value in properties.headers.items()}
        event = {name[3:]: value for name, value in headers.items() if name.startswith("ce-")}
        assert event["datacontenttype"] == properties.content_type
        event["data"] = json.loads(message.body)
    assert event["specversion"] == "1.0"
    assert all(re.fullmatch("[a-z0-9]+", name) for name in event)
    return event


def test_cloudevents_for_knative(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """In both modes, also of events that have waited in the list."""
    server = start_redis(
        arguments=arguments_for(broker, mailbox),
        options=["keyspaceamqp.node-name n", "keyspaceamqp.cloudevents-prefix ce-"],
    )
    client = server.client()
    found = []
    for mode in ("cloudevents", "cloudevents-structured"):
        client.config_set("keyspaceamqp.format", mode)
        client.set("user:ä", 1)
        settled(client, fallback_length=0, queue_length=0, in_flight=0)
        client.execute_command("KEYSPACEAMQP.DISCONNECT")
        client.set(b"\xff", 1)
        settled(client, fallback_length=1)
        client.execute_command("KEYSPACEAMQP.CONNECT")
        settled(client, fallback_length=0, queue_length=0, in_flight=0)
        messages = mailbox.receive(2)
        assert [bool(message.properties.headers) for message in messages] == [
            mode == "cloudevents"
        ] * 2
        events = [knative_event(message) for message in messages]
        assert [event["id"] for event in events] == [m.properties.message_id for m in messages]
        assert all(event["time"].endswith("Z") for event in events)
        found.append([{**event, "id": 0, "time": 0, "data": list(event["data"])}
                      for event in events])  # fmt: skip
    assert found[0] == found[1]
    assert found[0][0].items() >= {
        "source": "/redis/n/0", "type": "redis.keyspace.set", "subject": "user:ä",
        "datacontenttype": "application/json",
    }.items()  # fmt: skip
    assert "subject" not in found[0][1]


def test_routing_to_a_topic_exchange(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Consumers bind the keys that they want; a key that is too long is cut, and counted."""
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
    # Not mandatory: the broker does not tell that no queue gets them.
    client.config_set("keyspaceamqp.routing-key", "nowhere")
    client.set("a", 2)
    settled(client, confirmed=3, returned=0)
    client.config_set("keyspaceamqp.mandatory", "on")
    client.set("a", 2)
    settled(client, confirmed=4, returned=1)


def test_databases(broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis) -> None:
    """A change applies to the events behind it."""
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


@EVERY_FAMILY
def test_classes_that_are_not_in_A(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Misses, new keys, and the classes that Redis 8.2 added; set at run time."""
    server = start_redis(family, arguments_for(broker, mailbox, "x"))
    client = server.client()
    client.set("before", 1)  # not of the class
    client.config_set("keyspaceamqp.events", "Amn")
    client.get("missing")
    client.set("a", 1)
    client.xadd("s", {"f": 1})
    names = [message.event[1] for message in mailbox.receive(5)]
    assert names == [b"keymiss", b"new", b"set", b"new", b"xadd"]
    if not at_least(family, redis="8.2"):
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


@EVERY_FAMILY
def test_values_before_the_end(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Redis 7.2 and later tell what a key held that is deleted, expires or is evicted."""
    server = start_redis(family, arguments_for(broker, mailbox, "gxe"), options=VALUE)
    client = server.client()
    keeps = at_least(family, redis="7.2", valkey="7.2")

    def end(name: str, key: str, text: str) -> tuple[str, str, Any]:
        return name, key, string(text, before=True) if keeps else None

    client.set("a", "deleted")
    client.set("b", 77)
    client.rpush("l", 1, 2, 3)
    client.set("d", "old text")  # long enough to prove the form of short strings
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
        end("rename_from", "d", "old text"),
        ("rename_to", "e", string("old text")),
        end("del", "e", "old text"),
        ("expire", "c", string("gone") if keeps else None),
        end("expired", "c", "gone"),
    ]
    client.set("f", "evicted")
    client.config_set("maxmemory-policy", "allkeys-random")
    client.config_set("maxmemory", 1)
    wait_for(lambda: client.dbsize() == 0)
    client.config_set("maxmemory", 0)
    assert valued(mailbox, 1) == [end("evicted", "f", "evicted")]


@EVERY_FAMILY
def test_a_deletion_by_a_time_that_is_over(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Between such a command and its event, Redis 7.0 would delete a key that is looked at, and
    tell only its replica."""
    server = start_redis(family, arguments_for(broker, mailbox, "g$"), options=VALUE)
    replica = start_redis(family, arguments_for(broker, mailbox, "g$"))
    client, copy = server.client(), replica.client()
    copy.replicaof("127.0.0.1", server.port)
    linked(copy)
    with Notifications(server) as notified:
        client.set("k", "v", pxat=1)
        client.set("e", "v")
        client.expire("e", -1)
        client.set("end", 1)
    wait_for(lambda: copy.exists("end"))
    assert client.exists("k", "e") == 0
    wait_for(lambda: copy.dbsize() == client.dbsize() == 1)
    # Which events there are for such keys differs: some in class x, or none at all. Events of the
    # list come if the broker took them late.
    told = [
        (name.decode(), key.decode())
        for _, name, key in notified.events
        if name != b"expired" and not key.startswith(b"keyspaceamqp:")
    ]
    assert ("set", "e") in told
    assert told[-1] == ("set", "end")
    found = valued(mailbox, len(told))
    assert [(name, key) for name, key, _ in found] == told
    if at_least(family, redis="7.2"):
        assert ("del", "e", string("v", before=True)) in found


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
    """The broker's limit is one for the body that it gets, in whatever form."""
    server = start_redis(
        arguments=arguments_for(broker, mailbox),
        options=["keyspaceamqp.format json", "keyspaceamqp.value 10000"],
    )
    client = server.client()
    with message_limit(broker, 3000):
        client.set("big", "x" * 5000)
        client.set("b", 2)
        settled(client, confirmed=1, dropped_too_large=1, fallback_length=0)
    assert valued(mailbox, 1) == [("set", "b", string("2"))]


@with_outbox([REDIS])
def test_values_wait_in_the_list(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """With the values that keys had at their events, not those at the delivery."""
    server = start_redis(family, arguments_for(broker, mailbox), VALUE)
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
    """The key's value is not read then: neither without the parameter, nor with a format that has
    no place for it."""
    server = start_redis(arguments=arguments_for(broker, mailbox))
    client = server.client()

    def looks() -> int:
        return int(client.info("commandstats").get("cmdstat_getex", {}).get("calls", 0))

    for name, value, expected in [
        ("value", 0, 0), ("value", 8, 0), ("format", "json", 1), ("format", "text", 1),
        ("format", "cloudevents", 2), ("value", 0, 2),
    ]:  # fmt: skip
        client.config_set(f"keyspaceamqp.{name}", value)
        client.set("a", 1)
        assert looks() == expected
    settled(client, confirmed=6)
