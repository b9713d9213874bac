"""The worker as the commands see it, and the waits of a command.

The worker implements `Handler`. Everything runs on the worker thread; nothing here
waits or does I/O.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, Protocol

from ..cluster.topology import Topology
from ..cluster.wire import Register
from ..config import Config
from ..jobs import Job
from ..values import mutable, value
from .replies import Reply

# Continues a command with the result of what it waited for.
Resume = Callable[[Any], None]
# A command waits for a job's result, or for a function that calls `Resume` later.
Wait = Job | Callable[[Resume], None]
# A command: yields what it waits for, is sent the result, and returns the reply.
Steps = Generator[Wait, Any, Reply]


@value
class WaitForPeers:
    """A wait for the answers of other nodes.

    The command has nothing left to do on this node, so the next command may start.
    """

    ask: Callable[[Resume], None]

    def __call__(self, done: Resume) -> None:
        self.ask(done)


class SetAside(Protocol):
    """An event that was set aside: see publisher/aside.py."""

    @property
    def element(self) -> bytes: ...

    @property
    def why(self) -> str: ...

    @property
    def at_ms(self) -> int: ...


class Handler(Protocol):
    """The worker, as far as the commands use it."""

    @property
    def config(self) -> Config: ...

    @property
    def raw_config(self) -> Sequence[bytes]:
        """The values of the parameters as the user wrote them, in the table's order."""
        ...

    @property
    def topology(self) -> Topology:
        """The nodes of the cluster; `ALONE` if this server is in no cluster."""
        ...

    @property
    def clustered(self) -> bool: ...

    @property
    def writable(self) -> bool:
        """True if this node is a primary and is not loading a data set."""
        ...

    @property
    def list_keys(self) -> Sequence[bytes] | None:
        """The keys of this node's fallback lists.

        None on a replica, and on a primary while it searches its slots for lists.
        """
        ...

    def when_lists_known(self, done: Resume) -> None:
        """Call `done` once `list_keys` is known, or at once if not `writable`."""
        ...

    def counters(self) -> dict[str, int]:
        """Return the counters and gauges by name, as STATS shows them."""
        ...

    def node_state(self) -> dict[str, str | int]:
        """Return this node's fields of a row of CLUSTER."""
        ...

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def lock_parameters(self, done: Resume) -> None:
        """Call `done` when no other command sets parameters; end this with `unlock_parameters`.

        If two commands set a parameter at the same time, the value set last might not be
        the one with the newest version.
        """
        ...

    def unlock_parameters(self) -> None: ...

    def assign(self, values: Mapping[str, bytes]) -> Mapping[str, Register]:
        """Give new versions, for all nodes, to parameters that were just set here."""
        ...

    def merge(self, registers: Mapping[str, Register]) -> Mapping[str, bytes]:
        """Take over the newer registers; return their values, which must be set now."""
        ...

    def outdated(self, registers: Mapping[str, Register]) -> Sequence[str]:
        """Return the names of the registers of which this node has a newer value."""
        ...

    def tell(self, registers: Mapping[str, Register], done: Resume) -> None:
        """Have the other nodes set parameters; `done` gets an `Outcome`."""
        ...

    def run_elsewhere(self, words: Sequence[bytes], done: Resume) -> None:
        """Have the other nodes run a command; `done` gets an `Outcome`."""
        ...

    def set_aside(self, count: int) -> Sequence[SetAside]:
        """Return at most `count` of the events that this node has set aside, newest first."""
        ...

    def drain(self) -> int:
        """Start to deliver the lists now; return the number of elements in them."""
        ...

    def purge(self, done: Resume) -> None:
        """Delete the lists; `done` gets the number of elements, or a `JobError`."""
        ...

    def imported(self, key: bytes, length: int, count: int) -> None:
        """Note that `count` elements were appended to a list, which has `length` now."""
        ...

    @property
    def snapshot_runs(self) -> bool:
        """True while a snapshot of this node is under way."""
        ...

    def snapshot_start(self, rate: int, masks: Sequence[bytes], done: Resume) -> None:
        """Begin a snapshot, with `rate` events per second at most, of the keys that these masks
        match (no masks: all). `done` gets the number of keys that there are, or a `JobError`."""
        ...

    def snapshot_stop(self) -> int:
        """End the snapshot of this node; return 1, or 0 if there is none."""
        ...

    def reset_stats(self) -> None: ...


@mutable
class Call:
    """A command that is being carried out.

    `local`: for this node alone. `asked`: a peer asked for it, for its client.
    `registers`: parameters that the command has set and that the peers must set too.
    """

    handler: Handler
    local: bool
    asked: bool
    registers: dict[str, Register]

    @property
    def for_all(self) -> bool:
        """True if the other nodes carry the command out too."""
        return self.asked or not self.local

    @property
    def is_copy(self) -> bool:
        """True if this node's list is a copy of its primary's, which answers for it."""
        return self.for_all and not self.handler.writable


# A command: its call, and the words after its name.
Command = Callable[[Call, Sequence[bytes]], Steps]


def at_once(command: Callable[[Call, Sequence[bytes]], Reply]) -> Command:
    """Make a `Command` of a function that waits for nothing."""

    @functools.wraps(command)
    def steps(call: Call, rest: Sequence[bytes]) -> Steps:
        return command(call, rest)
        yield  # makes this a generator

    return steps
