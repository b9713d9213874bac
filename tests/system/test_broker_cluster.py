"""A RabbitMQ cluster of three with a quorum queue: each member fails under load."""

from __future__ import annotations

import bisect
import signal
import time
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from keyspace_amqp.demo.servers import wait_for
from tests.fix_faults import Load, Probe
from tests.fix_rabbit_cluster import RabbitCluster
from tests.fix_servers import Mailbox, StartRedis, arguments_for, once, settled, stats

# A queue that elects a leader answers nobody for some seconds.
RECOVERY = 60.0
# Seconds for which a member stands still.
PAUSE = 5.0


def displaced(numbers: Sequence[int]) -> int:
    """Return how many numbers have to be taken out, at least, so that the others ascend."""
    ends: list[int] = []  # the smallest end of an ascending row of each length
    for number in numbers:
        place = bisect.bisect_left(ends, number)
        ends[place : place + 1] = [number]
    return len(numbers) - len(ends)


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
    for each refusal. Return STATS.

    A queue that elects a leader may refuse a message and take the next one.
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
    assert out_of_order <= numbers["nacked"]
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
                wait_for(lambda: stats(client)["in_flight"] > 0, 30)
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
