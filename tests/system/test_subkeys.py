"""The subkeys of events, with real servers: the fields of a hash that an event is about."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, free_port, wait_for
from keyspace_amqp.fallback import from_element
from keyspace_amqp.message import Subkeys
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.parameters import SUBKEYS_BYTES
from tests.fix_servers import (
    EVERY_FAMILY,
    Mailbox,
    StartRedis,
    arguments_for,
    list_length,
    settled,
)
from tests.servers import ALL, at_least

OPTIONS = ["keyspaceamqp.format json", "keyspaceamqp.subkeys 3"]
TELL = [name for name in ALL if at_least(name, redis="8.8")]
# A system without such a server has no test of what they tell.
TELLING = pytest.mark.parametrize("family", TELL)


def received(mailbox: Mailbox, count: int) -> list[tuple[str, Any]]:
    items = [json.loads(message.body) for message in mailbox.receive(count)]
    return [(item["event"], item.get("subkeys")) for item in items]


def shown(*names: str, total: int | None = None) -> dict[str, Any]:
    total = len(names) if total is None else total
    return {"names": list(names), "total": total, "cut": total > len(names)}


@EVERY_FAMILY
def test_fields_where_the_server_tells_them(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Messages from other servers have none, and neither have events of other kinds of keys."""
    server = start_redis(family, arguments_for(broker, mailbox, "h$l"), OPTIONS)
    client = server.client()
    client.hset("h", mapping={"a": 1, "b": 2})
    client.hdel("h", "a")
    client.set("s", 1)
    client.rpush("l", 1)
    expected = [("hset", shown("a", "b")), ("hdel", shown("a"))]
    if family not in TELL:
        expected = [(name, None) for name, _ in expected]
        assert "subkeys: messages have none" in server.log()
    assert received(mailbox, 4) == [*expected, ("set", None), ("rpush", None)]
    settled(client, confirmed=4, events_seen=4)


@TELLING
def test_every_command_and_the_expiry_of_fields(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    client = start_redis(family, arguments_for(broker, mailbox, "hg"), OPTIONS).client()
    client.execute_command("HSET", "h", "a", 1, "a", 2, "b", 3)
    client.hincrby("h", "n", 2)
    client.execute_command("HPEXPIRE", "h", 50, "FIELDS", 2, "a", "b")
    wait_for(lambda: client.hlen("h") == 1, 30)
    client.execute_command("HEXPIRE", "h", 0, "FIELDS", 1, "n")
    found = received(mailbox, 6)
    assert found[:3] == [
        ("hset", shown("a", "a", "b")), ("hincrby", shown("n")), ("hexpire", shown("a", "b")),
    ]  # fmt: skip
    assert found[3][0] == "hexpired"
    assert sorted(found[3][1]["names"]) == ["a", "b"]
    assert found[4:] == [("hdel", shown("n")), ("del", None)]
    settled(client, confirmed=6)


@TELLING
def test_limits(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Both limits hold, on the number and on the bytes; any bytes arrive, also with a value."""
    client = start_redis(
        family, arguments_for(broker, mailbox, "h"), [*OPTIONS, "keyspaceamqp.value 10"]
    ).client()
    client.hset("h", mapping={f"f{i}": 1 for i in range(5)})
    large = SUBKEYS_BYTES - 8
    client.hset("h", mapping={"x" * (large - 1): 1, "y": 1})
    client.hset("h", mapping={"x" * large: 1, "y": 1})
    client.hset("h", mapping={"x" * (large + 5): 1, "y": 1})
    client.hset("h", b"\xff\0", 1)
    messages = mailbox.receive(5)
    items = [json.loads(message.body) for message in messages]
    assert [item["subkeys"] for item in items] == [
        shown("f0", "f1", "f2", total=5),
        shown("x" * (large - 1), "y"),
        shown("x" * large, total=2),
        shown(total=2),
        {"names_base64": ["/wA="], "total": 1, "cut": False},
    ]
    assert [item["value"]["length"] for item in items] == [5, 7, 8, 9, 10]
    assert {item["key"] for item in items} == {"h"}
    settled(client, confirmed=5)


@TELLING
@pytest.mark.parametrize("outbox", ["off", "reply", "atomic"])
def test_subkeys_wait_in_the_list(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    client = start_redis(family, arguments_for(free_port(), mailbox, "h"), OPTIONS).client()
    client.hset("h", mapping={b"a": 1, b"\xff": 2})
    wait_for(lambda: list_length(client) == 1, 30)
    event = from_element(client.lindex(KEY, 0))
    assert event is not None
    assert event.subkeys == Subkeys.of((b"a", b"\xff"), 2)
    client.config_set("keyspaceamqp.port", broker.port)
    ((name, found),) = received(mailbox, 1)
    assert name == "hset"
    assert found == {"names_base64": ["YQ==", "/w=="], "total": 2, "cut": False}
    settled(client, confirmed=1, fallback_length=0)


@TELLING
def test_subkeys_wait_in_the_file_of_leftovers(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Subkeys of events just before the stop are in the file, with values and without."""
    server = start_redis(
        family, arguments_for(free_port(), mailbox, "h"), [*OPTIONS, "appendonly yes"]
    )
    with (
        server.client().pipeline(transaction=False) as pipeline,
        contextlib.suppress(redis.ConnectionError),
    ):
        pipeline.hset("h", "b", 1)
        pipeline.config_set("keyspaceamqp.value", 10)
        pipeline.hset("h", "c", 1)
        pipeline.execute_command("SHUTDOWN")
        pipeline.execute()
    wait_for(lambda: not server.running, 30)
    assert list(server.folder.glob("*.leftover"))
    server.start()
    client = server.client()
    client.config_set("keyspaceamqp.port", broker.port)
    assert received(mailbox, 2) == [("hset", shown("b")), ("hset", shown("c"))]
    settled(client, confirmed=2)


@TELLING
def test_on_and_off(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """A change holds from the next event on, and each event comes once; with `format text` too,
    which has no subkeys."""
    server = start_redis(family, arguments_for(broker, mailbox, "h"), OPTIONS)
    client = server.client()
    expected: list[tuple[str, Any]] = []
    for name, value in (("subkeys", 0), ("subkeys", 2), ("events", "A"), ("events", "hx"),
                        ("subkeys", 0), ("subkeys", 1)):  # fmt: skip
        with client.pipeline(transaction=False) as pipeline:
            pipeline.config_set(f"keyspaceamqp.{name}", value)
            pipeline.hset("h", mapping={"a": 1, "b": 1}).execute()
        client.hset("h", mapping={"a": 1, "b": 1})
        subkeys = int(client.config_get("keyspaceamqp.subkeys")["keyspaceamqp.subkeys"])
        names = ["a", "b"][:subkeys]
        expected += [("hset", shown(*names, total=2) if subkeys else None)] * 2
    assert received(mailbox, 12) == expected
    client.config_set("keyspaceamqp.format", "text")
    client.hset("h", "a", 1)
    (message,) = mailbox.receive(1)
    assert message.event == (0, b"hset", b"h")
    settled(client, confirmed=13, events_seen=13)
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    client.hset("h", "a", 1)  # nobody is told, and the server goes on
    assert client.ping()
