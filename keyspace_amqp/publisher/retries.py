"""Retries: messages that the broker has refused (basic.nack), and that will be sent again."""

from __future__ import annotations

from collections.abc import Callable

from . import backoff
from .entry import REFUSED, WAITING, Entry

# Seconds between a refusal and the next attempt, at most.
REFUSED_MAX = 1.0
# A refusal within this many seconds after the last attempt was due belongs to the same
# episode. Confirms do not end an episode: a full queue with a slow consumer takes some
# messages and refuses others.
REFUSED_QUIET = 1.0


class Retries:
    """The refused messages, in the order of their refusal, and the time of the next attempt."""

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self._entries: list[Entry] = []
        self._clock = clock
        self._jitter = jitter
        self._due_at = clock()
        self._rounds = 0  # rounds of refusals in the present episode

    def __bool__(self) -> bool:
        """True if refused messages wait; nothing newer is sent before them."""
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
        """Keep refused entries for another attempt; return True if a new round begins.

        Refusals that come before the next attempt is due belong to the same round.
        """
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
        """Take out at most `most` refused entries, oldest refusal first, to send them again."""
        entries = self.entries
        self._entries = entries[most:]
        return entries[:most]

    def clear(self) -> None:
        """Make refused entries wait in their old place: the connection has ended."""
        for entry in self._entries:
            if entry.state is REFUSED:
                entry.state = WAITING
        self._entries.clear()
