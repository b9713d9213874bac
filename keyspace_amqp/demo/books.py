"""The books of a demo: what was emitted against what arrived, and the module's counters.

Pure.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

# The two sides of the module's books: their sums are equal whenever nothing is under way.
CAME = ("events_matched", "fallback_found")
ENDED = ("confirmed", "dropped")
WAITING = ("fallback_length", "queue_length", "in_flight")
WENT = (*ENDED, *WAITING)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The differences between messages and events. `out_of_order`: the number of messages
    that arrived after the message of a later event."""

    lost: collections.Counter[bytes]
    unexpected: collections.Counter[bytes]
    out_of_order: int


def compare(events: Sequence[bytes], bodies: Sequence[bytes]) -> Comparison:
    """Compare the bodies of the messages with the events. Both are in their order, and an
    event is written as the body of its message."""
    lost = collections.Counter(events)
    lost.subtract(bodies)
    places: dict[bytes, collections.deque[int]] = collections.defaultdict(collections.deque)
    for place, event in enumerate(events):
        places[event].append(place)
    latest = -1
    out_of_order = 0
    for body in bodies:
        if places[body]:
            place = places[body].popleft()
            out_of_order += place < latest
            latest = max(latest, place)
    return Comparison(+lost, -lost, out_of_order)


def at_rest(stats: Mapping[str, Any]) -> bool:
    """True if no event waits or is in flight."""
    return not any(stats[name] for name in WAITING)


def balance(stats: Mapping[str, Any]) -> int:
    """Return by how many events the two sides of the books differ; 0 is right."""
    return int(sum(stats[name] for name in CAME) - sum(stats[name] for name in WENT))
