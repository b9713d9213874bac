"""Atomic migrations (Valkey 9, Redis 8.4): each change is published once, by the node that has
answered the client; the copying and removal of keys publishes nothing; lists move with their slots.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Sequence

import pytest

from keyspace_amqp.cluster.slots import slot_of
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from keyspace_amqp.fallback import to_element
from keyspace_amqp.message import Event
from keyspace_amqp.publisher.window import WINDOW
from keyspace_amqp.tables.keys import refused_key
from tests.fix_cluster import Bench, StartCluster, Writer
from tests.fix_faults import Background
from tests.fix_migration import BOTH, Migration, commands_run, slow_down
from tests.fix_servers import once, settled, stats

# Every class of events: the commands that copy keys of all types have some.
ALL_EVENTS = "An"
# Slots that stay at the source, so that it stays a primary.
KEPT = 20
# Keys that move, and microseconds for each: an import then takes seconds.
KEYS = 700
SLOWLY = 10_000


def most_slots(bench: Bench, node: RedisServer) -> tuple[int, int]:
    """Return the slots of a node without the first few. The last one has the list of the node."""
    first, *_, last = map(int, bench.slots_of(node))
    return first + KEPT, last


def keys_in(slots: tuple[int, int], count: int) -> list[bytes]:
    """Return so many keys in these slots."""
    first, last = slots
    names = (b"key:%d" % number for number in itertools.count())
    return list(itertools.islice((k for k in names if first <= slot_of(k) <= last), count))


def fill(node: RedisServer, names: Sequence[bytes]) -> None:
    """Make keys of all types, and wait until their events are published."""
    with node.client() as client:
        for number, name in enumerate(names):
            match number % 7:
                case 0:
                    client.set(name, b"v")
                case 1:
                    client.set(name, b"v", ex=1000)
                case 2:
                    client.hset(name, mapping={"a": 1, "b": 2})
                case 3:
                    client.rpush(name, *range(600))  # copied element by element
                case 4:
                    client.sadd(name, "a", "b")
                case 5:
                    client.zadd(name, {"a": 1, "b": 2})
                case 6:
                    client.xadd(name, {"a": 1})
        settled(client, queue_length=0, in_flight=0, fallback_length=0)


class Imports:
    """A cluster whose first primary is about to hand most of its slots to the second, slowly.
    All that was published so far has been received."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.source, self.target, _ = bench.cluster.primaries()
        self.slots = most_slots(bench, self.source)
        fill(self.source, keys_in(self.slots, KEYS))
        bench.mailbox.receive()
        with self.source.client() as client:
            self._seen = stats(client)["events_seen"]

    def move(self, *, back: bool = False) -> None:
        """Move the slots, or move them back."""
        nodes = (self.source, self.target)
        Migration(self.bench.cluster, *(nodes[::-1] if back else nodes), *self.slots).wait()
        self.bench.cluster.wait_settled()

    def begin(self, node: RedisServer | None = None) -> Migration:
        """Start a slow migration; wait until a node (the target) has some of the keys."""
        slow_down(self.source, SLOWLY)
        node = node or self.target
        before = commands_run(node)
        migration = Migration(self.bench.cluster, self.source, self.target, *self.slots)
        wait_for(lambda: commands_run(node) > before + KEYS // 7)
        return migration

    def nothing_is_published(self, target: RedisServer | None = None) -> None:
        """Wait until the target has no keys any more. All keys are at the source, and there were
        no events, and no messages."""
        with self.source.client() as client:
            assert client.dbsize() == KEYS
            assert settled(client)["events_seen"] == self._seen
        with (target or self.target).client() as client:
            wait_for(lambda: client.dbsize() == 0)
            assert settled(client)["events_seen"] == 0
        events = [message.event for message in self.bench.mailbox.receive()]
        assert not events, f"{len(events)} false messages: {events[:5]}"


@BOTH
def test_a_quiet_migration_publishes_nothing(
    family: str, broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """Slots move there and back; another migration is cancelled in the middle."""
    imports = Imports(start_cluster(family, broker, events=ALL_EVENTS, replicas=0))
    imports.move()
    imports.move(back=True)
    imports.begin().cancel()
    imports.nothing_is_published()


@BOTH
@pytest.mark.parametrize("options", [["appendonly yes"], ["save 3600 1"]])
def test_the_target_starts_again_in_an_import(
    family: str, options: list[str], broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """The target has kept some of the keys in its files, and removes them."""
    options = [*options, "cluster-require-full-coverage no"]
    bench = start_cluster(family, broker, options, events=ALL_EVENTS, replicas=0)
    imports = Imports(bench)
    imports.begin()
    with imports.target.client() as client:
        if options[0].startswith("save"):
            client.save()
    imports.target.kill()
    bench.restart(imports.target)
    imports.nothing_is_published()


@BOTH
def test_a_replica_takes_over_in_an_import(
    family: str, broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """The replica has some of the keys, and removes them when it is promoted."""
    imports = Imports(start_cluster(family, broker, events=ALL_EVENTS))
    heir = imports.bench.cluster.replica_of(imports.target)
    imports.begin(heir)
    imports.target.kill()
    imports.bench.wait_role(heir, "primary")
    imports.bench.cluster.wait_settled()
    imports.nothing_is_published(heir)
    imports.bench.restart(imports.target)


@BOTH
def test_a_load_in_an_import(
    family: str, broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """The module has not heard that the import began."""
    imports = Imports(start_cluster(family, broker, events=ALL_EVENTS, replicas=0))
    target = imports.target
    migration = imports.begin()
    with target.client() as client:
        client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
        client.execute_command("MODULE", "LOAD", *target.module)
        before = commands_run(target)
        wait_for(lambda: commands_run(target) > before + KEYS // 7)
    migration.cancel()
    imports.nothing_is_published()


class BusyWriter(Background):
    """Writes in a thread: keys are set, some of them again, and others are deleted or expire.

    `events`: how many events of each name there have to be for each key.
    """

    def __init__(self, bench: Bench) -> None:
        self.events: collections.Counter[tuple[bytes, bytes]] = collections.Counter()
        self._bench = bench
        super().__init__()

    def _run(self) -> None:
        with self._bench.cluster.client() as client:
            for number in itertools.count():
                if self._stop.wait(0.0002):
                    return
                key = b"busy:%d" % number
                client.set(key, b"v", px=200 if number % 4 == 0 else None)
                self.events[b"set", key] += 1
                if number % 4 == 0:
                    self.events[b"expire", key] += 1
                    self.events[b"expired", key] += 1
                if number % 4 == 1 and number > 100:
                    old = b"busy:%d" % (number - 100)
                    client.delete(old)
                    self.events[b"del", old] += 1

    @property
    def count(self) -> int:
        return self.events.total()

    def wait_more(self, count: int = 300) -> None:
        """Wait until it has written more."""
        before = self.count
        wait_for(lambda: self.count > before + count)


@BOTH
@pytest.mark.parametrize("away", [False, True], ids=["broker-there", "broker-away"])
def test_each_change_is_published_once(
    family: str, away: bool, own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """Slots move there and back and there again under load, with both lists of the source."""
    bench = start_cluster(family, own_broker, events="$gx", replicas=0)
    source, target, _ = bench.cluster.primaries()
    slots = most_slots(bench, source)
    refused = b"refused before"
    if away:
        own_broker.kill()
    with BusyWriter(bench) as writer:
        writer.wait_more()
        if away:
            with source.client() as client:
                (key,) = wait_for(lambda: client.keys("keyspaceamqp:*"), what="a list")
                event = Event("t-1", 1, 0, "$", b"set", refused)
                client.rpush(refused_key(key), to_element(event))
            writer.events[b"set", refused] += 1
        for there_and_back in range(3):
            nodes = (source, target) if there_and_back != 1 else (target, source)
            Migration(bench.cluster, *nodes, *slots).wait()
            writer.wait_more()
    bench.cluster.wait_settled()
    if away:
        bench.waits_for(queue_length=0)
        with source.client() as there, target.client() as here:
            assert {key, refused_key(key)}.isdisjoint(there.keys("keyspaceamqp:*"))
            assert here.llen(key) > 0
            assert here.llen(refused_key(key)) == 1
        own_broker.start()
    bench.waits_for(queue_length=0, in_flight=0, fallback_length=0, refused_waiting=0)
    # The expired keys are removed some time after their end.
    wait_for(lambda: bench.sums()["events_matched"] + away >= writer.count)
    bench.waits_for(queue_length=0, in_flight=0, fallback_length=0, dropped=0)
    messages = bench.mailbox.receive()
    assert collections.Counter(message.event[1:] for message in once(messages)) == writer.events
    # What had been sent when it went to the list, of a broker or a machine that was slow, may have
    # come twice.
    repeated = len(messages) - writer.count
    assert repeated == 0 if away else repeated <= bench.sums()["fallback_pushed"]


@BOTH
@pytest.mark.parametrize("becomes", ["replica", "empty"])
def test_all_slots_of_a_node_move(
    family: str, becomes: str, own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """The source has no list any more, and nothing of its list is sent from memory again."""
    may = "yes" if becomes == "replica" else "no"
    bench = start_cluster(family, own_broker, [f"cluster-allow-replica-migration {may}"])
    source, target, _ = bench.cluster.primaries()
    own_broker.kill()
    with Writer(bench):
        wait_for(lambda: len(bench.written) > 300)
        Migration(bench.cluster, source, target, *map(int, bench.slots_of(source))).wait()
        before = len(bench.written)
        wait_for(lambda: len(bench.written) > before + 300)
    bench.cluster.wait_settled()
    assert bench.role(source) == ("replica" if becomes == "replica" else "primary")
    with source.client() as client:
        wait_for(lambda: stats(client)["fallback_length"] == 0)
    # Events of the last moment may have come when the node had no slot for a list any more.
    wait_for(lambda: bench.waiting() == len(bench.written))
    own_broker.start()
    bench.checked(in_order=False)


@BOTH
def test_lists_move_while_they_are_delivered(
    family: str, own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """Lists move there and back. Events in flight, or confirmed and not trimmed, come again."""
    bench = start_cluster(family, own_broker, replicas=0)
    source, target, _ = bench.cluster.primaries()
    slots = most_slots(bench, source)
    own_broker.kill()
    bench.write(2000)
    bench.waits_for(fallback_length=2000)
    own_broker.start()
    with Writer(bench, pause=0.005):
        for nodes in [(source, target), (target, source)] * 2:
            Migration(bench.cluster, *nodes, *slots).wait()
    bench.cluster.wait_settled()
    bench.checked(repeated=4 * WINDOW, in_order=False)
