"""`keyspace-amqp drain` and `replay`: the elements of the list into a file and back, with
real servers. Nothing may be lost, and the module's books balance afterwards."""

from __future__ import annotations

import contextlib
import io
import json
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from keyspace_amqp import cli
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.fallback import to_element
from keyspace_amqp.message import Event, Value
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tools.elements import from_line, to_line
from tests.fix_cluster import StartCluster
from tests.fix_faults import Load, delivered
from tests.fix_servers import (
    ROOT,
    Mailbox,
    StartRedis,
    arguments_for,
    list_length,
    once,
    settled,
    stats,
)
from tests.fix_tools import url
from tests.servers import REDIS

BINARY = [b"plain", b"\0\n\xff", b"\xc3\xa9", b"\xe2\x80\xa8", b"", b'"\\\t', bytes(range(256))]


def words_of(server: RedisServer, name: str, words: Sequence[object]) -> list[str]:
    return [name, "--redis", url(server), *map(str, words)]


def tool(server: RedisServer, name: str, *words: object, code: int = 0) -> str:
    """Runs `keyspace-amqp` in this process; returns what it prints on standard error."""
    with contextlib.redirect_stderr(io.StringIO()) as said:
        assert cli.main(words_of(server, name, words)) == code, said.getvalue()
    return said.getvalue()


def run(
    server: RedisServer, name: str, *words: object, before: str = ""
) -> subprocess.CompletedProcess[bytes]:
    """Runs it in a process of its own. `before`: Python to run there before it starts."""
    code = f"import sys; {before}\nfrom keyspace_amqp.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", code, *words_of(server, name, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True)


def elements_in(path: pathlib.Path) -> list[bytes]:
    return [from_line(line) for line in path.read_bytes().splitlines(keepends=True)]


def listed(client: redis.Redis) -> list[bytes]:
    return client.lrange(KEY, 0, -1)


def stored(client: redis.Redis, count: int, prefix: str = "k") -> list[bytes]:
    """Makes so many events and waits until they are in the list; returns their keys."""
    keys = [f"{prefix}{number}".encode() for number in range(count)]
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.set(key, 1)
        pipeline.execute()
    seen = stats(client)["events_seen"]
    settled(client, events_matched=seen, queue_length=0, in_flight=0)
    assert list_length(client) == stats(client)["fallback_length"] >= count
    return keys


def test_there_and_back_byte_for_byte(
    family: str, broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """Elements that are taken out count as removed. Those that are put back count as found, and
    arrive with their first message_id."""
    mailbox = Mailbox(broker)
    server = start_redis(family, arguments_for(free_port(), mailbox, "$"))
    client = server.client()
    for key in BINARY:
        client.set(key, 1)
    keys = BINARY + stored(client, 3000)
    elements = listed(client)
    file = tmp_path / "events.jsonl"
    assert tool(server, "drain", "--to", file) == "3007 elements taken out\n"
    assert elements_in(file) == elements
    settled(client, fallback_length=0, dropped=3007, dropped_fallback_removed=3007)
    assert list_length(client) == 0
    said = tool(server, "replay", file)
    assert said == (f"3007 of 3007 elements pushed to {KEY.decode()} of 127.0.0.1:{server.port}\n")
    assert listed(client) == elements
    settled(client, fallback_length=3007, fallback_found=3007)
    client.config_set("keyspaceamqp.port", broker.port)
    delivered(client, mailbox, keys, dropped=3007, confirmed=3007, fallback_found=3007)


def test_lines_are_for_people_too() -> None:
    event = Event("a1-2", 1795371986069, 3, "$", b"set", b"user:42")
    shown = json.loads(to_line(to_element(event)))
    assert shown.pop("element")
    assert shown == {
        "id": "a1-2",
        "time": "2026-11-22T18:26:26.069+00:00",
        "db": 3,
        "event": "set",
        "key": "user:42",
    }
    event.key = b"\xff"
    assert json.loads(to_line(to_element(event)))["key_base64"] == "/w=="
    event.time_ms = 2**62
    assert from_line(to_line(to_element(event))) == to_element(event)
    assert json.loads(to_line(b"garbage")) == {"element": "Z2FyYmFnZQ=="}


@pytest.mark.parametrize("batch", [1, 2])
def test_a_kill_between_file_and_removal(
    batch: int, broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """kill -9 just before a removal, and another one in the middle of a line: every event is in the
    file or in Redis, and the next run goes on."""
    mailbox = Mailbox(broker)
    server = start_redis(arguments=arguments_for(free_port(), mailbox, "$"))
    client = server.client()
    keys = stored(client, 1500)
    elements = listed(client)
    file = tmp_path / "events.jsonl"
    killed = f"""
import itertools, os, signal
from keyspace_amqp.tools import elements
remove, calls = elements._remove, itertools.count(1)
def _remove(*words):
    if next(calls) == {batch}:
        os.kill(os.getpid(), signal.SIGKILL)
    return remove(*words)
elements._remove = _remove
"""
    done = run(server, "drain", "--to", file, before=killed)
    assert done.returncode == -signal.SIGKILL
    written, left = elements_in(file), listed(client)
    assert 0 < len(written) + len(left) - len(elements) <= len(written) < 1500
    assert sorted({*written, *left}) == sorted(elements)
    file.write_bytes(file.read_bytes() + to_line(elements[-1])[:20])
    tool(server, "drain", "--to", file, code=1)
    tool(server, "drain", "--to", file, "--append")
    assert list_length(client) == 0
    lines = elements_in(file)
    assert list(dict.fromkeys(lines)) == elements
    settled(client, fallback_length=0, dropped=1500)
    tool(server, "replay", file)
    client.config_set("keyspaceamqp.port", broker.port)
    settled(client, fallback_length=0, fallback_found=len(lines), confirmed=len(lines))
    assert [message.event[2] for message in once(mailbox.receive())] == keys


def test_while_writes_go_on(
    broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """The module pushes to the list during the drain: each event is in one place, and in order."""
    mailbox = Mailbox(broker)
    server = start_redis(arguments=arguments_for(free_port(), mailbox, "$"))
    client = server.client()
    keys = stored(client, 3000)
    file = tmp_path / "events.jsonl"
    with Load(server, batch=20, pause=0.005) as load:
        load.more(100)
        for number in range(3):
            load.more(100)
            wait_for(lambda: list_length(client) > 0, 30)
            tool(server, "drain", "--to", file, *(["--append"] if number else []))
    keys += load.keys
    settled(client, events_matched=len(keys), queue_length=0)
    taken = len(elements_in(file))
    assert taken > 3000
    assert taken + list_length(client) == len(keys)
    settled(client, dropped_fallback_removed=taken, fallback_length=len(keys) - taken)
    tool(server, "drain", "--to", file, "--append")
    settled(client, dropped=len(keys), fallback_length=0)
    tool(server, "replay", file)
    client.config_set("keyspaceamqp.port", broker.port)
    delivered(client, mailbox, keys, dropped=len(keys), fallback_found=len(keys))


def test_only_what_was_written_is_removed(start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """Another client trims the list between the read and the removal: elements that were not read
    stay."""
    server = start_redis(arguments=arguments_for(free_port(), events="$"))
    client = server.client()
    stored(client, 1000)
    elements = listed(client)
    file = tmp_path / "events.jsonl"
    trims = """
from keyspace_amqp.tools import elements
write, done = elements._File.write, []
def _write(file, batch):
    write(file, batch)
    if not done:
        import redis
        with redis.Redis.from_url(sys.argv[3]) as client:
            client.ltrim("keyspaceamqp:{0}:fallback", 50, -1)
        done.append(1)
elements._File.write = _write
"""
    done = run(server, "drain", "--to", file, before=trims)
    assert done.stderr == b"950 elements taken out\n"
    assert list(dict.fromkeys(elements_in(file))) == elements
    settled(client, fallback_length=0, dropped_fallback_removed=1000)


def test_it_does_not_fight_with_the_module(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """While the module delivers the list, drain is refused: before it begins, and when the broker
    comes back meanwhile. With --force nothing is lost either."""
    server = start_redis(arguments=arguments_for(broker, mailbox, "$"))
    client = server.client()
    assert client.execute_command("KEYSPACEAMQP.DISCONNECT") == b"OK"
    settled(client, state="disconnected")
    keys = stored(client, 2000)
    file = tmp_path / "events.jsonl"
    reconnects = """
from keyspace_amqp.tools import elements
remove = elements._remove
def _remove(client, key, batch):
    client.execute_command("KEYSPACEAMQP.CONNECT")
    while elements.stats(client)["state"] != "connected":
        pass
    return remove(client, key, batch)
elements._remove = _remove
"""
    done = run(server, "drain", "--to", file, before=reconnects)
    assert done.returncode == 1
    assert b"is connected and delivers its list. Give KEYSPACEAMQP.DISCONNECT" in done.stderr
    numbers = settled(client, fallback_length=0, queue_length=0, in_flight=0)
    assert numbers["dropped"] == numbers["dropped_fallback_removed"] <= 500
    arrived = {message.event[2] for message in mailbox.receive()}
    written = {element.rpartition(b" ")[2] for element in elements_in(file)}
    assert arrived | written == set(keys)
    forced = tmp_path / "forced.jsonl"
    client.execute_command("KEYSPACEAMQP.DISCONNECT")
    keys = stored(client, 2000, "forced")
    client.execute_command("KEYSPACEAMQP.CONNECT")
    tool(server, "drain", "--to", forced, "--force")
    settled(client, fallback_length=0, queue_length=0, in_flight=0)
    arrived = {message.event[2] for message in mailbox.receive()}
    if forced.exists():  # otherwise the module was faster
        arrived |= {element.rpartition(b" ")[2] for element in elements_in(forced)}
    assert arrived == set(keys)


def test_large_elements_go_in_small_batches(
    broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """With its value an element may have a megabyte, and Redis should be busy with only a few of
    them at a time."""
    server = start_redis(arguments=arguments_for(free_port(), Mailbox(broker), "$"))
    client = server.client()
    stored(client, 10)
    large = to_element(
        Event("a-1", 1, 0, "$", b"set", b"k", Value("string", 10**6, b"x" * 10**6, before=False))
    )
    client.rpush(KEY, *[large] * 30)
    before = listed(client)
    client.execute_command("SLOWLOG", "RESET")
    client.config_set("slowlog-log-slower-than", 0)
    client.config_set("slowlog-max-len", 1000)
    file = tmp_path / "events.jsonl"
    tool(server, "drain", "--to", file)
    assert elements_in(file) == before
    evals = [e for e in client.slowlog_get(1000) if e["command"].startswith(b"EVAL")]
    # Ten small ones and the first large one, then one at a time: each read and removed.
    assert len(evals) == 2 * 30


def test_a_cluster(
    broker: RabbitServer, start_cluster: StartCluster, tmp_path: pathlib.Path
) -> None:
    """The lists of all primaries into one file; back into one list."""
    bench = start_cluster(REDIS, broker, primaries=3, replicas=0)
    first, *_, last = bench.cluster.nodes
    with first.client() as client:
        client.execute_command("KEYSPACEAMQP.DISCONNECT")
    bench.write(600)
    bench.waits_for(fallback_length=600)
    file = tmp_path / "events.jsonl"
    assert tool(last, "drain", "--to", file) == "600 elements taken out\n"
    keys = [element.rpartition(b" ")[2] for element in elements_in(file)]
    assert sorted(keys) == sorted(key for _, key in bench.written)
    bench.waits_for(fallback_length=0, dropped_fallback_removed=600)
    tool(last, "replay", file)
    bench.waits_for(fallback_length=600, fallback_found=600)
    with first.client() as client:
        client.execute_command("KEYSPACEAMQP.CONNECT")
    bench.waits_for(fallback_length=0, confirmed=600)
    for node in bench.running:
        with node.client() as client:
            settled(client)
    assert [message.event[2] for message in bench.mailbox.receive()] == keys
    for node in bench.running:  # a cluster that is down answers no LLEN
        with node.client() as client:
            client.config_set("cluster-require-full-coverage", "no")
    last.kill()
    said = tool(first, "drain", "--to", tmp_path / "more", "--force", code=1)
    assert f"127.0.0.1:{last.port} does not answer; its list, if any, stays there" in said


def test_a_file_is_never_overwritten(start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """And nothing is taken out if the file cannot be written."""
    server = start_redis(arguments=arguments_for(free_port(), events="$"))
    client = server.client()
    stored(client, 10)
    file = tmp_path / "events.jsonl"
    file.write_text("something else")
    assert "exists; --append" in tool(server, "drain", "--to", file, code=1)
    said = tool(server, "drain", "--to", file, "--append", code=1)
    assert "is no file of this command" in said
    assert file.read_text() == "something else"
    assert "No such file" in tool(server, "drain", "--to", tmp_path / "no" / "file", code=1)
    assert "No space left" in tool(server, "drain", "--to", "/dev/full", "--append", code=1)
    settled(client, fallback_length=10, dropped=0)
    done = run(server, "drain", "--to", "-")
    assert done.returncode == 0
    assert len([from_line(line) for line in done.stdout.splitlines(keepends=True)]) == 10
    settled(client, fallback_length=0, dropped=10)
    assert tool(server, "drain", "--to", tmp_path / "empty") == "0 elements taken out\n"


def test_nothing_to_take_is_no_reason_to_look_away(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """What would be refused with elements in the list is refused with none, and leaves no file."""
    server = start_redis(arguments=arguments_for(broker, mailbox, "$"))
    client = server.client()
    file = tmp_path / "events.jsonl"
    said = tool(server, "drain", "--to", file, code=1)
    assert "is idle and may at any time deliver its list" in said
    client.set("key", 1)
    settled(client, state="connected", confirmed=1)
    assert "is connected and delivers its list" in tool(server, "drain", "--to", file, code=1)
    assert tool(server, "drain", "--to", file, "--force") == "0 elements taken out\n"
    client.execute_command("KEYSPACEAMQP.DISCONNECT")
    assert "No such file" in tool(server, "drain", "--to", tmp_path / "no" / "file", code=1)
    assert tool(server, "drain", "--to", file) == "0 elements taken out\n"
    assert not file.exists()
    file.write_text("something else")
    assert "exists; --append" in tool(server, "drain", "--to", file, code=1)
    said = tool(server, "drain", "--to", file, "--append", code=1)
    assert "is no file of this command" in said
    file.write_bytes(b"")
    assert tool(server, "drain", "--to", file, "--append") == "0 elements taken out\n"
    assert file.exists()  # it was there before
    client.execute_command("ACL SETUSER", "default", "-llen")
    said = tool(server, "drain", "--to", file, "--append", code=1)
    assert "no permissions" in said.lower()
    assert "llen" in said.lower()


def test_a_user_who_may_not_ask_for_the_state(
    start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """The error says what is needed. With --force nothing is, whether elements wait or not."""
    server = start_redis(arguments=arguments_for(free_port(), events="$"))
    client = server.client()
    file = tmp_path / "events.jsonl"
    stored(client, 10)
    client.execute_command("ACL SETUSER", "default", "-keyspaceamqp.stats")
    said = tool(server, "drain", "--to", file, code=1)
    assert "keyspaceamqp.stats" in said.lower()
    assert "give a user who may ask for it, or --force" in said
    assert not file.exists()
    assert tool(server, "drain", "--to", file, "--force") == "10 elements taken out\n"
    more = tmp_path / "more.jsonl"
    assert tool(server, "drain", "--to", more, "--force") == "0 elements taken out\n"
    client.execute_command("ACL SETUSER", "default", "+keyspaceamqp.stats")
    settled(client, fallback_length=0, dropped=10)


def test_no_module_and_no_list(start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """It may be the wrong server. A list without the module is taken out: see
    test_other_servers."""
    server = start_redis(arguments=None)
    file = tmp_path / "events.jsonl"
    said = tool(server, "drain", "--to", file, code=1)
    assert f"neither the module nor a list of it in 127.0.0.1:{server.port}" in said
    assert not file.exists()


@pytest.mark.parametrize(
    "line",
    [
        b"no JSON\n",
        b'{"id": "a"}\n',
        b'["element"]\n',
        b'{"element": 1}\n',
        b'{"element": "?"}\n',
        to_line(to_element(Event("a-1", 1, 0, "$", b"set", b"k"))).replace(b"M", b"M!", 1),
        to_line(b"garbage"),
        to_line(to_element(Event("a-1", 1, 0, "$", b"set", b"k")))[:-30],
        b"\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_a_bad_line(line: bytes, bad_lines: Any) -> None:
    """The error names it, and nothing is pushed."""
    server, file = bad_lines
    sound = [to_line(to_element(Event(f"a-{n}", 1, 0, "$", b"set", b"k"))) for n in range(5000)]
    file.write_bytes(b"".join(sound) + line)
    assert f"{file}, line 5001: " in tool(server, "replay", file, code=1)
    with server.client() as client:
        assert list_length(client) == 0


@pytest.fixture(scope="module")
def bad_lines(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A server without the module, for tests of the list alone."""
    folder = tmp_path_factory.mktemp("bad")
    with RedisServer(folder) as server:
        yield server, folder / "events.jsonl"


def test_replay_does_not_push_what_would_be_cut_off(
    start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """fallback-size applies at the module's pushes, which would then cut off the oldest."""
    server = start_redis(arguments=arguments_for(free_port(), events="$", size=100))
    client = server.client()
    stored(client, 60)
    file = tmp_path / "events.jsonl"
    tool(server, "drain", "--to", file)
    stored(client, 60, "more")
    said = tool(server, "replay", file, code=1)
    assert "has 60 elements" in said
    assert "with 60 more these are more than fallback-size (100)" in said
    settled(client, fallback_length=60)
    client.config_set("keyspaceamqp.fallback-size", 120)
    tool(server, "replay", file)
    settled(client, fallback_length=120)


def test_other_servers(start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """A replica is refused. A server without the module is not: there nothing else delivers the
    list."""
    primary = start_redis(arguments=None, options=["repl-diskless-sync-delay 0"])
    replica = start_redis(arguments=None, options=[f"replicaof 127.0.0.1 {primary.port}"])
    elements: Sequence[bytes] = [to_element(Event("a-1", 1, 0, "$", b"set", b"k"))]
    primary.client().rpush(KEY, *elements)
    wait_for(lambda: list_length(replica.client()) == 1, 30)
    file = tmp_path / "events.jsonl"
    assert "is a replica" in tool(replica, "drain", "--to", file, code=1)
    tool(primary, "drain", "--to", file)
    tool(primary, "replay", file)
    assert listed(primary.client()) == elements
    assert "replica" in tool(replica, "replay", file, code=1)
