"""The connection to RabbitMQ, which imports pika after the load has ended.

pika imports asyncio, ssl and its own connections for asyncio and for blocking programs: half of
the time of a load if the load waited for it. So the load only looks whether there is a pika
(shim/python.c), and the worker imports it when the load has ended. connection.py, bulk.py,
frames.py, login.py and reasons.py need pika: on the way from worker/loop.py, only this file imports
them.

If pika cannot be imported then, the log says why. Events go to the list, as without a broker,
and each attempt to connect tries again.

Worker thread. Nothing here waits, but an import takes a tenth of a second or more.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..config import Config
from ..counts import one_line
from ..message import Event, Format
from .ioloop import Loop

if TYPE_CHECKING:
    from .connection import Broker, Listener
    from .frames import Frames


class PikaError(Exception):
    """pika cannot be used; the text is for people."""


class LateBroker:
    """Stands for the Broker of connection.py, which it makes when pika is there.

    `warn` gets lines for the log.
    """

    def __init__(self, loop: Loop, listener: Listener, warn: Callable[[str], None]) -> None:
        self._loop = loop
        self._listener = listener
        self._warn = warn
        self._format: tuple[Config, Format] | None = None
        self._broker: Broker | None = None

    def prepare(self) -> None:
        """Import pika, unless that is done. If it cannot be used, log why."""
        try:
            self._prepared()
        except PikaError as error:
            self._warn(f"no connection to RabbitMQ is possible: {error}")

    def _prepared(self) -> Broker:
        """Return the connection. Raises PikaError."""
        if self._broker is None:
            try:
                import pika  # late: see above
            except Exception as error:
                raise PikaError(
                    f"{sys.executable} cannot import pika: {_line(error)}. Check with: "
                    f"{sys.executable} -c 'import pika'; install with: {sys.executable} -m pip "
                    "install --force-reinstall pika"
                ) from error
            try:
                from .bulk import SLOW_PIKA, difference
                from .connection import Broker
            except Exception as error:
                version = getattr(pika, "__version__", "of no version")
                raise PikaError(f"pika {version} cannot be used: {_line(error)}") from error
            if differs := difference():
                self._warn(f"{SLOW_PIKA}: {differs}")
            self._broker = Broker(self._loop, self._listener, bulk=not differs)
            if self._format is not None:
                self._broker.configure(*self._format)
        return self._broker

    # ---- as in connection.py ------------------------------------------------

    @property
    def server(self) -> str:
        """`host:port` of the connection, or of the last attempt; empty: there was none."""
        return self._broker.server if self._broker is not None else ""

    @property
    def closing(self) -> bool:
        """True if the last connection still waits for the broker to answer its close."""
        return self._broker is not None and self._broker.closing

    def configure(self, config: Config, message_format: Format) -> None:
        """Set the parameters of messages, from the next message on."""
        self._format = config, message_format
        if self._broker is not None:
            self._broker.configure(config, message_format)

    def connect(self, config: Config, properties: Mapping[str, str]) -> None:
        """Start to open a connection. Raises PikaError, or what Broker.connect raises."""
        self._prepared().connect(config, properties)

    def send(self, events: Sequence[Event]) -> None:
        """Publish the events' messages. Raises what Broker.send raises."""
        if self._broker is not None:
            self._broker.send(events)

    def frames(self) -> Frames | None:
        """Return what makes the messages of the present channel: see Broker.frames."""
        return self._broker.frames() if self._broker is not None else None

    def send_frames(self, data: bytes) -> None:
        """Publish messages that `frames` has made."""
        if self._broker is not None:
            self._broker.send_frames(data)

    def close(self) -> None:
        """Close the connection; the listener gets no more calls about it."""
        if self._broker is not None:
            self._broker.close()


def _line(error: BaseException) -> str:
    """Return an exception as a line for people."""
    return one_line(f"{type(error).__name__}: {error}")
