"""The pace of messages while Redis is short of processors.

A broker on the same machine takes up to two cores for the messages of a Redis at full
speed. Redis then does not always get a processor when it wants one, and is slower by
half. Linux tells how long a thread has run and how long it has waited for a processor.
If the main thread does not sleep and still waits, Redis is short of processors. Then
messages are held back: events wait in memory, and later in the list, until Redis has
less to do.

Nothing is held back while Redis has a core or sleeps between commands. Nor is it while
events come more slowly than SLOWEST: Linux does not tell for whom Redis waits, and that
may be another process than the broker. In the flood of tests/bench, with RabbitMQ on the
same two cores, Redis has two thirds of a bare server's speed this way, instead of half.

Sans I/O; worker thread.
"""

from __future__ import annotations

# Parts of the time. The main thread is busy if it runs or waits for more than BUSY; a
# busy one is short of processors if it waits for more than WAITS.
BUSY = 0.85
WAITS = 0.2
# Messages per second: the brake begins below FASTEST and ends at SLOWEST. At each look
# it halves the rate, or raises it by a tenth.
FASTEST = 100_000.0
SLOWEST = 10_000.0
RAISE = 1.1
# The weight of a new look against all that came before. Linux tells of a wait when it
# is over: a single long one must not look like many.
NEWEST_BUSY = 0.3
NEWEST_WAITS = 0.1
# After a time when nothing was sent, up to so many seconds of it are made up for.
BURST = 0.02


class Pace:
    """The brake. `rate`: messages per second; None: no limit."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._last: tuple[float, float, float] | None = None
        self._busy = self._waits = 0.0
        self._allowed_until = 0.0

    def look(self, now: float, ran: float, waited: float) -> None:
        """Take note of how long Redis' main thread has run, and has waited for a
        processor, since it began. All in seconds. To be called about every ten
        milliseconds while events come."""
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
        """Return the number of messages that may be sent now; None: any number. They
        count as sent, even if they are not."""
        if self.rate is None:
            return None
        self._allowed_until = max(self._allowed_until, now - BURST)
        count = max(int((now - self._allowed_until) * self.rate), 0)
        self._allowed_until += count / self.rate
        return count
