"""The items of the benchmarks, one function each. An item says how it measures, runs its rounds
by turns, and adds its rows to the report."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

from keyspace_amqp.broker.frames import Frames
from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.demo.servers import RedisServer, free_port, wait_for
from keyspace_amqp.message import Event, Format
from keyspace_amqp.values import replace
from tests.fix_servers import EXCHANGE, MODULE, handler_copy

from . import amqp, measure, queue_memory
from .measure import BUILT, BenchError, LostEvents, flood, ratios, session_ns, steady, thread_ns
from .report import Report
from .rig import MASKS, QUEUE, Rig

# Microseconds. A tail of a server that is shorter than this says only that the machine had nothing
# else to do; whether ours is grossly longer is judged by this one then.
CALM_US = 500.0
# What an empty subscriber adds to a SET on a machine with nothing else to do, at least.
FLOOR_NS = 80
STEADY_RATE = 20_000  # SETs per second
DELAY_RATE = 1_000
DRAIN_RATE = 2_000
OUTAGE_RATE = 5_000
MANY_KEYS = 10**9  # so that hardly any key comes twice
COUNTED = 20_000  # SETs under valgrind, which is slow


@dataclasses.dataclass(frozen=True)
class Plan:
    """How much is measured. Times are seconds of one round."""

    rounds: int
    capture: int  # SETs
    flood: float  # seconds
    steady: float
    confirmed: int  # SETs
    delay: float
    stored: int  # events
    drains: int  # rounds
    outage: float  # before, during and after
    kinds: int  # of queues


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of queue. `row`: how the names of its rows begin."""

    row: str
    text: str
    arguments: dict[str, str]
    delivery_mode: int


KINDS = (
    Kind("confirmed", "a classic queue", {}, 1),
    Kind("persistent", "a classic queue, delivery-mode 2", {}, 2),
    Kind("quorum", "a quorum queue with one member, delivery-mode 2",
         {"x-queue-type": "quorum"}, 2),
)  # fmt: skip


FULL = Plan(
    rounds=5, capture=100_000, flood=2.0, steady=2.5, confirmed=200_000, delay=3.0,
    stored=1_000_000, drains=1, outage=3.0, kinds=len(KINDS),
)  # fmt: skip
QUICK = Plan(
    rounds=2, capture=100_000, flood=0.5, steady=1.2, confirmed=40_000, delay=1.5,
    stored=40_000, drains=2, outage=1.0, kinds=1,
)  # fmt: skip


def capture(rig: Rig, plan: Plan, report: Report) -> None:
    rounds = plan.rounds * 8
    report.item(
        "capture",
        f"CPU of Redis' main thread (/proc, schedstat) over {plan.capture:,} SETs, pipelined on "
        f"one connection, {rounds} rounds by turns; delivered to a sink that confirms at once",
    )
    costs: dict[str, list[float]] = {"bare": [], "floor": [], "ours": []}
    rig.aim(rig.sink)
    with rig.books("capture"):
        for number in range(-1, rounds):  # round -1 warms up and does not count
            names = list(costs)
            for name in names[number % 3 :] + names[: number % 3]:
                server: RedisServer = getattr(rig, name)
                before = thread_ns(server.pid)
                measure.pipeline(server.port, plan.capture)
                cost = (thread_ns(server.pid) - before) / plan.capture
                if number >= 0:
                    costs[name].append(cost)
                if name == "ours":
                    rig.rest()
    floor, ours = (
        [a - b for a, b in zip(costs[name], costs["bare"], strict=True)]
        for name in ("floor", "ours")
    )
    report.row("capture.bare", "a SET on a bare server", "ns", costs["bare"])
    report.row("capture.floor", "added by an empty subscriber", "ns", floor)
    report.row("capture.ours", "added by ours", "ns", ours)
    usual = statistics.median(floor)
    of_floor = statistics.median(ours) / usual
    # On a busy machine the differences are mostly noise, and the median of the floor may be nearly
    # nothing: a single round is enough to show that a miss is not gross.
    fair = [cost / max(usual, FLOOR_NS) for cost in ours]
    report.row("capture.of_floor", "ours / empty subscriber, of the medians", "", [of_floor], fair)


def instructions(rig: Rig, plan: Plan, report: Report) -> None:
    if shutil.which("valgrind") is None:
        report.item("instructions", "left out: valgrind is not installed")
        return
    report.item("instructions", f"valgrind, in Redis' main thread for each of {COUNTED:,} events")
    modules: dict[str, list[Any]] = {
        "bare": [],
        "floor": [BUILT / "empty.so"],
        "ours": [MODULE, "A", "127.0.0.1", rig.nobody],
    }
    counts = {
        name: measure.instructions(rig.redis(f"valgrind-{name}", module), COUNTED)
        for name, module in modules.items()
    }
    floor, ours = (counts[name] - counts["bare"] for name in ("floor", "ours"))
    report.row("instructions.floor", "added by an empty subscriber", "", [floor])
    report.row("instructions.ours", "added by ours", "", [ours])
    report.row("instructions.of_floor", "ours / empty subscriber", "", [ours / floor])


def floods(rig: Rig, plan: Plan, report: Report, chosen: list[str]) -> None:
    """Measure the same flood for each item. `chosen`: which of broker, sink, masks, away."""
    ports: dict[str, Callable[[], int]] = {
        "broker": lambda: rig.broker.port,
        "sink": lambda: rig.sink,
        "masks": lambda: rig.broker.port,
        "away": lambda: rig.nobody,
    }
    requests = int(flood(rig.bare.port, 200_000).rate * plan.flood)
    requests -= requests % 1000
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in ("bare", "floor", *chosen)}
    rig.aim(rig.nobody)
    with rig.books("warming up", discard=True):  # keys, buffers, threads
        for server in (rig.bare, rig.floor, rig.ours):
            flood(server.port, 100_000)
    for _ in range(plan.rounds):
        for name, many in seen.items():
            if name not in chosen:
                many.append(_flooded(rig, getattr(rig, name), requests))
                continue
            masks = name == "masks"
            rig.aim(ports[name](), MASKS if masks else ["ALL"])
            with rig.books(name, discard=True, matches=not masks):
                many.append(_flooded(rig, rig.ours, requests, ours=True))
            if name == "broker":
                rig.empty_queue()
    values = {
        name: {field: [one[field] for one in many] for field in many[0]}
        for name, many in seen.items()
    }
    report.series["floods"] = values
    _report_floods(report, values, requests)


def _report_floods(
    report: Report, values: dict[str, dict[str, list[float]]], requests: int
) -> None:
    """Add the rows of all floods. `values`: by item and quantity, a value for each round."""
    how = (
        f"redis-benchmark, {requests:,} pipelined SETs (-P {measure.PIPELINE} "
        f"-c {measure.CLIENTS}), by turns"
    )
    what = {
        "bare": "a bare Redis",
        "floor": "an empty subscriber",
        "broker": "ours, with RabbitMQ on the same machine",
        "sink": "ours, with a sink (sink.c) that confirms at once in place of RabbitMQ",
        "masks": f"ours, with {len(MASKS)} masks of which none matches",
        "away": "ours, and nothing listens on RabbitMQ's port: events go to the list",
    }
    for name, own in values.items():
        report.item(name, f"{what[name]}: {how}")
        report.row(f"{name}.sets", "SETs", "k/s", [rate / 1e3 for rate in own["rate"]])
        report.row(f"{name}.p99_ms", "99 of 100 answered within", "ms", own["p99"])
        if name != "bare":
            bare = values["bare"]
            report.row(f"{name}.rate", "SETs / bare", "", ratios(own["rate"], bare["rate"]))
            report.row(f"{name}.p99", "p99 / bare", "", ratios(own["p99"], bare["p99"]))
            added = [a - b for a, b in zip(own["main"], bare["main"], strict=True)]
            report.row(f"{name}.main", "main thread above bare, for each SET", "ns", added)
            of_cpu = ratios(bare["main"], own["main"])
            report.row(
                f"{name}.of_cpu", "SETs for the same CPU of the main thread / bare", "", of_cpu
            )
        report.row(f"{name}.slowest", "slowest SET", "ms", own["slowest"])
        if name not in ("bare", "floor"):
            report.row(f"{name}.worker", "CPU of the worker thread", "%", own["worker"])
        if name == "masks":
            report.row("masks.event", "worker's CPU for each event that no mask wants", "µs",
                       own["worker_us"])  # fmt: skip
        if name == "broker":
            report.row("broker.cpu", "CPU of RabbitMQ", "%", own["broker"])


def _flooded(rig: Rig, server: RedisServer, requests: int, ours: bool = False) -> dict[str, float]:
    """Run a flood. Return SETs per second (`rate`), milliseconds (`p99`, `slowest`), CPU of the
    main thread in nanoseconds for each SET (`main`), and CPU in per cent of a core (`worker`,
    `broker`)."""
    broker = rig.started_broker

    def cpu() -> tuple[int, int, int]:
        return (
            thread_ns(server.pid),
            thread_ns(server.pid, rig.worker) if ours else 0,
            session_ns(broker.pid) if broker else 0,
        )

    before, start = cpu(), time.monotonic()
    result = flood(server.port, requests)
    seconds = time.monotonic() - start
    main, worker, rabbit = (b - a for a, b in zip(before, cpu(), strict=True))
    return {
        "rate": result.rate,
        "p99": result.p99,
        "slowest": result.slowest,
        "main": main / requests,
        "worker": worker / seconds / 1e7,
        "worker_us": worker / requests / 1e3,
        "broker": rabbit / seconds / 1e7,
    }


def at_fixed_rate(rig: Rig, plan: Plan, report: Report) -> None:
    report.item(
        "steady",
        f"load.c, {STEADY_RATE:,} SETs/s on 4 connections for {plan.steady:g} s, by turns, "
        "RabbitMQ on the same machine; times from the moment when a SET was due",
    )
    rig.aim(rig.broker.port)
    names = {"p50": "50th", "p99": "99th", "p999": "99.9th"}
    bare: dict[str, list[float]] = {name: [] for name in names}
    ours: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(plan.rounds):
        whole = steady(rig.bare.port, STEADY_RATE, plan.steady)
        with rig.books("steady", discard=True):
            same = steady(rig.ours.port, STEADY_RATE, plan.steady)
        for name in names:
            bare[name].append(whole[name])
            ours[name].append(same[name])
    for name, text in names.items():
        report.row(f"steady.bare_{name}", f"{text} percentile, bare", "µs", bare[name])
        report.row(f"steady.ours_{name}", f"{text} percentile, ours", "µs", ours[name])
        fair = [
            tail / max(usual, CALM_US) for tail, usual in zip(ours[name], bare[name], strict=True)
        ]
        report.row(f"steady.{name}", "ours / bare", "", ratios(ours[name], bare[name]), fair)
    rig.empty_queue()


def confirmed(rig: Rig, plan: Plan, report: Report) -> None:
    report.item(
        "confirmed",
        f"{plan.confirmed:,} pipelined SETs of distinct keys, from the first SET to the last "
        f"confirm, by turns with a socket that sends as many frames made beforehand, at most "
        f"{amqp.WINDOW:,} unconfirmed; into the same queue",
    )
    rig.aim(rig.broker.port)
    for kind in KINDS[: plan.kinds]:
        with rig.queue(kind.arguments, kind.delivery_mode) as queue:
            frames = message(queue, kind.delivery_mode)
            rounds = [_confirmed(rig, plan.confirmed, frames) for _ in range(plan.rounds)]
        tight, ours, beside = (list(rates) for rates in zip(*rounds, strict=True))
        for name, text, values, unit in (
            ("tight", "the tight publisher, confirmed messages", tight, "/s"),
            ("ours", "ours, confirmed events", ours, "/s"),
            ("ratio", "ours / tight", ratios(ours, tight), ""),
            ("beside", "tight, with the same SETs to a bare Redis", beside, "/s"),
            ("of_beside", "ours / tight with these SETs", ratios(ours, beside), ""),
        ):
            report.row(f"{kind.row}.{name}", f"{kind.text}: {text}", unit, values)


def _confirmed(rig: Rig, count: int, frames: bytes) -> tuple[float, float, float]:
    """Return messages a second of the publisher of `frames`, of `ours`, and of that publisher while
    a bare Redis carries out the same SETs."""
    seconds = amqp.publish(rig.broker.port, frames, count)
    _arrived(rig, count)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        same_sets = pool.submit(flood, rig.bare.port, count, MANY_KEYS)
        beside = amqp.publish(rig.broker.port, frames, count)
        same_sets.result()
    _arrived(rig, count)
    rig.bare_client.flushall()
    with rig.books("confirmed"):
        wanted = rig.stats()["confirmed"] + count
        start = time.monotonic()
        flood(rig.ours.port, count, MANY_KEYS)
        rig.until(lambda numbers: numbers["confirmed"] >= wanted)
        ours = time.monotonic() - start
    _arrived(rig, count)
    rig.client.flushall()
    return count / seconds, count / ours, count / beside


def message(routing_key: str, delivery_mode: int) -> bytes:
    """Return the frames of a message as the module sends it, for an event of the size of those
    that redis-benchmark causes."""
    now = int(time.time() * 1000)
    event = Event("0123456789abcdef-100000", now, 0, "$", b"set", b"key:000000000000")
    config = replace(
        replace(DEFAULTS, events="A"),
        exchange=EXCHANGE,
        routing_key=routing_key,
        delivery_mode=delivery_mode,
    )
    return Frames(config, Format(config, ""), 1, 4096).marshal([event])


def _arrived(rig: Rig, count: int) -> None:
    """Check that the queue has all messages of a round, and empty it. Raises LostEvents."""
    # More are no loss: what `steady` has sent and then given up may have arrived late.
    if (depth := rig.depth()) < count:
        raise LostEvents(f"{count} messages were confirmed, the queue has {depth}")
    rig.empty_queue()


def arrival_times(rig: Rig, seconds: float) -> list[float]:
    """SET at a low rate for so long. Return the seconds from each SET to the arrival of its message
    at a consumer. Raises LostEvents."""
    arrivals = amqp.Arrivals(rig.broker.port, QUEUE)
    try:
        sent = steady(rig.ours.port, DELAY_RATE, seconds, "clock")["count"]
        wait_for(lambda: len(arrivals.delays) >= sent)
    except TimeoutError:
        raise LostEvents(f"delay: {len(arrivals.delays)} of {sent} messages arrived") from None
    finally:
        arrivals.finish()
    return arrivals.delays


def delay(rig: Rig, plan: Plan, report: Report) -> None:
    report.item(
        "delay",
        f"load.c, {DELAY_RATE:,} SETs/s for {plan.delay:g} s; from the clock in the key, read "
        "when the SET is sent, to the message's arrival at a consumer",
    )
    rig.aim(rig.broker.port)
    parts: dict[str, list[float]] = {"p50": [], "p99": [], "slowest": []}
    for _ in range(plan.rounds):
        with rig.books("delay"):
            delays = sorted(arrival_times(rig, plan.delay))
        parts["p50"].append(delays[len(delays) // 2] * 1e3)
        parts["p99"].append(delays[len(delays) * 99 // 100] * 1e3)
        parts["slowest"].append(delays[-1] * 1e3)
    report.row("delay.p50", "from SET to message, 50th percentile", "ms", parts["p50"])
    report.row("delay.p99", "99th percentile", "ms", parts["p99"])
    report.row("delay.slowest", "slowest", "ms", parts["slowest"])


def drain(rig: Rig, plan: Plan, report: Report) -> None:
    report.item(
        "drain",
        f"{plan.stored:,} stored events, delivered while load.c makes {DRAIN_RATE:,} SETs/s; "
        f"the same load for {plan.delay:g} s before and after; rounds: {plan.drains}",
    )

    def calm() -> float:
        with rig.books("drain"):
            return float(steady(rig.ours.port, DRAIN_RATE, plan.delay)["p99"])

    rig.aim(rig.broker.port)
    without, during, slowest, rates = [calm()], [], [], []
    for _ in range(plan.drains):
        rig.aim(rig.nobody)
        with rig.books("drain"):
            flood(rig.ours.port, plan.stored)
            rig.until(lambda numbers: numbers["queue_length"] == 0)  # all events are in the list
            with measure.Load(rig.ours.port, DRAIN_RATE) as load:
                before, start = rig.stats()["confirmed"], time.monotonic()
                rig.aim(rig.broker.port)
                after = rig.until(lambda numbers: numbers["fallback_length"] == 0)
                rates.append((after["confirmed"] - before) / (time.monotonic() - start))
                load.stop()
        during.append(load.whole["p99"])
        slowest.append(load.whole["max"] / 1e3)
        rig.empty_queue()
        without.append(calm())
    report.row("drain.rate", "confirmed events while the list is drained", "/s", rates)
    if "confirmed.ours" in report.rows:
        usual = report.rows["confirmed.ours"].median
        ratio = [rate / usual for rate in rates]
        report.row("drain.ratio", "rate / rate without a list", "", ratio)
    report.row("drain.without_p99", "99 of 100 SETs without a drain within", "µs", without)
    report.row("drain.during_p99", "99 of 100 SETs during a drain within", "µs", during)
    usual = statistics.mean(without)
    fair = [p99 / max(usual, CALM_US) for p99 in during]
    report.row("drain.p99", "with / without", "", [p99 / usual for p99 in during], fair)
    report.row("drain.slowest", "slowest SET during a drain", "ms", slowest)


def memory(rig: Rig, plan: Plan, report: Report) -> None:
    own = len(queue_memory.KEY) + len(queue_memory.EVENT)
    report.item(
        "memory",
        f"resident memory of {queue_memory.EVENTS:,} events in the shim's queue, which plain "
        f"Python loads; key and name ({own} bytes) not counted",
    )
    command = [sys.executable, "-m", queue_memory.__name__]
    sizes = []
    for _ in range(plan.rounds):
        done = subprocess.run(command, cwd=measure.ROOT, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(done.stderr)
        sizes.append(float(done.stdout) - own)
    report.row("memory.event", "memory of a queued event above key and name", "bytes", sizes)


def load(rig: Rig, plan: Plan, report: Report) -> None:
    starts = 4 * plan.rounds
    report.item(
        "load",
        f"from the start of redis-server to its answer to a PING, {starts} starts of each by "
        "turns; and MODULE LOAD into a running server, to the answer to a PING",
    )
    ours = [MODULE, "A", "127.0.0.1", rig.nobody]
    cluster = ["cluster-enabled yes"]
    with tempfile.TemporaryDirectory() as folder:
        uncompiled = [handler_copy(pathlib.Path(folder)), *ours[1:]]
        kinds: dict[str, tuple[list[Any], list[str]]] = {
            "bare": ([], []),
            "added": (ours, []),
            "uncompiled": (uncompiled, []),
            "cluster_bare": ([], cluster),
            "cluster_added": (ours, cluster),
        }
        times: dict[str, list[float]] = {name: [] for name in kinds}
        for number in range(-1, starts):  # round -1 warms up and does not count
            for name, (module, options) in kinds.items():
                if options:
                    options = [*options, f"cluster-port {free_port()}"]
                server = rig.redis(f"start-{name}-{number}", module, options)
                try:
                    seconds = measure.start_seconds(server)
                finally:
                    server.kill()
                if number >= 0:
                    times[name].append(seconds * 1e3)
    report.row("load.bare", "start of a bare server", "ms", times["bare"])
    for name, text in (
        ("added", "added by ours"),
        ("uncompiled", "added by ours without compiled files (.pyc) of its own"),
        ("cluster_added", "added by ours, in a node of a cluster"),
    ):
        bare = times["cluster_bare" if name == "cluster_added" else "bare"]
        added = [a - b for a, b in zip(times[name], bare, strict=True)]
        report.row(f"load.{name}", text, "ms", added)
    running, grown = [], []
    for number in range(plan.rounds):
        with rig.redis(f"load-{number}") as server, server.client() as client:
            client.ping()
            before, start = measure.resident(server.pid), time.monotonic()
            client.module_load(*map(str, ours))
            client.ping()
            running.append((time.monotonic() - start) * 1e3)
            # The worker imports the rest now; when it has done so, it answers.
            maps = pathlib.Path(f"/proc/{server.pid}/maps")
            wait_for(lambda: "_ssl." in maps.read_text())  # noqa: B023
            client.execute_command("KEYSPACEAMQP.CONFIG", "GET", "port")
            grown.append((measure.resident(server.pid) - before) / 2**20)
    report.row("load.running", "MODULE LOAD into a running server", "ms", running)
    report.row("memory.load", "memory of Redis more than before", "MB", grown)


def outage(rig: Rig, plan: Plan, report: Report) -> None:
    report.item(
        "outage",
        f"load.c, {OUTAGE_RATE:,} SETs/s, while RabbitMQ is killed, started again, and takes "
        "the events that waited",
    )
    rig.aim(rig.broker.port)
    samples: list[tuple[float, int]] = []
    marks: dict[str, float] = {}
    with rig.books("outage"), measure.Load(rig.ours.port, OUTAGE_RATE) as load:
        start = time.monotonic()

        def watch(mark: str, until: Callable[[], bool]) -> None:
            while not until():
                samples.append((time.monotonic() - start, rig.stats()["fallback_length"]))
                time.sleep(0.1)
            marks[mark] = time.monotonic() - start

        def wait(mark: str) -> None:
            end = time.monotonic() + plan.outage
            watch(mark, lambda: time.monotonic() >= end)

        wait("killed")
        rig.broker.kill()
        wait("started")
        rig.broker.spawn()
        watch("back", rig.broker.ready)
        watch("drained", lambda: rig.stats()["fallback_length"] == 0)
        wait("end")
        load.stop()
    rig.empty_queue()
    report.series["outage"] = {"intervals": load.intervals, "list": samples, "marks": marks}
    longest = max(length for _, length in samples)
    report.row("outage.stored", "events in the list at most", "", [longest])
    drained = marks["drained"] - marks["back"]
    report.row("outage.drain", "from the broker's return to an empty list", "s", [drained])
    report.row("outage.p99", "p99 of all SETs", "ms", [load.whole["p99"] / 1e3])
    report.row("outage.slowest", "slowest SET", "ms", [load.whole["max"] / 1e3])
