"""Queues of each kind as targets: the messages that arrive, and those that the broker refuses."""

from __future__ import annotations

import json
import re
import time
from typing import Any

import pytest

from keyspace_amqp.demo.servers import RabbitServer, wait_for
from tests.fix_brokers import KINDS, displaced, mailbox_of, message_limit, read, unconfirmed
from tests.fix_faults import Load, Probe, delivered
from tests.fix_servers import Mailbox, Message, StartRedis, arguments_for, once, settled, stats

MIB = 1024 * 1024
# Headers that brokers add: the place in a stream, the number of deliveries, the way of a message
# that died.
_OF_THE_BROKER = re.compile(
    r"x-(stream-offset|delivery-count|acquired-count|death|(first|last)-death-\w+)"
)


@pytest.mark.parametrize("kinds", [("classic", "quorum"), ("stream",)], ids="-".join)
def test_killed_under_load(
    kinds: tuple[str, ...], own_broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    """A queue of each kind gets all messages. What the broker has confirmed is in all of them
    afterwards; the rest is sent again, in order. A quorum queue that has no leader yet may refuse
    messages: these come later. RabbitMQ 3 may take messages before it has recovered its streams,
    and return them."""
    queues = {kind: mailbox_of(own_broker, kind) for kind in kinds}
    arguments = arguments_for(own_broker, "all", "$")
    arguments[6] = exchange = f"fanout-{queues[kinds[0]].name}"
    with own_broker.connection() as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange, "fanout", durable=True)
        for mailbox in queues.values():
            channel.queue_bind(mailbox.name, exchange)
    own_broker.keep()
    server = start_redis(arguments=arguments)
    client = server.client()
    with Load(server, batch=20, pause=0.05) as load, probe(server):
        load.more(1000)
        wait_for(lambda: stats(client)["confirmed"] >= 1000, 60)
        wait_for(lambda: stats(client)["in_flight"] > 0, 60)
        own_broker.kill()
        load.more(500)
        own_broker.start()
        load.more(500)
    at_rest = {"fallback_length": 0, "queue_length": 0, "in_flight": 0, "dropped": 0}
    settled(client, 120, **at_rest)
    client.set("last", 1)
    numbers = settled(client, 60, confirmed=len(load.keys) + 1, **at_rest)
    assert numbers["handler_errors"] == 0
    place = {key: number for number, key in enumerate([*load.keys, b"last"])}
    for kind, mailbox in queues.items():
        messages = read(mailbox, kind, b"last")
        arrived = [message.event[2] for message in once(messages)]
        lost = place.keys() - set(arrived)
        out_of_order = displaced([place[key] for key in arrived])
        repeated = len(messages) - len(arrived)
        print(f"{kind}: {repeated} repeated, {out_of_order} out of order, {len(lost)} returned")
        assert set(arrived) <= place.keys()
        assert len(lost) <= (numbers["returned"] if kind == "stream" else 0), kind
        assert out_of_order <= unconfirmed(numbers), kind


# ---- what arrives is what was sent -----------------------------------------------


def _seen(message: Message) -> dict[str, Any]:
    """Return body and properties of a message, without what brokers add."""
    found = {name: value for name, value in vars(message.properties).items() if value is not None}
    headers = found.pop("headers", None) or {}
    kept = {name: value for name, value in headers.items() if not _OF_THE_BROKER.fullmatch(name)}
    return {"body": message.body, "headers": kept, **found}


def _take(broker: RabbitServer, queue: str, kind: str) -> Message:
    """Return the only message of a queue."""
    first = {"x-stream-offset": "first"} if kind == "stream" else None
    with broker.connection() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1)
        method, properties, body = next(
            channel.consume(queue, arguments=first, inactivity_timeout=60)
        )
        assert method is not None, f"nothing in the {kind} queue"
        channel.basic_ack(method.delivery_tag)
        return Message(body, properties, method.redelivered)


def _fail_over(broker: RabbitServer, queue: str, until: Mailbox) -> None:
    """Get the message of a queue and end without an answer, until the message is dead."""

    def dead() -> bool:
        with broker.connection() as connection:
            channel = connection.channel()
            channel.basic_get(queue)
        return until.count() == 1

    wait_for(dead, 60, "the message is dead")


@pytest.mark.parametrize("form", ["text", "json", "cloudevents", "cloudevents-structured"])
def test_what_is_sent_arrives(form: str, broker: RabbitServer, start_redis: StartRedis) -> None:
    """All properties arrive, each with the type that it was sent with: in a queue of each kind, and
    in the one for dead messages of a quorum queue whose limit of deliveries is used up."""
    dead = Mailbox(broker)
    limit = {
        "x-queue-type": "quorum",
        "x-delivery-limit": 2,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": dead.name,
    }
    failing = Mailbox(broker, **limit)
    queues = {kind: mailbox_of(broker, kind) for kind in KINDS}
    arguments = arguments_for(broker, failing, "$")
    with broker.connection() as connection:
        for mailbox in queues.values():
            connection.channel().queue_bind(mailbox.name, arguments[6], failing.routing_key)
    options = {
        "format": form,
        "headers": "on",
        "deduplication-header": "on",
        "app-id": "shop",
        "message-type": "key \xff".encode().decode("latin-1"),
        "priority": "3",
        "node-name": "redis-1",
    }
    server = start_redis(
        arguments=arguments,
        options=[f'keyspaceamqp.{name} "{value}"' for name, value in options.items()],
    )
    client = server.client()
    before = int(time.time())
    client.set(b"key:\xc3\xa9", 1)
    settled(client, confirmed=1, dropped=0)
    arrived = {kind: _seen(_take(broker, queues[kind].name, kind)) for kind in KINDS}
    _fail_over(broker, failing.name, dead)
    arrived["dead"] = _seen(_take(broker, dead.name, "classic"))
    expected = arrived["classic"]
    assert expected["message_id"] == expected["headers"]["x-deduplication-header"]
    assert before <= expected["timestamp"] <= time.time()
    names = ("content_type", "delivery_mode", "priority", "app_id")
    content = {"text": "text/plain", "cloudevents-structured": "application/cloudevents+json"}.get(
        form, "application/json"
    )
    assert [expected[name] for name in names] == [content, 2, 3, "shop"]
    headers = {"db": 0, "event": "set", "class": "string", "node": "redis-1", "sequence": 1}
    assert expected["headers"].items() >= headers.items()
    subject = expected["headers"].get("cloudEvents:subject")
    assert subject == ("key:é" if form == "cloudevents" else None)
    for kind, found in arrived.items():
        assert found == expected, kind
        types = {name: type(value) for name, value in found["headers"].items()}
        assert types == {name: type(value) for name, value in expected["headers"].items()}, kind


# ---- messages that are too large -------------------------------------------------------


def test_above_the_limit_of_the_broker(broker: RabbitServer, start_redis: StartRedis) -> None:
    """A message is twice as large as RabbitMQ 4 takes by default. The broker's answer has the
    limit; the log and FALLBACK ASIDE name the event."""
    mailbox = Mailbox(broker)
    limit = 16 * MIB
    with message_limit(broker, limit):
        server = start_redis(arguments=arguments_for(broker, mailbox, "$"))
        client = server.client(socket_timeout=60)
        expected = []

        def write(name: bytes) -> None:
            for number in range(10):
                expected.append(b"%b:%d" % (name, number))
                client.set(expected[-1], 1)
                if number == 4:
                    client.set(b"large:%b:" % name + b"x" * 2 * limit, 1)

        write(b"in memory")
        settled(client, confirmed=10, dropped=1)
        client.execute_command("KEYSPACEAMQP.DISCONNECT")
        write(b"in the list")
        settled(client, fallback_length=11)
        client.execute_command("KEYSPACEAMQP.CONNECT")
        delivered(client, mailbox, expected, 100, dropped=2, dropped_too_large=2)
        expected.clear()
        write(b"at last")
        numbers = delivered(client, mailbox, expected, 100, dropped=3, dropped_too_large=3)
    assert numbers["dropped_set_aside"] == numbers["handler_errors"] == 0
    why = f"larger than the broker's limit of {limit} bytes"
    for name in ("in memory", "in the list", "at last"):
        assert re.search(rf"key b'large:{name}:x+'… \(set, database 0\) .*{why}", server.log())
    shown = client.execute_command("KEYSPACEAMQP.FALLBACK", "ASIDE")
    assert [element for element, _, _ in shown] == [b"", b"", b""]
    assert all(reason.startswith(b"the event of key b'large:") for _, reason, _ in shown)
    assert all(reason.endswith(why.encode()) for _, reason, _ in shown)


# ---- what operators do ------------------------------------------------------------------


def test_feature_flags_are_enabled_under_load(
    own_broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    """Every flag of this version, the move to another metadata store (Khepri) among them."""
    mailbox = Mailbox(own_broker)
    server = start_redis(arguments=arguments_for(own_broker, mailbox, "$"))
    client = server.client()
    listed = json.loads(
        own_broker.ctl("list_feature_flags", "--silent", "--formatter", "json", "name", "state")
    )
    flags = [flag["name"] for flag in listed if flag["state"] != "enabled"]
    with Load(server, batch=100, pause=0.05) as load, probe(server):
        load.more(500)
        for flag in flags:
            # Only versions that have experimental flags know the option.
            own_broker.ctl("enable_feature_flag", "--experimental", flag)
            load.more(500)
        load.more(500)
    print(f"enabled under load: {flags}")
    numbers = delivered(client, mailbox, load.keys, repeated=10_000)
    assert (numbers["returned"], numbers["handler_errors"]) == (0, 0)
