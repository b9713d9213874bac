"""Metrics for Prometheus from real servers, and the dashboard that is made of them."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.tools import exporter
from tests.fix_cluster import StartCluster
from tests.fix_servers import ROOT, Mailbox, StartRedis, arguments_for, settled
from tests.fix_tools import url
from tests.servers import REDIS

Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]

# The time that Prometheus waits for a scrape by default.
SCRAPE_TIMEOUT = 10


def samples(text: str) -> Samples:
    """Each sample by its name and its labels."""
    families = text_string_to_metric_families(text)
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }


def scrape(collector: Collector) -> Samples:
    registry = CollectorRegistry(support_collectors_without_names=True)
    registry.register(collector)
    return samples(generate_latest(registry).decode())


def value(found: Samples, name: str, **labels: str) -> float:
    return found["keyspace_amqp_" + name, frozenset(labels.items())]


def up(found: Samples) -> dict[str, float]:
    """Per node whether it is up."""
    return {
        dict(labels)["node"]: number
        for (name, labels), number in found.items()
        if name == "keyspace_amqp_up"
    }


def command(*words: str) -> list[Any]:
    return [sys.executable, "-m", "keyspace_amqp.cli", *words]


@pytest.fixture
def served() -> Iterator[Any]:
    """Starts the exporter as users do; its process and its URL."""
    processes: list[subprocess.Popen[str]] = []

    def start(*words: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            command("exporter", *words), cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        assert process.stdout is not None
        return process, process.stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_the_numbers_are_those_of_stats(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Every name of the table is there, with the value that STATS has, as a counter
    unless it may become smaller."""
    server = start_redis(family, arguments_for(broker, mailbox, "$", masks=("^k", "^bad")))
    client = server.client()
    for number in range(20):
        client.set(f"k{number}", 1)
    client.set("other", 1)
    client.rpush("keyspaceamqp:{0}:fallback", "garbage")
    # (With a slow broker, events go through the list, so more may be drained than the garbage.)
    numbers = settled(client, confirmed=20, dropped=1, fallback_length=0, queue_length=0)
    found = scrape(exporter.Nodes(url(server)))
    node = f"127.0.0.1:{server.port}"
    assert up(found) == {node: 1}
    assert value(found, "state", node=node, state="connected") == 1
    assert value(found, "dropped_total", node=node, reason="unreadable") == 1
    assert 0 < value(found, "scrape_seconds") < SCRAPE_TIMEOUT
    for stat in Stat:
        name = stat.name.lower()
        if name == "dropped" or name.startswith("confirm_ms_"):
            continue
        if name.startswith("dropped_"):
            exported = value(found, "dropped_total", node=node, reason=name[len("dropped_") :])
        elif name in ("fallback_length", "fallback_found", "queue_length", "queue_bytes"):
            exported = value(found, name, node=node)
        else:
            gauges = ("in_flight", "refused_waiting", "snapshot_looked", "snapshot_keys")
            is_gauge = name in gauges
            exported = value(found, name if is_gauge else f"{name}_total", node=node)
        assert exported == numbers[name], name
    (info,) = (dict(labels) for name, labels in found if name == "keyspace_amqp_info")
    assert info.keys() == {"node", "version", "server", "broker"}
    assert info["server"].startswith(family.replace("-", " "))
    assert info["broker"] == f"127.0.0.1:{broker.port}"


def test_the_outbox() -> None:
    """Its mode is a label. Nothing is said of `off`, nor by a version that has no outbox."""
    texts = {"a": "reply", "b": "atomic (waits)", "c": "off"}
    answers = {node: {"state": "idle", "outbox": text} for node, text in texts.items()}
    found = samples(generate_latest(Answers(answers | {"d": {"state": "idle"}})).decode())
    assert {key: number for key, number in found.items() if key[0] == "keyspace_amqp_outbox"} == {
        ("keyspace_amqp_outbox", frozenset({("node", "a"), ("mode", "reply")})): 1,
        ("keyspace_amqp_outbox", frozenset({("node", "b"), ("mode", "atomic")})): 0,
    }


def test_buckets_are_cumulative_and_in_seconds() -> None:
    """STATS counts each bucket by itself."""
    answer = {"state": "connected", "confirm_ms_le_5": 3, "confirm_ms_le_10": 0}
    answer |= {"confirm_ms_le_1": 4, "confirm_ms_le_inf": 2, "confirm_ms_sum": 2500}
    text = generate_latest(Answers({"a": answer, "b": {"state": "idle"}})).decode()
    found = samples(text)
    assert "# TYPE keyspace_amqp_confirm_seconds histogram" in text
    for bound, number in {"0.001": 4, "0.005": 7, "0.01": 7, "+Inf": 9}.items():
        assert value(found, "confirm_seconds_bucket", node="a", le=bound) == number
    assert value(found, "confirm_seconds_count", node="a") == 9
    assert value(found, "confirm_seconds_sum", node="a") == 2.5
    assert not [labels for name, labels in found if "confirm_s" in name and ("node", "b") in labels]


class Answers(CollectorRegistry):
    """The metrics that the exporter makes of given answers."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__()
        self._answers = answers

    def collect(self) -> Any:
        return exporter.families(self._answers)


@pytest.fixture
def paused_servers(start_redis: StartRedis) -> Iterator[contextlib.ExitStack]:
    """A stack that lets stopped servers go on, before `start_redis` checks them."""
    with contextlib.ExitStack() as stack:
        yield stack


def test_a_cluster_of_which_nodes_come_and_go(
    broker: RabbitServer, start_cluster: StartCluster, paused_servers: contextlib.ExitStack
) -> None:
    """All nodes are there, by the addresses of the cluster; a new node is there at the next scrape.
    A paused or dead node is down, also the one that --redis names, and the others are read in
    time."""
    bench = start_cluster(REDIS, broker)
    bench.write(200)
    nodes = bench.cluster.nodes
    addresses = [f"127.0.0.1:{node.port}" for node in nodes]
    first, paused = nodes[0], bench.cluster.replica_of(nodes[0])
    collector = exporter.Nodes(f"redis://localhost:{first.port}")
    bench.checked()
    found = scrape(collector)
    assert up(found) == dict.fromkeys(addresses, 1)
    assert sum(value(found, "confirmed_total", node=node) for node in addresses) == 200
    assert value(found, "state", node=f"127.0.0.1:{paused.port}", state="replica") == 1
    more = bench.cluster.make_node()
    more.start()
    nodes.append(more)
    addresses.append(f"127.0.0.1:{more.port}")
    bench.cluster.cli("add-node", addresses[-1], addresses[0])
    wait_for(lambda: up(scrape(collector)) == dict.fromkeys(addresses, 1), 30)

    def scraped() -> dict[str, float]:
        begin = time.monotonic()
        result = up(scrape(collector))
        assert time.monotonic() - begin < SCRAPE_TIMEOUT
        return result

    def soon(expected: dict[str, float]) -> None:
        """Another node may be late too."""
        wait_for(lambda: scraped() == expected, 30)

    def without(*gone: RedisServer) -> dict[str, float]:
        down = {f"127.0.0.1:{node.port}" for node in gone}
        return {address: address not in down for address in addresses}

    for node in (first, paused):  # or the end of a failing test takes minutes
        paused_servers.callback(node.signal, signal.SIGCONT)
    paused.signal(signal.SIGSTOP)
    soon(without(paused))
    first.signal(signal.SIGSTOP)
    soon(without(paused, first))
    first.signal(signal.SIGCONT)
    paused.signal(signal.SIGCONT)
    first.kill()
    soon(without(first))
    first.start()
    soon(without())
    bench.cluster.wait_settled()


def test_who_does_not_answer_is_down(start_redis: StartRedis) -> None:
    """An address without a server, a server that hangs, and one without the module: the scrape
    itself succeeds."""
    port = free_port()
    assert up(scrape(exporter.Nodes(f"redis://127.0.0.1:{port}"))) == {f"127.0.0.1:{port}": 0}
    server = start_redis(arguments=None)
    collector = exporter.Nodes(url(server), "mine")
    assert up(scrape(collector)) == {"mine": 0}
    server.signal(signal.SIGSTOP)
    assert up(scrape(collector)) == {"mine": 0}
    server.signal(signal.SIGCONT)


def test_few_rights_suffice(start_redis: StartRedis) -> None:
    """The rights that --help names."""
    server = start_redis(arguments=arguments_for(free_port()))
    server.client().acl_setuser(
        "watcher", enabled=True, passwords="+secret", commands=["+info", "+cluster|nodes"]
    )
    collector = exporter.Nodes(f"redis://watcher:secret@127.0.0.1:{server.port}")
    assert up(scrape(collector)) == {f"127.0.0.1:{server.port}": 1}


def test_the_command(start_redis: StartRedis, served: Any) -> None:
    """It serves until it is told to end, by SIGTERM and by Ctrl-C."""
    server = start_redis(arguments=arguments_for(free_port()))
    for number in (signal.SIGTERM, signal.SIGINT):
        process, address = served("--listen", "127.0.0.1:0", "--redis", url(server))
        with urllib.request.urlopen(address) as reply:
            assert reply.headers["Content-Type"].startswith("text/plain")
            assert list(up(samples(reply.read().decode())).values()) == [1]
        process.send_signal(number)
        assert process.wait(SCRAPE_TIMEOUT) == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--listen", "9808"], "'9808' is not accepted; give host:port"),
        (["--listen", "127.0.0.1:65536"], "'127.0.0.1:65536' is not accepted"),
        (["--redis", "http://127.0.0.1"], "--redis: "),
    ],
)
def test_wrong_options(words: list[str], says: str) -> None:
    done = subprocess.run(command("exporter", *words), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode != 0
    assert says in done.stderr
    assert "Traceback" not in done.stderr


def test_an_address_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        words = command("exporter", "--listen", address)
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert (
        done.stderr
        == f"keyspace-amqp: --listen: cannot listen on {address}: Address already in use\n"
    )


@pytest.mark.parametrize("package", ["prometheus_client", "redis"])
def test_a_missing_package(package: str, tmp_path: pathlib.Path) -> None:
    """The error names it and the command that installs it; the other commands need only the
    standard library."""
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(name={package!r})\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    words = command("exporter", "--dashboard")
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"the Python package {package} is missing: pip install" in done.stderr
    assert "'keyspace-amqp[tools]'" in done.stderr


# ---- the dashboard ---------------------------------------------------------

# Words of expressions that are no metrics.
PROMQL = {"sum", "max", "by", "rate", "increase", "histogram_quantile"}


def test_the_dashboard_uses_what_there_is(start_redis: StartRedis) -> None:
    """Each expression asks for metrics that the exporter has, by labels that they have; so do
    legends."""
    server = start_redis(arguments=arguments_for(free_port()))
    there: dict[str, set[str]] = {}
    answer = {"state": "idle", "confirm_ms_le_1": 1, "confirm_ms_le_inf": 1, "confirm_ms_sum": 1}
    made_up = samples(generate_latest(Answers({"a": answer | {"outbox": "reply"}})).decode())
    for name, labels in [*scrape(exporter.Nodes(url(server))), *made_up]:
        there.setdefault(name, set()).update(dict(labels))
    for panel in board()["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            metrics = set(re.findall(r"\bkeyspace_amqp_\w+", expression))
            assert metrics, expression
            assert metrics <= there.keys(), expression
            known = set.union(*(there[metric] for metric in metrics))
            used = set(re.findall(r"(\w+)\s*(?:=|!=|=~|!~)\s*\"", expression))
            used |= {
                label.strip()
                for labels in re.findall(r"\bby \(([^)]*)\)", expression)
                for label in labels.split(",")
            }
            used |= set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            assert used <= known, expression
            words = re.sub(r"\{[^}]*\}|\[[^]]*\]|\bby \([^)]*\)", "", expression)
            assert set(re.findall(r"[a-z_]{2,}", words)) - metrics <= PROMQL, expression
            counters = {metric for metric in metrics if metric.endswith(("_total", "_bucket"))}
            assert ("rate(" in expression or "increase(" in expression) == bool(counters)
    # The metrics that the documentation names exist.
    page = (ROOT / "docs" / "operations.md").read_text()
    spoken = set(re.findall(r"\bkeyspace_amqp_[a-z_]*[a-z]", page))
    spoken.remove("keyspace_amqp_confirm_seconds")  # its parts have longer names
    assert spoken <= there.keys()


def test_the_dashboard_has_all_that_is_to_be_watched() -> None:
    """Every panel also has a place and an id of its own."""
    panels = board()["panels"]
    text = json.dumps([target["expr"] for panel in panels for target in panel["targets"]])
    for name in (
        *("up", "state", "events_matched_total", "confirmed_total", "fallback_length"),
        *("queue_bytes", "in_flight", "dropped_total", "nacked_total", "returned_total"),
        *("reconnects_total", "confirm_seconds_bucket", "outbox", "outbox_missed_total"),
    ):
        assert f"keyspace_amqp_{name}" in text, name
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    places = [panel["gridPos"] for panel in panels]
    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in itertools.combinations(places, 2):
        apart = any(
            one[at] + one[size] <= other[at] or other[at] + other[size] <= one[at]
            for at, size in (("x", "w"), ("y", "h"))
        )
        assert apart, (one, other)


def test_the_dashboard_works_with_any_prometheus() -> None:
    """The data source and the nodes are variables."""
    found = board()
    variables = {variable["name"]: variable for variable in found["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["node"]["definition"] == "label_values(keyspace_amqp_up, node)"
    source = {"type": "prometheus", "uid": "${datasource}"}
    for part in (*found["panels"], variables["node"]):
        assert part["datasource"] == source
        for target in part.get("targets", ()):
            assert target["datasource"] == source
            assert 'node=~"$node"' in target["expr"]


def board() -> Any:
    done = subprocess.run(
        command("exporter", "--dashboard"), cwd=ROOT, capture_output=True, check=True
    )
    return json.loads(done.stdout)
