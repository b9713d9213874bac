"""KEYSPACEAMQP.* as a client of a real server sees them."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, free_port, wait_for
from keyspace_amqp.tables.commands import COMMANDS
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.parameters import PARAMETERS
from keyspace_amqp.tables.stats import Stat, Text
from tests.fix_servers import Mailbox, StartRedis, arguments_for, list_length, settled, stats

NAMES = [item.name.lower() for table in (Text, Stat) for item in table]


def run(client: redis.Redis, line: str) -> Any:
    return client.execute_command(*("KEYSPACEAMQP." + line).split())


def error(client: redis.Redis, line: str) -> str:
    with pytest.raises(redis.exceptions.ResponseError) as raised:
        run(client, line)
    return str(raised.value)


def test_stats_and_info_have_the_same_names(family: str, start_redis: StartRedis) -> None:
    server = start_redis(family)
    old, new = server.client(protocol=2), server.client(protocol=3)
    flat = run(old, "STATS")
    assert isinstance(flat, list)
    assert [name.decode() for name in flat[::2]] == NAMES
    mapped = run(new, "STATS")
    assert isinstance(mapped, dict)
    assert [name.decode() for name in mapped] == NAMES
    shown = [name.removeprefix("keyspaceamqp_") for name in old.info("keyspaceamqp")]
    assert shown == ["version", "python", *NAMES]


def test_stats_reset_keeps_the_books(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    client = start_redis(arguments=arguments_for(broker, mailbox)).client()
    client.set("a", 1)
    settled(client, confirmed=1)
    run(client, "DISCONNECT")
    client.set("b", 1)
    settled(client, fallback_length=1)
    assert run(client, "STATS RESET") == b"OK"
    settled(client, confirmed=0, events_seen=0, events_matched=0, fallback_found=1)
    run(client, "CONNECT")
    settled(client, confirmed=1, fallback_length=0)


def raw(client: redis.Redis, *words: str) -> Any:
    """A reply as it came, without redis-py's own reading of it."""
    connection = client.connection_pool.get_connection()
    try:
        connection.send_command(*words)
        return connection.read_response()
    finally:
        client.connection_pool.release(connection)


def test_command_docs(family: str, start_redis: StartRedis) -> None:
    client = start_redis(family).client(protocol=2)
    for command in COMMANDS:
        name = f"keyspaceamqp.{command.name.lower()}"
        found, documentation = raw(client, "COMMAND", "DOCS", name)
        assert found.decode() == name
        fields = dict(zip(documentation[::2], documentation[1::2], strict=True))
        assert fields[b"summary"].decode() == command.summary
        assert (b"arguments" in fields) == bool(command.arguments)
    _, connect = raw(client, "COMMAND", "DOCS", "keyspaceamqp.connect")
    fields = dict(zip(connect[::2], connect[1::2], strict=True))
    names = [dict(zip(a[::2], a[1::2], strict=True))[b"name"] for a in fields[b"arguments"]]
    assert names[:3] == [b"host", b"port", b"username"]


def test_help(family: str, start_redis: StartRedis) -> None:
    lines = [line.decode() for line in run(start_redis(family).client(), "HELP")]
    for command in COMMANDS:
        assert all(usage in lines for usage in command.usage)


def test_config(family: str, start_redis: StartRedis) -> None:
    client = start_redis(family).client(protocol=3)
    everything = run(client, "CONFIG GET *")
    assert [name.decode() for name in everything] == [parameter.name for parameter in PARAMETERS]
    assert everything[b"password"] == b"(hidden)"
    assert run(client, "CONFIG SET port 1000 host example.org LOCAL") == b"OK"
    assert run(client, "CONFIG GET [hp]o*t LOCAL") == {b"host": b"example.org", b"port": b"1000"}
    assert client.config_get("keyspaceamqp.port") in (
        {"keyspaceamqp.port": "1000"},
        {b"keyspaceamqp.port": b"1000"},
    )
    assert "there is no parameter 'nonsense'" in error(client, "CONFIG SET nonsense 1")
    assert "delivery-mode: '7' is not accepted" in error(
        client, "CONFIG SET port 2000 delivery-mode 7"
    )
    assert run(client, "CONFIG GET port") == {b"port": b"1000"}  # all or nothing


def test_keymask(family: str, start_redis: StartRedis) -> None:
    client = start_redis(family).client()
    assert run(client, "KEYMASK LIST") == [b"ALL"]
    assert run(client, "KEYMASK SET ^a ^b ^a") == 2
    assert run(client, "KEYMASK ADD c$ ^b") == 3
    assert run(client, "KEYMASK LIST") == [b"^a", b"^b", b"c$"]
    assert run(client, "KEYMASK TEST abc") == 1
    assert run(client, "KEYMASK TEST xyz") == 0
    assert run(client, "KEYMASK DEL ^a") == 2
    assert run(client, "KEYMASK TEST ab") == 0
    assert "there is no mask '^a'" in error(client, "KEYMASK DEL c$ ^a")
    assert run(client, "KEYMASK LIST") == [b"^b", b"c$"]
    binary = bytes(range(1, 256))
    assert client.execute_command("KEYSPACEAMQP.KEYMASK", "SET", b"\0\xff", binary) == 2
    assert run(client, "KEYMASK LIST") == [b"\0\xff", binary]
    assert client.execute_command("KEYSPACEAMQP.KEYMASK", "TEST", b"a\0\xffb") == 1
    with pytest.raises(redis.exceptions.ResponseError, match="a mask cannot be empty"):
        client.execute_command("KEYSPACEAMQP.KEYMASK", "ADD", "")
    assert run(client, "KEYMASK CLEAR") == 0
    assert run(client, "KEYMASK LIST") == []


def test_nothing_is_forwarded_after_clear(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    client = start_redis(arguments=arguments_for(broker, mailbox)).client()
    client.set("before", 1)
    run(client, "KEYMASK CLEAR")
    client.set("without", 1)
    run(client, "KEYMASK SET ALL")
    client.set("after", 1)
    assert [m.event[2] for m in mailbox.receive(2)] == [b"before", b"after"]
    settled(client, events_seen=3, events_matched=2)


def test_connect_with_arguments(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    client = start_redis(arguments=arguments_for(free_port())).client()
    client.set("a", 1)
    settled(client, fallback_length=1)
    words = [
        "127.0.0.1",
        broker.port,
        "guest",
        "guest",
        7,
        "amq.direct",
        mailbox.routing_key,
        2,
        500,
        "^a",
        "^b",
    ]
    assert client.execute_command("KEYSPACEAMQP.CONNECT", *words) == b"OK"
    (message,) = mailbox.receive(1)
    assert message.properties.delivery_mode == 2
    found = run(client, "CONFIG GET *")
    assert (found[b"heartbeat"], found[b"fallback-size"]) == (b"7", b"500")
    assert found[b"masks"] == b"^a ^b"
    # A wrong one changes nothing.
    assert "port: 'x' is not accepted" in error(client, "CONNECT other-host x")
    assert run(client, "CONFIG GET host") == {b"host": b"127.0.0.1"}
    # Connects now, not with the next event.
    run(client, "DISCONNECT")
    run(client, "CONNECT LOCAL")
    settled(client, state="connected")


def test_fallback(family: str, start_redis: StartRedis) -> None:
    client = start_redis(family, arguments_for(free_port())).client()
    for number in range(30):
        client.set(f"k{number}", 1)
    settled(client, fallback_length=30)
    assert run(client, "FALLBACK LEN") == 30
    elements = client.lrange(KEY, 0, -1)
    assert run(client, "FALLBACK PEEK") == elements[:10]
    assert run(client, "FALLBACK PEEK 3") == elements[:3]
    assert run(client, "FALLBACK PEEK 100") == elements
    assert "count: '0' is not accepted" in error(client, "FALLBACK PEEK 0")
    assert run(client, "FALLBACK DRAIN") == 30  # so many wait; there is no broker
    assert run(client, "FALLBACK PURGE") == 30
    assert list_length(client) == 0
    settled(client, fallback_length=0, dropped=30, dropped_purged=30)
    assert run(client, "FALLBACK PURGE") == 0


def test_drain_tries_at_once(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    client = start_redis(arguments=arguments_for(free_port(), mailbox)).client()
    client.set("a", 1)
    settled(client, fallback_length=1)
    client.config_set("keyspaceamqp.port", broker.port)
    assert run(client, "FALLBACK DRAIN") in (0, 1)
    settled(client, fallback_length=0, confirmed=1)


WRONG = [
    "CONFIG",
    "CONFIG GET",
    "CONFIG GET a b",
    "CONFIG SET",
    "CONFIG SET port",
    "CONFIG RESET x",
    "KEYMASK",
    "KEYMASK ADD",
    "KEYMASK LIST x",
    "KEYMASK TEST",
    "KEYMASK NONSENSE",
    "FALLBACK",
    "FALLBACK LEN x",
    "FALLBACK PEEK 1 2",
    "FALLBACK FOO",
    "DISCONNECT x",
]


@pytest.mark.parametrize("line", WRONG)
def test_wrong_arguments_get_help(line: str, start_redis: StartRedis) -> None:
    text = error(start_redis().client(), line)
    assert f"KEYSPACEAMQP.{line.split()[0]}" in text


def test_wrong_stats_arguments(start_redis: StartRedis) -> None:
    assert "RESET" in error(start_redis().client(), "STATS NONSENSE")


def test_in_multi_and_in_scripts(family: str, start_redis: StartRedis) -> None:
    """Commands that wait for the worker are refused there, with the reason; STATS does not wait."""
    client = start_redis(family).client()
    pipeline = client.pipeline()
    pipeline.execute_command("KEYSPACEAMQP.STATS")
    pipeline.execute_command("KEYSPACEAMQP.KEYMASK", "LIST")
    numbers, refused = pipeline.execute(raise_on_error=False)
    assert len(numbers) >= len(NAMES)
    assert "MULTI" in str(refused)
    with pytest.raises(redis.exceptions.ResponseError):
        client.eval("return redis.call('KEYSPACEAMQP.KEYMASK', 'LIST')", 0)
    assert run(client, "KEYMASK LIST") == [b"ALL"]


def test_clients_that_leave_while_they_wait(start_redis: StartRedis) -> None:
    server = start_redis()
    for _ in range(200):
        client = server.client(socket_timeout=None)
        connection = client.connection_pool.get_connection()
        connection.send_command("KEYSPACEAMQP.KEYMASK", "LIST")
        connection.disconnect()
        client.close()
    client = server.client()
    assert run(client, "KEYMASK LIST") == [b"ALL"]
    wait_for(lambda: client.info("clients")["blocked_clients"] == 0, 30)


def test_stats_of_all_names_are_there(start_redis: StartRedis) -> None:
    """The names that the documentation promises."""
    promised = [
        "state",
        "broker",
        "last_error",
        "events_seen",
        "events_matched",
        "published",
        "confirmed",
        "nacked",
        "returned",
        "dropped",
        "fallback_length",
        "fallback_pushed",
        "fallback_drained",
        "fallback_found",
        "queue_length",
        "queue_bytes",
        "in_flight",
        "reconnects",
    ]
    assert set(promised) <= set(stats(start_redis().client()))
