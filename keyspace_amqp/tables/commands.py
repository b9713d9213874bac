"""The commands: the one table that COMMAND DOCS, HELP and docs/commands.md are made from.

Pure: imports nothing but the table of parameters.
"""

from __future__ import annotations

import dataclasses

from .parameters import PARAMETERS


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument as COMMAND DOCS shows it (RedisModuleCommandArg)."""

    name: str
    type: str = "STRING"
    token: str | None = None
    optional: bool = False
    multiple: bool = False
    arguments: tuple[Argument, ...] = ()


def _token(name: str, *arguments: Argument) -> Argument:
    """A subcommand: a word, alone or before arguments."""
    word = Argument(name.lower(), "PURE_TOKEN", token=name)
    return Argument(name.lower(), "BLOCK", arguments=(word, *arguments)) if arguments else word


_LOCAL = Argument("local", "PURE_TOKEN", token="LOCAL", optional=True)


@dataclasses.dataclass(frozen=True)
class CommandSpec:
    """A command: its name after `KEYSPACEAMQP.`, and its documentation."""

    name: str
    usage: tuple[str, ...]
    summary: str
    arguments: tuple[Argument, ...] = ()
    complexity: str = "O(1)"
    flags: str = "admin deny-script allow-stale"
    acl_categories: str = "admin slow dangerous"


COMMANDS: tuple[CommandSpec, ...] = (
    CommandSpec(
        "CONNECT",
        (
            "CONNECT [host [port [username [password [heartbeat [exchange [routing-key "
            "[delivery-mode [fallback-size [mask ...]]]]]]]]]]",
        ),
        "Connects to RabbitMQ, with the present parameters or with those given",
        (
            *(
                Argument(
                    "mask" if parameter.name == "masks" else parameter.name,
                    "INTEGER" if parameter.kind.name == "INTEGER" else "STRING",
                    optional=True,
                    multiple=parameter.name == "masks",
                )
                for parameter in PARAMETERS
                if parameter.position is not None and parameter.name != "events"
            ),
            _LOCAL,
        ),
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
            Argument(
                "subcommand",
                "ONEOF",
                arguments=(
                    _token("GET", Argument("pattern", "PATTERN")),
                    _token(
                        "SET",
                        Argument(
                            "data",
                            "BLOCK",
                            multiple=True,
                            arguments=(
                                Argument("name"),
                                Argument("value"),
                            ),
                        ),
                    ),
                ),
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
        "Shows, changes or tries the key masks; a ! before a mask makes it exclude",
        (
            Argument(
                "subcommand",
                "ONEOF",
                arguments=(
                    _token("LIST"),
                    _token("ADD", Argument("mask", multiple=True)),
                    _token("SET", Argument("mask", multiple=True)),
                    _token("DEL", Argument("mask", multiple=True)),
                    _token("CLEAR"),
                    # A string, not a key: nothing is read, and a cluster must not redirect.
                    _token(
                        "TEST",
                        Argument("key"),
                        Argument("why", "PURE_TOKEN", token="WHY", optional=True),
                    ),
                ),
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
            "FALLBACK DRAIN",
            "FALLBACK PURGE",
            "FALLBACK IMPORT key",
        ),
        "Looks at the fallback list, has it delivered now, deletes it, or takes over the list of "
        "the older C module",
        (
            Argument(
                "subcommand",
                "ONEOF",
                arguments=(
                    _token("LEN"),
                    _token("PEEK", Argument("count", "INTEGER", optional=True)),
                    _token("DRAIN"),
                    _token("PURGE"),
                    # A string, as with KEYMASK TEST: whichever node has it takes it over.
                    _token("IMPORT", Argument("key")),
                ),
            ),
            _LOCAL,
        ),
        "O(N) where N is the number of elements shown, deleted or taken over",
    ),
    CommandSpec(
        "STATS",
        ("STATS", "STATS CLUSTER", "STATS RESET"),
        "Shows the state and the counters, their sums over all nodes, or starts them again",
        (
            Argument(
                "subcommand",
                "ONEOF",
                optional=True,
                arguments=(_token("CLUSTER"), _token("RESET")),
            ),
            _LOCAL,
        ),
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
