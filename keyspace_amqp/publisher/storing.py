"""When events of memory go to the lists, and when they may wait (rules 9, 12, 13).

The jobs themselves are in list_jobs.py.
"""

from __future__ import annotations

from collections.abc import Callable

from ..config import Config
from ..fallback import JOB_ELEMENTS
from .delivery import Delivery
from .flushing import Flushing
from .ledger import Ledger
from .link import Link
from .list_jobs import ListJobs
from .lists import Lists
from .memory import Memory
from .outbox import OutboxView
from .window import Window

# Seconds after which an event that cannot be sent is stored. It has to be in the list within
# 100 ms (rule 12); the other 50 ms are for Redis' main thread to get to the job.
STORE_AFTER = 0.05
# The part of `queue-limit` that refused events in memory may take, if their list takes none.
REFUSED_SHARE = 1 / 4


class Storing:
    """See the module's docstring. `config`: the parameters. `pressure`: more events wait in the
    shim's queue than memory should hold."""

    def __init__(
        self,
        config: Config,
        link: Link,
        window: Window,
        memory: Memory,
        refused: Memory,
        lists: Lists,
        jobs: ListJobs,
        delivery: Delivery,
        outbox: OutboxView,
        flushing: Flushing,
        ledger: Ledger,
        clock: Callable[[], float],
    ) -> None:
        self.config = config
        self.pressure = False
        self._link = link
        self._window = window
        self._memory = memory
        self._refused = refused
        self._lists = lists
        self._list = lists.current
        self._jobs = jobs
        self._delivery = delivery
        self._outbox = outbox
        self._flushing = flushing
        self._ledger = ledger
        self._clock = clock

    @property
    def takes_pushes(self) -> bool:
        """True if the list takes pushes now."""
        on = self.config.fallback_size >= 0
        return on and self._lists.writable and self._list.is_ready and self._jobs.may_push

    @property
    def takes_refused(self) -> bool:
        """True if the list of refused events takes pushes now."""
        on = self.config.fallback_size >= 0 and self._lists.writable
        ready = on and self._lists.refused.is_ready and self._jobs.may_push_refused
        return ready and not self._flushing.leaves and self._refused.in_flight == 0

    @property
    def is_due(self) -> bool:
        """True if entries of memory have to be stored now."""
        oldest = self._memory.oldest
        if oldest is None or not self.takes_pushes:
            return False
        if self._outbox.storing_all:
            return self._outbox.may_store and not self._flushing.leaves
        if self._flushing.current is not None:
            return not self._flushing.leaves and not self._flushing.may_deliver
        overdue = self._clock() >= oldest.at + STORE_AFTER
        due = overdue or self._memory.unsent >= JOB_ELEMENTS
        if not self._link.is_up:
            return due
        stalled = self._window.is_stalled
        if self._list.unread and self._memory.sent and not (self.pressure or stalled):
            return False  # pushed behind unread elements, they would be read and sent again
        if self._delivery.list_comes_first:
            return due
        return self.pressure or stalled

    @property
    def refused_are_due(self) -> bool:
        """True if refused events of memory have to be stored now."""
        oldest = self._refused.oldest
        flushing = self._flushing.current is not None
        due = oldest is not None and (flushing or self._clock() >= oldest.at + STORE_AFTER)
        return due and self.takes_refused

    @property
    def may_wait(self) -> bool:
        """True if events can wait without harm: the list is writable and not half full."""
        size = self.config.fallback_size
        room = size == 0 or self._list.length < size // 2
        return self.takes_pushes and room and self._flushing.current is None

    @property
    def can_only_wait(self) -> bool:
        """True if events can neither be sent nor stored now."""
        answers = self._flushing.broker_answers
        return not (answers or self.takes_pushes or self._jobs.running is not None)

    def bound_refused(self) -> None:
        """Drop the oldest refused events, if they wait in memory and take too much of it."""
        over = self._refused.waiting_bytes - int(self.config.queue_limit * REFUSED_SHARE)
        if over > 0 and not self.takes_refused:
            self._ledger.queue_full(self._refused.drop_oldest(over, 0))

    def wake_times(self) -> list[float | None]:
        """Return the times at which `is_due` and `refused_are_due` may change."""
        times: list[float | None] = []
        oldest = self._memory.oldest
        if oldest is not None and self._list.is_ready and self.config.fallback_size >= 0:
            push_at = max(self._jobs.retry_at, self._jobs.push_at)
            if not self._link.is_up or self._delivery.list_comes_first:
                times.append(max(oldest.at + STORE_AFTER, push_at))
            if (stalls_at := self._window.stalls_at) is not None:
                times.append(max(stalls_at, push_at))
        refused = self._refused.oldest
        if refused is not None and self.takes_refused:
            times.append(refused.at + STORE_AFTER)
        return times
