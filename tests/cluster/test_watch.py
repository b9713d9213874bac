"""The lists that a node finds in its slots, and the times at which it reads the topology."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping

import pytest

from keyspace_amqp.cluster import lists as lists_module
from keyspace_amqp.cluster.lists import LOOK_KEYS, Lists
from keyspace_amqp.cluster.slots import SLOTS, key_of, keys_of, slot_of
from keyspace_amqp.cluster.topology import ALONE, Topology
from keyspace_amqp.cluster.watch import READ_AGAIN, READ_EVERY, READ_FAILURES, ClusterWatch
from keyspace_amqp.jobs import Command, Job, JobResult, Lengths
from keyspace_amqp.tables.keys import KEY, REFUSED_KEY
from tests.cluster.test_topology import WHOLE


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
    assert sorted(seen) == sorted(key for slot in range(SLOTS) for key in keys_of(slot))
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
    """Looks until no key is left to look at."""
    found: dict[bytes, int] = {}
    while True:
        token, keys = lists.keys_to_look_at()
        if not keys:
            return found
        found |= lists.look_result(token, keys, [there.get(key, 0) for key in keys])


def test_lists_of_other_forms_are_found_when_they_are_touched() -> None:
    """A list's key with another tag: a client has renamed a list."""
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
    keys = [key for slot in (1, 2, 3) for key in keys_of(slot)]
    assert sorted(lists.keys_to_look_at()[1]) == sorted(keys)


def test_the_slot_of_home_is_looked_at_first() -> None:
    """On most servers the home slot has the only list, and its length should show at once."""
    lists = Lists()
    lists.begin()
    lists.set_topology(ALONE)
    assert lists.keys_to_look_at()[1] == [REFUSED_KEY, KEY]
    lists.begin()
    lists.set_topology(served(3, 4, 5))
    assert lists.keys_to_look_at()[1] == [*keys_of(5)]


def test_a_list_is_gone_when_its_slot_has_stayed() -> None:
    """In a slot that migrates, a list that is not here may be on the other node already."""
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
    """A list appears in a slot that was served all the time, without an event of a chosen
    class."""
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
    """A keeper that records its calls."""

    def __init__(self) -> None:
        self.known = False
        self.unserved_key: bytes | None = None
        self.lengths: dict[bytes, int] = {}
        self.homes: list[bytes | None] = []
        self.served: set[int] = set()

    def found(self, lengths: Mapping[bytes, int]) -> None:
        self.lengths |= lengths

    def set_lists(self, home: bytes | None, serves: Callable[[bytes], bool]) -> None:
        self.homes.append(home)
        self.known = True

    def leave(self, serves: Callable[[bytes], bool]) -> None:
        self.served = {slot for slot in range(SLOTS) if serves(key_of(slot))}


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
    """Until all slots are looked at, an unknown list may have older events."""
    watching = Watching()
    refused, fallback = keys_of(6)
    watching.there = {fallback: 3, refused: 2}
    watching.watch.set_role(writable=True)
    while (job := watching.watch.poll()) is not None:
        assert watching.keeper.homes == []
        watching.watch.done(watching.run(job))
    assert watching.looks == 2 * 3
    assert watching.keeper.lengths == {fallback: 3, refused: 2}
    assert watching.keeper.homes == [key_of(7)]


def test_a_server_that_is_in_no_cluster_has_one_list_and_one_of_refused_events() -> None:
    watching = Watching(clustered=False)
    assert watching.watch.wake_at() is None
    watching.there = {key_of(6): 3, KEY: 2}
    watching.watch.set_role(writable=True)
    watching.settle()
    assert watching.looks == 2
    assert watching.keeper.homes == [KEY]
    assert watching.keeper.lengths == {KEY: 2}
    watching.there = {}
    watching.now += READ_EVERY
    watching.settle()
    assert watching.keeper.lengths == {KEY: 0}


def test_the_list_that_was_left_is_looked_at_again() -> None:
    """The keeper has left it because its slot was not served for a moment."""
    watching = Watching()
    watching.watch.set_role(writable=True)
    watching.settle()
    watching.there = {key_of(6): 4}
    watching.keeper.known, watching.keeper.unserved_key = False, key_of(6)
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
    watching.keeper.known = False  # as when a slot is not served
    watching.text = f"{WHOLE} 5-6"
    assert watching.seconds_until_it_reads() == pytest.approx(READ_AGAIN)
    watching.settle()
    assert watching.keeper.homes[-1] == key_of(6)
    assert watching.seconds_until_it_reads() == pytest.approx(READ_EVERY)


def test_what_a_replica_has_asked_is_not_told_of_the_primary() -> None:
    """From a reply to a replica, the new primary would take for a moment that it has no slots and
    no list with older events."""
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


def test_slots_that_were_handed_over_are_left_at_once() -> None:
    """Slots are left before the topology is read again, even if an older reading still has them."""
    watching = Watching()
    watching.there = {key_of(6): 4}
    watching.watch.set_role(writable=True)
    watching.settle()
    watching.now += READ_EVERY
    job = watching.watch.poll()
    assert job is not None
    result = watching.run(job)
    watching.keeper.lengths.clear()
    watching.watch.slots_moved({6, 7, 9}, came=False)
    assert watching.keeper.served == {5}
    assert watching.keeper.homes[-1] == key_of(5)
    watching.watch.done(result)
    watching.text = f"{WHOLE} 5"
    watching.settle()
    assert set(watching.keeper.homes[1:]) == {key_of(5)}
    assert key_of(6) not in watching.keeper.lengths


def test_slots_that_leave_during_the_search_are_left_too() -> None:
    watching = Watching()
    watching.watch.set_role(writable=True)
    job = watching.watch.poll()
    assert job is not None
    watching.watch.done(watching.run(job))
    watching.watch.slots_moved({7}, came=False)
    assert watching.keeper.served == {5, 6}
    assert watching.keeper.homes == []
    watching.text = f"{WHOLE} 5-6"
    watching.settle()
    assert watching.keeper.homes == [key_of(6)]


def test_slots_that_came_are_looked_at_at_once() -> None:
    watching = Watching()
    watching.watch.set_role(writable=True)
    watching.settle()
    watching.text, watching.there = f"{WHOLE} 5-8", {key_of(8): 3}
    watching.watch.slots_moved({8}, came=True)
    watching.settle()
    assert watching.keeper.lengths == {key_of(8): 3}
    assert watching.keeper.homes == [key_of(7), key_of(8)]


def test_slots_of_a_list_that_left_and_came_back_are_looked_at_again() -> None:
    """Another node may have put a list there meanwhile."""
    watching = Watching()
    watching.watch.set_role(writable=True)
    watching.settle()
    watching.there = {key_of(6): 3}
    watching.watch.slots_moved({6}, came=False)
    watching.watch.slots_moved({6}, came=True)
    watching.settle()
    assert watching.keeper.lengths == {key_of(6): 3}


def test_while_redis_is_busy_it_does_not_wake_up() -> None:
    """While a job is under way, only the end of the job is a reason to wake up."""
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
    """Jobs fail while the server is stopping. If it goes on, the keeper has to work without a
    list."""
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
