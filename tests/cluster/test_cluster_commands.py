"""Commands that act on all nodes of a cluster, with real servers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from tests.fix_faults import Probe
from tests.fix_nodes import (
    NUMBERS,
    ONE_FAMILY,
    SOON,
    TWO_FAMILIES,
    Nodes,
    as_map,
    at_once,
    everybody,
    missing,
    peeked_keys,
    sums,
    write,
)
from tests.fix_servers import EXCHANGE, Mailbox, StartRedis, once, settled, stats


@TWO_FAMILIES
def test_commands_act_on_all_nodes(cluster: Nodes, broker: RabbitServer, mailbox: Mailbox) -> None:
    """The reply says so, in both protocols."""
    act_on_all_nodes(cluster.primaries()[0], cluster, broker, mailbox)


@ONE_FAMILY
def test_commands_of_a_replica_act_on_all_nodes(
    cluster: Nodes, broker: RabbitServer, mailbox: Mailbox
) -> None:
    """Also commands that are given to a replica act on all nodes."""
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
    # The broker is there: CONNECT and DRAIN deliver what waits.
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
    """With LOCAL a command acts only on the node that it is given to, and its reply does not name
    other nodes."""
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
    # A change for all nodes arrives after all messages that were sent before it.
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
    """A refused value is set on no node, and is not sent to other nodes."""
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
    # Nor later: this change comes after all that had been sent.
    assert cluster.run(cluster.nodes[0], "CONFIG SET", "heartbeat", 8)[b"nodes"] == 6
    cluster.agree(heartbeat=8)
    for was, node in zip(before, cluster.nodes, strict=True):
        assert cluster.run(node, "CONFIG GET", "*") == {**was, b"heartbeat": b"8"}
    for mark, node in zip(marks, cluster.nodes, strict=True):
        assert "refused" not in node.log()[mark:]


@ONE_FAMILY
@pytest.mark.parametrize("count", [2, 6])
def test_changes_of_one_parameter_at_the_same_instant(count: int, cluster: Nodes) -> None:
    """In the end all nodes have the value of one of the changes."""
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
    # The names of nodes decide only between changes of the same millisecond: otherwise the later
    # change wins.
    for node in nodes:
        assert as_map(cluster.run(node, "CONFIG SET", "exchange", node.port)) == everybody(b"OK")
        assert cluster.values("exchange") == [b"%d" % node.port] * 6


@ONE_FAMILY
def test_changes_of_different_parameters_at_the_same_instant(cluster: Nodes) -> None:
    """All changes are kept: those of six nodes, and those of two nodes that change two parameters
    each."""
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
    """Nodes that wait for each other's answers do not block each other: each command is answered by
    all nodes."""
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
    """All 256 bytes, and as much as a parameter may have, arrive unchanged. Redis does not wait for
    it, neither on this node nor on the others."""
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
    # Nearly the 64 KiB that masks may have: each byte takes four in the parameter's text.
    large = [bytes([number]) + b"\xfe" * 250 for number in range(65)]
    for server in (asked, other, cluster.nodes[2]):
        with probe(server):
            for _ in range(3):
                assert as_map(cluster.run(asked, "KEYMASK SET", *large)) == everybody(65)
                assert as_map(cluster.run(asked, "KEYMASK SET", *large[1:])) == everybody(64)
    assert cluster.everywhere("KEYMASK LIST") == [large[1:]] * 6


@TWO_FAMILIES
def test_a_large_element_of_another_node(cluster: Nodes, probe: Probe) -> None:
    """PEEK shows a key with all bytes, on whichever node its event waits. An element of 5 MB behind
    it is not sent over the bus: only its own node shows it."""
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
    """The row as the node itself shows it; all have the same version of their parameters."""
    rows = cluster.rows(node)
    known = [row for row in rows.values() if row["state"] != "unknown"]
    assert len({row["config_version"] for row in known}) == 1
    names = ("id", "address", "role", "state", "fallback_length", "last_error")
    return {row_port: {name: row[name] for name in names} for row_port, row in rows.items()}


def right(cluster: Nodes, node: RedisServer, running: Sequence[RedisServer]) -> bool:
    """True if a node shows these as they are. Links change at any time, so what it shows must be
    true before and after."""
    before = own_rows(cluster, running)
    rows = shown_rows(cluster, node)
    return before == own_rows(cluster, running) == {n.port: rows[n.port] for n in running}


@TWO_FAMILIES
def test_cluster_and_stats_cluster(cluster: Nodes, broker: RabbitServer, mailbox: Mailbox) -> None:
    """Any node shows all nodes as they are, and the sums of their counters: also after a failover,
    and with a node down."""

    primaries = cluster.primaries()
    cluster.run(
        cluster.nodes[0], "CONFIG SET", "port", broker.port, "routing-key", mailbox.routing_key
    )
    keys = [f"some:{number}" for number in range(60)]
    write(cluster, keys)
    for primary in primaries:
        settled(cluster.at(primary), fallback_length=0, queue_length=0, state="connected")
    for primary in primaries[1:]:  # each has another broker
        port = broker.port if primary is primaries[0] else free_port()
        cluster.run(primary, "CONFIG SET", "port", port, "LOCAL")
    write(cluster, [f"more:{number}" for number in range(60)])
    settled(cluster.at(primaries[0]), fallback_length=0, queue_length=0, in_flight=0)
    for primary in primaries[1:]:
        settled(cluster.at(primary), queue_length=0, in_flight=0)
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
    """The row of a node that is down has what the others know of it. The sums are those of the
    others, and the reply says so."""
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
    """It is one node, and replies of commands have no list of nodes."""
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
        """Compared until they are equal: the node tries to connect repeatedly, so the rows may
        differ for a moment."""
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
