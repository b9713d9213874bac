"""When events go as parcels, and what makes entries of them again."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keyspace_amqp.fallback import to_element
from keyspace_amqp.message import Event, body
from keyspace_amqp.publisher.actions import FlushMode, Send, SendFrames
from keyspace_amqp.publisher.express import SETTLE, SETTLE_EVERY
from keyspace_amqp.publisher.publisher import EXPRESS_CHUNK
from keyspace_amqp.publisher.window import LATE_AFTER, STALLED_AFTER, WINDOW, WINDOW_BYTES
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.values import replace
from tests.publisher.bench import Bench, connected, sent
from tests.publisher.simulated import SimulatedParcel, event_of, number_of


def send(bench: Bench, count: int = 1, most: int | None = None) -> list[int]:
    """Sends events as a parcel; returns their numbers."""
    room = bench.publisher.express_room(most)
    assert room is not None
    assert room >= count
    parcel = SimulatedParcel([event_of(next(bench.numbers)) for _ in range(count)])
    bench.publisher.add_parcel(parcel, b"frames")
    actions = [action for action in bench.settle() if isinstance(action, SendFrames)]
    assert [(action.count, action.frames) for action in actions] == [(count, b"frames")]
    return [number_of(event) for event in parcel.events()]


def in_memory(bench: Bench) -> list[int]:
    events = [entry.event for entry in bench.publisher.memory]
    return [number_of(event) for event in events if event is not None]


def started() -> Bench:
    """A bench with three events in flight as a parcel, of which the first has a confirm."""
    bench = connected()
    send(bench, 3)
    bench.ack(1)
    return bench


def test_events_are_sent_counted_and_confirmed() -> None:
    bench = started()
    send(bench, 2)
    assert not bench.publisher.memory
    assert bench.count(Stat.EVENTS_MATCHED) == bench.count(Stat.PUBLISHED) == 5
    assert bench.count(Stat.IN_FLIGHT) == 4
    bench.ack(5, multiple=True)
    assert bench.count(Stat.CONFIRMED) == 5
    assert bench.count(Stat.IN_FLIGHT) == 0
    assert sum(bench.publisher.counts[Stat.CONFIRM_MS_LE_1 :][:1]) == 5


def configure(bench: Bench, **parameters: object) -> None:
    config = replace(bench.config, **parameters)  # type: ignore[arg-type]
    bench.publisher.configure(config, reconnect=False)


def list_appears(bench: Bench) -> None:
    bench.list.elements.append(to_element(event_of(99)))
    bench.publisher.list_changed(b"rpush", KEY)
    bench.poll()
    bench.run_job()


def handler_fails(bench: Bench) -> None:
    bench.publisher.link_down("exception")
    bench.publisher.repair(job_lost=True, taken=3)


REASONS: dict[str, Callable[[Bench], object]] = {
    "refusal": lambda bench: bench.publisher.nacked(2, False),
    "blocked": lambda bench: bench.publisher.link_blocked("memory"),
    "pressure": lambda bench: bench.publisher.set_pressure(True),
    "save": lambda bench: bench.publisher.flush(1, 5.0, FlushMode.STORE),
    "stop": lambda bench: bench.publisher.flush(1, 5.0, FlushMode.LEAVE),
    "replica": lambda bench: bench.publisher.set_role(primary=False, loading=False),
    "loading": lambda bench: bench.publisher.set_role(primary=True, loading=True),
    "leftovers": lambda bench: bench.publisher.recover([event_of(99)]),
    "outbox": lambda bench: configure(bench, outbox="reply"),
    "list": list_appears,
    "single event": lambda bench: bench.publisher.add([event_of(99)]),
    "handler fails": handler_fails,
}


@pytest.mark.parametrize("reason", REASONS)
def test_the_way_back(reason: str) -> None:
    """Whatever it is, events without a confirm are in memory then, in their order, and a confirm of
    each of them counts once."""
    bench = started()
    REASONS[reason](bench)
    bench.poll()
    assert not bench.publisher.express.is_running
    numbers = [number for number in in_memory(bench) if number != 99]
    assert numbers in ([2, 3], [3])  # a refused event has a log of its own
    assert bench.count(Stat.CONFIRMED) == 1
    assert not bench.publisher.express_room(None)


def test_a_save_waits_for_no_parcels() -> None:
    """What comes while Redis waits could not be stored in time."""
    bench = connected()
    bench.publisher.flush(1, 5.0, FlushMode.STORE)
    assert bench.publisher.express_room(None) is None
    bench.settle()
    assert bench.publisher.express_room(None) == EXPRESS_CHUNK


def test_a_lost_connection() -> None:
    bench = started()
    bench.lose_link()
    assert in_memory(bench) == [2, 3]
    assert bench.count(Stat.IN_FLIGHT) == 0
    assert bench.count(Stat.QUEUE_LENGTH) == 2


def test_a_parcel_that_was_not_sent_is_not_sent_later() -> None:
    """The connection is lost before the next poll: its events are entries on the next one."""
    bench = connected()
    bench.publisher.add_parcel(SimulatedParcel([event_of(1)]), b"frames")
    bench.publisher.link_down("lost")
    actions = bench.wait(60)
    bench.publisher.link_up()
    actions += bench.settle()
    assert not [action for action in actions if isinstance(action, SendFrames)]
    assert in_memory(bench) == [] or sent(actions) == [1]


def test_a_message_that_is_too_large() -> None:
    bench = connected()
    event = event_of(1, b"k" * 1000)
    bench.publisher.add_parcel(SimulatedParcel([event, event_of(2)]), b"frames")
    bench.settle()
    assert bench.publisher.too_large(500, body) == 1
    bench.lose_link()
    assert in_memory(bench) == [2]
    assert bench.count(Stat.DROPPED_TOO_LARGE) == 1


@pytest.mark.parametrize("answers", [True, False])
def test_a_broker_without_answers(answers: bool) -> None:
    """Late messages become entries, also if others are confirmed meanwhile; so do all of them if
    the broker answers nothing. The publisher wakes by itself for that."""
    bench = started()
    if answers:
        start = bench.now
        while bench.publisher.express.is_running:
            bench.wait(STALLED_AFTER / 2)
            if bench.publisher.express_room(None):
                send(bench)
                bench.ack(bench.publisher.window.next_tag - 1)
        assert start + LATE_AFTER <= bench.now <= start + LATE_AFTER + STALLED_AFTER
        assert in_memory(bench) == [2, 3]
        return
    while bench.publisher.express.is_running:
        at = bench.publisher.wake_at()
        assert at is not None
        bench.now = at
        bench.poll()
    assert in_memory(bench) == [2, 3]
    assert bench.now <= 1000 + STALLED_AFTER + 0.02


def test_the_room() -> None:
    bench = connected()
    room = bench.publisher.express_room
    assert room(None) == EXPRESS_CHUNK
    assert room(7) == 7
    bench.publisher.add_parcel(SimulatedParcel([event_of(1), event_of(2)]), b"frames")
    assert room(7) == 5  # until the next poll
    assert room(None) == EXPRESS_CHUNK - 2
    bench.settle()
    assert room(7) == 7
    while (count := room(None)) and count > 0:
        send(bench, count)
    assert bench.publisher.window.unanswered == WINDOW
    assert room(None) == 0


def test_the_room_in_bytes() -> None:
    bench = connected()
    parcel = SimulatedParcel([event_of(1)])
    parcel.size = WINDOW_BYTES
    bench.publisher.add_parcel(parcel, b"frames")
    bench.settle()
    assert bench.publisher.express_room(None) == 0
    bench.ack(1)
    assert bench.publisher.express_room(None) == EXPRESS_CHUNK


def test_newer_events_wait_until_memory_is_confirmed() -> None:
    """Else the express would never begin while events come all the time."""
    bench = connected()
    bench.emit(2)
    actions = bench.settle()
    assert sent(actions) == [1, 2]
    assert bench.publisher.express_room(None) == 0
    bench.ack(2, multiple=True)
    send(bench, 2)
    bench.ack(3)


def test_they_do_not_wait_for_long() -> None:
    """The publisher wakes by itself, and then they come one by one."""
    bench = connected()
    bench.emit()
    bench.settle()
    start = bench.now
    assert bench.publisher.express_room(None) == 0
    while bench.publisher.express_room(None) == 0:
        at = bench.publisher.wake_at()
        assert at is not None
        bench.wait(at - bench.now)
    assert bench.now <= start + SETTLE + 0.02
    assert bench.publisher.express_room(None) is None
    bench.emit()
    assert [action for action in bench.settle() if isinstance(action, Send)]
    bench.ack(2, multiple=True)
    bench.now += SETTLE_EVERY
    assert bench.publisher.express_room(None) == EXPRESS_CHUNK


def test_a_message_without_a_confirm_makes_no_others_wait() -> None:
    """It has waited longer already than newer events may: they come one by one."""
    bench = connected()
    bench.emit()
    bench.settle()
    bench.now += SETTLE
    assert bench.publisher.express_room(None) is None


def test_in_a_flood_they_wait_longer() -> None:
    """The window is full, so they would wait anyway. After that the express goes on."""
    bench = connected()
    bench.emit(2 * WINDOW)
    while bench.publisher.window.room:
        bench.poll()
    assert bench.publisher.memory.unsent
    bench.now += SETTLE
    assert bench.publisher.express_room(None) == 0
    for _ in range(20):
        bench.publisher.acked(bench.publisher.window.next_tag - 1)
        bench.poll()
    assert bench.publisher.express_room(None)


def test_slots_of_messages_that_are_gone() -> None:
    """The list was deleted while its elements were in flight: nothing is in memory. The publisher
    wakes by itself when newer events need not wait any more."""
    bench = connected(found=2)
    assert len(bench.publisher.window) == 2
    bench.list.elements.clear()
    bench.publisher.list_changed(b"del", KEY)
    bench.settle()
    assert not bench.publisher.memory
    if bench.publisher.express_room(None) == 0:
        at = bench.publisher.wake_at()
        assert at is not None
        assert at <= bench.now + SETTLE + 0.02


def test_confirms_far_behind_a_message_without_one() -> None:
    """The parcels that it keeps are bounded: then it becomes an entry."""
    bench = connected()
    send(bench, 100)
    confirmed = 0
    while bench.publisher.express.is_running:
        send(bench, 100)
        tags = range(bench.publisher.window.next_tag - 100, bench.publisher.window.next_tag)
        bench.publisher.acked(0, tags)
        confirmed += len(tags)
        bench.poll()
        assert confirmed <= WINDOW + 200
    assert in_memory(bench) == list(range(1, 101))
    assert bench.count(Stat.CONFIRMED) == confirmed


def test_without_a_connection_there_is_none() -> None:
    bench = Bench()
    assert bench.publisher.express_room(None) is None
    bench = connected(found=3)
    assert bench.publisher.express_room(None) is None


def test_the_events_of_the_parcel_are_not_needed_for_a_confirm() -> None:
    bench = connected()

    class Sealed(SimulatedParcel):
        def events(self) -> list[Event]:
            raise AssertionError("made an event")

    bench.publisher.add_parcel(Sealed([event_of(1), event_of(2)]), b"frames")
    bench.settle()
    bench.ack(2)
    bench.ack(1)
    assert bench.count(Stat.CONFIRMED) == 2
