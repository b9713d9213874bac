"""From memory into the list: when events are stored, in which order, and up to which cap."""

from __future__ import annotations

import re

import pytest

from keyspace_amqp.fallback import JOB_BYTES, JOB_ELEMENTS
from keyspace_amqp.publisher.actions import Submit
from keyspace_amqp.publisher.ledger import REFUSALS_LOG_EVERY
from keyspace_amqp.publisher.list_jobs import JOB_RETRY_AFTER
from keyspace_amqp.publisher.storing import STORE_AFTER
from keyspace_amqp.publisher.window import STALLED_AFTER, WINDOW
from keyspace_amqp.tables.stats import Stat
from tests.publisher.bench import Bench, away, commands, connected, sent, texts
from tests.publisher.simulated import CLUSTER_DOWN, NO_MEMORY, PAUSED, dropped_of


def test_with_the_link_down_events_are_stored_after_a_moment() -> None:
    bench = away()
    bench.emit(3)
    bench.wait(STORE_AFTER - 0.001)
    assert bench.stored == []
    bench.wait(0.002)
    assert bench.stored == [1, 2, 3]
    assert bench.count(Stat.QUEUE_LENGTH) == 0
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_PUSHED) == 3


def test_it_wakes_to_store_them() -> None:
    bench = away()
    bench.emit()
    seconds = bench.seconds_until(Submit)
    assert seconds == pytest.approx(STORE_AFTER, abs=0.011)
    assert seconds < 0.1  # an event must be in the list by then; this leaves time for the job


def test_a_full_job_is_stored_at_once() -> None:
    bench = away()
    bench.emit(JOB_ELEMENTS)
    bench.settle()
    assert len(bench.stored) == JOB_ELEMENTS


def test_jobs_are_bounded_in_elements_and_bytes() -> None:
    bench = away()
    bench.emit(JOB_ELEMENTS + 1)
    bench.poll()
    bench.run_job()
    assert len(bench.stored) == JOB_ELEMENTS
    bench = away()
    bench.emit(10, key=b"k" * (JOB_BYTES // 2))
    bench.now += STORE_AFTER
    bench.poll()
    bench.run_job()
    assert bench.stored == [1, 2]


def test_the_unconfirmed_are_stored_before_the_newer() -> None:
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.lose_link()
    bench.emit(2)
    bench.now += STORE_AFTER
    bench.publisher.disconnect()
    bench.settle()
    assert bench.stored == [1, 2, 3, 4]


def test_newer_events_stand_behind_the_list() -> None:
    bench = away()
    bench.emit(2)
    bench.wait(STORE_AFTER)
    bench.emit(2)
    bench.publisher.link_up()
    # Known since the push: sent in its turn, without another read.
    assert sent(bench.settle()) == [1, 2, 3, 4]


def test_newer_events_wait_for_a_list_that_is_not_read_yet() -> None:
    bench = Bench(found=3)
    bench.emit(2)
    bench.poll()  # the list's length is being read
    bench.publisher.link_up()
    assert sent(bench.poll()) == []
    assert sent(bench.settle()) == [1, 2, 3, 4, 5]


def test_a_broker_that_confirms_nothing_counts_as_away() -> None:
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.emit(WINDOW)
    bench.wait(STALLED_AFTER - 0.001)
    assert bench.stored == []
    bench.wait(0.002)
    assert bench.stored == list(range(1, WINDOW + 3))
    assert bench.count(Stat.QUEUE_LENGTH) == bench.count(Stat.IN_FLIGHT) == 0
    # Late confirms still count: the elements leave the list without being sent again.
    assert bench.ack(WINDOW, multiple=True)
    assert bench.stored == [WINDOW + 1, WINDOW + 2]


def test_a_confirm_is_progress() -> None:
    bench = connected()
    bench.emit(9)
    bench.settle()
    for tag in range(1, 9):
        bench.now += STALLED_AFTER - 0.001
        bench.ack(tag)
    assert bench.stored == []


def test_with_the_connection_blocked_events_are_stored() -> None:
    bench = connected()
    bench.publisher.link_blocked("low on disk")
    assert bench.publisher.state == "blocked"
    assert "low on disk" in bench.publisher.last_error
    bench.emit(2)
    assert sent(bench.wait(STORE_AFTER)) == []
    assert bench.stored == [1, 2]
    bench.publisher.link_unblocked()
    assert sent(bench.settle()) == [1, 2]


def test_under_pressure_events_go_to_the_list_although_the_broker_is_there() -> None:
    bench = connected()
    bench.emit(WINDOW + 10)
    bench.publisher.set_pressure(True)
    bench.settle()
    assert bench.count(Stat.FALLBACK_LENGTH) == WINDOW + 10


def test_a_push_that_fails_is_tried_again_in_order() -> None:
    bench = away()
    bench.emit(2)
    bench.list.trouble = PAUSED
    bench.wait(STORE_AFTER)
    assert "writes are paused" in bench.publisher.last_error
    bench.emit(1)
    bench.list.trouble = None
    assert commands(bench.wait(JOB_RETRY_AFTER - 0.001)).count("RPUSH") == 0
    bench.wait(0.002)
    assert bench.stored == [1, 2, 3]


def test_near_maxmemory_events_wait_in_memory() -> None:
    """They are pushed in their order once the list takes them."""
    bench = away()
    bench.emit(2)
    bench.list.trouble = NO_MEMORY
    lines = texts(bench.wait(STORE_AFTER))
    assert "near its maxmemory" in bench.publisher.last_error
    assert len(lines) == 1
    assert re.match("events wait in memory: .*near its maxmemory", lines[0])
    assert bench.publisher.can_only_wait
    bench.emit(1)
    assert not texts(bench.wait(REFUSALS_LOG_EVERY - 1))
    assert texts(bench.wait(2)) == lines
    assert bench.count(Stat.QUEUE_LENGTH) == 3
    bench.list.trouble = None
    bench.wait(JOB_RETRY_AFTER)
    assert bench.stored == [1, 2, 3]


def test_a_list_near_maxmemory_is_delivered_and_trimmed() -> None:
    bench = away(found=3)
    bench.list.trouble = NO_MEMORY
    bench.emit(2)
    bench.wait(1)
    bench.link_up()
    bench.ack(3, multiple=True)
    assert bench.stored == []
    assert sent(bench.actions) == [1, 2, 3, 4, 5]


def test_losses_near_maxmemory_have_a_reason_of_their_own() -> None:
    bench = away()
    bench.list.trouble = NO_MEMORY
    bench.emit(5)
    bench.wait(1)
    assert bench.publisher.drop_oldest(1) == 1
    lines = texts(bench.poll())
    assert lines == ["1 event lost: queue-limit is reached, and Redis is near its maxmemory"]
    assert dropped_of(bench.publisher) == bench.count(Stat.DROPPED_NO_MEMORY) == 1
    bench.list.trouble = PAUSED  # another reason from now on
    bench.wait(1)
    bench.publisher.drop_oldest(1)
    assert bench.count(Stat.DROPPED_QUEUE_FULL) == bench.count(Stat.DROPPED_NO_MEMORY) == 1
    bench.list.trouble = None
    bench.wait(1)
    assert bench.stored == [3, 4, 5]
    bench.list.trouble = CLUSTER_DOWN
    bench.emit(1)
    bench.wait(1)
    bench.publisher.drop_oldest(1)
    assert bench.count(Stat.DROPPED_QUEUE_FULL) == 2
    assert bench.count(Stat.DROPPED_NO_MEMORY) == 1


def test_the_cap_drops_the_oldest() -> None:
    bench = away(fallback_size=3)
    bench.emit(5)
    lines = texts(bench.wait(STORE_AFTER))
    assert bench.stored == [3, 4, 5]
    assert bench.count(Stat.DROPPED_FALLBACK_FULL) == 2
    assert lines == ["2 events lost: the fallback list is full"]
    assert sent(bench.link_up()) == [3, 4, 5]


def test_what_is_confirmed_is_not_lost_by_the_cap() -> None:
    bench = connected(fallback_size=3)
    bench.emit(3)
    bench.settle()
    bench.wait(STALLED_AFTER)
    bench.publisher.link_blocked("low on disk")
    bench.emit(2)
    bench.now += STORE_AFTER
    bench.poll()  # pushes 4 and 5
    bench.publisher.acked(2)
    bench.run_job()  # and 1 and 2 fall off
    assert bench.stored == [3, 4, 5]
    assert dropped_of(bench.publisher) == 0
    bench.settle()


def test_with_the_list_off_events_wait_in_memory() -> None:
    bench = away(fallback_size=-1)
    bench.emit(5)
    assert set(commands(bench.wait(60))) <= {"LLEN"}
    assert bench.count(Stat.QUEUE_LENGTH) == 5
    assert bench.publisher.can_only_wait


def test_what_is_confirmed_is_not_pushed_behind_an_older_one_that_is_not() -> None:
    bench = connected()
    bench.emit(100)
    bench.settle()
    for tag in range(2, 101):
        bench.publisher.acked(0, [tag])
    bench.lose_link()
    bench.wait(STORE_AFTER)
    assert bench.stored == [1]
    assert bench.count(Stat.CONFIRMED) == 99
    assert bench.count(Stat.FALLBACK_PUSHED) == 1


def test_nor_while_the_link_is_up() -> None:
    """The broker answers nothing more; the entries before it are stored."""
    bench = connected()
    bench.emit(100)
    bench.settle()
    for tag in range(2, 101):
        bench.publisher.acked(0, [tag])
    bench.emit(1)
    bench.settle()
    bench.wait(STALLED_AFTER)
    assert bench.stored == [1, 101]
    assert bench.count(Stat.FALLBACK_PUSHED) == 2
