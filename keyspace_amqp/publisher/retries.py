"""Retries: how many refused messages may be sent again, and when.

A message that the broker has refused (basic.nack) may be refused for hours, by a full queue
for example. So refused messages have a limit and delays of their own, and nothing else waits
for them. The first attempt sends all of them: most refusals are over soon. If one of them is
refused again, the next attempts send a single message, after longer and longer delays. Each
confirm lets the limit grow.
"""

from __future__ import annotations

from collections.abc import Callable

from . import backoff
from .window import WINDOW

# Seconds between two attempts, at most. A fanout exchange gives each attempt to all its queues,
# so those that are not full get one more copy each time.
REFUSED_MAX = 15.0


class Retries:
    """The limit on refused messages in flight, and the time of the next attempt."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._clock = clock
        self._jitter = jitter
        self.limit = WINDOW
        self.due_at = clock()
        self._rounds = 0  # attempts in a row that were refused

    @property
    def is_due(self) -> bool:
        """True if refused messages may be sent again."""
        return self._clock() >= self.due_at

    def begin(self) -> None:
        """Note a first refusal while no other refused message waits."""
        self.limit = WINDOW
        self._rounds = 1
        self._delay()

    def refused(self) -> None:
        """Note that messages were refused again.

        Refusals that come before the next attempt is due belong to the same attempt.
        """
        self.limit = 1
        if self.is_due:
            self._rounds += 1
            self._delay()

    def _delay(self) -> None:
        self.due_at = self._clock() + backoff.delay(self._rounds, REFUSED_MAX, self._jitter)

    def confirmed(self, count: int) -> None:
        """Note that this many refused messages were confirmed: the next ones may follow."""
        self.limit = min(WINDOW, self.limit + count)
        self.retry_now()

    def retry_now(self) -> None:
        """Make the next attempt due now."""
        self._rounds = 0
        self.due_at = self._clock()

    def link_lost(self, *, renewed: bool) -> None:
        """Start anew with the next connection: all refused messages may be sent again.

        `renewed`: the last one was given up because of them, so they are sent one by one.
        """
        if renewed:
            self.limit = 1
            self._rounds += 1
            self._delay()
            return
        self.limit = WINDOW
        self.retry_now()
