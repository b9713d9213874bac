"""For the tests of faults.

`delivered`: the two checks at the end of each test. `Background`: a thread that runs in a `with`.
`start_faulty`: a server with another handler. `Load`: a client that writes.
`Notifications`: the events that Redis itself tells its subscribers. `Proxy`: a network link
that can go bad. `probe`: measures how long Redis takes to answer meanwhile; the end of
pytest's output has a table of its results.
"""

from __future__ import annotations

import contextlib
import pathlib
import selectors
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import pytest
import redis

from keyspace_amqp.demo.servers import RedisServer, wait_for
from tests.fix_servers import (
    Mailbox,
    Message,
    StartRedis,
    handler_copy,
    list_length,
    once,
    settled,
)

# ---- threads ---------------------------------------------------------------


class Background:
    """Runs `_run` in a thread, until the `with` ends: then `_stop` is set."""

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)
        assert not self._thread.is_alive()


# ---- faults in the handler -------------------------------------------------


def start_faulty(
    start_redis: StartRedis,
    family: str,
    tmp_path: pathlib.Path,
    code: str,
    arguments: list[Any],
    options: Sequence[str] = (),
) -> RedisServer:
    """Start a server with a copy of the handler in which `code` is appended to loop.py."""
    path = handler_copy(tmp_path / "environment")
    with (path.parent / "worker" / "loop.py").open("a") as file:
        file.write(code)
    server = start_redis(family, None, list(options), start=False)
    server.module = [str(path), *map(str, arguments)]
    server.start()
    return server


# ---- sets and books --------------------------------------------------------


def delivered(
    client: redis.Redis,
    mailbox: Mailbox,
    expected: Sequence[bytes],
    repeated: int = 0,
    timeout: float = 60,
    what: Callable[[Message], bytes] = lambda message: message.event[2],
    **numbers: Any,
) -> dict[str, Any]:
    """Wait until nothing is under way, and check sets and books. Return STATS.

    `expected`: the keys of the events in the order of their emission, or the results of
    `what` for their messages. Each has arrived and nothing else, first arrivals are in order,
    and at most `repeated` messages are repeated. `numbers`: values that STATS must have at
    the end.
    """
    found = settled(
        client,
        timeout,
        **{"fallback_length": 0, "queue_length": 0, "in_flight": 0, "dropped": 0, **numbers},
    )
    messages = mailbox.receive()
    arrived = [what(message) for message in once(messages)]
    if arrived != list(expected):
        sent, came = set(expected), set(arrived)
        place = next(
            (n for n, (a, b) in enumerate(zip(arrived, expected, strict=False)) if a != b), None
        )
        pytest.fail(
            f"lost {len(sent - came)} of {len(expected)} {sorted(sent - came)[:5]}, "
            f"unexpected {len(came - sent)} {sorted(came - sent)[:5]}, "
            f"{len(arrived)} arrived, the first difference is at {place}"
        )
    repetitions = len(messages) - len(arrived)
    assert repetitions <= repeated, f"{repetitions} repeated, at most {repeated} may be"
    return found


class Notifications:
    """The keyspace events that Redis itself tells its subscribers, in order. Used in a `with`.

    `events`: (database, event, key). It subscribes to all events, so a test knows what was
    emitted without relying on the module. Most likely failure: Redis was restarted, and the
    subscription is gone.
    """

    def __init__(self, server: RedisServer) -> None:
        self.events: list[tuple[int, bytes, bytes]] = []
        self._client = server.client()
        self._client.config_set("notify-keyspace-events", "KEA")
        self._client.config_set("client-output-buffer-limit", "pubsub 0 0 0")
        self._pubsub = self._client.pubsub(ignore_subscribe_messages=True)
        self._thread = threading.Thread(target=self._run)
        self._end = f"end-{id(self)}".encode()

    def _run(self) -> None:
        for message in self._pubsub.listen():
            if message["data"] == self._end:
                return
            if message["type"] == "pmessage":
                # __keyevent@<db>__:<event>
                head, _, name = message["channel"].partition(b"__:")
                self.events.append((int(head.rpartition(b"@")[2]), name, message["data"]))

    def __enter__(self) -> Notifications:
        self._pubsub.psubscribe("__keyevent@*__:*")
        self._pubsub.subscribe("end")
        # The answer to the ping comes after the answers to the subscriptions.
        self._pubsub.ping()
        while True:
            answer = self._pubsub.get_message(timeout=1)
            if answer is not None and answer["type"] == "pong":
                break
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Wait for all events so far, and end."""
        self._client.publish("end", self._end)
        self._thread.join(60)
        assert not self._thread.is_alive()
        self._pubsub.close()
        self._client.close()


# ---- load ------------------------------------------------------------------


def worker_threads(server: RedisServer) -> list[int]:
    """Return the kernel's numbers of the server's worker threads."""
    found = []
    for task in pathlib.Path(f"/proc/{server.pid}/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if (task / "comm").read_text().strip() == "keyspace-amqp":
                found.append(int(task.name))
    return found


def workers(server: RedisServer, count: int) -> bool:
    """True if the server has so many worker threads."""
    return len(worker_threads(server)) == count


class Load:
    """A client that SETs numbered keys until its `with` ends, `batch` keys at a time.

    `keys`: the keys that Redis has answered, in order. `pause`: seconds between batches.
    `slowest`: the longest answer, in seconds. A lost connection ends the writing.
    """

    def __init__(self, server: RedisServer, batch: int = 1, pause: float = 0) -> None:
        self.keys: list[bytes] = []
        self.slowest = 0.0
        self._batch = batch
        self._pause = pause
        self._client = server.client()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            first = len(self.keys)
            keys = [b"load:%d" % number for number in range(first, first + self._batch)]
            begin = time.monotonic()
            try:
                if len(keys) == 1:
                    self._client.set(keys[0], 1)
                else:
                    with self._client.pipeline(transaction=False) as pipeline:
                        for key in keys:
                            pipeline.set(key, 1)
                        pipeline.execute()
            except redis.exceptions.ConnectionError:
                return
            self.slowest = max(self.slowest, time.monotonic() - begin)
            self.keys += keys
            if self._pause:
                self._stop.wait(self._pause)

    def __enter__(self) -> Load:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()

    def more(self, count: int) -> None:
        """Wait for so many more writes, or for the end of the writing."""
        target = len(self.keys) + count
        wait_for(lambda: len(self.keys) >= target or not self._thread.is_alive(), 60)


# ---- a bad link ------------------------------------------------------------


class Proxy:
    """TCP links to a port on loopback that can go bad. Used in a `with`.

    `port`: where clients connect to. `links`: the number of links so far. `deaf`: while it is
    true, nothing is read or written on any link, as if every packet were dropped; the kernel
    still accepts new links. `lose`: makes the present links deaf for ever; new links work.
    `cut`: ends all links with a reset, after so many more bytes from the client; `deafen`: makes
    the proxy deaf after so many. Most likely failure: fewer bytes go through than they wait for.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.links = 0
        self.deaf = False
        self._cut_after: int | None = None
        self._deafens = False  # instead of a cut
        self._cut_done = threading.Event()
        self._selector = selectors.DefaultSelector()
        self._peers: dict[socket.socket, socket.socket] = {}
        self._lost: list[socket.socket] = []
        self._lose = threading.Event()
        self._clients: set[socket.socket] = set()
        self._stop = False
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Proxy:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop = True
        self._thread.join()
        self._drop_all()
        for link in self._lost:
            link.close()
        self._listener.close()
        self._selector.close()

    def lose(self) -> None:
        """Make the present links dead, without a word to either end."""
        self._lose.set()
        wait_for(lambda: not self._lose.is_set(), 30)

    def cut(self, after: int = 0, timeout: float = 30) -> None:
        """Wait until so many more bytes went to the broker, and reset all links."""
        self._cut_done.clear()
        self._cut_after = after
        assert self._cut_done.wait(timeout), "not so many bytes went through"

    def deafen(self, after: int, timeout: float = 60) -> None:
        """Hear until so many more bytes have gone to the broker, and be deaf from then on."""
        self._deafens = True
        self._cut_done.clear()
        self._cut_after = after
        self.deaf = False
        assert self._cut_done.wait(timeout), "not so many bytes went through"

    def _run(self) -> None:
        while not self._stop:
            if self.deaf:
                time.sleep(0.01)
                continue
            if self._lose.is_set():
                for link in self._peers:
                    self._selector.unregister(link)
                    self._lost.append(link)
                self._peers.clear()
                self._clients.clear()
                self._lose.clear()
            if self._cut_after is not None and self._cut_after <= 0:
                if self._deafens:
                    self.deaf = True
                    self._deafens = False
                else:
                    self._drop_all()
                self._cut_after = None
                self._cut_done.set()
                continue
            for key, _ in self._selector.select(0.01):
                link = key.fileobj
                assert isinstance(link, socket.socket)
                if link is self._listener:
                    self._accept()
                elif link in self._peers:
                    self._forward(link)

    def _accept(self) -> None:
        client, _ = self._listener.accept()
        self.links += 1
        self._link(client)

    def _link(self, client: socket.socket) -> None:
        try:
            server = socket.create_connection(("127.0.0.1", self._target), 5)
        except OSError:
            client.close()
            return
        self._clients.add(client)
        for link, peer in ((client, server), (server, client)):
            self._peers[link] = peer
            self._selector.register(link, selectors.EVENT_READ)

    def _forward(self, link: socket.socket) -> None:
        peer = self._peers[link]
        size = 65536
        if self._cut_after is not None and link in self._clients:
            size = max(1, min(size, self._cut_after))
        try:
            data = link.recv(size)
            if data:
                peer.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._drop(link)
        elif self._cut_after is not None and link in self._clients:
            self._cut_after -= len(data)

    def _drop(self, link: socket.socket) -> None:
        for end in (link, self._peers[link]):
            del self._peers[end]
            self._clients.discard(end)
            self._selector.unregister(end)
            with contextlib.suppress(OSError):  # no lingering: the close sends a reset
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            end.close()

    def _drop_all(self) -> None:
        while self._peers:
            self._drop(next(iter(self._peers)))


def stored_soon(client: redis.Redis) -> None:
    """Check that 21 writes have their events in the list within 100 ms (rule 12), as a median. What
    a busy machine adds is seen in the answers of the handler to commands at the same time. It looks
    at the list with pauses: without them it would take the processor that the worker needs."""
    times, answers = [], []
    for number in range(21):
        begin = time.monotonic()
        client.execute_command("KEYSPACEAMQP.KEYMASK", "TEST", "key")
        answers.append(time.monotonic() - begin)
        length = list_length(client)
        begin = time.monotonic()
        client.set(f"timed:{number}", 1)
        wait_for(lambda before=length: list_length(client) != before, 10)
        times.append(time.monotonic() - begin)
    print(f"event to list: {', '.join(f'{seconds * 1000:.0f}' for seconds in times)} ms")
    assert statistics.median(times) < 0.1 + max(answers)


# ---- how long Redis takes to answer ------------------------------------------

# In a process of its own: threads of one process would wait for each other.
_PING = """
import select, socket, sys, time
link = socket.create_connection((sys.argv[1], int(sys.argv[2])))
slowest = count = 0
print("ready", flush=True)
while not select.select([sys.stdin], [], [], 0.001)[0] or count <= 10:
    link.sendall(b"PING\\r\\n")
    waited, answered = 0, False
    while not answered:
        begin = time.perf_counter()
        answered = select.select([link], [], [], 0.001)[0]
        # A longer step means that the whole machine stood still.
        waited += min(time.perf_counter() - begin, 0.010)
    assert link.recv(100) == b"+PONG\\r\\n"
    slowest = max(slowest, waited)
    count += 1
print(slowest, count, flush=True)
"""
# Seconds. No answer may take longer, however busy the machine is: a server that waits for a
# broker does not answer for many seconds.
PROBE_BOUND = 3.0


class Probe:
    """PINGs Redis every millisecond during each `with probe(server):`, which is a run.

    `slowest`: the slowest answer of each run, in seconds, without the time in which the whole
    machine stood still.
    """

    def __init__(self) -> None:
        self.slowest: list[float] = []

    @contextlib.contextmanager
    def __call__(self, server: Any, host: str = "127.0.0.1") -> Iterator[None]:
        with subprocess.Popen(
            [sys.executable, "-c", _PING, host, str(server.port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            try:
                yield
                output, _ = process.communicate("\n", timeout=60)
            finally:
                process.kill()
        slowest, count = output.split()
        assert int(count) > 10
        self.slowest.append(float(slowest))

    @property
    def median(self) -> float:
        """The median of the runs' slowest answers."""
        return statistics.median(self.slowest)


_SLOWEST = "slowest PING"


@pytest.fixture
def probe(request: pytest.FixtureRequest) -> Iterator[Probe]:
    """A `Probe`. The median of its runs is printed at the end of the session. It has a bound:
    above it, Redis has waited for something."""
    result = Probe()
    yield result
    if not result.slowest:
        return
    # Reports take this along, also from another process.
    request.node.user_properties.append((_SLOWEST, result.slowest))
    assert result.median < PROBE_BOUND, f"Redis took {result.slowest} seconds to answer"


def pytest_terminal_summary(terminalreporter: Any) -> None:
    runs = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            found = dict(getattr(report, "user_properties", ()))
            if _SLOWEST in found:
                runs[report.nodeid.rpartition("::")[2]] = found[_SLOWEST]
    if runs:
        terminalreporter.section("slowest answer of Redis to a PING meanwhile")
        for name, slowest in runs.items():
            each = ", ".join(f"{seconds * 1000:.1f}" for seconds in slowest)
            median = statistics.median(slowest) * 1000
            terminalreporter.line(f"{median:7.1f} ms, the median of {each}: {name}")
