"""`keyspace-amqp exporter`: metrics for Prometheus.

At each scrape it asks every node for `INFO`, all at the same time, and waits `BOUND` seconds
at most. So a node that hangs counts as down and does not delay the others. The names come
from tables/stats.py.
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
from ..tables.stats import HELP, OUTBOX_WAITS, TEXT_HELP, Stat, Text
from . import ToolError
from .nodes import open_client, place, sibling, topology

# Seconds for an answer of a node, and for the answers of all. A scrape asks twice, or three
# times if the node in --redis is away. Prometheus waits for 10 s by default.
TIMEOUT = 1.5
BOUND = 2.5
# Nodes that are asked at the same time.
AT_ONCE = 100

PREFIX = "keyspace_amqp_"
# The values that may become smaller; `fallback_found` does when slots move.
GAUGES = {
    Stat.FALLBACK_LENGTH,
    Stat.FALLBACK_FOUND,
    Stat.QUEUE_LENGTH,
    Stat.QUEUE_BYTES,
    Stat.IN_FLIGHT,
    Stat.REFUSED_WAITING,
    Stat.SNAPSHOT_LOOKED,
    Stat.SNAPSHOT_KEYS,
}
_REASON = "dropped_"
_CONFIRM = "confirm_ms_"
_BUCKET = re.compile(_CONFIRM + "le_([0-9]+|inf)")

# The answer of a node: counters, gauges and texts by the names of STATS. None: no answer, or
# no module.
Answer = Mapping[str, Any] | None
# An answer, and the cluster as the node sees it.
_Seen = tuple[Answer, Topology]


def families(answers: Mapping[str, Answer]) -> Iterable[core.Metric]:
    """Yield the metrics for the answer of each node, by its label."""
    answered = {node: answer for node, answer in answers.items() if answer}
    up = core.GaugeMetricFamily(
        PREFIX + "up",
        "1 if the node answers in time and has the module, else 0",
        labels=["node"],
    )
    for node in answers:
        up.add_metric([node], node in answered)
    state = core.GaugeMetricFamily(
        PREFIX + "state",
        "1 for the present state: " + TEXT_HELP[Text.STATE],
        labels=["node", "state"],
    )
    outbox = core.GaugeMetricFamily(
        PREFIX + "outbox",
        "1 while events go into the list with their writes, 0 while they go through memory, by the "
        "parameter `outbox`; nothing with `off`",
        labels=["node", "mode"],
    )
    info = core.InfoMetricFamily(PREFIX.rstrip("_"), "versions, and the broker", labels=["node"])
    for node, answer in answered.items():
        state.add_metric([node, answer["state"]], 1)
        text = str(answer.get("outbox", "off"))  # another version of the module may not have it
        mode = text.removesuffix(OUTBOX_WAITS)
        if mode != "off":
            outbox.add_metric([node, mode], text == mode)
        names = ("version", "server", "broker")
        info.add_metric([node], {name: str(answer.get(name, "")) for name in names})
    yield from (up, state, outbox, info)
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
        for node, answer in answered.items():
            if name in answer:  # another version of the module may not have it
                family.add_metric([node, *labels], answer[name])
        if family is not dropped:
            yield family
    yield dropped
    yield from _latency(answered)


def _latency(answered: Mapping[str, Mapping[str, Any]]) -> Iterable[core.Metric]:
    """Yield the histogram of the time from event to confirm, if the modules measure it. STATS
    has the count of each bucket alone; in Prometheus a bucket includes all lower ones."""
    family = core.HistogramMetricFamily(
        PREFIX + "confirm_seconds", "time from the event to its confirm", labels=["node"]
    )
    for node, answer in answered.items():
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
    """The collector that asks a server, or all nodes of its cluster, at each scrape.

    `url`: the server in --redis; `label`: its label if it is in no cluster. Most likely
    failure: nodes are down; they have keyspace_amqp_up 0, and the scrape succeeds.
    """

    def __init__(self, url: str, label: str | None = None) -> None:
        self._first = open_client(url, TIMEOUT)
        self._label = label or place(self._first)
        # The nodes of the cluster at the last scrape. Replaced as a whole: scrapes may overlap.
        self._cluster: Mapping[str, redis.Redis] = {}

    def collect(self) -> Iterable[core.Metric]:
        begin = time.monotonic()
        yield from families(self._ask_all())
        seconds = time.monotonic() - begin
        yield core.GaugeMetricFamily(PREFIX + "scrape_seconds", "how long the nodes took", seconds)

    def _ask_all(self) -> Mapping[str, Answer]:
        """Ask all nodes. Return their answers by label."""
        known = self._cluster
        seen = _ask({self._label: self._first}, look=True)
        if not seen:  # another node can tell about the cluster too
            seen = _ask(known, look=True)
        if not seen:
            return dict.fromkeys(known or [self._label])
        seen = {
            _own_address(found) or node: (answer, found) for node, (answer, found) in seen.items()
        }
        cluster = max((found for _, found in seen.values()), key=lambda found: len(found.nodes))
        self._cluster = {
            node.address: known.get(node.address) or sibling(self._first, node.address)
            for node in cluster.nodes.values()
            if _host(node.address)  # empty: no node knows its address
        }
        rest = {node: client for node, client in self._cluster.items() if node not in seen}
        seen |= _ask(rest, look=False)
        answers = {node: answer for node, (answer, _) in seen.items()}
        return dict.fromkeys(sorted(self._cluster)) | answers


def _host(address: str) -> str:
    return address.rpartition(":")[0]


def _own_address(topology: Topology) -> str:
    """Return the address under which the cluster knows the node that has sent this topology;
    empty if it has none."""
    address = topology.nodes[topology.myself].address
    return address if _host(address) else ""


def _ask(clients: Mapping[str, redis.Redis], *, look: bool) -> dict[str, _Seen]:
    """Ask all nodes at the same time. Return the answers that came within the bound. `look`: ask
    for the cluster too."""
    if not clients:
        return {}
    pool = concurrent.futures.ThreadPoolExecutor(min(len(clients), AT_ONCE))
    asked = {pool.submit(_ask_one, clients[node], look): node for node in clients}
    done, _ = concurrent.futures.wait(asked, BOUND)
    pool.shutdown(wait=False, cancel_futures=True)
    return {asked[future]: seen for future in done if (seen := future.result())}


def _ask_one(client: Any, look: bool) -> _Seen | None:
    """Ask one node; None if it does not answer. `look`: ask for its cluster too."""
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
    """Return a dashboard for Grafana, as JSON."""
    return importlib.resources.files(__package__).joinpath("grafana.json").read_text()


def alerts() -> str:
    """Return rules for Prometheus that tell of what is wrong, as YAML."""
    return importlib.resources.files(__package__).joinpath("alerts.yml").read_text()


def run(options: argparse.Namespace) -> int:
    """Serve the metrics until SIGTERM or Ctrl-C. Raises ToolError."""
    if options.dashboard or options.alerts:
        print(dashboard() if options.dashboard else alerts(), end="")
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
