"""The lists of a node, the choice among them, and changes by others."""

from __future__ import annotations

import pytest

from keyspace_amqp.publisher.fallback_list import FallbackList, ListState
from keyspace_amqp.publisher.ledger import Ledger
from keyspace_amqp.publisher.lists import Lists
from keyspace_amqp.publisher.window import Window
from keyspace_amqp.tables.keys import refused_key
from keyspace_amqp.tables.stats import FIRST_REASON, Stat
from tests.publisher.objects.parts import Clock, make_entries, make_ledger

HOME, NEAR, FAR = b"home", b"near", b"far"
REFUSED = refused_key(HOME)


class Bench:
    """The lists of a primary, unless the test says otherwise."""

    def __init__(self, *, primary: bool = True) -> None:
        self.ledger: Ledger = make_ledger()
        self.current = FallbackList(Window(Clock()), self.ledger)
        self.refused = FallbackList(Window(Clock()), self.ledger)
        self.lists = Lists(self.current, self.refused, self.ledger)
        if primary:
            self.lists.set_role(primary=True, writable=True)

    def tell(self, home: bytes | None = HOME, *, serves: tuple[bytes, ...] = ()) -> None:
        """All lists have been looked for."""
        self.lists.set_lists(home, (serves or (HOME, NEAR, FAR)).__contains__)

    @property
    def found(self) -> int:
        return self.ledger.counts[Stat.FALLBACK_FOUND]

    def dropped(self) -> dict[Stat, int]:
        counts = self.ledger.counts
        return {stat: counts[stat] for stat in Stat if stat >= FIRST_REASON and counts[stat]}

    def check(self) -> None:
        gauges = {Stat.FALLBACK_LENGTH: self.lists.length}
        assert self.ledger.difference({**gauges, Stat.QUEUE_LENGTH: 0, Stat.IN_FLIGHT: 0}) == 0


def working_with(key: bytes, length: int, **others: int) -> Bench:
    """A bench that works with a list, and knows the lengths of others."""
    bench = Bench()
    bench.tell(key)
    assert bench.lists.choose()
    bench.lists.set_length(bench.current, length)
    bench.lists.found({name.encode(): other for name, other in others.items()})
    bench.check()
    return bench


# ---- the choice ------------------------------------------------------------------------


def test_nothing_is_chosen_before_the_lists_are_known() -> None:
    bench = Bench()
    bench.lists.found({NEAR: 3})
    assert not bench.lists.choose()
    assert bench.current.key is None


def test_without_other_lists_the_own_one_is_chosen() -> None:
    bench = Bench()
    bench.tell()
    assert bench.lists.choose()
    assert (bench.current.key, bench.current.state) == (HOME, ListState.UNKNOWN)
    assert not bench.lists.choose()


def test_the_longest_comes_first_and_the_own_one_last() -> None:
    bench = Bench()
    bench.lists.found({NEAR: 3, FAR: 5})
    bench.tell()
    chosen = []
    while bench.lists.choose():
        chosen.append((bench.current.key, bench.current.length))
        bench.lists.set_length(bench.current, bench.current.length)
        bench.check()
        bench.ledger.dropped(Stat.DROPPED_PURGED, bench.current.length, "done with it")
        bench.current.length = 0
    assert chosen == [(FAR, 5), (NEAR, 3), (HOME, 0)]


def test_a_list_with_elements_is_not_changed_for_a_longer_one() -> None:
    bench = working_with(NEAR, 1, far=100)
    assert not bench.lists.choose()
    assert bench.current.key == NEAR


def test_a_list_of_unknown_length_may_have_elements() -> None:
    bench = working_with(HOME, 0, far=100)
    bench.current.state = ListState.UNKNOWN
    assert not bench.lists.choose()


@pytest.mark.parametrize("far", [0, 2])
def test_a_key_that_holds_something_else_is_left_only_for_a_list(far: int) -> None:
    """Without other lists, its length is still read: it may become a list again."""
    bench = working_with(HOME, 0, far=far)
    bench.current.state = ListState.NONE
    assert bench.lists.choose() == (far > 0)
    assert bench.current.key == (FAR if far else HOME)


def test_a_node_without_slots_has_no_list_to_wait_for() -> None:
    bench = Bench()
    bench.tell(None)
    assert not bench.lists.choose()
    assert (bench.current.key, bench.current.state) == (None, ListState.NONE)


def test_a_node_without_slots_delivers_what_it_still_has() -> None:
    bench = Bench()
    bench.lists.found({NEAR: 2})
    bench.tell(None)
    assert bench.lists.choose()
    assert bench.current.key == NEAR


# ---- which lists there are -------------------------------------------------------------


def test_the_lengths_of_other_lists_count() -> None:
    bench = working_with(HOME, 4, near=3, far=2)
    assert bench.lists.length == 9
    assert bench.lists.keys == [HOME, NEAR, FAR, REFUSED]
    bench.current.read(make_entries(4))
    bench.current.mark_done(bench.current.known[0])
    assert bench.lists.length == 8


def test_lists_that_are_found_again_change_by_the_difference() -> None:
    bench = working_with(HOME, 0, near=3)
    bench.lists.found({NEAR: 5})
    assert bench.found == 5
    bench.lists.found({NEAR: 1})
    assert bench.dropped() == {Stat.DROPPED_FALLBACK_REMOVED: 4}
    bench.lists.found({NEAR: 0})
    assert bench.lists.keys == [HOME, REFUSED]
    assert bench.dropped() == {Stat.DROPPED_FALLBACK_REMOVED: 5}
    bench.check()


def test_the_current_list_is_not_found_anew() -> None:
    """The publisher knows this length better: it may have changed since this reading."""
    bench = working_with(HOME, 4)
    bench.lists.found({HOME: 9})
    assert bench.lists.length == 4
    assert bench.lists.others == {}


def test_a_server_that_may_not_write_has_no_lists() -> None:
    bench = Bench(primary=False)
    bench.lists.found({NEAR: 3})
    bench.tell()
    assert not bench.lists.known
    assert bench.lists.keys == []
    assert bench.found == 0


def test_lists_of_slots_that_went_away_are_handed_over() -> None:
    bench = working_with(NEAR, 4, far=3)
    bench.tell(serves=(HOME, NEAR))
    assert bench.lists.keys == [NEAR]
    assert bench.found == 4
    bench.tell(serves=(HOME,))
    assert (bench.current.key, bench.current.state) == (None, ListState.UNKNOWN)
    assert bench.found == 0
    bench.check()


def test_all_lists_are_complete_when_they_are_known_and_one_is_chosen() -> None:
    bench = Bench()
    assert bench.lists.complete is None
    bench.tell()
    assert bench.lists.complete is None
    bench.lists.choose()
    assert bench.lists.complete == [HOME, REFUSED]
    bench.lists.leave_unserved()
    assert bench.lists.complete is None


def test_a_node_without_slots_has_no_list_and_knows_it() -> None:
    bench = Bench()
    bench.tell(None)
    assert bench.lists.complete == []


def test_a_list_that_turned_out_not_to_be_served_is_looked_for() -> None:
    bench = working_with(NEAR, 4, far=1)
    bench.lists.leave_unserved()
    assert bench.lists.unserved_key == NEAR
    assert (bench.current.key, bench.current.state) == (None, ListState.NONE)
    assert not bench.lists.known
    assert bench.lists.others == {FAR: 1}
    assert not bench.lists.choose()
    bench.check()


# ---- the role --------------------------------------------------------------------------


def test_a_change_of_role_forgets_all_lists() -> None:
    bench = working_with(HOME, 4, near=3)
    bench.lists.changed_by_others(b"evicted", HOME)
    bench.lists.set_role(primary=False, writable=False)
    assert (bench.lists.primary, bench.lists.writable, bench.lists.known) == (False, False, False)
    assert bench.lists.keys == []
    assert (bench.lists.length, bench.found) == (0, 0)
    bench.lists.set_role(primary=True, writable=True)
    bench.tell()
    bench.lists.choose()
    bench.lists.set_length(bench.current, 2)
    bench.lists.set_length(bench.current, 1)
    assert bench.dropped() == {Stat.DROPPED_FALLBACK_REMOVED: 1}


def test_the_same_role_once_more_changes_nothing() -> None:
    bench = working_with(HOME, 4, near=3)
    bench.lists.set_role(primary=True, writable=True)
    assert bench.lists.length == 7


def test_a_replica_that_loads_becomes_a_primary_that_loads() -> None:
    """The role changes, and the lists do not become writable."""
    bench = Bench(primary=False)
    bench.lists.set_role(primary=True, writable=False)
    assert bench.lists.primary
    assert not bench.lists.writable


# ---- reasons of losses -----------------------------------------------------------------

FLUSHED = "FLUSHALL, FLUSHDB or SWAPDB removed the fallback list"


@pytest.mark.parametrize(
    ("event", "reason", "text"),
    [
        (b"evicted", Stat.DROPPED_FALLBACK_EVICTED, "the fallback list was evicted"),
        (b"expired", Stat.DROPPED_FALLBACK_EXPIRED, "the fallback list expired"),
        (b"flushdb", Stat.DROPPED_FALLBACK_FLUSHED, FLUSHED),
        (b"swapdb", Stat.DROPPED_FALLBACK_FLUSHED, FLUSHED),
        (
            b"lpop",
            Stat.DROPPED_FALLBACK_REMOVED,
            "a client removed elements of the fallback list",
        ),
    ],
)
def test_the_command_is_the_reason(event: bytes, reason: Stat, text: str) -> None:
    bench = working_with(HOME, 4)
    bench.lists.changed_by_others(event, HOME)
    bench.lists.set_length(bench.current, 1)
    assert bench.dropped() == {reason: 3}
    (line,) = bench.ledger.logs(all_of_them=True)
    assert line.text == f"3 events lost: {text}"


def test_a_reason_holds_for_one_change() -> None:
    bench = working_with(HOME, 4)
    bench.lists.changed_by_others(b"evicted", HOME)
    bench.lists.set_length(bench.current, 4)  # nothing has changed yet
    bench.lists.set_length(bench.current, 3)
    bench.lists.set_length(bench.current, 2)
    assert bench.dropped() == {
        Stat.DROPPED_FALLBACK_EVICTED: 1,
        Stat.DROPPED_FALLBACK_REMOVED: 1,
    }


def test_the_last_command_counts() -> None:
    bench = working_with(HOME, 4)
    bench.lists.changed_by_others(b"evicted", HOME)
    bench.lists.changed_by_others(b"lpop", HOME)
    bench.lists.set_length(bench.current, 3)
    assert bench.dropped() == {Stat.DROPPED_FALLBACK_REMOVED: 1}


def test_a_reason_belongs_to_a_key_or_to_all() -> None:
    bench = working_with(HOME, 4, near=3, far=2)
    bench.lists.changed_by_others(b"expired", NEAR)
    bench.lists.found({NEAR: 0, FAR: 1})
    assert bench.dropped() == {
        Stat.DROPPED_FALLBACK_EXPIRED: 3,
        Stat.DROPPED_FALLBACK_REMOVED: 1,
    }
    bench.lists.changed_by_others(b"flushdb", b"")
    bench.lists.found({FAR: 0})
    bench.lists.set_length(bench.current, 0)
    assert bench.dropped()[Stat.DROPPED_FALLBACK_FLUSHED] == 1 + 4
    bench.check()


def test_commands_on_other_keys_are_no_reason() -> None:
    bench = working_with(HOME, 4)
    bench.lists.changed_by_others(b"evicted", b"unknown")
    bench.lists.set_length(bench.current, 0)
    assert bench.dropped() == {Stat.DROPPED_FALLBACK_REMOVED: 4}


def test_a_list_of_which_the_key_is_not_known_any_more() -> None:
    """The replies of a job come after its list was left."""
    bench = Bench()
    bench.current.length = 2
    bench.ledger.found(2)
    bench.lists.book_change(None, -2)
    assert bench.dropped() == {Stat.DROPPED_FALLBACK_REMOVED: 2}


def test_more_elements_are_found_without_a_reason() -> None:
    bench = working_with(HOME, 4)
    bench.lists.set_length(bench.current, 7)
    assert bench.found == 7
    assert bench.dropped() == {}


@pytest.mark.parametrize("state", list(ListState))
def test_a_node_that_has_lost_its_last_slot_waits_for_no_list(state: ListState) -> None:
    bench = working_with(HOME, 0)
    bench.current.state = state
    bench.lists.set_lists(None, lambda key: False)
    assert (bench.current.key, bench.current.state) == (None, ListState.NONE)
