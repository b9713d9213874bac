"""The ledger: every event is counted, and every loss is counted and logged.

The only writer of the publisher's counters. At any moment the books balance:

    events_matched + fallback_found
        = confirmed + dropped + fallback_length + queue_length + in_flight

(In STATS the worker adds the events that are still in the shim's queue to both sides.)
"""

from __future__ import annotations

import bisect
import collections
from collections.abc import Callable, Mapping, Sequence

from ..counts import counted
from ..tables.parameters import INT64_MAX
from ..tables.stats import CONFIRM_BOUNDS, FIRST_REASON, Stat
from ..values import mutable
from .actions import Log

# Seconds between two log lines about losses for the same reason, between two about messages
# that reach no queue, and between two about pushes that are refused for lack of memory.
LOG_EVERY = 10.0
RETURNS_LOG_EVERY = 60.0
REFUSALS_LOG_EVERY = 60.0
# Log lines about single events within LOG_EVERY seconds, at most.
LINES = 10

_WAITING = (Stat.FALLBACK_LENGTH, Stat.QUEUE_LENGTH, Stat.IN_FLIGHT)


@mutable
class _Report:
    """A log line about a counter: the time at which it is due, and what it will say."""

    due_at: float
    count: int = 0
    noun: str = ""
    text: str = ""


class Ledger:
    """The counters, and the log lines about losses.

    `clock`: monotonic seconds; `wall`: Unix time in milliseconds.
    """

    def __init__(self, clock: Callable[[], float], wall: Callable[[], int]) -> None:
        self.counts = [0] * len(Stat)
        self._forgotten = 0  # events that counted as matched before a reset, and no more
        # The list takes no more, because Redis is near its maxmemory.
        self.lacks_memory = False
        self._clock = clock
        self._wall = wall
        self._reports: dict[Stat, _Report] = {}
        self._refusals = ""  # a log line that waits, about refused pushes
        self._refusals_at = clock()  # no other such line before this time
        self._lines: list[Log] = []  # about single events
        self._line_times: collections.deque[float] = collections.deque(maxlen=LINES)
        # Times of emission of the events that were confirmed since the last poll, and the
        # time of the first of these confirms: all in milliseconds.
        self._emitted: list[int] = []
        self._confirmed_at = 0

    # ---- events ------------------------------------------------------------

    def matched(self, count: int) -> None:
        """Count events that came in from the shim's queue."""
        self.counts[Stat.EVENTS_MATCHED] += count

    @property
    def taken(self) -> int:
        """Return how many events came in, in all: a reset does not change it."""
        return self._forgotten + self.counts[Stat.EVENTS_MATCHED]

    def found(self, count: int) -> None:
        """Count events that were found: in a list, or in the file of leftovers.

        A negative count: events were handed over to another node or to the next load.
        """
        self.counts[Stat.FALLBACK_FOUND] += count

    def published(self, count: int) -> None:
        """Count messages that were sent, for the first time or again."""
        self.counts[Stat.PUBLISHED] += count

    def confirmed(self, times: Sequence[int]) -> None:
        """Count events that the broker has confirmed, by the times of their emission (Unix time in
        milliseconds)."""
        self.counts[Stat.CONFIRMED] += len(times)
        if not self._emitted:
            self._confirmed_at = self._wall()
        self._emitted += times

    def refused(self, count: int) -> None:
        """Count messages that the broker has refused."""
        self.counts[Stat.NACKED] += count

    def returned(self, why: str) -> None:
        """Count a message that has reached no queue. `why` is for the log."""
        self.counts[Stat.RETURNED] += 1
        self._report(Stat.RETURNED, 1, "message", f"reached no queue: {why}")

    def pushed(self, count: int) -> None:
        """Count elements that were pushed to the list."""
        self.counts[Stat.FALLBACK_PUSHED] += count

    def drained(self, count: int) -> None:
        """Count confirmed elements that have left the list."""
        self.counts[Stat.FALLBACK_DRAINED] += count

    def dropped(self, reason: Stat, count: int, why: str) -> None:
        """Count events that are lost. `why` is for the log."""
        if count:
            self.counts[reason] += count
            self._report(reason, count, "event", f"lost: {why}")

    def push_refused(self, why: str) -> None:
        """Log that the list takes no more for now, unless that was logged a little before."""
        if self._clock() >= self._refusals_at:
            self._refusals = f"events wait in memory: {why}"
            self._refusals_at = self._clock() + REFUSALS_LOG_EVERY

    def queue_full(self, count: int) -> None:
        """Count events that are lost because memory is full, and the list takes none."""
        if self.lacks_memory:
            why = "queue-limit is reached, and Redis is near its maxmemory"
            self.dropped(Stat.DROPPED_NO_MEMORY, count, why)
        else:
            self.dropped(Stat.DROPPED_QUEUE_FULL, count, "memory is full and the list out of reach")

    def note(self, text: str) -> None:
        """Log a line about a single event, unless there were LINES of them lately."""
        now, times = self._clock(), self._line_times
        if len(times) < LINES or now >= times[0] + LOG_EVERY:
            times.append(now)
            self._lines.append(Log("warning", text))

    def reconnected(self) -> None:
        """Count a connection after the first one."""
        self.counts[Stat.RECONNECTS] += 1

    def reset(self, gauges: Mapping[Stat, int]) -> None:
        """Set all counters to 0, except that events still on their way are carried over."""
        taken = self.taken
        for stat in Stat:
            self.counts[stat] = 0
        self._emitted.clear()
        self.counts[Stat.EVENTS_MATCHED] = gauges[Stat.QUEUE_LENGTH] + gauges[Stat.IN_FLIGHT]
        self._forgotten = taken - self.counts[Stat.EVENTS_MATCHED]
        self.counts[Stat.FALLBACK_FOUND] = gauges[Stat.FALLBACK_LENGTH]

    def difference(self, gauges: Mapping[Stat, int]) -> int:
        """Return how many events came in and are nowhere counted; 0 if the books balance."""
        counts = self.counts
        came = counts[Stat.EVENTS_MATCHED] + counts[Stat.FALLBACK_FOUND]
        lost = sum(counts[FIRST_REASON:])
        return came - counts[Stat.CONFIRMED] - lost - sum(gauges[stat] for stat in _WAITING)

    def balance(self, gauges: Mapping[Stat, int], taken: int) -> None:
        """Make the books balance after an exception between a change and its count. `taken`: how
        many events came in, in all.

        The publisher changes a state first and counts the change after that; only confirms
        are counted first. So an event that is counted and in no place was lost. An event that
        is in a place and not counted will be delivered a second time, and counts as found.
        """
        self.counts[Stat.EVENTS_MATCHED] = taken - self._forgotten
        difference = self.difference(gauges)
        self.found(max(-difference, 0))
        why = "an exception in the handler, see the log"
        self.dropped(Stat.DROPPED_HANDLER_ERROR, max(difference, 0), why)

    # ---- times of confirms -----------------------------------------------------

    @property
    def untimed(self) -> int:
        """Return the number of confirmed events that `time_confirms` has not seen yet."""
        return len(self._emitted)

    def time_confirms(self) -> None:
        """Count the times from emission to confirm of the events that were confirmed.

        All events of one poll are counted together. Sorting them is cheap, because they are
        nearly sorted. Then a binary search for each bound gives the count of each bucket.
        """
        if not self._emitted:
            return
        times, now = sorted(self._emitted), self._confirmed_at
        self._emitted.clear()
        if times[-1] > now:  # the clock was set back, or another node's clock is ahead
            times = [min(time, now) for time in times]
        total = self.counts[Stat.CONFIRM_MS_SUM] + len(times) * now - sum(times)
        self.counts[Stat.CONFIRM_MS_SUM] = min(total, INT64_MAX)
        end = len(times)
        first = bisect.bisect_left(CONFIRM_BOUNDS, now - times[-1])
        for place in range(first, len(CONFIRM_BOUNDS)):
            start = bisect.bisect_left(times, now - CONFIRM_BOUNDS[place], 0, end)
            self.counts[Stat.CONFIRM_MS_LE_1 + place] += end - start
            end = start
            if not end:
                return
        self.counts[Stat.CONFIRM_MS_LE_INF] += end

    # ---- log lines -----------------------------------------------------------------

    def _report(self, stat: Stat, count: int, noun: str, text: str) -> None:
        """Add a count to the log line about this counter: so many of `noun`, then `text`."""
        report = self._reports.setdefault(stat, _Report(self._clock()))
        report.count += count
        report.noun, report.text = noun, text

    def logs(self, *, all_of_them: bool) -> list[Log]:
        """Return the log lines that are due, or all that wait.

        The first line about a counter is due at once. Each later one sums up what came in
        LOG_EVERY or RETURNS_LOG_EVERY seconds.
        """
        lines, self._lines = self._lines, []
        if self._refusals:
            lines.append(Log("warning", self._refusals))
            self._refusals = ""
        for stat, report in self._reports.items():
            if report.count and (all_of_them or self._clock() >= report.due_at):
                lines.append(Log("warning", f"{counted(report.count, report.noun)} {report.text}"))
                report.count = 0
                every = RETURNS_LOG_EVERY if stat is Stat.RETURNED else LOG_EVERY
                report.due_at = self._clock() + every
        return lines

    def wake_times(self) -> list[float]:
        """Return the times at which log lines become due."""
        return [report.due_at for report in self._reports.values() if report.count]
