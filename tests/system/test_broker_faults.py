"""Faults of the broker: nothing is lost, and Redis is not delayed."""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator

import pika
import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from keyspace_amqp.publisher.backoff import FIRST as BACKOFF_FIRST
from keyspace_amqp.publisher.link import BACKOFF_MAX
from keyspace_amqp.publisher.retries import REFUSED_MAX
from keyspace_amqp.publisher.window import WINDOW
from tests.fix_faults import Load, Probe, Proxy, delivered, stored_soon
from tests.fix_servers import (
    EXCHANGE,
    MODULE,
    Mailbox,
    Message,
    StartRedis,
    arguments_for,
    list_length,
    settled,
    stats,
)
from tests.servers import NEW_VALKEY, REDIS


def loaded(server: RedisServer) -> Load:
    """A load of about two thousand writes a second."""
    return Load(server, batch=100, pause=0.05)


def all_stored(client: redis.Redis, load: Load) -> None:
    """Waits until all that was written so far is in the list, apart from what was
    confirmed before."""
    written = len(load.keys)

    def stored() -> bool:
        found = stats(client)
        return bool(found["confirmed"] + found["fallback_length"] >= written)

    wait_for(stored, 30)


def is_back(client: redis.Redis) -> bool:
    found = stats(client)
    return found["state"] == "connected" and found["fallback_length"] == 0


def least_wait(attempts: int, most: float = BACKOFF_MAX) -> float:
    """The shortest sum of the waits between so many attempts."""
    return sum(min(most, BACKOFF_FIRST * 2.0**n) / 2 for n in range(attempts))


# ---- the broker is away ----------------------------------------------------


def test_killed_three_times_under_load(
    own_broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    """On the other servers, test_an_outage kills the broker once."""
    mailbox = Mailbox(own_broker).keep()
    server = start_redis(arguments=arguments_for(own_broker, mailbox, "$"))
    client = server.client()
    client.set("first", 1)
    settled(client, confirmed=1)
    with Load(server, batch=100, pause=0.05) as load:
        for kills in range(3):
            with probe(server):
                load.more(1000)
                own_broker.kill()
                wait_for(lambda: list_length(client) > 1000, 30)
                own_broker.start()
                wait_for(
                    lambda n=kills: (
                        stats(client)["reconnects"] > n and stats(client)["fallback_length"] == 0
                    ),
                    60,
                )
    # Messages in flight at a kill may come again.
    delivered(client, mailbox, [b"first", *load.keys], repeated=3 * WINDOW)


def _stop_process(broker: RabbitServer) -> Callable[[], object]:
    assert broker.stop(60) == 0
    return broker.start


def _stop_application(broker: RabbitServer) -> Callable[[], object]:
    broker.ctl("stop_app")
    return lambda: broker.ctl("start_app")


def _maintenance(broker: RabbitServer) -> Callable[[], object]:
    """`rabbitmq-upgrade drain`: the listeners are closed, and then the connections."""
    broker.ctl("eval", "rabbit_maintenance:drain().")
    return lambda: broker.ctl("eval", "rabbit_maintenance:revive().")


@pytest.mark.parametrize(
    ("stop", "runs"), [(_stop_process, 1), (_stop_application, 3), (_maintenance, 3)]
)
def test_stopped_and_started_under_load(
    stop: Callable[[RabbitServer], Callable[[], object]],
    runs: int,
    own_broker: RabbitServer,
    start_redis: StartRedis,
    probe: Probe,
) -> None:
    """The broker closes the connection (320), refuses new ones, and comes back."""
    mailbox = Mailbox(own_broker).keep()
    server = start_redis(arguments=arguments_for(own_broker, mailbox, "$"))
    client = server.client()
    with loaded(server) as load:
        for run in range(runs):
            with probe(server):
                load.more(500)
                wait_for(lambda n=run: stats(client)["reconnects"] >= n, 30)
                start = stop(own_broker)
                try:
                    all_stored(client, load)
                    wait_for(lambda: "refused" in stats(client)["last_error"], 30)
                finally:
                    start()
                wait_for(lambda: is_back(client), 60)
    assert "320 CONNECTION_FORCED" in server.log()
    numbers = delivered(client, mailbox, load.keys, repeated=runs * WINDOW)
    assert numbers["handler_errors"] == 0


@pytest.mark.parametrize(("family", "outbox"), [(REDIS, "off"), (NEW_VALKEY, "atomic")])
def test_paused_under_load(
    family: str, own_broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    """SIGSTOP: the connection stays, but nothing is read and nothing confirmed."""
    mailbox = Mailbox(own_broker)
    server = start_redis(family, arguments_for(own_broker, mailbox, "$"))
    client = server.client()
    with loaded(server) as load:
        for seconds in (10, 3, 3):
            load.more(500)
            wait_for(lambda: is_back(client), 60)
            with probe(server):
                own_broker.signal(signal.SIGSTOP)
                try:
                    until = time.monotonic() + seconds
                    while time.monotonic() < until:
                        load.more(500)
                        all_stored(client, load)
                    assert list_length(client) >= 500
                    assert stats(client)["in_flight"] <= WINDOW
                finally:
                    own_broker.signal(signal.SIGCONT)
            wait_for(lambda: is_back(client), 60)
    numbers = delivered(client, mailbox, load.keys, repeated=3 * WINDOW)
    assert (numbers["reconnects"], numbers["handler_errors"]) == (0, 0)


# ---- another program on the broker's port ------------------------------------------


def _frame(kind: int, payload: bytes, end: bytes = b"\xce") -> bytes:
    head = kind.to_bytes(1, "big") + bytes(2) + len(payload).to_bytes(4, "big")
    return head + payload + end


def _method(method: object, channel: int = 0) -> bytes:
    return bytes(pika.frame.Method(channel, method).marshal())


_PROPERTIES = {"capabilities": {"publisher_confirms": True, "basic.nack": True}}
# The handshake: the client's method, by its number, and the answer.
_HANDSHAKE = {
    b"AMQP\0\0\x09\x01": _method(pika.spec.Connection.Start(server_properties=_PROPERTIES)),
    b"\x00\x0a\x00\x0b": _method(pika.spec.Connection.Tune(2047, 131072, 60)),
    b"\x00\x0a\x00\x28": _method(pika.spec.Connection.OpenOk()),
    b"\x00\x14\x00\x0a": _method(pika.spec.Channel.OpenOk(), 1),
    b"\x00\x55\x00\x0a": _method(pika.spec.Confirm.SelectOk(), 1),
}
_START = _HANDSHAKE[b"AMQP\0\0\x09\x01"]


class Impostor:
    """A listener that is no broker; in a `with`. It plays the handshake up to `steps` answers. Then
    it sends `last` and closes; if `last` is None it is silent. `accepted`: the time of each
    connection."""

    def __init__(self, steps: int, last: bytes | None = None) -> None:
        self.accepted: list[float] = []
        self._steps = dict(list(_HANDSHAKE.items())[:steps])
        self._last = last
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._links: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> Impostor:
        self._threads[0].start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for link in self._links:
            with contextlib.suppress(OSError):
                link.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for link in [self._listener, *self._links]:
            link.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                link = self._listener.accept()[0]
                self.accepted.append(time.monotonic())
                self._links.append(link)
                self._threads.append(threading.Thread(target=self._talk, args=(link,)))
                self._threads[-1].start()

    def _talk(self, link: socket.socket) -> None:
        heard = b""
        with contextlib.suppress(OSError):
            for said, answer in self._steps.items():
                while said not in heard:
                    data = link.recv(65536)
                    if not data:
                        return
                    heard += data
                link.sendall(answer)
            if self._last is not None:
                link.recv(65536)
                link.sendall(self._last)
                link.shutdown(socket.SHUT_WR)
            while link.recv(65536):
                pass


def test_silent_while_it_opens(broker: RabbitServer, start_redis: StartRedis) -> None:
    """A peer that accepts, and never answers the first, the second, … method of the client. Each
    time the attempt ends with the reason, and there is another attempt."""
    with contextlib.ExitStack() as stack:
        tried = []
        for steps in range(len(_HANDSHAKE)):
            impostor = stack.enter_context(Impostor(steps))
            mailbox = Mailbox(broker)
            # Without heartbeats, which would end the connection too.
            arguments = arguments_for(impostor.port, mailbox, "$")
            arguments[5] = 0
            client = start_redis(arguments=arguments).client()
            client.set("k", 1)
            tried.append((impostor, mailbox, client))
        for steps, (impostor, mailbox, client) in enumerate(tried):
            wait_for(lambda i=impostor: len(i.accepted) > 1, 60)
            text = "no AMQP 0-9-1 handshake" if steps < 3 else "no channel from the broker"
            assert text in stats(client)["last_error"]
            client.config_set("keyspaceamqp.port", broker.port)
            numbers = delivered(client, mailbox, [b"k"])
            assert (numbers["state"], numbers["handler_errors"]) == ("connected", 0)


def test_silent_under_load(broker: RabbitServer, start_redis: StartRedis, probe: Probe) -> None:
    """Rule 2: a peer that accepts and never answers. Events are in the list, Redis answers as
    before, and with another port the module connects at once."""
    mailbox = Mailbox(broker)
    server = start_redis(arguments=arguments_for(broker, mailbox, "$"))
    client = server.client()
    with Impostor(0) as impostor, loaded(server) as load:
        for run in range(3):
            with probe(server):
                client.config_set("keyspaceamqp.port", impostor.port)
                wait_for(lambda n=run: len(impostor.accepted) > n, 30)
                load.more(1000)
                all_stored(client, load)
                assert stats(client)["state"] == "connecting"
                client.config_set("keyspaceamqp.port", broker.port)
                wait_for(lambda: is_back(client), 30)
    delivered(client, mailbox, load.keys, repeated=3 * WINDOW)


@pytest.mark.parametrize(
    ("steps", "last", "error"),
    [
        (0, b"HTTP/1.1 400 Bad Request\r\n\r\n", "no AMQP 0-9-1 handshake"),
        (0, random.Random(1).randbytes(5000), "no AMQP 0-9-1 handshake"),
        (0, _START[:-20], "no AMQP 0-9-1 handshake"),
        (0, b"AMQP\x00\x00\x09\x02", "no AMQP 0-9-1 handshake"),
        (0, _method(pika.spec.Connection.Start(mechanisms="GSSAPI")), "authentication PLAIN"),
        (1, random.Random(2).randbytes(5000), "EOF"),
        (1, _frame(1, b"\x00\x0a\x00\x1eabc", end=b"x"), "Invalid FRAME_END"),
        (1, _frame(1, b"\x7f\x7f\x00\x1eabc"), "connection lost"),
        (1, _frame(9, b"abc"), "Unknown frame type"),
        (5, b"HTTP/1.1 400 Bad Request\r\n\r\n", "EOF"),
        (5, _frame(3, b"a body with nothing before it"), "EOF"),
    ],
    ids=[
        "HTTP",
        "random bytes",
        "half a frame",
        "another version",
        "another authentication",
        "start and random bytes",
        "start and a frame without an end",
        "start and an unknown method",
        "start and an unknown frame",
        "open and HTTP",
        "open and a frame out of place",
    ],
)
def test_garbage(
    steps: int,
    last: bytes,
    error: str,
    broker: RabbitServer,
    start_redis: StartRedis,
    probe: Probe,
) -> None:
    """Attempts become rare, the log has the error in one line, and with another port the module
    connects at once."""
    mailbox = Mailbox(broker)
    with Impostor(steps, last) as impostor:
        server = start_redis(arguments=arguments_for(impostor.port, mailbox, "$"))
        client = server.client()
        with Load(server, batch=10, pause=0.05) as load:
            with probe(server):
                wait_for(lambda: len(impostor.accepted) >= 5, 60)
                all_stored(client, load)
            times = impostor.accepted[:5]
            assert times[-1] - times[0] >= least_wait(4)
            assert error in stats(client)["last_error"]
            client.config_set("keyspaceamqp.port", broker.port)
            wait_for(lambda: is_back(client), 30)
    numbers = delivered(client, mailbox, load.keys)
    assert numbers["handler_errors"] == 0
    assert "Traceback" not in server.log()


# ---- a bad link ------------------------------------------------------------


def test_packets_vanish_under_load(
    broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    """No reset, only silence. Events are stored at once; when heartbeats are missing there is a new
    link, and the old one stays dead."""
    mailbox = Mailbox(broker)
    with Proxy(broker.port) as proxy:
        arguments = arguments_for(proxy.port, mailbox, "$")
        arguments[5] = 1  # pika gives a link up after some ten seconds
        server = start_redis(arguments=arguments)
        client = server.client()
        with loaded(server) as load:
            load.more(500)
            wait_for(lambda: is_back(client), 60)
            proxy.lose()
            for _ in range(2):
                with probe(server):
                    load.more(500)
                    all_stored(client, load)
            with probe(server):
                wait_for(lambda: stats(client)["reconnects"] >= 1, 60)
                wait_for(lambda: is_back(client), 60)
        assert "heartbeat" in server.log()
        # With such heartbeats, a link may end because the machine is slow.
        assert proxy.links >= 2
        delivered(client, mailbox, load.keys, repeated=proxy.links * WINDOW)


def test_packets_vanish_while_it_opens(
    broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    """New links are dead too, for longer than an attempt takes."""
    mailbox = Mailbox(broker)
    with Proxy(broker.port) as proxy:
        server = start_redis(arguments=arguments_for(proxy.port, mailbox, "$"))
        client = server.client()
        proxy.deaf = True
        with loaded(server) as load:
            with probe(server):
                load.more(500)
                all_stored(client, load)
                wait_for(lambda: stats(client)["last_error"], 60)
                proxy.deaf = False
                wait_for(lambda: is_back(client), 60)
        delivered(client, mailbox, load.keys)


def test_cut_in_the_middle_of_frames(
    broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    """A reset after any number of bytes, in the handshake and in messages."""
    mailbox = Mailbox(broker)
    with Proxy(broker.port) as proxy:
        server = start_redis(arguments=arguments_for(proxy.port, mailbox, "$"))
        client = server.client()
        with loaded(server) as load:
            for sizes in [(1, 3, 333, 4099), (7, 13, 101, 10007), (21, 505, 1, 65537)]:
                with probe(server):
                    for after in sizes:
                        proxy.cut(after)
                    wait_for(lambda: is_back(client), 60)
        numbers = delivered(client, mailbox, load.keys, repeated=12 * WINDOW)
        assert numbers["handler_errors"] == 0


# ---- the broker refuses ----------------------------------------------------


@pytest.mark.parametrize(
    ("command", "low", "normal"),
    [
        ("set_vm_memory_high_watermark", "0", "0.4"),
        ("set_disk_free_limit", "1000000GB", "50MB"),
    ],
    ids=["memory", "disk"],
)
def test_alarms_under_load(
    command: str,
    low: str,
    normal: str,
    own_broker: RabbitServer,
    start_redis: StartRedis,
    probe: Probe,
) -> None:
    """The broker says `blocked`: events go to the list until it takes them again."""
    mailbox = Mailbox(own_broker)
    server = start_redis(arguments=arguments_for(own_broker, mailbox, "$"))
    client = server.client()
    with loaded(server) as load:
        for _ in range(3):
            with probe(server):
                load.more(200)
                own_broker.ctl(command, low)
                try:
                    wait_for(lambda: stats(client)["state"] == "blocked", 30)
                    why = "blocked by the broker"
                    wait_for(lambda why=why: why in stats(client)["last_error"], 30)
                    load.more(500)
                    all_stored(client, load)
                finally:
                    own_broker.ctl(command, normal)
                wait_for(lambda: is_back(client), 60)
    numbers = delivered(client, mailbox, load.keys, repeated=3 * WINDOW)
    assert numbers["reconnects"] == 0


def test_an_exchange_is_missing_and_deleted(
    broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    """404 closes the channel; events wait in the list until the exchange is there."""
    mailbox = Mailbox(broker)
    exchange = mailbox.name
    arguments = arguments_for(broker, mailbox, "$")
    arguments[6] = exchange
    server = start_redis(arguments=arguments)
    client = server.client()
    with loaded(server) as load, broker.connection() as connection:
        channel = connection.channel()
        for run in range(3):
            with probe(server):
                load.more(200)
                wait_for(lambda n=run: server.log().count("404 NOT_FOUND") > 0, 30)
                all_stored(client, load)
                assert "404 NOT_FOUND" in stats(client)["last_error"]
                # What comes before the binding reaches the queue too.
                alternate = {"alternate-exchange": EXCHANGE}
                channel.exchange_declare(exchange, "direct", arguments=alternate)
                channel.queue_bind(mailbox.name, exchange, mailbox.routing_key)
                wait_for(lambda: is_back(client), 60)
            load.more(200)
            if run < 2:
                channel.exchange_delete(exchange)
    numbers = delivered(client, mailbox, load.keys, repeated=2 * WINDOW)
    assert (numbers["returned"], numbers["handler_errors"]) == (0, 0)


def test_a_wrong_password(broker: RabbitServer, start_redis: StartRedis, probe: Probe) -> None:
    mailbox = Mailbox(broker)
    server = start_redis(arguments=arguments_for(broker, mailbox, "$"))
    client = server.client()
    with loaded(server) as load:
        for _ in range(3):
            with probe(server):
                client.config_set("keyspaceamqp.password", "s3cret-and-wrong")
                load.more(200)
                wait_for(lambda: stats(client)["state"] != "connected", 30)
                all_stored(client, load)
                wait_for(lambda: "403 ACCESS_REFUSED" in stats(client)["last_error"], 30)
                client.config_set("keyspaceamqp.password", "guest")
                wait_for(lambda: is_back(client), 60)
    delivered(client, mailbox, load.keys, repeated=3 * WINDOW)
    assert "s3cret" not in server.log()


def test_a_user_without_permissions(
    own_broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    """No permission for the virtual host, then none to write, then all."""
    mailbox = Mailbox(own_broker)
    own_broker.ctl("add_user", "limited", "limited")
    arguments = arguments_for(own_broker, mailbox, "$")
    arguments[3:5] = ["limited", "limited"]
    server = start_redis(arguments=arguments)
    client = server.client()
    try:
        with loaded(server) as load:
            for error, write in [("530 NOT_ALLOWED", "^$"), ("403 ACCESS_REFUSED", ".*")]:
                with probe(server):
                    load.more(200)
                    wait_for(lambda text=error: text in stats(client)["last_error"], 30)
                    all_stored(client, load)
                    own_broker.ctl("set_permissions", "-p", "/", "limited", "^$", write, "^$")
            wait_for(lambda: is_back(client), 60)
        delivered(client, mailbox, load.keys)
    finally:
        own_broker.ctl("delete_user", "limited")


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["close_all_connections", "for a test"], "320 CONNECTION_FORCED - for a test"),
        (["eval", "[exit(P, kill) || P <- rabbit_channel:list()]."], "541 INTERNAL_ERROR"),
    ],
    ids=["connections closed", "channels killed"],
)
def test_closed_by_the_broker(
    command: list[str],
    error: str,
    own_broker: RabbitServer,
    start_redis: StartRedis,
    probe: Probe,
) -> None:
    mailbox = Mailbox(own_broker)
    server = start_redis(arguments=arguments_for(own_broker, mailbox, "$"))
    client = server.client()
    with loaded(server) as load:
        for _ in range(3):
            with probe(server):
                load.more(300)
                wait_for(lambda: is_back(client), 60)
                before = stats(client)["reconnects"]
                own_broker.ctl(*command)
                wait_for(lambda n=before: stats(client)["reconnects"] > n, 30)
                assert error in stats(client)["last_error"]
                wait_for(lambda: is_back(client), 60)
    numbers = delivered(client, mailbox, load.keys, repeated=3 * WINDOW)
    assert numbers["handler_errors"] == 0


def _memory(server: RedisServer) -> int:
    """The process' memory in bytes, with Python's."""
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def test_a_full_queue_refuses(broker: RabbitServer, start_redis: StartRedis, probe: Probe) -> None:
    """basic.nack: the message is sent again, at growing intervals. Events that come meanwhile are
    in the list and not in memory. All arrive when a consumer makes room."""
    mailbox = Mailbox(broker, **{"x-max-length": 500, "x-overflow": "reject-publish"})
    server = start_redis(arguments=arguments_for(broker, mailbox, "$"))
    client = server.client()
    received: list[Message] = []
    with loaded(server) as load:
        load.more(500)
        wait_for(lambda: stats(client)["nacked"] > 0, 30)
        begin, memory = time.monotonic(), _memory(server)
        for _ in range(3):
            with probe(server):
                load.more(2000)
                all_stored(client, load)
        found, grown = stats(client), _memory(server) - memory
    # Each event is refused once, and a window of them once more, in the first attempt. Each of the
    # later ones, as many as the backoff allows, sends a single message.
    elapsed = time.monotonic() - begin
    rounds = next(n for n in itertools.count() if least_wait(n, REFUSED_MAX) > elapsed) + 3
    assert found["nacked"] <= len(load.keys) + WINDOW + rounds
    assert found["published"] <= found["confirmed"] + len(load.keys) + 2 * WINDOW + rounds
    assert found["queue_bytes"] < 1_000_000
    # A key of the load and its element in the list are some 200 bytes.
    assert grown < len(load.keys) * 400 + 16 * 1024 * 1024

    # The consumer takes one message at a time. For each the broker accepts one, and refuses hardly
    # more.
    with broker.connection() as connection:
        channel = connection.channel()
        before = stats(client)
        for _ in range(20):
            confirmed = stats(client)["confirmed"]
            method, properties, body = channel.basic_get(mailbox.name, auto_ack=True)
            assert method is not None
            received.append(Message(body, properties, method.redelivered))
            # The next attempt may be 15 s away, and begin with a new connection.
            wait_for(lambda n=confirmed: stats(client)["confirmed"] > n, 90)
        after = stats(client)
    taken = after["confirmed"] - before["confirmed"]
    assert after["nacked"] - before["nacked"] <= 20 * taken

    def receive() -> bool:
        received.extend(mailbox.receive())
        return bool(stats(client)["confirmed"] == len(load.keys))

    wait_for(receive, 100)
    settled(client, fallback_length=0, dropped=0, confirmed=len(load.keys))
    received += mailbox.receive()
    # A refused message arrives after messages that were not refused.
    assert sorted(m.event[2] for m in received) == sorted(load.keys)


def test_no_queue_is_bound(broker: RabbitServer, start_redis: StartRedis) -> None:
    """The broker returns the messages and confirms them: they are counted, and logged at most once
    a minute."""
    server = start_redis(arguments=arguments_for(broker, "no-queue-is-bound", "$"))
    client = server.client()
    with loaded(server) as load:
        for _ in range(3):
            load.more(1000)
            wait_for(lambda: stats(client)["returned"] >= len(load.keys) - 1000, 30)
    settled(client, confirmed=len(load.keys), returned=len(load.keys), dropped=0)
    (line,) = [line for line in server.log().splitlines() if "reached no queue" in line]
    assert "'amq.direct'" in line
    assert "'no-queue-is-bound'" in line


# ---- the name of the host --------------------------------------------------


def test_a_host_that_does_not_exist(
    broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    mailbox = Mailbox(broker)
    arguments = arguments_for(broker, mailbox, "$")
    arguments[1] = "nowhere.invalid"
    server = start_redis(arguments=arguments)
    client = server.client()
    with loaded(server) as load:
        with probe(server):
            load.more(500)
            all_stored(client, load)
            # The text is the C library's, and differs without a network.
            wait_for(lambda: "name" in stats(client)["last_error"].lower(), 120)
        client.config_set("keyspaceamqp.host", "127.0.0.1")
        wait_for(lambda: is_back(client), 30)
    numbers = delivered(client, mailbox, load.keys)
    assert numbers["handler_errors"] == 0
    assert "Traceback" not in server.log()


# The C library's resolver, except for the name `slow.invalid`: it writes that into the file ASKED,
# and answers when there is a file ANSWER.
_SLOW_RESOLVER = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints,
                struct addrinfo **result) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    if (node == NULL || strcmp(node, "slow.invalid") != 0)
        return real(node, service, hints, result);
    FILE *asked = fopen(ASKED, "a");
    fputs("asked\\n", asked);
    fclose(asked);
    while (access(ANSWER, F_OK) != 0) usleep(10000);
    return real("127.0.0.1", service, hints, result);
}
"""


class SlowName:
    """Starts a Redis whose resolver is slow for the name `slow.invalid`."""

    def __init__(self, folder: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._asked, self._answer = folder / "asked", folder / "answer"
        source, self._library = folder / "resolver.c", folder / "resolver.so"
        source.write_text(_SLOW_RESOLVER)
        files = [f'-DASKED="{self._asked}"', f'-DANSWER="{self._answer}"']
        subprocess.run(
            ["cc", "-shared", "-fPIC", "-o", self._library, *files, source, "-ldl"], check=True
        )
        self._monkeypatch = monkeypatch

    def start(self, server: RedisServer) -> None:
        with self._monkeypatch.context() as patch:
            patch.setenv("LD_PRELOAD", str(self._library))
            server.start()

    @property
    def asked(self) -> int:
        """The number of questions so far."""
        return self._asked.read_text().count("\n") if self._asked.exists() else 0

    def answer(self) -> None:
        """Answers all questions, those that were asked and those that come."""
        self._answer.touch()


@pytest.fixture
def slow_name(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowName]:
    name = SlowName(tmp_path, monkeypatch)
    yield name
    name.answer()


@pytest.mark.parametrize("put_right", ["the answer comes", "another host is set"])
def test_a_name_that_resolves_slowly(
    put_right: str,
    broker: RabbitServer,
    start_redis: StartRedis,
    slow_name: SlowName,
    probe: Probe,
) -> None:
    """Only the attempt waits for the resolver: neither Redis nor the handler."""
    mailbox = Mailbox(broker)
    arguments = arguments_for(broker, mailbox, "$", masks=("^load",))
    arguments[1] = "slow.invalid"
    server = start_redis(arguments=arguments, start=False)
    slow_name.start(server)
    client = server.client()
    with loaded(server) as load:
        load.more(1)
        wait_for(lambda: slow_name.asked == 1, 30)
        for _ in range(3):
            with probe(server):
                load.more(500)
                all_stored(client, load)
                assert client.execute_command("KEYSPACEAMQP.KEYMASK", "TEST", "load") == 1
        assert stats(client)["state"] == "connecting"
    client.config_set("keyspaceamqp.masks", "^timed")
    settled(client, fallback_length=len(load.keys), queue_length=0)
    stored_soon(client)
    assert slow_name.asked == 1
    if put_right == "the answer comes":
        slow_name.answer()
    else:
        client.config_set("keyspaceamqp.host", "127.0.0.1")
    timed = [b"timed:%d" % number for number in range(21)]
    numbers = delivered(client, mailbox, [*load.keys, *timed])
    assert (numbers["state"], numbers["handler_errors"]) == ("connected", 0)
    # The late answer to the earlier question changes nothing.
    slow_name.answer()
    client.set("timed:last", 1)
    delivered(client, mailbox, [b"timed:last"], confirmed=len(load.keys) + 22)


def test_unload_while_a_name_resolves(
    broker: RabbitServer, start_redis: StartRedis, slow_name: SlowName
) -> None:
    """The resolver answers when the module is unloaded already."""
    mailbox = Mailbox(broker)
    arguments = arguments_for(broker, mailbox, "$")
    arguments[1] = "slow.invalid"
    server = start_redis(arguments=arguments, start=False)
    slow_name.start(server)
    client = server.client(socket_timeout=60)
    threads = pathlib.Path(f"/proc/{server.pid}/task")
    expected = []
    for run in range(3):
        client.set(f"k{run}", 1)
        expected.append(b"k%d" % run)
        wait_for(lambda n=run: slow_name.asked == n + 1, 30)
        client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
        if run < 2:
            client.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
    waiting = len(list(threads.iterdir()))
    slow_name.answer()
    # Less if the kernel listed the thread of the last load for a moment yet.
    wait_for(lambda: len(list(threads.iterdir())) <= waiting - 3, 30)
    client.execute_command("MODULE", "LOAD", str(MODULE), *arguments_for(broker, mailbox, "$"))
    delivered(client, mailbox, expected)
    assert "Traceback" not in server.log()
