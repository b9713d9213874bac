"""Metrics for Prometheus: `keyspace-amqp exporter`.

At each scrape every node is asked for `INFO`, all of them at the same time and for no
longer than `BOUND`, so a node that hangs is shown as one that is down and delays nobody
else. The names come from the table in stats.py.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.resources
import re
import signal
import time
from collections.abc import Iterable, Mapping
from typing import Any

import prometheus_client
import redis
from prometheus_client import core
from prometheus_client.registry import Collector, CollectorRegistry

from ..cluster.topology import ALONE, Topology
from ..tables.stats import HELP, TEXT_HELP, Stat, Text
from .nodes import ToolError, open_client, place, reason, sibling, topology

# Seconds: for an answer of a node, and for the answers of all. A scrape asks twice,
# three times if the node that it knows is away; Prometheus waits for 10 s by default.
TIMEOUT = 1.5
BOUND = 2.5
# Nodes that are asked at the same time.
AT_ONCE = 100

PREFIX = "keyspace_amqp_"
# Numbers that may become smaller. `fallback_found` does when slots move.
GAUGES = {
    Stat.FALLBACK_LENGTH,
    Stat.FALLBACK_FOUND,
    Stat.QUEUE_LENGTH,
    Stat.QUEUE_BYTES,
    Stat.IN_FLIGHT,
}
_REASON = "dropped_"
_CONFIRM = "confirm_ms_"
_BUCKET = re.compile(_CONFIRM + "le_([0-9]+|inf)")

# What a node has answered: its numbers and texts by the names of STATS. None: nothing.
Answer = Mapping[str, Any] | None
# The same with its cluster.
_Seen = tuple[Answer, Topology]


def families(answers: Mapping[str, Answer]) -> Iterable[core.Metric]:
    """The metrics that are made of what each node, by its label, has answered."""
    there = {node: answer for node, answer in answers.items() if answer}
    up = core.GaugeMetricFamily(
        PREFIX + "up",
        "whether the node answers in time and has the module",
        labels=["node"],
    )
    for node in answers:
        up.add_metric([node], node in there)
    state = core.GaugeMetricFamily(
        PREFIX + "state",
        "1 for the present state: " + TEXT_HELP[Text.STATE],
        labels=["node", "state"],
    )
    info = core.InfoMetricFamily(PREFIX.rstrip("_"), "versions, and the broker", labels=["node"])
    for node, answer in there.items():
        state.add_metric([node, answer["state"]], 1)
        names = ("version", "server", "broker")
        info.add_metric([node], {name: str(answer.get(name, "")) for name in names})
    yield from (up, state, info)
    dropped = core.CounterMetricFamily(
        PREFIX + "dropped", HELP[Stat.DROPPED], labels=["node", "reason"]
    )
    for stat in Stat:
        name = stat.name.lower()
        if stat is Stat.DROPPED or name.startswith(_CONFIRM):
            continue
        family: core.CounterMetricFamily | core.GaugeMetricFamily = dropped
        labels = [name.removeprefix(_REASON)]
        if not name.startswith(_REASON):
            make = core.GaugeMetricFamily if stat in GAUGES else core.CounterMetricFamily
            family, labels = make(PREFIX + name, HELP[stat], labels=["node"]), []
        for node, answer in there.items():
            if name in answer:  # another version of the module may not have it
                family.add_metric([node, *labels], answer[name])
        if family is not dropped:
            yield family
    yield dropped
    yield from _latency(there)


def _latency(there: Mapping[str, Mapping[str, Any]]) -> Iterable[core.Metric]:
    """The time from event to confirm, if the module measures it: it counts each
    bucket by itself, Prometheus wants each with all below it."""
    family = core.HistogramMetricFamily(
        PREFIX + "confirm_seconds", "time from the event to its confirm", labels=["node"]
    )
    for node, answer in there.items():
        counts = {
            float(match[1]): number
            for name, number in answer.items()
            if (match := _BUCKET.fullmatch(name))
        }
        buckets, total = [], 0
        for bound in sorted(counts):
            total += counts[bound]
            le = "+Inf" if bound == float("inf") else str(bound / 1000)
            buckets.append((le, float(total)))
        if buckets:
            family.add_metric([node], buckets, answer[_CONFIRM + "sum"] / 1000)
    if family.samples:
        yield family


class Nodes(Collector):
    """Asks a server or all nodes of its cluster, which are looked up anew each time."""

    def __init__(self, url: str, label: str | None = None) -> None:
        try:
            self._first = open_client(url, TIMEOUT)
        except ValueError as error:
            raise ToolError(f"--redis: {reason(error)}") from None
        self._label = label or place(self._first)
        # Of the cluster, from the last scrape; replaced as a whole, scrapes may overlap.
        self._others: Mapping[str, redis.Redis] = {}

    def collect(self) -> Iterable[core.Metric]:
        begin = time.monotonic()
        yield from families(self._ask_all())
        seconds = time.monotonic() - begin
        yield core.GaugeMetricFamily(PREFIX + "scrape_seconds", "how long the nodes took", seconds)

    def _ask_all(self) -> Mapping[str, Answer]:
        known = self._others
        seen = _ask({self._label: self._first}, look=True)
        if not seen:  # the others know the cluster too
            seen = _ask(known, look=True)
        if not seen:
            return dict.fromkeys(known or [self._label])
        seen = {
            _own_address(found) or node: (answer, found) for node, (answer, found) in seen.items()
        }
        cluster = max((found for _, found in seen.values()), key=lambda found: len(found.nodes))
        self._others = {
            node.address: known.get(node.address) or sibling(self._first, node.address)
            for node in cluster.nodes.values()
            if _host(node.address)  # else nobody knows where it is
        }
        seen |= _ask({a: client for a, client in self._others.items() if a not in seen}, look=False)
        answers = {node: answer for node, (answer, _) in seen.items()}
        return dict.fromkeys(sorted(self._others)) | answers


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _own_address(topology: Topology) -> str:
    """Of the node that has told it, as the others know it; empty: they do not."""
    address = topology.nodes[topology.myself].address
    return address if _host(address) else ""


def _ask(clients: Mapping[str, redis.Redis], *, look: bool) -> dict[str, _Seen]:
    """Asks all at the same time; those that have answered within the bound."""
    if not clients:
        return {}
    pool = concurrent.futures.ThreadPoolExecutor(min(len(clients), AT_ONCE))
    asked = {pool.submit(_ask_one, clients[node], look): node for node in clients}
    done, _ = concurrent.futures.wait(asked, BOUND)
    pool.shutdown(wait=False, cancel_futures=True)
    return {asked[future]: seen for future in done if (seen := future.result())}


def _ask_one(client: Any, look: bool) -> _Seen | None:
    """`look`: its cluster too."""
    try:
        info = client.info("server", "keyspaceamqp")
        found = topology(client) if look else ALONE
    except (redis.RedisError, OSError, ValueError):
        return None
    prefix = "keyspaceamqp_"
    answer = {name.removeprefix(prefix): info[name] for name in info if name.startswith(prefix)}
    if answer:
        name = info.get("server_name", "redis")
        answer["server"] = f"{name} {info.get(f'{name}_version', '')}"
    return answer or None, found


def dashboard() -> str:
    """A dashboard for Grafana, as JSON."""
    return importlib.resources.files(__package__).joinpath("grafana.json").read_text()


def run(options: argparse.Namespace) -> int:
    """Serves the metrics until SIGTERM or Ctrl-C. Raises ToolError."""
    if options.dashboard:
        print(dashboard(), end="")
        return 0
    registry = CollectorRegistry(support_collectors_without_names=True)
    registry.register(Nodes(options.redis, options.node_label))
    host, port = options.listen
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)
    shown = f"[{host}]" if ":" in host else host
    try:
        server, _ = prometheus_client.start_http_server(port, host, registry)
    except OSError as error:
        raise ToolError(f"--listen: cannot listen on {shown}:{port}: {error.strerror}") from None
    print(f"http://{shown}:{server.server_port}/metrics", flush=True)
    signal.sigwait(ends)
    server.shutdown()
    return 0
