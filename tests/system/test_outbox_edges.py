"""The outbox where a server does something unusual: it stops within the turn of a write, resumes a
client late, has commands under other names, or runs a module that writes while we do."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import socket
import subprocess
import time

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tables.keys import KEY
from tests.bench.measure import thread_ns
from tests.fix_faults import worker_threads
from tests.fix_outbox import (
    EVERY_OUTBOX,
    SOME_OUTBOX,
    check_same,
    has_atomic,
    keys_there,
    lengths_within,
    listed,
)
from tests.fix_servers import (
    ROOT,
    Mailbox,
    StartRedis,
    arguments_for,
    list_length,
    settled,
    stats,
)
from tests.servers import ALL, NEW_REDIS, NEW_VALKEY

AOF, SAVE = "appendonly yes", "save 3600 1"


def send(server: RedisServer, *commands: str) -> socket.socket:
    """Sends commands in one piece, and returns the connection."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    connection.sendall("".join(f"{command}\r\n" for command in commands).encode())
    return connection


# ---- stops within a turn -----------------------------------------------------------


@pytest.mark.parametrize("options", [[AOF, SAVE], [AOF, "save ''"], [SAVE]], ids=" ".join)
@SOME_OUTBOX
def test_a_shutdown_in_the_turn_of_a_write(
    family: str, options: list[str], start_redis: StartRedis
) -> None:
    """The append-only file is closed before the last save, so no event may go only into that."""
    server = start_redis(family, arguments_for(free_port(), events="$"), options)
    with send(server, *(f"SET key:{n} 1" for n in range(5)), "SHUTDOWN"):
        assert server.process is not None
        server.process.wait(30)
    server.start()
    client = server.client()
    settled(client, fallback_length=5, queue_length=0, dropped=0)
    assert len(keys_there(client)) == 5
    check_same(client, lambda: listed(client))


@SOME_OUTBOX
def test_a_shutdown_within_a_script(family: str, outbox: str, start_redis: StartRedis) -> None:
    """SHUTDOWN NOSAVE: the writes of the script are lost, and with `atomic` so are their events."""
    options = [AOF, "busy-reply-threshold 1"]
    server = start_redis(family, arguments_for(free_port(), events="$"), options)
    client = server.client()
    client.set("before", 1)
    with send(server, "EVAL \"redis.call('SET', 'within', 1) while true do end\" 0"):

        def is_busy() -> bool:
            try:
                client.get("before")
            except redis.exceptions.ResponseError as error:
                return "BUSY" in str(error)
            return False

        wait_for(is_busy, 30)
        with contextlib.suppress(redis.exceptions.ConnectionError), send(server, "SHUTDOWN NOSAVE"):
            assert server.process is not None
            server.process.wait(30)
    server.start()
    client = server.client()
    settled(client, queue_length=0, dropped=0)
    assert keys_there(client) == {(0, b"before")}
    keys = [event.key for event in listed(client)]
    assert keys == [b"before"] or (outbox == "reply" and keys == [b"before", b"within"])


# ---- clients that are resumed --------------------------------------------------------


@pytest.mark.parametrize("family", ALL)
def test_a_write_behind_a_wait(family: str, start_redis: StartRedis) -> None:
    """Redis 7.0 resumes blocked clients when the turn of the outbox is over, and sends their
    replies: the next turn comes at once, and not with the next timer of a server that is idle."""
    options = [AOF, "appendfsync no", "hz 1", "dynamic-hz no", "keyspaceamqp.outbox reply"]
    server = start_redis(family, arguments_for(free_port(), events="$"), options)
    client = server.client()
    client.set("first", 1)
    wait_for(lambda: list_length(client) == 1, 30)

    def pushes() -> int:
        files = (server.folder / "appendonlydir").glob("*.incr.aof")
        return sum(path.read_bytes().count(KEY) for path in files)

    late, rounds = 0, 9
    for number in range(rounds):
        with send(server, "BLPOP queue 0", f"SET key:{number} 1") as connection:
            blocked = wait_for(lambda: client.info("clients")["blocked_clients"], 30)
            assert blocked == 1
            client.rpush("queue", 1)
            answer = b""
            while not answer.endswith(b"+OK\r\n"):
                answer += connection.recv(100)
            began = time.monotonic()
            wait_for(lambda n=number: pushes() == n + 2, 30)
            late += time.monotonic() - began > 0.2
    # A timer would be late four times of five.
    assert late <= rounds / 2, f"{late} of {rounds}"


# ---- commands under other names --------------------------------------------------------


@EVERY_OUTBOX
def test_rpush_has_another_name(
    family: str, outbox: str, broker: object, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Then a push would not be replicated. Events go through memory, and are counted."""
    options = [AOF, "rename-command RPUSH other"]
    server = start_redis(family, arguments_for(free_port(), events="$"), options)
    client = server.client()
    for number in range(5):
        client.set(f"key:{number}", 1)
    numbers = settled(client, queue_length=5, dropped=0, outbox_missed=5)
    assert numbers["outbox"] == f"{outbox} (waits)"
    assert list_length(client) == 0


@pytest.mark.parametrize("outbox", ["atomic"])
def test_rpush_has_another_name_and_the_broker_is_there(
    outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Memory is empty all the time, and yet the outbox does not open."""
    options = ["rename-command RPUSH other"]
    client = start_redis(NEW_REDIS, arguments_for(broker, mailbox, "$"), options).client()
    for number in range(1, 4):
        client.set("key", 1)
        wait_for(lambda n=number: stats(client)["confirmed"] == n, 30)
        began = client.time()[0]
        while client.time()[0] < began + 2:
            assert stats(client)["outbox"] == f"{outbox} (waits)"
    assert stats(client)["outbox_missed"] == 3


@pytest.mark.parametrize("outbox", ["off", "atomic"])
def test_a_replica_is_ready_for_its_promotion(outbox: str, start_redis: StartRedis) -> None:
    """Outside of a cluster too, and if the mode was set while it was a replica."""
    options = [f"replicaof 127.0.0.1 {free_port()}"]
    client = start_redis(NEW_REDIS, arguments_for(free_port(), events="$"), options).client()
    client.config_set("keyspaceamqp.outbox", "atomic")
    wait_for(lambda: stats(client)["outbox"] == "atomic", 30)
    with client.pipeline(transaction=False) as pipeline:
        pipeline.execute_command("REPLICAOF", "NO", "ONE")
        pipeline.set("a", 1).llen(KEY)
        assert pipeline.execute()[-1] == 1
    assert stats(client)["outbox_missed"] == 0


@pytest.mark.parametrize("family", [family for family in ALL if has_atomic(family)])
def test_config_has_another_name(family: str, start_redis: StartRedis) -> None:
    """Nobody knows then whether the server has I/O threads, so events are stored at once."""
    options = ["io-threads 3", "rename-command CONFIG other", "keyspaceamqp.outbox reply"]
    client = start_redis(family, arguments_for(free_port(), events="$"), options).client()
    client.set("first", 1)
    assert lengths_within(client) == [1, 2], str({k: v for k, v in stats(client).items() if v})


# ---- a full queue ---------------------------------------------------------------------


@pytest.mark.parametrize("outbox", ["atomic"])
def test_values_that_do_not_fit(outbox: str, start_redis: StartRedis) -> None:
    """Events that go through memory because of their size leave their values behind, if need be."""
    options = [
        "keyspaceamqp.format json",
        "keyspaceamqp.value 1000000",
        "keyspaceamqp.queue-limit 1048576",
    ]
    client = start_redis(NEW_REDIS, arguments_for(free_port(), events="$"), options).client()
    client.eval("for n = 1, 3 do redis.call('SET', 'key:' .. n, string.rep('x', 600000)) end", 0)
    settled(client, queue_length=0, fallback_length=3, dropped=0, outbox_missed=3)
    assert [event.key for event in listed(client)] == [b"key:1", b"key:2", b"key:3"]


@pytest.mark.parametrize("outbox", ["atomic"])
def test_an_event_is_missed_once(outbox: str, start_redis: StartRedis) -> None:
    """An event that finds no room in the queue with its value, nor without it, is not missed but
    dropped."""
    options = [
        "keyspaceamqp.format json",
        "keyspaceamqp.value 1000",
        "keyspaceamqp.queue-limit 1048576",
    ]
    client = start_redis(NEW_REDIS, arguments_for(free_port(), events="$"), options).client()
    client.set(KEY, "no list")
    client.set("first", 1)
    wait_for(lambda: stats(client)["outbox_missed"] == 1, 30)
    client.eval("for n = 1, 20000 do redis.call('SET', 'key:' .. n, string.rep('x', 1000)) end", 0)
    numbers = stats(client)
    assert numbers["outbox_missed"] + numbers["dropped_queue_full"] <= 20_001 + numbers["dropped"]
    assert numbers["outbox_missed"] <= 20_001
    assert numbers["dropped_queue_full"] > 0


# ---- many events at once ----------------------------------------------------------------


def worker_ns(server: RedisServer) -> int:
    """Return how long the worker has computed, in nanoseconds."""
    (thread,) = worker_threads(server)
    return thread_ns(server.pid, thread)


@pytest.mark.parametrize(("family", "outbox"), [(NEW_VALKEY, "reply"), (NEW_REDIS, "atomic")])
def test_a_script_of_many_writes(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The worker answers commands while it deals with all events of a turn.

    If this process or Redis stands still meanwhile, that looks like a worker that does not answer.
    So one script of several is enough.
    """
    writes = 100_000
    server = start_redis(family, arguments_for(broker, mailbox, "$"))
    client = server.client()
    client.set("first", 1)

    def answers_throughout() -> bool:
        idle = settled(client, fallback_length=0, queue_length=0, in_flight=0, outbox_missed=0)
        computed = [worker_ns(server)]
        client.eval(f"for n = 1, {writes} do redis.call('SET', 'key:' .. n, 1) end", 0)

        def empty() -> bool:
            client.execute_command("KEYSPACEAMQP.KEYMASK", "LIST")
            computed.append(worker_ns(server))
            return bool(stats(client)["confirmed"] >= idle["confirmed"] + writes)

        wait_for(empty, 120)
        longest = max(after - before for before, after in itertools.pairwise(computed))
        return longest * 16 < computed[-1] - computed[0]

    assert any(answers_throughout() for _ in range(5))
    settled(client, fallback_length=0, queue_length=0, in_flight=0, outbox_missed=0)


# ---- other modules --------------------------------------------------------------------


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A module that writes whenever a key expires."""
    library = tmp_path_factory.mktemp("writer") / "writer.so"
    sources = [ROOT / "tests" / "system" / "writer.c", ROOT / "shim" / "redis_api.c"]
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, *sources], check=True)
    return library


@SOME_OUTBOX
def test_a_module_that_writes_while_events_are_stored(
    family: str, outbox: str, writer: pathlib.Path, start_redis: StartRedis
) -> None:
    """The list has expired, so the push deletes it, and the other module writes during that. There
    are more events by then than memory may take."""
    options = [
        "keyspaceamqp.queue-limit 1048576",
        f"loadmodule {writer}",
        "enable-debug-command yes",
    ]
    client = start_redis(family, arguments_for(free_port(), events="$"), options).client()
    client.set("first", 1)
    wait_for(lambda: list_length(client) == 1, 30)
    client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
    client.pexpire(KEY, 20)
    began = client.time()
    wait_for(lambda: client.time() > (began[0], began[1] + 21_000), 10)
    client.eval(
        "for n = 1, 5000 do redis.call('SET', 'key:' .. string.rep('x', 100) .. n, 1) end "
        "redis.call('SET', string.rep('y', 600000), 1)",
        0,
    )
    assert client.get("audit") == b"1"
    # The 5,001 of the script, and that of the other module.
    settled(client, queue_length=0, fallback_length=5002, outbox_missed=0)
    assert list_length(client) == 5002
