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
- Events that the broker has refused are in a second list and a second log: see delivery.py.
- Each part has an object of its own: Link, Window, Retries, Memory, Delivery, FallbackList,
  Lists, ListJobs, RecentPushes, Flushing, Suspects, Aside, OutboxView, Storing, Express, Gate,
  Ledger. This file holds the decisions that concern several of them, and their order: see `poll`.
- While the lists and memory are empty, events may be sent as parcels of many: see express.py.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..config import Config
from ..counts import counted
from ..fallback import JOB_ELEMENTS
from ..jobs import JobError, JobResult
from ..message import Event
from ..tables.stats import Stat
from .actions import (
    Action,
    Close,
    Connect,
    FlushMode,
    Recovered,
    Send,
    SendFrames,
    Submit,
    is_void_after_repair,
)
from .aside import Aside
from .backoff import chance
from .delivery import Delivery
from .entry import Entry
from .express import Express, Parcel
from .fallback_list import FallbackList
from .flushing import Flushing
from .gate import Gate
from .ledger import Ledger
from .link import Link
from .list_jobs import ListJobs
from .lists import Lists
from .memory import Memory
from .outbox import OutboxView
from .recent import RecentPushes
from .recovery import Recovery
from .renewal import Renewal
from .retries import Retries
from .storing import Storing
from .suspects import Suspects
from .window import LATE_AFTER, WINDOW_BYTES, Window

# Messages sent in one poll, at most; confirms are read between two polls. The number is
# large, because each poll costs a turn of the loop and a system call.
SEND_CHUNK = 1000
# The same in the express, which takes a tenth of the time for a message.
EXPRESS_CHUNK = 2000
# The state says so if a message has waited for its confirm for this many seconds.
UNCONFIRMED_AFTER = 5.0
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
        jitter: Callable[[], float] = chance,
        *,
        clustered: bool = True,
    ) -> None:
        self.last_error = ""
        self.has_more = False
        self.ledger = Ledger(clock, wall)
        self.link = Link(clock, jitter)
        self.window = Window(clock)
        self.renewal = Renewal(self.window, clock)
        self.retries = Retries(clock, jitter)
        self.memory = Memory()
        self.refused = Memory()
        self.list = FallbackList(self.window, self.ledger)
        self.lists = Lists(self.list, FallbackList(self.window, self.ledger), self.ledger)
        self.recent = RecentPushes(clock, keep=clustered)
        self.recovery = Recovery()
        self.aside = Aside(self.lists, self.memory, self.refused, self.window, self.ledger, wall)
        self.jobs = ListJobs(
            self.lists, self.memory, self.refused, self.window, self.recent, self.ledger,
            self.aside, clock, self._note_error,
        )  # fmt: skip
        self.delivery = Delivery(
            self.window, self.retries, self.memory, self.refused, self.lists, self.ledger, clock
        )
        self.outbox = OutboxView(
            self.link, self.window, self.memory, self.lists, self.ledger, clock,
            lambda: self.storing.takes_pushes and not self._flushing.ends,
        )  # fmt: skip
        self.suspects = Suspects(self.lists, self.memory, self.delivery, self.window, clock)
        self._clock = clock
        self._config = config
        self._actions: list[Action] = []
        self._flushing = Flushing(
            self.link, self.window, self.memory, self.refused, self.lists, self.jobs, self.delivery,
            self.recent, self.recovery, self.ledger, clock,
        )  # fmt: skip
        self.storing = Storing(
            config, self.link, self.window, self.memory, self.refused, self.lists, self.jobs,
            self.delivery, self.outbox, self._flushing, self.ledger, clock,
        )  # fmt: skip
        self.express = Express(self.window, self.memory, self.ledger, clock)
        self._gate = Gate(
            self.express, self.link, self.window, self.memory, self.lists, self.delivery,
            self.storing, self._flushing, self.suspects, self.recovery, self.recent, clock,
        )  # fmt: skip

    @property
    def counts(self) -> list[int]:
        """Return the counters, by Stat."""
        return self.ledger.counts

    @property
    def taken(self) -> int:
        """Return how many events came in, in all: a reset does not change it."""
        return self.ledger.taken

    def _note_error(self, text: str) -> None:
        self.last_error = text

    # ---- input from Redis --------------------------------------------------------

    def configure(self, config: Config, *, reconnect: bool) -> None:
        """Take new parameters. `reconnect`: they need a new connection."""
        self._config = self.storing.config = config
        if config.fallback_size < 0:
            self.ledger.lacks_memory = False  # from now on, nothing is pushed
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
        self.retries.retry_now()
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
        self.express.leave()
        if self.lists.primary and not primary:
            self.recent.demoted(agreed=agreed)
        self.lists.set_role(primary=primary, writable=primary and not loading)
        self._take_back()

    def _take_back(self) -> None:
        """Deliver recent pushes from memory, if they are wanted and no push is under way.

        One that is under way belongs to them if it ran before the demotion, and stays in
        memory if it did not. Its result says which.
        """
        if not self.recent.wanted or self.memory.storing or self.refused.storing:
            return
        events = self.recent.take()
        if events and self.memory.sent:
            self._lose_window()  # what was sent from memory is newer: it goes again
        entries = [Entry(event, self._clock()) for event in events]
        self.memory.insert(entries)
        self.ledger.found(len(entries))
        self.recovery.keep(entries)  # these may be leftovers, which the list does not keep safe

    def list_changed(self, event: bytes, key: bytes = b"") -> None:
        """Note that others have changed a list, or all lists (`key` is empty).

        `event`: the name of the keyspace event.
        """
        self.lists.changed_by_others(event, key)
        if not key or self.lists.with_key(key) is not None:
            self.jobs.check_now()

    def imported(self, key: bytes, length: int, count: int) -> None:
        """Note that `count` elements were put to the end of a list of this node.

        `length`: its length after that. To be called after `job_done` for jobs that ran
        before, and before `job_done` for jobs that ran later.
        """
        self.lists.imported(key, length, count)

    def add(self, events: Sequence[Event]) -> None:
        """Take in events of the shim's queue, oldest first."""
        self.express.leave()
        now = self._clock()
        self.memory.add([Entry(event, now) for event in events])
        self.ledger.matched(len(events))

    def add_parcel(self, parcel: Parcel, frames: bytes) -> None:
        """Take in events of the shim's queue, at most `express_room`, whose messages are laid out
        as these frames. They count as sent; poll returns the action."""
        first_tag = self.express.send(parcel)
        self._actions.append(SendFrames(first_tag, parcel.count, frames))
        self.ledger.matched(parcel.count)
        self.ledger.published(parcel.count)

    def recover(self, events: Sequence[Event], *, more: bool = False) -> None:
        """Take in leftovers of an earlier load, in the order of their file.

        `more`: the file has more, and no newer events may be added. Recovered follows when all
        of them are delivered, stored or lost.
        """
        self.express.leave()
        entries = [Entry(event, self._clock()) for event in events]
        self.memory.add(entries)
        self.ledger.found(len(entries))
        self.recovery.read(entries, more=more)

    def set_pressure(self, pressure: bool) -> None:
        """Set the pressure; True: more events wait in the shim's queue than memory should hold."""
        self.storing.pressure = pressure

    def drop_oldest(self, size: int, keep: int = 0) -> int:
        """Give up the oldest events that are neither sent nor being stored; return how many.

        Give up at least `size` bytes if possible, but never the newest `keep` events.
        """
        before = self.refused.waiting_bytes
        dropped = self.refused.drop_oldest(size, 0)
        rest = size - (before - self.refused.waiting_bytes)
        if rest > 0:
            dropped += self.memory.drop_oldest(rest, keep)
        self.ledger.queue_full(dropped)
        return dropped

    def drop_untaken(self, count: int) -> None:
        """Count the oldest events of the shim's queue as lost, because memory is full."""
        self.ledger.matched(count)
        self.ledger.queue_full(count)

    def give_up(self, *, leftover: bool) -> None:
        """Count an event as lost, because the handler has failed on it repeatedly.

        `leftover`: it was in the file of leftovers, and not in the shim's queue.
        """
        (self.ledger.found if leftover else self.ledger.matched)(1)
        self.ledger.dropped(Stat.DROPPED_HANDLER_ERROR, 1, "the handler failed on them")

    def flush(
        self, flush_id: int, seconds: float, mode: FlushMode, began: float | None = None
    ) -> None:
        """Deliver or store all that is in memory; poll returns Flushed when that is done.

        `seconds`: the time that Redis waits. `began`: the time at which it began to, in the
        clock; None: now. Unless the mode is STORE, no events may be
        added any more.
        """
        self.express.leave()
        self._flushing.begin(flush_id, seconds, mode, began)

    def reset_stats(self) -> None:
        """Reset the counters."""
        self.ledger.reset(self.gauges())

    def job_done(self, result: JobResult) -> None:
        """Take the replies of the job that was submitted last."""
        self.jobs.done(result)
        self._take_back()

    # ---- input from the broker ---------------------------------------------------

    def link_up(self) -> None:
        """Note that the connection is open and confirms are on."""
        if self.link.connections:
            self.ledger.reconnected()
        self.link.up()
        self.window.open()
        self.renewal.opened()
        self.suspects.opened()

    def attempt_failed(self, reason: str) -> None:
        """Note why one of several brokers could not be reached; the others are tried now."""
        self.last_error = self.link.reason = reason

    def link_down(self, reason: str, *, over_message: bool = False) -> None:
        """Note that no broker could be reached, or that the connection or its channel ended.

        `over_message`: the broker has ended it, perhaps over a message that was in flight.
        """
        self.last_error = reason
        self._drop_frames()
        if over_message:
            culprit = self.suspects.closed()
            if culprit is not None:
                self.last_error = self.aside.give_up([culprit], Stat.DROPPED_SET_ASIDE, reason)
        self.link.down(reason, hurry=over_message and self.suspects.hurry)
        self._lose_window()

    def link_blocked(self, reason: str) -> None:
        """Note that the broker takes no messages for now (connection.blocked)."""
        if self.link.block(reason):
            self.last_error = f"blocked by the broker: {reason}"

    def link_unblocked(self) -> None:
        """Note that the broker takes messages again (connection.unblocked)."""
        if self.link.unblock():
            self.window.progress()
            self.window.restart_clocks()
            self.renewal.opened()

    def acked(self, below: int, tags: Sequence[int] = ()) -> None:
        """Take confirms: of all messages up to and including tag `below`, and of these `tags`."""
        self.window.progress()
        self.link.confirmed()
        self.renewal.confirmed()
        if self.express.is_running:
            self.express.confirmed(below, tags)
            return
        entries = self.delivery.confirmed(below, tags)
        if self.suspects.limit is not None:
            self.suspects.confirmed(entries)

    def nacked(self, tag: int, multiple: bool) -> None:
        """Take the refusal of a message, or of all up to this tag (basic.nack)."""
        self.express.leave()
        self.window.progress()
        self.link.refused()
        if self.delivery.nacked(tag, multiple):
            self.renewal.refused()
            self.last_error = "the broker refused a message (basic.nack)"

    def too_large(self, limit: int, make_body: Callable[[Event], bytes]) -> int:
        """Give up messages with a body above `limit` bytes, which the broker does not take.

        It closes the channel each time one of them is sent. Return how many there were.
        """
        self.express.leave()
        why = f"larger than the broker's limit of {counted(limit, 'byte')}"
        lost = [e for e in self.delivery.sent() if e.event and len(make_body(e.event)) > limit]
        self.aside.give_up(lost, Stat.DROPPED_TOO_LARGE, why)
        self.refused.remove_given_up()
        return len(lost)

    def returned(self) -> None:
        """Count a message that has reached no queue (basic.return); its confirm follows."""
        exchange, key = self._config.exchange, self._config.routing_key
        self.ledger.returned(f"exchange {exchange!r} has no binding for the routing key {key!r}")

    def _close_link(self) -> None:
        """Close the connection, if there is one."""
        if self.link.is_open:
            self._drop_frames()
            self._actions.append(Close())
            self.link.closed()
            self._lose_window()

    def _drop_frames(self) -> None:
        """Forget frames that no poll has returned: their connection has ended."""
        self.express.leave()
        self._actions = [a for a in self._actions if not isinstance(a, SendFrames)]

    def _lose_window(self, *, renewed: bool = False) -> None:
        """Make everything that was sent and not confirmed wait again, in its old place.

        `renewed`: the connection was given up because of messages without a confirm.
        """
        self.express.leave()
        self.suspects.lost()
        self.delivery.link_lost(renewed=renewed)

    # ---- output ------------------------------------------------------------------

    def poll(self, *, more: bool, most: int | None = None) -> list[Action]:
        """Return what is to be done now.

        `more`: events wait in the shim's queue. `most`: send no more messages than this, if
        the others can wait without harm.
        """
        if self._has_entries:
            self.delivery.collect(careful=self.suspects.limit is not None)
        self.storing.bound_refused()
        if not self._gate.is_open:
            self.express.leave()
        self._decide_renewal()
        self._decide_link(more)
        if self._has_entries and self.link.is_up:
            self._decide_messages(self._bounded(SEND_CHUNK, most))
        self._decide_job()
        self.recent.expire()
        flushed = self._flushing.decide(more=more, fallback_size=self._config.fallback_size)
        if flushed is not None:
            self._actions.append(flushed)
            if flushed.mode is not FlushMode.STORE:
                self._flushing.empty_memory()
        self.ledger.time_confirms()
        if self.recovery.ends():
            self._actions.append(Recovered())
        self._actions += self.ledger.logs(all_of_them=flushed is not None)
        actions, self._actions = self._actions, []
        self.has_more = any(isinstance(action, (Send, SendFrames)) for action in actions)
        return actions

    def _decide_renewal(self) -> None:
        """Give up a connection on which messages get no confirm, and open a new one."""
        if not self.link.is_up or not (why := self.renewal.due(self._config.confirm_timeout)):
            return
        self.delivery.refuse(self.renewal.renew())
        self._actions.append(Close())
        self.last_error = why
        self.link.down(why)
        self._lose_window(renewed=True)

    def _decide_link(self, more: bool) -> None:
        if not self.lists.primary and not self._in_memory:
            # A replica that has delivered what it had needs no broker.
            self._close_link()
            self.link.rest()
        listed = self.list.length or self.lists.others or self.delivery.has_refused
        taken_soon = more and self.flushing  # a stop may be the first to look
        if self._in_memory or listed or taken_soon:
            self.link.need()
        if self.link.is_due() and self._flushing.may_deliver:
            self.link.connecting()
            self._actions.append(Connect())

    def _bounded(self, chunk: int, most: int | None) -> int:
        """Return how many messages may be sent in one poll: a chunk, or `most`."""
        return chunk if most is None or not self.storing.may_wait else min(most, chunk)

    def _decide_messages(self, most: int) -> None:
        """Send as many messages as the window has room for."""
        room = self.suspects.room(min(most, self.window.room))
        batch: list[Entry] = []
        if self.suspects.limit is None:
            self._fill(batch, room)
        else:
            self.suspects.fill(batch, room, self._fill)
        if batch:
            first_tag = self.window.send(batch)
            self.ledger.published(len(batch))
            events = [entry.event for entry in batch if entry.event is not None]
            self._actions.append(Send(first_tag, events))

    def _fill(self, batch: list[Entry], room: int) -> None:
        """Add the next messages to the batch, up to `room`."""
        in_memory = not self.storing.takes_refused
        batch += self.delivery.take(room - len(batch), refused_in_memory=in_memory)

    @property
    def _in_memory(self) -> bool:
        """True if events are in memory."""
        return bool(self.memory or self.refused)

    @property
    def _has_entries(self) -> bool:
        """True if events are in memory, or in the list, or the window still knows some of them."""
        lists = self.list.length or self.lists.refused.length
        return bool(lists or self.memory or self.refused or len(self.window))

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
        if job is None and self._has_entries and self.list.is_ready and self.jobs.may_retry:
            stopping = self._flushing.ends
            more = self.link.is_up and self.list.unsent > 0
            patient = self.link.is_up and self._config.has_outbox
            job = self.jobs.next_trim(at_once=stopping, more=more, patient=patient)
            job = job or self._refused_job()
            if job is None and self._config.has_outbox:
                job = self.jobs.next_cut(self._config.fallback_size)
            if job is None and self.storing.is_due:
                job = self.jobs.push(self._config.fallback_size)
            if job is None and self.link.is_up:
                job = self.jobs.next_read()
        if job is not None:
            self._actions.append(job)

    def _refused_job(self) -> Submit | None:
        """Return the job that is needed for the refused events."""
        if (job := self.jobs.next_refused_trim()) is not None:
            return job
        if self.storing.refused_are_due:
            return self.jobs.push_refused(self._config.fallback_size)
        if self.link.is_up and self.delivery.may_retry:
            return self.jobs.next_refused_read(self.retries.limit)
        return None

    # ---- exceptions --------------------------------------------------------------

    def repair(self, *, job_lost: bool, taken: int) -> None:
        """Make the state consistent after an exception; to be called after `link_down`.

        Everything that was sent and not confirmed is sent again, and the list is read again.
        Actions that no poll has returned yet are dropped if they concern the link or a job.
        `job_lost`: no job is under way. `taken`: the number of all events that were taken from the
        shim's queue.
        """
        self._actions = [a for a in self._actions if not is_void_after_repair(a)]
        self.window.close()
        self.jobs.repair(job_lost=job_lost)
        self._take_back()
        self.ledger.balance(self.gauges(), taken)

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
    def can_only_wait(self) -> bool:
        """True if events can neither be sent nor stored now."""
        return self.storing.can_only_wait

    def express_room(self, most: int | None) -> int | None:
        """Return how many events may come in as a parcel now; None: they have to come one by one,
        with `add`. `most`: as for `poll`. Not to be asked while there are none: see Gate.room."""
        room = self._gate.room()
        if room is None:
            return None
        laid_out = sum([a.count for a in self._actions if isinstance(a, SendFrames)])
        return max(0, min(self._bounded(EXPRESS_CHUNK, most) - laid_out, room))

    def room(self) -> int:
        """Return how many more events should be taken in now; the others wait as records."""
        if self.memory.waiting_bytes > WINDOW_BYTES:
            return 0
        return 2 * JOB_ELEMENTS - self.memory.unsent

    @property
    def flushing(self) -> bool:
        """True if Redis waits for a flush."""
        return self._flushing.current is not None

    def wake_at(self) -> float | None:
        """Return when poll has to be called again if nothing else happens; None: never."""
        times = [*self._link_times(), *self._list_times(), *self.ledger.wake_times()]
        if self.express.is_running:
            times += [self.express.late_at, self.window.stalls_at]
        else:
            times.append(self.express.settles_until)
        if self.flushing:
            times.append(self._flushing.wakes_at)
            times.append(self.window.stalls_at)
        due = [time for time in times if time is not None]
        # If a time has already passed, the last poll could do nothing: poll a little later.
        return max(min(due), self._clock() + _SOON) if due else None

    def _link_times(self) -> list[float | None]:
        if not self.link.is_up:
            return (
                [self.link.retry_at] if self.link.is_waiting and self._flushing.may_deliver else []
            )
        times: list[float | None] = [self.suspects.wakes_at]
        if self.delivery.has_refused and not self.retries.is_due:
            times.append(self.retries.due_at)
        if self.delivery.has_unsent:
            times.append(self.window.probes_at)
        limits = (LATE_AFTER, UNCONFIRMED_AFTER, float(self._config.confirm_timeout))
        return times + self.renewal.wake_times(limits)

    def _list_times(self) -> list[float | None]:
        if self.list.key is None or self.jobs.running is not None:
            return []
        times: list[float | None] = [self.jobs.check_at]
        if (self.list.done or self.list.refused) and self.jobs.trim_at > self._clock():
            times.append(self.jobs.trim_at)
        return times + self.storing.wake_times()

    @property
    def state(self) -> str:
        """Return the state of the link as STATS shows it."""
        if self.link.is_up and self.renewal.waits(UNCONFIRMED_AFTER):
            return "unconfirmed"
        return self.link.word(primary=self.lists.primary)

    @property
    def waiting(self) -> tuple[int, int]:
        """Return how many events wait in memory, and their bytes."""
        count = self.memory.waiting + self.refused.waiting
        return count, self.memory.waiting_bytes + self.refused.waiting_bytes

    def gauges(self) -> dict[Stat, int]:
        """Return the gauges: the numbers that can go up and down."""
        length, size = self.waiting
        return {
            Stat.FALLBACK_LENGTH: self.lists.length,
            Stat.QUEUE_LENGTH: length,
            Stat.QUEUE_BYTES: size,
            Stat.IN_FLIGHT: self.memory.in_flight + self.refused.in_flight + self.express.in_flight,
            Stat.REFUSED_WAITING: self.delivery.refused_waiting,
        }
