"""The renewal of a connection that is open, and on which messages get no confirm.

There are three reasons:

- A message has waited for its confirm for longer than `confirm-timeout`.
- The broker answers nothing more, after it has confirmed newer messages than some that wait.
  RabbitMQ reads nothing from a connection on which a quorum queue without its majority has
  some 30 messages.
- The broker refuses everything. A channel that was opened while a quorum queue elected its
  leader may do so for as long as the old leader is away; a new channel does not.

The messages that seem to be the cause become refused events, so that they do not come first
on the new connection too.
"""

from __future__ import annotations

from collections.abc import Callable

from ..counts import counted
from .entry import Entry
from .window import Window

# Seconds without any answer, while a message waits that others have overtaken.
STUCK_AFTER = 5.0
# Seconds in which the broker refuses everything: the first time, and at most. They double each
# time, because the reason may as well be a queue that is full for hours; after twice the
# longest time without such a renewal, they begin anew.
REFUSING_AFTER = 5.0
REFUSING_MAX = 300.0
# Refusals without a confirm that are needed for that, at least.
REFUSALS = 3
# Seconds for which a reason has to hold.
CERTAIN_AFTER = 0.01
# Bytes of a key that an error shows, at most.
_KEY_SHOWN = 64


class Renewal:
    """When the connection is to be given up for a new one, and over which messages."""

    def __init__(self, window: Window, clock: Callable[[], float]) -> None:
        self._window = window
        self._clock = clock
        self._refused_since: float | None = None  # the first refusal after the last confirm
        self._refusing_after = REFUSING_AFTER
        self._refusals = 0  # after the last confirm
        self._renewed_at = clock()  # because the broker refused everything
        self._head: str | None = None  # the id of the oldest message at the last renewal
        # `due` has found a reason at this time. An answer may wait in the socket: the reason has
        # to hold once more, after that was read.
        self._found_at: float | None = None

    def confirmed(self) -> None:
        """Note a confirm."""
        self._refused_since = self._head = None
        self._refusals = 0

    def refused(self) -> None:
        """Note a refusal."""
        self._refusals += 1
        if self._refused_since is None:
            self._refused_since = self._clock()

    def opened(self) -> None:
        """Note a new connection, or that the broker is no longer blocked."""
        self._refused_since = self._found_at = None
        self._refusals = 0

    def waits(self, seconds: float) -> bool:
        """True if a message has waited for its confirm for so long."""
        oldest = self._window.oldest
        return oldest is not None and self._clock() >= oldest[1] + seconds

    def due(self, confirm_timeout: int) -> str:
        """Return why the connection is to be given up now; empty: it is not.

        `confirm_timeout`: the parameter, in seconds; 0: messages may wait for ever.
        """
        why = self._reason(confirm_timeout)
        if not why:
            self._found_at = None
        elif self._found_at is None:
            self._found_at = self._clock()
        elif self._clock() >= self._found_at + CERTAIN_AFTER:
            return why
        return ""

    def _reason(self, confirm_timeout: int) -> str:
        oldest = self._window.oldest
        if oldest is not None and confirm_timeout and self._passed(oldest[1] + confirm_timeout):
            event = oldest[0].event
            key = ascii(event.key[:_KEY_SHOWN])[1:] if event is not None else ""
            limit = counted(confirm_timeout, "second")
            return f"no confirm for {limit} for a message with the key {key}"
        if self._passed(self._stuck_at):
            return f"no answer for {STUCK_AFTER:.0f} seconds, while older messages have no confirm"
        if self._passed(self._refusing_until):
            return f"the broker has refused everything for {self._refusing_after:.0f} seconds"
        return ""

    def _passed(self, time: float | None) -> bool:
        return time is not None and self._clock() >= time

    @property
    def _stuck_at(self) -> float | None:
        stalls_at = self._window.stalls_at
        if stalls_at is None or not self._window.overtaken:
            return None
        return self._window.progress_at + STUCK_AFTER

    @property
    def _refusing_until(self) -> float | None:
        if self._refused_since is None or self._refusals < REFUSALS:
            return None
        return self._refused_since + self._refusing_after

    def wake_times(self, seconds: tuple[float, ...]) -> list[float]:
        """Return the future times at which `due` may change, or a message waits for so long."""
        oldest, now = self._window.oldest, self._clock()
        found = None if self._found_at is None else self._found_at + CERTAIN_AFTER
        times = [self._stuck_at, self._refusing_until, found]
        if oldest is not None:
            times += [oldest[1] + limit for limit in seconds if limit]
        return [time for time in times if time is not None and time > now]

    def renew(self) -> list[Entry]:
        """Note that the connection is given up; return the messages that seem to be the cause.

        They are those that others have overtaken. If there are none, it is the oldest one, if
        it was the oldest at the last renewal too.
        """
        self._found_at = None
        if self._passed(self._refusing_until):
            now = self._clock()
            long_ago = now - self._renewed_at > 2 * REFUSING_MAX
            before = REFUSING_AFTER if long_ago else self._refusing_after
            self._refusing_after, self._renewed_at = min(REFUSING_MAX, 2 * before), now
            return []
        in_flight = self._window.in_flight()
        causes = self._window.take(self._window.late(overtaken=True))
        head = in_flight[0] if in_flight else None
        name = head.event.message_id if head is not None and head.event is not None else None
        if not causes and head is not None and name == self._head:
            causes = self._window.take([head])
        self._head = name
        return causes
