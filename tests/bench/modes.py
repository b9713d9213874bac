"""The item `outbox`: the modes of the parameter `outbox` side by side, and a bare server.

All without and with an append-only file, on servers of their own; the events of all modes go to
the same list, or to the same queue of the broker.
"""

from __future__ import annotations

import contextlib
import shutil
import statistics
from collections.abc import Iterator, Sequence

import redis

from keyspace_amqp.demo.servers import RedisServer, wait_for
from tests.fix_servers import MODULE, stats
from tests.servers import NEW_REDIS, at_least

from . import measure
from .items import CALM_US, COUNTED, Plan, arrival_times
from .measure import CLIENTS, PIPELINE, flood, ratios, thread_ns
from .report import Report
from .rig import Rig

MODES = ("off", "reply", "atomic")
BARE = "bare"
# Without and with an append-only file. It is rewritten between the rounds and not within them.
FILES: dict[str, Sequence[str]] = {
    "": (),
    "aof": ("appendonly yes", "appendfsync everysec", "auto-aof-rewrite-percentage 0"),
}
COSTS = 4  # times as many rounds for the processor time, which needs short ones only
DELAYS = 3  # rounds at most
FLOOD = 900_000  # SETs at most: `queue-limit` holds so many events

Values = dict[str, list[float]]


def outbox(rig: Rig, plan: Plan, report: Report) -> None:
    """Measure the modes."""
    # Redis 7.0 and older have no `atomic`.
    has_all = at_least(rig.family, redis="7.2", valkey="7.2")
    family = rig.family if has_all else NEW_REDIS
    for suffix, options in FILES.items():
        where = "with an append-only file, appendfsync everysec" if suffix else "nothing on disk"
        with rig.beside(f"outbox{suffix}", family, options) as other:
            name = f"outbox{suffix}"
            report.item(name, f"the modes of `outbox`, on {family}, {where}")
            _warm_up(other)
            if not suffix:
                _instructions(other, report)
            _costs(other, plan, report, name)
            _floods(other, plan, report, f"{name}_away", other.nobody)
            _floods(other, plan, report, f"{name}_up", other.broker.port)
            _delays(other, plan, report, name)


def _warm_up(rig: Rig) -> None:
    """Let both servers make their keys, buffers and threads."""
    rig.aim(rig.nobody)
    for mode in (BARE, *MODES):
        with _Turn(rig, mode) as server:
            flood(server.port, 100_000)


def _turns(rounds: int) -> Iterator[str]:
    """Yield the modes and the bare server, each once in a round, and each first in turn."""
    names = [BARE, *MODES]
    for number in range(rounds):
        yield from names[number % len(names) :] + names[: number % len(names)]


class _Turn:
    """A turn of a mode, in a `with`, which gets the server. At its end, the events that were not
    delivered are purged, and the append-only file is made small again.

    `missed`: the events that went through memory though the mode is on.
    """

    def __init__(self, rig: Rig, mode: str) -> None:
        self._rig = rig
        self._mode = mode
        self._stack = contextlib.ExitStack()
        self.missed = 0

    def __enter__(self) -> RedisServer:
        rig, mode = self._rig, self._mode
        if mode == BARE:
            return rig.bare
        rig.client.config_set("keyspaceamqp.outbox", mode)
        rig.until(lambda numbers: numbers["outbox"] == mode)
        self._stack.enter_context(rig.books(f"outbox {mode}", discard=True))
        self.missed = -int(rig.stats()["outbox_missed"])
        return rig.ours

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            return
        client = self._rig.bare_client
        if self._mode != BARE:
            client = self._rig.client
            self.missed += int(self._rig.stats()["outbox_missed"])
            self._stack.close()
        _rewrite(client)


def _rewrite(client: redis.Redis) -> None:
    """Rewrite the append-only file, if the server has one, and wait for the end."""
    if client.config_get("appendonly")["appendonly"] == "yes":
        client.bgrewriteaof()
        wait_for(lambda: not client.info("persistence")["aof_rewrite_in_progress"])


def _costs(rig: Rig, plan: Plan, report: Report, name: str) -> None:
    costs: Values = {mode: [] for mode in (BARE, *MODES)}
    rig.aim(rig.nobody)
    for mode in _turns(plan.rounds * COSTS):
        with _Turn(rig, mode) as server:
            before = thread_ns(server.pid)
            flood(server.port, plan.capture, clients=1)
            costs[mode].append((thread_ns(server.pid) - before) / plan.capture)
    text = f"one client, {PIPELINE} SETs at once, broker away: CPU of the main thread"
    report.row(f"{name}.bare", f"{text}, bare", "ns", costs[BARE])
    for mode in MODES:
        added = _above(costs[mode], costs[BARE])
        report.row(f"{name}.{mode}", f"{mode}: added to a SET on a bare server", "ns", added)
        if mode != "off":
            added = _above(costs[mode], costs["off"])
            report.row(f"{name}.{mode}_added", f"{mode}: added to a SET with `off`", "ns", added)


def _instructions(rig: Rig, report: Report) -> None:
    """Count the instructions of the main thread, if valgrind is there."""
    if shutil.which("valgrind") is None:
        return
    counts = {}
    for mode in (BARE, *MODES):
        if mode == BARE:
            server = rig.redis(f"valgrind-{mode}")
            counts[mode] = measure.instructions(server, COUNTED, measure.WORK)
            continue
        module = [MODULE, "A", "127.0.0.1", rig.nobody]
        server = rig.redis(f"valgrind-{mode}", module, [f"keyspaceamqp.outbox {mode}"])
        counts[mode] = measure.instructions(
            server, COUNTED, measure.WORK, lambda client, mode=mode: stats(client)["outbox"] == mode
        )
    text = f"{PIPELINE} SETs at once, broker away: instructions of the main thread"
    report.row("outbox.instructions", f"{text}, bare", "", [counts[BARE]])
    for mode in MODES:
        name, text = f"outbox.{mode}_instructions", f"{mode}: added to a SET on a bare server"
        report.row(name, text, "", [counts[mode] - counts[BARE]])


def _above(values: list[float], others: list[float]) -> list[float]:
    """Return the difference of each round."""
    return [value - other for value, other in zip(values, others, strict=True)]


def _floods(rig: Rig, plan: Plan, report: Report, name: str, port: int) -> None:
    rates: Values = {mode: [] for mode in (BARE, *MODES)}
    tails: Values = {mode: [] for mode in rates}
    missed: Values = {mode: [] for mode in MODES}
    rig.aim(port)
    requests = min(int(flood(rig.bare.port, 200_000).rate * plan.flood), FLOOD)
    for mode in _turns(plan.rounds):
        turn = _Turn(rig, mode)
        with turn as server:
            result = flood(server.port, requests)
        rates[mode].append(result.rate)
        tails[mode].append(result.p99)
        if mode != BARE:
            missed[mode].append(turn.missed / requests)
        if port != rig.nobody:
            rig.empty_queue()
    broker = "broker away" if port == rig.nobody else "RabbitMQ on the same machine"
    text = f"{requests:,} SETs of {CLIENTS} clients, {broker}"
    report.row(f"{name}.bare_rate", f"{text}: bare", "k/s", [rate / 1e3 for rate in rates[BARE]])
    report.row(f"{name}.bare_p99", "bare: 99 of 100 answered within", "ms", tails[BARE])
    for mode in MODES:
        report.row(f"{name}.{mode}_rate", f"{mode}: SETs / bare", "",
                   ratios(rates[mode], rates[BARE]))  # fmt: skip
        fair = [p99 / max(usual, CALM_US / 1e3)
                for p99, usual in zip(tails[mode], tails[BARE], strict=True)]  # fmt: skip
        report.row(f"{name}.{mode}_p99", f"{mode}: p99 / bare", "",
                   ratios(tails[mode], tails[BARE]), fair)  # fmt: skip
        if mode != "off":
            report.row(f"{name}.{mode}_missed", f"{mode}: part of the events that it missed", "",
                       missed[mode])  # fmt: skip


def _delays(rig: Rig, plan: Plan, report: Report, name: str) -> None:
    delays: dict[str, list[list[float]]] = {mode: [] for mode in MODES}
    rig.aim(rig.broker.port)
    for mode in _turns(min(plan.rounds, DELAYS)):
        if mode != BARE:
            with _Turn(rig, mode):
                delays[mode].append(arrival_times(rig, plan.delay))
    for mode, rounds in delays.items():
        p50 = [statistics.median(times) * 1e3 for times in rounds]
        p99 = [sorted(times)[len(times) * 99 // 100] * 1e3 for times in rounds]
        report.row(f"{name}.{mode}_p50", f"{mode}: from SET to message, 50th percentile", "ms", p50)
        report.row(f"{name}.{mode}_delay_p99", f"{mode}: 99th percentile", "ms", p99)
