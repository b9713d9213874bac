"""The window: tags, confirms, stale slots, its size, and a broker that is silent."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyspace_amqp.publisher.entry import DONE, SENT, WAITING, Entry, size_of
from keyspace_amqp.publisher.window import (
    LATE_AFTER,
    PROBE_MAX,
    PROBES,
    STALLED_AFTER,
    WINDOW,
    Window,
)
from tests.publisher.objects.parts import SIZE, Clock, make_entries, make_entry, numbers_of


def make_window(count: int = 0, clock: Clock | None = None) -> tuple[Window, list[Entry]]:
    """A window with this many messages in flight, with tags from 1 on."""
    window = Window(clock or Clock())
    entries = make_entries(count)
    if entries:
        assert window.send(entries) == 1
    return window, entries


def settle(window: Window, below: int, tags: tuple[int, ...] = ()) -> list[int]:
    """Settles tags as Publisher.acked does; returns the numbers of the events."""
    entries = window.settle(below, tags)
    assert all(entry.state is SENT for entry in entries)
    for entry in entries:
        entry.state = DONE
    return numbers_of(entries)


def test_tags_count_on() -> None:
    window, entries = make_window(2)
    assert window.send(make_entries(3, first=3)) == 3
    assert window.next_tag == 6
    assert all(entry.state is SENT for entry in entries)
    assert numbers_of(window.in_flight()) == [1, 2, 3, 4, 5]
    assert (window.count, window.bytes) == (5, 5 * SIZE)


def test_settle_up_to_a_tag() -> None:
    window, _ = make_window(5)
    assert settle(window, 3) == [1, 2, 3]
    assert settle(window, 3) == []
    assert settle(window, 4) == [4]
    assert (window.count, window.bytes, len(window)) == (1, SIZE, 1)


def test_settle_single_tags_in_any_order() -> None:
    window, _ = make_window(5)
    assert settle(window, 0, (4, 2)) == [4, 2]
    assert settle(window, 0, (4,)) == []
    assert numbers_of(window.in_flight()) == [1, 3, 5]
    assert settle(window, 5) == [1, 3, 5]
    assert (window.count, window.bytes, len(window)) == (0, 0, 0)


def test_settle_both_at_once() -> None:
    window, _ = make_window(6)
    assert settle(window, 2, (2, 5, 4)) == [1, 2, 5, 4]
    assert numbers_of(window.in_flight()) == [3, 6]


def test_tags_that_were_never_sent_are_ignored() -> None:
    window, _ = make_window(2)
    assert settle(window, 3) == []
    assert settle(window, 0, (0, 3, -1)) == []
    assert window.count == 2


def test_stale_slots_at_the_head_go_with_the_next_answer() -> None:
    window, entries = make_window(4)
    settle(window, 0, (2,))
    window.give_up(entries[2])
    assert len(window) == 4
    assert settle(window, 0, (1,)) == [1]
    assert len(window) == 1
    assert settle(window, 0, (4,)) == [4]


def test_an_entry_that_was_given_up_is_not_settled() -> None:
    window, entries = make_window(3)
    window.give_up(entries[1])
    assert entries[1].state is DONE
    assert (window.count, window.bytes) == (2, 2 * SIZE)
    window.give_up(entries[1])
    assert window.count == 2
    assert numbers_of(window.in_flight()) == [1, 3]
    assert settle(window, 0, (2,)) == []
    assert settle(window, 3) == [1, 3]
    assert window.count == 0


def test_giving_up_an_entry_that_was_not_sent_changes_no_count() -> None:
    window, _ = make_window(1)
    waiting = make_entry(2)
    window.give_up(waiting)
    assert waiting.state is DONE
    assert (window.count, window.bytes) == (1, SIZE)


def test_a_closed_window_has_forgotten_its_tags() -> None:
    window, _ = make_window(3)
    settle(window, 0, (2,))
    assert numbers_of(window.close()) == [1, 3]
    assert (window.count, window.bytes, len(window)) == (0, 0, 0)
    assert settle(window, 3, (1, 2, 3)) == []
    window.open()
    assert window.send(make_entries(1)) == 1


def test_overtaken_messages_take_no_room() -> None:
    window, _ = make_window(WINDOW)
    assert window.room == 0
    settle(window, 0, (WINDOW // 2,))
    assert window.overtaken == WINDOW // 2 - 1
    assert window.room == WINDOW // 2
    assert not window.is_busy


def test_more_overtaken_messages_than_a_window_do() -> None:
    window, _ = make_window(2 * WINDOW)
    settle(window, 0, (WINDOW + 6,))
    assert window.overtaken == WINDOW + 5
    assert window.room == 6 - 5
    settle(window, 0, (2 * WINDOW - 10,))
    settle(window, WINDOW)
    assert window.room == WINDOW - 10


def test_overtaken_messages_are_no_reason_to_stall() -> None:
    clock = Clock()
    window, _ = make_window(3, clock)
    settle(window, 0, (3,))
    clock.now += 10 * STALLED_AFTER
    assert not window.is_stalled
    assert window.stalls_at is None
    window.send(make_entries(1, first=4))
    assert window.stalls_at == clock.now + STALLED_AFTER


def test_a_stalled_broker_gets_single_messages_less_and_less_often() -> None:
    clock = Clock()
    window, _ = make_window(WINDOW, clock)
    times = []
    for number in range(PROBES):
        while not window.room:
            clock.now += 0.05
        assert window.room == 1
        times.append(clock.now)
        window.send(make_entries(1, first=WINDOW + number))
    gaps = [round(after - before, 2) for before, after in itertools.pairwise(times)]
    assert gaps[:6] == pytest.approx([0.5, 1.0, 2.0, 4.0, PROBE_MAX, PROBE_MAX], abs=0.06)
    clock.now += 10 * PROBE_MAX
    assert window.room == 0
    settle(window, 0, (WINDOW + 7,))  # one of them is answered
    window.progress()
    assert window.room > WINDOW // 2


def test_messages_that_stay_are_set_aside_and_still_settled() -> None:
    clock = Clock()
    window, _ = make_window(3, clock)
    sent_at = clock.now
    for number in range(3):
        clock.now += 1
        window.send(make_entries(WINDOW, first=4 + number * WINDOW))
        settle(window, 0, tuple(range(4 + number * WINDOW, 4 + (number + 1) * WINDOW)))
    assert len(window) == 3  # and not one slot for each tag
    assert numbers_of(window.in_flight()) == [1, 2, 3]
    oldest = window.oldest
    assert oldest is not None
    assert numbers_of([oldest[0]]) == [1]
    assert oldest[1] == sent_at
    assert settle(window, 0, (2,)) == [2]
    assert settle(window, 3) == [1, 3]
    assert (window.count, window.bytes, len(window)) == (0, 0, 0)


def test_late_messages_that_fill_the_window_are_taken_out() -> None:
    clock = Clock()
    window, _ = make_window(WINDOW + 1, clock)
    window.send(make_entries(1, first=WINDOW + 2))
    settle(window, 0, (WINDOW + 2,))
    assert window.take_late() == []  # not late yet
    clock.now += LATE_AFTER
    late = window.take_late()
    assert numbers_of(late) == list(range(1, WINDOW // 2 + 2))
    for entry in late:
        entry.state = WAITING
    assert window.count == WINDOW // 2
    assert settle(window, 0, (1,)) == []
    assert window.take_late() == []


def test_the_time_of_the_oldest_message_counts_from_the_end_of_a_block() -> None:
    clock = Clock()
    window, _ = make_window(2, clock)
    clock.now += 100
    window.restart_clocks()
    oldest = window.oldest
    assert oldest is not None
    assert oldest[1] == clock.now


def test_busy_is_more_than_half() -> None:
    window, _ = make_window(WINDOW // 2)
    assert not window.is_busy
    window.send(make_entries(1))
    assert window.is_busy


def test_a_broker_is_stalled_if_it_answers_nothing_for_a_while() -> None:
    clock = Clock()
    window, _ = make_window(2, clock)
    assert window.stalls_at == clock.now + STALLED_AFTER
    clock.now += STALLED_AFTER - 0.01
    assert not window.is_stalled
    clock.now += 0.01
    assert window.is_stalled
    window.progress()
    assert not window.is_stalled
    assert window.stalls_at == clock.now + STALLED_AFTER


def test_more_messages_are_no_progress() -> None:
    clock = Clock()
    window, _ = make_window(1, clock)
    clock.now += STALLED_AFTER
    window.send(make_entries(1))
    assert window.is_stalled


def test_with_nothing_in_flight_nothing_stalls() -> None:
    clock = Clock()
    window, _ = make_window(1, clock)
    settle(window, 1)
    clock.now += 10 * STALLED_AFTER
    assert not window.is_stalled
    assert window.stalls_at is None
    window.send(make_entries(1))  # the time counts from here
    assert not window.is_stalled
    assert window.stalls_at == clock.now + STALLED_AFTER


def test_a_new_connection_begins_with_a_new_time() -> None:
    clock = Clock()
    window, _ = make_window(1, clock)
    clock.now += STALLED_AFTER
    window.close()
    window.open()
    window.send(make_entries(1))
    assert not window.is_stalled


class NaiveWindow:
    """A dictionary of the entries in flight, by tag."""

    def __init__(self) -> None:
        self.by_tag: dict[int, Entry] = {}
        self.next_tag = 1
        self.answered = 0

    @property
    def room(self) -> int:
        unanswered = self.next_tag - 1 - self.answered
        overtaken = max(0, len(self.by_tag) - unanswered)
        return WINDOW - unanswered - max(0, overtaken - WINDOW)

    def settle(self, below: int, tags: list[int]) -> list[Entry]:
        sent = [tag for tag in (below, *tags) if tag < self.next_tag]
        self.answered = max([self.answered, *sent])
        up_to = sorted(tag for tag in self.by_tag if below < self.next_tag and tag <= below)
        taken = [self.by_tag.pop(tag) for tag in up_to]
        return taken + [self.by_tag.pop(tag) for tag in tags if tag in self.by_tag]


TAGS = st.integers(-1, 25)
STEPS = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 5)),
    st.tuples(st.just("settle"), TAGS, st.lists(TAGS, max_size=4)),
    st.tuples(st.just("give up"), st.integers(0, 10)),
    st.tuples(st.just("reconnect")),
)


@settings(max_examples=200, deadline=None)
@given(steps=st.lists(STEPS, max_size=25))
def test_the_window_agrees_with_a_dictionary(steps: list[tuple]) -> None:  # type: ignore[type-arg]
    window, naive = Window(Clock()), NaiveWindow()
    made = 0
    for name, *arguments in steps:
        match name:
            case "send":
                entries = make_entries(*arguments, first=made + 1)
                made += len(entries)
                assert window.send(entries) == naive.next_tag
                naive.by_tag |= enumerate_from(naive.next_tag, entries)
                naive.next_tag += len(entries)
            case "settle":
                below, tags = arguments
                settled = window.settle(below, tags)
                assert settled == naive.settle(below, tags)
                for entry in settled:
                    entry.state = DONE
                # No stale slots before the oldest entry in flight.
                oldest = min(naive.by_tag, default=naive.next_tag)
                assert len(window) == naive.next_tag - oldest
            case "give up" if naive.by_tag:
                (place,) = arguments
                tag = list(naive.by_tag)[place % len(naive.by_tag)]
                window.give_up(naive.by_tag.pop(tag))
            case "reconnect":
                assert window.close() == list(naive.by_tag.values())
                window.open()
                naive = NaiveWindow()
        in_flight = list(naive.by_tag.values())
        assert window.in_flight() == in_flight
        assert (window.count, window.bytes) == (len(in_flight), size_of(in_flight))
        assert window.room == naive.room
        assert window.next_tag == naive.next_tag


def enumerate_from(first: int, entries: list[Entry]) -> dict[int, Entry]:
    return dict(enumerate(entries, first))
