"""A clean restart loses nothing, however much waits."""

from __future__ import annotations

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from tests.fix_faults import delivered
from tests.fix_servers import MODULE, Mailbox, StartRedis, arguments_for, settled, stats
from tests.servers import NEW_REDIS

# Records of so many events, of 48 bytes each, fit into the queue. As objects, a third would.
EVENTS = 20_000
LIMIT = ["appendonly yes", f"keyspaceamqp.queue-limit {2 * 1024 * 1024}"]


def write_and_stop(server: RedisServer, part: str) -> list[bytes]:
    """One long script, so that the handler cannot store anything, and then a stop. Return the
    keys."""
    client = server.client(retry=Retry(NoBackoff(), 0))
    script = f"""for number = 1, {EVENTS} do
        redis.call('SET', string.format('{part}:%08d', number), '')
    end"""
    with client.pipeline(transaction=False) as pipeline:
        pipeline.eval(script, 0)
        pipeline.execute_command("SHUTDOWN")
        with pytest.raises(redis.exceptions.ConnectionError):
            pipeline.execute()
    wait_for(lambda: not server.running, 30)
    return [b"%b:%08d" % (part.encode(), number) for number in range(1, EVENTS + 1)]


def test_more_than_fits_into_memory_as_objects(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The broker is away. The events go to the file as records, and from there to the list."""
    server = start_redis(family, arguments_for(free_port(), mailbox, "$", size=0), LIMIT)
    expected = write_and_stop(server, "first")
    assert f"{EVENTS} events came too late for the fallback list, and went to" in server.log()
    server.start()
    client = server.client()
    numbers = settled(client, fallback_length=EVENTS, fallback_found=EVENTS, dropped=0)
    assert numbers["events_matched"] == 0
    assert not list(server.folder.glob("*.leftover"))
    client.set("new", 1)
    client.config_set("keyspaceamqp.port", broker.port)
    delivered(client, mailbox, [*expected, b"new"])


def test_a_stop_while_the_file_is_read(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """The list cannot be written, so the file stays, and grows with each stop."""
    server = start_redis(NEW_REDIS, arguments_for(free_port(), mailbox, "$", size=0), LIMIT)
    expected = write_and_stop(server, "first")
    server.options = [*LIMIT, "keyspaceamqp.fallback-size -1"]
    for part in ("second", "third"):
        server.start()
        wait_for(lambda: "come first" in server.log(), 30)
        expected += write_and_stop(server, part)
    server.start()
    client = server.client()
    client.config_set("keyspaceamqp.port", broker.port)
    delivered(client, mailbox, expected)
    assert not list(server.folder.glob("*.leftover"))


def test_what_was_delivered_is_not_left(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Short loads. Some end before they have sent anything, others while the leftovers of the
    load before are in flight. No event is delivered in each of them."""
    arguments = arguments_for(broker, mailbox, "$")
    server = start_redis(family, arguments)
    client = server.client()
    expected = []
    for cycle in range(20):
        with client.pipeline(transaction=False) as pipeline:
            for number in range(50):
                pipeline.set(f"{cycle}:{number}", 1)
                expected.append(b"%d:%d" % (cycle, number))
            if cycle % 2:
                pipeline.execute()
                wait_for(lambda: stats(client)["published"] > 0, 30)
            pipeline.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
            pipeline.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
            pipeline.execute()
    # A broker that takes longer to confirm than an unload waits gets some of them again.
    delivered(client, mailbox, expected, repeated=len(expected) // 2)
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    assert not list(server.folder.glob("*.leftover"))
