"""Slots, the text of CLUSTER NODES, and which lists a node looks after; without servers.

First the pure parts. Then a simulated cluster: its nodes are real watches and real
publishers, slots with lists move between them, primaries fail over, and whatever
happens, at rest each list is known to the node that serves its slot and to no other,
and nobody has counted a list as lost that only went elsewhere.
"""

from __future__ import annotations

import binascii
import collections
import dataclasses
import errno
import itertools
import random
from collections.abc import Callable, Iterable, Mapping, Set

import pytest
from hypothesis import Phase, given, note, settings
from hypothesis import strategies as st

from keyspace_amqp.cluster import lists as lists_module
from keyspace_amqp.cluster.lists import LOOK_KEYS, Lists
from keyspace_amqp.cluster.slots import SLOTS, key_of, slot_of
from keyspace_amqp.cluster.topology import ALONE, Topology, read_topology
from keyspace_amqp.cluster.watch import READ_AGAIN, READ_EVERY, READ_FAILURES, ClusterWatch
from keyspace_amqp.fallback import to_element
from keyspace_amqp.jobs import Command, Job, JobResult, Lengths
from keyspace_amqp.publisher.publisher import Connect, Publisher, Submit
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.stats import Stat
from tests.publisher.test_publisher import (
    DEFAULTS,
    Reply,
    SimulatedList,
    assert_books_balance,
    dropped_of,
    event_of,
)

# ---- slots and keys ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "slot"),
    [
        (b"123456789", 0x31C3),  # the specification's example
        (b"", 0),
        (b"foo", 12182),
        (b"{foo}", 12182),
        (b"a{foo}b", 12182),
        (b"{foo}{bar}", 12182),  # the first { only
        (b"}{foo}", 12182),
        (b"{user1000}.following", 3443),
        (b"{user1000}.followers", 3443),
    ],
)
def test_slots_that_are_known(key: bytes, slot: int) -> None:
    assert slot_of(key) == slot


@pytest.mark.parametrize("key", [b"foo{}{bar}", b"{}", b"foo{bar", b"foo}bar{", b"{"])
def test_without_a_tag_the_whole_key_counts(key: bytes) -> None:
    assert slot_of(key) == binascii.crc_hqx(key, 0) % SLOTS
    assert slot_of(key) != slot_of(b"bar")


def test_a_tag_may_have_braces_in_it() -> None:
    assert slot_of(b"foo{{bar}}zap") == slot_of(b"{bar")


def test_every_slot_has_one_key() -> None:
    keys = [key_of(slot) for slot in range(SLOTS)]
    assert [slot_of(key) for key in keys] == list(range(SLOTS))
    assert len(set(keys)) == SLOTS
    assert all(key.startswith(b"keyspaceamqp:{") and key.endswith(b"}:fallback") for key in keys)
    assert key_of(13907) == KEY


# ---- CLUSTER NODES -------------------------------------------------------------------

A, B, C, D = (letter * 40 for letter in "abcd")

# As the servers answered, with ids and ports made short.
REDIS_7_0 = f"""\
{C} 127.0.0.1:7002@17002 slave {A} 0 1795391951097 1 connected
{D} 127.0.0.1:1@2 handshake - 0 0 0 disconnected
{A} 127.0.0.1:7000@17000 myself,master - 0 1795391950000 1 connected 0-5460 5462 16000-16383 \
[93->-{B}] [5461-<-{B}]
{B} 127.0.0.1:7001@17001,node1.example master - 0 1795391950896 0 connected 5461 5463-15999
"""
REDIS_8_2 = f"""\
{B} 127.0.0.1:7001@17001,node1.example master,fail? - 1795391963169 1795391962663 2 disconnected \
5461 5463-15999
{A} 127.0.0.1:7000@17000 myself,master - 0 0 1 connected 0-5460 5462 16000-16383 [93->-{B}] \
[5461-<-{B}]
{C} 127.0.0.1:7002@17002 slave {A} 0 1795391963776 1 connected
"""
VALKEY_8_1 = f"""\
{A} 127.0.0.1:7000@17000 master - 0 1795391974610 0 connected 0-5460 5462 16000-16383
{C} 127.0.0.1:7002@17002 myself,slave {A} 0 0 0 connected
{B} 127.0.0.1:7001@17001,node1.example,shard-id={D} master,fail - 0 0 1 connected 5461 5463-15999 \
[93-<-{A}]
"""
MINE = {*range(5461), 5462, *range(16000, 16384)}


def test_the_answer_of_redis_7_0() -> None:
    topology = read_topology(REDIS_7_0)
    assert topology.myself == A
    assert topology.served == MINE
    assert topology.migrating == {93}
    # Who shakes hands is no member yet.
    assert {i: dataclasses.astuple(node)[1:] for i, node in topology.nodes.items()} == {
        A: ("127.0.0.1:7000", True, False),
        B: ("127.0.0.1:7001", True, False),
        C: ("127.0.0.1:7002", False, False),
    }


def test_the_answer_of_redis_8_2() -> None:
    """Who does not answer this node (fail?) is not waited for."""
    topology = read_topology(REDIS_8_2)
    assert (topology.served, topology.migrating) == (MINE, {93})
    assert [i for i, node in topology.nodes.items() if node.failing] == [B]


def test_the_answer_of_valkey_8_1_to_a_replica() -> None:
    topology = read_topology(VALKEY_8_1)
    assert topology.myself == C
    assert (topology.served, topology.migrating) == (set(), set())
    assert [node.id for node in topology.nodes.values() if node.failing] == [B]
    assert [node.id for node in topology.nodes.values() if not node.primary] == [C]


@pytest.mark.parametrize(
    ("word", "address"),
    [
        (":7000@17000", ":7000"),  # a node that does not know its own address yet
        ("127.0.0.1:7000@17000", "127.0.0.1:7000"),
        ("::1:7000@17000", "::1:7000"),
        ("fd00::5:7000@17000,a.example", "fd00::5:7000"),
        ("10.0.0.1:7000@17000,,tls-port=7001,shard-id=" + D, "10.0.0.1:7000"),
        ("10.0.0.1:7000", "10.0.0.1:7000"),
    ],
)
def test_forms_of_addresses(word: str, address: str) -> None:
    topology = read_topology(f"{A} {word} myself,master - 0 0 0 connected\n")
    assert topology.nodes[A].address == address
    assert topology.served == set()


def test_a_node_without_an_address_fails() -> None:
    text = f"{B} :0@0 master,noaddr - 0 0 0 disconnected\n" + REDIS_7_0
    assert read_topology(text).nodes[B].failing is False  # the line that comes last
    assert read_topology(text.replace(B, D, 1)).nodes[D].failing


WHOLE = f"{A} 127.0.0.1:7000@17000 myself,master - 0 0 0 connected"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n",
        "OK",
        "ERR This instance has cluster support disabled",
        f"{A} 127.0.0.1:7000@17000 master - 0 0 0 connected 0-16383",  # nobody is myself
        f"{A} 127.0.0.1:7000@17000 myself,master - 0 0 0",
        f"{WHOLE} x",
        f"{WHOLE} 1-x",
        f"{WHOLE} [x->-{B}]",
        f"{WHOLE} 0-16384",
        f"{WHOLE} 16384",
        f"{WHOLE} 5-3",
        f"{WHOLE} 0-99999999999999999",
        f"{WHOLE} -1",
        f"{WHOLE} 0-5 [16384->-{B}]",
        f"{WHOLE} 0-5\nmore",
    ],
)
def test_what_is_no_answer(text: str) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_topology(text)


@given(st.one_of(st.text(), st.text(alphabet=f"{A[:2]} 0159-[]<>@:,\nmyself")))
def test_any_text_is_read_or_refused(text: str) -> None:
    for given_text in (text, WHOLE + " " + text):
        try:
            topology = read_topology(given_text)
        except ValueError:
            continue
        assert topology.served <= frozenset(range(SLOTS))
        assert topology.migrating <= frozenset(range(SLOTS))
        assert topology.myself in topology.nodes


# ---- lists -----------------------------------------------------------------------------


def served(*slots: int, migrating: Iterable[int] = ()) -> Topology:
    return Topology("me", ALONE.nodes, frozenset(slots), frozenset(migrating))


def test_home_is_in_a_slot_that_stays() -> None:
    lists = Lists()
    assert lists.home is None
    lists.begin()
    assert lists.home is None
    lists.set_topology(served(5, 9, 7))
    assert lists.home == key_of(9)
    lists.set_topology(served(5, 9, 7, migrating=[9, 7]))
    assert lists.home == key_of(5)
    lists.set_topology(served(5, 9, migrating=[9, 5]))  # none does
    assert lists.home == key_of(9)
    lists.set_topology(served())
    assert lists.home is None
    lists.set_topology(ALONE)
    assert lists.home == KEY


def test_all_slots_are_looked_at_once_and_in_pieces() -> None:
    lists = Lists()
    lists.begin()
    assert lists.keys_to_look_at()[1] == []
    everything = served(*range(SLOTS))
    lists.set_topology(everything)
    seen: list[bytes] = []
    while not lists.complete:
        token, keys = lists.keys_to_look_at()
        assert 0 < len(keys) <= LOOK_KEYS
        seen += keys
        assert lists.look_result(token, keys, [0] * len(keys)) == {}
    assert sorted(seen) == sorted(key_of(slot) for slot in range(SLOTS))
    assert lists.keys_to_look_at()[1] == []
    lists.set_topology(everything)  # nothing new
    assert lists.complete


def test_an_answer_from_before_a_change_of_role_means_nothing() -> None:
    lists = Lists()
    lists.begin()
    lists.set_topology(served(1))
    token, keys = lists.keys_to_look_at()
    lists.end()
    lists.begin()
    lists.set_topology(served(1))
    assert lists.look_result(token, keys, [7]) == {}
    assert not lists.complete


def look(lists: Lists, there: Mapping[bytes, int]) -> dict[bytes, int]:
    """Looks until there is nothing more to look at."""
    found: dict[bytes, int] = {}
    while True:
        token, keys = lists.keys_to_look_at()
        if not keys:
            return found
        found |= lists.look_result(token, keys, [there.get(key, 0) for key in keys])


def test_lists_of_other_forms_are_found_when_they_are_touched() -> None:
    """A key of ours with another tag: somebody has renamed a list."""
    other = b"keyspaceamqp:{other}:fallback"
    lists = Lists()
    lists.begin()
    lists.set_topology(served(slot_of(other), 3))
    assert look(lists, {other: 5}) == {}
    lists.list_changed(other)
    assert look(lists, {other: 5}) == {other: 5}
    lists.list_changed(b"keyspaceamqp:{elsewhere}:fallback")
    assert look(lists, {}) == {}


def test_a_flush_makes_it_look_at_everything() -> None:
    lists = Lists()
    lists.begin()
    lists.set_topology(served(1, 2, 3))
    look(lists, {})
    lists.list_changed(b"")
    assert sorted(lists.keys_to_look_at()[1]) == sorted(map(key_of, (1, 2, 3)))


def test_the_slot_of_home_is_looked_at_first() -> None:
    """On most servers it has the only list; how long that is shows at once."""
    lists = Lists()
    lists.begin()
    lists.set_topology(ALONE)
    assert lists.keys_to_look_at()[1] == [KEY]
    lists.begin()
    lists.set_topology(served(3, 4, 5))
    assert lists.keys_to_look_at()[1] == [key_of(5)]


def test_a_list_is_gone_when_its_slot_has_stayed() -> None:
    """An empty key in a slot on its way has gone ahead, to where the slot will be."""
    key = key_of(3)
    lists = Lists()
    lists.begin()
    lists.set_topology(served(3, 4))
    assert look(lists, {key: 5}) == {key: 5}
    assert lists.known == [key]
    lists.list_changed(key)
    assert look(lists, {}) == {}  # that alone says nothing
    lists.set_topology(served(3, 4, migrating=[3]))
    assert lists.count_result([key], [0]) == {}
    assert lists.count_result([key], [2]) == {key: 2}
    lists.set_topology(served(3, 4))  # taken back
    assert lists.count_result([key], [0]) == {key: 0}
    assert lists.known == []


def test_a_list_whose_slot_has_left_is_not_counted() -> None:
    key = key_of(3)
    lists = Lists()
    lists.begin()
    lists.set_topology(served(3, 4))
    look(lists, {key: 5})
    lists.set_topology(served(4))
    assert lists.known == []
    assert lists.count_result([key], [0]) == {}
    lists.end()
    assert lists.count_result([key], [5]) == {}


def test_a_list_that_comes_unheard_is_found_in_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a slot that was here all the time, without an event of a class that is heard."""
    monkeypatch.setattr(lists_module, "LOOK_SLOWLY", 4096)
    lists = Lists()
    lists.begin()
    lists.set_topology(served(3, 9000))
    look(lists, {})
    for _ in range(2):
        found = []
        for _ in range(4):
            lists.look_slowly()
            found.append(look(lists, {key_of(9000): 5}))
        assert {key_of(9000): 5} in found


class Noted:
    """A keeper that notes what it is told."""

    def __init__(self) -> None:
        self.lists_known = False
        self.unserved_key: bytes | None = None
        self.lengths: dict[bytes, int] = {}
        self.homes: list[bytes | None] = []

    def lists_found(self, lengths: Mapping[bytes, int]) -> None:
        self.lengths |= lengths

    def set_lists(self, home: bytes | None, serves: Callable[[bytes], bool]) -> None:
        self.homes.append(home)
        self.lists_known = True


class Watching:
    """A watch with a clock; the test is the main thread."""

    def __init__(self, *, clustered: bool = True) -> None:
        self.now = 1000.0
        self.keeper = Noted()
        self.watch = ClusterWatch(self.keeper, lambda: self.now, clustered=clustered)
        self.text = f"{WHOLE} 5-7"
        self.there: dict[bytes, int] = {}
        self.looks = 0  # keys that were looked at

    def run(self, job: Job) -> JobResult:
        return JobResult([self.answer(command) for command in job.commands])

    def answer(self, command: object) -> tuple[bytes, int]:
        if isinstance(command, Command):
            return b"$%d\r\n%b\r\n" % (len(self.text), self.text.encode()), 0
        assert isinstance(command, Lengths)
        self.looks += len(command.arguments)
        lengths = [b":%d\r\n" % self.there.get(key, 0) for key in command.arguments]
        return b"*%d\r\n" % len(lengths) + b"".join(lengths), 0

    def settle(self) -> None:
        while (job := self.watch.poll()) is not None:
            assert self.watch.poll() is None, "two jobs at once"
            self.watch.done(self.run(job))

    def seconds_until_it_reads(self) -> float:
        start = self.now
        while (job := self.watch.poll()) is None or not isinstance(job.commands[0], Command):
            if job is not None:
                self.watch.done(self.run(job))
                continue
            at = self.watch.wake_at()
            assert at is not None
            assert at > self.now
            self.now = at
        self.watch.done(self.run(job))
        return self.now - start


def test_the_keeper_is_told_when_all_was_looked_at() -> None:
    """Before that, something older may be in a list that nobody knows."""
    watching = Watching()
    watching.there = {key_of(6): 3}
    watching.watch.set_role(writable=True)
    while (job := watching.watch.poll()) is not None:
        assert watching.keeper.homes == []
        watching.watch.done(watching.run(job))
    assert watching.looks == 3
    assert watching.keeper.lengths == {key_of(6): 3}
    assert watching.keeper.homes == [key_of(7)]


def test_a_server_that_is_in_no_cluster_has_one_list() -> None:
    watching = Watching(clustered=False)
    assert watching.watch.wake_at() is None
    watching.there = {key_of(6): 3, KEY: 2}
    watching.watch.set_role(writable=True)
    watching.settle()
    assert watching.looks == 1
    assert watching.keeper.homes == [KEY]
    assert watching.keeper.lengths == {KEY: 2}
    watching.there = {}
    watching.now += READ_EVERY
    watching.settle()
    assert watching.keeper.lengths == {KEY: 0}


def test_the_list_that_was_left_is_looked_at_again() -> None:
    """The keeper came upon a slot that was not served for a moment."""
    watching = Watching()
    watching.watch.set_role(writable=True)
    watching.settle()
    watching.there = {key_of(6): 4}
    watching.keeper.lists_known, watching.keeper.unserved_key = False, key_of(6)
    watching.now += READ_AGAIN
    watching.settle()
    assert watching.keeper.lengths == {key_of(6): 4}
    assert watching.keeper.unserved_key is None


def test_a_replica_reads_the_topology_and_looks_at_nothing() -> None:
    watching = Watching()
    watching.settle()
    assert watching.looks == 0
    assert watching.keeper.homes == []
    assert watching.watch.topology.served == {5, 6, 7}
    assert watching.seconds_until_it_reads() == pytest.approx(READ_EVERY)


def test_the_topology_is_read_once_in_a_while_and_soon_when_it_is_doubtful() -> None:
    watching = Watching()
    watching.watch.set_role(writable=True)
    watching.settle()
    assert watching.seconds_until_it_reads() == pytest.approx(READ_EVERY)
    watching.settle()
    watching.keeper.lists_known = False  # it has come upon a slot that is not served
    watching.text = f"{WHOLE} 5-6"
    assert watching.seconds_until_it_reads() == pytest.approx(READ_AGAIN)
    watching.settle()
    assert watching.keeper.homes[-1] == key_of(6)
    assert watching.seconds_until_it_reads() == pytest.approx(READ_EVERY)


def test_what_a_replica_has_asked_is_not_told_of_the_primary() -> None:
    """Else the new primary would think for a moment that it has no slots, and no list
    with older events in it."""
    watching = Watching()
    watching.text = WHOLE
    job = watching.watch.poll()
    assert job is not None
    result = watching.run(job)
    watching.watch.set_role(writable=True)
    watching.watch.done(result)
    watching.text = f"{WHOLE} 5-7"
    watching.settle()
    assert watching.keeper.homes == [key_of(7)]


def test_while_redis_is_busy_it_does_not_wake_up() -> None:
    """For a job that is under way there is nothing to wait for but its end."""
    watching = Watching()
    watching.watch.set_role(writable=True)
    assert watching.watch.poll() is not None
    watching.now += 10 * READ_EVERY
    assert watching.watch.wake_at() is None


def test_after_a_job_that_was_lost_it_reads_again() -> None:
    watching = Watching()
    watching.watch.set_role(writable=True)
    watching.watch.poll()
    watching.watch.repair()
    watching.settle()
    assert watching.keeper.homes == [key_of(7)]


@pytest.mark.parametrize("reply", [None, b"+garbage\r\n", b"-ERR unknown command\r\n"])
def test_a_topology_that_cannot_be_read_is_asked_for_again(reply: bytes | None) -> None:
    """As while the server ends. If it goes on, the keeper has to go without a list."""
    watching = Watching()
    watching.watch.set_role(writable=True)
    for failures in range(1, READ_FAILURES + 1):
        assert watching.keeper.homes == []
        assert not watching.watch.topology_known
        assert watching.watch.poll() is not None
        watching.watch.done(JobResult([(reply, errno.ESHUTDOWN), (None, 0)]))
        assert watching.watch.problem.startswith("CLUSTER NODES: ")
        watching.now += READ_EVERY * failures
    assert watching.keeper.homes == [None]
    assert watching.watch.topology_known
    watching.settle()
    assert watching.keeper.homes[-1] == key_of(7)


# ---- a cluster in which anything may happen at any time ---------------------------------

# Spread, so that every node looks at some of them in each of its slow rounds.
SLOTS_IN_PLAY = range(300, SLOTS, 1300)
# Small, so that a look takes several jobs, and a slow round a few seconds.
NO_SHRINK = [phase for phase in Phase if phase is not Phase.shrink]
PATCHES = {"LOOK_KEYS": 3, "LOOK_SLOWLY": SLOTS // 8}


@dataclasses.dataclass
class Migration:
    """Of a slot to another shard. `done`: its new node serves it; the old one is yet to
    hear of it."""

    source: Member
    target: Member
    done: bool = False


class Told(Publisher):
    """A publisher, and which slots it was told are its own."""

    told: Set[int] = frozenset()

    def lists_found(self, lengths: Mapping[bytes, int]) -> None:
        super().lists_found(lengths)
        self.told |= {slot_of(key) for key in lengths}

    def set_lists(self, home: bytes | None, serves: Callable[[bytes], bool]) -> None:
        super().set_lists(home, serves)
        self.told = frozenset(slot for slot in SLOTS_IN_PLAY if serves(key_of(slot)))


class Member:
    """A server of the cluster with its worker: a watch and a publisher, whose broker is
    away. Its shard's data is in `data`, which all servers of the shard have."""

    def __init__(self, sim: Simulation, name: str, data: dict[bytes, SimulatedList]) -> None:
        self.id = name
        self.sim = sim
        self.data = data
        self.primary = self.loading = False
        self.served: set[int] = set()
        self.migrating: set[int] = set()
        self.publisher = Told(DEFAULTS, lambda: sim.now, lambda: 1.0)
        self.watch = ClusterWatch(self.publisher, lambda: sim.now, clustered=True)
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
        key = command.arguments[0]
        if self.sim.down:
            return None, errno.ENETDOWN
        if slot_of(key) not in self.served:
            return None, errno.EPERM
        if slot_of(key) in self.migrating and not self.has(key):
            return None, errno.EPERM  # it may be at the other node already
        return self.data.setdefault(key, SimulatedList())._execute(command), 0

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
    """Shards of two servers. Each server knows of its own slots only what it was told."""

    def __init__(self, chance: random.Random) -> None:
        self.now = 1000.0
        self.down = False
        self.changes = 0
        self.numbers = itertools.count(1)
        self.shards: list[list[Member]] = []
        self.migrations: dict[int, Migration] = {}
        self.unheard: set[bytes] = set()  # lists that came back to where nobody expects them
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
            if chance.random() < 0.3:
                self.fill(owner, key_of(slot), chance.randint(1, 5))

    def fill(self, member: Member, key: bytes, count: int) -> None:
        there = member.data.setdefault(key, SimulatedList())
        there.elements += [to_element(event_of(next(self.numbers))) for _ in range(count)]

    def primaries(self) -> list[Member]:
        return [member for member in self.members if member.primary]

    def nodes_text(self, asking: Member) -> str:
        """CLUSTER NODES. Of the others' slots nobody wants to know."""
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
        """It works with lists only that it was told are its own."""
        for command in job.commands:
            assert isinstance(command, Command)
            assert slot_of(command.arguments[0]) in member.publisher.told

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
        if source is None or slot in self.migrations:
            return
        target = chance.choice([member for member in self.primaries() if member is not source])
        source.migrating.add(slot)
        self.migrations[slot] = Migration(source, target)
        self.changes += 1

    def pick(self, chance: random.Random, *, done: bool | None = False) -> int | None:
        slots = [slot for slot, m in self.migrations.items() if done is None or m.done is done]
        return chance.choice(slots) if slots else None

    def list_moves(self, chance: random.Random) -> None:
        """MIGRATE; it is heard by nobody who has not chosen that class of events."""
        slot = self.pick(chance)
        # Where a failover has made an end of the migration it would be a loss.
        if slot is not None and slot in self.migrations[slot].source.migrating:
            self.move(slot, self.migrations[slot].source, self.migrations[slot].target)

    def move(self, slot: int, source: Member, target: Member) -> None:
        if source.has(key_of(slot)):
            assert not target.has(key_of(slot))
            target.data[key_of(slot)] = source.data.pop(key_of(slot))

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
        elif slot in migration.source.migrating and not migration.source.has(key_of(slot)):
            migration.target.served.add(slot)
            migration.done = True

    def migration_is_taken_back(self, chance: random.Random) -> None:
        slot = self.pick(chance)
        if slot is not None:
            self.take_back(slot, heard=chance.random() < 0.5)

    def take_back(self, slot: int, *, heard: bool) -> None:
        migration = self.migrations.pop(slot)
        source, target = migration.source, migration.target
        begun = source.data.pop(key_of(slot), SimulatedList())  # since a failover
        self.move(slot, target, source)
        source.data.setdefault(key_of(slot), SimulatedList()).elements += begun.elements
        migration.source.migrating.discard(slot)
        if heard:
            migration.source.touch(key_of(slot))
        else:
            self.unheard.add(key_of(slot))
        self.changes += 1

    def shard_fails_over(self, chance: random.Random) -> None:
        """The new primary knows nothing of migrations: somebody mends that, later."""
        shard = chance.choice(self.shards)
        old, new = sorted(shard, key=lambda member: not member.primary)
        for slot, migration in list(self.migrations.items()):
            if migration.target is old:
                migration.target = new
            if migration.source is old and migration.done:
                old.served.discard(slot)  # elected with what all the others know
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
        """Everybody does at once what there is to do."""
        until = self.now + seconds
        while self.now < until:
            busy = True
            while busy:
                for member in self.members:
                    member.turn()
                busy = any(member.run_job() for member in self.members)
            self.now = max(self.now + 0.01, min(member.wake_at() for member in self.members))

    def check(self, but: Set[bytes] = frozenset()) -> None:
        """Each list is known where it is; `but` for those that may not be known yet."""
        for member in self.members:
            publisher = member.publisher
            keys = set(publisher.keys)
            if not member.primary:
                assert keys == set()
                continue
            there = {key for key in member.data if member.has(key)}
            assert {slot_of(key) for key in there} <= member.served, "the test's own books"
            there -= but - keys
            assert keys - {publisher.key} <= there <= keys
            assert {slot_of(key) for key in keys} <= member.served
            lengths = sum(len(member.data[key].elements) for key in there)
            assert publisher.gauges()[Stat.FALLBACK_LENGTH] == lengths
            home = member.watch._lists.home
            assert (home is None) is (not member.served)
            assert home is None or slot_of(home) in member.served
            assert bool(publisher.key) is bool(member.served)

    def check_events(self) -> None:
        """Each is in one place."""
        stored = [
            element
            for shard in self.shards
            for there in shard[0].data.values()
            for element in there.elements
        ]
        memory = [
            to_element(entry.event)
            for member in self.members
            for entry in (*member.publisher._storing, *member.publisher._waiting)
            if entry.event is not None
        ]
        born = [to_element(event_of(number)) for number in range(1, next(self.numbers))]
        assert sorted(stored + memory) == sorted(born)


def test_each_list_is_known_to_the_node_of_its_slot() -> None:
    """Through more than three thousand changes of the topology."""
    changes = []

    @settings(max_examples=120, deadline=None, phases=NO_SHRINK)
    @given(seed=st.integers(0, 2**64), count=st.integers(100, 300))
    def world(seed: int, count: int) -> None:
        chance = random.Random(seed)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in PATCHES.items():
                patch.setattr(lists_module, name, value)
            sim = Simulation(chance)
            for _ in range(count):
                sim.step(chance)
            changes.append(sim.changes)
            sim.rest()

    world()
    print(f"{sum(changes)} changes of the topology in {len(changes)} worlds")
    assert sum(changes) >= 3000
