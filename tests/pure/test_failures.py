"""Failures over one event."""

from __future__ import annotations

import pytest

from keyspace_amqp.failures import STRIKES, EventError, Strikes, each, shown
from keyspace_amqp.message import Event

EVENTS = [Event(f"run-{n}", n, 0, "$", b"set", b"%d" % n) for n in range(5)]


def test_strikes_count_in_a_row() -> None:
    strikes = Strikes()
    assert [strikes.failed("a") for _ in range(STRIKES)] == [False] * (STRIKES - 1) + [True]
    assert strikes.failed("a")
    for _ in range(STRIKES):
        assert not strikes.failed("b")
        assert not strikes.failed("c")


def test_the_first_event_over_which_something_fails() -> None:
    def make(event: Event) -> None:
        if event.time_ms >= 3:
            raise ValueError("no\nway")

    each(EVENTS[:3], make)
    with pytest.raises(EventError) as caught:
        each(EVENTS, make)
    assert caught.value.event is EVENTS[3]
    assert caught.value.why == "ValueError: no way"


def test_an_event_in_a_line_for_people() -> None:
    event = Event("run-1", 1, 7, "$", b"s\xffet\n", b"\xff\n" + b"k" * 200)
    text = shown(event)
    assert text == f"the event of key b'\\xff\\n{'k' * 98}'… (s\\xffet\\n, database 7)"
