"""The checks of one server and its module, by their answers. Pure, but for `gather`."""

from __future__ import annotations

import dataclasses
import importlib.util
import platform
import re
import sys
import sysconfig
from collections.abc import Iterator
from typing import Any

import redis

from ... import __version__
from ...counts import counted
from ...tables.stats import FIRST_REASON, HELP, OUTBOX_WAITS, TEXT_HELP, Stat
from .. import ToolError, nodes
from ..path import module_path
from ..replies import decoded, error_code, is_unknown_command, mapping, reason
from .advice import BIND, advice_for
from .finding import OK, PROBLEM, UNKNOWN, WARNING, Finding, Level

# Bytes that an element of the list takes, with a key of 30 bytes.
_ELEMENT = 80
# Memory and the list are nearly full from this part of their limit on.
_NEARLY = 0.9
# Of so many events, a mask should have let some through.
_MANY_EVENTS = 100
# Parameters of the server itself.
_REDIS_CONFIG = (
    "save",
    "appendfsync",
    "enable-module-command",
    "stop-writes-on-bgsave-error",
    "min-replicas-to-write",
)
# The commands that the module runs for its list, and what happens where the server has them under
# another name only (rename-command).
_NEEDED = {
    "llen": "the module does not know what is in its list, and delivers nothing",
    "rpush": "no event gets into the list",
    "lrange": "the list cannot be read, and after an outage or a restart its events stay there",
    "ltrim": "what was delivered cannot be removed from the list",
}
# The module's error if a command has another name.
_UNKNOWN = re.compile("unknown command '([a-z]+)'")
# The answers of a server, and what is looked at in them.
_INFO, _CONFIG, _MODULES = "INFO", "CONFIG GET", "MODULE LIST"
_STATS, _PARAMETERS, _COMMANDS = "KEYSPACEAMQP.STATS", "KEYSPACEAMQP.CONFIG GET", "COMMAND INFO"
_LOOKED_AT = {
    _INFO: "version, role, replicas, memory and persistence",
    _CONFIG: "persistence, and min-replicas-to-write",
    _MODULES: "a password among the module's arguments",
    _STATS: "state and losses",
    _PARAMETERS: "delivery-mode, list, outbox, masks, broker, exchange and queue",
    _COMMANDS: "commands under other names (rename-command)",
}


@dataclasses.dataclass(frozen=True)
class Refusal:
    """The reason why a command was refused. `denied`: the user may not give it; `renamed`: the
    server does not know it."""

    reason: str
    denied: bool
    renamed: bool = False


@dataclasses.dataclass
class Facts:
    """The answers of a node: INFO, parameters of the server, STATS, the module's parameters and
    its arguments, the commands of `_NEEDED` that the server does not know, and the commands that
    were refused. Answers that are missing are empty. `loaded`: None if nobody knows."""

    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    redis_config: dict[str, str] = dataclasses.field(default_factory=dict)
    arguments: list[str] = dataclasses.field(default_factory=list)
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)
    parameters: dict[str, str] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    refused: dict[str, Refusal] = dataclasses.field(default_factory=dict)
    loaded: bool | None = True


def gather(node: nodes.Node) -> Facts:
    """Ask a node for everything. Raises redis.RedisError, OSError if it does not answer."""
    facts, client = Facts(), node.client

    def attempt(what: str, *words: str) -> Any:
        try:
            return client.execute_command(what, *words)  # type: ignore[no-untyped-call]
        except (redis.ResponseError, redis.TimeoutError) as error:
            if isinstance(error, redis.TimeoutError) and not facts.info:
                raise
            facts.refused[what] = _refusal(error)
            return None

    facts.info = attempt(_INFO, "everything") or {}
    facts.redis_config = mapping(attempt(_CONFIG, *_REDIS_CONFIG) or {})
    facts.stats = mapping(attempt(_STATS) or {})
    facts.loaded = _is_loaded(facts)
    if not facts.stats and facts.loaded:
        facts.stats = _stats_of(facts.info)
    if facts.stats or facts.loaded is False:
        facts.refused.pop(_STATS, None)
    if facts.loaded is not False:
        facts.parameters = mapping(attempt(_PARAMETERS, "*") or {})
        for module in map(mapping, attempt(_MODULES) or ()):
            if module["name"] == "keyspaceamqp":
                facts.arguments = [decoded(word) for word in module.get("args", ())]
        known = attempt(_COMMANDS, *_NEEDED)
        if known is not None:
            facts.missing = [name for name, reply in zip(_NEEDED, known, strict=True) if not reply]
    return facts


def _refusal(error: redis.RedisError) -> Refusal:
    if is_unknown_command(error):
        return Refusal("the server has it under another name, or not at all", False, renamed=True)
    denied = error_code(error) == "NOPERM"
    return Refusal("NOPERM " * denied + reason(error), denied)


def _is_loaded(facts: Facts) -> bool | None:
    """True if the module is loaded; None if the answers do not say it."""
    if facts.stats or "keyspaceamqp_version" in facts.info:
        return True
    refusal = facts.refused.get(_STATS)
    if refusal is not None and refusal.renamed:
        return False  # nobody can rename the commands of a module
    return True if refusal is not None and refusal.denied else None


def _stats_of(info: dict[str, Any]) -> dict[str, Any]:
    """Return STATS as INFO has them; empty if it does not."""
    found: dict[str, Any] = {}
    for member in (*TEXT_HELP, *Stat):
        value = info.get(f"keyspaceamqp_{member.name.lower()}")
        if value is not None:
            found[member.name.lower()] = value if isinstance(member, Stat) else str(value)
    return found


# Versions of Valkey that leave a client in another database (docs/versions.md): the first and the
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
    """Name what could not be looked at, and why."""
    for command, refusal in facts.refused.items():
        what = f"{command}: {refusal.reason}"
        if command == _PARAMETERS and not refusal.denied:
            advice = "look at the server's log; a restart starts the handler again"
            yield Finding("handler", PROBLEM, what, advice)
            continue
        advice = "try again; the server's log may say more"
        if refusal.denied:
            advice = "allow this command to the user in --redis"
        elif refusal.renamed:
            advice = "look yourself; rename-command in the server's configuration has the name"
        yield Finding("access", UNKNOWN, f"{what}. Not looked at: {_LOOKED_AT[command]}", advice)
    if not facts.stats and facts.loaded is not False:
        text = "state and losses of the module cannot be seen"
        advice = f"allow {_INFO} or {_STATS} to the user in --redis"
        yield Finding("access", PROBLEM, text, advice)


def commands(facts: Facts) -> Iterator[Finding]:
    """Check that the server has the commands which the module runs for its list."""
    found = {*facts.missing, *_UNKNOWN.findall(facts.stats.get("last_error", "").lower())}
    for name in sorted(found & _NEEDED.keys()):
        text = f"the server does not know {name.upper()}: {_NEEDED[name]}"
        advice = "take the line rename-command out of the server's configuration; ACLs can keep "
        advice += "clients from this command"
        yield Finding("commands", PROBLEM, text, advice)


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
    if facts.arguments[4:5] not in ([], ["guest"]):
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
            text = f"{counted(good, 'replica')}, and min-replicas-to-write {fewest}: writes are "
            text += "refused"
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
        if now == "connecting" and last:  # it tries again and again
            level = PROBLEM
        if level is PROBLEM:
            advice = advice_for(last) or advice
        if last:
            now += f"; {'earlier error' if level is OK else 'why'}: {last}"
        yield Finding("state", level, now, advice)


def masks(facts: Facts) -> Iterator[Finding]:
    """Check that the masks let some events through."""
    seen = facts.stats.get("events_seen", 0)
    if seen >= _MANY_EVENTS and facts.stats["events_matched"] == 0:
        text = f"none of {counted(seen, 'event', ',')} was let through by the masks"
        databases = facts.parameters.get("databases", "ALL")
        if databases != "ALL":
            text += f" and by databases {databases}"
        advice = "KEYSPACEAMQP.KEYMASK TEST with a key, and WHY behind it, gives the reason; "
        advice += "KEYSPACEAMQP.KEYMASK LIST shows the masks"
        yield Finding("masks", WARNING, text, advice)


_LOSSES: dict[Stat, tuple[Level, str]] = {
    Stat.RETURNED: (PROBLEM, BIND),
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
        text = f"{counted(length, 'element', ',')}; at {size:,} the oldest are dropped"
        yield Finding("list", WARNING, text, "bring the broker back, or set fallback-size higher")
    elif free is not None and (size == 0 or need > free):
        most = f"may take another {_bytes(need)}" if size else "has no limit"
        yield Finding("list", WARNING, f"it {most}, and Redis has {_bytes(free)}", advice)
    else:
        most = f", at most {size:,}" if size else ""
        yield Finding("list", OK, f"{counted(length, 'element', ',')}{most}")


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


_CHECKS = (
    *(server, refused, commands, module, role, state, masks, losses, fallback, persistence),
    *(outbox, memory),
)


def examine(facts: Facts) -> Iterator[Finding]:
    """Check all answers of a node."""
    for check in _CHECKS:
        yield from check(facts)
    if facts.loaded is False:
        yield from unloaded(facts)
