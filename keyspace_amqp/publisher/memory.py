"""Events in memory: a log, oldest first, with two marks.

    | being stored |                             the first `storing` are in a push job
    | sent                 |                     the first `sent` were sent, or refused
    oldest ──────────────────────────▶ newest

Everything in the fallback list is older than everything in memory. After a lost connection
the mark `sent` goes back to 0, so that entries without a confirm wait again in their old
place.

The publisher has two logs: one for all events, and one for those that the broker has refused.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Iterator, Sequence

from .entry import DONE, REFUSED, SENT, WAITING, Entry, fitting, size_of
from .window import WINDOW, WINDOW_BYTES


class Memory:
    """The log, and how many of its entries wait or are in flight.

    `waiting` and `waiting_bytes`: entries that are not in flight, including refused ones.
    `in_flight`: entries that are. An entry that is DONE is in no count; it leaves the log
    when all older entries have left it, or when the log has many of them.
    """

    def __init__(self) -> None:
        self.storing = 0
        self.sent = 0
        self.waiting = 0
        self.waiting_bytes = 0
        self.in_flight = 0
        self._refused = 0  # entries that are REFUSED
        self._log: collections.deque[Entry] = collections.deque()

    def __len__(self) -> int:
        return len(self._log)

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._log)

    @property
    def oldest(self) -> Entry | None:
        """Return the oldest entry that is not being stored."""
        return self._log[self.storing] if len(self._log) > self.storing else None

    @property
    def unsent(self) -> int:
        """Return how many entries are neither being stored, nor were sent on this connection."""
        return len(self._log) - self._first_unsent

    @property
    def _first_unsent(self) -> int:
        """Return the place of the first entry that is neither sent nor being stored."""
        return max(self.sent, self.storing)

    # ---- coming in -----------------------------------------------------------

    def add(self, entries: Sequence[Entry]) -> None:
        """Append new entries."""
        self._log.extend(entries)
        self.waiting += len(entries)
        self.waiting_bytes += size_of(entries)

    def adopt(self, entries: Sequence[Entry]) -> None:
        """Append entries that are in flight. The log has to be empty."""
        self._log.extend(entries)
        self.sent += len(entries)
        self.in_flight += len(entries)

    def insert(self, entries: Sequence[Entry]) -> None:
        """Insert entries before all those that are neither sent nor being stored."""
        place = self._first_unsent
        self._log.rotate(-place)
        self._log.extendleft(reversed(entries))
        self._log.rotate(place)
        self.waiting += len(entries)
        self.waiting_bytes += size_of(entries)

    # ---- sending -----------------------------------------------------------

    def take(self, most: int, size: int) -> list[Entry]:
        """Return the next entries to send, and count them as in flight.

        Return at most `most`, and as many as fit into WINDOW_BYTES behind `size` bytes that
        are in flight already. Not to be called while entries are being stored.
        """
        entries = list(itertools.islice(self._log, self.sent, self.sent + most))
        del entries[fitting(entries, size, WINDOW_BYTES) :]
        self.sent += len(entries)
        self.send_again(entries)
        return entries

    def send_again(self, entries: Sequence[Entry]) -> None:
        """Count entries of this log, which were counted as waiting, as in flight."""
        self.waiting -= len(entries)
        self.waiting_bytes -= size_of(entries)
        self.in_flight += len(entries)

    def refused(self, entries: Sequence[Entry]) -> None:
        """Make entries of this log, which were in flight, REFUSED."""
        self.put_back(entries)
        self._refused += len(entries)
        for entry in entries:
            entry.state = REFUSED

    def put_back(self, entries: Sequence[Entry]) -> None:
        """Count entries of this log, which were counted as in flight, as waiting."""
        self.in_flight -= len(entries)
        self.waiting += len(entries)
        self.waiting_bytes += size_of(entries)

    def take_refused(self) -> list[Entry]:
        """Take all entries that are REFUSED out of the log, unless they may be in a push job."""
        if not self._refused or self.storing:
            return []
        self._refused = 0
        sent = [self._log.popleft() for _ in range(self.sent)]
        taken = [entry for entry in sent if entry.state is REFUSED]
        kept = [entry for entry in sent if entry.state not in (REFUSED, DONE)]
        self._log.extendleft(reversed(kept))
        self.sent = len(kept)
        self.waiting -= len(taken)
        self.waiting_bytes -= size_of(taken)
        return taken

    def confirmed(self, count: int) -> None:
        """Note that this many entries of memory, which were in flight, are DONE now."""
        self.in_flight -= count
        self._pop_done()
        if len(self._log) - self.waiting - self.in_flight > 2 * WINDOW:
            self.remove_done()

    def _pop_done(self) -> None:
        log = self._log
        while self.sent and not self.storing and log[0].state is DONE:
            log.popleft()
            self.sent -= 1

    def remove_done(self) -> None:
        """Remove all entries that are DONE from the log, except those being stored."""
        self._remove_done(self._first_unsent)

    def remove_given_up(self) -> None:
        """Remove all entries that are DONE, also unsent ones, except those being stored."""
        unsent = len(self._log) - self._first_unsent
        self._keep_head(len(self._log))
        rest = itertools.islice(reversed(self._log), unsent)
        waiting = sum(1 for entry in rest if entry.state is WAITING)
        self.sent = min(self.sent, len(self._log) - min(waiting, unsent))

    def _remove_done(self, count: int) -> None:
        before = len(self._log)
        self._keep_head(count)
        self.sent = max(0, self.sent - (before - len(self._log)))

    def link_lost(self, in_flight: Sequence[Entry]) -> None:
        """Make all entries wait again, in their old places.

        `in_flight`: the entries of this log that are in the window.
        """
        self.put_back(in_flight)
        if self._refused:
            self._refused = 0
            for entry in itertools.islice(self._log, self.sent):
                if entry.state is REFUSED:
                    entry.state = WAITING
        self._keep_head(self._first_unsent)
        self.sent = 0

    def _keep_head(self, count: int) -> None:
        """Remove entries that are DONE from the first `count`, except those being stored."""
        head = [self._log.popleft() for _ in range(min(count, len(self._log)))]
        kept = [entry for entry in head[self.storing :] if entry.state is not DONE]
        self._log.extendleft(reversed(head[: self.storing] + kept))

    # ---- storing -----------------------------------------------------------

    @property
    def being_stored(self) -> list[Entry]:
        """Return the entries that are in a push job."""
        return list(itertools.islice(self._log, self.storing))

    def stored(self) -> None:
        """Remove the entries of the push job from the log: they are elements of the list now."""
        for _ in range(self.storing):
            self._log.popleft()
        self.sent = max(0, self.sent - self.storing)
        self.storing = 0
        self._count_refused()
        self._pop_done()

    def _count_refused(self) -> None:
        """Count the entries that are REFUSED anew: a push may have taken some away."""
        if self._refused:
            sent = itertools.islice(self._log, self.sent)
            self._refused = sum(entry.state is REFUSED for entry in sent)

    def store_failed(self) -> None:
        """Keep the entries of the push job, which has failed."""
        count, self.storing = self._first_unsent, 0
        self._remove_done(count)
        self._pop_done()

    # ---- leaving -----------------------------------------------------------

    def uncount(self, entry: Entry) -> None:
        """Take an entry that is lost or stored out of the count that it is in."""
        if entry.state is SENT:
            self.in_flight -= 1
        elif entry.state is not DONE:
            self.waiting -= 1
            self.waiting_bytes -= entry.size

    def drop_oldest(self, size: int, keep: int) -> int:
        """Drop the oldest entries that are neither sent nor being stored; return how many.

        Drop at least `size` bytes if possible, but never the newest `keep` entries.
        """
        limit = self.waiting_bytes - size
        place, dropped = self._first_unsent, 0
        self._log.rotate(-place)
        while len(self._log) - place > keep and self.waiting_bytes > limit:
            entry = self._log.popleft()
            self.uncount(entry)
            entry.state = DONE
            dropped += 1
        self._log.rotate(place)
        return dropped

    def take_all(self) -> list[Entry]:
        """Empty the log, because the worker ends; the caller takes each entry out of the counts."""
        entries = list(self._log)
        self._log.clear()
        self.sent = self.storing = self._refused = 0
        return entries

    def repair(self, *, push_under_way: bool) -> None:
        """Make marks and counts consistent again after an exception, with the link down."""
        if not push_under_way:
            self.storing = 0
        self.sent = self._refused = 0
        self._keep_head(len(self._log))
        entries = [entry for entry in self._log if entry.state is not DONE]
        for entry in entries:
            entry.state = WAITING
        self.waiting, self.waiting_bytes, self.in_flight = len(entries), size_of(entries), 0
