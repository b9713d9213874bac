"""Refused messages, and messages that get no confirm: nothing else waits for them."""

from __future__ import annotations

import itertools

import pytest

from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.message import Event, body
from keyspace_amqp.publisher.actions import Close, Connect, FlushMode, Send
from keyspace_amqp.publisher.backoff import FIRST as BACKOFF_FIRST
from keyspace_amqp.publisher.list_jobs import SENT_ELEMENTS
from keyspace_amqp.publisher.publisher import SEND_CHUNK, UNCONFIRMED_AFTER
from keyspace_amqp.publisher.renewal import CERTAIN_AFTER, STUCK_AFTER
from keyspace_amqp.publisher.retries import REFUSED_MAX
from keyspace_amqp.publisher.storing import REFUSED_SHARE, STORE_AFTER
from keyspace_amqp.publisher.window import LATE_AFTER, STALLED_AFTER, WINDOW
from keyspace_amqp.tables.keys import REFUSED_KEY
from keyspace_amqp.tables.stats import Stat
from tests.publisher.bench import Bench, connected, flushed, of_number, sent
from tests.publisher.simulated import (
    PAUSED,
    WRONG_TYPE,
    Trouble,
    assert_books_balance,
    number_in,
    number_of,
)


class Queues:
    """A broker with a full queue for keys `a`, which refuses everything, a silent one for keys
    `s`, which answers nothing, and one for all other keys, which confirms everything."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.full = True
        self.silent = True
        self.tags: list[tuple[int, Event]] = []  # on their way
        self.unanswered: list[tuple[int, Event]] = []  # in the silent queue
        self.copies: list[int] = []  # all that arrived, in their order
        self.taken: list[int] = []  # what was confirmed
        self._seen = 0

    def turn(self) -> None:
        """The broker answers what was sent; then the publisher has its turn."""
        self.bench.settle()
        for action in self.bench.actions[self._seen :]:
            if isinstance(action, Close):
                self.tags, self.unanswered = [], []
            if isinstance(action, Send):
                self.tags += enumerate(action.events, action.first_tag)
                self.copies += map(number_of, action.events)
        self._seen = len(self.bench.actions)
        tags, self.tags = self.tags, []
        if not self.silent:
            tags, self.unanswered = self.unanswered + tags, []
        for tag, event in tags:
            if event.key == b"s" and self.silent:
                self.unanswered.append((tag, event))
            elif event.key == b"a" and self.full:
                self.bench.publisher.nacked(tag, False)
            else:
                self.bench.publisher.acked(0, [tag])
                self.taken.append(number_of(event))
        self.bench.settle()
        assert_books_balance(self.bench.publisher)

    def live(self, seconds: float, *, step: float = 0.05, **keys: int) -> None:
        """Lets time pass; in each step as many events come for each of the keys."""
        until = self.bench.now + seconds
        while self.bench.now < until:
            for key, count in keys.items():
                self.bench.emit(count, key.encode())
            self.turn()
            self.bench.now += step
        self.turn()


# ---- refusals ---------------------------------------------------------------------------


def test_a_full_queue_holds_up_no_other_queue() -> None:
    bench = connected()
    queues = Queues(bench)
    queues.live(60, a=1, b=20)
    assert bench.count(Stat.CONFIRMED) == bench.count(Stat.EVENTS_MATCHED) * 20 // 21
    refused = bench.count(Stat.EVENTS_MATCHED) // 21
    assert bench.count(Stat.REFUSED_WAITING) == refused
    assert bench.count(Stat.FALLBACK_LENGTH) > refused - 5  # not in memory
    assert bench.list.elements == []
    queues.full = False
    queues.live(REFUSED_MAX + 1, b=20)
    assert bench.count(Stat.REFUSED_WAITING) == bench.count(Stat.FALLBACK_LENGTH) == 0
    assert sorted(queues.taken) == list(range(1, len(queues.taken) + 1))
    assert bench.count(Stat.CONFIRMED) == bench.count(Stat.EVENTS_MATCHED)


def test_copies_for_the_other_queues_of_a_fanout_grow_rare() -> None:
    """All queues of a fanout exchange get each attempt, and the full one refuses it."""
    bench = connected()
    queues = Queues(bench)
    queues.live(1, a=1)
    events = len(queues.copies)
    queues.live(59)
    minute = len(queues.copies)
    queues.live(60)
    assert minute - events < events + 20
    assert len(queues.copies) - minute <= 60 / (REFUSED_MAX / 2)


def test_events_of_the_list_that_are_refused_do_not_hold_up_those_behind_them() -> None:
    bench = connected()
    queues = Queues(bench)
    bench.lose_link()
    bench.emit(5, b"a")
    bench.emit(5, b"b")
    bench.emit(1, b"a")
    bench.emit(SEND_CHUNK, b"b")
    bench.wait(STORE_AFTER)
    assert len(bench.list.elements) == SEND_CHUNK + 11
    bench.wait(10)
    bench.link_up()
    queues.live(2)
    assert sorted(queues.taken) == [*range(6, 11), *range(12, SEND_CHUNK + 12)]
    assert queues.taken == sorted(queues.taken)
    assert bench.list.elements == []
    assert sorted(filter(None, map(number_in, bench.list.refused))) == [1, 2, 3, 4, 5, 11]
    assert bench.count(Stat.FALLBACK_DRAINED) == SEND_CHUNK + 5


def test_the_first_attempt_sends_all_refused_messages_in_their_order() -> None:
    """Most refusals are over soon."""
    bench = connected()
    queues = Queues(bench)
    bench.emit(20, b"a")
    queues.turn()
    queues.full = False
    bench.wait(BACKOFF_FIRST)
    queues.turn()
    assert queues.taken == list(range(1, 21))


def test_without_a_list_refused_events_wait_in_memory_and_the_oldest_are_dropped() -> None:
    bench = connected(fallback_size=-1)
    queues = Queues(bench)
    queues.live(20, a=1, b=1)
    waiting = bench.count(Stat.REFUSED_WAITING)
    assert waiting == bench.count(Stat.QUEUE_LENGTH) == bench.count(Stat.EVENTS_MATCHED) // 2
    size = bench.count(Stat.QUEUE_BYTES) // waiting
    assert bench.publisher.drop_oldest(3 * size) == 3
    assert bench.count(Stat.DROPPED_QUEUE_FULL) == 3
    queues.full = False
    queues.live(REFUSED_MAX + 1)
    assert len(set(queues.taken)) == bench.count(Stat.EVENTS_MATCHED) - 3


def test_refused_events_go_again_after_a_restart_of_the_publisher() -> None:
    bench = connected()
    Queues(bench).live(1, a=1)
    stored = len(bench.list.refused)
    again = Bench()
    again.list = bench.list
    again.publisher.connect()
    again.settle()
    assert again.count(Stat.FALLBACK_FOUND) == again.count(Stat.FALLBACK_LENGTH) == stored
    again.link_up()
    queues = Queues(again)
    queues.full = False
    queues.live(1)
    assert len(queues.taken) == stored
    assert again.list.refused == []


def test_refused_events_may_take_half_of_the_list() -> None:
    bench = connected(fallback_size=40)
    Queues(bench).live(10, a=1)
    assert bench.count(Stat.REFUSED_WAITING) <= 21
    assert bench.count(Stat.DROPPED_FALLBACK_FULL) > 100
    bench.lose_link()
    bench.emit(100, b"b")
    bench.wait(1)
    assert bench.count(Stat.FALLBACK_LENGTH) == 40


@pytest.mark.parametrize("trouble", [PAUSED, WRONG_TYPE], ids=["paused", "wrong type"])
def test_a_list_out_of_reach_keeps_no_refused_event_from_its_attempts(trouble: Trouble) -> None:
    bench = connected()
    queues = Queues(bench)
    bench.list.trouble = trouble
    queues.live(3, a=1, b=1)
    queues.full = False
    queues.live(REFUSED_MAX)
    assert len(queues.taken) == bench.count(Stat.EVENTS_MATCHED)


@pytest.mark.parametrize("mode", FlushMode)
def test_a_flush_stores_refused_events_and_does_not_wait_for_them(mode: FlushMode) -> None:
    bench = connected()
    bench.emit(5, b"a")
    Queues(bench).turn()
    assert bench.count(Stat.QUEUE_LENGTH) == bench.count(Stat.REFUSED_WAITING) == 5
    begin = bench.now
    bench.publisher.flush(1, 5, mode)
    while not (done := flushed(bench.settle())):
        at = bench.publisher.wake_at()
        assert at is not None
        bench.now = max(bench.now, at)
    assert bench.now < begin + 0.5
    assert len(done[0].leftovers or ()) + len(bench.list.refused) == 5
    assert bench.count(Stat.QUEUE_LENGTH) == 0


def test_refused_again_and_again_the_message_stays_the_same() -> None:
    bench = connected()
    bench.emit()
    first = bench.settle()
    delays = []
    for tag in range(1, 6):
        bench.nack(tag)
        delays.append(bench.seconds_until(Send))
        *_, last = (action for action in bench.actions if isinstance(action, Send))
        assert of_number(1, [last]) == of_number(1, first)
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6], abs=0.011)
    assert bench.count(Stat.NACKED) == 5


# ---- no confirm ---------------------------------------------------------------------------


def test_a_message_without_a_confirm_holds_up_no_other() -> None:
    bench = connected(confirm_timeout=0)
    queues = Queues(bench)
    bench.emit(1, b"s")
    queues.live(300, step=1, b=1)
    assert bench.count(Stat.FALLBACK_LENGTH) <= 1
    queues.live(10, b=100)
    assert len(queues.taken) == bench.count(Stat.EVENTS_MATCHED) - 1
    assert len(bench.publisher.memory) <= 2 * WINDOW + 101


def test_one_event_in_two_without_a_confirm() -> None:
    """As many as fit into the window, and then more."""
    bench = connected(confirm_timeout=0)
    queues = Queues(bench)
    queues.live(20, s=50, b=50)
    half = bench.count(Stat.EVENTS_MATCHED) // 2
    assert len(queues.taken) > half - 500
    assert bench.count(Stat.CONFIRMED) == len(queues.taken)
    assert len(bench.publisher.window) <= 2 * WINDOW + 500
    assert bench.count(Stat.IN_FLIGHT) <= 2 * WINDOW
    queues.silent = False
    queues.live(REFUSED_MAX + 1)
    queues.live(10)
    assert len(set(queues.taken)) == 2 * half


def test_an_element_without_a_confirm_does_not_keep_the_list_from_its_trims() -> None:
    bench = connected(confirm_timeout=0)
    queues = Queues(bench)
    bench.lose_link()
    bench.emit(1, b"s")
    bench.emit(2 * SENT_ELEMENTS, b"b")
    for _ in range(2 * SENT_ELEMENTS // 2000 + 1):
        bench.wait(STORE_AFTER)
    bench.wait(10)
    bench.link_up()
    queues.live(3 * LATE_AFTER)
    assert len(queues.taken) == 2 * SENT_ELEMENTS
    assert bench.list.elements == []
    assert bench.count(Stat.REFUSED_WAITING) == 1


def test_after_the_last_message_was_for_a_silent_queue_others_are_tried() -> None:
    bench = connected(confirm_timeout=0)
    queues = Queues(bench)
    bench.emit(WINDOW, b"s")
    queues.live(1)
    bench.emit(50, b"b")
    queues.live(4 * STALLED_AFTER)
    assert len(queues.taken) == 50


def test_a_confirm_has_a_deadline() -> None:
    bench = connected(confirm_timeout=30)
    queues = Queues(bench)
    bench.emit(1, b"s")
    queues.live(UNCONFIRMED_AFTER - 0.1, b=1)
    assert bench.publisher.state == "connected"
    queues.live(0.2, b=1)
    assert bench.publisher.state == "unconfirmed"
    bench.actions.clear()
    queues._seen = 0
    queues.live(30 - UNCONFIRMED_AFTER - 0.5, b=1)
    assert not any(isinstance(action, Close) for action in bench.actions)
    queues.live(1, b=1)
    kinds = [type(action) for action in bench.actions]
    assert kinds.index(Close) < kinds.index(Connect)
    why = "no confirm for 30 seconds for a message with the key 's'"
    assert bench.publisher.last_error == why
    assert bench.count(Stat.REFUSED_WAITING) == 1  # it does not come first again
    bench.actions.clear()
    queues._seen = 0
    bench.link_up()
    assert bench.count(Stat.RECONNECTS) == 1
    queues.silent = False
    queues.live(REFUSED_MAX, b=1)
    assert 1 in queues.taken


def test_a_broker_that_answers_nothing_more_is_connected_anew() -> None:
    """As RabbitMQ reads nothing more from a connection with some messages for a queue that is not
    available. What seems to be the cause does not come first on the new connection."""
    bench = connected()
    queues = Queues(bench)
    bench.emit(3, b"s")
    queues.live(1, b=1)
    bench.emit(5, b"s")  # from here on, nothing is answered
    bench.emit(5, b"b")
    bench.settle()
    bench.actions.clear()
    bench.wait(STUCK_AFTER + 0.1)
    bench.wait(CERTAIN_AFTER)
    assert any(isinstance(action, Close) for action in bench.actions)
    assert bench.publisher.last_error.startswith("no answer for 5 seconds")
    assert bench.count(Stat.REFUSED_WAITING) == 3
    bench.actions.clear()
    again = sent(bench.link_up())
    assert again == sorted(again)
    assert set(again).isdisjoint({1, 2, 3})
    assert_books_balance(bench.publisher)


def test_the_oldest_message_is_the_cause_if_it_was_the_oldest_before() -> None:
    """A connection that gets a message for a queue that is not available first of all may answer
    nothing at all."""
    bench = connected(confirm_timeout=10)
    bench.emit(3)
    for number in range(2):
        bench.settle()
        assert bench.count(Stat.REFUSED_WAITING) == 0, number
        bench.wait(10)
        bench.wait(1)
        bench.actions.clear()
        again = sent(bench.link_up())
    assert 1 not in again
    assert bench.count(Stat.REFUSED_WAITING) == 1
    bench.ack(len(again), multiple=True)
    assert bench.count(Stat.CONFIRMED) == 2


def test_a_broker_that_refuses_everything_is_connected_anew_less_and_less_often() -> None:
    """A channel from before the election of a leader refuses everything for as long as the old
    leader is away."""
    bench = connected()
    queues = Queues(bench)
    times = []
    while len(times) < 4:
        bench.actions.clear()
        queues._seen = 0
        queues.live(0.5, step=0.1, a=1)
        if any(isinstance(action, Close) for action in bench.actions):
            times.append(bench.now)
            bench.wait(1)
            bench.link_up()
    gaps = [round(after - before) for before, after in itertools.pairwise(times)]
    assert gaps == pytest.approx([10, 20, 40], abs=3)
    assert bench.publisher.last_error.startswith("the broker has refused everything for")
    bench.emit(1, b"b")
    queues.turn()
    bench.actions.clear()
    queues._seen = 0
    queues.live(70, step=0.1, a=1)  # a confirm now and then does not begin the delays anew
    assert not any(isinstance(action, Close) for action in bench.actions)


def test_a_blocked_broker_has_time_for_its_confirms() -> None:
    bench = connected(confirm_timeout=30)
    bench.emit()
    bench.settle()
    bench.publisher.link_blocked("low on memory")
    bench.wait(3600)
    bench.publisher.link_unblocked()
    bench.wait(29)
    assert bench.publisher.state == "unconfirmed"
    assert not any(isinstance(action, Close) for action in bench.actions)
    bench.wait(2)
    bench.wait(CERTAIN_AFTER)
    assert any(isinstance(action, Close) for action in bench.actions)


def test_the_default_is_above_the_heartbeat() -> None:
    assert DEFAULTS.confirm_timeout > DEFAULTS.heartbeat


# ---- several troubles at once -----------------------------------------------------------------


def test_an_answer_that_waits_in_the_socket_counts() -> None:
    """The process stood still for a while; then the time is over, but the answer is there."""
    bench = connected()
    queues = Queues(bench)
    bench.emit(1, b"s")
    queues.live(1, b=1)
    bench.emit(1, b"b")
    bench.settle()
    bench.now += 60 + STUCK_AFTER
    bench.poll()
    bench.publisher.acked(bench.publisher.window.next_tag - 1)
    bench.wait(CERTAIN_AFTER)
    assert not any(isinstance(action, Close) for action in bench.actions)


def test_a_nacked_message_in_flight_with_a_list_of_refused_ones() -> None:
    """A limit below what is in flight is no negative number of messages."""
    bench = connected()
    queues = Queues(bench)
    bench.list.trouble = PAUSED
    queues.live(1, a=10)
    bench.list.trouble = None
    queues.live(5, a=1, b=5)
    queues.full = False
    queues.live(REFUSED_MAX + 1)
    assert bench.count(Stat.CONFIRMED) == bench.count(Stat.EVENTS_MATCHED)


def test_refused_events_in_memory_leave_room_for_others() -> None:
    bench = connected(fallback_size=-1, queue_limit=1024 * 1024)
    queues = Queues(bench)
    queues.live(30, a=10, b=10)
    assert bench.publisher.room() > 0
    assert bench.count(Stat.QUEUE_BYTES) <= 1024 * 1024 * REFUSED_SHARE + 10_000
    assert bench.count(Stat.DROPPED_QUEUE_FULL) > 1000
    assert len(queues.taken) == bench.count(Stat.EVENTS_MATCHED) // 2


def test_one_silent_message_does_not_hold_up_the_other_refused_ones() -> None:
    bench = connected(confirm_timeout=0)
    queues = Queues(bench)
    bench.emit(1, b"s")
    queues.live(3, b=1)
    bench.publisher.delivery.refuse(bench.publisher.window.take(bench.publisher.window.in_flight()))
    queues.live(1, a=5)
    queues.full = False
    queues.live(3 * REFUSED_MAX, b=1)
    assert bench.count(Stat.REFUSED_WAITING) == 1


def test_the_list_of_refused_events_becomes_something_else() -> None:
    bench = connected()
    queues = Queues(bench)
    queues.live(2, a=1)
    lost = len(bench.list.refused)
    bench.list.refused.clear()
    bench.publisher.list_changed(b"set", REFUSED_KEY)
    bench.settle()
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == lost
    assert_books_balance(bench.publisher)


def test_too_large_among_the_refused_events_of_memory() -> None:
    bench = connected(fallback_size=-1)
    bench.emit(1, b"k" * 1000)
    bench.settle()
    bench.publisher.nacked(1, False)
    bench.poll()
    bench.publisher.too_large(500, body)
    assert bench.count(Stat.DROPPED_TOO_LARGE) == 1
    bench.emit(1)
    assert sent(bench.wait(5)) == [2]
    assert bench.count(Stat.QUEUE_LENGTH) == 0
    assert_books_balance(bench.publisher)
