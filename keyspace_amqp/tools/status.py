"""`keyspace-amqp status`: the state of all nodes in one table."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import redis
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..tables.stats import Stat
from . import nodes
from .replies import reason
from .replies import stats as read_stats

# Seconds for an answer. Short, because a node that hangs delays the whole table.
TIMEOUT = 2.0
# Enough for the longest line: nothing is cut off in a pipe.
_PIPE_WIDTH = 1000
# From this width on there is room for all columns.
_WIDE = 165
# The columns with counters and gauges.
_COLUMNS = {
    "matched": Stat.EVENTS_MATCHED,
    "confirmed": Stat.CONFIRMED,
    "in flight": Stat.IN_FLIGHT,
    "queue": Stat.QUEUE_LENGTH,
    "list": Stat.FALLBACK_LENGTH,
    "dropped": Stat.DROPPED,
}


@dataclasses.dataclass(frozen=True)
class Look:
    """A node at one moment.

    `error`: the node's last error or, without `stats`, why it did not answer. `at`: the time,
    in seconds of the monotonic clock. `rate`: confirms per second since the look before.
    """

    address: str
    role: str = ""
    stats: Mapping[str, Any] | None = None
    error: str = ""
    at: float = 0.0
    rate: float | None = None


def look(group: Sequence[nodes.Node], before: Mapping[str, Look] | None = None) -> list[Look]:
    """Look at all nodes now. `before`: the looks of the last time, by address, for the rates."""
    looks = []
    for node, answer in nodes.ask(group, _look):
        if isinstance(answer, Exception):
            looks.append(Look(node.address, error=reason(answer)))
            continue
        last = (before or {}).get(node.address)
        if last is not None and last.stats is not None and answer.stats is not None:
            confirmed = answer.stats["confirmed"] - last.stats["confirmed"]
            if confirmed >= 0:  # else the node was started again or its counters were reset
                answer = dataclasses.replace(answer, rate=confirmed / (answer.at - last.at))
        looks.append(answer)
    return looks


def _look(node: nodes.Node) -> Look:
    stats = read_stats(node.client)
    at = time.monotonic()
    info: dict[str, Any] = node.client.info("replication")
    role = "primary" if info["role"] == "master" else "replica"
    return Look(node.address, role, stats, stats["last_error"], at)


def table(looks: Sequence[Look], *, live: bool, clustered: bool, width: int) -> Group:
    """Return the table. In a narrow window it has no brokers and no modes of the outbox,
    and the errors are below it.
    `live`: with a column of rates; `clustered`: with a row of sums."""
    wide = width >= _WIDE
    result = Table(box=None, padding=(0, 2 if wide else 1, 0, 0), header_style="bold")
    result.add_column("address", overflow="fold")
    names = ["role", "state", *["broker", "outbox"] * wide, *_COLUMNS, *["last error"] * wide]
    for name in names:
        numeric = name in _COLUMNS
        result.add_column(name, justify="right" if numeric else "left", no_wrap=numeric)
        if live and name == "confirmed":
            result.add_column("per s", justify="right", no_wrap=True)

    def row(look: Look, state: Text, numbers: Sequence[Text], style: str = "") -> None:
        numbers = numbers or [Text()] * (len(_COLUMNS) + live)
        # An older version of the module has no outbox.
        texts = [Text((look.stats or {}).get(name, "")) for name in ("broker", "outbox")]
        cells = [Text(look.address), Text(look.role), state]
        cells += [*texts, *numbers, Text(look.error)] if wide else numbers
        result.add_row(*cells, style=style)

    for each in looks:
        if each.stats is None:
            row(each, Text("no answer", "bold red"), [])
        else:
            state = Text(each.stats["state"], _colour(each.stats["state"]))
            row(each, state, _cells(each.stats, each.rate, live))
    if clustered:
        answered = [each for each in looks if each.stats is not None]
        sums = {
            stat.name.lower(): sum(each.stats[stat.name.lower()] for each in answered if each.stats)
            for stat in _COLUMNS.values()
        }
        rates = [each.rate for each in answered if each.rate is not None]
        count = f"{len(answered)} of {len(looks)}"
        cells = _cells(sums, sum(rates) if rates else None, live)
        row(Look("sum", count), Text(), cells, style="bold")
    errors = [Text(f"{each.address}: {each.error}") for each in looks if each.error]
    return Group(result, *([] if wide else errors))


def _colour(state: str) -> str:
    """Return the style of a state."""
    if state in ("connected", "idle", "replica"):
        return "green"
    return "yellow" if state == "connecting" else "bold red"


def _cells(stats: Mapping[str, Any], rate: float | None, live: bool) -> list[Text]:
    """Return the cells of the counters and gauges, and of the rate."""
    cells = []
    for name, stat in _COLUMNS.items():
        number = stats[stat.name.lower()]
        lost = stat is Stat.DROPPED and number
        cells.append(Text(f"{number:,}", "bold white on red" if lost else ""))
        if live and name == "confirmed":
            cells.append(Text("" if rate is None else f"{rate:,.0f}"))
    return cells


def _as_json(each: Look) -> dict[str, Any]:
    if each.stats is None:
        return {"address": each.address, "error": each.error}
    return {"address": each.address, "role": each.role, "stats": each.stats}


def run(options: argparse.Namespace) -> int:
    """Print the table, or STATS as JSON. Return 1 if a node has not answered. Raises
    ToolError."""
    console = Console(highlight=False)
    with nodes.Group(options, TIMEOUT) as group:
        if not (options.once or options.json) and console.is_terminal:
            _live(console, group, options.interval)
        looks = look(group.nodes)
        if options.json:
            print(json.dumps({"nodes": [_as_json(each) for each in looks]}, indent=2))
        else:
            if not console.is_terminal:
                console.width = _PIPE_WIDTH
            console.print(table(looks, live=False, clustered=group.clustered, width=console.width))
    return 0 if all(each.stats is not None for each in looks) else 1


def _live(console: Console, group: nodes.Group, interval: float) -> None:
    """Show a table that is renewed until Ctrl-C."""
    looks: list[Look] = []
    with Live(console=console, auto_refresh=False, vertical_overflow="crop") as display:
        while True:
            began = time.monotonic()
            looks = look(group.nodes, {each.address: each for each in looks})
            shown = table(looks, live=True, clustered=group.clustered, width=console.width)
            display.update(shown, refresh=True)
            answered = {each.address for each in looks if each.stats is not None}
            if group.clustered and answered:
                with contextlib.suppress(redis.RedisError, OSError):
                    group.renew(next(n.client for n in group.nodes if n.address in answered))
            time.sleep(max(0.0, began + interval - time.monotonic()))
