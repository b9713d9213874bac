"""The times of attempts to connect, and the parameters that need a new connection."""

from __future__ import annotations

from typing import Any

import pytest

from keyspace_amqp.broker.target import needs_new_connection
from keyspace_amqp.publisher.actions import Close, Connect
from keyspace_amqp.publisher.link import BACKOFF_MAX
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.values import replace
from tests.publisher.bench import Bench, away, connected, sent


def test_it_connects_when_there_is_something_to_send() -> None:
    bench = Bench()
    bench.wait(60)
    assert Connect() not in bench.actions
    assert bench.publisher.state == "idle"
    bench.emit()
    assert Connect() in bench.settle()
    assert bench.publisher.state == "connecting"
    assert sent(bench.link_up()) == [1]
    assert bench.publisher.state == "connected"


def test_it_connects_when_something_is_found_in_the_list() -> None:
    bench = Bench(found=1)
    assert Connect() in bench.settle()


def test_connect_connects_at_once_with_nothing_to_send() -> None:
    bench = Bench()
    bench.publisher.connect()
    assert Connect() in bench.settle()


def reconnections(jitter: float) -> list[float]:
    bench = Bench(jitter=jitter)
    bench.emit()
    bench.settle()
    delays = []
    for _ in range(8):
        bench.publisher.link_down("refused")
        delays.append(bench.seconds_until(Connect))
    return delays


@pytest.mark.parametrize(("jitter", "part"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_backoff_grows_up_to_a_bound(jitter: float, part: float) -> None:
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    # It is woken at the time or up to 10 ms later.
    assert reconnections(jitter) == pytest.approx([part * s for s in longest], abs=0.011)


def test_backoff_does_not_overflow() -> None:
    bench = Bench()
    bench.emit()
    for _ in range(5000):
        bench.publisher.link_down("refused")
    assert bench.seconds_until(Connect) <= BACKOFF_MAX + 0.011


def test_backoff_starts_again_after_a_confirm_and_not_before() -> None:
    """The publisher waits between attempts at a broker that accepts connections and closes
    them."""
    bench = Bench()
    bench.emit()
    bench.settle()
    for _ in range(4):
        bench.lose_link()
        bench.seconds_until(Connect)
        bench.link_up()
    bench.lose_link()
    assert bench.seconds_until(Connect) == pytest.approx(1.6, abs=0.011)
    bench.link_up()
    bench.ack(1)
    bench.emit()
    bench.lose_link()
    assert bench.seconds_until(Connect) == pytest.approx(0.1, abs=0.011)


def test_connections_after_the_first_are_counted() -> None:
    bench = connected()
    assert bench.count(Stat.RECONNECTS) == 0
    bench.lose_link()
    bench.link_up()
    assert bench.count(Stat.RECONNECTS) == 1


def test_disconnect_stays_away_until_connect() -> None:
    bench = connected()
    bench.publisher.disconnect()
    bench.emit(2)
    assert bench.wait(60).count(Close()) == 1
    bench.publisher.drain()  # asks for less than CONNECT does
    bench.wait(60)
    assert bench.actions.count(Connect()) == 1
    assert bench.publisher.state == "disconnected"
    assert bench.stored == [1, 2]
    bench.publisher.connect()
    assert Connect() in bench.settle()


def test_connect_does_not_wait_for_the_backoff() -> None:
    bench = away()
    assert Connect() not in bench.settle()
    bench.publisher.connect()
    assert Connect() in bench.settle()


def test_drain_does_not_wait_for_the_backoff() -> None:
    bench = away(found=1)
    assert Connect() not in bench.settle()
    bench.publisher.drain()
    assert Connect() in bench.settle()


def configure(bench: Bench, **parameters: Any) -> None:
    new = replace(bench.config, **parameters)
    bench.publisher.configure(new, reconnect=needs_new_connection(bench.config, new))


@pytest.mark.parametrize(
    ("name", "value"),
    [("host", "other"), ("port", 1), ("username", "u"), ("password", "p"), ("heartbeat", 9)],
)
def test_parameters_of_the_connection_make_a_new_one(name: str, value: Any) -> None:
    bench = connected()
    bench.emit(2)
    bench.settle()
    configure(bench, **{name: value})
    assert [a for a in bench.settle() if a in (Close(), Connect())] == [Close(), Connect()]
    assert sent(bench.link_up()) == [1, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [("exchange", "e"), ("routing_key", "r"), ("fallback_size", 7), ("masks", (b"*",))],
)
def test_other_parameters_leave_the_connection(name: str, value: Any) -> None:
    bench = connected()
    configure(bench, **{name: value})
    assert bench.settle() == []


def test_new_parameters_are_tried_at_once() -> None:
    bench = away()
    configure(bench, password="right")
    assert Connect() in bench.settle()
