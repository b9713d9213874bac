"""Events that were pushed recently."""

from __future__ import annotations

import pytest

from keyspace_amqp.publisher.entry import DONE, SENT, Entry
from keyspace_amqp.publisher.recent import PUSHED_RECENTLY, RecentPushes
from tests.publisher.objects.parts import SIZE, Clock, make_entries, make_entry
from tests.publisher.simulated import number_of, set_limit


def taken(recent: RecentPushes) -> list[int]:
    """The numbers of the events that a forced demotion takes out."""
    recent.demoted(agreed=False)
    return [number_of(event) for event in recent.take()]


def test_they_come_out_once_oldest_first() -> None:
    clock = Clock()
    recent = RecentPushes(clock, keep=True)
    recent.add(make_entries(2))
    clock.now += 1
    recent.add(make_entries(2, SENT, first=3))
    assert taken(recent) == [1, 2, 3, 4]
    assert taken(recent) == []


def test_after_a_while_they_are_forgotten() -> None:
    clock = Clock()
    recent = RecentPushes(clock, keep=True)
    recent.add(make_entries(1))
    clock.now += PUSHED_RECENTLY
    recent.add(make_entries(1, first=2))
    recent.expire()
    assert taken(recent) == [1, 2]
    recent.add(make_entries(1))
    clock.now += 0.001
    recent.add(make_entries(1, first=2))
    clock.now += PUSHED_RECENTLY
    assert taken(recent) == [2]


def test_what_nobody_misses_is_not_kept() -> None:
    """Confirmed entries, and elements that are no events."""
    recent = RecentPushes(Clock(), keep=True)
    recent.add([make_entry(1, DONE), Entry(None, 0.0, b"junk"), make_entry(2)])
    assert taken(recent) == [2]


def test_an_agreed_demotion_forgets_them() -> None:
    recent = RecentPushes(Clock(), keep=True)
    recent.add(make_entries(1))
    recent.demoted(agreed=True)
    assert not recent.wanted
    assert taken(recent) == []


def test_what_is_wanted_is_kept_until_it_is_taken() -> None:
    clock = Clock()
    recent = RecentPushes(clock, keep=True)
    recent.add(make_entries(1))
    recent.demoted(agreed=False)
    clock.now += 60
    recent.expire()
    recent.demoted(agreed=True)  # after a promotion, and before the result of the last push
    recent.add(make_entries(1, first=2))
    assert recent.wanted
    assert [number_of(event) for event in recent.take()] == [1, 2]
    assert not recent.wanted


def test_outside_of_a_cluster_nothing_is_kept() -> None:
    recent = RecentPushes(Clock(), keep=False)
    recent.add(make_entries(2))
    assert taken(recent) == []
    assert not recent.wanted


def test_no_more_bytes_than_the_window_has(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limit(monkeypatch, "WINDOW_BYTES", 2 * SIZE)
    recent = RecentPushes(Clock(), keep=True)
    recent.add(make_entries(5))
    assert taken(recent) == [4, 5]
    recent.add(make_entries(2))  # those that were taken do not count any more
    assert taken(recent) == [1, 2]


def test_forgotten_ones_take_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    set_limit(monkeypatch, "WINDOW_BYTES", 2 * SIZE)
    recent = RecentPushes(Clock(), keep=True)
    recent.add(make_entries(2))
    recent.demoted(agreed=True)
    recent.add(make_entries(2, first=3))
    assert taken(recent) == [3, 4]
