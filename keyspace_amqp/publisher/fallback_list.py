"""A list in Redis that the publisher works with: its length, and its known head.

    the list in Redis    | known head              | not read yet |
                         | sent      | not sent    |
    oldest ──────────────────────────────────────────────▶ newest

The known head consists of the oldest elements, up to some place in the list. They were read,
or they were pushed when all elements before them were known. An element leaves the list after
its confirm, never before (rule 10). An element that the broker has refused moves to the end
of the list of refused events; if it is in that list already, to the end of it.
"""

from __future__ import annotations

import collections
import enum
import itertools
from collections.abc import Sequence

from .entry import DONE, REFUSED, SENT, WAITING, Entry, fitting, size_of
from .ledger import Ledger
from .window import WINDOW_BYTES, Window


class ListState(enum.Enum):
    """The state of the list.

    UNKNOWN: no list is chosen yet, or its length is not known. READY: its length is known.
    NONE: memory does not wait for a list, because the key holds something else, its slot
    went to another node, or this node has no slot.
    """

    UNKNOWN = "unknown"
    READY = "ready"
    NONE = "none"


class FallbackList:
    """The list's key, length and known head.

    `length`: elements in Redis. `done` and `done_bytes`: elements that are DONE and not
    trimmed yet. `refused`: elements that are REFUSED and not moved yet. `unsent_bytes`: bytes
    of the known elements that are not sent. `generation` changes whenever the known head is
    forgotten: the replies of a read or a trim that was made before that are ignored.
    """

    def __init__(self, window: Window, ledger: Ledger) -> None:
        self.key: bytes | None = None
        self.state = ListState.UNKNOWN
        self.length = 0
        self.removed = 0  # elements that have left its head, since it was chosen
        self.done = 0
        self.done_bytes = 0
        self.refused = 0
        self.trimming = 0  # elements in a trim job
        self.unsent_bytes = 0
        self.generation = 0
        self._head: collections.deque[Entry] = collections.deque()
        self._sent = 0  # this many elements of the known head, from its start, were sent
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
        """Return how many elements stand behind the known head."""
        return self.length - len(self._head)

    @property
    def end(self) -> int:
        """Return the place of the next element. An element keeps its place until it is removed, or
        until `generation` changes."""
        return self.removed + self.length

    @property
    def known_end(self) -> int:
        """Return the place of the first element behind the known head."""
        return self.removed + len(self._head)

    @property
    def unsent(self) -> int:
        """Return how many of the known elements are not sent."""
        return len(self._head) - self._sent

    @property
    def undelivered(self) -> int:
        """Return how many elements are not DONE."""
        return self.length - self.done

    # ---- sending -------------------------------------------------------------

    def take(self, most: int, size: int) -> list[Entry]:
        """Return the next known elements, whose turn to be sent has come.

        Return at most `most`, and as many as fit into WINDOW_BYTES behind `size` bytes that
        are in flight already. The caller sends only those that are WAITING: others were sent
        from memory before they were pushed, or are no events.
        """
        entries = list(itertools.islice(self._head, self._sent, self._sent + most))
        del entries[fitting(entries, size, WINDOW_BYTES) :]
        self._sent += len(entries)
        self.unsent_bytes -= size_of(entries)
        return entries

    @property
    def in_flight(self) -> int:
        """Return how many of the known elements are in flight."""
        return sum(entry.state is SENT for entry in self._head)

    def mark_refused(self, entry: Entry) -> None:
        """Make an element of the known head, which was in flight, REFUSED."""
        entry.state = REFUSED
        self.refused += 1

    def give_up(self, entry: Entry) -> None:
        """Count an element of the known head, in any state, as DONE."""
        self.refused -= entry.state is REFUSED
        self.mark_done(entry)

    def mark_done(self, entry: Entry) -> None:
        """Count an element of the known head as DONE."""
        self.done += 1
        self.done_bytes += entry.size

    def done_prefix(self) -> list[Entry]:
        """Return the elements that can be trimmed: the first ones, as far as they are DONE."""
        sent = itertools.islice(self._head, self._sent)
        return list(itertools.takewhile(lambda entry: entry.state is DONE, sent))

    def settled_prefix(self) -> list[Entry]:
        """Return the first elements, as far as they are DONE or REFUSED."""
        sent = itertools.islice(self._head, self._sent)
        return list(itertools.takewhile(lambda entry: entry.state in (DONE, REFUSED), sent))

    def resend_refused(self) -> None:
        """Make all REFUSED elements wait to be sent again, in their places."""
        places = [place for place, entry in enumerate(self._head) if entry.state is REFUSED]
        for place in places:
            self._head[place].state = WAITING
        self.refused = 0
        self._sent = min([self._sent, *places])
        self.unsent_bytes = size_of(itertools.islice(self._head, self._sent, None))

    def link_lost(self, *, resend_refused: bool) -> None:
        """Send again what was sent, except for elements that can be trimmed.

        `resend_refused`: also those that are REFUSED, because there is no list to move them to.
        """
        if self.refused and resend_refused:
            for entry in itertools.islice(self._head, self.trimming, None):
                if entry.state is REFUSED:
                    entry.state = WAITING
                    self.refused -= 1
        self._sent = max(len(self.done_prefix()), self.trimming)
        self.unsent_bytes = size_of(itertools.islice(self._head, self._sent, None))

    # ---- results of jobs -------------------------------------------------------------

    def set_length(self, length: int) -> int:
        """Set the length that was read; return how many elements others have added.

        The number is negative if they have removed elements. Then the known head is
        forgotten, because it is not known which ones they have removed.
        """
        if length < self.length:
            self.forget_head()
        change = length - self.length
        self.length = length
        self.state = ListState.READY
        return change

    def read(self, entries: Sequence[Entry]) -> None:
        """Add elements that were read to the known head."""
        self._head.extend(entries)
        self.unsent_bytes += size_of(entries)

    def enlist(self, entry: Entry) -> None:
        """Add an entry of memory to the known head: it is the list's last element now."""
        self.length += 1
        entry.listed = True
        if entry.state is DONE:
            self.mark_done(entry)
        self.refused += entry.state is REFUSED
        # The known head stays in the list's order. So an entry that was sent counts as
        # unsent if it comes behind one that was not; the caller of `take` does not send it
        # again.
        if self.unsent or entry.state is WAITING:
            self.unsent_bytes += entry.size
        else:
            self._sent += 1
        self._head.append(entry)

    def grow(self, count: int) -> None:
        """Count elements that were pushed, and that will be read when their turn comes."""
        self.length += count

    def trimmed(self, count: int) -> None:
        """Remove the first `count` elements, which were DONE, or REFUSED and moved."""
        entries = [self._head.popleft() for _ in range(count)]
        done = [entry for entry in entries if entry.state is DONE]
        self._sent -= count
        self.length -= count
        self.removed += count
        self.refused -= count - len(done)
        self.done -= len(done)
        self.done_bytes -= size_of(done)
        self._ledger.drained(len(done))

    def cut(self, count: int) -> int:
        """Remove the oldest elements, which fell off a full list; return how many were lost.

        Confirmed ones are not lost.
        """
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
                self.refused -= entry.state is REFUSED
                self._window.give_up(entry)
        self.length -= count
        self.removed += count
        return lost

    # ---- forgetting ----------------------------------------------------------------

    def forget_head(self) -> None:
        """Forget the known head, which may differ from the list now; it is read again.

        Confirmed elements that were not trimmed will be delivered once more, so they count
        as found.
        """
        for entry in self._head:
            self._window.give_up(entry)
        self._head.clear()
        self._sent = 0
        self._ledger.found(self.done)
        self.done = self.done_bytes = self.refused = self.trimming = self.unsent_bytes = 0
        self.generation += 1

    def hand_over(self) -> None:
        """Stop counting the list: another node delivers it, or its length is read anew."""
        self.forget_head()
        self._ledger.found(-self.length)
        self.length = 0

    def leave(self) -> None:
        """Stop working with the list, because it may not belong to this node any more."""
        self.hand_over()
        self.key = None
        self.state = ListState.UNKNOWN

    def choose(self, key: bytes, length: int) -> None:
        """Work with this list from now on. `length`: its elements that are counted already."""
        self.key = key
        self.length = length
        self.state = ListState.UNKNOWN
