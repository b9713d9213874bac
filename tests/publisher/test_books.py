"""Counters and log lines: each event is counted once."""

from __future__ import annotations

import pytest

from keyspace_amqp.publisher.actions import Log
from keyspace_amqp.tables.stats import Stat
from tests.publisher.bench import connected, sent, texts
from tests.publisher.simulated import assert_books_balance


def test_a_return_is_counted_and_not_repeated() -> None:
    bench = connected()
    bench.emit()
    bench.settle()
    bench.publisher.returned()
    assert sent(bench.ack(1)) == []
    assert (bench.count(Stat.RETURNED), bench.count(Stat.CONFIRMED)) == (1, 1)


def test_returns_are_logged_once_a_minute() -> None:
    """The first return is logged at once, later ones together; each is in exactly one line."""
    bench = connected()
    lines: list[tuple[float, str]] = []
    for second in range(150):
        bench.publisher.returned()
        lines += [(second, text.partition(" ")[0]) for text in texts(bench.wait(1))]
    assert lines == [(0, "1"), (60, "60"), (120, "60")]
    # The last ones are logged without another return.
    assert bench.seconds_until(Log) == pytest.approx(31, abs=0.1)
    (text,) = texts(bench.actions[-1:])
    assert text.startswith("29 messages reached no queue: exchange 'amq.direct' ")
    assert not texts(bench.wait(600))


def test_reset_stats_keeps_the_books() -> None:
    bench = connected(found=3)
    bench.emit(4)
    bench.settle()
    bench.ack(4, multiple=True)
    bench.publisher.reset_stats()
    assert_books_balance(bench.publisher)
    assert bench.count(Stat.CONFIRMED) == bench.count(Stat.PUBLISHED) == 0
    assert bench.count(Stat.EVENTS_MATCHED) == 3
    bench.ack(7, multiple=True)
    assert bench.count(Stat.CONFIRMED) == 3
