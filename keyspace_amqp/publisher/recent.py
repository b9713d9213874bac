"""Events that were pushed to the list so recently that a demotion may lose them."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable

from ..message import Event
from .entry import DONE, Entry
from .window import WINDOW_BYTES

# Events that were pushed within so many seconds before this node is demoted without having
# agreed are delivered from memory too: the new primary may have taken over before it had
# them, and the list here is replaced together with all other data.
PUSHED_RECENTLY = 2.0


class RecentPushes:
    """The events of the latest pushes, up to WINDOW_BYTES of them.

    `keep`: False outside of a cluster. Somebody has told the node to become a replica
    there, and may have waited for the replica; the order of events counts for more than
    events that nobody waited for.
    """

    def __init__(self, clock: Callable[[], float], *, keep: bool) -> None:
        self._pushes: collections.deque[tuple[float, int, Event]] = collections.deque()
        self._bytes = 0
        self._clock = clock
        self._keep = keep

    def add(self, entries: Iterable[Entry]) -> None:
        """These were pushed just now."""
        if not self._keep:
            return
        now = self._clock()
        for entry in entries:
            if entry.state is not DONE and entry.event is not None:
                self._pushes.append((now, entry.size, entry.event))
                self._bytes += entry.size

    def expire(self) -> None:
        """Forget pushes that are no longer recent, or more than fit."""
        until = self._clock() - PUSHED_RECENTLY
        while self._pushes and (self._pushes[0][0] < until or self._bytes > WINDOW_BYTES):
            self._bytes -= self._pushes.popleft()[1]

    def take(self) -> list[Event]:
        """Take out all events that were pushed recently, oldest first."""
        self.expire()
        events = [event for _, _, event in self._pushes]
        self.clear()
        return events

    def clear(self) -> None:
        """Forget all."""
        self._pushes.clear()
        self._bytes = 0
