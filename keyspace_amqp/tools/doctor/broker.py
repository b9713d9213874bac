"""The checks of the broker, over a connection of the doctor's own."""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pika
from pika import spec

from ...broker.frames import Arguments
from ...config import Config, raw
from ...counts import counted
from ...message import Event, Format
from ...values import replace
from .. import ToolError, amqp
from .advice import BIND, advice_for
from .finding import OK, PROBLEM, UNKNOWN, WARNING, Finding

# What consumers see of the doctor's message: the name and the key of its event, and a header.
EVENT, KEY, HEADER = b"doctor", b"keyspaceamqp:doctor", "x-keyspaceamqp-doctor"


@dataclasses.dataclass(frozen=True)
class Place:
    """A broker, exchange and routing key that modules have, and what is known of them.

    `config`: the parameters of these modules. `connected`: one of them is connected.
    `remote`: their servers are on another machine. `reached`: messages that they have sent, and
    of which none was returned; 0 if nobody knows of such messages.
    """

    target: amqp.Target
    config: Config
    connected: bool = False
    remote: bool = False
    reached: int = 0

    @property
    def template(self) -> bool:
        """True if the routing key depends on the event."""
        return self.fixed_key is None

    @property
    def fixed_key(self) -> bytes | None:
        """The routing key of all messages; None if it depends on the event."""
        (key, *more) = self.target.routing_keys
        if key != self.config.routing_key or more:
            return raw(key)  # the user has given it: it is no template
        return Format(self.config, "").fixed_key


def broker(place: Place, *, publish: bool = False) -> Iterator[Finding]:
    """Check that the broker can be reached from here, and that the user may publish. `publish`:
    send a message, and say whether a queue took it."""
    target = place.target
    try:
        connection = target.connect()
    except ToolError as error:
        advice = advice_for(str(error).removeprefix(f"{target.shown}: "))
        advice = advice or "is it up, are host and port right? The broker's log may say more"
        if place.remote and amqp.loopback(target):
            advice = "the module's broker is on its own machine: run this there, or give --amqp"
        level = WARNING if place.connected else PROBLEM
        text = f"{error}{' (from here; the module is connected)' if place.connected else ''}"
        yield Finding("broker", level, text, advice)
        return
    try:
        amqp.end_after(connection, amqp.TIMEOUT)
        text = f"{target.shown} accepts the login ({amqp.product(connection)})"
        yield Finding("broker", OK, text)
        yield from way(connection, place, publish=publish)
    except pika.exceptions.AMQPError as error:
        advice = "it blocks publishers when it lacks memory or disk space: see its alarms"
        yield Finding("broker", PROBLEM, f"{target.shown}: {amqp.explain(error)}", advice)
    finally:
        amqp.close(connection)


def way(connection: Any, place: Place, *, publish: bool) -> Iterator[Finding]:
    """Check the way of a message through the broker, as far as it is open: exchange, permission,
    queue. Raises pika.exceptions.AMQPError."""
    exchange = list(_exchange(connection, place))
    yield from exchange
    if any(finding.level is not OK for finding in exchange):
        return
    publishing = list(_publishing(connection, place))
    yield from publishing
    if any(finding.level is not OK for finding in publishing):
        return
    if place.target.exchange or place.template or not exchange or publish:
        yield from _queue(connection, place, publish=publish)
    # Else the exchange is the default one: the routing key is the queue's name, and it exists.


def _exchange(connection: Any, place: Place) -> Iterator[Finding]:
    """Check that the exchange exists; of the default one, that the queue does."""
    name, key = place.target.exchange, place.fixed_key
    channel = connection.channel()
    try:
        if name:
            channel.exchange_declare(name, passive=True)
        elif key is not None:  # the default exchange routes to the queue with this name
            channel.queue_declare(key.decode("utf-8", "replace"), passive=True)
    except pika.exceptions.ChannelClosed as error:
        if error.reply_code == spec.NOT_FOUND:
            yield _missing(error)
        # With another code, this user may not look at the exchange or the queue: RabbitMQ 4.3 asks
        # for a permission. The module needs none; `_publishing` checks what it needs.
        return
    shown = f"the default one, queue {place.target.routing_keys[0]!r}"
    if key is None:
        shown = "the default one; each routing key is the name of a queue"
    yield Finding("exchange", OK, repr(name) if name else shown)


def _missing(error: pika.exceptions.ChannelClosed) -> Finding:
    text = amqp.explain(error)
    return Finding("exchange", PROBLEM, text, advice_for(text))


def _publishing(connection: Any, place: Place) -> Iterator[Finding]:
    """Check that the user may publish, with a message in a transaction that is rolled back."""
    name, key = place.target.exchange, place.fixed_key
    if key is None:
        key = raw(place.target.routing_keys[0])
    channel = connection.channel()
    try:
        channel.tx_select()
        channel.basic_publish(name, key, b"")
        channel.tx_rollback()
    except pika.exceptions.ChannelClosed as error:
        yield _not_published(error, place.target.user, template=place.template)
    else:
        yield Finding("publishing", OK, f"{place.target.user} may publish")


def _not_published(error: pika.exceptions.ChannelClosed, user: str, *, template: bool) -> Finding:
    """Return the finding about a message that the broker does not take. `template`: its routing
    key depends on the event."""
    text = amqp.explain(error)
    if error.reply_code == spec.NOT_FOUND:
        return _missing(error)
    if error.reply_code != spec.ACCESS_REFUSED:
        return Finding("publishing", PROBLEM, text, "see the broker's log")
    if "topic '" not in text:
        advice = f"`rabbitmqctl set_permissions` has to let {user} write to it"
        return Finding("publishing", PROBLEM, text, advice)
    advice = f"`rabbitmqctl set_topic_permissions` has to let {user} write to "
    if template:
        text = f"whether {user} may publish depends on the routing key of each event"
        return Finding("publishing", WARNING, text, advice + "the topics of all events")
    return Finding("publishing", PROBLEM, text, advice + "this topic")


# ---- whether a queue gets the messages ---------------------------------------------------


def _queue(connection: Any, place: Place, *, publish: bool) -> Iterator[Finding]:
    """Say whether the messages reach a queue. Without a message, nobody can know."""
    if publish and place.fixed_key is not None:
        for key in place.target.routing_keys:
            routing_key = raw(key) if len(place.target.routing_keys) > 1 else place.fixed_key
            yield _published(connection, place, routing_key)
    elif publish:
        text = f"the routing key is the template {place.target.routing_keys[0]!r}, and each event "
        text += "has its own"
        yield Finding("queue", UNKNOWN, text, "give one of these with --routing-key")
    elif place.reached:
        text = f"{counted(place.reached, 'message', ',')} so far, and none was returned: a queue "
        text += "is reached"
        yield Finding("queue", OK, text)
    else:
        text = "whether a queue gets the messages cannot be known without one"
        advice = "--publish sends a marked message, and says whether a queue took it"
        yield Finding("queue", UNKNOWN, text, advice)


def _published(connection: Any, place: Place, routing_key: bytes) -> Finding:
    """Publish a marked message as the module would, and wait for the broker's answer."""
    config = replace(place.config, exchange=place.target.exchange, mandatory=True)
    identity = f"doctor-{uuid.uuid4().hex[:16]}"
    event = Event(identity, int(time.time() * 1000), 0, "", EVENT, KEY)
    arguments = Arguments(config, Format(config, "doctor")).of(event)
    arguments["routing_key"] = routing_key
    properties = arguments["properties"]
    properties.headers = {**(properties.headers or {}), HEADER: True}
    where = f"exchange {place.target.exchange!r}, routing key "
    where += repr(routing_key.decode("utf-8", "replace"))
    try:
        channel = connection.channel()
        channel.confirm_delivery()
        channel.basic_publish(**arguments)
    except pika.exceptions.UnroutableError:
        text = f"no queue took the marked message ({where})"
        return Finding("queue", PROBLEM, text, BIND)
    except pika.exceptions.NackError:
        text = f"a queue has refused the marked message ({where})"
        advice = "a queue with reject-publish is full, or has no leader: see the broker's log"
        return Finding("queue", PROBLEM, text, advice)
    except pika.exceptions.AMQPConnectionError as error:
        text = f"the marked message got no confirm: {amqp.explain(error)} ({where})"
        advice = (
            "is one of the queues a quorum queue without its majority, or is the broker blocked?"
        )
        return Finding("queue", PROBLEM, text, advice)
    return Finding("queue", OK, f"a queue took the marked message {identity} ({where})")
