"""`keyspace-amqp tail`: events as they arrive at the broker."""

from __future__ import annotations

import argparse
import base64
import collections
import contextlib
import dataclasses
import io
import json
import re
import sys
import time
from collections.abc import Iterator
from typing import Any

import pika

from ..message import named
from . import ToolError, amqp

# Messages that the broker keeps while this tool does not print, say after Ctrl-S: a queue that
# is not read must not fill the broker's memory.
QUEUE_LENGTH = 100_000
# Message ids that are remembered, to recognise repeated messages.
_SEEN = 100_000
# Seconds between attempts to reach a broker after its connection was lost.
_RETRY = 1.0
# Bytes that are printed of a body that is no event of the module.
_BODY = 1000
_TEMPLATE = re.compile(r"\{(db|event|class|key|node)[:}]")
_ROW = "{:12}  {:>2}  {:<12} {:<32}  {:<22} {}"


@dataclasses.dataclass(frozen=True)
class Message:
    """A message that has arrived.

    `event`: db, event, key and more from the body; empty if the body is no event of the
    module. `repeated`: a message with the same id has arrived before. `id` is bytes where it
    is not UTF-8, as pika gives it. Most likely failure: the message is another program's, so
    no field can be relied on.
    """

    id: str | bytes
    event: dict[str, Any]
    body: bytes
    method: Any
    properties: Any
    repeated: bool

    def row(self) -> str:
        """Return a line for people."""
        event, time_ms = self.event, self.event.get("time_ms")
        if isinstance(time_ms, int):
            when = f"{_clock(time_ms // 1000)}.{time_ms % 1000:03}"
        else:
            when = _clock(self.properties.timestamp or time.time())
        if event:
            key = base64.b64decode(event["key_base64"]) if "key_base64" in event else event["key"]
            cells = [event.get("db", ""), event["event"], key]
        else:
            cells = ["", "(no event)", self.body[:_BODY]]
        flags = ["repeated"] * self.repeated + ["redelivered"] * self.method.redelivered
        return _ROW.format(when, *map(_escaped, [*cells, self.id]), " ".join(flags)).rstrip()

    def as_json(self) -> str:
        """Return a line for programs: the event, and the properties of its message."""
        event = self.event or named("body", self.body)
        about = {
            "message_id": self.id,
            "timestamp": self.properties.timestamp,
            "content_type": self.properties.content_type,
            "exchange": self.method.exchange,
            "routing_key": self.method.routing_key,
            "repeated": self.repeated,
            "redelivered": self.method.redelivered,
        }
        return json.dumps({**event, **about}, default=_escaped)


def read_event(body: bytes, content_type: object) -> dict[str, Any]:
    """Return the event in a message's body, which is a text of three lines, a JSON object, or a
    CloudEvent with such an object; empty if there is none."""
    kind = str(content_type).partition(";")[0].strip()
    # Another program's message may have any of these errors in it.
    with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
        if kind in ("text/plain", "application/octet-stream"):
            db, event, key = body.split(b"\n", 2)
            return {"db": int(db), "event": event.decode(), **named("key", key)}
        if kind in ("application/json", "application/cloudevents+json"):
            data: dict[str, Any] = json.loads(body)
            if kind != "application/json":
                data = data["data"]
            base64.b64decode(data.get("key_base64", ""), validate=True)
            if "event" in data and ("key" in data or "key_base64" in data):
                return data
    return {}


def _escaped(value: object) -> str:
    """Return text that a terminal can show, with escapes for what it cannot."""
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    with contextlib.suppress(UnicodeDecodeError):
        text = raw.decode()
        if text.isprintable() and "\\" not in text:
            return text
    return repr(raw)[2:-1]


def _clock(seconds: float) -> str:
    """Return the time of day; a question mark if there is none."""
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # a message may have any number as its time
        return "?"


def _say(text: str) -> None:
    """Print on standard error: standard output is for the messages."""
    print(f"{_clock(time.time())}  {text}", file=sys.stderr, flush=True)


class Tail:
    """Prints messages until the number in --count has come, or for ever, also through outages of
    the broker.

    Most likely failure: the broker goes away. The first connection has to succeed; after it,
    a lost connection is tried again each second.
    """

    def __init__(self, options: argparse.Namespace, target: amqp.Target) -> None:
        self._options = options
        self._target = target
        self._remaining: int | None = options.count
        self._seen: collections.OrderedDict[str, None] = collections.OrderedDict()

    def run(self) -> None:
        """Print the messages. Raises ToolError if the first connection fails."""
        connection, messages = self._open()
        keys = " ".join(map(repr, self._target.routing_keys))
        _say(f"{self._target.shown} exchange {self._target.exchange!r} routing key {keys}")
        while True:
            problem = "the broker has deleted the queue"
            try:
                for method, properties, body in messages:
                    self._print(method, properties, body)
                    if self._remaining == 0:
                        return
            except pika.exceptions.AMQPError as error:
                problem = amqp.explain(error)
            finally:
                amqp.close(connection)
            connection, messages = self._open_again(problem)

    def _open(self) -> tuple[Any, Iterator[Any]]:
        """Return a connection, and the messages of a queue that ends with the connection. Raises
        ToolError."""
        connection = self._target.connect()
        try:
            channel = connection.channel()
            length = {"x-max-length": QUEUE_LENGTH}
            declared = channel.queue_declare("", exclusive=True, auto_delete=True, arguments=length)
            queue = declared.method.queue
            for key in self._target.routing_keys:
                channel.queue_bind(queue, self._target.exchange, key)
            # Without acknowledgements: TCP holds back what this tool has not read yet.
            return connection, channel.consume(queue, auto_ack=True, exclusive=True)
        except pika.exceptions.AMQPError as error:
            amqp.close(connection)
            raise ToolError(f"{self._target.shown}: {amqp.explain(error)}") from None

    def _open_again(self, problem: str) -> tuple[Any, Iterator[Any]]:
        """Return a new connection and its messages, when there is one. Print each change of
        the problem."""
        _say(f"the connection is lost: {problem}. What arrives from now on is missed")
        since = time.monotonic()
        while True:
            time.sleep(_RETRY)
            try:
                opened = self._open()
            except ToolError as error:
                if str(error) != problem:
                    problem = str(error)
                    _say(problem)
            else:
                away = time.monotonic() - since
                _say(f"connected again. What arrived in these {away:.0f} s was missed")
                return opened

    def _print(self, method: Any, properties: Any, body: bytes) -> None:
        """Print a message as the options say, and count it."""
        headers = properties.headers or {}
        identity = properties.message_id or str(headers.get("cloudEvents:id", ""))
        repeated = identity in self._seen
        if identity:
            self._seen[identity] = None
            if len(self._seen) > _SEEN:
                self._seen.popitem(last=False)
        event = read_event(body, properties.content_type)
        message = Message(identity, event, body, method, properties, repeated)
        if self._options.body:
            sys.stdout.buffer.write(body + b"\n")
        else:
            print(message.as_json() if self._options.json else message.row())
        sys.stdout.flush()
        if self._remaining is not None:
            self._remaining -= 1


def run(options: argparse.Namespace) -> int:
    """Print the messages. Raises ToolError."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may have fewer characters
        sys.stdout.reconfigure(errors="backslashreplace")
    target = amqp.target(options)
    if target.exchange == "":
        raise ToolError(
            "the exchange is the default one (its name is empty), to which nothing can be bound. "
            "Its messages go to the queue that has the routing key as its name, "
            f"{target.routing_keys[0]!r}"
        )
    if options.routing_key is None and _TEMPLATE.search(target.routing_keys[0]):
        _say(
            f"the routing key is a template, {target.routing_keys[0]}, so the queue is bound with "
            "'#', which fits topic exchanges. For other exchanges give --routing-key"
        )
        target = dataclasses.replace(target, routing_keys=("#",))
    Tail(options, target).run()
    return 0
