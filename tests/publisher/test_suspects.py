"""Messages over which the broker closes the channel: they alone are given up."""

from __future__ import annotations

from collections.abc import Callable

from keyspace_amqp.publisher.actions import Action, Close, Connect, Send
from keyspace_amqp.tables.stats import Stat
from tests.publisher.bench import Bench, connected, texts
from tests.publisher.simulated import dropped_of, number_of

REASON = "403 ACCESS_REFUSED"


class Fussy:
    """A broker that closes the channel over certain messages, and confirms the others at once.

    `refuses`: returns True for the number of an event; `received`: the numbers of first
    arrivals, in order. `confirms_before`: it confirms what came before, in the same turn.
    """

    def __init__(self, bench: Bench, refuses: Callable[[int], bool], *, slow: bool = False) -> None:
        self.bench = bench
        self.refuses = refuses
        self.confirms_before = not slow
        self.received: dict[int, None] = {}
        self.connections = 0
        self.closures = 0
        self.most = 0  # the largest number of messages in flight at once
        self._up = False

    def run(self, seconds: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Live as the worker does, for so many seconds. True if `until` came true."""
        bench, end = self.bench, self.bench.now + seconds
        while bench.now < end:
            actions = bench.settle()
            self._carry_out(actions)
            if until():
                return True
            if not any(isinstance(action, (Connect, Send)) for action in actions):
                at = bench.publisher.wake_at()
                bench.now = max(bench.now + 0.001, min(at if at is not None else end, end))
        return False

    def _carry_out(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Connect():
                    self.connections += 1
                    self.bench.now += 0.02
                    self.bench.publisher.link_up()
                    self._up = True
                case Close():
                    self._up = False
                case Send() if self._up:
                    self._take(action)

    def _take(self, send: Send) -> None:
        publisher = self.bench.publisher
        self.most = max(self.most, publisher.window.count)
        self.bench.now += 0.001
        for tag, event in enumerate(send.events, send.first_tag):
            number = number_of(event)
            if self.refuses(number):
                if self.confirms_before and tag > send.first_tag:
                    publisher.acked(tag - 1)
                self._up = False
                self.closures += 1
                publisher.link_down(REASON, over_message=True)
                return
            self.received.setdefault(number)
        publisher.acked(send.first_tag + len(send.events) - 1)


def at_rest(bench: Bench) -> Callable[[], bool]:
    return lambda: not any(bench.publisher.gauges().values())


def test_the_culprit_is_found_and_the_others_go_in_order() -> None:
    bench = Bench()
    broker = Fussy(bench, {1}.__contains__)
    bench.publisher.connect()
    bench.emit(1)
    broker.run(30)
    assert dropped_of(bench.publisher) == 0
    bench.emit(40)
    assert broker.run(20, at_rest(bench))
    assert list(broker.received) == list(range(2, 42))
    assert bench.count(Stat.DROPPED_SET_ASIDE) == 1


def test_many_bad_ones_among_good_ones() -> None:
    for slow in (False, True):
        bench = Bench(found=1001)
        broker = Fussy(bench, lambda number: number % 50 == 0, slow=slow)
        bench.publisher.connect()
        assert broker.run(60, at_rest(bench))
        assert list(broker.received) == [n for n in range(1, 1002) if n % 50]
        assert bench.count(Stat.DROPPED_SET_ASIDE) == 20
        assert broker.closures < 200


def test_a_long_row_of_bad_ones() -> None:
    """They cannot all be tried before a good one is found."""
    bench = Bench(found=700)
    broker = Fussy(bench, lambda number: 100 < number <= 500)
    bench.publisher.connect()
    good = {number for number in range(1, 701) if not 100 < number <= 500}
    assert broker.run(300, lambda: broker.received.keys() == good)
    for _ in range(300):  # others have to come, for the comparison
        bench.emit(20)
        if broker.run(1, at_rest(bench)):
            break
    assert dropped_of(bench.publisher) == bench.count(Stat.DROPPED_SET_ASIDE) == 400


def test_nothing_is_set_aside_while_all_are_refused() -> None:
    for seconds in (1, 5, 30, 300):
        bench = Bench(found=500)
        broker = Fussy(bench, lambda number: True)
        bench.publisher.connect()
        broker.run(seconds)
        assert dropped_of(bench.publisher) == 0
        assert broker.connections < 130 + seconds / 2.5  # the attempts become rare
        broker.refuses = lambda number: False
        assert broker.run(30, at_rest(bench))
        assert bench.count(Stat.CONFIRMED) == 500
        # At most one was tried while the others were suspected.
        arrived = list(broker.received)
        assert [number for number in arrived if number != arrived[0]] == sorted(
            set(arrived) - {arrived[0]}
        )


def test_some_servers_are_broken() -> None:
    """A message is a culprit only if another one is confirmed on the same connection."""
    bench = Bench(found=10)
    broker = Fussy(bench, lambda number: broker.connections % 8 != 0)
    bench.publisher.connect()
    for _ in range(20):
        bench.emit(2)
        broker.run(10, at_rest(bench))
        bench.lose_link()
    broker.refuses = lambda number: False
    assert broker.run(30, at_rest(bench))
    assert broker.closures > 30
    assert dropped_of(bench.publisher) == 0


def test_a_channel_that_dies_once_changes_nothing() -> None:
    bench = Bench(found=5000)
    broker = Fussy(bench, lambda number: number == 1000 and broker.connections == 1)
    bench.publisher.connect()
    assert broker.run(5, at_rest(bench))
    assert list(broker.received) == list(range(1, 5001))
    bench.emit(5000)
    assert broker.run(5, at_rest(bench))
    assert bench.publisher.suspects.limit is None


def test_a_lonely_message_keeps_its_place_when_a_channel_dies() -> None:
    bench = Bench()
    broker = Fussy(bench, lambda number: broker.connections in (1, 2))
    bench.publisher.connect()
    bench.emit(1)
    assert broker.run(5, lambda: broker.closures == 1)
    bench.emit(30)
    assert broker.run(5, at_rest(bench))
    assert broker.closures == 2
    assert list(broker.received) == list(range(1, 32))


def test_a_bad_one_that_went_away_is_forgotten() -> None:
    bench = Bench(found=1)
    broker = Fussy(bench, {1}.__contains__)
    bench.publisher.connect()
    broker.run(30)
    bench.list.elements.clear()
    bench.publisher.list_changed(b"del")
    bench.emit(10_000)
    assert broker.run(30, at_rest(bench))
    assert bench.publisher.suspects.limit is None
    assert bench.count(Stat.DROPPED_SET_ASIDE) == 0


def test_users_see_which_ones_were_set_aside() -> None:
    bench = Bench()
    broker = Fussy(bench, lambda number: number <= 30)
    bench.publisher.connect()
    for number in range(60):
        bench.emit(1, b"bad:%d" % number if number < 30 else b"k")
    assert broker.run(60, at_rest(bench))
    assert bench.count(Stat.DROPPED_SET_ASIDE) == 30
    lines = [line for line in texts(bench.actions) if "is set aside" in line]
    assert len(lines) >= 10
    first = f"the event of key b'bad:0' (del, database 1) is set aside: {REASON}"
    assert lines[0] == first
    shown = bench.publisher.aside.newest(1000)
    assert len(shown) == 30
    oldest = shown[-1]
    assert oldest.element.endswith(b" del bad:0")
    assert oldest.why == REASON
    assert bench.publisher.aside.newest(2) == shown[:2]


def test_a_good_message_among_suspects_alone_is_tried_too() -> None:
    """Nothing else comes with which they could be compared."""
    bench = connected()
    bench.emit(1, b"bad")
    bench.emit(1, b"good")
    suspects = bench.publisher.suspects
    suspects.limit = 1
    suspects._ids = {"t-1": None, "t-2": None}
    for _ in range(6):
        bench.settle()
        (entry,) = bench.publisher.window.in_flight()
        assert entry.event is not None
        if entry.event.key == b"good":
            break
        bench.publisher.link_down("403 refused", over_message=True)
        bench.wait(10)
        bench.publisher.link_up()
    assert entry.event.key == b"good"
    assert bench.count(Stat.DROPPED_SET_ASIDE) == 0
