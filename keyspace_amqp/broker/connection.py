"""The connection to RabbitMQ: carries out the publisher's actions, and calls it back.

Messages and confirms go in bulk (bulk.py), or one by one if this pika is not as that needs
it: `bulk` says which.

Worker thread only. Everything runs as callbacks of the Loop; nothing here waits. A
connection has one channel, with confirms; if the channel fails, the whole connection is
closed. Nothing here reconnects: the publisher decides when to connect.
"""

from __future__ import annotations

import functools
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import pika
import pika.channel
import pika.exceptions
from pika import spec
from pika.adapters.select_connection import SelectConnection

from ..config import Config
from ..failures import each
from ..message import Event, Format
from .bulk import BulkConnection
from .frames import Arguments, Frames
from .ioloop import Loop, Timer
from .login import parameters_for
from .reasons import reason_of
from .target import address, target_of

# Seconds for the broker to open the channel, and to answer the close of the connection.
# pika has no limits for these.
CHANNEL_TIMEOUT = 5.0
CLOSE_TIMEOUT = 5.0
# The texts of RabbitMQ and of LavinMQ over a message above max_message_size. They close the channel
# with PRECONDITION_FAILED then, and for other reasons too.
_TOO_LARGE = re.compile(
    r"message size \d+ (?:is )?larger than (?:configured )?max(?:imum)? size (\d+)", re.IGNORECASE
)
# Codes with which the broker closes the channel or the connection over no single message: a normal
# close, an operator's, a virtual host or an exchange that is missing.
_OVER_NO_MESSAGE = frozenset(
    {spec.REPLY_SUCCESS, spec.CONNECTION_FORCED, spec.INVALID_PATH, spec.NOT_FOUND}
)
# Parts of texts, of RabbitMQ and of LavinMQ, with which all messages are refused: the user may not
# write to the exchange, clients may not write to it, the disk is full. Each has a space, which no
# routing key made of a Redis key has: if a topic is refused, the text has the routing key.
_ALL_REFUSED = re.compile(
    r" to exchange '| to internal exchange '|' is internal|Server low on disk space"
)


class Listener(Protocol):
    """The methods of the publisher that the connection calls."""

    def link_up(self) -> None: ...
    def attempt_failed(self, reason: str) -> None: ...
    def link_down(self, reason: str, *, over_message: bool = False) -> None: ...
    def link_blocked(self, reason: str) -> None: ...
    def link_unblocked(self) -> None: ...
    def acked(self, below: int, tags: Sequence[int]) -> None: ...
    def nacked(self, tag: int, multiple: bool) -> None: ...
    def returned(self) -> None: ...
    def too_large(self, limit: int, make_body: Callable[[Event], bytes]) -> int: ...


class Broker:
    """The connection to RabbitMQ, if there is one: opening, open or closing.

    Several servers are tried one after the other, in a random order; `link_down` is called
    after the last one has failed. `server`: `host:port` of the connection, or of the last
    attempt. `bulk`: False: use the public interface of pika only.
    """

    def __init__(self, loop: Loop, listener: Listener, *, bulk: bool) -> None:
        self._loop = loop
        self._listener = listener
        self._make_connection = BulkConnection if bulk else SelectConnection
        # Callbacks of any other connection come late and are ignored.
        self._connection: SelectConnection | None = None
        self._channel: pika.channel.Channel | None = None
        self._closing: SelectConnection | None = None
        self._channel_timer: Timer | None = None
        self._config: Config | None = None
        self._format: Format | None = None
        self._frames: Frames | None = None  # in bulk; else:
        self._arguments: Arguments | None = None
        self._untried: list[tuple[str, int]] = []
        self._reasons: list[str] = []  # why the servers that were tried did not answer
        self._parameters_of: Callable[[str, int], pika.ConnectionParameters] | None = None
        self.server = ""

    def configure(self, config: Config, message_format: Format) -> None:
        """Set the parameters of messages, from the next message on."""
        self._config = config
        self._format = message_format
        self._frames = self._arguments = None

    def connect(self, config: Config, properties: Mapping[str, str]) -> None:
        """Start to open a connection; `link_up` or `link_down` follows.

        `properties`: what RabbitMQ's tools show of the connection. Raises ConnectError if
        a file cannot be used.
        """
        target = target_of(config)
        self._parameters_of = parameters_for(target, properties)
        self._untried = random.sample(target.servers, len(target.servers))
        self._reasons = []
        self._try_next()

    def _try_next(self) -> None:
        host, port = self._untried.pop()
        self.server = address(host, port)
        assert self._parameters_of is not None
        self._connection = self._make_connection(
            self._parameters_of(host, port),
            on_open_callback=self._on_open,
            on_open_error_callback=self._on_failed,
            on_close_callback=self._on_failed,
            custom_ioloop=self._loop,
        )

    def close(self) -> None:
        """Close the connection; the listener gets no more calls about it."""
        connection, self._connection, self._channel = self._connection, None, None
        if connection is None:
            return
        self._closing = connection
        if connection.is_open:
            connection.close()
            self._loop.call_later(CLOSE_TIMEOUT, functools.partial(_end, connection))
        else:  # it is opening: pika cannot close it
            _end(connection)

    @property
    def closing(self) -> bool:
        """True if the last connection still waits for the broker to answer its close."""
        return self._closing is not None and not self._closing.is_closed

    def send(self, events: Sequence[Event]) -> None:
        """Publish the events' messages, in their order.

        The broker counts the messages of a channel from 1; confirms carry these tags. Raises
        EventError if no message can be made of an event; then none is published.
        """
        channel, connection = self._channel, self._connection
        if channel is None or connection is None or not channel.is_open:
            return  # `link_down` follows
        assert self._config is not None
        assert self._format is not None
        if isinstance(connection, BulkConnection):
            frames = self.frames()
            assert frames is not None
            try:
                data = frames.marshal(events)
            except Exception:
                each(events, lambda event: frames.marshal([event]))
                raise
            connection.send_frames(data)
            return
        if self._arguments is None:
            self._arguments = Arguments(self._config, self._format)
        arguments = self._arguments
        each(events, lambda event: channel.basic_publish(**arguments.of(event)))

    def frames(self) -> Frames | None:
        """Return what makes the messages of the present channel; None: there is none, or it takes
        messages by pika's public interface only."""
        channel, connection = self._channel, self._connection
        if channel is None or not isinstance(connection, BulkConnection) or not channel.is_open:
            return None
        if self._frames is None:
            assert self._config is not None
            assert self._format is not None
            number, body_max = channel.channel_number, connection.body_max
            self._frames = Frames(self._config, self._format, number, body_max)
        return self._frames

    def send_frames(self, data: bytes) -> None:
        """Publish messages that `frames` has made for the present channel."""
        connection = self._connection
        if isinstance(connection, BulkConnection) and self.frames() is not None:
            connection.send_frames(data)  # else `link_down` follows

    # ---- callbacks of pika -------------------------------------------------

    def _on_open(self, connection: Any) -> None:
        if self._connection is None or connection is not self._connection:
            if connection.is_open:
                connection.close()
            return
        self._untried = []
        self._reasons = []
        connection.add_on_connection_blocked_callback(self._on_blocked)
        connection.add_on_connection_unblocked_callback(self._on_unblocked)
        self._channel_timer = self._loop.call_later(
            CHANNEL_TIMEOUT, functools.partial(self._on_no_channel, connection)
        )
        connection.channel(on_open_callback=self._on_channel)

    def _on_no_channel(self, connection: Any) -> None:
        if self._connection is not None and connection is self._connection:
            self.close()
            reason = f"no channel from the broker within {CHANNEL_TIMEOUT:.0f} seconds"
            self._listener.link_down(reason)

    def _on_channel(self, channel: pika.channel.Channel) -> None:
        if channel.connection is not self._connection:
            return
        self._channel = channel
        self._frames = None
        channel.add_on_close_callback(self._on_channel_closed)
        channel.add_on_return_callback(self._on_return)
        # Confirms still arrive on a channel that is closing, and their tags mean nothing on
        # the next channel. So callbacks get the channel.
        channel.confirm_delivery(
            functools.partial(self._on_confirm, channel),
            callback=functools.partial(self._on_confirms_on, channel),
        )

    def _on_confirms_on(self, channel: pika.channel.Channel, _frame: Any) -> None:
        if channel is self._channel:
            if self._channel_timer is not None:
                self._loop.remove_timeout(self._channel_timer)
            if isinstance(self._connection, BulkConnection):
                self._connection.on_acks = functools.partial(self._on_acks, channel)
            self._listener.link_up()

    def _on_acks(self, channel: pika.channel.Channel, acks: Iterable[tuple[int, bool]]) -> None:
        if channel is not self._channel:
            return
        acks = list(acks)
        below = max([tag for tag, multiple in acks if multiple], default=0)
        self._listener.acked(below, [tag for tag, _ in acks if tag > below])

    def _on_confirm(self, channel: pika.channel.Channel, frame: Any) -> None:
        if channel is not self._channel:
            return
        method = frame.method
        if isinstance(method, pika.spec.Basic.Ack):
            self._on_acks(channel, [(method.delivery_tag, method.multiple)])
        else:
            self._listener.nacked(method.delivery_tag, method.multiple)

    def _on_return(self, channel: Any, _method: Any, _properties: Any, _body: bytes) -> None:
        if channel is self._channel:
            self._listener.returned()

    def _on_blocked(self, connection: Any, frame: Any) -> None:
        if connection is self._connection:
            self._listener.link_blocked(frame.method.reason or "no reason given")

    def _on_unblocked(self, connection: Any, _frame: Any) -> None:
        if connection is self._connection:
            self._listener.link_unblocked()

    def _on_channel_closed(self, channel: Any, reason: BaseException) -> None:
        if channel is self._channel:
            self.close()
            limit = _max_message_size(reason)
            explained = False
            if limit is not None and self._format is not None:
                explained = bool(self._listener.too_large(limit, self._format.body))
            over_message = not explained and _may_be_over_message(reason)
            self._listener.link_down(reason_of(reason), over_message=over_message)

    def _on_failed(self, connection: Any, reason: BaseException) -> None:
        if connection is self._connection:
            self._connection = self._channel = None
            self._reasons.append(f"{self.server}: {reason_of(reason)}")
            if self._untried:
                self._listener.attempt_failed(self._reasons[-1])
                self._try_next()
            elif len(self._reasons) > 1:
                self._listener.link_down("; ".join(self._reasons))
            else:  # with a single server, its name is not needed
                over_message = _may_be_over_message(reason)
                self._listener.link_down(reason_of(reason), over_message=over_message)


def _max_message_size(reason: BaseException) -> int | None:
    """Return the broker's limit if it closed the channel over a message above it."""
    if getattr(reason, "reply_code", None) != spec.PRECONDITION_FAILED:
        return None
    match = _TOO_LARGE.search(reason_of(reason))
    return int(match[1]) if match else None


def _may_be_over_message(reason: BaseException) -> bool:
    """True if the broker has closed the channel or the connection, perhaps over a message."""
    closed = (pika.exceptions.ChannelClosedByBroker, pika.exceptions.ConnectionClosedByBroker)
    if not isinstance(reason, closed) or reason.reply_code in _OVER_NO_MESSAGE:
        return False
    return not _ALL_REFUSED.search(reason_of(reason))


def _end(connection: Any) -> None:
    """End a connection at once; close() would wait for a broker that does not answer.

    pika has no public way for that: there it ends with the handshake's time limit, or when
    a heartbeat is missing.
    """
    if isinstance(connection, BulkConnection) and not connection.is_closed:
        connection.end("the broker did not answer the close")
