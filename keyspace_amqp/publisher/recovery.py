"""The recovery: leftovers of an earlier load that come from a file and are not safe yet."""

from __future__ import annotations

import collections
from collections.abc import Iterable

from .entry import DONE, Entry


class Recovery:
    """The events that the file of leftovers has to keep: neither delivered nor stored.

    `active`: the file is needed. It has more events than were read so far, or some of those
    that were read are not safe.
    """

    def __init__(self) -> None:
        self.active = False
        self._more = False
        self._entries: collections.deque[Entry] = collections.deque()

    def read(self, entries: Iterable[Entry], *, more: bool) -> None:
        """Note events that were read from the file; `more`: there are more in it."""
        self.active = True
        self._entries.extend(entries)
        self._more = more

    def keep(self, entries: Iterable[Entry]) -> None:
        """Note events that may be of the file, and that the list does not keep safe any more."""
        if self.active:
            self._entries.extend(entries)

    def ends(self) -> bool:
        """True once, when all events of the file are safe or lost."""
        entries = self._entries
        while entries and (entries[0].state is DONE or entries[0].listed):
            entries.popleft()
        ended = self.active and not entries and not self._more
        self.active = self.active and not ended
        return ended

    def give_up(self) -> None:
        """Forget all events: the load ends."""
        self._entries.clear()
        self.active = self._more = False
