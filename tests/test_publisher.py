"""The state machine between events, the broker and the list, with a fake clock.

First the rules, one example each; then all of them at once: worlds in which
hypothesis lets anything happen at any time, and after each step nothing may be
lost that is not counted. `pytest -k "not World"` runs the examples only.
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
from collections.abc import Callable, Iterable

from keyspace_amqp.config import Config
from keyspace_amqp.fallback import Command, Job, JobResult
from keyspace_amqp.message import Event, from_element, to_element
from keyspace_amqp.publisher import (
    Action,
    Log,
    Publisher,
    Send,
    Submit,
)
from keyspace_amqp.stats import FIRST_REASON, Stat

Reply = tuple[bytes | None, int]

DEFAULTS = Config("xe", "127.0.0.1", 5672, "guest", "guest")


def event_of(number: int, key: bytes = b"k") -> Event:
    return Event(f"t-{number}", 1_700_000_000_000, 0, "g", b"del", key)


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
        _key, *arguments = command.arguments
        run: Callable[..., bytes] = getattr(self, "_" + command.name.lower())
        return run(*arguments), 0

    def _rpush(self, *elements: bytes) -> bytes:
        self.elements += elements
        return self._llen()

    def _llen(self) -> bytes:
        return b":%d\r\n" % len(self.elements)

    def _lindex(self, index: bytes) -> bytes:
        at = int(index)
        return bulk(self.elements[at]) if at < len(self.elements) else b"$-1\r\n"

    def _lrange(self, first: bytes, last: bytes) -> bytes:
        found = self.elements[int(first) : int(last) + 1]
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


# ---- examples --------------------------------------------------------------


class Bench:
    """A publisher with a clock that only tests move, and with its list. The broker
    is the test itself. Events are numbered from 1; `found` of them are in the
    list at the start."""

    def __init__(
        self, *, found: int = 0, jitter: float = 1.0, primary: bool = True, **parameters: int | str
    ) -> None:
        self.now = 1000.0
        self.numbers = itertools.count(1)
        self.list = SimulatedList()
        self.list.writable = primary
        self.list.elements = [to_element(event_of(next(self.numbers))) for _ in range(found)]
        self.config = dataclasses.replace(DEFAULTS, **parameters)  # type: ignore[arg-type]
        self.publisher = Publisher(self.config, lambda: self.now, lambda: jitter)
        self.publisher.set_role(primary=primary, loading=False)
        self.job: Job | None = None
        self.actions: list[Action] = []  # all so far

    # The world's side

    def emit(self, count: int = 1, key: bytes = b"k") -> None:
        self.publisher.add([event_of(next(self.numbers), key) for _ in range(count)])

    def poll(self, *, more: bool = False) -> list[Action]:
        assert_books_balance(self.publisher)
        actions = self.publisher.poll(more=more)
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
        return (list(self.publisher.counts) | self.publisher.gauges())[stat]

    @property
    def stored(self) -> list[int | None]:
        return self.list.numbers


def of(kind: type[Action], actions: Iterable[Action]) -> list[Action]:
    return [action for action in actions if isinstance(action, kind)]


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


def warnings(actions: Iterable[Action]) -> list[str]:
    return [action.text for action in actions if isinstance(action, Log)]
