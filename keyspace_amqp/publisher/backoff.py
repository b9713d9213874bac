"""Delays between attempts: each twice as long as the one before, up to a bound."""

from __future__ import annotations

from collections.abc import Callable

# Seconds before the second attempt.
FIRST = 0.1
# 2 to the power of this, times FIRST, is above every bound.
_DOUBLINGS = 16


def delay(attempts: int, most: float, jitter: Callable[[], float]) -> float:
    """Return the seconds to wait after so many failed attempts.

    `jitter` returns a number from 0 to 1: nodes that lost the broker at the same time
    come back at different times.
    """
    seconds = min(most, FIRST * 2.0 ** min(attempts - 1, _DOUBLINGS))
    return seconds * (0.5 + jitter() / 2)
