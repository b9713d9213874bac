"""Delays between attempts: each is twice as long as the one before, up to a bound."""

from __future__ import annotations

import os
from collections.abc import Callable

# Seconds before the second attempt.
FIRST = 0.1
# FIRST * 2 ** _DOUBLINGS is above every bound. Without a limit, the power would overflow
# after about a thousand failed attempts.
_DOUBLINGS = 16


def delay(attempts: int, most: float, jitter: Callable[[], float]) -> float:
    """Return the seconds to wait after this many failed attempts, at most `most`.

    `jitter` returns a random number from 0 to 1. It makes nodes that lost the broker at
    the same time come back at different times.
    """
    seconds = min(most, FIRST * 2.0 ** min(attempts - 1, _DOUBLINGS))
    return seconds * (0.5 + jitter() / 2)


def chance() -> float:
    """Return a random number from 0 to 1. `random` would take long to import."""
    return int.from_bytes(os.urandom(4)) / 2**32
