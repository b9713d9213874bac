"""A RabbitMQ cluster of three with a quorum queue: each member fails under load."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.demo.servers import wait_for
from tests.fix_brokers import displaced, mailbox_of, read, unconfirmed
from tests.fix_faults import Load, Probe
from tests.fix_rabbit_cluster import RabbitCluster
from tests.fix_servers import Mailbox, StartRedis, arguments_for, once, settled, stats

# A queue that elects a leader answers nobody for some seconds.
RECOVERY = 60.0
# Seconds from an event to its message in a queue that is well, on a busy machine. With messages
# that wait for others it would be the confirm-timeout.
SOON = DEFAULTS.confirm_timeout / 4
# Seconds for which a member stands still.
PAUSE = 5.0


def confirmed_so_far(client: redis.Redis, load: Load) -> None:
    """Wait until all that was written up to now is confirmed."""
    written = len(load.keys)
    last: dict[str, Any] = {}

    def confirmed() -> bool:
        last.update(stats(client))
        return bool(last["confirmed"] >= written)

    try:
        wait_for(confirmed, RECOVERY)
    except TimeoutError:
        pytest.fail(f"{written} were written, STATS are {last}")


def arrived_at_least_once(
    client: redis.Redis, mailbox: Mailbox, keys: Sequence[bytes]
) -> dict[str, Any]:
    """Each event has arrived, and nothing else. First arrivals are in order, but for one message
    for each that was sent without a confirm. Return STATS.
    """
    at_rest = {"fallback_length": 0, "queue_length": 0, "in_flight": 0, "dropped": 0}
    numbers = settled(client, RECOVERY, **at_rest)
    messages = mailbox.receive()
    arrived = [message.event[2] for message in once(messages)]
    assert len(arrived) == len(keys)
    assert set(arrived) == set(keys)
    place = {key: number for number, key in enumerate(keys)}
    out_of_order = displaced([place[key] for key in arrived])
    print(
        f"{len(keys)} events, {len(messages) - len(arrived)} repeated, "
        f"{numbers['nacked']} refused, {out_of_order} out of order"
    )
    assert out_of_order <= unconfirmed(numbers)
    assert numbers["handler_errors"] == 0
    return numbers


@pytest.fixture
def quorum(rabbit_cluster: RabbitCluster) -> Mailbox:
    """A quorum queue with a member on each broker."""
    group = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 3}
    mailbox = Mailbox(rabbit_cluster.brokers[0], **group)
    rabbit_cluster.whole(mailbox.name)
    rabbit_cluster.keep()
    return mailbox


def test_each_member_is_killed(
    rabbit_cluster: RabbitCluster, quorum: Mailbox, start_redis: StartRedis, probe: Probe
) -> None:
    """Two members are a majority, but a channel that opens while the queue elects a leader may
    refuse all messages until the member that was killed is back."""
    server = start_redis(
        arguments=arguments_for(1, quorum, "$"),
        options=[f"keyspaceamqp.host {rabbit_cluster.hosts}"],
    )
    client = server.client()
    with Load(server, batch=100, pause=0.05) as load:
        for broker in rabbit_cluster.brokers:
            load.more(500)
            confirmed_so_far(client, load)
            with probe(server):
                # What is sent from the list does not count as in flight.
                wait_for(
                    lambda: (now := stats(client))["in_flight"] + now["fallback_length"] > 0, 30
                )
                broker.kill()
                load.more(2000)
                broker.start()
                rabbit_cluster.whole(quorum.name)
                confirmed_so_far(client, load)
    numbers = arrived_at_least_once(client, quorum, load.keys)
    assert numbers["reconnects"] > 0


@pytest.mark.parametrize("which", ["the broker in use", "the leader"])
def test_a_member_is_paused(
    which: str,
    rabbit_cluster: RabbitCluster,
    quorum: Mailbox,
    start_redis: StartRedis,
    probe: Probe,
) -> None:
    """SIGSTOP: its links stay, and nobody knows yet that it does nothing. Events that are not
    confirmed meanwhile wait in the list."""
    server = start_redis(
        arguments=arguments_for(1, quorum, "$"),
        options=[f"keyspaceamqp.host {rabbit_cluster.hosts}"],
    )
    client = server.client()
    with Load(server, batch=100, pause=0.05) as load:
        load.more(500)
        confirmed_so_far(client, load)
        used = rabbit_cluster.at(stats(client)["broker"])
        leader = rabbit_cluster.named(rabbit_cluster.queue(quorum.name)["leader"])
        paused = used if which == "the broker in use" else leader
        with probe(server):
            paused.signal(signal.SIGSTOP)
            try:
                until = time.monotonic() + PAUSE
                while time.monotonic() < until:
                    load.more(500)
            finally:
                paused.signal(signal.SIGCONT)
            confirmed_so_far(client, load)
        rabbit_cluster.whole(quorum.name)
    arrived_at_least_once(client, quorum, load.keys)


def test_the_leader_stays_away(
    rabbit_cluster: RabbitCluster, quorum: Mailbox, start_redis: StartRedis, probe: Probe
) -> None:
    """The broker in use leads the queue, is killed, and does not come back. The two others are a
    majority. But a channel that opens before they have elected a leader refuses all messages for
    as long as the dead one is away: it takes another one to be confirmed."""
    server = start_redis(
        arguments=arguments_for(1, quorum, "$"),
        options=[f"keyspaceamqp.host {rabbit_cluster.hosts}"],
    )
    client = server.client()
    leader = rabbit_cluster.named(rabbit_cluster.queue(quorum.name)["leader"])

    def at_the_leader() -> bool:
        client.execute_command("KEYSPACEAMQP.DISCONNECT")
        client.execute_command("KEYSPACEAMQP.CONNECT")
        wait_for(lambda: stats(client)["state"] == "connected", 30)
        return rabbit_cluster.at(stats(client)["broker"]) is leader

    wait_for(at_the_leader, 60)
    with Load(server, batch=100, pause=0.05) as load:
        load.more(500)
        confirmed_so_far(client, load)
        with probe(server):
            leader.kill()
            load.more(1000)
            confirmed_so_far(client, load)
    quorum.broker = next(b for b in rabbit_cluster.brokers if b is not leader)
    arrived_at_least_once(client, quorum, load.keys)


# Messages for a queue that cannot confirm. RabbitMQ reads nothing more from a connection with
# about 32 of them (quorum_commands_soft_limit).
_UNCONFIRMED = 20


def test_a_queue_without_majority_beside_a_healthy_one(
    rabbit_cluster: RabbitCluster, quorum: Mailbox, start_redis: StartRedis, probe: Probe
) -> None:
    """Two of three members are down. Messages for the quorum queue get no confirm; those for a
    classic queue on the third go on."""
    broker, *others = rabbit_cluster.brokers
    healthy = Mailbox(broker)
    exchange = f"topic-{healthy.name}"
    with broker.connection() as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange, "topic", durable=True)
        channel.queue_bind(quorum.name, exchange, "quorum")
        channel.queue_bind(healthy.name, exchange, "healthy")
    rabbit_cluster.keep()
    arguments = arguments_for(broker, "{key:1}", "$")
    arguments[6] = exchange
    server = start_redis(arguments=arguments)
    client = server.client()
    client.set("quorum:first", 1)  # the channel knows the queue
    settled(client, confirmed=1)
    waiting, moving = [b"quorum:first"], []
    try:
        for other in others:
            other.kill()
        wait_for(lambda: rabbit_cluster.queue(quorum.name).get("online") == [broker.node], 60)
        with probe(server):
            for number in range(_UNCONFIRMED):
                waiting.append(b"quorum:%d" % number)
                client.set(waiting[-1], 1)
            begin = time.monotonic()
            for second in range(10):
                time.sleep(max(0.0, begin + second - time.monotonic()))
                for _ in range(100):
                    moving.append(b"healthy:%d" % len(moving))
                    client.set(moving[-1], 1)
                wait_for(lambda: healthy.count() >= len(moving), SOON, "the healthy queue has them")
        # A message is in the queue before its confirm is here.
        wait_for(lambda: stats(client)["confirmed"] == 1 + len(moving), SOON, "all are confirmed")
    finally:
        rabbit_cluster.start()
    settled(client, RECOVERY, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    assert [m.event[2] for m in once(quorum.receive())] == waiting
    assert [m.event[2] for m in once(healthy.receive())] == moving


def test_the_leader_of_a_stream_is_killed(
    rabbit_cluster: RabbitCluster, start_redis: StartRedis, probe: Probe
) -> None:
    """The two other members are a majority, and go on. Nothing that was confirmed is missing."""
    brokers = rabbit_cluster.brokers
    stream = mailbox_of(brokers[0], "stream")
    rabbit_cluster.keep()
    leader = rabbit_cluster.named(rabbit_cluster.whole(stream.name))
    stream.broker = other = next(b for b in brokers if b is not leader)
    server = start_redis(arguments=arguments_for(other, stream, "$"))
    client = server.client()
    with Load(server, batch=100, pause=0.05) as load, probe(server):
        load.more(500)
        confirmed_so_far(client, load)
        leader.kill()
        load.more(1000)
        confirmed_so_far(client, load)
    at_rest = {"fallback_length": 0, "queue_length": 0, "in_flight": 0, "dropped": 0}
    settled(client, RECOVERY, **at_rest)
    client.set("last", 1)
    numbers = settled(client, RECOVERY, confirmed=len(load.keys) + 1, **at_rest)
    assert (numbers["returned"], numbers["handler_errors"]) == (0, 0)
    messages = read(stream, "stream", b"last")
    arrived = [message.event[2] for message in once(messages)]
    place = {key: number for number, key in enumerate([*load.keys, b"last"])}
    assert set(arrived) == set(place)
    print(f"{len(messages) - len(arrived)} repeated, {numbers['nacked']} refused")
    assert displaced([place[key] for key in arrived]) <= unconfirmed(numbers)


def test_the_broker_of_a_classic_queue_is_away(
    rabbit_cluster: RabbitCluster, start_redis: StartRedis
) -> None:
    """Other members know the queue, and cannot reach it. Each message is either refused until the
    broker is back, or confirmed and returned: then a member has thrown it away."""
    home, other, _ = rabbit_cluster.brokers
    classic = mailbox_of(home, "classic")
    rabbit_cluster.keep()
    server = start_redis(arguments=arguments_for(other, classic, "$"))
    client = server.client()
    client.set("before", 1)
    settled(client, confirmed=1)
    home.kill()
    try:
        keys = [b"meanwhile:%d" % number for number in range(20)]
        for key in keys:
            client.set(key, 1)
        wait_for(
            lambda: stats(client)["returned"] + stats(client)["refused_waiting"] >= len(keys),
            RECOVERY,
            "all are returned or refused",
        )
    finally:
        rabbit_cluster.start()
    numbers = settled(
        client, RECOVERY, fallback_length=0, queue_length=0, in_flight=0, dropped=0, confirmed=21
    )
    print(f"{numbers['returned']} returned, {numbers['nacked']} refused")
    arrived = {message.event[2] for message in classic.receive()}
    assert arrived <= {b"before", *keys}
    assert len(arrived) + numbers["returned"] >= 21
