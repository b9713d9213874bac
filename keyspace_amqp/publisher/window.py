"""The window: the messages in flight, their delivery tags, and how many more may be sent."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable, Sequence

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
# While the broker answers nothing, a single message is sent from time to time: the unanswered
# ones may all be for one queue, and others may work. Seconds between two of these, at most,
# and their number.
PROBE_MAX = 5.0
PROBES = 100
# A message is late if it is not confirmed after this many seconds.
LATE_AFTER = 1.0


class Window:
    """Delivery tags, and the entries that wait for their confirms.

    `_slots` has one slot per tag, from the oldest unconfirmed one on. A slot is stale if it
    is None (its tag was settled before older ones) or if its entry is not SENT any more (it
    was given up). `count` and `bytes` leave stale slots out.

    A message is overtaken if the broker has answered one that was sent after it. Overtaken
    messages say nothing about the broker as a whole: their queue does not answer. Up to
    WINDOW of them take no room from the others. Those that stay are taken out of `_slots`
    into `_overtaken`, so that neither becomes large.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self.count = 0  # messages in flight
        self.bytes = 0  # bytes of the messages in flight
        self.next_tag = 1
        self._slots: collections.deque[Entry | None] = collections.deque()
        self._overtaken: dict[int, tuple[Entry, float]] = {}  # by tag, with the time of sending
        self._sends: collections.deque[tuple[int, float]] = collections.deque()  # last tag, time
        self._answered = 0  # the newest tag that was answered
        self._clock = clock
        # The time of the last answer; if nothing was in flight then, of the next message.
        self.progress_at = clock()
        self._probes = 0  # sent since the last answer
        self._probe_at = 0.0

    def __len__(self) -> int:
        """Return the number of slots, including stale ones."""
        return len(self._slots) + len(self._overtaken)

    def open(self) -> None:
        """Start anew with a new connection: tags begin with 1."""
        self.next_tag = 1
        self._answered = 0
        self.progress()

    # ---- room ----------------------------------------------------------------

    @property
    def unanswered(self) -> int:
        """Return the number of messages that were sent after the newest one with an answer."""
        return self.next_tag - 1 - self._answered

    @property
    def overtaken(self) -> int:
        """Return the number of messages in flight that are overtaken."""
        return max(0, self.count - self.unanswered)

    @property
    def room(self) -> int:
        """Return how many more messages may be sent."""
        if self.is_stalled:
            return int(self._clock() >= self._probe_at and self._probes < PROBES)
        return max(0, WINDOW - self.unanswered - max(0, self.overtaken - WINDOW))

    @property
    def is_busy(self) -> bool:
        """True if the broker has enough to do for some 30 ms."""
        return self.spare > 0

    @property
    def spare(self) -> int:
        """Return how many messages the broker has above those that keep it busy for some 30 ms."""
        return max(0, self.unanswered - WINDOW // 2)

    @property
    def is_stalled(self) -> bool:
        """True if no answer came for STALLED_AFTER seconds, though messages wait for one.

        Overtaken messages do not count.
        """
        return bool(self.unanswered) and self._clock() >= self.progress_at + STALLED_AFTER

    @property
    def stalls_at(self) -> float | None:
        """Return the time from which on the broker is stalled; None: all are answered."""
        return self.progress_at + STALLED_AFTER if self.unanswered else None

    @property
    def probes_at(self) -> float | None:
        """Return the time of the next probe; None: there is none to wait for."""
        stalls_at = self.stalls_at
        if stalls_at is None or self._probes >= PROBES:
            return None
        at = max(stalls_at, self._probe_at)
        return at if at > self._clock() else None

    def progress(self) -> None:
        """Note that the broker has answered."""
        self.progress_at = self._clock()
        self._probes = 0
        self._probe_at = 0.0

    # ---- sending and answers -----------------------------------------------------

    def send(self, entries: Sequence[Entry]) -> int:
        """Put entries that are sent now into the window; return the tag of the first one."""
        now = self._clock()
        if self.is_stalled:
            self._probes += 1
            self._probe_at = now + min(PROBE_MAX, STALLED_AFTER * 2.0**self._probes)
        elif not self.unanswered:
            self.progress_at = now
        first_tag = self.next_tag
        for entry in entries:
            entry.state = SENT
        self._slots.extend(entries)
        self.next_tag += len(entries)
        self._sends.append((self.next_tag - 1, now))
        self.count += len(entries)
        self.bytes += size_of(entries)
        return first_tag

    def send_parcel(self, count: int, size: int) -> int:
        """Count the messages of a parcel, which are sent now; return the tag of the first one.

        The express knows their events: they get no slots. Not to be called while others have
        slots, nor while the broker is stalled.
        """
        if not self.unanswered:
            self.progress_at = self._clock()
        first_tag = self.next_tag
        self.next_tag += count
        self.count += count
        self.bytes += size
        return first_tag

    def settle_parcels(self, count: int, size: int, newest: int) -> None:
        """Note that `count` messages of parcels are confirmed. `newest`: the newest tag that has an
        answer. `size`: the bytes of the parcels that are confirmed as a whole."""
        self._answered = max(self._answered, newest)
        self.count -= count
        self.bytes -= size

    def adopt(self, slots: Sequence[Entry | None], sends: Iterable[tuple[int, float]]) -> None:
        """Take in the messages in flight that were in parcels. `slots`: one for each tag from the
        oldest unconfirmed one on, None for those with a confirm. `sends`: the last tag and the time
        of each parcel."""
        self._slots.extend(slots)
        self._sends.extend(sends)
        entries = [entry for entry in slots if entry is not None]
        self.count, self.bytes = len(entries), size_of(entries)
        self._pop_stale()

    def settle(self, below: int, tags: Sequence[int] = ()) -> list[Entry]:
        """Take entries that the broker has answered out of the window, and return them.

        They are the entries with tags up to and including `below`, and those with one of
        `tags`. The caller changes their state, which still is SENT. Tags that were settled
        before, or never sent, are ignored.
        """
        slots, first, end = self._slots, self.next_tag - len(self._slots), self.next_tag
        taken: list[Entry | None] = []
        if self._overtaken:
            late = [tag for tag in tags if tag in self._overtaken]
            if below >= next(iter(self._overtaken)):
                late = [*(tag for tag in self._overtaken if tag <= below), *late]
            taken += [self._overtaken.pop(tag)[0] for tag in dict.fromkeys(late)]
        if first <= below < end:
            taken += [slots.popleft() for _ in range(below - first + 1)]
            first = below + 1
        for tag in tags:
            if first <= tag < end:
                taken.append(slots[tag - first])
                slots[tag - first] = None
        newest = max(below, max(tags, default=0))
        if newest >= end:
            newest = max((tag for tag in (below, *tags) if tag < end), default=0)
        self._answered = max(self._answered, newest)
        entries = [entry for entry in taken if entry is not None and entry.state is SENT]
        self.count -= len(entries)
        self.bytes -= size_of(entries)
        self._pop_stale()
        if len(slots) > 2 * WINDOW:
            self._set_overtaken_aside()
        return entries

    def _pop_stale(self) -> None:
        """Remove stale slots from the head: the oldest slot has to belong to an entry in flight."""
        slots = self._slots
        while slots and ((head := slots[0]) is None or head.state is not SENT):
            slots.popleft()
        self._forget_sends()

    def _forget_sends(self) -> None:
        oldest = self.next_tag - len(self._slots)
        while self._sends and self._sends[0][0] < oldest:
            self._sends.popleft()

    def _set_overtaken_aside(self) -> None:
        """Move overtaken entries from the head of the slots into `_overtaken`."""
        first = self.next_tag - len(self._slots)
        for tag in range(first, self._answered + 1):
            self._forget_sends()
            entry = self._slots.popleft()
            if entry is not None and entry.state is SENT:
                self._overtaken[tag] = entry, self._sends[0][1]
        self._pop_stale()

    def give_up(self, entry: Entry) -> None:
        """Make the entry DONE; if it is in flight, its confirm will be ignored."""
        if entry.state is SENT:
            self.count -= 1
            self.bytes -= entry.size
        entry.state = DONE

    def in_flight(self) -> list[Entry]:
        """Return the entries that wait for a confirm, in the order of sending."""
        entries = (*(entry for entry, _ in self._overtaken.values()), *self._slots)
        return [entry for entry in entries if entry is not None and entry.state is SENT]

    def close(self) -> list[Entry]:
        """Empty the window: the connection has ended. Return the entries, which wait again."""
        entries = self.in_flight()
        for entry in entries:
            entry.state = WAITING
        self._slots.clear()
        self._overtaken.clear()
        self._sends.clear()
        self.count = self.bytes = 0
        self._answered = self.next_tag - 1
        return entries

    # ---- late messages -------------------------------------------------------------

    def _last_tag_until(self, time: float) -> int:
        """Return the last tag that was sent at this time or before; 0: none that is in a slot."""
        return max((tag for tag, sent_at in self._sends if sent_at <= time), default=0)

    @property
    def oldest(self) -> tuple[Entry, float] | None:
        """Return the entry that has waited longest for its confirm, and the time of its sending."""
        for entry, sent_at in self._overtaken.values():
            if entry.state is SENT:
                return entry, sent_at
        first = self.next_tag - len(self._slots)
        for tag, slot in enumerate(self._slots, first):
            if slot is not None and slot.state is SENT:
                return slot, next(sent_at for last, sent_at in self._sends if last >= tag)
        return None

    def restart_clocks(self) -> None:
        """Count the time of all messages in flight from now on: the broker was blocked."""
        now = self._clock()
        self._sends = collections.deque((tag, now) for tag, _ in self._sends)
        self._overtaken = {tag: (entry, now) for tag, (entry, _) in self._overtaken.items()}

    def recent(self) -> list[Entry]:
        """Return the entries in flight that are neither overtaken nor late.

        If all that are not overtaken are late, return those.
        """
        first, late = self.next_tag - len(self._slots), self._last_tag_until(self._late_until)
        new = [
            (tag, slot)
            for tag, slot in enumerate(self._slots, first)
            if tag > self._answered and slot is not None and slot.state is SENT
        ]
        return [slot for tag, slot in new if tag > late] or [slot for _, slot in new]

    @property
    def _late_until(self) -> float:
        return self._clock() - LATE_AFTER

    def late(self, *, overtaken: bool = False) -> list[Entry]:
        """Return the entries in flight that are late; `overtaken`: only those that are both."""
        until = self._late_until
        aside = [entry for entry, sent_at in self._overtaken.values() if sent_at <= until]
        last = self._last_tag_until(until)
        if overtaken:
            last = min(last, self._answered)
        count = max(0, last + 1 - (self.next_tag - len(self._slots)))
        slots = itertools.islice(self._slots, count)
        return [entry for entry in (*aside, *slots) if entry is not None and entry.state is SENT]

    def take_late(self) -> list[Entry]:
        """Take overtaken entries out of the window, oldest first, if they are late and fill it.

        Then half of their room is free again. See `take`.
        """
        if self.overtaken <= WINDOW and (not self.overtaken or self.bytes <= WINDOW_BYTES // 2):
            return []
        wanted: list[Entry] = []
        count, size = self.overtaken, self.bytes
        for entry in self.late(overtaken=True):
            if count <= WINDOW // 2 and size <= WINDOW_BYTES // 4:
                break
            wanted.append(entry)
            count, size = count - 1, size - entry.size
        return self.take(wanted)

    def take(self, entries: Sequence[Entry]) -> list[Entry]:
        """Take these entries out of the window, as far as they are in flight; return them.

        The caller changes their state, which still is SENT; their confirms will be ignored.
        """
        if not entries:
            return []
        wanted = {id(entry) for entry in entries if entry.state is SENT}
        taken: list[Entry] = []
        for tag, (entry, _) in list(self._overtaken.items()):
            if id(entry) in wanted:
                taken.append(entry)
                del self._overtaken[tag]
        for place, slot in enumerate(self._slots):
            if len(taken) == len(wanted):
                break
            if slot is not None and id(slot) in wanted:
                taken.append(slot)
                self._slots[place] = None
        self.count -= len(taken)
        self.bytes -= size_of(taken)
        if not self.count:
            self._answered = self.next_tag - 1  # no answer is awaited any more
        self._pop_stale()
        return taken
