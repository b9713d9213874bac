"""Failovers under load, with an outbox and `WAIT 1`: of writes that a replica has confirmed, no
event is lost with `atomic`. With `reply`, the last ones may be.

For Sentinel see test_redis_faults.py."""

from __future__ import annotations

import signal

import redis

from keyspace_amqp.cluster.slots import slot_of
from keyspace_amqp.demo.servers import RabbitServer, free_port, wait_for
from tests.fix_cluster import StartCluster
from tests.fix_outbox import (
    EVERY_OUTBOX_AWAY_AND_THERE,
    SOME_OUTBOX,
    WAYS,
    Clients,
    Told,
    check_order,
    check_same,
    listed,
    of_messages,
    without_events,
)
from tests.fix_servers import (
    Mailbox,
    Message,
    StartRedis,
    arguments_for,
    linked,
    replicated,
    settled,
    stats,
)
from tests.servers import NEW_REDIS

SYNC = ["repl-diskless-sync yes", "repl-diskless-sync-delay 0"]
WRITES = 2000


def check_confirmed(outbox: str, clients: Clients, told: list[Told]) -> None:
    """Check that confirmed writes have their events; with `reply`, all but the last ones of each
    client."""
    lost = without_events(clients.answered, told)
    print(f"{outbox}: {len(lost)} of {len(clients.answered)} confirmed writes have lost an event")
    if outbox == "reply":
        lost = [key for key in lost if key not in clients.last]
    assert not lost, f"{len(lost)} lost: {lost[:5]}"


def test_each_client_waits_for_the_replica(start_redis: StartRedis) -> None:
    """Without this the tests below would check nothing: a WAIT that does not know of a client's
    writes confirms them at once."""
    primary = start_redis(NEW_REDIS, None)
    replica = start_redis(NEW_REDIS, None, [f"replicaof 127.0.0.1 {primary.port}"])
    client = primary.client()
    replicated(client, replica.client())
    replica.signal(signal.SIGSTOP)
    try:
        with Clients(primary, "0", confirm=True) as clients:
            wait_for(lambda: client.info("clients")["blocked_clients"] == len(WAYS), 30)
            assert not clients.answered
    finally:
        replica.signal(signal.SIGCONT)


@EVERY_OUTBOX_AWAY_AND_THERE
def test_the_primary_is_killed(
    family: str,
    outbox: str,
    there: bool,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    arguments = arguments_for(broker if there else free_port(), mailbox, "A")
    primary = start_redis(family, arguments, SYNC)
    replica = start_redis(family, arguments, [*SYNC, f"replicaof 127.0.0.1 {primary.port}"])
    client = replica.client()
    linked(client)
    with Clients(primary, "0", confirm=True) as clients:
        clients.more(WRITES)
        primary.kill()
    client.replicaof("NO", "ONE")
    messages: list[Message] = []

    def events() -> list[Told]:
        messages.extend(mailbox.receive())
        return of_messages(messages) if there else listed(client)

    settled(
        client, queue_length=0, in_flight=0, dropped=0, **({"fallback_length": 0} if there else {})
    )
    check_confirmed(outbox, clients, events())
    if outbox == "atomic":
        check_same(client, events, clients.begun - set(clients.answered) if there else frozenset())
    told = events()
    check_order(told)
    client.config_set("keyspaceamqp.port", broker.port)
    settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    if not there:
        assert of_messages(mailbox.receive())[: len(told)] == told


@SOME_OUTBOX
def test_a_primary_of_a_cluster_is_killed(
    family: str, outbox: str, broker: RabbitServer, start_cluster: StartCluster
) -> None:
    """The broker is away, and comes back."""
    bench = start_cluster(family, broker, events="A")
    for node in bench.running:
        node.client().config_set("keyspaceamqp.port", free_port())
    dead = bench.cluster.primaries()[0]
    heir = bench.cluster.replica_of(dead)
    (tag,) = bench.keys_of(dead, 1)
    assert slot_of(b"any:1{%b}" % tag) == slot_of(tag)
    # While a cluster starts, the handler cannot look at the list.
    wait_for(lambda: stats(dead.client())["outbox"] == outbox, 30)
    with Clients(dead, "0", confirm=True, tag=b"{%b}" % tag) as clients:
        clients.more(WRITES)
        dead.kill()
    bench.wait_role(heir, "primary")
    bench.cluster.wait_settled()
    messages: list[Message] = []
    for node in bench.running:
        node.client().config_set("keyspaceamqp.port", broker.port)

    def events() -> list[Told]:
        messages.extend(bench.mailbox.receive())
        return of_messages(messages)

    client: redis.Redis = heir.client()
    settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    check_confirmed(outbox, clients, events())
    if outbox == "atomic":
        check_same(client, events)
    check_order(events())
    wait_for(lambda: bench.waiting() == 0, 60)
