"""`keyspace-amqp doctor`: finds problems, and gives advice.

Changes nothing in Redis. It sends the broker one message in a transaction, and rolls that back.
The broker checks whether the user may publish the message, and no queue gets it.
"""

from __future__ import annotations

import argparse
import dataclasses
import enum
import importlib.util
import json
import platform
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pika
import redis
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..tables.parameters import PARAMETERS
from ..tables.stats import FIRST_REASON, HELP, OUTBOX_WAITS, Stat
from ..tables.times import COMMAND
from . import ToolError, amqp, nodes
from .path import module_path
from .replies import decoded, error_code, mapping, reason

# Seconds: the module answers a command within this time, or with an error.
TIMEOUT = COMMAND
# Bytes that an element of the list takes, with a key of 30 bytes.
_ELEMENT = 80
# Memory and the list are nearly full from this part of their limit on.
_NEARLY = 0.9
# The most nodes that a finding names; of more nodes it gives the number.
_NAMED = 3
# Characters of a line in a pipe: no line is broken there.
_PIPE_WIDTH = 1000
# Codes with which the broker closes a channel (AMQP 0-9-1, 1.8.2).
_ACCESS_REFUSED, _NOT_FOUND = 403, 404
# Parameters of the server itself.
_REDIS_CONFIG = (
    "save",
    "appendfsync",
    "enable-module-command",
    "stop-writes-on-bgsave-error",
    "min-replicas-to-write",
)


class Level(enum.StrEnum):
    """The severity of a finding."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


OK, WARNING, PROBLEM = Level
COLOURS = {OK: "green", WARNING: "yellow", PROBLEM: "bold red"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A finding: its subject, its text, and advice. It is also the key that groups equal
    findings of several nodes."""

    about: str
    level: Level
    text: str
    advice: str = ""


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The reason why a command was refused. `denied`: the user may not give it."""

    reason: str
    denied: bool


@dataclasses.dataclass
class Facts:
    """The answers of a node: INFO, parameters of the server, the module's arguments (None if
    the module is not loaded), STATS, the module's parameters, and the commands that were
    refused. Answers that are missing are empty."""

    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    redis_config: dict[str, str] = dataclasses.field(default_factory=dict)
    arguments: list[str] | None = None
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)
    parameters: dict[str, str] = dataclasses.field(default_factory=dict)
    refused: dict[str, Refusal] = dataclasses.field(default_factory=dict)


def gather(node: nodes.Node) -> Facts:
    """Ask a node for everything. Raises redis.RedisError, OSError if it does not answer."""
    facts, client = Facts(), node.client

    def attempt(what: str, *words: str) -> Any:
        try:
            return client.execute_command(what, *words)  # type: ignore[no-untyped-call]
        except (redis.ResponseError, redis.TimeoutError) as error:
            if isinstance(error, redis.TimeoutError) and not facts.info:
                raise
            denied = error_code(error) == "NOPERM"
            facts.refused[what] = Refusal("NOPERM " * denied + reason(error), denied)
            return None

    facts.info = attempt("INFO", "everything") or {}
    facts.redis_config = mapping(attempt("CONFIG GET", *_REDIS_CONFIG) or {})
    for reply in attempt("MODULE LIST") or ():
        module = mapping(reply)
        if module["name"] == "keyspaceamqp":
            facts.arguments = [decoded(word) for word in module.get("args", ())]
            facts.stats = mapping(attempt("KEYSPACEAMQP.STATS") or {})
            facts.parameters = mapping(attempt("KEYSPACEAMQP.CONFIG GET", "*") or {})
    return facts


# Versions of Valkey that leave a client in another database (docs/operations.md): the first and the
# last version of each range. 8.1.1, 8.1.8 and 9.1.0 were tried and have the defect; 9.1.1 was tried
# and does not have it.
_WRONG_DATABASE = (((8, 1, 0), (8, 1, 8)), ((9, 0, 0), (9, 1, 0)))

# ---- a node ------------------------------------------------------------------------


def server(facts: Facts) -> Iterator[Finding]:
    name, oldest = ("Redis", (7, 0))
    if facts.info.get("server_name") == "valkey":
        name, oldest = ("Valkey", (7, 2))
    version = str(facts.info.get(f"{name.lower()}_version", ""))
    numbers = tuple(map(int, re.findall(r"\d+", version)))
    if version and numbers[:2] < oldest:
        advice = "the module needs Redis 7.0 or Valkey 7.2, or later"
        yield Finding("server", PROBLEM, f"{name} {version} is too old", advice)
    elif version:
        yield Finding("server", OK, f"{name} {version}")
    listens = set(facts.parameters.get("events", ""))
    wrong = any(first <= numbers <= last for first, last in _WRONG_DATABASE)
    if name == "Valkey" and wrong and listens & {"g", "A"}:
        text = "with events of class g, it uses the wrong database after MOVE and COPY … DB"
        advice = "leave g and A out of events, avoid both commands, or take Valkey 9.1.1 or later"
        yield Finding("server", WARNING, text, advice)


def refused(facts: Facts) -> Iterator[Finding]:
    for command, refusal in facts.refused.items():
        what = f"{command}: {refusal.reason}"
        if command.startswith("KEYSPACEAMQP") and not refusal.denied:
            advice = "look at the server's log; a restart starts the handler again"
            yield Finding("handler", PROBLEM, what, advice)
        else:
            advice = "its answer is not checked; allow this command to the user in --redis"
            yield Finding("access", WARNING, what, advice)


def module(facts: Facts) -> Iterator[Finding]:
    loaded = facts.info.get("keyspaceamqp_version")
    if "keyspaceamqp_python" in facts.info:
        yield Finding("python", OK, str(facts.info["keyspaceamqp_python"]))
    if loaded == __version__:
        yield Finding("module", OK, f"version {loaded}")
    elif loaded is not None:
        text = f"version {loaded}, and this command line is {__version__}"
        advice = "install the same version, and restart the server"
        yield Finding("module", WARNING, text, advice)
    if (facts.arguments or [])[4:5] not in ([], ["guest"]):
        text = "its arguments have the broker's password, which shows in MODULE LIST"
        advice = "set keyspaceamqp.password instead (`keyspace-amqp loadmodule` prints the lines)"
        yield Finding("module", WARNING, text, advice)
    if facts.parameters.get("delivery-mode") == "1":
        text = "delivery-mode is 1: the broker forgets messages when it restarts"
        yield Finding("module", WARNING, text, "set keyspaceamqp.delivery-mode to 2")


def role(facts: Facts) -> Iterator[Finding]:
    info = facts.info
    if info.get("role") == "master":
        yield Finding("role", OK, "primary")
        fewest = int(facts.redis_config.get("min-replicas-to-write", 0))
        good = int(info.get("min_slaves_good_slaves", fewest))
        if good < fewest:
            text = f"{good} replicas, and min-replicas-to-write {fewest}: writes are refused"
            advice = "start the replicas, or lower min-replicas-to-write"
            yield Finding("role", PROBLEM, text, advice)
    elif "role" in info:
        primary = f"{info['master_host']}:{info['master_port']}"
        yield Finding("role", OK, f"replica of {primary}, where events are captured")
        if info["master_link_status"] != "up":
            text = f"no link to {primary}: the copy of the list is not up to date"
            yield Finding("role", WARNING, text, "look at that server, and the network")


_STATES = {
    "connected": (OK, ""),
    "idle": (OK, ""),
    "replica": (OK, ""),
    "unconfirmed": (
        WARNING,
        "a queue confirms nothing: a quorum queue without its majority, or a broker that hangs",
    ),
    "blocked": (PROBLEM, "the broker lacks memory or disk space: see its alarms"),
    "stopping": (PROBLEM, "MODULE UNLOAD was refused; the module goes on when the handler does"),
    "disconnected": (PROBLEM, "see broker; after DISCONNECT the module stays so until CONNECT"),
}


def state(facts: Facts) -> Iterator[Finding]:
    if facts.stats:
        now, last = facts.stats["state"], facts.stats["last_error"]
        level, advice = _STATES.get(now, (WARNING, "look again in a moment"))
        if last:
            now += f"; {'earlier error' if level is OK else 'why'}: {last}"
        yield Finding("state", level, now, advice)


_LOSSES: dict[Stat, tuple[Level, str]] = {
    Stat.RETURNED: (PROBLEM, "bind a queue to the exchange with the routing key"),
    Stat.NACKED: (
        WARNING,
        "a queue with reject-publish is full: empty it, or raise its limit",
    ),
    Stat.HANDLER_ERRORS: (PROBLEM, "a defect of the module: the server's log has more"),
    Stat.MESSAGES_REJECTED: (WARNING, "see the log: have all nodes the same version?"),
    Stat.OUTBOX_MISSED: (
        WARNING,
        "they are not lost, unless Redis was killed then: docs/guarantees.md has the reasons",
    ),
    Stat.DROPPED_QUEUE_FULL: (PROBLEM, "raise queue-limit, or lower worker-nice"),
    Stat.DROPPED_FALLBACK_FULL: (PROBLEM, "raise fallback-size"),
    Stat.DROPPED_FALLBACK_EVICTED: (PROBLEM, "choose a maxmemory-policy without allkeys"),
    Stat.DROPPED_NO_MEMORY: (
        PROBLEM,
        "raise maxmemory, or queue-limit, which does not count towards maxmemory",
    ),
    Stat.DROPPED_TOO_LARGE: (PROBLEM, "raise max_message_size in the broker"),
    Stat.DROPPED_SET_ASIDE: (
        PROBLEM,
        "KEYSPACEAMQP.FALLBACK ASIDE shows them with the broker's words",
    ),
}


def losses(facts: Facts) -> Iterator[Finding]:
    found = [stat for stat in Stat if facts.stats.get(stat.name.lower())]
    found = [stat for stat in found if stat in _LOSSES or stat >= FIRST_REASON]
    for stat in found:
        level, advice = _LOSSES.get(stat, (PROBLEM, "the server's log says when"))
        text = f"{stat.name.lower()} {facts.stats[stat.name.lower()]:,}: {HELP[stat]}"
        yield Finding("losses", level, text, f"{advice}. KEYSPACEAMQP.STATS RESET forgets it")
    if facts.stats and not found:
        yield Finding("losses", OK, "none since the module's load or STATS RESET")


def fallback(facts: Facts) -> Iterator[Finding]:
    """Compare the list with its limit, and with Redis' memory."""
    if not facts.parameters or not facts.stats:
        return
    size, length = int(facts.parameters["fallback-size"]), facts.stats["fallback_length"]
    room = facts.info.get("maxmemory") or facts.info.get("total_system_memory")
    free = room - facts.info["used_memory"] if room else None
    need = (size - length) * _ELEMENT
    advice = "set keyspaceamqp.fallback-size lower, or give Redis more memory"
    if size < 0:
        text = "there is none: events wait in memory only, up to queue-limit"
        yield Finding("list", WARNING, text, "set keyspaceamqp.fallback-size")
    elif size and length >= _NEARLY * size:
        text = f"{length:,} elements; at {size:,} the oldest are dropped"
        yield Finding("list", WARNING, text, "bring the broker back, or set fallback-size higher")
    elif free is not None and (size == 0 or need > free):
        most = f"may take another {_bytes(need)}" if size else "has no limit"
        yield Finding("list", WARNING, f"it {most}, and Redis has {_bytes(free)}", advice)
    else:
        most = f", at most {size:,}" if size else ""
        yield Finding("list", OK, f"{length:,} elements{most}")


def persistence(facts: Facts) -> Iterator[Finding]:
    info, save = facts.info, facts.redis_config.get("save")
    if "aof_enabled" not in info or save is None:
        return
    advice = "the server's log says why: is the disk full, may it write to its dir?"
    stops = facts.redis_config.get("stop-writes-on-bgsave-error") == "yes"
    if save and info["rdb_last_bgsave_status"] != "ok":
        also = ", and clients' writes are refused (stop-writes-on-bgsave-error)" if stops else ""
        yield Finding("persistence", PROBLEM, f"RDB saves fail{also}", advice)
    elif info["aof_enabled"] and info["aof_last_write_status"] != "ok":
        text = "the append-only file cannot be written, and clients' writes are refused"
        yield Finding("persistence", PROBLEM, text, advice)
    elif save or info["aof_enabled"]:
        kinds = ["RDB saves"] * bool(save) + ["append-only file"] * bool(info["aof_enabled"])
        yield Finding("persistence", OK, ", ".join(kinds))
    else:
        text = "neither RDB saves nor an append-only file: the list ends with the process"
        yield Finding("persistence", WARNING, text, "set appendonly to yes, or save")


# The append-only file by its parameter `appendfsync`.
_ON_DISK = {
    "always": "is on disk with each write",
    "everysec": "is written to disk once a second: a crash of the machine can cost the last writes "
    "and their events",
    "no": "is written to disk when the system likes: a crash of the machine can cost many writes "
    "and their events",
}


def outbox(facts: Facts) -> Iterator[Finding]:
    """Check that the outbox works, and how durable its events are."""
    mode, now = facts.parameters.get("outbox", "off"), facts.stats.get("outbox", "off")
    if mode == "off" or now == "off":
        return
    fsync = facts.redis_config.get("appendfsync", "")
    if facts.info.get("role") != "master":
        yield Finding("outbox", OK, f"{mode}, once this is a primary")
    elif int(facts.parameters["fallback-size"]) < 0:
        text = f"{mode}, but there is no list: all events go through memory"
        yield Finding("outbox", PROBLEM, text, "set keyspaceamqp.fallback-size to 0 or more")
    elif now.endswith(OUTBOX_WAITS):
        text = f"{mode}, but it waits: events go through memory"
        advice = "look again in a moment. It opens when the list can be written (last_error says "
        advice += "why not) and memory is empty; in a cluster only on a primary with slots"
        yield Finding("outbox", WARNING, text, advice)
    elif facts.info.get("aof_enabled") == 0:
        text = f"{mode}, and there is no append-only file: a kill of Redis costs all writes since "
        text += "the last save, and their events"
        yield Finding("outbox", WARNING, text, "set appendonly to yes, and appendfsync as needed")
    elif fsync in _ON_DISK:
        level = WARNING if fsync == "no" else OK
        advice = "" if level is OK else "set appendfsync to always or everysec"
        yield Finding("outbox", level, f"{mode}, the append-only file {_ON_DISK[fsync]}", advice)


def memory(facts: Facts) -> Iterator[Finding]:
    limit, policy = facts.info.get("maxmemory", 0), facts.info.get("maxmemory_policy", "")
    if limit and policy.startswith("allkeys"):
        text = f"maxmemory-policy {policy} can evict the list, all at once"
        yield Finding("memory", WARNING, text, "choose noeviction or a volatile policy")
    elif "maxmemory" in facts.info:
        yield Finding("memory", OK, f"maxmemory-policy {policy}" if limit else "no maxmemory")
    if limit and facts.info["used_memory"] >= _NEARLY * limit:
        text = f"{facts.info['used_memory'] / limit:.0%} of maxmemory {_bytes(limit)} is used"
        yield Finding("memory", WARNING, text, "raise maxmemory: near it the list takes no more")


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def unloaded(facts: Facts) -> Iterator[Finding]:
    """Say how to load the module, and check whether this Python could run it."""
    try:
        path = str(module_path())
    except ToolError:
        path = "PATH"
    advice = f"put `loadmodule {path}` and its parameters into the server's configuration file "
    advice += "(`keyspace-amqp loadmodule` prints the lines) and restart it"
    if facts.redis_config.get("enable-module-command", "no") == "no":
        advice += ". MODULE LOADEX cannot do it: enable-module-command is no"
    else:
        advice += f", or give MODULE LOADEX {path}"
    yield Finding("module", PROBLEM, "is not loaded", advice)
    lacking = [name for name in ("cffi", "pika") if importlib.util.find_spec(name) is None]
    lacking += ["a shared libpython"] * (not sysconfig.get_config_var("Py_ENABLE_SHARED"))
    if lacking:
        advice = "install the package with pip, with a Python that has a shared libpython"
        text = f"{sys.executable} lacks {', '.join(lacking)}"
        yield Finding("python", PROBLEM, text, advice)
    else:
        yield Finding("python", OK, f"{platform.python_version()}, {sys.executable}")


_CHECKS = (server, refused, module, role, state, losses, fallback, persistence, outbox, memory)


def examine(facts: Facts) -> Iterator[Finding]:
    """Check all answers of a node."""
    for check in _CHECKS:
        yield from check(facts)
    if facts.arguments is None and "MODULE LIST" not in facts.refused:
        yield from unloaded(facts)


# ---- the cluster and the broker ------------------------------------------------------


def cluster(client: Any) -> Iterator[Finding]:
    """Compare the nodes, as one of them sees them."""
    try:
        down = client.cluster("info").get("cluster_state") != "ok"
        rows = [mapping(row) for row in client.execute_command("KEYSPACEAMQP.CLUSTER")]
    except (redis.RedisError, OSError) as error:
        yield Finding("cluster", PROBLEM, f"KEYSPACEAMQP.CLUSTER: {reason(error)}")
        return
    if down:
        text = "its state is fail: lists can be neither written nor read"
        yield Finding("cluster", PROBLEM, text, "`redis-cli --cluster check`")
    known = [row for row in rows if row["state"] != "unknown"]
    for row in rows:
        if row not in known:
            text = f"missing: {row['address']}: {row['last_error']}"
            advice = "is it up, is the module loaded there?"
            yield Finding("cluster", PROBLEM, text, advice)
    if not down and len(known) == len(rows):
        yield Finding("cluster", OK, f"all {len(rows)} nodes know each other")
    for name, level, advice in (
        ("version", PROBLEM, "restart the nodes that have the older one"),
        ("config_version", WARNING, "look again in a moment; the nodes tell each other"),
    ):
        of = {row["address"]: row[name] for row in known}
        if len(set(of.values())) > 1:
            each = ", ".join(f"{address} {value}" for address, value in of.items())
            yield Finding("cluster", level, f"{name} differs: {each}", advice)


def broker(target: amqp.Target, *, connected: bool, remote: bool) -> Iterator[Finding]:
    """Check that the broker can be reached from here, and that the user may publish.
    `connected`: the module is connected; `remote`: its server is on another machine."""
    try:
        connection = target.connect()
    except ToolError as error:
        advice = "is it up, are host and port right? User and password (here: --amqp or "
        advice += "AMQP_PASSWORD)? guest may by default log in from the broker's own machine only"
        if remote and amqp.loopback(target):
            advice = "the module's broker is on its own machine: run this there, or give --amqp"
        level = WARNING if connected else PROBLEM
        text = f"{error}{' (from here; the module is connected)' if connected else ''}"
        yield Finding("broker", level, text, advice)
        return
    try:
        amqp.end_after(connection, amqp.TIMEOUT)
        text = f"{target.shown} accepts the login ({amqp.product(connection)})"
        yield Finding("broker", OK, text)
        exchange = list(_exchange(connection, target))
        yield from exchange
        if all(finding.level is OK for finding in exchange):
            yield from _publishing(connection, target)
    except pika.exceptions.AMQPError as error:
        advice = "it blocks publishers when it lacks memory or disk space: see its alarms"
        yield Finding("broker", PROBLEM, f"{target.shown}: {amqp.explain(error)}", advice)
    finally:
        amqp.close(connection)


def _exchange(connection: Any, target: amqp.Target) -> Iterator[Finding]:
    """Check that the exchange exists; of the default one, that the queue does."""
    name, key = target.exchange, target.routing_keys[0]
    channel = connection.channel()
    try:
        if name:
            channel.exchange_declare(name, passive=True)
        elif "{" not in key:  # the default exchange routes to the queue with this name
            channel.queue_declare(key, passive=True)
    except pika.exceptions.ChannelClosed as error:
        if error.reply_code == _NOT_FOUND:
            yield _missing(error)
        # With another code, this user may not look at the exchange or the queue: RabbitMQ 4.3 asks
        # for a permission. The module needs none; `_publishing` checks what it needs.
        return
    yield Finding("exchange", OK, f"{name!r}" if name else f"the default one, queue {key!r}")


def _missing(error: pika.exceptions.ChannelClosed) -> Finding:
    advice = "declare it in the broker, or change keyspaceamqp.exchange"
    return Finding("exchange", PROBLEM, amqp.explain(error), advice)


def _publishing(connection: Any, target: amqp.Target) -> Iterator[Finding]:
    """Check that the user may publish, with a message in a transaction that is rolled back."""
    name, key = target.exchange, target.routing_keys[0]
    channel = connection.channel()
    try:
        channel.tx_select()
        channel.basic_publish(name, key, b"")
        channel.tx_rollback()
    except pika.exceptions.ChannelClosed as error:
        yield _not_published(error, target.user, template="{" in key)
    else:
        yield Finding("publishing", OK, f"{target.user} may publish")


def _not_published(error: pika.exceptions.ChannelClosed, user: str, *, template: bool) -> Finding:
    """Return the finding about a message that the broker does not take. `template`: its routing
    key depends on the event."""
    text = amqp.explain(error)
    if error.reply_code == _NOT_FOUND:
        return _missing(error)
    if error.reply_code != _ACCESS_REFUSED:
        return Finding("publishing", PROBLEM, text, "see the broker's log")
    if "topic '" not in text:
        advice = f"`rabbitmqctl set_permissions` has to let {user} write to it"
        return Finding("publishing", PROBLEM, text, advice)
    advice = f"`rabbitmqctl set_topic_permissions` has to let {user} write to "
    if template:
        text = f"whether {user} may publish depends on the routing key of each event"
        return Finding("publishing", WARNING, text, advice + "the topics of all events")
    return Finding("publishing", PROBLEM, text, advice + "this topic")


# ---- all together --------------------------------------------------------------------

# The addresses of the nodes that each finding is about.
Findings = dict[Finding, list[str]]


def diagnose(options: argparse.Namespace) -> tuple[Findings, int]:
    """Return the findings, and the number of nodes. Raises ToolError."""
    found: Findings = {}

    def add(findings: Iterable[Finding], *addresses: str) -> None:
        for finding in findings:
            found.setdefault(finding, []).extend(addresses)

    with nodes.Group(options, TIMEOUT) as group:
        answers = nodes.ask(group.nodes, gather)
        told: dict[str, Facts] = {}
        for node, facts in answers:
            if isinstance(facts, Exception):
                text = f"does not answer: {reason(facts)}"
                add([Finding("server", PROBLEM, text, "is it up?")], node.address)
            else:
                told[node.address] = facts
                add(examine(facts), node.address)
        loaded = [node for node, _ in answers if told.get(node.address, Facts()).parameters]
        if group.clustered and loaded:
            add(cluster(loaded[0].client))
        for findings, addresses in _brokers(options, told):
            add(findings, *addresses)
        return found, len(answers)


def _brokers(
    options: argparse.Namespace, told: Mapping[str, Facts]
) -> Iterator[tuple[Iterable[Finding], Sequence[str]]]:
    """Yield the findings about each broker, exchange and routing key that nodes have, and the
    addresses of these nodes; each broker is checked once."""
    defaults = {parameter.name: parameter.default for parameter in PARAMETERS}
    targets: dict[tuple[Any, ...], tuple[amqp.Target, list[str]]] = {}
    for address, facts in told.items():
        if facts.parameters or options.amqp:
            try:
                target = amqp.target(options, facts.parameters or defaults)
            except ToolError as error:
                yield [Finding("broker", WARNING, f"not tried: {error}")], [address]
                continue
            key = (target.shown, target.exchange, target.routing_keys)
            targets.setdefault(key, (target, []))[1].append(address)
    for target, addresses in targets.values():
        theirs = options.amqp is None
        connected = theirs and any(told[n].stats.get("state") == "connected" for n in addresses)
        local = ("127.", "localhost:", "::1:", "/")
        remote = theirs and not addresses[0].startswith(local)
        yield broker(target, connected=connected, remote=remote), addresses


def report(found: Findings, count: int) -> Table:
    """Return the findings as a table. `count`: the number of nodes."""
    table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding, addresses in found.items():
        text = Text(finding.text)
        if count > 1 and addresses:
            where = ", ".join(addresses)
            if len(addresses) > _NAMED:
                where = f"{len(addresses)} of {count} nodes"
            text.append(f"  [{where}]", "dim")
        if finding.advice and finding.level is not OK:
            text.append(f"\n→ {finding.advice}", "italic")
        table.add_row(Text(finding.level, COLOURS[finding.level]), finding.about, text)
    return table


_ORDER = (
    *("server", "python", "access", "handler", "module", "role", "state", "losses", "list"),
    *("persistence", "outbox", "memory", "cluster", "broker", "exchange", "publishing"),
)


def run(options: argparse.Namespace) -> int:
    """Print the findings. Return 1 if there is a problem. Raises ToolError."""
    found, count = diagnose(options)
    found = dict(sorted(found.items(), key=lambda item: _ORDER.index(item[0].about)))
    number = {level: sum(finding.level is level for finding in found) for level in Level}
    if options.json:
        findings = [
            {**dataclasses.asdict(finding), "nodes": addresses}
            for finding, addresses in found.items()
        ]
        print(json.dumps({**number, "findings": findings}, indent=2))
    else:
        console = Console(highlight=False)
        if not console.is_terminal:
            console.width = _PIPE_WIDTH
        console.print(report(found, count))
        counts = [f"{number[level]} {level}{'s' * (number[level] != 1)}" for level in COLOURS]
        console.print(f"\n{', '.join(counts[:0:-1])}")
    return 1 if number[PROBLEM] else 0
