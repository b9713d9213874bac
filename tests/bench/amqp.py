"""AMQP without the cost of a client library: a socket, frames made beforehand, and as little
reading of replies as possible.

`publish` is the yardstick for confirmed messages: the speed of this broker if the publisher
does nothing but send. `Arrivals` measures when messages come out of a queue.
"""

from __future__ import annotations

import math
import re
import socket
import struct
import threading
import time
from typing import Any

from pika import frame, spec

# Messages in flight, and messages per send. Larger values made it no faster.
WINDOW = 1000
CHUNK = 500
# Messages per send at a fixed rate: what the module sends at once at 20,000 events/s.
PACED_CHUNK = 50
# A frame with basic.ack: type, channel, length, class and method, tag, multiple, end.
_ACK = struct.Struct(">BHIIQ?B")
# The clock in a key of load.c; the key is the last line of a message.
_CLOCK = re.compile(rb"\nload:([0-9]{19})")


class Link:
    """A connection with an open channel, number 1. Most likely failure: the broker closes the
    connection (ConnectionError)."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._input = b""
        self.socket.sendall(frame.ProtocolHeader().marshal())
        self._await(spec.Connection.Start)
        login = spec.Connection.StartOk({}, "PLAIN", b"\0guest\0guest", "en_US")
        tune = self._call(login, spec.Connection.Tune, 0)
        self._send(spec.Connection.TuneOk(tune.channel_max, tune.frame_max, 0), 0)
        self._call(spec.Connection.Open("/"), spec.Connection.OpenOk, 0)
        self._call(spec.Channel.Open(), spec.Channel.OpenOk)

    def __enter__(self) -> Link:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def confirms(self) -> None:
        """Turn publisher confirms on."""
        self._call(spec.Confirm.Select(), spec.Confirm.SelectOk)

    def consume(self, queue: str) -> None:
        """Start to consume a queue, without acknowledgements."""
        self._call(spec.Basic.Consume(queue=queue, no_ack=True), spec.Basic.ConsumeOk)

    def _send(self, method: Any, channel: int = 1) -> None:
        self.socket.sendall(frame.Method(channel, method).marshal())

    def _call(self, method: Any, answer: type, channel: int = 1) -> Any:
        self._send(method, channel)
        return self._await(answer)

    def _await(self, answer: type) -> Any:
        while True:
            consumed, found = frame.decode_frame(self._input)
            if found is None:
                data = self.socket.recv(65536)
                if not data:
                    raise ConnectionError(f"the broker hung up instead of {answer.__name__}")
                self._input += data
                continue
            self._input = self._input[consumed:]
            assert isinstance(found.method, answer), found
            return found.method


def publish(port: int, one: bytes, count: int, rate: float = math.inf) -> float:
    """Publish a message `count` times, `rate` times a second at most. `one`: its frames. Return
    the seconds until all are confirmed."""
    chunk = CHUNK if rate == math.inf else PACED_CHUNK
    block = one * chunk
    with Link(port) as link:
        link.confirms()
        start = time.monotonic()
        sent = confirmed = 0  # this tag and all lower ones are confirmed
        alone: set[int] = set()  # confirmed tags above it
        rest = b""
        while confirmed < count:
            while sent < count and sent - confirmed <= WINDOW - chunk:
                early = sent / rate - (time.monotonic() - start)
                if early > 0 and sent > confirmed:
                    break
                time.sleep(max(early, 0))
                link.socket.sendall(block)
                sent += chunk
            rest += link.socket.recv(65536)
            whole = len(rest) - len(rest) % _ACK.size
            for _, _, _, index, tag, multiple, _ in _ACK.iter_unpack(rest[:whole]):
                assert index == spec.Basic.Ack.INDEX, "the broker sent something else"
                if multiple:
                    confirmed = max(confirmed, tag)
                else:
                    alone.add(tag)
            rest = rest[whole:]
            while confirmed + 1 in alone:
                confirmed += 1
            alone = {tag for tag in alone if tag > confirmed}
        return time.monotonic() - start


class Arrivals(threading.Thread):
    """A thread that consumes a queue. `delays`: seconds from the clock in each key to the arrival
    of its message. `finish` ends the thread."""

    def __init__(self, port: int, queue: str) -> None:
        super().__init__()
        self.delays: list[float] = []
        self._link = Link(port)
        self._link.socket.settimeout(0.1)
        self._link.consume(queue)
        self._ending = threading.Event()
        self.start()

    def run(self) -> None:
        rest = b""
        while not self._ending.is_set():
            try:
                data = self._link.socket.recv(65536)
            except TimeoutError:
                continue
            now = time.time_ns()
            rest += data
            end = 0
            for found in _CLOCK.finditer(rest):
                self.delays.append((now - int(found[1])) / 1e9)
                end = found.end()
            rest = rest[end:]

    def finish(self) -> None:
        """End the thread and the connection."""
        self._ending.set()
        self.join()
        self._link.socket.close()
