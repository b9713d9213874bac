"""The implementation of commands/handler.py: access to the worker for commands.

Worker thread; nothing here waits.
"""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence

from ..cluster.peers import Peers
from ..cluster.topology import Topology
from ..cluster.watch import ClusterWatch
from ..cluster.wire import Register
from ..commands import Resume
from ..config import Config
from ..publisher.aside import GivenUp
from ..publisher.publisher import Publisher
from ..tables.stats import Stat
from .parameters import Parameters
from .snapshot import Snapshot
from .status import Status


class Handler:
    """See commands.handler.Handler for the meaning of each method."""

    def __init__(
        self,
        parameters: Parameters,
        publisher: Publisher,
        watch: ClusterWatch,
        peers: Peers,
        status: Status,
        snapshot: Snapshot,
        *,
        clustered: bool,
    ) -> None:
        self.clustered = clustered
        self._parameters = parameters
        self._publisher = publisher
        self._watch = watch
        self._peers = peers
        self._status = status
        self._snapshot = snapshot
        # Commands that set parameters: the first holds the lock, the others wait for it.
        self._setting: collections.deque[Resume] = collections.deque()
        # Commands that wait until the lists are known.
        self._need_lists: list[Resume] = []

    # ---- this node ---------------------------------------------------------

    @property
    def config(self) -> Config:
        return self._parameters.config

    @property
    def raw_config(self) -> Sequence[bytes]:
        return self._parameters.values

    def lock_parameters(self, done: Resume) -> None:
        self._setting.append(done)
        if len(self._setting) == 1:
            done(None)

    def unlock_parameters(self) -> None:
        self._setting.popleft()
        if self._setting:
            self._setting[0](None)

    def connect(self) -> None:
        self._publisher.connect()

    def disconnect(self) -> None:
        self._publisher.disconnect()

    def counters(self) -> dict[str, int]:
        return self._status.counters()

    def node_state(self) -> dict[str, str | int]:
        return self._status.node_state()

    def reset_stats(self) -> None:
        self._status.reset()

    @property
    def snapshot_runs(self) -> bool:
        return self._snapshot.runs

    def snapshot_start(self, rate: int, masks: Sequence[bytes], done: Resume) -> None:
        self._snapshot.start(rate, masks, done)

    def snapshot_stop(self) -> int:
        return self._snapshot.stop()

    # ---- the lists ---------------------------------------------------------

    @property
    def writable(self) -> bool:
        return self._publisher.writable

    @property
    def list_keys(self) -> Sequence[bytes] | None:
        return self._publisher.list_keys

    def when_lists_known(self, done: Resume) -> None:
        if self.writable and self.list_keys is None:
            self._need_lists.append(done)
        else:
            done(None)

    def resume_commands(self) -> None:
        """Resume the commands that wait for the lists, if the lists are known now."""
        waiting, self._need_lists = self._need_lists, []
        for resume in waiting:
            self.when_lists_known(resume)

    def set_aside(self, count: int) -> Sequence[GivenUp]:
        return self._publisher.aside.newest(count)

    def drain(self) -> int:
        self._publisher.drain()
        self._watch.list_changed(b"")
        return self._publisher.gauges()[Stat.FALLBACK_LENGTH]

    def purge(self, done: Resume) -> None:
        self._publisher.purge(done)

    def imported(self, key: bytes, length: int, count: int) -> None:
        self._publisher.imported(key, length, count)
        if not self._publisher.works_with(key):
            self._watch.list_changed(key)

    # ---- the other nodes ---------------------------------------------------

    @property
    def topology(self) -> Topology:
        return self._watch.topology

    def assign(self, values: Mapping[str, bytes]) -> Mapping[str, Register]:
        return self._peers.assign(values)

    def merge(self, registers: Mapping[str, Register]) -> Mapping[str, bytes]:
        return self._peers.merge(registers)

    def outdated(self, registers: Mapping[str, Register]) -> Sequence[str]:
        return self._peers.outdated(registers)

    def tell(self, registers: Mapping[str, Register], done: Resume) -> None:
        self._peers.tell(registers, done)

    def run_elsewhere(self, words: Sequence[bytes], done: Resume) -> None:
        self._peers.run(words, done)
