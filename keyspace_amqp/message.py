"""An event, and what it becomes: a message for the broker, an element of the list.

Pure; any thread.
"""

from __future__ import annotations

import base64
import dataclasses
import datetime
import functools
import hashlib
import json
import re
import urllib.parse
from collections.abc import Callable
from typing import Any

from .config import Config, raw

# CLASS_LETTERS is for those who import it from here.
from .tables.classes import CLASS_LETTERS as CLASS_LETTERS
from .tables.classes import CLASS_NAMES
from .tables.parameters import SHORT_STRING

# About how many bytes of memory an event takes, its key and its name not counted.
EVENT_BYTES = 256
# Bytes of a key that goes into a header: all headers of a message have to fit into one
# frame, which RabbitMQ bounds at 128 KiB.
_SUBJECT_BYTES = 1024
# What a routing key shows as %XX: what a topic exchange gives a meaning, and what is not
# printable ASCII.
_ESCAPED = re.compile(rb"[^!-~]|[.*#%]")
_FIELD = re.compile(r"\{\{|\}\}|\{([a-z]+)(?::([0-9]+|\*))?\}")


@dataclasses.dataclass(slots=True)
class Value:
    """What a key held, as much as was asked for.

    `type`: as TYPE calls it; `length`: bytes of a string, elements of others; `data`: the
    first bytes of a string, None for others; `before`: what an expiry, an eviction or a
    deletion has ended.
    """

    type: str
    length: int
    data: bytes | None
    before: bool


@dataclasses.dataclass(slots=True)
class Event:
    """A keyspace event with the identity that it keeps through all retries.

    `message_id` is unique over nodes and restarts; `time_ms` is Unix time in
    milliseconds; `letter` is the event's class as in notify-keyspace-events.
    """

    message_id: str
    time_ms: int
    db: int
    letter: str
    name: bytes
    key: bytes
    value: Value | None = None


class Format:
    """How events become messages, by the configuration; `node` is this server's name.

    `fixed_key`: the routing key of all messages, None if it depends on the event;
    `headers`: those of an event, None if there are none; `cut`: how many routing keys were
    too long.
    """

    def __init__(self, config: Config, node: str) -> None:
        self.cut = 0
        self._node = node
        self._config = config
        self.content_type = "text/plain" if config.format == "text" else "application/json"
        self.body: Callable[[Event], bytes] = body if config.format == "text" else self._json
        parts = _parse_template(config.routing_key)
        fixed = all(isinstance(part, bytes) for part in parts)
        self._parts = [_FIELDS[part[0]](part[1]) if not isinstance(part, bytes) else part
                       for part in parts]  # fmt: skip
        self.fixed_key = b"".join(p for p in parts if isinstance(p, bytes)) if fixed else None
        self.headers: Callable[[Event], dict[str, Any]] | None = None
        if config.headers or config.deduplication_header or config.format == "cloudevents":
            self.headers = self._headers

    def routing_key(self, event: Event) -> bytes:
        """What the template makes of the event: at most 255 bytes."""
        node = self._node
        key = b"".join(
            [part if isinstance(part, bytes) else part(event, node) for part in self._parts]
        )
        if len(key) <= SHORT_STRING:
            return key
        self.cut += 1
        mark = b"~" + hashlib.blake2b(key, digest_size=8).hexdigest().encode()
        return key[: SHORT_STRING - len(mark)] + mark

    def _headers(self, event: Event) -> dict[str, Any]:
        headers: dict[str, Any] = {}
        if self._config.headers:
            headers |= {
                "db": event.db,
                "event": _text(event.name),
                "class": class_name(event),
                "node": self._node,
            }
            _, _, number = event.message_id.rpartition("-")
            if number.isdecimal() and len(number) < 19:
                headers["sequence"] = int(number)
        if self._config.deduplication_header:
            headers["x-deduplication-header"] = event.message_id
        if self._config.format == "cloudevents":
            headers |= self._cloudevent(event)
        return headers

    def _cloudevent(self, event: Event) -> dict[str, str]:
        """Attributes as the AMQP binding of CloudEvents 1.0 (binary mode) has them."""
        attributes = {
            "specversion": "1.0",
            "id": event.message_id,
            "source": f"/redis/{urllib.parse.quote(self._node, safe=':')}/{event.db}",
            "type": f"redis.keyspace.{_text(event.name)}",
        }
        subject = _decoded(event.key) if len(event.key) <= _SUBJECT_BYTES else None
        if subject and subject.isprintable():
            attributes["subject"] = subject
        try:
            at = datetime.datetime.fromtimestamp(event.time_ms / 1000, datetime.UTC)
            attributes["time"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        except (ValueError, OverflowError, OSError):
            pass  # an element of the list may have any time
        return {f"cloudEvents:{name}": value for name, value in attributes.items()}

    def _json(self, event: Event) -> bytes:
        item: dict[str, Any] = {
            "db": event.db,
            "event": _text(event.name),
            "class": class_name(event),
            **named("key", event.key),
            "time_ms": event.time_ms,
            "node": self._node,
            "id": event.message_id,
        }
        value = event.value
        if value is not None:
            shown: dict[str, Any] = {"type": value.type, "length": value.length}
            if value.data is not None:
                cut = len(value.data) < value.length
                shown |= named("data", _whole_characters(value.data) if cut else value.data)
                shown["cut"] = cut
            shown["before"] = value.before
            item["value"] = shown
        return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()


def class_name(event: Event) -> str:
    return CLASS_NAMES.get(event.letter, "unknown")


def _text(name: bytes) -> str:
    """An event's name: ASCII, but a module may call its own as it likes."""
    return name.decode("utf-8", "backslashreplace")


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def named(name: str, data: bytes) -> dict[str, str]:
    """Bytes in JSON: as text, or in base64 under another name if they are no UTF-8."""
    text = _decoded(data)
    if text is not None:
        return {name: text}
    return {f"{name}_base64": base64.b64encode(data).decode()}


def _whole_characters(data: bytes) -> bytes:
    """Text that was cut at some byte, without the last character if only a part of that
    is there."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            return data[: error.start]
    return data


# ---- the routing key ---------------------------------------------------------------


def _parse_template(template: str) -> list[bytes | tuple[str, str]]:
    """Takes a checked template apart: texts, and (field, what follows its colon)."""
    parts: list[bytes | tuple[str, str]] = []
    at = 0
    for match in _FIELD.finditer(template):
        parts.append(raw(template[at : match.start()]))
        parts.append((match[1], match[2] or "") if match[1] else raw(match[0][:1]))
        at = match.end()
    parts.append(raw(template[at:]))
    return [part for part in parts if part]


def _escape(data: bytes) -> bytes:
    return _ESCAPED.sub(lambda match: b"%%%02X" % match[0][0], data)


def _key_field(part: str) -> Callable[[Event, str], bytes]:
    if not part:
        return lambda event, node: _escape(event.key)
    if part == "*":
        return lambda event, node: b".".join(map(_escape, event.key.split(b":")))
    number = int(part)

    def nth(event: Event, node: str) -> bytes:
        parts = event.key.split(b":", number)
        return _escape(parts[number - 1]) if len(parts) >= number else b""

    return nth


# Few names come, again and again.
_escaped_name = functools.lru_cache(1024)(_escape)
_FIELDS: dict[str, Callable[[str], Callable[[Event, str], bytes]]] = {
    "db": lambda _: lambda event, node: b"%d" % event.db,
    "event": lambda _: lambda event, node: _escaped_name(event.name),
    "class": lambda _: lambda event, node: class_name(event).encode(),
    "node": lambda _: lambda event, node: _escaped_name(raw(node)),
    "key": _key_field,
}


# ---- the form `text`, and elements of the list ----------------------------------------


def body(event: Event) -> bytes:
    r"""The body in the form `text`: db, event and key, separated by newlines.

    The key comes last and whole, whatever bytes it has: a reader splits at the
    first two newlines.
    """
    return b"%d\n%b\n%b" % (event.db, event.name, event.key)
