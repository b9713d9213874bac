"""The log of events in memory: its two marks, its order and its counts."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyspace_amqp.publisher.entry import DONE, REFUSED, SENT, WAITING, Entry, State
from keyspace_amqp.publisher.memory import Memory
from keyspace_amqp.publisher.window import WINDOW
from tests.publisher.objects.parts import (
    SIZE,
    lose_link,
    make_entries,
    make_entry,
    mark_sent,
    numbers_of,
)
from tests.publisher.simulated import set_limit


def make_memory(count: int, *, sent: int = 0, storing: int = 0) -> Memory:
    """A log of entries with the numbers from 1 on, the first ones sent, or being stored."""
    memory = Memory()
    memory.add(make_entries(count))
    mark_sent(memory.take(sent, 0))
    memory.storing = storing
    return memory


def confirm(memory: Memory, *numbers: int) -> None:
    """Confirms entries as Publisher.acked does."""
    for number in numbers:
        (entry,) = [entry for entry in memory if numbers_of([entry]) == [number]]
        assert entry.state is SENT
        entry.state = DONE
    memory.confirmed(len(numbers))


def counts(memory: Memory) -> tuple[int, int]:
    """How many wait, and how many are in flight."""
    assert memory.waiting_bytes == memory.waiting * SIZE
    return memory.waiting, memory.in_flight


# ---- the two marks ---------------------------------------------------------------------

MARKS = list(itertools.product([0, 1, 2, 4], [0, 1, 2, 4]))


@pytest.mark.parametrize(("sent", "storing"), MARKS)
def test_the_marks_do_not_change_the_order(sent: int, storing: int) -> None:
    memory = make_memory(4, sent=sent, storing=storing)
    assert numbers_of(memory) == [1, 2, 3, 4]
    assert numbers_of(memory.being_stored) == [1, 2, 3, 4][:storing]
    assert memory.unsent == 4 - max(sent, storing)
    assert counts(memory) == (4 - sent, sent)
    oldest = memory.oldest
    assert numbers_of([oldest] if oldest else []) == [1, 2, 3, 4][storing : storing + 1]


@pytest.mark.parametrize(("sent", "storing"), MARKS)
def test_inserted_entries_stand_behind_what_was_sent_or_is_being_stored(
    sent: int, storing: int
) -> None:
    memory = make_memory(4, sent=sent, storing=storing)
    memory.insert(make_entries(2, first=8))
    place = max(sent, storing)
    assert numbers_of(memory) == [*range(1, place + 1), 8, 9, *range(place + 1, 5)]
    assert counts(memory) == (6 - sent, sent)
    assert (memory.sent, memory.storing) == (sent, storing)


@pytest.mark.parametrize(("sent", "storing"), MARKS)
def test_a_lost_link_makes_all_wait_in_their_old_places(sent: int, storing: int) -> None:
    memory = make_memory(4, sent=sent, storing=storing)
    lose_link(memory, [entry for entry in memory if entry.state is SENT])
    assert numbers_of(memory) == [1, 2, 3, 4]
    assert {entry.state for entry in memory} == {WAITING}
    assert counts(memory) == (4, 0)
    assert (memory.sent, memory.storing) == (0, storing)


@pytest.mark.parametrize(("sent", "storing"), MARKS)
def test_a_push_that_was_done_takes_its_entries_out(sent: int, storing: int) -> None:
    memory = make_memory(4, sent=sent, storing=storing)
    for entry in memory.being_stored:
        memory.uncount(entry)
    memory.stored()
    assert numbers_of(memory) == [1, 2, 3, 4][storing:]
    assert (memory.sent, memory.storing) == (max(0, sent - storing), 0)
    assert counts(memory) == (4 - max(sent, storing), max(0, sent - storing))
    assert numbers_of(memory.take(1, 0)) == [1, 2, 3, 4][max(sent, storing) :][:1]


@pytest.mark.parametrize(("sent", "storing"), MARKS)
def test_a_push_that_failed_leaves_everything_in_its_place(sent: int, storing: int) -> None:
    memory = make_memory(4, sent=sent, storing=storing)
    memory.store_failed()
    assert numbers_of(memory) == [1, 2, 3, 4]
    assert (memory.sent, memory.storing) == (sent, 0)
    assert counts(memory) == (4 - sent, sent)
    assert numbers_of(memory.take(1, 0)) == [1, 2, 3, 4][sent:][:1]


@pytest.mark.parametrize(("sent", "storing"), MARKS)
def test_drop_oldest_spares_what_was_sent_or_is_being_stored(sent: int, storing: int) -> None:
    memory = make_memory(4, sent=sent, storing=storing)
    place = max(sent, storing)
    assert memory.drop_oldest(100 * SIZE, 0) == 4 - place
    assert numbers_of(memory) == list(range(1, place + 1))
    assert counts(memory) == (place - sent, sent)


@pytest.mark.parametrize(("sent", "storing"), MARKS)
@pytest.mark.parametrize("push_under_way", [True, False])
def test_after_a_repair_all_wait(sent: int, storing: int, push_under_way: bool) -> None:
    memory = make_memory(4, sent=sent, storing=storing)
    memory.waiting = memory.waiting_bytes = memory.in_flight = -7
    memory.repair(push_under_way=push_under_way)
    assert numbers_of(memory) == [1, 2, 3, 4]
    assert (memory.sent, memory.storing) == (0, storing if push_under_way else 0)
    assert {entry.state for entry in memory} == {WAITING}
    assert counts(memory) == (4, 0)


# ---- sending and confirms --------------------------------------------------------------


def test_take_continues_where_it_ended() -> None:
    memory = make_memory(5)
    for expected in ([1, 2], [3, 4], [5], []):
        entries = memory.take(2, 0)
        mark_sent(entries)
        assert numbers_of(entries) == expected
    assert counts(memory) == (0, 5)


def test_take_ends_where_the_window_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limit(monkeypatch, "WINDOW_BYTES", 3 * SIZE)
    memory = make_memory(9)
    assert memory.take(9, 3 * SIZE) == []
    assert numbers_of(memory.take(9, 2 * SIZE)) == [1]
    assert numbers_of(memory.take(9, 0)) == [2, 3, 4]
    assert counts(memory) == (5, 4)


def test_confirmed_entries_leave_when_all_older_ones_have_left() -> None:
    memory = make_memory(4, sent=3)
    confirm(memory, 2)
    assert numbers_of(memory) == [1, 2, 3, 4]
    assert counts(memory) == (1, 2)
    confirm(memory, 1)
    assert numbers_of(memory) == [3, 4]
    assert counts(memory) == (1, 1)
    assert memory.sent == 1
    confirm(memory, 3)
    assert numbers_of(memory) == [4]
    assert memory.sent == 0


def test_refused_entries_wait_until_they_are_taken() -> None:
    memory = make_memory(4, sent=3)
    memory.refused(list(memory)[1:3])
    assert [entry.state for entry in memory] == [SENT, REFUSED, REFUSED, WAITING]
    assert counts(memory) == (3, 1)
    assert numbers_of(memory.take_refused()) == [2, 3]
    assert numbers_of(memory) == [1, 4]
    assert counts(memory) == (1, 1)
    assert memory.take_refused() == []
    assert numbers_of(memory.take(9, 0)) == [4]


def test_refused_entries_of_a_push_job_become_elements() -> None:
    memory = make_memory(3, sent=3, storing=2)
    memory.refused(list(memory)[1:])
    assert memory.take_refused() == []  # number 2 may be in the list already
    for entry in memory.being_stored:
        memory.uncount(entry)
    memory.stored()
    assert numbers_of(memory.take_refused()) == [3]
    assert counts(memory) == (0, 0)


def test_refused_entries_wait_in_their_old_places_after_a_lost_link() -> None:
    memory = make_memory(3, sent=3)
    memory.refused(list(memory)[1:2])
    lose_link(memory, [entry for entry in memory if entry.state is SENT])
    assert [entry.state for entry in memory] == [WAITING] * 3
    assert memory.take_refused() == []
    assert counts(memory) == (3, 0)


def test_many_confirmed_entries_leave_the_log_though_an_older_one_waits() -> None:
    memory = make_memory(2 * WINDOW + 10, sent=2 * WINDOW + 10)
    entries = list(memory)[1:]
    for entry in entries:
        entry.state = DONE
    memory.confirmed(2 * WINDOW)
    assert len(memory) == 2 * WINDOW + 10
    memory.confirmed(9)
    assert numbers_of(memory) == [1]
    assert memory.sent == 1


@pytest.mark.parametrize("storing", [0, 1, 2, 3])
def test_a_lost_link_leaves_nothing_that_was_confirmed(storing: int) -> None:
    """Except in a push job, whose entries have to match its elements."""
    memory = make_memory(4, sent=3, storing=storing)
    confirm(memory, 2)
    lose_link(memory, [entry for entry in memory if entry.state is SENT])
    assert numbers_of(memory) == ([1, 2, 3, 4] if storing >= 2 else [1, 3, 4])
    assert counts(memory) == (3, 0)


# ---- storing ---------------------------------------------------------------------------


def test_entries_of_a_push_job_stay_though_they_are_confirmed() -> None:
    memory = make_memory(3, sent=2, storing=1)
    confirm(memory, 1, 2)
    assert numbers_of(memory.being_stored) == [1]
    assert numbers_of(memory) == [1, 2, 3]
    memory.stored()
    assert numbers_of(memory) == [3]
    assert memory.sent == 0
    assert counts(memory) == (1, 0)


def test_a_push_that_failed_leaves_nothing_that_was_confirmed_in_its_entries() -> None:
    memory = make_memory(4, sent=3, storing=3)
    confirm(memory, 1, 3)
    memory.store_failed()
    assert numbers_of(memory) == [2, 4]
    assert memory.sent == 1
    assert numbers_of(memory.take(9, 0)) == [4]


def test_confirmed_entries_behind_a_push_that_failed_leave_too() -> None:
    memory = make_memory(3, sent=3, storing=1)
    confirm(memory, 1, 2)
    memory.store_failed()
    assert numbers_of(memory) == [3]
    assert memory.sent == 1


def test_a_push_that_fails_after_the_link_was_lost() -> None:
    memory = make_memory(3, sent=2, storing=2)
    confirm(memory, 1)
    lose_link(memory, [entry for entry in memory if entry.state is SENT])
    memory.store_failed()
    assert numbers_of(memory) == [2, 3]
    assert (memory.sent, memory.storing) == (0, 0)


# ---- leaving ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("state", "expected"),
    [(WAITING, (1, 0)), (REFUSED, (1, 0)), (SENT, (2, -1)), (DONE, (2, 0))],
)
def test_uncount_takes_an_entry_out_of_the_count_that_it_is_in(
    state: State, expected: tuple[int, int]
) -> None:
    memory = make_memory(2)
    memory.uncount(make_entry(1, state))
    assert counts(memory) == expected


@pytest.mark.parametrize(
    ("size", "keep", "dropped"),
    [(0, 0, 0), (1, 0, 1), (SIZE, 0, 1), (SIZE + 1, 0, 2), (SIZE + 1, 3, 1), (99 * SIZE, 1, 3)],
)
def test_drop_oldest_drops_as_much_as_is_asked_but_never_the_newest(
    size: int, keep: int, dropped: int
) -> None:
    memory = make_memory(4)
    entries = list(memory)
    assert memory.drop_oldest(size, keep) == dropped
    assert numbers_of(memory) == [1, 2, 3, 4][dropped:]
    assert [entry.state for entry in entries] == [DONE] * dropped + [WAITING] * (4 - dropped)


def test_take_all_empties_the_log_and_leaves_the_counts() -> None:
    memory = make_memory(3, sent=2, storing=1)
    entries = memory.take_all()
    assert numbers_of(entries) == [1, 2, 3]
    assert not memory
    assert (memory.sent, memory.storing) == (0, 0)
    assert counts(memory) == (1, 2)
    for entry in entries:
        memory.uncount(entry)
    assert counts(memory) == (0, 0)


def test_a_repair_removes_what_is_done() -> None:
    memory = make_memory(4, sent=4, storing=2)
    confirm(memory, 2, 3)
    memory.repair(push_under_way=True)
    assert numbers_of(memory) == [1, 2, 4]
    assert [entry.state for entry in memory] == [WAITING, DONE, WAITING]
    assert counts(memory) == (2, 0)


# ---- any order of all of it ------------------------------------------------------------


@dataclasses.dataclass
class Known:
    """One entry in the model, which has no marks."""

    entry: Entry
    state: State = State.WAITING
    sent: bool = False  # on this connection
    storing: bool = False


class Model:
    """Memory as a list in which each entry carries its own state.

    An entry that is DONE leaves the list at once, unless it is being stored. `listed`:
    entries that were stored while they were in flight.
    """

    def __init__(self) -> None:
        self.memory = Memory()
        self.log: list[Known] = []
        self.listed: list[Known] = []
        self.made = 0

    def make(self, count: int) -> list[Known]:
        entries = make_entries(count, first=self.made + 1)
        self.made += count
        return [Known(entry) for entry in entries]

    def some(self, places: list[int], *states: State) -> list[Known]:
        """Choose entries of memory that have one of these states."""
        known = [known for known in self.log if known.state in states]
        chosen = {place % len(known) for place in places} if known else set()
        return [known[place] for place in sorted(chosen)]

    def set_state(self, some: list[Known], state: State) -> None:
        for known in some:
            known.state = state

    @property
    def is_storing(self) -> bool:
        return any(known.storing for known in self.log)

    # The operations. Where the publisher sets the state of an entry, the operation sets it.

    def add(self, count: int) -> None:
        new = self.make(count)
        self.log += new
        self.memory.add([known.entry for known in new])

    def insert(self, count: int) -> None:
        new = self.make(count)
        place = next(
            (n for n, known in enumerate(self.log) if not (known.sent or known.storing)),
            len(self.log),
        )
        self.log[place:place] = new
        self.memory.insert([known.entry for known in new])

    def take(self, most: int) -> None:
        if self.is_storing:
            return
        expected = [known for known in self.log if not known.sent][:most]
        taken = self.memory.take(most, 0)
        assert taken == [known.entry for known in expected]
        mark_sent(taken)
        for known in expected:
            known.state, known.sent = SENT, True

    def confirm(self, places: list[int]) -> None:
        some = self.some(places, SENT)
        self.set_state(some, DONE)
        for known in some:
            known.entry.state = DONE
        self.memory.confirmed(len(some))

    def refuse(self, places: list[int]) -> None:
        some = self.some(places, SENT)
        self.set_state(some, REFUSED)
        self.memory.refused([known.entry for known in some])

    def take_refused(self) -> None:
        taken = self.memory.take_refused()
        if not self.is_storing:
            assert taken == [known.entry for known in self.log if known.state is REFUSED]
            self.log = [known for known in self.log if known.state is not REFUSED]
        else:
            assert taken == []

    def give_up(self, places: list[int]) -> None:
        """As for messages that are too large."""
        some = self.some(places, SENT, REFUSED)
        self.set_state(some, DONE)
        for known in some:
            self.memory.uncount(known.entry)
            known.entry.state = DONE

    def begin_to_store(self, count: int) -> None:
        if self.is_storing or not self.log:
            return
        # The log may have entries that are DONE behind older ones; they are pushed too.
        entries = list(self.memory)[:count]
        for known in self.log:
            known.storing = known.entry in entries
        self.memory.storing = len(entries)

    def stored(self) -> None:
        for entry in self.memory.being_stored:
            self.memory.uncount(entry)
            entry.listed = True
        self.memory.stored()
        self.listed += [known for known in self.log if known.storing and known.state is SENT]
        self.log = [known for known in self.log if not known.storing]

    def store_failed(self) -> None:
        self.memory.store_failed()
        for known in self.log:
            known.storing = False

    def lose_link(self) -> None:
        in_flight = [known for known in self.log if known.state is SENT]
        lose_link(self.memory, [known.entry for known in in_flight])
        self.listed = []
        self.all_wait()

    def all_wait(self) -> None:
        for known in self.log:
            known.sent = False
            if known.state is not DONE:
                known.state = WAITING

    def drop_oldest(self, size: int, keep: int) -> None:
        new = [known for known in self.log if not (known.sent or known.storing)]
        dropped = []
        while len(new) > keep and sum(known.entry.size for known in dropped) < size:
            dropped.append(new.pop(0))
        self.set_state(dropped, DONE)
        assert self.memory.drop_oldest(size, keep) == len(dropped)
        assert all(known.entry.state is DONE for known in dropped)

    def repair(self, push_under_way: bool) -> None:
        self.memory.repair(push_under_way=push_under_way)
        for known in self.log:
            known.storing = known.storing and push_under_way
        self.listed = []
        self.all_wait()

    def check(self) -> None:
        self.log = [known for known in self.log if known.state is not DONE or known.storing]
        memory, live = self.memory, [known for known in self.log if known.state is not DONE]
        assert [e for e in memory if e.state is not DONE] == [known.entry for known in live]
        assert [known.entry.state for known in live] == [known.state for known in live]
        in_flight = [known for known in live if known.state is SENT]
        assert memory.in_flight == len(in_flight)
        assert memory.waiting == len(live) - len(in_flight)
        assert memory.waiting_bytes == memory.waiting * SIZE
        being_stored = [known.entry for known in self.log if known.storing]
        # Confirmed before the push began, behind an older entry: the model has no such.
        assert [e for e in memory.being_stored if e in being_stored] == being_stored
        assert memory.unsent == sum(not (known.sent or known.storing) for known in live)


COUNT, PLACES = st.integers(1, 6), st.lists(st.integers(0, 20), min_size=1, max_size=6)
STEPS = st.one_of(
    st.tuples(st.just(Model.add), COUNT),
    st.tuples(st.just(Model.insert), COUNT),
    st.tuples(st.just(Model.take), COUNT),
    st.tuples(st.just(Model.take), COUNT),
    st.tuples(st.just(Model.confirm), PLACES),
    st.tuples(st.just(Model.confirm), PLACES),
    st.tuples(st.just(Model.refuse), PLACES),
    st.tuples(st.just(Model.take_refused)),
    st.tuples(st.just(Model.give_up), PLACES),
    st.tuples(st.just(Model.begin_to_store), COUNT),
    st.tuples(st.just(Model.stored)),
    st.tuples(st.just(Model.store_failed)),
    st.tuples(st.just(Model.lose_link)),
    st.tuples(st.just(Model.drop_oldest), st.integers(0, 4 * SIZE), st.integers(0, 3)),
    st.tuples(st.just(Model.repair), st.booleans()),
)


@settings(max_examples=500, deadline=None)
@given(steps=st.lists(STEPS, min_size=3, max_size=30))
def test_two_marks_tell_as_much_as_a_state_for_each_entry(
    steps: list[tuple[Callable[..., None], *tuple[Any, ...]]],
) -> None:
    model = Model()
    model.add(4)
    for step, *arguments in steps:
        step(model, *arguments)
        model.check()
