"""Events that the outbox has put into the list: their places, reads, trims and the list's cap."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from keyspace_amqp.fallback import JOB_ELEMENTS, to_element
from keyspace_amqp.message import Event, Value
from keyspace_amqp.publisher.actions import Send
from keyspace_amqp.publisher.list_jobs import CHECK_EVERY, CUT_SHARE, TRIM_EVERY
from keyspace_amqp.publisher.window import WINDOW_BYTES
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.values import replace
from tests.publisher.bench import Bench, commands, sent
from tests.publisher.simulated import assert_books_balance, event_of, set_limit

OTHER = b"keyspaceamqp:{7}:fallback"
SMALL = 100  # fewer elements than a trim waits for


class OutboxBench(Bench):
    """A bench whose test plays the outbox on the main thread, too. The link is up."""

    def __init__(self, *, up: bool = True, **parameters: object) -> None:
        super().__init__(outbox="reply", **parameters)
        self.publisher.connect()
        self.settle()
        if up:
            self.link_up()
        else:
            self.lose_link()

    def put(self, count: int = 1) -> list[Event]:
        """The main thread puts new events into the list."""
        events = [event_of(next(self.numbers)) for _ in range(count)]
        self.list.elements += map(to_element, events)
        return events

    def book(self, events: Sequence[Event]) -> tuple[int, int] | None:
        """The worker hears of the newest elements of the list."""
        place = self.publisher.outbox.listed(KEY, len(events), len(self.list.elements))
        assert_books_balance(self.publisher)
        return place

    def hand(self, events: Sequence[Event], place: tuple[int, int] | None) -> None:
        """The worker takes their records."""
        assert place is not None
        self.publisher.outbox.add_listed(events, place)

    def outbox(self, count: int = 1) -> None:
        """All of this for new events."""
        events = self.put(count)
        self.hand(events, self.book(events))

    @property
    def known(self) -> int:
        return len(self.publisher.list.known)


# ---- records of elements ------------------------------------------------------------------


def test_events_with_records_are_not_read() -> None:
    bench = OutboxBench()
    bench.outbox(3)
    bench.outbox(2)
    actions = bench.settle()
    assert sent(actions) == [1, 2, 3, 4, 5]
    assert commands(actions) == []
    assert bench.count(Stat.EVENTS_MATCHED) == bench.count(Stat.FALLBACK_PUSHED) == 5
    assert bench.count(Stat.FALLBACK_LENGTH) == 5
    bench.ack(5, multiple=True)
    bench.wait(TRIM_EVERY)
    assert bench.stored == []
    assert bench.count(Stat.FALLBACK_DRAINED) == 5


def test_elements_of_which_nothing_was_told() -> None:
    """They are delivered, and count as events of this node as soon as that is known."""
    bench = OutboxBench()
    bench.outbox(1)
    bench.put(2)
    bench.publisher.link_down("unexpected exception")
    bench.publisher.repair(job_lost=True, taken=1)
    bench.link_up()
    assert bench.count(Stat.FALLBACK_FOUND) == 2
    events = bench.put(1)
    place = bench.publisher.outbox.listed(KEY, 1, len(bench.list.elements), 2)
    assert_books_balance(bench.publisher)
    assert bench.count(Stat.FALLBACK_FOUND) == 0
    assert bench.count(Stat.EVENTS_MATCHED) == bench.count(Stat.FALLBACK_PUSHED) == 4
    bench.hand(events, place)
    bench.settle()
    bench.ack(4, multiple=True)
    bench.wait(TRIM_EVERY)
    assert bench.stored == []
    assert bench.count(Stat.CONFIRMED) == 4


def test_events_behind_unread_ones_are_read() -> None:
    """Records only came for the newer ones."""
    bench = OutboxBench()
    bench.book(bench.put(2))
    bench.outbox(2)
    assert bench.known == 0
    actions = bench.settle()
    assert commands(actions) == ["LRANGE"]
    assert sent(actions) == [1, 2, 3, 4]


def test_records_of_events_that_were_read_meanwhile() -> None:
    bench = OutboxBench()
    events = bench.put(4)
    place = bench.book(events)
    assert sent(bench.settle()) == [1, 2, 3, 4]
    bench.hand(events, place)
    assert bench.known == 4
    assert sent(bench.settle()) == []


def test_records_of_events_of_which_a_part_was_read() -> None:
    bench = OutboxBench()
    events = bench.put(4)
    place = bench.book(events)
    assert place is not None
    bench.hand(events[:2], place)
    bench.hand(events, place)
    bench.hand(events[1:3], (place[0] + 1, place[1]))
    assert bench.known == 4
    assert sent(bench.settle()) == [1, 2, 3, 4]


def test_records_of_events_that_were_trimmed_meanwhile() -> None:
    bench = OutboxBench()
    first = bench.put(3)
    place = bench.book(first)
    bench.settle()
    bench.ack(3, multiple=True)
    bench.wait(TRIM_EVERY)
    assert bench.stored == []
    bench.outbox(1)
    bench.hand(first, place)
    assert sent(bench.settle()) == [4]


@pytest.mark.parametrize("handed", [1, 2, 3])
def test_records_that_come_during_a_read(handed: int) -> None:
    """The reply has elements that are known by now."""
    bench = OutboxBench()
    events = bench.put(3)
    place = bench.book(events)
    bench.poll()
    assert bench.job is not None, "a read"
    bench.hand(events[:handed], place)
    assert sent(bench.poll()) == list(range(1, handed + 1))
    bench.run_job()
    assert bench.known == 3
    assert sent(bench.settle()) == list(range(handed + 1, 4))


def test_events_that_are_put_during_a_read() -> None:
    """The main thread puts some before the read runs, and some after that."""
    bench = OutboxBench()
    first = bench.put(2)
    bench.book(first)
    bench.poll()
    before = bench.put(2)
    place = bench.book(before)
    bench.run_job()
    bench.hand(before, place)
    bench.outbox(1)
    assert sent(bench.settle()) == [1, 2, 3, 4, 5]
    assert bench.count(Stat.FALLBACK_FOUND) == 0


def test_a_place_is_good_for_one_generation() -> None:
    """Others have removed elements: it is not known which, so all are read again."""
    bench = OutboxBench(up=False)
    events = bench.put(4)
    place = bench.book(events)
    del bench.list.elements[0]
    bench.wait(CHECK_EVERY)
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 1
    bench.hand(events, place)
    assert bench.known == 0
    assert sent(bench.link_up()) == [2, 3, 4]


def test_no_place_while_the_length_is_about_to_be_read() -> None:
    bench = OutboxBench(up=False)
    bench.publisher.repair(job_lost=True, taken=0)
    assert bench.book(bench.put(2)) is None
    bench.settle()
    assert bench.count(Stat.FALLBACK_FOUND) == 0
    assert bench.count(Stat.FALLBACK_LENGTH) == 2


def test_no_more_records_are_kept_than_a_read_would_give() -> None:
    bench = OutboxBench(up=False)
    bench.outbox(3 * JOB_ELEMENTS)
    assert bench.known == 2 * JOB_ELEMENTS
    bench.outbox(1)
    assert bench.known == 2 * JOB_ELEMENTS


# ---- what others do -----------------------------------------------------------------------


def test_others_have_added_elements() -> None:
    """The outbox sees them first, by the length; they stand before its own."""
    bench = OutboxBench()
    bench.list.elements.append(to_element(event_of(next(bench.numbers))))
    assert bench.book(bench.put(2)) is None
    assert bench.count(Stat.FALLBACK_FOUND) == 1
    assert sent(bench.settle()) == [1, 2, 3]


def test_others_have_removed_elements() -> None:
    bench = OutboxBench(up=False)
    bench.outbox(3)
    del bench.list.elements[1:]
    assert bench.book(bench.put(1)) is None
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 2
    assert bench.known == 0
    assert sent(bench.link_up()) == [1, 4]


def test_a_list_that_is_not_the_current_one() -> None:
    bench = OutboxBench()
    assert bench.publisher.outbox.listed(OTHER, 3, 3) is None
    assert bench.publisher.outbox.listed(OTHER, 1, 4) is None
    assert bench.publisher.lists.others == {OTHER: 4}
    assert bench.count(Stat.FALLBACK_LENGTH) == 4
    assert_books_balance(bench.publisher)


def test_a_list_of_a_node_that_is_no_primary_any_more() -> None:
    bench = OutboxBench()
    bench.publisher.set_role(primary=False, loading=False)
    assert bench.publisher.outbox.listed(KEY, 3, 3) is None
    assert bench.publisher.lists.others == {}
    assert bench.count(Stat.EVENTS_MATCHED) + bench.count(Stat.FALLBACK_FOUND) == 0
    assert_books_balance(bench.publisher)


# ---- trims ---------------------------------------------------------------------------------


def test_small_trims_wait() -> None:
    bench = OutboxBench()
    bench.outbox(SMALL)
    bench.settle()
    assert commands(bench.ack(SMALL, multiple=True)) == ["LRANGE", "LTRIM"], "the first"
    at = bench.now
    bench.outbox(SMALL)
    bench.settle()
    assert commands(bench.ack(2 * SMALL, multiple=True)) == []
    assert bench.publisher.wake_at() == pytest.approx(at + TRIM_EVERY)
    assert commands(bench.wait(TRIM_EVERY)) == ["LRANGE", "LTRIM"]
    assert bench.stored == []


def test_trims_do_not_wait_for_messages_in_flight() -> None:
    """Events that come all the time leave some in flight at any moment."""
    bench = OutboxBench()
    bench.outbox(SMALL)
    bench.settle()
    bench.ack(1)
    for newest in range(2, 20):
        bench.outbox(1)
        bench.settle()
        bench.ack(newest, multiple=True)
        assert commands(bench.wait(TRIM_EVERY)) == ["LRANGE", "LTRIM"]
        assert bench.stored[0] == newest + 1


def test_trims_do_not_wait_for_elements_that_wait_to_be_sent() -> None:
    """The window is full, and the broker confirms slowly."""
    bench = OutboxBench()
    for _ in range(4):
        bench.outbox(JOB_ELEMENTS)
        bench.settle()
    assert bench.publisher.list.unsent > 0
    bench.ack(1)
    bench.ack(2)
    assert bench.publisher.wake_at() == pytest.approx(bench.now + TRIM_EVERY)
    bench.wait(TRIM_EVERY)
    assert bench.stored[0] == 3


def test_refused_elements_are_moved_after_a_while() -> None:
    bench = OutboxBench()
    bench.outbox(1)
    bench.settle()
    bench.ack(1)
    bench.outbox(1)
    bench.settle()
    assert commands(bench.nack(2)) == []
    assert bench.publisher.wake_at() == pytest.approx(bench.now + TRIM_EVERY)
    bench.wait(TRIM_EVERY)
    assert bench.stored == []


def test_large_trims_do_not_wait() -> None:
    bench = OutboxBench()
    bench.outbox(1)
    bench.settle()
    bench.ack(1)
    bench.outbox(JOB_ELEMENTS)
    actions = bench.settle()
    while actions:
        last = max(a.first_tag + len(a.events) for a in bench.actions if isinstance(a, Send)) - 1
        actions = bench.ack(last, multiple=True)
    assert bench.stored == []


def test_a_trim_that_is_too_large_for_one_job_goes_on_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    set_limit(monkeypatch, "JOB_BYTES", 200)
    bench = OutboxBench()
    bench.outbox(SMALL)
    bench.settle()
    assert commands(bench.ack(SMALL - 1, multiple=True)).count("LTRIM") > 2
    assert bench.stored == [SMALL]


def test_trims_do_not_wait_while_the_broker_is_away() -> None:
    bench = OutboxBench()
    bench.outbox(SMALL)
    bench.settle()
    bench.ack(SMALL, multiple=True)
    bench.outbox(2)
    bench.settle()
    bench.ack(SMALL + 2, multiple=True)
    assert commands(bench.lose_link()) == ["LRANGE", "LTRIM"]


# ---- fallback-size --------------------------------------------------------------------------

KEEP = 10 * CUT_SHARE


def cap(bench: Bench) -> int:
    """The most elements that a full list keeps."""
    return bench.publisher.jobs._most(bench.config.fallback_size)


def test_a_full_list_has_some_slack() -> None:
    bench = OutboxBench(up=False, fallback_size=KEEP)
    most = cap(bench)
    bench.outbox(most + most // CUT_SHARE)
    assert commands(bench.settle()) == []
    bench.outbox(1)
    assert commands(bench.settle()) == ["LTRIM"]
    cut = most // CUT_SHARE + 1
    assert len(bench.stored) == most
    assert bench.stored[0] == cut + 1
    assert bench.count(Stat.DROPPED_FALLBACK_FULL) == cut
    assert bench.known == min(most, 2 * JOB_ELEMENTS)
    assert sent(bench.link_up())[0] == cut + 1


def test_a_list_without_a_cap() -> None:
    bench = OutboxBench(up=False, fallback_size=0)
    bench.outbox(3 * KEEP)
    assert commands(bench.settle()) == []


def test_a_cut_of_a_list_that_others_have_changed() -> None:
    """What they have added is found first, and then cut: so the right elements remain known."""
    bench = OutboxBench(up=False, fallback_size=20)
    most = cap(bench)
    bench.outbox(most + 1)
    bench.poll()
    assert bench.job is not None, "a cut"
    bench.list.elements += [to_element(event_of(next(bench.numbers))) for _ in range(5)]
    bench.run_job()
    assert bench.count(Stat.FALLBACK_FOUND) == 5
    assert bench.count(Stat.DROPPED_FALLBACK_FULL) == 6
    assert bench.count(Stat.FALLBACK_LENGTH) == most
    assert sent(bench.link_up()) == bench.stored


def test_a_cut_of_a_list_into_which_others_have_inserted_elements() -> None:
    """It removes the oldest elements, whatever they are. What is left is read and sent again; but
    an inserted element is not counted if it was cut in place of one that was confirmed."""
    bench = OutboxBench(fallback_size=20)
    most = cap(bench)
    bench.outbox(most)
    bench.settle()
    bench.ack(2)
    bench.ack(3)
    inserted = next(bench.numbers)
    bench.list.elements.insert(1, to_element(event_of(inserted)))
    bench.book(bench.put(2))
    bench.poll()
    assert bench.job is not None, "a cut"
    bench.run_job()
    assert len(bench.stored) == most
    assert bench.stored[0] == 3, "1, the inserted one and 2 are gone"
    assert bench.count(Stat.DROPPED_FALLBACK_FULL) == 1, "2 and 3 were confirmed"
    assert bench.count(Stat.FALLBACK_FOUND) == 1
    bench.lose_link()
    assert sent(bench.link_up())[:2] == [4, 5]
    again = sent(bench.ack(bench.publisher.window.next_tag - 1, multiple=True))
    assert again == bench.stored, "the list is read and sent again"
    bench.ack(bench.publisher.window.next_tag - 1, multiple=True)
    bench.wait(TRIM_EVERY)
    assert bench.stored == []
    assert_books_balance(bench.publisher)


def test_a_cut_during_which_the_handler_fails() -> None:
    bench = OutboxBench(up=False, fallback_size=20)
    bench.outbox(cap(bench) + 1)
    bench.poll()
    bench.publisher.repair(job_lost=False, taken=bench.publisher.taken)
    bench.run_job()
    assert_books_balance(bench.publisher)
    assert bench.count(Stat.DROPPED_FALLBACK_FULL) == 1


def test_records_of_events_that_were_cut_meanwhile() -> None:
    bench = OutboxBench(up=False, fallback_size=20)
    most = cap(bench)
    events = bench.put(most + 5)
    place = bench.book(events)
    bench.settle()
    assert bench.stored[0] == 6
    bench.hand(events, place)
    assert bench.known == most
    assert sent(bench.link_up()) == bench.stored


def test_records_that_are_handed_over_are_bounded_in_bytes() -> None:
    """Rule 13: what is known of the list and not sent is bounded as after a read. The rest is left
    to the list."""
    bench = OutboxBench()
    data = bytes(256 * 1024)
    for _ in range(10):  # the broker confirms nothing
        events = [
            replace(
                event_of(next(bench.numbers)), value=Value("string", len(data), data, before=False)
            )
            for _ in range(40)
        ]
        bench.list.elements += map(to_element, events)
        bench.hand(events, bench.book(events))
        bench.poll()
        if bench.job is not None:
            bench.run_job()
    assert bench.publisher.list.unread > 0
    assert bench.publisher.list.unsent_bytes <= 2 * WINDOW_BYTES
