"""pika's event loop, with types: the place where the worker waits.

It waits for the broker, for descriptors of ours, and for the next time that something
is due. One thread owns an instance; `poll` waits, nothing else does.
"""

from __future__ import annotations

from pika.adapters.select_connection import IOLoop


class Loop:
    """`ioloop`: what connections of pika are made with."""

    def __init__(self) -> None:
        self.ioloop = IOLoop()
        self._alarm: object = None
        self._descriptors: list[int] = []

    def add_reader(self, descriptor: int) -> None:
        """End `poll` also when this descriptor is readable."""
        self._descriptors.append(descriptor)
        self.ioloop.add_handler(descriptor, lambda fd, events: None, IOLoop.READ)

    def activate(self) -> None:
        """Begin, on the thread that is going to wait."""
        self.ioloop.activate_poller()

    def poll(self) -> None:
        """Wait until something happens or is due, and carry out what has happened."""
        self.ioloop.poll()

    def run_due(self) -> None:
        """Carry out what is due by now."""
        self.ioloop.process_timeouts()

    def set_alarm(self, delay: float | None) -> None:
        """End the next `poll` after so many seconds, if nothing else does; None: never.
        It replaces the alarm that was set before."""
        if self._alarm is not None:
            self.ioloop.remove_timeout(self._alarm)
            self._alarm = None
        if delay is not None:
            self._alarm = self.ioloop.call_later(delay, self._on_alarm)

    def _on_alarm(self) -> None:
        self._alarm = None

    def close(self) -> None:
        """Give all descriptors back. The loop cannot be used any more."""
        for descriptor in self._descriptors:
            self.ioloop.remove_handler(descriptor)
        self.ioloop.deactivate_poller()
        self.ioloop.close()
