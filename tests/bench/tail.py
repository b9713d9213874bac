"""The item `tail`: the 99th percentile while the broker has a core of its own, at a fixed rate and
in a drain; and how long the jobs of a drain hold the main thread.

Redis, with all its threads, is held to the first core; sink.c or RabbitMQ to the second. In one
case the worker may use both, as in a server that has `server_cpulist` and `loadmodule` in its
configuration: Redis starts modules before it moves its main thread to those cores.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import os
import statistics
import time
from collections.abc import Iterator, Sequence
from typing import Any

from keyspace_amqp.demo.servers import RedisServer

from . import amqp
from .items import STEADY_RATE, Plan, message
from .measure import Load, flood, held, ratios, typical, waited_ns
from .report import Report
from .rig import DELIVERY_MODE, QUEUE, Rig

# A drain is watched for so many seconds at most: on one core, a worker that also takes 20,000 new
# events a second has little time for the list.
PATIENCE = 45.0
POLL = 0.05  # seconds
JOB = "keyspaceamqp-job"  # in Redis' LATENCY
WRITES = ("rpush", "ltrim")  # each job has at most one of each; those that only read have none


@dataclasses.dataclass(frozen=True)
class Case:
    """Where the client is, and what confirms the events."""

    text: str
    broker: bool  # RabbitMQ; else the sink
    near: bool = True  # the client is on Redis' core; else on the broker's
    free: bool = False  # the worker may use both cores


CASES = {
    "sink": Case("sink", broker=False),
    "far": Case("sink, client on its core", broker=False, near=False),
    "free": Case("sink, worker on both cores", broker=False, free=True),
    "rabbit": Case("RabbitMQ", broker=True),
}


def slow_part(found: int, jobs: int) -> float:
    """Return the part of jobs that took a millisecond or more. `found`: how many looks at LATENCY
    had one."""
    return found / max(jobs, 1)


def tail(rig: Rig, plan: Plan, report: Report) -> None:
    """Measure it, if there are two cores."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        report.item("tail", "left out: it needs two cores")
        return
    with rig.beside("tail", rig.family, ["latency-monitor-threshold 1"], True) as other:
        _Bed(other, cores[0], cores[1]).measure(plan, report)


class _Bed:
    """The servers, each on its core."""

    def __init__(self, rig: Rig, near: int, far: int) -> None:
        self._rig = rig
        self._near, self._far = near, far
        with held(near):
            self._servers = {"bare": rig.bare, "ours": rig.ours}
        with held(far):
            self._ports = {False: rig.sink, True: rig.broker.port}
        self._first = True
        try:
            with self._load(rig.bare, CASES["sink"], 0.1) as load:
                load.wait()
        except PermissionError:
            self._first = False

    def measure(self, plan: Plan, report: Report) -> None:
        """Measure both loads, and add the rows."""
        client = "before all other programs" if self._first else "without precedence: no right to"
        report.item(
            "tail",
            f"load.c, {STEADY_RATE:,} SETs/s for {plan.steady:g} s, by turns; Redis and its worker "
            f"held to one core, the broker to another; the client runs {client}, as one on another "
            "machine would",
        )
        self._steady(plan, report)
        self._drain(plan, report)

    def _load(self, server: RedisServer, case: Case, seconds: float = 0) -> Load:
        with held(self._near if case.near else self._far):
            return Load(server.port, STEADY_RATE, seconds, first=self._first)

    def _run(self, name: str, case: Case, seconds: float) -> dict[str, float]:
        """Return the 99th percentile, the typical one of 100 ms, and the microseconds for which the
        main thread waited for its core for each SET."""
        server = self._servers[name]
        waited = waited_ns(server.pid)
        with self._load(server, case, seconds) as load:
            load.wait()
        waited = waited_ns(server.pid) - waited
        sets = load.whole["count"]
        return {
            "p99": load.whole["p99"],
            "typical": typical(load.intervals),
            "waited": waited / sets / 1e3,
        }

    @contextlib.contextmanager
    def _publisher(self, messages: int, rate: float) -> Iterator[None]:
        """A publisher of frames made beforehand on the broker's core, in a `with`."""

        def publish() -> None:
            with held(self._far):
                amqp.publish(self._rig.broker.port, message(QUEUE, DELIVERY_MODE), messages, rate)

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(publish)
            yield
            done.result()
        self._rig.empty_queue()

    def _steady(self, plan: Plan, report: Report) -> None:
        rig = self._rig
        bare: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
        ours: dict[str, list[dict[str, float]]] = {name: [] for name in CASES}
        beside: list[dict[str, float]] = []
        for _ in range(plan.rounds):
            for name, case in CASES.items():
                bare[name].append(self._run("bare", case, plan.steady))
                rig.aim(self._ports[case.broker])
                cores = {self._near, self._far} if case.free else {self._near}
                os.sched_setaffinity(rig.worker, cores)
                with rig.books(f"tail {name}", discard=True):
                    ours[name].append(self._run("ours", case, plan.steady))
            rig.empty_queue()
            with self._publisher(int(STEADY_RATE * plan.steady), STEADY_RATE):
                beside.append(self._run("bare", CASES["rabbit"], plan.steady * 0.9))
        for name, case in CASES.items():
            _rows(report, f"tail.{name}", case.text, bare[name], ours[name])
        _beside(report, "tail.beside", f"{STEADY_RATE:,} messages/s", bare["rabbit"], beside)

    def _drain(self, plan: Plan, report: Report) -> None:
        """Measure a drain with clients that write, and its jobs, which push, read and trim."""
        rig, case = self._rig, CASES["rabbit"]
        bare, during, beside = [], [], []
        slow, rates, longest = [], [], []
        for _ in range(plan.drains):
            bare.append(self._run("bare", case, plan.delay))
            rig.aim(rig.nobody)
            with rig.books("tail drain", discard=True):
                flood(rig.ours.port, plan.stored)
                rig.until(lambda numbers: numbers["queue_length"] == 0)
                rig.client.latency_reset()
                jobs, found = -self._jobs(), 0
                rig.aim(rig.broker.port)
                start, before = time.monotonic(), rig.stats()["confirmed"]
                waited = waited_ns(rig.ours.pid)
                most = 0.0
                with self._load(rig.ours, case) as load:
                    while rig.stats()["fallback_length"] and time.monotonic() < start + PATIENCE:
                        ms = _longest(rig.client)
                        most = max(most, ms)
                        found += ms > 0
                        time.sleep(POLL)
                    rates.append((rig.stats()["confirmed"] - before) / (time.monotonic() - start))
                    load.stop()
                jobs += self._jobs()
            slow.append(slow_part(found, jobs))
            longest.append(most)
            sets = load.whole["count"]
            waited = waited_ns(rig.ours.pid) - waited
            during.append({
                "p99": load.whole["p99"],
                "typical": typical(load.intervals),
                "waited": waited / sets / 1e3,
            })  # fmt: skip
            rig.empty_queue()
            seconds = plan.delay
            with self._publisher(int(rates[-1] * seconds), float("inf")):
                beside.append(self._run("bare", case, seconds * 0.9))
            bare[-1] = {
                name: statistics.mean((value, again))
                for (name, value), again in zip(
                    bare[-1].items(), self._run("bare", case, plan.delay).values(), strict=True
                )
            }
        report.row("tail.drain_rate", f"drain of {plan.stored:,}: confirmed events", "/s", rates)
        _rows(report, "tail.drain", f"drain of {plan.stored:,}", bare, during)
        _beside(report, "tail.drain_beside", "as many messages as it can take", bare, beside)
        report.row("tail.jobs_slow", "part of the jobs of 1 ms or more (LATENCY)", "", slow)
        report.row("tail.job_longest", "longest job (LATENCY; 0: below 1 ms)", "ms", longest)

    def _jobs(self) -> int:
        """Return how many jobs have written to a list, at least."""
        commands = self._rig.client.info("commandstats")
        return max(int(commands.get(f"cmdstat_{name}", {}).get("calls", 0)) for name in WRITES)


def _longest(client: Any) -> float:
    """Return the longest job since the last look in milliseconds, as Redis' LATENCY has it, and
    forget it: of several within a second, LATENCY keeps only one. 0: all were shorter than 1."""
    for name, _, _, longest, *_ in client.latency_latest():
        if name.decode() == JOB:
            client.latency_reset()
            return float(longest)
    return 0.0


def _column(rounds: Sequence[dict[str, float]], name: str) -> list[float]:
    return [one[name] for one in rounds]


def _rows(
    report: Report, name: str, text: str, bare: list[dict[str, float]], ours: list[dict[str, float]]
) -> None:
    """Add the rows of a case."""
    report.row(f"{name}_bare", f"{text}: 99th percentile, bare", "µs", _column(bare, "p99"))
    report.row(f"{name}_ours", f"{text}: 99th percentile, ours", "µs", _column(ours, "p99"))
    for field, what, row in (
        ("p99", "ours / bare", name),
        ("typical", "typical 100 ms: ours / bare", f"{name}_typical"),
    ):
        values = ratios(_column(ours, field), _column(bare, field))
        report.row(row, f"{text}: {what}", "", values)
    for which, rounds in (("bare", bare), ("ours", ours)):
        waited = _column(rounds, "waited")
        report.row(f"{name}_waits_{which}", f"{text}: main thread waits for its core, {which}",
                   "µs/SET", waited)  # fmt: skip


def _beside(
    report: Report,
    name: str,
    what: str,
    bare: list[dict[str, float]],
    beside: list[dict[str, float]],
) -> None:
    """Add the rows of a bare Redis beside a broker that a publisher keeps busy."""
    text = f"bare beside RabbitMQ with {what}"
    report.row(f"{name}_p99", f"{text}: p99", "µs", _column(beside, "p99"))
    values = ratios(_column(beside, "typical"), _column(bare, "typical"))
    report.row(f"{name}_typical", f"{text}: typical / bare", "", values)
    values = ratios(_column(beside, "p99"), _column(bare, "p99"))
    report.row(name, f"{text}: p99 / bare", "", values)
