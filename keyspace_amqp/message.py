"""An event and its message: body, properties, headers and routing key.

Pure; any thread.
"""

from __future__ import annotations

import binascii
import functools
import json
import re
import struct
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from .config import Config, raw
from .tables.events import EVENT_CLASSES, SNAPSHOT
from .tables.parameters import SHORT_STRING
from .values import mutable

_CLASS_NAMES = {event_class.letter: event_class.name for event_class in (*EVENT_CLASSES, SNAPSHOT)}
# The approximate memory of an event in bytes, without its key and its name.
EVENT_BYTES = 256
# The longest key, in bytes, that becomes the header `subject`: all headers of a message
# have to fit into one frame, which RabbitMQ limits to 128 KiB.
_SUBJECT_BYTES = 1024
# Bytes that appear as %XX in a routing key: those with a meaning for topic exchanges, and
# those that are not printable ASCII.
_ESCAPED = re.compile(rb"[^!-~]|[.*#%]")
# The bytes with which a character of several bytes begins in UTF-8.
_FIRST_BYTES = range(0xC2, 0xF5)
_LENGTH = struct.Struct("=I")  # as in a record
_FIELD = re.compile(r"\{\{|\}\}|\{([a-z]+)(?::([0-9]+|\*))?\}")


@mutable
class Value:
    """The value of an event's key.

    `type`: as the command TYPE names it. `length`: bytes of a string, elements of other
    types. `data`: the first bytes of a string, None for other types. `before`: True if
    this is the value that an expiry, an eviction or a deletion has removed.
    """

    __slots__ = ("before", "data", "length", "type")

    type: str
    length: int
    data: bytes | None
    before: bool


@mutable
class Subkeys:
    """The parts of its key that an event is about: the fields of a hash.

    `listed`: the first of them, in the server's order; one may come twice. Each has its length
    before it, as in the record of the event: as objects, they would take many times the memory.
    `total`: the number of all.
    """

    __slots__ = ("listed", "total")

    listed: bytes
    total: int

    @classmethod
    def of(cls, names: Sequence[bytes], total: int) -> Subkeys:
        """Return the subkeys with these names."""
        return cls(b"".join([_LENGTH.pack(len(name)) + name for name in names]), total)

    @property
    def names(self) -> list[bytes]:
        """The names of those that are listed."""
        names = []
        at = 0
        while at < len(self.listed):
            (length,) = _LENGTH.unpack_from(self.listed, at)
            at += _LENGTH.size + length
            names.append(self.listed[at - length : at])
        return names


@mutable
class Event:
    """A keyspace event with the identity that it keeps through all retries.

    `message_id`: unique over nodes and restarts. `time_ms`: Unix time in milliseconds.
    `letter`: the event's class as in `notify-keyspace-events`.
    """

    __slots__ = ("db", "key", "letter", "message_id", "name", "subkeys", "time_ms", "value")

    message_id: str
    time_ms: int
    db: int
    letter: str
    name: bytes
    key: bytes
    value: Value | None
    subkeys: Subkeys | None

    def __init__(
        self,
        message_id: str,
        time_ms: int,
        db: int,
        letter: str,
        name: bytes,
        key: bytes,
        value: Value | None = None,
        subkeys: Subkeys | None = None,
    ) -> None:
        self.message_id = message_id
        self.time_ms = time_ms
        self.db = db
        self.letter = letter
        self.name = name
        self.key = key
        self.value = value
        self.subkeys = subkeys

    @property
    def more_bytes(self) -> int:
        """The approximate memory of its value and its subkeys in bytes."""
        size = 0
        if self.value is not None and self.value.data is not None:
            size = len(self.value.data)
        if self.subkeys is not None:
            size += len(self.subkeys.listed)
        return size


class Content(NamedTuple):
    """The properties `content_type` and `content_encoding`; None: the message has none."""

    type: str
    encoding: str | None = None


_CONTENTS = {
    "text": Content("text/plain"),
    "json": Content("application/json"),
    "cloudevents": Content("application/json"),
    "cloudevents-structured": Content("application/cloudevents+json"),
}
# A body that is not UTF-8. Consumers decode text by themselves, and some end over bytes that are no
# text. kombu leaves a body alone if its encoding is `binary`. Spring AMQP does so if its type is no
# text, and it takes the encoding of a text as the name of a charset, which `binary` is not.
_BINARY = Content("application/octet-stream", "binary")


class Format:
    """Makes messages of events as the parameters say; `node` is this server's name.

    `fixed_key`: the routing key of all messages, None if it depends on the event.
    `body`: makes an event's body. `content`: the content of a body that is UTF-8. `headers`:
    makes an event's headers, None if messages have none. `cut`: the number of routing keys that
    were too long.
    """

    def __init__(self, config: Config, node: str) -> None:
        self.cut = 0
        self._node = node
        self._config = config
        self.content = _CONTENTS[config.format]
        self.body: Callable[[Event], bytes] = self._json
        if config.format == "text":
            self.body = body
        elif config.format == "cloudevents-structured":
            self.body = self._structured
        parts = _parse_template(config.routing_key)
        texts = [part for part in parts if isinstance(part, bytes)]
        self.fixed_key = b"".join(texts) if len(texts) == len(parts) else None
        self._parts = [part if isinstance(part, bytes) else _field(*part) for part in parts]
        self.headers: Callable[[Event], dict[str, Any]] | None = None
        if config.headers or config.deduplication_header or config.format == "cloudevents":
            self.headers = self._headers

    @property
    def is_plain(self) -> bool:
        """True if all messages have the same form: text, a fixed routing key, and no headers."""
        return self.body is body and self.fixed_key is not None and self.headers is None

    def content_of(self, body: bytes) -> Content:
        """Return the content of a body that this format has made."""
        return self.content if body.isascii() or _decoded(body) is not None else _BINARY

    def routing_key(self, event: Event) -> bytes:
        """Return the event's routing key: at most SHORT_STRING bytes.

        A longer one is cut, and ends with `~` and a hash of the whole.
        """
        node = self._node
        key = b"".join(
            [part if isinstance(part, bytes) else part(event, node) for part in self._parts]
        )
        if len(key) <= SHORT_STRING:
            return key
        import hashlib  # see worker/imports.py

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
            prefix = self._config.cloudevents_prefix
            headers |= {f"{prefix}{name}": value for name, value in self._cloudevent(event).items()}
            if prefix == "ce-":
                # A consumer that has nothing but headers, such as Knative's, reads it there.
                headers["ce-datacontenttype"] = self.content.type
        return headers

    def _cloudevent(self, event: Event) -> dict[str, str]:
        """Return the attributes of a CloudEvent, except for the type of its data."""
        import datetime  # see worker/imports.py
        import urllib.parse

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
            pass  # no date: anybody can push an element with any time to the list
        return attributes

    def _structured(self, event: Event) -> bytes:
        """Return the body of a CloudEvent in structured mode (JSON event format)."""
        whole: dict[str, Any] = {**self._cloudevent(event)}
        whole |= {"datacontenttype": "application/json", "data": self._data(event)}
        return _dumped(whole)

    def _json(self, event: Event) -> bytes:
        return _dumped(self._data(event))

    def _data(self, event: Event) -> dict[str, Any]:
        """Return the event as an object of JSON."""
        item: dict[str, Any] = {
            "db": event.db,
            "event": _text(event.name),
            "class": class_name(event),
            **named("key", event.key),
            "time_ms": event.time_ms,
            "node": self._node,
            "id": event.message_id,
        }
        if event.subkeys is not None:
            names, total = event.subkeys.names, event.subkeys.total
            item["subkeys"] = {**_named("names", names), "total": total, "cut": len(names) < total}
        value = event.value
        if value is not None:
            shown: dict[str, Any] = {"type": value.type, "length": value.length}
            if value.data is not None:
                cut = len(value.data) < value.length
                shown |= named("data", _whole_characters(value.data) if cut else value.data)
                shown["cut"] = cut
            shown["before"] = value.before
            item["value"] = shown
        return item


def _dumped(item: dict[str, Any]) -> bytes:
    return json.dumps(item, ensure_ascii=False, separators=(",", ":")).encode()


def class_name(event: Event) -> str:
    """Return the name of the event's class."""
    return _CLASS_NAMES.get(event.letter, "unknown")


def _text(name: bytes) -> str:
    """Return an event's name as text: ASCII, but modules may choose any bytes."""
    return name.decode("utf-8", "backslashreplace")


def _decoded(data: bytes) -> str | None:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _base64(data: bytes) -> str:
    return binascii.b2a_base64(data, newline=False).decode()


def named(name: str, data: bytes) -> dict[str, str]:
    """Return bytes as a field of JSON: text, or `<name>_base64` if they are not UTF-8."""
    text = _decoded(data)
    if text is not None:
        return {name: text}
    return {f"{name}_base64": _base64(data)}


def _named(name: str, texts: Sequence[bytes]) -> dict[str, list[str]]:
    """Return the member `name` for several texts: all as text, or all in base64."""
    decoded = [_decoded(text) for text in texts]
    found = [text for text in decoded if text is not None]
    if len(found) == len(texts):
        return {name: found}
    return {f"{name}_base64": [_base64(text) for text in texts]}


def _whole_characters(data: bytes) -> bytes:
    """Return text that was cut at some byte, without the part of a character at its end.

    Bytes that are not UTF-8 are returned as they are.
    """
    try:
        data.decode()
    except UnicodeDecodeError as error:
        # The invalid bytes begin like a character that the end of the data cuts off.
        if error.end == len(data) and data[error.start] in _FIRST_BYTES:
            return data[: error.start]
    return data


# ---- the routing key ---------------------------------------------------------------


def _parse_template(template: str) -> list[bytes | tuple[str, str]]:
    """Split a checked template into texts and fields: (name, what follows its colon)."""
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


# Events have few different names.
_escaped_name = functools.lru_cache(1024)(_escape)
_FIELDS: dict[str, Callable[[Event, str], bytes]] = {
    "db": lambda event, node: b"%d" % event.db,
    "event": lambda event, node: _escaped_name(event.name),
    "class": lambda event, node: class_name(event).encode(),
    "node": lambda event, node: _escaped_name(raw(node)),
}


def _field(name: str, part: str) -> Callable[[Event, str], bytes]:
    """Return the function that makes a field of an event and the node's name."""
    return _key_field(part) if name == "key" else _FIELDS[name]


# ---- the body in the format `text` ------------------------------------------------------


def body(event: Event) -> bytes:
    """Return the body in the format `text`: db, event and key, separated by newlines.

    The key comes last and may have any bytes: a reader splits at the first two newlines.
    """
    return b"%d\n%b\n%b" % (event.db, event.name, event.key)
