"""Redis at fault, or changing: killed, stopped, saving, loading, synchronizing, promoted, demoted.
Captured events arrive in order, and loading a data set makes no messages."""

from __future__ import annotations

import contextlib
import pathlib
import random
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyspace_amqp import fallback, message
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.demo.servers.redis_server import patient
from keyspace_amqp.fallback import from_element
from keyspace_amqp.publisher.window import WINDOW
from keyspace_amqp.tables.keys import KEY
from tests.fix_faults import Notifications, Probe, Proxy, delivered
from tests.fix_outbox import AND_ATOMIC, AND_OUTBOX
from tests.fix_servers import (
    Mailbox,
    Message,
    StartRedis,
    arguments_for,
    linked,
    list_length,
    once,
    settled,
    stats,
)
from tests.servers import program
from tests.system.test_events import random_commands

RDB = ["save 3600 1000000"]
# An event has to be in the list within 100 ms; more, for a machine that stands still. The load of
# a test has to go on for longer.
LATE = 1.0


class Writer:
    """A client that SETs numbered keys in pipelines, and does not give up. If its server is gone or
    takes no writes, it asks again where to write, and goes on. In a `with`. `answered`: the keys
    that a server has answered, in order, with the time of the answer. `uncertain`: keys whose
    answer was cut off; they may have been written or not."""

    def __init__(
        self, where: RedisServer | Callable[[], int], batch: int = 100, pause: float = 0.02
    ) -> None:
        self.answered: dict[bytes, float] = {}
        self.uncertain: list[bytes] = []
        self._where = where if callable(where) else lambda: where.port
        self._batch = batch
        self._pause = pause
        self._number = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    @property
    def keys(self) -> list[bytes]:
        return list(self.answered)

    @property
    def newest(self) -> float:
        """The time of the newest answer. Ages of lost events are counted back from it: after it,
        the machine may have stood still."""
        return list(self.answered.values())[-1]

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                # The client's own retries would write keys twice.
                once_only = patient() | {"retry": Retry(NoBackoff(), 0)}
                with redis.Redis("127.0.0.1", self._where(), **once_only) as client:
                    self._write(client)
            except redis.exceptions.RedisError:
                self._stop.wait(0.02)

    def _write(self, client: redis.Redis) -> None:
        client.ping()
        while not self._stop.is_set():
            keys = [b"load:%d" % (self._number + n) for n in range(self._batch)]
            self._number += self._batch
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.set(key, 1)
            try:
                answers = pipeline.execute(raise_on_error=False)
            except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError):
                self.uncertain += keys
                raise
            now = time.monotonic()
            errors = []
            for key, answer in zip(keys, answers, strict=True):
                if answer is True:
                    self.answered[key] = now
                else:
                    errors.append(answer)
            if errors:
                raise errors[0]
            self._stop.wait(self._pause)

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def more(self, count: int) -> None:
        """Waits for more answers."""
        target = len(self.answered) + count
        wait_for(lambda: len(self.answered) >= target, 60, f"{count} more writes are answered")


def start_replica(
    start_redis: StartRedis,
    family: str,
    arguments: list[object],
    primary: RedisServer,
    options: Iterable[str] = (),
) -> RedisServer:
    """A replica whose link is up."""
    replica = start_redis(family, arguments, [f"replicaof 127.0.0.1 {primary.port}", *options])
    linked(replica.client())
    return replica


def keys_of(messages: Iterable[Message]) -> list[bytes]:
    """The keys of the first arrivals."""
    return [item.event[2] for item in once(list(messages))]


def in_order_per_node(messages: Sequence[Message]) -> None:
    """Checks that each node's events arrived in the order of their writing."""
    newest: dict[str, int] = {}
    for item in once(list(messages)):
        node = item.properties.message_id.partition("-")[0]
        number = number_of(item.event[2])
        assert number > newest.get(node, -1), f"{number} after {newest[node]} of node {node}"
        newest[node] = number


def number_of(key: bytes) -> int:
    return int(key.rpartition(b":")[2])


def loaded_keys(client: redis.Redis) -> list[bytes]:
    """The keys of a Writer that the server has, in the order of writing."""
    return sorted(client.scan_iter(match="load:*", count=10_000), key=number_of)


def only_a_tail(arrived: Sequence[bytes], written: dict[bytes, float], until: float) -> float:
    """Checks that `arrived` is in order and that only the newest of `written` are missing; returns
    how long before `until` the oldest of these was answered."""
    keys = list(written)
    known = [key for key in arrived if key in written]
    assert list(arrived) == sorted(arrived, key=number_of)
    assert known == keys[: len(known)], "what is lost is not the newest"
    lost = keys[len(known) :]
    return until - written[lost[0]] if lost else 0.0


# ---- the end of a server -----------------------------------------------------


@AND_OUTBOX
@pytest.mark.parametrize("there", [True, False], ids=["broker up", "broker away"])
@pytest.mark.parametrize("replicated", [False, True], ids=["alone", "with a replica"])
def test_stopped_under_load(
    family: str,
    replicated: bool,
    there: bool,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    """SIGTERM while clients write, with snapshots on disk: every write in the last snapshot has its
    event, however far behind the replica is."""
    arguments = arguments_for(broker, mailbox, "$")
    server = start_redis(family, arguments, [*RDB, "repl-diskless-sync-delay 0"])
    client = server.client()
    if replicated:
        replica = start_replica(start_redis, family, arguments, server)
    if not there:
        client.config_set("keyspaceamqp.port", free_port())
    took = []
    keys: list[bytes] = []
    for _ in range(2):
        client.delete(*keys, "nothing")
        with Writer(server) as load:
            load.more(2000)
            begin = time.monotonic()
            assert server.stop(timeout=30) == 0
            took.append(time.monotonic() - begin)
        # The broker is there: redis.conf has its port.
        server.start()
        assert not re.search("events? lost", server.log())
        keys = loaded_keys(client)
        assert set(load.answered) <= set(keys)
        # With the broker there, events in the snapshot are delivered after the restart too.
        delivered(client, mailbox, keys, repeated=len(keys))
        if not there:
            client.config_set("keyspaceamqp.port", free_port())
    if replicated:
        # Trims that the replica did not get before the stop reach it in the end.
        wait_for(lambda: client.wait(1, 1000) == 1 and list_length(replica.client()) == 0, 30)
    print(f"the end took {', '.join(f'{seconds:.2f}' for seconds in took)} s")
    assert max(took) < 15


def test_killed_with_the_broker_away(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """kill -9, with an append-only file that is written at once: except for the last moments,
    nothing is lost."""
    server = start_redis(
        family,
        arguments_for(broker, mailbox, "$"),
        ["appendonly yes", "appendfsync always"],
    )
    client = server.client()
    ages = []
    for times in (2.5, 3, 3.5):
        client.delete(*loaded_keys(client), "nothing")
        client.config_set("keyspaceamqp.port", free_port())
        # For much longer than LATE, with fewer events than a push may have. The time varies, so
        # that the kill does not always come just after a push.
        with Writer(server, batch=10) as load:
            load.more(round(times * LATE * 400))  # at most 500 in a second
            server.kill()
        server.start()  # with the broker: redis.conf has its port
        settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
        arrived = keys_of(mailbox.receive())
        assert set(arrived) <= {*load.answered, *load.uncertain}
        ages.append(only_a_tail(arrived, load.answered, load.newest))
    print(f"lost: what was younger than {', '.join(f'{age * 1000:.0f}' for age in ages)} ms")
    assert max(ages) < LATE


# Less than a message takes on its way to the broker, with its frames.
MESSAGE_BYTES = 150


def test_killed_while_the_list_is_drained(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """kill -9 during the delivery: nothing is lost, and only events that were not trimmed yet come
    again."""
    with Proxy(broker.port) as proxy:
        proxy.deaf = True
        server = start_redis(
            arguments=arguments_for(proxy.port, mailbox, "$", masks=("^load",)),
            options=["appendonly yes", "appendfsync always"],
        )
        client = server.client()
        with Writer(server, batch=1000) as load:
            load.more(40_000)
        settled(client, fallback_length=len(load.keys))
        for _ in range(3):
            before = list_length(client)
            # More than a window, so the first of them are confirmed and trimmed; and far from all
            # that is in the list.
            proxy.deafen(after=10_000 * MESSAGE_BYTES)
            wait_for(lambda n=before: list_length(client) < n, 60, "elements are trimmed")
            server.kill()
            server.start()
            assert 0 < list_length(client) < before
        proxy.deaf = False
        wait_for(lambda: list_length(client) == 0, 120, "the list is delivered")
        repeated = 3 * (WINDOW + fallback.JOB_ELEMENTS)
        delivered(client, mailbox, load.keys, repeated=repeated)


@pytest.mark.parametrize("persistence", [RDB, ["appendonly yes"]], ids=["rdb", "aof"])
def test_stopped_with_a_paused_broker(
    family: str,
    persistence: list[str],
    own_broker: RabbitServer,
    start_redis: StartRedis,
    probe: Probe,
) -> None:
    """SIGTERM while the broker keeps the connection and is silent: Redis ends in time, and events
    that were not confirmed are on the disk."""
    mailbox = Mailbox(own_broker)
    arguments = arguments_for(own_broker, mailbox, "$", masks=("^load",))
    server = start_redis(family, arguments, persistence)
    client = server.client()
    took = []
    for _ in range(3):
        client.delete(*loaded_keys(client), "nothing")
        with Writer(server) as load:
            load.more(500)
            wait_for(lambda: stats(client)["confirmed"] > 0, 30)
            with probe(server):
                own_broker.signal(signal.SIGSTOP)
                load.more(1500)
            begin = time.monotonic()
            try:
                assert server.stop(timeout=30) == 0
            finally:
                own_broker.signal(signal.SIGCONT)
            took.append(time.monotonic() - begin)
        server.start()
        assert not re.search("events? lost", server.log())
        keys = loaded_keys(client)
        assert set(load.answered) <= set(keys)
        delivered(client, mailbox, keys, repeated=WINDOW)
    print(f"the end took {', '.join(f'{seconds:.2f}' for seconds in took)} s")
    assert max(took) < 15


# ---- loading -------------------------------------------------------------------


@AND_ATOMIC
@pytest.mark.parametrize("there", [True, False], ids=["broker up", "broker away"])
@pytest.mark.parametrize("command", ["RELOAD", "LOADAOF"])
def test_loaded_again_under_load(
    family: str,
    command: str,
    there: bool,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    """The data set is dropped and loaded from disk, with the list, between two commands of the
    clients. Loading makes no messages, and nothing is lost: neither events in the list nor events
    in memory."""
    server = start_redis(
        family, arguments_for(broker, mailbox, "A", masks=("^load", "^history")), ["appendonly yes"]
    )
    client = server.client(socket_timeout=60)
    history = [b"history:%d" % number for number in range(2000)]
    with client.pipeline(transaction=False) as pipeline:
        for key in history:
            pipeline.set(key, 1)
        pipeline.execute()
    settled(client, confirmed=len(history))
    if not there:
        client.config_set("keyspaceamqp.port", free_port())
    # During the load Redis answers clients that they have to wait.
    client.config_set("loading-process-events-interval-bytes", 1024)
    with Writer(server) as load:
        for _ in range(5):
            load.more(500)
            client.execute_command("DEBUG", command)
        load.more(500)
    if not there:
        waiting = settled(client, queue_length=0, in_flight=0)["fallback_length"]
        assert waiting == len(load.answered)
        client.config_set("keyspaceamqp.port", broker.port)
    # An element that was confirmed just before the load may be there again after it.
    delivered(
        client, mailbox, [*history, *load.keys], repeated=5 * (WINDOW + fallback.JOB_ELEMENTS)
    )


# ---- replicas ------------------------------------------------------------------

SYNC = ["repl-diskless-sync yes", "repl-diskless-sync-delay 0"]


def write_numbered(pipeline: redis.client.Pipeline, prefix: str, count: int) -> list[bytes]:
    """Add SETs to a pipeline; return their keys."""
    keys = [b"%b:%d" % (prefix.encode(), number) for number in range(count)]
    for key in keys:
        pipeline.set(key, 1)
    return keys


@AND_OUTBOX
def test_flushall_leaves_the_lists_equal(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """With save points, FLUSHALL saves before it is replicated. Events in memory go to the list
    after it, on the primary and on the replica."""
    primary = start_redis(family, arguments_for(free_port(), mailbox, "$"), [*RDB, *SYNC])
    replica = start_replica(start_redis, family, arguments_for(broker, mailbox), primary, SYNC)
    client, other = primary.client(), replica.client()
    expected: list[bytes] = []
    for number in range(3):
        with client.pipeline(transaction=False) as pipeline:
            expected += write_numbered(pipeline, f"before:{number}", 500)
            pipeline.flushall()
            pipeline.execute()
        with client.pipeline(transaction=number == 2) as pipeline:
            expected += write_numbered(pipeline, f"in:{number}", 100)
            pipeline.flushall()
            expected += write_numbered(pipeline, f"after:{number}", 300)
            pipeline.execute()
        settled(client, queue_length=0)
        wait_for(lambda: caught_up(client, other), 30, "the replica has the same list")
        events = map(from_element, client.lrange(KEY, 0, -1))
        listed = [event.key for event in events if event is not None]
        # What was in the list when it was flushed is gone.
        assert listed == expected[-len(listed) :]
        assert len(listed) >= 300
    # After the trims of a delivery too.
    client.config_set("keyspaceamqp.port", broker.port)
    settled(client, fallback_length=0, in_flight=0)
    assert keys_of(mailbox.receive()) == listed
    client.config_set("keyspaceamqp.port", free_port())
    write_some(client)
    settled(client, fallback_length=100)
    wait_for(lambda: caught_up(client, other), 30, "the replica has the same list")


def write_some(client: redis.Redis) -> None:
    with client.pipeline(transaction=False) as pipeline:
        write_numbered(pipeline, "some", 100)
        pipeline.execute()


@AND_OUTBOX
@pytest.mark.parametrize("save", ["save points", "none"])
@pytest.mark.parametrize("end", ["SAVE", "SHUTDOWN"])
def test_a_save_right_after_flushall(
    family: str, outbox: str, end: str, save: str, start_redis: StartRedis
) -> None:
    """It has the events in memory, like any other save: in the same turn of the event loop too."""
    options = RDB if save == "save points" else []
    server = start_redis(family, arguments_for(free_port(), events="$"), options)
    client = server.client(retry=Retry(NoBackoff(), 0))
    with client.pipeline(transaction=False) as pipeline:
        expected = write_numbered(pipeline, "before", 50)
        pipeline.flushall()
        if outbox == "atomic":  # they were in the list
            expected = []
        expected += write_numbered(pipeline, "after", 50)
        pipeline.execute_command(*([end] if end == "SAVE" else [end, "SAVE"]))
        with contextlib.suppress(redis.exceptions.ConnectionError):
            pipeline.execute()
    if end == "SAVE":
        server.kill()
    wait_for(lambda: not server.running, 30)
    server.start()
    settled(server.client(), fallback_length=len(expected), fallback_found=len(expected))
    events = map(from_element, server.client().lrange(KEY, 0, -1))
    assert [event.key for event in events if event is not None] == expected


def follow(replica: RedisServer, primary: RedisServer) -> None:
    with replica.client() as client:
        client.execute_command("REPLICAOF", "127.0.0.1", str(primary.port))
    linked(replica.client())


def caught_up(primary: redis.Redis, replica: redis.Redis) -> bool:
    """True if the two have the same data, with the list."""
    digests = {client.execute_command("DEBUG", "DIGEST") for client in (primary, replica)}
    return len(digests) == 1


@AND_ATOMIC
@pytest.mark.parametrize("there", [True, False], ids=["broker up", "broker away"])
@pytest.mark.parametrize("loading", ["disabled", "swapdb"])
def test_full_sync_under_load(
    family: str,
    loading: str,
    there: bool,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    """A replica that is too far behind gets all data again, over the network. It publishes nothing,
    has the list in the end, and the primary goes on as before."""
    primary = start_redis(family, arguments_for(broker, mailbox), [*SYNC, "repl-backlog-size 16kb"])
    # The replica could reach the broker, if it published anything.
    options = [f"repl-diskless-load {loading}", "loading-process-events-interval-bytes 1024"]
    replica = start_replica(
        start_redis, family, arguments_for(broker, mailbox), primary, [*SYNC, *options]
    )
    client, other = primary.client(single_connection_client=True), replica.client()
    if not there:
        client.config_set("keyspaceamqp.port", free_port())
    source = random.Random(1)
    with Notifications(primary) as told, Writer(primary) as load:
        for syncs in range(1, 4):
            for _ in random_commands(client, source, 500):
                pass
            replica.signal(signal.SIGSTOP)
            try:
                client.client_kill_filter(_type="replica")
                load.more(2000)
            finally:
                replica.signal(signal.SIGCONT)
            wait_for(lambda n=syncs: client.info("stats")["sync_full"] > n, 30)
            linked(replica.client())
    assert ("Swapping active DB" in replica.log()) == (loading == "swapdb")
    expected = [event for event in told.events if not event[2].startswith(b"keyspaceamqp:")]
    assert len(expected) > 6000
    if not there:
        settled(client, queue_length=0, in_flight=0, fallback_length=len(expected))
        wait_for(lambda: list_length(other) == len(expected), 30)
    wait_for(lambda: caught_up(client, other), 30)
    client.config_set("keyspaceamqp.port", broker.port)
    delivered(client, mailbox, expected, what=lambda item: item.event)
    wait_for(lambda: list_length(other) == 0, 30)
    settled(other, state="replica", events_seen=0, published=0, fallback_pushed=0)


def promote(server: RedisServer) -> list[bytes]:
    """REPLICAOF NO ONE; returns what was in the list then."""
    with server.client() as client, client.pipeline(transaction=True) as pipeline:
        pipeline.execute_command("REPLICAOF", "NO", "ONE")
        pipeline.lrange(KEY, 0, -1)
        _, elements = pipeline.execute()
        return elements


def event_of(element: bytes) -> message.Event:
    event = from_element(element)
    assert event is not None
    return event


@AND_OUTBOX
def test_promoted_under_load_and_back(
    family: str, outbox: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The broker is away, and the list changes its owner twice. All events that were in it at each
    promotion are delivered, once; a demoted node delivers what was in its memory, and nothing
    else."""
    arguments = arguments_for(free_port(), mailbox, "$")
    first = start_redis(family, arguments, SYNC)
    second = start_replica(start_redis, family, arguments, first, SYNC)
    one, two = first.client(), second.client()
    primary = first
    stored: dict[str, bytes] = {}  # message_id: key
    # The newest answer before each promotion, and the time after it: until then, the old primary
    # takes writes that nobody else gets.
    promotions: list[tuple[float, float]] = []
    with Writer(lambda: primary.port) as load:
        for new, old in ((second, first), (first, second)):
            load.more(8000)
            wait_for(lambda n=new: list_length(n.client()) > 1000, 30)
            newest = load.newest
            elements = promote(new)
            promotions.append((newest, time.monotonic()))
            stored |= {event_of(element).message_id: event_of(element).key for element in elements}
            primary = new
            load.more(300)  # to the old primary, which is not demoted yet
            follow(old, new)
            wait_for(lambda n=old: stats(n.client())["state"] == "replica", 30)
            load.more(300)
    settled(one, queue_length=0, in_flight=0)
    assert list_length(one) > 0
    wait_for(lambda: caught_up(one, two), 30)
    # The second node holds the events that were in its memory when it was demoted.
    numbers = settled(two, fallback_length=0, in_flight=0, state="replica")
    held = numbers["queue_length"]
    two.config_set("keyspaceamqp.port", broker.port)
    if held:
        settled(two, confirmed=held, queue_length=0)
    settled(two, published=held, fallback_pushed=numbers["fallback_pushed"])
    in_memory = mailbox.receive()
    assert len(in_memory) == held
    assert caught_up(one, two)
    one.config_set("keyspaceamqp.port", broker.port)
    settled(one, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    in_list = mailbox.receive()
    messages = [*in_memory, *in_list]
    assert len(once(messages)) == len(messages)
    in_order_per_node(in_list)
    ids = {item.properties.message_id: item.event[2] for item in messages}
    assert stored.items() <= ids.items()
    arrived = set(ids.values())
    assert len(arrived) == len(messages), "a write that two nodes tell of"
    assert arrived <= {*load.answered, *load.uncertain}
    # Of the keys that are there, only those of the last moments before a promotion have no event.
    lost = [key for key in loaded_keys(one) if key in load.answered and key not in arrived]
    ages = [
        min(
            newest - load.answered[key]
            for newest, after in promotions
            if after > load.answered[key] - LATE
        )
        for key in lost
    ]
    print(f"{len(stored)} were stored, {held} in memory; {len(lost)} lost, {ages[:1]} s old")
    if outbox == "atomic":
        assert not lost
    assert not ages or max(ages) < LATE
    wait_for(lambda: list_length(two) == 0, 30)


@AND_ATOMIC
@pytest.mark.parametrize("there", [True, False], ids=["broker up", "broker away"])
def test_failover_under_load(
    family: str, there: bool, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """FAILOVER, three times: writes are paused, and the two nodes change their roles. Nothing is
    lost: a demoted node delivers what it could not store any more."""
    arguments = arguments_for(broker if there else free_port(), mailbox, "$")
    first = start_redis(family, arguments, SYNC)
    second = start_replica(start_redis, family, arguments, first, SYNC)
    primary, replica = first, second
    with Writer(lambda: primary.port) as load:
        for _ in range(3):
            load.more(1000)
            primary.client().execute_command("FAILOVER")
            wait_for(lambda new=replica: new.client().role()[0] == b"master", 30)
            primary, replica = replica, primary
            linked(replica.client())
        load.more(1000)
    assert not load.uncertain
    for server in (primary, replica):
        client = server.client()
        client.config_set("keyspaceamqp.port", broker.port)
        settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    messages = mailbox.receive()
    assert sorted(keys_of(messages), key=number_of) == load.keys
    in_order_per_node(messages)
    wait_for(lambda: list_length(replica.client()) == 0, 30)
    assert stats(replica.client())["state"] == "replica"


class Sentinel(RedisServer):
    """A redis-sentinel that watches one primary and decides without others."""

    name = "sentinel"

    def command(self) -> Sequence[str]:
        return [*super().command(), "--sentinel"]

    def watch(self, primary: RedisServer) -> Sentinel:
        self.config_path.write_text(
            f"port {self.port}\nbind 127.0.0.1\ndir {self.folder}\n"
            f"sentinel monitor here 127.0.0.1 {primary.port} 1\n"
            "sentinel down-after-milliseconds here 3000\n"
            "sentinel failover-timeout here 10000\n"
        )
        return self

    def ready(self) -> bool:
        if not super().ready():
            return False
        # Otherwise it asks its servers only every ten seconds.
        with self.client() as client:
            periods = ("info-period", 500, "publish-period", 500)
            # A machine that stands still for 2 seconds would have it do nothing for 30 seconds.
            client.execute_command("SENTINEL", "DEBUG", *periods, "tilt-trigger", 60_000)
        return True

    def primary(self) -> int:
        """The port of the present primary."""
        with self.client() as client:
            return int(client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "here")[1])


@AND_ATOMIC
def test_sentinel(
    family: str,
    outbox: str,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
    tmp_path: pathlib.Path,
) -> None:
    """The primary is killed under load with the broker away. Sentinel promotes another node,
    clients follow it, and the killed node comes back as its replica."""
    arguments = arguments_for(free_port(), mailbox, "$")
    options = [*SYNC, "appendonly yes"]
    first = start_redis(family, arguments, options)
    nodes = [first]
    for _ in range(2):
        nodes.append(start_replica(start_redis, family, arguments, first, options))
    with Sentinel(tmp_path / "sentinel", program(family)).watch(first) as sentinel:
        with sentinel.client() as client:
            wait_for(lambda: len(client.execute_command("SENTINEL", "REPLICAS", "here")) == 2, 30)
        with Writer(sentinel.primary) as load:
            load.more(8000)
            for node in nodes[1:]:
                linked(node.client())
            killed = load.newest
            first.kill()
            load.more(1000)
            new = next(node for node in nodes if node.port == sentinel.primary())
            assert new is not first
            first.start()
            wait_for(lambda: stats(first.client())["state"] == "replica", 60)
            for node in nodes:
                if node is not new:
                    linked(node.client())
            load.more(1000)
    client = new.client()
    settled(client, queue_length=0, in_flight=0)
    elements = client.lrange(KEY, 0, -1)
    keys = loaded_keys(client)
    for node in nodes:
        if node is not new:
            wait_for(lambda n=node: caught_up(client, n.client()), 30)
            node.client().config_set("keyspaceamqp.port", broker.port)
            settled(node.client(), published=0, queue_length=0, state="replica")
    client.config_set("keyspaceamqp.port", broker.port)
    settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    messages = mailbox.receive()
    # Each stored event once, in order, and nothing else.
    assert [item.properties.message_id for item in messages] == [
        event_of(element).message_id for element in elements
    ]
    in_order_per_node(messages)
    arrived = set(keys_of(messages))
    assert len(arrived) == len(messages), "a write that two nodes tell of"
    assert arrived <= {*load.answered, *load.uncertain}
    # Of the keys that have survived, only those of the last moments have no event.
    lost = [key for key in keys if key in load.answered and key not in arrived]
    age = max([0.0, *(killed - load.answered[key] for key in lost)])
    gone = len(load.answered.keys() - set(keys))
    print(
        f"{len(arrived)} events of {len(load.answered)} writes; {gone} writes and "
        f"{len(lost)} events are lost, {age * 1000:.0f} ms old at most"
    )
    if outbox == "atomic":
        assert not lost
    assert age < LATE
    for node in nodes:
        wait_for(lambda n=node: list_length(n.client()) == 0, 30)
