"""Looks: STATS of the nodes at a moment, and how fast their counters have grown since then."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..tables.stats import CONFIRM_BOUNDS, Stat
from . import nodes
from .replies import reason
from .replies import stats as read_stats

# The names of the numbers of events by their time to the confirm, shortest first.
_TIMES = [
    Stat(Stat.CONFIRM_MS_LE_1 + place).name.lower() for place in range(len(CONFIRM_BOUNDS) + 1)
]


@dataclasses.dataclass(frozen=True)
class Rates:
    """How the counters have grown between two looks. `matched`, `confirmed`: events per second.
    `times`: the number of events confirmed within each of CONFIRM_BOUNDS (and not within the one
    before), and later."""

    matched: float
    confirmed: float
    times: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Look:
    """A node at one moment.

    `error`: the node's last error or, without `stats`, why it did not answer. `at`: the time,
    in seconds of the monotonic clock. `rates`: since the look before; None if that had no answer
    or the node's counters began anew.
    """

    address: str
    role: str = ""
    stats: Mapping[str, Any] | None = None
    error: str = ""
    at: float = 0.0
    rates: Rates | None = None


def look(group: Sequence[nodes.Node], before: Iterable[Look] = ()) -> list[Look]:
    """Look at all nodes now. `before`: the looks of the last time, for the rates."""
    known = {each.address: each for each in before}
    looks = []
    for node, answer in nodes.ask(group, _look):
        if isinstance(answer, Exception):
            looks.append(Look(node.address, error=reason(answer)))
        else:
            last = known.get(node.address)
            looks.append(dataclasses.replace(answer, rates=_rates(last, answer) if last else None))
    return looks


def _look(node: nodes.Node) -> Look:
    stats = read_stats(node.client)
    at = time.monotonic()
    info: dict[str, Any] = node.client.info("replication")
    role = "primary" if info["role"] == "master" else "replica"
    return Look(node.address, role, stats, stats["last_error"], at)


def _rates(before: Look, now: Look) -> Rates | None:
    if before.stats is None or now.stats is None or now.at <= before.at:
        return None
    # Another version of the module may not measure the times.
    names = ["events_matched", "confirmed", *(name for name in _TIMES if name in now.stats)]
    grown = [now.stats[name] - before.stats.get(name, 0) for name in names]
    if min(grown) < 0:  # the node was started again, or its counters were reset
        return None
    seconds = now.at - before.at
    return Rates(grown[0] / seconds, grown[1] / seconds, tuple(grown[2:]))


def latency(rates: Iterable[Rates]) -> int | None:
    """Return the place in CONFIRM_BOUNDS of the shortest time within which 99 of 100 events were
    confirmed; the place after the last one if they took longer; None if none was confirmed."""
    counts = [sum(each) for each in zip(*(r.times for r in rates), strict=False)]
    total = 0
    for place, count in enumerate(counts):
        total += count
        if count and total * 100 >= sum(counts) * 99:
            return place
    return None


def latency_text(place: int | None) -> str:
    """Return a result of `latency` in words."""
    if place is None:
        return ""
    more = place == len(CONFIRM_BOUNDS)
    bound = CONFIRM_BOUNDS[place - more]
    return ("> " if more else "") + (f"{bound} ms" if bound < 1000 else f"{bound // 1000} s")
