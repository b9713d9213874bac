"""Bulk: many confirms and many messages at a time, past pika's public interface.

pika takes 15 µs for each confirm and 12 µs for each message, which is more than everything
else takes. So this file and frames.py use parts of pika that may have another form in
another version:

- `_on_data_available` of a connection gets the bytes that arrive, and takes whole frames;
- `bytes_received` and `frames_received` count them; the heartbeat reads the former;
- `_output_marshaled_frames` sends bytes, and `_body_max_length` is the size of a body's frame;
- `_terminate_stream` ends a connection that does not answer, or that is still opening;
- `marshal` of frames, and `encode_table`, make the bytes of an example (frames.py).

`difference` tries all of it out when pika was imported (rule 22). If something has another form,
Broker uses none of this.

Sans I/O; worker thread.
"""

from __future__ import annotations

import contextlib
import re
import struct
from collections.abc import Callable, Iterable
from typing import Any

import pika
import pika.frame
import pika.spec
from pika.adapters.select_connection import SelectConnection

from ..config import DEFAULTS
from ..message import Event, Format
from ..values import replace
from .frames import Arguments, Frames
from .ioloop import Loop

# Bytes that are given to pika in one piece: whenever the kernel takes a part of a piece, pika
# copies the rest of the piece.
_PIECE = 128 * 1024
# The start of a frame (AMQP 0-9-1, 2.3.5): type, channel, size. One octet ends it.
_START = struct.Struct(">BHI")
_TYPES = (
    pika.spec.FRAME_METHOD,
    pika.spec.FRAME_HEADER,
    pika.spec.FRAME_BODY,
    pika.spec.FRAME_HEARTBEAT,
)
# Frames of basic.ack (AMQP 0-9-1, 2.3.5 and 1.8.3.13) on the first channel: type 1,
# channel 1, 13 bytes, class 60, method 80, then the tag, `multiple`, and the end.
_ACKS = re.compile(rb"(?:\x01\0\x01\0\0\0\x0d\0\x3c\0\x50.{9}\xce)+", re.DOTALL)
_ACK = struct.Struct(">11xQ?x")

# For the log; what `difference` returns follows.
SLOW_PIKA = (
    f"pika {pika.__version__} is not as this module knows it, so each message and each confirm "
    "goes by its public interface, which is slower"
)


class BulkConnection(SelectConnection):  # type: ignore[misc]
    """A connection that reads confirms and sends messages many at a time.

    RabbitMQ sends a confirm for about every third message. `on_acks` gets (tag, multiple) of
    the confirms that come together; None: pika gets them. pika gets everything else, and
    whole frames only, so that nothing depends on its own buffer. Once something arrives that
    is no frame, pika gets all bytes as they come, and says what is wrong.
    """

    on_acks: Callable[[Iterable[tuple[int, bool]]], None] | None = None
    _rest = b""  # the bytes of a frame that has not arrived as a whole
    _garbled = False

    def _on_data_available(self, data_in: bytes) -> None:
        if self._garbled:
            super()._on_data_available(data_in)
            return
        data, at = self._rest + data_in, 0
        self._rest = b""
        while at < len(data):
            run = _ACKS.match(data, at) if self.on_acks is not None else None
            if run is not None and self.on_acks is not None:
                start, at = run.span()
                self.bytes_received += at - start
                self.frames_received += (at - start) // _ACK.size
                self.on_acks(_ACK.iter_unpack(data[start:at]))
                continue
            self._garbled = data[at] not in _TYPES
            end = len(data) if self._garbled else _end_of_frame(data, at)
            if end > len(data):
                self._rest = data[at:]
                return
            super()._on_data_available(data[at:end])
            if self.is_closed:
                return
            at = end

    @property
    def body_max(self) -> int:
        """Return how many bytes of a body fit into one frame."""
        return int(self._body_max_length)

    def send_frames(self, data: bytes) -> None:
        """Send bytes that are whole frames."""
        pieces = [data[at : at + _PIECE] for at in range(0, len(data), _PIECE)]
        self._output_marshaled_frames(pieces)

    def end(self, reason: str) -> None:
        """End the connection at once, without a word to the broker."""
        self._terminate_stream(TimeoutError(reason))


def _end_of_frame(data: bytes, at: int) -> int:
    """Return the place behind the frame that begins at `at`; it may be behind the data."""
    if len(data) - at < _START.size:
        return len(data) + 1
    size: int = _START.unpack_from(data, at)[2]
    return at + _START.size + size + 1


# ---- the check ------------------------------------------------------------------


def difference() -> str:
    """Return what is different in this pika; empty: everything has the form that is used here.

    Takes one or two milliseconds. Never raises.
    """
    try:
        _try_out()
    except _DifferentError as error:
        return str(error)
    except Exception as error:
        return " ".join(f"{type(error).__name__}: {error}".split())
    return ""


class _DifferentError(Exception):
    """Something behaves in another way; the text is for people."""


class _Wire:
    """Stands for the socket of a connection: keeps what is sent."""

    def __init__(self) -> None:
        self.sent = b""
        self.aborted = False

    def write(self, data: bytes) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True

    def taken(self) -> bytes:
        sent, self.sent = self.sent, b""
        return sent


def _try_out() -> None:
    """Open a connection over a wire, and compare each way in bulk with pika's own.

    Raises an exception if something is different.
    """
    loop = Loop()
    try:
        wire = _Wire()
        parameters = pika.ConnectionParameters(heartbeat=0)
        connection = BulkConnection(
            parameters, custom_ioloop=loop, internal_connection_workflow=False
        )
        connection._proto_connection_made(wire)
        heard: list[tuple[str, int, bool]] = []
        channel = _open(connection, heard)
        _compare_messages(connection, channel, wire)
        _compare_confirms(connection, heard)
        connection.end("tried out")
        _expect(wire.aborted, "_terminate_stream does not end the connection")
    finally:
        with contextlib.suppress(Exception):
            loop.close()


def _open(connection: Any, heard: list[tuple[str, int, bool]]) -> Any:
    """Open the connection and a channel with confirms; `heard` gets what they say."""
    spec = pika.spec
    channels: list[Any] = []
    on: list[Any] = []
    capabilities = {"publisher_confirms": True, "basic.nack": True}
    _arrive(connection, 0, spec.Connection.Start(server_properties={"capabilities": capabilities}))
    _arrive(connection, 0, spec.Connection.Tune(2047, pika.spec.FRAME_MIN_SIZE, 0))
    _arrive(connection, 0, spec.Connection.OpenOk())
    connection.channel(on_open_callback=channels.append)
    _arrive(connection, 1, spec.Channel.OpenOk())
    _expect(bool(channels), "a channel does not open")

    def on_confirm(frame: Any) -> None:
        kind = "ack" if isinstance(frame.method, spec.Basic.Ack) else "nack"
        heard.append((kind, frame.method.delivery_tag, frame.method.multiple))

    channels[0].confirm_delivery(on_confirm, callback=on.append)
    _arrive(connection, 1, spec.Confirm.SelectOk())
    _expect(bool(on), "confirms cannot be switched on")
    connection.on_acks = lambda acks: heard.extend(("bulk", *ack) for ack in acks)
    return channels[0]


def _arrive(connection: Any, channel: int, method: Any) -> None:
    connection._proto_data_received(pika.frame.Method(channel, method).marshal())


def _compare_messages(connection: Any, channel: Any, wire: _Wire) -> None:
    """Send messages with all properties, one that is no text, and one of several frames, in
    both ways."""
    event = Event("a-1", 1_000, 3, "$", b"set", b"key")
    binary = replace(event, key=b"key\xff")
    large = replace(event, key=b"k:" + b"k" * connection.body_max)
    for config in (
        DEFAULTS,
        replace(
            DEFAULTS, format="json", headers=True, routing_key="{key:1}", priority="1",
            expiration="60000", app_id="app", message_type="type", mandatory=True,
        ),
    ):  # fmt: skip
        form = Format(config, "node")
        arguments = Arguments(config, form)
        frames = Frames(config, form, channel.channel_number, connection.body_max)
        for one in (event, binary, large):
            wire.taken()
            channel.basic_publish(**arguments.of(one))
            expected = wire.taken()
            connection.send_frames(frames.marshal([one]))
            _expect(wire.taken() == expected, "the frames of a message differ")


def _compare_confirms(connection: Any, heard: list[tuple[str, int, bool]]) -> None:
    """Let confirms arrive in one piece, in two, and byte by byte."""
    spec = pika.spec
    methods = [
        spec.Basic.Ack(1, False), spec.Basic.Ack(2, True), spec.Basic.Nack(3, False),
        spec.Basic.Ack(4, False),
    ]  # fmt: skip
    data = b"".join(pika.frame.Method(1, method).marshal() for method in methods)
    expected = [("bulk", 1, False), ("bulk", 2, True), ("nack", 3, False), ("bulk", 4, False)]
    before = connection.bytes_received, connection.frames_received
    for cut in (len(data), len(data) - 5, 1):
        heard.clear()
        for at in range(0, len(data), cut):
            connection._proto_data_received(data[at : at + cut])
        _expect(heard == expected, "confirms do not arrive as expected")
    counted = connection.bytes_received - before[0], connection.frames_received - before[1]
    _expect(counted == (3 * len(data), 3 * len(methods)), "what arrives is counted in another way")


def _expect(holds: bool, what: str) -> None:
    if not holds:
        raise _DifferentError(what)
