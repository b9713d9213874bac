"""The fallback lists of this node: which there are, and where its own is put.

Each slot has one possible list, under a key whose tag was chosen for the slot. A
primary works with one list, in a slot that it serves; and it delivers every other
list that it finds in its slots: one that a slot brought along when it moved here,
or that an earlier life has left.

Sans I/O, one thread: topologies and the lengths of keys go in, keys to look at come
out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence, Set

from .slots import SLOTS, key_of, slot_of
from .topology import Topology

# Keys of one look: less than a millisecond of Redis' main thread.
LOOK_KEYS = 2048
# Slots that are looked at anyhow each time that the topology is read: all in less than
# five minutes. (Redis 7.0 counts each in keyspace_misses.)
LOOK_SLOWLY = 64


class Lists:
    """The lists that a primary has to deliver, and where it puts its own.

    `begin` when it has become one, and `set_topology`; then `keys_to_look` until it
    gives none, and each answer into `looked`. What is `there` is to be counted again
    together with each reading of the topology, and the answer goes into `counted`.
    """

    def __init__(self) -> None:
        self.active = False
        self._round = 0
        self._topology: Topology | None = None
        self._slots: set[int] = set()  # to be looked at
        self._keys: dict[bytes, None] = {}  # these, too
        self._there: dict[bytes, None] = {}  # lists that there were
        self._next_slot = 0  # of those that are looked at slowly

    def begin(self) -> None:
        """This node may write its lists from now on: whatever was known is not true."""
        self.end()
        self.active = True

    def end(self) -> None:
        """This node is a replica, or loads a data set."""
        self.active = False
        self._round += 1
        self._topology = None
        self._slots.clear()
        self._keys.clear()
        self._there.clear()

    def set_topology(self, topology: Topology) -> None:
        """Only while active."""
        before: Set[int] = self._topology.served if self._topology else frozenset()
        self._slots |= topology.served - before
        self._slots &= topology.served
        self._topology = topology
        self._there = {key: None for key in self._there if self.serves(key)}
        home = self.home
        if home is not None and slot_of(home) in self._slots:
            self._keys = {home: None} | self._keys  # first: it is the one that is likely

    def serves(self, key: bytes) -> bool:
        """Whether a key is in a slot of this node."""
        return self._topology is not None and slot_of(key) in self._topology.served

    def touched(self, key: bytes) -> None:
        """Somebody else did something to this list; empty: to all of them."""
        if self.active and key:
            self._keys[key] = None
        elif self._topology is not None:
            self._slots |= self._topology.served

    def look_slowly(self) -> None:
        """Looks at some slots that were here all the time. A list may come unheard into
        one: when a migration is taken back, or mended after a failover."""
        if self._topology is not None:
            slots = range(self._next_slot, min(self._next_slot + LOOK_SLOWLY, SLOTS))
            self._keys |= {key_of(slot): None for slot in slots if slot in self._topology.served}
            self._next_slot = slots.stop % SLOTS

    @property
    def complete(self) -> bool:
        """Whether all that is in the slots has been looked at."""
        return self._topology is not None and not self._slots

    @property
    def home(self) -> bytes | None:
        """Where a list of this node's own is put: in a slot that stays, if there is
        one. The last one: resharding takes the first ones first."""
        if self._topology is None or not self._topology.served:
            return None
        stays = self._topology.served - self._topology.migrating
        return key_of(max(stays or self._topology.served))

    @property
    def there(self) -> Sequence[bytes]:
        """The lists that are known, not more than can be counted at once."""
        return list(itertools.islice(self._there, LOOK_KEYS))

    def counted(self, keys: Sequence[bytes], lengths: Sequence[int]) -> Mapping[bytes, int]:
        """The lengths of `there` at the moment of the topology that was set. An empty
        list in a slot on its way has gone ahead; it is not removed but moves."""
        counts: dict[bytes, int] = {}
        for key, length in zip(keys, lengths, strict=True):
            if self._topology is None or not self.serves(key):
                continue
            if length or slot_of(key) not in self._topology.migrating:
                counts[key] = length
            if key in counts and not length:
                self._there.pop(key, None)
        return counts

    def keys_to_look(self) -> tuple[int, list[bytes]]:
        """Keys whose lengths are to be read now, and what to call `looked` with."""
        if self._topology is None:
            return self._round, []
        self._keys = {key: None for key in self._keys if self.serves(key)}
        keys: Iterable[bytes] = self._keys or map(key_of, self._slots)
        return self._round, list(itertools.islice(keys, LOOK_KEYS))

    def looked(
        self, token: int, keys: Sequence[bytes], lengths: Sequence[int]
    ) -> Mapping[bytes, int]:
        """The lengths of the keys that `keys_to_look` gave. Of these, those that are
        lists of this node."""
        found: dict[bytes, int] = {}
        if token != self._round:
            return found
        for key, length in zip(keys, lengths, strict=True):
            self._keys.pop(key, None)
            slot = slot_of(key)
            if key == key_of(slot):
                self._slots.discard(slot)
            if length and self.serves(key):
                found[key] = length
                self._there[key] = None
        return found
