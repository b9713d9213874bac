"""The state machine between events, the broker and the list, with a fake clock.

First the rules, one example each; then all of them at once: worlds in which
hypothesis lets anything happen at any time, and after each step nothing may be
lost that is not counted. `pytest -k "not test_world"` runs the examples only.
"""

from __future__ import annotations

import collections
import dataclasses
import errno
import functools
import itertools
import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from keyspace_amqp.cluster.watch import READ_AGAIN
from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.fallback import from_element, to_element
from keyspace_amqp.jobs import Command, Job, JobError, JobResult
from keyspace_amqp.message import Event, body
from keyspace_amqp.publisher import publisher as module
from keyspace_amqp.publisher.publisher import (
    Action,
    Close,
    Connect,
    Entry,
    Flush,
    Flushed,
    Log,
    Publisher,
    Recovered,
    Send,
    State,
    Submit,
)
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.stats import FIRST_REASON, Stat

Reply = tuple[bytes | None, int]
Step = Callable[[random.Random], None]


# Unix time in milliseconds when a test begins, at 1000 seconds of its clock.
BEGIN_MS = 1_700_000_000_000


def wall_at(now: float) -> int:
    return BEGIN_MS + round((now - 1000) * 1000)


def event_of(number: int, key: bytes = b"k") -> Event:
    return Event(f"t-{number}", BEGIN_MS, 0, "g", b"del", key)


def number_of(event: Event) -> int:
    return int(event.message_id[2:])


@functools.cache
def number_in(element: bytes) -> int | None:
    """The number of the event in an element of the list; None: it is no event."""
    event = from_element(element)
    return None if event is None else number_of(event)


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def dropped_of(publisher: Publisher) -> int:
    return sum(publisher.counts[stat] for stat in Stat if stat >= FIRST_REASON)


def assert_books_balance(publisher: Publisher) -> None:
    counts, gauges = publisher.counts, publisher.gauges()
    came = counts[Stat.EVENTS_MATCHED] + counts[Stat.FALLBACK_FOUND]
    waiting = sum(
        gauges[stat] for stat in (Stat.FALLBACK_LENGTH, Stat.QUEUE_LENGTH, Stat.IN_FLIGHT)
    )
    assert came == counts[Stat.CONFIRMED] + dropped_of(publisher) + waiting
    buckets = range(Stat.CONFIRM_MS_LE_1, Stat.CONFIRM_MS_LE_INF + 1)
    timed = sum(counts[bucket] for bucket in buckets) + len(publisher._confirmed)
    assert timed == counts[Stat.CONFIRMED]
    assert min(gauges.values()) >= 0
    # What was handed over to another node is subtracted from what was found.
    assert min(counts[stat] for stat in Stat if stat is not Stat.FALLBACK_FOUND) >= 0


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What Redis answers instead of running a command of a job."""

    reply: bytes | None
    error: int = 0
    only_writes: bool = False


NOT_SERVED = Trouble(None, errno.EPERM)
CLUSTER_DOWN = Trouble(None, errno.ENETDOWN)
PAUSED = Trouble(None, errno.EBUSY, only_writes=True)
WRONG_TYPE = Trouble(b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n")


class SimulatedList:
    """The list in Redis, and the shim's way to run a job on it."""

    def __init__(self) -> None:
        self.elements: list[bytes] = []
        self.writable = True  # a primary that is not loading
        self.trouble: Trouble | None = None

    @property
    def numbers(self) -> list[int | None]:
        return [number_in(element) for element in self.elements]

    def run(self, job: Job) -> JobResult:
        replies: list[Reply] = []
        for command in job.commands:
            assert isinstance(command, Command)
            reply, error = self._answer(command)
            replies.append((reply, error))
            failed = reply is None or reply.startswith(b"-")
            if failed or command.expected not in (None, reply):
                break
        return JobResult(replies + [(None, 0)] * (len(job.commands) - len(replies)))

    def _answer(self, command: Command) -> Reply:
        if command.write and not self.writable:
            return None, errno.EROFS
        if self.trouble is not None and (command.write or not self.trouble.only_writes):
            return self.trouble.reply, self.trouble.error
        return self._execute(command), 0

    def _execute(self, command: Command) -> bytes:
        _key, *arguments = command.arguments
        if command.most:
            return self._read(*map(int, arguments), command.most)
        run: Callable[..., bytes] = getattr(self, "_" + command.name.lower())
        return run(*arguments)

    def _rpush(self, *elements: bytes) -> bytes:
        self.elements += elements
        return self._llen()

    def _llen(self) -> bytes:
        return b":%d\r\n" % len(self.elements)

    def _lrange(self, first: bytes, last: bytes) -> bytes:
        found = self.elements[int(first) : int(last) + 1]
        return b"*%d\r\n" % len(found) + b"".join(map(bulk, found))

    def _read(self, first: int, last: int, most: int) -> bytes:
        """As the shim does it: the element that brings it to `most` bytes is the last."""
        found: list[bytes] = []
        for element in self.elements[first : last + 1]:
            if sum(map(len, found)) >= most:
                break
            found.append(element)
        return b"*%d\r\n" % len(found) + b"".join(map(bulk, found))

    def _ltrim(self, first: bytes, last: bytes) -> bytes:
        assert last == b"-1"
        at = int(first)
        self.elements = self.elements[max(at + len(self.elements), 0) if at < 0 else at :]
        return b"+OK\r\n"

    def _unlink(self) -> bytes:
        existed = bool(self.elements)
        self.elements = []
        return b":%d\r\n" % existed


class SimulatedSlots(SimulatedList):
    """Several lists, in slots that come and go. `elements` has all that are here."""

    KEYS = tuple(b"keyspaceamqp:{%d}:fallback" % number for number in range(5))

    def __init__(self) -> None:
        self.here: dict[bytes, SimulatedList] = {key: SimulatedList() for key in self.KEYS}
        self.away: dict[bytes, list[bytes]] = {}  # lists that went elsewhere
        self.delivered: list[bytes] = []  # by other nodes
        self.served = set(self.KEYS)
        self.migrating: set[bytes] = set()
        super().__init__()

    @property
    def elements(self) -> list[bytes]:
        return [element for there in self.here.values() for element in there.elements]

    @elements.setter
    def elements(self, elements: Sequence[bytes]) -> None:
        """What is there at the start."""
        self.here[self.KEYS[0]].elements = list(elements)

    @property
    def elsewhere(self) -> set[int]:
        """The numbers of the events that went with their slots."""
        elements = itertools.chain(self.delivered, *self.away.values())
        return {number for number in map(number_in, elements) if number is not None}

    def _execute(self, command: Command) -> bytes:
        return self.here[command.arguments[0]]._execute(command)

    def _answer(self, command: Command) -> Reply:
        reply = super()._answer(command) if self._has(command.arguments[0]) else None
        if reply is None:
            lacks_role = command.write and not self.writable
            return None, errno.EROFS if lacks_role else errno.EPERM
        return reply

    def _has(self, key: bytes) -> bool:
        """In a slot that migrates, what is not here may be there."""
        present = key not in self.migrating or bool(self.here[key].elements)
        return key in self.served and present


class Watched(Publisher):
    """With what cluster.Watch does for it: it is told of its lists (on a server that is
    in no cluster, of one) when it may write them, and a little after it has found the
    present one out of reach.
    """

    _lists_at = 0.0

    def set_role(self, *, primary: bool, loading: bool) -> None:
        super().set_role(primary=primary, loading=loading)
        self._lists_at = self._now
        self._tell_lists()

    def poll(self, *, more: bool, most: int | None = None) -> list[Action]:
        self._tell_lists()
        return super().poll(more=more, most=most)

    def wake_at(self) -> float | None:
        times = [super().wake_at(), self._lists_at if self._asks else None]
        return min((time for time in times if time is not None), default=None)

    @property
    def _asks(self) -> bool:
        return self.writable and not self.lists_known

    def _tell_lists(self) -> None:
        if self._asks and self._now >= self._lists_at:
            self._lists_at = self._now + READ_AGAIN
            self.tell_lists()

    def tell_lists(self) -> None:
        self.set_lists(KEY, lambda key: True)


# ---- examples --------------------------------------------------------------


class Bench:
    """A publisher with a clock that only tests move, and with its list. The broker
    is the test itself. Events are numbered from 1; `found` of them are in the
    list at the start."""

    def __init__(
        self, *, found: int = 0, jitter: float = 1.0, primary: bool = True, **parameters: Any
    ) -> None:
        self.now = 1000.0
        self.numbers = itertools.count(1)
        self.list = SimulatedList()
        self.list.writable = primary
        self.list.elements = [to_element(event_of(next(self.numbers))) for _ in range(found)]
        self.config = dataclasses.replace(DEFAULTS, **parameters)
        self.publisher = Watched(self.config, lambda: self.now, self.wall, lambda: jitter)
        self.publisher.set_role(primary=primary, loading=False)
        self.job: Job | None = None
        self.actions: list[Action] = []  # all so far

    def wall(self) -> int:
        return wall_at(self.now)

    # The world's side

    def emit(self, count: int = 1, key: bytes = b"k") -> None:
        self.publisher.add([event_of(next(self.numbers), key) for _ in range(count)])

    def poll(self, *, more: bool = False, most: int | None = None) -> list[Action]:
        assert_books_balance(self.publisher)
        actions = self.publisher.poll(more=more, most=most)
        for action in actions:
            if isinstance(action, Submit):
                assert self.job is None, "two jobs at once"
                self.job = action.job
        self.actions += actions
        assert_books_balance(self.publisher)
        return actions

    def run_job(self) -> None:
        assert self.job is not None
        job, self.job = self.job, None
        self.publisher.job_done(self.list.run(job))

    def settle(self) -> list[Action]:
        """Polls and runs jobs until there is nothing to do at this time."""
        before = len(self.actions)
        for _ in range(1000):
            actions = self.poll()
            if self.job is not None:
                self.run_job()
            elif not actions:
                return self.actions[before:]
        raise AssertionError("never settles")

    def wait(self, seconds: float) -> list[Action]:
        self.now += seconds
        return self.settle()

    def link_up(self) -> list[Action]:
        self.publisher.link_up()
        return self.settle()

    def ack(self, tag: int, *, multiple: bool = False) -> list[Action]:
        self.publisher.acked(tag, multiple)
        return self.settle()

    def nack(self, tag: int, *, multiple: bool = False) -> list[Action]:
        self.publisher.nacked(tag, multiple)
        return self.settle()

    def lose_link(self) -> list[Action]:
        self.publisher.link_down("connection reset")
        return self.settle()

    def seconds_until(self, kind: type[Action]) -> float:
        """Sleeps as the worker does until there is such an action."""
        start = self.now
        for _ in range(1000):
            if any(isinstance(action, kind) for action in self.settle()):
                return self.now - start
            at = self.publisher.wake_at()
            assert at is not None, "it would sleep for ever"
            self.now = max(at, self.now)
        raise AssertionError(f"no {kind.__name__}")

    # What came of it

    def count(self, stat: Stat) -> int:
        return self.publisher.gauges().get(stat, self.publisher.counts[stat])

    @property
    def stored(self) -> list[int | None]:
        return self.list.numbers


def sent(actions: Iterable[Action]) -> list[int]:
    """The numbers of the events that these actions send."""
    sends = [action for action in actions if isinstance(action, Send)]
    return [number_of(event) for send in sends for event in send.events]


def commands(actions: Iterable[Action]) -> list[str]:
    """The Redis commands of the jobs among these actions."""
    jobs = [action.job for action in actions if isinstance(action, Submit)]
    return [
        command.name for job in jobs for command in job.commands if isinstance(command, Command)
    ]


def texts(actions: Iterable[Action]) -> list[str]:
    """The lines for the log."""
    return [action.text for action in actions if isinstance(action, Log)]


def connected(*, found: int = 0, **parameters: Any) -> Bench:
    """A bench whose link is up, with nothing on its way."""
    bench = Bench(found=found, **parameters)
    bench.publisher.connect()
    bench.settle()
    bench.link_up()
    return bench


def away(*, found: int = 0, **parameters: Any) -> Bench:
    """A bench whose broker is away for longer than a test takes."""
    bench = Bench(found=found, **parameters)
    bench.publisher.connect()
    bench.settle()
    for _ in range(20):
        bench.lose_link()
    return bench


def flushed(actions: Iterable[Action]) -> list[Flushed]:
    return [action for action in actions if isinstance(action, Flushed)]


# The link


def test_it_connects_when_there_is_something_to_send() -> None:
    bench = Bench()
    bench.wait(60)
    assert Connect() not in bench.actions
    assert bench.publisher.state == "idle"
    bench.emit()
    assert Connect() in bench.settle()
    assert bench.publisher.state == "connecting"
    assert sent(bench.link_up()) == [1]
    assert bench.publisher.state == "connected"


def test_it_connects_when_something_is_found_in_the_list() -> None:
    bench = Bench(found=1)
    assert Connect() in bench.settle()


def test_connect_connects_at_once_with_nothing_to_send() -> None:
    bench = Bench()
    bench.publisher.connect()
    assert Connect() in bench.settle()


def reconnections(jitter: float) -> list[float]:
    bench = Bench(jitter=jitter)
    bench.emit()
    bench.settle()
    delays = []
    for _ in range(8):
        bench.publisher.link_down("refused")
        delays.append(bench.seconds_until(Connect))
    return delays


@pytest.mark.parametrize(("jitter", "part"), [(0.0, 0.5), (0.5, 0.75), (1.0, 1.0)])
def test_backoff_grows_up_to_a_bound(jitter: float, part: float) -> None:
    longest = [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5]
    # It is woken at the time or up to 10 ms later.
    assert reconnections(jitter) == pytest.approx([part * s for s in longest], abs=0.011)


def test_backoff_does_not_overflow() -> None:
    bench = Bench()
    bench.emit()
    for _ in range(5000):
        bench.publisher.link_down("refused")
    assert bench.seconds_until(Connect) <= module.BACKOFF_MAX + 0.011


def test_backoff_starts_again_after_a_confirm_and_not_before() -> None:
    """A broker that accepts and throws us out must not be hammered."""
    bench = Bench()
    bench.emit()
    bench.settle()
    for _ in range(4):
        bench.lose_link()
        bench.seconds_until(Connect)
        bench.link_up()
    bench.lose_link()
    assert bench.seconds_until(Connect) == pytest.approx(1.6, abs=0.011)
    bench.link_up()
    bench.ack(1)
    bench.emit()
    bench.lose_link()
    assert bench.seconds_until(Connect) == pytest.approx(0.1, abs=0.011)


def test_connections_after_the_first_are_counted() -> None:
    bench = connected()
    assert bench.count(Stat.RECONNECTS) == 0
    bench.lose_link()
    bench.link_up()
    assert bench.count(Stat.RECONNECTS) == 1


def test_disconnect_stays_away_until_connect() -> None:
    bench = connected()
    bench.publisher.disconnect()
    bench.emit(2)
    assert bench.wait(60).count(Close()) == 1
    bench.publisher.drain()  # asks for less than CONNECT does
    bench.wait(60)
    assert bench.actions.count(Connect()) == 1
    assert bench.publisher.state == "disconnected"
    assert bench.stored == [1, 2]
    bench.publisher.connect()
    assert Connect() in bench.settle()


def test_connect_does_not_wait_for_the_backoff() -> None:
    bench = away()
    assert Connect() not in bench.settle()
    bench.publisher.connect()
    assert Connect() in bench.settle()


def test_drain_does_not_wait_for_the_backoff() -> None:
    bench = away(found=1)
    assert Connect() not in bench.settle()
    bench.publisher.drain()
    assert Connect() in bench.settle()


@pytest.mark.parametrize(
    ("name", "value"),
    [("host", "other"), ("port", 1), ("username", "u"), ("password", "p"), ("heartbeat", 9)],
)
def test_parameters_of_the_connection_make_a_new_one(name: str, value: Any) -> None:
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.publisher.configure(dataclasses.replace(bench.config, **{name: value}))
    assert [a for a in bench.settle() if a in (Close(), Connect())] == [Close(), Connect()]
    assert sent(bench.link_up()) == [1, 2]


@pytest.mark.parametrize(
    ("name", "value"),
    [("exchange", "e"), ("routing_key", "r"), ("fallback_size", 7), ("masks", (b"*",))],
)
def test_other_parameters_leave_the_connection(name: str, value: Any) -> None:
    bench = connected()
    bench.publisher.configure(dataclasses.replace(bench.config, **{name: value}))
    assert bench.settle() == []


def test_new_parameters_are_tried_at_once() -> None:
    bench = away()
    bench.publisher.configure(dataclasses.replace(bench.config, password="right"))
    assert Connect() in bench.settle()


# The window and the confirms


def test_the_window_bounds_what_is_not_confirmed() -> None:
    bench = connected()
    bench.emit(module.WINDOW + 100)
    assert sent(bench.settle()) == list(range(1, module.WINDOW + 1))
    assert sent(bench.ack(1)) == [module.WINDOW + 1]
    assert bench.count(Stat.IN_FLIGHT) == module.WINDOW
    assert bench.count(Stat.QUEUE_LENGTH) == 99


def test_the_window_is_filled_in_chunks() -> None:
    """So that confirms are read in between; `again` asks for the next turn."""
    bench = connected()
    bench.emit(module.SEND_CHUNK + 1)
    assert sent(bench.poll()) == list(range(1, module.SEND_CHUNK + 1))
    assert bench.publisher.again
    assert sent(bench.poll()) == [module.SEND_CHUNK + 1]
    bench.poll()
    assert not bench.publisher.again


def test_no_more_messages_than_are_allowed() -> None:
    bench = connected(found=2)
    bench.settle()  # what is in the list counts too
    bench.ack(2, multiple=True)
    bench.settle()
    bench.emit(5)
    assert sent(bench.poll(most=0)) == []
    assert sent(bench.poll(most=2)) == [3, 4]
    bench.publisher.nacked(2 + 2, True)
    assert bench.count(Stat.NACKED) == 2
    bench.now += module.REFUSED_MAX
    assert sent(bench.poll(most=1)) == [3]
    assert sent(bench.poll(most=2)) == [4, 5]
    assert bench.count(Stat.FALLBACK_PUSHED) == 0


@pytest.mark.parametrize("mode", Flush)
def test_a_flush_sends_all_the_same(mode: Flush) -> None:
    bench = connected()
    bench.emit(5)
    bench.publisher.flush(1, 5, mode)
    assert sent(bench.poll(most=0)) == [1, 2, 3, 4, 5]


@pytest.mark.parametrize(("size", "waits"), [(-1, False), (1, False), (0, True), (10, True)])
def test_who_has_no_place_to_wait_does_not_wait(size: int, waits: bool) -> None:
    """No list, or one that is half full: events would be lost for the sake of speed."""
    bench = connected(fallback_size=size)
    bench.emit(2)
    assert sent(bench.poll(most=0)) == ([] if waits else [1, 2])


def test_a_silent_broker_gets_no_more_than_the_window() -> None:
    """Also where the list is at its cap, and what was sent falls off it: room in the
    list is no room in the buffers on the way to the broker."""
    bench = connected(fallback_size=module.WINDOW // 2)
    for _ in range(40):
        bench.emit(module.WINDOW // 4)
        bench.wait(module.STALLED_AFTER)
    assert bench.count(Stat.DROPPED_FALLBACK_FULL) > module.WINDOW
    assert bench.count(Stat.PUBLISHED) <= module.WINDOW
    assert len(bench.publisher._tags) <= module.WINDOW
    bench.lose_link()
    bench.link_up()
    assert_books_balance(bench.publisher)


def test_what_was_refused_and_then_removed_is_not_too_large_as_well() -> None:
    bench = connected(found=1)
    bench.settle()
    bench.publisher.nacked(1, False)
    bench.list.elements.clear()
    bench.publisher.touched(b"del", KEY)
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
    bench.emit(2, key=b"k" * (module.WINDOW_BYTES + 1))
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


def test_a_return_is_counted_and_not_repeated() -> None:
    bench = connected()
    bench.emit()
    bench.settle()
    bench.publisher.returned()
    assert sent(bench.ack(1)) == []
    assert (bench.count(Stat.RETURNED), bench.count(Stat.CONFIRMED)) == (1, 1)


def test_returns_are_logged_once_a_minute() -> None:
    """However many: the first at once, the others together, each in one of the lines."""
    bench = connected()
    lines: list[tuple[float, str]] = []
    for second in range(150):
        bench.publisher.returned()
        lines += [(second, text.partition(" ")[0]) for text in texts(bench.wait(1))]
    assert lines == [(0, "1"), (60, "60"), (120, "60")]
    # And the last ones without another return.
    assert bench.seconds_until(Log) == pytest.approx(31, abs=0.1)
    (text,) = texts(bench.actions[-1:])
    assert text.startswith("29 messages reached no queue: exchange 'amq.direct' ")
    assert not texts(bench.wait(600))


def test_a_nack_is_repeated_later_and_nothing_newer_before() -> None:
    bench = connected()
    bench.emit(3)
    first = bench.settle()
    bench.ack(1)
    bench.nack(2)
    bench.ack(3)
    bench.emit()
    assert sent(bench.wait(module.BACKOFF_FIRST - 0.001)) == []
    again = bench.wait(0.002)
    assert sent(again) == [2, 4]
    assert of_number(2, again) == of_number(2, first)
    assert bench.count(Stat.NACKED) == 1


def of_number(number: int, actions: Iterable[Action]) -> Event:
    """The event with this number in the messages that these actions send."""
    sends = [action for action in actions if isinstance(action, Send)]
    (event,) = [e for send in sends for e in send.events if number_of(e) == number]
    return event


def test_a_nack_of_multiple_repeats_all_up_to_it() -> None:
    bench = connected()
    bench.emit(3)
    bench.settle()
    bench.nack(2, multiple=True)
    assert sent(bench.wait(module.BACKOFF_FIRST)) == [1, 2]


def test_nacks_back_off() -> None:
    bench = connected()
    bench.emit()
    bench.settle()
    delays = []
    for tag in range(1, 5):
        bench.nack(tag)
        delays.append(bench.seconds_until(Send))
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8], abs=0.011)


def test_confirms_between_nacks_do_not_end_the_backoff() -> None:
    """A full queue with a slow consumer takes some and refuses others."""
    bench = connected()
    bench.emit(40)
    bench.settle()
    delays = []
    first, last = 1, 40
    for _ in range(3):
        bench.ack(first)
        for tag in range(first + 1, last + 1):
            bench.nack(tag)
        delays.append(bench.seconds_until(Send))
        first, last = last + 1, bench.publisher._next_tag - 1
    assert delays == pytest.approx([0.1, 0.2, 0.4], abs=0.011)


def test_the_window_shrinks_with_refusals_and_grows_with_confirms() -> None:
    bench = connected()
    bench.emit(module.WINDOW)
    bench.settle()
    assert bench.count(Stat.PUBLISHED) == module.WINDOW
    sizes = []
    for _ in range(4):
        bench.publisher.nacked(bench.publisher._next_tag - 1, True)
        before = bench.count(Stat.PUBLISHED)
        bench.wait(module.REFUSED_MAX)
        sizes.append(bench.count(Stat.PUBLISHED) - before)
    assert sizes == [module.WINDOW // 2**n for n in (1, 2, 3, 4)]
    before = bench.count(Stat.PUBLISHED)
    bench.ack(bench.publisher._next_tag - 1, multiple=True)
    assert bench.count(Stat.PUBLISHED) - before == 2 * sizes[-1]


def test_nacks_of_one_round_are_one_refusal() -> None:
    bench = connected()
    bench.emit(5)
    bench.settle()
    for tag in range(1, 6):
        bench.nack(tag)
    assert sent(bench.wait(module.BACKOFF_FIRST)) == [1, 2, 3, 4, 5]


def test_a_lost_link_repeats_the_unconfirmed_before_anything_newer() -> None:
    bench = connected()
    bench.emit(4)
    first = bench.settle()
    bench.ack(2)
    bench.nack(3)
    bench.lose_link()
    bench.emit()
    again = bench.link_up()
    assert sent(again) == [1, 3, 4, 5]
    for number in (1, 3, 4):
        assert of_number(number, again) == of_number(number, first)
    (send,) = [action for action in again if isinstance(action, Send)]
    assert send.first_tag == 1  # of the new connection


def test_an_ack_of_the_old_connection_cannot_confirm_on_the_new_one() -> None:
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.lose_link()
    bench.ack(2, multiple=True)
    assert bench.count(Stat.CONFIRMED) == 0
    assert sent(bench.link_up()) == [1, 2]


# Into the list


def test_with_the_link_down_events_are_stored_after_a_moment() -> None:
    bench = away()
    bench.emit(3)
    bench.wait(module.STORE_AFTER - 0.001)
    assert bench.stored == []
    bench.wait(0.002)
    assert bench.stored == [1, 2, 3]
    assert bench.count(Stat.QUEUE_LENGTH) == 0
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_PUSHED) == 3


def test_it_wakes_to_store_them() -> None:
    bench = away()
    bench.emit()
    seconds = bench.seconds_until(Submit)
    assert seconds == pytest.approx(module.STORE_AFTER, abs=0.011)
    assert seconds < 0.1  # in the list by then, so it leaves time to get there


def test_a_full_job_is_stored_at_once() -> None:
    bench = away()
    bench.emit(module.JOB_ELEMENTS)
    bench.settle()
    assert len(bench.stored) == module.JOB_ELEMENTS


def test_jobs_are_bounded_in_elements_and_bytes() -> None:
    bench = away()
    bench.emit(module.JOB_ELEMENTS + 1)
    bench.poll()
    bench.run_job()
    assert len(bench.stored) == module.JOB_ELEMENTS
    bench = away()
    bench.emit(10, key=b"k" * (module.JOB_BYTES // 2))
    bench.now += module.STORE_AFTER
    bench.poll()
    bench.run_job()
    assert bench.stored == [1, 2]


def test_the_unconfirmed_are_stored_before_the_newer() -> None:
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.lose_link()
    bench.emit(2)
    bench.now += module.STORE_AFTER
    bench.publisher.disconnect()
    bench.settle()
    assert bench.stored == [1, 2, 3, 4]


def test_newer_events_stand_behind_the_list() -> None:
    bench = away()
    bench.emit(2)
    bench.wait(module.STORE_AFTER)
    bench.emit(2)
    bench.publisher.link_up()
    # Read and pushed by us, so known: sent in its turn, without a second look.
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
    bench.emit(module.WINDOW)
    bench.wait(module.STALLED_AFTER - 0.001)
    assert bench.stored == []
    bench.wait(0.002)
    assert bench.stored == list(range(1, module.WINDOW + 3))
    assert bench.count(Stat.QUEUE_LENGTH) == bench.count(Stat.IN_FLIGHT) == 0
    # Late confirms still count: the elements leave the list without a second send.
    assert bench.ack(module.WINDOW, multiple=True)
    assert bench.stored == [module.WINDOW + 1, module.WINDOW + 2]


def test_a_confirm_is_progress() -> None:
    bench = connected()
    bench.emit(9)
    bench.settle()
    for tag in range(1, 9):
        bench.now += module.STALLED_AFTER - 0.001
        bench.ack(tag)
    assert bench.stored == []


def test_with_the_connection_blocked_events_are_stored() -> None:
    bench = connected()
    bench.publisher.link_blocked("low on disk")
    assert bench.publisher.state == "blocked"
    assert "low on disk" in bench.publisher.last_error
    bench.emit(2)
    assert sent(bench.wait(module.STORE_AFTER)) == []
    assert bench.stored == [1, 2]
    bench.publisher.link_unblocked()
    assert sent(bench.settle()) == [1, 2]


def test_under_pressure_events_go_to_the_list_although_the_broker_is_there() -> None:
    bench = connected()
    bench.emit(module.WINDOW + 10)
    bench.publisher.set_pressure(True)
    bench.settle()
    assert bench.count(Stat.FALLBACK_LENGTH) == module.WINDOW + 10


def test_a_push_that_fails_is_tried_again_in_order() -> None:
    bench = away()
    bench.emit(2)
    bench.list.trouble = PAUSED
    bench.wait(module.STORE_AFTER)
    assert "writes are paused" in bench.publisher.last_error
    bench.emit(1)
    bench.list.trouble = None
    assert commands(bench.wait(module.JOB_RETRY_AFTER - 0.001)).count("RPUSH") == 0
    bench.wait(0.002)
    assert bench.stored == [1, 2, 3]


def test_the_cap_drops_the_oldest() -> None:
    bench = away(fallback_size=3)
    bench.emit(5)
    lines = texts(bench.wait(module.STORE_AFTER))
    assert bench.stored == [3, 4, 5]
    assert bench.count(Stat.DROPPED_FALLBACK_FULL) == 2
    assert lines == ["2 events lost: the fallback list is full"]
    assert sent(bench.link_up()) == [3, 4, 5]


def test_what_is_confirmed_is_not_lost_by_the_cap() -> None:
    bench = connected(fallback_size=3)
    bench.emit(3)
    bench.settle()
    bench.wait(module.STALLED_AFTER)
    bench.publisher.link_blocked("low on disk")
    bench.emit(2)
    bench.now += module.STORE_AFTER
    bench.poll()  # pushes 4 and 5
    bench.publisher.acked(2, True)
    bench.run_job()  # and 1 and 2 fall off
    assert bench.stored == [3, 4, 5]
    assert dropped_of(bench.publisher) == 0
    bench.settle()


def test_with_the_list_off_events_wait_in_memory() -> None:
    bench = away(fallback_size=-1)
    bench.emit(5)
    assert set(commands(bench.wait(60))) <= {"LLEN"}
    assert bench.count(Stat.QUEUE_LENGTH) == 5
    assert bench.publisher.stuck


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
    return sum(entry.size for entry in (*publisher._listed_sent, *publisher._listed_waiting))


def test_of_large_elements_that_were_stored_a_few_are_held() -> None:
    bench = away()
    for _ in range(60):
        bench.emit(key=LARGE)
        bench.wait(0.1)
    assert len(bench.stored) == 60
    assert 0 < held(bench) < module.WINDOW_BYTES + 2 * len(LARGE)
    assert sent(bench.link_up()) == [*range(1, 17)]


def test_of_large_elements_that_are_drained_a_few_are_held() -> None:
    """Those on their way, those that come next, and those that wait for their trim."""
    bench = Bench()
    bench.list.elements = [to_element(event_of(number, LARGE)) for number in range(1, 101)]
    bench.settle()
    bench.link_up()
    most = 0
    for tag in range(1, 101):
        bench.ack(tag)
        most = max(most, held(bench))
    assert 2 * module.WINDOW_BYTES < most < 3 * module.WINDOW_BYTES + 6 * len(LARGE)
    assert bench.count(Stat.CONFIRMED) == 100
    assert sent(bench.actions) == [*range(1, 101)]
    assert bench.stored == []


# Out of the list


def test_drain_reads_sends_waits_for_the_confirms_and_then_trims() -> None:
    bench = Bench(found=3)
    bench.settle()
    actions = bench.link_up()
    assert commands(actions) == ["LRANGE", "LLEN"]
    assert sent(actions) == [1, 2, 3]
    bench.ack(2)
    assert "LTRIM" not in commands(bench.wait(0.1))
    assert bench.stored == [1, 2, 3]
    assert commands(bench.ack(3, multiple=True)) == ["LRANGE", "LTRIM", "LLEN"]
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
    """Else the head of the list is not what a trim expects, and all is read and
    sent again."""
    bench = connected()
    bench.emit(3)
    bench.settle()
    bench.publisher.set_pressure(True)
    assert "RPUSH" in commands(bench.poll())
    bench.publisher.acked(2, False)
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
    """As after a promotion: in flight from memory, while older ones are found."""
    monkeypatch.setattr(module, "WINDOW", 2)
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.list.elements.append(to_element(event_of(99)))
    bench.publisher.touched(b"rpush")
    bench.settle()
    bench.wait(module.STORE_AFTER)
    assert bench.stored == [99, 1, 2]
    for tag in (1, 3, 2):
        bench.ack(tag)
    assert bench.stored == []
    assert sent(bench.actions) == [1, 2, 99]


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_trim_takes_nothing_that_it_does_not_know(at: int) -> None:
    """Somebody changed the list, unseen, between the read and the trim."""
    bench = Bench(found=3)
    bench.settle()
    bench.link_up()
    bench.list.elements[at] = to_element(event_of(99))
    bench.ack(3, multiple=True)
    assert 99 in bench.stored
    assert 99 in sent(bench.actions)


def test_a_trim_is_no_larger_than_a_push() -> None:
    """Redis' main thread is held for as long as it takes to look at the elements."""
    bench = connected(found=1)
    bench.settle()
    bench.ack(1)
    bench.actions.clear()
    size = module.JOB_BYTES // 3
    keys = [to_element(event_of(next(bench.numbers), b"k" * size)) for _ in range(9)]
    bench.list.elements += keys
    bench.wait(module.CHECK_EVERY)
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
    assert sent(bench.wait(module.CHECK_EVERY)) == [1]
    assert bench.count(Stat.FALLBACK_FOUND) == 1


def test_what_is_imported_is_found_at_once() -> None:
    bench = away(found=2)
    bench.settle()
    bench.list.elements += [to_element(event_of(number)) for number in (8, 9)]
    bench.publisher.imported(KEY, 4, 2)
    assert bench.count(Stat.FALLBACK_FOUND) == 4
    assert bench.publisher.gauges()[Stat.FALLBACK_LENGTH] == 4
    bench.list.elements = [to_element(event_of(9))]  # somebody else was faster
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
    bench.wait(module.STORE_AFTER)
    assert not {1, 2, 3} & set(bench.stored)
    bench.ack(2, multiple=True)
    bench.wait(module.STORE_AFTER)
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
        bench.publisher.touched(what)  # looks at once
    (line,) = texts(bench.wait(module.CHECK_EVERY if what is None else 0))
    assert bench.count(reason) == dropped_of(bench.publisher) == 3
    assert bench.count(Stat.FALLBACK_LENGTH) == 0
    assert line.startswith("3 events lost: the fallback list was")


def test_a_reason_explains_one_loss_only() -> None:
    bench = away(found=3)
    bench.list.elements.pop()
    bench.publisher.touched(b"evicted")
    bench.settle()
    bench.list.elements.pop()
    bench.wait(module.CHECK_EVERY)
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


# A list that cannot be had


def test_with_the_cluster_down_events_wait_in_memory() -> None:
    """The list may have something older, so nothing goes past it."""
    bench = Bench(found=2)
    bench.list.trouble = CLUSTER_DOWN
    bench.emit(2)
    bench.settle()
    assert "the cluster is down" in bench.publisher.last_error
    assert sent(bench.link_up()) == []
    assert bench.count(Stat.QUEUE_LENGTH) == 2
    bench.list.trouble = None
    assert sent(bench.wait(module.CHECK_EVERY)) == [1, 2, 3, 4]


def test_a_slot_that_is_not_served_is_handed_over() -> None:
    """Another node delivers the list now: nothing is lost, and memory goes on."""
    bench = away(found=3)
    bench.list.trouble = NOT_SERVED
    bench.emit(2)
    bench.wait(module.CHECK_EVERY)
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_FOUND) == 0
    assert dropped_of(bench.publisher) == 0
    assert sent(bench.link_up()) == [4, 5]
    bench.ack(2, multiple=True)
    bench.list.trouble = None  # the slot is back, with what others pushed
    bench.list.elements = [to_element(event_of(99))]
    assert sent(bench.wait(module.CHECK_EVERY)) == [99]


def test_a_key_with_something_else_took_the_lists_place() -> None:
    bench = away(found=3)
    bench.list.trouble = WRONG_TYPE
    bench.emit(2)
    bench.wait(module.CHECK_EVERY)
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 3
    assert "WRONGTYPE" in bench.publisher.last_error
    assert bench.count(Stat.QUEUE_LENGTH) == 2
    assert sent(bench.link_up()) == [4, 5]


# Replicas


def test_a_replica_hands_the_list_over_and_delivers_what_it_holds() -> None:
    bench = away(found=3)
    bench.emit(2)
    bench.publisher.set_role(primary=False, loading=False)
    bench.list.writable = False
    assert commands(bench.wait(60)) == []
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_FOUND) == 0
    assert sent(bench.link_up()) == [4, 5]
    assert Close() in bench.ack(2, multiple=True)
    assert bench.publisher.state == "replica"
    assert len(bench.stored) == 3


def test_a_replica_does_not_connect() -> None:
    bench = Bench(found=3, primary=False)
    assert bench.wait(60) == []
    assert bench.publisher.wake_at() is None


def test_a_promoted_replica_finds_the_list_and_drains_it() -> None:
    bench = Bench(found=3, primary=False)
    bench.settle()
    bench.publisher.set_role(primary=True, loading=False)
    bench.list.writable = True
    assert Connect() in bench.settle()
    assert sent(bench.link_up()) == [1, 2, 3]


def test_after_a_promotion_the_list_goes_first() -> None:
    bench = connected()
    bench.publisher.set_role(primary=False, loading=False)
    bench.list.elements.append(to_element(event_of(99)))  # by the primary of that time
    bench.publisher.set_role(primary=True, loading=False)
    bench.emit(1)
    assert sent(bench.settle()) == [99, 1]


def test_nothing_is_read_or_written_while_the_data_set_loads() -> None:
    bench = connected()
    bench.publisher.set_role(primary=True, loading=True)
    assert commands(bench.wait(60)) == []
    bench.publisher.set_role(primary=True, loading=False)
    assert commands(bench.settle()) == ["LLEN"]


def test_a_trim_that_was_on_its_way_at_a_demotion_counts_nothing() -> None:
    bench = Bench(found=3)
    bench.settle()
    bench.link_up()
    bench.publisher.acked(3, True)
    bench.poll()
    bench.list.writable = False  # before the job runs
    bench.publisher.set_role(primary=False, loading=False)
    bench.run_job()
    bench.settle()
    assert bench.count(Stat.FALLBACK_DRAINED) == 0
    assert len(bench.stored) == 3


@pytest.mark.parametrize("runs", ["before the demotion", "after the promotion"])
def test_a_trim_around_which_the_role_changed_twice_counts_nothing(runs: str) -> None:
    bench = connected(found=3)
    bench.publisher.acked(3, True)
    assert "LTRIM" in commands(bench.poll())
    assert bench.job is not None
    result = bench.list.run(bench.job) if runs == "before the demotion" else None
    bench.publisher.set_role(primary=False, loading=False)
    bench.publisher.set_role(primary=True, loading=False)
    bench.publisher.job_done(result or bench.list.run(bench.job))
    bench.job = None
    bench.settle()
    assert bench.count(Stat.FALLBACK_DRAINED) == bench.count(Stat.FALLBACK_LENGTH) == 0


# Several lists

FIRST, SECOND, THIRD, *_ = SimulatedSlots.KEYS


class SlotsBench(Bench):
    """A bench in a cluster. The test tells of the slots; each list has so many elements
    at the start, numbered in the order given."""

    list: SimulatedSlots

    def __init__(self, lengths: dict[bytes, int] | None = None, **parameters: Any) -> None:
        super().__init__(**parameters)
        self.list = SimulatedSlots()
        for key, length in (lengths or {}).items():
            elements = [to_element(event_of(next(self.numbers))) for _ in range(length)]
            self.list.here[key].elements = elements
        self.publisher = Publisher(self.config, lambda: self.now, self.wall, lambda: 1.0)
        self.publisher.set_role(primary=True, loading=False)

    def tell(self, home: bytes | None) -> list[Action]:
        """All that the node has is found."""
        there = {key: len(self.list.here[key].elements) for key in self.list.served}
        self.publisher.lists_found({key: length for key, length in there.items() if length})
        self.publisher.set_lists(home, self.list.served.__contains__)
        return self.settle()

    def leave(self, key: bytes) -> None:
        """The slot goes, with its list."""
        self.list.away[key] = self.list.here[key].elements
        self.list.here[key].elements = []
        self.list.served.discard(key)

    def keys_of_jobs(self, actions: Iterable[Action]) -> set[bytes]:
        jobs = [action.job for action in actions if isinstance(action, Submit)]
        commands = [c for job in jobs for c in job.commands if isinstance(c, Command)]
        return {command.arguments[0] for command in commands}


def test_before_the_lists_are_known_memory_waits() -> None:
    bench = SlotsBench()
    bench.emit(2)
    bench.settle()
    assert sent(bench.link_up()) == []
    assert not bench.publisher.lists_known
    assert bench.keys_of_jobs(bench.actions) == set()
    assert sent(bench.tell(FIRST)) == [1, 2]


def test_the_lists_are_told_when_one_is_chosen() -> None:
    """Not an instant before: to who asks, none would be no elements."""
    bench = SlotsBench()
    assert bench.publisher.lists is None
    bench.publisher.set_lists(FIRST, bench.list.served.__contains__)
    assert bench.publisher.lists is None
    bench.settle()
    assert bench.publisher.lists == [FIRST]
    bench.publisher.set_role(primary=False, loading=False)
    assert bench.publisher.lists is None
    bench = SlotsBench()
    bench.tell(None)
    assert bench.publisher.lists == []


def test_lists_are_delivered_one_after_the_other_and_before_memory() -> None:
    """The longest first. Memory goes to the end, or into the list at home."""
    bench = SlotsBench({FIRST: 1, SECOND: 3, THIRD: 2})
    bench.emit(2)
    bench.tell(FIRST)
    assert bench.count(Stat.FALLBACK_LENGTH) == 6
    assert bench.publisher.keys[0] == SECOND
    assert sent(bench.link_up()) == [2, 3, 4]
    assert sent(bench.ack(3, multiple=True)) == [5, 6]
    assert sent(bench.ack(5, multiple=True)) == [1, 7, 8]
    bench.ack(8, multiple=True)
    assert bench.publisher.keys == [FIRST]
    assert bench.count(Stat.FALLBACK_FOUND) == bench.count(Stat.FALLBACK_DRAINED) == 6


def test_behind_a_list_that_is_worked_with_events_are_stored_in_it() -> None:
    bench = SlotsBench({SECOND: 2})
    bench.tell(FIRST)
    bench.emit(2)
    bench.wait(module.STORE_AFTER)
    assert bench.list.here[SECOND].numbers == [1, 2, 3, 4]
    assert bench.list.here[FIRST].numbers == []
    assert sent(bench.link_up()) == [1, 2, 3, 4]


def test_a_new_home_is_taken_when_the_present_list_is_empty() -> None:
    bench = SlotsBench({FIRST: 2})
    bench.tell(FIRST)
    bench.tell(SECOND)
    bench.emit()
    bench.wait(module.STORE_AFTER)
    assert bench.list.here[FIRST].numbers == [1, 2, 3]
    bench.link_up()
    bench.ack(3, multiple=True)
    assert bench.publisher.keys == [SECOND]
    bench.lose_link()
    bench.emit()
    bench.wait(module.STORE_AFTER)
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
    bench.publisher.acked(3, True)
    assert "LTRIM" in commands(bench.poll())
    bench.leave(FIRST)
    bench.publisher.set_lists(SECOND, bench.list.served.__contains__)
    bench.run_job()
    bench.emit()
    assert bench.keys_of_jobs(bench.settle()) == {SECOND}
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_DRAINED) == 0
    assert sent(bench.actions)[-1:] == [4]


def test_when_the_slot_is_not_served_any_more_it_asks_for_the_lists() -> None:
    """That comes before the topology is read the next time."""
    bench = SlotsBench({FIRST: 3, SECOND: 2})
    bench.tell(SECOND)
    bench.leave(FIRST)
    bench.emit()
    assert bench.publisher.lists_known
    bench.wait(module.CHECK_EVERY)
    assert not bench.publisher.lists_known
    assert bench.publisher.keys == [SECOND]
    assert sent(bench.link_up()) == []  # the other list may have something older
    assert sent(bench.tell(SECOND)) == [4, 5, 6]
    assert dropped_of(bench.publisher) == 0


def test_in_a_slot_that_migrates_no_list_begins() -> None:
    """Redis would send us to the other node; events wait in memory, or go."""
    bench = SlotsBench()
    bench.list.migrating = {FIRST}
    bench.tell(FIRST)
    bench.emit()
    bench.wait(module.STORE_AFTER)
    assert not bench.publisher.lists_known
    assert bench.count(Stat.QUEUE_LENGTH) == 1
    assert sent(bench.link_up()) == [1]


def test_in_a_slot_that_migrates_a_list_that_is_there_goes_on() -> None:
    bench = SlotsBench({FIRST: 2})
    bench.list.migrating = {FIRST}
    bench.tell(SECOND)
    bench.emit()
    bench.wait(module.STORE_AFTER)
    assert bench.list.here[FIRST].numbers == [1, 2, 3]
    assert sent(bench.link_up()) == [1, 2, 3]
    bench.ack(3, multiple=True)
    bench.tell(SECOND)
    bench.emit()
    assert sent(bench.wait(module.CHECK_EVERY + module.JOB_RETRY_AFTER)) == [4]
    assert bench.count(Stat.CONFIRMED) == 3
    assert dropped_of(bench.publisher) == 0


def test_a_migration_that_is_taken_back_after_the_last_trim_has_lost_nothing() -> None:
    """The trim empties the list, so that Redis does not answer for its key any more."""
    bench = SlotsBench({FIRST: 2})
    bench.list.migrating = {FIRST}
    bench.tell(FIRST)
    bench.link_up()
    bench.publisher.acked(2, True)
    assert "LTRIM" in commands(bench.poll())
    bench.run_job()
    bench.list.migrating = set()
    bench.settle()
    bench.wait(module.CHECK_EVERY)
    assert bench.count(Stat.FALLBACK_DRAINED) == bench.count(Stat.CONFIRMED) == 2
    assert bench.count(Stat.FALLBACK_LENGTH) == dropped_of(bench.publisher) == 0


def test_a_node_without_slots_sends_and_stores_nothing() -> None:
    bench = SlotsBench()
    bench.emit()
    bench.tell(None)
    bench.wait(module.STORE_AFTER)
    assert bench.keys_of_jobs(bench.actions) == set()
    assert bench.publisher.keys == []
    assert bench.publisher.stuck
    assert sent(bench.link_up()) == [1]


def test_others_take_away_a_list_that_waits() -> None:
    bench = SlotsBench({FIRST: 3, SECOND: 2})
    bench.tell(FIRST)
    bench.publisher.lists_found({SECOND: 1})
    bench.publisher.lists_found({SECOND: 0})
    assert bench.count(Stat.FALLBACK_LENGTH) == 3
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 2
    bench.publisher.lists_found({FIRST: 0})  # the present one: it looks for itself
    assert bench.count(Stat.FALLBACK_LENGTH) == 3
    bench.publisher.lists_found({THIRD: 0})
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
    bench.publisher.lists_found({THIRD: 7})
    bench.publisher.set_lists(FIRST, lambda key: True)
    assert bench.publisher.keys == []
    assert not bench.publisher.lists_known
    assert bench.count(Stat.FALLBACK_LENGTH) == bench.count(Stat.FALLBACK_FOUND) == 0


@pytest.mark.parametrize("agreed", [True, False])
def test_who_was_not_asked_sends_again_what_it_has_stored_lately(agreed: bool) -> None:
    """The new primary may have taken over before it had them: the list goes with the
    data. What is older it has."""
    bench = SlotsBench()
    bench.tell(FIRST)
    bench.emit(2)
    bench.wait(module.STORE_AFTER)
    bench.wait(module.PUSHED_LATELY + 0.1)
    bench.emit(2)
    bench.wait(module.STORE_AFTER)
    assert bench.list.here[FIRST].numbers == [1, 2, 3, 4]
    bench.emit()
    bench.publisher.set_role(primary=False, loading=False, agreed=agreed)
    bench.settle()
    assert sent(bench.link_up()) == ([5] if agreed else [3, 4, 5])


def test_what_is_kept_of_what_was_stored_lately_is_bounded() -> None:
    bench = SlotsBench()
    bench.tell(FIRST)
    for _ in range(3):
        bench.emit(key=b"k" * (module.WINDOW_BYTES // 2))
        bench.wait(module.STORE_AFTER)
    bench.publisher.set_role(primary=False, loading=False)
    bench.settle()
    assert sent(bench.link_up()) == [3]


def test_another_list_is_delivered_though_the_key_at_home_is_none() -> None:
    bench = SlotsBench()
    bench.list.here[FIRST]._llen = lambda: WRONG_TYPE.reply  # type: ignore[method-assign]
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
    bench.wait(module.CHECK_EVERY)
    bench.publisher.flush(7, 2.0, Flush.STORE)
    assert flushed(bench.settle() + bench.wait(module.STORE_GRACE))


def test_without_a_slot_what_is_left_at_the_end_goes_to_a_file() -> None:
    """Also where there are no saves: the list would be lost, these need not."""
    bench = SlotsBench()
    bench.tell(None)
    bench.emit(2)
    bench.settle()
    bench.publisher.flush(7, 5.0, Flush.DRAIN)
    (done,) = flushed(bench.wait(5))
    assert [number_of(event) for event in done.left or ()] == [1, 2]


def test_stop_with_drain_delivers_all_lists() -> None:
    bench = SlotsBench({FIRST: 2, SECOND: 1})
    bench.publisher.connect()
    bench.tell(FIRST)
    bench.link_up()
    bench.publisher.flush(7, 5.0, Flush.DRAIN)
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


# What the broker will never take


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


def test_too_large_leaves_the_list_too() -> None:
    bench = away()
    bench.emit(1, key=b"k" * 1000)
    bench.emit(1)
    bench.wait(module.STORE_AFTER)
    bench.link_up()
    bench.publisher.too_large(500, body)
    bench.lose_link()
    assert sent(bench.link_up()) == [2]
    bench.ack(1)
    assert bench.stored == []
    assert bench.count(Stat.DROPPED_TOO_LARGE) == bench.count(Stat.CONFIRMED) == 1


# Saving and stopping


def test_a_save_stores_at_once_with_the_broker_away() -> None:
    bench = away()
    bench.emit(2)
    bench.publisher.flush(7, 2.0, Flush.STORE)
    assert flushed(bench.settle())
    assert bench.stored == [1, 2]


def test_a_save_waits_a_moment_for_the_broker_and_then_stores() -> None:
    bench = connected()
    bench.emit(2)
    bench.publisher.flush(7, 2.0, Flush.STORE)
    bench.settle()
    assert not flushed(bench.wait(module.STORE_GRACE - 0.001))
    assert bench.stored == []
    assert flushed(bench.wait(0.002))
    assert bench.stored == [1, 2]


def test_a_save_is_done_when_the_broker_has_it_all() -> None:
    bench = connected()
    bench.emit(2)
    bench.publisher.flush(7, 2.0, Flush.STORE)
    bench.settle()
    assert flushed(bench.ack(2, multiple=True))


def test_a_save_waits_for_events_that_were_not_taken_in_yet() -> None:
    bench = connected()
    bench.publisher.flush(7, 2.0, Flush.STORE)
    assert not flushed(bench.poll(more=True))
    assert flushed(bench.poll(more=False))


def test_a_save_gives_up_in_time_and_loses_nothing() -> None:
    bench = away()
    bench.list.trouble = PAUSED
    bench.emit(2)
    bench.publisher.flush(7, 2.0, Flush.STORE)
    assert bench.seconds_until(Flushed) <= 2.0
    assert bench.count(Stat.QUEUE_LENGTH) == 2


def test_stop_waits_for_confirms() -> None:
    bench = connected()
    bench.emit(2)
    bench.publisher.flush(7, 5.0, Flush.LEAVE)
    bench.settle()
    for tag in (1, 2):  # slow, but not silent
        assert not flushed(bench.actions)
        bench.now += module.STALLED_AFTER - 0.01
        bench.ack(tag)
    (done,) = flushed(bench.actions)
    assert done.left == []


def test_stop_leaves_the_list_to_whoever_keeps_it() -> None:
    bench = away(found=3)
    bench.publisher.flush(7, 5.0, Flush.LEAVE)
    assert flushed(bench.settle())
    assert len(bench.stored) == 3


def test_stop_with_drain_delivers_the_list() -> None:
    bench = connected(found=3)
    bench.publisher.flush(7, 5.0, Flush.DRAIN)
    assert not flushed(bench.settle())
    assert flushed(bench.ack(3, multiple=True))
    assert bench.stored == []


def test_stop_behind_a_list_that_is_not_sent_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The list goes first, and a file is a good place, unless nobody keeps it."""
    monkeypatch.setattr(module, "WINDOW", 2)
    for mode in (Flush.LEAVE, Flush.DRAIN):
        bench = connected(found=3)
        bench.emit()
        bench.publisher.flush(7, 5.0, mode)
        if mode is Flush.LEAVE:
            (done,) = flushed(bench.settle())
            assert [number_of(event) for event in done.left] == [4]
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
    bench.publisher.flush(7, 5.0, Flush.LEAVE)
    (done,) = flushed(bench.settle())
    assert [number_of(event) for event in done.left] == [2, 3]
    assert bench.stored == [1]
    assert bench.count(Stat.DROPPED_STOPPED) == 0


def test_nothing_is_left_that_the_broker_takes_in_time() -> None:
    bench = connected()
    bench.emit(2)
    bench.publisher.flush(7, 5.0, Flush.LEAVE)
    assert not flushed(bench.settle())
    bench.ack(1)
    (done,) = flushed(bench.ack(2))
    assert done.left == []


def test_what_a_silent_broker_does_not_confirm_is_left() -> None:
    bench = connected()
    bench.emit(2)
    bench.publisher.flush(7, 5.0, Flush.LEAVE)
    assert bench.seconds_until(Flushed) == pytest.approx(module.STALLED_AFTER, abs=0.02)
    (done,) = flushed(bench.actions)
    assert [number_of(event) for event in done.left] == [1, 2]


def test_with_the_list_off_nothing_is_left() -> None:
    bench = away(fallback_size=-1)
    bench.emit(2)
    bench.publisher.flush(7, 5.0, Flush.LEAVE)
    (done,) = flushed(bench.settle())
    assert done.left is None
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
    """The list, which is older, is not there yet."""
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
    bench.wait(module.STORE_AFTER)
    assert Recovered() in bench.settle() or Recovered() in bench.actions
    assert bench.stored == [1]


# After an exception


def test_repair_sends_again_what_was_sent() -> None:
    bench = connected()
    bench.emit(2)
    bench.settle()
    bench.lose_link()
    bench.publisher.repair(job_lost=False)
    bench.wait(1)
    assert sent(bench.link_up()) == [1, 2]


def test_repair_takes_back_what_a_job_would_have_stored() -> None:
    bench = away()
    bench.emit(2)
    bench.now += module.STORE_AFTER
    bench.poll()
    assert bench.job is not None
    bench.job = None
    bench.publisher.repair(job_lost=True)
    bench.wait(1)
    assert bench.stored == [1, 2]


# Counters and time


def test_reset_stats_keeps_the_books() -> None:
    bench = connected(found=3)
    bench.emit(4)
    bench.settle()
    bench.ack(4, multiple=True)
    bench.publisher.reset_stats()
    assert_books_balance(bench.publisher)
    assert bench.count(Stat.CONFIRMED) == bench.count(Stat.PUBLISHED) == 0
    assert bench.count(Stat.EVENTS_MATCHED) == 3
    bench.ack(7, multiple=True)
    assert bench.count(Stat.CONFIRMED) == 3


def test_at_rest_it_looks_at_the_list_once_a_second_and_sleeps() -> None:
    bench = connected()
    bench.emit()
    bench.settle()
    bench.ack(1)
    assert bench.seconds_until(Submit) == pytest.approx(module.CHECK_EVERY, abs=0.011)


def test_room_is_bounded_unless_events_can_only_wait() -> None:
    bench = connected()
    bench.emit(module.WINDOW + 10)
    bench.settle()
    assert bench.publisher.room() == 2 * module.JOB_ELEMENTS - 10
    bench.emit(1, key=b"k" * module.WINDOW_BYTES)
    assert bench.publisher.room() == 0
    bench = away(fallback_size=-1)
    bench.emit(3 * module.JOB_ELEMENTS)
    assert bench.publisher.room() == module.JOB_ELEMENTS


# ---- worlds in which anything may happen at any time -----------------------


class Connection:
    """As the broker sees it. Tags count from 1 in the order of sending."""

    def __init__(self) -> None:
        self.sent: list[Event] = []
        self.on_the_way: list[int] = []  # tags that have not arrived yet
        self.unanswered: list[int] = []  # tags that have
        self.nacked = False


class SimulatedBroker:
    """A broker that the world makes accept, answer, refuse, and disappear."""

    def __init__(self, *, accepts: bool) -> None:
        self.accepts = accepts  # connections
        self.silent = False
        self.opening = False
        self.connection: Connection | None = None
        self.largest = 10**9  # bytes of a key: a larger one costs the channel
        self.arrives_at_loss = 0.0  # of what is on the way when a link goes
        self.received: dict[int, None] = {}  # numbers of events, in order of arrival
        self.confirmed: set[int] = set()

    def connect(self) -> None:
        assert not self.opening
        assert self.connection is None, "a second connection"
        self.opening = True

    def send(self, send: Send) -> None:
        connection = self.connection
        assert connection is not None, "sent without a connection"
        assert send.first_tag == len(connection.sent) + 1, "the tags do not continue"
        assert 0 < len(send.events) <= module.SEND_CHUNK
        connection.on_the_way += range(send.first_tag, send.first_tag + len(send.events))
        connection.sent += send.events

    def lose(self) -> None:
        """The link goes. Some of what was on the way has arrived, but no answer."""
        if self.connection is not None:
            self.arrive(int((len(self.connection.on_the_way) + 1) * self.arrives_at_loss))
        self.connection = None
        self.opening = False

    def arrive(self, count: int) -> bool:
        """Lets so many messages arrive. False: one was too large."""
        assert self.connection is not None
        connection = self.connection
        for _ in range(min(count, len(connection.on_the_way))):
            tag = connection.on_the_way.pop(0)
            event = connection.sent[tag - 1]
            if len(event.key) > self.largest:
                return False
            self.received.setdefault(number_of(event))
            connection.unanswered.append(tag)
        return True

    def answer(self, place: int, *, multiple: bool, ack: bool) -> int:
        """Takes the answered tags off the books of the broker; the answer's tag."""
        assert self.connection is not None
        connection = self.connection
        tag = sorted(connection.unanswered)[place % len(connection.unanswered)]
        answered = [t for t in connection.unanswered if t == tag or (multiple and t < tag)]
        connection.unanswered = [t for t in connection.unanswered if t not in answered]
        connection.nacked |= not ack
        if ack:
            self.confirmed |= {number_of(connection.sent[t - 1]) for t in answered}
        return tag


class World:
    """A publisher between a list and a broker; the worker's part is done here.

    A step is one thing that happens, and then the publisher's turn. `steps` says
    which there are and how often; each makes its choices with the random numbers
    that it is given.
    """

    # Nothing that happens is a reason to lose an event, or to pass by the list:
    # the broker must hear of all events, in their order.
    lossless = False
    shared = False  # others change the list
    fallback_sizes: Sequence[int] = (0, 0, 10**6)
    memory: int | None = None  # bytes; more waits outside only until it is dropped
    troubles: Sequence[Trouble | None] = (None, None, None, CLUSTER_DOWN, PAUSED)

    def __init__(self, chance: random.Random) -> None:
        self.now = 1000.0
        self.list = self.make_list()
        self.broker = SimulatedBroker(accepts=chance.random() < 0.8)
        size = chance.choice(self.fallback_sizes)
        self.config = dataclasses.replace(DEFAULTS, fallback_size=size)
        self.publisher = self.make_publisher(chance)
        self.born: set[int] = set()  # numbers of all events there ever were
        self.outside: collections.deque[Event] = collections.deque()
        self.risked_by_others = 0
        self.job: Job | None = None
        self.job_keep = 0
        self.result: JobResult | None = None
        self.wanted = True
        self.open_purges = 0
        self.fails_at_once = False
        self.flush_id = 0
        self.flush_until: float | None = None  # of the one that is not done
        self.stopped = False
        self.twice = False
        self.cut = 0  # elements that fell off the list in the last job
        self.left: set[int] = set()
        self.recovered: set[int] | None = None  # leftovers that are not safe yet
        self.most: int | None = None  # messages in a turn
        if chance.random() < 0.3:
            count = chance.randrange(60)
            self.list.elements = [to_element(self.new_event()) for _ in range(count)]
        if chance.random() < 0.3:
            events = [self.new_event() for _ in range(chance.randint(1, 60))]
            self.recovered = {number_of(event) for event in events}
            self.publisher.recover(events)
        self.publisher.set_role(primary=True, loading=False)

    def make_list(self) -> SimulatedList:
        return SimulatedList()

    def make_publisher(self, chance: random.Random) -> Watched:
        return Watched(self.config, lambda: self.now, lambda: wall_at(self.now), chance.random)

    def new_event(self, key: bytes = b"k") -> Event:
        number = len(self.born) + 1
        self.born.add(number)
        return event_of(number, key)

    def step(self, chance: random.Random) -> None:
        steps = self.steps()
        (happen,) = chance.choices(list(steps), weights=list(steps.values()))
        note(f"{self.now:.4f} {happen.__name__}")
        happen(chance)
        self.check()
        self.turn()
        while self.publisher.again and chance.random() < 0.7:
            self.turn()

    def steps(self) -> dict[Step, int]:
        return {
            self.time_passes: 20,
            self.events_come: 15,
            self.main_thread_runs_the_job: 20,
            self.worker_gets_the_result: 10,
            self.broker_does_something: 30,
            self.broker_changes_its_mind: 2,
            self.link_is_lost: 2,
            self.broker_blocks: 2,
            self.pressure_changes: 2,
            self.redis_lacks_processors: 2,
            self.somebody_connects_or_disconnects: 2,
            self.somebody_configures: 1,
            self.connections_fail_at_once: 1,
            self.broker_says_something_odd: 1,
            self.redis_saves: 2,
            self.handler_fails: 1,
            self.list_is_in_trouble: 2,
        }

    # The worker's part

    def turn(self) -> list[Action]:
        self.take_events()
        actions = self.publisher.poll(more=bool(self.outside), most=self.most)
        for action in actions:
            note(f"    {action}")
            self.carry_out(action)
        self.check()
        if self.flush_until is not None:
            assert self.now < self.flush_until, "a flush takes longer than it may"
        return actions

    def take_events(self) -> None:
        publisher = self.publisher
        while not self.stopped:
            room = publisher.room()
            if self.memory is not None and (room <= 0 or publisher.stuck):
                inside = publisher.gauges()[Stat.QUEUE_BYTES]
                over = inside + sum(Entry(event, 0).size for event in self.outside) - self.memory
                if over >= 0 and publisher.drop_oldest(over + 1):
                    continue
            if room <= 0 or not self.outside:
                return
            count = min(room, len(self.outside))
            publisher.add([self.outside.popleft() for _ in range(count)])

    def carry_out(self, action: Action) -> None:
        match action:
            case Send():
                self.check_order(action)
                self.broker.send(action)
            case Connect() if self.fails_at_once:
                self.publisher.link_down("cannot connect")
            case Connect():
                self.broker.connect()
            case Close():
                self.broker.lose()
            case Submit(job=job):
                assert self.job is None, "two jobs at once"
                assert self.result is None, "two jobs at once"
                self.job, self.job_keep = job, self.config.fallback_size
            case Flushed(id=flush_id, mode=mode, left=left):
                assert flush_id == self.flush_id
                self.flush_until = None
                self.stopped = mode is not Flush.STORE
                self.left = {number_of(event) for event in left or ()}
            case Recovered():
                assert self.recovered is not None
                kept = {number_of(entry.event) for entry in self.in_memory() if entry.event}
                assert not self.recovered & kept, "not safe yet"
                self.recovered = None

    # What must always hold

    def check_order(self, send: Send) -> None:
        """On one connection older follows newer only after a nack."""
        connection = self.broker.connection
        if self.lossless and not self.twice and connection and not connection.nacked:
            numbers = [number_of(event) for event in (*connection.sent[-1:], *send.events)]
            assert numbers == sorted(set(numbers))

    def check(self) -> None:
        assert_books_balance(self.publisher)
        self.check_gauges()
        if self.result is None:  # else what it changed is not booked yet
            self.check_nothing_lost()
            self.check_known_elements()

    def in_memory(self) -> list[module.Entry]:
        publisher = self.publisher
        entries = itertools.chain(publisher._storing, publisher._sent, publisher._waiting)
        return [entry for entry in entries if entry.state is not State.DONE]

    def check_gauges(self) -> None:
        publisher, gauges, entries = self.publisher, self.publisher.gauges(), self.in_memory()
        waiting = [entry for entry in entries if entry.state is not State.SENT]
        assert gauges[Stat.QUEUE_LENGTH] == len(waiting)
        assert gauges[Stat.QUEUE_BYTES] == sum(entry.size for entry in waiting)
        assert gauges[Stat.IN_FLIGHT] == len(entries) - len(waiting)
        window = publisher._in_window()
        assert publisher._bytes_in_flight == sum(entry.size for entry in window)
        assert publisher._unconfirmed == len(window) <= module.WINDOW
        assert all(entry.state is State.SENT for entry in window)
        done = [entry for entry in publisher._listed_sent if entry.state is State.DONE]
        done += [entry for entry in publisher._listed_waiting if entry.state is State.DONE]
        assert publisher._listed_done == len(done)
        assert publisher._listed_done_bytes == sum(entry.size for entry in done)

    def check_nothing_lost(self) -> None:
        there = {number_of(entry.event) for entry in self.in_memory() if entry.event}
        there.update(number_of(event) for event in self.outside)
        there.update(self.left)
        there.update(number for number in self.list.numbers if number is not None)
        self.check_missing(self.born - there - self.broker.received.keys())
        if self.lossless:
            assert dropped_of(self.publisher) == 0

    def check_missing(self, missing: set[int]) -> None:
        assert len(missing) <= dropped_of(self.publisher) + self.risked_by_others

    def check_known_elements(self) -> None:
        """Those that the publisher knows are the list's first, in its order."""
        publisher = self.publisher
        known = [entry.element for entry in (*publisher._listed_sent, *publisher._listed_waiting)]
        assert self.shared or known == self.list.elements[: len(known)]

    # What may happen

    def time_passes(self, chance: random.Random) -> None:
        at = self.publisher.wake_at()
        if at is not None and chance.random() < 0.5:
            self.now = max(self.now, at)
        else:
            self.now += chance.choice([0.0001, 0.001, 0.01, 0.06, 0.3, 1.1])
        if self.flush_until is not None:  # the worker would have woken before
            self.now = min(self.now, self.flush_until - 0.001)

    def events_come(self, chance: random.Random) -> None:
        self.outside.extend(self.new_event() for _ in range(chance.choice([1, 1, 3, 10])))

    def main_thread_runs_the_job(self, chance: random.Random) -> None:
        self.run_job()
        if chance.random() < 0.7:
            self.deliver_result()

    def run_job(self) -> bool:
        if self.job is None:
            return False
        before = self.list.elements[:]
        job, self.job = self.job, None
        self.result = self.list.run(job)
        names = [command.name for command in job.commands if isinstance(command, Command)]
        self.cut = 0
        if "RPUSH" in names:
            pushed = len(self.list.elements) - len(before)
            self.cut = len(set(before) - set(self.list.elements)) + max(0, -pushed)
            assert len(self.list.elements) - len(before) <= module.JOB_ELEMENTS
            if self.job_keep > 0 and self.result.reply(1) == b"OK":
                assert len(self.list.elements) <= self.job_keep
        if "UNLINK" in names:
            self.cut = len(set(before) - set(self.list.elements))
        if names[:2] == ["LRANGE", "LTRIM"] and not self.shared:
            trimmed = set(map(number_in, before)) - {None, *self.list.numbers}
            dropped = self.publisher.counts[Stat.DROPPED_TOO_LARGE]
            assert len(trimmed - self.broker.confirmed) <= dropped, "trimmed, not confirmed"
        return True

    def worker_gets_the_result(self, _chance: random.Random) -> None:
        self.deliver_result()

    def deliver_result(self) -> bool:
        if self.result is None:
            return False
        result, self.result = self.result, None
        self.publisher.job_done(result)
        return True

    def broker_does_something(self, chance: random.Random) -> None:
        """It opens a connection or refuses to; messages arrive; it answers one or
        many, in any order."""
        broker = self.broker
        if broker.silent:
            return
        if broker.opening:
            self.open_link(accept=broker.accepts)
            return
        if broker.connection is None:
            return
        self.arrive(chance.randint(0, len(broker.connection.on_the_way)))
        if broker.connection is not None and broker.connection.unanswered:
            self.answer(
                chance.randrange(len(broker.connection.unanswered)),
                multiple=chance.random() < 0.4,
                ack=chance.random() < 0.85,
            )

    def open_link(self, *, accept: bool) -> bool:
        if not self.broker.opening:
            return False
        self.broker.opening = False
        if accept:
            self.broker.connection = Connection()
            self.publisher.link_up()
        else:
            self.publisher.link_down("refused")
        return True

    def arrive(self, count: int) -> None:
        if not self.broker.arrive(count):
            self.broker.lose()
            self.publisher.too_large(self.broker.largest + 100, body)
            self.publisher.link_down("406 PRECONDITION_FAILED")

    def answer(self, place: int, *, multiple: bool, ack: bool) -> None:
        tag = self.broker.answer(place, multiple=multiple, ack=ack)
        (self.publisher.acked if ack else self.publisher.nacked)(tag, multiple)

    def answer_all(self) -> bool:
        """Everything arrives and is confirmed."""
        if self.broker.connection is None:
            return False
        self.arrive(10**9)
        answered = False
        while self.broker.connection is not None and self.broker.connection.unanswered:
            self.answer(0, multiple=False, ack=True)
            answered = True
        return answered

    def broker_changes_its_mind(self, chance: random.Random) -> None:
        self.broker.accepts = chance.random() < 0.8
        self.broker.silent = chance.random() < 0.2
        if not self.broker.accepts:
            self.link_is_lost(chance)

    def redis_lacks_processors(self, chance: random.Random) -> None:
        self.most = chance.choice([None, None, 0, 1, 7])

    def link_is_lost(self, chance: random.Random) -> None:
        if self.broker.connection is not None or self.broker.opening:
            self.broker.arrives_at_loss = chance.random()
            self.broker.lose()
            self.publisher.link_down("lost")

    def broker_blocks(self, chance: random.Random) -> None:
        if self.broker.connection is not None:
            if chance.random() < 0.4:
                self.publisher.link_blocked("low on memory")
            else:
                self.publisher.link_unblocked()

    def pressure_changes(self, chance: random.Random) -> None:
        self.publisher.set_pressure(chance.random() < 0.3)

    def somebody_connects_or_disconnects(self, chance: random.Random) -> None:
        match chance.randrange(10):
            case 0 | 1:
                self.wanted = False
                self.publisher.disconnect()
            case 2 | 3:
                self.publisher.drain()
            case _:
                self.wanted = True
                self.publisher.connect()

    def somebody_configures(self, chance: random.Random) -> None:
        name = chance.choice(["host", "port", "username", "password", "heartbeat"])
        number = chance.randrange(1, 9)
        self.configure(**{name: number if name in ("port", "heartbeat") else f"x{number}"})

    def configure(self, **parameters: Any) -> None:
        self.config = dataclasses.replace(self.config, **parameters)
        self.publisher.configure(self.config)

    def connections_fail_at_once(self, chance: random.Random) -> None:
        """Before pika has even begun, for a while."""
        self.fails_at_once = chance.random() < 0.5

    def broker_says_something_odd(self, chance: random.Random) -> None:
        """A message that reaches no queue, or an answer to one that nobody waits for."""
        connection = self.broker.connection
        if connection is None:
            return
        tag = len(connection.sent) + 1
        match chance.randrange(3):
            case 0:
                self.publisher.returned()
            case 1:
                self.publisher.acked(tag, False)
            case 2:
                self.publisher.nacked(tag, False)

    def somebody_resets_the_counters(self, _chance: random.Random) -> None:
        self.publisher.reset_stats()

    def redis_saves(self, _chance: random.Random) -> None:
        self.flush(2.0, Flush.STORE)

    def flush(self, seconds: float, mode: Flush) -> None:
        self.flush_id += 1
        self.flush_until = self.now + seconds
        self.publisher.flush(self.flush_id, seconds, mode)

    def handler_fails(self, chance: random.Random) -> None:
        """An exception, and what the worker does then."""
        job_lost = chance.random() < 0.5
        if job_lost:
            if self.result is not None:
                self.risked_by_others += self.cut  # the result would have told
            self.job = self.result = None
            self.twice = True  # a push that was done is done again
        self.broker.arrives_at_loss = chance.random()
        self.broker.lose()
        self.publisher.link_down("unexpected exception")
        self.publisher.repair(job_lost=job_lost)

    def list_is_in_trouble(self, chance: random.Random) -> None:
        self.list.trouble = chance.choice(self.troubles)

    def set_role(self, *, primary: bool, loading: bool) -> None:
        self.list.writable = primary and not loading
        self.publisher.set_role(primary=primary, loading=loading)

    # How it ends

    def at_rest(self) -> bool:
        gauges = self.publisher.gauges()
        waiting = self.outside or self.list.elements or self.job or self.result
        return not waiting and not any(gauges.values()) and not self.open_purges

    def heal(self) -> None:
        """All is well again: everything must be delivered, without a push from
        outside and without spinning."""
        self.list.trouble = None
        self.fails_at_once = False
        self.set_role(primary=True, loading=False)
        self.publisher.set_pressure(False)
        self.most = None
        self.publisher.link_unblocked()
        if not self.wanted:
            self.publisher.connect()
        self.live(until=self.at_rest)
        self.check_missing(self.born - self.broker.received.keys())
        if self.lossless:
            assert list(self.broker.received) == sorted(self.born)

        start, turns = self.now, itertools.count()
        self.live(until=lambda: self.now > start + 10 or next(turns) > 100)
        assert self.now > start + 10, "busy at rest"

    def live(self, until: Callable[[], bool]) -> None:
        """Lets time pass as the worker does, in a world that answers at once."""
        idle = 0
        for _ in range(10_000):
            actions = [action for action in self.turn() if not isinstance(action, Log)]
            if until():
                return
            events = (
                self.run_job(),
                self.deliver_result(),
                self.open_link(accept=True),
                self.answer_all(),
            )
            if actions or any(events) or self.publisher.again:
                idle = 0
                continue
            at = self.publisher.wake_at()
            assert at is not None, "stuck: it would sleep for ever"
            idle = idle + 1 if at < self.now + 0.02 else 0
            assert idle < 250, "spins"
            self.now = max(self.now, at)
        raise AssertionError("not delivered")

    def stop(self, chance: random.Random) -> None:
        """Memory must be empty in time, and the books say where it went. Redis and
        the broker may be slow, or do nothing at all."""
        seconds = 5.0
        self.lossless = False
        pace = [chance.choice([0, 0.3, 0.8]) for _ in range(4)]
        self.flush(seconds, chance.choice([Flush.LEAVE, Flush.DRAIN]))
        for _ in range(10_000):
            self.turn()
            if self.stopped:
                break
            if chance.random() < pace[0]:
                self.run_job()
            if chance.random() < pace[1]:
                self.deliver_result()
            if chance.random() < pace[2]:
                self.open_link(accept=chance.random() < 0.8)
            if chance.random() < pace[3]:
                self.answer_all()
            if not self.publisher.again:
                self.now += 0.01
        assert self.stopped
        gauges = self.publisher.gauges()
        assert gauges[Stat.QUEUE_LENGTH] == gauges[Stat.IN_FLIGHT] == 0
        assert not self.in_memory()
        if self.result is None:  # else what it changed is not booked
            self.check_nothing_lost()


class LosslessWorld(World):
    """Only the broker, the pace and the reach of the list are bad."""

    lossless = True

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.somebody_resets_the_counters: 1}


class ClusterWorld(World):
    """The node is demoted and promoted, loads a data set, and its slot moves."""

    troubles = (None, None, None, CLUSTER_DOWN, NOT_SERVED)

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.role_changes: 3}

    def role_changes(self, chance: random.Random) -> None:
        self.set_role(primary=chance.random() < 0.6, loading=chance.random() < 0.3)


class NarrowWorld(World):
    """A list with a cap or none at all, little memory, events too large."""

    fallback_sizes = (5, 15, 60, -1)
    memory = 30 * Entry(event_of(1), 0).size
    troubles = (None, None, None, CLUSTER_DOWN, PAUSED, WRONG_TYPE)

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.broker.largest = 100

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.cap_changes: 1, self.giants_come: 1}

    def cap_changes(self, chance: random.Random) -> None:
        self.configure(fallback_size=chance.choice([*self.fallback_sizes, 0]))

    def giants_come(self, chance: random.Random) -> None:
        self.outside.extend(self.new_event(b"k" * 1000) for _ in range(chance.choice([1, 3])))


class ImportWorld(World):
    """Elements of another list are put to the end of ours, by jobs of their own."""

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.somebody_imports: 3}

    def somebody_imports(self, chance: random.Random) -> None:
        if self.result is not None or self.list.trouble is not None:
            return
        count = chance.choice([1, 3, 10])
        self.list.elements += [to_element(self.new_event()) for _ in range(count)]
        length = len(self.list.elements)
        if chance.random() < 0.5:
            self.run_job()  # its result comes behind that of the import
        self.publisher.imported(KEY, length, count)

    def check(self) -> None:
        super().check()
        assert dropped_of(self.publisher) == 0 or self.stopped


class SharedWorld(World):
    """Others change the list too."""

    shared = True
    fallback_sizes = (0, 0, 15)
    troubles = (None, None, None, CLUSTER_DOWN, NOT_SERVED, WRONG_TYPE)

    def steps(self) -> dict[Step, int]:
        return super().steps() | {self.somebody_changes_the_list: 3, self.somebody_purges: 1}

    def somebody_changes_the_list(self, chance: random.Random) -> None:
        elements = self.list.elements
        before = set(elements)
        place = chance.randint(0, len(elements))
        match chance.randrange(7):
            case 0:
                del elements[:place]
            case 1:
                del elements[place:]
            case 2:
                elements.clear()
                self.publisher.touched(chance.choice([b"flushdb", b"evicted", b"del"]))
            case 3:
                elements += [to_element(self.new_event()) for _ in range(place)]
            case 4:
                elements.insert(place, to_element(self.new_event()))
            case 5:
                elements[place : place + 1] = [to_element(self.new_event())]
            case 6:
                elements.insert(place, b"junk")
        self.risked_by_others += len(before - set(elements))

    def somebody_purges(self, _chance: random.Random) -> None:
        def done(_outcome: int | JobError) -> None:
            self.open_purges -= 1

        self.open_purges += 1
        self.publisher.purge(done)


class SlotsWorld(World):
    """Slots come and go, with their lists. What goes with a slot is not lost, and what
    stays keeps its order."""

    troubles = (None, None, CLUSTER_DOWN, PAUSED)
    list: SimulatedSlots

    def __init__(self, chance: random.Random) -> None:
        # What the publisher was told last; and the topology as it was read last.
        self.told: frozenset[bytes] = frozenset()
        self.read: tuple[frozenset[bytes], frozenset[bytes]] = (frozenset(), frozenset())
        self.looks_later = False  # a job from before a change of role comes first
        self.foreign: dict[int, int] = {}  # events of other nodes: which list they came in
        self.taken: set[int] = set()  # events that were in the hands of others
        self.stopping = False
        super().__init__(chance)

    def make_list(self) -> SimulatedSlots:
        return SimulatedSlots()

    def make_publisher(self, chance: random.Random) -> Watched:
        return WatchedSlots(self, chance)

    def steps(self) -> dict[Step, int]:
        return super().steps() | {
            self.role_changes: 1,
            self.topology_is_read: 6,
            self.lists_are_looked_at: 8,
            self.slot_begins_to_migrate: 2,
            self.list_moves: 2,
            self.migration_is_taken_back: 1,
            self.slot_leaves: 2,
            self.slot_arrives: 3,
        }

    # The watch's part

    def tell_lists(self, *, now: bool) -> None:
        """What has been read of the topology, a moment ago or just now, and what is in its
        slots now."""
        if self.result is not None or self.looks_later:
            return
        if now:
            self.read = frozenset(self.list.served), frozenset(self.list.migrating)
        served, migrating = self.read
        for key in set(self.publisher.keys) - served:
            # It was away for a moment at least; what is on its way to it is as well.
            self.take(key)
            storing = (entry.event for entry in self.publisher._storing)
            self.taken |= {number_of(event) for event in storing if event is not None}
        there = {key: len(self.list.here[key].elements) for key in served}
        self.publisher.lists_found({key: length for key, length in there.items() if length})
        if self.publisher.writable:
            self.told = served
        home = max(served - migrating or served, default=None)
        self.publisher.set_lists(home, served.__contains__)

    def topology_is_read(self, _chance: random.Random) -> None:
        self.read = frozenset(self.list.served), frozenset(self.list.migrating)

    def lists_are_looked_at(self, chance: random.Random) -> None:
        self.tell_lists(now=chance.random() < 0.5)

    def deliver_result(self) -> bool:
        delivered = super().deliver_result()
        self.looks_later = self.looks_later and self.job is not None
        return delivered

    def handler_fails(self, chance: random.Random) -> None:
        super().handler_fails(chance)
        self.looks_later = self.looks_later and (self.job or self.result) is not None

    # What must always hold

    def carry_out(self, action: Action) -> None:
        super().carry_out(action)
        if isinstance(action, Submit):
            commands = [c for c in action.job.commands if isinstance(c, Command)]
            assert {command.arguments[0] for command in commands} <= self.told

    def check_order(self, send: Send) -> None:
        """Of events that came the same way: from this node, or in one list. Those that were
        in flight when a list arrived stand behind it, and go once more."""
        connection = self.broker.connection
        if self.twice or connection is None or connection.nacked:
            return
        streams: dict[int, list[int]] = collections.defaultdict(list)
        for number in dict.fromkeys(map(number_of, (*connection.sent, *send.events))):
            if number not in self.taken:
                streams[self.foreign.get(number, 0)].append(number)
        for numbers in streams.values():
            assert numbers == sorted(numbers)

    def check(self) -> None:
        super().check()
        assert self.stopping or dropped_of(self.publisher) == 0

    def check_missing(self, missing: set[int]) -> None:
        super().check_missing(missing - self.list.elsewhere)

    def check_known_elements(self) -> None:
        publisher = self.publisher
        known = [entry.element for entry in (*publisher._listed_sent, *publisher._listed_waiting)]
        if publisher.key is None:
            assert known == []
        elif self.list._has(publisher.key):
            # Else it is not known yet that they are gone.
            there = self.list.here[publisher.key].elements
            returned = {number_in(element) for element in there} & self.taken
            assert returned or known == there[: len(known)]

    # What may happen

    def set_role(self, *, primary: bool, loading: bool) -> None:
        if not (primary and not loading):
            for key in self.list.KEYS:
                self.take(key)
        self.looks_later = (self.job or self.result) is not None
        super().set_role(primary=primary, loading=loading)

    def role_changes(self, chance: random.Random) -> None:
        self.set_role(primary=chance.random() < 0.6, loading=chance.random() < 0.3)

    def take(self, key: bytes) -> None:
        self.taken |= {number for number in self.list.here[key].numbers if number is not None}

    def slot_begins_to_migrate(self, chance: random.Random) -> None:
        self.list.migrating.add(chance.choice(self.list.KEYS))
        self.list.migrating &= self.list.served

    def list_moves(self, chance: random.Random) -> None:
        if self.list.migrating:
            self.move(chance.choice(sorted(self.list.migrating)))

    def move(self, key: bytes) -> None:
        self.take(key)
        self.list.away.setdefault(key, []).extend(self.list.here[key].elements)
        self.list.here[key].elements = []

    def migration_is_taken_back(self, chance: random.Random) -> None:
        if self.list.migrating:
            key = chance.choice(sorted(self.list.migrating))
            self.list.here[key].elements[:0] = self.list.away.pop(key, [])
            self.list.migrating.discard(key)

    def slot_leaves(self, chance: random.Random) -> None:
        """All of them, at times."""
        keys = sorted(self.list.served)
        for key in keys if chance.random() < 0.1 else keys and [chance.choice(keys)]:
            self.move(key)
            self.list.served.discard(key)
            self.list.migrating.discard(key)

    def slot_arrives(self, chance: random.Random) -> None:
        """With what the other node has left of its list, and with its own events. Within
        the second in which nobody here notices that it was away it has delivered nothing:
        else it would look as if somebody had removed that."""
        absent = sorted(set(self.list.KEYS) - self.list.served)
        if not absent:
            return
        key = chance.choice(absent)
        elements = self.list.away.pop(key, [])
        count = 0 if key in self.publisher.keys else chance.randint(0, len(elements))
        self.list.delivered += elements[:count]
        theirs = [self.new_event() for _ in range(chance.choice([0, 1, 20]))]
        stream = len(self.foreign) + 1
        self.foreign |= {number_of(event): stream for event in theirs}
        self.list.here[key].elements = [*elements[count:], *map(to_element, theirs)]
        self.list.served.add(key)

    # How it ends

    def heal(self) -> None:
        """The slots that are here stay, and if there are none one comes."""
        self.list.migrating.clear()
        for key in self.list.away.keys() & self.list.served:
            self.list.here[key].elements[:0] = self.list.away.pop(key)
        if not self.list.served:
            self.slot_arrives(random.Random(0))
        while self.job or self.result or self.looks_later:
            self.run_job()
            self.deliver_result()
        self.set_role(primary=True, loading=False)
        self.tell_lists(now=True)
        super().heal()

    def stop(self, chance: random.Random) -> None:
        self.stopping = True
        super().stop(chance)


class WatchedSlots(Watched):
    """Told by its world what is there, as soon as there is a moment for it."""

    def __init__(self, world: SlotsWorld, chance: random.Random) -> None:
        super().__init__(world.config, lambda: world.now, lambda: wall_at(world.now), chance.random)
        self._world = world

    def tell_lists(self) -> None:
        self._world.tell_lists(now=True)


# Small, so that they are met often.
LIMITS = {"WINDOW": [4, 20], "SEND_CHUNK": [2, 7], "JOB_ELEMENTS": [8, 40]}

# A number for each step: so hypothesis can leave out steps to find a short story.
stories = st.integers(0, 300).flatmap(
    lambda count: st.lists(st.integers(0, 2**32), min_size=count, max_size=count)
)


@pytest.mark.parametrize(
    "kind", [LosslessWorld, ClusterWorld, NarrowWorld, ImportWorld, SharedWorld, SlotsWorld]
)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), story=stories)
def test_world(kind: type[World], seed: int, story: list[int]) -> None:
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        for name, values in LIMITS.items():
            patch.setattr(module, name, chance.choice(values))
        world = kind(chance)
        world.turn()
        for number in story:
            world.step(random.Random(number))
        if chance.random() < 0.7:
            world.heal()
        else:
            world.stop(chance)
