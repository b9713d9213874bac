"""A publisher, its list, and a clock that only tests move: for the examples."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.fallback import to_element
from keyspace_amqp.jobs import Command, Job
from keyspace_amqp.message import Event
from keyspace_amqp.publisher.actions import Action, Flushed, Log, Send, Submit
from keyspace_amqp.publisher.publisher import Publisher
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.values import replace
from tests.publisher.simulated import (
    SimulatedList,
    SimulatedSlots,
    Watched,
    assert_books_balance,
    event_of,
    number_of,
    wall_at,
)


class Bench:
    """A publisher with a clock that only tests move, and with its list. The broker
    is the test itself. Events are numbered from 1; `found` of them are in the
    list at the start."""

    def __init__(
        self, *, found: int = 0, jitter: float = 1.0, primary: bool = True, **parameters: Any
    ) -> None:
        self.now = 1000.0
        self.numbers = itertools.count(1)
        self.list = SimulatedList()
        self.list.writable = primary
        self.list.elements = [to_element(event_of(next(self.numbers))) for _ in range(found)]
        self.config = replace(DEFAULTS, **parameters)
        self.publisher = Watched(self.config, lambda: self.now, self.wall, lambda: jitter)
        self.publisher.set_role(primary=primary, loading=False)
        self.job: Job | None = None
        self.actions: list[Action] = []  # all so far

    def wall(self) -> int:
        return wall_at(self.now)

    # The world's side

    def emit(self, count: int = 1, key: bytes = b"k") -> None:
        self.publisher.add([event_of(next(self.numbers), key) for _ in range(count)])

    def poll(self, *, more: bool = False, most: int | None = None) -> list[Action]:
        assert_books_balance(self.publisher)
        actions = self.publisher.poll(more=more, most=most)
        for action in actions:
            if isinstance(action, Submit):
                assert self.job is None, "two jobs at once"
                self.job = action.job
        self.actions += actions
        assert_books_balance(self.publisher)
        return actions

    def run_job(self) -> None:
        assert self.job is not None
        job, self.job = self.job, None
        self.publisher.job_done(self.list.run(job))

    def settle(self) -> list[Action]:
        """Polls and runs jobs until nothing is to be done at this time."""
        before = len(self.actions)
        for _ in range(1000):
            actions = self.poll()
            if self.job is not None:
                self.run_job()
            elif not actions:
                return self.actions[before:]
        raise AssertionError("never settles")

    def wait(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.settle()

    def link_up(self) -> list[Action]:
        self.publisher.link_up()
        return self.settle()

    def ack(self, tag: int, *, multiple: bool = False) -> list[Action]:
        self.publisher.acked(*((tag, ()) if multiple else (0, (tag,))))
        return self.settle()

    def nack(self, tag: int, *, multiple: bool = False) -> list[Action]:
        self.publisher.nacked(tag, multiple)
        return self.settle()

    def lose_link(self) -> list[Action]:
        self.publisher.link_down("connection reset")
        return self.settle()

    def seconds_until(self, kind: type[Action]) -> float:
        """Sleeps as the worker does until a poll gives such an action."""
        start = self.now
        for _ in range(1000):
            if any(isinstance(action, kind) for action in self.settle()):
                return self.now - start
            at = self.publisher.wake_at()
            assert at is not None, "it would sleep for ever"
            self.now = max(at, self.now)
        raise AssertionError(f"no {kind.__name__}")

    # Results

    def count(self, stat: Stat) -> int:
        return self.publisher.gauges().get(stat, self.publisher.counts[stat])

    @property
    def stored(self) -> list[int | None]:
        return self.list.numbers


def sent(actions: Iterable[Action]) -> list[int]:
    """The numbers of the events that these actions send."""
    sends = [action for action in actions if isinstance(action, Send)]
    return [number_of(event) for send in sends for event in send.events]


def commands(actions: Iterable[Action]) -> list[str]:
    """The Redis commands of the jobs among these actions."""
    jobs = [action.job for action in actions if isinstance(action, Submit)]
    return [
        command.name for job in jobs for command in job.commands if isinstance(command, Command)
    ]


def texts(actions: Iterable[Action]) -> list[str]:
    """The lines for the log."""
    return [action.text for action in actions if isinstance(action, Log)]


def connected(*, found: int = 0, **parameters: Any) -> Bench:
    """A bench whose link is up, with nothing on its way."""
    bench = Bench(found=found, **parameters)
    bench.publisher.connect()
    bench.settle()
    bench.link_up()
    return bench


def away(*, found: int = 0, **parameters: Any) -> Bench:
    """A bench whose broker is away for longer than a test takes."""
    bench = Bench(found=found, **parameters)
    bench.publisher.connect()
    bench.settle()
    for _ in range(20):
        bench.lose_link()
    return bench


def flushed(actions: Iterable[Action]) -> list[Flushed]:
    return [action for action in actions if isinstance(action, Flushed)]


def of_number(number: int, actions: Iterable[Action]) -> Event:
    """The event with this number in the messages that these actions send."""
    sends = [action for action in actions if isinstance(action, Send)]
    (event,) = [e for send in sends for e in send.events if number_of(e) == number]
    return event


FIRST, SECOND, THIRD, *_ = SimulatedSlots.KEYS


class SlotsBench(Bench):
    """A bench in a cluster. The test moves slots and tells the publisher of them. Each list has the
    given number of elements at the start, numbered in the order given."""

    list: SimulatedSlots

    def __init__(self, lengths: dict[bytes, int] | None = None, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.list = SimulatedSlots()
        for key, length in (lengths or {}).items():
            elements = [to_element(event_of(next(self.numbers))) for _ in range(length)]
            self.list.here[key].elements = elements
        self.publisher = Publisher(self.config, lambda: self.now, self.wall, lambda: 1.0)
        self.publisher.set_role(primary=True, loading=False)

    def tell(self, home: bytes | None) -> list[Action]:
        """Tells the publisher of all lists that the node has."""
        self.publisher.lists.found(self.list.lengths(self.list.served))
        self.publisher.lists.set_lists(home, self.list.serves)
        return self.settle()

    def leave(self, key: bytes) -> None:
        """The slot moves to another node, with its list."""
        self.list.take_away(key)
        self.list.served.discard(key)

    def keys_of_jobs(self, actions: Iterable[Action]) -> set[bytes]:
        jobs = [action.job for action in actions if isinstance(action, Submit)]
        commands = [c for job in jobs for c in job.commands if isinstance(c, Command)]
        return {command.arguments[0] for command in commands}
