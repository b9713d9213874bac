"""The worker's side of the outbox as a whole, in simulated time: publisher, intake, jobs, and when
the outbox opens."""

from __future__ import annotations

import collections

import pytest

from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.fallback import to_element
from keyspace_amqp.publisher.actions import Connect, Send, Submit
from keyspace_amqp.publisher.publisher import Publisher
from keyspace_amqp.values import replace
from keyspace_amqp.worker.intake import Intake
from keyspace_amqp.worker.job_queue import JobQueue
from keyspace_amqp.worker.outbox import Outbox
from keyspace_amqp.worker.records import Listed
from tests.publisher.outbox_worlds import File
from tests.publisher.simulated import SimulatedSlots, event_of, wall_at
from tests.publisher.simulated_outbox import CLOSED, OPEN, MainThread


class Node:
    """A node of a cluster with an outbox, in simulated time; the broker confirms after `latency`
    seconds; None: it is away."""

    def __init__(self, latency: float | None, mode: str = "atomic") -> None:
        self.now, self.latency, self.number = 1000.0, latency, 0
        self.list = SimulatedSlots()
        self.config = replace(DEFAULTS, outbox=mode)
        self.publisher = Publisher(
            self.config, lambda: self.now, lambda: wall_at(self.now), lambda: 0.5, clustered=True
        )
        self.main = MainThread(self.list, lambda: self.now)
        self.main.set_mode(mode, has_list=True)
        shim = self.main.shim
        self.jobs = JobQueue(shim, lambda: None, self.book)
        self.inherited: bytes | None = None
        self.outbox = Outbox(
            shim, self.publisher.outbox, self.jobs.submit, lambda: self.intake.waiting,
            lambda: self.inherited, lambda: self.now,
        )  # fmt: skip
        shim.prefix = self.outbox.prefix
        self.intake = Intake(
            shim.events,
            self.publisher,
            File(collections.deque()),
            "run",
            lambda _="": None,
            self.outbox,
        )  # type: ignore[arg-type]
        self.outbox.start(b"")
        self.sent: list[int] = []
        self.told: collections.deque[Listed] = collections.deque()
        self.unanswered: list[tuple[float, int]] = []

    def emit(self, count: int = 1) -> None:
        events = []
        for _ in range(count):
            self.number += 1
            events.append(event_of(self.number))
        self.main.emit(events)

    def tell(self, home: bytes) -> None:
        self.publisher.lists.found(self.list.lengths(self.list.served))
        self.publisher.lists.set_lists(home, self.list.serves)

    def role(self, *, primary: bool, agreed: bool = False) -> None:
        self.list.writable = primary
        if not primary:
            self.main.leave()
        self.main.requests.append(
            lambda: self.publisher.set_role(primary=primary, loading=False, agreed=agreed)
        )

    def book(self, jobs: int) -> None:
        while self.told and self.told[0].jobs <= jobs:
            self.outbox.listed(self.told.popleft())

    def turn(self, seconds: float = 0.005) -> None:
        self.main.end_turn()
        self.main.run_jobs(lambda job: self.list.run(job))
        pushed = self.main.shim.events.pushed
        finished = self.jobs.count_finished()
        while self.main.requests:
            one = self.main.requests.popleft()
            if isinstance(one, Listed):
                self.told.append(one)
            else:
                one()
        self.jobs.finish(finished)
        self.book(self.jobs.finished)
        self.intake.take(pushed)
        while self.latency is not None and self.unanswered:
            at, tag = self.unanswered[0]
            if at > self.now:
                break
            self.unanswered.pop(0)
            self.publisher.acked(0, [tag])
        for action in self.publisher.poll(more=self.intake.waiting > 0):
            match action:
                case Connect():
                    if self.latency is None:
                        self.publisher.link_down("away")
                    else:
                        self.unanswered.clear()
                        self.publisher.link_up()
                case Send(first_tag=first, events=events):
                    self.sent += [event.db for event in events]
                    at = self.now + (self.latency or 0)
                    self.unanswered += [(at, first + n) for n in range(len(events))]
                case Submit(job=job):
                    self.jobs.submit(job, self.publisher.job_done)
        self.outbox.poll(enabled=self.config.has_outbox)
        self.outbox.show()
        self.now += seconds


@pytest.mark.parametrize("latency", [0.05, 0.35, 0.6])
def test_another_list_is_delivered_although_confirms_are_slow(latency: float) -> None:
    """A list arrived with its slot. Events come all the time, and a confirm takes longer than a
    short hold: the list never becomes empty within it."""
    node = Node(latency)
    home, other, *_ = node.list.KEYS
    node.list.served = {home}
    node.role(primary=True)
    node.turn()
    node.tell(home)
    for _ in range(400):
        node.turn()
    assert node.main.state is OPEN
    node.list.here[other].elements = [to_element(event_of(10**6 + n)) for n in range(3)]
    node.list.served = {home, other}
    node.tell(home)
    for _ in range(int(60 / 0.005)):
        node.emit()
        node.turn()
    assert len(node.sent) > 10_000
    assert 10**6 in node.sent, "after a minute"


def test_order_after_a_demotion_and_a_promotion() -> None:
    """In a cluster, what was pushed a little before a demotion comes back to memory. The outbox
    stayed open, so after a promotion newer events go to the list before these."""
    node = Node(None)
    home, *_ = node.list.KEYS
    node.list.served = {home}
    node.role(primary=True)
    node.turn()
    node.tell(home)
    node.emit(3)  # missed: they go through memory
    assert node.main.state is CLOSED
    for _ in range(100):
        node.turn()
    assert node.main.state is OPEN
    node.role(primary=False)  # nobody has asked this node
    node.inherited = home
    node.list.here[home].elements = []  # the other node had not got them
    for _ in range(20):
        node.turn()
    node.role(primary=True)
    node.inherited = None
    node.emit(2)
    node.turn()
    node.tell(home)
    node.latency = 0.01
    for _ in range(2000):
        node.turn()
    order = list(dict.fromkeys(node.sent))
    assert order == sorted(order), order


def with_another_list() -> tuple[Node, bytes]:
    """A node with three elements in a list that arrived with its slot, and the home list."""
    node = Node(0.02)
    home, other, *_ = node.list.KEYS
    node.list.served = {home}
    node.role(primary=True)
    node.turn()
    node.tell(home)
    for _ in range(400):
        node.turn()
    node.list.here[other].elements = [to_element(event_of(10**6 + n)) for n in range(3)]
    node.list.served = {home, other}
    node.tell(home)
    return node, home


def test_back_to_the_home_list() -> None:
    node, home = with_another_list()
    for _ in range(6000):
        node.emit()
        node.turn()
    for _ in range(2000):
        node.turn()
    assert 10**6 in node.sent
    assert (node.main.state, node.main.key) == (OPEN, home)


def test_order_over_a_failover_after_a_list_has_arrived() -> None:
    """A promoted replica opens its outbox with the home list."""
    node, home = with_another_list()
    for _ in range(4000):
        node.emit()
        node.turn()
    assert node.main.state is OPEN
    node.publisher.link_down("away")
    node.latency = None
    for _ in range(5):
        node.emit()
        node.turn()
    node.role(primary=False, agreed=True)  # the replica has the same data
    node.inherited = home
    for _ in range(20):
        node.turn()
    assert node.main.state is OPEN
    node.role(primary=True)
    for _ in range(5):
        node.emit()
        node.turn()
    node.tell(home)
    node.inherited = None
    node.latency = 0.02
    for _ in range(8000):
        node.turn()
    order = [number for number in dict.fromkeys(node.sent) if number < 10**6]
    assert order == sorted(order)
