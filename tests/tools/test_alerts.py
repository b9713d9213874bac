"""The alerts for Prometheus, with promtool and with a Prometheus that scrapes a real exporter; and
what compose.yaml starts beside them."""

from __future__ import annotations

import json
import pathlib
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from keyspace_amqp.demo.servers import RabbitServer, free_port, wait_for
from keyspace_amqp.demo.servers.process import Server
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.tools import exporter
from tests.fix_servers import ROOT, StartRedis, arguments_for, settled
from tests.fix_tools import SOON, Run, Running, url

RULES = ROOT / "keyspace_amqp" / "tools" / "alerts.yml"
CONFIG = ROOT / "docs" / "monitoring" / "prometheus.yml"
# Each alert, its expression, and its summary.
ALERTS = {
    name: (expression, summary)
    for name, expression, summary in re.findall(
        r'- alert: (\w+)\n +expr: (.*)\n(?:.*\n)*? +summary: "?(.*?)"?\n', RULES.read_text()
    )
}
# Each alert, the metrics minute by minute that mean it, and its labels. In the fifth minute there
# is none yet.
NODE = {"node": "n"}
CASES: tuple[tuple[str, Mapping[str, str], Mapping[str, str]], ...] = (
    (
        "EventsLost",
        {'dropped_total{node="n",reason="too_large"}': "3x5 4x20"},
        {**NODE, "reason": "too_large"},
    ),
    ("EventsReachNoQueue", {'returned_total{node="n"}': "0x5 1x20"}, NODE),
    ("EventsRefused", {'refused_waiting{node="n"}': "0x5 5x20"}, NODE),
    ("BrokerAway", {'state{node="n",state="disconnected"}': "_x5 1x20"}, NODE),
    (  # One state after the other is still one outage.
        "BrokerAway",
        {
            'state{node="n",state="disconnected"}': "_x6 1x4 _x4 1x20",
            'state{node="n",state="blocked"}': "_x6 _x4 1x4 _x20",
        },
        NODE,
    ),
    ("QueueDoesNotConfirm", {'state{node="n",state="unconfirmed"}': "_x5 1x20"}, NODE),
    ("HandlerHangs", {'state{node="n",state="stopping"}': "_x5 1x20"}, NODE),
    (
        "OutboxWaits",
        {'outbox{node="n",mode="reply"}': "1x5 0x20"},
        {**NODE, "mode": "reply"},
    ),
    ("EventsMissedTheOutbox", {'outbox_missed_total{node="n"}': "0x5 1x20"}, NODE),
    ("RedisOrModuleAway", {'up{node="n"}': "1x5 0x20"}, NODE),
    ("ExporterAway", {'up{node="n"}': "1x5 _x20"}, {}),
)
CRITICAL = {"EventsLost", "EventsReachNoQueue", "HandlerHangs", "RedisOrModuleAway"}


def promtool(*words: str | pathlib.Path, text: str = "") -> str:
    done = subprocess.run(
        ["promtool", *words],
        input=text,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_rules_and_the_configuration(tmp_path: pathlib.Path, run: Run) -> None:
    """They are valid, and the tool prints the rules."""
    for file in (RULES, CONFIG):
        shutil.copy(file, tmp_path)
    checked = promtool("check", "config", tmp_path / CONFIG.name)
    assert f"{len(ALERTS)} rules found" in checked
    assert run("exporter", "--alerts") == (0, RULES.read_text(), "")


def test_the_alerts_ask_for_what_there_is() -> None:
    class Answers(Collector):
        def collect(self) -> Any:
            numbers = {stat.name.lower(): 1 for stat in Stat}
            yield from exporter.families({"a": {"state": "idle", "outbox": "reply"} | numbers})

    registry = CollectorRegistry()
    registry.register(Answers())
    found = list(text_string_to_metric_families(generate_latest(registry).decode()))
    there = {sample.name for family in found for sample in family.samples}
    for expression, _ in ALERTS.values():
        assert set(re.findall(r"\bkeyspace_amqp_\w+", expression)) <= there, expression
    assert {state for e, _ in ALERTS.values() for state in re.findall('state=~?"(.*?)"', e)} == {
        *("connecting|disconnected|blocked", "unconfirmed", "stopping", "replica")
    }


def test_the_page_has_all_alerts() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    severity = {name: "critical" if name in CRITICAL else "warning" for name in ALERTS}
    assert re.findall(r"^\| `(\w+)` \| (critical|warning) \|", page, re.M) == [*severity.items()]


def expected(name: str, labels: Mapping[str, str]) -> dict[str, Any]:
    """An alert as promtool expects it."""
    summary = re.sub(r"{{ \$labels\.(\w+) }}", lambda m: labels[m[1]], ALERTS[name][1])
    severity = "critical" if name in CRITICAL else "warning"
    return {"exp_labels": {**labels, "severity": severity}, "exp_annotations": {"summary": summary}}


def test_each_alert(tmp_path: pathlib.Path) -> None:
    """It comes of what it is for, not before that, and nothing else comes of it."""
    assert {name for name, _, _ in CASES} == ALERTS.keys()
    tests = []
    for name, series, labels in CASES:
        given = [{"series": f"keyspace_amqp_{s}", "values": v} for s, v in series.items()]
        if not any(s.startswith("up{") for s in series):
            given.append({"series": 'keyspace_amqp_up{node="n"}', "values": "1x40"})
        late = 25 if name in ("EventsRefused", "ExporterAway") else 12
        late = 10 if name in ("EventsLost", "EventsReachNoQueue", "EventsMissedTheOutbox") else late
        checks = [{"eval_time": "5m", "alertname": each, "exp_alerts": []} for each in ALERTS]
        checks += [
            {
                "eval_time": f"{late}m",
                "alertname": each,
                "exp_alerts": [expected(name, labels)] if each == name else [],
            }
            for each in ALERTS
        ]
        tests.append({"interval": "1m", "input_series": given, "alert_rule_test": checks})
    # A replica writes nothing into an outbox.
    replica = {'outbox{node="n",mode="reply"}': "0x20", 'state{node="n",state="replica"}': "1x20"}
    given = [{"series": f"keyspace_amqp_{s}", "values": v} for s, v in replica.items()]
    checks = [{"eval_time": "9m", "alertname": "OutboxWaits", "exp_alerts": []}]
    tests.append({"interval": "1m", "input_series": given, "alert_rule_test": checks})
    whole = {"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}
    (tmp_path / "tests.yml").write_text(json.dumps(whole))  # JSON is YAML
    promtool("test", "rules", tmp_path / "tests.yml")


class Prometheus(Server):
    """A private Prometheus with the files of the profile `monitoring` of compose.yaml, which
    scrapes one exporter."""

    name = "prometheus"

    def __init__(self, folder: pathlib.Path, target: str) -> None:
        super().__init__(folder)
        self.port = free_port()
        shutil.copy(RULES, folder)
        text = CONFIG.read_text().replace("exporter:9808", target)
        (folder / "prometheus.yml").write_text(text.replace(": 5s", ": 1s"))

    def command(self) -> list[str]:
        return [
            "prometheus",
            f"--config.file={self.folder}/prometheus.yml",
            f"--storage.tsdb.path={self.folder}/data",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]

    def asked(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=5) as answer:
            return answer.read()

    def ready(self) -> bool:
        try:
            return b"Ready" in self.asked("/-/ready")
        except OSError:
            return False

    def alerts(self) -> dict[str, str]:
        """The state of each alert that there is."""
        found = json.loads(self.asked("/api/v1/alerts"))["data"]["alerts"]
        return {alert["labels"]["alertname"]: alert["state"] for alert in found}


def test_a_real_prometheus(
    broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """It scrapes the exporter, and says that messages reach no queue, and that Redis is away."""
    server = start_redis(arguments=arguments_for(broker))
    words = ("exporter", "--redis", url(server), "--node-label", "redis", "--listen")
    with Running(tmp_path, *words, "127.0.0.1:0") as tool:
        address = tool.waits(lambda tool: re.search(r"http://(.*)/metrics", tool.out))[1]
        with urllib.request.urlopen(f"http://{address}/metrics") as answer:
            said = promtool("check", "metrics", text=answer.read().decode())
            assert said == "", said
        with Prometheus(tmp_path / "prometheus", address) as prometheus:
            query = "/api/v1/query?query=keyspace_amqp_returned_total"
            wait_for(lambda: json.loads(prometheus.asked(query))["data"]["result"], SOON)
            wait_for(lambda: prometheus.alerts() == {}, SOON)  # ExporterAway is over
            with server.client() as client:
                client.set("k", 1)
                settled(client, returned=1)
            wait_for(lambda: prometheus.alerts() == {"EventsReachNoQueue": "firing"}, SOON)
            server.kill()
            wait_for(lambda: prometheus.alerts().get("RedisOrModuleAway") == "pending", SOON)
            server.start()


# ---- compose.yaml --------------------------------------------------------------------


def test_compose_mounts_files_that_there_are() -> None:
    """And the places where Prometheus and Grafana look for them."""
    text = (ROOT / "compose.yaml").read_text()
    mounts = dict(re.findall(r"- \./(\S+):(\S+):ro\n", text))
    assert len(mounts) == 5
    for file in mounts:
        assert (ROOT / file).is_file(), file
    names = {path.name for path in (ROOT / "docs" / "monitoring").iterdir()}
    assert names == {pathlib.PurePath(f).name for f in mounts if f.startswith("docs/monitoring/")}
    config, rules = (mounts[str(file.relative_to(ROOT))] for file in (CONFIG, RULES))
    assert pathlib.PurePath(config).parent == pathlib.PurePath(rules).parent
    assert re.search(rf"^  - {pathlib.PurePath(rules).name}\b", CONFIG.read_text(), re.M)
    dashboards = (ROOT / "docs" / "monitoring" / "grafana-dashboards.yml").read_text()
    place = pathlib.PurePath(mounts["keyspace_amqp/tools/grafana.json"])
    assert f"path: {place.parent} " in dashboards
    assert f"DASHBOARD_PATH: {place}\n" in text


@pytest.mark.parametrize("port", ["15672", "9090", "3000"])
def test_compose_shows_pages_to_this_machine_only(port: str) -> None:
    (line,) = re.findall(rf"^ +- (.*:{port})$", (ROOT / "compose.yaml").read_text(), re.M)
    assert re.fullmatch(rf"127\.0\.0\.1:\$\{{[A-Z]+_PORT:-{port}\}}:{port}", line)
