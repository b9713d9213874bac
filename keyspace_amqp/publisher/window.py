"""The window of confirms: messages that were sent on this connection and are unconfirmed."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from .entry import DONE, SENT, Entry, size_of

# Messages in flight: what RabbitMQ confirms in about 60 ms at its fastest, so that it
# always has something to do while the worker does something else.
WINDOW = 4000
# And their bytes: with a silent broker pika's buffer may hold so many. The same bound holds
# for elements of the list that are read and not sent, and for confirmed elements that wait
# for their trim.
WINDOW_BYTES = 16 * 1024 * 1024
# A connected broker that confirms nothing for so many seconds is treated as if it were away.
STALLED_AFTER = 0.25


class Window:
    """Delivery tags and the entries that wait for their confirms.

    `_slots` has one slot per tag, from the oldest unconfirmed one on. A slot is stale if it
    is None (its tag was settled alone) or if its entry is not SENT (it was given up).
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.size = WINDOW  # smaller after refusals
        self.count = 0  # messages in flight
        self.bytes = 0  # and their bytes
        self.next_tag = 1
        self._slots: collections.deque[Entry | None] = collections.deque()
        self._clock = clock
        self._progress_at = clock()  # of the last answer, or of the first message after none

    def __len__(self) -> int:
        """Return the number of slots, stale ones among them."""
        return len(self._slots)

    def open(self) -> None:
        """A new connection: tags start from 1."""
        self.size = WINDOW
        self.next_tag = 1
        self._progress_at = self._clock()

    @property
    def room(self) -> int:
        """Return how many more messages may be sent."""
        return max(0, self.size - self.count)

    @property
    def is_busy(self) -> bool:
        """True if the broker has enough to do for some 30 ms."""
        return self.count > WINDOW // 2

    @property
    def is_stalled(self) -> bool:
        """True if messages are in flight and the broker has answered nothing for a while."""
        return bool(self._slots) and self._clock() >= self._progress_at + STALLED_AFTER

    @property
    def stalls_at(self) -> float | None:
        """Return the time from which the broker counts as stalled; None: nothing is in flight."""
        return self._progress_at + STALLED_AFTER if self._slots else None

    def progress(self) -> None:
        """The broker has answered."""
        self._progress_at = self._clock()

    def send(self, entries: Sequence[Entry]) -> int:
        """Put entries into the window, which are sent now; return the first one's tag."""
        if not self._slots:
            self._progress_at = self._clock()
        first_tag = self.next_tag
        for entry in entries:
            entry.state = SENT
        self._slots.extend(entries)
        self.next_tag += len(entries)
        self.count += len(entries)
        self.bytes += size_of(entries)
        return first_tag

    def settle(self, below: int, tags: Sequence[int] = ()) -> list[Entry]:
        """Take the entries that answers of the broker are about out of the window.

        Those with tags up to `below`, and those with these `tags`. They are still SENT; the
        caller changes that. Tags that were settled before, or never sent, are ignored.
        """
        slots, first, end = self._slots, self.next_tag - len(self._slots), self.next_tag
        taken: list[Entry | None] = []
        if first <= below < end:
            taken = [slots.popleft() for _ in range(below - first + 1)]
            first = below + 1
        for tag in tags:
            if first <= tag < end:
                taken.append(slots[tag - first])
                slots[tag - first] = None
        entries = [entry for entry in taken if entry is not None and entry.state is SENT]
        self.count -= len(entries)
        self.bytes -= size_of(entries)
        # Stale slots at the head are of no use any more.
        while slots and ((head := slots[0]) is None or head.state is not SENT):
            slots.popleft()
        return entries

    def give_up(self, entry: Entry) -> None:
        """The entry is DONE, and nobody waits for its confirm."""
        if entry.state is SENT:
            self.count -= 1
            self.bytes -= entry.size
        entry.state = DONE

    def in_flight(self) -> list[Entry]:
        """Return the entries that wait for a confirm, in the order of sending."""
        return [entry for entry in self._slots if entry is not None and entry.state is SENT]

    def close(self) -> list[Entry]:
        """The connection is gone: return what was in flight, and forget the tags."""
        entries = self.in_flight()
        self._slots.clear()
        self.count = self.bytes = 0
        return entries

    def grow(self, count: int) -> None:
        """So many messages were confirmed: let the window grow again."""
        self.size = min(WINDOW, self.size + count)

    def shrink(self) -> None:
        """The broker has refused messages: halve the window."""
        self.size = max(1, self.size // 2)
