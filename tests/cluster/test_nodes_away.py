"""Nodes that are away for a time, or that load the module again, catch up."""

from __future__ import annotations

import contextlib
import pathlib
import signal
import threading

import pytest

from keyspace_amqp.demo.servers import RedisServer, wait_for
from tests.fix_faults import Proxy
from tests.fix_nodes import (
    ONE_FAMILY,
    SOON,
    TWO_FAMILIES,
    Nodes,
    as_map,
    at_once,
    everybody,
    missing,
    started,
)
from tests.fix_servers import _SERVERS, stats
from tests.servers import REDIS


@ONE_FAMILY
def test_a_node_that_was_killed_catches_up(cluster: Nodes) -> None:
    """After several changes that it missed, and after none."""
    away = cluster.replica_of(cluster.primaries()[0])
    others = [node for node in cluster.nodes if node is not away]
    cluster.run(away, "CONFIG SET", "heartbeat", 11)  # it must hear of this one, too
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
    """The answers of the other nodes do not wait for it."""
    stand_still(cluster.replica_of(cluster.primaries()[0]), cluster)


def stand_still(away: RedisServer, cluster: Nodes) -> None:
    """For a while no node knows that this one does not answer. Commands that are given meanwhile do
    not wait for each other."""
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
    # Now it is known to fail, and no command waits for it.
    fails = b"127.0.0.1:%d: it is failing" % away.port

    def known(node: RedisServer) -> bool:
        return cluster.run(node, "STATS RESET")[b"missing"] == [fails]

    for node in others:
        wait_for(lambda node=node: known(node), SOON)
    for number, node in enumerate(others):
        missing(cluster.run(node, "CONFIG SET", "heartbeat", 20 + number), away)
    missing(cluster.run(others[0], "KEYMASK SET", "k"), away)
    cluster.agree(others, heartbeat=24, masks="k")
    # Three other nodes are primaries, at once or after the failover.
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
    """A new node gets the parameters that the others have; one that was removed hears nothing any
    more."""
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
    # It has brought this value along: alone, it had set it for all nodes.
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
    """A proxy before a node's cluster bus that can be closed to the nodes of the other side, which
    connect from another address."""

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
        cluster = Nodes(tmp_path, REDIS, replicas=0, primaries=5)
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


@TWO_FAMILIES
def test_unload_and_load_amid_messages(cluster: Nodes) -> None:
    """With messages on their way each time: nothing crashes, and the node catches up."""
    node, *others = cluster.nodes
    client = cluster.at(node)
    stop = threading.Event()

    def change(other: RedisServer) -> int:
        """Sets a parameter without a pause; returns how often."""
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
        # The server is there, but no module takes its messages. Each command waits for as long as
        # it may; they must not wait for each other, which would take too long.
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
