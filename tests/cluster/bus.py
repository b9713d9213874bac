"""Nodes on a bus that a test can cut, delay and repeat, with a clock that only tests move."""

from __future__ import annotations

import collections
import itertools
from collections.abc import Mapping, Sequence

from keyspace_amqp.cluster.peers import (
    Action,
    ApplyRegisters,
    Outcome,
    Peers,
    RunCommand,
    SendToPeer,
)
from keyspace_amqp.cluster.topology import Node, Topology
from keyspace_amqp.cluster.wire import Register, unpack

DAY_MS = 24 * 3600 * 1000


class Bus:
    """The time, the members, and the messages that are on their way."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.members: dict[str, Member] = {}
        self.on_the_way: list[tuple[str, str, bytes]] = []  # sender, target, data
        self.sent: list[bytes] = []  # all there ever were
        self.apart: set[str] = set()  # these hear each other only
        self.failing: set[str] = set()
        self.lives = itertools.count(1)

    def join(self, *names: str, skew_ms: int = 0) -> Member:
        for name in names:
            self.members[name] = Member(self, name, skew_ms)
        self.tell_topology()
        return self.members[names[0]]

    def tell_topology(self) -> None:
        nodes = {n: Node(n, f"{n}:7000", True, n in self.failing) for n in self.members}
        for name, member in self.members.items():
            member.topology = Topology(name, nodes, frozenset())
            member.spread.set_topology(member.topology)

    def send(self, sender: str, target: str, data: bytes) -> None:
        self.sent.append(data)
        targets = [target] if target else [name for name in self.members if name != sender]
        self.on_the_way += [(sender, name, data) for name in targets]

    def arrive(self, place: int, *, keep: bool = False) -> None:
        """A message arrives, and perhaps once more later."""
        sender, target, data = self.on_the_way[place]
        if not keep:
            del self.on_the_way[place]
        apart = (sender in self.apart) is not (target in self.apart)
        if not apart and target in self.members:
            self.members[target].spread.received(sender, data)

    def settle(self, seconds: float = 0) -> None:
        """All members poll and send for a while; no message is lost."""
        until = self.now + seconds
        while True:
            while any(member.turn() for member in self.members.values()) or self.on_the_way:
                while self.on_the_way:
                    self.arrive(0)
            at = [member.spread.wake_at() for member in self.members.values()]
            self.now = max(self.now, min(time for time in at if time is not None))
            if self.now > until:
                self.now = until
                return


class Member:
    """A node: its Peers, with the worker's part. A request of another node is carried out a
    little later, in its turn."""

    def __init__(self, bus: Bus, name: str, skew_ms: int) -> None:
        self.bus, self.name, self.skew_ms = bus, name, skew_ms
        self.topology = Topology(name, {}, frozenset())
        self.values: dict[str, bytes] = {}  # as they are set here
        self.ran: list[tuple[str, bytes]] = []  # in which load, and the command
        self.outcomes: list[Outcome] = []
        self.begin()

    def begin(self) -> None:
        """The module is loaded; the parameters are those of redis.conf."""
        self.life = f"{next(self.bus.lives):016x}"
        self.waiting: collections.deque[ApplyRegisters | RunCommand] = collections.deque()
        self.spread = Peers(
            self.life,
            lambda: self.bus.now,
            lambda: int(self.bus.now * 1000) + self.skew_ms,
        )
        self.spread.set_topology(self.topology)

    def turn(self) -> list[Action]:
        actions = self.spread.poll()
        for action in actions:
            if isinstance(action, SendToPeer):
                self.bus.send(self.name, action.target, action.data)
            else:
                self.waiting.append(action)
        self.work(len(self.waiting))
        return actions

    def hear(self) -> None:
        """A turn that has no time for the requests of other nodes."""
        for action in self.spread.poll():
            if isinstance(action, SendToPeer):
                self.bus.send(self.name, action.target, action.data)
            else:
                self.waiting.append(action)

    def work(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting))):
            action = self.waiting.popleft()
            if isinstance(action, RunCommand):
                self.ran += [(self.life, word) for word in action.words]
                self.spread.answer(action.question, self.name, None)
                continue
            self.values |= self.spread.merge(action.registers)
            if action.question is not None:
                self.spread.answer(action.question, None, None)

    def set(self, **values: bytes) -> Mapping[str, Register]:
        """CONFIG SET of a client."""
        registers = self.spread.assign(values)
        self.values |= values
        self.spread.tell(registers, self.outcomes.append)
        return registers

    def run(self, *words: bytes) -> None:
        self.spread.run(words, self.outcomes.append)


def three() -> tuple[Bus, Member, Member, Member]:
    bus = Bus()
    bus.join("a", "b", "c")
    return bus, *bus.members.values()


def kinds(messages: Sequence[bytes]) -> list[str]:
    return [unpack(data)["kind"] for data in messages]
