"""The known state of the fallback list: its head, its length, and its confirmed elements."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyspace_amqp.publisher.entry import DONE, REFUSED, SENT, WAITING, Entry, State, size_of
from keyspace_amqp.publisher.fallback_list import FallbackList, ListState
from keyspace_amqp.publisher.window import Window
from keyspace_amqp.tables.stats import Stat
from tests.publisher.objects.parts import (
    SIZE,
    Clock,
    make_entries,
    make_entry,
    make_ledger,
    numbers_of,
)
from tests.publisher.simulated import set_limit


class Bench:
    """A list with its window and ledger. The elements of the known head have numbers from 1 on."""

    def __init__(self, known: int = 0, *, length: int | None = None, sent: int = 0) -> None:
        self.window = Window(Clock())
        self.ledger = make_ledger()
        self.list = FallbackList(self.window, self.ledger)
        self.list.choose(b"key", 0)
        self.list.set_length(known if length is None else length)
        entries = make_entries(known)
        for entry in entries:
            entry.listed = True
        self.list.read(entries)
        self.send(sent)

    def send(self, most: int) -> list[int]:
        """Sends as Publisher does; returns the numbers."""
        entries = [e for e in self.list.take(most, self.window.bytes) if e.state is WAITING]
        self.window.send(entries)
        return numbers_of(entries)

    def confirm(self, *numbers: int) -> None:
        for entry in self.list.known:
            if numbers_of([entry])[0] in numbers:
                self.window.give_up(entry)
                self.list.mark_done(entry)

    def count(self, stat: Stat) -> int:
        return self.ledger.counts[stat]

    def check(self) -> None:
        """The counts match the entries."""
        known = list(self.list.known)
        done = [entry for entry in known if entry.state is DONE]
        assert (self.list.done, self.list.done_bytes) == (len(done), size_of(done))
        assert 0 <= self.list.unsent <= len(known)
        unsent = known[len(known) - self.list.unsent :]
        assert self.list.unsent_bytes == size_of(unsent)
        assert self.list.undelivered == self.list.length - len(done)
        assert self.list.unread >= 0
        sent = known[: len(known) - self.list.unsent]
        assert WAITING not in [entry.state for entry in sent]
        in_flight = [entry for entry in known if entry.state is SENT]
        assert (self.window.count, self.window.bytes) == (len(in_flight), size_of(in_flight))


def test_a_list_that_is_not_chosen_is_not_known() -> None:
    fallback = FallbackList(Window(Clock()), make_ledger())
    assert (fallback.key, fallback.state, fallback.length) == (None, ListState.UNKNOWN, 0)
    assert not fallback.is_ready
    fallback.choose(b"key", 5)
    assert (fallback.key, fallback.state, fallback.length) == (b"key", ListState.UNKNOWN, 5)
    assert fallback.set_length(6) == 1
    assert fallback.is_ready
    fallback.choose(b"other", 0)
    assert not fallback.is_ready


# ---- sending ---------------------------------------------------------------------------


def test_take_goes_on_in_the_order_of_the_list() -> None:
    bench = Bench(5, length=7)
    assert bench.send(2) == [1, 2]
    assert (bench.list.unsent, bench.list.unread) == (3, 2)
    bench.check()
    assert bench.send(9) == [3, 4, 5]
    assert bench.send(9) == []
    assert bench.list.unsent == 0
    bench.check()


def test_take_ends_where_the_window_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench(5)
    set_limit(monkeypatch, "WINDOW_BYTES", 2 * SIZE)
    assert bench.list.take(9, 2 * SIZE) == []
    assert numbers_of(bench.list.take(9, SIZE)) == [1]
    assert numbers_of(bench.list.take(9, 0)) == [2, 3]


def test_only_confirmed_elements_at_the_head_can_be_trimmed() -> None:
    bench = Bench(5, sent=4)
    bench.confirm(1, 2, 4)
    assert numbers_of(bench.list.done_prefix()) == [1, 2]
    bench.list.trimmed(2)
    assert numbers_of(bench.list.known) == [3, 4, 5]
    assert (bench.list.length, bench.list.unsent, bench.list.done) == (3, 1, 1)
    assert bench.count(Stat.FALLBACK_DRAINED) == 2
    assert bench.list.done_prefix() == []
    bench.check()


def test_junk_can_be_trimmed_only_when_its_turn_has_come() -> None:
    bench = Bench()
    bench.list.set_length(1)
    junk = Entry(None, 0.0, b"junk")
    junk.state = DONE
    bench.list.mark_done(junk)
    bench.list.read([junk])
    assert bench.list.done_prefix() == []
    assert bench.send(1) == []
    assert bench.list.done_prefix() == [junk]
    bench.check()


def test_after_a_lost_link_all_but_the_confirmed_head_is_sent_again() -> None:
    bench = Bench(6, sent=5)
    bench.confirm(1, 3)
    bench.window.close()
    bench.list.link_lost(resend_refused=True)
    assert numbers_of(bench.list.done_prefix()) == [1]
    bench.check()
    assert bench.send(9) == [2, 4, 5, 6]
    bench.check()


# ---- the length ------------------------------------------------------------------------


def test_a_longer_list_keeps_its_head() -> None:
    bench = Bench(3, sent=2)
    generation = bench.list.generation
    assert bench.list.set_length(5) == 2
    assert (len(bench.list.known), bench.list.unread) == (3, 2)
    assert bench.list.generation == generation


def test_an_unchanged_length_changes_nothing() -> None:
    bench = Bench(3, sent=2)
    generation = bench.list.generation
    assert bench.list.set_length(3) == 0
    assert len(bench.list.known) == 3
    assert bench.list.generation == generation


def test_a_shorter_list_is_read_again() -> None:
    """It is not known which elements were removed."""
    bench = Bench(4, sent=3)
    bench.confirm(1)
    entries, generation = list(bench.list.known), bench.list.generation
    found = bench.count(Stat.FALLBACK_FOUND)
    assert bench.list.set_length(3) == -1
    assert list(bench.list.known) == []
    assert {entry.state for entry in entries} == {DONE}
    assert bench.list.generation != generation
    assert bench.count(Stat.FALLBACK_FOUND) == found + 1  # it will be delivered once more
    assert (bench.list.length, bench.list.unread, bench.list.undelivered) == (3, 3, 3)
    bench.check()


# ---- pushed behind it ------------------------------------------------------------------


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("all_sent", [True, False])
def test_an_enlisted_entry_waits_only_if_it_must(state: State, all_sent: bool) -> None:
    bench = Bench(2, sent=2 if all_sent else 1)
    entry = make_entry(3, state)
    bench.list.enlist(entry)
    assert entry.listed
    assert bench.list.length == 3
    assert bench.list.unread == 0
    in_turn = all_sent and state is not WAITING
    assert bench.list.unsent == (0 if all_sent else 1) + (not in_turn)
    assert bench.list.done == (state is DONE)
    assert bench.list.unsent_bytes == bench.list.unsent * SIZE


def test_an_entry_that_was_sent_before_is_not_sent_again() -> None:
    bench = Bench(1)
    flying, refused, waiting = make_entry(2), make_entry(3, REFUSED), make_entry(4)
    bench.window.send([flying])
    for entry in (flying, refused, waiting):
        bench.list.enlist(entry)
    bench.check()
    assert bench.send(9) == [1, 4]
    bench.check()


def test_pushed_elements_that_are_not_known_are_read_later() -> None:
    bench = Bench(2)
    bench.list.grow(3)
    assert (bench.list.length, bench.list.unread) == (5, 3)


# ---- a full list -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "lost", "known"),
    [(0, 0, [1, 2, 3, 4]), (1, 0, [2, 3, 4]), (3, 2, [4]), (4, 3, []), (6, 5, [])],
)
def test_what_falls_off_is_lost_unless_it_was_confirmed(
    count: int, lost: int, known: list[int]
) -> None:
    """Elements behind the known head can fall off too."""
    bench = Bench(4, length=7, sent=3)
    bench.confirm(1)
    entries = list(bench.list.known)
    assert bench.list.cut(count) == lost
    assert numbers_of(bench.list.known) == known
    assert bench.list.length == 7 - count
    assert {entry.state for entry in entries[:count]} <= {DONE}
    assert bench.count(Stat.FALLBACK_DRAINED) == min(count, 1)
    bench.check()


# ---- losing sight of it ----------------------------------------------------------------


def test_a_list_that_is_handed_over_is_not_counted_any_more() -> None:
    bench = Bench(3, length=5, sent=2)
    bench.ledger.found(5)
    bench.confirm(1)
    generation = bench.list.generation
    bench.list.hand_over()
    # One was confirmed, and the new owner finds it once more.
    assert bench.count(Stat.FALLBACK_FOUND) == 1
    assert (bench.list.length, len(bench.list.known)) == (0, 0)
    assert bench.list.generation != generation
    assert bench.list.key == b"key"
    bench.check()


def test_a_list_that_is_left_has_no_key() -> None:
    bench = Bench(3, length=5)
    bench.list.leave()
    assert (bench.list.key, bench.list.state, bench.list.length) == (None, ListState.UNKNOWN, 0)


# ---- any order of all of it ------------------------------------------------------------


class Story(Bench):
    """All operations on a list, in any order. The books of the list have to balance.

    `came` and `gone`: elements that were put into the list and left it, by the test's own
    count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made = 0
        self.came = self.gone = 0

    def check(self) -> None:
        super().check()
        assert self.list.length == self.came - self.gone

    def read(self, count: int) -> None:
        count = min(count, self.list.unread)
        entries = make_entries(count, first=self.made + 1)
        self.made += count
        for entry in entries:
            entry.listed = True
        self.list.read(entries)

    def push(self, count: int, states: list[State]) -> None:
        known = self.list.unread == 0
        for state in states[:count]:
            self.made += 1
            entry = make_entry(self.made)
            if not known:
                self.list.grow(1)
                continue
            if state is SENT:
                self.window.send([entry])
            entry.state = state
            self.list.enlist(entry)
        self.came += len(states[:count])

    def confirm_some(self, places: list[int]) -> None:
        in_flight = [entry for entry in self.list.known if entry.state is SENT]
        if in_flight:
            numbers = numbers_of(in_flight)
            self.confirm(*{numbers[place % len(numbers)] for place in places})

    def trim(self, most: int) -> None:
        count = min(most, len(self.list.done_prefix()))
        self.list.trimmed(count)
        self.gone += count

    def cut(self, count: int) -> None:
        count = min(count, self.list.length)
        drained = self.count(Stat.FALLBACK_DRAINED)
        lost = self.list.cut(count)
        assert lost + self.count(Stat.FALLBACK_DRAINED) - drained == count
        self.gone += count

    def others(self, change: int) -> None:
        change = max(change, -self.list.length)
        assert self.list.set_length(self.list.length + change) == change
        self.came += change

    def lose_link(self) -> None:
        for entry in (*self.window.close(), *self.list.known):
            if entry.state is not DONE:
                entry.state = WAITING
        self.list.link_lost(resend_refused=True)

    def hand_over(self) -> None:
        self.gone += self.list.length
        self.list.hand_over()


COUNT, PLACES = st.integers(1, 6), st.lists(st.integers(0, 20), min_size=1, max_size=6)
STEPS = st.one_of(
    st.tuples(st.just(Story.send), COUNT),
    st.tuples(st.just(Story.send), COUNT),
    st.tuples(st.just(Story.read), COUNT),
    st.tuples(st.just(Story.push), COUNT, st.lists(st.sampled_from(State), min_size=1)),
    st.tuples(st.just(Story.confirm_some), PLACES),
    st.tuples(st.just(Story.trim), COUNT),
    st.tuples(st.just(Story.cut), COUNT),
    st.tuples(st.just(Story.others), st.integers(-3, 6)),
    st.tuples(st.just(Story.lose_link)),
    st.tuples(st.just(Story.hand_over)),
)


@settings(max_examples=300, deadline=None)
@given(steps=st.lists(STEPS, min_size=3, max_size=30))
def test_the_counts_say_what_the_entries_say(
    steps: list[tuple[Callable[..., None], *tuple[Any, ...]]],
) -> None:
    story = Story()
    for step, *arguments in steps:
        step(story, *arguments)
        story.check()


def test_a_trim_under_way_is_forgotten_with_the_known_head() -> None:
    """Else the first elements that are read anew would count as sent after a lost link."""
    fallback = FallbackList(Window(Clock()), make_ledger())
    fallback.choose(b"key", 0)
    fallback.set_length(3)
    fallback.trimming = 2
    fallback.forget_head()
    fallback.read(make_entries(3))
    fallback.link_lost(resend_refused=False)
    assert numbers_of(fallback.take(9, 0)) == [1, 2, 3]
