"""An entry: an event on its way through the publisher."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence

from ..fallback import to_element
from ..message import EVENT_BYTES, Event


class State(enum.IntEnum):
    """The state of an entry.

    SENT: its confirm is awaited, and the window has its delivery tag. REFUSED: the broker
    has answered with a nack. DONE: confirmed, or not to be sent any more.
    """

    WAITING = 0
    SENT = 1
    REFUSED = 2
    DONE = 3


# Looking a member up in its enum costs more than all else that is done with it.
WAITING, SENT, REFUSED, DONE = State


class Entry:
    """An event, where it is, and how far it is.

    `event` is None for an element of the list that is no event. `at`: when it came, in
    the clock of `poll`. `element`: its form in the list, if that was made or read.
    `listed`: it is an element of the list; otherwise it is in memory. `size`: bytes of
    memory, about.
    """

    __slots__ = ("at", "element", "event", "listed", "size", "state")

    def __init__(self, event: Event | None, at: float, element: bytes | None = None) -> None:
        self.event = event
        self.at = at
        self.element = element
        self.state = WAITING
        self.listed = False
        self.size = 0
        if event is not None:
            self.size = len(event.key) + len(event.name) + EVENT_BYTES
            if event.value is not None and event.value.data is not None:
                self.size += len(event.value.data)


def size_of(entries: Iterable[Entry]) -> int:
    """Return the bytes of memory that these entries take."""
    return sum([entry.size for entry in entries])


def element_of(entry: Entry) -> bytes:
    """Return the entry as an element of the list."""
    if entry.element is not None:
        return entry.element
    assert entry.event is not None
    return to_element(entry.event)


def fitting(entries: Sequence[Entry], size: int, limit: int) -> int:
    """Return how many of the first entries fit behind `size` bytes.

    One more fits as long as those before it are below `limit`; the first one fits behind
    nothing, however large it is.
    """
    if entries and size + size_of(entries) - entries[-1].size < limit:
        return len(entries)
    for count, entry in enumerate(entries):
        if size >= limit:
            return count
        size += entry.size
    return len(entries)
