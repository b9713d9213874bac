"""From the list to the broker: read, sent, confirmed, trimmed; also while others change the
list."""

from __future__ import annotations

import pytest

from keyspace_amqp.fallback import JOB_BYTES, to_element
from keyspace_amqp.jobs import JobError
from keyspace_amqp.publisher.actions import Submit
from keyspace_amqp.publisher.list_jobs import CHECK_EVERY, JOB_RETRY_AFTER
from keyspace_amqp.publisher.storing import STORE_AFTER
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.stats import Stat
from tests.publisher.bench import Bench, away, commands, connected, sent, texts
from tests.publisher.simulated import (
    CLUSTER_DOWN,
    NOT_SERVED,
    WRONG_TYPE,
    SimulatedSlots,
    assert_books_balance,
    dropped_of,
    event_of,
    set_limit,
)


def test_drain_reads_sends_waits_for_the_confirms_and_then_trims() -> None:
    bench = Bench(found=3)
    bench.settle()
    actions = bench.link_up()
    assert commands(actions) == ["LRANGE"]
    assert sent(actions) == [1, 2, 3]
    bench.ack(2)
    assert "LTRIM" not in commands(bench.wait(0.1))
    assert bench.stored == [1, 2, 3]
    assert commands(bench.ack(3, multiple=True)) == ["LRANGE", "LTRIM"]
    assert bench.stored == []
    assert bench.count(Stat.FALLBACK_FOUND) == bench.count(Stat.FALLBACK_DRAINED) == 3


def test_out_of_order_confirms_trim_only_the_head() -> None:
    bench = Bench(found=4)
    bench.settle()
    bench.link_up()
    bench.ack(1)
    bench.ack(3)
    bench.lose_link()
    assert bench.stored == [2, 3, 4]
    assert bench.count(Stat.FALLBACK_LENGTH) == 2
    bench.publisher.connect()
    bench.settle()
    assert sent(bench.link_up()) == [2, 4]


def test_a_confirm_during_a_push_leaves_the_lists_order() -> None:
    """Otherwise the head of the list is not what a trim expects, and all of it is read and sent
    again."""
    bench = connected()
    bench.emit(3)
    bench.settle()
    bench.publisher.set_pressure(True)
    assert "RPUSH" in commands(bench.poll())
    bench.publisher.acked(0, [2])
    bench.publisher.link_down("connection reset")
    bench.run_job()
    bench.publisher.connect()
    bench.settle()
    assert sent(bench.link_up()) == [1, 3]
    bench.ack(1)
    assert sent(bench.ack(2)) == []
    assert bench.stored == []
    assert bench.count(Stat.CONFIRMED) == 3


def test_what_is_pushed_behind_unsent_elements_leaves_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As after a promotion: events of memory are in flight while older ones are found in the
    list."""
    set_limit(monkeypatch, "WINDOW", 2)
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.list.elements.append(to_element(event_of(99)))
    bench.publisher.list_changed(b"rpush")
    bench.settle()
    bench.wait(STORE_AFTER)
    assert bench.stored == [99, 1, 2]
    for tag in (1, 3, 2):
        bench.ack(tag)
    assert bench.stored == []
    assert sent(bench.actions) == [1, 2, 99]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_trim_takes_nothing_that_it_does_not_know(at: int) -> None:
    """Another client has changed the list between the read and the trim, without an event."""
    bench = Bench(found=3)
    bench.settle()
    bench.link_up()
    bench.list.elements[at] = to_element(event_of(99))
    bench.ack(3, multiple=True)
    assert 99 in bench.stored
    assert 99 in sent(bench.actions)


def test_a_trim_is_no_larger_than_a_push() -> None:
    """Each job blocks Redis' main thread for as long as it handles elements."""
    bench = connected(found=1)
    bench.settle()
    bench.ack(1)
    bench.actions.clear()
    size = JOB_BYTES // 3
    keys = [to_element(event_of(next(bench.numbers), b"k" * size)) for _ in range(9)]
    bench.list.elements += keys
    bench.wait(CHECK_EVERY)
    bench.ack(10, multiple=True)
    assert bench.stored == []
    submits = [action for action in bench.actions if isinstance(action, Submit)]
    trims = [submit.job for submit in submits if commands([submit])[:2] == ["LRANGE", "LTRIM"]]
    counts = [int(job.commands[1].arguments[1]) for job in trims]
    assert sum(counts) == 9
    assert max(counts) <= 4


def test_an_unreadable_element_is_dropped_and_does_not_stop_the_others() -> None:
    bench = Bench(found=2)
    bench.list.elements.insert(1, b"junk")
    bench.settle()
    assert sent(bench.link_up()) == [1, 2]
    bench.ack(2, multiple=True)
    assert bench.stored == []
    assert bench.count(Stat.DROPPED_UNREADABLE) == 1


def test_what_somebody_pushes_is_found_and_delivered() -> None:
    bench = connected()
    bench.list.elements.append(to_element(event_of(1)))
    assert sent(bench.wait(CHECK_EVERY)) == [1]
    assert bench.count(Stat.FALLBACK_FOUND) == 1


def test_what_is_imported_is_found_at_once() -> None:
    bench = away(found=2)
    bench.settle()
    bench.list.elements += [to_element(event_of(number)) for number in (8, 9)]
    bench.publisher.imported(KEY, 4, 2)
    assert bench.count(Stat.FALLBACK_FOUND) == 4
    assert bench.publisher.gauges()[Stat.FALLBACK_LENGTH] == 4
    bench.list.elements = [to_element(event_of(9))]  # another client has removed elements
    bench.publisher.imported(KEY, 1, 1)
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 4
    assert bench.count(Stat.FALLBACK_FOUND) == 5
    other = SimulatedSlots.KEYS[1]
    bench.publisher.imported(other, 3, 3)
    assert bench.count(Stat.FALLBACK_FOUND) == 8
    assert bench.publisher.gauges()[Stat.FALLBACK_LENGTH] == 4
    assert_books_balance(bench.publisher)


def test_what_is_on_its_way_at_an_import_is_not_sent_again() -> None:
    bench = connected()
    bench.emit(2)
    assert sent(bench.settle()) == [1, 2]
    bench.list.elements += [to_element(event_of(number)) for number in range(100, 9100)]
    bench.publisher.imported(KEY, 9000, 9000)
    bench.emit(1)
    bench.wait(STORE_AFTER)
    assert not {1, 2, 3} & set(bench.stored)
    bench.ack(2, multiple=True)
    bench.wait(STORE_AFTER)
    assert bench.stored[-1] == 3
    assert not {1, 2} & set(bench.stored)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        (b"evicted", Stat.DROPPED_FALLBACK_EVICTED),
        (b"expired", Stat.DROPPED_FALLBACK_EXPIRED),
        (b"flushdb", Stat.DROPPED_FALLBACK_FLUSHED),
        (b"swapdb", Stat.DROPPED_FALLBACK_FLUSHED),
        (b"del", Stat.DROPPED_FALLBACK_REMOVED),
        (None, Stat.DROPPED_FALLBACK_REMOVED),  # noticed by the length alone
    ],
)
def test_what_others_take_away_is_dropped_with_its_reason(what: bytes | None, reason: Stat) -> None:
    bench = away(found=3)
    bench.list.elements.clear()
    if what is not None:
        bench.publisher.list_changed(what)  # looks at once
    (line,) = texts(bench.wait(CHECK_EVERY if what is None else 0))
    assert bench.count(reason) == dropped_of(bench.publisher) == 3
    assert bench.count(Stat.FALLBACK_LENGTH) == 0
    assert line.startswith("3 events lost: ")
    assert "fallback list" in line


def test_a_reason_explains_one_loss_only() -> None:
    bench = away(found=3)
    bench.list.elements.pop()
    bench.publisher.list_changed(b"evicted")
    bench.settle()
    bench.list.elements.pop()
    bench.wait(CHECK_EVERY)
    assert bench.count(Stat.DROPPED_FALLBACK_EVICTED) == 1
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 1


def test_purge_empties_the_list_and_counts_what_was_in_it() -> None:
    bench = away(found=3)
    answers: list[int | JobError] = []
    bench.publisher.purge(answers.append)
    bench.settle()
    assert answers == [3]
    assert bench.stored == []
    assert bench.count(Stat.DROPPED_PURGED) == 3


def test_purge_tells_why_it_failed() -> None:
    bench = away(found=3)
    bench.list.trouble = CLUSTER_DOWN
    answers: list[int | JobError] = []
    bench.publisher.purge(answers.append)
    bench.settle()
    assert [str(answer) for answer in answers] == ["the cluster is down"]
    assert bench.count(Stat.FALLBACK_LENGTH) == 3


def test_with_the_cluster_down_events_wait_in_memory() -> None:
    """The list may have older events, so newer ones must not be sent before them. They are not
    kept for long when the cluster is up again."""
    bench = Bench(found=2)
    bench.list.trouble = CLUSTER_DOWN
    bench.emit(2)
    bench.settle()
    assert "the cluster is down" in bench.publisher.last_error
    assert sent(bench.link_up()) == []
    assert bench.count(Stat.QUEUE_LENGTH) == 2
    bench.list.trouble = None
    assert sent(bench.wait(JOB_RETRY_AFTER)) == [1, 2, 3, 4]


def test_a_slot_that_is_not_served_is_handed_over() -> None:
    """Another node delivers the list now: nothing is lost, and memory is still sent."""
    bench = away(found=3)
    bench.list.trouble = NOT_SERVED
    bench.emit(2)
    bench.wait(CHECK_EVERY)
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_FOUND) == 0
    assert dropped_of(bench.publisher) == 0
    assert sent(bench.link_up()) == [4, 5]
    bench.ack(2, multiple=True)
    bench.list.trouble = None  # the slot is back, with what others pushed
    bench.list.elements = [to_element(event_of(99))]
    assert sent(bench.wait(CHECK_EVERY)) == [99]


def test_a_key_with_something_else_took_the_lists_place() -> None:
    bench = away(found=3)
    bench.list.trouble = WRONG_TYPE
    bench.emit(2)
    bench.wait(CHECK_EVERY)
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 3
    assert "WRONGTYPE" in bench.publisher.last_error
    assert bench.count(Stat.QUEUE_LENGTH) == 2
    assert sent(bench.link_up()) == [4, 5]


def test_at_rest_it_looks_at_the_list_once_a_second_and_sleeps() -> None:
    bench = connected()
    bench.emit()
    bench.settle()
    bench.ack(1)
    assert bench.seconds_until(Submit) == pytest.approx(CHECK_EVERY, abs=0.011)
