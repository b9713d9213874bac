"""A worker as commands see it, without servers, and a way to carry a command out on it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from keyspace_amqp import commands
from keyspace_amqp.cluster.peers import Outcome
from keyspace_amqp.cluster.slots import SLOTS
from keyspace_amqp.cluster.topology import ALONE, Node, Topology
from keyspace_amqp.cluster.wire import Register
from keyspace_amqp.commands import CommandError, answer, encode
from keyspace_amqp.config import Config
from keyspace_amqp.jobs import Job, JobError, JobResult, SetParameters
from keyspace_amqp.publisher.aside import GivenUp
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.parameters import PARAMETERS
from keyspace_amqp.tables.stats import Stat
from tests.pure.resp import to_resp

CONNECT, CONFIG, KEYMASK = b"keyspaceamqp.connect", b"keyspaceamqp.config", b"keyspaceamqp.keymask"
FALLBACK = b"keyspaceamqp.fallback"
SNAPSHOT = b"keyspaceamqp.snapshot"
STATS, DISCONNECT = b"keyspaceamqp.stats", b"keyspaceamqp.disconnect"
CLUSTER = b"keyspaceamqp.cluster"

OK = (b"+OK\r\n", 0)
# The result of a look at an empty list.
NOTHING = [(b"*0\r\n", 0), (b"*1\r\n:0\r\n", 0)]


def nodes_of(*others: str, primary: bool = True) -> Topology:
    """This node, `me`, and others; an id is an address too."""
    nodes = {name: Node(name, f"{name}:7000", primary, False) for name in ("me", *others)}
    return Topology("me", nodes, frozenset(range(SLOTS)))


class FakeHandler:
    """Stands for the worker as commands use it; records its calls."""

    def __init__(self, topology: Topology = ALONE, **changed: bytes) -> None:
        self.raw_config: Sequence[bytes] = [
            changed.get(s.name.replace("-", "_"), s.default.encode()) for s in PARAMETERS
        ]
        self.config = Config.from_values(self.raw_config)
        self.calls: list[str] = []
        self.purged: int | JobError = 3
        self.aside: list[GivenUp] = []
        self.snapshot_runs = False
        self.started: int | JobError = 42
        self.topology = topology
        self.clustered = topology is not ALONE
        self.writable = True
        self.list_keys: Sequence[bytes] | None = [KEY]
        self.keys_found: Sequence[bytes] | None = None  # what a look finds
        self.outcome = Outcome()  # what the other nodes answer
        self.registers: dict[str, Register] = {}
        self.setting = False
        self.behind: Sequence[str] = ()
        self.told: list[Mapping[str, bytes]] = []  # to the other nodes, to set
        self.ran: list[Sequence[bytes]] = []  # by the other nodes

    def counters(self) -> dict[str, int]:
        return {stat.name.lower(): 100 + stat for stat in Stat}

    def node_state(self) -> dict[str, str | int]:
        return {"role": "primary", "state": "idle", "fallback_length": 7, "last_error": "h\u00e9"}

    def connect(self) -> None:
        self.calls.append("connect")

    def disconnect(self) -> None:
        self.calls.append("disconnect")

    def drain(self) -> int:
        self.calls.append("drain")
        return 17

    def set_aside(self, count: int) -> Sequence[GivenUp]:
        return self.aside[:count]

    def purge(self, done: commands.Resume) -> None:
        self.calls.append("purge")
        done(self.purged)

    def when_lists_known(self, done: commands.Resume) -> None:
        self.list_keys = self.list_keys or self.keys_found
        done(None)

    def imported(self, key: bytes, length: int, count: int) -> None:
        self.calls.append(f"imported {key.decode()} {length} {count}")

    def snapshot_start(self, rate: int, masks: Sequence[bytes], done: commands.Resume) -> None:
        self.calls.append(f"snapshot {rate} {b' '.join(masks).decode()}".strip())
        done(self.started)

    def snapshot_stop(self) -> int:
        self.calls.append("snapshot_stop")
        return 1

    def reset_stats(self) -> None:
        self.calls.append("reset_stats")

    def lock_parameters(self, done: commands.Resume) -> None:
        assert not self.setting
        self.setting = True
        done(None)

    def unlock_parameters(self) -> None:
        assert self.setting
        self.setting = False

    def assign(self, values: Mapping[str, bytes]) -> Mapping[str, Register]:
        version = (len(self.registers), "me")
        registers = {name: Register(version, value) for name, value in values.items()}
        self.registers |= registers
        return registers

    def merge(self, registers: Mapping[str, Register]) -> Mapping[str, bytes]:
        newer = {
            name: register
            for name, register in registers.items()
            if name not in self.registers or register.version > self.registers[name].version
        }
        self.registers |= newer
        return {name: register.value for name, register in newer.items()}

    def outdated(self, registers: Mapping[str, Register]) -> Sequence[str]:
        return self.behind

    def tell(self, registers: Mapping[str, Register], done: commands.Resume) -> None:
        assert all(self.registers[name] == register for name, register in registers.items())
        self.told.append({name: register.value for name, register in registers.items()})
        done(self.outcome)

    def run_elsewhere(self, words: Sequence[bytes], done: commands.Resume) -> None:
        self.ran.append(words)
        done(self.outcome)


Results = Sequence[Sequence[tuple[bytes | None, int]]]


class Run:
    """Carries out a command; its jobs get the given results, in their order."""

    def __init__(
        self, handler: FakeHandler, *arguments: bytes, results: Results = (), asked: bool = False
    ) -> None:
        self.jobs: list[Job] = []
        self.reply: Any = None
        self.run(answer(handler, arguments, asked=asked), results)
        encode(self.reply)  # whatever it is, it can be sent
        json.dumps(commands.to_json(self.reply))  # to a node, too

    def run(self, steps: commands.Steps, results: Results) -> None:
        waiting = list(results)
        value: Any = None
        while True:
            try:
                wait = steps.send(value)
            except StopIteration as stop:
                self.reply = stop.value
                break
            except CommandError:
                assert not waiting, "fewer jobs than results"
                raise
            if isinstance(wait, Job):
                self.jobs.append(wait)
                value = JobResult(list(waiting.pop(0)))
            else:
                brought: list[Any] = []
                wait(brought.append)
                (value,) = brought
        assert not waiting, "fewer jobs than results"


def config_set(*pairs: tuple[bytes, bytes]) -> list[Job]:
    """The one job that sets parameters: all or none."""
    return [Job([SetParameters([text for pair in pairs for text in pair])])]


def refused(*arguments: bytes, handler: FakeHandler | None = None, **keywords: Any) -> str:
    """The error of a command that changes nothing."""
    handler = handler or FakeHandler()
    with pytest.raises(CommandError) as caught:
        Run(handler, *arguments, **keywords)
    assert (handler.calls, handler.told, handler.ran, handler.registers) == ([], [], [], {})
    return str(caught.value)


def peeked(*elements: bytes, length: int | None = None) -> Sequence[tuple[bytes, int]]:
    """The result of a read of the first elements; `length`: of the list, if it has more."""
    return [(to_resp(list(elements)), 0), (to_resp([length or len(elements)]), 0)]


def lengths(*numbers: int) -> Sequence[tuple[bytes, int]]:
    """The result of a look at the lists."""
    return [(to_resp(list(numbers)), 0)]


def clustered(answers: Mapping[str, Any] | None = None, **missing: str) -> FakeHandler:
    """A handler in a cluster whose other nodes answer, or are missing for a reason."""
    answers = answers or {}
    handler = FakeHandler(nodes_of(*answers, *missing))
    handler.outcome = Outcome(dict(answers), dict(missing))
    return handler


def spread_over(result: Any, nodes: int, *missing: bytes) -> dict[bytes, Any]:
    """The reply of a command that was carried out on this many nodes."""
    return {
        b"result": result,
        b"nodes": nodes,
        b"of": nodes + len(missing),
        b"missing": list(missing),
    }
