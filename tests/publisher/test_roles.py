"""A replica hands its list over, and a promoted one takes it."""

from __future__ import annotations

import pytest

from keyspace_amqp.fallback import to_element
from keyspace_amqp.publisher.actions import Close, Connect
from keyspace_amqp.tables.stats import Stat
from tests.publisher.bench import Bench, away, commands, connected, sent
from tests.publisher.simulated import event_of, set_limit


def test_a_replica_hands_the_list_over_and_delivers_what_it_holds() -> None:
    bench = away(found=3)
    bench.emit(2)
    bench.publisher.set_role(primary=False, loading=False)
    bench.list.writable = False
    assert commands(bench.wait(60)) == []
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_FOUND) == 0
    assert sent(bench.link_up()) == [4, 5]
    assert Close() in bench.ack(2, multiple=True)
    assert bench.publisher.state == "replica"
    assert len(bench.stored) == 3


def test_a_replica_does_not_connect() -> None:
    bench = Bench(found=3, primary=False)
    assert bench.wait(60) == []
    assert bench.publisher.wake_at() is None


def test_a_promoted_replica_finds_the_list_and_drains_it() -> None:
    bench = Bench(found=3, primary=False)
    bench.settle()
    bench.publisher.set_role(primary=True, loading=False)
    bench.list.writable = True
    assert Connect() in bench.settle()
    assert sent(bench.link_up()) == [1, 2, 3]


def test_after_a_promotion_the_list_goes_first() -> None:
    bench = connected()
    bench.publisher.set_role(primary=False, loading=False)
    bench.list.elements.append(to_element(event_of(99)))  # by the primary of that time
    bench.publisher.set_role(primary=True, loading=False)
    bench.emit(1)
    assert sent(bench.settle()) == [99, 1]


def test_nothing_is_read_or_written_while_the_data_set_loads() -> None:
    bench = connected()
    bench.publisher.set_role(primary=True, loading=True)
    assert commands(bench.wait(60)) == []
    bench.publisher.set_role(primary=True, loading=False)
    assert commands(bench.settle()) == ["LLEN", "LLEN"]  # of both lists


def test_a_trim_that_was_on_its_way_at_a_demotion_counts_nothing() -> None:
    bench = Bench(found=3)
    bench.settle()
    bench.link_up()
    bench.publisher.acked(3)
    bench.poll()
    bench.list.writable = False  # before the job runs
    bench.publisher.set_role(primary=False, loading=False)
    bench.run_job()
    bench.settle()
    assert bench.count(Stat.FALLBACK_DRAINED) == 0
    assert len(bench.stored) == 3


@pytest.mark.parametrize("runs", ["before the demotion", "after the promotion"])
def test_a_trim_around_which_the_role_changed_twice_counts_nothing(runs: str) -> None:
    bench = connected(found=3)
    bench.publisher.acked(3)
    assert "LTRIM" in commands(bench.poll())
    assert bench.job is not None
    result = bench.list.run(bench.job) if runs == "before the demotion" else None
    bench.publisher.set_role(primary=False, loading=False)
    bench.publisher.set_role(primary=True, loading=False)
    bench.publisher.job_done(result or bench.list.run(bench.job))
    bench.job = None
    bench.settle()
    assert bench.count(Stat.FALLBACK_DRAINED) == bench.count(Stat.FALLBACK_LENGTH) == 0


def test_a_replica_closes_the_link_after_a_push_that_came_too_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All events were confirmed while the oldest of them was being pushed."""
    set_limit(monkeypatch, "JOB_ELEMENTS", 1)
    bench = connected()
    bench.emit(2)
    bench.poll()
    bench.publisher.set_pressure(True)
    assert "RPUSH" in commands(bench.poll())
    bench.publisher.acked(2)
    bench.list.writable = False
    bench.publisher.set_role(primary=False, loading=False)
    bench.run_job()
    assert Close() in bench.settle()
    assert bench.publisher.state == "replica"
