"""Asks all nodes, carries out all checks, and prints the findings."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from rich.text import Text

from ...counts import counted
from ...tables.parameters import PARAMETERS
from ...tables.times import COMMAND
from .. import ToolError, amqp, nodes
from ..replies import reason
from .advice import advice_for
from .broker import Place, broker
from .finding import PROBLEM, UNKNOWN, WARNING, Finding, Findings, Level, console, lines, wrapped
from .group import cluster, replicas
from .node import Facts, examine, gather

# Seconds: the module answers a command within this time, or with an error.
TIMEOUT = COMMAND


def diagnose(options: argparse.Namespace) -> tuple[Findings, int]:
    """Return the findings, and the number of nodes. Raises ToolError."""
    found: dict[Finding, list[str]] = {}

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
        elif loaded:
            add(replicas(loaded[0], told[loaded[0].address]), loaded[0].address)
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
                advice = advice_for(str(error)) or "--amqp names the broker, and how to log in"
                level = PROBLEM if options.amqp else UNKNOWN  # the user has given it
                yield [Finding("broker", level, f"not looked at: {error}", advice)], [address]
                continue
            key = (target.shown, target.exchange, target.routing_keys)
            targets.setdefault(key, (target, []))[1].append(address)
    for target, addresses in targets.values():
        there = [told[address] for address in addresses]
        theirs = options.amqp is None
        local = ("127.", "localhost:", "::1:", "/")
        place = Place(
            target,
            amqp.config_of(there[0].parameters),
            connected=theirs and any(facts.stats.get("state") == "connected" for facts in there),
            remote=theirs and not addresses[0].startswith(local),
            reached=_reached(there) if _is_default(options) else 0,
        )
        yield broker(place, publish=options.publish), addresses


def _is_default(options: argparse.Namespace) -> bool:
    """True if broker, exchange and routing key are the module's."""
    return not any((options.amqp, options.exchange is not None, options.routing_key))


def _reached(there: Sequence[Facts]) -> int:
    """Return the number of messages that reached a queue, as far as modules know; 0 if one of
    them knows of a message that did not."""
    told = [facts.stats for facts in there if facts.parameters.get("mandatory") == "on"]
    if any(stats.get("returned") for stats in told):
        return 0
    return sum(stats.get("confirmed", 0) for stats in told)


_ORDER = (
    *("server", "python", "access", "handler", "commands", "module", "role", "state", "masks"),
    *("losses", "list", "persistence", "outbox", "memory", "cluster", "replicas", "broker"),
    *("exchange", "publishing", "queue"),
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
        screen = console()
        for line in lines(found, count, screen):
            screen.print(line, soft_wrap=True)
        counts = [counted(number[each], each) for each in (PROBLEM, WARNING)]
        end = ", ".join([*counts, f"{number[UNKNOWN]} unknown"])
        for line in wrapped(Text(f"\n{end}"), screen):
            screen.print(line, soft_wrap=True)
    return 1 if number[PROBLEM] else 0
