"""The broker at fault: nothing is lost, and Redis does not notice it."""

from __future__ import annotations

from keyspace_amqp.servers import RabbitServer, wait_for

from .fix_faults import Load, Probe, delivered
from .fix_servers import (
    Mailbox,
    StartRedis,
    arguments_for,
    list_length,
    settled,
    stats,
)


def test_killed_three_times_under_load(
    family: str, own_broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    mailbox = Mailbox(own_broker).keep()
    server = start_redis(family, arguments_for(own_broker, mailbox, "$"))
    client = server.client()
    client.set("first", 1)
    settled(client, confirmed=1)
    with Load(server, batch=100, pause=0.05) as load:
        for kills in range(3):
            with probe(server):
                load.more(1000)
                own_broker.kill()
                wait_for(lambda: list_length(client) > 1000, 30)
                own_broker.start()
                wait_for(
                    lambda n=kills: (
                        stats(client)["reconnects"] > n and stats(client)["fallback_length"] == 0
                    ),
                    60,
                )
    # What was sent and not confirmed at a kill may come again.
    delivered(client, mailbox, [b"first", *load.keys], repeated=3 * 1000)
