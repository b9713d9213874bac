"""Events that were given up one by one, and that users can look at.

Each is counted as dropped. They are in no list that Redis saves: they are lost when the
module is unloaded, or when many others follow.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from ..failures import EventError, Strikes, shown
from ..fallback import from_element
from ..message import Event
from ..tables.stats import Stat
from ..values import mutable, value
from .entry import DONE, Entry, element_of
from .ledger import Ledger
from .lists import Lists
from .memory import Memory
from .window import Window

# Events that are kept, at most: their number, and the bytes of their elements. The oldest go.
KEPT = 1000
KEPT_BYTES = 4 * 1024 * 1024
# Bytes of an element that is kept, at most. A longer element would push out all the others, and no
# reply has room for it: only its description is kept.
ELEMENT_KEPT = 256 * 1024
# Bytes of an element that a line of the log shows, at most.
ELEMENT_SHOWN = 200

# The reasons for the log, which are the same for all events of a kind.
_WHY = {
    Stat.DROPPED_TOO_LARGE: "they are larger than the broker takes",
    Stat.DROPPED_SET_ASIDE: "the broker closed the channel over each of them, and took others",
    Stat.DROPPED_HANDLER_ERROR: "the handler failed on them",
    Stat.DROPPED_UNREADABLE: "an element of the list is not an event",
}


@value
class GivenUp:
    """An event that was given up: as an element of the list, why, and when.

    `at_ms`: Unix time in milliseconds. `element` is empty if none can be made of the event, or
    if it is longer than ELEMENT_KEPT; then `why` names the event.
    """

    element: bytes
    why: str
    at_ms: int


@mutable
class _Hopeless:
    """An event or an element over which the handler fails. `counted`: it is counted as lost."""

    why: str
    counted: bool = False


class Aside:
    """Gives up entries, wherever they are, and keeps the newest of them.

    `wall`: Unix time in milliseconds.
    """

    def __init__(
        self,
        lists: Lists,
        memory: Memory,
        refused: Memory,
        window: Window,
        ledger: Ledger,
        wall: Callable[[], int],
    ) -> None:
        self._lists = lists
        self._memory = memory
        self._refused = refused
        self._window = window
        self._ledger = ledger
        self._wall = wall
        self._kept: collections.deque[GivenUp] = collections.deque()
        self._bytes = 0
        self._strikes = Strikes()
        # Events by their ids, and elements that cannot be read; the newest KEPT.
        self._hopeless: dict[str | bytes, _Hopeless] = {}

    def give_up(self, entries: Sequence[Entry], reason: Stat, why: str) -> str:
        """Count entries as lost; they are not sent any more. `why`: for the log and users.

        Their events must not be None. An entry that is neither sent nor refused has to be taken
        out of memory by `Publisher.repair`. Return a line about the last of them.
        """
        for entry in entries:
            if entry.listed:
                one = self._lists.refused if entry.refused else self._lists.current
                one.give_up(entry)
            else:
                (self._refused if entry.refused else self._memory).uncount(entry)
            self._window.give_up(entry)
        self._ledger.dropped(reason, len(entries), _WHY[reason])
        text = ""
        for entry in entries:
            text = self._keep(entry, why)
        return text

    def _keep(self, entry: Entry, why: str) -> str:
        assert entry.event is not None
        try:
            element = element_of(entry)
        except EventError:
            element = b""
        what = shown(entry.event)
        text = f"{what} is set aside: {why}"
        self._ledger.note(text)
        self._keep_element(element, why, what)
        return text

    def _keep_element(self, element: bytes, why: str, what: str) -> None:
        if not element or len(element) > ELEMENT_KEPT:
            element, why = b"", f"{what}, {why}"
        self._kept.append(GivenUp(element, why, self._wall()))
        self._bytes += len(element)
        while len(self._kept) > KEPT or self._bytes > KEPT_BYTES:
            self._bytes -= len(self._kept.popleft().element)

    # ---- events over which the handler fails --------------------------------

    def failed_over(self, event: Event, why: str) -> None:
        """Note that the handler has failed over this event; `Publisher.repair` has to follow.

        After STRIKES times in a row it is given up: at once if it is in memory; when it is
        read again if it is in the list. `why`: for the log and users.
        """
        if not self._strikes.failed(event.message_id):
            return
        self._note_hopeless(event.message_id, why)
        entries = [
            entry
            for entry in (*self._refused, *self._memory)
            if entry.event is not None
            and entry.event.message_id == event.message_id
            and entry.state is not DONE
        ]
        self.give_up(entries, Stat.DROPPED_HANDLER_ERROR, why)
        self._hopeless[event.message_id].counted = bool(entries)

    def _note_hopeless(self, what: str | bytes, why: str) -> None:
        self._hopeless[what] = _Hopeless(why)
        if len(self._hopeless) > KEPT:
            del self._hopeless[next(iter(self._hopeless))]

    def event_in(self, element: bytes) -> Event | Stat:
        """Return the event in an element of the list, or the reason for which it is lost.

        Raises an exception if the handler fails over the element, but not for ever.
        """
        if self._hopeless and element in self._hopeless:
            return Stat.DROPPED_HANDLER_ERROR
        try:
            event = from_element(element)
        except Exception as error:
            if not self._strikes.failed(element):
                raise
            self._note_hopeless(element, f"{type(error).__name__}: {error}")
            return Stat.DROPPED_HANDLER_ERROR
        if event is None:
            return Stat.DROPPED_UNREADABLE
        return Stat.DROPPED_HANDLER_ERROR if event.message_id in self._hopeless else event

    def lost(self, element: bytes, reason: Stat) -> None:
        """Count an element of the list as lost, for a reason that `event_in` has returned."""
        hopeless = self._hopeless.get(element)
        what = f"the element {element[:ELEMENT_SHOWN]!r}"
        if reason is Stat.DROPPED_HANDLER_ERROR and hopeless is None:
            event = from_element(element)
            assert event is not None
            what, hopeless = shown(event), self._hopeless[event.message_id]
        if hopeless is None:
            self._ledger.dropped(reason, 1, _WHY[reason])
        elif hopeless.counted:  # the list is read again, and this element counts as found again
            self._ledger.found(-1)
        else:
            hopeless.counted = True
            self._ledger.dropped(reason, 1, _WHY[reason])
            self._ledger.note(f"{what} is set aside: {hopeless.why}")
            self._keep_element(element, hopeless.why, what)

    # ---- for users -----------------------------------------------------------

    def newest(self, count: int) -> list[GivenUp]:
        """Return at most `count` of the events that are kept, newest first."""
        return [self._kept[-number] for number in range(1, min(count, len(self._kept)) + 1)]
