"""The window: the messages in flight, their delivery tags, and how many more may be sent."""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence

from .entry import DONE, SENT, WAITING, Entry, size_of

# Messages in flight, at most. RabbitMQ at its fastest takes about 60 ms to confirm as many,
# so it stays busy while the worker does something else.
WINDOW = 4000
# Bytes of the messages in flight, at most: pika's buffer has to hold them if the broker reads
# nothing. The same bound holds for elements of the list that are read and not sent, and for
# confirmed elements that wait for their trim.
WINDOW_BYTES = 16 * 1024 * 1024
# A connected broker that answers nothing for this many seconds is treated as out of reach.
STALLED_AFTER = 0.25


class Window:
    """Delivery tags, and the entries that wait for their confirms.

    `_slots` has one slot per tag, from the oldest unconfirmed one on. A slot is stale if it
    is None (its tag was settled before older ones) or if its entry is not SENT any more (it
    was given up). `count` and `bytes` leave stale slots out.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.size = WINDOW  # messages, at most; smaller after refusals
        self.count = 0  # messages in flight
        self.bytes = 0  # bytes of the messages in flight
        self.next_tag = 1
        self._slots: collections.deque[Entry | None] = collections.deque()
        self._clock = clock
        # The time of the last answer; if nothing was in flight then, of the next message.
        self._progress_at = clock()

    def __len__(self) -> int:
        """Return the number of slots, including stale ones."""
        return len(self._slots)

    def open(self) -> None:
        """Start anew with a new connection: tags begin with 1, and the window has its full size."""
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
        """True if messages are in flight, and no answer came for STALLED_AFTER seconds."""
        return bool(self._slots) and self._clock() >= self._progress_at + STALLED_AFTER

    @property
    def stalls_at(self) -> float | None:
        """Return the time from which on the broker is stalled; None: nothing is in flight."""
        return self._progress_at + STALLED_AFTER if self._slots else None

    def progress(self) -> None:
        """Note that the broker has answered."""
        self._progress_at = self._clock()

    def send(self, entries: Sequence[Entry]) -> int:
        """Put entries that are sent now into the window; return the tag of the first one."""
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
        """Take entries that the broker has answered out of the window, and return them.

        They are the entries with tags up to and including `below`, and those with one of
        `tags`. The caller changes their state, which still is SENT. Tags that were settled
        before, or never sent, are ignored.
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
        # The oldest slot has to belong to an entry in flight.
        while slots and ((head := slots[0]) is None or head.state is not SENT):
            slots.popleft()
        return entries

    def give_up(self, entry: Entry) -> None:
        """Make the entry DONE; if it is in flight, its confirm will be ignored."""
        if entry.state is SENT:
            self.count -= 1
            self.bytes -= entry.size
        entry.state = DONE

    def in_flight(self) -> list[Entry]:
        """Return the entries that wait for a confirm, in the order of sending."""
        return [entry for entry in self._slots if entry is not None and entry.state is SENT]

    def close(self) -> list[Entry]:
        """Empty the window: the connection has ended. Return the entries, which wait again."""
        entries = self.in_flight()
        for entry in entries:
            entry.state = WAITING
        self._slots.clear()
        self.count = self.bytes = 0
        return entries

    def grow(self, count: int) -> None:
        """Let the window grow by the number of confirmed messages, up to its full size."""
        self.size = min(WINDOW, self.size + count)

    def shrink(self) -> None:
        """Halve the window, because the broker has refused messages."""
        self.size = max(1, self.size // 2)
