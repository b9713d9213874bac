"""Programs that read the messages, as people have them: kombu, and those of docs/consumers.md."""

from __future__ import annotations

from typing import Any

import kombu
import pytest

from keyspace_amqp.demo.servers import RabbitServer
from tests.fix_outbox import with_outbox
from tests.fix_servers import Mailbox, StartRedis, arguments_for, settled
from tests.servers import REDIS

# Keys that are text, and keys that are not. The last one is cut within a character.
KEYS = [b"user:1", "clé:ü".encode(), b"\xff\xfe", b"\0\n", "user:€".encode()[:-1]]


# ---- kombu -----------------------------------------------------------------------


def by_kombu(broker: RabbitServer, mailbox: Mailbox, count: int, **options: Any) -> list[Any]:
    """Return the payloads of messages, as kombu gives them to a program. Raises what ends such a
    program."""
    payloads: list[Any] = []

    def on_message(payload: Any, message: kombu.Message) -> None:
        payloads.append(payload)
        message.ack()

    address = f"amqp://guest:guest@127.0.0.1:{broker.port}//"
    queue = kombu.Queue(mailbox.name, no_declare=True)
    with kombu.Connection(address) as connection:
        with connection.Consumer(queue, callbacks=[on_message], prefetch_count=100, **options):
            while len(payloads) < count:
                try:
                    connection.drain_events(timeout=60)
                except TimeoutError:
                    pytest.fail(f"{len(payloads)} of {count} messages")
    return payloads


def as_bytes(payload: str | bytes) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload


@with_outbox([REDIS])
def test_kombu_lives_on_after_keys_that_are_no_text(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Text is `str`, all else is `bytes`: of single messages, of many at a time, and of those that
    come from the list."""
    server = start_redis(family, arguments_for(broker, mailbox, "$"))
    client = server.client()
    expected = []

    def write(keys: list[bytes]) -> None:
        with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.set(key, 1)
                expected.append(b"0\nset\n" + key)
            pipeline.execute()

    for key in KEYS:
        write([key])
    write(KEYS * 200)
    settled(client, confirmed=len(expected))
    client.execute_command("KEYSPACEAMQP.DISCONNECT")
    write(KEYS * 200)
    settled(client, fallback_length=len(KEYS) * 200, queue_length=0)
    client.execute_command("KEYSPACEAMQP.CONNECT")
    settled(client, confirmed=len(expected), fallback_length=0)
    accept = ["text/plain", "application/octet-stream"]
    payloads = by_kombu(broker, mailbox, len(expected), accept=accept)
    assert [as_bytes(payload) for payload in payloads] == expected
    assert [type(payload) for payload in payloads[: len(KEYS)]] == [str, str, bytes, str, bytes]


@pytest.mark.parametrize("form", ["json", "cloudevents", "cloudevents-structured"])
def test_kombu_reads_the_other_formats(
    form: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    server = start_redis(
        arguments=arguments_for(broker, mailbox, "$"), options=[f"keyspaceamqp.format {form}"]
    )
    client = server.client()
    for key in KEYS:
        client.set(key, 1)
    payloads = by_kombu(broker, mailbox, len(KEYS))
    kind = str if form == "cloudevents-structured" else dict
    assert [type(payload) for payload in payloads] == [kind] * len(KEYS)
