"""The fallback lists of this node: which ones exist, and which one is its own.

Each slot has one possible list, under a key whose tag was chosen for the slot, and one list
of refused events beside it. A primary pushes to one list, its home, in a slot that it serves,
and to the list of refused events beside it. It also delivers every other list
in its slots: one that came along when a slot moved here, or that was pushed by an earlier
load of the module.

Sans I/O; worker thread. Topologies and the lengths of lists go in; keys whose lengths
are to be read come out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from ..values import replace
from .slots import SLOTS, key_of, keys_of, slot_of
from .topology import Topology

# Keys of one look, at most: they take less than a millisecond of Redis' main thread.
LOOK_KEYS = 2048
# Slots that are looked at again with each reading of the topology: all 16384 in less than
# five minutes.
LOOK_SLOWLY = 64


def _keys_of(slots: Iterable[int]) -> Iterator[bytes]:
    """Yield the keys of both lists in each slot; the key that ends a look at a slot is last."""
    return itertools.chain.from_iterable(map(keys_of, slots))


def home_in(served: Set[int], migrating: Set[int] = frozenset()) -> bytes | None:
    """Return the key of the own list of a node that serves these slots; None if it serves none.

    It is in a slot that is not migrating, if there is one, and in the last of those, because
    resharding takes the first slots first.
    """
    return key_of(max(served - migrating or served)) if served else None


class Lists:
    """The lists that a primary has to deliver, and the key of its own.

    Call `begin` when this node becomes writable, and `set_topology` with each topology.
    The caller reads two kinds of lengths from Redis. Those of `keys_to_look_at`, until it
    returns none, go to `look_result`. Those of `known` are read together with each topology
    and go to `count_result`.
    """

    def __init__(self) -> None:
        self.active = False
        self._round = 0  # results of looks of an earlier round are ignored
        self._topology: Topology | None = None
        self._slots_to_look_at: set[int] = set()
        self._keys_to_look_at: dict[bytes, None] = {}  # in addition; in order
        self._known: dict[bytes, None] = {}  # in order
        self._next_slow_slot = 0

    def begin(self) -> None:
        """Start with no knowledge: this node may write its lists from now on."""
        self.end()
        self.active = True

    def end(self) -> None:
        """Stop and forget all: this node is a replica, or loads a data set."""
        self.active = False
        self._round += 1
        self._topology = None
        self._slots_to_look_at.clear()
        self._keys_to_look_at.clear()
        self._known.clear()

    def set_topology(self, topology: Topology) -> None:
        """Note which slots this node serves now. To be called only while active."""
        before: Set[int] = self._topology.served if self._topology else frozenset()
        self._slots_to_look_at |= topology.served - before
        self._slots_to_look_at &= topology.served
        self._topology = topology
        self._known = {key: None for key in self._known if self.serves(key)}
        home = self.home
        if home is not None and slot_of(home) in self._slots_to_look_at:
            # First, because on most servers home is the only list.
            own = dict.fromkeys(keys_of(slot_of(home)))
            self._keys_to_look_at = own | self._keys_to_look_at

    def slots_left(self, slots: Set[int]) -> None:
        """Note that this node does not serve these slots any more."""
        if self._topology is not None:
            served = self._topology.served - slots
            self.set_topology(replace(self._topology, served=served))

    def serves(self, key: bytes) -> bool:
        """True if this node serves the key's slot."""
        return self._topology is not None and slot_of(key) in self._topology.served

    def list_changed(self, key: bytes) -> None:
        """Look at a list again, because a client has changed it; empty: at all lists."""
        if self.active and key:
            self._keys_to_look_at[key] = None
        elif self._topology is not None:
            self._slots_to_look_at |= self._topology.served

    def look_slowly(self) -> None:
        """Look again at the next slots, also if they were served all the time.

        A list can come into such a slot without an event for the module: when a migration
        is cancelled, or repaired after a failover.
        """
        if self._topology is not None:
            slots = range(self._next_slow_slot, min(self._next_slow_slot + LOOK_SLOWLY, SLOTS))
            served = (slot for slot in slots if slot in self._topology.served)
            self._keys_to_look_at |= dict.fromkeys(_keys_of(served))
            self._next_slow_slot = slots.stop % SLOTS

    @property
    def complete(self) -> bool:
        """True if all served slots have been looked at."""
        return self._topology is not None and not self._slots_to_look_at

    @property
    def home(self) -> bytes | None:
        """The key of this node's own list; None if it serves no slot."""
        if self._topology is None:
            return None
        return home_in(self._topology.served, self._topology.migrating)

    @property
    def known(self) -> Sequence[bytes]:
        """The keys of lists that were found, at most as many as one look may have."""
        return list(itertools.islice(self._known, LOOK_KEYS))

    def count_result(self, keys: Sequence[bytes], lengths: Sequence[int]) -> Mapping[bytes, int]:
        """Take the lengths of `known`, read together with the topology that is set.

        Returns those that are valid for this node. An empty list in a migrating slot is
        left out: it was not removed but has moved to the other node ahead of its slot.
        """
        counts: dict[bytes, int] = {}
        for key, length in zip(keys, lengths, strict=True):
            if self._topology is None or not self.serves(key):
                continue
            if length or slot_of(key) not in self._topology.migrating:
                counts[key] = length
            if key in counts and not length:
                self._known.pop(key, None)
        return counts

    def keys_to_look_at(self) -> tuple[int, list[bytes]]:
        """Return the keys whose lengths are to be read now, and a token for `look_result`."""
        if self._topology is None:
            return self._round, []
        self._keys_to_look_at = {key: None for key in self._keys_to_look_at if self.serves(key)}
        keys: Iterable[bytes] = self._keys_to_look_at or _keys_of(self._slots_to_look_at)
        return self._round, list(itertools.islice(keys, LOOK_KEYS))

    def look_result(
        self, token: int, keys: Sequence[bytes], lengths: Sequence[int]
    ) -> Mapping[bytes, int]:
        """Take the lengths of `keys_to_look_at`; return those of lists of this node."""
        found: dict[bytes, int] = {}
        if token != self._round:
            return found
        for key, length in zip(keys, lengths, strict=True):
            self._keys_to_look_at.pop(key, None)
            slot = slot_of(key)
            if key == key_of(slot):
                self._slots_to_look_at.discard(slot)
            if length and self.serves(key):
                found[key] = length
                self._known[key] = None
        return found
