"""Confirms and messages in bulk, against pika's own way; and a pika that has another form."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pika
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pika import channel, frame, spec
from pika.adapters import base_connection
from pika.adapters.select_connection import SelectConnection

from keyspace_amqp.broker import bulk
from keyspace_amqp.broker.bulk import BulkConnection, difference
from keyspace_amqp.broker.connection import Broker
from keyspace_amqp.broker.frames import Frames
from keyspace_amqp.broker.ioloop import Loop
from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.message import Event, Format
from keyspace_amqp.values import replace

MOST = 131072 - 8
LOOP = Loop()  # nothing waits in it


def connected_to(wire: bulk._Wire, kind: type = BulkConnection, **callbacks: Any) -> Any:
    """A connection to a wire, on which the test puts what the broker says."""
    parameters = pika.ConnectionParameters(heartbeat=0)
    connection = kind(
        parameters, custom_ioloop=LOOP, internal_connection_workflow=False, **callbacks
    )
    connection._proto_connection_made(wire)
    return connection


class Heard(BulkConnection):
    """The reading half of a connection: the frames that it gets, in their order."""

    @classmethod
    def make(cls, *, fast: bool) -> Any:
        self = connected_to(bulk._Wire(), cls)
        self.heard = []
        if fast:
            self.on_acks = self._in_bulk
        return self

    def _in_bulk(self, acks: Any) -> None:
        self.heard += [("ack", tag, multiple) for tag, multiple in acks]

    def _process_frame(self, frame_value: Any) -> None:
        self.frames_received += 1
        method = getattr(frame_value, "method", None)
        if isinstance(method, (spec.Basic.Ack, spec.Basic.Nack)):
            kind = "ack" if isinstance(method, spec.Basic.Ack) else "nack"
            self.heard.append((kind, method.delivery_tag, method.multiple))
        else:
            self.heard.append(frame_value.marshal())


class HeardByPika(Heard):
    """The same with pika's own buffer."""

    def _on_data_available(self, data_in: bytes) -> None:
        SelectConnection._on_data_available(self, data_in)


tags = st.integers(1, 2**64 - 1)
frames_heard = st.one_of(
    st.builds(spec.Basic.Ack, tags, st.booleans()).map(lambda m: frame.Method(1, m)),
    st.builds(spec.Basic.Ack, tags, st.booleans()).map(lambda m: frame.Method(1, m)),
    st.builds(spec.Basic.Ack, tags, st.booleans()).map(lambda m: frame.Method(2, m)),
    st.builds(spec.Basic.Nack, tags, st.booleans()).map(lambda m: frame.Method(1, m)),
    st.builds(frame.Body, st.just(1), st.binary(min_size=1, max_size=60)),
    st.builds(frame.Heartbeat),
)


@settings(max_examples=300)
@given(
    st.lists(frames_heard, max_size=30), st.lists(st.integers(1, 80), max_size=60), st.booleans()
)
def test_confirms_are_heard_as_pika_hears_them(
    story: list[Any], cuts: list[int], fast: bool
) -> None:
    """The result does not depend on the pieces in which the bytes arrive. `fast`: confirms come
    in bulk, and not only whole frames."""
    data = b"".join(each.marshal() for each in story)
    ours, pikas = Heard.make(fast=fast), HeardByPika.make(fast=False)
    at = 0
    for cut in [*cuts, len(data)]:
        piece, at = data[at : at + cut], at + cut
        if piece:
            ours._on_data_available(piece)
            pikas._on_data_available(piece)
    assert ours.heard == pikas.heard
    assert len(ours.heard) == len(story)
    assert ours.bytes_received == pikas.bytes_received == len(data)
    assert ours.frames_received == pikas.frames_received == len(story)
    assert ours._rest == b""


@pytest.mark.parametrize(
    "data",
    [
        b"AMQP\0\0\x09\x01", b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"\x07\0\0\0\0\0\x01x\xce", b"\x01\0\0\0\0\0\x01xx",
    ],
)  # fmt: skip
@pytest.mark.parametrize("cut", [1, 3, 100])
def test_pika_judges_what_is_no_frame(data: bytes, cut: int) -> None:
    outcomes = []
    for kind in (BulkConnection, SelectConnection):
        connection = connected_to(bulk._Wire(), kind)
        raised = ""
        try:
            for at in range(0, len(data), cut):
                connection._proto_data_received(data[at : at + cut])
        except Exception as error:
            raised = repr(error)
        outcomes.append((raised, connection.bytes_received))
    assert outcomes[0] == outcomes[1]


def test_large_sends_go_in_pieces() -> None:
    """pika copies what is left of a piece whenever the kernel takes a part of it."""
    pieces: list[bytes] = []

    class Taken(BulkConnection):
        def _output_marshaled_frames(self, marshaled_frames: Sequence[bytes]) -> None:
            pieces.extend(marshaled_frames)

    connection = connected_to(bulk._Wire(), Taken)
    pieces.clear()
    data = bytes(700_000)
    connection.send_frames(data)
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= bulk._PIECE


# ---- the two ways of Broker ------------------------------------------------------------------


class Listener:
    """Records the calls that it gets."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **_: self.heard.append((name, *arguments))


class Line:
    """A Broker, and what it says to a server that the test plays."""

    def __init__(self, *, in_bulk: bool) -> None:
        self.listener = Listener()
        self.wire = bulk._Wire()
        self.broker: Any = Broker(LOOP, self.listener, bulk=in_bulk)
        self.kind = self.broker._make_connection
        self.broker._make_connection = self._make
        config = replace(DEFAULTS, events="A", mandatory=True)
        self.broker.configure(config, Format(config, "node"))
        self.broker.connect(config, {})
        capabilities = {"publisher_confirms": True, "basic.nack": True}
        start = spec.Connection.Start(server_properties={"capabilities": capabilities})
        tune = spec.Connection.Tune(2047, spec.FRAME_MIN_SIZE, 0)
        for number, method in (
            (0, start), (0, tune), (0, spec.Connection.OpenOk()),
            (1, spec.Channel.OpenOk()), (1, spec.Confirm.SelectOk()),
        ):  # fmt: skip
            self.arrive(frame.Method(number, method))
        self.wire.taken()

    def _make(self, parameters: Any, *, custom_ioloop: Any, **callbacks: Any) -> Any:
        assert custom_ioloop is LOOP
        self.connection = connected_to(self.wire, self.kind, **callbacks)
        return self.connection

    def arrive(self, *frames: Any, cut: int = 10**6) -> None:
        data = b"".join(each.marshal() for each in frames)
        for at in range(0, len(data), cut):
            self.connection._proto_data_received(data[at : at + cut])

    def confirmed(self) -> tuple[set[int], list[int]]:
        """The tags that were confirmed, and those that were refused."""
        acks: set[int] = set()
        nacks = []
        for name, *arguments in self.listener.heard:
            if name == "acked":
                acks |= {*range(1, arguments[0] + 1), *arguments[1]}
            elif name == "nacked":
                nacks.append(arguments[0])
        return acks, nacks


@pytest.fixture(params=[True, False], ids=["in bulk", "one by one"])
def line(request: pytest.FixtureRequest) -> Line:
    line = Line(in_bulk=request.param)
    assert type(line.connection) is (BulkConnection if request.param else SelectConnection)
    assert line.listener.heard == [("link_up",)]
    return line


EVENTS = [Event(f"a-{n}", 1000, 0, "$", b"set", b"k" * size) for n, size in enumerate((1, 9000, 3))]


def test_both_ways_send_the_same_bytes(line: Line) -> None:
    line.broker.send(EVENTS)
    config = line.broker._config
    assert line.wire.taken() == Frames(
        config, Format(config, "node"), 1, spec.FRAME_MIN_SIZE - 8
    ).marshal(EVENTS)


@pytest.mark.parametrize("cut", [1, 20, 50, 10**6])
def test_both_ways_hear_confirms_refusals_and_returns(line: Line, cut: int) -> None:
    basic = spec.Basic
    line.arrive(
        frame.Method(1, basic.Ack(1)),
        frame.Method(1, basic.Return(312, "NO_ROUTE", "x", "y")),
        frame.Header(1, 4, pika.BasicProperties()),
        frame.Body(1, b"body"),
        frame.Method(1, basic.Ack(3, multiple=True)),
        frame.Method(1, basic.Ack(6)),
        frame.Method(1, basic.Nack(5)),
        frame.Heartbeat(),
        frame.Method(1, basic.Ack(4)),
        cut=cut,
    )
    assert line.confirmed() == ({1, 2, 3, 4, 6}, [5])
    assert line.listener.heard.count(("returned",)) == 1


def test_both_ways_end_with_the_channel(line: Line) -> None:
    line.arrive(frame.Method(1, spec.Channel.Close(404, "NOT_FOUND", 60, 40)))
    assert line.listener.heard[1:] == [("link_down", "404 NOT_FOUND")]
    line.broker.send(EVENTS)
    line.arrive(frame.Method(1, spec.Basic.Ack(1)))
    assert len(line.listener.heard) == 2


def test_a_broker_that_opens_no_channel(line: Line) -> None:
    line.broker._on_no_channel(line.connection)
    ((name, reason),) = line.listener.heard[1:]
    assert name == "link_down"
    assert reason.startswith("no channel from the broker within")
    assert line.broker._connection is None


# ---- the check at load -----------------------------------------------------------------------


def test_this_pika_has_the_form_that_is_used() -> None:
    assert difference() == ""


def other_reader(patch: pytest.MonkeyPatch) -> None:
    """The bytes that arrive come in a method of another name."""

    def received(self: Any, data: bytes) -> None:
        SelectConnection._on_data_available(self, data)

    patch.setattr(base_connection.BaseConnection, "_proto_data_received", received)


def other_buffer(patch: pytest.MonkeyPatch) -> None:
    """Only the first frame of what arrives together is taken."""
    original = SelectConnection._on_data_available

    def available(self: Any, data: bytes) -> None:
        size = int.from_bytes(data[3:7], "big") + 8
        if self.is_open and len(data) > 1 and data[:1] == b"\x01" and data[10:11] == b"\x78":
            return  # a nack is thrown away
        original(self, data[:size])

    patch.setattr(pika.connection.Connection, "_on_data_available", available)


def other_message(patch: pytest.MonkeyPatch) -> None:
    """pika adds a property of its own to each message."""
    original = channel.Channel.basic_publish

    def publish(self: Any, *arguments: Any, properties: Any, **named: Any) -> None:
        properties.user_id = "guest"
        original(self, *arguments, properties=properties, **named)

    patch.setattr(channel.Channel, "basic_publish", publish)


def other_order(patch: pytest.MonkeyPatch) -> None:
    """The bytes of a header are in another order than its parts are looked for."""
    original = frame.Header.marshal
    patch.setattr(frame.Header, "marshal", lambda self: original(self)[::-1])


def other_channel(patch: pytest.MonkeyPatch) -> None:
    """The first channel has another number."""
    patch.setattr(pika.connection.Connection, "_next_channel_number", lambda self: 2)


def without(name: str) -> Callable[[pytest.MonkeyPatch], None]:
    def remove(patch: pytest.MonkeyPatch) -> None:
        patch.delattr(pika.connection.Connection, name)

    remove.__name__ = f"without {name}"
    return remove


def other_size(patch: pytest.MonkeyPatch) -> None:
    """The size of a body's frame is not known before a message is sent."""
    patch.setattr(pika.connection.Connection, "_get_body_frame_max_length", lambda self: None)


def other_end(patch: pytest.MonkeyPatch) -> None:
    """Ending a connection waits for the broker."""
    patch.setattr(pika.connection.Connection, "_terminate_stream", lambda self, error: None)


@pytest.mark.parametrize(
    "change",
    [
        other_reader, other_buffer, other_message, other_order, other_channel, other_size,
        other_end, without("_output_marshaled_frames"), without("_terminate_stream"),
        without("_on_data_available"),
    ],
)  # fmt: skip
def test_another_form_is_noticed(
    change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    change(monkeypatch)
    assert difference() != ""
    monkeypatch.undo()
    assert difference() == ""
