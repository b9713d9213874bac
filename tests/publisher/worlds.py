"""Worlds in which anything may happen to a publisher at any time.

After each step, each event that is lost must have been counted. All choices of a world come from
random numbers; in test_worlds.py hypothesis gives them.
"""

from __future__ import annotations

import collections
import itertools
import random
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import note
from hypothesis import strategies as st

from keyspace_amqp.broker.target import needs_new_connection
from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.fallback import to_element
from keyspace_amqp.jobs import Command, Job, JobError, JobResult
from keyspace_amqp.message import Event, body
from keyspace_amqp.publisher import list_jobs, publisher
from keyspace_amqp.publisher import window as window_file
from keyspace_amqp.publisher.actions import (
    Action,
    Close,
    Connect,
    Flushed,
    FlushMode,
    Log,
    Recovered,
    Send,
    SendFrames,
    Submit,
)
from keyspace_amqp.publisher.entry import Entry, State
from keyspace_amqp.publisher.recent import PUSHED_RECENTLY
from keyspace_amqp.tables.keys import KEY, REFUSED_SUFFIX, refused_key
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.values import replace
from tests.publisher.simulated import (
    CLUSTER_DOWN,
    NO_MEMORY,
    NOT_SERVED,
    PAUSED,
    WRONG_TYPE,
    Connection,
    SimulatedBroker,
    SimulatedList,
    SimulatedParcel,
    SimulatedSlots,
    Step,
    Trouble,
    Watched,
    assert_books_balance,
    dropped_of,
    event_of,
    fallback_key,
    number_in,
    number_of,
    wall_at,
)


class World:
    """A publisher between a list and a broker; the world does the worker's part.

    A step is one thing that happens, and then the publisher's turn. `steps` has all kinds of steps
    with their weights; each makes its choices with the random numbers that it is given.
    """

    # Nothing that happens is a reason to lose an event, or to send one before those in the list:
    # the broker must get all events in their order.
    lossless = False
    shared = False  # others change the list
    fallback_sizes: Sequence[int] = (0, 0, 10**6)
    memory: int | None = None  # bytes; if there is more, the oldest is dropped
    troubles: Sequence[Trouble | None] = (None, None, None, CLUSTER_DOWN, PAUSED, NO_MEMORY)

    def __init__(self, chance: random.Random) -> None:
        self.now = 1000.0
        self.list = self.make_list()
        self.broker = SimulatedBroker(accepts=chance.random() < 0.8)
        size = chance.choice(self.fallback_sizes)
        self.config = replace(DEFAULTS, fallback_size=size)
        self.publisher = self.make_publisher(chance)
        self.born: set[int] = set()  # numbers of all events there ever were
        self.outside: collections.deque[Event] = collections.deque()
        self.risked_by_others = 0
        self.job: Job | None = None
        self.job_keep = 0
        self.result: JobResult | None = None
        self.wanted = True
        self.open_purges = 0
        self.fails_at_once = False
        self.flush_id = 0
        self.flush_until: float | None = None  # of the one that is not done
        self.stopped = False
        self.twice = False
        self.cut = 0  # elements that fell off the list in the last job
        self.left: set[int] = set()
        self.refused: set[int] = set()  # events that were among the refused ones
        self.recovered: set[int] | None = None  # leftovers that are not safe yet
        self.file: collections.deque[Event] = collections.deque()  # those that were not read
        self.most: int | None = None  # the limit of messages in a turn
        self.expresses = False  # events may come as parcels
        self.parcels: dict[bytes, SimulatedParcel] = {}  # that are about to be sent, by frames
        if chance.random() < 0.3:
            count = chance.randrange(60)
            self.list.elements = [to_element(self.new_event()) for _ in range(count)]
        if chance.random() < 0.3:
            events = [self.new_event() for _ in range(chance.randint(1, 60))]
            self.recovered = {number_of(event) for event in events}
            self.file.extend(events)
            self.publisher.recover([], more=True)
        self.publisher.set_role(primary=True, loading=False)

    def make_list(self) -> SimulatedList:
        return SimulatedList()

    def make_publisher(self, chance: random.Random) -> Watched:
        return Watched(self.config, lambda: self.now, lambda: wall_at(self.now), chance.random)

    def new_event(self, key: bytes = b"k") -> Event:
        number = len(self.born) + 1
        self.born.add(number)
        return event_of(number, key)

    def step(self, chance: random.Random) -> None:
        steps = self.steps()
        (happen,) = chance.choices(list(steps), weights=list(steps.values()))
        note(f"{self.now:.4f} {happen.__name__}")
        happen(chance)
        self.check()
        self.turn()
        while self.publisher.has_more and chance.random() < 0.7:
            self.turn()

    def steps(self) -> dict[Step, int]:
        return {
            self.time_passes: 20,
            self.events_come: 15,
            self.main_thread_runs_the_job: 20,
            self.worker_gets_the_result: 10,
            self.broker_does_something: 30,
            self.broker_changes_its_mind: 2,
            self.link_is_lost: 2,
            self.broker_blocks: 2,
            self.pressure_changes: 2,
            self.redis_lacks_processors: 2,
            self.somebody_connects_or_disconnects: 2,
            self.somebody_configures: 1,
            self.connections_fail_at_once: 1,
            self.broker_says_something_odd: 1,
            self.redis_saves: 2,
            self.handler_fails: 1,
            self.list_is_in_trouble: 2,
        }

    # The worker's part

    def turn(self) -> list[Action]:
        self.take_events()
        actions = self.publisher.poll(more=bool(self.outside), most=self.most)
        for action in actions:
            note(f"    {action}")
            self.carry_out(action)
        self.check()
        if self.flush_until is not None:
            assert self.now < self.flush_until, "a flush takes longer than it may"
        return actions

    def wake_at(self) -> float | None:
        """The time of the worker's next turn, if nothing else happens."""
        return self.publisher.wake_at()

    def take_events(self) -> None:
        publisher = self.publisher
        while not self.stopped:
            room = publisher.room()
            if self.memory is not None and (room <= 0 or publisher.can_only_wait):
                inside = publisher.gauges()[Stat.QUEUE_BYTES]
                over = inside + sum(Entry(event, 0).size for event in self.outside) - self.memory
                if over >= 0 and publisher.drop_oldest(over + 1):
                    continue
            if room > 0 and self.file:
                count = min(room, len(self.file), 7)
                events = [self.file.popleft() for _ in range(count)]
                publisher.recover(events, more=bool(self.file))
                continue
            express_room = publisher.express_room(self.most) if self.expresses else None
            room = room if express_room is None else express_room
            if room <= 0 or not self.outside:
                return
            count = min(room, len(self.outside))
            if express_room is not None:
                parcel = SimulatedParcel([self.outside.popleft() for _ in range(min(count, 3))])
                frames = parcel.events()[0].message_id.encode()
                self.parcels[frames] = parcel
                publisher.add_parcel(parcel, frames)
                continue
            publisher.add([self.outside.popleft() for _ in range(count)])

    def carry_out(self, action: Action) -> None:
        match action:
            case Send(first_tag=first_tag, events=events):
                self.check_order(events)
                self.broker.send(first_tag, events, publisher.SEND_CHUNK)
            case SendFrames(first_tag=first_tag, frames=frames):
                events = self.parcels.pop(frames).events()
                self.check_order(events)
                self.broker.send(first_tag, events, publisher.EXPRESS_CHUNK)
            case Connect() if self.fails_at_once:
                self.publisher.link_down("cannot connect")
            case Connect():
                self.broker.connect()
            case Close():
                self.broker.lose()
            case Submit(job=job):
                assert self.job is None, "two jobs at once"
                assert self.result is None, "two jobs at once"
                self.job, self.job_keep = job, self.config.fallback_size
            case Flushed(id=flush_id, mode=mode, leftovers=left):
                assert flush_id == self.flush_id
                self.flush_until = None
                self.stopped = mode is not FlushMode.STORE
                self.left = {number_of(event) for event in left or ()}
            case Recovered():
                assert self.recovered is not None
                kept = {number_of(entry.event) for entry in self.in_memory() if entry.event}
                assert not self.recovered & kept, "not safe yet"
                assert not self.file, "not read yet"
                self.recovered = None

    # What must always hold

    def check_order(self, events: Sequence[Event]) -> None:
        """On one connection an older event comes after a newer one only if it was refused."""
        connection = self.broker.connection
        in_flight = self.publisher.window.in_flight()
        self.refused |= {number_of(e.event) for e in in_flight if e.refused and e.event}
        if self.lossless and not self.twice and connection:
            numbers = [number_of(event) for event in (*connection.sent, *events)]
            numbers = [number for number in numbers if number not in self.refused]
            assert numbers == sorted(set(numbers))

    def check(self) -> None:
        in_lane = (entry.event for entry in self.publisher.refused)
        self.refused |= {number_of(event) for event in in_lane if event is not None}
        self.refused |= {n for n in map(number_in, self.list.refused) if n is not None}
        assert_books_balance(self.publisher)
        self.check_gauges()
        if self.result is None:  # else its changes are not counted yet
            self.check_nothing_lost()
            self.check_known_elements()

    def in_memory(self) -> list[Entry]:
        publisher = self.publisher
        entries = (*publisher.memory, *publisher.refused)
        return [entry for entry in entries if entry.state is not State.DONE]

    def in_parcels(self) -> list[Event]:
        express = self.publisher.express
        events = [
            event
            for sent in express._sent
            for tag, event in enumerate(sent.parcel.events(), sent.first)
            if tag > express._below and tag not in express._apart
        ]
        return [event for event in events if event is not None]

    def check_gauges(self) -> None:
        publisher, gauges, entries = self.publisher, self.publisher.gauges(), self.in_memory()
        waiting = [entry for entry in entries if entry.state is not State.SENT]
        assert gauges[Stat.QUEUE_LENGTH] == len(waiting)
        assert gauges[Stat.QUEUE_BYTES] == sum(entry.size for entry in waiting)
        parcels = self.in_parcels()
        assert gauges[Stat.IN_FLIGHT] == len(entries) - len(waiting) + len(parcels)
        window = publisher.window.in_flight()
        if publisher.express.is_running:
            assert not [*entries, *window]
            assert parcels
            assert publisher.window.bytes >= 10 * len(parcels)
        else:
            assert publisher.window.bytes == sum(entry.size for entry in window)
        count = len(window) + len(parcels)
        assert publisher.window.count == count <= 2 * window_file.WINDOW + window_file.PROBES
        assert all(entry.state is State.SENT for entry in window)
        for one in (publisher.list, publisher.lists.refused):
            done = [entry for entry in one.known if entry.state is State.DONE]
            assert one.done == len(done)
            assert one.done_bytes == sum(entry.size for entry in done)
            assert one.refused == sum(entry.state is State.REFUSED for entry in one.known)

    def check_nothing_lost(self) -> None:
        there = {number_of(entry.event) for entry in self.in_memory() if entry.event}
        there.update(map(number_of, (*self.file, *self.outside, *self.in_parcels())))
        there.update(self.left)
        listed = map(number_in, self.list.everywhere)
        there.update(number for number in listed if number is not None)
        self.check_missing(self.born - there - self.broker.received.keys())
        if self.lossless:
            assert dropped_of(self.publisher) == 0

    def check_missing(self, missing: set[int]) -> None:
        assert len(missing) <= dropped_of(self.publisher) + self.risked_by_others

    def check_known_elements(self) -> None:
        """The elements that the publisher knows are the first of the list, in its order."""
        publisher = self.publisher
        known = [entry.element for entry in publisher.list.known]
        assert self.shared or known == self.list.elements[: len(known)]
        known = [entry.element for entry in publisher.lists.refused.known]
        assert self.shared or known == self.list.refused[: len(known)]

    # What may happen

    def time_passes(self, chance: random.Random) -> None:
        at = self.wake_at()
        if at is not None and chance.random() < 0.5:
            self.now = max(self.now, at)
        else:
            self.now += chance.choice([0.0001, 0.001, 0.01, 0.06, 0.3, 1.1])
        if self.flush_until is not None:  # the worker would have woken before
            self.now = min(self.now, self.flush_until - 0.001)

    def events_come(self, chance: random.Random) -> None:
        self.outside.extend(self.new_event() for _ in range(chance.choice([1, 1, 3, 10])))

    def main_thread_runs_the_job(self, chance: random.Random) -> None:
        self.run_job()
        if chance.random() < 0.7:
            self.deliver_result()

    def run_job(self) -> bool:
        if self.job is None:
            return False
        before = self.list.everywhere
        job, self.job = self.job, None
        self.result = self.list.run(job)
        names = [command.name for command in job.commands if isinstance(command, Command)]
        self.cut = 0
        after = self.list.everywhere
        if names[:1] == ["RPUSH"]:
            pushed = len(after) - len(before)
            self.cut = len(set(before) - set(after)) + max(0, -pushed)
            assert pushed <= list_jobs.JOB_ELEMENTS
            (push, *_) = job.commands
            refused = push.arguments[0].endswith(REFUSED_SUFFIX)
            if self.job_keep > 0 and self.result.reply(1) == b"OK":
                pushed_to = self.list.refused if refused else self.list.elements
                assert len(pushed_to) <= self.job_keep
        if "UNLINK" in names:
            self.cut = len(set(before) - set(after))
        if names[:1] == ["LRANGE"] and "LTRIM" in names and not self.shared:
            trimmed = set(map(number_in, before)) - {None, *map(number_in, after)}
            counts = self.publisher.counts
            dropped = counts[Stat.DROPPED_TOO_LARGE] + counts[Stat.DROPPED_SET_ASIDE]
            assert len(trimmed - self.broker.confirmed) <= dropped, "trimmed, not confirmed"
        return True

    def worker_gets_the_result(self, _chance: random.Random) -> None:
        self.deliver_result()

    def deliver_result(self) -> bool:
        if self.result is None:
            return False
        result, self.result = self.result, None
        self.publisher.job_done(result)
        return True

    def broker_does_something(self, chance: random.Random) -> None:
        """The broker opens a connection or refuses one; messages arrive; it answers one or
        many, in any order."""
        broker = self.broker
        if broker.silent:
            return
        if broker.opening:
            self.open_link(accept=broker.accepts)
            return
        if broker.connection is None:
            return
        self.arrive(chance.randint(0, len(broker.connection.on_the_way)))
        if broker.connection is not None and broker.connection.unanswered:
            self.answer(
                chance.randrange(len(broker.connection.unanswered)),
                multiple=chance.random() < 0.4,
                ack=chance.random() < 0.85,
            )

    def open_link(self, *, accept: bool) -> bool:
        if not self.broker.opening:
            return False
        self.broker.opening = False
        if accept:
            self.broker.connection = Connection()
            self.publisher.link_up()
        else:
            self.publisher.link_down("refused")
        return True

    def arrive(self, count: int) -> None:
        if not self.broker.arrive(count):
            self.broker.arrives_at_loss = 0.0  # nothing behind it arrives
            self.broker.lose()
            explained = self.publisher.too_large(self.broker.largest + 100, body)
            self.publisher.link_down("406 PRECONDITION_FAILED", over_message=not explained)

    def answer(self, place: int, *, multiple: bool, ack: bool) -> None:
        tag = self.broker.answer(place, multiple=multiple, ack=ack)
        if not ack:
            self.publisher.nacked(tag, multiple)
        elif multiple:
            self.publisher.acked(tag)
        else:
            self.publisher.acked(0, [tag])

    def answer_all(self) -> bool:
        """Everything arrives and is confirmed."""
        if self.broker.connection is None:
            return False
        self.arrive(10**9)
        answered = False
        while self.broker.connection is not None and self.broker.connection.unanswered:
            self.answer(0, multiple=False, ack=True)
            answered = True
        return answered

    def broker_changes_its_mind(self, chance: random.Random) -> None:
        self.broker.accepts = chance.random() < 0.8
        self.broker.silent = chance.random() < 0.2
        if not self.broker.accepts:
            self.link_is_lost(chance)

    def redis_lacks_processors(self, chance: random.Random) -> None:
        self.most = chance.choice([None, None, 0, 1, 7])

    def link_is_lost(self, chance: random.Random) -> None:
        if self.broker.connection is not None or self.broker.opening:
            self.broker.arrives_at_loss = chance.random()
            self.broker.lose()
            self.publisher.link_down("lost")

    def broker_blocks(self, chance: random.Random) -> None:
        if self.broker.connection is not None:
            if chance.random() < 0.4:
                self.publisher.link_blocked("low on memory")
            else:
                self.publisher.link_unblocked()

    def pressure_changes(self, chance: random.Random) -> None:
        self.publisher.set_pressure(chance.random() < 0.3)

    def somebody_connects_or_disconnects(self, chance: random.Random) -> None:
        match chance.randrange(10):
            case 0 | 1:
                self.wanted = False
                self.publisher.disconnect()
            case 2 | 3:
                self.publisher.drain()
            case _:
                self.wanted = True
                self.publisher.connect()

    def somebody_configures(self, chance: random.Random) -> None:
        name = chance.choice(["host", "port", "username", "password", "heartbeat"])
        number = chance.randrange(1, 9)
        self.configure(**{name: number if name in ("port", "heartbeat") else f"x{number}"})

    def configure(self, **parameters: Any) -> None:
        old, self.config = self.config, replace(self.config, **parameters)
        self.publisher.configure(self.config, reconnect=needs_new_connection(old, self.config))

    def connections_fail_at_once(self, chance: random.Random) -> None:
        """An attempt fails before pika has begun with it; for a while."""
        self.fails_at_once = chance.random() < 0.5

    def broker_says_something_odd(self, chance: random.Random) -> None:
        """A message reaches no queue, or the broker answers a message that was never sent."""
        connection = self.broker.connection
        if connection is None:
            return
        tag = len(connection.sent) + 1
        match chance.randrange(3):
            case 0:
                self.publisher.returned()
            case 1:
                self.publisher.acked(0, [tag])
            case 2:
                self.publisher.nacked(tag, False)

    def somebody_resets_the_counters(self, _chance: random.Random) -> None:
        self.publisher.reset_stats()

    def redis_saves(self, _chance: random.Random) -> None:
        self.flush(2.0, FlushMode.STORE)

    def flush(self, seconds: float, mode: FlushMode) -> None:
        self.flush_id += 1
        self.flush_until = self.now + seconds
        self.publisher.flush(self.flush_id, seconds, mode)

    def handler_fails(self, chance: random.Random) -> None:
        """An exception in the handler, and the worker's repair after it."""
        job_lost = chance.random() < 0.5
        if job_lost:
            if self.result is not None:
                self.risked_by_others += self.cut  # its result is lost
            self.job = self.result = None
            self.twice = True  # a push that was done is done again
        self.broker.arrives_at_loss = chance.random()
        self.repair(job_lost=job_lost)

    def repair(self, *, job_lost: bool) -> None:
        self.broker.lose()
        self.publisher.link_down("unexpected exception")
        self.publisher.repair(job_lost=job_lost, taken=self.publisher.taken)

    def list_is_in_trouble(self, chance: random.Random) -> None:
        self.list.trouble = chance.choice(self.troubles)

    def set_role(self, *, primary: bool, loading: bool, agreed: bool = False) -> None:
        self.list.writable = primary and not loading
        self.tell_role(primary=primary, loading=loading, agreed=agreed)

    def tell_role(self, *, primary: bool, loading: bool, agreed: bool) -> None:
        self.publisher.set_role(primary=primary, loading=loading, agreed=agreed)

    # How it ends

    def at_rest(self) -> bool:
        gauges = self.publisher.gauges()
        waiting = self.outside or self.list.everywhere or self.job or self.result
        return not waiting and not any(gauges.values()) and not self.open_purges

    def heal(self) -> None:
        """Nothing fails any more: everything must be delivered, without a further event and without
        a busy loop."""
        self.list.trouble = None
        self.fails_at_once = False
        self.set_role(primary=True, loading=False)
        self.publisher.set_pressure(False)
        self.most = None
        self.publisher.link_unblocked()
        if not self.wanted:
            self.publisher.connect()
        self.live(until=self.at_rest)
        self.check_missing(self.born - self.broker.received.keys())
        if self.lossless:
            self.check_arrivals(self.born)

        start, turns = self.now, itertools.count()
        self.live(until=lambda: self.now > start + 10 or next(turns) > 100)
        assert self.now > start + 10, "busy at rest"

    def check_arrivals(self, numbers: set[int]) -> None:
        """All have arrived, in their order, but for those that were refused or late."""
        assert self.broker.received.keys() == numbers
        in_order = [number for number in self.broker.received if number not in self.refused]
        assert in_order == sorted(in_order)

    def live(self, until: Callable[[], bool]) -> None:
        """Lets time pass as the worker does, in a world that answers at once."""
        idle = 0
        for _ in range(10_000):
            actions = [action for action in self.turn() if not isinstance(action, Log)]
            if until():
                return
            events = (
                self.run_job(),
                self.deliver_result(),
                self.open_link(accept=True),
                self.answer_all(),
            )
            if actions or any(events) or self.publisher.has_more:
                idle = 0
                continue
            at = self.wake_at()
            assert at is not None, "stuck: it would sleep for ever"
            idle = idle + 1 if at < self.now + 0.02 else 0
            assert idle < 250, "spins"
            self.now = max(self.now, at)
        raise AssertionError("not delivered")

    def stop(self, chance: random.Random) -> None:
        """A stop. Memory must become empty in time, and the counters account for each event.
        Redis and the broker may be slow, or do nothing at all."""
        seconds = 5.0
        self.lossless = False
        pace = [chance.choice([0, 0.3, 0.8]) for _ in range(4)]
        self.flush(seconds, chance.choice([FlushMode.LEAVE, FlushMode.DRAIN]))
        for _ in range(10_000):
            self.turn()
            if self.stopped:
                break
            if chance.random() < pace[0]:
                self.run_job()
            if chance.random() < pace[1]:
                self.deliver_result()
            if chance.random() < pace[2]:
                self.open_link(accept=chance.random() < 0.8)
            if chance.random() < pace[3]:
                self.answer_all()
            if not self.publisher.has_more:
                self.now += 0.01
        assert self.stopped
        gauges = self.publisher.gauges()
        assert gauges[Stat.QUEUE_LENGTH] == gauges[Stat.IN_FLIGHT] == 0
        assert not self.in_memory()
        if self.result is None:  # else its changes are not counted
            self.check_nothing_lost()


class LosslessWorld(World):
    """Only the broker, the pace and the reach of the list change."""

    lossless = True

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.somebody_resets_the_counters: 1}


class ClusterWorld(World):
    """The node is demoted and promoted, it loads a data set, and its slot moves. The primary that
    replaces it without its agreement does not have the latest pushes."""

    troubles = (None, None, None, CLUSTER_DOWN, NOT_SERVED)

    def __init__(self, chance: random.Random) -> None:
        self.pushed_at: dict[bytes, float] = {}
        super().__init__(chance)

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.role_changes: 3}

    def run_job(self) -> bool:
        before = set(self.list.elements)
        ran = super().run_job()
        self.pushed_at |= dict.fromkeys(set(self.list.elements) - before, self.now)
        return ran

    def role_changes(self, chance: random.Random) -> None:
        primary, agreed = chance.random() < 0.6, chance.random() < 0.3
        if self.publisher.primary and not primary:
            until = self.now - PUSHED_RECENTLY
            late = {element for element, at in self.pushed_at.items() if at >= until}
            if not agreed and chance.random() < 0.7:
                self.list.elements = [one for one in self.list.elements if one not in late]
            self.pushed_at.clear()
        self.set_role(primary=primary, loading=chance.random() < 0.3, agreed=agreed)

    def check_missing(self, missing: set[int]) -> None:
        if not self.publisher.recent.wanted:  # else they are taken at the end of a push
            super().check_missing(missing)


class NarrowWorld(World):
    """A list with a cap or none at all, little memory, events too large."""

    fallback_sizes = (5, 15, 60, -1)
    memory = 30 * Entry(event_of(1), 0).size
    troubles = (None, None, None, CLUSTER_DOWN, PAUSED, NO_MEMORY, WRONG_TYPE)

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.broker.largest = 100

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.cap_changes: 1, self.giants_come: 1}

    def cap_changes(self, chance: random.Random) -> None:
        self.configure(fallback_size=chance.choice([*self.fallback_sizes, 0]))

    def giants_come(self, chance: random.Random) -> None:
        self.outside.extend(self.new_event(b"k" * 1000) for _ in range(chance.choice([1, 3])))


class FussyWorld(World):
    """The broker closes the channel over certain messages, and says no more than that. All others
    arrive, and these are counted, if others come to compare them with."""

    def __init__(self, chance: random.Random) -> None:
        self.bad: set[int] = set()
        self.unjust = False
        self.next_good_at = 1000.0 + 600  # no story takes as long before it heals
        super().__init__(chance)
        self.broker.refused = {b"bad"}

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.bad_ones_come: 2, self.channel_dies: 1}

    def new_event(self, key: bytes = b"k") -> Event:
        event = super().new_event(key)
        if key == b"bad":
            self.bad.add(number_of(event))
        return event

    def bad_ones_come(self, chance: random.Random) -> None:
        for _ in range(chance.choice([1, 1, 3, 10])):
            key = chance.choice([b"bad", b"k"])
            self.outside.append(self.new_event(key))

    def channel_dies(self, chance: random.Random) -> None:
        """The broker closes the channel over no message, and says nothing of it."""
        if self.broker.connection is not None:
            self.unjust = True
            self.broker.arrives_at_loss = 0.0
            self.broker.lose()
            self.publisher.link_down("541 INTERNAL_ERROR", over_message=True)

    def check_missing(self, missing: set[int]) -> None:
        if not (self.unjust or self.stopped):
            assert missing <= self.bad
        super().check_missing(missing)

    def check(self) -> None:
        super().check()
        counts = self.publisher.counts
        assert self.stopped or dropped_of(self.publisher) == counts[Stat.DROPPED_SET_ASIDE]
        if not (self.unjust or self.twice):
            assert counts[Stat.DROPPED_SET_ASIDE] <= len(self.bad)

    def at_rest(self) -> bool:
        """Nothing is left but suspects that nothing can be compared with: then a good one comes."""
        if super().at_rest():
            return True
        there = {number_of(entry.event) for entry in self.in_memory() if entry.event}
        listed = map(number_in, self.list.everywhere)
        there |= {number for number in listed if number is not None}
        left = there - self.broker.received.keys()
        waits = left <= self.bad or self.now > self.next_good_at
        if left and waits and not self.outside:
            self.outside.append(self.new_event())
            self.next_good_at = self.now + 60
        return False

    def heal(self) -> None:
        super().heal()
        counts = self.publisher.counts
        if not (self.unjust or self.twice):
            assert counts[Stat.DROPPED_SET_ASIDE] == len(self.bad)
            # Not in order: a suspect that turns out to be good comes late.
            assert self.broker.received.keys() == self.born - self.bad


class ImportWorld(World):
    """Elements of another list are put to the end of ours, by jobs of their own."""

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.somebody_imports: 3}

    def somebody_imports(self, chance: random.Random) -> None:
        if self.result is not None or self.list.trouble is not None:
            return
        count = chance.choice([1, 3, 10])
        self.list.elements += [to_element(self.new_event()) for _ in range(count)]
        length = len(self.list.elements)
        if chance.random() < 0.5:
            self.run_job()  # its result comes behind that of the import
        self.publisher.imported(KEY, length, count)

    def check(self) -> None:
        super().check()
        assert dropped_of(self.publisher) == 0 or self.stopped


class SharedWorld(World):
    """Other clients change the list too."""

    shared = True
    fallback_sizes = (0, 0, 15)
    troubles = (None, None, None, CLUSTER_DOWN, NOT_SERVED, WRONG_TYPE)

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.somebody_changes_the_list: 3, self.somebody_purges: 1}

    def somebody_changes_the_list(self, chance: random.Random) -> None:
        elements = self.list.elements
        before = set(elements)
        place = chance.randint(0, len(elements))
        match chance.randrange(7):
            case 0:
                del elements[:place]
            case 1:
                del elements[place:]
            case 2:
                elements.clear()
                self.tell_change(chance.choice([b"flushdb", b"evicted", b"del"]))
            case 3:
                elements += [to_element(self.new_event()) for _ in range(place)]
            case 4:
                elements.insert(place, to_element(self.new_event()))
            case 5:
                elements[place : place + 1] = [to_element(self.new_event())]
            case 6:
                elements.insert(place, b"junk")
        self.risked_by_others += len(before - set(elements))

    def tell_change(self, what: bytes) -> None:
        self.publisher.list_changed(what)

    def somebody_purges(self, _chance: random.Random) -> None:
        def done(_outcome: int | JobError) -> None:
            self.open_purges -= 1

        self.open_purges += 1
        self.publisher.purge(done)


class SlotsWorld(World):
    """Slots come and go, with their lists. What goes with a slot is not lost, and what stays keeps
    its order."""

    troubles = (None, None, CLUSTER_DOWN, PAUSED)
    list: SimulatedSlots

    def __init__(self, chance: random.Random) -> None:
        # The lists that the publisher learned last, and the topology that was read last.
        self.told: frozenset[bytes] = frozenset()
        self.read: tuple[frozenset[bytes], frozenset[bytes]] = (frozenset(), frozenset())
        self.looks_later = False  # a job from before a change of role comes first
        self.foreign: dict[int, int] = {}  # events of other nodes, with their lists
        self.taken: set[int] = set()  # events that were on other nodes
        self.stopping = False
        super().__init__(chance)

    def make_list(self) -> SimulatedSlots:
        return SimulatedSlots()

    def make_publisher(self, chance: random.Random) -> Watched:
        return WatchedSlots(self, chance)

    def steps(self) -> dict[Step, int]:
        return super().steps() | {
            self.role_changes: 1,
            self.topology_is_read: 6,
            self.lists_are_looked_at: 8,
            self.slot_begins_to_migrate: 2,
            self.list_moves: 2,
            self.migration_is_taken_back: 1,
            self.slot_leaves: 2,
            self.slot_arrives: 3,
        }

    # The watch's part

    def tell_lists(self, *, now: bool) -> None:
        """Tells the publisher of the lists in the node's slots: by the topology as it is now, or as
        it was read before."""
        if self.result is not None or self.looks_later:
            return
        if now:
            self.read = frozenset(self.list.served), frozenset(self.list.migrating)
        served, migrating = self.read
        for key in set(map(fallback_key, self.publisher.lists.keys)) - served:
            # The slot was away for at least a moment, and so was what is on its way to it.
            self.take(key)
            storing = (entry.event for entry in self.publisher.memory.being_stored)
            self.taken |= {number_of(event) for event in storing if event is not None}
        self.publisher.lists.found(self.list.lengths(served))
        if self.publisher.lists.writable:
            self.told = served
        home = max(served - migrating or served, default=None)
        self.publisher.lists.set_lists(home, lambda key: fallback_key(key) in served)

    def topology_is_read(self, _chance: random.Random) -> None:
        self.read = frozenset(self.list.served), frozenset(self.list.migrating)

    def lists_are_looked_at(self, chance: random.Random) -> None:
        self.tell_lists(now=chance.random() < 0.5)

    def deliver_result(self) -> bool:
        delivered = super().deliver_result()
        self.looks_later = self.looks_later and self.job is not None
        return delivered

    def handler_fails(self, chance: random.Random) -> None:
        super().handler_fails(chance)
        self.looks_later = self.looks_later and (self.job or self.result) is not None

    # What must always hold

    def carry_out(self, action: Action) -> None:
        super().carry_out(action)
        if isinstance(action, Submit):
            commands = [c for c in action.job.commands if isinstance(c, Command)]
            assert {fallback_key(command.arguments[0]) for command in commands} <= self.told

    def check_order(self, events: Sequence[Event]) -> None:
        """Events that came the same way are in order: from this node, or in one list. Events that
        were in flight when a list arrived are stored behind it, and are sent again."""
        super().check_order(events)
        connection = self.broker.connection
        if self.twice or connection is None:
            return
        streams: dict[int, list[int]] = collections.defaultdict(list)
        for number in dict.fromkeys(map(number_of, (*connection.sent, *events))):
            if number not in self.taken and number not in self.refused:
                streams[self.foreign.get(number, 0)].append(number)
        for numbers in streams.values():
            assert numbers == sorted(numbers)

    def check(self) -> None:
        super().check()
        assert self.stopping or dropped_of(self.publisher) == 0

    def check_missing(self, missing: set[int]) -> None:
        super().check_missing(missing - self.list.elsewhere)

    def check_known_elements(self) -> None:
        publisher = self.publisher
        known = [entry.element for entry in publisher.list.known]
        if publisher.list.key is None:
            assert known == []
        elif self.list._has(publisher.list.key):
            # Otherwise the publisher does not know yet that they are gone.
            there = self.list.elements_of(publisher.list.key)
            returned = {number_in(element) for element in there} & self.taken
            assert returned or known == there[: len(known)]

    # What may happen

    def set_role(self, *, primary: bool, loading: bool, agreed: bool = False) -> None:
        if not (primary and not loading):
            for key in self.list.KEYS:
                self.take(key)
        self.looks_later = (self.job or self.result) is not None
        super().set_role(primary=primary, loading=loading, agreed=agreed)

    def role_changes(self, chance: random.Random) -> None:
        self.set_role(primary=chance.random() < 0.6, loading=chance.random() < 0.3)

    def take(self, key: bytes) -> None:
        elements = self.list.here[key].everywhere
        self.taken |= {number for number in map(number_in, elements) if number is not None}

    def slot_begins_to_migrate(self, chance: random.Random) -> None:
        self.list.migrating.add(chance.choice(self.list.KEYS))
        self.list.migrating &= self.list.served

    def list_moves(self, chance: random.Random) -> None:
        if self.list.migrating:
            self.move(chance.choice(sorted(self.list.migrating)))

    def move(self, key: bytes) -> None:
        self.take(key)
        self.list.take_away(key)

    def migration_is_taken_back(self, chance: random.Random) -> None:
        if self.list.migrating:
            key = chance.choice(sorted(self.list.migrating))
            self.list.bring_back(key)
            self.list.migrating.discard(key)

    def slot_leaves(self, chance: random.Random) -> None:
        """One slot; sometimes all of them."""
        keys = sorted(self.list.served)
        for key in keys if chance.random() < 0.1 else keys and [chance.choice(keys)]:
            self.move(key)
            self.list.served.discard(key)
            self.list.migrating.discard(key)

    def slot_arrives(self, chance: random.Random) -> None:
        """Its list has what the other node has not delivered, and that node's own events. If the
        slot was away for less than the second in which this node notices that, the other node has
        delivered nothing: otherwise it would look as if a client had removed it."""
        absent = sorted(set(self.list.KEYS) - self.list.served)
        if not absent:
            return
        key = chance.choice(absent)
        elements = self.list.away.pop(key, [])
        known = map(fallback_key, self.publisher.lists.keys)
        count = 0 if key in known else chance.randint(0, len(elements))
        self.list.delivered += elements[:count]
        theirs = [self.new_event() for _ in range(chance.choice([0, 1, 20]))]
        stream = len(self.foreign) + 1
        self.foreign |= {number_of(event): stream for event in theirs}
        self.list.here[key].elements = [*elements[count:], *map(to_element, theirs)]
        self.list.here[key].refused = self.list.away.pop(refused_key(key), [])
        self.list.served.add(key)

    # How it ends

    def heal(self) -> None:
        """The slots of this node stay; if it has none, one arrives."""
        self.list.migrating.clear()
        for key in sorted(self.list.served):
            self.list.bring_back(key)
        if not self.list.served:
            self.slot_arrives(random.Random(0))
        while self.job or self.result or self.looks_later:
            self.run_job()
            self.deliver_result()
        self.set_role(primary=True, loading=False)
        self.tell_lists(now=True)
        super().heal()

    def stop(self, chance: random.Random) -> None:
        self.stopping = True
        super().stop(chance)


class WatchedSlots(Watched):
    """A publisher that learns its lists from the world, as soon as possible."""

    def __init__(self, world: SlotsWorld, chance: random.Random) -> None:
        super().__init__(world.config, lambda: world.now, lambda: wall_at(world.now), chance.random)
        self._world = world

    def tell_lists(self) -> None:
        self._world.tell_lists(now=True)


# Small, so that they are reached often.
LIMITS = {
    "WINDOW": [4, 20],
    "SEND_CHUNK": [2, 7],
    "EXPRESS_CHUNK": [2, 7],
    "JOB_ELEMENTS": [8, 40],
}

# A number for each step, so that hypothesis can leave out steps and find a short story.
stories = st.integers(0, 300).flatmap(
    lambda count: st.lists(st.integers(0, 2**32), min_size=count, max_size=count)
)
