"""How fast messages are sent while Redis is short of processors.

A broker on the same machine takes up to two cores for what a Redis at full speed
gives it to do; Redis, which does not get one when it wants it, then is slower by
half. Linux tells how long a thread has run and how long it has waited for a
processor. A main thread that neither sleeps nor gets all it wants is short of them,
and events can wait, in memory and then in the list, until Redis has less to do.

Where Redis has its core, or sleeps between commands, nothing is held back; nor is it
where events come more slowly than SLOWEST, whoever it is that Redis waits for: Linux
does not tell, and it may be something else than the broker. In the flood of
tests/bench, with RabbitMQ on the same two cores, Redis has two thirds of a bare server's
speed this way, instead of half.

Sans I/O; worker thread.
"""

from __future__ import annotations

# The part of the time for which the main thread ran or wanted to, from which on it
# counts as busy; and the part for which it may wait while it is.
BUSY = 0.85
WAITS = 0.2
# Messages per second: where the brake begins, and where it ends. At each look the
# brake halves the rate, or raises it by a tenth.
FASTEST = 100_000.0
SLOWEST = 10_000.0
RAISE = 1.1
# What a new look counts for, against all that came before. Linux tells of a wait when
# it is over: a single long one must not look like many.
NEWEST_BUSY = 0.3
NEWEST_WAITS = 0.1
# What may be made up for of a time when nothing was sent (seconds).
BURST = 0.02


class Pace:
    """The brake. `rate`: messages per second, or None: as many as there are."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._last: tuple[float, float, float] | None = None
        self._busy = self._waits = 0.0
        self._allowed_until = 0.0

    def look(self, now: float, ran: float, waited: float) -> None:
        """Takes note of what Redis' main thread has run, and has waited for a
        processor, since it began. All in seconds; to be called every ten milliseconds or
        so while events come."""
        last, self._last = self._last, (now, ran, waited)
        if last is None or now <= last[0]:
            return
        elapsed = now - last[0]
        waits = min((waited - last[2]) / elapsed, 1.0)
        busy = (ran - last[1]) / elapsed + waits
        self._waits += NEWEST_WAITS * (waits - self._waits)
        self._busy += NEWEST_BUSY * (busy - self._busy)
        if self._busy <= BUSY:
            self.rate = None
        elif self._waits > WAITS:
            self.rate = max((self.rate or FASTEST) / 2, SLOWEST)
        elif self.rate is not None:
            self.rate = self.rate * RAISE if self.rate < FASTEST else None

    def allows(self, now: float) -> int | None:
        """How many messages may be sent now; None: any number. They count as sent,
        whether they are or not."""
        if self.rate is None:
            return None
        self._allowed_until = max(self._allowed_until, now - BURST)
        count = max(int((now - self._allowed_until) * self.rate), 0)
        self._allowed_until += count / self.rate
        return count
