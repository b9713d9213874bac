"""Requests of the main thread, and the calls that each causes in the worker's parts. Without
the compiled module."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from keyspace_amqp.broker.target import needs_new_connection
from keyspace_amqp.cluster.topology import ALONE
from keyspace_amqp.config import Config
from keyspace_amqp.publisher.actions import FlushMode
from keyspace_amqp.publisher.list_jobs import CHECK_EVERY
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.parameters import INDEX, PARAMETERS
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.worker import log
from keyspace_amqp.worker.handler import Handler
from keyspace_amqp.worker.lanes import Lane
from keyspace_amqp.worker.outbox import Outbox
from keyspace_amqp.worker.parameters import Parameters
from keyspace_amqp.worker.records import LISTED, Kind, Listed
from keyspace_amqp.worker.requests import Requests
from tests.publisher.bench import Bench
from tests.worker.fakes import Failures, FakeShim, counted, record

DEFAULTS = [parameter.default.encode() for parameter in PARAMETERS]


def values(**changed: bytes) -> list[bytes]:
    new = list(DEFAULTS)
    for name, value in changed.items():
        new[INDEX[name.replace("_", "-")]] = value
    return new


class Part:
    """A part of the worker that records each call of its methods."""

    def __init__(self, name: str, heard: list[tuple[Any, ...]], **attributes: Any) -> None:
        self._name = name
        self._heard = heard
        vars(self).update(attributes)

    def __getattr__(self, method: str) -> Callable[..., Any]:
        def hear(*arguments: Any, **named: Any) -> None:
            more = [named] if named else []
            self._heard.append((f"{self._name}.{method}", *arguments, *more))

        return hear


class World:
    def __init__(self) -> None:
        self.shim = FakeShim()
        self.failures = Failures()
        self.heard: list[tuple[Any, ...]] = []
        self.publisher: Any = Part(
            "publisher", self.heard, works_with=KEY.__eq__, writable=True, list_keys=None,
            gauges=lambda: {Stat.FALLBACK_LENGTH: 17},
        )  # fmt: skip
        self.watch: Any = Part("watch", self.heard, topology=ALONE)
        self.peers: Any = Part("peers", self.heard)
        self.identity: Any = Part("identity", self.heard)
        self.status: Any = Part("status", self.heard)
        self.outbox: Any = Part("outbox", self.heard)
        self.snapshot: Any = Part("snapshot", self.heard, runs=False)
        self.parameters = Parameters(
            DEFAULTS, Config.from_values(DEFAULTS), self.identity, self.publisher,
            self.shim.set_nice,
        )  # fmt: skip
        self.handler = Handler(
            self.parameters, self.publisher, self.watch, self.peers, self.status, self.snapshot,
            clustered=False,
        )  # fmt: skip
        self.lane = Lane(lambda job, done: None, self.failures)
        self.connect()

    def connect(self) -> None:
        """Make the requests with the parts as they are now."""
        self.requests = Requests(
            self.shim, self.lane, self.handler, self.parameters, self.publisher, self.watch,
            self.peers, self.outbox, self.failures,
        )  # fmt: skip

    def request(self, kind: Kind, payload: bytes) -> list[tuple[Any, ...]]:
        """Return the calls that a request causes."""
        self.heard.clear()
        self.shim.requests.push(record(kind, payload))
        self.requests.take()
        assert self.shim.requests.length == 0
        return self.heard

    def set(self, new: Sequence[bytes]) -> list[tuple[Any, ...]]:
        return self.request(Kind.CONFIG, counted(*new))


@pytest.fixture
def world() -> World:
    return World()


@pytest.mark.parametrize(
    ("payload", "primary", "loading", "agreed", "writable"),
    [
        (b"\1\0\0", True, False, False, True),
        (b"\1\1\0", True, True, False, False),
        (b"\0\0\1", False, False, True, False),
    ],
)
def test_a_role(
    world: World, payload: bytes, primary: bool, loading: bool, agreed: bool, writable: bool
) -> None:
    assert world.request(Kind.ROLE, payload) == [
        ("publisher.set_role", {"primary": primary, "loading": loading, "agreed": agreed}),
        ("watch.set_role", {"writable": writable}),
    ]


def changed(jobs: int, what: bytes, key: bytes = b"") -> bytes:
    """The request of a list that was changed."""
    return record(Kind.LIST_CHANGED, struct.pack("=Q", jobs) + counted(what, key))


def test_requests_about_lists_are_carried_out_between_the_results_of_jobs(world: World) -> None:
    told = (1, 1, 1, 20, 20, 0)
    world.shim.requests.push(
        changed(0, b"del", b"key"),
        record(Kind.LISTED, LISTED.pack(*told) + KEY),
        changed(1, b"flushdb"),
        record(Kind.ROLE, b"\1\0\0"),
        changed(2, b"evicted"),
    )
    world.requests.take()
    assert [name for name, *_ in world.heard] == ["publisher.set_role", "watch.set_role"]
    world.heard.clear()
    world.requests.book(0)
    assert world.heard == [
        ("publisher.list_changed", b"del", b"key"),
        ("watch.list_changed", b"key"),
    ]
    world.heard.clear()
    world.requests.book(1)
    assert world.heard == [
        ("outbox.listed", Listed(*told, KEY)),
        ("publisher.list_changed", b"flushdb", b""),
        ("watch.list_changed", b""),
    ]
    world.heard.clear()
    world.requests.book(3)
    assert [name for name, *_ in world.heard] == ["publisher.list_changed", "watch.list_changed"]


def test_each_loss_has_the_reason_of_its_own_change() -> None:
    """A worker that is behind gets many requests at once, and the results of jobs with them."""
    world = World()
    bench = Bench(outbox="reply")
    world.publisher = bench.publisher
    world.outbox = Outbox(
        world.shim, bench.publisher.outbox, lambda job, done: None, lambda: 0, lambda: None
    )
    world.connect()
    bench.lose_link()
    jobs = 0
    losses = [b"flushdb", b"evicted", b"flushdb", b"expired", b"del", b"swapdb"]
    for what in losses:  # seen by the next request of the outbox
        world.shim.requests.push(
            record(Kind.LISTED, LISTED.pack(jobs, 1, 1, 10, 10, 0) + KEY), changed(jobs, what)
        )
    world.shim.requests.push(record(Kind.LISTED, LISTED.pack(jobs, 1, 1, 10, 10, 0) + KEY))
    world.requests.take()
    world.requests.book(jobs)
    dropped = {stat: bench.count(stat) for stat in Stat if stat.name.startswith("DROPPED_FALLBACK")}
    assert {stat: count for stat, count in dropped.items() if count} == {
        Stat.DROPPED_FALLBACK_FLUSHED: 30,
        Stat.DROPPED_FALLBACK_EVICTED: 10,
        Stat.DROPPED_FALLBACK_EXPIRED: 10,
        Stat.DROPPED_FALLBACK_REMOVED: 10,
    }


def test_a_loss_that_a_job_finds_has_the_reason_of_the_change_before_the_job() -> None:
    """Also without an outbox: one change came before a job ran, the other one after that."""
    world = World()
    bench = Bench(found=3)
    world.publisher = bench.publisher
    world.connect()
    bench.lose_link()
    bench.wait(CHECK_EVERY)
    assert bench.count(Stat.FALLBACK_LENGTH) == 3
    bench.emit(2)
    while bench.job is None:
        bench.now += 0.01
        bench.poll()
    assert next(iter(bench.job.commands)).name == "RPUSH"
    bench.list.elements.clear()
    result = bench.list.run(bench.job)
    bench.list.elements.clear()
    world.shim.requests.push(changed(0, b"evicted"), changed(1, b"flushdb"))
    world.requests.take()
    world.requests.book(0)
    bench.job = None
    bench.publisher.job_done(result)
    world.requests.book(1)
    bench.settle()
    assert bench.count(Stat.DROPPED_FALLBACK_EVICTED) == 3
    assert bench.count(Stat.DROPPED_FALLBACK_FLUSHED) == 2
    assert bench.count(Stat.DROPPED_FALLBACK_REMOVED) == 0


def test_slots_that_have_moved(world: World) -> None:
    assert world.request(Kind.SLOTS_MOVED, struct.pack("=B4H", 1, 3, 5, 7, 7)) == [
        ("watch.slots_moved", {3, 4, 5, 7}, {"came": True})
    ]


def test_a_message_of_another_node(world: World) -> None:
    heard = world.request(Kind.MESSAGE, counted(b"abc", b"text"))
    assert heard == [("peers.received", "abc", b"text")]


def test_a_flush(world: World) -> None:
    heard = world.request(Kind.FLUSH, struct.pack("=QIIB", 8500, 5, 2500, 1))
    assert heard == [("publisher.flush", 5, 2.5, FlushMode.LEAVE, 8.5)]


def test_a_command(world: World) -> None:
    """It runs in the lane of clients, and gets its own reply."""
    for handle in (7, 8):
        words = counted(b"keyspaceamqp.disconnect", b"LOCAL")
        assert world.request(Kind.COMMAND, struct.pack("=Q", handle) + words) == []
    world.lane.run()
    assert world.heard == [("publisher.disconnect",)] * 2
    assert world.shim.replies.keys() == {7, 8}
    assert all(b"OK" in reply for reply in world.shim.replies.values())


def test_a_command_with_an_error(world: World) -> None:
    world.request(Kind.COMMAND, struct.pack("=Q", 7) + counted(b"keyspaceamqp.keymask"))
    world.lane.run()
    assert b"wrong arguments" in world.shim.replies[7]


def test_a_request_over_which_the_handler_fails(world: World) -> None:
    """The other requests are carried out."""
    world.shim.requests.push(record(Kind.COMMAND, b"short"), record(Kind.ROLE, b"\1\0\0"))
    world.requests.take()
    assert world.failures.told == [""]
    assert [name for name, *_ in world.heard] == ["publisher.set_role", "watch.set_role"]
    assert world.shim.requests.length == 0


# ---- parameters --------------------------------------------------------------------------


def test_new_parameters(world: World) -> None:
    new = values(exchange=b"other", masks=b"^a")
    config = Config.from_values(new)
    assert world.set(new) == [
        ("identity.configure", config),
        ("publisher.configure", config, {"reconnect": False}),
    ]
    assert (world.handler.config, world.handler.raw_config) == (config, new)


def test_parameters_that_are_as_before(world: World) -> None:
    assert world.set(DEFAULTS) == []


@pytest.mark.parametrize(
    ("error", "words"),
    [(OSError("a filter"), "a filter"), (OSError(13, "no permission"), "no permission")],
)
def test_the_nice_value_is_set_when_it_changes(
    world: World, monkeypatch: pytest.MonkeyPatch, error: OSError, words: str
) -> None:
    logged: list[tuple[str, str]] = []
    monkeypatch.setattr(log, "_sink", lambda *line: logged.append(line))
    assert world.shim.heard == [("nice", 5)]
    world.set(values(exchange=b"other"))
    assert world.shim.heard == [("nice", 5)]
    world.shim.nice_error = error
    world.set(values(exchange=b"other", worker_nice=b"7"))
    assert world.shim.heard == [("nice", 5), ("nice", 7)]
    assert logged == [("warning", f"worker-nice 7 could not be set: {words}")]
    assert world.failures.told == []


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("host", b"other", True),
        ("port", b"5673", True),
        ("password", b"other", True),
        ("heartbeat", b"31", True),
        ("url", b"amqp://other", True),
        ("tls", b"on", True),
        ("node_name", b"other", True),
        ("exchange", b"other", False),
        ("masks", b"^a", False),
        ("queue_limit", b"99999999", False),
    ],
)
def test_parameters_that_need_another_connection(name: str, value: bytes, expected: bool) -> None:
    new = Config.from_values(values(**{name: value}))
    assert needs_new_connection(Config.from_values(DEFAULTS), new) is expected


# ---- what commands need of the worker -------------------------------------------------------


def test_parameters_are_set_by_one_command_at_a_time(world: World) -> None:
    turns: list[str] = []
    for name in "abc":
        world.handler.lock_parameters(lambda _, name=name: turns.append(name))
    assert turns == ["a"]
    world.handler.unlock_parameters()
    assert turns == ["a", "b"]
    world.handler.unlock_parameters()
    world.handler.unlock_parameters()
    world.handler.lock_parameters(lambda _: turns.append("d"))
    assert turns == ["a", "b", "c", "d"]


def test_a_look_for_the_lists_is_waited_for(world: World) -> None:
    looked: list[str] = []
    world.handler.when_lists_known(lambda _: looked.append("a"))
    world.handler.resume_commands()
    assert looked == []
    world.publisher.list_keys = [KEY]
    world.handler.resume_commands()
    world.handler.resume_commands()
    assert looked == ["a"]
    world.handler.when_lists_known(lambda _: looked.append("b"))
    assert looked == ["a", "b"]


def test_a_node_that_cannot_write_has_no_lists_to_wait_for(world: World) -> None:
    looked: list[str] = []
    world.handler.when_lists_known(lambda _: looked.append("a"))
    world.publisher.writable = False
    world.handler.resume_commands()
    assert looked == ["a"]


def test_a_drain_looks_at_all_lists(world: World) -> None:
    assert world.handler.drain() == 17
    assert world.heard == [("publisher.drain",), ("watch.list_changed", b"")]


@pytest.mark.parametrize(
    ("key", "touched"), [(KEY, []), (b"other", [("watch.list_changed", b"other")])]
)
def test_an_import_to_another_list_is_looked_at(
    world: World, key: bytes, touched: list[tuple[str, bytes]]
) -> None:
    """The publisher itself counts the list that it works with."""
    world.handler.imported(key, 5, 2)
    assert world.heard == [("publisher.imported", key, 5, 2), *touched]
