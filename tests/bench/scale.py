"""The item `scale`: how processor time, memory and latency grow with the rate of events, with
masks, with keys, with the length of the list, and with the nodes of a cluster.

Each part makes one table of the picture. Delivered to the sink, which takes hardly any processor.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import redis

from keyspace_amqp.cluster.slots import slot_of
from keyspace_amqp.demo.servers import RedisCluster, RedisServer
from keyspace_amqp.fallback import to_element
from keyspace_amqp.message import Event
from tests.fix_servers import MODULE, arguments_for

from . import measure
from .items import Plan
from .measure import Load, flood, resident, thread_ns, typical, worker_thread
from .report import Report, shown
from .rig import DELIVERY_MODE, MASKS, QUEUE, Rig

ROUNDS = 3  # at most
RATES = (1_000, 10_000, 50_000, 100_000, 200_000)
MASK_COUNTS = (1, 10, 100)
LENGTHS = {"16 B": 16, "1 KB": 1 << 10, "64 KB": 1 << 16, "1 MB": 1 << 20}
KEY_BYTES = 32 << 20  # of all keys of a round, at most
LISTS = (1_000, 100_000, 1_000_000, 10_000_000)
LIST = b"keyspaceamqp:{0}:fallback"
ELEMENT_BYTES = 150  # in the list, at most; decides whether a list fits into memory
PUSHED = 10_000  # elements in one RPUSH that fills the list
STORED = 50_000  # events that the module pushes onto it
DRAINED = 100_000  # elements that are delivered from it, at most
PRIMARIES = (3, 6, 12, 30)
WATCHED = 4.0  # seconds for which a cluster is watched
WRITES = 20  # SETs that each node of a busy cluster gets every TICK
TICK = 0.1


@dataclasses.dataclass
class Panel:
    """A table: a value for each row and column. `rows`: the names of what grows; `columns`: by
    name with the unit, the values in the order of the rows."""

    title: str
    grows: str
    rows: list[str]
    columns: dict[str, list[float]] = dataclasses.field(default_factory=dict)


def scale(rig: Rig, plan: Plan, report: Report) -> None:
    """Measure all parts, and keep them for the picture and the table."""
    rounds = min(plan.rounds, ROUNDS)
    parts: Sequence[Callable[[Rig, Plan, Report, int], Panel]] = (_rates, _masks, _keys, _lists,
                                                                  _clusters)  # fmt: skip
    panels = []
    for part in parts:
        panels.append(part(rig, plan, report, rounds))
        report.series["scale"] = [dataclasses.asdict(panel) for panel in panels]


class _Rows:
    """Collects the rounds of one panel, and makes rows and columns of their medians."""

    def __init__(self, report: Report, name: str, panel: Panel) -> None:
        self._report = report
        self._name = name
        self.panel = panel
        self._values: dict[tuple[str, str], list[float]] = {}

    def add(self, row: str, **values: float) -> None:
        """Add a round's values by their quantity."""
        for quantity, value in values.items():
            self._values.setdefault((row, quantity), []).append(value)

    def done(self, **texts: str) -> Panel:
        """Make the rows. `texts`: the text and the unit of each quantity, as `text, unit`."""
        for quantity, text in texts.items():
            what, _, unit = text.rpartition(", ")
            column = []
            for number, row in enumerate(self.panel.rows):
                values = self._values[row, quantity]
                name = f"scale.{self._name}_{quantity}_{number}"
                self._report.row(name, f"{row}: {what}", unit, values)
                column.append(statistics.median(values))
            self.panel.columns[text] = column
        return self.panel


def _rates(rig: Rig, plan: Plan, report: Report, rounds: int) -> Panel:
    report.item(
        "scale",
        f"load.c for {plan.steady:g} s, events to the sink, and a bare server; the 99th percentile "
        "is the median of those of 100 ms",
    )
    names = [f"{rate:,}" for rate in RATES]
    rows = _Rows(report, "rate", Panel("Rate of events", "events/s", names))
    rig.aim(rig.sink)
    for _ in range(rounds):
        for name, rate in zip(names, RATES, strict=True):
            with Load(rig.bare.port, rate, plan.steady) as load:
                load.wait()
            bare = typical(load.intervals)
            with rig.books("scale"):
                before = _cpu(rig)
                with Load(rig.ours.port, rate, plan.steady) as load:
                    load.wait()
                main = thread_ns(rig.ours.pid) - before[0]
                more = resident(rig.ours.pid) - resident(rig.bare.pid)
                rig.rest()
                worker = thread_ns(rig.ours.pid, rig.worker) - before[1]
            second = plan.steady * 1e7  # a hundredth of it in nanoseconds
            rows.add(name, main=main / second, worker=worker / second, p99=typical(load.intervals),
                     bare=bare, memory=more / 2**20)  # fmt: skip
    return rows.done(
        main="main thread, %",
        worker="worker, %",
        p99="99th percentile, µs",
        bare="99th percentile bare, µs",
        memory="memory above bare, MB",
    )


def _cpu(rig: Rig) -> tuple[int, int]:
    """Return the processor time of main thread and worker."""
    return thread_ns(rig.ours.pid), thread_ns(rig.ours.pid, rig.worker)


def many_masks(count: int) -> list[str]:
    """Return so many masks of which none matches."""
    return list(itertools.islice((f"{m}{n}" for n in itertools.count() for m in MASKS), count))


def _masks(rig: Rig, plan: Plan, report: Report, rounds: int) -> Panel:
    report.item("masks that do not match", f"{plan.capture:,} pipelined SETs")
    names = [str(count) for count in MASK_COUNTS]
    rows = _Rows(report, "masks", Panel("Masks of which none matches", "masks", names))
    for _ in range(rounds * 5):  # short ones
        for name, count in zip(names, MASK_COUNTS, strict=True):
            main, worker = cost(rig, plan.capture, 16, many_masks(count), matches=False)
            rows.add(name, main=main, worker=worker)
    return rows.done(main="main thread above bare, ns/event", worker="worker, µs/event")


def _keys(rig: Rig, plan: Plan, report: Report, rounds: int) -> Panel:
    report.item("keys", f"pipelined SETs, keys of {KEY_BYTES >> 20} MB in all at most")
    rows = _Rows(report, "keys", Panel("Length of the key", "key", list(LENGTHS)))
    for _ in range(rounds):
        for name, length in LENGTHS.items():
            count = min(plan.capture, KEY_BYTES // length)
            main, worker = cost(rig, count, length, ["ALL"])
            rows.add(name, main=main / 1e3, worker=worker)
            rig.client.flushall()
            rig.bare_client.flushall()
    return rows.done(main="main thread above bare, µs/event", worker="worker, µs/event")


def cost(
    rig: Rig, count: int, length: int, masks: Sequence[str], matches: bool = True
) -> tuple[float, float]:
    """Return what an event costs, delivered to the sink or filtered by masks: nanoseconds of the
    main thread above bare, and microseconds of the worker. Raises LostEvents."""
    rig.aim(rig.sink, masks)
    bare = thread_ns(rig.bare.pid)
    measure.pipeline(rig.bare.port, count, length)
    bare = thread_ns(rig.bare.pid) - bare
    with rig.books("growth", matches=matches):
        before = _cpu(rig)
        measure.pipeline(rig.ours.port, count, length)
        ours = thread_ns(rig.ours.pid) - before[0]
        rig.rest()
        ran = _cpu(rig)[1] - before[1]
    return (ours - bare) / count, ran / count / 1e3


def fits(count: int, available: int) -> bool:
    """True if a list of so many elements fits into half of the memory that is available."""
    return count * ELEMENT_BYTES < available / 2


def _available() -> int:
    """Return the bytes of memory that new programs may use."""
    for line in pathlib.Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def _lists(rig: Rig, plan: Plan, report: Report, rounds: int) -> Panel:
    lengths = [length for length in LISTS if fits(length, _available())]
    left_out = "" if len(lengths) == len(LISTS) else "; longer ones do not fit into memory"
    report.item(
        "lists",
        f"the time of the commands of jobs (commandstats) with {STORED:,} pushed events and "
        f"{DRAINED:,} delivered elements at most; one round{left_out}",
    )
    names = [f"{length:,}" for length in lengths]
    rows = _Rows(report, "list", Panel("Length of the list", "elements", names))
    for name, length in zip(names, lengths, strict=True):
        rig.aim(rig.nobody)
        with rig.books("scale", discard=True):
            before = rig.client.info("memory")["used_memory"]
            _fill(rig, length)
            size = (rig.client.info("memory")["used_memory"] - before) / length
            calls = _calls(rig.client)
            flood(rig.ours.port, STORED)
            rig.until(lambda numbers: numbers["queue_length"] == 0)
            push = _mean(calls, _calls(rig.client), "rpush")
            confirmed = rig.stats()["confirmed"]
            cpu = _cpu(rig)
            rig.aim(rig.sink)
            wanted = min(length + STORED, DRAINED) + confirmed
            numbers = rig.until(lambda numbers: numbers["confirmed"] >= wanted)  # noqa: B023
            main, worker = (b - a for a, b in zip(cpu, _cpu(rig), strict=True))
            trim = _mean(calls, _calls(rig.client), "ltrim")
        count = numbers["confirmed"] - confirmed
        rows.add(
            name,
            push=push,
            trim=trim,
            main=main / count / 1e3,
            worker=worker / count / 1e3,
            memory=size,
        )
        rig.client.flushall()
    return rows.done(
        push="RPUSH of a job, µs",
        trim="LTRIM of a job, µs",
        main="main thread to deliver, µs/element",
        worker="worker to deliver, µs/element",
        memory="memory, bytes/element",
    )


def _calls(client: redis.Redis) -> dict[str, tuple[int, int]]:
    """Return the calls of each command so far, and their microseconds."""
    found: dict[str, dict[str, int]] = client.info("commandstats")
    return {
        name.removeprefix("cmdstat_"): (row["calls"], row["usec"]) for name, row in found.items()
    }


def _mean(
    before: dict[str, tuple[int, int]], after: dict[str, tuple[int, int]], name: str
) -> float:
    """Return the microseconds of a call of a command between two looks."""
    (calls, usec), (more_calls, more_usec) = before.get(name, (0, 0)), after[name]
    return (more_usec - usec) / max(more_calls - calls, 1)


def _fill(rig: Rig, length: int) -> None:
    """Push elements as another load of the module would have left them."""
    now = int(time.time() * 1000)
    element = to_element(Event("0123456789abcdef-100000", now, 0, "$", b"set", b"key:000000000000"))
    for done in range(0, length, PUSHED):
        rig.client.rpush(LIST, *[element] * min(PUSHED, length - done))
    rig.until(lambda numbers: numbers["fallback_length"] == length)


def _clusters(rig: Rig, plan: Plan, report: Report, rounds: int) -> Panel:
    report.item(
        "clusters",
        f"clusters of primaries on this machine for {WATCHED:g} s: idle, then with "
        f"{WRITES / TICK:g} SETs/s on each node; medians of the nodes; events to nobody",
    )
    names = [str(count) for count in PRIMARIES]
    rows = _Rows(report, "nodes", Panel("Nodes of a cluster", "nodes", names))
    for name, count in zip(names, PRIMARIES, strict=True):
        rows.add(name, **_cluster(rig, count))
    return rows.done(
        main="main thread idle, %",
        worker="worker idle, %",
        busy_main="main thread with writes, %",
        busy_worker="worker with writes, %",
        memory="memory of a node, MB",
        messages="messages to each other node, /s",
        commands="commands of the module, /s",
    )


def _cluster(rig: Rig, primaries: int) -> dict[str, float]:
    """Return the values of a cluster of so many primaries."""
    numbers = itertools.count()
    words = [MODULE, *arguments_for(rig.nobody, QUEUE, mode=DELIVERY_MODE, size=0)]
    cluster = RedisCluster(
        lambda options: rig.redis(f"cluster-{primaries}-{next(numbers)}", words, options),
        primaries,
        replicas=0,
        node_timeout_ms=30_000,
    )
    with contextlib.ExitStack() as stack:
        stack.callback(cluster.stop)
        cluster.start()
        clients = [stack.enter_context(node.client()) for node in cluster.nodes]
        idle = _watch(cluster.nodes, clients, lambda: None)
        blocks = [_block(client, node) for client, node in zip(clients, cluster.nodes, strict=True)]

        def write() -> None:
            for client, keys in zip(clients, blocks, strict=True):
                with client.pipeline(transaction=False) as pipe:
                    for key in keys:
                        pipe.set(key, b"1")
                    pipe.execute()

        busy = _watch(cluster.nodes, clients, write)
        return {
            "main": idle["main"],
            "worker": idle["worker"],
            "busy_main": busy["main"],
            "busy_worker": busy["worker"],
            "memory": statistics.median(resident(node.pid) for node in cluster.nodes) / 2**20,
            "messages": idle["messages"] / (primaries - 1),
            "commands": idle["commands"],
        }


def _block(client: redis.Redis, node: RedisServer) -> list[bytes]:
    """Return keys of a node's own slots."""
    slots: list[Any] = client.execute_command("CLUSTER SLOTS")
    own = [range(first, last + 1) for first, last, home, *_ in slots if home[1] == node.port]
    keys = (b"load:%d" % number for number in itertools.count())
    mine = (key for key in keys if any(slot_of(key) in part for part in own))
    return list(itertools.islice(mine, WRITES))


def _watch(
    nodes: Sequence[RedisServer], clients: Sequence[redis.Redis], act: Callable[[], None]
) -> dict[str, float]:
    """Return what a node did in a second: per cent of a core of both threads, messages of the
    module, and its commands. The median of the nodes."""

    def look() -> Iterator[list[float]]:
        for node, client in zip(nodes, clients, strict=True):
            info: dict[str, Any] = client.cluster("info")
            commands = client.info("commandstats")
            yield [
                thread_ns(node.pid) / 1e7,
                thread_ns(node.pid, worker_thread(node.pid)) / 1e7,
                float(info.get("cluster_stats_messages_module_sent", 0)),
                float(commands.get("cmdstat_cluster|nodes", {}).get("calls", 0)),
            ]

    before, start = list(look()), time.monotonic()
    while time.monotonic() < start + WATCHED:
        act()
        time.sleep(TICK)
    seconds = time.monotonic() - start
    changes = [
        [(b - a) / seconds for a, b in zip(*pair, strict=True)]
        for pair in zip(before, look(), strict=True)
    ]
    names = ("main", "worker", "messages", "commands")
    return dict(zip(names, map(statistics.median, zip(*changes, strict=True)), strict=True))


def table(panels: Sequence[dict[str, Any]]) -> str:
    """Return the panels as tables of Markdown."""
    lines: list[str] = []
    for panel in panels:
        heads = [f"{panel['grows']}", *panel["columns"]]
        lines += [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
        for number, row in enumerate(panel["rows"]):
            values = [shown(column[number]) for column in panel["columns"].values()]
            lines.append(f"| {' | '.join([row, *values])} |")
        lines.append("")
    return "\n".join(lines)
