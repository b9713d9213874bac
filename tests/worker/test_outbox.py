"""When the outbox opens, and which events of the queue are in the list already. Without the
compiled module."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

import pytest

from keyspace_amqp.jobs import Job, JobResult, OutboxStep
from keyspace_amqp.message import Event
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.worker.intake import Intake
from keyspace_amqp.worker.leftovers import Leftovers
from keyspace_amqp.worker.outbox import (
    CHANGE_EVERY,
    GIVE_UP_AFTER,
    RETRY_AFTER,
    RETRY_MOST,
    STEADY_AFTER,
    Handed,
    Outbox,
)
from keyspace_amqp.worker.records import HEAD, LISTED, LISTED_BIT, Kind, Listed, parse_request
from keyspace_amqp.worker.shim_api import OutboxState
from tests.worker.fakes import Failures, FakeQueue, FakeShim, event
from tests.worker.test_intake import Receiver

OTHER = b"keyspaceamqp:{1}:fallback"
OK, ERROR = (b"+OK\r\n", 0), (b"-ERR closed\r\n", 0)


class Publisher:
    """The parts of the publisher that the outbox uses."""

    def __init__(self) -> None:
        self.storing_all = False
        self.key: bytes | None = KEY
        self.has_memory = False
        self.wants_records = False
        self.changes_list = False
        self.added: list[tuple[tuple[int, int], list[str]]] = []
        self.kept: bytes | None = None
        self.booked: list[tuple[bytes, int, int]] = []
        self.lost = 0
        self.place: tuple[int, int] | None = (10, 1)

    def add_listed(self, events: Sequence[Event], place: tuple[int, int]) -> None:
        self.added.append((place, [event.message_id for event in events]))

    def keep_list(self, key: bytes | None) -> None:
        self.kept = key

    def listed(self, key: bytes, count: int, length: int, lost: int) -> tuple[int, int] | None:
        self.booked.append((key, count, length))
        self.lost += lost
        return self.place


class World:
    def __init__(self) -> None:
        self.now = 100.0
        self.shim = FakeShim()
        self.publisher = Publisher()
        self.queued = 0
        self.inherited: bytes | None = None
        self.jobs: list[tuple[OutboxStep, Callable[[JobResult], None]]] = []
        self.outbox = Outbox(
            self.shim,
            self.publisher,
            self.submit,
            lambda: self.queued,
            lambda: self.inherited,
            lambda: self.now,
        )

    def submit(self, job: Job, done: Callable[[JobResult], None]) -> None:
        (step,) = job.commands
        assert isinstance(step, OutboxStep)
        self.jobs.append((step, done))

    def poll(self, *, enabled: bool = True) -> OutboxStep | None:
        """Return the step of a job that a poll has submitted."""
        before = len(self.jobs)
        self.outbox.poll(enabled=enabled)
        return self.jobs[-1][0] if len(self.jobs) > before else None

    def finish(self, reply: tuple[bytes | None, int], state: OutboxState) -> None:
        """Run the last job."""
        self.shim.outbox = state
        self.jobs[-1][1](JobResult([reply]))

    def listed(self, count: int, length: int, *, number: int = 1, first: int = 1,
               handed: int = 0) -> None:  # fmt: skip
        self.outbox.listed(Listed(0, number, first, length, count, handed, KEY))


# ---- opening -------------------------------------------------------------------------


def test_it_is_held_until_memory_is_in_the_list_and_then_opened() -> None:
    world = World()
    assert world.poll() == OutboxStep([], open=False)
    assert world.poll() is None, "a job is under way"
    world.finish(OK, OutboxState.HELD)
    world.publisher.has_memory = True
    assert world.poll() is None
    assert world.publisher.storing_all
    world.publisher.has_memory, world.queued = False, 1
    assert world.poll() is None
    world.queued = 0
    assert world.poll() == OutboxStep([KEY], open=True)
    world.finish(OK, OutboxState.OPEN)
    assert world.poll() is None
    assert not world.publisher.storing_all


def test_not_while_it_is_off_or_the_list_takes_nothing() -> None:
    world = World()
    assert world.poll(enabled=False) is None
    assert world.outbox.wake_at(enabled=False) is None
    world.publisher.key = None
    assert world.poll() is None
    assert world.outbox.wake_at(enabled=True) is not None, "it looks again"


def test_a_failure_is_followed_by_a_pause() -> None:
    world = World()
    world.poll()
    world.finish(OK, OutboxState.HELD)
    assert world.poll() == OutboxStep([KEY], open=True)
    world.finish(ERROR, OutboxState.CLOSED)
    assert world.poll() is None
    assert not world.publisher.storing_all
    world.now += RETRY_AFTER
    assert world.poll() == OutboxStep([], open=False)


def test_a_hold_that_has_ended_by_itself_is_forgotten() -> None:
    world = World()
    world.poll()
    world.finish(OK, OutboxState.HELD)
    world.publisher.has_memory = True
    world.poll()
    assert world.publisher.storing_all
    world.shim.outbox = OutboxState.CLOSED  # as the main thread does after a while
    world.publisher.key = None
    world.poll()
    assert not world.publisher.storing_all


def test_another_list_takes_the_place_of_the_first() -> None:
    """The publisher keeps the list until the outbox is held."""
    world = World()
    world.outbox.start(KEY)
    world.shim.outbox = OutboxState.OPEN
    assert world.poll() is None
    assert world.publisher.kept == KEY
    world.publisher.changes_list = True
    assert world.poll() == OutboxStep([], open=False)
    assert world.publisher.kept == KEY
    world.finish(OK, OutboxState.HELD)
    assert world.poll() is None, "no list is chosen yet"
    assert world.publisher.kept is None
    world.publisher.key, world.publisher.changes_list = OTHER, False
    assert world.poll() == OutboxStep([OTHER], open=True)
    assert world.publisher.kept == OTHER
    world.finish(OK, OutboxState.OPEN)
    world.poll()
    assert world.publisher.kept == OTHER


def test_a_change_of_the_list_that_takes_long_is_not_given_up_at_once() -> None:
    """Confirms may take longer than a hold: the outbox stays closed for a while. Meanwhile the list
    gets no events, so it becomes empty."""
    world = World()
    world.outbox.start(KEY)
    world.shim.outbox = OutboxState.OPEN
    world.publisher.changes_list = True
    world.poll()
    world.finish(OK, OutboxState.HELD)
    assert world.poll() is None
    assert world.outbox.wake_at(enabled=True) is not None
    world.shim.outbox = OutboxState.CLOSED  # as the main thread does after a while
    assert world.poll() is None
    world.now = 100.0 + CHANGE_EVERY - 0.1
    assert world.poll() is None
    world.now = 100.0 + CHANGE_EVERY
    assert world.poll() == OutboxStep([], open=False)
    world.finish(OK, OutboxState.HELD)
    assert world.poll() == OutboxStep([KEY], open=True)
    world.finish(OK, OutboxState.OPEN)
    assert world.poll() is None
    assert world.outbox.wake_at(enabled=True) == pytest.approx(world.now + CHANGE_EVERY)


def test_a_hold_ends_when_the_list_takes_nothing() -> None:
    world = World()
    world.poll()
    world.finish(OK, OutboxState.HELD)
    world.publisher.key = None
    assert world.poll() is None, "it may be there in a moment"
    world.now += GIVE_UP_AFTER
    assert world.poll() == OutboxStep([b""], open=True)
    world.finish(OK, OutboxState.CLOSED)
    world.publisher.key = KEY
    assert world.poll() is None
    world.now += RETRY_AFTER
    assert world.poll() == OutboxStep([], open=False)


def attempt(world: World, *, lasts: float) -> float:
    """The outbox is opened, and closed by the main thread after so many seconds. Return the seconds
    before that."""
    pause = 0.0
    while world.poll() is None:
        world.now += 0.25
        pause += 0.25
    world.finish(OK, OutboxState.HELD)
    assert world.poll() == OutboxStep([KEY], open=True)
    world.finish(OK, OutboxState.OPEN)
    world.now += lasts
    world.shim.outbox = OutboxState.CLOSED
    return pause


def test_attempts_in_vain_become_rare() -> None:
    """Near maxmemory, for example. Events wait while the outbox is held."""
    world = World()
    assert [attempt(world, lasts=0.125) for _ in range(7)] == [0, 0.5, 1, 2, 4, 8, RETRY_MOST]
    assert attempt(world, lasts=STEADY_AFTER) == RETRY_MOST
    assert attempt(world, lasts=0.125) == 0
    assert attempt(world, lasts=0.125) == RETRY_AFTER


def test_failures_are_forgotten_after_a_long_time_open() -> None:
    """Whoever has ended that time."""
    world = World()
    for _ in range(3):
        assert attempt(world, lasts=0.125) <= 1
    attempt(world, lasts=0.125)
    while world.poll() is None:
        world.now += 0.25
    world.finish(OK, OutboxState.HELD)
    world.poll()
    world.finish(OK, OutboxState.OPEN)
    world.now += 3600
    world.publisher.changes_list = True
    assert world.poll() == OutboxStep([], open=False)
    world.finish(OK, OutboxState.HELD)
    world.shim.outbox = OutboxState.CLOSED
    world.publisher.changes_list = False
    assert attempt(world, lasts=0.125) == RETRY_AFTER


def test_a_hold_has_its_time_from_its_own_start() -> None:
    """The list was out of reach before it."""
    world = World()
    world.outbox.start(KEY)
    world.shim.outbox = OutboxState.OPEN
    world.poll()
    world.publisher.key = None
    world.now += 3
    world.publisher.changes_list = True
    assert world.poll() == OutboxStep([], open=False)
    world.finish(OK, OutboxState.HELD)
    assert world.poll() is None, "its length is about to be read"
    world.publisher.key, world.publisher.changes_list = OTHER, False
    assert world.poll() == OutboxStep([OTHER], open=True)


def test_a_replica_with_events_in_memory() -> None:
    """It cannot store them, so its outbox stays closed."""
    world = World()
    world.publisher.key, world.inherited = None, KEY
    world.publisher.has_memory = True
    assert world.poll() is None
    world.publisher.has_memory = False
    assert world.poll() == OutboxStep([], open=False)
    world.finish(OK, OutboxState.HELD)
    assert world.poll() == OutboxStep([KEY], open=True)
    world.finish(OK, OutboxState.OPEN)
    world.publisher.has_memory = True
    assert world.poll() == OutboxStep([], open=False)
    world.finish(OK, OutboxState.HELD)
    world.now += GIVE_UP_AFTER
    assert world.poll() == OutboxStep([b""], open=True)


def test_memory_that_comes_back_is_older() -> None:
    """After a demotion, events of pushes that may be lost are in memory again."""
    world = World()
    world.outbox.start(KEY)
    world.shim.outbox = OutboxState.OPEN
    world.publisher.has_memory = True
    assert world.poll() == OutboxStep([], open=False)
    world.finish(OK, OutboxState.HELD)
    assert world.poll() is None
    world.publisher.has_memory = False
    assert world.poll() == OutboxStep([KEY], open=True)


def test_a_list_is_not_kept_when_the_outbox_has_closed_itself() -> None:
    world = World()
    world.outbox.start(KEY)
    world.shim.outbox = OutboxState.CLOSED
    assert world.poll() == OutboxStep([], open=False)
    assert world.publisher.kept is None


def test_records_are_asked_for_once() -> None:
    world = World()
    world.shim.outbox = OutboxState.OPEN
    world.outbox.start(KEY)
    world.publisher.wants_records = True
    world.poll()
    world.poll()
    world.poll(enabled=False)
    wants = [heard for heard in world.shim.heard if heard[0] == "outbox_wants"]  # type: ignore[index]
    assert wants == [("outbox_wants", True), ("outbox_wants", False)]


# ---- what was put into the list ----------------------------------------------------------


def test_a_failure_over_the_first_request() -> None:
    """Its elements are booked with those of the next one."""
    world = World()
    listed = world.publisher.listed

    def fail(*_: object) -> None:
        raise RuntimeError

    world.publisher.listed = fail  # type: ignore[method-assign, assignment]
    with pytest.raises(RuntimeError):
        world.listed(2, 2, first=1)
    world.publisher.listed = listed  # type: ignore[method-assign]
    world.listed(3, 5, first=3)
    world.outbox.show()
    assert ("outbox_booked", 5) in world.shim.heard


def test_what_was_booked_is_shown_once() -> None:
    world = World()
    world.listed(3, 3, first=1)
    world.listed(2, 5, first=4)
    assert world.publisher.booked == [(KEY, 3, 3), (KEY, 2, 5)]
    world.outbox.show()
    world.listed(1, 2, first=6)
    world.outbox.show()
    world.outbox.show()
    booked = [heard for heard in world.shim.heard if heard[0] == "outbox_booked"]  # type: ignore[index]
    assert booked == [("outbox_booked", 5), ("outbox_booked", 1)]


def test_the_request_is_read_as_the_shim_lays_it_out() -> None:
    payload = LISTED.pack(7, 1, 2, 9, 3, 3) + KEY
    assert parse_request(Kind.LISTED, payload) == Listed(7, 1, 2, 9, 3, 3, KEY)
    assert LISTED.size == struct.calcsize("=QQQqII")


def in_list(record: bytes) -> bytes:
    """The record of an event that is in the list already."""
    at = HEAD.size - 1
    return record[:at] + bytes([record[at] | LISTED_BIT]) + record[at + 1 :]


class Queue:
    """The intake with an outbox."""

    def __init__(self, together: int = 1000) -> None:
        self.world = World()
        self.queue = FakeQueue(together=together)
        self.receiver = Receiver()
        self.intake = Intake(
            self.queue, self.receiver, Leftovers(6379), "run", Failures(), self.world.outbox
        )

    def push(self, *records: bytes) -> None:
        self.queue.push(*records)

    def hand(self, count: int, *, number: int, first: int) -> None:
        """Hand over events from this number of the queue on."""
        self.world.listed(count, 99, number=number, first=first, handed=count)
        self.push(*(in_list(event(b"l%d" % place)) for place in range(count)))


@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_events_in_the_list_go_to_their_places(together: int) -> None:
    world = Queue(together)
    world.push(event(b"a"), event(b"b"))
    world.hand(4, number=3, first=11)
    world.push(event(b"c"))
    assert world.intake.waiting == 3
    world.intake.take(world.queue.pushed)
    assert [e.key for e in world.receiver.events] == [b"a", b"b", b"c"]
    assert [e.message_id for e in world.receiver.events] == ["run-1", "run-2", "run-7"]
    prefix = world.world.outbox.prefix
    places = [(place, name) for (place, _), names in world.world.publisher.added
              for place, name in enumerate(names, place)]  # fmt: skip
    assert places == [(10 + n, f"{prefix}-{11 + n}") for n in range(4)]
    assert world.queue.length == world.intake.waiting == 0
    taken = sum(heard[1] for heard in world.world.shim.heard if heard[0] == "outbox_taken")  # type: ignore[index]
    assert taken == 4


def test_records_whose_release_has_failed_are_counted_once(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Queue()
    world.hand(3, number=1, first=1)

    def fail(size: int, count: int) -> None:
        monkeypatch.undo()
        raise RuntimeError("injected")

    monkeypatch.setattr(world.queue, "release", fail)
    with pytest.raises(RuntimeError):
        world.intake.take(world.queue.pushed)
    world.intake.take(world.queue.pushed)
    heard = [heard[1] for heard in world.world.shim.heard if heard[0] == "outbox_taken"]  # type: ignore[index]
    assert heard == [3]
    assert world.queue.length == world.intake.waiting == world.world.outbox.balance == 0


def test_a_failure_between_two_changes_of_the_books(monkeypatch: pytest.MonkeyPatch) -> None:
    world = Queue()
    world.hand(2, number=1, first=1)
    world.hand(3, number=3, first=3)
    advance = Handed.advance

    def fail(handed: Handed, count: int) -> None:
        monkeypatch.undo()
        advance(handed, count)
        raise RuntimeError("injected")

    monkeypatch.setattr(Handed, "advance", fail)
    with pytest.raises(RuntimeError):
        world.intake.take(world.queue.pushed)
    world.world.outbox.repair(job_lost=False)
    assert world.intake.waiting == 2  # the first two are about to be released
    following = world.world.outbox.next_handed(3)
    assert following is not None
    assert following.last == 5
    world.intake.take(2)
    world.intake.take(world.queue.pushed)
    assert world.queue.length == world.intake.waiting == world.world.outbox.balance == 0


def test_a_record_that_comes_between_two_looks() -> None:
    """The main thread may be stopped after it has counted a record, before it has filled it."""
    world = Queue()
    world.hand(1, number=1, first=1)
    take, looks = world.queue.take, iter([b""])
    world.queue.take = lambda: next(looks, None) or take()  # type: ignore[method-assign]
    world.intake.take(world.queue.pushed)
    world.intake.take(world.queue.pushed)
    assert world.queue.length == world.intake.waiting == 0
    assert world.world.outbox.balance == 0


@pytest.mark.parametrize("known", [True, False])
def test_events_without_a_place_are_left_to_the_list(known: bool) -> None:
    world = Queue()
    world.world.publisher.place = None
    if known:
        world.hand(3, number=1, first=1)
    else:  # an earlier worker has had the request
        world.push(*(in_list(event(b"l")) for _ in range(3)))
    world.push(event(b"a"))
    world.intake.take(world.queue.pushed)
    assert world.world.publisher.added == []
    assert [e.key for e in world.receiver.events] == [b"a"]
    assert world.queue.length == 0


def test_no_more_than_were_pushed_before_the_turn() -> None:
    world = Queue()
    world.hand(4, number=1, first=1)
    world.intake.take(2)
    assert world.queue.length == 2
    world.intake.take(4)
    assert [place for (place, _), _ in world.world.publisher.added] == [10, 12]


def test_events_in_the_list_need_no_room() -> None:
    world = Queue()
    world.receiver.space = 0
    world.hand(2, number=1, first=1)
    world.push(event(b"a"))
    world.intake.take(world.queue.pushed)
    assert world.queue.length == 1


def test_an_exception_leaves_them_to_the_list() -> None:
    world = Queue()

    def fail(events: list[Event], place: tuple[int, int]) -> None:
        raise RuntimeError

    world.world.publisher.add_listed = fail  # type: ignore[assignment,method-assign]
    world.hand(2, number=1, first=1)
    world.intake.take(2)
    assert world.queue.length == 0


def test_records_are_known_even_if_the_publisher_fails_over_their_request() -> None:
    """They are left to the list, and the next ones are not taken for them."""
    world = Queue()
    listed = world.world.publisher.listed

    def fail(key: bytes, count: int, length: int, lost: int) -> None:
        raise RuntimeError

    world.hand(1, number=1, first=1)
    world.world.publisher.listed = fail  # type: ignore[assignment,method-assign]
    with pytest.raises(RuntimeError):
        world.world.listed(2, 3, number=2, first=2, handed=2)
    world.push(*(in_list(event(b"l%d" % place)) for place in range(2)))
    world.world.publisher.listed = listed  # type: ignore[method-assign]
    world.hand(3, number=4, first=4)
    assert world.world.publisher.lost == 2
    assert world.intake.waiting == 0
    world.intake.take(2)
    world.intake.take(6)
    assert world.queue.length == world.intake.waiting == world.world.outbox.handed_count == 0
    prefix = world.world.outbox.prefix
    assert world.world.publisher.added == [
        ((10, 1), [f"{prefix}-1"]),
        ((10, 1), [f"{prefix}-{n}" for n in (4, 5, 6)]),
    ]
    assert world.world.outbox.balance == 0, "all are released"
    world.world.outbox.show()
    assert ("outbox_booked", 6) in world.world.shim.heard


def test_a_request_that_is_lost_in_an_exception() -> None:
    """Its elements are booked with the next one's. Its records, if they are in the queue, are not
    taken for those of the next one."""
    world = Queue()
    world.hand(1, number=1, first=1)
    world.push(*(in_list(event(b"lost")) for _ in range(5)))
    world.hand(3, number=7, first=7)
    world.world.outbox.show()
    assert ("outbox_booked", 9) in world.world.shim.heard
    assert world.world.publisher.lost == 5
    assert world.intake.waiting == 5
    world.intake.take(4)
    world.intake.take(9)
    assert world.queue.length == world.intake.waiting == world.world.outbox.handed_count == 0
    world.hand(2, number=10, first=10)
    assert world.intake.waiting == 0
    world.intake.take(11)
    prefix = world.world.outbox.prefix
    (_, first), (_, last) = world.world.publisher.added
    assert (first, last) == ([f"{prefix}-1"], [f"{prefix}-10", f"{prefix}-11"])
