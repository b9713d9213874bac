"""The publisher: decides what to do next with every event.

Sans I/O: events, answers of the broker, changes of the link, replies of jobs and the time
go in; `poll` returns actions, which the worker carries out. One thread owns an instance;
nothing here blocks, and nothing that happens outside raises an exception here.

The places of events, in the order in which they are sent:

    the fallback list in Redis               memory
    known head      not read yet             being stored, sent, or waiting
    oldest ───────────────────────────────────────────────────▶ newest

- Memory is sent only when everything in the lists has been sent. So events are sent in their
  order; after a lost connection they are sent again in their order.
- Each part has an object of its own: Link, Window, Retries, Memory, FallbackList, Lists,
  ListJobs, RecentPushes, Flush, Suspects, Aside, Ledger. This file holds the decisions that
  concern several of them, and their order: see `poll`.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable, Sequence

from ..config import Config
from ..fallback import JOB_ELEMENTS
from ..jobs import JobError, JobResult
from ..message import Event
from ..tables.stats import Stat
from .actions import (
    Action,
    Close,
    Connect,
    Flushed,
    FlushMode,
    Recovered,
    Send,
    is_void_after_repair,
)
from .aside import Aside
from .entry import DONE, WAITING, Entry, size_of
from .fallback_list import FallbackList, ListState
from .flush import Flush, Outlook
from .ledger import Ledger
from .link import Link
from .list_jobs import ListJobs
from .lists import Lists
from .memory import Memory
from .recent import RecentPushes
from .retries import Retries
from .suspects import Suspects
from .window import WINDOW_BYTES, Window

# Messages sent in one poll, at most; confirms are read between two polls. The number is
# large, because each poll costs a turn of the loop and a system call.
SEND_CHUNK = 1000
# Seconds after which an event that cannot be sent is stored. It has to be in the list within
# 100 ms (rule 12); the other 50 ms are for Redis' main thread to get to the job.
STORE_AFTER = 0.05
# Seconds until the next poll if a time to wake up has passed and poll had nothing to do.
_SOON = 0.01


class Publisher:
    """The decisions about every event.

    `clock`: monotonic seconds; `wall`: Unix time in milliseconds; `jitter`: random numbers
    from 0 to 1; `clustered`: Redis runs in cluster mode. `last_error` is for users.
    `has_more`: poll has more to do after confirms were read.
    """

    def __init__(
        self,
        config: Config,
        clock: Callable[[], float],
        wall: Callable[[], int],
        jitter: Callable[[], float] = random.random,
        *,
        clustered: bool = True,
    ) -> None:
        self.last_error = ""
        self.has_more = False
        self.ledger = Ledger(clock, wall)
        self.link = Link(clock, jitter)
        self.window = Window(clock)
        self.retries = Retries(clock, jitter)
        self.memory = Memory()
        self.list = FallbackList(self.window, self.ledger)
        self.lists = Lists(self.list, self.ledger)
        self.recent = RecentPushes(clock, keep=clustered)
        self.aside = Aside(self.list, self.memory, self.window, self.ledger, wall)
        self.jobs = ListJobs(
            self.lists,
            self.memory,
            self.window,
            self.recent,
            self.ledger,
            self.aside,
            clock,
            self._note_error,
        )
        self.suspects = Suspects(self.lists, self.memory, self.window, clock)
        self._clock = clock
        self._config = config
        self._actions: list[Action] = []
        self._pressure = False
        self._recovering: collections.deque[Entry] = collections.deque()  # see `recover`
        self._flush: Flush | None = None

    @property
    def counts(self) -> list[int]:
        """Return the counters, by Stat."""
        return self.ledger.counts

    def _note_error(self, text: str) -> None:
        self.last_error = text

    # ---- input from Redis --------------------------------------------------------

    def configure(self, config: Config, *, reconnect: bool) -> None:
        """Take new parameters. `reconnect`: they need a new connection."""
        self._config = config
        if reconnect:
            self.link.retry()
            self._close_link()

    def connect(self) -> None:
        """CONNECT: connect now, even with nothing to send."""
        self.link.want()

    def disconnect(self) -> None:
        """DISCONNECT: stay disconnected until `connect`."""
        self._close_link()
        self.link.turn_off()

    def drain(self) -> None:
        """FALLBACK DRAIN: try to reach the broker now, unless DISCONNECT was given."""
        if not self.link.is_off:
            self.connect()

    def purge(self, done: Callable[[int | JobError], None]) -> None:
        """FALLBACK PURGE: delete the lists; `done` gets the number of elements, or an error."""
        self.jobs.purge(done)

    def set_role(self, *, primary: bool, loading: bool, agreed: bool = False) -> None:
        """Set the role of this server.

        `loading`: it loads a data set. `agreed`: it became a replica by an agreed failover,
        so the new primary has all that was written here.
        """
        if not self.lists.set_role(primary=primary, writable=primary and not loading):
            return
        if not primary and not agreed:
            inserted = self._insert(self.recent.take())
            if self._recovering:  # these may be leftovers, and the list does not keep them safe
                self._recovering.extend(inserted)
        self.recent.clear()

    def list_changed(self, event: bytes, key: bytes = b"") -> None:
        """Note that others have changed a list, or all lists (`key` is empty).

        `event`: the name of the keyspace event.
        """
        self.lists.changed_by_others(event, key)
        if key in (b"", self.list.key):
            self.jobs.check_now()

    def imported(self, key: bytes, length: int, count: int) -> None:
        """Note that `count` elements were put to the end of a list of this node.

        `length`: its length after that. To be called after `job_done` for jobs that ran
        before, and before `job_done` for jobs that ran later.
        """
        for new_length in (length - count, length):
            if key != self.list.key:
                self.lists.found({key: new_length})
            elif self.list.is_ready:  # else its length is about to be read anyway
                self.lists.set_length(new_length)

    def add(self, events: Sequence[Event]) -> None:
        """Take in events that a mask let through, oldest first."""
        now = self._clock()
        self.memory.add([Entry(event, now) for event in events])
        self.ledger.matched(len(events))

    def recover(self, events: Sequence[Event]) -> None:
        """Take in the leftovers of an earlier load, before all events in memory.

        Recovered follows when all of them are delivered, stored or lost.
        """
        self._recovering.extend(self._insert(events))

    def _insert(self, events: Sequence[Event]) -> Sequence[Entry]:
        """Take in events that are older than those in memory: leftovers, or stored ones."""
        entries = [Entry(event, self._clock()) for event in events]
        self.memory.insert(entries)
        self.ledger.found(len(entries))
        return entries

    def set_pressure(self, pressure: bool) -> None:
        """Set the pressure; True: more events wait in the shim's queue than memory should hold."""
        self._pressure = pressure

    def drop_oldest(self, size: int, keep: int = 0) -> int:
        """Give up the oldest events that are neither sent nor being stored; return how many.

        Give up at least `size` bytes if possible, but never the newest `keep` events.
        """
        dropped = self.memory.drop_oldest(size, keep)
        why = "memory is full and the list out of reach"
        self.ledger.dropped(Stat.DROPPED_QUEUE_FULL, dropped, why)
        return dropped

    def give_up(self) -> None:
        """Count an event as lost, because the handler has failed on it repeatedly."""
        self.ledger.matched(1)
        self.ledger.dropped(Stat.DROPPED_HANDLER_ERROR, 1, "the handler failed on them")

    def flush(self, flush_id: int, seconds: float, mode: FlushMode) -> None:
        """Deliver or store all that is in memory; poll returns Flushed when that is done.

        `seconds`: the time that Redis waits. Unless the mode is STORE, no events may be
        added any more.
        """
        self._flush = Flush(flush_id, mode, self._clock(), seconds)

    def reset_stats(self) -> None:
        """Reset the counters."""
        self.ledger.reset(self.gauges())

    def job_done(self, result: JobResult) -> None:
        """Take the replies of the job that was submitted last."""
        self.jobs.done(result)

    # ---- input from the broker ---------------------------------------------------

    def link_up(self) -> None:
        """Note that the connection is open and confirms are on."""
        if self.link.connections:
            self.ledger.reconnected()
        self.link.up()
        self.window.open()
        self.suspects.opened()

    def attempt_failed(self, reason: str) -> None:
        """Note why one of several brokers could not be reached; the others are tried now."""
        self.last_error = reason

    def link_down(self, reason: str, *, over_message: bool = False) -> None:
        """Note that no broker could be reached, or that the connection or its channel ended.

        `over_message`: the broker has ended it, perhaps over a message that was in flight.
        """
        self.last_error = reason
        if over_message:
            culprit = self.suspects.closed()
            if culprit is not None:
                self.last_error = self.aside.give_up([culprit], Stat.DROPPED_SET_ASIDE, reason)
        self.link.down(hurry=over_message and self.suspects.hurry)
        self._lose_window()

    def link_blocked(self, reason: str) -> None:
        """Note that the broker takes no messages for now (connection.blocked)."""
        if self.link.block():
            self.last_error = f"blocked by the broker: {reason}"

    def link_unblocked(self) -> None:
        """Note that the broker takes messages again (connection.unblocked)."""
        if self.link.unblock():
            self.window.progress()

    def acked(self, below: int, tags: Sequence[int] = ()) -> None:
        """Take confirms: of all messages up to and including tag `below`, and of these `tags`."""
        self.window.progress()
        self.link.confirmed()
        entries = self.window.settle(below, tags)
        self.ledger.confirmed(entries)
        self.window.grow(len(entries))
        if self.suspects.limit is not None:
            self.suspects.confirmed(entries)
        memory = len(entries)
        for entry in entries:
            entry.state = DONE
            if entry.listed:
                self.list.mark_done(entry)
                memory -= 1
        self.memory.confirmed(memory)

    def nacked(self, tag: int, multiple: bool) -> None:
        """Take the refusal of a message, or of all up to this tag (basic.nack)."""
        self.window.progress()
        entries = self.window.settle(tag) if multiple else self.window.settle(0, [tag])
        self.memory.refused(entries)
        self.ledger.refused(len(entries))
        if entries:
            self.last_error = "the broker refused a message (basic.nack)"
        if self.retries.add(entries):
            self.window.shrink()

    def too_large(self, limit: int, make_body: Callable[[Event], bytes]) -> int:
        """Give up messages with a body above `limit` bytes, which the broker does not take.

        It closes the channel each time one of them is sent. Return how many there were.
        """
        given_up = [
            entry
            for entry in (*self.window.in_flight(), *self.retries.entries)
            if entry.event is not None and len(make_body(entry.event)) > limit
        ]
        why = f"larger than the broker's limit of {limit} bytes"
        self.aside.give_up(given_up, Stat.DROPPED_TOO_LARGE, why)
        return len(given_up)

    def returned(self) -> None:
        """Count a message that has reached no queue (basic.return); its confirm follows."""
        exchange, key = self._config.exchange, self._config.routing_key
        self.ledger.returned(f"exchange {exchange!r} has no binding for the routing key {key!r}")

    def _close_link(self) -> None:
        """Close the connection, if there is one."""
        if self.link.is_open:
            self._actions.append(Close())
            self.link.closed()
            self._lose_window()

    def _lose_window(self) -> None:
        """Make everything that was sent and not confirmed wait again, in its old place."""
        self.suspects.lost()
        self.memory.link_lost(self.window.close())
        self.retries.clear()
        self.list.link_lost()

    # ---- output ------------------------------------------------------------------

    def poll(self, *, more: bool, most: int | None = None) -> list[Action]:
        """Return what is to be done now.

        `more`: events wait in the shim's queue. `most`: send no more messages than this, if
        the others can wait without harm.
        """
        self._decide_link()
        if self.link.is_up and not self.window.is_stalled:
            self._decide_messages(most if most is not None and self._may_wait else SEND_CHUNK)
        self._decide_job()
        self.recent.expire()
        flushed = self._decide_flush(more)
        self.ledger.time_confirms()
        self._decide_recovered()
        self._actions += self.ledger.logs(all_of_them=flushed)
        actions, self._actions = self._actions, []
        self.has_more = any(isinstance(action, Send) for action in actions)
        return actions

    def _decide_link(self) -> None:
        if not self.lists.primary and not self.memory:
            # A replica that has delivered what it had needs no broker.
            self._close_link()
            self.link.rest()
        if self.memory or self.list.length or self.lists.others:
            self.link.need()
        if self.link.is_due() and self._wants_link:
            self.link.connecting()
            self._actions.append(Connect())

    @property
    def _wants_link(self) -> bool:
        """True unless a flush would not wait for a new connection."""
        return self._flush is None or self._may_deliver(self._flush)

    def _decide_messages(self, most: int) -> None:
        """Fill the window: refused messages, then the list, then memory."""
        room = self.suspects.room(min(SEND_CHUNK, most, self.window.room))
        batch: list[Entry] = []
        if self.retries:
            if not self.retries.is_due:
                return  # nothing newer is sent before them
            batch = self.retries.take(room)
            self.memory.resend(batch)
        if not self.retries and self.suspects.limit is None:
            self._fill(batch, room)
        elif not self.retries:
            self.suspects.fill(batch, room, self._fill)
        if batch:
            first_tag = self.window.send(batch)
            self.ledger.published(len(batch))
            events = [entry.event for entry in batch if entry.event is not None]
            self._actions.append(Send(first_tag, events))

    def _fill(self, batch: list[Entry], room: int) -> None:
        """Add elements of the list and then entries of memory to the batch, up to `room`."""
        room -= len(batch)
        size = self.window.bytes + size_of(batch)
        listed = self.list.take(room, size)
        batch += [entry for entry in listed if entry.state is WAITING]
        if self._list_comes_first or self.memory.storing or not self._may_send_memory:
            return
        batch += self.memory.take(room - len(listed), size + size_of(listed))

    @property
    def _may_send_memory(self) -> bool:
        """True if the length of the list is known, or if memory does not wait for a list."""
        return self.list.state is not ListState.UNKNOWN or not self.lists.primary

    @property
    def _list_comes_first(self) -> bool:
        """True if elements of a list are to be sent before memory."""
        return bool(self.list.unsent or self.list.unread or self.lists.others)

    def _decide_job(self) -> None:
        """Begin the job that is needed most, if no other one is under way."""
        if self.jobs.running is not None:
            return
        if not self.lists.writable:
            self.jobs.refuse_purges()
            return
        if self.lists.choose():
            self.jobs.list_chosen()
        job = self.jobs.next_purge() or self.jobs.next_length()
        if job is None and self.list.is_ready and self.jobs.may_retry:
            stopping = self._flush is not None and self._flush.ends
            more = self.link.is_up and self.list.unsent > 0
            job = self.jobs.next_trim(at_once=stopping, more=more)
            if job is None and self._should_store:
                job = self.jobs.push(self._config.fallback_size)
            if job is None and self.link.is_up:
                job = self.jobs.next_read()
        if job is not None:
            self._actions.append(job)

    @property
    def _storable(self) -> bool:
        """True if the list takes pushes now."""
        on = self._config.fallback_size >= 0
        return on and self.lists.writable and self.list.is_ready and self.jobs.may_retry

    @property
    def _should_store(self) -> bool:
        """True if entries of memory have to be stored now (rules 9, 12, 13)."""
        oldest = self.memory.oldest
        if oldest is None or not self._storable:
            return False
        if self._flush is not None:
            leaves = self._flush.mode is FlushMode.LEAVE
            return not leaves and not self._may_deliver(self._flush)
        overdue = self._clock() >= oldest.at + STORE_AFTER
        due = overdue or self.memory.unsent >= JOB_ELEMENTS
        if not self.link.is_up:
            return due
        stalled = self.window.is_stalled
        if (
            self.list.unread
            and self.memory.sent
            and not (self._pressure or self.retries or stalled)
        ):
            return False  # pushed behind unread elements, they would be read and sent again
        if self._list_comes_first:
            return due
        return self._pressure or stalled or (bool(self.retries) and due)

    # ---- the end of a flush ------------------------------------------------------

    def _decide_flush(self, more: bool) -> bool:
        """End the flush if it is done; return True if it ended."""
        flush = self._flush
        if flush is None or not flush.is_done(self._outlook(flush, more), self._clock()):
            return False
        self._flush = None
        leftovers = self._take_leftovers() if flush.ends else []
        if self._goes_to_file(flush):
            self.ledger.found(-len(leftovers))  # the next load has them
            self._actions.append(Flushed(flush.id, flush.mode, leftovers))
        else:
            why = "they could be neither delivered nor stored"
            self.ledger.dropped(Stat.DROPPED_STOPPED, len(leftovers), why)
            self._actions.append(Flushed(flush.id, flush.mode))
        return True

    def _outlook(self, flush: Flush, more: bool) -> Outlook:
        to_file = self._goes_to_file(flush)
        can_store = self.lists.writable and self._config.fallback_size >= 0 and not to_file
        if not flush.ends and (self.list.key is None or not self.jobs.may_retry):
            can_store = False  # no list, or a job failed: do not let the main thread wait
        return Outlook(
            memory=bool(self.memory) or more,
            listed=bool(self.lists.others) or self.list.undelivered > 0,
            trimmable=flush.ends and can_store and bool(self.list.done_prefix()),
            job=self.jobs.running is not None,
            can_store=can_store,
            may_deliver=self._may_deliver(flush),
            to_file=to_file,
            answers=self._broker_answers,
        )

    def _may_deliver(self, flush: Flush) -> bool:
        """True if a flush may still wait for the broker."""
        if not flush.in_grace(self._clock()):
            return False
        if flush.mode is not FlushMode.DRAIN and self._list_comes_first:
            return False  # the list would be sent first, and events are safe in the list
        if self.link.is_up:
            return self._broker_answers and not self.retries
        opening = self.link.is_first_attempt and not self.link.is_blocked
        return flush.ends and not self._goes_to_file(flush) and opening

    def _goes_to_file(self, flush: Flush) -> bool:
        """True if events that remain at the end go to the file of leftovers."""
        no_list = flush.mode is FlushMode.DRAIN and self.list.key is None
        return (flush.mode is FlushMode.LEAVE or no_list) and self._config.fallback_size >= 0

    @property
    def _broker_answers(self) -> bool:
        """True if the link is up and the broker confirms."""
        return self.link.is_up and not self.window.is_stalled

    def _take_leftovers(self) -> list[Event]:
        """Empty memory; return the events that are not delivered."""
        leftovers: list[Event] = []
        for entry in self.memory.take_all():
            if entry.state is not DONE and entry.event is not None:
                leftovers.append(entry.event)
            self.memory.uncount(entry)
            self.window.give_up(entry)
        self._recovering.clear()
        return leftovers

    def _decide_recovered(self) -> None:
        """Add the action Recovered once all leftovers are delivered, stored or lost."""
        while self._recovering and (
            self._recovering[0].state is DONE or self._recovering[0].listed
        ):
            self._recovering.popleft()
            if not self._recovering:
                self._actions.append(Recovered())

    def repair(self, *, job_lost: bool) -> None:
        """Make the state consistent after an exception; to be called after `link_down`.

        Everything that was sent and not confirmed is sent again, and the list is read again.
        Actions that no poll has returned yet are dropped if they concern the link or a job.
        `job_lost`: no job is under way.
        """
        self._actions = [a for a in self._actions if not is_void_after_repair(a)]
        self.window.close()
        self.retries.clear()
        self.jobs.repair(job_lost=job_lost)
        self.ledger.balance(self.gauges())

    # ---- queries of the worker ---------------------------------------------------

    @property
    def primary(self) -> bool:
        """True if this server is a primary."""
        return self.lists.primary

    @property
    def writable(self) -> bool:
        """True if this server is a primary that is not loading a data set."""
        return self.lists.writable

    @property
    def list_keys(self) -> Sequence[bytes] | None:
        """Return the keys of this node's lists; None until they are known."""
        return self.lists.complete

    def works_with(self, key: bytes) -> bool:
        """True if this is the key of the list that the publisher works with."""
        return key == self.list.key

    @property
    def broker_is_busy(self) -> bool:
        """True if the broker has enough to do for some 30 ms."""
        return self.window.is_busy

    def room(self) -> int:
        """Return how many more events should be taken in now.

        If events can only wait, some are taken in all the same, because masks discard some.
        """
        if self.can_only_wait:
            return JOB_ELEMENTS
        if self.memory.waiting_bytes > WINDOW_BYTES:
            return 0
        return 2 * JOB_ELEMENTS - self.memory.unsent

    @property
    def can_only_wait(self) -> bool:
        """True if events can neither be sent nor stored now."""
        return not (self._broker_answers or self._storable or self.jobs.running is not None)

    @property
    def _may_wait(self) -> bool:
        """True if events can wait without harm: the list is writable and not half full."""
        size = self._config.fallback_size
        room = size == 0 or self.list.length < size // 2
        return self._storable and room and not self.flushing

    @property
    def flushing(self) -> bool:
        """True if Redis waits for a flush."""
        return self._flush is not None

    def wake_at(self) -> float | None:
        """Return when poll has to be called again if nothing else happens; None: never."""
        times = [*self._link_times(), *self._list_times(), *self.ledger.wake_times()]
        if self._flush is not None:
            times.append(self._flush.wakes_at(self._clock()))
            times.append(self.window.stalls_at)
        due = [time for time in times if time is not None]
        # If a time has already passed, the last poll could do nothing: poll a little later.
        return max(min(due), self._clock() + _SOON) if due else None

    def _link_times(self) -> list[float | None]:
        if self.link.is_up:
            return [self.retries.due_at, self.suspects.wakes_at]
        return [self.link.retry_at] if self.link.is_waiting and self._wants_link else []

    def _list_times(self) -> list[float | None]:
        if self.list.key is None or self.jobs.running is not None:
            return []
        times: list[float | None] = [self.jobs.check_at]
        oldest = self.memory.oldest
        if oldest is not None and self.list.is_ready and self._config.fallback_size >= 0:
            # The times that _should_store waits for.
            if not self.link.is_up or self._list_comes_first or self.retries:
                times.append(max(oldest.at + STORE_AFTER, self.jobs.retry_at))
            if (stalls_at := self.window.stalls_at) is not None:
                times.append(max(stalls_at, self.jobs.retry_at))
        return times

    @property
    def state(self) -> str:
        """Return the state of the link as STATS shows it."""
        return self.link.word(primary=self.lists.primary)

    def gauges(self) -> dict[Stat, int]:
        """Return the gauges: the numbers that can go up and down."""
        return {
            Stat.FALLBACK_LENGTH: self.lists.length,
            Stat.QUEUE_LENGTH: self.memory.waiting,
            Stat.QUEUE_BYTES: self.memory.waiting_bytes,
            Stat.IN_FLIGHT: self.memory.in_flight,
        }
