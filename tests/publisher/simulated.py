"""A simulated list and broker, events that have numbers, and the check of the books.

For the examples (bench.py) and for the worlds (worlds.py).
"""

from __future__ import annotations

import dataclasses
import errno
import functools
import itertools
import random
from collections.abc import Callable, Iterable, Sequence

import pytest

from keyspace_amqp.cluster.watch import READ_AGAIN
from keyspace_amqp.fallback import from_element
from keyspace_amqp.jobs import Command, Job, JobResult, Lengths
from keyspace_amqp.message import Event
from keyspace_amqp.publisher import (
    delivery,
    fallback_list,
    list_jobs,
    memory,
    outbox,
    publisher,
    recent,
    retries,
    storing,
    suspects,
    window,
)
from keyspace_amqp.publisher.actions import Action
from keyspace_amqp.publisher.publisher import Publisher
from keyspace_amqp.tables.keys import KEY, REFUSED_SUFFIX, SUFFIX, refused_key
from keyspace_amqp.tables.stats import FIRST_REASON, Stat

Reply = tuple[bytes | None, int]
Step = Callable[[random.Random], None]


# Unix time in milliseconds when a test begins, at 1000 seconds of its clock.
BEGIN_MS = 1_700_000_000_000


def wall_at(now: float) -> int:
    return BEGIN_MS + round((now - 1000) * 1000)


def event_of(number: int, key: bytes = b"k") -> Event:
    return Event(f"t-{number}", BEGIN_MS, number, "g", b"del", key)


def number_of(event: Event) -> int:
    return event.db


@functools.cache
def number_in(element: bytes) -> int | None:
    """The number of the event in an element of the list; None: it is not an event."""
    event = from_element(element)
    return None if event is None else number_of(event)


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


_LIMITED = (
    delivery, fallback_list, list_jobs, memory, outbox, publisher, recent, retries, storing,
    suspects, window,
)  # fmt: skip


def set_limit(patch: pytest.MonkeyPatch, name: str, value: int) -> None:
    """Sets a limit of the publisher in all its files that know it."""
    files = [file for file in _LIMITED if hasattr(file, name)]
    assert files
    for file in files:
        patch.setattr(file, name, value)


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
    timed = sum(counts[bucket] for bucket in buckets) + publisher.ledger.untimed
    assert timed == counts[Stat.CONFIRMED]
    assert min(gauges.values()) >= 0
    # FALLBACK_FOUND may be negative: what another node takes over is subtracted from it.
    assert min(counts[stat] for stat in Stat if stat is not Stat.FALLBACK_FOUND) >= 0


@dataclasses.dataclass(frozen=True)
class Trouble:
    """What Redis answers instead of running a command of a job."""

    reply: bytes | None
    error: int = 0
    only_writes: bool = False
    only_growth: bool = False

    def concerns(self, command: Command) -> bool:
        """True if Redis answers this to the command."""
        if self.only_growth:
            return command.grows
        return command.write or not self.only_writes


NOT_SERVED = Trouble(None, errno.EPERM)
CLUSTER_DOWN = Trouble(None, errno.ENETDOWN)
PAUSED = Trouble(None, errno.EBUSY, only_writes=True)
NO_MEMORY = Trouble(None, errno.ENOSPC, only_growth=True)
WRONG_TYPE = Trouble(b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n")


def fallback_key(key: bytes) -> bytes:
    """The key of the fallback list in the slot of this key."""
    return key.removesuffix(REFUSED_SUFFIX) + SUFFIX if key.endswith(REFUSED_SUFFIX) else key


class SimulatedList:
    """The list in Redis, and the shim's way to run a job on it. `refused`: the list of refused
    events."""

    def __init__(self) -> None:
        self.elements: list[bytes] = []
        self.refused: list[bytes] = []
        self.writable = True  # a primary that is not loading
        self.trouble: Trouble | None = None

    @property
    def numbers(self) -> list[int | None]:
        return [number_in(element) for element in self.elements]

    @property
    def everywhere(self) -> list[bytes]:
        """The elements of both lists."""
        return [*self.refused, *self.elements]

    def run(self, job: Job) -> JobResult:
        replies: list[Reply] = []
        for command in job.commands:
            if isinstance(command, Lengths):
                looks = [b":%d\r\n" % self.look(key) for key in command.arguments]
                replies.append((b"*%d\r\n" % len(looks) + b"".join(looks), 0))
                continue
            assert isinstance(command, Command)
            reply, error = self._answer(command)
            replies.append((reply, error))
            failed = reply is None or reply.startswith(b"-")
            if failed or command.expected not in (None, reply):
                break
        return JobResult(replies + [(None, 0)] * (len(job.commands) - len(replies)))

    def look(self, key: bytes) -> int:
        """What the shim finds: it asks neither whether the slot is served nor for writes."""
        elements = self.refused if key.endswith(REFUSED_SUFFIX) else self.elements
        return -1 if self.trouble is WRONG_TYPE else len(elements)

    def _answer(self, command: Command) -> Reply:
        if command.write and not self.writable:
            return None, errno.EROFS
        if self.trouble is not None and self.trouble.concerns(command):
            return self.trouble.reply, self.trouble.error
        return self._execute(command), 0

    def _execute(self, command: Command) -> bytes:
        refused = command.arguments[0].endswith(REFUSED_SUFFIX)
        return self.execute_on("refused" if refused else "elements", command)

    def execute_on(self, name: str, command: Command) -> bytes:
        """Run a command on `elements` or `refused`, whatever its key."""
        elements: list[bytes] = list(getattr(self, name))
        arguments = command.arguments[1:]
        if command.most:
            return self._read(elements, *map(int, arguments), command.most)
        run: Callable[..., bytes] = getattr(self, "_" + command.name.lower())
        reply = run(elements, *arguments)
        setattr(self, name, elements)
        return reply

    def _rpush(self, there: list[bytes], *elements: bytes) -> bytes:
        there += elements
        return self._llen(there)

    def _llen(self, there: list[bytes]) -> bytes:
        return b":%d\r\n" % len(there)

    def _lrange(self, there: list[bytes], first: bytes, last: bytes) -> bytes:
        found = there[int(first) : int(last) + 1]
        return b"*%d\r\n" % len(found) + b"".join(map(bulk, found))

    def _read(self, there: list[bytes], first: int, last: int, most: int) -> bytes:
        """Stops as the shim does: the element that makes it `most` bytes is the last."""
        found: list[bytes] = []
        for element in there[first : last + 1]:
            if sum(map(len, found)) >= most:
                break
            found.append(element)
        return b"*%d\r\n" % len(found) + b"".join(map(bulk, found))

    def _ltrim(self, there: list[bytes], first: bytes, last: bytes) -> bytes:
        assert last == b"-1"
        at = int(first)
        there[:] = there[max(at + len(there), 0) if at < 0 else at :]
        return b"+OK\r\n"

    def _unlink(self, there: list[bytes]) -> bytes:
        existed = bool(there)
        there.clear()
        return b":%d\r\n" % existed


class SimulatedSlots(SimulatedList):
    """Several lists, in slots that come and go. `elements`: those of all lists on this node."""

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
        """Sets what is there at the start."""
        self.here[self.KEYS[0]].elements = list(elements)

    @property
    def elsewhere(self) -> set[int]:
        """The numbers of the events that went with their slots."""
        elements = itertools.chain(self.delivered, *self.away.values())
        return {number for number in map(number_in, elements) if number is not None}

    @property
    def refused(self) -> list[bytes]:
        return [element for there in self.here.values() for element in there.refused]

    @refused.setter
    def refused(self, elements: Sequence[bytes]) -> None:
        self.here[self.KEYS[0]].refused = list(elements)

    def lengths(self, keys: Iterable[bytes]) -> dict[bytes, int]:
        """The lengths of the lists with these keys, and of their lists of refused events; only
        of those that are not empty."""
        found: dict[bytes, int] = {}
        for key in keys:
            found[key] = len(self.here[key].elements)
            found[refused_key(key)] = len(self.here[key].refused)
        return {key: length for key, length in found.items() if length}

    def elements_of(self, key: bytes) -> list[bytes]:
        there = self.here[fallback_key(key)]
        return there.elements if key == fallback_key(key) else there.refused

    def serves(self, key: bytes) -> bool:
        return fallback_key(key) in self.served

    def take_away(self, key: bytes) -> None:
        """Both lists of a slot go to another node."""
        there = self.here[key]
        self.away.setdefault(key, []).extend(there.elements)
        self.away.setdefault(refused_key(key), []).extend(there.refused)
        there.elements, there.refused = [], []

    def bring_back(self, key: bytes) -> None:
        """Both lists of a slot come back as they are."""
        there = self.here[key]
        there.elements[:0] = self.away.pop(key, [])
        there.refused[:0] = self.away.pop(refused_key(key), [])

    def look(self, key: bytes) -> int:
        return self.here[fallback_key(key)].look(key)

    def _execute(self, command: Command) -> bytes:
        return self.here[fallback_key(command.arguments[0])]._execute(command)

    def _answer(self, command: Command) -> Reply:
        reply = super()._answer(command) if self._has(command.arguments[0]) else None
        if reply is None:
            lacks_role = command.write and not self.writable
            return None, errno.EROFS if lacks_role else errno.EPERM
        return reply

    def _has(self, key: bytes) -> bool:
        """True if Redis runs a command for this key. In a slot that migrates it does so only if the
        key is here: else it may be on the other node."""
        slot = fallback_key(key)
        present = slot not in self.migrating or bool(self.elements_of(key))
        return slot in self.served and present


class Watched(Publisher):
    """A publisher with the part of ClusterWatch. It learns its lists (on a server in no
    cluster: the only one) when it may write them, and again a little after the current list was
    out of reach."""

    _lists_at = 0.0

    def set_role(self, *, primary: bool, loading: bool, agreed: bool = False) -> None:
        super().set_role(primary=primary, loading=loading, agreed=agreed)
        self._lists_at = self._clock()
        self._tell_lists()

    def poll(self, *, more: bool, most: int | None = None) -> list[Action]:
        self._tell_lists()
        return super().poll(more=more, most=most)

    def wake_at(self) -> float | None:
        times = [super().wake_at(), self._lists_at if self._asks else None]
        return min((time for time in times if time is not None), default=None)

    @property
    def _asks(self) -> bool:
        return self.lists.writable and not self.lists.known

    def _tell_lists(self) -> None:
        if self._asks and self._clock() >= self._lists_at:
            self._lists_at = self._clock() + READ_AGAIN
            self.tell_lists()

    def tell_lists(self) -> None:
        self.lists.set_lists(KEY, lambda key: True)


class Connection:
    """A connection as the broker sees it. Tags count from 1 in the order of sending."""

    def __init__(self) -> None:
        self.sent: list[Event] = []
        self.on_the_way: list[int] = []  # tags that have not arrived yet
        self.unanswered: list[int] = []  # tags that have


class SimulatedParcel:
    """Events that are sent as a parcel."""

    def __init__(self, events: Sequence[Event]) -> None:
        self._events = list(events)
        self.count = len(self._events)
        self.size = 10 * self.count
        self.times = [(place, event.time_ms) for place, event in enumerate(events, 1)]

    def events(self) -> list[Event]:
        return self._events


class SimulatedBroker:
    """A broker that the world makes accept, answer, refuse, and disappear."""

    def __init__(self, *, accepts: bool) -> None:
        self.accepts = accepts  # connections
        self.silent = False
        self.opening = False
        self.connection: Connection | None = None
        self.largest = 10**9  # bytes of a key: the broker closes the channel for a larger one
        self.refused: set[bytes] = set()  # keys: the same, and the text has no limit
        self.arrives_at_loss = (
            0.0  # the part of what is on the way that arrives when a link is lost
        )
        self.received: dict[int, None] = {}  # numbers of events, in order of arrival
        self.confirmed: set[int] = set()

    def connect(self) -> None:
        assert not self.opening
        assert self.connection is None, "a second connection"
        self.opening = True

    def send(self, first_tag: int, events: Sequence[Event], chunk: int) -> None:
        connection = self.connection
        assert connection is not None, "sent without a connection"
        assert first_tag == len(connection.sent) + 1, "the tags do not continue"
        assert 0 < len(events) <= chunk
        connection.on_the_way += range(first_tag, first_tag + len(events))
        connection.sent += events

    def lose(self) -> None:
        """The link is lost. A part of what was on the way has arrived, without an answer."""
        if self.connection is not None:
            self.arrive(int((len(self.connection.on_the_way) + 1) * self.arrives_at_loss))
        self.connection = None
        self.opening = False

    def arrive(self, count: int) -> bool:
        """Lets this many messages arrive. Returns False if it closes the channel over
        one."""
        assert self.connection is not None
        connection = self.connection
        for _ in range(min(count, len(connection.on_the_way))):
            tag = connection.on_the_way.pop(0)
            event = connection.sent[tag - 1]
            if len(event.key) > self.largest or event.key in self.refused:
                return False
            self.received.setdefault(number_of(event))
            connection.unanswered.append(tag)
        return True

    def answer(self, place: int, *, multiple: bool, ack: bool) -> int:
        """Takes tags out of `unanswered`; returns the tag of the answer."""
        assert self.connection is not None
        connection = self.connection
        tag = sorted(connection.unanswered)[place % len(connection.unanswered)]
        answered = [t for t in connection.unanswered if t == tag or (multiple and t < tag)]
        connection.unanswered = [t for t in connection.unanswered if t not in answered]
        if ack:
            self.confirmed |= {number_of(connection.sent[t - 1]) for t in answered}
        return tag
