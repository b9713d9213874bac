"""Events that were pushed to the list so recently that the new primary may not have them."""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterable

from ..message import Event
from .entry import DONE, Entry
from .window import WINDOW_BYTES

# If this node is demoted without having agreed, events that were pushed within this many
# seconds before are delivered from memory too. The new primary may have taken over before it
# had them, and the list of this node is replaced, together with all its other data.
PUSHED_RECENTLY = 2.0


class RecentPushes:
    """The events of the latest pushes, up to WINDOW_BYTES.

    `wanted`: this node was demoted without having agreed, so they are to be delivered from
    memory. They are kept until they are taken: a push that ran before the demotion may have
    its result only later.

    `keep`: False outside of a cluster, where nothing is kept. There a demotion is a command
    of an operator, who can wait until the replica has everything. Delivering the events twice
    and out of order would be worse than losing those of an operator who did not wait.
    """

    def __init__(self, clock: Callable[[], float], *, keep: bool) -> None:
        self._pushes: collections.deque[tuple[float, int, Event]] = collections.deque()
        self._bytes = 0
        self._clock = clock
        self._keep = keep
        self.wanted = False

    def demoted(self, *, agreed: bool) -> None:
        """Note a demotion. If it is agreed, the new primary has all pushes from before it."""
        self.expire()
        if not agreed:
            self.wanted = self._keep
        elif not self.wanted:
            self.clear()

    def add(self, entries: Iterable[Entry]) -> None:
        """Keep the events of entries that were pushed just now."""
        if not self._keep:
            return
        now = self._clock()
        for entry in entries:
            if entry.state is not DONE and entry.event is not None:
                self._pushes.append((now, entry.size, entry.event))
                self._bytes += entry.size

    def expire(self) -> None:
        """Forget pushes that are no longer recent, or more than fit, unless they are wanted."""
        if self.wanted:
            return
        until = self._clock() - PUSHED_RECENTLY
        while self._pushes and (self._pushes[0][0] < until or self._bytes > WINDOW_BYTES):
            self._bytes -= self._pushes.popleft()[1]

    def take(self) -> list[Event]:
        """Take out all events, oldest first; they are not wanted any more."""
        events = [event for _, _, event in self._pushes]
        self.wanted = False
        self.clear()
        return events

    def clear(self) -> None:
        """Forget all events."""
        self._pushes.clear()
        self._bytes = 0
