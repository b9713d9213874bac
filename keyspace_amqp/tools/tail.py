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

# Events that the broker keeps while they are not printed, say after Ctrl-S: a queue that
# nobody reads must not fill the broker's memory.
QUEUE_LENGTH = 100_000
# Message ids that are known as seen.
_SEEN = 100_000
# Seconds between attempts to reach a broker that has gone.
_AGAIN = 1.0
# Of a body that is no event of ours, as much as a person wants to see.
_BODY = 1000
_TEMPLATE = re.compile(r"\{(db|event|class|key|node)[:}]")
_ROW = "{:12}  {:>2}  {:<12} {:<32}  {:<22} {}"


@dataclasses.dataclass(frozen=True)
class Message:
    """What has arrived; `event` is what the body says of db, event, key and more, or
    nothing if it is no event of ours. pika gives names that are not UTF-8 as bytes."""

    id: str | bytes
    event: dict[str, Any]
    body: bytes
    method: Any
    properties: Any
    repeated: bool

    def row(self) -> str:
        """A line for people."""
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
        """A line for programs: what the event says, and how it came."""
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
    """The event in a message's body: a text of three lines, or an object of JSON."""
    kind = str(content_type).partition(";")[0].strip()
    with contextlib.suppress(
        ValueError, TypeError, AttributeError, RecursionError
    ):  # somebody else's
        if kind == "text/plain":
            db, event, key = body.split(b"\n", 2)
            return {"db": int(db), "event": event.decode(), **named("key", key)}
        if kind == "application/json":
            data: dict[str, Any] = json.loads(body)
            base64.b64decode(data.get("key_base64", ""), validate=True)
            if "event" in data and ("key" in data or "key_base64" in data):
                return data
    return {}


def _escaped(value: object) -> str:
    """Text that a terminal can show; backslashes stand for what it cannot."""
    raw = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogatepass")
    with contextlib.suppress(UnicodeDecodeError):
        text = raw.decode()
        if text.isprintable() and "\\" not in text:
            return text
    return repr(raw)[2:-1]


def _clock(seconds: float) -> str:
    try:
        return time.strftime("%H:%M:%S", time.localtime(seconds))
    except (ValueError, OverflowError, OSError):  # whatever a message says
        return "?"


def _say(text: str) -> None:
    print(f"{_clock(time.time())}  {text}", file=sys.stderr, flush=True)


class Tail:
    """Reads until so many messages have come, or for ever; across outages of the broker."""

    def __init__(self, options: argparse.Namespace, target: amqp.Target) -> None:
        self._options = options
        self._target = target
        self._left = options.count
        self._seen: collections.OrderedDict[str, None] = collections.OrderedDict()

    def run(self) -> None:
        """Raises ToolError if the first connection fails; others are tried again."""
        connection, messages = self._open()
        keys = " ".join(map(repr, self._target.routing_keys))
        _say(f"{self._target.shown} exchange {self._target.exchange!r} routing key {keys}")
        while True:
            problem = "the broker has deleted the queue"
            try:
                for method, properties, body in messages:
                    self._print(method, properties, body)
                    if self._left == 0:
                        return
            except pika.exceptions.AMQPError as error:
                problem = amqp.explain(error)
            finally:
                amqp.close(connection)
            connection, messages = self._open_again(problem)

    def _open(self) -> tuple[Any, Iterator[Any]]:
        """A connection, and the messages of a queue that ends with it."""
        connection = self._target.connect()
        try:
            channel = connection.channel()
            length = {"x-max-length": QUEUE_LENGTH}
            declared = channel.queue_declare("", exclusive=True, auto_delete=True, arguments=length)
            queue = declared.method.queue
            for key in self._target.routing_keys:
                channel.queue_bind(queue, self._target.exchange, key)
            # Not acknowledged: what is not read yet is held back by TCP.
            return connection, channel.consume(queue, auto_ack=True, exclusive=True)
        except pika.exceptions.AMQPError as error:
            amqp.close(connection)
            raise ToolError(f"{self._target.shown}: {amqp.explain(error)}") from None

    def _open_again(self, problem: str) -> tuple[Any, Iterator[Any]]:
        _say(f"the connection is lost: {problem}. What comes from now on is missed")
        since = time.monotonic()
        while True:
            time.sleep(_AGAIN)
            try:
                opened = self._open()
            except ToolError as error:
                if str(error) != problem:
                    problem = str(error)
                    _say(problem)
            else:
                away = time.monotonic() - since
                _say(f"connected again. What came in these {away:.0f} s was missed")
                return opened

    def _print(self, method: Any, properties: Any, body: bytes) -> None:
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
        if self._left is not None:
            self._left -= 1


def run(options: argparse.Namespace) -> int:
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may know fewer characters
        sys.stdout.reconfigure(errors="backslashreplace")
    target = amqp.target(options)
    if target.exchange == "":
        raise ToolError(
            "the exchange is the default one (its name is empty), to which nothing can be bound: "
            f"its messages go to the queue with the routing key's name, {target.routing_keys[0]!r}"
        )
    if options.routing_key is None and _TEMPLATE.search(target.routing_keys[0]):
        _say(
            f"the routing key is a template, {target.routing_keys[0]}: bound with '#', for topic "
            "exchanges. Give --routing-key for others"
        )
        target = dataclasses.replace(target, routing_keys=("#",))
    Tail(options, target).run()
    return 0
