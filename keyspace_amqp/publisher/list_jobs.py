"""Jobs on the lists: push, read, trim, read the lengths, delete.

At most one is under way. This file makes the jobs, and updates the known state of the lists
from their replies. A push takes the oldest entries of memory first, sent or not, so that the list
stays older than memory. An entry that is confirmed while it is being pushed is an element all
the same; a later trim removes it. A trim also moves refused elements to the list of refused
events.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Sequence

from .. import fallback
from ..fallback import JOB_BYTES, JOB_ELEMENTS
from ..jobs import Failure, Job, JobError, JobResult
from ..message import Event
from ..tables.stats import Stat
from ..values import value
from .actions import Submit
from .aside import Aside
from .entry import DONE, REFUSED, WAITING, Entry, element_of, size_of
from .fallback_list import FallbackList, ListState
from .ledger import Ledger
from .lists import Lists
from .memory import Memory
from .recent import RecentPushes
from .window import WINDOW, WINDOW_BYTES, Window

# Seconds between two jobs that read the lengths, to compare them with those that are known.
CHECK_EVERY = 1.0
# Seconds until the next job after one that failed, because the list is out of reach.
JOB_RETRY_AFTER = 0.2
# While more confirms are on their way, a trim waits for this many confirmed elements.
TRIM_ELEMENTS = JOB_ELEMENTS // 4
# Seconds between two trims of fewer elements. A kill or a failover repeats what was confirmed since
# the last trim.
TRIM_EVERY = 0.05
# A list may have this part more than `fallback-size` until its oldest elements are removed.
CUT_SHARE = 100
# Elements that were sent and not trimmed, at most: one without a confirm keeps all those
# behind it. Then no more are read.
SENT_ELEMENTS = 4 * WINDOW


@value
class Length:
    """The job that reads the lengths of these lists.

    `look`: without a trace, but also without an error.
    """

    lists: Sequence[FallbackList]
    look: bool


@value
class Push:
    """The job that appends the entries of `log` that are being stored.

    `keep`: the elements that the list may have, at most, when the job was made; 0: any number.
    """

    list: FallbackList
    log: Memory
    keep: int


@value
class Read:
    """The job that reads elements behind the known head, which ended at `place`."""

    list: FallbackList
    place: int


@value
class Trim:
    """The job that removes the first `count` elements, and moves `moved` of them."""

    list: FallbackList
    count: int
    moved: int


@value
class Cut:
    """The job that removes the oldest elements of a full list, which keeps `keep` of them.

    It compares none, as a trim does: the oldest have to go, whatever they are.
    """

    list: FallbackList
    keep: int


@value
class Purge:
    """The job that deletes the lists with these keys."""

    keys: Sequence[bytes]


Kind = Length | Push | Read | Trim | Cut | Purge
PurgeDone = Callable[[int | JobError], None]


class ListJobs:
    """The job under way, the times of the next ones, and the handling of replies.

    `running`: the job under way. `retry_at`: no other job than reading the length is made
    before this time. `push_at`, `refused_push_at`: no push to the list is made before this time,
    nor one to the list of refused events; the other jobs go on, because they free memory.
    `trim_at`: from this time on, a trim waits for no more confirms.
    `check_at`: the time to read the lengths again. `on_error`: called with the text of each
    error that users should see.
    """

    def __init__(
        self,
        lists: Lists,
        memory: Memory,
        refused: Memory,
        window: Window,
        recent: RecentPushes,
        ledger: Ledger,
        aside: Aside,
        clock: Callable[[], float],
        on_error: Callable[[str], None],
    ) -> None:
        self.running: Kind | None = None
        self.retry_at = clock()
        self.push_at = self.refused_push_at = clock()
        self.check_at = clock()
        self.trim_at = clock()
        # The generations of the lists that the job is about, when it was made.
        self._generations: Sequence[tuple[FallbackList, int]] = ()
        # A list may be out of reach, or not be a list. The error of a command says so.
        self._in_doubt = True
        self._purges: list[PurgeDone] = []
        self._lists = lists
        self._list: FallbackList = lists.current
        self._memory = memory
        self._refused = refused
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

    @property
    def may_push(self) -> bool:
        """True if the time to wait after a failed job, or a refused push, is over."""
        return self._clock() >= max(self.retry_at, self.push_at)

    @property
    def may_push_refused(self) -> bool:
        """True if the time to wait after a failed job is over, also for refused events."""
        return self._clock() >= max(self.retry_at, self.refused_push_at)

    def check_now(self) -> None:
        """Make reading the length due now."""
        self.check_at = self._clock()

    def list_chosen(self) -> None:
        """Begin with another list: read its length first, and forget failures."""
        self._in_doubt = True
        self.check_at = self.retry_at = self.push_at = self.refused_push_at = self._clock()

    def purge(self, done: PurgeDone) -> None:
        """Delete all lists soon; then `done` is called with the number of elements, or an error."""
        self._purges.append(done)

    # ---- making jobs ---------------------------------------------------------

    def _submit(self, kind: Kind, job: Job) -> Submit:
        self.running = kind
        if isinstance(kind, Length):
            self._generations = [(one, one.generation) for one in kind.lists]
        elif isinstance(kind, Read | Trim):
            self._generations = [(kind.list, kind.list.generation)]
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
        """Return the job that reads the lengths of the lists, if that is due.

        Users do not see it, unless a list is in doubt.
        """
        lists = [one for one in (self._list, self._lists.refused) if one.key is not None]
        if not lists or self._clock() < self.check_at:
            return None
        keys = [one.key for one in lists if one.key is not None]
        if self._in_doubt:
            return self._submit(Length(lists, look=False), fallback.length_job(*keys))
        return self._submit(Length(lists, look=True), fallback.lengths_job(keys))

    def push(self, fallback_size: int) -> Submit:
        """Return the job that pushes the oldest entries of memory.

        `fallback_size`: the elements that both lists may have together, at most; 0: any number.
        """
        return self._push(self._list, self._memory, self._most(fallback_size))

    def next_cut(self, fallback_size: int) -> Submit | None:
        """Return the job that removes the oldest elements, if the outbox has put more into the list
        than it may have."""
        current = self._list
        keep = self._most(fallback_size)
        slack = min(JOB_ELEMENTS, keep // CUT_SHARE)
        if current.key is None or keep == 0 or current.length <= keep + slack:
            return None
        return self._submit(Cut(current, keep), fallback.cut_job(current.key, keep))

    def _most(self, fallback_size: int) -> int:
        """Return the most elements that the list may have; 0: any number."""
        half = fallback_size // 2
        most = max(1, fallback_size - half, fallback_size - self._lists.refused.length)
        return most if fallback_size > 0 else 0

    def push_refused(self, fallback_size: int) -> Submit:
        """Return the job that pushes the oldest refused events of memory to their list.

        They may take half of `fallback_size`.
        """
        keep = max(1, fallback_size // 2) if fallback_size > 0 else 0
        return self._push(self._lists.refused, self._refused, keep)

    def _push(self, target: FallbackList, log: Memory, keep: int) -> Submit:
        assert target.key is not None
        log.remove_done()
        size = 0
        elements: list[bytes] = []
        for entry in log:
            entry.element = element_of(entry)
            elements.append(entry.element)
            size += len(entry.element)
            if size >= JOB_BYTES or len(elements) >= JOB_ELEMENTS:
                break
        job = fallback.push_job(target.key, elements, keep)
        log.storing = len(elements)
        return self._submit(Push(target, log, keep), job)

    def next_read(self) -> Submit | None:
        """Return the job that reads more elements, if any are unread and there is room for them."""
        current = self._list
        enough = current.unsent >= WINDOW or current.unsent_bytes >= WINDOW_BYTES
        sent = len(current.known) - current.unsent
        if current.key is None or not current.unread or enough or sent >= SENT_ELEMENTS:
            return None
        return self._read(current, JOB_ELEMENTS)

    def next_refused_read(self, most: int) -> Submit | None:
        """Return the job that reads at most `most` refused elements, if none are known."""
        refused = self._lists.refused
        if not refused.is_ready or not refused.unread or refused.known or most <= 0:
            return None
        return self._read(refused, min(most, JOB_ELEMENTS))

    def _read(self, source: FallbackList, most: int) -> Submit:
        assert source.key is not None
        start = len(source.known)
        read = Read(source, source.known_end)
        return self._submit(read, fallback.peek_job(source.key, start, most, JOB_BYTES))

    def next_trim(self, *, at_once: bool, more: bool, patient: bool = False) -> Submit | None:
        """Return the job that removes settled elements, if there are enough of them.

        Enough are TRIM_ELEMENTS or WINDOW_BYTES; any number TRIM_EVERY after the last trim; and all
        that were sent, unless there is `more` to send.
        `patient`: elements come all the time, so enough are JOB_ELEMENTS, and all that were sent
        are not. `at_once`: any number is enough.
        """
        current = self._list
        sent = len(current.known) - current.unsent
        least = JOB_ELEMENTS if patient else TRIM_ELEMENTS
        at_once = at_once or self._clock() >= self.trim_at
        whole = not (more or patient)

        def enough(count: int, size: int) -> bool:
            large = count >= least or size >= WINDOW_BYTES
            return count > 0 and (at_once or large or (whole and count >= sent))

        if not enough(current.done + current.refused, current.done_bytes):
            return None  # this cheap test comes first: the prefix is found by a walk
        may_move = self._lists.refused.is_ready
        settled = current.settled_prefix() if may_move else current.done_prefix()
        return self._trim(current, settled) if enough(len(settled), size_of(settled)) else None

    def next_refused_trim(self) -> Submit | None:
        """Return the job that trims the list of refused events, when all known are settled.

        Those that were refused again move to its end.
        """
        refused = self._lists.refused
        if not refused.is_ready or not refused.known:
            return None
        settled = refused.settled_prefix()
        return self._trim(refused, settled) if len(settled) == len(refused.known) else None

    def _trim(self, source: FallbackList, settled: Sequence[Entry]) -> Submit:
        """Return the job that removes as many of these elements as fit into one job."""
        assert source.key is not None
        size = 0
        elements: list[bytes] = []
        moved: list[bytes] = []
        for entry in settled[:JOB_ELEMENTS]:
            if size >= JOB_BYTES:
                break
            elements.append(element_of(entry))
            size += len(elements[-1])
            if entry.state is REFUSED:
                moved.append(elements[-1])
        to = self._lists.refused.key
        job = fallback.trim_job(source.key, elements, moved, to or b"")
        source.trimming = len(elements)
        if source is self._list and len(elements) == len(settled):  # else the rest follows at once
            self.trim_at = self._clock() + TRIM_EVERY
        return self._submit(Trim(source, len(elements), len(moved)), job)

    # ---- reading replies ---------------------------------------------------------

    def done(self, result: JobResult) -> None:
        """Take the replies of the job that was submitted last."""
        kind, self.running = self.running, None
        if isinstance(kind, Trim):
            kind.list.trimming = 0
        match kind:
            case Length() | Read() | Trim() if self._is_stale:
                self._reread_lengths()
            case Length(lists=lists, look=True):
                self._looked(result, 0, lists)
            case Length(lists=lists):
                self._length_done(result, lists)
            case Push():
                self._push_done(result, kind)
            case Read():
                self._read_done(result, kind)
            case Trim():
                self._trim_done(result, kind)
            case Cut():
                self._cut_done(result, kind)
            case Purge(keys=keys):
                self._purge_done(result, keys)
        for one in (self._list, self._lists.refused):
            if one.key is None:
                # The list was left while the job was under way: undo what its replies changed.
                none = one.state is ListState.NONE
                one.leave()
                if none:
                    one.state = ListState.NONE

    @property
    def _is_stale(self) -> bool:
        """True if the known head was forgotten after the job was made: its replies are ignored."""
        return any(one.generation != generation for one, generation in self._generations)

    def _reread_lengths(self) -> None:
        """Treat the lengths as unknown, and make reading them due now."""
        for one in (self._list, self._lists.refused):
            if one.is_ready:
                one.state = ListState.UNKNOWN
        self.check_now()

    def _looked(self, result: JobResult, number: int, lists: Sequence[FallbackList]) -> bool:
        """Take the lengths that a look has found.

        Return False if a list is shorter than it is known to be, or not a list. Others have
        removed elements, or its slot moves to another node, where a look finds nothing. Then
        the lengths are read with commands, at once.
        """
        reply = result.reply(number)
        lengths = [n for n in reply if isinstance(n, int)] if isinstance(reply, list) else []
        known = [one.length for one in lists]
        if len(lengths) == len(known) and all(map(operator.ge, lengths, known)):
            for one, length in zip(lists, lengths, strict=True):
                self._lists.set_length(one, length)
            return True
        self._in_doubt = True
        self.check_now()
        return False

    def _failed(self, error: JobError, log: Memory | None = None) -> None:
        self._in_doubt = True
        # Jobs from before a demotion fail as read-only; by now the role may be another one.
        if self._lists.writable and error.failure is not Failure.READ_ONLY:
            self._on_error(f"fallback list: {error}")
        at = self._clock() + JOB_RETRY_AFTER
        if error.failure is not Failure.NO_MEMORY:
            self.retry_at = at
            self._ledger.lacks_memory = False
            return
        self._ledger.push_refused(str(error))
        if log is self._refused:  # each list has a share of its own
            self.refused_push_at = at
        else:
            self.push_at = at
            self._ledger.lacks_memory = True

    def _length_done(self, result: JobResult, lists: Sequence[FallbackList]) -> None:
        self._in_doubt = False
        for number, one in enumerate(lists):
            length = result.reply(number)
            if isinstance(length, int):
                self._lists.set_length(one, length)
            elif isinstance(length, JobError):
                self._in_doubt = True
                if one is self._list:
                    self._length_failed(length)
                elif length.failure is Failure.WRONG_TYPE:
                    self._lists.set_length(one, 0)
                    one.state = ListState.NONE

    def _length_failed(self, error: JobError) -> None:
        """Note that the list is out of reach, or that there is none and memory need not wait."""
        match error.failure:
            case Failure.WRONG_TYPE:
                self._lists.set_length(self._list, 0)
                self._list.state = ListState.NONE
            case Failure.NOT_SERVED:
                self._lists.leave_unserved()
            case _ if self._list.state is ListState.NONE:
                self._list.state = ListState.UNKNOWN
        none = self._list.state is ListState.NONE
        if none or self._memory.oldest is not None:  # otherwise nothing waits for the list
            self._failed(error)
        # When a cluster is up, clients write at once.
        down = error.failure is Failure.CLUSTER_DOWN
        self.retry_at = self.check_at = self._clock() + (JOB_RETRY_AFTER if down else CHECK_EVERY)

    def _push_done(self, result: JobResult, push: Push) -> None:
        length, target, log = result.reply(0), push.list, push.log
        if not isinstance(length, int):
            log.store_failed()
            if isinstance(length, JobError):
                self._failed(length, log)
                self.check_now()
            return
        if log is self._memory:
            self._ledger.lacks_memory = False
        entries = log.being_stored
        self._lists.set_length(target, length - len(entries))
        self._recent.add(entries)
        # Refused elements are read only when their turn comes.
        known = self._known_part(entries) if log is self._memory else 0
        for entry in entries[:known]:
            log.uncount(entry)
            target.enlist(entry)
        self._ledger.pushed(known)
        self._leave_to_be_read(target, log, entries[known:])
        log.stored()
        if 0 < push.keep < length:
            self._cut(target, length - push.keep)

    def _cut(self, target: FallbackList, count: int) -> None:
        """Count the oldest elements, which fell off a full list."""
        self._ledger.dropped(
            Stat.DROPPED_FALLBACK_FULL, target.cut(count), "the fallback list is full"
        )

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

    def _leave_to_be_read(
        self, target: FallbackList, log: Memory, entries: Sequence[Entry]
    ) -> None:
        """Leave pushed entries to the list: they will be read when their turn comes."""
        target.grow(len(entries))
        self._ledger.pushed(len(entries))
        for entry in entries:
            log.uncount(entry)
            self._ledger.found(entry.state is DONE)  # it will be delivered once more
            self._window.give_up(entry)

    def _read_done(self, result: JobResult, read: Read) -> None:
        source = read.list
        error = result.reply(0)
        if isinstance(error, JobError):
            self._failed(error)
            return
        if not self._looked(result, 1, [source]):
            return  # others may have removed elements: these may not be the next ones
        entries = []
        # The outbox may have handed over some of them since the job was made.
        known = source.known_end - read.place
        for element in itertools.islice(fallback.read_elements(result), known, None):
            event = self._aside.event_in(element)
            entry = Entry(event if isinstance(event, Event) else None, self._clock(), element)
            entry.listed = True
            entry.refused = source is self._lists.refused
            if not isinstance(event, Event):
                entry.state = DONE
                source.mark_done(entry)
                self._aside.lost(element, event)
            entries.append(entry)
        source.read(entries)

    def _trim_done(self, result: JobResult, trim: Trim) -> None:
        source, pushed, cut_at = trim.list, result.reply(1), 1 + bool(trim.moved)
        if result.reply(cut_at) != b"OK" or not (isinstance(pushed, int) or not trim.moved):
            self._trim_failed(result, source, cut_at)
            return
        source.trimmed(trim.count)
        if trim.moved and isinstance(pushed, int):
            target = self._lists.refused
            target.grow(trim.moved)
            if target is not source and target.is_ready:
                self._lists.set_length(target, pushed)
        self._looked(result, cut_at + 1, [source])

    def _trim_failed(self, result: JobResult, source: FallbackList, cut_at: int) -> None:
        """Read the list again if it begins with other elements; if it is out of reach, wait."""
        for number in range(cut_at + 1):
            error = result.reply(number)
            if isinstance(error, JobError) and error.failure is not Failure.NOT_RUN:
                self._failed(error)
                self.check_now()
                return
        source.forget_head()
        self.check_now()

    def _cut_done(self, result: JobResult, cut: Cut) -> None:
        lengths, outcome = result.reply(0), result.reply(1)
        if outcome != b"OK" or not isinstance(lengths, list):
            if isinstance(outcome, JobError):
                self._failed(outcome)
            self.check_now()
            return
        (length,) = lengths
        assert isinstance(length, int)
        # First what others have changed: so the elements that were cut are those that count.
        self._lists.set_length(cut.list, length)
        if length > cut.keep:
            self._cut(cut.list, length - cut.keep)

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
            one = self._lists.with_key(key)
            if one is not None:
                self._lists.set_length(one, length)
                one.forget_head()
                one.length = 0
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
        for one in (self._list, self._lists.refused):
            one.hand_over()
        self._reread_lengths()
        for log in (self._memory, self._refused):
            pushing = isinstance(self.running, Push) and self.running.log is log
            log.repair(push_under_way=pushing)
