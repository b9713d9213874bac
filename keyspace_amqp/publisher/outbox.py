"""The outbox, as the publisher sees it: events that come in as elements of the list, and what the
outbox has to know about lists and memory. worker/outbox.py decides when it opens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..fallback import JOB_ELEMENTS
from ..message import Event
from .entry import Entry, fitting
from .ledger import Ledger
from .link import Link
from .lists import Lists
from .memory import Memory
from .window import WINDOW_BYTES, Window


class OutboxView:
    """See the module's docstring.

    `storing_all`: the outbox waits until all events of memory are in the list. `takes_pushes`:
    returns True if the list takes pushes now, and will.
    """

    def __init__(
        self,
        link: Link,
        window: Window,
        memory: Memory,
        lists: Lists,
        ledger: Ledger,
        clock: Callable[[], float],
        takes_pushes: Callable[[], bool],
    ) -> None:
        self.storing_all = False
        self._link = link
        self._window = window
        self._memory = memory
        self._lists = lists
        self._list = lists.current
        self._ledger = ledger
        self._clock = clock
        self._takes_pushes = takes_pushes

    # ---- events --------------------------------------------------------------

    def listed(self, key: bytes, count: int, length: int, lost: int = 0) -> tuple[int, int] | None:
        """Count elements that the outbox has put to the end of a list; see Lists.listed.

        `lost`: elements before them of which the publisher was not told, because the handler failed
        over that. The length of the list shows them, so that they are counted as found.
        """
        self._ledger.matched(count + lost)
        self._ledger.pushed(count + lost)
        self._ledger.found(-lost)
        return self._lists.listed(key, count, length)

    def add_listed(self, events: Sequence[Event], place: tuple[int, int]) -> None:
        """Take in events that are elements of the list, from this place on.

        They are ignored if elements before them are not known, or if enough elements are: then
        they will be read when their turn comes.
        """
        at, generation = place
        known = self._list.known_end - at
        room = 2 * JOB_ELEMENTS - self._list.unsent
        if generation != self._list.generation or known < 0 or room <= 0:
            return
        now = self._clock()
        entries = [Entry(event, now) for event in events[known : known + room]]
        del entries[fitting(entries, self._list.unsent_bytes, WINDOW_BYTES) :]
        for entry in entries:
            entry.listed = True
        self._list.read(entries)

    @property
    def wants_records(self) -> bool:
        """True if events that are put into the list can be sent soon."""
        return self._link.is_up and self._list.unread < JOB_ELEMENTS

    # ---- opening -------------------------------------------------------------

    @property
    def key(self) -> bytes | None:
        """Return the key of the list that takes all events, if it takes pushes now."""
        return self._list.key if self._takes_pushes() else None

    @property
    def has_memory(self) -> bool:
        """True if events are in memory that are older than new ones."""
        return bool(self._memory)

    @property
    def may_store(self) -> bool:
        """True if the events of memory may be pushed while the outbox waits for them."""
        # Pushed behind unread elements, what was sent would be read and sent again.
        return not (self._list.unread and self._memory.sent)

    def keep_list(self, key: bytes | None) -> None:
        """Note into which list the outbox may put events at any moment; None: into none."""
        self._lists.kept = key

    @property
    def changes_list(self) -> bool:
        """True if the outbox should be held, because another list is to be chosen.

        It is if the present one can be emptied soon: events that come all the time would keep it
        from that.
        """
        answers = self._link.is_up and not self._window.is_stalled
        soon = answers and not self._list.unread
        return self._lists.waits_for_outbox or (self._lists.has_next and soon)
