"""The watch on the cluster: its topology, and the fallback lists of this node.

A server that is in no cluster has one list, under `tables.keys.KEY`; for a node of a
cluster see lists.py.

Sans I/O; worker thread. Jobs for Redis' main thread come out, their results go in. The
lists that were found are reported to their keeper, the publisher.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Protocol

from ..fallback import lengths_job
from ..jobs import Command, Job, JobResult, Lengths, Reply
from .lists import Lists, home_in
from .topology import ALONE, Topology, read_topology

# Seconds between readings of the topology, and before the next one if it is in doubt.
READ_EVERY = 1.0
READ_AGAIN = 0.2
# After so many failures in a row this node works without lists and without peers.
READ_FAILURES = 3
# With more nodes the topology is read less often: with 1000 nodes it takes 1-3 ms of
# Redis' main thread.
READ_NODES = 200


class Keeper(Protocol):
    """The publisher, which delivers the lists.

    `known`: False if the keeper needs to know its lists again. `unserved_key`:
    the list that the keeper could not reach because its slot was not served.
    """

    known: bool
    unserved_key: bytes | None

    def found(self, lengths: Mapping[bytes, int]) -> None: ...

    def set_lists(self, home: bytes | None, serves: Callable[[bytes], bool]) -> None: ...

    def leave(self, serves: Callable[[bytes], bool]) -> None: ...


class ClusterWatch:
    """Reads the topology, looks at the lists, and reports to the keeper.

    Servers announce no change of the topology, except for atomic slot migrations. So it is
    read regularly, and soon after the keeper has found that this node does not serve a slot any
    more.
    """

    def __init__(self, keeper: Keeper, clock: Callable[[], float], *, clustered: bool) -> None:
        self.topology = ALONE
        self.topology_known = not clustered  # it was read, or cannot be read
        self.problem = ""  # for the log; its reader sets it back to ""
        self._failures = 0
        self._clustered = clustered
        self._keeper = keeper
        self._clock = clock
        self._lists = Lists()
        self._read_at = self._last_read = clock()
        self._reported = False  # the lists in the present topology
        # The job under way, and its keys. Its token is None if it reads the topology.
        self._job_running = False
        self._job_is_old = False  # slots have left since it began: its result is ignored
        self._token: int | None = None
        self._keys: Sequence[bytes] = ()

    def set_role(self, *, writable: bool) -> None:
        """Note whether this node is a primary and is not loading."""
        if writable == self._lists.active:
            return
        if writable:
            self._lists.begin()
            self._read_at = self._clock()
        else:
            self._lists.end()

    def list_changed(self, key: bytes) -> None:
        """Look at a list again, because a client has changed it; empty: at all lists."""
        self._lists.list_changed(key)
        self._read_at = min(self._read_at, self._last_read + READ_AGAIN)

    def slots_moved(self, slots: Set[int], *, came: bool) -> None:
        """Note that slots were handed over at once, to this node (`came`) or by it.

        The lists in slots that have left are left at once: the slots may be back before the
        topology is read, and another node may have changed their lists meanwhile.
        """
        self._read_at = self._clock()
        if came:
            return
        self._job_is_old = self._job_running
        self._lists.slots_left(slots)
        self._keeper.leave(self._lists.serves)
        if self._keeper.known:
            self._keeper.set_lists(self._lists.home, self._lists.serves)

    @property
    def inherited_home(self) -> bytes | None:
        """Return the key of this node's own list if it has to take over from its primary; None if
        it is no replica."""
        return None if self._lists.active else home_in(self.topology.inherited)

    def repair(self) -> None:
        """Start again after an exception: the job under way is lost."""
        self._job_running = self._job_is_old = False
        self._read_at = self._clock()

    def poll(self) -> Job | None:
        """Return the next job; its result goes to `done`."""
        if self._job_running:
            return None
        if self._clock() >= self._next_read():
            job = self._read_job()
            if job is not None:
                return job
            self._set_topology(ALONE)
        self._token, self._keys = self._lists.keys_to_look_at()
        if self._keys:
            self._job_running = True
            return lengths_job(self._keys)
        if self._lists.complete and not self._reported:
            self._report(self._lists.home, self._lists.serves)
        return None

    def _read_job(self) -> Job | None:
        """Return the job that reads the topology and the lengths of the known lists.

        One job does both, so that the lengths are those of the topology's moment. None if
        there is nothing to read.
        """
        self._last_read = self._clock()
        self._read_at = self._last_read + READ_EVERY * self._scale
        if self._keeper.unserved_key is not None:
            self._lists.list_changed(self._keeper.unserved_key)
            self._keeper.unserved_key = None
        self._token, self._keys = None, self._lists.known
        commands: list[Command | Lengths] = [Lengths(self._keys)]
        if self._clustered:
            commands.insert(0, Command("CLUSTER", [b"NODES"]))
            self._lists.look_slowly()
        elif not self._keys:
            return None
        self._job_running = True
        return Job(commands)

    def wake_at(self) -> float | None:
        """Return the time at which to call `poll` again if nothing else happens."""
        if self._job_running:
            return None  # the end of the job wakes the worker
        return self._next_read() if self._clustered or self._lists.active else None

    @property
    def _scale(self) -> float:
        """The factor by which a large topology is read less often."""
        return max(1.0, len(self.topology.nodes) / READ_NODES)

    def _next_read(self) -> float:
        if self._lists.active and self._reported and not self._keeper.known:
            return min(self._read_at, self._last_read + READ_AGAIN * self._scale)
        return self._read_at

    def done(self, result: JobResult) -> None:
        """Take the replies of the job that `poll` returned."""
        is_old = self._job_is_old
        self._job_running = self._job_is_old = False
        if is_old:
            return
        if self._token is not None:
            lengths = self._lists.look_result(self._token, self._keys, _lengths(result, 0))
            self._keeper.found(lengths)
        elif not self._clustered:
            self._topology_read(ALONE, _lengths(result, 0))
        else:
            try:
                topology = _topology(result.reply(0))
            except ValueError as error:
                self._topology_failed(error)
                return
            self._failures = 0
            self._topology_read(topology, _lengths(result, 1))

    def _topology_read(self, topology: Topology, lengths: Sequence[int]) -> None:
        self._set_topology(topology)
        self._keeper.found(self._lists.count_result(self._keys, lengths))

    def _topology_failed(self, error: ValueError) -> None:
        """Note a failure; after several in a row, report that there are no lists.

        A renamed CLUSTER command, for example, fails every time.
        """
        self.problem = f"CLUSTER NODES: {error}"
        self._failures += 1
        if self._failures < READ_FAILURES:
            return
        self.topology_known = True
        if not self._reported:
            self._report(None, lambda key: False)

    def _report(self, home: bytes | None, serves: Callable[[bytes], bool]) -> None:
        self._reported = True
        self._keeper.set_lists(home, serves)

    def _set_topology(self, topology: Topology) -> None:
        self.topology = topology
        self.topology_known = True
        if self._lists.active:
            self._lists.set_topology(topology)
        self._reported = False


def _topology(reply: Reply) -> Topology:
    """Return the topology in a reply. Raises ValueError if there is none."""
    if not isinstance(reply, bytes):
        raise ValueError(str(reply))
    return read_topology(reply.decode("utf-8", "replace"))


def _lengths(result: JobResult, number: int) -> list[int]:
    """Return the lengths that a command of the job has read; 0 for a key that is no list."""
    lengths = result.reply(number)
    if not isinstance(lengths, list):
        raise ValueError(f"no lengths: {lengths!r}")
    return [max(length, 0) for length in lengths if isinstance(length, int)]
