"""A cluster of real servers: commands act on all nodes, and nodes agree.

Each family has one cluster of three primaries with a replica each, which a test
leaves as it was: six nodes, all up. At the end of its life the books of every node
must balance, none may have crashed, and all must end cleanly.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import pathlib
import signal
import struct
import threading
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import redis

from keyspace_amqp.cluster import peers as spread
from keyspace_amqp.cluster.wire import MAGIC, VERSION, pack, unpack
from keyspace_amqp.demo.servers import RabbitServer, RedisCluster, RedisServer, free_port, wait_for
from keyspace_amqp.fallback import from_element
from keyspace_amqp.tables import times
from keyspace_amqp.tables.parameters import PARAMETERS
from keyspace_amqp.tables.stats import Stat
from tests.fix_faults import Probe, Proxy
from tests.fix_servers import (
    _CRASH,
    _SERVERS,
    EXCHANGE,
    FAMILIES,
    MODULE,
    Mailbox,
    StartRedis,
    handler_copy,
    once,
    settled,
    stats,
)
from tests.system.test_secrets import found, shown

# Redis 8.2 sends and takes messages as 7.0 does.
TWO_FAMILIES = pytest.mark.parametrize("family_cluster", ["redis-7.0", "valkey-8.1"], indirect=True)
# Where only the handler matters.
ONE_FAMILY = pytest.mark.parametrize("family_cluster", ["redis-7.0"], indirect=True)

NUMBERS = [stat.name.lower() for stat in Stat]

# A bound against hangs; what must not take the time-out says so by "6 of 6".
SOON = 30.0

# ---- a cluster with the module -----------------------------------------------------


class Nodes(RedisCluster):
    """A cluster with the module, and what the tests ask of its nodes."""

    def __init__(
        self, folder: pathlib.Path, family: str, module: pathlib.Path = MODULE, **size: int
    ) -> None:
        # Whether the cluster is down: a server then takes a look ten times a second at
        # who waits, for whatever, and answers CLUSTERDOWN in our place.
        self.down = False
        self._numbers = itertools.count()
        self._clients: dict[tuple[RedisServer, int], redis.Redis] = {}

        def make(options: Sequence[str]) -> RedisServer:
            return RedisServer(
                folder / f"node-{next(self._numbers)}",
                FAMILIES[family](),
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
        """KEYSPACEAMQP.CLUSTER as this node has it: per port the fields."""
        table = {}
        for row in self.run(node, "CLUSTER"):
            fields = {
                name.decode(): value.decode() if isinstance(value, bytes) else value
                for name, value in row.items()
            }
            table[int(fields["address"].rpartition(":")[2])] = fields
        return table

    def versions(self, nodes: Sequence[RedisServer] | None = None) -> list[int]:
        """The version of its configuration that every node has."""
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
        """Waits until the handler of every node knows all of them, and none fails."""
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
        """Waits until these nodes hold that the cluster is not down."""
        for node in nodes:
            wait_for(lambda node=node: self.at(node).cluster("info")["cluster_state"] == "ok", SOON)

    def fresh(self) -> None:
        """All nodes up, parameters as at the start, nothing in the lists."""
        for node in self.nodes:
            if not node.running:
                node.start()
        self.ready()
        given = {"events": "A", "host": "127.0.0.1", "port": str(free_port())}
        defaults = []
        for setting in PARAMETERS:
            defaults += [setting.name, given.get(setting.name, setting.default)]
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
        """A node that is no member any more ends."""
        self.nodes.remove(node)
        assert self.failures([node]) == []

    def failures(self, nodes: Sequence[RedisServer] | None = None) -> list[str]:
        """Stops nodes; what was wrong with them."""
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
    """A cluster's life."""
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


def peeked_keys(reply: dict[str, Any]) -> list[bytes]:
    """The keys of the events that PEEK has shown, sorted."""
    return sorted(from_element(element).key for element in reply["result"])


def at_once(actions: Sequence[Callable[[], Any]]) -> list[Any]:
    """Calls functions in threads, all at the same instant; what they returned."""
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


# ---- commands act on all nodes -------------------------------------------------------


@TWO_FAMILIES
def test_commands_act_on_all_nodes(cluster: Nodes, broker: RabbitServer, mailbox: Mailbox) -> None:
    """The reply says so, in both protocols."""
    act_on_all_nodes(cluster.primaries()[0], cluster, broker, mailbox)


@ONE_FAMILY
def test_commands_of_a_replica_act_on_all_nodes(
    cluster: Nodes, broker: RabbitServer, mailbox: Mailbox
) -> None:
    """It does not matter which node they are given to."""
    replica = cluster.replica_of(cluster.primaries()[1])
    act_on_all_nodes(replica, cluster, broker, mailbox)


def act_on_all_nodes(
    node: RedisServer, cluster: Nodes, broker: RabbitServer, mailbox: Mailbox
) -> None:
    primaries = cluster.primaries()

    def run(line: str, *arguments: Any) -> dict[str, Any]:
        """Runs a command with one protocol, the next with the other."""
        return as_map(cluster.run(node, line, *arguments, protocol=next(protocols)))

    def masks() -> list[list[bytes]]:
        return cluster.everywhere("KEYMASK LIST")

    protocols = itertools.cycle([2, 3])
    for _ in range(2):  # each command with each protocol: there is an odd number
        assert run("CONFIG SET", "heartbeat", 7, "Exchange", "x") == everybody(b"OK")
        assert cluster.values("heartbeat") == [b"7"] * 6
        assert cluster.values("exchange") == [b"x"] * 6
        assert run("KEYMASK SET", "a", "b") == everybody(2)
        assert masks() == [[b"a", b"b"]] * 6
        assert run("KEYMASK ADD", "b", "c d") == everybody(3)
        assert masks() == [[b"a", b"b", b"c d"]] * 6
        assert run("KEYMASK DEL", "b") == everybody(2)
        assert masks() == [[b"a", b"c d"]] * 6
        assert run("KEYMASK CLEAR") == everybody(0)
        assert masks() == [[]] * 6
        assert run("DISCONNECT") == everybody(b"OK")
        assert {stats(cluster.at(n))["state"] for n in cluster.nodes} == {"disconnected"}
        run("KEYMASK SET", "ALL")
        keys = [f"key:{number}" for number in range(30)]
        write(cluster, keys)
        for primary in primaries:
            settled(cluster.at(primary), queue_length=0)
        assert run("FALLBACK LEN") == everybody(30)
        peeked = run("FALLBACK PEEK", 100)
        assert peeked == everybody(peeked["result"])
        assert peeked_keys(peeked) == sorted(key.encode() for key in keys)
        assert len(run("FALLBACK PEEK", 7)["result"]) == 7
        assert run("FALLBACK PURGE") == everybody(30)
        assert cluster.everywhere("FALLBACK LEN LOCAL") == [0] * 6
        assert [stats(cluster.at(n))["dropped_purged"] > 0 for n in primaries] == [True] * 3
        assert run("STATS RESET") == everybody(b"OK")
        assert {stats(cluster.at(n))["events_seen"] for n in cluster.nodes} == {0}
    # With the broker there: what waits is delivered, by CONNECT and by DRAIN.
    write(cluster, ["late"])
    for primary in primaries:
        settled(cluster.at(primary), queue_length=0)
    arguments = [broker.port, "guest", "guest", 30, EXCHANGE, mailbox.routing_key, 2, 0]
    assert run("CONNECT", "127.0.0.1", *arguments, "ALL") == everybody(b"OK")
    assert cluster.values("fallback-size") == [b"0"] * 6
    assert masks() == [[b"ALL"]] * 6
    for other in cluster.nodes:
        state = "connected" if other in primaries else "replica"
        settled(cluster.at(other), state=state, fallback_length=0)
    run("CONFIG SET", "port", free_port())
    write(cluster, ["later"])
    for primary in primaries:
        settled(cluster.at(primary), queue_length=0)
    run("CONFIG SET", "port", broker.port)
    drained = run("FALLBACK DRAIN")
    assert drained == everybody(drained["result"])
    for primary in primaries:
        settled(cluster.at(primary), fallback_length=0)
    arrived = {message.event[2] for message in once(mailbox.receive(2))}
    assert arrived == {b"late", b"later"}


@ONE_FAMILY
def test_local_commands_stay(cluster: Nodes) -> None:
    """With LOCAL a command is for the node that it is given to, and says only that."""
    node = cluster.primaries()[0]
    others = [other for other in cluster.nodes if other is not node]
    versions = cluster.versions()
    write(cluster, [str(number) for number in range(30)])
    for primary in cluster.primaries():
        settled(cluster.at(primary), queue_length=0)
    # Its replica's list is the same list.
    elsewhere = [other for other in others if other is not cluster.replica_of(node)]
    lengths = cluster.everywhere("FALLBACK LEN LOCAL", elsewhere)
    assert 0 not in lengths

    def here_only(line: str, *arguments: Any) -> Any:
        return cluster.run(node, line, *arguments, "local")

    assert here_only("CONFIG SET", "exchange", "here") == b"OK"
    assert here_only("KEYMASK SET", "a") == 1
    assert here_only("KEYMASK ADD", "b") == 2
    assert here_only("KEYMASK DEL", "a") == 1
    assert here_only("KEYMASK CLEAR") == 0
    assert here_only("CONNECT", "127.0.0.1", free_port()) == b"OK"
    assert here_only("DISCONNECT") == b"OK"
    length = here_only("FALLBACK LEN")
    assert length > 0
    assert len(here_only("FALLBACK PEEK", 100)) == length
    assert here_only("FALLBACK DRAIN") == length
    assert here_only("FALLBACK PURGE") == length
    assert here_only("STATS RESET") == b"OK"
    assert [row[b"id"].decode() for row in here_only("CLUSTER")].count(cluster.id_of(node)) == 1
    # What goes to all now arrives behind everything that went before.
    assert cluster.run(node, "CONFIG SET", "heartbeat", 9)[b"nodes"] == 6
    assert cluster.values("exchange") == [
        b"here" if other is node else b"amq.direct" for other in cluster.nodes
    ]
    assert cluster.everywhere("KEYMASK LIST", others) == [[b"ALL"]] * 5
    assert "disconnected" not in {
        stats(cluster.at(other))["state"] for other in others if other not in cluster.primaries()
    }
    assert cluster.everywhere("FALLBACK LEN LOCAL", elsewhere) == lengths
    assert {stats(cluster.at(n))["dropped"] for n in others} == {0}
    assert all(new > old for new, old in zip(cluster.versions(), versions, strict=True))


@ONE_FAMILY
def test_a_refused_value_changes_nothing(cluster: Nodes) -> None:
    """Nowhere, and nobody is told."""
    versions = cluster.versions()
    before = [cluster.run(node, "CONFIG GET", "*") for node in cluster.nodes]
    marks = [len(node.log()) for node in cluster.nodes]
    for node in (cluster.primaries()[0], cluster.replica_of(cluster.primaries()[0])):
        for line, arguments in [
            ("CONFIG SET", ["exchange", "good", "port", "0"]),
            ("CONFIG SET", ["exchange", "good", "no-such", "1"]),
            ("CONFIG SET", ["exchange", "x" * 256]),
            ("CONFIG SET", ["exchange"]),
            ("KEYMASK ADD", ["good", ""]),
            ("KEYMASK SET", ["m" * 1025]),
            ("KEYMASK SET", ["m" * 1000 + str(number) for number in range(5000)]),  # 5 MB
            ("KEYMASK DEL", ["none"]),
            ("CONNECT", ["other", "65536"]),
            ("DISCONNECT", ["now"]),
            ("FALLBACK PEEK", ["0"]),
            ("STATS RESET", ["now"]),
        ]:
            with pytest.raises(redis.exceptions.ResponseError):
                cluster.run(node, line, *arguments)
    assert cluster.versions() == versions
    assert [cluster.run(node, "CONFIG GET", "*") for node in cluster.nodes] == before
    # Nor later: this comes behind whatever had been sent.
    assert cluster.run(cluster.nodes[0], "CONFIG SET", "heartbeat", 8)[b"nodes"] == 6
    cluster.agree(heartbeat=8)
    for was, node in zip(before, cluster.nodes, strict=True):
        assert cluster.run(node, "CONFIG GET", "*") == {**was, b"heartbeat": b"8"}
    for mark, node in zip(marks, cluster.nodes, strict=True):
        assert "refused" not in node.log()[mark:]


# ---- nodes that are away ---------------------------------------------------------------


def missing(reply: Any, node: RedisServer) -> None:
    """The reply says that five of six have carried it out, and who has not."""
    assert (reply[b"nodes"], reply[b"of"]) == (5, 6)
    (text,) = reply[b"missing"]
    assert text.startswith(b"127.0.0.1:%d: " % node.port)


@ONE_FAMILY
def test_a_node_that_was_killed_catches_up(cluster: Nodes) -> None:
    """Also with several changes that it missed, and with none by itself."""
    away = cluster.replica_of(cluster.primaries()[0])
    others = [node for node in cluster.nodes if node is not away]
    cluster.run(away, "CONFIG SET", "heartbeat", 11)  # it has to hear of its own, too
    cluster.run(others[0], "KEYMASK SET", "a")
    away.kill()
    for number, node in enumerate(others):
        missing(cluster.run(node, "CONFIG SET", "exchange", f"x{number}"), away)
    missing(cluster.run(others[1], "KEYMASK ADD", "b"), away)
    missing(cluster.run(others[2], "DISCONNECT"), away)
    missing(cluster.run(others[3], "FALLBACK PURGE"), away)
    missing(cluster.run(others[4], "STATS RESET"), away)
    rows = cluster.rows(others[0])
    assert rows[away.port]["state"] == "unknown"
    assert rows[away.port]["role"] == "replica"
    assert rows[away.port]["last_error"]
    away.start()
    cluster.agree(exchange="x4", heartbeat=11, masks="a b")
    assert cluster.run(away, "KEYMASK LIST") == [b"a", b"b"]
    wait_for(lambda: stats(cluster.at(away))["state"] == "disconnected", SOON)


@TWO_FAMILIES
def test_a_primary_that_stands_still_catches_up(cluster: Nodes) -> None:
    """Another one takes its place meanwhile."""
    primary = cluster.primaries()[0]
    cluster.down = True  # until there is another primary
    stand_still(primary, cluster)
    cluster.down = False
    assert cluster.rows(cluster.nodes[-1])[primary.port]["role"] == "replica"


@ONE_FAMILY
def test_a_replica_that_stands_still_catches_up(cluster: Nodes) -> None:
    """Nobody is kept from an answer by it."""
    stand_still(cluster.replica_of(cluster.primaries()[0]), cluster)


def stand_still(away: RedisServer, cluster: Nodes) -> None:
    """Nobody knows for a while that it does not answer. Nobody who asks meanwhile waits
    for those who have asked before."""
    others = [node for node in cluster.nodes if node is not away]
    away.signal(signal.SIGSTOP)
    # Several clients of one node, and one of each other node.
    replies = at_once(
        [
            lambda node=node, number=number: cluster.run(
                node, "CONFIG SET", "exchange", f"x{number}"
            )
            for number, node in enumerate([others[0]] * 4 + others[1:])
        ]
    )
    for reply in replies:
        missing(reply, away)
    # Now it is known to fail, and nobody is waited for.
    fails = b"127.0.0.1:%d: it is failing" % away.port

    def known(node: RedisServer) -> bool:
        return cluster.run(node, "STATS RESET")[b"missing"] == [fails]

    for node in others:
        wait_for(lambda node=node: known(node), SOON)
    for number, node in enumerate(others):
        missing(cluster.run(node, "CONFIG SET", "heartbeat", 20 + number), away)
    missing(cluster.run(others[0], "KEYMASK SET", "k"), away)
    cluster.agree(others, heartbeat=24, masks="k")
    # Three others are primaries, be it at once or after the failover.
    wait_for(
        lambda: (
            [role for port, role, *_ in cluster.view(others[0]) if port != away.port].count(
                "primary"
            )
            == 3
        ),
        SOON,
    )
    away.signal(signal.SIGCONT)
    cluster.agree(heartbeat=24, masks="k", exchange=cluster.values("exchange", others)[0].decode())
    cluster.ready()


@ONE_FAMILY
def test_a_node_comes_and_goes(cluster: Nodes) -> None:
    """A new node gets the configuration that the others have; one that was removed
    is told nothing any more."""
    first = cluster.nodes[0]
    cluster.run(first, "CONFIG SET", "exchange", "of all", "password", "of all")
    cluster.run(first, "KEYMASK SET", "a", "b")
    cluster.run(first, "DISCONNECT")
    new = cluster.make_node()
    new.start()
    cluster.down = True  # as long as a node is alone
    cluster.run(new, "CONFIG SET", "routing-key", "its own")
    cluster.down = False
    cluster.nodes.append(new)
    cluster.cli("add-node", f"127.0.0.1:{new.port}", f"127.0.0.1:{first.port}")
    cluster.ready(7)
    # Which it has brought along: it was set for all nodes that there were.
    cluster.agree(exchange="of all", masks="a b", routing_key="its own")
    assert stats(cluster.at(new))["state"] == "disconnected"
    for node in (first, new):
        assert as_map(cluster.run(node, "CONFIG SET", "heartbeat", 5)) == everybody(b"OK", 7)
        assert len(cluster.rows(node)) == 7
    cluster.cli("del-node", f"127.0.0.1:{first.port}", cluster.id_of(new))
    cluster.nodes.remove(new)
    cluster.down = True  # a node with no slots
    wait_for(lambda: len(cluster.rows(new)) == 1, SOON)
    assert as_map(cluster.run(new, "CONFIG SET", "heartbeat", 6)) == everybody(b"OK", 1)
    cluster.down = False
    cluster.ready(6)
    assert as_map(cluster.run(first, "CONFIG SET", "exchange", "of six")) == everybody(b"OK")
    assert as_map(cluster.run(first, "CONFIG SET", "heartbeat", 7)) == everybody(b"OK")
    cluster.agree(exchange="of six", heartbeat=7)
    cluster.down = True
    assert cluster.values("exchange", [new]) == [b"of all"]
    assert cluster.values("heartbeat", [new]) == [b"6"]
    cluster.down = False
    assert cluster.failures([new]) == []


class BusProxy(Proxy):
    """The way to a node's cluster bus, which can be closed to nodes of the other side:
    they come from another address."""

    def __init__(self, target: int, home: str) -> None:
        super().__init__(target)
        self._home = home
        self._closed = False

    def part(self) -> None:
        self._closed = True
        self.cut()

    def join(self) -> None:
        self._closed = False

    def _accept(self) -> None:
        if not self._closed:
            super()._accept()
            return
        client, (address, _) = self._listener.accept()
        if address == self._home:
            self._link(client)
        else:
            client.close()


def test_both_sides_of_a_partition_change_parameters(
    tmp_path: pathlib.Path, request: pytest.FixtureRequest
) -> None:
    """The newest change of each parameter wins, wherever it was made."""
    with contextlib.ExitStack() as stack:
        cluster = Nodes(tmp_path, "redis-7.0", replicas=0, primaries=5)
        request.node.stash.setdefault(_SERVERS, []).extend(cluster.nodes)
        proxies = []
        sides = cluster.nodes[:3], cluster.nodes[3:]
        for number, node in enumerate(cluster.nodes):
            home = "127.0.0.1" if node in sides[0] else "127.0.0.2"
            port = int(next(o for o in node.options if "cluster-port" in o).split()[1])
            proxies.append(stack.enter_context(BusProxy(port, home)))
            node.options += [
                f"bind-source-addr {home}",
                "cluster-announce-ip 127.0.0.1",
                f"cluster-announce-bus-port {proxies[number].port}",
            ]
        stack.enter_context(started(cluster))
        cluster.ready()
        assert as_map(cluster.run(sides[0][0], "CONFIG SET", "exchange", "x")) == everybody(
            b"OK", 5
        )
        at_once([proxy.part for proxy in proxies])
        cluster.down = True  # soon, for the smaller side
        at_once(
            [
                lambda node=node: cluster.run(node, "CONFIG SET", "exchange", node.port)
                for node in cluster.nodes
            ]
        )
        chosen: list[bytes] = []
        replies = [cluster.run(side[0], "KEYMASK SET", str(side[0].port)) for side in sides]
        assert [reply[b"nodes"] for reply in replies] == [3, 2]
        for side in sides:
            cluster.agree(side, masks=side[0].port)
            (value,) = set(cluster.values("exchange", side))
            chosen.append(value)
            assert value in {b"%d" % node.port for node in side}
        cluster.run(sides[1][0], "DISCONNECT")
        cluster.run(sides[0][0], "CONFIG SET", "heartbeat", "3")
        assert len(set(cluster.versions())) == 2
        for proxy in proxies:
            proxy.join()
        cluster.agree(masks=sides[1][0].port, heartbeat=3)
        (value,) = set(cluster.values("exchange"))
        assert value in chosen
        assert {stats(cluster.at(node))["state"] for node in cluster.nodes} == {"disconnected"}
        cluster.ready()
        cluster.wait_ok(cluster.nodes)
        assert as_map(cluster.run(sides[1][0], "STATS RESET")) == everybody(b"OK", 5)


# ---- at the same instant -----------------------------------------------------------------


@ONE_FAMILY
@pytest.mark.parametrize("count", [2, 6])
def test_changes_of_one_parameter_at_the_same_instant(count: int, cluster: Nodes) -> None:
    """One of them holds in the end, the same on all nodes."""
    nodes = cluster.nodes[:count]
    for number in range(25):
        changes = [
            lambda node=node, number=number: cluster.run(
                node, "CONFIG SET", "exchange", f"{number}:{node.port}"
            )
            for node in nodes
        ]
        for reply in at_once(changes):
            assert as_map(reply) == everybody(b"OK")
        cluster.agree()
        (value,) = wait_for(
            lambda: len(values := set(cluster.values("exchange"))) == 1 and values,
            SOON,
            f"one value on all nodes in round {number}",
        )
        assert value in {f"{number}:{node.port}".encode() for node in nodes}
    # The names of nodes decide within a millisecond only: who comes later wins, each of them.
    for node in nodes:
        assert as_map(cluster.run(node, "CONFIG SET", "exchange", node.port)) == everybody(b"OK")
        assert cluster.values("exchange") == [b"%d" % node.port] * 6


@ONE_FAMILY
def test_changes_of_different_parameters_at_the_same_instant(cluster: Nodes) -> None:
    """All are kept: those of six nodes, and those of two that set two each."""
    names = ["username", "password", "exchange", "routing-key", "heartbeat", "fallback-size"]
    for number in range(20):
        pairs = [(name, str(1000 + number * 10 + n)) for n, name in enumerate(names)]
        changes = [
            lambda node=node, pair=pair: cluster.run(node, "CONFIG SET", *pair)
            for node, pair in zip(cluster.nodes, pairs, strict=True)
        ]
        for reply in at_once(changes):
            assert as_map(reply) == everybody(b"OK")
        del pairs[1]  # it is hidden
        cluster.agree(**{name.replace("-", "_"): value for name, value in pairs})


@ONE_FAMILY
def test_commands_on_all_nodes_at_once(cluster: Nodes) -> None:
    """No node waits for one that waits for it: all are answered by all."""
    write(cluster, [str(number) for number in range(20)])
    lines = [
        "CONFIG SET heartbeat 9",
        "KEYMASK ADD m",
        "FALLBACK LEN",
        "FALLBACK DRAIN",
        "FALLBACK PURGE",
        "STATS RESET",
        "STATS CLUSTER",
        "CONNECT",
        "DISCONNECT",
        "FALLBACK PEEK 20",
    ]
    clients = [node.client(protocol=3) for node in cluster.nodes for _ in range(3)]
    for number in range(len(lines)):
        # All the same, and then all different.
        for step in (0, 1):
            asked = [
                "KEYSPACEAMQP." + lines[(number + place * step) % len(lines)]
                for place in range(len(clients))
            ]
            calls = [
                lambda client=client, line=line: client.execute_command(*line.split())
                for client, line in zip(clients, asked, strict=True)
            ]
            for line, reply in zip(asked, at_once(calls), strict=True):
                assert (line, reply[b"nodes"], reply[b"missing"]) == (line, 6, [])
    cluster.agree(heartbeat=9)
    for client in clients:
        client.close()


# ---- binary and large values ---------------------------------------------------------------


@TWO_FAMILIES
def test_binary_and_large_values(cluster: Nodes, probe: Probe) -> None:
    """All 256 bytes, and as much as a parameter takes, arrive as they are; and Redis is
    not held up by it, neither where it was set nor elsewhere."""
    asked, other = cluster.nodes[0], cluster.nodes[-1]
    every_byte = bytes(range(256))
    reply = cluster.run(asked, "KEYMASK SET", every_byte, every_byte[::-1])
    assert as_map(reply) == everybody(2)
    assert cluster.everywhere("KEYMASK LIST") == [[every_byte, every_byte[::-1]]] * 6
    assert as_map(cluster.run(other, "KEYMASK ADD", b"\xff\n\0 ")) == everybody(3)
    assert cluster.everywhere("KEYMASK LIST") == [[every_byte, every_byte[::-1], b"\xff\n\0 "]] * 6
    assert len(set(cluster.values("masks"))) == 1
    name = bytes(range(1, 256))
    cluster.run(asked, "CONFIG SET", "exchange", name, "username", name[::-1])
    assert cluster.values("exchange") == [name] * 6
    assert cluster.values("username") == [name[::-1]] * 6
    # Nearly all of the 64 KiB of masks: each byte takes four in the parameter's form.
    large = [bytes([number]) + b"\xfe" * 250 for number in range(65)]
    for server in (asked, other, cluster.nodes[2]):
        with probe(server):
            for _ in range(3):
                assert as_map(cluster.run(asked, "KEYMASK SET", *large)) == everybody(65)
                assert as_map(cluster.run(asked, "KEYMASK SET", *large[1:])) == everybody(64)
    assert cluster.everywhere("KEYMASK LIST") == [large[1:]] * 6


@TWO_FAMILIES
def test_a_large_element_of_another_node(cluster: Nodes, probe: Probe) -> None:
    """PEEK shows a key with all bytes in it, wherever it waits. One of 5 MB behind it is
    no load for the bus: its own node shows it."""
    key = bytes(range(256)) * 2000 + b"{x}"
    client = cluster.client()
    client.set(key, 1)
    client.set(b"{x}" * 1_666_667, 1)
    holder = client.get_node_from_key(key).port
    client.close()
    for primary in cluster.primaries():
        settled(cluster.at(primary), queue_length=0)
    for node in [node for node in cluster.nodes if node.port != holder][:2]:
        with probe(node):
            reply = as_map(cluster.run(node, "FALLBACK PEEK", 10))
        assert reply == everybody(reply["result"])
        assert peeked_keys(reply) == [key]
    (node,) = [node for node in cluster.nodes if node.port == holder]
    assert len(cluster.at(node).execute_command("KEYSPACEAMQP.FALLBACK PEEK 10 LOCAL")) == 2


# ---- what the nodes say of themselves --------------------------------------------------------


def own_rows(cluster: Nodes, nodes: Sequence[RedisServer]) -> dict[int, dict[str, Any]]:
    """What CLUSTER should show of these nodes."""
    rows = {}
    for node in nodes:
        numbers = stats(cluster.at(node))
        role = cluster.at(node).info("replication")["role"]
        rows[node.port] = {
            "id": cluster.id_of(node),
            "address": f"127.0.0.1:{node.port}",
            "role": "primary" if role == "master" else "replica",
            **{name: numbers[name] for name in ("state", "fallback_length", "last_error")},
        }
    return rows


def shown_rows(cluster: Nodes, node: RedisServer) -> dict[int, dict[str, Any]]:
    """The same as a node shows it; all have the same version of their parameters."""
    rows = cluster.rows(node)
    known = [row for row in rows.values() if row["state"] != "unknown"]
    assert len({row["config_version"] for row in known}) == 1
    names = ("id", "address", "role", "state", "fallback_length", "last_error")
    return {row_port: {name: row[name] for name in names} for row_port, row in rows.items()}


def right(cluster: Nodes, node: RedisServer, running: Sequence[RedisServer]) -> bool:
    """Whether a node shows these as they are. Links come and go: it has to show what
    there is before and after."""
    before = own_rows(cluster, running)
    rows = shown_rows(cluster, node)
    return before == own_rows(cluster, running) == {n.port: rows[n.port] for n in running}


def sums(cluster: Nodes, nodes: Sequence[RedisServer]) -> dict[str, int]:
    """What STATS CLUSTER should show of these nodes, at rest."""
    numbers = [stats(cluster.at(node)) for node in nodes]
    return {name: sum(each[name] for each in numbers) for name in NUMBERS}


@TWO_FAMILIES
def test_cluster_and_stats_cluster(cluster: Nodes, broker: RabbitServer, mailbox: Mailbox) -> None:
    """Any node shows all nodes as they are, and the sums of their counters: also after a
    failover, and with a node down."""

    primaries = cluster.primaries()
    cluster.run(
        cluster.nodes[0], "CONFIG SET", "port", broker.port, "routing-key", mailbox.routing_key
    )
    keys = [f"some:{number}" for number in range(60)]
    write(cluster, keys)
    for primary in primaries:
        settled(cluster.at(primary), fallback_length=0, state="connected")
    for primary in primaries[1:]:  # one knows another broker than the other
        port = broker.port if primary is primaries[0] else free_port()
        cluster.run(primary, "CONFIG SET", "port", port, "LOCAL")
    write(cluster, [f"more:{number}" for number in range(60)])
    for primary in primaries:
        settled(cluster.at(primary), queue_length=0)
    for number, node in enumerate(cluster.nodes):
        assert len(cluster.rows(node)) == 6
        wait_for(lambda node=node: right(cluster, node, cluster.nodes), SOON)
        reply = as_map(cluster.run(node, "STATS CLUSTER", protocol=2 + number % 2))
        assert reply == {"nodes": 6, "of": 6, "missing": [], **sums(cluster, cluster.nodes)}
        assert (reply["events_seen"], reply["dropped"]) == (120, 0)
        assert 0 < reply["fallback_length"] < 60

    def states() -> list[str]:
        return sorted(row["state"] for row in cluster.rows(cluster.nodes[0]).values())

    # Those without a broker try it once in a while.
    expected = ["connected", *["disconnected"] * 2, *["replica"] * 3]
    wait_for(lambda: states() == expected, SOON)
    # The roles are exchanged.
    replica = cluster.replica_of(primaries[1])
    cluster.at(replica).execute_command("CLUSTER FAILOVER")
    wait_for(lambda: cluster.at(replica).info("replication")["role"] == "master", SOON)
    cluster.ready()
    for node in cluster.nodes:
        wait_for(lambda node=node: right(cluster, node, cluster.nodes), SOON, "after a failover")
    cluster.run(cluster.nodes[0], "CONFIG SET", "port", broker.port)
    for node in cluster.nodes:
        settled(cluster.at(node), fallback_length=0)
    arrived = {message.event[2].decode() for message in once(mailbox.receive())}
    assert arrived == {*keys, *(f"more:{number}" for number in range(60))}


@ONE_FAMILY
def test_what_is_shown_with_a_node_down(cluster: Nodes) -> None:
    """What the others know of it; and the sums of the others, which say so."""
    primary = cluster.primaries()[0]
    down = cluster.replica_of(primary)
    down_id = cluster.id_of(down)
    others = [node for node in cluster.nodes if node is not down]
    write(cluster, [str(number) for number in range(30)])
    down.kill()
    for other in others:
        settled(cluster.at(other), queue_length=0)
    for node in others[:2]:
        wait_for(lambda node=node: right(cluster, node, others), SOON)
        row = cluster.rows(node)[down.port]
        assert (row["id"], row["role"], row["state"]) == (down_id, "replica", "unknown")
        assert row["last_error"]
        reply = as_map(cluster.run(node, "STATS CLUSTER"))
        coverage = {name: reply.pop(name) for name in ("nodes", "of", "missing")}
        missing({name.encode(): value for name, value in coverage.items()}, down)
        assert reply == sums(cluster, others)


def test_a_server_in_no_cluster(family: str, start_redis: StartRedis) -> None:
    """It is one node, and replies of commands are as plain as ever."""
    client = start_redis(family, ["A", "127.0.0.1", free_port()]).client(protocol=3)

    def run(line: str) -> Any:
        return client.execute_command(*("KEYSPACEAMQP." + line).split())

    assert run("CONFIG SET exchange x") == b"OK"
    assert run("KEYMASK SET a b") == 2
    client.set("a", 1)
    numbers = settled(client, fallback_length=1)
    (row,) = run("CLUSTER")
    assert (row[b"role"], row[b"fallback_length"]) == (b"primary", 1)

    def same() -> bool:
        """It tries to connect again and again, so not at any time."""
        (row,) = run("CLUSTER")
        shown = stats(client)
        return all(row[name.encode()].decode() == shown[name] for name in ("state", "last_error"))

    wait_for(same)
    reply = as_map(run("STATS CLUSTER"))
    assert (reply["nodes"], reply["of"], reply["missing"]) == (1, 1, [])
    assert {name: reply[name] for name in NUMBERS} == {name: numbers[name] for name in NUMBERS}
    assert run("FALLBACK LEN") == 1
    assert run("FALLBACK PURGE") == 1
    assert run("STATS RESET") == b"OK"


# ---- what the nodes tell each other ------------------------------------------------------------

# Appended to worker/loop.py in a copy of the handler. A node sends what it finds in a file
# named `say`, keeps what it sends in `sent` as long as there is a file named `keep`, and
# with one named `later` its messages are those of a version that has more to say.
TALK = """

import pathlib as _pathlib
from keyspace_amqp.cluster import peers as _peers


def _submit(self, job, done, _submit=Worker._submit):
    for command in job.commands:
        if isinstance(command, BusMessage) and _pathlib.Path("keep").exists():
            with _pathlib.Path("sent").open("ab") as file:
                file.write(b"".join(_LENGTH.pack(len(p)) + p for p in command.arguments))
    _submit(self, job, done)


def _look_around(self, _look_around=Worker._look_around):
    say = _pathlib.Path("say")
    if say.exists():
        texts = list(_counted(say.read_bytes(), 0))
        say.unlink()
        for text in texts:
            self._submit(Job([BusMessage([b"", text])]), lambda result: None)
    _look_around(self)


def _pack(message, _pack=_peers.pack):
    if _pathlib.Path("later").exists():
        message = {**message, "more": {"of": ["this", 1, None]}, "Kind": 7}
        version = [1, "of later"]
        if message["kind"] == "hello":
            message["speaks"] = 2
            message["versions"] = {**message["versions"], "later-name": version}
        if message["kind"] == "have":
            given = {"later-name": [version, "later-value"]}
            message["registers"] = {**message["registers"], **given}
    return _pack(message)


Worker._submit = _submit
Worker._look_around = _look_around
_peers.pack = _pack
"""


@pytest.fixture(scope="module")
def talking_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("talking")
    module = handler_copy(folder / "environment")
    with (module.parent / "worker" / "loop.py").open("a") as file:
        file.write(TALK)
    with started(Nodes(folder, "redis-7.0", module)) as nodes:
        yield nodes


@pytest.fixture
def talking(talking_cluster: Nodes, request: pytest.FixtureRequest) -> Nodes:
    """A cluster whose messages can be heard and made, see TALK."""
    request.node.stash.setdefault(_SERVERS, []).extend(talking_cluster.nodes)
    for node in talking_cluster.nodes:
        for name in ("say", "keep", "sent", "later"):
            (node.folder / name).unlink(missing_ok=True)
    talking_cluster.fresh()
    return talking_cluster


def say(cluster: Nodes, node: RedisServer, messages: Sequence[bytes]) -> None:
    """Has a node send messages to all others."""
    data = b"".join(struct.pack("=I", len(message)) + message for message in messages)
    (node.folder / "said").write_bytes(data)
    (node.folder / "said").rename(node.folder / "say")
    cluster.run(node, "CLUSTER LOCAL")  # it is awake
    wait_for(lambda: not (node.folder / "say").exists(), SOON)


def sent(node: RedisServer) -> list[tuple[str, dict[str, Any]]]:
    """What a node has sent since `keep` is there: targets and messages."""
    path = node.folder / "sent"
    data = path.read_bytes() if path.exists() else b""
    parts, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("=I", data, at)
        if at + 4 + length > len(data):  # it is being written
            break
        parts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return [
        (target.decode(), unpack(text))
        for target, text in zip(parts[::2], parts[1::2], strict=False)
    ]


def framed(body: bytes, version: int = VERSION, magic: bytes = MAGIC) -> bytes:
    """A message with a right checksum."""
    return struct.pack("!3sBI", magic, version, zlib.crc32(body)) + body


def garbage() -> list[bytes]:
    """Messages that no node understands."""
    good = pack({"kind": "have", "registers": {"exchange": [(9**17, "x"), b"bad"]}})
    wrong: list[Any] = [
        [],
        "hello",
        None,
        {},
        {"kind": ["hello"]},
        {"kind": "goodbye"},
        {"kind": "hello"},
        {"kind": "hello", "versions": []},
        {"kind": "hello", "versions": {"exchange": 9**17}},
        {"kind": "hello", "versions": {"exchange": [9**17]}},
        {"kind": "hello", "versions": {"exchange": [-1, "x"]}},
        {"kind": "hello", "versions": {"exchange": [2**63, "x"]}},
        {"kind": "hello", "versions": {"exchange": [9**17, 1]}},
        {"kind": "want"},
        {"kind": "want", "names": "exchange"},
        {"kind": "want", "names": [["exchange"]]},
        {"kind": "have"},
        {"kind": "have", "registers": {"exchange": "bad"}},
        {"kind": "have", "registers": {"exchange": [[9**17, "x"], 1]}},
        {"kind": "have", "registers": {"exchange": [[9**17, "x"], "\u1234"]}},
        {"kind": "have", "registers": {"exchange": [[9**17, "x"], "bad"], "port": 1}},
        {"kind": "have", "registers": {"exchange": [[9**17, "x"], "bad"]}, "id": 1},
        {"kind": "run"},
        {"kind": "run", "words": ["KEYSPACEAMQP.DISCONNECT"]},
        {"kind": "run", "words": [1], "id": "1"},
        {"kind": "run", "words": "KEYSPACEAMQP.DISCONNECT", "id": "1"},
        {"kind": "done"},
        {"kind": "done", "id": {}},
    ]
    return [
        b"",
        b"K",
        b"garbage " * 1000,
        bytes(range(256)),
        good[:-1],
        good + b" ",
        good[:20] + bytes([good[20] ^ 1]) + good[21:],
        framed(good[8:], magic=b"KSX"),
        # Of versions that there may be, the form being what it may be then, or the same.
        framed(good[8:], version=2),
        framed(b"\0\1\2", version=3),
        framed(good[8:], version=0),
        framed(b"\xff\xfe"),
        framed(b"{"),
        framed(b"[" * 100_000),
        framed(b'{"kind": "hello", "versions": {"exchange": [' + b"9" * 5000 + b', "x"]}}'),
        *(framed(json.dumps(message).encode()) for message in wrong),
    ]


def test_garbage_is_ignored(talking: Nodes) -> None:
    """It is counted, seldom logged, and nothing comes of it."""
    speaker, *others = talking.nodes
    messages = garbage()
    talking.run(speaker, "CONFIG SET", "exchange", "good")
    versions = talking.versions()
    marks = [len(node.log()) for node in talking.nodes]
    for _ in range(5):
        say(talking, speaker, messages)
    for word in ("abcdefghijklmnopqrstuvwxyz" * 2)[:30]:  # each with a complaint of its own
        say(talking, speaker, [pack({"kind": word})])
    count = 5 * len(messages) + 30
    for node in others:
        settled(talking.at(node), messages_rejected=count, handler_errors=0)
    assert stats(talking.at(speaker))["messages_rejected"] == 0
    assert talking.versions() == versions
    assert talking.values("exchange") == [b"good"] * 6
    for mark, node in zip(marks[1:], others, strict=True):
        lines = [line for line in node.log()[mark:].splitlines() if "message of node" in line]
        assert 1 <= len(lines) <= 2  # one in ten seconds
        assert talking.id_of(speaker) in lines[0]
    for node in talking.nodes:
        assert as_map(talking.run(node, "CONFIG SET", "heartbeat", node.port)) == everybody(b"OK")
        assert len(talking.rows(node)) == 6
        assert stats(talking.at(node))["state"] != "disconnected" or node in talking.primaries()
    talking.agree(heartbeat=talking.nodes[-1].port)
    assert talking.run(speaker, "STATS CLUSTER")[b"messages_rejected"] == count * 5
    assert as_map(talking.run(speaker, "STATS RESET")) == everybody(b"OK")
    assert talking.run(speaker, "STATS CLUSTER")[b"messages_rejected"] == 0


def test_a_question_that_comes_again() -> None:
    """The work is done once, and the answer kept as long as somebody may ask for it."""
    now = 0.0
    asked = pack({"kind": "run", "words": ["KEYSPACEAMQP.STATS", "RESET"], "id": "a:1"})
    node = spread.Peers("b", lambda: now, lambda: 0)

    def actions() -> list[spread.Action]:
        node.received("a", asked)
        return node.poll()

    (run,) = actions()
    assert isinstance(run, spread.RunCommand)
    assert actions() == []
    node.answer(run.question, "OK", None)
    (answer,) = node.poll()
    now = times.ASK
    assert actions() == [answer]
    now = spread.ANSWERS_KEPT + 1
    node.poll()
    assert actions() == [run]  # it has been forgotten


def test_commands_and_answers_that_nobody_knows(talking: Nodes) -> None:
    """Of the right form, but of another mind: a command that is not there, answers to
    what was not asked, and values that are refused. Nothing breaks."""
    speaker, *others = talking.nodes
    late = talking.versions()[0] + 1
    write(talking, [str(number) for number in range(30)])
    say(
        talking,
        speaker,
        [
            pack(message)
            for message in (
                {"kind": "run", "words": ["KEYSPACEAMQP.LATER", "SET"], "id": "a:1"},
                {"kind": "run", "words": ["later"], "id": "a:2"},
                {"kind": "run", "words": [], "id": "a:3"},
                {"kind": "run", "words": ["KEYSPACEAMQP.STATS", "\xff"], "id": "a:4"},
                {"kind": "run", "words": ["KEYSPACEAMQP.STATS"], "id": "a:5"},
                {"kind": "done", "id": "nobody:1", "reply": {"a": [None]}, "error": None},
                {"kind": "have", "registers": {"port": [[late, "x"], "no port"]}, "id": "a:6"},
            )
        ],
    )
    for node in others:
        wait_for(lambda node=node: "refused what another node" in node.log(), SOON)
        settled(talking.at(node), handler_errors=0, messages_rejected=0)
    for node in talking.nodes:
        assert as_map(talking.run(node, "CONFIG SET", "port", node.port)) == everybody(b"OK")
    talking.agree(port=talking.nodes[-1].port)
    assert as_map(talking.run(speaker, "FALLBACK LEN")) == everybody(30)
    assert sums(talking, talking.nodes)["events_seen"] == 30


def test_nodes_of_a_later_version(talking: Nodes) -> None:
    """A rolling upgrade: half of the nodes say more than the others understand, and know
    a parameter that the others do not."""
    later, earlier = talking.nodes[::2], talking.nodes[1::2]
    for node in later:
        (node.folder / "later").touch()
    for number, node in enumerate(talking.nodes):
        for line, result in (
            (f"CONFIG SET exchange x{number}", b"OK"),
            (f"KEYMASK SET m{number}", 1),
            ("CONNECT", b"OK"),
            ("FALLBACK LEN", 0),
            ("FALLBACK DRAIN", 0),
        ):
            assert as_map(talking.run(node, line)) == everybody(result)
        assert len(talking.rows(node)) == 6
        assert talking.run(node, "STATS CLUSTER")[b"nodes"] == 6
    talking.agree(exchange="x5", masks="m5")
    # One that starts again is told of everything by everybody, also of the parameter.
    earlier[0].kill()
    earlier[0].start()
    talking.ready()
    talking.agree(exchange="x5", masks="m5")
    for node in talking.nodes:
        (node.folder / "keep").touch()
    wait_for(
        lambda: [m for n in earlier for _, m in sent(n) if "later-name" in m.get("versions", {})],
        SOON,
        "earlier ones have kept it for the others",
    )
    for node in talking.nodes:
        settled(talking.at(node), messages_rejected=0, handler_errors=0)


def test_the_password(
    talking: Nodes, broker: RabbitServer, mailbox: Mailbox, request: pytest.FixtureRequest
) -> None:
    """Set on one node, all log in with it. Nobody shows it, and it is sent to those who
    do not have it, and to nobody else."""
    user, password = f"user-{uuid.uuid4()}", f"secret-{uuid.uuid4().hex}"
    broker.ctl("add_user", user, password)
    request.addfinalizer(lambda: broker.ctl("delete_user", user))
    broker.ctl("set_permissions", user, ".*", ".*", ".*")
    for node in talking.nodes:
        talking.at(node).config_set("slowlog-log-slower-than", 0)
        talking.at(node).config_set("loglevel", "debug")
    setter = talking.nodes[0]
    ids = {talking.id_of(node): node for node in talking.nodes}
    talking.run(setter, "CONFIG SET", "port", broker.port, "routing-key", mailbox.routing_key)
    for node in talking.nodes:
        (node.folder / "keep").touch()

    def hellos(more: int) -> None:
        """Waits until each node has said so many times what it has."""

        def count(node: RedisServer) -> int:
            return sum(message["kind"] == "hello" for _, message in sent(node))

        target = {node: count(node) + more for node in talking.nodes}
        wait_for(lambda: all(count(node) >= target[node] for node in talking.nodes), SOON)

    def carriers() -> list[tuple[RedisServer, RedisServer | None, dict[str, Any]]]:
        """Who sent the password to whom (None: to all), and in what."""
        return [
            (node, ids.get(target), message)
            for node in talking.nodes
            for target, message in sent(node)
            if password in json.dumps(message)
        ]

    reply = talking.run(setter, "CONFIG SET", "username", user, "password", password)
    assert as_map(reply) == everybody(b"OK")
    keys = [f"key:{number}" for number in range(30)]
    write(talking, keys)
    for primary in talking.primaries():
        settled(talking.at(primary), state="connected", fallback_length=0)
    arrived = once(mailbox.receive(30))
    assert {message.event[2].decode() for message in arrived} == set(keys)
    hellos(1)
    told = carriers()
    assert {target for _, target, _ in told} == set(talking.nodes[1:])
    for sender, target, message in told:
        assert (message["kind"], set(message["registers"])) == ("have", {"username", "password"})
        if sender is not setter:  # said hello before the other had heard the setter
            assert target is not None
            assert "want" in {asked["kind"] for to, asked in sent(target) if ids.get(to) is sender}
    # Nothing else brings it out: no other change, command, or failure.
    for node in talking.nodes:
        talking.run(node, "CONFIG SET", "heartbeat", 33)
        talking.run(node, "KEYMASK SET", "ALL")
        talking.run(node, "CONNECT")
        talking.run(node, "FALLBACK PEEK", 100)
        talking.run(node, "STATS CLUSTER")
    hellos(1)
    assert carriers() == told
    # But a node that has lost it, and who gives it.
    back = talking.replica_of(talking.primaries()[0])
    back.kill()
    back.start()
    talking.ready()
    talking.agree(heartbeat=33, username=user)
    again = [row for row in carriers() if row not in told]
    assert {target for _, target, _ in again} == {back}
    assert {message["kind"] for _, _, message in again} == {"have"}
    # And it works there.
    talking.at(back).execute_command("CLUSTER FAILOVER")
    wait_for(lambda: stats(talking.at(back))["state"] != "replica", SOON)
    talking.ready()
    write(talking, keys)
    for primary in talking.primaries():
        settled(talking.at(primary), state="connected", fallback_length=0)
    texts = [
        talking.run(node, line) for node in talking.nodes for line in ("CLUSTER", "STATS CLUSTER")
    ]
    assert found(texts) == []
    for node in talking.nodes:
        assert shown(node, talking.at(node)) == {}
        assert password in talking.at(node).config_get("keyspaceamqp.password").values()


# ---- the module comes and goes ---------------------------------------------------------------


@TWO_FAMILIES
def test_unload_and_load_amid_messages(cluster: Nodes) -> None:
    """Whatever flies about meanwhile: nothing crashes, and the node catches up."""
    node, *others = cluster.nodes
    client = cluster.at(node)
    stop = threading.Event()

    def change(other: RedisServer) -> int:
        """Sets parameters without a pause; how often."""
        count = 0
        with contextlib.closing(other.client(protocol=3)) as changer:
            while not stop.is_set():
                count += 1
                changer.execute_command(
                    "KEYSPACEAMQP.CONFIG", "SET", "exchange", f"{other.port}:{count}"
                )
        return count

    def reload() -> None:
        try:
            for _ in range(3):
                client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
                with client.pipeline(transaction=False) as pipeline:
                    pipeline.execute_command("MODULE", "LOAD", *node.module)
                    pipeline.execute_command("KEYSPACEAMQP.CLUSTER", "LOCAL")
                    assert len(pipeline.execute()[1]) == 6  # it knows them at once
                wait_for(lambda: cluster.versions([node]) != [0], SOON, "it has heard of changes")
            client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
        finally:
            stop.set()
        # The server is there and takes messages for nobody. Those who ask wait as long
        # as they may, but not for each other, or it would be too long.
        lines = ["KEYMASK SET missed", "FALLBACK LEN", "STATS RESET", "CONFIG SET heartbeat 3"]
        for reply in at_once([lambda line=line: cluster.run(others[1], line) for line in lines]):
            missing(reply, node)

    *counts, _ = at_once([*(lambda o=o: change(o) for o in others), reload])
    assert all(count > 0 for count in counts)
    client.execute_command("MODULE", "LOAD", *node.module)
    value = cluster.values("exchange", others[:1])[0].decode()
    cluster.agree(exchange=value, masks="missed", heartbeat=3)
    cluster.ready()
    assert as_map(cluster.run(node, "CONFIG SET", "exchange", "end")) == everybody(b"OK")
    assert as_map(cluster.run(others[0], "FALLBACK LEN")) == everybody(0)
