"""From the queue to the publisher. Without the compiled module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from keyspace_amqp.failures import STRIKES
from keyspace_amqp.message import EVENT_BYTES, Event
from keyspace_amqp.publisher.ledger import Ledger
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.worker import records
from keyspace_amqp.worker.intake import Intake
from keyspace_amqp.worker.leftovers import Leftovers
from tests.publisher.simulated import SimulatedParcel
from tests.worker.fakes import Failures, FakeQueue, NoOutbox, event, keys_of

SIZE = len(event(b"k"))


class Receiver:
    """The publisher: `space` events fit."""

    def __init__(self, space: int = 10_000) -> None:
        self.space = space
        self.ledger = Ledger(lambda: 0.0, lambda: 0)
        self.can_only_wait = False
        self.events: list[Event] = []
        self.batches: list[int] = []
        self.dropped: list[bytes] = []
        self.given_up = 0
        self.pressure: list[bool] = []
        self.recovering = False
        self.express: int | None = None
        self.parcels: list[list[Event]] = []

    def room(self) -> int:
        return self.space - len(self.events)

    def add(self, events: Sequence[Event]) -> None:
        self.events += events
        self.ledger.matched(len(events))
        self.batches.append(len(events))

    def drop_oldest(self, size: int, keep: int = 0) -> int:
        count = 0
        while len(self.events) > keep and count * SIZE < size:
            self.dropped.append(self.events.pop(0).key)
            count += 1
        return count

    def recover(self, events: Sequence[Event], *, more: bool) -> None:
        self.events += events
        self.recovering = more

    def drop_untaken(self, count: int) -> None:
        self.ledger.matched(count)
        self.ledger.queue_full(count)

    def give_up(self, *, leftover: bool) -> None:
        (self.ledger.found if leftover else self.ledger.matched)(1)
        self.given_up += 1

    def set_pressure(self, pressure: bool) -> None:
        self.pressure.append(pressure)

    def express_room(self, most: int | None) -> int | None:
        return self.express if most is None or self.express is None else min(most, self.express)

    def add_parcel(self, parcel: SimulatedParcel, frames: bytes) -> None:
        assert frames == b"frames"
        assert self.express is not None
        self.express -= parcel.count
        self.parcels += [parcel.events()]

    @property
    def waiting(self) -> tuple[int, int]:
        size = sum(EVENT_BYTES + len(e.name) + len(e.key) for e in self.events)
        return len(self.events), size


class Packer:
    """Makes a parcel of the next two events."""

    is_ready = True

    def __init__(self) -> None:
        self.fails = False

    def pack(self, data: bytes, numbers: range) -> tuple[Any, bytes, int] | None:
        if self.fails:
            raise RuntimeError("broken on purpose")
        events, size = records.Reader("run").parse(data, numbers[:2])
        return SimulatedParcel(events), b"frames", size


class World:
    def __init__(
        self, *, space: int = 10_000, together: int = 1000, limit: int = 10**6,
        packer: Packer | None = None,
    ) -> None:  # fmt: skip
        self.queue = FakeQueue(limit, together)
        self.receiver = Receiver(space)
        self.failures = Failures()
        self.leftovers = Leftovers(6379)
        self.intake = Intake(
            self.queue, self.receiver, self.leftovers, "run", self.failures, NoOutbox(),
            packer,  # type: ignore[arg-type]
        )  # fmt: skip

    def push(self, keys: str) -> None:
        self.queue.push(*(event(key.encode()) for key in keys))

    def take(self) -> None:
        self.intake.take(self.queue.pushed)

    @property
    def keys(self) -> str:
        return b"".join(keys_of(self.receiver.events)).decode()

    @property
    def numbers(self) -> list[int]:
        return [int(e.message_id.partition("-")[2]) for e in self.receiver.events]


@pytest.mark.parametrize("together", [1, 2, 3, 100])
def test_all_that_there_are(together: int) -> None:
    world = World(together=together)
    world.push("abcde")
    assert world.intake.waiting == 5
    world.take()
    world.push("fg")
    world.take()
    assert world.keys == "abcdefg"
    assert world.numbers == [1, 2, 3, 4, 5, 6, 7]
    assert (world.queue.released, world.intake.waiting) == (7, 0)


def test_not_what_came_after_the_look() -> None:
    """A turn ends, however fast events come; and before a later event, the main thread may have
    done something of which a request tells that is not read yet."""
    world = World()
    world.push("abc")
    world.intake.take(2)
    assert world.keys == "ab"
    world.intake.take(2)
    assert world.keys == "ab"


def test_as_many_as_there_is_room_for() -> None:
    world = World(space=3)
    world.push("abcde")
    world.take()
    assert (world.keys, world.intake.waiting) == ("abc", 2)
    world.receiver.space = 4
    world.take()
    assert (world.keys, world.intake.waiting) == ("abcd", 1)


def test_events_are_given_back_when_they_are_safe() -> None:
    """Events that the publisher could not take in are taken again."""
    world = World()
    world.push("ab")

    def add(events: Sequence[Event]) -> None:
        raise RuntimeError

    world.receiver.add = add  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        world.take()
    assert world.queue.released == 0
    del world.receiver.add
    world.take()
    assert (world.keys, world.numbers) == ("ab", [1, 2])


def test_a_later_worker_goes_on_with_the_numbers() -> None:
    """Its queue is that of the worker before it. It counts what it has taken itself."""
    world = World()
    world.push("ab")
    world.take()
    later = Receiver(10_000)
    intake = Intake(world.queue, later, world.leftovers, "later", world.failures, NoOutbox())
    assert (world.intake.taken, intake.taken) == (2, 0)
    world.push("cdef")
    intake.take(5)
    assert keys_of(later.events) == [b"c", b"d", b"e"]
    assert [e.message_id for e in later.events] == [f"later-{n}" for n in (3, 4, 5)]
    assert intake.taken == 3


# ---- memory --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("waiting", "told"), [(1, [False]), (2, []), (4, []), (5, [True])], ids=str
)
def test_pressure(waiting: int, told: list[bool]) -> None:
    """Above half of the limit events go to the list, until memory is below a quarter."""
    world = World(limit=8 * SIZE)
    world.push("abcdefgh"[:waiting])
    world.take()
    assert world.receiver.pressure == told


def test_memory_is_in_the_queue_and_in_the_publisher() -> None:
    world = World(space=2, limit=100 * SIZE)
    world.push("abcde")
    assert world.intake.memory() == 5 * SIZE
    world.take()
    assert world.intake.memory() == 5 * SIZE


@pytest.mark.parametrize(("count", "relaxed"), [(1, True), (2, False)])
def test_relaxed(count: int, relaxed: bool) -> None:
    world = World(limit=8 * SIZE)
    world.push("ab"[:count])
    assert world.intake.relaxed is relaxed


def test_events_that_can_only_wait_stay_in_the_queue() -> None:
    """Those above what the publisher has room for; they do not become objects."""
    world = World(space=2, together=3)
    world.receiver.can_only_wait = True
    world.push("abcdefg")
    world.intake.take(6)
    assert (world.keys, world.queue.length, world.intake.waiting) == ("ab", 5, 5)
    assert world.receiver.ledger.counts[Stat.EVENTS_MATCHED] == world.intake.taken == 2
    assert world.intake.memory() == 7 * SIZE
    world.receiver.can_only_wait = False
    world.receiver.space = 9
    world.take()
    assert (world.keys, world.numbers) == ("abcdefg", [1, 2, 3, 4, 5, 6, 7])


def test_while_events_can_leave_they_wait_in_the_queue() -> None:
    """Each is parsed once, not twice."""
    world = World(space=2)
    world.push("abcd")
    world.take()
    assert (world.keys, world.queue.length) == ("ab", 2)


@pytest.mark.parametrize("together", [1, 2, 100])
def test_the_oldest_are_given_up_when_nothing_else_helps(together: int) -> None:
    world = World(space=4, limit=8 * SIZE, together=together)
    world.receiver.can_only_wait = True
    world.push("abcdefgh")
    world.take()
    assert world.receiver.ledger.counts[Stat.DROPPED_QUEUE_FULL] == 2  # the publisher had none
    assert (world.keys, world.queue.length) == ("cdef", 2)
    world.push("ijk")
    world.take()
    assert b"".join(world.receiver.dropped) == b"cde"
    assert (world.keys, world.queue.length) == ("fghi", 2)


@pytest.mark.parametrize("together", [1, 2, 100])
def test_the_oldest_of_the_queue_are_given_up_when_the_others_are_sent(
    together: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The publisher may have sent all that it has, or store it just now."""
    world = World(space=2, limit=8 * SIZE, together=together)
    monkeypatch.setattr(world.receiver, "drop_oldest", lambda size, keep: 0)
    world.receiver.can_only_wait = True
    world.push("ab")
    world.take()
    world.push("cdefghij")
    world.take()
    counts = world.receiver.ledger.counts
    assert counts[Stat.DROPPED_QUEUE_FULL] == 4
    assert counts[Stat.EVENTS_MATCHED] == world.intake.taken == 6
    world.receiver.space = 99
    world.take()
    assert (world.keys, world.numbers) == ("ab" + "ghij", [1, 2, 7, 8, 9, 10])


def test_nothing_newer_than_the_look_is_given_up() -> None:
    world = World(space=0, limit=4 * SIZE)
    world.receiver.can_only_wait = True
    world.push("abcdef")
    world.intake.take(2)
    assert world.receiver.ledger.counts[Stat.DROPPED_QUEUE_FULL] == 2
    assert world.queue.length == 4


def test_objects_cost_no_events() -> None:
    """An event as objects takes many times the memory of its record: only the record counts."""
    world = World(space=8, limit=8 * SIZE)
    world.receiver.can_only_wait = True
    world.push("abcdef")
    world.take()
    assert (world.receiver.dropped, world.keys) == ([], "abcdef")


def test_nothing_is_given_up_while_events_can_leave() -> None:
    world = World(space=8, limit=8 * SIZE)
    world.push("abcdefgh")
    world.intake.take(7)
    assert (world.receiver.dropped, world.keys) == ([], "abcdefg")


def test_the_newest_stays_however_large_it_is() -> None:
    """A single event may need nearly the whole limit."""
    for space in (0, 1):
        world = World(space=space, limit=SIZE)
        world.receiver.can_only_wait = True
        world.push("a")
        world.take()
        assert (world.receiver.dropped, world.keys) == ([], "a"[:space])
        assert world.queue.length == 1 - space


# ---- exceptions ------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler fails over events with the key `!`."""

    def make(*fields: Any) -> Event:
        event = Event(*fields)
        if event.key == b"!":
            raise RuntimeError("broken on purpose")
        return event

    monkeypatch.setattr(records, "Event", make)


@pytest.mark.usefixtures("poison")
def test_an_event_over_which_the_handler_fails() -> None:
    """The others arrive; this one is tried again, and then dropped."""
    world = World()
    world.push("ab!c!!d")
    for _ in range(STRIKES - 1):
        with pytest.raises(RuntimeError):
            world.take()
        assert (world.keys, world.receiver.given_up) == ("ab", 0)
    for _ in range(2 * (STRIKES - 1)):
        with pytest.raises(RuntimeError):
            world.take()
        assert world.keys == "abc"
    world.take()
    assert (world.keys, world.numbers) == ("abcd", [1, 2, 4, 7])
    assert (world.receiver.given_up, world.intake.waiting) == (3, 0)
    assert world.receiver.ledger.counts[Stat.EVENTS_MATCHED] == world.intake.taken == 7
    assert world.failures.told == 3 * ["the handler cannot parse an event"]


@pytest.mark.usefixtures("poison")
def test_failures_count_only_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.push("!")
    for _ in range(STRIKES - 1):
        with pytest.raises(RuntimeError):
            world.take()
    monkeypatch.setattr(records, "Event", Event)
    world.take()
    assert (world.keys, world.receiver.given_up) == ("!", 0)


# ---- parcels --------------------------------------------------------------------------------


def test_events_go_as_parcels_while_there_is_room() -> None:
    world = World(packer=Packer())
    world.receiver.express = 5
    world.push("abcdefg")
    world.take()
    assert [[e.key for e in events] for events in world.receiver.parcels] == [
        [b"a", b"b"], [b"c", b"d"], [b"e"],
    ]  # fmt: skip
    assert world.keys == ""
    assert world.intake.waiting == 2
    assert world.receiver.ledger.counts[Stat.EVENTS_MATCHED] == 0  # the publisher counts them
    world.receiver.express = 2
    assert world.intake.room(None) == 2
    assert world.intake.room(0) == 0
    world.intake.take(world.queue.pushed, 0)
    assert world.intake.waiting == 2
    world.intake.take(world.queue.pushed, 1)
    assert world.intake.waiting == 0


def test_without_the_express_they_go_one_by_one() -> None:
    world = World(packer=Packer())
    world.push("abc")
    world.take()
    assert world.keys == "abc"
    assert world.intake.room(0) == world.receiver.room()


def test_events_over_which_the_packer_fails_go_one_by_one() -> None:
    packer = Packer()
    world = World(packer=packer)
    world.receiver.express = 10
    packer.fails = True
    world.push("abc")
    world.take()
    assert world.keys == "abc"
    assert world.failures.told == ["the handler cannot lay out messages"]


def test_no_room_in_the_express_drops_nothing() -> None:
    """There is more in a moment. Meanwhile the publisher takes events one by one, if they take too
    much memory."""
    world = World(packer=Packer(), limit=10 * SIZE)
    world.receiver.express = 0
    world.push("abc")
    world.take()
    assert world.intake.waiting == 3
    world.push("defghij")
    world.take()
    assert world.keys == "abcdefghij"
    assert not world.receiver.dropped
