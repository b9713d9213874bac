"""Events that were given up one by one, and that users can look at.

Each is counted as dropped. They are in no list that Redis saves: they are lost when the
module is unloaded, or when many others follow.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Sequence

from ..failures import EventError, made_of, shown
from ..fallback import to_element
from ..tables.stats import Stat
from .entry import Entry
from .fallback_list import FallbackList
from .ledger import Ledger
from .memory import Memory
from .window import Window

# Events that are kept, at most: their number, and the bytes of their elements. The oldest go.
KEPT = 1000
KEPT_BYTES = 4 * 1024 * 1024

# The reasons for the log, which are the same for all events of a kind.
_WHY = {
    Stat.DROPPED_TOO_LARGE: "they are larger than the broker takes",
    Stat.DROPPED_SET_ASIDE: "the broker closed the channel over each of them, and took others",
    Stat.DROPPED_HANDLER_ERROR: "the handler failed on them",
}


@dataclasses.dataclass(frozen=True)
class GivenUp:
    """An event that was given up: as an element of the list, why, and when.

    `at_ms`: Unix time in milliseconds. `element` is empty if none can be made of the event.
    """

    element: bytes
    why: str
    at_ms: int


class Aside:
    """Gives up entries, wherever they are, and keeps the newest of them.

    `wall`: Unix time in milliseconds.
    """

    def __init__(
        self,
        listed: FallbackList,
        memory: Memory,
        window: Window,
        ledger: Ledger,
        wall: Callable[[], int],
    ) -> None:
        self._list = listed
        self._memory = memory
        self._window = window
        self._ledger = ledger
        self._wall = wall
        self._kept: collections.deque[GivenUp] = collections.deque()
        self._bytes = 0

    def give_up(self, entries: Sequence[Entry], reason: Stat, why: str) -> str:
        """Count entries as lost; they are not sent any more. `why`: for the log and users.

        Their events must not be None. An entry that is neither sent nor refused has to be taken
        out of memory by `Publisher.repair`. Return a line about the last of them.
        """
        for entry in entries:
            if entry.listed:
                self._list.mark_done(entry)
            else:
                self._memory.uncount(entry)
            self._window.give_up(entry)
        self._ledger.dropped(reason, len(entries), _WHY[reason])
        text = ""
        for entry in entries:
            text = self._keep(entry, why)
        return text

    def _keep(self, entry: Entry, why: str) -> str:
        assert entry.event is not None
        try:
            element = entry.element or made_of(entry.event, to_element)
        except EventError:
            element = b""
        text = f"{shown(entry.event)} is set aside: {why}"
        self._ledger.note(text)
        self._kept.append(GivenUp(element, why, self._wall()))
        self._bytes += len(element)
        while len(self._kept) > KEPT or self._bytes > KEPT_BYTES:
            self._bytes -= len(self._kept.popleft().element)
        return text

    def newest(self, count: int) -> list[GivenUp]:
        """Return at most `count` of the events that are kept, newest first."""
        return [self._kept[-number] for number in range(1, min(count, len(self._kept)) + 1)]
