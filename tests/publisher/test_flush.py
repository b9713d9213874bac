"""Saves and stops, the leftovers of a stop, and repair after an exception."""

from __future__ import annotations

import pytest

from keyspace_amqp.fallback import to_element
from keyspace_amqp.publisher.actions import Connect, Flushed, FlushMode, Recovered
from keyspace_amqp.publisher.flush import MARGIN, STOP_RESERVE, STORE_GRACE
from keyspace_amqp.publisher.storing import STORE_AFTER
from keyspace_amqp.publisher.window import STALLED_AFTER
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.tables.times import STOP_LEFTOVERS, STOP_LIMIT, STOP_WRITE
from tests.publisher.bench import Bench, away, commands, connected, flushed, sent, texts
from tests.publisher.simulated import NO_MEMORY, PAUSED, event_of, number_of, set_limit


def test_a_save_stores_at_once_with_the_broker_away() -> None:
    bench = away()
    bench.emit(2)
    bench.publisher.flush(7, 2.0, FlushMode.STORE)
    assert flushed(bench.settle())
    assert bench.stored == [1, 2]


def test_a_save_waits_a_moment_for_the_broker_and_then_stores() -> None:
    bench = connected()
    bench.emit(2)
    bench.publisher.flush(7, 2.0, FlushMode.STORE)
    bench.settle()
    assert not flushed(bench.wait(STORE_GRACE - 0.001))
    assert bench.stored == []
    assert flushed(bench.wait(0.002))
    assert bench.stored == [1, 2]


def test_a_save_is_done_when_the_broker_has_it_all() -> None:
    bench = connected()
    bench.emit(2)
    bench.publisher.flush(7, 2.0, FlushMode.STORE)
    bench.settle()
    assert flushed(bench.ack(2, multiple=True))


def test_a_save_waits_for_events_that_were_not_taken_in_yet() -> None:
    bench = connected()
    bench.publisher.flush(7, 2.0, FlushMode.STORE)
    assert not flushed(bench.poll(more=True))
    assert flushed(bench.poll(more=False))


def test_a_save_gives_up_in_time_and_loses_nothing() -> None:
    bench = away()
    bench.list.trouble = PAUSED
    bench.emit(2)
    bench.publisher.flush(7, 2.0, FlushMode.STORE)
    assert bench.seconds_until(Flushed) <= 2.0
    assert bench.count(Stat.QUEUE_LENGTH) == 2


@pytest.mark.parametrize("mode", [FlushMode.STORE, FlushMode.DRAIN])
def test_near_maxmemory_redis_does_not_wait_for_the_list(mode: FlushMode) -> None:
    """While Redis waits, no memory becomes free."""
    bench = away()
    bench.list.trouble = NO_MEMORY
    bench.emit(2)
    bench.publisher.flush(7, 5.0, mode)
    assert bench.seconds_until(Flushed) <= STORE_AFTER
    assert bench.count(Stat.QUEUE_LENGTH) == (2 if mode is FlushMode.STORE else 0)


def test_stop_waits_for_confirms() -> None:
    bench = connected()
    bench.emit(2)
    bench.publisher.flush(7, 5.0, FlushMode.LEAVE)
    bench.settle()
    for tag in (1, 2):  # slow, but not silent
        assert not flushed(bench.actions)
        bench.now += STALLED_AFTER - 0.01
        bench.ack(tag)
    (done,) = flushed(bench.actions)
    assert done.leftovers == []


def test_stop_leaves_the_list_to_whoever_keeps_it() -> None:
    bench = away(found=3)
    bench.publisher.flush(7, 5.0, FlushMode.LEAVE)
    assert flushed(bench.settle())
    assert len(bench.stored) == 3


def test_stop_with_drain_delivers_the_list() -> None:
    bench = connected(found=3)
    bench.publisher.flush(7, 5.0, FlushMode.DRAIN)
    assert not flushed(bench.settle())
    assert flushed(bench.ack(3, multiple=True))
    assert bench.stored == []


def test_stop_behind_a_list_that_is_not_sent_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list goes first. Events behind it go into the file, except if nothing keeps the list
    (DRAIN): then all are sent."""
    set_limit(monkeypatch, "WINDOW", 2)
    for mode in (FlushMode.LEAVE, FlushMode.DRAIN):
        bench = connected(found=3)
        bench.emit()
        bench.publisher.flush(7, 5.0, mode)
        if mode is FlushMode.LEAVE:
            (done,) = flushed(bench.settle())
            assert [number_of(event) for event in done.leftovers] == [4]
            assert bench.stored == [1, 2, 3]
        else:
            assert not flushed(bench.settle())
            bench.ack(2, multiple=True)
            assert flushed(bench.ack(4, multiple=True))
            assert bench.stored == []


# Leftovers: the list cannot be written any more


def test_what_comes_too_late_for_the_disk_is_left() -> None:
    bench = away(found=1)
    bench.emit(2)
    bench.publisher.flush(7, 5.0, FlushMode.LEAVE)
    (done,) = flushed(bench.settle())
    assert [number_of(event) for event in done.leftovers] == [2, 3]
    assert bench.stored == [1]
    assert bench.count(Stat.DROPPED_STOPPED) == 0


def test_nothing_is_left_that_the_broker_takes_in_time() -> None:
    bench = connected()
    bench.emit(2)
    bench.publisher.flush(7, 5.0, FlushMode.LEAVE)
    assert not flushed(bench.settle())
    bench.ack(1)
    (done,) = flushed(bench.ack(2))
    assert done.leftovers == []


def test_what_a_silent_broker_does_not_confirm_is_left() -> None:
    bench = connected()
    bench.emit(2)
    bench.publisher.flush(7, 5.0, FlushMode.LEAVE)
    assert bench.seconds_until(Flushed) == pytest.approx(STALLED_AFTER, abs=0.02)
    (done,) = flushed(bench.actions)
    assert [number_of(event) for event in done.leftovers] == [1, 2]


def test_with_the_list_off_a_stop_waits_for_a_slow_broker() -> None:
    """Messages without a confirm would be lost, so silence is no reason to end before the time."""
    bench = connected(fallback_size=-1)
    bench.emit(2)
    bench.publisher.flush(7, 5.0, FlushMode.LEAVE)
    assert not flushed(bench.settle())
    bench.now += 5 * STALLED_AFTER
    assert not flushed(bench.settle())
    assert flushed(bench.ack(2, multiple=True))
    assert bench.count(Stat.DROPPED_STOPPED) == 0
    bench.emit(2)
    bench.publisher.flush(8, 5.0, FlushMode.LEAVE)
    assert bench.seconds_until(Flushed) == pytest.approx(5.0 - MARGIN, abs=0.02)
    assert bench.count(Stat.DROPPED_STOPPED) == 2


def test_with_the_list_off_nothing_is_left() -> None:
    bench = away(fallback_size=-1)
    bench.emit(2)
    bench.publisher.flush(7, 5.0, FlushMode.LEAVE)
    (done,) = flushed(bench.settle())
    assert done.leftovers is None
    assert bench.count(Stat.DROPPED_STOPPED) == 2
    assert bench.count(Stat.QUEUE_LENGTH) == 0
    (line,) = [text for text in texts(bench.actions) if "lost" in text]
    assert line.startswith("2 events lost")


def test_leftovers_come_behind_the_list_and_before_anything_new() -> None:
    bench = Bench(found=2)
    bench.publisher.recover([event_of(next(bench.numbers)) for _ in range(2)])
    bench.emit()
    bench.settle()
    actions = bench.link_up()
    assert sent(actions) == [1, 2, 3, 4, 5]
    assert bench.count(Stat.FALLBACK_FOUND) == 4
    assert Recovered() not in bench.ack(3, multiple=True)
    assert Recovered() in bench.ack(4)
    assert Recovered() not in bench.ack(5)


def test_leftovers_wait_while_the_data_set_loads() -> None:
    """The list, which has older events, is not loaded yet."""
    bench = Bench()
    bench.publisher.set_role(primary=True, loading=True)
    bench.publisher.recover([event_of(3)])
    bench.settle()
    assert sent(bench.link_up()) == []
    bench.list.elements = [to_element(event_of(1)), to_element(event_of(2))]
    bench.publisher.set_role(primary=True, loading=False)
    assert sent(bench.settle()) == [1, 2, 3]


def test_leftovers_are_recovered_when_the_list_has_them() -> None:
    bench = away()
    bench.publisher.recover([event_of(1)])
    assert Recovered() not in bench.actions
    bench.wait(STORE_AFTER)
    assert Recovered() in bench.settle() or Recovered() in bench.actions
    assert bench.stored == [1]


def test_leftovers_come_in_pieces() -> None:
    bench = away(fallback_size=-1)
    publisher = bench.publisher
    publisher.recover([event_of(next(bench.numbers)) for _ in range(2)], more=True)
    assert sent(bench.link_up()) == [1, 2]
    assert Recovered() not in bench.ack(2, multiple=True)
    publisher.recover([event_of(next(bench.numbers))], more=True)
    publisher.recover([], more=False)
    bench.emit()
    assert sent(bench.settle()) == [3, 4]
    assert Recovered() in bench.ack(3)
    assert Recovered() not in bench.ack(4)
    assert bench.count(Stat.FALLBACK_FOUND) == 3


def test_a_file_without_events_is_recovered_too() -> None:
    bench = away()
    bench.publisher.recover([], more=True)
    assert Recovered() not in bench.settle()
    bench.publisher.recover([], more=False)
    assert Recovered() in bench.poll()


@pytest.mark.parametrize("mode", [FlushMode.LEAVE, FlushMode.DRAIN])
def test_what_came_from_a_file_goes_to_a_file(mode: FlushMode) -> None:
    """Even if no list and no file is wanted any more: else a stop would lose it."""
    bench = away(fallback_size=-1)
    bench.publisher.recover([event_of(next(bench.numbers))], more=True)
    bench.publisher.flush(7, 5.0, mode)
    (done,) = flushed(bench.settle())
    assert [number_of(event) for event in done.leftovers or ()] == [1]


def test_a_stop_that_the_worker_sees_late_leaves_time_for_the_file() -> None:
    """Redis has waited since before, and does not wait longer for that."""
    bench = away()
    bench.list.trouble = PAUSED
    bench.emit(2)
    bench.settle()
    began = bench.now - 4.0
    bench.publisher.flush(7, 5.0, FlushMode.DRAIN, began)
    assert bench.seconds_until(Flushed) <= STOP_WRITE - STOP_LEFTOVERS - 4.0 + 0.01
    bench.publisher.flush(8, 5.0, FlushMode.LEAVE, began)
    (done,) = flushed(bench.settle())
    assert (done.write_until, done.alone_at) == (began + STOP_WRITE, began + STOP_LIMIT)


def test_a_stop_for_which_redis_does_not_wait_any_more_has_its_time() -> None:
    """The unload was refused, and the list is off: the broker gets the events."""
    bench = connected(fallback_size=-1)
    bench.emit(2)
    began = bench.now - STOP_LIMIT
    bench.publisher.flush(7, 5.0, FlushMode.LEAVE, began)
    assert not flushed(bench.settle())
    assert flushed(bench.ack(2, multiple=True))


def test_a_save_that_the_worker_sees_late_has_its_time() -> None:
    bench = away()
    bench.emit(2)
    bench.publisher.flush(7, 2.0, FlushMode.STORE, bench.now - 6.9)
    assert not flushed(bench.poll())
    assert flushed(bench.settle())
    assert bench.stored == [1, 2]


@pytest.mark.parametrize("mode", [FlushMode.LEAVE, FlushMode.DRAIN])
def test_a_stop_waits_a_moment_for_a_connection_that_opens(mode: FlushMode) -> None:
    bench = Bench()
    bench.emit(2)
    bench.settle()
    bench.publisher.flush(7, 5.0, mode)
    assert not flushed(bench.settle())
    bench.now += 1.0
    assert sent(bench.link_up()) == [1, 2]
    (done,) = flushed(bench.ack(2, multiple=True))
    assert not done.leftovers


def test_a_stop_that_comes_before_the_first_event_is_taken_in() -> None:
    bench = Bench()
    bench.settle()
    bench.publisher.flush(7, 5.0, FlushMode.LEAVE)
    actions = bench.poll(more=True)
    assert Connect() in actions
    assert not flushed(actions)


def test_a_stop_does_not_wait_for_long_for_a_connection() -> None:
    bench = Bench()
    bench.emit(2)
    bench.settle()
    bench.publisher.flush(7, 5.0, FlushMode.LEAVE)
    assert bench.seconds_until(Flushed) == pytest.approx(5.0 - MARGIN - STOP_RESERVE, abs=0.05)
    (done,) = flushed(bench.actions)
    assert [number_of(event) for event in done.leftovers or ()] == [1, 2]


def test_an_exception_at_the_end_of_a_stop_loses_no_leftovers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bench = away()
    bench.emit(2)
    with monkeypatch.context() as patch:
        patch.setattr(bench.publisher.memory, "take_all", lambda: 1 / 0)
        bench.publisher.flush(7, 5.0, FlushMode.LEAVE)
        with pytest.raises(ZeroDivisionError):
            bench.poll()
    bench.publisher.repair(job_lost=False, taken=bench.publisher.taken)
    (done,) = flushed(bench.publisher.poll(more=False))
    assert [number_of(event) for event in done.leftovers or ()] == [1, 2]


# After an exception


def test_repair_sends_again_what_was_sent() -> None:
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.lose_link()
    bench.publisher.repair(job_lost=False, taken=bench.publisher.taken)
    bench.wait(1)
    assert sent(bench.link_up()) == [1, 2]


def test_repair_takes_back_what_a_job_would_have_stored() -> None:
    bench = away()
    bench.emit(2)
    bench.now += STORE_AFTER
    bench.poll()
    assert bench.job is not None
    bench.job = None
    bench.publisher.repair(job_lost=True, taken=bench.publisher.taken)
    bench.wait(1)
    assert bench.stored == [1, 2]


def test_repair_after_a_loss_of_the_link_that_failed_half_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Elements of the list are still SENT when the list is forgotten."""
    bench = connected(found=3)
    monkeypatch.setattr(bench.publisher.memory, "link_lost", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        bench.publisher.link_down("unexpected exception")
    monkeypatch.undo()
    bench.publisher.repair(job_lost=True, taken=bench.publisher.taken)
    assert (bench.publisher.window.count, bench.publisher.window.bytes) == (0, 0)


def test_elements_of_a_trim_that_ran_before_a_repair_are_not_lost() -> None:
    """The elements were confirmed and trimmed; only the replies of the trim come too late."""
    bench = connected(found=3)
    bench.publisher.acked(3)
    assert "LTRIM" in commands(bench.poll())
    assert bench.job is not None
    result, bench.job = bench.list.run(bench.job), None
    bench.publisher.link_down("unexpected exception")
    bench.publisher.repair(job_lost=False, taken=bench.publisher.taken)
    bench.list.elements.append(to_element(event_of(50)))
    bench.publisher.imported(KEY, 4, 1)  # the import ran before the trim
    bench.publisher.job_done(result)
    bench.settle()
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 0
