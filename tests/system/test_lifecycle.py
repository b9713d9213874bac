"""Unload, shutdown, fork: captured events are delivered or stored within a bounded time, and
the server keeps running."""

from __future__ import annotations

import itertools
import pathlib
import re
import socket
import sys
import time

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.fallback import from_element
from keyspace_amqp.publisher.flush import MARGIN, STOP_RESERVE
from keyspace_amqp.publisher.window import WINDOW
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.parameters import PARAMETERS
from keyspace_amqp.tables.times import STOP
from tests.fix_faults import Load, Proxy, delivered, workers
from tests.fix_outbox import AND_ATOMIC
from tests.fix_servers import (
    EXCHANGE,
    MODULE,
    Mailbox,
    StartRedis,
    arguments_for,
    linked,
    list_length,
    once,
    settled,
    stats,
)
from tests.servers import REDIS


def resources(server: RedisServer) -> tuple[int, int]:
    """Threads and descriptors of the server."""
    process = pathlib.Path(f"/proc/{server.pid}")
    return len(list((process / "task").iterdir())), len(list((process / "fd").iterdir()))


def worker_gone(server: RedisServer) -> None:
    """Wait until the kernel no longer lists the worker's thread: it may do so for a moment after
    Redis has seen the thread's end."""
    wait_for(lambda: workers(server, 0), 30, "the worker's thread is gone")


def rss(server: RedisServer) -> int:
    status = pathlib.Path(f"/proc/{server.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


@pytest.mark.parametrize("there", [True, False], ids=["broker up", "broker away"])
def test_many_unloads_under_load(
    family: str, there: bool, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Events that are captured while the module is loaded are delivered, or are in the list or in
    the file for the next load. Memory, threads and descriptors do not grow."""
    server = start_redis(family)
    client = server.client()
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    arguments = arguments_for(broker.port if there else free_port(), mailbox, "$")
    cycles = 200 if family == REDIS else 40
    measured = []
    with Load(server) as load:
        for cycle in range(cycles):
            client.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
            load.more(20)
            client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
            if cycle in (9, cycles - 1):
                worker_gone(server)
                if measured:  # a thread that looks for the name of the broker ends later
                    wait_for(lambda: resources(server)[0] <= measured[0][0], 30, "threads end")
                size = (client.memory_usage(KEY, samples=0) or 0) // 1024
                measured.append((*resources(server), rss(server) - size))
    (_, descriptors, memory), (_, descriptors2, memory2) = measured
    assert descriptors2 <= descriptors + 1
    assert memory2 < memory * 1.5
    # Within one load of the module, no key is missing.
    client.execute_command("MODULE", "LOAD", str(MODULE), *arguments_for(broker, mailbox, "$"))
    settled(client, fallback_length=0, queue_length=0, in_flight=0)
    messages = once(mailbox.receive())
    seen = [int(m.event[2].partition(b":")[2]) for m in messages]
    assert seen == sorted(seen)
    assert len(seen) >= cycles * 20
    holes = sum(b != a + 1 for a, b in itertools.pairwise(seen))
    assert holes <= cycles  # a hole for each time without the module


def test_a_life_that_is_over_takes_no_memory(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Python collects garbage seldom; an unload does not wait for that. Debian's Redis has one
    allocator for itself and for the module, which counts each byte in use."""
    client = start_redis(REDIS).client()
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    arguments = arguments_for(broker, mailbox, "$")
    measured = []
    for _ in range(150):
        with client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
            for number in range(50):
                pipeline.set(f"k{number}", 1)
            pipeline.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
            pipeline.execute()
        memory = client.info("memory")
        measured.append(memory["allocator_allocated"] - memory["used_memory"])
    grown = measured[-1] - measured[24]
    print(f"{grown // 1024} KiB more after 125 lives")
    assert grown < 320 * 1024


def test_unload_is_an_affair_of_this_server_only(family: str, start_redis: StartRedis) -> None:
    """Redis replicates MODULE UNLOAD if the data set changes meanwhile. Then replicas would lose
    the module, and so would the server itself at its next start from the file."""
    arguments = arguments_for(free_port(), events="$")
    options = ["appendonly yes", "appendfsync always", "repl-diskless-sync-delay 0"]
    server = start_redis(family, arguments, options)
    replica = start_redis(family, arguments, [f"replicaof 127.0.0.1 {server.port}"])
    client, other = server.client(), replica.client()
    linked(other)
    expected = []
    for cycle in range(5):
        with client.pipeline(transaction=False) as pipeline:
            for number in range(100):
                pipeline.set(f"k{cycle}:{number}", 1)
                expected.append(b"k%d:%d" % (cycle, number))
            pipeline.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
            pipeline.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
            pipeline.execute()
        settled(client, fallback_length=len(expected))
    wait_for(lambda: list_length(other) == len(expected), 30)
    assert b"keyspaceamqp" in [m[b"name"] for m in other.module_list()]
    server.kill()
    server.start()
    settled(server.client(), fallback_length=len(expected), fallback_found=len(expected))
    elements = map(from_element, server.client().lrange(KEY, 0, -1))
    assert [event.key for event in elements if event is not None] == expected


def events_lost(server: RedisServer) -> int:
    """The events that the log calls lost."""
    return sum(int(n) for n in re.findall(r"(\d+) (?:more )?events? lost", server.log()))


def test_unload_with_the_list_off(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Everything is delivered, unless the machine is so slow that the time of a stop ends first:
    events that have not arrived then are counted."""
    server = start_redis(arguments=arguments_for(broker, mailbox, size=-1))
    client = server.client(socket_timeout=60)
    with client.pipeline(transaction=False) as pipeline:
        for number in range(3000):
            pipeline.set(f"k{number}", 1)
        pipeline.execute()
    begin = time.monotonic()
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    took = time.monotonic() - begin
    arrived = [m.event[2] for m in mailbox.receive()]
    assert arrived == [b"k%d" % n for n in range(len(arrived))]
    lost = events_lost(server)
    # Messages in flight at the end count as lost, and may have arrived.
    assert len(arrived) + lost >= 3000
    assert (len(arrived), lost) == (3000, 0) or took >= STOP - MARGIN - STOP_RESERVE


def test_unload_drops_only_what_has_nowhere_to_go(start_redis: StartRedis) -> None:
    server = start_redis(arguments=arguments_for(free_port(), size=-1))
    client = server.client()
    for number in range(100):
        client.set(f"k{number}", 1)
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    # On a slow machine, the last event may still be in the queue at the end.
    assert "lost: they could be neither delivered nor stored" in server.log()
    assert events_lost(server) == 100


def test_unload_counts_what_there_was_no_time_for(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """More events than a stop has time to deliver, and no list: each is delivered or counted as
    lost, also events that are still in the queue."""
    server = start_redis(arguments=arguments_for(broker, mailbox, "$", size=-1))
    client = server.client(socket_timeout=60)
    client.set("first", 1)
    mailbox.receive(1)
    count = 400_000
    client.eval(f"for i = 1, {count} do redis.call('SET', 'k', 1) end", 0)
    begin = time.monotonic()
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    took = time.monotonic() - begin
    lost = events_lost(server)
    assert lost > 0 or took < STOP, took  # a fast machine may deliver all of them
    # Messages in flight at the end count as lost, and may have arrived: a window, and as many
    # that newer confirms have overtaken.
    arrived = len(mailbox.receive())
    assert count <= arrived + lost <= count + 2 * WINDOW, (arrived, lost)


@pytest.mark.parametrize("there", [True, False], ids=["broker up", "broker away"])
def test_unload_with_a_full_queue(
    there: bool, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Events that fit into the queue are delivered or in the list. The others are counted and
    logged, though the worker had no time before the unload."""
    arguments = arguments_for(broker.port if there else free_port(), mailbox, "$")
    server = start_redis(arguments=arguments, options=["keyspaceamqp.queue-limit 1048576"])
    client = server.client(socket_timeout=60)
    client.set("k0", 1)
    settled(client, events_seen=1)
    count = 100_000
    with client.pipeline(transaction=False) as pipeline:
        pipeline.eval(f"for i = 1, {count} do redis.call('SET', 'k' .. i, 1) end", 0)
        pipeline.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
        pipeline.execute()
    lost = events_lost(server)
    assert 0 < lost < count
    client.execute_command("MODULE", "LOAD", str(MODULE), *arguments_for(broker, mailbox, "$"))
    settled(client, fallback_length=0, queue_length=0, in_flight=0)
    numbers = [int(message.event[2][1:]) for message in once(mailbox.receive())]
    assert numbers == sorted(numbers)
    # Messages in flight at the end may have arrived, and come again.
    assert len(numbers) == count + 1 - lost


def test_unload_while_a_connection_opens(start_redis: StartRedis) -> None:
    """Twenty times, and no socket stays open."""
    with socket.create_server(("127.0.0.1", 0), backlog=100) as silent:
        arguments = arguments_for(silent.getsockname()[1], events="$")
        server = start_redis(arguments=None)
        client = server.client()
        before = None
        for number in range(20):
            client.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
            client.set(f"k{number}", 1)
            settled(client, state="connecting")
            begin = time.monotonic()
            client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
            assert time.monotonic() - begin < 10
            if number == 4:
                worker_gone(server)
                before = resources(server)
        assert before is not None
        worker_gone(server)
        threads, descriptors = resources(server)
        assert threads <= before[0]
        assert descriptors <= before[1]
    # All captured events are in the list, or in the file for the next load.
    client.execute_command("MODULE", "LOAD", str(MODULE), *arguments_for(free_port()))
    settled(client, fallback_length=20)


def test_connections_that_nobody_answers_on(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The module gives a connection up for another one. The old one ends even if its peer is silent
    and there are no heartbeats."""
    with Proxy(broker.port) as proxy:
        server = start_redis(arguments=arguments_for(proxy.port, mailbox, "$"))
        client = server.client()
        client.config_set("keyspaceamqp.heartbeat", 0)
        client.set("first", 1)
        settled(client, state="connected", confirmed=1)
        _, descriptors = resources(server)
        for number in range(10):
            proxy.lose()
            client.config_set("keyspaceamqp.port", broker.port)
            client.set(f"a{number}", 1)
            settled(client, state="connected", fallback_length=0, in_flight=0)
            client.config_set("keyspaceamqp.port", proxy.port)
            client.set(f"b{number}", 1)
            settled(client, state="connected", fallback_length=0, in_flight=0)
        wait_for(lambda: resources(server)[1] <= descriptors + 1, 30)
    keys = [b"%s%d" % (letter, number) for number in range(10) for letter in (b"a", b"b")]
    delivered(client, mailbox, [b"first", *keys])


def test_every_parameter_changed_under_load(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """Each parameter is set to another value and back: nothing is lost."""
    (tmp_path / "password").write_text("guest")
    other = f"other-{mailbox.routing_key}"
    with broker.connection() as connection:
        connection.channel().queue_bind(mailbox.name, EXCHANGE, other)
    server = start_redis(arguments=arguments_for(broker, mailbox, "$"))
    client = server.client()
    changes = {
        "events": ["A", "$g", "$"],
        "host": ["localhost", "127.0.0.1"],
        "port": [free_port(), broker.port],
        "username": ["nobody", "guest"],
        "password": ["wrong", "guest"],
        "heartbeat": [1, 0, 30],
        "exchange": ["nowhere", EXCHANGE],
        "routing-key": [other, mailbox.routing_key],
        "delivery-mode": [1, 2],
        "fallback-size": [0, 1_000_000],
        "masks": ["^load: ^other", "^load", "ALL"],
        "queue-limit": [1 << 22, 1 << 26],
        "worker-nice": [0, 10],
        "url": ["amqps://nobody@localhost:1/no", f"amqp://guest:guest@localhost:{broker.port}", ""],
        "vhost": ["none", "/"],
        "password-file": ["/there/is/none", str(tmp_path / "password"), ""],
        "auth-mechanism": ["external", "plain"],
        "tls": ["on", "off"],
        "tls-ca-file": ["/there/is/none", ""],
        "tls-cert-file": ["/there/is/none", ""],
        "tls-key-file": ["/there/is/none", ""],
        "tls-server-name": ["other", ""],
        "tls-verify": ["off", "on"],
        "tcp-keepalive": [0, 1],
        "node-name": ["other", ""],
        "format": ["text"],
        "headers": ["on", "off"],
        "value": [1, 0],
        "mandatory": ["off", "on"],
        "app-id": ["app", ""],
        "message-type": ["type", ""],
        "priority": [9, ""],
        "expiration": [600000, ""],
        "deduplication-header": ["on", "off"],
        "databases": ["0-3", "ALL"],
        "confirm-timeout": ["90", "60"],
        "fallback-memory": [10, 2],
        "subkeys": [100, 0],
        "outbox": ["reply", "off"],
        "cloudevents-prefix": ["ce-", "cloudEvents:"],
    }
    assert list(changes) == [parameter.name for parameter in PARAMETERS]
    with Load(server, batch=10, pause=0.005) as load:
        for _ in range(3):
            for name, values in changes.items():
                for value in values:
                    client.config_set(f"keyspaceamqp.{name}", value)
                    load.more(50)
    # Each new connection sends again what has no confirm, so there is no bound: the slower the
    # broker, the more often.
    numbers = delivered(client, mailbox, load.keys, repeated=sys.maxsize, timeout=120)
    assert numbers["handler_errors"] == 0


SHUTDOWNS = {
    "rdb": ["save 3600 1000000"],
    "aof": ["appendonly yes"],
    "neither": [],
}


@AND_ATOMIC
@pytest.mark.parametrize("there", [True, False], ids=["broker up", "broker away"])
@pytest.mark.parametrize("persistence", list(SHUTDOWNS))
def test_shutdown(
    family: str,
    persistence: str,
    there: bool,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    """SIGTERM. With a broker everything is delivered. Without one, events are stored as far as the
    server saves, and it ends in time."""
    port = broker.port if there else free_port()
    server = start_redis(family, arguments_for(port, mailbox), SHUTDOWNS[persistence])
    client = server.client()
    with client.pipeline(transaction=False) as pipeline:
        for number in range(2000):
            pipeline.set(f"k{number}", 1)
        pipeline.execute()
    begin = time.monotonic()
    assert server.stop(timeout=30) == 0
    took = time.monotonic() - begin
    assert took < 15
    expected = [b"k%d" % number for number in range(2000)]
    if persistence == "neither" and (not there or took >= STOP - MARGIN - STOP_RESERVE):
        # On a slow machine, the time for the broker may be over. What went to the list ends with
        # the process, and nothing says how much that was. What has arrived is the beginning.
        arrived = [message.event[2] for message in once(mailbox.receive())]
        assert arrived == expected[: len(arrived)]
        assert there or not arrived
        return
    server.start()
    client = server.client()
    if not there:
        settled(client, fallback_length=2000, fallback_found=2000)
        client.set("new", 1)
        expected.append(b"new")
        client.config_set("keyspaceamqp.port", broker.port)
    # Events that were confirmed and not yet trimmed when the file was written come again.
    delivered(client, mailbox, expected, repeated=2 * WINDOW if there else 0)
    assert not list(server.folder.glob("*.leftover"))


def test_events_too_late_for_the_append_only_file(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Redis closes the file before it tells modules of a shutdown. Events in memory then survive in
    a file of their own: twice, with the broker away all the time, and in order with the events of
    the list."""
    server = start_redis(family, arguments_for(free_port(), mailbox), ["appendonly yes"])
    expected = []
    for life in range(3):
        if life:
            server.start()
        client = server.client(retry=Retry(NoBackoff(), 0))
        for part in ("early", "late"):
            with client.pipeline(transaction=False) as pipeline:
                for number in range(1000):
                    pipeline.set(f"{part}:{life}:{number}", 1)
                    expected.append(b"%s:%d:%d" % (part.encode(), life, number))
                if part == "early":
                    pipeline.execute()
                    settled(client, queue_length=0)
                    continue
                # At once, before the last of them are due in the list.
                pipeline.execute_command("SHUTDOWN")
                with pytest.raises(redis.exceptions.ConnectionError):
                    pipeline.execute()
        wait_for(lambda: not server.running, 30)
        assert (server.folder / f"keyspaceamqp-{server.port}.leftover").exists()
    server.start()
    client = server.client()
    client.config_set("keyspaceamqp.port", broker.port)
    delivered(client, mailbox, expected)
    assert not list(server.folder.glob("*.leftover"))


def test_leftovers_that_cannot_be_read(start_redis: StartRedis) -> None:
    server = start_redis(arguments=arguments_for(free_port()), start=False)
    path = server.folder / f"keyspaceamqp-{server.port}.leftover"
    path.write_bytes(b"*3\r\n$5\r\nRPUSH\r\n$2")
    server.start()
    settled(server.client(), fallback_found=0)
    assert f"{path.name} cannot be read: incomplete; it is" in server.log()
    assert path.with_suffix(".unreadable").exists()


def test_save_has_what_is_in_memory(start_redis: StartRedis) -> None:
    """A synchronous SAVE stores what is in memory first: a crash right after it loses nothing."""
    server = start_redis(arguments=arguments_for(free_port()), options=["dbfilename dump.rdb"])
    client = server.client()
    with client.pipeline(transaction=False) as pipeline:
        for number in range(500):
            pipeline.set(f"k{number}", 1)
        pipeline.execute_command("SAVE")
        pipeline.execute()
    server.kill()
    server.start()
    settled(server.client(), fallback_length=500)


@pytest.mark.parametrize("there", [True, False], ids=["broker up", "broker away"])
def test_forks_under_load(
    family: str, there: bool, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """BGSAVE and BGREWRITEAOF: no deadlock, nothing lost, nothing repeated."""
    forks = 500 if family == REDIS and there else 20
    port = broker.port if there else free_port()
    server = start_redis(
        family, arguments_for(port, mailbox, "$"), ["appendonly yes", "save 3600 1000000", "hz 200"]
    )
    client = server.client()
    with Load(server) as load:
        for number in range(forks):
            wait_for(lambda: not _saving(client), 30)
            client.execute_command("BGSAVE" if number % 20 else "BGREWRITEAOF")
            load.more(10)
        wait_for(lambda: not _saving(client), 30)
    if not there:
        settled(client, fallback_length=len(load.keys))
        client.config_set("keyspaceamqp.port", broker.port)
    settled(client, confirmed=len(load.keys), fallback_length=0)
    assert [m.event[2] for m in mailbox.receive()] == load.keys
    print(f"slowest SET with {forks} forks: {load.slowest * 1000:.1f} ms")


def _saving(client: redis.Redis) -> bool:
    found = client.info("persistence")
    return bool(found["rdb_bgsave_in_progress"] or found["aof_rewrite_in_progress"])


def test_connect_and_disconnect_hammered(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    server = start_redis(arguments=arguments_for(broker, mailbox, "$"))
    client = server.client()
    with Load(server) as load:
        for _ in range(60):
            client.execute_command("KEYSPACEAMQP.DISCONNECT")
            client.execute_command("KEYSPACEAMQP.CONNECT")
            load.more(5)
    settled(client, confirmed=len(load.keys), fallback_length=0, dropped=0)
    assert [m.event[2] for m in once(mailbox.receive())] == load.keys
    assert stats(client)["handler_errors"] == 0


def test_a_long_script(broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis) -> None:
    """Redis' main thread is busy for long; the worker does its work without it."""
    server = start_redis(arguments=arguments_for(broker, mailbox, "$"))
    client = server.client()
    count = 50_000
    client.eval(f"for i = 1, {count} do redis.call('SET', 'k' .. i, 1) end", 0)
    settled(client, confirmed=count)
    keys = [m.event[2] for m in once(mailbox.receive())]
    assert keys == [b"k%d" % number for number in range(1, count + 1)]
