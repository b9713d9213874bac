"""`keyspace-amqp declare`: the exchange, a durable queue and its bindings, for the module's
messages.

Whatever is there already is compared and never changed. RabbitMQ compares when a client declares
something that exists, and closes the channel with the first difference in its text. `--dry-run`
declares only what it has just found to exist.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pika
from pika import spec

from . import ToolError, amqp, nodes

# The name of the queue if the routing key cannot be its name.
QUEUE = "redis_keyspace_events"
# The argument for the kind of a queue.
TYPE = "x-queue-type"
# Seconds for all answers of the broker: a cluster may take long to agree on a new queue.
_TIMEOUT = 30.0
# Exchanges that every broker has, and their types.
PREDEFINED = {
    "amq.direct": "direct",
    "amq.topic": "topic",
    "amq.fanout": "fanout",
    "amq.headers": "headers",
    "amq.match": "headers",
}
# RabbitMQ's text about something that differs, and its forms of a value.
_DIFFERS = re.compile(r"inequivalent arg '([^']+)' for .*: received .+ but current is (.+)$")
_VALUE = re.compile(r"(?:the value )?'(.*?)'(?: of type '.*')?$", re.DOTALL)
# Properties of a queue or an exchange that are no arguments.
_PROPERTIES = ("type", "durable", "auto_delete", "internal", "exclusive")
# A brace that is written twice, or a field of a routing key.
_FIELD = re.compile(r"(\{\{|\}\})|\{[^{}]+\}")
# Arguments that bound a stream.
_STREAM_LIMITS = ("x-max-age", "x-max-length-bytes")


class _Missing(ToolError):
    """The broker does not have it."""


class _Differs(Exception):
    """Something exists and differs: `name` is `present` (empty: not set), not as asked for."""

    def __init__(self, name: str, present: str) -> None:
        super().__init__(name, present)
        self.name = name
        self.present = present


class Broker:
    """Declares on the broker, or says what it would declare. `say` gets each line for people.

    Most likely failure: the user may publish and not declare. All methods then raise ToolError.
    """

    def __init__(
        self, connection: Any, user: str, *, dry: bool, say: Callable[[str], object]
    ) -> None:
        self._connection = connection
        self._user = user
        self._dry = dry
        self._say = say

    def exchange(self, name: str, wanted: str | None, usual: str) -> str:
        """Declare the exchange unless it is there, and return its type. `wanted`: the type that
        it has to have; without one, any is taken, and a new exchange gets the type `usual`."""
        if name == "" or name in PREDEFINED:
            kind = PREDEFINED.get(name, "direct")
            if wanted not in (None, kind):
                raise ToolError(f"the exchange {name!r} is of the type {kind} in every broker")
            self._say(f"exchange  {f'{name!r} ({kind})' if name else 'the default one'}: is there")
            return kind
        what = f"the exchange {name!r}"
        there = self._exists(what, lambda channel: channel.exchange_declare(name, passive=True))
        kind = wanted or usual
        if there or not self._dry:
            kind = self._declare_exchange(what, name, kind, any_type=wanted is None)
        self._say(f"exchange  {name!r} ({kind}): {self._word(there, 'declared')}")
        return kind

    def _declare_exchange(self, what: str, name: str, kind: str, *, any_type: bool) -> str:
        """Return the type that the exchange has. Raises ToolError."""
        try:
            self._ask(what, lambda channel: channel.exchange_declare(name, kind, durable=True))
        except _Differs as differs:
            if differs.name == "type" and any_type:
                return self._declare_exchange(what, name, differs.present, any_type=False)
            if differs.name in _PROPERTIES:
                advice = "delete it, or have the module publish to another exchange"
                if differs.name == "type":
                    advice = f"give --exchange-type {differs.present}"
                raise _differing(what, differs, advice) from None
            # It has arguments of its own, such as an alternate exchange, which do no harm.
        return kind

    def queue(self, name: str, arguments: Mapping[str, Any]) -> None:
        """Declare the queue unless it is there."""
        what = f"the queue {name!r}"
        there = self._exists(what, lambda channel: channel.queue_declare(name, passive=True))
        if there or not self._dry:
            try:
                self._ask(
                    what,
                    lambda channel: channel.queue_declare(name, durable=True, arguments=arguments),
                )
            except _Differs as differs:
                raise _differing(what, differs, _advice(differs)) from None
        about = [arguments[TYPE], "durable"]
        about += [f"{key} {value}" for key, value in arguments.items() if key != TYPE]
        self._say(f"queue     {name!r} ({', '.join(about)}): {self._word(there, 'declared')}")

    def bind(self, queue: str, exchange: str, key: str) -> None:
        """Bind the queue; a binding that is there stays as it is."""
        if not self._dry:
            what = f"the binding of the queue {queue!r} to the exchange {exchange!r}"
            self._ask(what, lambda channel: channel.queue_bind(queue, exchange, key))
        self._say(f"binding   {exchange!r} to {queue!r} with {key!r}: {self._word(False, 'bound')}")

    def _word(self, there: bool, done: str) -> str:
        if there:
            return "is there"
        return f"would be {done}" if self._dry else done

    def _exists(self, what: str, look: Callable[[Any], object]) -> bool:
        """True if a passive declaration finds it. Raises ToolError."""
        try:
            self._ask(what, look)
        except _Missing:
            return False
        return True

    def _ask(self, what: str, step: Callable[[Any], object]) -> None:
        """Carry out a step on a channel of its own. Raises _Differs, ToolError."""
        channel = self._connection.channel()
        try:
            step(channel)
        except pika.exceptions.ChannelClosed as error:
            if found := _DIFFERS.search(error.reply_text):
                raise _Differs(found[1], _value(found[1], found[2])) from None
            text = f"{what}: {amqp.explain(error)}"
            if error.reply_code == spec.NOT_FOUND:
                raise _Missing(text) from None
            if error.reply_code == spec.ACCESS_REFUSED:
                text += f". This user is {self._user}; --amqp names another one"
            raise ToolError(text) from None
        channel.close()


def _value(name: str, text: str) -> str:
    """Return the value of an argument out of RabbitMQ's text, for people; empty if it has none.
    A classic queue may have no type on RabbitMQ 3."""
    if text == "none":
        return "classic" if name == TYPE else ""
    found = _VALUE.match(text)
    return found[1] if found else text


def _differing(what: str, differs: _Differs, advice: str) -> ToolError:
    present = differs.present or "not set"
    return ToolError(
        f"{what} exists already and differs: its {differs.name} is {present}; {advice}"
    )


def _advice(differs: _Differs) -> str:
    """Return what to do about a queue that differs."""
    if differs.name == TYPE:
        return f"give --queue-type {differs.present}, or another --queue"
    if differs.name in _PROPERTIES:
        return "delete it, or give another --queue"
    if not differs.present:
        return f"leave out --argument {differs.name}, or give another --queue"
    return f"give --argument {differs.name}={differs.present}, or another --queue"


# ---- routing keys ----------------------------------------------------------------------


def fixed(template: str) -> str | None:
    """Return the routing key of all events; None if it depends on the event."""
    if any(match[1] is None for match in _FIELD.finditer(template)):
        return None
    return _FIELD.sub(lambda match: match[0][0], template)


def pattern(template: str) -> str:
    """Return the binding key of a topic exchange for a routing key that depends on the event: the
    words before the first field, and `#` for all others."""
    first = next(match for match in _FIELD.finditer(template) if match[1] is None)
    before = _FIELD.sub(lambda match: match[0][0], template[: first.start()])
    return f"{before.rpartition('.')[0]}.#".removeprefix(".")


def bindings(exchange: str, kind: str, given: Sequence[str] | None, module: str) -> Sequence[str]:
    """Return the binding keys. `given`: those of the options, if any; `module`: the module's
    routing key. Raises ToolError."""
    if given is not None:
        return given
    if (key := fixed(module)) is not None and kind in ("direct", "topic"):
        return [key]
    if kind == "topic":
        return [pattern(module)]
    if kind in ("fanout", "headers"):
        return [""]  # a fanout exchange ignores it; a binding without headers takes all messages
    raise ToolError(
        f"the exchange {exchange!r} is of the type {kind}, and the routing key is {module!r}: give "
        "--routing-key for each binding, or have the module publish to a topic exchange"
    )


def queue_name(exchange: str, given: str | None, module: str) -> str:
    """Return the name of the queue. Raises ToolError if the exchange, which is the default one,
    does not reach it."""
    key = fixed(module)
    if exchange:
        return given or (key if key and not key.startswith("amq.") else QUEUE)
    if key is None:
        raise ToolError(
            "the exchange is the default one (its name is empty), which sends a message to the "
            f"queue that has the routing key as its name, and that depends on the event: {module}"
        )
    if given not in (None, key):
        raise ToolError(
            "the exchange is the default one (its name is empty), which sends messages to the "
            f"queue {key!r} only: leave out --queue, or have the module publish to another exchange"
        )
    return key


# ---- the command -------------------------------------------------------------------------


def run(options: argparse.Namespace) -> int:
    """Declare everything, and print it. Raises ToolError."""
    config = None
    if None in (options.amqp, options.exchange, options.routing_key):
        with contextlib.closing(nodes.connect(options)) as client:
            config = amqp.module_config(client)
    target = amqp.target(options, config)
    # A binding key may have wildcards, so it does not say what the module's routing key is.
    template = config["routing-key"] if config else QUEUE
    queue = queue_name(target.exchange, options.queue, template)
    arguments = {TYPE: options.queue_type, **dict(options.argument or ())}
    many = fixed(template) is None or any(map(_has_wildcard, options.routing_key or ()))
    connection = target.connect()
    try:
        amqp.end_after(connection, _TIMEOUT)
        print(f"broker    {target.shown} ({amqp.product(connection)})")
        broker = Broker(connection, target.user, dry=options.dry_run, say=print)
        usual = "topic" if many else "direct"
        kind = broker.exchange(target.exchange, options.exchange_type, usual)
        keys = bindings(target.exchange, kind, options.routing_key, template)
        broker.queue(queue, arguments)
        for key in keys if target.exchange else ():
            broker.bind(queue, target.exchange, key)
    except pika.exceptions.AMQPError as error:
        raise ToolError(f"{target.shown}: {amqp.explain(error)}") from None
    finally:
        amqp.close(connection)
    for line in _notes(arguments, config or {}):
        print(f"note      {line}")
    return 0


def _has_wildcard(key: str) -> bool:
    return not {"#", "*"}.isdisjoint(key.split("."))


def _notes(arguments: Mapping[str, Any], config: Mapping[str, str]) -> Iterator[str]:
    """Yield what may surprise the user later."""
    kind = arguments[TYPE]
    if kind == "stream" and not any(limit in arguments for limit in _STREAM_LIMITS):
        yield (
            "a stream keeps all messages, unless a policy limits it, or --argument x-max-age=7D or "
            "x-max-length-bytes=20000000000"
        )
    if kind == "classic" and config.get("delivery-mode") == "1":
        yield (
            "delivery-mode is 1: the queue stays when the broker restarts, and its messages do "
            "not. Set keyspaceamqp.delivery-mode to 2"
        )
