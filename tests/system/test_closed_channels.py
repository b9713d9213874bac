"""Messages over which the broker closes the channel: the others arrive, and none is lost."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from keyspace_amqp.tables.keys import KEY
from tests.fix_faults import delivered
from tests.fix_servers import Mailbox, StartRedis, arguments_for, once, settled, stats
from tests.servers import REDIS

# Seconds within which the messages behind bad ones arrive, on a busy machine.
SOON = 60


class Topics:
    """A topic exchange with a queue that gets everything; guest may write `user` and `order`."""

    def __init__(self, broker: RabbitServer) -> None:
        self.broker = broker
        self.exchange = f"ev-{uuid.uuid4()}"
        self.mailbox = Mailbox(broker).keep()
        with broker.connection() as connection:
            channel = connection.channel()
            channel.exchange_declare(self.exchange, "topic", durable=True)
            channel.queue_bind(self.mailbox.name, self.exchange, "#")
        self.allow("^(user|order)$")

    def allow(self, topics: str) -> None:
        """Allow only topics that this expression matches."""
        self.broker.ctl("set_topic_permissions", "guest", self.exchange, topics, ".*")

    def start(self, start_redis: StartRedis, family: str = REDIS) -> RedisServer:
        arguments = arguments_for(self.broker, self.mailbox, "$")
        arguments[6:8] = [self.exchange, "{key:1}"]
        return start_redis(family, arguments)


@pytest.fixture
def topics(own_broker: RabbitServer) -> Iterator[Topics]:
    yield Topics(own_broker)
    own_broker.ctl("clear_topic_permissions", "guest")


def set_keys(client: redis.Redis, keys: list[bytes]) -> list[bytes]:
    """Set the keys in one pipeline; return those that the broker takes."""
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.set(key, 1)
        pipeline.execute()
    return [key for key in keys if not key.startswith(b"tmp:")]


def test_one_topic_is_refused(topics: Topics, start_redis: StartRedis, family: str) -> None:
    """403 closes the channel. The message is set aside, and all others arrive in order."""
    server = topics.start(start_redis, family)
    client = server.client()
    client.set("tmp:1", 1)
    wait_for(lambda: "403 ACCESS_REFUSED" in stats(client)["last_error"], 30)
    good = set_keys(
        client, [b"%b:%d" % (name, n) for n in range(20) for name in (b"user", b"order")]
    )
    numbers = delivered(
        client, topics.mailbox, good, repeated=1000, timeout=SOON, dropped=1, dropped_set_aside=1
    )
    assert numbers["handler_errors"] == 0
    assert "b'tmp:1'" in numbers["last_error"]
    assert "access to topic 'tmp'" in numbers["last_error"]
    assert "b'tmp:1' (set, database 0) is set aside: 403 ACCESS_REFUSED" in server.log()
    ((element, reason, at),) = client.execute_command("KEYSPACEAMQP.FALLBACK", "ASIDE")
    assert element.endswith(b" set tmp:1")
    assert reason.startswith(b"403 ACCESS_REFUSED")
    assert abs(at - int(client.time()[0]) * 1000) < 100_000
    # It can be sent again: when the broker takes it, it arrives.
    topics.allow(".*")
    client.rpush(KEY, element)
    delivered(client, topics.mailbox, [b"tmp:1"], repeated=1000, dropped=1)


def test_bad_among_good_in_the_list(topics: Topics, start_redis: StartRedis) -> None:
    server = topics.start(start_redis)
    client = server.client()
    client.set("user:first", 1)
    delivered(client, topics.mailbox, [b"user:first"])
    topics.broker.stop()
    keys = [b"%b:%d" % (b"tmp" if n % 50 == 49 else b"user", n) for n in range(500)]
    good = set_keys(client, keys)
    wait_for(lambda: stats(client)["fallback_length"] == 500, 30)
    topics.broker.start()
    good += set_keys(client, [b"order:1", b"tmp:last", b"order:2", b"order:3"])
    numbers = delivered(
        client, topics.mailbox, good, repeated=10_000, timeout=2 * SOON, dropped=11,
        dropped_set_aside=11,
    )  # fmt: skip
    assert numbers["handler_errors"] == 0


def test_all_are_refused(topics: Topics, start_redis: StartRedis) -> None:
    """Nothing is set aside while the broker takes nothing at all."""
    server = topics.start(start_redis)
    client = server.client()
    topics.broker.ctl("set_permissions", "-p", "/", "guest", ".*", "^$", ".*")
    try:
        good = set_keys(client, [b"user:%d" % n for n in range(100)])
        wait_for(lambda: "403 ACCESS_REFUSED" in stats(client)["last_error"], 30)
        wait_for(lambda: stats(client)["reconnects"] >= 5, 60)
        assert stats(client)["dropped"] == 0
    finally:
        topics.broker.ctl("set_permissions", "-p", "/", "guest", ".*", ".*", ".*")
    delivered(client, topics.mailbox, good, repeated=1000)


def test_all_topics_are_refused(topics: Topics, start_redis: StartRedis) -> None:
    """The reply text names the topic, so each message may be the cause."""
    topics.allow("^$")
    server = topics.start(start_redis)
    client = server.client()
    good = set_keys(client, [b"user:%d" % n for n in range(100)])
    wait_for(lambda: stats(client)["reconnects"] >= 20, 60)
    assert stats(client)["dropped"] == 0
    topics.allow("^user$")
    # One message may come before older ones: the one that was tried when the others were
    # suspected.
    settled(client, SOON, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
    arrived = [message.event[2] for message in once(topics.mailbox.receive())]
    assert sorted(arrived) == sorted(good)
    early = arrived[0]
    assert [key for key in arrived if key != early] == [key for key in good if key != early]
