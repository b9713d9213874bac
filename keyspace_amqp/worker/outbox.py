"""The outbox, as the worker sees it: when it opens, and which events are in the list already.

The main thread puts events into the list by itself while the outbox is open (shim/outbox.c),
and says so in a request. Worker thread; nothing here waits.
"""

from __future__ import annotations

import collections
import os
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ..jobs import Job, JobError, JobResult, OutboxStep
from ..message import Event
from .records import Listed
from .shim_api import OutboxState, Shim

# Seconds until the next attempt to open the outbox: after a failure, and after many in a row. In
# each attempt events wait up to a second, although the broker may be there.
RETRY_AFTER = 0.5
RETRY_MOST = 8.0
# An outbox that was closed by the main thread within so many seconds was opened in vain.
STEADY_AFTER = 1.0
# A hold is given up after so many seconds without a list that takes pushes. It may be one for which
# the publisher has only to read its length.
GIVE_UP_AFTER = 0.1
# The outbox stays closed for so many seconds, at most, until another list is chosen, and then open
# for as long, at least.
CHANGE_EVERY = 5.0


class Publisher(Protocol):
    """The members of the publisher's OutboxView that are used here; see there."""

    storing_all: bool

    @property
    def key(self) -> bytes | None: ...

    @property
    def changes_list(self) -> bool: ...

    def keep_list(self, key: bytes | None) -> None: ...

    @property
    def has_memory(self) -> bool: ...

    @property
    def wants_records(self) -> bool: ...

    def add_listed(self, events: Sequence[Event], place: tuple[int, int]) -> None: ...

    def listed(self, key: bytes, count: int, length: int, lost: int) -> tuple[int, int] | None: ...


class Handed:
    """Events that are elements of the list, and whose records are in the queue.

    `number`: of the next one in the queue; `last`: of the last one. `id`: the number in the next
    one's id. `place`: the next one's place in the list, with the list's generation; None if it is
    not known.
    """

    def __init__(self, listed: Listed) -> None:
        self.number = listed.number
        self.last = listed.number + listed.handed - 1
        self.id = listed.id
        self.place: tuple[int, int] | None = None

    def advance(self, count: int) -> None:
        """Go on behind the next `count` events."""
        self.number += count
        self.id += count
        if self.place is not None:
            self.place = (self.place[0] + count, self.place[1])


class Outbox:
    """See the module's docstring.

    `prefix`: the start of the ids of events in the outbox. `balance`: events that came in by way of
    the list, less those of them whose records were released. `submit`: gives a job to the main
    thread. `queued`: returns the number of events that are neither in the publisher nor in the
    list. `inherited`: returns the key of the list that this replica will use if it is promoted, or
    None.
    """

    def __init__(
        self,
        shim: Shim,
        publisher: Publisher,
        submit: Callable[[Job, Callable[[JobResult], None]], None],
        queued: Callable[[], int],
        inherited: Callable[[], bytes | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.prefix = os.urandom(8).hex()
        self.balance = 0
        self._handed: collections.deque[Handed] = collections.deque()
        self._handed_count = 0
        self._released_end = 0  # records of such events before this number were released
        self._shim = shim
        self._publisher = publisher
        self._submit = submit
        self._queued = queued
        self._inherited = inherited
        self._clock = clock
        self._booked = 0  # elements that the shim still counts
        self._next_id = 0  # the number in the id of the next element; 0: not known
        self._key: bytes | None = None  # of the list, while the outbox is open or about to be
        self._job_running = False
        self._retry_at = self._change_at = clock()
        self._retry_after = RETRY_AFTER
        # What the jobs have brought about, as far as the worker knows.
        self._reached = OutboxState.CLOSED
        self._state_after = self._reached
        self._opened_at = clock()
        self._list_at = clock()  # the last time at which a list took pushes
        self._wanted = False

    def start(self, key: bytes) -> None:
        """Have the outbox open from the first event on, with this list; empty: it stays closed."""
        self._keep(key or None)
        self._shim.outbox_start(self.prefix, key)

    # ---- what the main thread has done ---------------------------------------------

    def listed(self, request: Listed) -> None:
        """Book what the main thread has put into the list: after the results of the jobs that it
        had run before, and before those of later ones."""
        handed = Handed(request)
        if request.handed:  # first of all: whatever fails, their records are in the queue
            self._handed.append(handed)
            self._handed_count += request.handed
        # If the handler has failed over a request, its elements are booked with the next one's.
        self._next_id = self._next_id or request.id
        lost = request.id - self._next_id
        handed.place = self._publisher.listed(request.key, request.count, request.length, lost)
        self._booked += lost + request.count
        self.balance += lost + request.count
        self._next_id = request.id + request.count

    def show(self) -> None:
        """Tell the shim what is in the worker's counts now."""
        if self._booked:
            self._shim.outbox_booked(self._booked)
            self._booked = 0

    def add(self, events: Sequence[Event], place: tuple[int, int]) -> None:
        """Give events with this place in the list, and after it, to the publisher."""
        self._publisher.add_listed(events, place)

    # ---- records of events in the list ------------------------------------------------

    @property
    def handed_count(self) -> int:
        """Return how many records of such events are in the queue."""
        return self._handed_count

    def next_handed(self, number: int) -> Handed | None:
        """Return the events of which this is the first number in the queue, if it is known."""
        handed = self._handed
        return handed[0] if handed and handed[0].number == number else None

    def released(self, number: int, count: int) -> None:
        """Note that records of such events are about to be released: so many, from this number on.

        Not all of them may be known: an earlier worker has had their request, or an exception has
        come in between. After an exception before their release, they are counted no second time.
        """
        end = number + count
        new = end - max(number, self._released_end)
        if new > 0:
            self._released_end = end
            self.balance -= new
            self._shim.outbox_taken(new)
        while self._handed and self._handed[0].number < end:
            handed = self._handed[0]
            known = min(end, handed.last + 1) - handed.number
            handed.advance(known)
            self._handed_count -= known
            if handed.number <= handed.last:
                break
            self._handed.popleft()

    # ---- opening ----------------------------------------------------------------------

    def poll(self, *, enabled: bool) -> None:
        """Open the outbox if it can be opened. `enabled`: the parameters ask for it."""
        wanted = enabled and self._publisher.wants_records
        if wanted != self._wanted:
            self._wanted = wanted
            self._shim.outbox_wants(wanted)
        state = self._shim.outbox_state()
        if self._job_running:
            return
        if state is not OutboxState.OPEN:
            self._keep(None)
        if state is OutboxState.CLOSED:
            self._note_closed()
        self._publisher.storing_all = enabled and state is OutboxState.HELD
        if not enabled or self._clock() < self._retry_at:
            return
        memory, changes = self._publisher.has_memory, self._publisher.changes_list
        # Of a replica it is opened before there are events: its promotion is no reason to miss one.
        # But a replica cannot store what it has in memory.
        key = self._publisher.key or (None if memory else self._inherited())
        if key is not None:
            self._list_at = self._clock()
        may_change = self._clock() >= self._change_at
        match state:
            case OutboxState.OPEN:
                # Memory has something again if pushes were taken back after a demotion.
                other = key not in (None, self._key)
                if other or memory or (changes and may_change):
                    self._change_at = self._clock() + CHANGE_EVERY
                    self._hold()
            case OutboxState.HELD:
                if key is None:
                    if self._clock() >= self._list_at + GIVE_UP_AFTER:
                        self._run(OutboxStep([b""], open=True), OutboxState.CLOSED)
                elif not (memory or self._queued() or (changes and not may_change)):
                    self._change_at = self._clock() + CHANGE_EVERY
                    self._keep(key)
                    self._run(OutboxStep([key], open=True), OutboxState.OPEN)
            case OutboxState.CLOSED if key is not None and (may_change or not changes):
                self._hold()

    def _note_closed(self) -> None:
        """The main thread has closed the outbox, perhaps: if that came soon, another attempt would
        fail soon, too."""
        before, self._reached = self._reached, OutboxState.CLOSED
        if before is OutboxState.OPEN and self._is_steady:
            self._retry_after = RETRY_AFTER
        elif before is not OutboxState.CLOSED:
            self._note_failure()

    @property
    def _is_steady(self) -> bool:
        return self._clock() >= self._opened_at + STEADY_AFTER

    def _note_failure(self) -> None:
        self._retry_at = self._clock() + self._retry_after
        self._retry_after = min(2 * self._retry_after, RETRY_MOST)

    def _keep(self, key: bytes | None) -> None:
        if key != self._key:
            self._key = key
            self._publisher.keep_list(key)

    def _hold(self) -> None:
        if self._reached is OutboxState.OPEN and self._is_steady:
            self._retry_after = RETRY_AFTER
        self._run(OutboxStep([], open=False), OutboxState.HELD)

    def _run(self, step: OutboxStep, state: OutboxState) -> None:
        """Have the main thread run a step, which leads to this state unless it fails."""
        self._job_running = True
        self._state_after = state
        self._submit(Job([step]), self.job_done)

    def job_done(self, result: JobResult) -> None:
        """Take the result of a job that this has submitted."""
        self._job_running = False
        failed = isinstance(result.reply(0), JobError)
        self._reached = OutboxState.CLOSED if failed else self._state_after
        match self._reached:
            case OutboxState.OPEN:
                self._opened_at = self._clock()
            case OutboxState.HELD:
                self._list_at = self._clock()
            case OutboxState.CLOSED:
                self._note_failure()

    def wake_at(self, *, enabled: bool) -> float | None:
        """Return the time at which to call `poll` again if nothing else happens."""
        if not enabled or self._job_running:
            return None
        state = self._shim.outbox_state()
        if state is not OutboxState.OPEN:
            pause = GIVE_UP_AFTER if state is OutboxState.HELD else RETRY_AFTER
            return max(self._retry_at, self._clock() + pause)
        return max(self._retry_at, self._change_at) if self._publisher.changes_list else None

    def repair(self, *, job_lost: bool) -> None:
        """Start again after an exception: what is known about places in the list may be wrong.

        `job_lost`: a job that was under way will not be heard of.
        """
        if job_lost:
            self._job_running = False
        self._publisher.storing_all = False
        self._handed = collections.deque(one for one in self._handed if one.number <= one.last)
        self._handed_count = sum(one.last - one.number + 1 for one in self._handed)
        for handed in self._handed:
            handed.place = None
