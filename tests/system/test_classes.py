"""The classes of events of a server, and the meaning of `A` and of fewer classes there."""

from __future__ import annotations

import json

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer
from tests.fix_servers import EVERY_FAMILY, Mailbox, StartRedis, arguments_for, settled, stats
from tests.servers import at_least, kind_of

# The letters of the classes that not all servers have.
NEWER = "aoc"


def accepted(client: redis.Redis) -> set[str]:
    """Return the newer classes that the server itself accepts in `notify-keyspace-events`."""
    letters = set()
    for letter in NEWER:
        try:
            client.config_set("notify-keyspace-events", f"KE{letter}")
        except redis.ResponseError:
            continue
        letters.add(letter)
    client.config_set("notify-keyspace-events", "")
    return letters


def names(mailbox: Mailbox, count: int) -> list[str]:
    return [message.event[1].decode() for message in mailbox.receive(count)]


@EVERY_FAMILY
def test_the_module_has_the_classes_of_its_server(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    client = start_redis(family, arguments_for(broker, mailbox)).client()
    has = accepted(client)
    for letter in NEWER:
        if letter in has:
            client.config_set("keyspaceamqp.events", f"A{letter}")
            continue
        with pytest.raises(redis.ResponseError) as error:
            client.config_set("keyspaceamqp.events", f"A{letter}")
        assert f"'A{letter}' is not accepted: this server has no class {letter}" in str(error.value)
        given = str(error.value).rpartition("give letters of ")[2].split()
        assert set(given) == set("Ag$lshzxetdmn") | has


@EVERY_FAMILY
def test_a_follows_the_server(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """`A` has the classes that the server itself has in `A`, and no others; also after CONFIG
    REWRITE."""
    server = start_redis(family, arguments_for(broker, mailbox, "x"))
    client = server.client()
    has = accepted(client)
    client.config_set("keyspaceamqp.events", "A")
    client.config_rewrite()
    server.stop()
    server.start()
    client = server.client()
    assert client.config_get("keyspaceamqp.events") == {"keyspaceamqp.events": "A"}
    client.set("a", 1)
    client.set("a", 2)
    client.rpush("b", 1)
    expected = ["set", "set", "rpush"]
    if "a" in has:
        client.execute_command("ARSET", "c", 0, "v")
        client.execute_command("ARDEL", "c", 0)
        expected += ["arset", "ardel", "del"]
    client.set("b", 1)  # another type
    assert names(mailbox, len(expected) + 1) == [*expected, "set"]
    settled(client, events_seen=len(expected) + 1, confirmed=len(expected) + 1)
    assert "does not know" not in server.log()


@EVERY_FAMILY
def test_events_become_fewer_and_more_again(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Each event of a wanted class comes once, whatever was wanted before: in one turn of the event
    loop, over several turns, and after the module was loaded again."""
    server = start_redis(family, arguments_for(broker, mailbox, "A"))
    client = server.client()
    sent = 0
    expected: list[str] = []
    for events, found in (
        ("A", ["set", "rpush", "del"]), ("$", ["set"]), ("$l", ["set", "rpush"]), ("gx", ["del"]),
        ("x", []), ("A", ["set", "rpush", "del"]), ("$x", ["set"]), ("A", ["set", "rpush", "del"]),
    ):  # fmt: skip
        for together in (True, False):
            with client.pipeline(transaction=False) as pipeline:
                pipeline.config_set("keyspaceamqp.events", events)
                if not together:
                    pipeline.execute()
                    client.ping()
                pipeline.set("a", 1).rpush("b", 1).delete("b").execute()
            expected += found
            sent += len(found)
    assert names(mailbox, sent) == expected
    assert stats(client)["events_seen"] == sent
    settled(client, confirmed=sent)
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    client.set("a", 2)
    client.execute_command("MODULE", "LOAD", *server.module[:1], *arguments_for(broker, mailbox))
    client.set("a", 3)
    assert names(mailbox, 1) == ["set"]
    settled(client, confirmed=1, events_seen=1)


@EVERY_FAMILY
def test_the_class_of_fields_that_expire(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Redis and Valkey emit `hexpired` in different classes, as docs/configuration.md says."""
    client = start_redis(
        family, arguments_for(broker, mailbox, "hxg"), ["keyspaceamqp.format json"]
    ).client()
    if not at_least(family, redis="7.4", valkey="9.0"):
        with pytest.raises(redis.ResponseError, match="unknown command"):
            client.execute_command("HPEXPIRE", "h", 20, "FIELDS", 1, "a")
        return
    client.hset("h", "a", 1)
    client.execute_command("HPEXPIRE", "h", 20, "FIELDS", 1, "a")
    items = [json.loads(message.body) for message in mailbox.receive(4)]
    assert [(item["event"], item["class"]) for item in items] == [
        ("hset", "hash"), ("hexpire", "hash"),
        ("hexpired", "hash" if kind_of(family) == "redis" else "expired"), ("del", "generic"),
    ]  # fmt: skip
    settled(client, confirmed=4)
