"""The calls that the connection passes on to the publisher, and those that it ignores.

The tests call pika's callbacks by hand; for tests with real brokers see test_broker_faults.py.
"""

from __future__ import annotations

import itertools
from typing import Any

import pika.exceptions
import pika.frame
import pika.spec
import pytest
from pika.adapters.utils.connection_workflow import (
    AMQPConnectionWorkflowFailed,
    AMQPConnectorSocketConnectError,
)

from keyspace_amqp.broker.connection import Broker
from keyspace_amqp.broker.ioloop import Loop
from keyspace_amqp.broker.reasons import reason_of
from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.message import Format
from keyspace_amqp.values import replace

THREE = replace(DEFAULTS, host="h:1,h:2,h:3")


class Listener:
    """Records the calls that it gets. `over_message`: what the last `link_down` said."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.over_message: bool | None = None
        self.found = 0  # messages that are too large

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.heard.append((name, *arguments))

    def link_down(self, reason: str, *, over_message: bool = False) -> None:
        self.heard.append(("link_down", reason))
        self.over_message = over_message

    def too_large(self, limit: int, make_body: Any) -> int:
        self.heard.append(("too_large", limit, make_body))
        return self.found


class Channel:
    """Stands for a channel of pika; it has only what the connection uses."""

    def __init__(self) -> None:
        self.connection = object()
        self.channel_number = 1  # as on every connection of ours


@pytest.fixture(params=[True, False], ids=["in bulk", "one by one"])
def broker(request: pytest.FixtureRequest) -> Any:
    loop = Loop()
    yield Broker(loop, Listener(), bulk=request.param)
    loop.close()


def ack(tag: int) -> Any:
    return pika.frame.Method(1, pika.spec.Basic.Ack(tag, multiple=True))


def test_confirms_of_another_channel_mean_nothing(broker: Any) -> None:
    """Confirms still arrive on a channel that is closing. Its tags count the messages of its
    own connection; on the new connection the same tags are other messages."""
    old, new = Channel(), Channel()
    broker._channel = new
    broker._on_confirm(old, ack(5))
    broker._on_confirms_on(old, None)
    broker._on_channel_closed(old, pika.exceptions.ChannelClosedByBroker(404, "gone"))
    broker._on_return(old, None, None, b"")
    assert broker._listener.heard == []
    broker._on_confirm(new, ack(3))
    assert broker._listener.heard == [("acked", 3, [])]


def test_a_nack_is_no_ack(broker: Any) -> None:
    broker._channel = Channel()
    nack = pika.frame.Method(1, pika.spec.Basic.Nack(2, multiple=False))
    broker._on_confirm(broker._channel, nack)
    assert broker._listener.heard == [("nacked", 2, False)]


def test_another_connections_end_means_nothing(broker: Any) -> None:
    broker._connection = object()
    broker._on_failed(object(), pika.exceptions.StreamLostError("lost"))
    assert broker._listener.heard == []
    broker._on_failed(broker._connection, pika.exceptions.StreamLostError("lost"))
    assert broker._listener.heard == [("link_down", "lost")]


@pytest.mark.parametrize(
    "words",
    [
        "message size 200 is larger than configured max size 100",  # RabbitMQ
        "message size 200 larger than max size 100",  # LavinMQ
    ],
)
@pytest.mark.parametrize("found", [1, 0])
def test_a_message_that_is_too_large_is_named(broker: Any, words: str, found: int) -> None:
    """If no message is above the limit, the text does not explain the closure."""
    broker._channel = Channel()
    broker._listener.found = found
    broker.configure(THREE, made := Format(THREE, ""))
    text = f"PRECONDITION_FAILED - {words}"
    broker._on_channel_closed(broker._channel, pika.exceptions.ChannelClosedByBroker(406, text))
    assert broker._listener.heard == [("too_large", 100, made.body), ("link_down", f"406 {text}")]
    assert broker._listener.over_message == (found == 0)


@pytest.mark.parametrize(
    ("code", "text", "over_message"),
    [
        (403, "ACCESS_REFUSED - access to topic 'a' in exchange 'e' in vhost '/' refused", True),
        (403, "ACCESS_REFUSED - write access to topic 'a' in exchange 'e' refused", True),
        (403, "ACCESS_REFUSED - access to exchange 'e' in vhost '/' refused", False),
        (403, "ACCESS_REFUSED - write access to exchange 'e' in vhost '/' refused", False),
        (403, "ACCESS_REFUSED - cannot publish to internal exchange 'e' in vhost '/'", False),
        (403, "ACCESS_REFUSED - User 'u' not allowed to publish to exchange 'e'", False),  # LavinMQ
        (403, "ACCESS_REFUSED - Exchange 'e' in vhost '/' is internal", False),  # LavinMQ
        (403, "ACCESS_REFUSED - a plugin says no", True),
        (406, "PRECONDITION_FAILED - Server low on disk space", False),  # LavinMQ
        (406, "PRECONDITION_FAILED - Expiration not a number", True),  # LavinMQ
        (506, "RESOURCE_ERROR - no reason", True),
        (406, "PRECONDITION_FAILED - invalid expiration", True),
        (311, "CONTENT_TOO_LARGE", True),
        (541, "INTERNAL_ERROR", True),
        (501, "FRAME_ERROR", True),
        (404, "NOT_FOUND - no exchange 'e' in vhost '/'", False),
        (402, "INVALID_PATH", False),
        (320, "CONNECTION_FORCED - broker forced connection closure", False),
    ],
)
def test_closures_that_may_be_over_a_message(
    broker: Any, code: int, text: str, over_message: bool
) -> None:
    broker._channel = Channel()
    broker._on_channel_closed(broker._channel, pika.exceptions.ChannelClosedByBroker(code, text))
    assert broker._listener.over_message == over_message
    broker._connection = object()
    closed = pika.exceptions.ConnectionClosedByBroker(code, text)
    broker._on_failed(broker._connection, closed)
    assert broker._listener.over_message == over_message


@pytest.mark.parametrize(
    "reason",
    [
        pika.exceptions.StreamLostError("Transport indicated EOF"),
        pika.exceptions.AMQPHeartbeatTimeout("no heartbeat"),
        pika.exceptions.ConnectionClosedByClient(200, "bye"),
        TimeoutError("no channel"),
    ],
)
def test_losses_that_are_over_no_message(broker: Any, reason: BaseException) -> None:
    broker._connection = object()
    broker._on_failed(broker._connection, reason)
    assert broker._listener.over_message is False


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            pika.exceptions.ChannelClosedByBroker(404, "NOT_FOUND - no exchange"),
            "404 NOT_FOUND - no exchange",
        ),
        (
            AMQPConnectionWorkflowFailed(
                [AMQPConnectorSocketConnectError(ConnectionRefusedError(111, "refused"))]
            ),
            "[Errno 111] refused",
        ),
        (
            pika.exceptions.ProbableAuthenticationError(
                "ConnectionClosedByBroker: (403) 'ACCESS_REFUSED - no'"
            ),
            "403 ACCESS_REFUSED - no",
        ),
        (
            pika.exceptions.ProbableAccessDeniedError(
                "ConnectionClosedByBroker: (530) \"NOT_ALLOWED - vhost '/'\""
            ),
            "530 NOT_ALLOWED - vhost '/'",
        ),
        (
            pika.exceptions.IncompatibleProtocolError("StreamLostError: ('EOF',)"),
            "no AMQP 0-9-1 handshake: EOF",
        ),
        (pika.exceptions.ConnectionOpenAborted("…"), "no AMQP 0-9-1 handshake within 8 seconds"),
        (
            pika.exceptions.ProbableAuthenticationError("StreamLostError: (\"it's 'lost'\",)"),
            "it's 'lost'",
        ),
        (
            pika.exceptions.AuthenticationError("PLAIN"),
            "the broker does not offer the authentication PLAIN",
        ),
        (RuntimeError(), "RuntimeError"),
        (RuntimeError("two\nlines"), "two lines"),
        (  # What a terminal would obey.
            pika.exceptions.ChannelClosedByBroker(404, "no exchange 'a\x1b[31mé\x07\n\x9bb'"),
            "404 no exchange 'a [31mé b'",
        ),
    ],
)
def test_errors_in_a_line_for_people(error: BaseException, text: str) -> None:
    assert reason_of(error) == text


# ---- several servers ---------------------------------------------------------


class Attempts:
    """Stands for the class of a broker's connections: records which ones were made."""

    def __init__(self, broker: Any) -> None:
        self.made: list[Attempts.Connection] = []
        broker._make_connection = self

    class Connection:
        is_open = is_closed = False

        def __init__(self, parameters: Any) -> None:
            self.port = parameters.port

    def __call__(self, parameters: Any, **_: Any) -> Connection:
        self.made.append(Attempts.Connection(parameters))
        return self.made[-1]


REFUSED = pika.exceptions.StreamLostError("refused")


def test_each_server_is_tried_once_in_any_order(broker: Any) -> None:
    attempts = Attempts(broker)
    orders = set()
    for _ in range(200):
        attempts.made.clear()
        broker.connect(THREE, {})
        for _ in range(3):
            assert "link_down" not in dict(broker._listener.heard)
            assert broker.server == f"h:{attempts.made[-1].port}"
            broker._on_failed(attempts.made[-1], REFUSED)
        ports = [made.port for made in attempts.made]
        reasons = "; ".join(f"h:{port}: refused" for port in ports)
        *others, last = broker._listener.heard
        assert others == [("attempt_failed", f"h:{port}: refused") for port in ports[:2]]
        assert last == ("link_down", reasons)
        broker._listener.heard.clear()
        orders.add(tuple(ports))
    assert orders == set(itertools.permutations([1, 2, 3]))


def test_whoever_disconnects_ends_all_attempts(broker: Any) -> None:
    attempts = Attempts(broker)
    broker.connect(THREE, {})
    first = attempts.made[0]
    broker.close()
    broker._on_failed(first, REFUSED)
    assert attempts.made == [first]
    assert broker._listener.heard == []


def test_a_connection_that_was_open_is_not_continued_elsewhere(
    broker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher must first get `link_down`: it sends the messages of the connection again."""

    class Opened(Attempts.Connection):
        def __getattr__(self, name: str) -> Any:
            return lambda *_, **__: None

    attempts = Attempts(broker)
    monkeypatch.setattr(Attempts, "Connection", Opened)
    broker.connect(THREE, {})
    broker._on_failed(attempts.made[0], REFUSED)
    broker._on_open(attempts.made[1])
    broker._on_failed(attempts.made[1], REFUSED)
    assert len(attempts.made) == 2
    assert [what for what, *_ in broker._listener.heard] == ["attempt_failed", "link_down"]
