"""For the tests of the outbox: its modes on each server, clients that write in every way, and the
comparison of what is in a server with the events about it.

Each write makes a key of its own. So after a crash the keys that are there, and the events that are
there, tell of each write which of the two was lost.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import random
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Self

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyspace_amqp.demo.servers import RedisServer, wait_for
from keyspace_amqp.fallback import from_element
from keyspace_amqp.tables.keys import KEY
from tests import servers
from tests.fix_faults import Background
from tests.fix_servers import Message

# ---- modes -----------------------------------------------------------------


def has_atomic(family: str) -> bool:
    """True if a server can run a module's job in the transaction of an event."""
    return servers.at_least(family, redis="7.2", valkey="7.2")


def modes(family: str) -> list[str]:
    """Return the values of `outbox`, besides `off`, that a server accepts."""
    return ["reply", "atomic"] if has_atomic(family) else ["reply"]


def _mark(pairs: Iterable[tuple[str, str]]) -> pytest.MarkDecorator:
    found = [pair for pair in pairs if pair[1] == "off" or pair[1] in modes(pair[0])]
    return pytest.mark.parametrize(("family", "outbox"), list(dict.fromkeys(found)))


# Each mode on each server.
EVERY_OUTBOX = _mark((family, mode) for family in servers.ALL for mode in modes(family))
# Each mode once, on servers of both kinds: for tests of what the module alone decides.
SOME = (
    (servers.REDIS, "reply"),
    (servers.NEW_REDIS, "atomic"),
    (servers.NEW_VALKEY, "reply"),
    (servers.NEW_VALKEY, "atomic"),
)
SOME_OUTBOX = _mark(SOME)
ATOMIC = _mark((family, "atomic") for family in servers.ALL)


def with_outbox(families: Iterable[str]) -> pytest.MarkDecorator:
    """Return a mark for tests of faults: they run on these servers without an outbox, and then with
    each mode on one or two."""
    return _mark([*((family, "off") for family in families), SOME[0], SOME[1], SOME[3]])


AND_OUTBOX = with_outbox(servers.SOME)
# For slow tests.
AND_ATOMIC = _mark([*((family, "off") for family in servers.SOME), (servers.NEW_REDIS, "atomic")])
# With the broker away, and, for some, with the broker there.
AWAY_AND_THERE = [
    *((family, mode, False) for family in servers.ALL for mode in modes(family)),
    *((family, mode, True) for family, mode in SOME if mode in modes(family)),
]
EVERY_OUTBOX_AWAY_AND_THERE = pytest.mark.parametrize(
    ("family", "outbox", "there"),
    list(dict.fromkeys(AWAY_AND_THERE)),
    ids=lambda value: {True: "broker up", False: "broker away"}.get(value, value),
)


# ---- events ----------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Told:
    """An event as the list or a message tells it."""

    message_id: str
    db: int
    name: bytes
    key: bytes


def of_elements(elements: Iterable[bytes]) -> list[Told]:
    """Return the events in elements of a list."""
    told = []
    for element in elements:
        event = from_element(element)
        assert event is not None, element
        told.append(Told(event.message_id, event.db, event.name, event.key))
    return told


def listed(client: redis.Redis) -> list[Told]:
    """Return the events in the fallback list."""
    return of_elements(client.lrange(KEY, 0, -1))


def of_messages(messages: Iterable[Message]) -> list[Told]:
    """Return the events of messages, in the order of their first arrivals."""
    told: dict[str, Told] = {}
    for message in messages:
        identity = message.properties.message_id
        told.setdefault(identity, Told(identity, *message.event))
    return list(told.values())


def lengths_within(client: redis.Redis) -> list[int]:
    """Return by how much the list is longer after each of two writes of a pipeline."""
    before = int(client.llen(KEY))
    with client.pipeline(transaction=False) as pipeline:
        pipeline.set("a", 1).llen(KEY).set("b", 1).llen(KEY)
        return [length - before for length in pipeline.execute()[1::2]]


# ---- clients ---------------------------------------------------------------

# How a client writes a few keys, and the names of the events that each of them has.
Way = Callable[[redis.Redis, Sequence[bytes]], object]


def _one_by_one(client: redis.Redis, keys: Sequence[bytes]) -> None:
    for key in keys:
        client.set(key, 1)


def _pipeline(client: redis.Redis, keys: Sequence[bytes], transaction: bool = False) -> None:
    with client.pipeline(transaction=transaction) as pipeline:
        for key in keys:
            pipeline.set(key, 1)
        pipeline.execute()


def _transaction(client: redis.Redis, keys: Sequence[bytes]) -> None:
    _pipeline(client, keys, transaction=True)


def _script(client: redis.Redis, keys: Sequence[bytes]) -> None:
    client.eval("for _, key in ipairs(KEYS) do redis.call('SET', key, 1) end", len(keys), *keys)


def _mset(client: redis.Redis, keys: Sequence[bytes]) -> None:
    client.mset(dict.fromkeys(keys, 1))


def _short_lives(client: redis.Redis, keys: Sequence[bytes]) -> None:
    """Half of them expire by themselves, and half of them when they are read, if they still can."""
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.set(key, 1, px=10)
        pipeline.execute()
        for key in keys[::2]:
            pipeline.get(key)
        pipeline.execute()


def _deletions(client: redis.Redis, keys: Sequence[bytes]) -> None:
    _pipeline(client, keys)
    client.delete(*keys)


def _hashes(client: redis.Redis, keys: Sequence[bytes]) -> None:
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.hset(key, mapping={"field": 1, "other": 2})
        pipeline.execute()


WAYS: Mapping[bytes, tuple[Way, frozenset[bytes]]] = {
    b"one": (_one_by_one, frozenset([b"set"])),
    b"pipeline": (_pipeline, frozenset([b"set"])),
    b"transaction": (_transaction, frozenset([b"set"])),
    b"script": (_script, frozenset([b"set"])),
    b"mset": (_mset, frozenset([b"set"])),
    b"short": (_short_lives, frozenset([b"set", b"expire"])),
    b"deleted": (_deletions, frozenset([b"set", b"del"])),
    b"hash": (_hashes, frozenset([b"hset"])),
}
BATCH = 20
# Events that take a key away.
REMOVALS = {b"del", b"expired", b"evicted", b"rename_from", b"move_from"}


class Client(Background):
    """A client that writes keys in one way, until its `with` ends or its server is gone.

    `answered`: the keys of its answered writes, in order; `last`: those of the last batch of them;
    `begun`: the keys of all its writes. `confirm`: only writes that a replica has confirmed, by
    WAIT, are answered ones. `tag`: the end of each key.
    """

    def __init__(
        self, server: RedisServer, name: bytes, *, confirm: bool, tag: bytes = b""
    ) -> None:
        self.answered: list[bytes] = []
        self.last: list[bytes] = []
        self.begun: list[bytes] = []
        self._server = server
        self._name = name
        self._way = WAYS[name.partition(b":")[0]][0]
        self._confirm = confirm
        self._tag = tag
        super().__init__()

    def _run(self) -> None:
        with contextlib.suppress(redis.exceptions.RedisError):
            # The client's own retries would write keys twice. Only one connection: WAIT knows of no
            # writes of others, and a pipeline of a `single_connection_client` has another.
            retry = Retry(NoBackoff(), 0)
            with self._server.client(retry=retry, max_connections=1) as client:
                self._write(client)

    def _write(self, client: redis.Redis) -> None:
        chance = random.Random(self._name)
        while not self._stop.is_set():
            first = len(self.begun)
            count = chance.randint(1, BATCH)
            keys = [b"%b:%d%b" % (self._name, first + n, self._tag) for n in range(count)]
            self.begun += keys
            self._way(client, keys)
            if not self._confirm or client.wait(1, 2000) > 0:
                self.last = keys
                self.answered += keys


class Clients:
    """A client for each way, all writing at once; in a `with`. `name`: sets their keys apart from
    those of other rounds."""

    def __init__(
        self, server: RedisServer, name: str, *, confirm: bool = False, tag: bytes = b""
    ) -> None:
        self.all = [
            Client(server, b"%b:%b" % (way, name.encode()), confirm=confirm, tag=tag)
            for way in WAYS
        ]

    def __enter__(self) -> Self:
        for client in self.all:
            client.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        for client in self.all:
            client._stop.set()
        for client in self.all:
            client.__exit__(*error)

    def more(self, count: int) -> None:
        """Wait until so many writes are answered."""
        wait_for(lambda: len(self.answered) >= count, 60, f"{count} writes are answered")

    @property
    def answered(self) -> list[bytes]:
        return [key for client in self.all for key in client.answered]

    @property
    def last(self) -> set[bytes]:
        """The keys of the last answered batch of each client."""
        return {key for client in self.all for key in client.last}

    @property
    def begun(self) -> set[bytes]:
        return {key for client in self.all for key in client.begun}


# ---- comparisons -----------------------------------------------------------


def without_events(answered: Iterable[bytes], told: Iterable[Told]) -> list[bytes]:
    """Return the keys of answered writes of which an event is missing."""
    names = collections.defaultdict(set)
    for event in told:
        names[event.key].add(event.name)
    return [key for key in answered if not WAYS[key.partition(b":")[0]][1] <= names[key]]


def replayed(told: Iterable[Told]) -> set[tuple[int, bytes]]:
    """Return the database and the key of each key that has to be there after these events."""
    there = set()
    for event in told:
        if event.name in REMOVALS:
            there.discard((event.db, event.key))
        else:
            there.add((event.db, event.key))
    return there


def keys_there(client: redis.Redis) -> set[tuple[int, bytes]]:
    """Return the database and the key of each key but the module's."""
    return {(0, key) for key in client.keys("*") if not key.startswith(b"keyspaceamqp:")}


def check_order(told: Sequence[Told]) -> None:
    """Check that no event is there twice, and that those of each client are in its order."""
    counted = collections.Counter(
        (event.key, event.name) for event in told if event.name != b"expired"
    )
    twice = [event for event, count in counted.items() if count > 1]
    assert not twice, f"{len(twice)} events are there twice: {twice[:5]}"
    newest: dict[tuple[bytes, bytes], int] = {}
    for place, event in enumerate(told):
        if event.name == b"expired":  # at any time
            continue
        client, _, number = event.key.partition(b"{")[0].rpartition(b":")
        last = newest.get((client, event.name), -1)
        near = [str(event) for event in told[max(place - 5, 0) : place + 3]]
        assert int(number) > last, "\n".join([f"not in order: {event}, after {last}", *near])
        newest[client, event.name] = int(number)


def check_same(
    client: redis.Redis, events: Callable[[], Sequence[Told]], but: Set[bytes] = frozenset()
) -> None:
    """Check that the keys in a server and the events about them are the same, in both directions.
    It waits: keys may expire between a look at the ones and at the others. `but`: keys for which
    this need not hold."""
    last: list[set[tuple[int, bytes]]] = []

    def same() -> bool:
        both = keys_there(client), replayed(events())
        last[:] = [{pair for pair in pairs if pair[1] not in but} for pairs in both]
        return last[0] == last[1]

    try:
        wait_for(same, 10)
    except TimeoutError:
        there, told = last
        pytest.fail(
            f"{len(there - told)} keys without an event: {sorted(there - told)[:5]}, "
            f"{len(told - there)} events without a key: {sorted(told - there)[:5]}"
        )
