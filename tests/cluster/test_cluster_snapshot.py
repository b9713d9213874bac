"""Snapshots in a real Redis Cluster: of all primaries at once, whichever node is asked."""

from __future__ import annotations

import random

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from tests.fix_cluster import Bench, StartCluster
from tests.fix_migration import BOTH, Migration
from tests.fix_servers import settled, stats
from tests.fix_snapshot import OPTIONS, Changes, copy_of, data_of, no_time_to_live
from tests.servers import NEW_REDIS, NEW_VALKEY, REDIS


def run(node: RedisServer, line: str) -> dict[bytes, object]:
    """Run a command for all nodes; return its reply."""
    with node.client(protocol=3) as client:
        reply: dict[bytes, object] = client.execute_command(f"KEYSPACEAMQP.{line}")
    return reply


def states(bench: Bench) -> dict[str, str]:
    """The snapshot of each node, by its address, as KEYSPACEAMQP.CLUSTER shows it."""
    with bench.running[0].client(protocol=3) as client:
        rows = client.execute_command("KEYSPACEAMQP.CLUSTER")
    return {row[b"address"].decode(): row[b"snapshot"].decode() for row in rows}


@pytest.mark.parametrize(
    ("family", "outbox"), [(REDIS, "off"), (NEW_VALKEY, "reply"), (NEW_REDIS, "atomic")]
)
def test_a_copy_of_a_cluster_while_the_broker_is_away_and_back(
    family: str, own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    bench = start_cluster(family, own_broker, OPTIONS, events="A")
    primaries = bench.cluster.primaries()
    replica = next(node for node in bench.cluster.nodes if node not in primaries)
    clients = [node.client() for node in primaries]
    rng = random.Random(family)
    with bench.cluster.client() as client:
        changes = Changes(client, rng, 3000)
        run(replica, "KEYMASK CLEAR")
        changes.make(1000)
        client.mset_nonatomic({f"calm:{number}": "x" * 50 for number in range(1000)})
        for node in clients:
            no_time_to_live(node)
        run(replica, "KEYMASK SET ALL")
        keys = sum(node.dbsize() for node in clients)
        reply = run(replica, "SNAPSHOT START RATE 100")
        assert (reply[b"result"], reply[b"nodes"], reply[b"missing"]) == (keys, 6, [])
        wait_for(lambda: all(stats(node)["snapshot_looked"] > 0 for node in clients), 60)
        own_broker.kill()
        changes.make(700)
        wait_for(lambda: all(stats(node)["snapshot"].startswith("waits (") for node in clients), 60)
        assert sorted(set(states(bench).values()))[0] == "none", "a replica makes none"
        waiting = bench.waiting()
        looked = [stats(node)["snapshot_looked"] for node in clients]
        changes.make(200)
        assert [stats(node)["snapshot_looked"] for node in clients] == looked
        assert bench.waiting() > waiting > 0
        own_broker.start()
        assert changes.run_until_done(clients, 50) > 0
        assert {stats(node)["snapshot"] for node in clients} == {"done"}
        changes.make(200)
    for node in clients:
        no_time_to_live(node)
        settled(node, 60, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    copy = copy_of(bench.mailbox.receive())
    data = {place: value for node in clients for place, value in data_of(node).items()}
    assert copy.data == data
    assert all((0, b"calm:%d" % number) in copy.snapshots for number in range(1000))


@BOTH
def test_a_migration_ends_it(
    family: str, broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """On both nodes, because keys may have passed it; the third one goes on."""
    bench = start_cluster(family, broker, events="$")
    bench.write(3000)
    source, target, third = bench.cluster.primaries()
    run(third, "SNAPSHOT START RATE 10")
    first, *_, last = map(int, bench.slots_of(source))
    Migration(bench.cluster, source, target, first + 20, last).wait()

    def ended() -> bool:
        found = states(bench)
        handed_over = {found[f"127.0.0.1:{node.port}"] for node in (source, target)}
        return handed_over == {"ended (slots were handed over)"}

    wait_for(ended, 60)
    assert run(source, "SNAPSHOT STOP")[b"result"] == 1
    assert states(bench)[f"127.0.0.1:{third.port}"] == "stopped"


@pytest.mark.parametrize("family", [REDIS])
def test_a_failover_ends_it(family: str, broker: RabbitServer, start_cluster: StartCluster) -> None:
    """On the demoted node. The promoted one has none; the others go on."""
    bench = start_cluster(family, broker, events="A")
    bench.write(3000)
    first, *others = bench.cluster.primaries()
    run(others[0], "SNAPSHOT START RATE 10 MASK ^k:")
    with first.client() as client:
        wait_for(lambda: stats(client)["snapshot_events"] > 0, 30)
        with pytest.raises(redis.ResponseError, match="a snapshot is under way"):
            client.execute_command("KEYSPACEAMQP.SNAPSHOT START LOCAL")
        replica = bench.cluster.replica_of(first)
        with replica.client() as other:
            with pytest.raises(redis.exceptions.ReadOnlyError, match="this server is a replica"):
                other.execute_command("KEYSPACEAMQP.SNAPSHOT START LOCAL")
            other.execute_command("CLUSTER", "FAILOVER")
        bench.wait_role(first, "replica")
        wait_for(lambda: stats(client)["snapshot"].startswith("ended (this server became"), 30)
    reply = run(replica, "SNAPSHOT STOP")
    assert reply[b"result"] == 2
    found = states(bench)
    assert found[f"127.0.0.1:{replica.port}"] == "none"
    assert {found[f"127.0.0.1:{node.port}"] for node in others} == {"stopped"}
