"""The state machine between events, the broker and the fallback list.

Sans I/O: events, confirms, changes of the link, results of jobs and the time go
in; `poll` says what to do next. worker.py carries that out. One thread owns an
instance; nothing here blocks or fails for what the world does.

Where an event is, and in which order everything leaves:

    the list in Redis                              memory
    listed_sent  listed_waiting  (not read yet)    storing   sent   waiting
    older ───────────────────────────────────────────────────────────▶ newer

- `listed_*` are the elements of the list that were read or pushed by us, from
  its head on. The rest of the list was not read yet.
- `storing` is in a push job just now; `sent` and `waiting` are in memory only.
- What is in memory is sent only when everything in the list has been sent. So
  the order of sending is the order of events, and on a lost connection what was
  sent and not confirmed simply waits again, in its old place.
- An element leaves the list after its confirm, never before (rule 10).
- In a cluster there may be other lists: those that slots brought along. They are
  delivered one after the other, when the present one is empty, and before memory.
- A push takes the oldest in memory first, sent or not: the list stays older than
  memory. An entry that is confirmed while it is being pushed is trimmed later.

Everything here is counted so that at any moment
`events_matched + fallback_found = confirmed + dropped + fallback_length +
queue_length + in_flight`.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
import enum
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Sequence

from .. import fallback
from ..broker.target import target_of
from ..config import Config
from ..fallback import JOB_BYTES, JOB_ELEMENTS, from_element, to_element
from ..jobs import Failure, Job, JobError, JobResult
from ..message import EVENT_BYTES, Event
from ..tables.parameters import INT64_MAX
from ..tables.stats import CONFIRM_BOUNDS, Stat

# Messages sent and not confirmed: what RabbitMQ confirms in about 60 ms at its fastest,
# so that it has always something to do while the worker does something else.
WINDOW = 4000
# And their bytes: with a silent broker this is what pika's buffer may hold. Also
# of the list's elements that are known and not sent yet, and of those that were
# confirmed and wait for their trim.
WINDOW_BYTES = 16 * 1024 * 1024
# Messages sent in one poll: confirms are read in between. Large pieces, because each
# costs a turn of the loop and a call of the kernel.
SEND_CHUNK = 1000
# An event that cannot be sent is stored after this time. In 100 ms it has to be
# in the list; the other half is for Redis' main thread to get to the job.
STORE_AFTER = 0.05
# A connected broker that confirms nothing for so long counts as away.
STALLED_AFTER = 0.25
# Confirmed elements that a trim waits for while more are on their way.
TRIM_ELEMENTS = JOB_ELEMENTS // 4
# Reconnection: exponential, with jitter so that nodes do not come all at once.
BACKOFF_FIRST = 0.1
BACKOFF_MAX = 5.0
# After a refusal (basic.nack), the same with these bounds; and the window shrinks.
# Refusals within so many seconds after the last repetition are of the same trouble.
REFUSED_MAX = 1.0
REFUSED_QUIET = 1.0
# Events that were pushed so lately (seconds) are delivered from memory too when this
# node is demoted without having agreed: the new primary may have taken over before it
# had them, and the list here goes with the rest of the data.
PUSHED_LATELY = 2.0
# How often the list's length is compared with what we know.
CHECK_EVERY = 1.0
# A job that failed (list out of reach) is tried again after this time.
JOB_RETRY_AFTER = 0.2
# Losses are logged at most so often, each reason by itself; and messages that reach
# no queue.
LOG_EVERY = 10.0
RETURNS_LOG_EVERY = 60.0
# How a flush uses its time: for confirms, as long as there are any; then, this
# much before the end at a stop, and after this much at a save, it stores the rest.
STOP_RESERVE = 1.5
STORE_GRACE = 0.1
# And this is for the goodbye to the broker and the way back to the main thread.
FLUSH_MARGIN = 0.8

_REASONS = {
    b"evicted": Stat.DROPPED_FALLBACK_EVICTED,
    b"expired": Stat.DROPPED_FALLBACK_EXPIRED,
    b"flushdb": Stat.DROPPED_FALLBACK_FLUSHED,
    b"swapdb": Stat.DROPPED_FALLBACK_FLUSHED,
}


class Link(enum.Enum):
    """The connection. OFF: not wanted; WAITING: for the next attempt."""

    OFF = "off"
    WAITING = "waiting"
    CONNECTING = "connecting"
    UP = "up"
    BLOCKED = "blocked"


class State(enum.IntEnum):
    """Of an entry. DONE: confirmed, or not to be sent; REFUSED: by a nack."""

    WAITING = 0
    SENT = 1
    REFUSED = 2
    DONE = 3


# A member of an enum costs a look into its class.
_WAITING, _SENT, _DONE = State.WAITING, State.SENT, State.DONE


class Entry:
    """An event on its way."""

    __slots__ = ("at", "element", "event", "listed", "size", "state", "tag")

    def __init__(self, event: Event | None, at: float, element: bytes | None = None) -> None:
        self.event = event  # None: an element that is no event
        self.at = at  # when it came, in the clock of poll
        self.element = element  # as it is in the list
        self.state = _WAITING
        self.tag = 0  # of the connection, while its confirm is waited for
        self.listed = False
        # bytes of memory, about
        self.size = 0
        if event is not None:
            self.size = len(event.key) + len(event.name) + EVENT_BYTES
            if event.value is not None and event.value.data is not None:
                self.size += len(event.value.data)


@dataclasses.dataclass(frozen=True)
class Connect:
    """Open a connection; then link_up or link_down."""


@dataclasses.dataclass(frozen=True)
class Close:
    """Close the connection; nothing of it is to be heard any more."""


@dataclasses.dataclass(frozen=True)
class Send:
    """Publish these; the confirm's tags count from `first_tag`."""

    first_tag: int
    events: Sequence[Event]


@dataclasses.dataclass(frozen=True)
class Submit:
    """Run a job on Redis' main thread; then job_done."""

    job: Job


class Flush(enum.IntEnum):
    """What a flush is for; FLUSH_* in shim/api.h says more."""

    STORE = 0
    LEAVE = 1
    DRAIN = 2


@dataclasses.dataclass(frozen=True)
class Flushed:
    """The flush with this id is done. `left`: events for the file of leftovers, with
    what was not even taken in; None: there is to be no file."""

    id: int
    mode: Flush
    left: Sequence[Event] | None = None


@dataclasses.dataclass(frozen=True)
class Recovered:
    """All leftovers of an earlier life are delivered, stored or counted."""


@dataclasses.dataclass(frozen=True)
class Log:
    level: str
    text: str


Action = Connect | Close | Send | Submit | Flushed | Recovered | Log


def is_stale(action: Action) -> bool:
    """Whether `repair` makes the action mean nothing."""
    return isinstance(action, (Connect, Close, Send, Submit))


class _JobKind(enum.Enum):
    LENGTH = 1
    PUSH = 2
    READ = 3
    TRIM = 4
    PURGE = 5


@dataclasses.dataclass
class _Tale:
    """What is to be logged of a counter, and when."""

    at: float
    count: int = 0
    text: str = ""


@dataclasses.dataclass
class _Flush:
    id: int
    mode: Flush
    grace_until: float
    until: float

    @property
    def stop(self) -> bool:
        return self.mode is not Flush.STORE


class Publisher:
    """See the module's text. `clock`: monotonic seconds; `wall`: Unix time in ms."""

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float],
        wall: Callable[[], int],
        jitter: Callable[[], float] = random.random,
        *,
        clustered: bool = True,
    ) -> None:
        now = clock()
        self.counts = [0] * len(Stat)
        self.link = Link.OFF
        self.last_error = ""
        self.again = False  # poll has more to do as soon as confirms were read
        self._clock = clock
        self._wall = wall
        self._jitter = jitter
        self._config = config
        self._actions: list[Action] = []
        # the link
        self._wanted = True  # False after DISCONNECT
        self._needed = False  # there was something to send
        self._attempts = 0
        self._retry_at = now
        self._was_up = False
        # What was sent on this connection: a place for each tag, from the oldest on that
        # the broker has not confirmed. Who does not wait for it any more has another tag,
        # or 0.
        self._tags: collections.deque[Entry] = collections.deque()
        self._next_tag = 1
        self._unconfirmed = 0
        self._bytes_in_flight = 0
        self._progress_at = now
        # When those events were emitted that were confirmed since the last poll, and when
        # the first of them was confirmed.
        self._confirmed: list[int] = []
        self._confirmed_at = 0
        self._refused: list[Entry] = []
        self._refused_until = now
        self._refusals = 0
        self._window = WINDOW  # smaller after refusals
        self._to_tell: dict[Stat, _Tale] = {}
        # the list
        self.primary = False
        self.writable = False
        self.key: bytes | None = None  # of the list that is being worked with
        self.lists_known = False  # False: they are to be looked for
        self.unserved_key: bytes | None = None  # the key that was not served any more
        self._home: bytes | None = None
        self._others: dict[bytes, int] = {}  # the other lists, with their lengths
        self._known = False  # the list's length was read
        self._no_list = False  # the key holds something else, or there is no key
        self._length = 0
        self._listed_done = 0  # elements of it that are DONE
        self._listed_done_bytes = 0
        self._listed_sent: collections.deque[Entry] = collections.deque()
        self._listed_waiting: collections.deque[Entry] = collections.deque()
        self._job: _JobKind | None = None
        self._job_count = 0  # elements of a trim
        self._job_keep = 0  # fallback-size when the job was made
        self._job_keys: Sequence[bytes] = ()  # of a purge
        self._job_stale = False  # what it was made for is not true any more
        self._job_retry_at = now
        self._check_at = now
        self._reasons: dict[bytes, Stat] = {}  # why a list is, or may soon be, shorter
        self._purges: list[Callable[[int | JobError], None]] = []
        self._lately: collections.deque[tuple[float, int, Event]] = collections.deque()
        self._lately_bytes = 0
        # Elsewhere somebody has told this node, and may have waited for the replica;
        # the order counts for more than what nobody waited for.
        self._keeps_lately = clustered
        # memory
        self._storing: collections.deque[Entry] = collections.deque()
        self._sent: collections.deque[Entry] = collections.deque()
        self._waiting: collections.deque[Entry] = collections.deque()
        self._waiting_count = 0
        self._waiting_bytes = 0
        self._in_flight = 0
        self._pressure = False
        self._leftovers: collections.deque[Entry] = collections.deque()  # see `recover`
        self._flush: _Flush | None = None

    @property
    def _now(self) -> float:
        return self._clock()

    # ---- what comes in -----------------------------------------------------

    def configure(self, config: Config) -> None:
        """New parameters. Those of the connection make a new connection."""
        old, self._config = self._config, config
        if target_of(old) != target_of(config) or old.node_name != config.node_name:
            self._attempts = 0
            self._retry_at = self._now
            if self.link not in (Link.OFF, Link.WAITING):
                self._actions.append(Close())
                self._link_lost(Link.WAITING)

    def connect(self) -> None:
        """CONNECT: connect now, if only to see whether it works."""
        self._wanted = self._needed = True
        self._attempts = 0
        self._retry_at = self._now

    def disconnect(self) -> None:
        """DISCONNECT: stay away until `connect`."""
        self._wanted = False
        if self.link not in (Link.OFF, Link.WAITING):
            self._actions.append(Close())
            self._link_lost(Link.OFF)
        self.link = Link.OFF

    def set_role(self, *, primary: bool, loading: bool, agreed: bool = False) -> None:
        """What this server is. The list can be written on a primary that is not
        loading a data set. `agreed`: a replica has all that was written here."""
        self.primary = primary
        writable = primary and not loading
        if writable == self.writable:
            return
        self.writable = writable
        self.lists_known = self._no_list = False
        self._leave_list()
        self.counts[Stat.FALLBACK_FOUND] -= sum(self._others.values())
        self._others.clear()
        self._reasons.clear()
        if not primary and not agreed:
            self._forget_lately(self._now - PUSHED_LATELY)
            again = self._take_up([event for _, _, event in self._lately])
            if self._leftovers:  # they may be among these, and are not safe any more
                self._leftovers.extend(again)
        self._forget_lately(self._now + 1)

    def _forget_lately(self, until: float) -> None:
        while self._lately and (self._lately[0][0] < until or self._lately_bytes > WINDOW_BYTES):
            self._lately_bytes -= self._lately.popleft()[1]

    def _take_up(self, events: Sequence[Event]) -> Sequence[Entry]:
        """Events that this life has not seen, or has stored: before all in memory."""
        entries = [Entry(event, self._now) for event in events]
        self.counts[Stat.FALLBACK_FOUND] += len(entries)
        self._waiting.extendleft(reversed(entries))
        for entry in entries:
            self._join_waiting(entry)
        self._needed = self._needed or bool(entries)
        return entries

    def lists_found(self, lengths: Mapping[bytes, int]) -> None:
        """Lists that were looked at, in slots of this node. 0: it is gone."""
        for key, length in lengths.items():
            if key == self.key or not self.writable:
                continue
            self._book_change(key, length - self._others.pop(key, 0))
            if length:
                self._others[key] = length

    def imported(self, key: bytes, length: int, count: int) -> None:
        """So many elements were put to the end of a list of ours, which had `length` then:
        to be told between the results of the jobs that ran before and after that."""
        for now in (length - count, length):
            if key != self.key:
                self.lists_found({key: now})
            elif self.writable:
                self._set_length(now)

    def set_lists(self, home: bytes | None, serves: Callable[[bytes], bool]) -> None:
        """All lists have been looked for. `home`: where a new one belongs; None: this
        node has no slot. `serves`: whether a key is in its slots."""
        if not self.writable:
            return
        self.lists_known = True
        self._home = home
        if self.key is not None and not serves(self.key):
            self._leave_list()
        for key in [key for key in self._others if not serves(key)]:
            self.counts[Stat.FALLBACK_FOUND] -= self._others.pop(key)

    def touched(self, what: bytes, key: bytes = b"") -> None:
        """Somebody else did something to a list, or to all of them; the length will
        show what."""
        for touched in self.keys:
            if key in (b"", touched):
                self._reasons[touched] = _REASONS.get(what, Stat.DROPPED_FALLBACK_REMOVED)
        if key in (b"", self.key):
            self._check_at = self._now

    def set_pressure(self, pressure: bool) -> None:
        """More events wait outside than memory should hold."""
        self._pressure = pressure

    def add(self, events: Sequence[Event]) -> None:
        """Events that a mask let through, oldest first."""
        now = self._now
        entries = [Entry(event, now) for event in events]
        self._waiting.extend(entries)
        self._waiting_bytes += _size_of(entries)
        self._waiting_count += len(events)
        self.counts[Stat.EVENTS_MATCHED] += len(events)
        self._needed = self._needed or bool(events)

    def recover(self, events: Sequence[Event]) -> None:
        """Leftovers of an earlier life, before anything else; then Recovered."""
        self._leftovers.extend(self._take_up(events))

    def drop_oldest(self, size: int, keep: int = 0) -> int:
        """Gives up the oldest events in memory that nobody has seen yet, at least
        so many bytes of them if there are, but for the newest `keep`; how many
        events."""
        dropped = 0
        enough = self._waiting_bytes - size
        while len(self._waiting) > keep and self._waiting_bytes > enough:
            entry = self._waiting.popleft()
            self._leave_waiting(entry)
            entry.state = State.DONE
            dropped += 1
        self._drop(Stat.DROPPED_QUEUE_FULL, dropped, "memory is full and the list out of reach")
        return dropped

    def give_up(self) -> None:
        """An event came in over which the handler fails again and again."""
        self.counts[Stat.EVENTS_MATCHED] += 1
        self._drop(Stat.DROPPED_HANDLER_ERROR, 1, "the handler failed over them")

    def purge(self, done: Callable[[int | JobError], None]) -> None:
        """Deletes the list, and calls `done` with the number of elements."""
        self._purges.append(done)

    def drain(self) -> None:
        """Tries to reach the broker now."""
        if self._wanted:
            self.connect()

    def flush(self, flush_id: int, seconds: float, mode: Flush) -> None:
        """Everything in memory is to be delivered or stored within a time; unless
        the mode is STORE, there is nothing more to come."""
        until = self._now + max(seconds - FLUSH_MARGIN, 0)
        grace = self._now + STORE_GRACE if mode is Flush.STORE else until - STOP_RESERVE
        self._flush = _Flush(flush_id, mode, min(grace, until), until)

    def reset_stats(self) -> None:
        """Counters start again; what is still on its way is carried over."""
        for stat in Stat:
            self.counts[stat] = 0
        self._confirmed.clear()
        self.counts[Stat.EVENTS_MATCHED] = self._waiting_count + self._in_flight
        self.counts[Stat.FALLBACK_FOUND] = self.gauges()[Stat.FALLBACK_LENGTH]

    def _count_times(self) -> None:
        """How long events took from their emission to their confirm. All of a turn at once:
        they are in order, or nearly, and a few looks say how many are in which bucket."""
        times, now = sorted(self._confirmed), self._confirmed_at
        self._confirmed.clear()
        if times[-1] > now:  # the clock was set back, or somebody else's is ahead
            times = [min(time, now) for time in times]
        total = self.counts[Stat.CONFIRM_MS_SUM] + len(times) * now - sum(times)
        self.counts[Stat.CONFIRM_MS_SUM] = min(total, INT64_MAX)
        end = len(times)
        for place in range(
            bisect.bisect_left(CONFIRM_BOUNDS, now - times[-1]), len(CONFIRM_BOUNDS)
        ):
            start = bisect.bisect_left(times, now - CONFIRM_BOUNDS[place], 0, end)
            self.counts[Stat.CONFIRM_MS_LE_1 + place] += end - start
            end = start
            if not end:
                return
        self.counts[Stat.CONFIRM_MS_LE_INF] += end

    # ---- the link ----------------------------------------------------------

    def link_up(self) -> None:
        """The connection is there and confirms are on."""
        self.link = Link.UP
        self._window = WINDOW
        self._next_tag = 1
        self._progress_at = self._now
        self.counts[Stat.RECONNECTS] += self._was_up
        self._was_up = True

    def attempt_failed(self, reason: str) -> None:
        """One of several brokers; the others are tried now."""
        self.last_error = reason

    def link_down(self, reason: str) -> None:
        """An attempt has failed, or the connection or its channel is gone."""
        self.last_error = reason
        self._attempts += 1
        self._retry_at = self._now + self._backoff(self._attempts)
        self._link_lost(Link.WAITING)

    def _backoff(self, attempts: int, most: float = BACKOFF_MAX) -> float:
        delay = min(most, BACKOFF_FIRST * 2.0 ** min(attempts - 1, 16))
        return delay * (0.5 + self._jitter() / 2)

    def link_blocked(self, reason: str) -> None:
        if self.link is Link.UP:
            self.link = Link.BLOCKED
            self.last_error = f"blocked by the broker: {reason}"

    def link_unblocked(self) -> None:
        if self.link is Link.BLOCKED:
            self.link = Link.UP
            self._progress_at = self._now

    def _link_lost(self, link: Link) -> None:
        """Whatever was sent and not confirmed waits again, in its place."""
        self.link = link
        for entry in self._in_window():
            self._unsend(entry, State.WAITING)
        for entry in self._refused:
            if entry.state is State.REFUSED:
                entry.state = State.WAITING
        self._close_window()
        self._refused.clear()
        self._waiting.extendleft(
            entry for entry in reversed(self._sent) if entry.state is not State.DONE
        )
        self._sent.clear()
        # The confirmed at the head stay where they can be trimmed.
        done = self._confirmed_prefix()
        while len(self._listed_sent) > done:
            self._listed_waiting.appendleft(self._listed_sent.pop())

    def acked(self, tag: int, multiple: bool) -> None:
        """basic.ack. Tags that nobody waits for any more are ignored."""
        self._progress_at = self._now
        self._attempts = 0
        entries = self._take_tags(tag, multiple)
        self._window = min(WINDOW, self._window + len(entries))
        memory = len(entries)
        for entry in entries:
            entry.state = _DONE
            if entry.listed:
                self._book_listed_done(entry)
                memory -= 1
        self._in_flight -= memory
        self.counts[Stat.CONFIRMED] += len(entries)
        if not self._confirmed:
            self._confirmed_at = self._wall()
        self._confirmed += [e.event.time_ms for e in entries if e.event is not None]
        sent = self._sent
        while sent and sent[0].state is _DONE:
            sent.popleft()

    def nacked(self, tag: int, multiple: bool) -> None:
        """basic.nack: the broker could not take it. Again, a little later."""
        self._progress_at = self._now
        entries = self._take_tags(tag, multiple)
        for entry in entries:
            self._unsend(entry, State.REFUSED)
            self._refused.append(entry)
        self.counts[Stat.NACKED] += len(entries)
        if entries:
            self.last_error = "the broker refused a message (basic.nack)"
            if self._now >= self._refused_until:  # not one of the same round
                # A queue that is full with a slow consumer takes some and refuses
                # others: only time tells that the trouble is over.
                if self._now > self._refused_until + REFUSED_QUIET:
                    self._refusals = 0
                self._refusals += 1
                delay = self._backoff(self._refusals, REFUSED_MAX)
                self._refused_until = self._now + delay
                self._window = max(1, self._window // 2)

    def too_large(self, limit: int, make_body: Callable[[Event], bytes]) -> None:
        """The broker takes no messages above so many bytes: it would close the
        channel over each of them for ever."""
        given_up = [
            entry
            for entry in (*self._in_window(), *self._refused)
            if entry.event is not None
            and entry.state is not State.DONE
            and len(make_body(entry.event)) > limit
        ]
        for entry in given_up:
            if entry.listed:
                self._book_listed_done(entry)
            else:
                self._leave_memory(entry)
            self._forget(entry)
        why = f"larger than the broker's limit of {limit} bytes"
        self._drop(Stat.DROPPED_TOO_LARGE, len(given_up), why)

    def returned(self) -> None:
        """basic.return: no queue is bound. The confirm follows."""
        self.counts[Stat.RETURNED] += 1
        exchange, key = self._config.exchange, self._config.routing_key
        why = f"exchange {exchange!r} has no binding for the routing key {key!r}"
        self._tell(Stat.RETURNED, 1, f"messages reached no queue: {why}")

    def _take_tags(self, tag: int, multiple: bool) -> list[Entry]:
        """Ends the wait for these tags, and says who has waited."""
        tags = self._tags
        place = tag - (self._next_tag - len(tags))
        if not 0 <= place < len(tags):
            return []  # this tag and all below have been settled
        if multiple:
            first = tag - place
            taken = [tags.popleft() for _ in range(place + 1)]
            entries = [entry for tag, entry in enumerate(taken, first) if entry.tag == tag]
        else:
            entry = tags[place]
            entries = [entry] if entry.tag == tag else []
        for entry in entries:
            entry.tag = 0
        self._bytes_in_flight -= _size_of(entries)
        self._unconfirmed -= len(entries)
        # Settled one by one: a place at the head with another's tag is of no use.
        while tags and tags[0].tag != self._next_tag - len(tags):
            tags.popleft()
        return entries

    def _in_window(self) -> list[Entry]:
        """Who waits for a confirm, in the order of sending."""
        first = self._next_tag - len(self._tags)
        return [entry for tag, entry in enumerate(self._tags, first) if entry.tag == tag]

    def _close_window(self) -> None:
        """The tags of the connection mean nothing any more."""
        for entry in self._tags:
            entry.tag = 0
        self._tags.clear()
        self._unconfirmed = self._bytes_in_flight = 0

    # ---- counting what is in memory ----------------------------------------

    def _leave_waiting(self, entry: Entry) -> None:
        self._waiting_count -= 1
        self._waiting_bytes -= entry.size

    def _join_waiting(self, entry: Entry) -> None:
        self._waiting_count += 1
        self._waiting_bytes += entry.size

    def _leave_memory(self, entry: Entry) -> None:
        """Out of the count that it is in, whether sent or not."""
        if entry.state is State.SENT:
            self._in_flight -= 1
        elif entry.state is not State.DONE:
            self._leave_waiting(entry)

    def _unsend(self, entry: Entry, state: State) -> None:
        entry.state = state
        if not entry.listed:
            self._in_flight -= 1
            self._join_waiting(entry)

    def _drop(self, reason: Stat, count: int, why: str) -> None:
        if count:
            self.counts[reason] += count
            self._tell(reason, count, f"events lost: {why}")

    def _tell(self, stat: Stat, count: int, text: str) -> None:
        """Has a count logged, soon or with the next ones of its kind."""
        told = self._to_tell.setdefault(stat, _Tale(self._now))
        told.count += count
        told.text = text

    def _log_counts(self, *, all_of_them: bool) -> None:
        """At once the first time, then together what came in a while."""
        for stat, tale in self._to_tell.items():
            if tale.count and (all_of_them or self._now >= tale.at):
                self._actions.append(Log("warning", f"{tale.count} {tale.text}"))
                tale.count = 0
                every = RETURNS_LOG_EVERY if stat is Stat.RETURNED else LOG_EVERY
                tale.at = self._now + every

    # ---- the list ----------------------------------------------------------

    @property
    def _unread(self) -> int:
        return self._length - len(self._listed_sent) - len(self._listed_waiting)

    @property
    def keys(self) -> Sequence[bytes]:
        """The lists of this node, the one that it works with first."""
        return [key for key in (self.key, *self._others) if key is not None]

    @property
    def lists(self) -> Sequence[bytes] | None:
        """The same; None on a replica, and as long as they are looked for and the one to
        work with is not chosen."""
        known = self.lists_known and (self.keys or self._home is None)
        return self.keys if known else None

    @property
    def _behind(self) -> bool:
        """Whether memory has to wait for elements that are not read yet."""
        return bool(self._unread or self._others)

    @property
    def _storable(self) -> bool:
        """Whether the list takes pushes now."""
        return (
            self.writable
            and self._known
            and self._config.fallback_size >= 0
            and self._now >= self._job_retry_at
        )

    def _book_listed_done(self, entry: Entry) -> None:
        """An element of the list that we know is DONE."""
        self._listed_done += 1
        self._listed_done_bytes += entry.size

    def _confirmed_prefix(self) -> int:
        return sum(
            1 for _ in itertools.takewhile(lambda e: e.state is State.DONE, self._listed_sent)
        )

    def _forget(self, entry: Entry) -> None:
        """Nobody waits for this entry any more; its confirm will mean nothing."""
        if entry.tag:
            entry.tag = 0
            self._unconfirmed -= 1
            self._bytes_in_flight -= entry.size
        entry.state = State.DONE

    def _forget_listed(self) -> None:
        """What we know of the list's elements is not true any more: they are
        read again. Elements that were confirmed count as found anew."""
        for entry in itertools.chain(self._listed_sent, self._listed_waiting):
            self._forget(entry)
        self._listed_sent.clear()
        self._listed_waiting.clear()
        self.counts[Stat.FALLBACK_FOUND] += self._listed_done
        self._listed_done = self._listed_done_bytes = 0
        self._job_stale = True

    def _hand_over(self) -> None:
        """The list is not ours to drain any more (replica, or loading)."""
        self._forget_listed()
        self.counts[Stat.FALLBACK_FOUND] -= self._length
        self._length = 0

    def _leave_list(self) -> None:
        """The list is not ours any more, or nobody knows."""
        self._hand_over()
        self.key = None
        self._known = False

    def _move_on(self) -> None:
        """Chooses the list to work with: the present one until it is empty; then one
        that waits, or else the one at home."""
        # Where a key is no list, nobody waits for it to become one.
        empty = self._length == 0 and (self._known or (self._no_list and bool(self._others)))
        settled = self.key is None or empty
        if not (self.lists_known and settled):
            return
        key = max(self._others, key=self._others.__getitem__, default=self._home)
        self._no_list = key is None
        if key is not None and key != self.key:
            self.key = key
            self._length = self._others.pop(key, 0)
            self._known = False
            self._check_at = self._job_retry_at = self._now

    def _set_length(self, length: int) -> None:
        """The list's length was read: book what others did to it."""
        if length < self._length:
            self._forget_listed()
        self._book_change(self.key, length - self._length)
        self._length = length
        self._known = True

    def _book_change(self, key: bytes | None, change: int) -> None:
        """Others have made a list longer or shorter."""
        if change > 0:
            self.counts[Stat.FALLBACK_FOUND] += change
            self._needed = True
        elif change < 0:
            reason = Stat.DROPPED_FALLBACK_REMOVED
            if key is not None:
                reason = self._reasons.pop(key, reason)
            how = reason.name.rpartition("_")[2].lower()
            self._drop(reason, -change, f"the fallback list was {how} by somebody else")

    def repair(self, *, job_lost: bool) -> None:
        """To be called after an exception, with the link down: whatever it has left
        half done, from here on the state is sound. What was sent goes again, and
        the list is read again. Of the actions of the last poll, those that were not
        carried out mean nothing any more if they are about the link or a job.
        `job_lost`: no job is on its way."""
        self._actions = [action for action in self._actions if not is_stale(action)]
        if job_lost:
            self._job = None
        self._hand_over()
        self._known = False
        self._check_at = self._now
        if self._job is not _JobKind.PUSH:
            self._sent.extendleft(reversed(self._storing))
            self._storing.clear()
        memory = [*self._sent, *self._waiting]
        memory = [entry for entry in memory if entry.state is not State.DONE]
        self._sent.clear()
        self._waiting = collections.deque(memory)
        self._refused.clear()
        self._close_window()
        self._in_flight = self._waiting_count = self._waiting_bytes = 0
        for entry in (*self._storing, *memory):
            if entry.state is not State.DONE:
                entry.state = State.WAITING
                self._join_waiting(entry)

    def job_done(self, result: JobResult) -> None:
        """The replies of the job that was submitted last."""
        kind, self._job = self._job, None
        if self._job_stale and kind in (_JobKind.READ, _JobKind.TRIM):
            self._known = False
            self._check_at = self._now
            return
        match kind:
            case _JobKind.LENGTH:
                self._length_done(result)
            case _JobKind.PUSH:
                self._push_done(result)
            case _JobKind.READ:
                self._read_done(result)
            case _JobKind.TRIM:
                self._trim_done(result)
            case _JobKind.PURGE:
                self._purge_done(result)
        if self.key is None:
            self._leave_list()

    def _job_failed(self, error: JobError) -> None:
        if self.writable:  # else it is a matter of course
            self.last_error = f"fallback list: {error}"
        self._job_retry_at = self._now + JOB_RETRY_AFTER

    def _length_done(self, result: JobResult) -> None:
        length = result.reply(0)
        if isinstance(length, int):
            self._no_list = False
            self._set_length(length)
        elif isinstance(length, JobError):
            # Out of reach, or no list at all: what is in memory goes on without it.
            # The key has something else, or went to another node with its slot.
            self._no_list = length.failure in (Failure.WRONG_TYPE, Failure.NOT_SERVED)
            if length.failure is Failure.WRONG_TYPE:
                self._set_length(0)
                self._known = False
            elif self._no_list:
                self.unserved_key = self.key
                self._leave_list()
                self.lists_known = False
            if self._no_list or self._oldest() is not None:  # else it hurts nobody
                self._job_failed(length)
            self._job_retry_at = self._check_at = self._now + CHECK_EVERY

    def _push_done(self, result: JobResult) -> None:
        length = result.reply(0)
        entries = self._storing
        if not isinstance(length, int):
            if isinstance(length, JobError):
                self._job_failed(length)
                self._check_at = self._now
            sent = [e for e in entries if e.state in (State.SENT, State.REFUSED)]
            self._sent.extendleft(reversed(sent))
            self._waiting.extendleft(e for e in reversed(entries) if e.state is State.WAITING)
            entries.clear()
            return
        self._set_length(length - len(entries))
        if self._keeps_lately:
            now = self._now
            for entry in entries:
                if entry.state is not State.DONE and entry.event is not None:
                    self._lately.append((now, entry.size, entry.event))
                    self._lately_bytes += entry.size
        # Elements that follow what we know are known too, and need not be read.
        known = self._unread == 0
        room = WINDOW_BYTES - _size_of(self._listed_waiting)
        while entries:
            entry = entries[0]
            known = known and (
                entry.state is not State.WAITING
                or (len(self._listed_waiting) < JOB_ELEMENTS and room > 0)
            )
            if not known:
                self._enlist_unknown(entries)
                break
            room -= entry.size
            self._enlist(entry)
            entries.popleft()
        keep = self._job_keep
        if 0 < keep < length:
            self._cut_head(length - keep)

    def _enlist_unknown(self, entries: collections.deque[Entry]) -> None:
        """Entries of memory are in the list now, and will be read in their turn."""
        self._length += len(entries)
        self.counts[Stat.FALLBACK_PUSHED] += len(entries)
        waiting = [entry for entry in entries if entry.state is _WAITING]
        self._waiting_count -= len(waiting)
        self._waiting_bytes -= _size_of(waiting)
        for entry in entries:
            if entry.state is _WAITING:
                entry.state = _DONE
            else:
                self._leave_memory(entry)
                self.counts[Stat.FALLBACK_FOUND] += entry.state is _DONE
                self._forget(entry)
        entries.clear()

    def _enlist(self, entry: Entry) -> None:
        """An entry of memory is in the list now, behind what we know of it."""
        self._leave_memory(entry)
        self._length += 1
        self.counts[Stat.FALLBACK_PUSHED] += 1
        entry.listed = True
        if entry.state is State.DONE:
            self._book_listed_done(entry)
        # The two together are in the list's order: behind an element that is not
        # sent yet, even a sent one waits for its turn (and is not sent again).
        behind = bool(self._listed_waiting) or entry.state is State.WAITING
        (self._listed_waiting if behind else self._listed_sent).append(entry)

    def _cut_head(self, count: int) -> None:
        """The oldest elements fell off a list that is full."""
        dropped = 0
        for _ in range(count):
            if self._listed_sent or self._listed_waiting:
                entry = (self._listed_sent or self._listed_waiting).popleft()
                if entry.state is State.DONE:
                    self._listed_done -= 1
                    self._listed_done_bytes -= entry.size
                    self.counts[Stat.FALLBACK_DRAINED] += 1
                    continue
                self._forget(entry)
            dropped += 1
        self._length -= count
        self._drop(Stat.DROPPED_FALLBACK_FULL, dropped, "the fallback list is full")

    def _read_done(self, result: JobResult) -> None:
        length = result.reply(1)
        if not isinstance(length, int):
            self._job_failed(length if isinstance(length, JobError) else JobError("no reply"))
            return
        known = len(self._listed_sent) + len(self._listed_waiting)
        self._set_length(length)
        if known != len(self._listed_sent) + len(self._listed_waiting):
            return  # the list was changed; read again from its head
        for element in fallback.read_elements(result):
            entry = Entry(from_element(element), self._now, element)
            entry.listed = True
            if entry.event is None:
                entry.state = State.DONE
                self._listed_done += 1
                self._drop(Stat.DROPPED_UNREADABLE, 1, "an element of the list is no event")
            self._listed_waiting.append(entry)

    def _trim_done(self, result: JobResult) -> None:
        if result.reply(1) != b"OK":
            # The list has something else there, or is out of reach.
            for number in range(2):
                error = result.reply(number)
                if isinstance(error, JobError) and str(error):
                    self._job_failed(error)
                    return
            self._forget_listed()
            self._check_at = self._now
            return
        trimmed = [self._listed_sent.popleft() for _ in range(self._job_count)]
        self._listed_done_bytes -= _size_of(trimmed)
        self._length -= self._job_count
        self._listed_done -= self._job_count
        self.counts[Stat.FALLBACK_DRAINED] += self._job_count
        length = result.reply(2)
        if isinstance(length, int):
            self._set_length(length)
        else:  # in a slot that migrates an empty list is no list: see what there is
            self._known = False
            self._check_at = self._now

    def _purge_done(self, result: JobResult) -> None:
        purges, self._purges = self._purges, []
        total = 0
        outcome: JobError | None = None
        for number, key in enumerate(self._job_keys):
            length, removed = result.reply(2 * number), result.reply(2 * number + 1)
            if not isinstance(length, int) or not isinstance(removed, int):
                error = length if isinstance(length, JobError) else removed
                outcome = error if isinstance(error, JobError) else JobError("no reply")
                break
            if key == self.key:
                self._set_length(length)
                self._forget_listed()
                self._length = 0
            else:
                self._book_change(key, length - self._others.pop(key, 0))
            self._drop(Stat.DROPPED_PURGED, length, "KEYSPACEAMQP.FALLBACK PURGE")
            total += length
        for done in purges:
            done(total if outcome is None else outcome)

    def _submit(self, kind: _JobKind, job: Job, count: int = 0) -> None:
        self._job = kind
        self._job_count = count
        self._job_keep = self._config.fallback_size
        self._job_stale = False
        self._check_at = self._now + CHECK_EVERY
        self._actions.append(Submit(job))

    def _choose_job(self) -> None:
        """At most one job at a time: the next one that has to be done."""
        if self._job is not None:
            return
        if not self.writable:
            purges, self._purges = self._purges, []
            for purged in purges:
                purged(JobError.of(Failure.READ_ONLY))
            return
        self._move_on()
        if self._purges and self.lists_known:
            self._job_keys = self.keys
            self._submit(_JobKind.PURGE, fallback.purge_job(self._job_keys))
            return
        if self.key is None:
            return
        if not self._known or self._now >= self._check_at:
            if self._now >= self._check_at:
                self._submit(_JobKind.LENGTH, fallback.length_job(self.key))
            return
        if self._now < self._job_retry_at:
            return
        done = self._trimmable()
        if done:
            self._trim(done)
        elif self._should_store():
            self._store()
        elif (
            self.link is Link.UP
            and self._unread
            and len(self._listed_waiting) < WINDOW
            and _size_of(self._listed_waiting) < WINDOW_BYTES
        ):
            known = len(self._listed_sent) + len(self._listed_waiting)
            self._submit(_JobKind.READ, fallback.peek_job(self.key, known, JOB_ELEMENTS, JOB_BYTES))

    def _trimmable(self) -> int:
        """How many elements it is worth to trim: in large pieces while there is more to
        come, else at once."""
        listed, most = self._listed_sent, self._listed_done
        stopping = self._flush is not None and self._flush.stop
        last = self.link is not Link.UP or not self._listed_waiting
        large = self._listed_done_bytes >= WINDOW_BYTES
        all_of_them = last and most >= len(listed)
        if not most or not (stopping or all_of_them or large or most >= TRIM_ELEMENTS):
            return 0
        done = self._confirmed_prefix()
        large = large and _size_of(itertools.islice(listed, done)) >= WINDOW_BYTES
        all_of_them = last and done == len(listed)
        return done if stopping or all_of_them or large or done >= TRIM_ELEMENTS else 0

    def _should_store(self) -> bool:
        """Whether what is in memory has to go to the list (rules 9, 12, 13)."""
        oldest = self._oldest()
        if oldest is None or not self._storable:
            return False
        if self._flush is not None:
            return self._flush.mode is not Flush.LEAVE and not self._hopeful(self._flush)
        due = self._now >= oldest.at + STORE_AFTER or len(self._waiting) >= JOB_ELEMENTS
        if self.link is not Link.UP:
            return due
        if self._unread and self._sent and not (self._pressure or self._refused or self._stalled()):
            return False  # behind elements that are not read it would be sent once more
        if self._behind or self._listed_waiting:
            return due  # behind the list
        return self._pressure or self._stalled() or (bool(self._refused) and due)

    def _stalled(self) -> bool:
        """Connected, but the broker confirms nothing."""
        return bool(self._tags) and self._now >= self._progress_at + STALLED_AFTER

    def _hopeful(self, flush: _Flush) -> bool:
        """Whether a flush may still wait for the broker."""
        if self._now >= flush.grace_until:
            return False
        if flush.mode is not Flush.DRAIN and (self._behind or self._listed_waiting):
            return False  # the list comes first, and is a good place
        opening = self._attempts == 0 and self._needed and self._wanted
        if self.link is Link.UP:
            return not self._stalled() and not self._refused
        waits = flush.stop and not self._keeps(flush)
        return waits and opening and self.link is not Link.BLOCKED

    def _keeps(self, flush: _Flush) -> bool:
        """Whether what is left at the end goes to a file."""
        no_place = flush.mode is Flush.DRAIN and self.key is None
        return (flush.mode is Flush.LEAVE or no_place) and self._config.fallback_size >= 0

    def _oldest(self) -> Entry | None:
        if self._sent:
            return self._sent[0]
        return self._waiting[0] if self._waiting else None

    def _store(self) -> None:
        assert self.key is not None
        size = 0
        entries: list[Entry] = []
        elements: list[bytes] = []
        for entry in itertools.islice(itertools.chain(self._sent, self._waiting), JOB_ELEMENTS):
            entry.element = element = _element(entry)
            elements.append(element)
            entries.append(entry)
            size += len(element)
            if size >= JOB_BYTES:
                break
        job = fallback.push_job(self.key, elements, self._config.fallback_size)
        for _ in entries:
            (self._sent or self._waiting).popleft()
        self._storing.extend(entries)
        self._submit(_JobKind.PUSH, job)

    def _trim(self, count: int) -> None:
        """Removes the first elements, which are confirmed, from the list: as many
        of them as fit into a job."""
        assert self.key is not None
        size = 0
        elements: list[bytes] = []
        for entry in itertools.islice(self._listed_sent, min(count, JOB_ELEMENTS)):
            if size >= JOB_BYTES:
                break
            elements.append(_element(entry))
            size += len(elements[-1])
        self._submit(_JobKind.TRIM, fallback.trim_job(self.key, elements), len(elements))

    # ---- what comes out ----------------------------------------------------

    def poll(self, *, more: bool, most: int | None = None) -> list[Action]:
        """What is to be done now. `more`: events wait outside. `most`: no more messages
        than this are to be sent, if the others can wait."""
        self._choose_link()
        if self.link is Link.UP:
            self._choose_messages(most if most is not None and self._may_wait else SEND_CHUNK)
        self._choose_job()
        self._forget_lately(self._now - PUSHED_LATELY)
        self._choose_flushed(more)
        if self._confirmed:
            self._count_times()
        while self._leftovers and (
            self._leftovers[0].state is State.DONE or self._leftovers[0].listed
        ):
            self._leftovers.popleft()
            if not self._leftovers:
                self._actions.append(Recovered())
        self._log_counts(all_of_them=any(isinstance(a, Flushed) for a in self._actions))
        actions, self._actions = self._actions, []
        self.again = any(isinstance(action, Send) for action in actions)
        return actions

    def room(self) -> int:
        """How many more events it is worth to take in now. All that there are, if
        they can only wait: so that those are counted which no mask wants."""
        if self.stuck:
            return JOB_ELEMENTS
        if self._waiting_bytes > WINDOW_BYTES:
            return 0
        return 2 * JOB_ELEMENTS - len(self._waiting)

    @property
    def _may_wait(self) -> bool:
        """Whether nothing is lost, and nobody waits, if events wait for a while: they
        have a place, with room to spare."""
        size = self._config.fallback_size
        room = size == 0 or self._length < size // 2
        return self._storable and room and not self.flushing

    @property
    def flushing(self) -> bool:
        """Whether Redis waits for a flush."""
        return self._flush is not None

    @property
    def ahead(self) -> bool:
        """Whether the broker has enough to do for some 30 ms."""
        return self._unconfirmed > WINDOW // 2

    @property
    def stuck(self) -> bool:
        """Whether events can neither be sent nor stored now."""
        away = self.link is not Link.UP or self._stalled()
        return away and not self._storable and self._job is None

    def wake_at(self) -> float | None:
        """When poll has to be called again if nothing else happens."""
        times = []
        if self.link is Link.WAITING and self._wants_link():
            times.append(self._retry_at)
        if self.key is not None and self._job is None:
            times.append(self._check_at)
            oldest = self._oldest()
            if oldest is not None and self._known and self._config.fallback_size >= 0:
                # What _should_store waits for.
                behind = self._behind or self._listed_waiting or self._refused
                if self.link is not Link.UP or behind:
                    times.append(max(oldest.at + STORE_AFTER, self._job_retry_at))
                if self._tags:
                    times.append(max(self._progress_at + STALLED_AFTER, self._job_retry_at))
        if self._refused and self.link is Link.UP:
            times.append(self._refused_until)
        times += [tale.at for tale in self._to_tell.values() if tale.count]
        if self._flush is not None:
            flush = self._flush
            times.append(flush.grace_until if self._now < flush.grace_until else flush.until)
            if self._tags:
                times.append(self._progress_at + STALLED_AFTER)
        # A time that has passed led to nothing just now; a little later it may.
        return max(min(times), self._now + 0.01) if times else None

    @property
    def state(self) -> str:
        """The word that STATS shows."""
        if self.link is Link.UP:
            return "connected"
        if self.link in (Link.BLOCKED, Link.CONNECTING):
            return str(self.link.value)
        if not self._wanted:
            return "disconnected"
        if not self.primary:
            return "replica"
        return "disconnected" if self._attempts or self._was_up else "idle"

    def gauges(self) -> dict[Stat, int]:
        """The numbers that are no counters."""
        return {
            Stat.FALLBACK_LENGTH: self._length - self._listed_done + sum(self._others.values()),
            Stat.QUEUE_LENGTH: self._waiting_count,
            Stat.QUEUE_BYTES: self._waiting_bytes,
            Stat.IN_FLIGHT: self._in_flight,
        }

    def _wants_link(self) -> bool:
        wanted = self._wanted and self._needed
        return wanted and (self._flush is None or self._hopeful(self._flush))

    def _choose_link(self) -> None:
        if not self.primary and not (self._sent or self._waiting or self._storing):
            # A replica has nothing to send once its own is delivered.
            self._needed = False
            if self.link not in (Link.OFF, Link.WAITING):
                self._actions.append(Close())
                self._link_lost(Link.OFF)
        if self.link is Link.OFF and self._wants_link():
            self.link = Link.WAITING
        if self.link is Link.WAITING and self._wants_link() and self._now >= self._retry_at:
            self.link = Link.CONNECTING
            self._actions.append(Connect())

    def _choose_messages(self, most: int) -> None:
        """Fills the window, oldest first, with at most so many."""
        if self._stalled():
            return  # each that the list's cap lets fall would make room for one more
        batch: list[Entry] = []
        room = max(0, min(SEND_CHUNK, most, self._window - self._unconfirmed))
        if self._refused:
            # Nothing newer before these have their second chance.
            if self._now < self._refused_until:
                return
            again = [entry for entry in self._refused if entry.state is State.REFUSED]
            self._refused = again[room:]
            batch = again[:room]
            for entry in batch:
                if not entry.listed:
                    self._leave_waiting(entry)
                    self._in_flight += 1
        room -= len(batch)
        size = self._bytes_in_flight + _size_of(batch)
        if not self._refused:
            listed = _take(self._listed_waiting, room, size)
            self._listed_sent.extend(listed)
            batch += [entry for entry in listed if entry.state is _WAITING]
            if not (self._listed_waiting or self._behind or self._storing) and (
                self._may_send_memory()
            ):
                sent = _take(self._waiting, room - len(listed), size + _size_of(listed))
                self._sent.extend(sent)
                self._waiting_count -= len(sent)
                self._waiting_bytes -= _size_of(sent)
                self._in_flight += len(sent)
                batch += sent
        if not batch:
            return
        if not self._tags:
            self._progress_at = self._now
        first_tag = self._next_tag
        for tag, entry in enumerate(batch, first_tag):
            entry.state = _SENT
            entry.tag = tag
        self._tags.extend(batch)
        self._next_tag += len(batch)
        self._unconfirmed += len(batch)
        self._bytes_in_flight += _size_of(batch)
        self.counts[Stat.PUBLISHED] += len(batch)
        self._actions.append(Send(first_tag, [e.event for e in batch if e.event is not None]))

    def _may_send_memory(self) -> bool:
        """Not before it is known that the list has nothing older."""
        return self._known or not self.primary or self._no_list

    def _choose_flushed(self, more: bool) -> None:
        flush = self._flush
        if flush is None:
            return
        memory = bool(self._sent or self._waiting or self._storing or more)
        listed = bool(self._others) or self._length > self._listed_done
        if flush.mode is Flush.DRAIN and listed and self._hopeful(flush):
            return
        keeps = self._keeps(flush)
        can_store = self.writable and self._config.fallback_size >= 0 and not keeps
        if not flush.stop and (self.key is None or self._now < self._job_retry_at):
            can_store = False  # no slot, or it was tried: the main thread waits for this
        trimmable = flush.stop and can_store and self._confirmed_prefix() > 0
        if self._now < flush.until and (memory or trimmable or self._job is not None):
            if can_store or self._job is not None or self._hopeful(flush):
                return
            if flush.stop and not keeps and self.link is Link.UP and not self._stalled():
                return
        self._flush = None
        left: list[Event] = []
        if flush.stop:
            for entry in [*self._storing, *self._sent, *self._waiting]:
                if entry.state is not State.DONE and entry.event is not None:
                    left.append(entry.event)
                self._leave_memory(entry)
                self._forget(entry)
            self._storing.clear()
            self._sent.clear()
            self._waiting.clear()
            self._leftovers.clear()
        if not keeps:
            why = "they could be neither delivered nor stored"
            self._drop(Stat.DROPPED_STOPPED, len(left), why)
            self._actions.append(Flushed(flush.id, flush.mode))
            return
        self.counts[Stat.FALLBACK_FOUND] -= len(left)  # handed over to the next life
        self._actions.append(Flushed(flush.id, flush.mode, left))


def _size_of(entries: Iterable[Entry]) -> int:
    return sum([entry.size for entry in entries])


def _take(entries: collections.deque[Entry], most: int, size: int) -> list[Entry]:
    """Takes the first entries: at most so many, and no more when these and `size` bytes
    in front of them fill the window."""
    taken: list[Entry] = []
    while len(taken) < most and entries and (size < WINDOW_BYTES or not size):
        entry = entries.popleft()
        taken.append(entry)
        size += entry.size
    return taken


def _element(entry: Entry) -> bytes:
    """The entry as the list has it."""
    if entry.element is not None:
        return entry.element
    assert entry.event is not None
    return to_element(entry.event)
