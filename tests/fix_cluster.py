"""For the tests of Redis Cluster: a cluster of six, a client that writes and remembers which
node has taken each key, and the checks of events and books over all nodes."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Callable, Container, Sequence
from typing import Any

import pytest
import redis

from keyspace_amqp.cluster.slots import slot_of
from keyspace_amqp.demo.servers import RabbitServer, RedisCluster, RedisServer, wait_for
from tests.fix_faults import Background
from tests.fix_servers import Mailbox, Message, StartRedis, arguments_for, once, settled, stats

StartCluster = Callable[..., "Bench"]


@dataclasses.dataclass
class Bench:
    """A cluster with the module on all nodes, and what was written to it.

    `written`: port of the node and key of each answered write; `answered`: the time of each
    answer; `unsure`: keys whose write was not answered, so it may have happened or not. Most
    likely failure: `checked` finds a lost event, and its message names the keys.
    """

    cluster: RedisCluster
    mailbox: Mailbox
    written: list[tuple[int, bytes]] = dataclasses.field(default_factory=list)
    answered: dict[bytes, float] = dataclasses.field(default_factory=dict)
    messages: list[Message] = dataclasses.field(default_factory=list)
    unsure: set[bytes] = dataclasses.field(default_factory=set)

    def write(self, count: int, prefix: str = "k") -> None:
        """SET so many new keys through a cluster client. All are answered."""
        with self.cluster.client() as client:
            for _ in range(count):
                self._set(client, f"{prefix}:{len(self.written)}".encode())

    def _set(self, client: redis.RedisCluster, key: bytes) -> None:
        client.set(key, b"v")
        node = client.nodes_manager.get_node_from_slot(slot_of(key))
        self.written.append((node.port, key))
        self.answered[key] = time.monotonic()

    def checked(
        self,
        repeated: int = 0,
        timeout: float = 60,
        *,
        in_order: bool | Container[int] = True,
        may_miss: Callable[[bytes], bool] = lambda key: False,
    ) -> dict[str, int]:
        """Check sets and books: nothing waits anywhere, every node's books balance, each event
        has arrived and nothing else, at most `repeated` messages are repeated, and the first
        arrivals are in order per node. Return the sums of STATS.

        `in_order`: False, or the ports of the nodes whose order is checked. `may_miss`: True
        for keys whose event may be missing.
        """
        quiet = {"fallback_length": 0, "queue_length": 0, "in_flight": 0, "dropped": 0}
        for node in self.running:
            with node.client() as client:
                settled(client, timeout, **quiet)
        sums = self.sums()
        self.messages += self.mailbox.receive()
        arrived = [message.event[2] for message in once(self.messages)]
        came, sent = set(arrived), {key for _, key in self.written}
        lost = [key for _, key in self.written if key not in came and not may_miss(key)]
        ours = [key for key in came if key.startswith(b"keyspaceamqp")]
        assert not ours, f"events about our own keys: {ours}"
        assert not lost, f"lost {len(lost)} of {len(sent)}: {lost[:5]}"
        assert not came - sent - self.unsure, f"unexpected: {sorted(came - sent - self.unsure)[:5]}"
        repetitions = len(self.messages) - len(arrived)
        assert repetitions <= repeated, f"{repetitions} repeated, at most {repeated} may be"
        for port in {port for port, _ in self.written}:
            if in_order is True or (in_order and port in in_order):
                theirs = [key for at, key in self.written if at == port and key in came]
                place = {key: number for number, key in enumerate(arrived)}
                assert sorted(theirs, key=place.__getitem__) == theirs, f"disorder on {port}"
        return sums

    @property
    def running(self) -> Sequence[RedisServer]:
        """The nodes that run."""
        return [node for node in self.cluster.nodes if node.running]

    def sums(self) -> dict[str, int]:
        """Return the sums of STATS over all running nodes."""
        sums: dict[str, int] = {}
        for node in self.running:
            with node.client() as client:
                for name, number in stats(client).items():
                    if isinstance(number, int):
                        sums[name] = sums.get(name, 0) + number
        return sums

    def all_stored(self, timeout: float = 60) -> None:
        """Wait until no primary has events in memory."""
        for node in self.cluster.primaries():
            with node.client() as client:
                settled(client, timeout, queue_length=0, in_flight=0)

    def waiting(self) -> int:
        """Return the number of events that are in lists and in memory."""
        sums = self.sums()
        return sums["fallback_length"] + sums["queue_length"]

    def waits_for(self, timeout: float = 60, **expected: int) -> None:
        """Wait until the sums of STATS are these."""
        last: dict[str, int] = {}

        def reached() -> bool:
            last.update(self.sums())
            return all(last[name] == value for name, value in expected.items())

        try:
            wait_for(reached, timeout)
        except TimeoutError:
            pytest.fail(f"expected {expected}, the sums are {last}")

    def slots_of(self, node: RedisServer) -> list[str]:
        """Return the first and last slot of each range, as the node itself sees them."""
        (slots,) = [slots for port, _, slots, _ in self.cluster.view(node) if port == node.port]
        return [end for word in slots.split() for end in (word.split("-") * 2)[:2]]

    def keys_of(self, node: RedisServer, count: int) -> list[bytes]:
        """Return so many keys that belong to a primary."""
        with self.cluster.client() as client:
            nodes = client.nodes_manager
            keys = (b"of:%d" % number for number in itertools.count())
            mine = (k for k in keys if nodes.get_node_from_slot(slot_of(k)).port == node.port)
            return list(itertools.islice(mine, count))

    def role(self, node: RedisServer) -> str:
        """Return `primary` or `replica`, as the server itself says."""
        with node.client() as client:
            roles: dict[str, Any] = client.info("replication")
        return "primary" if roles["role"] == "master" else "replica"

    def wait_role(self, node: RedisServer, role: str, timeout: float = 60) -> None:
        wait_for(lambda: self.role(node) == role, timeout, f"{node.folder.name} is {role}")

    def restart(self, node: RedisServer) -> None:
        """Start a node that was killed, and wait until the cluster has it again."""
        node.start()
        self.cluster.wait_settled()

    def reshard(self, source: RedisServer, target: RedisServer, slots: int) -> None:
        """Move slots with redis-cli."""
        self.cluster.cli(*self.cluster.reshard_words(source, target, slots))


class Writer(Background):
    """Writes to a bench in a thread, until its `with` ends.

    `unsure`: keys whose write was not answered, so it may have happened or not.
    """

    def __init__(self, bench: Bench, pause: float = 0.0005) -> None:
        self.unsure: set[bytes] = set()
        self._bench = bench
        self._pause = pause
        super().__init__()

    def _run(self) -> None:
        with self._bench.cluster.client() as client:
            number = 0
            while not self._stop.wait(self._pause):
                key = f"load:{number}".encode()
                number += 1
                try:
                    self._bench._set(client, key)
                except redis.exceptions.RedisError:
                    self.unsure.add(key)


@pytest.fixture
def start_cluster(start_redis: StartRedis) -> StartCluster:
    """Starts a cluster of three primaries and three replicas."""

    def start(
        family: str,
        broker: RabbitServer,
        options: Sequence[str] = (),
        events: str = "$",
        **keywords: Any,
    ) -> Bench:
        mailbox = Mailbox(broker).keep()
        arguments = arguments_for(broker, mailbox, events=events)
        cluster = RedisCluster(
            lambda more: start_redis(family, arguments, [*more, *options], start=False),
            **keywords,
        )
        cluster.start()
        return Bench(cluster, mailbox)

    return start
