"""A flush: Redis waits, for a bounded time, until events are delivered or stored.

Before a save, what is in memory is delivered or stored. At a stop (SHUTDOWN, MODULE UNLOAD)
it is delivered, stored, or written to a file.
"""

from __future__ import annotations

from ..tables.times import STOP_LEFTOVERS, STOP_LIMIT, STOP_WRITE
from ..values import value
from .actions import FlushMode

# A flush ends this many seconds before its time is over. The worker needs them to close the
# connection and to report to the main thread.
MARGIN = 0.8
# A flush first waits for confirms, and then stores the rest. A stop begins to store
# STOP_RESERVE seconds before its end; a save, STORE_GRACE seconds after its start.
STOP_RESERVE = 1.5
STORE_GRACE = 0.1


@value
class Outlook:
    """The work that is left in a flush, and the ways to do it.

    `memory`: events are in memory or in the shim's queue. `listed`: elements of a list are
    not delivered. `trimmable`: confirmed elements can be removed from the list. `job`: a job
    is under way. `can_store`: the list takes pushes, or will. `may_deliver`: it is worth
    waiting for the broker. `to_file`: what is left at the end goes to a file. `connected`:
    the link is up, even if the broker has confirmed nothing for a while.
    """

    memory: bool
    listed: bool
    trimmable: bool
    job: bool
    can_store: bool
    may_deliver: bool
    to_file: bool
    connected: bool


class Flush:
    """One flush, which begins `now` (in the publisher's clock) and may take `seconds`.

    `began`: the time at which Redis began to wait, if that was earlier. A stop leaves time for
    the file of leftovers, even if the worker was late.
    """

    def __init__(
        self,
        flush_id: int,
        mode: FlushMode,
        now: float,
        seconds: float,
        began: float | None = None,
    ) -> None:
        self.id = flush_id
        self.mode = mode
        began = now if began is None else began
        self.alone_at = began + STOP_LIMIT
        # When Redis does not wait any more, there is no hurry.
        self.write_until = (began if now < self.alone_at else now) + STOP_WRITE
        self.until = now + max(seconds - MARGIN, 0)
        if self.ends:
            self.until = min(self.until, self.write_until - STOP_LEFTOVERS)
        grace = now + STORE_GRACE if mode is FlushMode.STORE else self.until - STOP_RESERVE
        self._grace_until = min(grace, self.until)

    @property
    def ends(self) -> bool:
        """True if the worker ends after this flush."""
        return self.mode is not FlushMode.STORE

    def in_grace(self, now: float) -> bool:
        """True if there is still time to wait for confirms before the rest has to be stored."""
        return now < self._grace_until

    def wakes_at(self, now: float) -> float:
        """Return the time at which the flush may act next if nothing else happens."""
        return self._grace_until if self.in_grace(now) else self.until

    def is_done(self, outlook: Outlook, now: float) -> bool:
        """True if nothing is left to do, if the time is over, or if nothing can be done."""
        if self.mode is FlushMode.DRAIN and outlook.listed and outlook.may_deliver:
            return False
        work = outlook.memory or outlook.trimmable or outlook.job
        if now >= self.until or not work:
            return True
        if outlook.can_store or outlook.job or outlook.may_deliver:
            return False
        # The rest would be lost, so a broker that is slow or silent gets all the time of the flush.
        return not (self.ends and not outlook.to_file and outlook.connected)
