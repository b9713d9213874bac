"""A flush: Redis waits, for a bounded time, until events are delivered or stored.

Before a save everything in memory is stored. At a stop (SHUTDOWN, MODULE UNLOAD) it is
delivered, stored, or left for a file.
"""

from __future__ import annotations

import dataclasses

from .actions import FlushMode

# Seconds of the time for a flush that are left for the worker and for the main thread to
# come to an end.
MARGIN = 0.8
# A stop waits for confirms as long as there are any, but begins to store so many seconds
# before its end; a save begins to store after so many.
STOP_RESERVE = 1.5
STORE_GRACE = 0.1


@dataclasses.dataclass(frozen=True)
class Outlook:
    """What the publisher can still do in a flush.

    `memory`: events are in memory or in the shim's queue. `listed`: elements of a list are
    not delivered. `trimmable`: confirmed elements are still in the list. `job`: a job is
    under way. `can_store`: the list takes pushes. `may_deliver`: it is worth waiting for
    the broker. `to_file`: the rest goes to a file. `answers`: the link is up, and the
    broker confirms.
    """

    memory: bool
    listed: bool
    trimmable: bool
    job: bool
    can_store: bool
    may_deliver: bool
    to_file: bool
    answers: bool


class Flush:
    """One flush. `now` and `seconds` are in the publisher's clock."""

    def __init__(self, flush_id: int, mode: FlushMode, now: float, seconds: float) -> None:
        self.id = flush_id
        self.mode = mode
        self.until = now + max(seconds - MARGIN, 0)
        grace = now + STORE_GRACE if mode is FlushMode.STORE else self.until - STOP_RESERVE
        self._grace_until = min(grace, self.until)

    @property
    def ends(self) -> bool:
        """True if the worker ends after this flush."""
        return self.mode is not FlushMode.STORE

    def in_grace(self, now: float) -> bool:
        """True if there is time to wait for confirms, before the rest is stored."""
        return now < self._grace_until

    def wakes_at(self, now: float) -> float:
        """Return the next time at which the flush decides otherwise."""
        return self._grace_until if self.in_grace(now) else self.until

    def is_done(self, outlook: Outlook, now: float) -> bool:
        """True if nothing is left to do, or if there is no time or no way to do it."""
        if self.mode is FlushMode.DRAIN and outlook.listed and outlook.may_deliver:
            return False
        work = outlook.memory or outlook.trimmable or outlook.job
        if now >= self.until or not work:
            return True
        if outlook.can_store or outlook.job or outlook.may_deliver:
            return False
        return not (self.ends and not outlook.to_file and outlook.answers)
