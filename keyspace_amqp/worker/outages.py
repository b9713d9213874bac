"""The log lines about the state of the link, and about outages of the broker.

An outage is a time in which the broker takes no messages, for whatever reason. It has a line with
the reason at its beginning, one a minute, however many attempts fail, and one with its duration at
its end; that one also has the reason if it is another one by then. Sans I/O; worker thread.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

from ..counts import counted
from ..publisher.publisher import UNCONFIRMED_AFTER

# Seconds between two lines about one outage.
EVERY = 60.0
# Outages that are logged within EVERY seconds, at most: a broker may come and go all the time.
BEGINS = 3
_UNCONFIRMED = f"a message has had no confirm for {UNCONFIRMED_AFTER:.0f} seconds"
# From this many seconds on, tenths of a second do not matter.
_WHOLE_SECONDS = 10.0
_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


class Outages:
    """Decides what the log says about the link. `clock`: monotonic seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._shown = ("", "")  # the state and the broker of the last line about a state
        self._since: float | None = None  # the beginning of the outage under way
        self._what = self._why = ""
        self._last_why = ""  # of the last line about it
        self._said = False  # the log says that this outage has begun
        self._line_at = 0.0  # the time of the next line about it
        self._begins: collections.deque[float] = collections.deque(maxlen=BEGINS)
        self._unsaid = 0  # outages without a line, since the last line

    @property
    def wake_at(self) -> float | None:
        """Return when `lines` has to be called again if nothing else happens; None: never."""
        return None if self._since is None else self._line_at

    def lines(
        self, state: str, broker: str, trouble: str, *, waiting: int, proven: bool
    ) -> list[tuple[str, str]]:
        """Return level and text of the lines that are due.

        `state`: as STATS shows it. `trouble`: why no messages can be sent, if an attempt failed,
        the connection was lost, or the broker blocks it; else empty. `waiting`: events that wait
        for a confirm. `proven`: the broker has answered a message on this connection.
        """
        if state == "unconfirmed":
            trouble = trouble or _UNCONFIRMED
        if trouble:
            if self._since is None:
                self._begin()
            self._what = state if state in ("blocked", "unconfirmed") else "disconnected"
            self._why = trouble
        elif self._since is None:
            return self._change(state, broker)
        elif state != "connecting" and (state != "connected" or proven or not waiting):
            return self._end(state, broker, waiting)
        return self._under_way(broker, waiting)

    def _change(self, state: str, broker: str) -> list[tuple[str, str]]:
        """Return the line about a state without an outage, if it is a new one."""
        if state == "connecting" or (state, broker) == self._shown:
            return []
        self._shown = state, broker
        return [("notice", f"{state} ({broker})")]

    def _begin(self) -> None:
        now = self._clock()
        self._since, self._said, self._line_at = now, False, now
        if len(self._begins) == BEGINS:
            self._line_at = max(now, self._begins[0] + EVERY)

    def _end(self, state: str, broker: str, waiting: int) -> list[tuple[str, str]]:
        assert self._since is not None
        took = _duration(self._clock() - self._since)
        self._since, self._shown = None, (state, broker)
        if not self._said:
            self._unsaid += 1
            return []
        text = f"{state} ({broker}), after an outage of {took}{_waits(waiting)}"
        if self._why != self._last_why:
            text += f"; the last reason: {self._why}"
        return [("notice", text)]

    def _under_way(self, broker: str, waiting: int) -> list[tuple[str, str]]:
        now = self._clock()
        if now < self._line_at:
            return []
        assert self._since is not None
        if not self._said and self._line_at == self._since:
            text = f"{self._what} ({broker}): {self._why}"
        else:
            length = _duration(now - self._since)
            text = f"{self._what} for {length} ({broker}): {self._why}{_waits(waiting)}"
        if self._unsaid:
            text += f"; {self._unsaid} more outages since the last line"
        if not self._said:
            self._begins.append(now)
        self._said, self._unsaid, self._line_at = True, 0, now + EVERY
        self._last_why = self._why
        return [("warning", text)]


def _waits(count: int) -> str:
    """Return the end of a line: how many events wait."""
    if not count:
        return ""
    return f"; {counted(count, 'event', ',')} wait{'s' if count == 1 else ''}"


def _duration(seconds: float) -> str:
    """Return a duration for people, with its two largest units."""
    if seconds < _WHOLE_SECONDS:
        return f"{seconds:.1f} s"
    parts, rest = [], int(seconds)
    for unit, size in _UNITS:
        count, rest = divmod(rest, size)
        parts.append(f"{count} {unit}" if count else "")
    first = next(place for place, part in enumerate(parts) if part)
    return " ".join(filter(None, parts[first : first + 2]))
