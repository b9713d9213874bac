"""Retries: messages that the broker refused (basic.nack) and that are sent again."""

from __future__ import annotations

from collections.abc import Callable

from . import backoff
from .entry import REFUSED, WAITING, Entry

# Seconds between a refusal and the next attempt, at most.
REFUSED_MAX = 1.0
# A refusal within so many seconds after the last attempt belongs to the same trouble: a
# full queue with a slow consumer takes some messages and refuses others, so only time
# tells that the trouble is over.
REFUSED_QUIET = 1.0


class Retries:
    """The refused messages, in the order of their refusal, and the time of the next attempt."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._entries: list[Entry] = []
        self._clock = clock
        self._jitter = jitter
        self._due_at = clock()
        self._rounds = 0  # of refusals in the present trouble

    def __bool__(self) -> bool:
        """True if messages wait here; nothing newer is sent before them."""
        return bool(self._entries)

    @property
    def is_due(self) -> bool:
        """True if the refused messages may be sent again."""
        return self._clock() >= self._due_at

    @property
    def due_at(self) -> float | None:
        """Return the time of the next attempt; None: nothing waits."""
        return self._due_at if self._entries else None

    @property
    def entries(self) -> list[Entry]:
        """Return the refused entries that are not given up."""
        return [entry for entry in self._entries if entry.state is REFUSED]

    def add(self, entries: list[Entry]) -> bool:
        """Put refused entries here; True if this refusal begins a new round."""
        self._entries += entries
        now = self._clock()
        if not entries or now < self._due_at:
            return False
        if now > self._due_at + REFUSED_QUIET:
            self._rounds = 0
        self._rounds += 1
        self._due_at = now + backoff.delay(self._rounds, REFUSED_MAX, self._jitter)
        return True

    def take(self, most: int) -> list[Entry]:
        """Take the first refused entries out, at most so many, to send them again."""
        entries = self.entries
        self._entries = entries[most:]
        return entries[:most]

    def clear(self) -> None:
        """The connection is gone: refused messages simply wait, in their old place."""
        for entry in self._entries:
            if entry.state is REFUSED:
                entry.state = WAITING
        self._entries.clear()
