"""A replica hands its list over, and a promoted one takes it."""

from __future__ import annotations

import pytest

from keyspace_amqp.fallback import to_element
from keyspace_amqp.jobs import JobResult
from keyspace_amqp.publisher.actions import Close, Connect, FlushMode
from keyspace_amqp.publisher.storing import STORE_AFTER
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.stats import Stat
from tests.publisher.bench import Bench, away, commands, connected, flushed, sent
from tests.publisher.simulated import (
    NOT_SERVED,
    WRONG_TYPE,
    Trouble,
    dropped_of,
    event_of,
    number_of,
    set_limit,
)


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


# ---- the result of a job comes after a change of role -----------------------------------------


def being_pushed() -> Bench:
    """Events 1 to 3 were pushed, 4 and 5 are being pushed, and there is no broker."""
    bench = away()
    bench.emit(3)
    assert "RPUSH" in commands(bench.wait(STORE_AFTER))
    bench.emit(2)
    bench.now += STORE_AFTER
    assert "RPUSH" in commands(bench.poll())
    return bench


def run(bench: Bench) -> JobResult:
    """Runs the job without passing its result on."""
    assert bench.job is not None
    job, bench.job = bench.job, None
    return bench.list.run(job)


def demote(bench: Bench, *, agreed: bool = False) -> None:
    bench.list.writable = False
    bench.publisher.set_role(primary=False, loading=False, agreed=agreed)


def promote(bench: Bench) -> None:
    bench.list.writable = True
    bench.publisher.set_role(primary=True, loading=False)


@pytest.mark.parametrize("runs", ["before the demotion", "after it"])
def test_a_push_under_way_at_a_demotion_is_delivered_behind_earlier_ones(runs: str) -> None:
    """The main thread demotes the server after the push, and before the worker has its result. Or
    the server refuses the push, as a replica."""
    bench = being_pushed()
    result = run(bench) if runs == "before the demotion" else None
    demote(bench)
    bench.poll()
    bench.publisher.job_done(result or run(bench))
    bench.emit(1)
    assert sent(bench.link_up()) == [1, 2, 3, 4, 5, 6]
    assert Close() in bench.ack(6, multiple=True)
    assert dropped_of(bench.publisher) == 0


def test_nothing_is_sent_before_the_result_of_a_push_under_way_at_a_demotion() -> None:
    bench = being_pushed()
    demote(bench)
    bench.emit(1)
    bench.publisher.link_up()
    assert sent(bench.poll()) == []
    bench.publisher.job_done(run(bench))
    assert sent(bench.settle()) == [1, 2, 3, 4, 5, 6]


def test_recent_pushes_stay_recent_while_a_result_takes_long() -> None:
    bench = being_pushed()
    result = run(bench)
    demote(bench)
    bench.now += 60
    bench.poll()
    bench.publisher.job_done(result)
    assert sent(bench.link_up()) == [1, 2, 3, 4, 5]


def test_the_new_primary_has_a_push_from_before_an_agreed_demotion() -> None:
    bench = being_pushed()
    result = run(bench)
    demote(bench, agreed=True)
    bench.publisher.job_done(result)
    bench.emit(1)
    demote(bench)  # the same role again
    assert sent(bench.link_up()) == [6]


@pytest.mark.parametrize("loading", [True, False])
def test_a_reload_before_a_demotion_hides_no_recent_push(loading: bool) -> None:
    """`loading`: the demotion comes during the reload."""
    bench = being_pushed()
    bench.run_job()
    bench.publisher.set_role(primary=True, loading=True)
    if not loading:
        promote(bench)
    demote(bench)
    assert sent(bench.link_up()) == [1, 2, 3, 4, 5]


def test_a_push_that_an_agreed_demotion_prevents_stays_in_memory() -> None:
    bench = being_pushed()
    demote(bench, agreed=True)
    bench.publisher.job_done(run(bench))
    assert sent(bench.link_up()) == [4, 5]


@pytest.mark.parametrize("replaced", [False, True])
@pytest.mark.parametrize("runs", ["before the demotion", "as a replica", "after the promotion"])
def test_a_push_around_which_the_role_changed_twice_is_delivered(runs: str, replaced: bool) -> None:
    """`replaced`: the data set was that of another primary meanwhile."""
    bench = being_pushed()
    result = run(bench) if runs == "before the demotion" else None
    demote(bench)
    if replaced:
        bench.list.elements.clear()
    result = run(bench) if runs == "as a replica" else result
    promote(bench)
    bench.publisher.job_done(result or run(bench))
    bench.emit(1)
    bench.settle()
    numbers = sent(bench.link_up())
    assert set(numbers) == {1, 2, 3, 4, 5, 6}
    if not (replaced and runs == "after the promotion"):  # then 4 and 5 are the list's first
        assert list(dict.fromkeys(numbers)) == sorted(set(numbers))
    assert "fallback list" not in bench.publisher.last_error
    bench.ack(len(numbers), multiple=True)
    assert bench.stored == []
    assert dropped_of(bench.publisher) == 0


def test_a_stop_that_cannot_wait_for_the_result_keeps_all_events() -> None:
    bench = being_pushed()
    demote(bench)
    bench.publisher.flush(1, 2.0, FlushMode.LEAVE)
    bench.now += 2
    (end,) = flushed(bench.poll())
    assert end.leftovers is not None
    assert [number_of(event) for event in end.leftovers] == [1, 2, 3, 4, 5]


def test_a_result_that_is_lost_in_an_exception_counts_as_none() -> None:
    bench = being_pushed()
    run(bench)
    demote(bench)
    bench.publisher.link_down("unexpected exception")
    bench.publisher.repair(job_lost=True, taken=bench.publisher.taken)
    bench.wait(60)
    assert sent(bench.link_up()) == [1, 2, 3, 4, 5]


def test_after_a_demotion_what_was_sent_is_sent_again_in_its_order() -> None:
    """Events 1 and 2 were sent from the list, 3 from memory. If the connection is lost too, the
    next one must not get 3 before 1."""
    bench = away()
    bench.emit(2)
    bench.wait(STORE_AFTER)
    bench.link_up()
    bench.emit(1)
    assert sent(bench.settle()) == [3]
    demote(bench)
    assert sent(bench.settle()) == [1, 2, 3]
    bench.publisher.acked(3)  # on the same connection: the tags of the first time
    bench.lose_link()
    assert sent(bench.link_up()) == [1, 2, 3]


@pytest.mark.parametrize("trouble", [NOT_SERVED, WRONG_TYPE])
def test_what_was_read_of_a_list_before_a_change_of_role_means_nothing(trouble: Trouble) -> None:
    """Else memory would be sent before the list that this node has by now."""
    bench = connected()
    bench.publisher.jobs.list_chosen()  # in doubt: the lengths are read with commands
    assert commands(bench.poll()) == ["LLEN", "LLEN"]  # of both lists
    bench.list.trouble = trouble
    result = run(bench)
    demote(bench)
    bench.list.trouble = None
    bench.list.elements.append(to_element(event_of(99)))
    promote(bench)
    bench.publisher.job_done(result)
    bench.emit(1)
    assert sent(bench.settle()) == [99, 1]


def test_elements_imported_before_a_change_of_role_are_not_missed_after_it() -> None:
    """The list was replaced meanwhile; no client has removed elements."""
    bench = connected()
    demote(bench)
    bench.list.writable = True
    bench.publisher.lists.set_role(primary=True, writable=True)  # its lists are not known yet
    bench.publisher.imported(KEY, 5, 5)
    bench.publisher.lists.found({KEY: 0})
    bench.publisher.lists.set_lists(KEY, lambda key: True)
    bench.settle()
    assert dropped_of(bench.publisher) == 0
