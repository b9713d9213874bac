"""The delays between attempts."""

from __future__ import annotations

import pytest

from keyspace_amqp.publisher import backoff


def test_each_delay_is_twice_the_one_before_up_to_the_bound() -> None:
    delays = [backoff.delay(attempts, 1.0, lambda: 1.0) for attempts in range(1, 7)]
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.0, 1.0])


@pytest.mark.parametrize(("jitter", "part"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_jitter_takes_away_up_to_half(jitter: float, part: float) -> None:
    assert backoff.delay(1, 5.0, lambda: jitter) == pytest.approx(backoff.FIRST * part)
    assert backoff.delay(100, 5.0, lambda: jitter) == pytest.approx(5.0 * part)


def test_years_of_failures_do_not_overflow() -> None:
    assert backoff.delay(10**9, 5.0, lambda: 1.0) == 5.0
