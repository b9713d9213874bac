"""`kill -9` of Redis under load, with an outbox: of all writes that a client was answered, no event
is lost. With `atomic`, the keys that are there after a kill and the events about them are the same.

The kills come at random moments. KEYSPACE_AMQP_KILLS says how many there are for each server, and
KEYSPACE_AMQP_SEED repeats their moments, as far as the machine does. `make kills` runs twenty each.
"""

from __future__ import annotations

import os
import random

import pytest

from keyspace_amqp.demo.servers import RabbitServer, free_port, wait_for
from tests.fix_outbox import (
    EVERY_OUTBOX_AWAY_AND_THERE,
    Clients,
    Told,
    check_order,
    check_same,
    keys_there,
    listed,
    of_messages,
    without_events,
)
from tests.fix_servers import Mailbox, Message, StartRedis, arguments_for, settled, stats
from tests.servers import REDIS, at_least

KILLS = int(os.environ.get("KEYSPACE_AMQP_KILLS", 3))
SEED = int(os.environ.get("KEYSPACE_AMQP_SEED", random.randrange(2**32)))
ALWAYS = ["appendonly yes", "appendfsync always"]
# Writes before a kill.
MOST = 3000
THREADS = ["io-threads 1", "io-threads 3", "io-threads 3\nio-threads-do-reads yes"]


@EVERY_OUTBOX_AWAY_AND_THERE
def test_killed_under_load(
    family: str,
    outbox: str,
    there: bool,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
) -> None:
    print(f"KEYSPACE_AMQP_SEED={SEED}")
    chance = random.Random(SEED)
    port = broker.port if there else free_port()
    server = start_redis(family, arguments_for(port, mailbox, "A"), ALWAYS)
    options, threads = server.options, THREADS[0]
    messages: list[Message] = []
    answered: list[bytes] = []
    ahead: set[bytes] = set()
    for kill in range(KILLS):
        if chance.random() < 0.5:  # the writes come while the module has just been loaded
            server.kill()
            threads = chance.choice(THREADS)
            server.options = [*options, threads]
            server.write_config()
            server.start()
        if chance.random() < 0.5:
            with server.client() as client:
                client.execute_command("KEYSPACEAMQP.SNAPSHOT START")
        with Clients(server, f"{kill}") as clients:
            # Many kills soon after the first writes, and some after many.
            clients.more(int(MOST ** chance.random()))
            server.kill()
        server.start()
        client = server.client()
        # Redis 8 with I/O threads answers some writes before it has written them to the file. Then
        # the write is lost too.
        loses = threads != THREADS[0] and at_least(family, redis="8.0")
        kept = {key for _, key in keys_there(client)} if loses else set()
        answered += [key for key in clients.answered if not loses or key in kept]
        if there:
            # Events are sent before the file is written, so those of other writes may be there
            # alone.
            ahead |= clients.begun - set(answered)
            settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)

        def events() -> list[Told]:
            messages.extend(mailbox.receive())
            told = of_messages(messages) if there else listed(client)  # noqa: B023
            return [event for event in told if event.name != b"snapshot"]

        told = events()
        print(f"kill {kill}: {len(clients.answered)} answered, {len(told)} events so far")
        lost = without_events(answered, told)
        assert not lost, f"kill {kill}: {len(lost)} of {len(answered)} lost: {lost[:5]}"
        if outbox == "atomic":
            check_same(client, events, ahead)
        check_order(events())
    if not there:
        # What is in the list arrives, each event once. Keys of the last kill may still expire.
        wait_for(lambda: not client.info("keyspace").get("db0", {}).get("expires"), 30)
        settled(client, queue_length=0, dropped=0)
        told = listed(client)
        client.config_set("keyspaceamqp.port", broker.port)
    settled(client, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    assert stats(client)["outbox"] == outbox
    if not there:
        assert of_messages(mailbox.receive()) == told


def test_without_an_outbox_events_are_lost(start_redis: StartRedis) -> None:
    """Of the test itself: it notices that events are lost, after some kills at the latest."""
    chance = random.Random(SEED)
    server = start_redis(REDIS, arguments_for(free_port(), events="A"), ALWAYS)
    for kill in range(10):
        with Clients(server, f"{kill}") as clients:
            clients.more(chance.randint(100, 1000))
            server.kill()
        server.start()
        if without_events(clients.answered, listed(server.client())):
            return
    pytest.fail("ten kills have lost nothing")
