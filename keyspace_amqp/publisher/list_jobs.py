"""Jobs on the fallback list: push, read, trim, read the length, delete.

At most one is under way. This file makes the jobs, and updates the known state of the list
from their replies. A push takes the oldest entries of memory first, sent or not, so that the list
stays older than memory. An entry that is confirmed while it is being pushed is an element all
the same; a later trim removes it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from .. import fallback
from ..fallback import JOB_BYTES, JOB_ELEMENTS
from ..jobs import Failure, Job, JobError, JobResult
from ..message import Event
from ..tables.stats import Stat
from .actions import Submit
from .aside import Aside
from .entry import DONE, WAITING, Entry, element_of, size_of
from .fallback_list import FallbackList, ListState
from .ledger import Ledger
from .lists import Lists
from .memory import Memory
from .recent import RecentPushes
from .window import WINDOW, WINDOW_BYTES, Window

# Seconds between two jobs that read the length, to compare it with the length that is known.
CHECK_EVERY = 1.0
# Seconds until the next job after one that failed, because the list is out of reach.
JOB_RETRY_AFTER = 0.2
# While more confirms are on their way, a trim waits for this many confirmed elements.
TRIM_ELEMENTS = JOB_ELEMENTS // 4


@dataclasses.dataclass(frozen=True)
class Length:
    """The job that reads the list's length."""


@dataclasses.dataclass(frozen=True)
class Push:
    """The job that appends the entries that are being stored.

    `keep`: the value of fallback-size when the job was made.
    """

    keep: int


@dataclasses.dataclass(frozen=True)
class Read:
    """The job that reads elements behind the known head."""


@dataclasses.dataclass(frozen=True)
class Trim:
    """The job that removes the first `count` elements, which are confirmed."""

    count: int


@dataclasses.dataclass(frozen=True)
class Purge:
    """The job that deletes the lists with these keys."""

    keys: Sequence[bytes]


Kind = Length | Push | Read | Trim | Purge
PurgeDone = Callable[[int | JobError], None]


class ListJobs:
    """The job under way, the times of the next ones, and the handling of replies.

    `running`: the job under way. `retry_at`: no other job than reading the length is made
    before this time. `check_at`: the time to read the length again. `on_error`: called with
    the text of each error that users should see.
    """

    def __init__(
        self,
        lists: Lists,
        memory: Memory,
        window: Window,
        recent: RecentPushes,
        ledger: Ledger,
        aside: Aside,
        clock: Callable[[], float],
        on_error: Callable[[str], None],
    ) -> None:
        self.running: Kind | None = None
        self.retry_at = clock()
        self.check_at = clock()
        self._generation = 0  # of the known head when the job was made
        self._purges: list[PurgeDone] = []
        self._lists = lists
        self._list: FallbackList = lists.current
        self._memory = memory
        self._window = window
        self._recent = recent
        self._ledger = ledger
        self._aside = aside
        self._clock = clock
        self._on_error = on_error

    @property
    def may_retry(self) -> bool:
        """True if the time to wait after a failed job is over."""
        return self._clock() >= self.retry_at

    def check_now(self) -> None:
        """Make reading the length due now."""
        self.check_at = self._clock()

    def list_chosen(self) -> None:
        """Begin with another list: read its length first, and forget failures."""
        self.check_at = self.retry_at = self._clock()

    def purge(self, done: PurgeDone) -> None:
        """Delete all lists soon; then `done` is called with the number of elements, or an error."""
        self._purges.append(done)

    # ---- making jobs ---------------------------------------------------------

    def _submit(self, kind: Kind, job: Job) -> Submit:
        self.running = kind
        self._generation = self._list.generation
        self.check_at = self._clock() + CHECK_EVERY
        return Submit(job)

    def refuse_purges(self) -> None:
        """Answer all purges with an error: this server may not write."""
        purges, self._purges = self._purges, []
        for done in purges:
            done(JobError.of(Failure.READ_ONLY))

    def next_purge(self) -> Submit | None:
        """Return the job that deletes all lists, if a purge waits and the lists are known."""
        if not self._purges or not self._lists.known:
            return None
        keys = self._lists.keys
        return self._submit(Purge(keys), fallback.purge_job(keys))

    def next_length(self) -> Submit | None:
        """Return the job that reads the list's length, if that is due."""
        if self._list.key is None or self._clock() < self.check_at:
            return None
        return self._submit(Length(), fallback.length_job(self._list.key))

    def push(self, keep: int) -> Submit:
        """Return the job that pushes the oldest entries of memory.

        `keep`: if positive, the list keeps only this many elements, the newest ones.
        """
        assert self._list.key is not None
        size = 0
        elements: list[bytes] = []
        for entry in self._memory:
            entry.element = element_of(entry)
            elements.append(entry.element)
            size += len(entry.element)
            if size >= JOB_BYTES or len(elements) >= JOB_ELEMENTS:
                break
        job = fallback.push_job(self._list.key, elements, keep)
        self._memory.storing = len(elements)
        return self._submit(Push(keep), job)

    def next_read(self) -> Submit | None:
        """Return the job that reads more elements, if any are unread and there is room for them."""
        current = self._list
        enough = current.unsent >= WINDOW or current.unsent_bytes >= WINDOW_BYTES
        if current.key is None or not current.unread or enough:
            return None
        start = len(current.known)
        return self._submit(Read(), fallback.peek_job(current.key, start, JOB_ELEMENTS, JOB_BYTES))

    def next_trim(self, *, at_once: bool, more: bool) -> Submit | None:
        """Return the job that removes confirmed elements, if there are enough of them.

        `more`: more confirms are to come, so the job waits for TRIM_ELEMENTS or WINDOW_BYTES.
        `at_once`: it waits for nothing. Otherwise it waits until all that was sent is
        confirmed.
        """
        current = self._list
        sent = len(current.known) - current.unsent

        def enough(count: int, size: int) -> bool:
            large = count >= TRIM_ELEMENTS or size >= WINDOW_BYTES
            return count > 0 and (at_once or large or (not more and count >= sent))

        if not enough(current.done, current.done_bytes):
            return None  # this cheap test comes first: `done_prefix` walks over elements
        done = current.done_prefix()
        return self._trim(done) if enough(len(done), size_of(done)) else None

    def _trim(self, done: Sequence[Entry]) -> Submit:
        """Return the job that removes as many of these elements as fit into one job."""
        assert self._list.key is not None
        size = 0
        elements: list[bytes] = []
        for entry in done[:JOB_ELEMENTS]:
            if size >= JOB_BYTES:
                break
            elements.append(element_of(entry))
            size += len(elements[-1])
        return self._submit(Trim(len(elements)), fallback.trim_job(self._list.key, elements))

    # ---- reading replies ---------------------------------------------------------

    def done(self, result: JobResult) -> None:
        """Take the replies of the job that was submitted last."""
        kind, self.running = self.running, None
        stale = self._generation != self._list.generation
        match kind:
            case Read() | Trim() if stale:
                self._reread_length()
                return
            case Length():
                self._length_done(result)
            case Push(keep=keep):
                self._push_done(result, keep)
            case Read():
                self._read_done(result)
            case Trim(count=count):
                self._trim_done(result, count)
            case Purge(keys=keys):
                self._purge_done(result, keys)
        if self._list.key is None:
            # The list was left while the job was under way: undo what its replies changed.
            none = self._list.state is ListState.NONE
            self._list.leave()
            if none:
                self._list.state = ListState.NONE

    def _reread_length(self) -> None:
        """Treat the length as unknown, and make reading it due now."""
        if self._list.is_ready:
            self._list.state = ListState.UNKNOWN
        self.check_now()

    def _failed(self, error: JobError) -> None:
        if self._lists.writable:  # on a replica, jobs from before its demotion fail
            self._on_error(f"fallback list: {error}")
        self.retry_at = self._clock() + JOB_RETRY_AFTER

    def _length_done(self, result: JobResult) -> None:
        length = result.reply(0)
        if isinstance(length, int):
            self._lists.set_length(length)
        elif isinstance(length, JobError):
            self._length_failed(length)

    def _length_failed(self, error: JobError) -> None:
        """Note that the list is out of reach, or that there is none and memory need not wait."""
        match error.failure:
            case Failure.WRONG_TYPE:
                self._lists.set_length(0)
                self._list.state = ListState.NONE
            case Failure.NOT_SERVED:
                self._lists.leave_unserved()
            case _ if self._list.state is ListState.NONE:
                self._list.state = ListState.UNKNOWN
        none = self._list.state is ListState.NONE
        if none or self._memory.oldest is not None:  # otherwise nothing waits for the list
            self._failed(error)
        self.retry_at = self.check_at = self._clock() + CHECK_EVERY

    def _push_done(self, result: JobResult, keep: int) -> None:
        length = result.reply(0)
        if not isinstance(length, int):
            self._memory.store_failed()
            if isinstance(length, JobError):
                self._failed(length)
                self.check_now()
            return
        entries = self._memory.being_stored
        self._lists.set_length(length - len(entries))
        self._recent.add(entries)
        known = self._known_part(entries)
        for entry in entries[:known]:
            self._memory.uncount(entry)
            self._list.enlist(entry)
        self._ledger.pushed(known)
        self._leave_to_be_read(entries[known:])
        self._memory.stored()
        if 0 < keep < length:
            lost = self._list.cut(length - keep)
            self._ledger.dropped(Stat.DROPPED_FALLBACK_FULL, lost, "the fallback list is full")

    def _known_part(self, entries: Sequence[Entry]) -> int:
        """Return how many of the pushed entries can be added to the known head.

        Those need not be read later. None can be added if elements before them are unread.
        Entries that wait to be sent are added only up to the limits of a read (JOB_ELEMENTS,
        WINDOW_BYTES).
        """
        if self._list.unread:
            return 0
        unsent, room = self._list.unsent, WINDOW_BYTES - self._list.unsent_bytes
        for count, entry in enumerate(entries):
            if entry.state is WAITING and (unsent >= JOB_ELEMENTS or room <= 0):
                return count
            room -= entry.size
            unsent += bool(unsent) or entry.state is WAITING
        return len(entries)

    def _leave_to_be_read(self, entries: Sequence[Entry]) -> None:
        """Leave pushed entries to the list: they will be read when their turn comes."""
        self._list.grow(len(entries))
        self._ledger.pushed(len(entries))
        for entry in entries:
            self._memory.uncount(entry)
            self._ledger.found(entry.state is DONE)  # it will be delivered once more
            self._window.give_up(entry)

    def _read_done(self, result: JobResult) -> None:
        length = result.reply(1)
        if not isinstance(length, int):
            self._failed(length if isinstance(length, JobError) else JobError("no reply"))
            return
        known = len(self._list.known)
        self._lists.set_length(length)
        if known != len(self._list.known):
            return  # others have removed elements: the list is read again from its start
        entries = []
        for element in fallback.read_elements(result):
            event = self._aside.event_in(element)
            entry = Entry(event if isinstance(event, Event) else None, self._clock(), element)
            entry.listed = True
            if not isinstance(event, Event):
                entry.state = DONE
                self._list.mark_done(entry)
                self._aside.lost(element, event)
            entries.append(entry)
        self._list.read(entries)

    def _trim_done(self, result: JobResult, count: int) -> None:
        if result.reply(1) != b"OK":
            self._trim_failed(result)
            return
        self._list.trimmed(count)
        length = result.reply(2)
        if isinstance(length, int):
            self._lists.set_length(length)
        else:  # in a migrating slot, reading a key that no longer exists fails
            self._reread_length()

    def _trim_failed(self, result: JobResult) -> None:
        """Read the list again if it begins with other elements; if it is out of reach, wait."""
        for number in range(2):
            error = result.reply(number)
            if isinstance(error, JobError) and error.failure is not Failure.NOT_RUN:
                self._failed(error)
                return
        self._list.forget_head()
        self.check_now()

    def _purge_done(self, result: JobResult, keys: Sequence[bytes]) -> None:
        purges, self._purges = self._purges, []
        total = 0
        outcome: JobError | None = None
        for number, key in enumerate(keys):
            length, removed = result.reply(2 * number), result.reply(2 * number + 1)
            if not isinstance(length, int) or not isinstance(removed, int):
                error = length if isinstance(length, JobError) else removed
                outcome = error if isinstance(error, JobError) else JobError("no reply")
                break
            if key == self._list.key:
                self._lists.set_length(length)
                self._list.forget_head()
                self._list.length = 0
            else:
                self._lists.book_change(key, length - self._lists.others.pop(key, 0))
            self._ledger.dropped(Stat.DROPPED_PURGED, length, "KEYSPACEAMQP.FALLBACK PURGE")
            total += length
        for done in purges:
            done(total if outcome is None else outcome)

    def repair(self, *, job_lost: bool) -> None:
        """Read the list again after an exception. `job_lost`: no job is under way."""
        if job_lost:
            self.running = None
        self._list.hand_over()
        self._reread_length()
        self._memory.repair(push_under_way=isinstance(self.running, Push))
