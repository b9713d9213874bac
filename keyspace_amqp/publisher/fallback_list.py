"""The fallback list that the publisher works with: what is known of it.

    the list in Redis    | known head              | not read yet |
                         | sent      | not sent    |
    oldest ──────────────────────────────────────────────▶ newest

The known head are the elements that were read, or that were pushed behind a list that is
known whole. An element leaves the list after its confirm, never before (rule 10).
"""

from __future__ import annotations

import collections
import enum
import itertools
from collections.abc import Sequence

from .entry import DONE, WAITING, Entry, fitting, size_of
from .ledger import Ledger
from .window import WINDOW_BYTES, Window


class ListState(enum.Enum):
    """The state of the list.

    UNKNOWN: it is not chosen yet, or its length was not read. READY: its length is known.
    NONE: there is no list to wait for, because the key holds something else, its slot went
    to another node, or this node has no slot.
    """

    UNKNOWN = "unknown"
    READY = "ready"
    NONE = "none"


class FallbackList:
    """The list's key, length and known head.

    `done` and `done_bytes`: elements that are confirmed and not trimmed yet. `unsent_bytes`:
    bytes of the known elements that are not sent. `generation` changes whenever the known
    head is forgotten: a job that was made before means nothing then.
    """

    def __init__(self, window: Window, ledger: Ledger) -> None:
        self.key: bytes | None = None
        self.state = ListState.UNKNOWN
        self.length = 0
        self.done = 0
        self.done_bytes = 0
        self.unsent_bytes = 0
        self.generation = 0
        self._head: collections.deque[Entry] = collections.deque()
        self._sent = 0  # the first so many of the known head were sent
        self._window = window
        self._ledger = ledger

    @property
    def known(self) -> Sequence[Entry]:
        """Return the known head."""
        return self._head

    @property
    def is_ready(self) -> bool:
        """True if the length of the list is known."""
        return self.state is ListState.READY

    @property
    def unread(self) -> int:
        """Return how many elements are behind the known head."""
        return self.length - len(self._head)

    @property
    def unsent(self) -> int:
        """Return how many of the known elements are not sent."""
        return len(self._head) - self._sent

    @property
    def undelivered(self) -> int:
        """Return how many elements are not confirmed."""
        return self.length - self.done

    # ---- sending -------------------------------------------------------------

    def take(self, most: int, size: int) -> list[Entry]:
        """Return the next known elements, as many as fit into the window.

        At most `most`, and as long as they and `size` bytes before them are below
        WINDOW_BYTES. Only those that are WAITING are to be sent: others are in flight
        already, or no events.
        """
        entries = list(itertools.islice(self._head, self._sent, self._sent + most))
        del entries[fitting(entries, size, WINDOW_BYTES) :]
        self._sent += len(entries)
        self.unsent_bytes -= size_of(entries)
        return entries

    def mark_done(self, entry: Entry) -> None:
        """An element of the known head is DONE."""
        self.done += 1
        self.done_bytes += entry.size

    def done_prefix(self) -> list[Entry]:
        """Return the elements at the head that are DONE and can be trimmed."""
        sent = itertools.islice(self._head, self._sent)
        return list(itertools.takewhile(lambda entry: entry.state is DONE, sent))

    def link_lost(self) -> None:
        """What was sent waits again; confirmed elements at the head stay trimmable."""
        self._sent = len(self.done_prefix())
        self.unsent_bytes = size_of(itertools.islice(self._head, self._sent, None))

    # ---- what jobs have read and changed -------------------------------------------

    def set_length(self, length: int) -> int:
        """The length was read; return how many elements others have added (or removed)."""
        if length < self.length:
            self.forget_head()
        change = length - self.length
        self.length = length
        self.state = ListState.READY
        return change

    def read(self, entries: Sequence[Entry]) -> None:
        """Elements behind the known head were read."""
        self._head.extend(entries)
        self.unsent_bytes += size_of(entries)

    def enlist(self, entry: Entry) -> None:
        """An entry of memory is the list's last element now, and is known."""
        self.length += 1
        entry.listed = True
        if entry.state is DONE:
            self.mark_done(entry)
        # Behind an element that is not sent yet, even a sent one waits for its turn: the
        # known head stays in the list's order. It is not sent again.
        if self.unsent or entry.state is WAITING:
            self.unsent_bytes += entry.size
        else:
            self._sent += 1
        self._head.append(entry)

    def grow(self, count: int) -> None:
        """Elements were pushed that are to be read again in their turn."""
        self.length += count

    def trimmed(self, count: int) -> None:
        """The first elements, which were DONE, are removed."""
        entries = [self._head.popleft() for _ in range(count)]
        self._sent -= count
        self.length -= count
        self.done -= count
        self.done_bytes -= size_of(entries)
        self._ledger.drained(count)

    def cut(self, count: int) -> int:
        """The oldest elements fell off a full list; return how many of them were lost."""
        lost = count
        for _ in range(min(count, len(self._head))):
            entry = self._head.popleft()
            if self._sent:
                self._sent -= 1
            else:
                self.unsent_bytes -= entry.size
            if entry.state is DONE:
                self.done -= 1
                self.done_bytes -= entry.size
                self._ledger.drained(1)
                lost -= 1
            else:
                self._window.give_up(entry)
        self.length -= count
        return lost

    # ---- losing sight of it -----------------------------------------------------

    def forget_head(self) -> None:
        """What is known of the elements is not true any more; they are read again.

        Confirmed elements that were not trimmed count as found anew.
        """
        for entry in self._head:
            self._window.give_up(entry)
        self._head.clear()
        self._sent = 0
        self._ledger.found(self.done)
        self.done = self.done_bytes = self.unsent_bytes = 0
        self.generation += 1

    def hand_over(self) -> None:
        """The list is another node's to deliver, or is to be looked at anew."""
        self.forget_head()
        self._ledger.found(-self.length)
        self.length = 0

    def leave(self) -> None:
        """The list is not this node's any more, or nobody knows."""
        self.hand_over()
        self.key = None
        self.state = ListState.UNKNOWN

    def choose(self, key: bytes, length: int) -> None:
        """Work with this list from now on."""
        self.key = key
        self.length = length
        self.state = ListState.UNKNOWN
