"""The module in a real Redis Cluster: each event arrives once, through failovers and resharding.

Six nodes, three primaries and three replicas; the broker may be killed. Each test ends with the two
checks over all nodes (`Bench.checked`).
"""

from __future__ import annotations

import collections

import pytest

from keyspace_amqp.cluster.slots import slot_of
from keyspace_amqp.demo.servers import RabbitServer, as_text, wait_for
from keyspace_amqp.publisher.window import WINDOW
from tests.fix_cluster import Bench, StartCluster, Writer
from tests.fix_outbox import with_outbox
from tests.fix_servers import replicated, settled, stats
from tests.servers import NEW_REDIS, NEW_VALKEY, REDIS, VALKEY

# An event without a confirm has to be in the list within half a second (STALLED_AFTER and
# STORE_AFTER); more, for a machine that stands still.
LATE = 1.0


def lists_of(bench: Bench) -> dict[int, set[bytes]]:
    """Per primary the keys of the fallback lists in it."""
    found = {}
    for node in bench.cluster.primaries():
        with node.client() as client:
            keys = client.keys("*")
            found[node.port] = {key for key in keys if key.startswith(b"keyspaceamqp")}
    return found


@pytest.mark.parametrize("family", [REDIS, VALKEY])
def test_ten_thousand_writes_arrive_once(
    family: str, broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """Messages come from all primaries, in order per node; replicas send none for the same
    writes."""
    bench = start_cluster(family, broker)
    bench.write(10_000)
    sums = bench.checked()
    assert sums["confirmed"] == sums["published"] == 10_000
    for node in bench.running:
        with node.client() as client:
            assert (stats(client)["confirmed"] == 0) is (bench.role(node) == "replica")


@with_outbox([REDIS, VALKEY])
def test_a_primary_dies_while_the_broker_is_away(
    family: str, own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """The replica of a dead primary has the list, drains it, and publishes from then on. The
    dead one comes back as a replica and publishes nothing more."""
    bench = start_cluster(family, own_broker)
    bench.write(300)
    bench.waits_for(confirmed=300)
    own_broker.kill()
    bench.write(1200)
    bench.waits_for(fallback_length=1200)
    dead = bench.cluster.primaries()[0]
    heir = bench.cluster.replica_of(dead)
    with dead.client() as client, heir.client() as other:
        length = stats(client)["fallback_length"]
        assert length > 0
        replicated(client, other)
    dead.kill()
    bench.wait_role(heir, "primary")
    with heir.client() as client:
        wait_for(lambda: stats(client)["fallback_length"] >= length, what="the list is found")
    bench.cluster.wait_settled()
    bench.write(300, "later")
    own_broker.start()
    bench.checked()
    bench.restart(dead)
    assert bench.role(dead) == "replica"
    bench.write(300, "still")
    bench.checked()


@with_outbox([REDIS, VALKEY])
def test_failovers_by_command_while_the_broker_is_away(
    family: str, own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """CLUSTER FAILOVER plain, with FORCE and TAKEOVER: one primary agrees, one is not asked,
    one has its slots taken over. There and back, so that each node is promoted and demoted.
    A primary that has not agreed sends events again that it stored recently: the new primary
    may not have them."""
    bench = start_cluster(family, own_broker)
    own_broker.kill()
    bench.write(600)
    bench.all_stored()
    pairs = [(node, bench.cluster.replica_of(node)) for node in bench.cluster.primaries()]
    for there_and_back in range(2):
        for how, pair in zip(((), ("FORCE",), ("TAKEOVER",)), pairs, strict=True):
            old, new = pair if there_and_back == 0 else pair[::-1]
            with old.client() as client, new.client() as other:
                replicated(client, other)
                other.execute_command("CLUSTER", "FAILOVER", *how)
            bench.wait_role(new, "primary")
            bench.wait_role(old, "replica")
        bench.cluster.wait_settled()
        bench.write(300, "next")
        bench.all_stored()
    own_broker.start()
    agreed = {node.port for node in pairs[0]}
    bench.checked(repeated=WINDOW + 200, in_order=agreed)
    theirs = [key for port, key in bench.written if port in agreed]
    again = collections.Counter(message.event[2] for message in bench.messages)
    assert {again[key] for key in theirs} == {1}


def test_a_primary_dies_under_load(own_broker: RabbitServer, start_cluster: StartCluster) -> None:
    """The broker is there: all that Redis itself has kept is delivered. Redis loses what it had not
    replicated, key and event alike; so each key that is still there must have its event."""
    bench = start_cluster(REDIS, own_broker)
    with Writer(bench) as writer:
        wait_for(lambda: len(bench.written) > 3000)
        dead = bench.cluster.primaries()[0]
        heir = bench.cluster.replica_of(dead)
        dead.kill()
        bench.wait_role(heir, "primary")
        bench.cluster.wait_settled()
        before = len(bench.written)
        wait_for(lambda: len(bench.written) > before + 1000)
    bench.restart(dead)
    with bench.cluster.client() as client:
        kept = {key for _, key in bench.written if client.exists(key)}
        maybe = {key for key in writer.unsure if client.exists(key)}
    # Events in the memory of the dead node are lost (README). They are no older than an event is
    # when it is pushed to the list. One more may have been written and not answered.
    theirs = {key: bench.answered[key] for port, key in bench.written if port == dead.port}
    last = {key for key, when in theirs.items() if when > max(theirs.values()) - LATE}
    bench.unsure |= writer.unsure
    bench.checked(repeated=WINDOW, may_miss=lambda key: key not in kept or key in last)
    assert len(maybe - {message.event[2] for message in bench.messages}) <= 1


# For an older Redis see test_a_node_comes_and_goes. SETSLOT of Valkey waits for the replicas, so
# that 5461 slots take most of a minute.
@pytest.mark.parametrize(("family", "outbox"), [(NEW_REDIS, "off"), (NEW_REDIS, "atomic")])
def test_all_slots_of_a_node_move_while_the_broker_is_away(
    family: str, own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """Twice, so that the node without slots gets some again. Its list goes with its slot, is found
    where it arrives, and is not counted as lost."""
    bench = start_cluster(family, own_broker, ["cluster-allow-replica-migration no"])
    own_broker.kill()
    bench.write(600)
    bench.waits_for(fallback_length=600)
    source, target, _ = bench.cluster.primaries()
    with Writer(bench, pause=0.02):
        bench.reshard(source, target, 16384)
        bench.cluster.wait_settled()
    assert lists_of(bench)[source.port] == set()
    # An event of its last slot may have come when the node had no slot for a list any more.
    wait_for(lambda: bench.waiting() == len(bench.written))
    for node in bench.running:
        if node is not source:
            with node.client() as client:
                settled(client, queue_length=0)
    with source.client() as client:
        wait_for(lambda: stats(client)["fallback_length"] == 0)
    bench.reshard(target, source, 300)
    bench.cluster.wait_settled()
    bench.write(300, "next")
    bench.waits_for(fallback_length=len(bench.written), queue_length=0)
    own_broker.start()
    bench.checked(in_order=False)


@pytest.mark.parametrize("family", [REDIS, VALKEY])
def test_a_slot_stays_on_its_way(
    family: str, own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """The list's slot is MIGRATING here and IMPORTING on the other node. As long as the key is
    on this node, it is the list; after it has moved, another key is used. All classes of events
    are chosen, because the list's keys now have events of many classes."""
    bench = start_cluster(family, own_broker, events="A")
    own_broker.kill()
    bench.write(300)
    bench.waits_for(fallback_length=300)
    source, target, _ = bench.cluster.primaries()
    (key,) = lists_of(bench)[source.port]
    slot = slot_of(key)
    ids = {node.port: bench.cluster.id_of(node) for node in (source, target)}
    with source.client() as here, target.client() as there:
        there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
        bench.write(300, "leaving")
        bench.waits_for(fallback_length=600)
        assert lists_of(bench)[source.port] == {key}
        here.execute_command("MIGRATE", "127.0.0.1", target.port, key, 0, 5000)
        bench.write(300, "left")
        wait_for(lambda: lists_of(bench)[source.port] not in ({key}, set()))
        for client in (there, here):
            client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
    bench.cluster.wait_settled()
    bench.waits_for(fallback_length=900, queue_length=0)
    own_broker.start()
    bench.checked(in_order=False)


@pytest.mark.parametrize("family", [NEW_REDIS, NEW_VALKEY])
def test_a_flush_beside_a_key_of_another_slot(
    family: str, own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """FLUSHALL saves, and at a save the module stores what is in memory. Within a transaction on
    another slot it must not: these servers would put the list into that slot's table."""
    bench = start_cluster(family, own_broker, ["save 3600 1"])
    own_broker.kill()
    primary = bench.cluster.primaries()[0]
    keys = bench.keys_of(primary, 1)
    with primary.client() as client, client.pipeline(transaction=True) as pipeline:
        for _ in range(50):
            pipeline.set(keys[0], b"v")
        pipeline.execute_command("FLUSHALL")
        pipeline.execute()
        settled(client, queue_length=0, fallback_length=50)
        (key,) = lists_of(bench)[primary.port]
        assert client.llen(key) == 50
    own_broker.start()
    bench.written = [(primary.port, keys[0])]
    bench.checked()
    assert len(bench.messages) == 50


def test_a_node_comes_and_goes_while_the_broker_is_away(
    own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """A new primary takes slots, one of them with a list. Its slots move away again, and it leaves:
    no event leaves with it."""
    bench = start_cluster(REDIS, own_broker, ["cluster-allow-replica-migration no"])
    own_broker.kill()
    bench.write(300)
    bench.waits_for(fallback_length=300)
    cluster = bench.cluster
    first = cluster.primaries()[0]
    (key,) = lists_of(bench)[first.port]
    new = cluster.make_node()
    cluster.nodes.append(new)
    new.start()
    cluster.cli("add-node", f"127.0.0.1:{new.port}", f"127.0.0.1:{first.port}")
    cluster.wait_settled()
    bench.reshard(first, new, 16384)
    cluster.wait_settled()
    assert key in lists_of(bench)[new.port]
    bench.write(300, "new")
    bench.waits_for(fallback_length=600, queue_length=0)
    bench.reshard(new, first, 16384)
    cluster.wait_settled()
    bench.waits_for(fallback_length=600, queue_length=0)
    with new.client() as client:
        wait_for(lambda: stats(client)["fallback_length"] == 0)
    new_id = cluster.id_of(new)
    cluster.cli("del-node", f"127.0.0.1:{first.port}", new_id)
    wait_for(lambda: not new.running or len(cluster.view(new)) == 1, what="it is alone")
    own_broker.start()
    bench.checked(in_order=False)


def test_a_primary_without_slots_still_delivers(
    own_broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """A node delivers its memory after its last slot has left."""
    bench = start_cluster(REDIS, own_broker, ["cluster-require-full-coverage no"])
    source = bench.cluster.primaries()[0]
    with source.client() as client:
        # Without a slot it has no list, only memory.
        client.execute_command("KEYSPACEAMQP.CONFIG", "SET", "fallback-size", -1)
        own_broker.kill()
        bench.write(300)
        client.execute_command("CLUSTER", "DELSLOTSRANGE", *bench.slots_of(source))
        assert bench.slots_of(source) == []
        assert stats(client)["queue_length"] > 0
    own_broker.start()
    bench.checked()


def test_a_cluster_that_is_down(own_broker: RabbitServer, start_cluster: StartCluster) -> None:
    """Two primaries and their replicas are gone: Redis takes no commands, but keys
    expire. The events wait in memory, and go to the list when the cluster is up. Those
    that come back find their lists in their files."""
    bench = start_cluster(REDIS, own_broker, ["appendonly yes", "appendfsync always"], events="$x")
    own_broker.kill()
    bench.write(300)
    bench.waits_for(fallback_length=300)
    one, two, three = bench.cluster.primaries()
    gone = [two, three, bench.cluster.replica_of(two), bench.cluster.replica_of(three)]
    with one.client() as client:
        mine = bench.keys_of(one, 200)
        client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 0)
        for key in mine:
            client.set(key, b"v", px=1)
        length = settled(client, queue_length=0)["fallback_length"]
        for node in gone:
            node.kill()
        wait_for(lambda: "cluster_state:fail" in as_text(client, "CLUSTER INFO"))
        client.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", 1)
        wait_for(lambda: stats(client)["queue_length"] == 200)
        wait_for(lambda: "down" in stats(client)["last_error"])
        assert stats(client)["fallback_length"] == length
        for node in gone:
            node.spawn()
        for node in gone:
            node.wait_ready()
        bench.cluster.wait_settled()
    bench.waits_for(fallback_length=700, queue_length=0)
    own_broker.start()
    bench.written += [(one.port, key) for key in mine]
    bench.checked(in_order=False)
    assert sum(message.event[1] == b"expired" for message in bench.messages) == 200
