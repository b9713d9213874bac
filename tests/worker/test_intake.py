"""From the queue to the publisher. Without the compiled module."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import pytest

from keyspace_amqp.config import DEFAULTS, Config
from keyspace_amqp.failures import STRIKES
from keyspace_amqp.message import Event
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.worker import records
from keyspace_amqp.worker.intake import Intake
from tests.worker.fakes import Failures, FakeQueue, event, keys_of

CONFIG = DEFAULTS
SIZE = len(event(b"k"))


class Receiver:
    """The publisher: `space` events fit, each of which takes as much memory as its record."""

    def __init__(self, space: int = 10_000) -> None:
        self.space = space
        self.can_only_wait = False
        self.waiting: list[Event] = []
        self.batches: list[int] = []
        self.dropped: list[bytes] = []
        self.given_up = 0
        self.pressure: list[bool] = []

    def room(self) -> int:
        return self.space - len(self.waiting)

    def add(self, events: Sequence[Event]) -> None:
        self.waiting += events
        self.batches.append(len(events))

    def drop_oldest(self, size: int, keep: int = 0) -> int:
        count = 0
        while len(self.waiting) > keep and count * SIZE < size:
            self.dropped.append(self.waiting.pop(0).key)
            count += 1
        return count

    def give_up(self) -> None:
        self.given_up += 1

    def set_pressure(self, pressure: bool) -> None:
        self.pressure.append(pressure)

    def gauges(self) -> Mapping[Stat, int]:
        return {Stat.QUEUE_BYTES: SIZE * len(self.waiting)}


class World:
    def __init__(self, *, space: int = 10_000, together: int = 1000, limit: int = 10**6) -> None:
        self.queue = FakeQueue(limit, together)
        self.receiver = Receiver(space)
        self.failures = Failures()
        self.intake = Intake(self.queue, self.receiver, "run", CONFIG, self.failures)

    def push(self, keys: str) -> None:
        self.queue.push(*(event(key.encode()) for key in keys))

    def take(self) -> None:
        self.intake.take(self.queue.pushed)

    @property
    def keys(self) -> str:
        return b"".join(keys_of(self.receiver.waiting)).decode()

    @property
    def numbers(self) -> list[int]:
        return [int(e.message_id.partition("-")[2]) for e in self.receiver.waiting]


def with_masks(*masks: bytes) -> Config:
    return dataclasses.replace(CONFIG, masks=masks)


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
    """Before a later event, masks may have been changed by a request that is not read yet."""
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


# ---- masks and databases -----------------------------------------------------------------


def test_new_masks_hold_for_the_events_behind_the_change() -> None:
    world = World()
    world.push("aabb")
    world.intake.configure(with_masks(b"b"), 3)
    world.push("aab")
    world.intake.configure(with_masks(b"a"), 7)
    world.push("ab")
    world.take()
    assert world.keys == "aab" + "b" + "b" + "a"
    assert world.numbers == [1, 2, 3, 4, 7, 8]


def test_new_masks_hold_if_nothing_waits() -> None:
    world = World()
    world.push("ab")
    world.take()
    world.intake.configure(with_masks(b"b"), 2)
    world.push("ab")
    world.take()
    assert world.keys == "abb"


def test_the_last_of_several_changes_at_one_place() -> None:
    world = World()
    for masks in ((b"b",), (b"ALL",), (b"c",)):
        world.intake.configure(with_masks(*masks), 0)
    world.push("abc")
    world.take()
    assert world.keys == "c"


def test_new_databases() -> None:
    world = World()
    world.intake.configure(dataclasses.replace(CONFIG, databases="1"), 0)
    world.queue.push(event(b"a"), event(b"b", db=1))
    world.take()
    assert world.keys == "b"


def test_other_parameters_change_no_filter() -> None:
    world = World()
    world.intake.configure(with_masks(b"a"), 2)
    world.intake.configure(dataclasses.replace(with_masks(b"a"), port=2), 0)
    world.push("xbab")
    world.take()
    assert world.keys == "xba"


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


def test_the_oldest_are_given_up_when_nothing_else_helps() -> None:
    world = World(space=8, limit=8 * SIZE)
    world.receiver.can_only_wait = True
    world.push("abcdefgh")
    world.take()
    assert b"".join(world.receiver.dropped) == b"ab"
    assert world.keys == "cdefgh"


def test_nothing_is_given_up_below_seven_eighths() -> None:
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


def test_a_publisher_without_room_gives_the_oldest_up() -> None:
    world = World(space=4, limit=8 * SIZE)
    world.push("abcdefgh")
    world.take()
    assert b"".join(world.receiver.dropped) == b"ab"
    assert (world.keys, world.intake.waiting) == ("cdef", 2)


def test_the_newest_stays_however_large_it_is() -> None:
    """A single event may need nearly the whole limit."""
    world = World(limit=SIZE)
    world.receiver.can_only_wait = True
    world.push("a")
    world.take()
    assert (world.receiver.dropped, world.keys) == ([], "a")


# ---- exceptions ------------------------------------------------------------------------------


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler fails over events with the key `!`."""

    def compiled(masks: object) -> object:
        def matches(data: bytes, start: int, end: int) -> bool:
            if data[start:end] == b"!":
                raise RuntimeError("broken on purpose")
            return True

        return matches

    monkeypatch.setattr(records, "compile_masks", compiled)


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
    assert world.failures.told == 3 * ["the handler cannot parse an event"]


@pytest.mark.usefixtures("poison")
def test_failures_count_only_in_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.push("!")
    for _ in range(STRIKES - 1):
        with pytest.raises(RuntimeError):
            world.take()
    monkeypatch.setattr(records, "compile_masks", lambda masks: lambda data, start, end: True)
    world.intake.configure(with_masks(b"x"), 0)
    world.take()
    assert (world.keys, world.receiver.given_up) == ("!", 0)


# ---- the end ---------------------------------------------------------------------------------


def test_the_rest() -> None:
    world = World(space=1, together=2)
    world.push("abcde")
    world.take()
    rest = world.intake.take_rest(lambda: False)
    assert (world.keys, keys_of(rest)) == ("a", [b"b", b"c", b"d", b"e"])
    assert [e.message_id for e in rest] == [f"run-{n}" for n in (2, 3, 4, 5)]
    assert world.intake.waiting == 0


def test_what_is_too_late_stays() -> None:
    world = World(together=2)
    world.push("abcde")
    late = iter([False, False, True])
    assert keys_of(world.intake.take_rest(lambda: next(late))) == [b"a", b"b", b"c", b"d"]
    assert world.intake.waiting == 1
