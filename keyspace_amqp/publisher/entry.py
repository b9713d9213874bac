"""An entry: an event on its way through the publisher."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

from ..failures import EventError
from ..fallback import to_element
from ..message import EVENT_BYTES, Event


class State(enum.IntEnum):
    """The state of an entry.

    WAITING: to be sent. SENT: in flight; the window has its delivery tag. REFUSED: the
    broker has answered with a nack; it will move to the refused events, in memory or in
    their list. DONE: confirmed, or not to be sent any more. HELD: passed over; it is sent
    after others.
    """

    WAITING = 0
    SENT = 1
    REFUSED = 2
    DONE = 3
    HELD = 4


# For the hot path: looking up State.SENT takes longer than comparing with it.
WAITING, SENT, REFUSED, DONE, HELD = State


_LISTED, _REFUSED_EVENT = 1, 2


class Entry:
    """An event with its state, in memory or in the known head of the list.

    `event`: None for an element of the list that is not an event. `at`: the time at which it
    came in, in the publisher's clock. `element`: its form in the list; None until that was
    made or read. `listed`: True for an element of a list, False for an event in memory.
    `refused`: it is one of the refused events. `size`: the approximate bytes of memory that
    it takes.
    """

    __slots__ = ("at", "element", "event", "place", "size", "state")

    def __init__(self, event: Event | None, at: float, element: bytes | None = None) -> None:
        self.event = event
        self.at = at
        self.element = element
        self.state = WAITING
        self.place = 0  # the bits of `listed` and `refused`; one look tells that both are False
        self.size = 0
        if event is not None:
            self.size = len(event.key) + len(event.name) + EVENT_BYTES
            if event.value is not None or event.subkeys is not None:
                self.size += event.more_bytes

    @property
    def listed(self) -> bool:
        return self.place & _LISTED != 0

    @listed.setter
    def listed(self, listed: bool) -> None:
        self.place = self.place | _LISTED if listed else self.place & ~_LISTED

    @property
    def refused(self) -> bool:
        return self.place & _REFUSED_EVENT != 0

    @refused.setter
    def refused(self, refused: bool) -> None:
        self.place = self.place | _REFUSED_EVENT if refused else self.place & ~_REFUSED_EVENT


def size_of(entries: Iterable[Entry]) -> int:
    """Return the bytes of memory that these entries take."""
    return sum([entry.size for entry in entries])


def element_of(entry: Entry) -> bytes:
    """Return the entry as an element of the list. Raises EventError if that fails."""
    if entry.element is not None:
        return entry.element
    assert entry.event is not None
    try:
        return to_element(entry.event)
    except Exception as error:
        raise EventError(entry.event) from error


def fitting(entries: Sequence[Entry], size: int, limit: int) -> int:
    """Return how many of the entries fit into `limit` bytes, of which `size` are taken.

    An entry fits if the bytes before it are below the limit, however large it is itself:
    so an entry that is larger than the limit can be sent too, alone.
    """
    if entries and size + size_of(entries) - entries[-1].size < limit:
        return len(entries)
    for count, entry in enumerate(entries):
        if size >= limit:
            return count
        size += entry.size
    return len(entries)
