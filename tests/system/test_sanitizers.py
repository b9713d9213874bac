"""Memory and threads, watched by the compiler's sanitizers.

The queue, elements and the checks of parameters run their tests on a build with
AddressSanitizer and UndefinedBehaviorSanitizer; the queue runs between threads of a
small C program under ThreadSanitizer; and the whole module runs in real servers on
the first build again. gcc brings the sanitizers along.

Leaks: CPython is never finalized inside Redis. LeakSanitizer reports its memory as lost,
because the pointers to it are in memory that is not searched. So only allocations of our own
C code count: `ours`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import platform
import re
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tables.parameters import PARAMETERS
from tests.fix_faults import Proxy, delivered
from tests.fix_servers import (
    CORE,
    MODULE,
    ROOT,
    Mailbox,
    StartRedis,
    arguments_for,
    settled,
    stats,
)
from tests.fix_snapshot import finished
from tests.servers import NEW_REDIS, REDIS, at_least

BUILD = ROOT / "build" / "sanitized"
FLAGS = ["-std=gnu11", "-O2", "-g", "-fno-omit-frame-pointer", "-fno-sanitize-recover=all"]
# Valkey opens modules with RTLD_DEEPBIND, and AddressSanitizer refuses that. Debian's Redis 8 ends
# at its start: it takes memory for Lua from a shared jemalloc, and asks the sanitizer for its size.
SERVERS = sorted(
    {"redis-8.2", NEW_REDIS} | ({REDIS} if not at_least(REDIS, redis="8.0") else set())
)
# What a sanitizer prints if it has found an error.
_FOUND = re.compile(r"ERROR: AddressSanitizer|WARNING: ThreadSanitizer|runtime error:|fatal error")
_CALLER = re.compile(r"\(.*/(?:(libredis_keyspace_amqp)|[^/)]*python)[^/)]*\)")


def fixed_addresses() -> list[str]:
    """The start of a command line after which the kernel lays out memory without randomness, where
    that is allowed: the sanitizers of gcc 12 cannot handle all addresses that a newer kernel
    chooses."""
    setarch = ["setarch", platform.machine(), "-R"]
    return [] if subprocess.run([*setarch, "true"], capture_output=True).returncode else setarch


def environment(reports: pathlib.Path, **options: object) -> dict[str, str]:
    """The environment of a program that loads the sanitized module. Findings are written to files
    in `reports`, which `judge` has to read: the exit code does not show them."""
    library = subprocess.run(
        ["cc", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    reports.mkdir()
    options |= {
        "log_path": reports / "report",
        "detect_leaks": 1,
        "print_stacktrace": 1,
        # With the file of each frame, which tells its owner.
        "stack_trace_format": '"    #%n %F %L (%m)"',
    }
    words = ":".join(f"{name}={value}" for name, value in options.items())
    return {
        **os.environ,
        "LD_PRELOAD": library,
        "ASAN_OPTIONS": words,
        "UBSAN_OPTIONS": words,
        # Python's leaks do not count, and servers must end with 0.
        "LSAN_OPTIONS": "exitcode=0",
    }


def judge(reports: pathlib.Path) -> None:
    """Fails if a sanitizer has found anything, or has not looked for leaks."""
    text = "".join(path.read_text(errors="replace") for path in reports.iterdir())
    assert not _FOUND.search(text), text[:10_000]
    assert "LeakSanitizer: detected memory leaks" in text, (
        "the search for leaks has not run: Python's are missing"
    )
    leaks = ours(text)
    assert not leaks, "\n\n".join(leaks)[:10_000]


def ours(report: str) -> list[str]:
    """The leaks in a report that our own C code has allocated, and not Python on its behalf: from
    malloc outwards, a frame of our code comes before one of Python."""
    leaks = [part for part in report.split("\n\n") if " leak of " in part]
    assert leaks
    callers = ((leak, _CALLER.search(leak)) for leak in leaks)
    return [leak for leak, caller in callers if caller is not None and caller[1]]


@pytest.fixture(scope="session")
def sanitized() -> pathlib.Path:
    """The module, built with the sanitizers of memory and of undefined behaviour."""
    for command in (
        ["cmake", "-S", ROOT, "-B", BUILD, "-DSANITIZE=address,undefined"],
        ["cmake", "--build", BUILD, "--target", "redis_keyspace_amqp"],
    ):
        built = subprocess.run(command, capture_output=True, text=True)
        assert built.returncode == 0, built.stdout + built.stderr
    return BUILD / MODULE.name


def test_what_knows_neither_redis_nor_python(
    sanitized: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """The tests of the queue, of elements and of the checks, once more. The one with two Python
    threads is left out: the next test does that without the GIL."""
    # Freed memory is kept for a while to catch late uses; only a little, because some tests measure
    # memory.
    options = environment(tmp_path / "reports", quarantine_size_mb=8)
    tests = subprocess.run(
        [
            *fixed_addresses(),
            *[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"],
            *[
                "tests/shim/test_queue.py",
                "tests/shim/test_element.py",
                "tests/shim/test_parameters.py",
                "tests/shim/test_filter.py",
                "-k",
                "not test_two_threads",
            ],
        ],
        cwd=ROOT,
        env=options | {"KEYSPACE_AMQP_SHIM": str(sanitized.with_name(CORE.name))},
        capture_output=True,
        text=True,
    )
    judge(tmp_path / "reports")
    assert tests.returncode == 0, tests.stdout[-10_000:] + tests.stderr[-2000:]
    assert re.search(r"\d{3} passed", tests.stdout)


# A queue that is often full; or one without a limit, where the threads meet only at the chunks that
# they hand to each other.
@pytest.mark.parametrize("limit", [300_000, 0], ids=["full", "no limit"])
@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_the_queue_between_threads(sanitizer: str, limit: int, tmp_path: pathlib.Path) -> None:
    program = tmp_path / "queue_threads"
    sources = [ROOT / "tests" / "shim" / "queue_threads.c", ROOT / "shim" / "queue.c"]
    command = ["cc", *FLAGS, f"-fsanitize={sanitizer}", "-pthread", "-o", program]
    subprocess.run([*command, "-I", ROOT / "shim", *sources], check=True)
    run = subprocess.run(
        [*fixed_addresses(), program, "1000000", str(limit)],
        env={**os.environ, "TSAN_OPTIONS": "halt_on_error=1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (run.returncode, run.stderr) == (0, "")
    events, full = re.findall(r"\d+", run.stdout)
    assert events == "1000000"
    assert (int(full) > 0) is (limit > 0)


@contextlib.contextmanager
def judged(reports: pathlib.Path) -> Iterator[None]:
    """A `with` that fails with the report of a sanitizer that ended a server, instead of with the
    lost connection."""
    try:
        yield
    except redis.exceptions.ConnectionError:
        judge(reports)
        raise


def refused(client: redis.Redis, *words: Any) -> None:
    with pytest.raises(redis.exceptions.ResponseError):
        client.execute_command(*words)


def every_command(client: redis.Redis) -> None:
    """Runs all commands, rightly and wrongly; afterwards the parameters are as before."""
    for line in (
        "HELP",
        "STATS",
        "STATS LOCAL",
        "STATS RESET",
        "CONFIG GET *",
        "CONFIG SET heartbeat 20 queue-limit 2000000",
        "KEYMASK ADD ^other a.*b*c$ \xff",
        "KEYMASK TEST other",
        "KEYMASK LIST",
        "KEYMASK DEL a.*b*c$ ^other \xff",
        "FALLBACK LEN",
        "FALLBACK PEEK 100",
        "FALLBACK DRAIN",
        "FALLBACK PURGE LOCAL",
        "DISCONNECT",
        "CONNECT",
    ):
        client.execute_command(*("KEYSPACEAMQP." + line).split())
    for line in ("STATS no", "CONFIG", "CONFIG SET port", "KEYMASK ADD", "FALLBACK PEEK -1"):
        refused(client, *("KEYSPACEAMQP." + line).split())
    for parameter in PARAMETERS:
        if parameter.name not in ("username", "routing-key", "exchange"):
            refused(client, "KEYSPACEAMQP.CONFIG", "SET", parameter.name, b"\xff\\" * 40_000)
            refused(client, "CONFIG", "SET", f"keyspaceamqp.{parameter.name}", b"\x00" * 3)
    masks = [b"^" + bytes([byte]) * 200 for byte in range(256)]
    refused(client, "KEYSPACEAMQP.KEYMASK", "SET", *masks * 10)
    client.execute_command("KEYSPACEAMQP.KEYMASK", "SET", *masks[:50])
    client.execute_command("KEYSPACEAMQP.KEYMASK", "SET", "ALL")
    refused(client, "EVAL", "return redis.call('KEYSPACEAMQP.DISCONNECT')", 0)
    with client.pipeline() as pipeline:  # in MULTI
        pipeline.execute_command("KEYSPACEAMQP.STATS")
        pipeline.execute_command("KEYSPACEAMQP.CONFIG", "SET", "password", "guest")
        answers = pipeline.execute(raise_on_error=False)
    assert isinstance(answers[1], redis.exceptions.ResponseError)
    client.info("everything")
    client.config_set("keyspaceamqp.password", "guest")
    client.config_get("keyspaceamqp.*")


def make_snapshots(client: redis.Redis) -> None:
    """Snapshots that are done, stopped, and refused. The mailbox gets none of their events."""
    start = "KEYSPACEAMQP.SNAPSHOT START"
    key = client.config_get("keyspaceamqp.routing-key")["keyspaceamqp.routing-key"]
    change = ("KEYSPACEAMQP.CONFIG", "SET", "routing-key")
    client.execute_command(*change, "nowhere", "format", "json", "value", 100)
    for masks in ("", " MASK ^1 !^12"):
        client.execute_command(f"{start} RATE 1000000{masks}")
        finished(client)
    refused(client, start, "MASK", "x" * 3_000_000)
    client.execute_command(f"{start} RATE 100 MASK ^1")
    wait_for(lambda: stats(client)["snapshot_looked"] > 10)
    refused(client, start)
    assert client.execute_command("KEYSPACEAMQP.SNAPSHOT STOP") == 1
    settled(client, fallback_length=0, queue_length=0, in_flight=0)
    client.execute_command(*change, key, "format", "text")


def leave_while_it_answers(server: RedisServer) -> None:
    """A client that closes before its answer comes."""
    client = server.client()
    connection = client.connection_pool.get_connection()
    connection.send_command("KEYSPACEAMQP.KEYMASK", "LIST")
    connection.disconnect()
    client.close()


def unloaded(client: redis.Redis) -> bool:
    """Unloads the module. Redis refuses that while the module has an answer to give."""
    try:
        client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    except redis.exceptions.ResponseError as error:
        if "blocked clients" in str(error):
            return False
        raise
    return True


@pytest.mark.parametrize("family", SERVERS)
def test_the_module_in_a_server(
    family: str,
    sanitized: pathlib.Path,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
    tmp_path: pathlib.Path,
) -> None:
    """Load, traffic, outages, every command, snapshots, forks, wrong loads, unload."""
    reports = tmp_path / "reports"
    # Servers are built without frame pointers, so stacks have to be unwound the slow way.
    options = environment(reports, fast_unwind_on_malloc=0, malloc_context_size=12)
    server = start_redis(family, None, ["dbfilename dump.rdb", "appendonly yes"], start=False)
    started = [*fixed_addresses(), *server.command()]
    server.command = lambda: started  # type: ignore[method-assign]
    server.environment = lambda: options  # type: ignore[method-assign]
    server.start()
    client = server.client()
    keys: list[bytes] = []

    def write(count: int) -> None:
        with client.pipeline(transaction=False) as pipeline:
            for _ in range(count):
                # Some keys are larger than a chunk of the queue.
                size = 100_000 if len(keys) % 500 == 499 else len(keys) % 50
                keys.append(b"%d\0\xff\n" % len(keys) + b"k" * size)
                pipeline.set(keys[-1], 1)
            pipeline.execute()

    with judged(reports), Proxy(broker.port) as proxy:
        arguments = arguments_for(proxy.port, mailbox, "$lg")
        again = 0
        for _ in range(2):
            client.execute_command("MODULE", "LOAD", str(sanitized), *arguments, "ALL", "^b$")
            write(1000)
            quiet = {"fallback_length": 0, "queue_length": 0, "in_flight": 0}
            numbers = settled(client, events_matched=1000, **quiet)
            # What the last load has sent without a confirm comes again.
            found = numbers["fallback_found"]
            again += found
            assert numbers["confirmed"] == 1000 + found
            proxy.cut()  # nothing was in flight
            client.config_set("keyspaceamqp.port", free_port())
            write(3000)  # to the list
            settled(client, fallback_length=3000)
            leave_while_it_answers(server)
            client.execute_command("SAVE")
            client.execute_command("BGREWRITEAOF")
            client.execute_command("KEYSPACEAMQP.CONFIG", "SET", "port", proxy.port)
            settled(client, confirmed=4000 + found, fallback_length=0)
            wait_for(lambda: not client.info("persistence")["aof_rewrite_in_progress"], 60)
            every_command(client)
            make_snapshots(client)
            leave_while_it_answers(server)
            write(500)
            client.execute_command("KEYSPACEAMQP.SNAPSHOT START MASK ^nothing")  # not done soon
            wait_for(lambda: unloaded(client), 60)
        for wrong in (["xq"], ["x", ""], [*arguments, ""], [*arguments, "m" * 2000]):
            refused(client, "MODULE", "LOAD", str(sanitized), *wrong)
        refused(client, "MODULE", "LOADEX", str(sanitized), "CONFIG", "keyspaceamqp.port", "x")
        refused(client, "MODULE", "LOADEX", str(sanitized), "CONFIG", "keyspaceamqp.none", "x")
        client.execute_command("MODULE", "LOAD", str(sanitized), *arguments)
        again += settled(client, fallback_length=0, in_flight=0)["fallback_found"]
        delivered(client, mailbox, keys, repeated=again)
        client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    # The module is unloaded first: the search for leaks comes at the end, and the worker's thread
    # would disturb it.
    assert server.stop(60) == 0
    judge(reports)
