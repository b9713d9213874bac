"""The express: events that are sent without an object for each of them.

While nothing but "send it" happens to events, they stay what they are in the shim's queue:
records. The worker lays out the messages of many records at once, and the publisher keeps the
records as a *parcel* until the broker has confirmed its messages, which it does for ranges of
delivery tags. As soon as anything else may happen to an event, `leave` makes an entry of each one
without a confirm, as if all had been sent one by one. It is the only way out.

The publisher decides when the express runs (publisher.py). While it does, the window has no
entries, and memory and the lists are empty.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from ..message import Event
from ..tables.parameters import INT64_MAX
from ..tables.stats import Stat
from .entry import SENT, Entry
from .ledger import Ledger
from .memory import Memory
from .window import LATE_AFTER, WINDOW, Window

# Before the express begins, memory has to be sent and confirmed. Newer events wait for that so
# many seconds, at most: longer if so many messages are in flight that they would wait anyway. It
# begins only if the oldest message in flight has not waited longer than that. The next attempt
# comes a while later.
SETTLE = 0.1
SETTLE_BUSY = 0.5
SETTLE_EVERY = 1.0


class Parcel(Protocol):
    """Events whose messages are sent together.

    `count`: the number of events; `size`: the bytes of memory that they would take as entries,
    about. `times`: Unix times in milliseconds, each with the place behind the last event of that
    time. `events` makes the events anew; None stands for one over which the handler fails again
    and again.
    """

    @property
    def count(self) -> int: ...

    @property
    def size(self) -> int: ...

    @property
    def times(self) -> Sequence[tuple[int, int]]: ...

    def events(self) -> Sequence[Event | None]: ...


class _Sent:
    """A parcel that was sent at the time `at`, with the tags from `first` up to before `end`."""

    __slots__ = ("at", "end", "first", "parcel")

    def __init__(self, parcel: Parcel, first: int, at: float) -> None:
        self.parcel = parcel
        self.first = first
        self.end = first + parcel.count
        self.at = at

    def times(self, first: int, end: int) -> list[int]:
        """Return the times of the events with the tags from `first` up to before `end`."""
        start, stop = first - self.first, end - self.first
        runs = self.parcel.times
        times: list[int] = []
        for place in range(bisect.bisect_right(runs, (start, INT64_MAX)), len(runs)):
            until, time_ms = runs[place]
            times += [time_ms] * (min(until, stop) - start)
            start = until
            if until >= stop:
                break
        return times


def _end_of(sent: _Sent) -> int:
    return sent.end


class Express:
    """The parcels in flight, and which of their messages have a confirm."""

    def __init__(
        self, window: Window, memory: Memory, ledger: Ledger, clock: Callable[[], float]
    ) -> None:
        self._window = window
        self._memory = memory
        self._ledger = ledger
        self._clock = clock
        self._sent: list[_Sent] = []
        self._below = 0  # the messages with tags up to this one have a confirm,
        self._apart: set[int] = set()  # and those with these tags
        self._settles_at = clock()  # memory may be waited for from this time on,
        self._settle_end = clock()  # and before this one

    @property
    def is_running(self) -> bool:
        """True if parcels are in flight."""
        return bool(self._sent)

    @property
    def in_flight(self) -> int:
        """Return the number of messages in flight that are in parcels."""
        return self._window.count if self._sent else 0

    @property
    def is_crowded(self) -> bool:
        """True if so many messages were confirmed before older ones that these have to leave."""
        return len(self._apart) > WINDOW

    @property
    def late_at(self) -> float | None:
        """Return the time at which the oldest message in flight is late; None: there is none."""
        return self._sent[0].at + LATE_AFTER if self._sent else None

    def may_settle(self) -> bool:
        """True if newer events may wait until memory is sent and confirmed. The answer True begins
        such a time, or is within one."""
        now, oldest = self._clock(), self._window.oldest
        limit = SETTLE_BUSY if self._window.is_busy else SETTLE
        if now >= self._settles_at and (oldest is None or now < oldest[1] + limit):
            self._settles_at, self._settle_end = now + SETTLE_EVERY, now + limit
        return now < self._settle_end

    @property
    def settles_until(self) -> float | None:
        """Return the time until which newer events may wait for memory; None: they do not."""
        return self._settle_end if self._clock() < self._settle_end else None

    def send(self, parcel: Parcel) -> int:
        """Take in a parcel, whose messages are sent now; return the tag of the first one."""
        if not self._sent:
            self._below = self._window.next_tag - 1
            self._apart.clear()
            self._settles_at = self._clock()
        first = self._window.send_parcel(parcel.count, parcel.size)
        self._sent.append(_Sent(parcel, first, self._clock()))
        return first

    def confirmed(self, below: int, tags: Iterable[int]) -> None:
        """Take confirms: of all messages up to and including tag `below`, and of these `tags`.

        Tags that are confirmed already, or were never sent, are ignored.
        """
        last, before, apart = self._window.next_tag - 1, self._below, self._apart
        new = min(max(below, before), last)
        alone: dict[int, None] = {}  # new ones among those that are apart, in their order
        for tag in tags:
            if tag == new + 1 <= last and tag not in apart:
                new = tag
            elif new < tag <= last and tag not in apart:
                alone[tag] = None
        while new + 1 in apart or new + 1 in alone:
            new += 1
        # Events are counted first: so an exception on the way loses none of them.
        overtook = sorted([tag for tag in (*apart, *alone) if tag <= new]) if apart or alone else []
        times = self._times(before + 1, new + 1, overtook)
        for tag in alone:
            times += self._times(tag, tag + 1, ())
        self._ledger.confirmed(times)
        self._below = new
        apart.update(alone)
        apart.difference_update(overtook)
        done = bisect.bisect_right(self._sent, new + 1, key=_end_of)
        size = sum([sent.parcel.size for sent in self._sent[:done]])
        del self._sent[:done]
        self._window.settle_parcels(len(times), size, max(new, *alone) if alone else new)

    def _times(self, first: int, end: int, without: Iterable[int]) -> list[int]:
        """Return the times of the events with the tags from `first` up to before `end`, without
        those of some tags in this range."""
        times: list[int] = []
        for gap in (*without, end):
            place = bisect.bisect_right(self._sent, first, key=_end_of)
            while first < gap:
                sent = self._sent[place]
                times += sent.times(first, min(gap, sent.end))
                first, place = sent.end, place + 1
            first = gap + 1
        return times

    def leave(self) -> None:
        """Make entries of all messages in flight: in memory, sent, and in the window.

        An exception changes nothing.
        """
        if not self._sent:
            return
        slots: list[Entry | None] = []
        lost = 0
        for sent in self._sent:
            for tag, event in enumerate(sent.parcel.events(), sent.first):
                if tag <= self._below:
                    continue
                slots.append(None)
                if tag in self._apart:
                    continue
                if event is None:
                    lost += 1
                    continue
                slots[-1] = entry = Entry(event, sent.at)
                entry.state = SENT
        entries = [entry for entry in slots if entry is not None]
        sends = [(sent.end - 1, sent.at) for sent in self._sent]
        self._sent.clear()
        self._apart.clear()
        self._window.adopt(slots, sends)
        self._memory.adopt(entries)
        self._ledger.dropped(Stat.DROPPED_HANDLER_ERROR, lost, "the handler failed on them")
