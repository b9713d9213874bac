"""The throttle, with a simulated clock and machine."""

from __future__ import annotations

import pytest

from keyspace_amqp.worker import throttle
from keyspace_amqp.worker.throttle import FASTEST, SLOWEST, Throttle

LOOK_EVERY = 0.01


class Machine:
    """Redis' main thread: of each second it runs for a part and waits for a part."""

    def __init__(self) -> None:
        self.now, self.ran, self.waited = 50.0, 7.0, 3.0
        self.throttle = Throttle()
        self.throttle.sample(self.now, self.ran, self.waited)

    def looks(self, count: int, runs: float, waits: float) -> float | None:
        for _ in range(count):
            self.now += LOOK_EVERY
            self.ran += runs * LOOK_EVERY
            self.waited += waits * LOOK_EVERY
            self.throttle.sample(self.now, self.ran, self.waited)
        return self.throttle.rate

    def sends(self, seconds: float, turn: float) -> int:
        """The number of messages that are allowed in a time, in turns of the given length."""
        total = 0
        for _ in range(round(seconds / turn)):
            self.now += turn
            allowed = self.throttle.grant(self.now)
            assert allowed is not None
            self.throttle.sent(allowed, self.now)
            total += allowed
        return total


def test_a_redis_that_sleeps_brakes_nobody() -> None:
    machine = Machine()
    assert machine.looks(500, runs=0.5, waits=0.3) is None
    assert machine.throttle.grant(machine.now) is None


def test_a_redis_with_a_core_of_its_own_brakes_nobody() -> None:
    assert Machine().looks(500, runs=0.97, waits=0.03) is None


def test_a_redis_that_lacks_a_core_brakes_to_the_slowest() -> None:
    machine = Machine()
    assert machine.looks(100, runs=0.7, waits=0.3) == SLOWEST


def test_a_moment_is_not_enough() -> None:
    """Linux reports a wait of 30 ms only when it is over."""
    machine = Machine()
    for _ in range(20):
        assert machine.looks(47, runs=0.99, waits=0.01) is None
        assert machine.looks(2, runs=0.0, waits=0.0) is None
        assert machine.looks(1, runs=0.0, waits=3.0) is None


def test_the_brake_goes_step_by_step_while_redis_is_busy() -> None:
    machine = Machine()
    machine.looks(100, runs=0.7, waits=0.3)
    before = SLOWEST
    for _ in range(20):
        machine.looks(1, runs=1.0, waits=0.0)
    rate = machine.throttle.rate
    assert rate is not None
    assert before < rate < FASTEST
    assert machine.looks(100, runs=1.0, waits=0.0) is None


def test_the_brake_goes_when_redis_sleeps() -> None:
    machine = Machine()
    machine.looks(100, runs=0.7, waits=0.3)
    assert machine.looks(2, runs=0.2, waits=0.0) is None


def test_the_brake_finds_what_redis_can_bear() -> None:
    """Redis waits a little for each message that is sent: the limit settles around the rate at
    which Redis waits for the accepted part of the time."""
    machine = Machine()
    rates = []
    for _ in range(2000):
        rate = machine.throttle.rate or FASTEST
        waits = min(rate / 20_000 * throttle.WAITS, 0.5)
        machine.looks(1, runs=1 - waits, waits=waits)
        rates.append(rate)
    settled = sorted(rates[1000:])
    assert 10_000 < settled[len(settled) // 2] < 40_000


@pytest.mark.parametrize("turn", [0.0001, 0.001, 0.0037])
def test_as_many_are_allowed_as_the_rate_says(turn: float) -> None:
    """However short the turns are; at the slowest rate most turns allow none."""
    machine = Machine()
    machine.looks(100, runs=0.7, waits=0.3)
    machine.sends(1, turn)
    assert machine.sends(10, turn) == pytest.approx(10 * SLOWEST, rel=0.01)


def test_what_is_allowed_and_not_sent_stays_allowed() -> None:
    """In many turns there is nothing to send, or the window is full."""
    machine = Machine()
    machine.looks(100, runs=0.7, waits=0.3)
    machine.sends(1, 0.001)
    for _ in range(10):
        machine.now += 0.001
        machine.throttle.grant(machine.now)
    assert machine.throttle.grant(machine.now) == pytest.approx(SLOWEST * 0.01, abs=1)
    machine.throttle.sent(40, machine.now)
    assert machine.throttle.grant(machine.now) == pytest.approx(SLOWEST * 0.01 - 40, abs=1)


def test_what_was_sent_without_a_limit_is_no_debt() -> None:
    """Without a list, or with worker-nice 0, no limit is in force."""
    machine = Machine()
    machine.looks(100, runs=0.7, waits=0.3)
    for _ in range(1000):
        machine.now += 0.01
        machine.throttle.sent(700, machine.now)
    machine.now += throttle.BURST
    assert machine.throttle.grant(machine.now) == pytest.approx(0, abs=1)
    assert machine.sends(1, 0.01) == pytest.approx(SLOWEST, rel=0.01)


def test_a_time_without_messages_is_not_made_up_for() -> None:
    machine = Machine()
    machine.looks(100, runs=0.7, waits=0.3)
    machine.sends(1, 0.001)
    machine.now += 100
    assert machine.throttle.grant(machine.now) == pytest.approx(SLOWEST * throttle.BURST, abs=1)


def test_a_clock_that_stands_still() -> None:
    machine = Machine()
    machine.throttle.sample(machine.now, machine.ran, machine.waited)
    assert machine.throttle.rate is None
