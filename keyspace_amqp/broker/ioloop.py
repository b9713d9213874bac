"""The event loop of the worker: the place where it waits.

It waits for the broker, for other descriptors, and for timers. Its methods are those that pika
asks of a loop (`AbstractSelectorIOLoop` in pika's `selector_ioloop_adapter`), so pika's
connections run in it. It needs nothing of pika: the worker begins before pika is imported
(late.py). One thread owns an instance; only `poll` waits.
"""

from __future__ import annotations

import collections
import heapq
import os
import select
import time
from collections.abc import Callable

_FAILED = select.EPOLLERR | select.EPOLLHUP


class Timer:
    """A callback that is due at a time of the monotonic clock; None: it was removed or has run."""

    __slots__ = ("at", "callback", "number")

    def __init__(self, at: float, number: int, callback: Callable[[], object]) -> None:
        self.at = at
        self.number = number
        self.callback: Callable[[], object] | None = callback

    def __lt__(self, other: Timer) -> bool:
        return (self.at, self.number) < (other.at, other.number)


class Loop:
    """The event loop; connections of pika are made with it."""

    READ = select.EPOLLIN
    WRITE = select.EPOLLOUT
    ERROR = select.EPOLLERR

    def __init__(self) -> None:
        self._epoll = select.epoll()
        # By descriptor: what is waited for, and what is called then.
        self._handlers: dict[int, tuple[int, Callable[[int, int], object]]] = {}
        self._ready: dict[int, int] = {}  # what `poll` has found and not handled yet
        self._timers: list[Timer] = []  # a heap
        self._timers_made = 0
        self._alarm: float | None = None
        # From other threads: pika looks up names on a thread.
        self._callbacks: collections.deque[Callable[[], object]] = collections.deque()
        self._bell = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.add_handler(self._bell, lambda fd, events: os.eventfd_read(fd), self.READ)

    # ---- for the worker ----------------------------------------------------

    def add_reader(self, descriptor: int) -> None:
        """End `poll` also when this descriptor is readable."""
        self.add_handler(descriptor, lambda fd, events: None, self.READ)

    def poll(self) -> None:
        """Wait for a descriptor or a timer, and run the callbacks of descriptors."""
        times = [] if self._alarm is None else [self._alarm]
        if self._timers:
            times.append(self._timers[0].at)
        rest = max(min(times) - time.monotonic(), 0.0) if times else None
        self._ready = dict(self._epoll.poll(0.0 if self._callbacks else rest))
        for descriptor in list(self._ready):
            events = self._ready.pop(descriptor, 0)  # 0: the callback of another has removed it
            if events:
                wanted, handler = self._handlers[descriptor]
                # After a failure, reading or writing tells what has failed.
                events = wanted if events & _FAILED else events & wanted
                if events:
                    handler(descriptor, events)

    def run_due(self) -> None:
        """Run the callbacks of timers that are due, and those from other threads. Those that they
        add run the next time."""
        for _ in range(len(self._callbacks)):
            self._callbacks.popleft()()
        now = time.monotonic()
        while self._timers and self._timers[0].at <= now:
            timer = heapq.heappop(self._timers)
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()

    def set_alarm(self, delay: float | None) -> None:
        """End each `poll` that lasts until `delay` seconds from now; None: never.

        It replaces the alarm that was set before.
        """
        self._alarm = None if delay is None else time.monotonic() + delay

    def close(self) -> None:
        """Close all descriptors of the loop, which cannot be used any more."""
        self._handlers.clear()
        self._timers.clear()
        self._epoll.close()
        os.close(self._bell)

    # ---- for pika ----------------------------------------------------------

    def call_later(self, delay: float, callback: Callable[[], object]) -> Timer:
        """Call back once, `delay` seconds from now. Return the timer, for `remove_timeout`."""
        self._timers_made += 1
        timer = Timer(time.monotonic() + delay, self._timers_made, callback)
        heapq.heappush(self._timers, timer)
        return timer

    def remove_timeout(self, timer: Timer) -> None:
        """Do not call back any more."""
        timer.callback = None

    def add_callback(self, callback: Callable[[], object]) -> None:
        """Call back on the thread of the loop. Any thread."""
        self._callbacks.append(callback)
        os.eventfd_write(self._bell, 1)

    def add_handler(
        self, descriptor: int, handler: Callable[[int, int], object], events: int
    ) -> None:
        """Call back with the descriptor and its events whenever it has some of these events: a sum
        of READ, WRITE and ERROR."""
        self._epoll.register(descriptor, events)
        self._handlers[descriptor] = events, handler

    def update_handler(self, descriptor: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._epoll.modify(descriptor, events)
        self._handlers[descriptor] = events, self._handlers[descriptor][1]

    def remove_handler(self, descriptor: int) -> None:
        """Do not wait for a descriptor any more."""
        self._epoll.unregister(descriptor)
        del self._handlers[descriptor]
        self._ready.pop(descriptor, None)
