"""The commands: the one table that COMMAND DOCS, HELP and docs/commands.md are made from.

Pure: imports nothing but the table of parameters.
"""

from __future__ import annotations

from typing import NamedTuple

from .parameters import PARAMETERS, Kind


class Argument(NamedTuple):
    """An argument as COMMAND DOCS shows it (RedisModuleCommandArg)."""

    name: str
    type: str = "STRING"
    token: str | None = None
    optional: bool = False
    multiple: bool = False
    arguments: tuple[Argument, ...] = ()


class CommandSpec(NamedTuple):
    """A command: its name after `KEYSPACEAMQP.`, and its documentation."""

    name: str
    usage: tuple[str, ...]
    summary: str
    arguments: tuple[Argument, ...] = ()
    complexity: str = "O(1)"
    flags: str = "admin deny-script allow-stale"
    acl_categories: str = "admin slow dangerous"


# ---- arguments --------------------------------------------------------------------------


def _word(token: str, *, optional: bool = False) -> Argument:
    """A literal word."""
    return Argument(token.lower(), "PURE_TOKEN", token, optional)


def _subcommand(token: str, *arguments: Argument) -> Argument:
    """A subcommand, alone or before arguments."""
    if not arguments:
        return _word(token)
    return Argument(token.lower(), "BLOCK", arguments=(_word(token), *arguments))


def _one_of(*subcommands: Argument, optional: bool = False) -> Argument:
    return Argument("subcommand", "ONEOF", optional=optional, arguments=subcommands)


def _repeated(name: str, *arguments: Argument) -> Argument:
    return Argument(name, "BLOCK", multiple=True, arguments=arguments)


def _positional() -> tuple[Argument, ...]:
    """The positional parameters of CONNECT."""
    return tuple(
        Argument("mask", optional=True, multiple=True)
        if parameter.kind is Kind.MASKS
        else Argument(
            parameter.name,
            "INTEGER" if parameter.kind is Kind.INTEGER else "STRING",
            optional=True,
        )
        for parameter in PARAMETERS
        if parameter.position is not None and parameter.kind is not Kind.EVENTS
    )


_LOCAL = _word("LOCAL", optional=True)
_MASKS = Argument("mask", multiple=True)
# A string and not a key, so that a cluster does not redirect the command: TEST reads no
# key, and IMPORT runs on every node, of which one serves the key.
_ANY_KEY = Argument("key")

# ---- the table --------------------------------------------------------------------------

COMMANDS: tuple[CommandSpec, ...] = (
    CommandSpec(
        "CONNECT",
        (
            "CONNECT [host [port [username [password [heartbeat [exchange [routing-key "
            "[delivery-mode [fallback-size [mask ...]]]]]]]]]]",
        ),
        "Connects to RabbitMQ; sets the parameters that are given",
        (*_positional(), _LOCAL),
    ),
    CommandSpec(
        "DISCONNECT",
        ("DISCONNECT",),
        "Closes the connection until CONNECT; events go to the fallback list",
        (_LOCAL,),
    ),
    CommandSpec(
        "CONFIG",
        ("CONFIG GET pattern", "CONFIG SET name value [name value ...]"),
        "Shows or sets parameters",
        (
            _one_of(
                _subcommand("GET", Argument("pattern", "PATTERN")),
                _subcommand("SET", _repeated("data", Argument("name"), Argument("value"))),
            ),
            _LOCAL,
        ),
        "O(N) where N is the number of parameters",
    ),
    CommandSpec(
        "KEYMASK",
        (
            "KEYMASK LIST",
            "KEYMASK ADD mask [mask ...]",
            "KEYMASK SET mask [mask ...]",
            "KEYMASK DEL mask [mask ...]",
            "KEYMASK CLEAR",
            "KEYMASK TEST key [WHY]",
        ),
        "Shows, changes or tries the key masks; a ! before a mask makes it exclude keys",
        (
            _one_of(
                _subcommand("LIST"),
                _subcommand("ADD", _MASKS),
                _subcommand("SET", _MASKS),
                _subcommand("DEL", _MASKS),
                _subcommand("CLEAR"),
                _subcommand("TEST", _ANY_KEY, _word("WHY", optional=True)),
            ),
            _LOCAL,
        ),
        "O(N) where N is the number of masks, and for TEST the length of the key",
    ),
    CommandSpec(
        "FALLBACK",
        (
            "FALLBACK LEN",
            "FALLBACK PEEK [count]",
            "FALLBACK ASIDE [count]",
            "FALLBACK DRAIN",
            "FALLBACK PURGE",
            "FALLBACK IMPORT key",
        ),
        "Shows the fallback list or the events that were set aside, delivers the list now, deletes "
        "it, or takes over the list of the older C module",
        (
            _one_of(
                _subcommand("LEN"),
                _subcommand("PEEK", Argument("count", "INTEGER", optional=True)),
                _subcommand("ASIDE", Argument("count", "INTEGER", optional=True)),
                _subcommand("DRAIN"),
                _subcommand("PURGE"),
                _subcommand("IMPORT", _ANY_KEY),
            ),
            _LOCAL,
        ),
        "O(N) where N is the number of elements shown, deleted or taken over",
    ),
    CommandSpec(
        "SNAPSHOT",
        ("SNAPSHOT START [RATE events] [MASK mask [mask ...]]", "SNAPSHOT STOP"),
        "Begins to publish an event `snapshot` for each key that exists, or stops; STATS shows the "
        "progress",
        (
            _one_of(
                _subcommand(
                    "START",
                    Argument("events", "INTEGER", token="RATE", optional=True),
                    Argument("mask", token="MASK", optional=True, multiple=True),
                ),
                _subcommand("STOP"),
            ),
            _LOCAL,
        ),
        "O(1); the snapshot that begins is O(N) where N is the number of keys",
    ),
    CommandSpec(
        "STATS",
        ("STATS", "STATS CLUSTER", "STATS RESET"),
        "Shows the state and the counters, shows their sums over all nodes, or sets the counters "
        "to 0",
        (_one_of(_subcommand("CLUSTER"), _subcommand("RESET"), optional=True), _LOCAL),
        flags="deny-script allow-loading allow-stale",
        acl_categories="read slow",
    ),
    CommandSpec(
        "CLUSTER",
        ("CLUSTER",),
        "Lists the nodes of the cluster with their states",
        (_LOCAL,),
        "O(N) where N is the number of nodes",
        flags="deny-script allow-stale",
        acl_categories="read slow",
    ),
    CommandSpec(
        "HELP",
        ("HELP",),
        "Shows the commands",
        flags="fast allow-loading allow-stale",
        acl_categories="read fast",
    ),
)
