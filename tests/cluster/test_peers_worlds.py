"""All nodes agree in the end, over a bus that loses, delays, repeats and reorders messages."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

from hypothesis import given, note, settings
from hypothesis import strategies as st

from keyspace_amqp.cluster.peers import HELLO_EVERY
from keyspace_amqp.tables import times
from tests.cluster.bus import DAY_MS, Bus, Member

Step = Callable[[random.Random], None]
NAMES = ("port", "host", "masks")


class World:
    """A step is one thing that happens. In the end all nodes must agree."""

    def __init__(self, chance: random.Random) -> None:
        self.bus = Bus()
        self.numbers = itertools.count(1)
        self.asked = 0
        self.ran: set[bytes] = set()
        for name in "abcd"[: chance.randint(2, 4)]:
            self.join(name, chance)

    def join(self, name: str, chance: random.Random) -> None:
        self.bus.join(name, skew_ms=chance.choice([0, 0, 1, 2 * DAY_MS, -2 * DAY_MS]))

    def pick(self, chance: random.Random) -> Member:
        return chance.choice(list(self.bus.members.values()))

    def step(self, chance: random.Random) -> None:
        steps: dict[Step, int] = {
            self.node_hears: 20,
            self.node_works: 10,
            self.message_arrives: 40,
            self.message_is_lost: 4,
            self.message_comes_twice: 4,
            self.somebody_sets: 5,
            self.somebody_runs: 3,
            self.time_passes: 8,
            self.cluster_falls_apart: 1,
            self.node_starts_again: 1,
            self.node_joins: 1,
            self.node_seems_to_fail: 1,
        }
        (happen,) = chance.choices(list(steps), weights=list(steps.values()))
        note(f"{self.bus.now:.3f} {happen.__name__}")
        happen(chance)
        for member in self.bus.members.values():
            assert member.spread.rejected == 0

    def node_hears(self, chance: random.Random) -> None:
        self.pick(chance).hear()

    def node_works(self, chance: random.Random) -> None:
        self.pick(chance).work(chance.choice([1, 10]))

    def message_arrives(self, chance: random.Random) -> None:
        if self.bus.on_the_way:
            self.bus.arrive(chance.randrange(len(self.bus.on_the_way)))

    def message_is_lost(self, chance: random.Random) -> None:
        if self.bus.on_the_way:
            del self.bus.on_the_way[chance.randrange(len(self.bus.on_the_way))]

    def message_comes_twice(self, chance: random.Random) -> None:
        if self.bus.on_the_way:
            self.bus.arrive(chance.randrange(len(self.bus.on_the_way)), keep=True)

    def somebody_sets(self, chance: random.Random) -> None:
        names = chance.sample(NAMES, chance.choice([1, 1, 2]))
        member = self.pick(chance)
        known = {name: register.version for name, register in member.spread.registers.items()}
        registers = member.set(**{name: b"%d" % next(self.numbers) for name in names})
        assert all(register.version > known.get(n, (0, "")) for n, register in registers.items())
        self.asked += 1

    def somebody_runs(self, chance: random.Random) -> None:
        word = b"%d" % next(self.numbers)
        self.pick(chance).run(word)
        self.ran.add(word)
        self.asked += 1

    def time_passes(self, chance: random.Random) -> None:
        self.bus.now += chance.choice([0, 0.01, 0.6, 1.1])

    def cluster_falls_apart(self, chance: random.Random) -> None:
        self.bus.apart = {name for name in self.bus.members if chance.random() < 0.3}

    def node_starts_again(self, chance: random.Random) -> None:
        member = self.pick(chance)
        self.asked -= len(member.spread._questions)  # these are never answered
        member.begin()

    def node_joins(self, chance: random.Random) -> None:
        name = "efgh"[len(self.bus.members) - 4 :][:1]
        if name and name not in self.bus.members:
            self.join(name, chance)

    def node_seems_to_fail(self, chance: random.Random) -> None:
        self.bus.failing = {name for name in self.bus.members if chance.random() < 0.1}
        self.bus.tell_topology()

    def rest(self) -> None:
        self.bus.apart = self.bus.failing = set()
        self.bus.tell_topology()
        self.bus.settle(times.ASK + 2 * HELLO_EVERY)
        members = list(self.bus.members.values())
        first = members[0].spread
        for member in members:
            assert member.spread.registers == first.registers
            assert member.spread.config_version == first.config_version
            newest = {name: register.value for name, register in first.registers.items()}
            # A value of redis.conf of which no node has a version stays as it is.
            assert member.values | newest == member.values
            assert len(member.ran) == len(set(member.ran)), "done twice"
            assert {word for _, word in member.ran} <= self.ran
            for outcome in member.outcomes:
                assert not outcome.answers.keys() & outcome.missing.keys()
                assert member.name not in {*outcome.answers, *outcome.missing}
                assert set(outcome.missing.values()) <= {"no answer", "it is failing"}
        assert sum(len(member.outcomes) for member in members) == self.asked


stories = st.integers(0, 200).flatmap(
    lambda count: st.lists(st.integers(0, 2**32), min_size=count, max_size=count)
)


@settings(max_examples=250)
@given(seed=st.integers(0, 2**32), story=stories)
def test_all_nodes_agree_in_the_end(seed: int, story: list[int]) -> None:
    world = World(random.Random(seed))
    for number in story:
        world.step(random.Random(number))
    world.rest()
