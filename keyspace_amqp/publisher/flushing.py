"""The flush that is under way, if there is one: what it may wait for, and how it ends.

flush.py has the rules of a single flush; this file holds them against the state of the
publisher's other parts.
"""

from __future__ import annotations

from collections.abc import Callable

from ..message import Event
from ..tables.stats import Stat
from .actions import Flushed, FlushMode
from .delivery import Delivery
from .entry import DONE
from .flush import Flush, Outlook
from .ledger import Ledger
from .link import Link
from .list_jobs import ListJobs
from .lists import Lists
from .memory import Memory
from .recent import RecentPushes
from .recovery import Recovery
from .window import Window


class Flushing:
    """See the module's docstring. `current`: the flush that is under way."""

    def __init__(
        self,
        link: Link,
        window: Window,
        memory: Memory,
        refused: Memory,
        lists: Lists,
        jobs: ListJobs,
        delivery: Delivery,
        recent: RecentPushes,
        recovery: Recovery,
        ledger: Ledger,
        clock: Callable[[], float],
    ) -> None:
        self.current: Flush | None = None
        self._link = link
        self._window = window
        self._memory = memory
        self._refused = refused
        self._lists = lists
        self._jobs = jobs
        self._delivery = delivery
        self._recent = recent
        self._recovery = recovery
        self._ledger = ledger
        self._clock = clock

    def begin(self, flush_id: int, seconds: float, mode: FlushMode, began: float | None) -> None:
        """Begin a flush for which Redis waits so many seconds, since `began` or now."""
        self.current = Flush(flush_id, mode, self._clock(), seconds, began)

    @property
    def ends(self) -> bool:
        """True if the worker ends after the present flush."""
        return self.current is not None and self.current.ends

    @property
    def leaves(self) -> bool:
        """True if the list cannot be written any more."""
        return self.current is not None and self.current.mode is FlushMode.LEAVE

    @property
    def may_deliver(self) -> bool:
        """True if there is no flush, or if it may still wait for the broker."""
        flush = self.current
        if flush is None:
            return True
        if not flush.in_grace(self._clock()):
            return False
        if flush.mode is not FlushMode.DRAIN and self._delivery.list_comes_first:
            return False  # the list would be sent first, and events are safe in the list
        if self._link.is_up:
            return self.broker_answers and not (self._refused and not self._memory)
        opening = self._link.is_first_attempt and not self._link.is_blocked
        return flush.ends and opening

    @property
    def broker_answers(self) -> bool:
        """True if the link is up and the broker confirms."""
        return self._link.is_up and not self._window.is_stalled

    @property
    def wakes_at(self) -> float | None:
        """Return the time at which the flush may act next if nothing else happens."""
        return None if self.current is None else self.current.wakes_at(self._clock())

    def decide(self, *, more: bool, fallback_size: int) -> Flushed | None:
        """End the flush if it is done, and return what the worker has to do then.

        If the worker ends, `empty_memory` is to be called as soon as the action is kept.
        `more`: events wait in the shim's queue. `fallback_size`: the parameter.
        """
        flush = self.current
        if flush is None:
            return None
        to_file = self._goes_to_file(flush, fallback_size)
        outlook = self._outlook(flush, more=more, to_file=to_file, has_list=fallback_size >= 0)
        if not flush.is_done(outlook, self._clock()):
            return None
        self.current = None
        leftovers = self._leftovers() if flush.ends else []
        if to_file:
            self._ledger.found(-len(leftovers))  # the next load has them
            return Flushed(flush.id, flush.mode, leftovers, flush.write_until, flush.alone_at)
        why = "they could be neither delivered nor stored"
        self._ledger.dropped(Stat.DROPPED_STOPPED, len(leftovers), why)
        return Flushed(flush.id, flush.mode)

    def _goes_to_file(self, flush: Flush, fallback_size: int) -> bool:
        """True if events that remain at the end go to the file of leftovers."""
        no_list = flush.mode is FlushMode.DRAIN and self._lists.current.key is None
        wanted = (flush.mode is FlushMode.LEAVE or no_list) and fallback_size >= 0
        # If a file is being read, there is such a file already.
        return flush.ends and (wanted or self._recovery.active)

    def _outlook(self, flush: Flush, *, more: bool, to_file: bool, has_list: bool) -> Outlook:
        lists, jobs = self._lists, self._jobs
        can_store = lists.writable and has_list and not to_file
        if not flush.ends and (lists.has_none or not jobs.may_retry):
            can_store = False  # no list, or a job failed: do not let the main thread wait
        if self._ledger.lacks_memory and not jobs.may_push:
            can_store = False  # nothing frees memory while the main thread waits
        return Outlook(
            memory=bool(self._memory or self._refused) or more,
            listed=bool(lists.others) or lists.current.undelivered > 0,
            trimmable=flush.ends and can_store and bool(lists.current.done_prefix()),
            job=jobs.running is not None,
            can_store=can_store,
            may_deliver=self.may_deliver,
            to_file=to_file,
            connected=self._link.is_up,
        )

    def _leftovers(self) -> list[Event]:
        """Return the events in memory that are not delivered."""
        pushed = self._recent.take() if self._recent.wanted else []
        self._ledger.found(len(pushed))
        entries = [e for log in (self._refused, self._memory) for e in log if e.state is not DONE]
        return pushed + [entry.event for entry in entries if entry.event is not None]

    def empty_memory(self) -> None:
        """Forget the events of memory: they are in the action that `decide` has returned."""
        for log in (self._refused, self._memory):
            for entry in log.take_all():
                log.uncount(entry)
                self._window.give_up(entry)
        self._recovery.give_up()
