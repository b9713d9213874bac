"""A simulated cluster without servers, in which anything may happen at any time.

Its nodes are real watches and real publishers. Slots with lists move between them, and
primaries fail over. At rest each list is known to the node that serves its slot and to no
other, and no node has counted a list as lost that only went elsewhere.
"""

from __future__ import annotations

import collections
import copy
import dataclasses
import errno
import itertools
import random
from collections.abc import Callable, Mapping, Set

from hypothesis import note

from keyspace_amqp.cluster.slots import SLOTS, key_of, keys_of, slot_of
from keyspace_amqp.cluster.watch import ClusterWatch
from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.fallback import to_element
from keyspace_amqp.jobs import Command, Job, JobResult, Lengths
from keyspace_amqp.publisher.actions import Connect, Submit
from keyspace_amqp.publisher.lists import Lists
from keyspace_amqp.publisher.publisher import Publisher
from keyspace_amqp.tables.stats import Stat
from tests.publisher.simulated import (
    Reply,
    SimulatedList,
    assert_books_balance,
    dropped_of,
    event_of,
)

# Spread, so that every node looks at some of them in each of its slow rounds.
SLOTS_IN_PLAY = range(300, SLOTS, 1300)


# Small, so that a look takes several jobs, and a slow round a few seconds.
PATCHES = {"LOOK_KEYS": 3, "LOOK_SLOWLY": SLOTS // 8}


@dataclasses.dataclass
class Migration:
    """A slot moves to another shard. `done`: its new node serves it; the old node does not know
    that yet."""

    source: Member
    target: Member
    done: bool = False


@dataclasses.dataclass
class Handover:
    """Slots were handed over, with their lists. The old node, whose writes are paused, does
    not know that yet, and still has its copies of the lists."""

    source: Member
    slots: Set[int]


class Told:
    """The lists of a publisher, and which slots it was told are its own."""

    def __init__(self, lists: Lists) -> None:
        self.slots: Set[int] = frozenset()
        self._lists = lists

    @property
    def known(self) -> bool:
        return self._lists.known

    @property
    def unserved_key(self) -> bytes | None:
        return self._lists.unserved_key

    @unserved_key.setter
    def unserved_key(self, key: bytes | None) -> None:
        self._lists.unserved_key = key

    def found(self, lengths: Mapping[bytes, int]) -> None:
        self._lists.found(lengths)
        self.slots |= {slot_of(key) for key in lengths}

    def set_lists(self, home: bytes | None, serves: Callable[[bytes], bool]) -> None:
        self._lists.set_lists(home, serves)
        self.slots = frozenset(slot for slot in SLOTS_IN_PLAY if serves(key_of(slot)))

    def leave(self, serves: Callable[[bytes], bool]) -> None:
        self._lists.leave(serves)
        self.slots = frozenset(slot for slot in self.slots if serves(key_of(slot)))


class Member:
    """A server of the cluster with its worker: a watch and a publisher, whose broker is
    away. Its shard's data is in `data`, which all servers of the shard have."""

    def __init__(self, sim: Simulation, name: str, data: dict[bytes, SimulatedList]) -> None:
        self.id = name
        self.sim = sim
        self.data = data
        self.primary = self.loading = self.paused = False
        self.served: set[int] = set()
        self.migrating: set[int] = set()
        self.publisher = Publisher(DEFAULTS, lambda: sim.now, lambda: 1.0)
        self.told = Told(self.publisher.lists)
        self.watch = ClusterWatch(self.told, lambda: sim.now, clustered=True)
        self.jobs: collections.deque[tuple[Job, Callable[[JobResult], None]]] = collections.deque()
        self.results: list[tuple[Callable[[JobResult], None], JobResult]] = []
        self.requests: list[Callable[[], None]] = []  # to the worker

    # Redis' main thread

    def set_role(self, *, primary: bool, loading: bool) -> None:
        self.primary, self.loading = primary, loading

        def hear() -> None:
            # What was pushed is in the data that the whole shard has.
            self.publisher.set_role(primary=primary, loading=loading, agreed=True)
            self.watch.set_role(writable=primary and not loading)

        self.requests.append(hear)

    def touch(self, key: bytes) -> None:
        self.requests.append(lambda: self.watch.list_changed(key))

    def get_slots(self, slots: Set[int]) -> None:
        """The end of an atomic migration at its target."""
        self.served |= slots
        self.requests.append(lambda: self.watch.slots_moved(slots, came=True))

    def lose_slots(self, slots: Set[int]) -> None:
        """The end of an atomic migration at its source."""
        self.served -= slots
        for key in itertools.chain.from_iterable(map(keys_of, slots)):
            self.data.pop(key, None)
        self.requests.append(lambda: self.watch.slots_moved(slots, came=False))

    def has(self, key: bytes) -> bool:
        return key in self.data and bool(self.data[key].elements)

    def run_job(self) -> bool:
        if not self.jobs:
            return False
        job, done = self.jobs.popleft()
        replies: list[Reply] = []
        for command in job.commands:
            replies.append(self.answer(command))
            reply = replies[-1][0]
            expected = command.expected if isinstance(command, Command) else None
            if reply is None or expected not in (None, reply):
                break
        replies += [(None, 0)] * (len(job.commands) - len(replies))
        self.results.append((done, JobResult(replies)))
        return True

    def answer(self, command: object) -> Reply:
        if isinstance(command, Lengths):
            lengths = [
                len(self.data[key].elements) if key in self.data else 0 for key in command.arguments
            ]
            return b"*%d\r\n" % len(lengths) + b"".join(b":%d\r\n" % n for n in lengths), 0
        assert isinstance(command, Command)
        if command.name == "CLUSTER":
            text = self.sim.nodes_text(self).encode()
            return b"$%d\r\n%b\r\n" % (len(text), text), 0
        if command.write and not (self.primary and not self.loading):
            return None, errno.EROFS
        if command.write and self.paused:
            return None, errno.EBUSY
        key = command.arguments[0]
        if self.sim.down:
            return None, errno.ENETDOWN
        if slot_of(key) not in self.served:
            return None, errno.EPERM
        if slot_of(key) in self.migrating and not self.has(key):
            return None, errno.EPERM  # it may already be on the other node
        return self.data.setdefault(key, SimulatedList()).execute_on("elements", command), 0

    # The worker

    def turn(self) -> None:
        results, self.results = self.results, []
        requests, self.requests = self.requests, []
        for request in requests:
            request()
        for done, result in results:
            done(result)
        job = self.watch.poll()
        if job is not None:
            self.jobs.append((job, self.watch.done))
        for action in self.publisher.poll(more=False):
            if isinstance(action, Submit):
                self.jobs.append((action.job, self.publisher.job_done))
                self.sim.check_job(self, action.job)
            elif isinstance(action, Connect):
                self.publisher.link_down("refused")
        assert_books_balance(self.publisher)
        assert dropped_of(self.publisher) == 0, "nothing is lost, but it says so"

    def wake_at(self) -> float:
        times = self.publisher.wake_at(), self.watch.wake_at()
        return min(at for at in times if at is not None)


class Simulation:
    """Shards of two servers. Each server only knows those slots as its own that it was told of."""

    def __init__(self, chance: random.Random) -> None:
        self.now = 1000.0
        self.down = False
        self.changes = 0
        self.numbers = itertools.count(1)
        self.shards: list[list[Member]] = []
        self.migrations: dict[int, Migration] = {}
        self.handovers: list[Handover] = []
        self.delivered: list[bytes] = []  # elements that a node elsewhere has delivered
        self.unheard: set[bytes] = set()  # lists that came back unexpectedly
        for number in range(chance.choice([2, 3])):
            data: dict[bytes, SimulatedList] = {}
            self.shards.append([Member(self, f"{number}-{n}", data) for n in (1, 2)])
        self.members = [member for shard in self.shards for member in shard]
        for shard in self.shards:
            shard[0].set_role(primary=True, loading=False)
        owners = self.shards[: chance.choice([1, len(self.shards)])]  # or one has them all
        for slot in SLOTS_IN_PLAY:
            owner = chance.choice(owners)[0]
            owner.served.add(slot)
            for key in keys_of(slot):
                if chance.random() < 0.25:
                    self.fill(owner, key, chance.randint(1, 5))

    def fill(self, member: Member, key: bytes, count: int) -> None:
        there = member.data.setdefault(key, SimulatedList())
        there.elements += [to_element(event_of(next(self.numbers))) for _ in range(count)]

    def primaries(self) -> list[Member]:
        return [member for member in self.members if member.primary]

    def nodes_text(self, asking: Member) -> str:
        """The reply to CLUSTER NODES, without the slots of other nodes, which nothing reads."""
        lines = []
        for member in self.members:
            role = "master" if member.primary else "slave"
            flags = f"myself,{role}" if member is asking else role
            line = f"{member.id} 127.0.0.1:7000@17000 {flags} - 0 0 0 connected"
            if member is asking:
                slots = map(str, sorted(member.served))
                leaving = (f"[{slot}->-elsewhere]" for slot in sorted(member.migrating))
                line = " ".join([line, *slots, *leaving])
            lines.append(line)
        return "\n".join(lines) + "\n"

    def check_job(self, member: Member, job: Job) -> None:
        """A job works only with lists in slots that the node was told are its own."""
        for command in job.commands:
            assert isinstance(command, (Command, Lengths))
            assert slot_of(command.arguments[0]) in member.told.slots

    # What may happen

    def step(self, chance: random.Random) -> None:
        steps: dict[Callable[[random.Random], None], int] = {
            self.worker_turns: 25,
            self.main_thread_runs: 25,
            self.all_goes_well: 5,
            self.time_passes: 8,
            self.events_come: 5,
            self.migration_begins: 8,
            self.list_moves: 8,
            self.migration_ends: 8,
            self.migration_is_taken_back: 4,
            self.slots_are_handed_over: 8,
            self.handover_is_heard_of: 8,
            self.slots_come_back_at_once: 4,
            self.shard_fails_over: 4,
            self.data_set_loads: 2,
            self.cluster_goes_down_or_up: 1,
        }
        (happen,) = chance.choices(list(steps), weights=list(steps.values()))
        note(f"{self.now:.3f} {happen.__name__}")
        happen(chance)

    def worker_turns(self, chance: random.Random) -> None:
        chance.choice(self.members).turn()

    def main_thread_runs(self, chance: random.Random) -> None:
        member = chance.choice(self.members)
        member.run_job()
        if chance.random() < 0.7:
            member.turn()

    def all_goes_well(self, chance: random.Random) -> None:
        self.live(chance.choice([0.01, 0.5, 2.5]))

    def time_passes(self, chance: random.Random) -> None:
        self.now += chance.choice([0.001, 0.06, 0.3, 1.1])

    def events_come(self, chance: random.Random) -> None:
        member = chance.choice(self.primaries())
        count = chance.choice([1, 1, 5])
        member.publisher.add([event_of(next(self.numbers)) for _ in range(count)])

    def migration_begins(self, chance: random.Random) -> None:
        slot = chance.choice(SLOTS_IN_PLAY)
        source = next((member for member in self.primaries() if slot in member.served), None)
        if source is None or slot in self.busy:
            return
        target = chance.choice([member for member in self.primaries() if member is not source])
        source.migrating.add(slot)
        self.migrations[slot] = Migration(source, target)
        self.changes += 1

    def pick(self, chance: random.Random, *, done: bool | None = False) -> int | None:
        slots = [slot for slot, m in self.migrations.items() if done is None or m.done is done]
        return chance.choice(slots) if slots else None

    def list_moves(self, chance: random.Random) -> None:
        """MIGRATE. Its event is of a class that is not chosen, so the module does not get it."""
        slot = self.pick(chance)
        # After a failover the source is not migrating any more, and a move would be a loss.
        if slot is not None and slot in self.migrations[slot].source.migrating:
            migration = self.migrations[slot]
            self.move(chance.choice(keys_of(slot)), migration.source, migration.target)

    def move(self, key: bytes, source: Member, target: Member) -> None:
        if source.has(key):
            assert not target.has(key)
            target.data[key] = source.data.pop(key)

    def migration_ends(self, chance: random.Random) -> None:
        """First the new node has the slot, a little later the old one hears of it."""
        slot = self.pick(chance, done=None)
        if slot is None:
            return
        self.changes += 1
        migration = self.migrations[slot]
        if migration.done:
            migration.source.served.discard(slot)
            migration.source.migrating.discard(slot)
            del self.migrations[slot]
        elif slot in migration.source.migrating and not any(
            map(migration.source.has, keys_of(slot))
        ):
            migration.target.served.add(slot)
            migration.done = True

    def migration_is_taken_back(self, chance: random.Random) -> None:
        slot = self.pick(chance)
        if slot is not None:
            self.take_back(slot, heard=chance.random() < 0.5)

    def take_back(self, slot: int, *, heard: bool) -> None:
        migration = self.migrations.pop(slot)
        source, target = migration.source, migration.target
        for key in keys_of(slot):
            begun = source.data.pop(key, SimulatedList())  # since a failover
            self.move(key, target, source)
            source.data.setdefault(key, SimulatedList()).elements += begun.elements
            if heard:
                source.touch(key)
            else:
                self.unheard.add(key)
        source.migrating.discard(slot)
        self.changes += 1

    @property
    def busy(self) -> set[int]:
        """The slots that take part in a migration."""
        return set(self.migrations).union(*(handover.slots for handover in self.handovers))

    def free_slots(self, member: Member, chance: random.Random) -> set[int]:
        """Some slots of a node that take part in nothing else."""
        slots = sorted(member.served - self.busy)
        return set(chance.sample(slots, chance.randint(1, len(slots)))) if slots else set()

    def slots_are_handed_over(self, chance: random.Random) -> None:
        """An atomic migration ends: all of its slots, with both lists of each, are served by the
        new node at once."""
        source, target = chance.sample(self.primaries(), 2)
        slots = self.free_slots(source, chance)
        if not slots or source.loading or source.paused:
            return
        for key in itertools.chain.from_iterable(map(keys_of, slots)):
            if source.has(key):
                target.data[key] = copy.deepcopy(source.data[key])
        target.get_slots(slots)
        source.paused = True
        self.handovers.append(Handover(source, slots))
        self.changes += 1

    def handover_is_heard_of(self, chance: random.Random) -> None:
        if self.handovers:
            self.hear_of(chance.choice(self.handovers))

    def hear_of(self, handover: Handover) -> None:
        self.handovers.remove(handover)
        handover.source.paused = False
        handover.source.lose_slots(handover.slots)
        self.changes += 1

    def slots_come_back_at_once(self, chance: random.Random) -> None:
        """Atomic migrations to a node elsewhere and back, before the worker reads the topology.
        That node has delivered some elements, and stored others."""
        member = chance.choice(self.primaries())
        slots = self.free_slots(member, chance)
        if not slots or member.loading or member.paused:
            return
        lists = {
            key: member.data[key] for slot in slots for key in keys_of(slot) if member.has(key)
        }
        member.lose_slots(slots)
        if chance.random() < 0.3:
            member.run_job()
        if chance.random() < 0.3:
            member.turn()
        for key, there in lists.items():
            count = chance.randint(0, len(there.elements))
            self.delivered += there.elements[:count]
            del there.elements[:count]
            member.data[key] = there
            if chance.random() < 0.5:
                self.fill(member, key, chance.randint(1, 3))
        member.get_slots(slots)
        self.changes += 2

    def shard_fails_over(self, chance: random.Random) -> None:
        """The new primary knows nothing of the migrations of the old one; they are taken back or
        ended later."""
        shard = chance.choice(self.shards)
        old, new = sorted(shard, key=lambda member: not member.primary)
        for handover in [handover for handover in self.handovers if handover.source is old]:
            self.hear_of(handover)  # the others knew that when they elected
        for slot, migration in list(self.migrations.items()):
            if migration.target is old:
                migration.target = new
            if migration.source is old and migration.done:
                old.served.discard(slot)  # the others knew that when they elected
                del self.migrations[slot]
            elif migration.source is old:
                migration.source = new
        new.served, old.served = old.served, set()
        old.migrating = set()
        old.set_role(primary=False, loading=False)
        new.set_role(primary=True, loading=False)
        self.changes += 1

    def data_set_loads(self, chance: random.Random) -> None:
        member = chance.choice(self.primaries())
        member.set_role(primary=True, loading=not member.loading)

    def cluster_goes_down_or_up(self, _chance: random.Random) -> None:
        self.down = not self.down

    # How it ends

    def rest(self) -> None:
        self.down = False
        for handover in list(self.handovers):
            self.hear_of(handover)
        for slot, migration in list(self.migrations.items()):
            if migration.done:
                migration.source.served.discard(slot)
                migration.source.migrating.discard(slot)
                del self.migrations[slot]
            else:
                self.take_back(slot, heard=False)
        for member in self.primaries():
            member.set_role(primary=True, loading=False)
        self.live(3)
        self.check(but=self.unheard)
        self.live(8)
        self.check()
        self.check_events()

    def live(self, seconds: float) -> None:
        """All members do all work that is due."""
        until = self.now + seconds
        while self.now < until:
            busy = True
            while busy:
                for member in self.members:
                    member.turn()
                busy = any(member.run_job() for member in self.members)
            self.now = max(self.now + 0.01, min(member.wake_at() for member in self.members))

    def check(self, but: Set[bytes] = frozenset()) -> None:
        """The node that has a list knows it. `but`: lists that may not be known yet."""
        for member in self.members:
            publisher = member.publisher
            keys = set(publisher.lists.keys)
            if not member.primary:
                assert keys == set()
                continue
            there = {key for key in member.data if member.has(key)}
            assert {slot_of(key) for key in there} <= member.served, "the test's own books"
            there -= but - keys
            chosen = {publisher.list.key, publisher.lists.refused.key}  # may be empty
            assert keys - chosen <= there <= keys
            assert {slot_of(key) for key in keys} <= member.served
            lengths = sum(len(member.data[key].elements) for key in there)
            assert publisher.gauges()[Stat.FALLBACK_LENGTH] == lengths
            home = member.watch._lists.home
            assert (home is None) is (not member.served)
            assert home is None or slot_of(home) in member.served
            assert bool(publisher.list.key) is bool(member.served)

    def check_events(self) -> None:
        """Each list is known to one node."""
        stored = [
            element
            for shard in self.shards
            for there in shard[0].data.values()
            for element in there.elements
        ]
        memory = [
            to_element(entry.event)
            for member in self.members
            for entry in member.publisher.memory
            if entry.event is not None
        ]
        born = [to_element(event_of(number)) for number in range(1, next(self.numbers))]
        assert sorted(stored + memory + self.delivered) == sorted(born)
