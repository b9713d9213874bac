"""Events in memory, and the loss of the oldest ones if they are too many."""

from __future__ import annotations

from keyspace_amqp.fallback import JOB_ELEMENTS, to_element
from keyspace_amqp.message import Event
from keyspace_amqp.publisher.actions import FlushMode
from keyspace_amqp.publisher.entry import Entry
from keyspace_amqp.publisher.window import WINDOW, WINDOW_BYTES
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.values import replace
from tests.publisher.bench import Bench, away, connected, sent
from tests.publisher.simulated import assert_books_balance, event_of


def test_size_counts_the_bytes_of_name_and_key() -> None:
    event = Event("5f0c9a-7", 1700000000123, 0, "x", b"expire", b"session:42")
    longer = replace(event, name=b"n" * 106, key=b"k" * 1010)
    assert Entry(longer, 0).size - Entry(event, 0).size == 100 + 1000
    assert Entry(event, 0).size > len(event.name) + len(event.key)


def test_drop_oldest_gives_up_as_much_as_is_asked() -> None:
    bench = away(fallback_size=-1)
    bench.emit(5)
    assert bench.publisher.drop_oldest(Entry(event_of(1), 0).size + 1) == 2
    bench.poll()
    assert bench.count(Stat.DROPPED_QUEUE_FULL) == 2
    assert sent(bench.link_up()) == [3, 4, 5]
    assert bench.publisher.drop_oldest(10**9) == 0  # the broker may have seen these


def test_drop_oldest_may_keep_the_newest() -> None:
    bench = away(fallback_size=-1)
    bench.emit(5)
    assert bench.publisher.drop_oldest(10**9, keep=1) == 4
    assert sent(bench.link_up()) == [5]


# Large elements

LARGE = b"k" * 1024 * 1024


def held(bench: Bench) -> int:
    """Bytes of the list's elements that the publisher knows."""
    publisher = bench.publisher
    return sum(entry.size for entry in publisher.list.known)


def test_of_large_elements_that_were_stored_a_few_are_held() -> None:
    bench = away()
    for _ in range(60):
        bench.emit(key=LARGE)
        bench.wait(0.1)
    assert len(bench.stored) == 60
    assert 0 < held(bench) < WINDOW_BYTES + 2 * len(LARGE)
    assert sent(bench.link_up()) == [*range(1, 17)]


def test_of_large_elements_that_are_drained_a_few_are_held() -> None:
    """Elements in flight, elements to be sent next, and elements that wait for their trim."""
    bench = Bench()
    bench.list.elements = [to_element(event_of(number, LARGE)) for number in range(1, 101)]
    bench.settle()
    bench.link_up()
    most = 0
    for tag in range(1, 101):
        bench.ack(tag)
        most = max(most, held(bench))
    assert 2 * WINDOW_BYTES < most < 3 * WINDOW_BYTES + 6 * len(LARGE)
    assert bench.count(Stat.CONFIRMED) == 100
    assert sent(bench.actions) == [*range(1, 101)]
    assert bench.stored == []


def test_room_is_bounded() -> None:
    bench = connected()
    bench.emit(WINDOW + 10)
    bench.settle()
    assert bench.publisher.room() == 2 * JOB_ELEMENTS - 10
    bench.emit(1, key=b"k" * WINDOW_BYTES)
    assert bench.publisher.room() == 0
    bench = away(fallback_size=-1)  # events can only wait
    bench.emit(JOB_ELEMENTS)
    assert bench.publisher.room() == JOB_ELEMENTS
    bench.emit(JOB_ELEMENTS)
    assert bench.publisher.room() == 0


def test_events_that_never_came_in_are_in_the_books() -> None:
    bench = away(fallback_size=-1)
    publisher = bench.publisher
    bench.emit(2)
    publisher.drop_untaken(3)
    publisher.give_up(leftover=False)
    publisher.give_up(leftover=True)
    assert bench.count(Stat.FALLBACK_FOUND) == 1
    assert publisher.taken == 6
    assert (bench.count(Stat.QUEUE_LENGTH), bench.count(Stat.EVENTS_MATCHED)) == (2, 6)
    assert bench.count(Stat.DROPPED_QUEUE_FULL) == 3
    assert bench.count(Stat.DROPPED_HANDLER_ERROR) == 2
    assert_books_balance(publisher)
    publisher.reset_stats()
    assert_books_balance(publisher)
    publisher.flush(7, 5.0, FlushMode.LEAVE)
    bench.settle()
    assert bench.count(Stat.DROPPED_STOPPED) == 2
    assert_books_balance(publisher)
