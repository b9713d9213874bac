"""The cluster as this node sees it: the nodes, their slots, and which fallback lists
are ours.

Each slot has one possible list, under a key whose tag was chosen for the slot. A
primary works with one list, in a slot that it serves; and it delivers every other
list that it finds in its slots: one that a slot brought along when it moved here,
or that an earlier life has left. A server outside of a cluster has the list under `fallback.KEY`.

Sans I/O, one thread: the text of CLUSTER NODES and the lengths of keys go in, keys
to look at come out.
"""

from __future__ import annotations

import binascii
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Protocol

from .fallback import KEY, Command, Job, JobResult, Lengths, lengths_job

SLOTS = 16384
# Keys of one look: less than a millisecond of Redis' main thread.
LOOK_KEYS = 2048
# Slots that are looked at anyhow each time that the topology is read: all in less than
# five minutes. (Redis 7.0 counts each in keyspace_misses.)
LOOK_SLOWLY = 64
# How often the topology is read; and how soon when the present one is doubtful.
READ_EVERY = 1.0
READ_AGAIN = 0.2
# If it cannot be read so often in a row, it has to go without.
READ_FAILURES = 3
# With more nodes than this, less often: 1000 nodes are 1-3 ms of Redis' main thread.
READ_NODES = 200

# Flags of CLUSTER NODES.
_MYSELF = "myself"
_NO_MEMBER = "handshake"
# "fail?": does not answer this node. It is not waited for; it catches up.
_FAILING = frozenset({"fail", "fail?", "noaddr"})


def slot_of(key: bytes) -> int:
    """The slot of a key (Redis Cluster specification, "Hash tags")."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


@functools.cache
def _tags() -> Sequence[bytes]:
    """Per slot the smallest number that, as a tag, lies there: in slot 13907 that of
    `fallback.KEY`."""
    tags: list[bytes | None] = [None] * SLOTS
    missing, number = SLOTS, 0
    while missing:
        tag = b"%d" % number
        slot = binascii.crc_hqx(tag, 0) % SLOTS
        if tags[slot] is None:
            tags[slot] = tag
            missing -= 1
        number += 1
    return [tag for tag in tags if tag is not None]


def key_of(slot: int) -> bytes:
    """The key of the list in a slot."""
    if slot == _KEY_SLOT:
        return KEY
    return b"keyspaceamqp:{%b}:fallback" % _tags()[slot]


@dataclasses.dataclass(frozen=True)
class Node:
    """A member of the cluster."""

    id: str
    address: str  # host:port for clients
    primary: bool
    failing: bool


@dataclasses.dataclass(frozen=True)
class Topology:
    """What CLUSTER NODES says. `served`: the slots of this node; `migrating`: those
    of them that are on their way to another."""

    myself: str
    nodes: Mapping[str, Node]
    served: Set[int]
    migrating: Set[int] = frozenset()


# A server that is not in cluster mode.
_KEY_SLOT = slot_of(KEY)
ALONE = Topology("", {"": Node("", "", primary=True, failing=False)}, {_KEY_SLOT})


def _slots(first: str, last: str) -> range:
    """These slots and all between them. Raises ValueError if there are no such."""
    slots = range(int(first), int(last) + 1)
    if not slots or slots[0] < 0 or slots[-1] >= SLOTS:
        raise ValueError(f"there are no slots {first!r} to {last!r}")
    return slots


def read_topology(text: str) -> Topology:
    """Reads the reply of CLUSTER NODES. Raises ValueError for what is none."""
    nodes: dict[str, Node] = {}
    myself = ""
    served: set[int] = set()
    migrating: set[int] = set()
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) < 8:
            raise ValueError(f"{line!r} is no line of CLUSTER NODES")
        node_id, address, flags = words[0], words[1], frozenset(words[2].split(","))
        if _MYSELF in flags:
            myself = node_id
            for word in words[8:]:
                if word.startswith("["):
                    slot, leaves, _ = word[1:].partition("->-")
                    if leaves:
                        migrating.update(_slots(slot, slot))
                else:
                    first, _, last = word.partition("-")
                    served.update(_slots(first, last or first))
        elif _NO_MEMBER in flags:
            continue
        nodes[node_id] = Node(
            node_id, address.partition("@")[0], "master" in flags, bool(flags & _FAILING)
        )
    if not myself:
        raise ValueError("CLUSTER NODES does not say which node this is")
    return Topology(myself, nodes, served, migrating)


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


class Keeper(Protocol):
    """Who works with the lists: the publisher. `left`: the list that it has come upon
    in a slot that was not served."""

    lists_known: bool
    left: bytes | None

    def found(self, lengths: Mapping[bytes, int]) -> None: ...

    def set_lists(self, home: bytes | None, serves: Callable[[bytes], bool]) -> None: ...


class Watch:
    """Reads the topology and looks at the lists, as jobs on Redis' main thread, and
    tells the keeper.

    Servers have no event for a change of the topology, so it is read once in a while,
    and soon after the keeper has come upon a slot that is not served any more.
    """

    def __init__(self, keeper: Keeper, clock: Callable[[], float], *, clustered: bool) -> None:
        if clustered:
            _tags()  # now, while the load is waited for, and not when events are
        self.topology = ALONE
        self.known = not clustered  # the topology was read, or cannot be
        self.problem = ""
        self._failures = 0
        self._clustered = clustered
        self._keeper = keeper
        self._clock = clock
        self._lists = Lists()
        self._read_at = self._last_read = clock()
        self._told = False
        # The job under way, and its keys; the token of a look, None for a reading.
        self._busy = False
        self._token: int | None = None
        self._keys: Sequence[bytes] = ()

    def set_role(self, *, writable: bool) -> None:
        """`writable`: this node is a primary and not loading."""
        if writable == self._lists.active:
            return
        if writable:
            self._lists.begin()
            self._read_at = self._clock()
        else:
            self._lists.end()

    def touched(self, key: bytes) -> None:
        """Somebody else did something to this list; empty: to all of them."""
        self._lists.touched(key)
        self._read_at = min(self._read_at, self._last_read + READ_AGAIN)

    def repair(self) -> None:
        """No job of this is on its way."""
        self._busy = False
        self._read_at = self._clock()

    def poll(self) -> Job | None:
        """The next job; its result goes to `done`."""
        if self._busy:
            return None
        now = self._clock()
        if now >= self._next_read():
            self._last_read = now
            self._read_at = now + READ_EVERY * self._scale
            if self._keeper.left is not None:
                self._lists.touched(self._keeper.left)
                self._keeper.left = None
            # At one moment: where the slots are, and what is in them.
            self._token, self._keys = None, self._lists.there
            commands: list[Command | Lengths] = [Lengths(self._keys)]
            if self._clustered:
                commands.insert(0, Command("CLUSTER", [b"NODES"]))
                self._lists.look_slowly()
            if self._clustered or self._keys:
                self._busy = True
                return Job(commands)
            self._set_topology(ALONE)
        self._token, self._keys = self._lists.keys_to_look()
        if self._keys:
            self._busy = True
            return lengths_job(self._keys)
        if self._lists.complete and not self._told:
            self._told = True
            self._keeper.set_lists(self._lists.home, self._lists.serves)
        return None

    def wake_at(self) -> float | None:
        """When poll has to be called again if nothing else happens."""
        if self._busy:
            return None  # the end of the job wakes the worker
        return self._next_read() if self._clustered or self._lists.active else None

    @property
    def _scale(self) -> float:
        """With many nodes the topology is a long text."""
        return max(1.0, len(self.topology.nodes) / READ_NODES)

    def _next_read(self) -> float:
        if self._lists.active and self._told and not self._keeper.lists_known:
            return min(self._read_at, self._last_read + READ_AGAIN * self._scale)
        return self._read_at

    def done(self, result: JobResult) -> None:
        """The replies of the job that `poll` gave."""
        self._busy = False
        if self._token is not None:
            self._keeper.found(self._lists.looked(self._token, self._keys, _numbers(result, 0)))
        elif not self._clustered:
            self._set_topology(ALONE)
            self._keeper.found(self._lists.counted(self._keys, _numbers(result, 0)))
        else:
            text = result.reply(0)
            try:
                if not isinstance(text, bytes):
                    raise ValueError(str(text))
                topology = read_topology(text.decode("utf-8", "replace"))
            except ValueError as error:
                # Renamed, say: better without a list than to wait for ever.
                self.problem = f"CLUSTER NODES: {error}"
                self._failures += 1
                if self._failures < READ_FAILURES:
                    return
                self.known = True
                if not self._told:
                    self._told = True
                    self._keeper.set_lists(None, lambda key: False)
                return
            self._failures = 0
            self._set_topology(topology)
            self._keeper.found(self._lists.counted(self._keys, _numbers(result, 1)))

    def _set_topology(self, topology: Topology) -> None:
        self.topology = topology
        self.known = True
        if self._lists.active:
            self._lists.set_topology(topology)
        self._told = False


def _numbers(result: JobResult, number: int) -> list[int]:
    lengths = result.reply(number)
    if not isinstance(lengths, list):
        raise ValueError(f"no lengths: {lengths!r}")
    return [length for length in lengths if isinstance(length, int)]
