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

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from ..fallback import lengths_job
from ..jobs import Command, Job, JobResult, Lengths
from .lists import Lists
from .slots import tags
from .topology import ALONE, Topology, read_topology

# How often the topology is read; and how soon when the present one is doubtful.
READ_EVERY = 1.0
READ_AGAIN = 0.2
# If it cannot be read so often in a row, it has to go without.
READ_FAILURES = 3
# With more nodes than this, less often: 1000 nodes are 1-3 ms of Redis' main thread.
READ_NODES = 200


class Keeper(Protocol):
    """Who works with the lists: the publisher. `unserved_key`: the list that it has come upon
    in a slot that was not served."""

    known: bool
    unserved_key: bytes | None

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
            tags()  # now, while the load is waited for, and not when events are
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
            if self._keeper.unserved_key is not None:
                self._lists.touched(self._keeper.unserved_key)
                self._keeper.unserved_key = None
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
        if self._lists.active and self._told and not self._keeper.known:
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
