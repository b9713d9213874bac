"""Messages in flight: the window, confirms, and a link that is lost."""

from __future__ import annotations

import pytest

from keyspace_amqp.message import body
from keyspace_amqp.publisher.actions import FlushMode, Send
from keyspace_amqp.publisher.publisher import SEND_CHUNK
from keyspace_amqp.publisher.storing import STORE_AFTER
from keyspace_amqp.publisher.window import STALLED_AFTER, WINDOW, WINDOW_BYTES
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.stats import Stat
from tests.publisher.bench import away, connected, of_number, sent
from tests.publisher.simulated import assert_books_balance


def test_the_window_bounds_what_is_not_confirmed() -> None:
    bench = connected()
    bench.emit(WINDOW + 100)
    assert sent(bench.settle()) == list(range(1, WINDOW + 1))
    assert sent(bench.ack(1)) == [WINDOW + 1]
    assert bench.count(Stat.IN_FLIGHT) == WINDOW
    assert bench.count(Stat.QUEUE_LENGTH) == 99


def test_the_window_is_filled_in_chunks() -> None:
    """Confirms are read between two chunks; `again` asks for another turn."""
    bench = connected()
    bench.emit(SEND_CHUNK + 1)
    assert sent(bench.poll()) == list(range(1, SEND_CHUNK + 1))
    assert bench.publisher.has_more
    assert sent(bench.poll()) == [SEND_CHUNK + 1]
    bench.poll()
    assert not bench.publisher.has_more


def test_no_more_messages_than_are_allowed() -> None:
    bench = connected(found=2)
    bench.settle()  # what is in the list counts too
    bench.ack(2, multiple=True)
    bench.settle()
    bench.emit(5)
    assert sent(bench.poll(most=0)) == []
    assert sent(bench.poll(most=2)) == [3, 4]
    assert sent(bench.poll(most=2)) == [5, 6]
    assert bench.count(Stat.FALLBACK_PUSHED) == 0


@pytest.mark.parametrize("mode", FlushMode)
def test_a_flush_sends_all_the_same(mode: FlushMode) -> None:
    bench = connected()
    bench.emit(5)
    bench.publisher.flush(1, 5, mode)
    assert sent(bench.poll(most=0)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("size", "waits"), [(-1, False), (1, False), (0, True), (10, True)])
def test_who_has_no_place_to_wait_does_not_wait(size: int, waits: bool) -> None:
    """Sending is not held back if the list is off or half full: events that wait could be lost."""
    bench = connected(fallback_size=size)
    bench.emit(2)
    assert sent(bench.poll(most=0)) == ([] if waits else [1, 2])


def test_a_silent_broker_gets_no_more_than_the_window() -> None:
    """Also if the list is at its cap and loses elements that were sent: they still take room in the
    buffers on the way to the broker."""
    bench = connected(fallback_size=WINDOW // 2)
    for _ in range(40):
        bench.emit(WINDOW // 4)
        bench.wait(STALLED_AFTER)
    assert bench.count(Stat.DROPPED_FALLBACK_FULL) > WINDOW
    assert bench.count(Stat.PUBLISHED) <= WINDOW
    assert len(bench.publisher.window) <= WINDOW
    bench.lose_link()
    bench.link_up()
    assert_books_balance(bench.publisher)


def test_what_was_refused_and_then_removed_is_not_too_large_as_well() -> None:
    bench = connected(found=1)
    bench.settle()
    bench.publisher.nacked(1, False)
    bench.list.elements.clear()
    bench.publisher.list_changed(b"del", KEY)
    bench.settle()
    bench.publisher.too_large(0, body)
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 1
    assert bench.count(Stat.DROPPED_TOO_LARGE) == 0
    assert_books_balance(bench.publisher)


def test_the_window_bounds_bytes_too() -> None:
    bench = connected()
    bench.emit(40, key=b"k" * 1024 * 1024)
    assert sent(bench.settle()) == list(range(1, 17))
    assert sent(bench.ack(3, multiple=True)) == [17, 18, 19]


def test_one_larger_than_the_window_goes_alone() -> None:
    bench = connected()
    bench.emit(2, key=b"k" * (WINDOW_BYTES + 1))
    assert sent(bench.settle()) == [1]
    assert sent(bench.ack(1)) == [2]


def test_an_ack_confirms_one() -> None:
    bench = connected()
    bench.emit(4)
    bench.settle()
    bench.ack(3)
    assert bench.count(Stat.CONFIRMED) == 1
    assert bench.count(Stat.IN_FLIGHT) == 3


def test_an_ack_of_multiple_confirms_all_up_to_it() -> None:
    bench = connected()
    bench.emit(4)
    bench.settle()
    bench.ack(3, multiple=True)
    assert bench.count(Stat.CONFIRMED) == 3
    bench.lose_link()
    assert sent(bench.link_up()) == [4]


def test_acks_that_nobody_waits_for_are_ignored() -> None:
    bench = connected()
    bench.emit()
    bench.settle()
    for _ in range(2):
        bench.ack(1)
    bench.ack(77, multiple=True)
    assert bench.count(Stat.CONFIRMED) == 1


def test_a_lost_link_repeats_the_unconfirmed_before_anything_newer() -> None:
    bench = connected()
    bench.emit(4)
    first = bench.settle()
    bench.ack(2)
    bench.nack(3)
    bench.lose_link()
    bench.emit()
    again = bench.link_up()
    assert sent(again) == [1, 4, 5]
    again += bench.wait(STORE_AFTER)
    assert sent(again) == [1, 4, 5, 3]  # which was refused
    for number in (1, 3, 4):
        assert of_number(number, again) == of_number(number, first)
    send, *_ = [action for action in again if isinstance(action, Send)]
    assert send.first_tag == 1  # of the new connection


def test_an_ack_of_the_old_connection_cannot_confirm_on_the_new_one() -> None:
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.lose_link()
    bench.ack(2, multiple=True)
    assert bench.count(Stat.CONFIRMED) == 0
    assert sent(bench.link_up()) == [1, 2]


def test_too_large_is_dropped_and_the_others_go() -> None:
    bench = connected()
    bench.emit(1)
    bench.emit(1, key=b"k" * 1000)
    bench.emit(1)
    bench.settle()
    bench.publisher.too_large(500, body)
    bench.lose_link()
    assert sent(bench.link_up()) == [1, 3]
    assert bench.count(Stat.DROPPED_TOO_LARGE) == 1


def test_too_large_to_be_kept_is_named_and_the_others_are_kept() -> None:
    """The broker's limit is often above what is kept for users to look at."""
    bench = connected()
    bench.emit(1, key=b"k" * 1000)
    bench.settle()
    bench.publisher.too_large(500, body)
    bench.lose_link()
    bench.link_up()
    bench.emit(1, key=b"big:" + b"k" * 5_000_000)
    bench.settle()
    bench.publisher.too_large(4_000_000, body)
    newest, oldest = bench.publisher.aside.newest(10)
    assert newest.element == b""
    assert newest.why.startswith("the event of key b'big:kkk")
    assert newest.why.endswith("(del, database 2), larger than the broker's limit of 4000000 bytes")
    assert len(newest.why) < 300
    assert oldest.element.endswith(b"k" * 1000)
    assert oldest.why == "larger than the broker's limit of 500 bytes"


def test_too_large_leaves_the_list_too() -> None:
    bench = away()
    bench.emit(1, key=b"k" * 1000)
    bench.emit(1)
    bench.wait(STORE_AFTER)
    bench.link_up()
    bench.publisher.too_large(500, body)
    bench.lose_link()
    assert sent(bench.link_up()) == [2]
    bench.ack(1)
    assert bench.stored == []
    assert bench.count(Stat.DROPPED_TOO_LARGE) == bench.count(Stat.CONFIRMED) == 1
