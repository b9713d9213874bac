"""A long run of random faults over real servers: `make soak`, or `python -m tests.system.soak
--minutes 10 --seed 7`.

Each minute is a round of its own, whose seed is that of the round before plus one. A round has a
Redis with a replica, a broker, and writers. The seed decides the family and the persistence of the
server, its outbox, what the writers do, and which faults come when. Two threads make faults, so
that faults coincide: one hurts the broker and the link to it, the other Redis and the module.

At the end nothing fails any more, and the messages are compared with what Redis itself has told its
subscribers: nothing is lost, nothing is unexpected, repeated messages have their first message_id,
and first arrivals are in order. (Redis tells nobody of the events of snapshots. All of those that
the module has counted have to arrive.) How the faults coincide depends on the time and the machine;
everything else is the same with the same seed.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import itertools
import pathlib
import random
import re
import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tables.keys import KEY
from tests.fix_faults import PROBE_BOUND, Notifications, Probe, Proxy
from tests.fix_outbox import modes
from tests.fix_servers import (
    MODULE,
    Mailbox,
    Message,
    arguments_for,
    once,
    outbox_options,
    replicated,
    settled,
    stats,
)
from tests.servers import ALL, program
from tests.system.test_events import random_commands

ROUND = 60.0  # seconds of faults
WRITERS = 3
# Seconds between the batches of a writer. A batch has 19 commands on average: together about two
# thousand events a second.
PACE = 0.02
HEAL_TIMEOUT = 120
EXCHANGE = "soak"
# The alternate exchange takes what this one does not route. So the queue need not be bound again at
# once when the exchange was deleted and comes back.
EXCHANGE_ARGUMENTS = {"alternate-exchange": "amq.direct"}
PERSISTENCE = {"rdb": ["save 3600 1000000"], "aof": ["appendonly yes"]}
# Keys without a time to live make no events while nobody writes.
PERSIST_ALL = """
for db = 0, 15 do
    redis.call('SELECT', db)
    for _, key in ipairs(redis.call('KEYS', '*')) do redis.call('PERSIST', key) end
end
"""

Event = tuple[int, bytes, bytes]
# Of the broker and the link, and of Redis and the module: name, and how often.
BROKER_FAULTS = {
    "kill": 2,
    "terminate": 1,
    "freeze": 3,
    "memory_alarm": 1,
    "close_connections": 1,
    "delete_exchange": 2,
    "deafen_link": 3,
    "cut_link": 4,
}
REDIS_FAULTS = {
    "port_to_nowhere": 2,
    "wrong_password": 2,
    "other_parameters": 3,
    "disconnect": 2,
    "drain": 1,
    "snapshot": 6,
    "save_in_background": 2,
    "rewrite_in_background": 2,
    "pause_writes": 2,
    "reload_data": 2,
    "load_anew": 2,
    "restart": 1,
    "fail_over": 2,
}


class SoakError(Exception):
    """A round failed; the text is a report."""


@dataclasses.dataclass
class Summary:
    """The numbers of a round."""

    seed: int
    what: str
    events: int
    messages: int
    repeated: int
    faults: int
    slowest_ping: float

    def __str__(self) -> str:
        return (
            f"seed {self.seed}, {self.what}: {self.events} events, {self.faults} faults, "
            f"{self.repeated} messages repeated, slowest PING {self.slowest_ping * 1000:.0f} ms"
        )


class Node:
    """A Redis; the events of each load of the module as Redis notified them, and how many the
    snapshots of this load have had."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.client = server.client()
        self.loads: list[list[Event]] = [[]]
        self.snapshots = [0]

    def new_load(self) -> None:
        self.loads.append([])
        self.snapshots.append(0)


class Writer:
    """A client that runs random commands, and rests while `resting` is held."""

    def __init__(self, source: random.Random) -> None:
        self.client: redis.Redis | None = None
        self.mark = ""  # a key that only this segment has
        self.resting = threading.Lock()
        self._source = source

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(PACE):
            if not self.resting.acquire(timeout=PACE):
                continue  # whoever holds it may have failed
            try:
                if self.client is not None:
                    self.client.set(self.mark, 1)
                    next(random_commands(self.client, self._source, 1))
            finally:
                self.resting.release()


class Round:
    """A minute of faults, and the check. `broker` is up before and after it."""

    def __init__(self, folder: pathlib.Path, broker: RabbitServer, seed: int) -> None:
        self.seed = seed
        self.folder = folder
        # Rounds with seeds in a row go through all servers and both kinds of persistence.
        self.family = ALL[seed % len(ALL)]
        self.persistence = list(PERSISTENCE)[seed // len(ALL) % 2]
        source = random.Random(seed)
        self.outbox = source.choice(["off", *modes(self.family)])
        self._broker_source = random.Random(source.random())
        self._redis_source = random.Random(source.random())
        self._writers = [Writer(random.Random(source.random())) for _ in range(WRITERS)]
        self._broker = broker
        self._mailbox = Mailbox(broker)
        self._declare_exchange()
        self._proxy = Proxy(broker.port)
        self._probe = Probe()
        self._probing = contextlib.ExitStack()
        self._probing_since = 0.0
        self._notifications: Notifications | None = None
        self._begin = time.monotonic()
        self.story: list[str] = []
        self._faults = 0
        self._segments = 0
        self._resting = False
        self._over = threading.Event()
        self._errors: list[BaseException] = []
        self._nodes: list[Node] = []

    @property
    def _what(self) -> str:
        return f"{self.family} with {self.persistence.upper()}, outbox {self.outbox}"

    # ---- a round -----------------------------------------------------------

    def run(self, seconds: float) -> Summary:
        """Run a round. Raises SoakError with a full report."""
        with self._proxy:
            try:
                self._start_nodes()
                self._begin_segment()
                with self._threads():
                    self._over.wait(seconds)
                if self._errors:
                    raise self._errors[0]
                self._heal()
                return self._check()
            except (Exception, pytest.fail.Exception) as error:
                raise SoakError(self._report(error)) from error
            finally:
                self._clean_up()

    def _start_nodes(self) -> None:
        for number in range(2):
            server = RedisServer(
                self.folder / f"redis-{number}",
                program(self.family),
                list(map(str, self._module())),
                [*PERSISTENCE[self.persistence], *outbox_options(self.outbox)],
            )
            server.start()
            self._nodes.append(Node(server))
        self._replica.client.replicaof("127.0.0.1", str(self._primary.server.port))

    def _module(self) -> list[Any]:
        """The module's file and arguments, as they are when all is well."""
        arguments = arguments_for(self._proxy.port, self._mailbox)
        arguments[6] = EXCHANGE
        return [str(MODULE), *arguments]

    @property
    def _primary(self) -> Node:
        return self._nodes[0]

    @property
    def _replica(self) -> Node:
        return self._nodes[1]

    @contextlib.contextmanager
    def _threads(self) -> Iterator[None]:
        """Writers and faults. The first error of any ends them all."""
        work: list[Callable[[], None]] = [
            lambda: self._make_faults("broker", BROKER_FAULTS, self._broker_source),
            lambda: self._make_faults("redis", REDIS_FAULTS, self._redis_source),
            *(lambda writer=writer: writer.run(self._over) for writer in self._writers),
        ]

        def run(job: Callable[[], None]) -> None:
            try:
                job()
            except BaseException as error:  # pytest.fail raises no Exception
                self._errors.append(error)
                self._over.set()

        threads = [threading.Thread(target=run, args=(job,)) for job in work]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._over.set()
            for thread in threads:
                thread.join()

    def _make_faults(self, side: str, faults: dict[str, int], source: random.Random) -> None:
        while not self._over.wait(source.uniform(0.1, 2.5)):
            (name,) = source.choices(list(faults), list(faults.values()))
            self._tell(f"{side}: {name}")
            self._faults += 1
            getattr(self, "_" + name)(source)
            self._tell(f"{side}: {name} is over")

    def _tell(self, text: str) -> None:
        self.story.append(f"{time.monotonic() - self._begin:7.2f} s  {text}")

    def _for_a_while(self, source: random.Random, most: float) -> None:
        self._over.wait(source.uniform(0.05, most))

    # ---- segments: unbroken runs of writing to one primary --------------------

    def _begin_segment(self) -> None:
        """Subscribes to Redis' own notifications, before there are events."""
        primary = self._primary
        if self._notifications is None:
            self._notifications = Notifications(primary.server).__enter__()
        self._begin_probe()
        self._segments += 1
        # Nothing else makes this event: it tells which messages come from which load of the module.
        mark = f"segment:{self._segments}"
        primary.client.set(mark, 1)
        for writer in self._writers:
            writer.mark = mark
            writer.client = primary.server.client()
            if self._resting:
                writer.resting.release()
        self._resting = False

    def _end_segment(self, *, memory_empty: bool) -> None:
        """No more events. `memory_empty`: all events are delivered or in the list."""
        for writer in self._writers:
            writer.resting.acquire()
            if writer.client is not None:
                writer.client.close()
                writer.client = None
        self._resting = True
        primary = self._primary
        primary.client.execute_command("KEYSPACEAMQP.SNAPSHOT", "STOP")
        primary.client.eval(PERSIST_ALL, 0)
        # Those that have expired already, but were not removed yet.
        wait_for(lambda: not any(db["expires"] for db in primary.client.info("keyspace").values()))
        self._end_probe()
        notifications, self._notifications = self._notifications, None
        assert notifications is not None
        notifications.__exit__()
        primary.loads[-1] += [e for e in notifications.events if e[2] != KEY]
        if memory_empty:
            settled(primary.client, 60, queue_length=0, in_flight=0)
        primary.snapshots[-1] = stats(primary.client)["snapshot_events"]
        self._check_numbers(primary)

    @contextlib.contextmanager
    def _without_probe(self) -> Iterator[None]:
        """Pause the probe: Redis may wait for the handler before it saves on its main thread."""
        self._end_probe()
        yield
        self._begin_probe()

    def _begin_probe(self) -> None:
        self._probing.enter_context(self._probe(self._primary.server))
        self._probing_since = time.monotonic()

    def _end_probe(self) -> None:
        # The probe requires a minimum of answers.
        wait_for(lambda: time.monotonic() > self._probing_since + 0.5)
        self._probing.close()

    # ---- faults of the broker and of the link ---------------------------------

    def _kill(self, source: random.Random) -> None:
        self._broker.kill()
        self._for_a_while(source, 4)
        self._broker.start()

    def _terminate(self, source: random.Random) -> None:
        self._broker.stop()
        self._for_a_while(source, 2)
        self._broker.start()

    def _freeze(self, source: random.Random) -> None:
        self._broker.signal(signal.SIGSTOP)
        self._for_a_while(source, 4)
        self._broker.signal(signal.SIGCONT)

    def _memory_alarm(self, source: random.Random) -> None:
        self._broker.ctl("set_vm_memory_high_watermark", "0.0000001")
        self._for_a_while(source, 3)
        self._broker.ctl("set_vm_memory_high_watermark", "0.4")

    def _close_connections(self, _source: random.Random) -> None:
        self._broker.ctl("close_all_connections", "soak")

    def _delete_exchange(self, source: random.Random) -> None:
        with self._broker.connection() as connection:
            connection.channel().exchange_delete(EXCHANGE)
        self._for_a_while(source, 2)
        self._declare_exchange()

    def _declare_exchange(self) -> None:
        with self._broker.connection() as connection:
            connection.channel().exchange_declare(
                EXCHANGE, durable=True, arguments=EXCHANGE_ARGUMENTS
            )
        self._mailbox.keep()

    def _deafen_link(self, source: random.Random) -> None:
        self._proxy.deaf = True
        self._for_a_while(source, 3)
        self._proxy.deaf = False

    def _cut_link(self, source: random.Random) -> None:
        """Cut the link in the middle of what is being sent."""
        with contextlib.suppress(AssertionError):  # nothing was on its way: then later
            self._proxy.cut(source.randrange(100_000), timeout=3)

    # ---- faults of Redis and of the module ------------------------------------

    def _command(self, *words: Any) -> Any:
        return self._primary.client.execute_command(*words)

    def _port_to_nowhere(self, source: random.Random) -> None:
        self._command("CONFIG", "SET", "keyspaceamqp.port", free_port())
        self._for_a_while(source, 2)
        port = source.choice([self._proxy.port, self._broker.port])
        self._command("CONFIG", "SET", "keyspaceamqp.port", port)

    def _wrong_password(self, source: random.Random) -> None:
        self._command("KEYSPACEAMQP.CONFIG", "SET", "password", "wrong")
        self._for_a_while(source, 2)
        self._command("KEYSPACEAMQP.CONFIG", "SET", "password", "guest")

    def _other_parameters(self, source: random.Random) -> None:
        name, values = source.choice(
            [
                ("heartbeat", [0, 1, 2, 30]),
                ("exchange", ["amq.direct", EXCHANGE]),
                ("fallback-size", [0, 10_000_000]),
                ("queue-limit", [16 * 1024 * 1024, 64 * 1024 * 1024]),
                ("worker-nice", [10, 15]),
                ("masks", ["ALL", "ALL ^k"]),
                ("outbox", ["off", *modes(self.family)]),
            ]
        )
        self._command("CONFIG", "SET", f"keyspaceamqp.{name}", source.choice(values))

    def _disconnect(self, source: random.Random) -> None:
        self._command("KEYSPACEAMQP.DISCONNECT")
        self._for_a_while(source, 2)
        self._command("KEYSPACEAMQP.CONNECT")

    def _drain(self, _source: random.Random) -> None:
        self._command("KEYSPACEAMQP.FALLBACK", "DRAIN")

    def _snapshot(self, source: random.Random) -> None:
        """Begin a snapshot, in place of the one that may be under way."""
        self._command("KEYSPACEAMQP.SNAPSHOT", "STOP")
        rate = source.choice([10, 1000, 1_000_000])
        self._command("KEYSPACEAMQP.SNAPSHOT", "START", "RATE", rate)

    def _save_in_background(self, _source: random.Random) -> None:
        with contextlib.suppress(redis.exceptions.ResponseError):  # a save is under way
            self._command("BGSAVE")

    def _rewrite_in_background(self, _source: random.Random) -> None:
        with contextlib.suppress(redis.exceptions.ResponseError):
            self._command("BGREWRITEAOF")

    def _pause_writes(self, source: random.Random) -> None:
        self._command("CLIENT", "PAUSE", source.randint(50, 2000), "WRITE")

    def _reload_data(self, _source: random.Random) -> None:
        """Empty the data set and load it again, with the list, under load."""
        with self._without_probe():
            self._command("DEBUG", "RELOAD")

    def _load_anew(self, _source: random.Random) -> None:
        self._end_segment(memory_empty=False)
        self._command("MODULE", "UNLOAD", "keyspaceamqp")
        path, *arguments = self._module()
        outbox = ["CONFIG", "keyspaceamqp.outbox", self.outbox]
        self._command("MODULE", "LOADEX", path, *outbox, "ARGS", *arguments)
        self._primary.new_load()
        self._begin_segment()

    def _restart(self, _source: random.Random) -> None:
        # Only a dump has the events that were stored last.
        self._end_segment(memory_empty=self.persistence == "aof")
        primary = self._primary
        assert primary.server.stop() == 0
        primary.server.start()
        primary.new_load()
        self._begin_segment()

    def _fail_over(self, _source: random.Random) -> None:
        """A failover for which the replica has everything."""
        self._end_segment(memory_empty=True)
        replicated(self._primary.client, self._replica.client)
        # Some keys may have a time to live in the replica and none in the primary.
        self._notifications = Notifications(self._replica.server).__enter__()
        self._replica.client.replicaof("NO", "ONE")
        self._primary.client.replicaof("127.0.0.1", str(self._replica.server.port))
        self._nodes.reverse()
        self._begin_segment()

    # ---- the end --------------------------------------------------------------

    def _heal(self) -> None:
        self._tell("all is healed")
        self._proxy.cut(0)  # one may still wait for bytes
        self._end_segment(memory_empty=False)
        self._check_numbers(self._primary)
        empty = {"fallback_length": 0, "queue_length": 0, "in_flight": 0, "dropped": 0}
        for node in self._nodes:
            settled(node.client, HEAL_TIMEOUT, **empty)
            self._check_numbers(node)
        replicated(self._primary.client, self._replica.client)
        assert self._replica.client.llen(KEY) == 0

    def _check_numbers(self, node: Node) -> None:
        numbers = stats(node.client)
        for name in ("dropped", "handler_errors", "returned"):
            assert numbers[name] == 0, f"{name} is {numbers[name]}"

    def _check(self) -> Summary:
        """Compare the messages that arrived with the events that were emitted."""
        messages = self._mailbox.receive()
        arrived: dict[str, dict[int, Event]] = collections.defaultdict(dict)
        for message in messages:
            load, number = _identity(message)
            before = arrived[load].setdefault(number, message.event)
            assert before == message.event, f"{before} and {message.event} have one message_id"
        for numbers in arrived.values():
            places = list(numbers)
            late = [(b, a) for a, b in itertools.pairwise(places) if b < a]
            assert not late, f"{len(late)} first arrivals late: {late[0][0]} after {late[0][1]}"
        shown = len(once([message for message in messages if message.event[1] == b"snapshot"]))
        counted = sum(sum(node.snapshots) for node in self._nodes)
        assert shown == counted, f"{shown} events of snapshots, {counted} counted"
        loads = [load for node in self._nodes for load in node.loads if load]
        of_load = _by_load([m for m in messages if m.event[1] != b"snapshot"], loads)
        for number, events in enumerate(loads):
            # Keys may expire before this event, also in another load of the module, and before the
            # subscription.
            mark = next(event for event in events if event[2].startswith(b"segment:"))
            came = of_load[number]
            start = max(came.index(mark) - events.index(mark), 0) if mark in came else 0
            assert {name for _, name, _ in came[:start]} <= {b"expired"}
            _compare(events, came[start:])
        for node in self._nodes:
            assert not re.search("events? lost", node.server.log())
            assert node.server.stop() == 0
        assert self._probe.median < PROBE_BOUND, (
            f"Redis took {self._probe.slowest} seconds to answer"
        )
        count = sum(map(len, loads)) + shown
        return Summary(
            self.seed,
            self._what,
            count,
            len(messages),
            len(messages) - count,
            self._faults,
            max(self._probe.slowest),
        )

    def _report(self, error: BaseException) -> str:
        parts = [
            *traceback.format_exception(error),
            f"seed {self.seed} ({self._what}): {type(error).__name__}: {error}",
            f"again: make soak MINUTES=1 SEED={self.seed}",
            "what happened:",
            *self.story,
        ]
        for node in self._nodes:
            with contextlib.suppress(redis.exceptions.RedisError):
                parts.append(f"STATS of {node.server.folder.name}: {stats(node.client)}")
        for server in (*(node.server for node in self._nodes), self._broker):
            parts += [f"the end of the log of {server.folder.name}:"]
            parts += server.log().splitlines()[-60:]
        return "\n".join(parts)

    def _clean_up(self) -> None:
        self._over.set()
        self._proxy.deaf = False
        with contextlib.suppress(Exception, pytest.fail.Exception):
            self._probing.close()
        if self._notifications is not None:
            with contextlib.suppress(Exception):
                self._notifications.__exit__()
        for node in self._nodes:
            node.client.close()
            node.server.stop()


def _identity(message: Message) -> tuple[str, int]:
    """The load of the module that a message comes from, and its number there."""
    load, _, number = message.properties.message_id.rpartition("-")
    return load, int(number)


def _by_load(messages: list[Message], loads: list[list[Event]]) -> dict[int, list[Event]]:
    """The first arrivals of each load, by its place in `loads`, in their order. An outbox gives
    events ids of its own, so a load has two kinds of them."""
    with_mark = {
        event[2]: number
        for number, events in enumerate(loads)
        for event in events
        if event[2].startswith(b"segment:")
    }
    load_of: dict[str, int] = {}
    for message in messages:
        if message.event[2] in with_mark:
            load_of.setdefault(_identity(message)[0], with_mark[message.event[2]])
    came: dict[int, list[Event]] = collections.defaultdict(list)
    near = 0
    for message in once(messages):
        # A few events without a mark belong to those beside which they arrive.
        near = load_of.setdefault(_identity(message)[0], near)
        came[near].append(message.event)
    return came


def _compare(expected: list[Event], arrived: list[Event]) -> None:
    if arrived == expected:
        return
    lost = collections.Counter(expected) - collections.Counter(arrived)
    more = collections.Counter(arrived) - collections.Counter(expected)
    pairs = zip(arrived, expected, strict=False)
    place = next((n for n, (a, b) in enumerate(pairs) if a != b), None)
    raise AssertionError(
        f"lost {lost.total()} of {len(expected)} {list(lost)[:5]}, unexpected {more.total()} "
        f"{list(more)[:5]}, the first difference is at {place}"
    )


def soak(folder: pathlib.Path, minutes: float, seed: int) -> Iterator[Summary]:
    """Rounds until the time is over. Raises SoakError."""
    with RabbitServer(folder / "rabbitmq") as broker:
        left = minutes * 60
        while left > 0:
            seconds = min(left, ROUND)
            round_folder = folder / f"round-{seed}"
            yield Round(round_folder, broker, seed).run(seconds)
            left -= seconds
            seed += 1


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.system.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    print(f"{options.minutes:g} minutes from seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="keyspace-amqp-") as folder:
        try:
            for summary in soak(pathlib.Path(folder), options.minutes, options.seed):
                print(summary, flush=True)
        except SoakError as error:
            print(error)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
