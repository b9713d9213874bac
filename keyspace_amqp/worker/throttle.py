"""The throttle: limits the rate of messages while Redis is short of processors.

A broker on the same machine takes up to two cores for the messages of a Redis at full
speed. Redis then does not always get a processor when it wants one, and is slower by
half. Linux reports how long a thread has run and how long it has waited for a processor.
If the main thread does not sleep and still waits, Redis is short of processors. Then
messages are held back: events wait in memory, and later in the list, until Redis has
less to do.

Nothing is held back while Redis has a core for itself or sleeps between commands. The
rate never goes below SLOWEST: Linux does not report which process takes Redis' time, and
it need not be the broker. In the flood of tests/bench, with RabbitMQ on the same two
cores, Redis has two thirds of a bare server's speed with the throttle, and half without.

Sans I/O; worker thread.
"""

from __future__ import annotations

# Fractions of the time. The main thread is busy if it runs or waits for more than BUSY. If
# it is busy and waits for more than WAITS, it is short of processors.
BUSY = 0.85
WAITS = 0.2
# Messages per second: the limits of the rate. Each sample halves the rate or raises it by a
# tenth; above FASTEST there is no limit.
FASTEST = 100_000.0
SLOWEST = 10_000.0
RAISE = 1.1
# The weights of a new sample in the moving averages. Linux reports a wait when it is over: a
# single long one must not look like many.
NEWEST_BUSY = 0.3
NEWEST_WAITS = 0.1
# After a time without messages, the unused allowance of so many seconds may be sent at once.
BURST = 0.02


class Throttle:
    """See the module's docstring. `rate`: messages per second; None: no limit."""

    def __init__(self) -> None:
        self.rate: float | None = None
        self._last: tuple[float, float, float] | None = None
        self._busy = self._waits = 0.0
        self._allowed_until = 0.0

    def sample(self, now: float, ran: float, waited: float) -> None:
        """Adapt the rate to the main thread's total times of running and of waiting for a
        processor. All in seconds. Called about every ten milliseconds while events
        come."""
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

    def grant(self, now: float) -> int | None:
        """Return the number of messages that may be sent now; None: any number."""
        if self.rate is None:
            return None
        self._allowed_until = max(self._allowed_until, now - BURST)
        return max(int((now - self._allowed_until) * self.rate), 0)

    def sent(self, count: int, now: float) -> None:
        """Note that so many messages were sent. More than were granted count only up to a limit:
        they may have been sent while no limit was in force."""
        if self.rate is not None:
            allowed_until = self._allowed_until + count / self.rate
            self._allowed_until = min(allowed_until, now + BURST)
