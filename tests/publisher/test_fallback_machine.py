"""The publisher and the list in a real Redis, while others change the list.

Like the worlds of worlds.py, with the same simulated broker; but a Redis server runs the jobs, and
its answers are what the shim would pass on. At each step hypothesis lets the broker fail, has a job
refused, or has another client change the list in any way. Only events that others have removed may
be missing in the end.
"""

from __future__ import annotations

import contextlib
import errno
import random
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest
import redis
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from keyspace_amqp.demo.servers import RedisServer
from keyspace_amqp.fallback import to_element
from keyspace_amqp.jobs import Command
from keyspace_amqp.publisher.actions import Send
from keyspace_amqp.publisher.list_jobs import Length, Push, Read, Trim
from keyspace_amqp.tables.keys import KEY, REFUSED_KEY
from tests.publisher.simulated import (
    CLUSTER_DOWN,
    NOT_SERVED,
    PAUSED,
    SimulatedList,
    Trouble,
    number_in,
    number_of,
    set_limit,
)
from tests.publisher.worlds import LIMITS, World

READ_ONLY = Trouble(None, errno.EROFS, only_writes=True)
ELSEWHERE = b"elsewhere"
NO_SHRINK = [phase for phase in Phase if phase is not Phase.shrink]


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A Redis without the module: the tests are the shim."""
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


class Raw:
    """A connection that gives replies as RESP2 has them on the wire."""

    def __init__(self, server: RedisServer) -> None:
        self._socket = socket.create_connection(("127.0.0.1", server.port), 10)
        self._file = self._socket.makefile("rb")

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __call__(self, *words: bytes) -> bytes:
        parts = [b"*%d\r\n" % len(words), *(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)]
        self._socket.sendall(b"".join(parts))
        return self._reply()

    def _reply(self) -> bytes:
        line = self._file.readline()
        tag, length = line[:1], line[1:-2]
        if tag == b"$" and length != b"-1":
            return line + self._file.read(int(length) + 2)
        if tag == b"*":
            return line + b"".join(self._reply() for _ in range(int(length)))
        return line


class RealList(SimulatedList):
    """The two lists in a server; the shim's way to run a job is the same."""

    def __init__(self, server: RedisServer) -> None:
        self.client = server.client(protocol=2)
        self.raw = Raw(server)
        self.client.flushall()
        self._seen: dict[bytes, list[bytes]] = {}  # lists as they were after the last change
        super().__init__()

    def close(self) -> None:
        self.raw.close()
        self.client.close()

    def _elements(self, key: bytes) -> list[bytes]:
        if key not in self._seen:
            self._seen[key] = []
            with contextlib.suppress(redis.exceptions.ResponseError):  # no list
                self._seen[key] = self.client.lrange(key, 0, -1)
        return self._seen[key]

    def _replace(self, key: bytes, elements: Sequence[bytes]) -> None:
        self.change(b"DEL", key)
        if elements:
            self.change(b"RPUSH", key, *elements)

    @property
    def elements(self) -> list[bytes]:
        return self._elements(KEY)

    @elements.setter
    def elements(self, elements: Sequence[bytes]) -> None:
        self._replace(KEY, elements)

    @property
    def refused(self) -> list[bytes]:
        return self._elements(REFUSED_KEY)

    @refused.setter
    def refused(self, elements: Sequence[bytes]) -> None:
        self._replace(REFUSED_KEY, elements)

    @property
    def numbers(self) -> list[int | None]:
        return [number_in(element) for element in self.everywhere]

    def change(self, *words: bytes | int) -> None:
        """A change by another client, which may fail."""
        self._seen.clear()
        with contextlib.suppress(redis.exceptions.ResponseError):
            self.client.execute_command(*words)

    def _execute(self, command: Command) -> bytes:
        if command.write:
            self._seen.clear()
        return self.raw(command.name.encode(), *command.arguments)


class RealWorld(World):
    """A world whose list is real. Others may do anything to it."""

    shared = True
    fallback_sizes = (0,)  # no cap: only what others remove may be missing
    troubles = (CLUSTER_DOWN, NOT_SERVED, PAUSED, READ_ONLY)

    def __init__(self, server: RedisServer, chance: random.Random, *, nacks: bool) -> None:
        super().__init__(chance)
        found = self.list.elements
        self.list: RealList = RealList(server)
        self.list.elements = found
        self.nacks = nacks
        self.theirs: set[int] = set()  # events that others have pushed
        self.removed: set[int] = set()  # by others, at any time
        self.given_up: set[int] = set()  # in the list when its slot was not served

    def answer(self, place: int, *, multiple: bool, ack: bool) -> None:
        super().answer(place, multiple=multiple, ack=ack or not self.nacks)

    def run_job(self) -> bool:
        if self.job is not None and self.list.trouble is NOT_SERVED:
            # The list counts as another node's now: newer events do not wait for it.
            self.given_up |= {number for number in self.list.numbers if number is not None}
        return super().run_job()

    def check_missing(self, missing: set[int]) -> None:
        lost = missing - self.removed
        assert not lost, f"nobody has removed {sorted(lost)}"

    def check_order(self, send: Send) -> None:
        """First arrivals of our events are in order, except for events that other clients have
        moved. A broker that refuses some messages changes their order."""
        excepted = self.theirs | self.removed | self.given_up
        arrived = [number for number in self.broker.received if number not in excepted]
        assert self.nacks or arrived == sorted(arrived)

    def others(self, *words: bytes | int) -> None:
        """Another client runs a command on the server."""
        before = set(self.list.numbers)
        # The order of events that this client moves or copies is not checked.
        self.theirs |= {number_in(word) for word in words if isinstance(word, bytes)} - {None}
        self.list.change(*words)
        self.removed |= (before | self.theirs) - set(self.list.numbers) - {None}

    def foreign_element(self) -> bytes:
        event = self.new_event()
        self.theirs.add(number_of(event))
        return to_element(event)

    def rest(self) -> None:
        """Nothing fails any more, and all that is there is delivered."""
        if self.list.client.type(KEY) != b"list":
            self.others(b"DEL", KEY)
        self.heal()
        assert self.list.client.exists(KEY) == 0
        self.check_order(Send(1, []))


seeds = st.integers(0, 2**32).map(random.Random)
places = st.integers(0, 30)
# The change comes before a job of this kind, or at any time. The module hears of it only if the
# class of its event is chosen.
Moment = tuple[type[Trim | Read | Push | Length] | None, bytes | None]
moments = st.tuples(
    st.sampled_from([None, Trim, Read, Push, Length]),
    st.sampled_from([None, b"del", b"expired", b"evicted", b"flushdb"]),
)


class FallbackMachine(RuleBasedStateMachine):
    """Each rule is one thing that happens; then it is the publisher's turn."""

    server: RedisServer

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.world: RealWorld | None = None

    @initialize(chance=seeds, nacks=st.booleans())
    def begin(self, chance: random.Random, nacks: bool) -> None:
        for name, values in LIMITS.items():
            set_limit(self.patch, name, chance.choice(values))
        self.world = RealWorld(self.server, chance, nacks=nacks)
        self.world.turn()

    def teardown(self) -> None:
        try:
            if self.world is not None:
                self.world.rest()
        finally:
            self.patch.undo()
            if self.world is not None:
                self.world.list.close()

    def turn(self) -> None:
        assert self.world is not None
        self.world.check()
        self.world.turn()

    def foreign(self) -> bytes:
        assert self.world is not None
        return self.world.foreign_element()

    def element(self, place: int) -> bytes:
        """An element of the list, or bytes that are no element."""
        assert self.world is not None
        elements = self.world.list.elements
        return elements[place % len(elements)] if elements else b"nothing"

    # What happens anyway

    @rule(numbers=st.lists(st.integers(0, 2**32), min_size=1, max_size=20))
    def life_goes_on(self, numbers: list[int]) -> None:
        """Events, faults of the broker, answers early and late: see World.steps."""
        assert self.world is not None
        for number in numbers:
            self.world.step(random.Random(number))

    @rule(turns=st.integers(1, 8))
    def all_goes_well(self, turns: int) -> None:
        """The broker takes and confirms everything at once."""
        assert self.world is not None
        for _ in range(turns):
            if not self.world.publisher.has_more:
                self.world.now = max(self.world.now, self.world.publisher.wake_at() or 0)
            self.world.open_link(accept=True)
            self.world.run_job()
            self.world.deliver_result()
            self.world.answer_all()
            self.turn()

    @rule()
    def all_is_confirmed(self) -> None:
        assert self.world is not None
        self.world.answer_all()
        self.turn()

    @rule(result=st.booleans())
    def the_job_is_run(self, result: bool) -> None:
        assert self.world is not None
        self.world.run_job()
        if result:
            self.world.deliver_result()
        self.turn()

    @rule(trouble=st.sampled_from(RealWorld.troubles))
    def the_job_is_refused(self, trouble: Trouble) -> None:
        assert self.world is not None
        self.world.list.trouble = trouble
        self.world.run_job()
        self.world.list.trouble = None
        self.turn()

    @rule(chance=seeds)
    def link_is_lost(self, chance: random.Random) -> None:
        assert self.world is not None
        self.world.link_is_lost(chance)
        self.turn()

    # Others

    def others(self, moment: Moment, make: Callable[[], Sequence[bytes | int]]) -> None:
        """Another client runs a command, perhaps just before a job of a certain kind."""
        world = self.world
        assert world is not None
        kind, told = moment
        for _ in range(20):
            running = world.publisher.jobs.running
            if kind is None or (world.job is not None and type(running) is kind):
                break
            self.all_goes_well(1)
        world.others(*make())
        if told is not None:
            world.publisher.list_changed(told)
        self.turn()
        if kind is not None:
            self.the_job_is_run(result=True)

    @rule(
        moment=moments,
        words=st.sampled_from(
            [
                (b"DEL", KEY),
                (b"UNLINK", KEY),
                (b"EXPIRE", KEY, 0),
                (b"EXPIRE", KEY, 1000),
                (b"RENAME", KEY, ELSEWHERE),
                (b"RENAME", ELSEWHERE, KEY),
                (b"SWAPDB", 0, 1),
                (b"FLUSHALL",),
                (b"SET", KEY, b"in the way"),
            ]
        ),
    )
    def somebody_takes_it_away(self, moment: Moment, words: tuple[bytes | int, ...]) -> None:
        """Takes the slot away, or brings it back."""
        self.others(moment, lambda: words)

    @rule(
        moment=moments,
        words=st.one_of(
            st.tuples(st.sampled_from([b"LPOP", b"RPOP"]), st.just(KEY), places),
            st.tuples(st.just(b"LTRIM"), st.just(KEY), places, places.map(lambda n: -1 - n)),
        ),
    )
    def somebody_takes_some(self, moment: Moment, words: tuple[bytes | int, ...]) -> None:
        self.others(moment, lambda: words)

    @rule(moment=moments, place=places)
    def somebody_takes_one(self, moment: Moment, place: int) -> None:
        self.others(moment, lambda: (b"LREM", KEY, 1, self.element(place)))

    @rule(moment=moments, command=st.sampled_from([b"LPUSH", b"RPUSH"]), count=st.integers(1, 30))
    def somebody_pushes(self, moment: Moment, command: bytes, count: int) -> None:
        self.others(moment, lambda: (command, KEY, *(self.foreign() for _ in range(count))))

    @rule(moment=moments, command=st.sampled_from([b"LPUSH", b"RPUSH"]), place=places)
    def somebody_pushes_nonsense(self, moment: Moment, command: bytes, place: int) -> None:
        """Junk, and an element that is already in the list."""
        self.others(moment, lambda: (command, KEY, b"junk", self.element(place)))

    @rule(moment=moments, place=places)
    def somebody_inserts(self, moment: Moment, place: int) -> None:
        self.others(
            moment, lambda: (b"LINSERT", KEY, b"BEFORE", self.element(place), self.foreign())
        )

    @rule(moment=moments, place=places)
    def somebody_replaces_one(self, moment: Moment, place: int) -> None:
        """The list's length, and its first and last element, stay the same."""
        assert self.world is not None
        there = self.world.list

        def words() -> Sequence[bytes | int]:
            return b"LSET", KEY, place % max(len(there.elements), 1), self.foreign()

        self.others(moment, words)

    @rule(moment=moments, place=places, other=places)
    def somebody_moves_one(self, moment: Moment, place: int, other: int) -> None:
        moved: list[bytes] = []

        def remove() -> Sequence[bytes | int]:
            moved.append(self.element(place))
            return b"LREM", KEY, 1, moved[0]

        self.others((moment[0], None), remove)
        self.others(
            (None, moment[1]), lambda: (b"LINSERT", KEY, b"AFTER", self.element(other), moved[0])
        )


def test_fallback_machine(redis_server: RedisServer) -> None:
    class Machine(FallbackMachine):
        server = redis_server

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(max_examples=40, stateful_step_count=40, deadline=None, phases=NO_SHRINK),
    )
