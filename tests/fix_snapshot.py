"""For the tests of snapshots: a client that changes keys at random, and a consumer that keeps a
copy of the data by what messages say."""

from __future__ import annotations

import base64
import contextlib
import json
import random
from collections.abc import Iterable, Mapping
from typing import Any

import redis

from keyspace_amqp.demo.servers import wait_for
from tests.fix_servers import Message, once, stats

# The parameters with which a consumer can keep a copy: all changes of strings are told, and whole.
OPTIONS = ["keyspaceamqp.format json", "keyspaceamqp.value 4096"]
# Events after which the key is gone.
REMOVALS = {"del", "expired", "evicted", "rename_from", "move_from"}

# Keys by database and name.
Data = Mapping[tuple[int, bytes], bytes]


class Copy:
    """What a consumer has after some messages, in the order of their arrival.

    `snapshots`: how often each key came in a snapshot.
    """

    def __init__(self) -> None:
        self.data: dict[tuple[int, bytes], bytes] = {}
        self.snapshots: dict[tuple[int, bytes], int] = {}

    def apply(self, messages: Iterable[Message]) -> None:
        for message in messages:
            item = json.loads(message.body)
            place = item["db"], _bytes(item, "key")
            value = item.get("value")
            if item["event"] == "snapshot":
                assert item["class"] == "snapshot"
                assert "cut" in value, item
                self.snapshots[place] = self.snapshots.get(place, 0) + 1
            if item["event"] in REMOVALS:
                self.data.pop(place, None)
            elif value is not None and "cut" in value:  # `expire` may have no data
                assert not value["cut"], item
                self.data[place] = _bytes(value, "data")


def copy_of(messages: list[Message]) -> Copy:
    """Return the copy that a consumer has who has got these messages, some perhaps twice."""
    copy = Copy()
    copy.apply(once(messages))
    return copy


def _bytes(item: dict[str, Any], name: str) -> bytes:
    if name in item:
        return str(item[name]).encode()
    return base64.b64decode(item[f"{name}_base64"])


def data_of(client: redis.Redis, databases: int = 1) -> Data:
    """Return the strings in a server."""
    found: dict[tuple[int, bytes], bytes] = {}
    for db in range(databases):
        if databases > 1:
            client.select(db)
        keys = [key for key in client.scan_iter(count=1000) if not key.startswith(b"keyspaceamqp:")]
        with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.get(key)
            values = pipeline.execute()
        found |= {(db, key): value for key, value in zip(keys, values, strict=True)}
    if databases > 1:
        client.select(0)
    return found


def value_of(rng: random.Random) -> bytes:
    """Return a string, of one of the forms in which servers keep them."""
    size = rng.choice([1, 10, 40, 60, 120, 200, 1000])
    return str(rng.randrange(10**9)).encode() if size == 10 else rng.randbytes(size)


class Changes:
    """Random changes of random keys, by a client for one server or for a cluster.

    `names`: how many keys there are at most; in a cluster all of those that one command names have
    one tag.
    """

    def __init__(self, client: Any, rng: random.Random, names: int, databases: int = 1) -> None:
        self._client = client
        self._rng = rng
        self._names = names
        self._databases = databases

    def key(self) -> str:
        number = self._rng.randrange(self._names)
        return f"{{{number % 97}}}:{number}"

    def other(self, key: str) -> str:
        """Return a key with the same tag."""
        tag = int(key[1 : key.index("}")])
        return f"{{{tag}}}:{tag + 97 * self._rng.randrange(max(1, self._names // 97))}"

    def make(self, count: int) -> None:
        """Make so many changes."""
        for _ in range(count):
            # RENAME without the key; INCR of what is no number.
            with contextlib.suppress(redis.ResponseError):
                self._change()

    def _change(self) -> None:
        client, rng, key = self._client, self._rng, self.key()
        if self._databases > 1 and rng.random() < 0.02:
            client.select(rng.randrange(self._databases))
        match rng.randrange(12):
            case 0 | 1 | 2:
                client.set(key, value_of(rng))
            case 3:
                client.append(key, rng.randbytes(3))
            case 4:
                client.incr(key)
            case 5 | 6:
                client.delete(key)
            case 7:
                client.rename(key, self.other(key))
            case 8:
                client.copy(key, self.other(key), replace=True)
            case 9:
                client.set(key, value_of(rng), px=rng.randrange(1, 50))
            case 10:
                client.pexpire(key, rng.randrange(-1, 20))
            case 11 if self._databases > 1:
                client.move(key, rng.randrange(self._databases))
            case _:
                client.setrange(key, 2, b"xyz")

    def run_until_done(self, nodes: Iterable[redis.Redis], batch: int = 20) -> int:
        """Make changes until no snapshot is under way. Return how many: one batch at least."""
        nodes = list(nodes)
        made = 0
        while True:
            self.make(batch)
            made += batch
            if not any(stats(n)["snapshot"].startswith(("running", "waits")) for n in nodes):
                return made


def no_time_to_live(client: redis.Redis, databases: int = 1) -> None:
    """Wait until all keys with a time to live are gone."""

    def gone() -> bool:
        for db in range(databases):
            if databases > 1:
                client.select(db)
            for key in client.scan_iter(count=1000):
                client.exists(key)
        if databases > 1:
            client.select(0)
        return all(keys["expires"] == 0 for keys in client.info("keyspace").values())

    wait_for(gone, 60, "no key has a time to live")


def finished(client: redis.Redis, state: str = "done", timeout: float = 60) -> dict[str, Any]:
    """Wait until the snapshot has this state; return STATS."""
    last: dict[str, Any] = {}

    def ready() -> bool:
        last.update(stats(client))
        return str(last["snapshot"]) == state

    wait_for(ready, timeout, f"the snapshot is {state}", lambda: f"STATS are {last}")
    return last
