"""Helpers for the tests of brokers, on any version of RabbitMQ."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from keyspace_amqp.demo.servers import RabbitServer
from tests.fix_servers import Mailbox, Message

# Kinds of queues that a message may be for.
KINDS = ("classic", "quorum", "stream")


def mailbox_of(broker: RabbitServer, kind: str) -> Mailbox:
    """Declare a queue of this kind, as a mailbox; of a stream use `read` in place of `receive`."""
    return Mailbox(broker, **{"x-queue-type": kind})


def read(mailbox: Mailbox, kind: str, last: bytes) -> list[Message]:
    """Return the messages of a queue, up to the event of the key `last`. A stream keeps them.

    Most likely failure: that event does not arrive (StopIteration).
    """
    messages: list[Message] = []
    with mailbox.broker.connection() as connection:
        channel = connection.channel()
        channel.basic_qos(prefetch_count=1000)  # a stream has no consumers without it
        first = {"x-stream-offset": "first"} if kind == "stream" else None
        for method, properties, body in channel.consume(
            mailbox.name, arguments=first, inactivity_timeout=60
        ):
            if method is None:
                raise StopIteration(f"{len(messages)} messages, without that of {last!r}")
            messages.append(Message(body, properties, method.redelivered))
            ended = messages[-1].event[2] == last
            if ended or method.delivery_tag % 500 == 0:
                channel.basic_ack(method.delivery_tag, multiple=True)
            if ended:
                return messages
    raise AssertionError


def displaced(numbers: Sequence[int]) -> int:
    """Return how many numbers have to be taken out, at least, so that the others ascend."""
    ends: list[int] = []  # the smallest end of an ascending row of each length
    for number in numbers:
        place = bisect.bisect_left(ends, number)
        ends[place : place + 1] = [number]
    return len(numbers) - len(ends)


def unconfirmed(numbers: Mapping[str, Any]) -> int:
    """Return how many messages were sent without a confirm, by STATS. So many may be out of order.

    A queue that elects a leader may refuse a message and take the next one, and a broker that is
    killed may not have said so yet.
    """
    return int(numbers["published"] - numbers["confirmed"])


@contextlib.contextmanager
def message_limit(broker: RabbitServer, size: int) -> Iterator[None]:
    """Change the broker's max_message_size for channels that are opened meanwhile.

    RabbitMQ 3 reads the parameter when a channel is opened. RabbitMQ 4 reads it when it starts,
    and looks at a persistent term for each message.
    """

    def change(to: int) -> None:
        broker.ctl(
            "eval",
            f"application:set_env(rabbit, max_message_size, {to}), "
            f"persistent_term:put(max_message_size, {to}).",
        )

    before = broker.ctl("eval", "{ok, N} = application:get_env(rabbit, max_message_size), N.")
    change(size)
    try:
        yield
    finally:
        change(int(before))
