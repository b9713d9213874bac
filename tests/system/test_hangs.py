"""A worker that hangs or crashes: at load, at an unload, and in between.

The module is a build with shorter time limits. Its handler hangs while a file is in the
server's directory, so that a test decides when it goes on.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import signal
import sys
import time

import pytest
import redis

from keyspace_amqp.demo.books import balance
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.fallback import from_element
from tests.fix_faults import delivered, workers
from tests.fix_outbox import SOME_OUTBOX, listed
from tests.fix_servers import (
    CORE,
    Mailbox,
    StartRedis,
    arguments_for,
    build_module,
    copy_sources,
    settled,
    stats,
)
from tests.servers import REDIS, at_least, program

# Seconds; see tables/times.py. A worker that does not hang needs a small part of them, even on a
# busy machine.
LIMITS = {"READY": 5.0, "STOP": 1.2, "STOP_LEFTOVERS": 0.3, "STOP_GOODBYE": 0.1, "STARVED": 0.4}
STOP_LIMIT = 2.0

# Appended to worker/loop.py. `hang-NAME` in the server's directory stops the handler at a place,
# `fail-NAME` makes the place fail, `crash` makes it crash, by the function in the file.
# `await-flush` makes the handler wait, after its look at the queue of events, until it is told to
# end. Other requests wait too.
INJECT = """

import ctypes as _ctypes
import os as _os
import pathlib as _pathlib
import signal as _signal


def _hang(name, function):
    def hang(*arguments, **named):
        if _pathlib.Path(f"hang-{name}").exists():
            log.write("notice", f"hangs in {name}")
            while _pathlib.Path(f"hang-{name}").exists():
                time.sleep(0.01)
            log.write("notice", f"goes on in {name}")
        if _pathlib.Path(f"fail-{name}").exists():
            raise RuntimeError
        return function(*arguments, **named)
    return hang


def _crash(function):
    def crash(*arguments):
        with contextlib.suppress(FileNotFoundError):
            what = _pathlib.Path("crash").read_text()
            if what == "read":
                _ctypes.string_at(0)
            elif what == "abort":
                _os.abort()
            elif what == "quit":
                raise SystemExit
            elif what:
                _signal.pthread_kill(_signal.pthread_self(), int(what))
        return function(*arguments)
    return crash


def _flush_waits(data):
    at = 0
    while at < len(data):
        total, *_, kind, _ = _records.HEAD.unpack_from(data, at)
        if kind == _records.Kind.FLUSH:
            return True
        at += total
    return False


def _await_flush(function):
    def wait(self):
        file = _pathlib.Path("await-flush")
        if file.exists():
            log.write("notice", "awaits the flush")
        while file.exists():
            if _flush_waits(bytes(self._shim.requests.take())):
                file.unlink()
            else:
                time.sleep(0.001)
        return function(self)
    return wait


import threading as _threading
from . import records as _records
_signal.pthread_self = _threading.get_ident
Worker.__init__ = _hang("start", Worker.__init__)
Worker._turn = _hang("turn", _crash(Worker._turn))
Worker._leave = _hang("leave", Worker._leave)
Worker.end = _hang("end", Worker.end)
Requests.take = _await_flush(Requests.take)
"""


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The path of the module with shorter limits and a handler that can hang."""
    source = tmp_path_factory.mktemp("impatient")
    copy_sources(source)
    times = source / "keyspace_amqp" / "tables" / "times.py"
    text = times.read_text()
    for name, seconds in LIMITS.items():
        text, count = re.subn(rf"(?m)^{name} = .*", f"{name} = {seconds}", text)
        assert count == 1
    times.write_text(text)
    with (source / "keyspace_amqp" / "worker" / "loop.py").open("a") as file:
        file.write(INJECT)
    return build_module(source, pathlib.Path(sys.executable))


class Hang:
    """Stops the handler of a server at a place, in a `with`."""

    def __init__(self, server: RedisServer, name: str) -> None:
        self._server = server
        self._name = name
        self._file = server.folder / f"hang-{name}"
        self._times = self.times()

    def times(self) -> int:
        return self._server.log().count(f"hangs in {self._name}")

    def __enter__(self) -> Hang:
        self._file.touch()
        return self

    def __exit__(self, *_: object) -> None:
        self._file.unlink(missing_ok=True)

    def wait(self) -> None:
        """Wait until the handler hangs."""
        wait_for(lambda: self.times() > self._times, 30, f"the handler hangs in {self._name}")


def load(client: redis.Redis, path: pathlib.Path, arguments: list[object]) -> None:
    client.execute_command("MODULE", "LOAD", str(path), *arguments)


def unload(client: redis.Redis) -> None:
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")


def unload_at_last(client: redis.Redis) -> None:
    """Unload the module. Of a handler that is slow, and does not hang, it may be refused once."""

    def accepted() -> bool:
        try:
            unload(client)
        except redis.exceptions.ResponseError:
            return False
        return True

    wait_for(accepted, 30, "the unload is accepted")


def write(client: redis.Redis, prefix: str, count: int) -> list[bytes]:
    keys = [b"%s:%d" % (prefix.encode(), number) for number in range(count)]
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.set(key, 1)
        pipeline.execute()
    return keys


# ---- a load that takes too long --------------------------------------------------


def test_a_load_that_takes_too_long(
    family: str,
    impatient: pathlib.Path,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    """The load fails. While the handler hangs, another load is refused at once. It goes on later,
    when the server has freed the module: it ends, the server lives, and a load works."""
    server = start_redis(family, None)
    client = server.client()
    arguments = arguments_for(broker, mailbox, "$")
    with Hang(server, "start"):
        with pytest.raises(redis.exceptions.ResponseError):
            load(client, impatient, arguments)
        limit = f"{LIMITS['READY'] * 1000:.0f} ms"
        assert f"not loaded: the handler did not start within {limit}" in server.log()
        write(client, "between", 100)
        with pytest.raises(redis.exceptions.ResponseError):
            load(client, impatient, arguments)
        assert "not loaded: the handler of an earlier load still hangs" in server.log()
        assert server.log().count(limit) == 1  # it has not waited
        assert not workers(server, 0)
    # Memory of the failed load is used again, with other content.
    write(client, "x" * 100, 1000)
    wait_for(lambda: "goes on in start" in server.log(), 30)
    # The name of the module is gone, and nothing reads the memory that it was in.
    assert "<module> goes on in start" in server.log()
    wait_for(lambda: workers(server, 0), 30, "the thread ends")
    assert client.ping()
    load(client, impatient, arguments)
    delivered(client, mailbox, write(client, "after", 100))
    unload_at_last(client)
    wait_for(lambda: workers(server, 0), 30, "the thread ends")


def test_many_loads_that_take_too_long(impatient: pathlib.Path, start_redis: StartRedis) -> None:
    """Nothing of them stays: no threads, no descriptors."""
    server = start_redis(arguments=None)
    client = server.client()
    descriptors = []
    for _ in range(4):
        with Hang(server, "start"), pytest.raises(redis.exceptions.ResponseError):
            load(client, impatient, arguments_for(free_port()))
        wait_for(lambda: workers(server, 0), 30, "the thread ends")
        load(client, impatient, arguments_for(free_port()))
        unload_at_last(client)
        descriptors.append(len(list(pathlib.Path(f"/proc/{server.pid}/fd").iterdir())))
    assert descriptors[-1] <= descriptors[0]


# ---- between load and unload -----------------------------------------------------


def test_masks_and_books_while_the_handler_hangs(
    family: str,
    impatient: pathlib.Path,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    """New masks are in force at once, and the books balance, with events lost to a full queue."""
    server = start_redis(family, None, ["save 3600 1000000"])
    client = server.client()
    arguments = ["CONFIG", "keyspaceamqp.queue-limit", 1048576, "ARGS"]
    arguments += arguments_for(broker, mailbox, "$")
    client.execute_command("MODULE", "LOADEX", str(impatient), *arguments)
    delivered(client, mailbox, write(client, "before", 50))
    client.execute_command("KEYSPACEAMQP.STATS", "RESET")
    with Hang(server, "turn") as hang:
        hang.wait()
        expected = write(client, "first", 50)
        client.config_set("keyspaceamqp.masks", "^second !tmp$")
        write(client, "first", 20)
        write(client, "third", 20)
        expected += write(client, "second", 30)
        client.set("second:tmp", 1)
        client.set("second:" + "x" * 1048576, 1)  # never fits
        client.config_set("keyspaceamqp.databases", "1")
        write(client, "second", 20)
        numbers = stats(client)
        assert balance(numbers) == 0
        assert numbers["events_seen"] == 50 + 20 + 20 + 30 + 1 + 1 + 20
        assert numbers["events_matched"] == 50 + 30 + 1
        assert (numbers["queue_length"], numbers["dropped_queue_full"]) == (80, 1)
    numbers = delivered(client, mailbox, expected, dropped=1)
    assert (numbers["events_matched"], numbers["confirmed"]) == (81, 80)


# ---- an outbox --------------------------------------------------------------------


@SOME_OUTBOX
def test_events_are_in_the_list_while_the_handler_hangs(
    family: str,
    outbox: str,
    impatient: pathlib.Path,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    """The outbox needs no handler. When it goes on, it delivers them, each once."""
    server = start_redis(family, None)
    client = server.client()
    client.execute_command(
        *("MODULE", "LOADEX", str(impatient), "CONFIG", "keyspaceamqp.outbox", outbox),
        *("ARGS", *arguments_for(free_port(), mailbox, "$")),
    )
    expected = write(client, "before", 50)
    with Hang(server, "turn") as hang:
        expected += write(client, "meanwhile", 50)
        hang.wait()
        for number in range(20):
            expected += write(client, f"later:{number}", 50)
            assert [event.key for event in listed(client)] == expected
        assert stats(client)["outbox"] == outbox
    client.config_set("keyspaceamqp.port", broker.port)
    numbers = delivered(client, mailbox, expected)
    assert numbers["outbox_missed"] == 0


# ---- an unload that is refused ---------------------------------------------------


@pytest.mark.parametrize("place", ["turn", "leave", "leave at once", "end"])
def test_an_unload_that_is_refused(
    family: str,
    place: str,
    impatient: pathlib.Path,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    """The module stays, and so does the capture: whatever happens meanwhile, events are delivered
    as soon as the handler goes on. "leave at once": it is told to end before it has seen any."""
    server = start_redis(family, None, ["save 3600 1000000"])
    server.module = [str(impatient)]
    client = server.client()
    if place == "leave at once":
        (server.folder / "await-flush").touch()
    load(client, impatient, arguments_for(free_port(), mailbox, "$"))
    if place == "leave at once":
        wait_for(lambda: "awaits the flush" in server.log(), 30)
    expected = write(client, "before", 50)
    with Hang(server, place.partition(" ")[0]) as hang:
        if place == "turn":
            hang.wait()
        begin = time.monotonic()
        with pytest.raises(redis.exceptions.ResponseError):
            unload(client)
        waited = time.monotonic() - begin
        assert STOP_LIMIT * 0.9 < waited < STOP_LIMIT + 5
        hang.wait()
        limit = f"{STOP_LIMIT * 1000:.0f} ms"
        assert f"not unloaded: the handler did not stop within {limit}" in server.log()
        expected += write(client, "meanwhile", 50)
        # A role event: nothing is captured on a replica.
        client.replicaof("127.0.0.1", str(free_port()))
        client.replicaof("NO", "ONE")
        expected += write(client, "later", 50)
        # Neither a command, nor a save, nor another unload waits for the worker now, by the
        # module's own clock: the disk may be slow.
        client.latency_reset()
        client.config_set("latency-monitor-threshold", 1)
        with pytest.raises(redis.exceptions.ResponseError, match="the handler is stopping"):
            client.execute_command("KEYSPACEAMQP.FALLBACK", "LEN")
        begin = time.monotonic()
        with pytest.raises(redis.exceptions.ResponseError):
            unload(client)
        assert time.monotonic() - begin < waited / 2
        client.save()
        client.config_set("keyspaceamqp.port", broker.port)
        waits = [ms for name, _, _, ms, *_ in client.latency_latest() if b"keyspaceamqp" in name]
        assert max(waits, default=0) < STOP_LIMIT * 0.9 * 1000
        assert stats(client)["queue_length"] >= 100
        assert stats(client)["state"] == "stopping"
        assert client.info("keyspaceamqp")["keyspaceamqp_state"] == "stopping"
    wait_for(lambda: "ended late, and was started again" in server.log(), 30)
    numbers = delivered(client, mailbox, expected)
    assert numbers["state"] == "connected"
    expected = write(client, "again", 50)
    delivered(client, mailbox, expected)
    unload_at_last(client)
    wait_for(lambda: workers(server, 0), 30, "the thread ends")


def test_a_stop_while_the_next_handler_starts(
    impatient: pathlib.Path, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Refused, too, and the module goes on: with all parameters, with its counters of lost events,
    and new masks are in force at once."""
    server = start_redis(REDIS, None, ["save 3600 1000000"])
    client = server.client()
    arguments = ["CONFIG", "keyspaceamqp.queue-limit", 1048576, "ARGS"]
    arguments += arguments_for(broker, mailbox, "$")
    client.execute_command("MODULE", "LOADEX", str(impatient), *arguments)
    delivered(client, mailbox, write(client, "before", 50))
    with Hang(server, "start") as start:
        with Hang(server, "leave") as leave:
            with pytest.raises(redis.exceptions.ResponseError):
                unload(client)
            leave.wait()
            expected = write(client, "meanwhile", 50)
            client.set("x" * 1048576, 1)  # never fits
            assert stats(client)["dropped_queue_full"] == 1
        start.wait()
        with pytest.raises(redis.exceptions.ResponseError):
            unload(client)
        client.save()
        assert "was started again" not in server.log()
    wait_for(lambda: "was started again" in server.log(), 30)
    delivered(client, mailbox, expected, dropped=1)
    client.config_set("keyspaceamqp.masks", "^new:")
    write(client, "old", 10)
    numbers = delivered(client, mailbox, write(client, "new", 10), dropped=1)
    assert numbers["dropped_queue_full"] == 1
    assert numbers["events_matched"] == numbers["confirmed"] + 1 == 61
    unload_at_last(client)
    wait_for(lambda: workers(server, 0), 30, "the thread ends")


def test_a_next_handler_that_cannot_start(
    impatient: pathlib.Path, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The log says so, and another one is tried."""
    server = start_redis(REDIS, None)
    client = server.client()
    load(client, impatient, arguments_for(broker, mailbox, "$"))
    with Hang(server, "leave") as leave:
        with pytest.raises(redis.exceptions.ResponseError):
            unload(client)
        leave.wait()
        expected = write(client, "meanwhile", 50)
        (server.folder / "fail-start").touch()
    wait_for(lambda: "could not be started again" in server.log(), 30)
    assert stats(client)["state"] == "stopping"
    (server.folder / "fail-start").unlink()
    wait_for(lambda: "was started again" in server.log(), 30)
    delivered(client, mailbox, expected)
    # A module that cannot start a handler can be unloaded, and says what is lost by that.
    with Hang(server, "leave") as leave:
        with pytest.raises(redis.exceptions.ResponseError):
            unload(client)
        leave.wait()
        write(client, "lost", 50)
        (server.folder / "fail-start").touch()
    failures = server.log().count("could not be started again")
    wait_for(lambda: server.log().count("could not be started again") > failures, 30)
    unload_at_last(client)
    assert "50 events lost: the handler has not read them from the queue" in server.log()


def test_unload_as_soon_as_the_handler_has_ended(
    impatient: pathlib.Path, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Refused, and given again in the same moment in which the handler ends: what was captured in
    between is there at the next load."""
    server = start_redis(REDIS, None)
    client = server.client()
    load(client, impatient, arguments_for(free_port(), mailbox, "$"))
    expected = write(client, "before", 50)
    with Hang(server, "leave") as hang:
        with pytest.raises(redis.exceptions.ResponseError):
            unload(client)
        hang.wait()
        expected += write(client, "meanwhile", 50)
    while True:
        try:
            unload(client)
            break
        except redis.exceptions.ResponseError:
            continue
    load(client, impatient, arguments_for(broker, mailbox, "$"))
    delivered(client, mailbox, expected)


@pytest.mark.parametrize("place", ["leave", "end"])
def test_shutdown_after_an_unload_that_was_refused(
    family: str,
    place: str,
    impatient: pathlib.Path,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    """Events that were captured since are there after the restart."""
    server = start_redis(family, None, ["save 3600 1000000"])
    client = server.client()
    load(client, impatient, arguments_for(free_port(), mailbox, "$"))
    expected = write(client, "before", 50)
    with Hang(server, place) as hang:
        with pytest.raises(redis.exceptions.ResponseError):
            unload(client)
        hang.wait()
        expected += write(client, "meanwhile", 50)
        server.signal(signal.SIGTERM)
        wait_for(lambda: "User requested shutdown" in server.log(), 30)
    assert server.process is not None
    assert server.process.wait(30) == 0
    server.start()
    client = server.client()
    load(client, impatient, arguments_for(broker, mailbox, "$"))
    delivered(client, mailbox, expected)


# ---- a save ------------------------------------------------------------------------


def test_saves_that_do_not_wait(
    family: str, impatient: pathlib.Path, start_redis: StartRedis
) -> None:
    """A save waits for the handler only if events can be put into the list and into the file:
    neither within FLUSHALL nor without a list."""
    waited = "the save starts with events still in memory"
    server = start_redis(family, None, ["save 3600 1000000"])
    client = server.client()
    load(client, impatient, arguments_for(free_port(), events="$"))
    with Hang(server, "turn") as hang:
        write(client, "a", 10)
        hang.wait()
        client.flushall()
        assert waited not in server.log()
        client.config_set("keyspaceamqp.fallback-size", -1)
        client.save()
        assert waited not in server.log()
        client.config_set("keyspaceamqp.fallback-size", 0)
        with client.pipeline(transaction=False) as pipeline:
            pipeline.flushall()
            pipeline.save()  # a save like any other
            pipeline.execute()
        assert server.log().count(waited) == 1


@pytest.mark.parametrize("after", ["load", "load in a cluster", "promotion"])
def test_a_save_before_the_handler_knows_its_lists(
    family: str, after: str, impatient: pathlib.Path, start_redis: StartRedis
) -> None:
    """Its first turn after a load, or after a change of the role, begins with the flush of the
    save: it looks for its lists while Redis waits, and the file has the events."""
    clustered = [
        "cluster-enabled yes",
        "cluster-config-file nodes.conf",
        f"cluster-port {free_port()}",
    ]

    def serves() -> bool:
        has_slots = "cluster" not in after or client.cluster("INFO")["cluster_state"] == "ok"
        return has_slots and bool(client.ping())

    server = start_redis(family, None, clustered if "cluster" in after else [])
    client = server.client()
    if "cluster" in after:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
    wait_for(serves, 30)
    if after == "promotion":
        client.replicaof("127.0.0.1", str(free_port()))
        load(client, impatient, arguments_for(free_port(), events="$"))
        settled(client, state="replica")
    (server.folder / "await-flush").touch()
    if after == "promotion":
        client.replicaof("NO", "ONE")
    else:
        load(client, impatient, arguments_for(free_port(), events="$"))
    expected = write(client, "a", 50)
    client.save()
    assert "awaits the flush" in server.log()
    server.kill()
    server.start()  # without the module
    client = server.client()
    wait_for(serves, 30)
    assert client.dbsize() == len(expected) + 1
    (key,) = (key for key in client.scan_iter("*", 1000) if client.type(key) == b"list")
    events = map(from_element, client.lrange(key, 0, -1))
    assert [event.key for event in events if event is not None] == expected


def test_a_save_after_the_end_of_the_handler(
    impatient: pathlib.Path, start_redis: StartRedis
) -> None:
    """It does not wait, nor does an unload, and the log says what is lost."""
    server = start_redis(REDIS, None, ["save 3600 1000000"])
    client = server.client()
    load(client, impatient, arguments_for(free_port(), events="$"))
    (server.folder / "crash").write_text("quit")
    write(client, "a", 10)
    wait_for(lambda: workers(server, 0), 30, "the thread ends")
    write(client, "b", 10)
    client.save()
    assert "still in memory: the handler has ended" in server.log()
    unload_at_last(client)
    assert "events lost: the handler has not read them from the queue" in server.log()


# ---- a crash ----------------------------------------------------------------------

CRASHES = ["read", "abort", *(str(int(n)) for n in (signal.SIGBUS, signal.SIGFPE, signal.SIGILL))]


@pytest.mark.parametrize("how", CRASHES)
def test_a_crash_of_the_worker_is_reported(
    family: str, how: str, impatient: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    """Redis writes its report, with the stack of the worker, and ends by the signal."""
    arguments = [str(impatient), *map(str, arguments_for(free_port()))]
    # The test of memory takes long and tells nothing here.
    options = ["crash-memcheck-enabled no"]
    server = RedisServer(tmp_path / "server", program(family), arguments, options)
    with server, server.client() as client:
        (server.folder / "crash").write_text(how)
        with contextlib.suppress(redis.exceptions.ConnectionError):
            client.set("a", 1)  # the next turn of the worker
        assert server.process is not None
        assert server.process.wait(60) < 0
    log = server.log()
    assert "crashed by signal" in log
    stack = log.partition("STACK TRACE")[2].partition("REGISTERS")[0]
    # It shows the stack of each thread, and marks the one that crashed.
    if at_least(family, redis="7.2", valkey="8.0"):
        assert "keyspace-amqp *" in stack
        assert "timed out" not in log
    assert CORE.name in stack
    assert "events_seen" not in log  # the module's part of INFO is left out
    assert "BUG REPORT END" in log
