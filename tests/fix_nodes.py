"""A cluster of real servers with the module, for tests of the messages between its nodes.

Each family has one cluster of three primaries with a replica each, for all tests of a file. A
test leaves it as it was: six nodes, all up. When the cluster ends, the books of every node
must balance, none may have crashed, and all must end cleanly.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from keyspace_amqp.demo.servers import RedisCluster, RedisServer, free_port, wait_for
from keyspace_amqp.fallback import from_element
from keyspace_amqp.tables.parameters import PARAMETERS
from keyspace_amqp.tables.stats import Stat
from tests.fix_servers import _CRASH, _SERVERS, MODULE, settled, stats
from tests.servers import REDIS, VALKEY, program

# All versions of a kind send and take messages in the same way.
TWO_FAMILIES = pytest.mark.parametrize("family_cluster", [REDIS, VALKEY], indirect=True)
# For tests of the handler alone.
ONE_FAMILY = pytest.mark.parametrize("family_cluster", [REDIS], indirect=True)

NUMBERS = [stat.name.lower() for stat in Stat]

# Seconds, against hangs. A command must end before its time limit for peers; "6 of 6" in the reply
# shows that it did.
SOON = 30.0


class Nodes(RedisCluster):
    """A cluster with the module, and what the tests ask of its nodes."""

    def __init__(
        self, folder: pathlib.Path, family: str, module: pathlib.Path = MODULE, **size: int
    ) -> None:
        # True while the cluster is down. Ten times a second the server then answers CLUSTERDOWN to
        # all blocked clients, including those that wait for the module.
        self.down = False
        self._numbers = itertools.count()
        self._clients: dict[tuple[RedisServer, int], redis.Redis] = {}

        def make(options: Sequence[str]) -> RedisServer:
            return RedisServer(
                folder / f"node-{next(self._numbers)}",
                program(family),
                [str(module), "A", "127.0.0.1", str(free_port())],
                options,
            )

        super().__init__(make, **size)

    def at(self, node: RedisServer, protocol: int = 3) -> redis.Redis:
        """A client of one node."""
        if (node, protocol) not in self._clients:
            self._clients[node, protocol] = node.client(protocol=protocol)
        return self._clients[node, protocol]

    def run(self, node: RedisServer, line: str, *arguments: Any, protocol: int = 3) -> Any:
        """A command of ours; arguments may be bytes with anything in them."""
        words = (*("KEYSPACEAMQP." + line).split(), *arguments)
        while True:
            try:
                return self.at(node, protocol).execute_command(*words)
            except redis.exceptions.ClusterDownError:
                if not self.down:
                    raise

    def everywhere(self, line: str, nodes: Sequence[RedisServer] | None = None) -> list[Any]:
        """The reply of every node to a command that each answers alone."""
        return [self.run(node, line) for node in nodes or self.nodes]

    def values(self, name: str, nodes: Sequence[RedisServer] | None = None) -> list[bytes]:
        """A parameter on every node."""
        replies = self.everywhere(f"CONFIG GET {name}", nodes)
        return [reply[name.encode()] for reply in replies]

    def rows(self, node: RedisServer) -> dict[int, dict[str, Any]]:
        """The reply of KEYSPACEAMQP.CLUSTER on this node: its fields by port."""
        table = {}
        for row in self.run(node, "CLUSTER"):
            fields = {
                name.decode(): value.decode() if isinstance(value, bytes) else value
                for name, value in row.items()
            }
            table[int(fields["address"].rpartition(":")[2])] = fields
        return table

    def versions(self, nodes: Sequence[RedisServer] | None = None) -> list[int]:
        """Return the config version of every node."""
        return [
            next(
                row[b"config_version"]
                for row in self.run(node, "CLUSTER LOCAL")
                if row[b"address"] == b"127.0.0.1:%d" % node.port
            )
            for node in nodes or self.nodes
        ]

    def agree(self, nodes: Sequence[RedisServer] | None = None, **values: object) -> None:
        """Waits until all these nodes have the same version and these values."""
        seen: dict[str, Any] = {}

        def agreed() -> bool:
            seen["version"] = self.versions(nodes)
            for name, value in values.items():
                seen[name] = set(self.values(name.replace("_", "-"), nodes))
                if seen[name] != {str(value).encode()}:
                    return False
            return len(set(seen["version"])) == 1

        try:
            wait_for(agreed, SOON)
        except TimeoutError:
            pytest.fail(f"no agreement: wanted {values}, there is {seen}")

    def ready(self, count: int | None = None) -> None:
        """Wait until the handler of every node knows all nodes, and none fails."""
        self.wait_settled()
        running = [node for node in self.nodes if node.running]
        count = len(running) if count is None else count

        def complete(node: RedisServer) -> bool:
            with contextlib.suppress(redis.exceptions.RedisError):
                states = [row["state"] for row in self.rows(node).values()]
                return len(states) == count and "unknown" not in states
            return False

        for node in running:
            wait_for(lambda node=node: complete(node), SOON, f"{node.port} knows {count} nodes")

    def wait_ok(self, nodes: Sequence[RedisServer]) -> None:
        """Waits until cluster_state of these nodes is ok."""
        for node in nodes:
            wait_for(lambda node=node: self.at(node).cluster("info")["cluster_state"] == "ok", SOON)

    def fresh(self) -> None:
        """Brings the cluster back to its start: all nodes up, the first parameters, nothing in the
        lists."""
        for node in self.nodes:
            if not node.running:
                node.start()
        self.ready()
        given = {"events": "A", "host": "127.0.0.1", "port": str(free_port())}
        defaults = []
        for parameter in PARAMETERS:
            defaults += [parameter.name, given.get(parameter.name, parameter.default)]
        for line, arguments in (
            ("CONNECT", []),
            ("CONFIG SET", defaults),
            ("FALLBACK PURGE", []),
            ("STATS RESET", []),
        ):
            reply = self.run(self.nodes[0], line, *arguments)
            assert (reply[b"nodes"], reply[b"missing"]) == (len(self.nodes), [])
        self.agree()

    def remove(self, node: RedisServer) -> None:
        """Forget a node that has left the cluster, and check that it ends cleanly."""
        self.nodes.remove(node)
        assert self.failures([node]) == []

    def failures(self, nodes: Sequence[RedisServer] | None = None) -> list[str]:
        """Stop nodes; return their problems."""
        wrong = []
        for node in nodes or self.nodes:
            name = f"{node.folder.name} on port {node.port}"
            if node.running:
                try:
                    settled(self.at(node))
                except (redis.exceptions.RedisError, pytest.fail.Exception) as error:
                    wrong.append(f"{name}: {error}")
        for node in nodes or self.nodes:
            name = f"{node.folder.name} on port {node.port}"
            if node.running:
                code = node.stop()
                if code != 0:
                    wrong.append(f"{name} ended with {code}")
            if _CRASH.search(node.log()):
                wrong.append(f"{name} crashed")
        return wrong


@contextlib.contextmanager
def started(nodes: Nodes) -> Iterator[Nodes]:
    """Start a cluster, and check and end it after the `with`."""
    try:
        nodes.start()
        yield nodes
        failures = nodes.failures()
        assert failures == []
    finally:
        nodes.stop()


@pytest.fixture(scope="module")
def family_cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nodes]:
    with started(Nodes(tmp_path_factory.mktemp("cluster"), request.param)) as nodes:
        yield nodes


@pytest.fixture
def cluster(family_cluster: Nodes, request: pytest.FixtureRequest) -> Iterator[Nodes]:
    """The family's cluster, fresh. Leave all six nodes running."""
    request.node.stash.setdefault(_SERVERS, []).extend(family_cluster.nodes)
    family_cluster.fresh()
    yield family_cluster
    family_cluster.down = False
    for node in family_cluster.nodes:
        if node.running:
            node.signal(signal.SIGCONT)


def as_map(reply: Any) -> dict[str, Any]:
    """A map of either protocol."""
    if isinstance(reply, list):
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    return {name.decode(): value for name, value in reply.items()}


def everybody(result: object, count: int = 6) -> dict[str, Any]:
    """The reply of a command that all nodes have carried out."""
    return {"result": result, "nodes": count, "of": count, "missing": []}


def missing(reply: Any, node: RedisServer) -> None:
    """Checks that a command was carried out on five of six nodes, and that it names the other."""
    assert (reply[b"nodes"], reply[b"of"]) == (5, 6)
    (text,) = reply[b"missing"]
    assert text.startswith(b"127.0.0.1:%d: " % node.port)


def peeked_keys(reply: dict[str, Any]) -> list[bytes]:
    """The keys of the events that PEEK has shown, sorted."""
    return sorted(from_element(element).key for element in reply["result"])


def at_once(actions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Calls functions in threads, all at the same instant; returns what they returned."""
    barrier = threading.Barrier(len(actions))
    results: list[Any] = [None] * len(actions)

    def call(number: int) -> None:
        barrier.wait(SOON)
        try:
            results[number] = actions[number]()
        except Exception as error:
            results[number] = error

    threads = [threading.Thread(target=call, args=[n]) for n in range(len(actions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    for result in results:
        if isinstance(result, Exception):
            raise result
    return results


def write(cluster: Nodes, keys: Sequence[str]) -> None:
    """SETs keys, wherever they belong."""
    client = cluster.client()
    for key in keys:
        client.set(key, 1)
    client.close()


def sums(cluster: Nodes, nodes: Sequence[RedisServer]) -> dict[str, int]:
    """Return the expected sums in STATS CLUSTER for these nodes, at rest."""
    numbers = [stats(cluster.at(node)) for node in nodes]
    return {name: sum(each[name] for each in numbers) for name in NUMBERS}
