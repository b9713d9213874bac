"""Jobs on the fallback list: push, read, trim, look at the length, delete.

At most one is under way. Each is made here, and here its replies are turned into what is
known of the list. A push takes the oldest entries of memory first, sent or not: the list
stays older than memory. An entry that is confirmed while it is being pushed is trimmed
later.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from .. import fallback
from ..fallback import JOB_BYTES, JOB_ELEMENTS, from_element
from ..jobs import Failure, Job, JobError, JobResult
from ..tables.stats import Stat
from .actions import Submit
from .entry import DONE, WAITING, Entry, element_of, size_of
from .fallback_list import FallbackList, ListState
from .ledger import Ledger
from .lists import Lists
from .memory import Memory
from .recent import RecentPushes
from .window import WINDOW, WINDOW_BYTES, Window

# Seconds between two looks at the list's length, to compare it with what is known.
CHECK_EVERY = 1.0
# Seconds after which a job that failed (the list is out of reach) is tried again.
JOB_RETRY_AFTER = 0.2
# Confirmed elements that a trim waits for while more confirms are on their way.
TRIM_ELEMENTS = JOB_ELEMENTS // 4


@dataclasses.dataclass(frozen=True)
class Length:
    """Reads the list's length."""


@dataclasses.dataclass(frozen=True)
class Push:
    """Appends the entries that are being stored; `keep`: fallback-size of that moment."""

    keep: int


@dataclasses.dataclass(frozen=True)
class Read:
    """Reads the elements behind the known head."""


@dataclasses.dataclass(frozen=True)
class Trim:
    """Removes the first `count` elements, which are confirmed."""

    count: int


@dataclasses.dataclass(frozen=True)
class Purge:
    """Deletes the lists with these keys."""

    keys: Sequence[bytes]


Kind = Length | Push | Read | Trim | Purge
PurgeDone = Callable[[int | JobError], None]


class ListJobs:
    """The job under way, when the next one may be made, and the meaning of replies.

    `on_error` is told of errors that a person should see.
    """

    def __init__(
        self,
        lists: Lists,
        memory: Memory,
        window: Window,
        recent: RecentPushes,
        ledger: Ledger,
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
        self._clock = clock
        self._on_error = on_error

    @property
    def may_retry(self) -> bool:
        """True if no job has failed just now."""
        return self._clock() >= self.retry_at

    def check_now(self) -> None:
        """Have the list's length read as soon as possible."""
        self.check_at = self._clock()

    def list_chosen(self) -> None:
        """Another list is worked with: its length is read first."""
        self.check_at = self.retry_at = self._clock()

    def purge(self, done: PurgeDone) -> None:
        """Delete all lists; `done` gets the number of elements, or an error."""
        self._purges.append(done)

    # ---- making jobs ---------------------------------------------------------

    def _submit(self, kind: Kind, job: Job) -> Submit:
        self.running = kind
        self._generation = self._list.generation
        self.check_at = self._clock() + CHECK_EVERY
        return Submit(job)

    def refuse_purges(self) -> None:
        """The lists are not this node's to delete."""
        purges, self._purges = self._purges, []
        for done in purges:
            done(JobError.of(Failure.READ_ONLY))

    def next_purge(self) -> Submit | None:
        """Return the job that deletes all lists, if somebody wants that and they are known."""
        if not self._purges or not self._lists.known:
            return None
        keys = self._lists.keys
        return self._submit(Purge(keys), fallback.purge_job(keys))

    def next_look(self) -> Submit | None:
        """Return the job that reads the list's length, if it is time for it."""
        if self._list.key is None or self._clock() < self.check_at:
            return None
        return self._submit(Length(), fallback.length_job(self._list.key))

    def push(self, keep: int) -> Submit:
        """Return the job that pushes the oldest entries of memory.

        `keep`: if positive, the list keeps only so many elements, the newest.
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
        """Return the job that reads elements, if more may be known and are there."""
        current = self._list
        enough = current.unsent >= WINDOW or current.unsent_bytes >= WINDOW_BYTES
        if current.key is None or not current.unread or enough:
            return None
        start = len(current.known)
        return self._submit(Read(), fallback.peek_job(current.key, start, JOB_ELEMENTS, JOB_BYTES))

    def next_trim(self, *, at_once: bool, more: bool) -> Submit | None:
        """Return the job that removes confirmed elements, if it is worth one.

        In large pieces while more confirms are to come (`more`), except `at_once`.
        """
        current = self._list
        large = current.done_bytes >= WINDOW_BYTES
        all_of_them = not more and current.done >= len(current.known) - current.unsent
        if not current.done or not (
            at_once or all_of_them or large or current.done >= TRIM_ELEMENTS
        ):
            return None
        done = current.done_prefix()
        large = large and size_of(done) >= WINDOW_BYTES
        all_of_them = not more and len(done) == len(current.known) - current.unsent
        worth = at_once or all_of_them or large or len(done) >= TRIM_ELEMENTS
        return self._trim(done) if done and worth else None

    def _trim(self, done: Sequence[Entry]) -> Submit:
        """Make the job that removes as many of these elements as fit into a job."""
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
                self._look_again()
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
            # The replies were about a list that was left meanwhile.
            none = self._list.state is ListState.NONE
            self._list.leave()
            if none:
                self._list.state = ListState.NONE

    def _look_again(self) -> None:
        """The list's length is not known any more; read it as soon as possible."""
        if self._list.is_ready:
            self._list.state = ListState.UNKNOWN
        self.check_now()

    def _failed(self, error: JobError) -> None:
        if self._lists.writable:  # on a replica jobs fail as a matter of course
            self._on_error(f"fallback list: {error}")
        self.retry_at = self._clock() + JOB_RETRY_AFTER

    def _length_done(self, result: JobResult) -> None:
        length = result.reply(0)
        if isinstance(length, int):
            self._lists.set_length(length)
        elif isinstance(length, JobError):
            self._length_failed(length)

    def _length_failed(self, error: JobError) -> None:
        """The list is out of reach, or there is none: memory goes on without it."""
        match error.failure:
            case Failure.WRONG_TYPE:
                self._lists.set_length(0)
                self._list.state = ListState.NONE
            case Failure.NOT_SERVED:
                self._lists.leave_unserved()
            case _ if self._list.state is ListState.NONE:
                self._list.state = ListState.UNKNOWN
        none = self._list.state is ListState.NONE
        if none or self._memory.oldest is not None:  # else it harms nobody
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
        """Return how many of the pushed entries continue the known head.

        They need not be read. Of those that wait only as many as there is room for.
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
        """These are in the list now, behind what is known, and are read in their turn."""
        self._list.grow(len(entries))
        self._ledger.pushed(len(entries))
        for entry in entries:
            self._memory.uncount(entry)
            self._ledger.found(entry.state is DONE)
            self._window.give_up(entry)

    def _read_done(self, result: JobResult) -> None:
        length = result.reply(1)
        if not isinstance(length, int):
            self._failed(length if isinstance(length, JobError) else JobError("no reply"))
            return
        known = len(self._list.known)
        self._lists.set_length(length)
        if known != len(self._list.known):
            return  # the list was changed by others, and is read again from its head
        entries = []
        for element in fallback.read_elements(result):
            entry = Entry(from_element(element), self._clock(), element)
            entry.listed = True
            if entry.event is None:
                entry.state = DONE
                self._list.mark_done(entry)
                why = "an element of the list is no event"
                self._ledger.dropped(Stat.DROPPED_UNREADABLE, 1, why)
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
        else:  # in a slot that migrates an empty list is no list: look at it
            self._look_again()

    def _trim_failed(self, result: JobResult) -> None:
        """The list begins with other elements than expected, or it is out of reach."""
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
        """After an exception: read the list again. `job_lost`: no job is under way."""
        if job_lost:
            self.running = None
        self._list.hand_over()
        self._look_again()
        self._memory.repair(push_under_way=isinstance(self.running, Push))
