"""Frames laid out in one buffer, byte for byte against those that pika writes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import spec

from keyspace_amqp.broker.frames import Frames
from keyspace_amqp.config import DEFAULTS, Config
from keyspace_amqp.message import Event, Format, Value, body
from keyspace_amqp.values import replace

MOST = 131072 - 8

events = st.builds(
    Event,
    message_id=st.text("0123456789abcdef-i", min_size=1, max_size=255),
    time_ms=st.integers(0, 2**63 - 1),
    db=st.integers(0, 2**31 - 1),
    letter=st.just("$"),
    name=st.binary(max_size=50),
    key=st.binary(max_size=200),
    value=st.one_of(
        st.none(),
        st.builds(
            Value,
            type=st.just("string"),
            length=st.just(300),
            data=st.binary(max_size=300),
            before=st.booleans(),
        ),
    ),
)
PLAIN = replace(DEFAULTS, events="A")
configs = st.builds(
    replace,
    st.just(PLAIN),
    exchange=st.text(max_size=60),
    routing_key=st.sampled_from(["", "fixed", "redis.{db}.{event}.{key:*}", "{key}{{{node}"]),
    delivery_mode=st.sampled_from([1, 2]),
    mandatory=st.booleans(),
    format=st.sampled_from(["text", "json", "cloudevents", "cloudevents-structured"]),
    cloudevents_prefix=st.sampled_from(["cloudEvents:", "cloudEvents_", "ce-"]),
    headers=st.booleans(),
    deduplication_header=st.booleans(),
    app_id=st.sampled_from(["", "app", "caf\udce9"]),
    message_type=st.sampled_from(["", "event"]),
    priority=st.sampled_from(["", "0", "255"]),
    expiration=st.sampled_from(["", "0", "60000"]),
)


def frames_of(config: Config, most: int) -> tuple[Frames, Format]:
    form = Format(config, "here:6379")
    return Frames(config, form, 1, most), form


class Written(pika.connection.Connection):
    """pika's own publishing, into memory."""

    def __init__(self, most: int) -> None:
        self.stream = io.BytesIO()
        self._body_max_length = most

    def _output_marshaled_frames(self, marshaled_frames: Sequence[bytes]) -> None:
        self.stream.writelines(marshaled_frames)

    def publish(self, event: Event, config: Config, form: Format) -> None:
        def raw(text: str) -> bytes | None:
            return text.encode("utf-8", "surrogateescape") or None

        text = form.body(event)
        content_type, content_encoding = form.content_of(text)
        properties = pika.BasicProperties(
            content_type=content_type,
            content_encoding=content_encoding,
            headers=form.headers(event) if form.headers else None,
            delivery_mode=config.delivery_mode,
            priority=int(config.priority) if config.priority else None,
            expiration=config.expiration or None,
            message_id=event.message_id,
            timestamp=event.time_ms // 1000,
            type=raw(config.message_type),
            app_id=raw(config.app_id),
        )
        method: Any = spec.Basic.Publish(
            exchange=config.exchange.encode(),
            routing_key=form.routing_key(event),
            mandatory=config.mandatory,
        )
        self._send_message(1, method, (properties, text))

    # pika's abstract methods. They are never called here.
    def _adapter_call_later(self, *_: Any) -> Any: ...
    def _adapter_remove_timeout(self, *_: Any) -> Any: ...
    def _adapter_add_callback_threadsafe(self, *_: Any) -> Any: ...
    def _adapter_connect_stream(self) -> None: ...
    def _adapter_disconnect_stream(self) -> None: ...
    def _adapter_emit_data(self, *_: Any) -> None: ...


def written(batch: Sequence[Event], config: Config, form: Format, most: int) -> bytes:
    connection = Written(most)
    for event in batch:
        connection.publish(event, config, form)
    return connection.stream.getvalue()


@settings(max_examples=300)
@given(st.lists(events, max_size=5), configs, st.sampled_from([16, 40, 100, MOST]))
def test_every_byte_is_as_pika_writes_it(batch: list[Event], config: Config, most: int) -> None:
    frames, form = frames_of(config, most)
    assert frames.marshal(batch) == written(batch, config, form, most)
    assert frames.marshal(batch) == written(batch, config, form, most)


@pytest.mark.parametrize("headers", [False, True])
def test_binary_and_text_in_one_batch(headers: bool) -> None:
    """Each of many messages says what its own body is, with ids of several lengths."""
    config = replace(PLAIN, headers=headers, app_id="app", routing_key="{key}")
    keys = [b"a", b"\xff", "ä".encode(), b"a" * 40 + b"\xff", b"\xc3", b"b" * 40]
    batch = [
        Event(f"{'a' * (1 + number % 3)}-{number}", 1000, 0, "$", b"set", key)
        for number, key in enumerate(keys * 3)
    ]
    for most in (16, MOST):
        frames, form = frames_of(config, most)
        data = frames.marshal(batch)
        assert data == written(batch, config, form, most)
        assert data.count(b"application/octet-stream\x06binary") == 9


@pytest.mark.parametrize("size", [MOST - 1, MOST, MOST + 1, 2 * MOST, 2 * MOST + 1])
def test_a_body_of_more_than_one_frame(size: int) -> None:
    event = Event("a-1", 1000, 0, "$", b"set", b"k" * (size - len(b"0\nset\n")))
    assert len(body(event)) == size
    frames, form = frames_of(PLAIN, MOST)
    assert frames.marshal([event]) == written([event], PLAIN, form, MOST)
