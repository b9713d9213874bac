"""Worlds of worlds.py with an outbox: the main thread puts events into the list by itself.

The worker's parts are the real ones, in the order of a turn of its loop (worker/loop.py). The
main thread (simulated_outbox.py) may do something between any two steps of a turn.
"""

from __future__ import annotations

import collections
import random
import sys
from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import note

from keyspace_amqp.config import Config
from keyspace_amqp.jobs import Command, Job, JobResult
from keyspace_amqp.message import Event
from keyspace_amqp.publisher.actions import Action, Flushed, Send, Submit
from keyspace_amqp.publisher.entry import element_of
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.values import replace
from keyspace_amqp.worker.intake import Intake
from keyspace_amqp.worker.job_queue import JobQueue
from keyspace_amqp.worker.outbox import Outbox
from keyspace_amqp.worker.records import ListChanged, Listed, Reader
from keyspace_amqp.worker.requests import Requests
from tests.publisher.simulated import Step, dropped_of, number_in, number_of
from tests.publisher.simulated_outbox import HELD, OPEN, MainThread, event_in
from tests.publisher.worlds import LosslessWorld, SharedWorld, SlotsWorld, World

MODES = ("reply", "atomic", "atomic", "off")


class Fault(Exception):
    """An exception that a world has thrown."""


class File:
    """The file of leftovers of a world."""

    def __init__(self, events: collections.deque[Event]) -> None:
        self._events = events

    @property
    def pending(self) -> bool:
        return bool(self._events)

    def peek(self, most: int) -> tuple[list[Event], int]:
        count = min(most, len(self._events), 7)
        return [self._events[place] for place in range(count)], count

    def advance(self, step: int) -> None:
        for _ in range(step):
            self._events.popleft()

    def skip(self) -> None:
        self._events.popleft()


class NoWatch:
    """Lists are told of in a way of the world's own."""

    def list_changed(self, key: bytes) -> None: ...


class WithOutbox(World):
    """A world of another kind, with an outbox."""

    main: MainThread

    def __init__(self, chance: random.Random) -> None:
        self.micro: random.Random | None = None
        self.fault_at: str | None = None
        self.ids: dict[int, str] = {}
        self.checks_ids = True
        self.leftovers: Sequence[Event] = ()
        self.role = {"primary": True, "loading": False}
        self.ready = False  # the main thread and the worker are there
        super().__init__(chance)
        mode = chance.choice(MODES)
        self.worker_config = self.config = replace(self.config, outbox=mode)
        self.publisher.configure(self.config, reconnect=False)
        self.main = MainThread(self.list, lambda: self.now)
        self.main.set_mode(mode, has_list=self.config.fallback_size >= 0)
        self.main.shim.events.together = chance.choice([1, 3, 1000])
        self.make_worker("run")
        if not self.file and chance.random() < 0.7:
            self.outbox.start(self.first_key)
            self.main.start()
        else:
            self.outbox.start(b"")
        self.ready = True

    first_key = KEY

    def inherited(self) -> bytes | None:
        return None if self.publisher.primary else KEY

    def make_worker(self, run_id: str) -> None:
        shim = self.main.shim
        self.jobs = JobQueue(shim, self.failed, lambda jobs: self.requests.book(jobs))
        self.outbox = Outbox(
            shim, self.publisher.outbox, self.jobs.submit,
            lambda: self.intake.waiting + len(self.file), self.inherited, lambda: self.now,
        )  # fmt: skip
        none: Any = None  # parts that no request of a world needs
        self.requests = Requests(
            shim, none, none, none, self.publisher, NoWatch(), none, self.outbox, self.failed
        )  # type: ignore[arg-type]
        shim.prefix = self.outbox.prefix
        self.intake = Intake(
            shim.events, self.publisher, File(self.file), run_id, self.failed, self.outbox
        )  # type: ignore[arg-type]
        self.before = self.main.emitted - len(self.main.waiting())

    # `outside`: events that are neither in the publisher nor in the list

    @property
    def outside(self) -> collections.deque[Event]:  # type: ignore[override]
        return collections.deque(map(event_in, self.main.waiting()))

    @outside.setter
    def outside(self, _events: object) -> None: ...

    def steps(self) -> dict[Step, int]:
        return super().steps() | {
            self.turn_of_the_event_loop: 10,
            self.events_come: 20,
            self.mode_changes: 1,
            self.worker_is_behind: 1,
            self.something_is_to_fail: 1,
        }

    def step(self, chance: random.Random) -> None:
        self.micro = chance if chance.random() < 0.5 else None
        super().step(chance)
        self.micro = None

    # The main thread

    def events_come(self, chance: random.Random) -> None:
        count = chance.choice([1, 1, 3, 10])
        note(f"    emits {count}, {self.main.state.name} {self.main.mode}")
        self.main.emit([self.new_event() for _ in range(count)])
        if chance.random() < 0.5:
            self.main.end_turn()

    def turn_of_the_event_loop(self, _chance: random.Random) -> None:
        self.run_job()

    def run_job(self) -> bool:
        """A turn of the event loop."""
        self.main.end_turn()
        return self.main.run_jobs(self.run_one) or bool(self.main.requests)

    def run_one(self, job: Job) -> JobResult:
        assert job is self.job
        before = self.list.everywhere
        assert super().run_job()
        assert self.result is not None
        names = [command.name for command in job.commands if isinstance(command, Command)]
        if names == ["LTRIM"]:
            self.cut = len(set(before) - set(self.list.everywhere))
        return self.result

    def mode_changes(self, chance: random.Random) -> None:
        self.configure(outbox=chance.choice(MODES))

    def configure(self, **parameters: Any) -> None:
        self.config = config = replace(self.config, **parameters)
        self.main.set_mode(config.outbox, has_list=config.fallback_size >= 0)
        self.main.requests.append(lambda: self.take_config(config))

    def take_config(self, config: Config) -> None:
        self.worker_config = config
        self.publisher.configure(self.worker_config, reconnect=False)

    def somebody_configures(self, chance: random.Random) -> None:
        self.publisher.configure(self.worker_config, reconnect=chance.random() < 0.5)

    def worker_is_behind(self, chance: random.Random) -> None:
        self.main.behind = chance.random() < 0.5

    def tell_role(self, *, primary: bool, loading: bool, agreed: bool) -> None:
        self.role = {"primary": primary, "loading": loading}
        if not (primary and not loading):
            self.main.leave()
        self.main.requests.append(
            lambda: self.publisher.set_role(primary=primary, loading=loading, agreed=agreed)
        )

    def meanwhile(self) -> None:
        """What the main thread does between two steps of the worker."""
        chance = self.micro
        if chance is None:
            return
        match chance.randrange(8):
            case 0 | 1:
                self.events_come(chance)
            case 2:
                note("    loop")
                self.run_job()
            case 3 if self.main.state is HELD and self.flush_until is None:
                self.now += 1.1

    # The worker

    def turn(self) -> list[Action]:
        main = self.main
        pushed = main.shim.events.pushed
        self.meanwhile()
        finished = self.jobs.count_finished()
        self.meanwhile()
        self.take_requests()
        self.meanwhile()
        self.jobs.finish(finished)
        self.take_requests()
        self.attempt("book", lambda: self.requests.book(self.jobs.finished))
        self.meanwhile()
        if not self.stopped:
            self.intake.take(pushed)
        self.attempt("taken", lambda: None)
        self.meanwhile()
        note(f"    polls: {self.publisher.list.length} known, {main.state.name}")
        actions = self.publisher.poll(more=self.intake.waiting > 0, most=self.most)
        for action in actions:
            note(f"    {action}")
            self.carry_out(action)
        self.meanwhile()
        self.outbox.poll(enabled=self.worker_config.has_outbox)
        self.outbox.show()
        self.check()
        if self.flush_until is not None:
            assert self.now < self.flush_until, "a flush takes longer than it may"
        return actions

    def take_requests(self) -> None:
        while self.main.requests:
            match self.main.requests.popleft():
                case ListChanged() | Listed() as told:
                    note(f"    {told}")
                    self.requests.receive(told)
                case carry_out:
                    carry_out()

    def wake_at(self) -> float | None:
        at = self.outbox.wake_at(enabled=self.worker_config.has_outbox)
        times = [time for time in (super().wake_at(), at) if time is not None]
        return min(times, default=None)

    def carry_out(self, action: Action) -> None:
        super().carry_out(action)
        match action:
            case Flushed(leftovers=left):
                self.leftovers = left or ()
            case Submit(job=job):
                self.job_keep = self.worker_config.fallback_size
                self.jobs.submit(job, self.job_done)
            case Send(events=events):
                for event in events if self.checks_ids else ():
                    assert (
                        self.ids.setdefault(number_of(event), event.message_id) == event.message_id
                    )

    def job_done(self, result: JobResult) -> None:
        assert result.replies == (self.result and self.result.replies)
        self.result_is_taken()
        if self.fault_at == "result":
            self.fault_at = None
            self.risked_by_others += self.cut
            self.twice = True
            self.result = None
            raise Fault
        self.result = None
        self.publisher.job_done(result)

    def result_is_taken(self) -> None: ...

    def deliver_result(self) -> bool:
        """A turn of the worker does it."""
        if self.result is not None:
            self.turn()
        return False

    # Exceptions

    def failed(self, _what: str = "") -> None:
        if not isinstance(sys.exception(), Fault):
            raise
        self.repair(job_lost=not self.jobs.expects(self.job_done))

    def attempt(self, place: str, work: Callable[[], object]) -> None:
        try:
            work()
            if self.fault_at == place:
                self.fault_at = None
                raise Fault
        except Fault:
            self.failed()

    def something_is_to_fail(self, chance: random.Random) -> None:
        self.fault_at = chance.choice(["result", "book", "taken"])

    def handler_fails(self, chance: random.Random) -> None:
        self.broker.arrives_at_loss = chance.random()
        self.repair(job_lost=not self.jobs.expects(self.job_done))

    def repair(self, *, job_lost: bool) -> None:
        note("    repair")
        self.broker.lose()
        self.publisher.link_down("unexpected exception")
        taken = self.intake.taken + self.outbox.balance
        self.publisher.repair(job_lost=job_lost, taken=taken)
        self.outbox.repair(job_lost=not self.jobs.expects(self.outbox.job_done))
        self.twice = True

    # What must always hold

    @property
    def unbooked(self) -> int:
        requests = [one for one in (*self.main.requests, *self.requests._about_lists)
                    if isinstance(one, Listed)]  # fmt: skip
        return self.main.untold + sum(one.count for one in requests)

    def check(self) -> None:
        super().check()
        if self.stopped:
            return
        main = self.main
        came = self.publisher.taken + len(main.waiting()) + main.listed + self.unbooked
        assert main.emitted - self.before == came, "the books of the outbox"
        assert main.shim.unbooked == self.unbooked + self.outbox._booked
        handed = (
            len(main.shim.events.records) - len(main.waiting()) + len(main.pending) - main.listed
        )
        assert main.shim.in_queue == handed

    def check_known_elements(self) -> None:
        known = [element_of(entry) for entry in self.publisher.list.known]
        assert self.shared or known == self.list.elements[: len(known)]
        known = [element_of(entry) for entry in self.publisher.lists.refused.known]
        assert self.shared or known == self.list.refused[: len(known)]

    # How it ends

    def at_rest(self) -> bool:
        queue = self.main.shim.events
        busy = self.main.requests or self.jobs.count_finished() or queue.length
        return super().at_rest() and not busy

    def heal(self) -> None:
        self.main.behind = False
        self.fault_at = None
        if self.config.outbox == "off":
            self.configure(outbox="reply")
        super().heal()
        self.heal_outbox()

    def heal_outbox(self) -> None:
        """It is open again, and a following event goes straight into the list."""
        if not self.config.has_outbox:
            return
        self.live(until=lambda: self.main.state is OPEN and self.at_rest())
        missed = self.main.missed
        event = self.new_event()
        self.main.emit([event])
        self.main.end_turn()
        listed = {number_in(element) for element in self.list.everywhere}
        assert number_of(event) in listed
        assert self.main.missed == missed
        self.live(until=self.at_rest)
        assert number_of(event) in self.broker.confirmed
        self.check_missing(self.born - self.broker.received.keys())
        if self.lossless:
            self.check_arrivals(self.born)

    def redis_saves(self, chance: random.Random) -> None:
        self.main.before_save()
        super().redis_saves(chance)

    def stop(self, chance: random.Random) -> None:
        self.micro = None
        self.fault_at = None
        self.main.close()
        super().stop(chance)


class WithRenewal(WithOutbox):
    """The worker ends too late for an unload, and another one takes its place."""

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.worker_is_replaced: 1}

    def worker_is_replaced(self, chance: random.Random) -> None:
        lossless = self.lossless
        self.stop(chance)
        old = self.publisher
        if self.result is not None:
            self.risked_by_others += self.cut
        self.risked_by_others += dropped_of(old)
        self.lossless = lossless and dropped_of(old) == 0
        self.twice = True
        self.file.extendleft(reversed(self.leftovers))
        self.left.clear()
        if chance.random() < 0.5:
            while self.intake.write_some(self):  # type: ignore[arg-type]
                pass
        self.broker.lose()
        self.main.emit([self.new_event() for _ in range(chance.choice([0, 3]))])
        self.main.renew()
        self.job = self.result = None
        self.open_purges = 0
        self.stopped = False
        self.publisher = self.make_publisher(chance)
        self.publisher.configure(self.config, reconnect=False)
        self.worker_config = self.config
        self.publisher.set_role(**self.role)
        self.recovered = None
        if self.file:
            self.publisher.recover([], more=True)
            self.recovered = {number_of(event) for event in self.file}
        self.wanted = True
        self.make_worker(f"run{self.main.emitted}")
        self.outbox.start(KEY)

    def records(self, _origin: object, numbers: Sequence[int], data: bytes) -> None:
        """Take records for the file of leftovers."""
        events, _ = Reader("left").parse(data, numbers)
        self.file.extend(events)


class OutboxWorld(WithRenewal, LosslessWorld):
    """Only the broker, the pace and the reach of the list change, and the parameters."""


class SharedOutboxWorld(WithRenewal, SharedWorld):
    """Other clients change the list too."""

    def tell_change(self, what: bytes) -> None:
        self.main.requests.append(ListChanged(self.main.jobs_run, what, b""))

    def somebody_changes_the_list(self, chance: random.Random) -> None:
        """What they insert among known elements is found by a trim, but not by a cut."""
        before = set(self.list.elements)
        super().somebody_changes_the_list(chance)
        if self.config.fallback_size > 0:
            self.risked_by_others += len(set(self.list.elements) - before)


class SlotsOutboxWorld(WithOutbox, SlotsWorld):
    """Slots come and go, with their lists."""

    first_key = b""

    def inherited(self) -> bytes | None:
        return None if self.publisher.primary else max(self.list.served, default=None)

    def result_is_taken(self) -> None:
        self.looks_later = self.looks_later and self.job is not None

    def handler_fails(self, chance: random.Random) -> None:
        WithOutbox.handler_fails(self, chance)
        self.looks_later = self.looks_later and (self.job or self.result) is not None

    looks_again = False

    def tell_lists(self, *, now: bool) -> None:
        # A look is a job, and what was stored before it is booked before its result.
        self.looks_again = self.ready and bool(self.main.listed or self.unbooked)
        if not self.looks_again:
            super().tell_lists(now=now)

    def turn(self) -> list[Action]:
        actions = super().turn()
        if self.looks_again:
            self.tell_lists(now=True)
        return actions

    def check_known_elements(self) -> None:
        for entry in self.publisher.list.known:
            entry.element = element_of(entry)
        SlotsWorld.check_known_elements(self)
