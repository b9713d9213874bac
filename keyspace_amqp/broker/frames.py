"""Messages as AMQP frames, many of them in one buffer.

pika marshals the three frames of a message in about 12 µs, and nearly all of that time
goes to parts that are the same in every message. Here pika marshals an example once, and a
message takes 0.5 µs: only the parts that differ are filled in.
tests/broker/test_frames.py compares every byte with pika's own.

Sans I/O; worker thread.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

import pika
import pika.data
import pika.frame
import pika.spec

from ..config import Config, raw
from ..message import Content, Event, Format

# The values of the example. The timestamp directly follows the id, so the two are found
# together.
_ID = "i"
_TIMESTAMP = 0x0102030405060708
_SIZE = 0x1112131415161718

_FRAME = struct.Struct(">BHI")
_NO_TABLE = bytes(4)

# Packs (first, body's size, second, id, timestamp, third, size of the body's frame); the
# three parts are the same in all messages of a layout.
_Pack = Callable[[bytes, int, bytes, bytes, int, bytes, int], bytes]
# The layout of messages with the same content and with ids of the same length.
_Layout = tuple[_Pack, bytes, bytes, bytes]


def _properties(config: Config) -> dict[str, object]:
    """Return the properties that are the same in all messages."""
    return {
        "delivery_mode": config.delivery_mode,
        "priority": int(config.priority) if config.priority else None,
        "expiration": config.expiration or None,
        "type": raw(config.message_type) or None,
        "app_id": raw(config.app_id) or None,
    }


class Arguments:
    """Makes the arguments of pika's `basic_publish`."""

    def __init__(self, config: Config, message_format: Format) -> None:
        self._config = config
        self._format = message_format
        self._properties = _properties(config)

    def of(self, event: Event) -> dict[str, Any]:
        """Return the arguments for the event's message."""
        headers, body = self._format.headers, self._format.body(event)
        content = self._format.content_of(body)
        properties = pika.BasicProperties(
            content_type=content.type,
            content_encoding=content.encoding,
            headers=None if headers is None else headers(event),
            message_id=event.message_id,
            timestamp=event.time_ms // 1000,
            **self._properties,
        )
        return {
            "exchange": raw(self._config.exchange),  # bytes: pika takes them as they are
            "routing_key": self._format.routing_key(event),
            "body": body,
            "properties": properties,
            "mandatory": self._config.mandatory,
        }


class Frames:
    """Makes the frames of messages for one channel.

    `body_max`: the bytes of a body that fit into one frame; a longer body takes several.
    """

    def __init__(self, config: Config, message_format: Format, channel: int, body_max: int) -> None:
        self._format = message_format
        self._channel = channel
        self.body_max = body_max
        publish = pika.spec.Basic.Publish(
            exchange=raw(config.exchange),  # bytes: pika takes them as they are
            routing_key=message_format.fixed_key or b"",
            mandatory=config.mandatory,
        )
        self._method = pika.frame.Method(channel, publish).marshal()
        self._properties = _properties(config)
        self._layouts: dict[tuple[Content, int], _Layout] = {}

    def _layout(self, content: Content, id_length: int) -> _Layout:
        """Return the layout of messages with this content, whose ids have this many bytes."""
        layout = self._layouts.get((content, id_length))
        if layout is None:
            layout = self._layouts[content, id_length] = self._new_layout(content, id_length)
        return layout

    def _new_layout(self, content: Content, id_length: int) -> _Layout:
        properties = pika.spec.BasicProperties(
            content_type=content.type,
            content_encoding=content.encoding,
            headers={} if self._format.headers else None,
            message_id=_ID * id_length,
            timestamp=_TIMESTAMP,
            **self._properties,
        )
        header = pika.frame.Header(self._channel, _SIZE, properties).marshal()
        first, _, rest = header.partition(struct.pack(">Q", _SIZE))
        if self._format.fixed_key is not None:
            first = self._method + first
        second, _, third = rest.partition(_ID.encode() * id_length + struct.pack(">Q", _TIMESTAMP))
        third += pika.frame.Body(self._channel, b"").marshal()[:3]  # type and channel
        fields = f">{len(first)}sQ{len(second)}s{id_length}sQ{len(third)}sI"
        return struct.Struct(fields).pack, first, second, third

    def template(self, id_length: int) -> tuple[bytes, bytes, bytes] | None:
        """Return the three parts that are the same in all messages with ids of this many bytes, and
        with the usual content. After the first comes the size of the body (8 bytes); after the
        second the id, and the time in seconds (8 bytes); after the third the size again (4 bytes),
        the body, and the end of a frame.

        None: messages do not consist of such parts and a text.
        """
        if not self._format.is_plain:
            return None
        return self._layout(self._format.content, id_length)[1:]

    def marshal(self, events: Iterable[Event]) -> bytes:
        """Return all frames of the events' messages, in the events' order."""
        parts: list[bytes] = []
        body_max, end = self.body_max, bytes([pika.spec.FRAME_END])
        body, headers = self._format.body, self._format.headers
        fixed = self._format.fixed_key is not None
        usual, content_of = self._format.content, self._format.content_of
        content, length = usual, 0
        pack, first, second, third = self._layout(content, length)
        for event in events:
            text = body(event)
            size = len(text)
            message_id = event.message_id.encode()
            # The quickest test: nearly all bodies are ASCII.
            its = usual if text.isascii() else content_of(text)
            if len(message_id) != length or its is not content:
                content, length = its, len(message_id)
                pack, first, second, third = self._layout(content, length)
            head = pack(first, size, second, message_id, event.time_ms // 1000, third, size)
            if headers is not None:
                head = self._with_headers(head, len(first), content, headers(event))
            if not fixed:
                parts.append(self._method_for(self._format.routing_key(event)))
            if size <= body_max:
                parts += (head, text, end)
                continue
            parts.append(head[: -pika.spec.FRAME_HEADER_SIZE])
            for at in range(0, size, body_max):
                parts.append(pika.frame.Body(self._channel, text[at : at + body_max]).marshal())
        return b"".join(parts)

    def _method_for(self, routing_key: bytes) -> bytes:
        """Return the frame of basic.publish with this routing key.

        After the key, a short string, come only the octet with `mandatory` and the end.
        """
        payload, bits = self._method[_FRAME.size : -3], self._method[-2:]
        size = len(payload) + 1 + len(routing_key) + 1
        head = _FRAME.pack(pika.spec.FRAME_METHOD, self._channel, size)
        return b"".join((head, payload, bytes([len(routing_key)]), routing_key, bits))

    def _with_headers(
        self, head: bytes, first: int, content: Content, headers: dict[str, object]
    ) -> bytes:
        """Put the table of headers in the place of the example's empty one.

        It follows the body's size, the flags and the content (AMQP 0-9-1, 4.2.6.1).
        """
        method = first - _FRAME.size - 4  # class and weight are before the body's size
        at = first + 8 + 2 + sum(1 + len(text) for text in content if text is not None)
        table: list[bytes] = []
        pika.data.encode_table(table, headers)
        kind, channel, size = _FRAME.unpack_from(head, method)
        added = b"".join(table)
        start = head[:method] + _FRAME.pack(kind, channel, size + len(added) - len(_NO_TABLE))
        return start + head[method + _FRAME.size : at] + added + head[at + len(_NO_TABLE) :]
