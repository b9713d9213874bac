"""The lists of a node in a cluster, whose slots come and go."""

from __future__ import annotations

import pytest

from keyspace_amqp.fallback import to_element
from keyspace_amqp.jobs import JobError
from keyspace_amqp.publisher.actions import Flushed, FlushMode
from keyspace_amqp.publisher.flush import STORE_GRACE
from keyspace_amqp.publisher.list_jobs import CHECK_EVERY, JOB_RETRY_AFTER, TRIM_EVERY
from keyspace_amqp.publisher.recent import PUSHED_RECENTLY
from keyspace_amqp.publisher.storing import STORE_AFTER
from keyspace_amqp.publisher.window import WINDOW_BYTES
from keyspace_amqp.tables.keys import refused_key
from keyspace_amqp.tables.stats import Stat
from tests.publisher.bench import FIRST, SECOND, THIRD, SlotsBench, commands, flushed, sent
from tests.publisher.simulated import (
    CLUSTER_DOWN,
    WRONG_TYPE,
    assert_books_balance,
    dropped_of,
    event_of,
    number_of,
)


def test_before_the_lists_are_known_memory_waits() -> None:
    bench = SlotsBench()
    bench.emit(2)
    bench.settle()
    assert sent(bench.link_up()) == []
    assert not bench.publisher.lists.known
    assert bench.keys_of_jobs(bench.actions) == set()
    assert sent(bench.tell(FIRST)) == [1, 2]


def test_the_lists_are_told_when_one_is_chosen() -> None:
    """Not before all lists are known: FALLBACK LEN would take "no lists" for "no elements"."""
    bench = SlotsBench()
    assert bench.publisher.lists.complete is None
    bench.publisher.lists.set_lists(FIRST, bench.list.serves)
    assert bench.publisher.lists.complete is None
    bench.settle()
    assert bench.publisher.lists.complete == [FIRST, refused_key(FIRST)]
    bench.publisher.set_role(primary=False, loading=False)
    assert bench.publisher.lists.complete is None
    bench = SlotsBench()
    bench.tell(None)
    assert bench.publisher.lists.complete == []


def test_lists_are_delivered_one_after_the_other_and_before_memory() -> None:
    """The longest list first. Events of memory are sent at the end, or stored in the list at
    home."""
    bench = SlotsBench({FIRST: 1, SECOND: 3, THIRD: 2})
    bench.emit(2)
    bench.tell(FIRST)
    assert bench.count(Stat.FALLBACK_LENGTH) == 6
    assert bench.publisher.lists.keys[0] == SECOND
    assert sent(bench.link_up()) == [2, 3, 4]
    assert sent(bench.ack(3, multiple=True)) == [5, 6]
    assert sent(bench.ack(5, multiple=True)) == [1, 7, 8]
    bench.ack(8, multiple=True)
    assert bench.publisher.lists.keys == [FIRST, refused_key(FIRST)]
    assert bench.count(Stat.FALLBACK_FOUND) == bench.count(Stat.FALLBACK_DRAINED) == 6


def test_behind_a_list_that_is_worked_with_events_are_stored_in_it() -> None:
    bench = SlotsBench({SECOND: 2})
    bench.tell(FIRST)
    bench.emit(2)
    bench.wait(STORE_AFTER)
    assert bench.list.here[SECOND].numbers == [1, 2, 3, 4]
    assert bench.list.here[FIRST].numbers == []
    assert sent(bench.link_up()) == [1, 2, 3, 4]


def test_a_new_home_is_taken_when_the_present_list_is_empty() -> None:
    bench = SlotsBench({FIRST: 2})
    bench.tell(FIRST)
    bench.tell(SECOND)
    bench.emit()
    bench.wait(STORE_AFTER)
    assert bench.list.here[FIRST].numbers == [1, 2, 3]
    bench.link_up()
    bench.ack(3, multiple=True)
    assert bench.publisher.lists.keys == [SECOND, refused_key(SECOND)]
    bench.lose_link()
    bench.emit()
    bench.wait(STORE_AFTER)
    assert bench.list.here[SECOND].numbers == [4]


def test_a_list_whose_slot_went_is_another_nodes() -> None:
    bench = SlotsBench({FIRST: 2, SECOND: 3})
    bench.emit()
    bench.tell(FIRST)
    for key in (FIRST, SECOND):
        bench.leave(key)
    assert sent(bench.tell(THIRD)) == []
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_FOUND) == 0
    assert dropped_of(bench.publisher) == 0
    assert sent(bench.link_up()) == [6]


def test_a_job_for_a_list_that_went_meanwhile_changes_nothing() -> None:
    bench = SlotsBench({FIRST: 3})
    bench.tell(FIRST)
    bench.link_up()
    bench.publisher.acked(3)
    assert "LTRIM" in commands(bench.poll())
    bench.leave(FIRST)
    bench.publisher.lists.set_lists(SECOND, bench.list.serves)
    bench.run_job()
    bench.emit()
    assert bench.keys_of_jobs(bench.settle()) == {SECOND, refused_key(SECOND)}
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_DRAINED) == 0
    assert sent(bench.actions)[-1:] == [4]


def test_when_the_slot_is_not_served_any_more_it_asks_for_the_lists() -> None:
    """Redis refuses the job before the topology is read the next time."""
    bench = SlotsBench({FIRST: 3, SECOND: 2})
    bench.tell(SECOND)
    bench.leave(FIRST)
    bench.emit()
    assert bench.publisher.lists.known
    bench.wait(CHECK_EVERY)
    assert not bench.publisher.lists.known
    assert bench.publisher.lists.keys == [SECOND]
    assert sent(bench.link_up()) == []  # the other list may have something older
    assert sent(bench.tell(SECOND)) == [4, 5, 6]
    assert dropped_of(bench.publisher) == 0


def test_in_a_slot_that_migrates_no_list_begins() -> None:
    """Redis would redirect the command to the other node. Events wait in memory, or are sent."""
    bench = SlotsBench()
    bench.list.migrating = {FIRST}
    bench.tell(FIRST)
    bench.emit()
    bench.wait(STORE_AFTER)
    assert not bench.publisher.lists.known
    assert bench.count(Stat.QUEUE_LENGTH) == 1
    assert sent(bench.link_up()) == [1]


def test_in_a_slot_that_migrates_a_list_that_is_there_goes_on() -> None:
    bench = SlotsBench({FIRST: 2})
    bench.list.migrating = {FIRST}
    bench.tell(SECOND)
    bench.emit()
    bench.wait(STORE_AFTER)
    assert bench.list.here[FIRST].numbers == [1, 2, 3]
    assert sent(bench.link_up()) == [1, 2, 3]
    bench.ack(3, multiple=True)
    bench.tell(SECOND)
    bench.emit()
    assert sent(bench.wait(CHECK_EVERY + JOB_RETRY_AFTER)) == [4]
    assert bench.count(Stat.CONFIRMED) == 3
    assert dropped_of(bench.publisher) == 0


def test_a_migration_that_is_taken_back_after_the_last_trim_has_lost_nothing() -> None:
    """The trim empties the list, and from then on Redis does not answer for its key."""
    bench = SlotsBench({FIRST: 2})
    bench.list.migrating = {FIRST}
    bench.tell(FIRST)
    bench.link_up()
    bench.publisher.acked(2)
    assert "LTRIM" in commands(bench.poll())
    bench.run_job()
    bench.list.migrating = set()
    bench.settle()
    bench.wait(CHECK_EVERY)
    assert bench.count(Stat.FALLBACK_DRAINED) == bench.count(Stat.CONFIRMED) == 2
    assert bench.count(Stat.FALLBACK_LENGTH) == dropped_of(bench.publisher) == 0


def test_a_node_without_slots_sends_and_stores_nothing() -> None:
    bench = SlotsBench()
    bench.emit()
    bench.tell(None)
    bench.wait(STORE_AFTER)
    assert bench.keys_of_jobs(bench.actions) == set()
    assert bench.publisher.lists.keys == []
    assert bench.publisher.can_only_wait
    assert sent(bench.link_up()) == [1]


def test_others_take_away_a_list_that_waits() -> None:
    bench = SlotsBench({FIRST: 3, SECOND: 2})
    bench.tell(FIRST)
    bench.publisher.lists.found({SECOND: 1})
    bench.publisher.lists.found({SECOND: 0})
    assert bench.count(Stat.FALLBACK_LENGTH) == 3
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 2
    bench.publisher.lists.found({FIRST: 0})  # the present one: it looks for itself
    assert bench.count(Stat.FALLBACK_LENGTH) == 3
    bench.publisher.lists.found({THIRD: 0})
    assert dropped_of(bench.publisher) == 2


def test_purge_empties_all_lists() -> None:
    bench = SlotsBench({FIRST: 3, SECOND: 2})
    answers: list[int | JobError] = []
    bench.publisher.purge(answers.append)
    bench.settle()
    assert answers == []  # the lists are not known yet
    bench.tell(THIRD)
    assert answers == [5]
    assert bench.stored == []
    assert bench.count(Stat.DROPPED_PURGED) == dropped_of(bench.publisher) == 5


def test_a_purge_that_fails_at_one_of_the_lists_says_so() -> None:
    bench = SlotsBench({FIRST: 3, SECOND: 2})
    bench.tell(THIRD)
    bench.leave(SECOND)
    answers: list[int | JobError] = []
    bench.publisher.purge(answers.append)
    bench.settle()
    assert [str(answer) for answer in answers] == ["the list's slot is not served by this node"]
    assert bench.count(Stat.DROPPED_PURGED) == dropped_of(bench.publisher) == 3
    assert bench.list.away[SECOND]


def test_a_replica_hands_all_lists_over() -> None:
    bench = SlotsBench({FIRST: 3, SECOND: 2})
    bench.tell(FIRST)
    bench.publisher.set_role(primary=False, loading=False)
    bench.publisher.lists.found({THIRD: 7})
    bench.publisher.lists.set_lists(FIRST, lambda key: True)
    assert bench.publisher.lists.keys == []
    assert not bench.publisher.lists.known
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_FOUND) == 0


@pytest.mark.parametrize("agreed", [True, False])
def test_who_was_not_asked_sends_again_what_it_has_stored_lately(agreed: bool) -> None:
    """The new primary may have taken over before the last pushes reached it: the list goes with the
    data. It has all older elements."""
    bench = SlotsBench()
    bench.tell(FIRST)
    bench.emit(2)
    bench.wait(STORE_AFTER)
    bench.wait(PUSHED_RECENTLY + 0.1)
    bench.emit(2)
    bench.wait(STORE_AFTER)
    assert bench.list.here[FIRST].numbers == [1, 2, 3, 4]
    bench.emit()
    bench.publisher.set_role(primary=False, loading=False, agreed=agreed)
    bench.settle()
    assert sent(bench.link_up()) == ([5] if agreed else [3, 4, 5])


def test_what_is_kept_of_what_was_stored_lately_is_bounded() -> None:
    bench = SlotsBench()
    bench.tell(FIRST)
    for _ in range(3):
        bench.emit(key=b"k" * (WINDOW_BYTES // 2))
        bench.wait(STORE_AFTER)
    bench.publisher.set_role(primary=False, loading=False)
    bench.settle()
    assert sent(bench.link_up()) == [3]


def test_another_list_is_delivered_though_the_key_at_home_is_none() -> None:
    bench = SlotsBench()
    bench.list.here[FIRST]._llen = lambda there: WRONG_TYPE.reply  # type: ignore
    bench.tell(FIRST)
    bench.link_up()
    bench.list.here[SECOND].elements = [to_element(event_of(7))]
    bench.emit()
    assert sent(bench.tell(FIRST)) == [7, 1]


@pytest.mark.parametrize("home", [None, FIRST], ids=["no slot", "out of reach"])
def test_a_save_does_not_wait_for_a_list_out_of_reach(home: bytes | None) -> None:
    bench = SlotsBench()
    bench.tell(home)
    bench.list.trouble = CLUSTER_DOWN
    bench.emit()
    bench.wait(CHECK_EVERY)
    bench.publisher.flush(7, 2.0, FlushMode.STORE)
    assert flushed(bench.settle() + bench.wait(STORE_GRACE))


def test_a_save_waits_until_the_lists_are_known() -> None:
    """As it is right after a load and after a change of the role: but not longer than it may."""
    bench = SlotsBench()
    for number in (1, 2):
        bench.emit()
        bench.publisher.flush(number, 2.0, FlushMode.STORE)
        assert not flushed(bench.settle() + bench.wait(STORE_GRACE))
        if number == 1:
            assert 0 < bench.seconds_until(Flushed) <= 2.0
    assert flushed(bench.tell(FIRST))
    assert bench.stored == [1, 2]


def test_without_a_slot_what_is_left_at_the_end_goes_to_a_file() -> None:
    """Also on a server that saves nothing, where a list would be lost: the file is not lost."""
    bench = SlotsBench()
    bench.tell(None)
    bench.emit(2)
    bench.settle()
    bench.publisher.flush(7, 5.0, FlushMode.DRAIN)
    (done,) = flushed(bench.wait(5))
    assert [number_of(event) for event in done.leftovers or ()] == [1, 2]


def test_stop_with_drain_delivers_all_lists() -> None:
    bench = SlotsBench({FIRST: 2, SECOND: 1})
    bench.publisher.connect()
    bench.tell(FIRST)
    bench.link_up()
    bench.publisher.flush(7, 5.0, FlushMode.DRAIN)
    assert not flushed(bench.settle())
    assert not flushed(bench.ack(2, multiple=True))
    assert flushed(bench.ack(3))
    assert bench.stored == []


def test_reset_stats_counts_all_lists_as_found() -> None:
    bench = SlotsBench({FIRST: 3, SECOND: 2})
    bench.tell(FIRST)
    bench.publisher.reset_stats()
    assert_books_balance(bench.publisher)
    assert bench.count(Stat.FALLBACK_FOUND) == 5


# ---- the list of the outbox -------------------------------------------------------------------


def test_a_list_into_which_the_outbox_puts_events_is_kept() -> None:
    """Even if it is empty: what comes into it is older than what would go into the next one."""
    bench = SlotsBench({SECOND: 2}, outbox="reply")
    bench.list.served = {FIRST}
    bench.tell(FIRST)
    bench.publisher.outbox.keep_list(FIRST)
    assert not bench.publisher.outbox.changes_list
    bench.list.served.add(SECOND)
    bench.tell(FIRST)
    assert bench.publisher.works_with(FIRST)
    assert bench.publisher.outbox.changes_list, "the outbox is to be held"
    bench.publisher.outbox.listed(FIRST, 1, 1)
    bench.publisher.outbox.keep_list(None)
    bench.settle()
    assert bench.publisher.works_with(FIRST), "it is not empty any more"
    assert not bench.publisher.outbox.changes_list, "the broker is away"


def test_the_outbox_makes_way_for_another_list() -> None:
    """With the broker there, events that come all the time do not keep the list from its end."""
    bench = SlotsBench({FIRST: 1, SECOND: 2}, outbox="reply")
    bench.list.served = {FIRST}
    bench.tell(FIRST)
    bench.publisher.outbox.keep_list(FIRST)
    bench.publisher.connect()
    bench.settle()
    bench.list.served.add(SECOND)
    bench.tell(FIRST)
    assert not bench.publisher.outbox.changes_list
    assert sent(bench.link_up()) == [1]
    assert bench.publisher.outbox.changes_list
    bench.lose_link()
    assert not bench.publisher.outbox.changes_list, "nobody empties it"
    bench.link_up()
    bench.publisher.outbox.keep_list(None)
    bench.ack(1)
    bench.wait(TRIM_EVERY)
    assert bench.publisher.works_with(SECOND)
    bench.ack(3, multiple=True)
    bench.wait(TRIM_EVERY)
    assert bench.publisher.works_with(FIRST), "the list of its slot"
    assert not bench.publisher.outbox.changes_list


def test_the_list_of_the_outbox_is_chosen_again() -> None:
    """After a change of the role: events may have come into it before the lists were known."""
    bench = SlotsBench({SECOND: 2}, outbox="reply")
    bench.list.served = {FIRST}
    bench.tell(FIRST)
    bench.publisher.outbox.keep_list(FIRST)
    bench.publisher.set_role(primary=False, loading=False)
    bench.publisher.set_role(primary=True, loading=False)
    bench.list.served.add(SECOND)
    bench.tell(FIRST)
    assert bench.publisher.works_with(FIRST)


def test_a_list_of_the_outbox_that_has_left_is_not_waited_for() -> None:
    bench = SlotsBench({SECOND: 2}, outbox="reply")
    bench.tell(FIRST)
    bench.publisher.outbox.keep_list(THIRD)
    assert bench.publisher.outbox.changes_list
