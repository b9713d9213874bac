"""pika's event loop, with types: the place where the worker waits.

It waits for the broker, for other descriptors, and for timers. One thread owns an
instance; only `poll` waits.
"""

from __future__ import annotations

import math
import time

import pika
from pika.adapters.select_connection import IOLoop

# What Loop uses of pika's, and what pika's documentation hardly mentions.
_METHODS = (
    "READ",
    "activate_poller",
    "add_handler",
    "call_later",
    "close",
    "deactivate_poller",
    "poll",
    "process_timeouts",
    "remove_handler",
    "remove_timeout",
)


class Loop:
    """The event loop; connections of pika are made with `ioloop`.

    Raises RuntimeError if this version of pika cannot be used.
    """

    def __init__(self) -> None:
        missing = [name for name in _METHODS if not hasattr(IOLoop, name)]
        if missing:  # there is no other way (rule 22)
            names = ", ".join(missing)
            raise RuntimeError(f"pika {pika.__version__} cannot be used: its IOLoop lacks {names}")
        self.ioloop = IOLoop()
        self._alarm: object = None
        self._alarm_at = math.inf
        self._descriptors: list[int] = []

    def add_reader(self, descriptor: int) -> None:
        """End `poll` also when this descriptor is readable."""
        self._descriptors.append(descriptor)
        self.ioloop.add_handler(descriptor, lambda fd, events: None, IOLoop.READ)

    def activate(self) -> None:
        """Begin; called on the thread that is going to wait."""
        self.ioloop.activate_poller()

    def poll(self) -> None:
        """Wait for a descriptor or a timer, and run the callbacks of descriptors."""
        self.ioloop.poll()

    def run_due(self) -> None:
        """Run the callbacks of timers that are due."""
        self.ioloop.process_timeouts()

    def set_alarm(self, delay: float | None) -> None:
        """End the next `poll` after `delay` seconds at the latest; None: it may last for ever.

        An earlier alarm that was set before stays: to set another one costs more than one `poll`
        that ends early.
        """
        at = math.inf if delay is None else time.monotonic() + delay
        if at < self._alarm_at:
            if self._alarm is not None:
                self.ioloop.remove_timeout(self._alarm)
            self._alarm = self.ioloop.call_later(delay, self._on_alarm)
            self._alarm_at = at

    def _on_alarm(self) -> None:
        self._alarm = None
        self._alarm_at = math.inf

    def close(self) -> None:
        """Close all descriptors of the loop, which cannot be used any more."""
        for descriptor in self._descriptors:
            self.ioloop.remove_handler(descriptor)
        self.ioloop.deactivate_poller()
        self.ioloop.close()
