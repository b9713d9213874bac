"""A server that names the module twice when it starts.

`CONFIG REWRITE`, and Sentinel with it, writes a `loadmodule` line into redis.conf, also if an
included file or the command line has it already. Servers abort their start if a module does not
load. So the second load in one start is no error.
"""

from __future__ import annotations

import pathlib
import re
import socket

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, ServerError, wait_for
from tests.fix_servers import (
    EVERY_FAMILY,
    MODULE,
    Mailbox,
    StartRedis,
    arguments_for,
    handler_copy,
    once,
    settled,
)
from tests.servers import program
from tests.system.test_load import load_fails, parameters
from tests.system.test_redis_faults import Sentinel

AGAIN = "loadmodule names this module again"
REFUSED = "To load it again, give MODULE UNLOAD"


def includes(server: RedisServer, *lines: str) -> None:
    """Have the server's redis.conf begin with an `include` of a file with these lines."""
    included = server.folder / "module.conf"
    server.folder.mkdir(exist_ok=True)
    included.write_text("\n".join(lines) + "\n")
    server.options.insert(0, f"include {included}")


def appends(server: RedisServer, *lines: str) -> None:
    """Have the server's redis.conf end with these lines, behind the `loadmodule` line."""
    if not server.config_path.exists():
        server.write_config()
    with server.config_path.open("a") as file:
        file.writelines(line + "\n" for line in lines)


def lines_of(server: RedisServer, name: str) -> list[str]:
    """Return the lines of the server's redis.conf that begin with a word."""
    return [
        line for line in server.config_path.read_text().splitlines() if line.split()[:1] == [name]
    ]


def loads(client: redis.Redis) -> int:
    """Return how often the server has the module. (Some have modules of their own, too.)"""
    return [module[b"name"] for module in client.module_list()].count(b"keyspaceamqp")


@EVERY_FAMILY
def test_include_and_rewrite(
    family: str, start_redis: StartRedis, broker: RabbitServer, mailbox: Mailbox
) -> None:
    """However often it is rewritten and started again: the server starts, the module is there
    once, values that were set survive, and an event is one message."""
    server = start_redis(family, None, start=False)
    includes(
        server,
        f"loadmodule {MODULE}",
        "keyspaceamqp.events $",
        f"keyspaceamqp.port {broker.port}",
        f"keyspaceamqp.routing-key {mailbox.routing_key}",
        "keyspaceamqp.app-id included",
    )
    for number in range(1, 4):
        server.start()
        client = server.client()
        client.set("key", number)
        settled(client, confirmed=1, events_seen=1, dropped=0)
        assert loads(client) == 1
        assert parameters(client)["app-id"] == ("included" if number == 1 else str(number - 1))
        client.config_set("keyspaceamqp.app-id", number)
        client.config_rewrite()
        assert len(lines_of(server, "loadmodule")) == 1
        server.stop()
    found = [(message.event[2], message.properties.app_id) for message in mailbox.receive(3)]
    assert found == [(b"key", "included"), (b"key", "1"), (b"key", "2")]
    assert server.log().count(AGAIN) == 2  # not in the first start
    assert "included file" in server.log()


@EVERY_FAMILY
def test_the_command_line_and_rewrite(family: str, start_redis: StartRedis) -> None:
    server = start_redis(family, None, start=False)
    command = [*server.command(), "--loadmodule", str(MODULE), "--keyspaceamqp.port", "1000"]
    server.command = lambda: command  # type: ignore[method-assign]
    for _ in range(3):
        server.start()
        client = server.client()
        assert loads(client) == 1
        assert parameters(client)["port"] == "1000"
        client.config_rewrite()
        assert len(lines_of(server, "loadmodule")) == 1
        server.stop()
    assert server.log().count(AGAIN) == 2


def test_sentinel_rewrites(family: str, start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """It makes another server the primary, and both write their redis.conf unasked."""
    first, second = (start_redis(family, None, start=False) for _ in range(2))
    for server in first, second:
        includes(server, f"loadmodule {MODULE}")
    second.options.append(f"replicaof 127.0.0.1 {first.port}")
    first.start()
    second.start()
    with Sentinel(tmp_path / "sentinel", program(family)).watch(first) as sentinel:
        with sentinel.client() as client:
            wait_for(lambda: len(client.execute_command("SENTINEL", "REPLICAS", "here")) == 1, 30)
            wait_for(lambda: _fails_over(client), 30)
        wait_for(lambda: sentinel.primary() == second.port, 60)
        wait_for(lambda: all(lines_of(server, "loadmodule") for server in (first, second)), 60)
    for server in first, second:
        server.stop()
    for server in second, first:
        server.start()
        assert loads(server.client()) == 1
        assert AGAIN in server.log()


def _fails_over(sentinel: redis.Redis) -> bool:
    try:
        return bool(sentinel.execute_command("SENTINEL", "FAILOVER", "here"))
    except redis.ResponseError:  # it does not know the replica well enough yet
        return False


@pytest.mark.parametrize("second", [[], ["g", "other-host", "5672", "user", "s3cret"]])
def test_the_first_arguments_are_in_force(
    second: list[str], family: str, start_redis: StartRedis
) -> None:
    """If those of the second line are others, the log says so, without them."""
    line = " ".join(["loadmodule", str(MODULE), *second])
    server = start_redis(family, ["$", "localhost"], [], start=False)
    appends(server, line, "keyspaceamqp.port 1000")
    server.start()
    client = server.client()
    found = parameters(client)
    assert (found["events"], found["host"], found["port"]) == ("$", "localhost", "1000")
    (said,) = (text for text in server.log().splitlines() if AGAIN in text)
    assert "with other arguments" in said
    assert "s3cret" not in server.log()
    assert "other-host" not in said


def test_the_same_arguments_are_no_other_ones(family: str, start_redis: StartRedis) -> None:
    server = start_redis(family, ["$", "localhost"], start=False)
    server.write_config()
    appends(server, *lines_of(server, "loadmodule"))
    server.start()
    (said,) = (text for text in server.log().splitlines() if AGAIN in text)
    assert "with other arguments" not in said


@EVERY_FAMILY
def test_it_can_be_unloaded_and_loaded(
    family: str, start_redis: StartRedis, broker: RabbitServer, mailbox: Mailbox
) -> None:
    """After a start that names it three times. While it is loaded, another load is refused, and
    changes nothing."""
    arguments = arguments_for(broker, mailbox, "$")
    server = start_redis(family, arguments, start=False)
    appends(server, *2 * [f"loadmodule {MODULE}"])
    server.start()
    client = server.client()
    assert server.log().count(AGAIN) == 2
    before = parameters(client)
    for number in range(1, 4):
        client.set("key", number)
        load_fails(server, MODULE)
        assert loads(client) == 1
        assert parameters(client) == before
        settled(client, confirmed=1, events_seen=1, dropped=0)
        client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
        assert loads(client) == 0
        assert not client.config_get("keyspaceamqp.*")
        client.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
    assert [message.event[2] for message in once(mailbox.receive(3))] == [b"key"] * 3
    assert server.log().count(AGAIN) == 2


@EVERY_FAMILY
def test_a_replica_that_loads_it(family: str, start_redis: StartRedis) -> None:
    """A server does not count its replicas as clients: this load looks as if it came from none. It
    is refused as any other."""
    server = start_redis(family)
    with socket.create_connection(("127.0.0.1", server.port), 30) as link:
        link.sendall(b"SYNC\r\n")
        client = server.client()
        wait_for(lambda: client.info("replication")["connected_slaves"] == 1, 30)
        client.close()  # its connection
        link.sendall(f"MODULE LOAD {MODULE}\r\n".encode())
        wait_for(lambda: REFUSED in server.log() or AGAIN in server.log(), 30)
    assert REFUSED in server.log()
    assert AGAIN not in server.log()


def test_arguments_that_a_rewrite_would_spoil(family: str, start_redis: StartRedis) -> None:
    """It writes them without quotes. The log names them, without their values, and what to use."""
    given = ["xe", "host", "5672", "user", "s3 cret", "30", "", "a'b", "2", "0", "^a", "^b c", " "]
    warning = re.compile(r"argument (\d+), (\S+): it is empty .* name: keyspaceamqp\.(\S+)")
    server = start_redis(family, given)
    assert warning.findall(server.log()) == [
        ("5", "password", "password"),
        ("7", "exchange", "exchange"),
        ("8", "routing-key", "routing-key"),
        ("12", "masks", "masks"),
    ]
    assert "s3 cret" not in server.log()
    server = start_redis(family, ["xe", "host", "5672", "user", "s\\#3cret", "30", "e", "k.{key}"])
    assert not warning.search(server.log())
    server.client().config_rewrite()
    before = parameters(server.client())
    server.stop()
    server.start()
    assert parameters(server.client()) == before


def test_another_build_is_refused(
    family: str, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """Two copies cannot be in one process. The server does not start; the log says why, and what
    to do."""
    server = start_redis(family, start=False)
    appends(server, f"loadmodule {handler_copy(tmp_path / 'copy')}")
    with pytest.raises(ServerError):
        server.start()
    log = server.log()
    assert "is loaded already, from another file" in log
    assert "name one file" in log


def test_a_first_load_that_fails(family: str, start_redis: StartRedis) -> None:
    """The server does not start, also if a later line would be accepted: nothing is loaded by
    halves."""
    server = start_redis(family, ["unknown"], start=False)
    appends(server, f"loadmodule {MODULE}")
    with pytest.raises(ServerError):
        server.start()
    log = server.log()
    assert "argument 1, events: 'unknown' is not accepted" in log
    assert AGAIN not in log
