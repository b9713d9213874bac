"""`keyspace-amqp status`: the state of all nodes in one table, and graphs of the last minutes."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import redis
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ..counts import counted
from ..tables.stats import Stat
from . import ToolError, nodes
from .graphs import History, least_height
from .looks import Look, Rates, latency, latency_text, look

# Seconds for an answer. Short, because a node that hangs delays the whole table.
TIMEOUT = 2.0
# Enough for the longest line: nothing is cut off in a pipe.
_PIPE_WIDTH = 1000
# Signals that the view takes between two looks: another size of the window, and Ctrl-Z.
_BETWEEN_LOOKS = frozenset({signal.SIGWINCH, signal.SIGTSTP})

# The columns with counters and gauges.
_NUMBERS = {
    "matched": Stat.EVENTS_MATCHED,
    "confirmed": Stat.CONFIRMED,
    "in flight": Stat.IN_FLIGHT,
    "queue": Stat.QUEUE_LENGTH,
    "list": Stat.FALLBACK_LENGTH,
    "dropped": Stat.DROPPED,
}
_TEXTS = ("address", "role", "state", "broker", "outbox", "last error")
_ALL = ("address", "role", "state", "broker", "outbox", *_NUMBERS, "last error")
# With what changes between two looks. A name that ends with _PER_SECOND belongs to the column
# before it.
_PER_SECOND = " per s"
_ALL_LIVE = (
    *("address", "role", "state", "broker", "outbox", "matched", "matched per s", "confirmed"),
    *("confirmed per s", "99% within", "in flight", "queue", "list", "dropped", "last error"),
)
# A table that is too wide does without these: as many as necessary, in this order.
_DISPENSABLE = (
    *("last error", "outbox", "broker", "in flight", "queue", "matched", "confirmed", "role"),
    *("99% within", "matched per s", "confirmed per s"),
)


def table(
    looks: Sequence[Look], console: Console, *, live: bool, clustered: bool, lines: int = 0
) -> Group:
    """Return the table, with as many columns as the console has room for. If it has no column for
    errors, they are below it.

    `live`: with rates; `clustered`: with a row of sums. `lines`: how many lines there are. If they
    are too few, the table has only some of the nodes, those with trouble first. 0: no limit.
    """
    rows = [_row(each) for each in looks]
    sums = [_sum(looks)] if clustered else []
    names = list(_ALL_LIVE if live else _ALL)
    for name in [each for each in _DISPENSABLE if each in names]:
        if _width(names, [*rows, *sums]) <= console.width:
            break
        names.remove(name)

    def shown(places: Sequence[int]) -> Group:
        parts: list[Any] = [_made(names, [*(rows[place] for place in places), *sums])]
        if len(places) < len(looks):
            parts.append(Text(counted(len(looks) - len(places), "more node"), "dim"))
        if "last error" not in names:
            errors: dict[str, list[str]] = {}
            for place in places:
                errors.setdefault(looks[place].error, []).append(looks[place].address)
            errors.pop("", None)
            parts += [Text(f"{', '.join(those)}: {error}") for error, those in errors.items()]
        return Group(*parts)

    places = sorted(range(len(looks)), key=lambda place: not _has_trouble(looks[place]))
    if lines:
        del places[max(1, lines) :]
    while lines and len(places) > 1:
        excess = len(console.render_lines(shown(places), pad=False)) - lines
        if excess <= 0:
            break
        del places[max(1, len(places) - (excess + 1) // 2) :]
    return shown(sorted(places))


def _header(name: str) -> str:
    return _PER_SECOND.strip() if name.endswith(_PER_SECOND) else name


def _gap(names: Sequence[str]) -> int:
    """Return how far apart the columns are."""
    return 2 if "last error" in names else 1


def _width(names: Sequence[str], rows: Sequence[Mapping[str, Text]]) -> int:
    """Return the width of the table with these columns if nothing is folded or cut."""
    cells = [[len(_header(n)), *(row[n].cell_len for row in rows if n in row)] for n in names]
    return sum(map(max, cells)) + len(names) * _gap(names)


def _made(names: Sequence[str], rows: Sequence[Mapping[str, Text]]) -> Table:
    """Return a table with these columns."""
    result = Table(box=None, padding=(0, _gap(names), 0, 0), header_style="bold")
    for name in names:
        header = _header(name)
        if name in ("address", "last error"):
            result.add_column(header, overflow="fold")
        else:
            result.add_column(header, justify="left" if name in _TEXTS else "right", no_wrap=True)
    for row in rows:
        result.add_row(*(row.get(name, Text()) for name in names))
    return result


def _row(each: Look) -> dict[str, Text]:
    """Return the cells of a node, by the names of their columns."""
    cells = {"address": each.address, "role": each.role, "last error": each.error}
    row = {name: Text(text) for name, text in cells.items()}
    if each.stats is None:
        return row | {"state": Text("no answer", "bold red")}
    row["state"] = Text(each.stats["state"], _colour(each.stats["state"]))
    for name in ("broker", "outbox"):  # an older version of the module has no outbox
        row[name] = Text(each.stats.get(name, ""))
    return row | _numbers(each.stats, [each.rates] if each.rates else [])


def _sum(looks: Sequence[Look]) -> dict[str, Text]:
    """Return the cells of the row of sums."""
    answered = [each.stats for each in looks if each.stats is not None]
    names = [stat.name.lower() for stat in _NUMBERS.values()]
    sums = {name: sum(stats[name] for stats in answered) for name in names}
    row = _numbers(sums, [each.rates for each in looks if each.rates])
    row |= {"address": Text("sum"), "role": Text(_answers(looks))}
    for text in row.values():
        text.stylize("bold")
    return row


def _numbers(stats: Mapping[str, Any], rates: Sequence[Rates]) -> dict[str, Text]:
    """Return the cells of counters and gauges, and of the sum of rates."""
    row = {}
    for name, stat in _NUMBERS.items():
        number = stats[stat.name.lower()]
        lost = stat is Stat.DROPPED and number
        row[name] = Text(f"{number:,}", "bold white on red" if lost else "")
    if rates:
        row["matched per s"] = Text(f"{sum(each.matched for each in rates):,.0f}")
        row["confirmed per s"] = Text(f"{sum(each.confirmed for each in rates):,.0f}")
        row["99% within"] = Text(latency_text(latency(rates)))
    return row


def _answers(looks: Sequence[Look]) -> str:
    return f"{sum(each.stats is not None for each in looks)} of {len(looks)}"


def _colour(state: str) -> str:
    """Return the style of a state."""
    if state in ("connected", "idle", "replica"):
        return "green"
    return "yellow" if state == "connecting" else "bold red"


def _has_trouble(each: Look) -> bool:
    """True if a person should see this node before others."""
    if each.stats is None or _colour(each.stats["state"]) != "green":
        return True
    return bool(each.stats["fallback_length"] or each.stats["dropped"])


class View:
    """What `status` shows on a terminal: graphs of all nodes together, and the table.

    `interval`: seconds from one look to the next. Most likely failure: nodes do not answer; the
    view says so and goes on.
    """

    def __init__(self, group: nodes.Group, interval: float) -> None:
        self._group = group
        self._history = History(interval)
        self._looks: list[Look] = []
        self._clock = ""

    def look(self) -> None:
        """Look at all nodes, and in a cluster also at which nodes it has."""
        self._looks = look(self._group.nodes, self._looks)
        self._history.add(self._looks, time.monotonic())
        self._clock = time.strftime("%H:%M:%S")
        answered = {each.address for each in self._looks if each.stats is not None}
        if self._group.clustered and answered:
            with contextlib.suppress(redis.RedisError, OSError):
                client = next(n.client for n in self._group.nodes if n.address in answered)
                self._group.renew(client)

    def shown(self, console: Console) -> Group:
        """Return the view at the last look, for a console of this size."""
        title = Text(f"{self._clock}  {_answers(self._looks)} answer", "bold", no_wrap=True)
        title.append("  Ctrl-C ends", "not bold dim")
        ascii_only = console.options.ascii_only
        height = console.height - 1  # without the title
        below = table(
            self._looks,
            console,
            live=True,
            clustered=self._group.clustered,
            lines=max(1, height - least_height()),
        )
        left = height - len(console.render_lines(below, pad=False))
        graphs = self._history.graphs(console.width, left, ascii_only=ascii_only)
        return Group(title, graphs, below)


def _as_json(each: Look) -> dict[str, Any]:
    if each.stats is None:
        return {"address": each.address, "error": each.error}
    return {"address": each.address, "role": each.role, "stats": each.stats}


def run(options: argparse.Namespace) -> int:
    """Print the table, or STATS as JSON, or show the view until Ctrl-C. Return 1 if a node has not
    answered. Raises ToolError."""
    console = Console(highlight=False)
    # The console takes a pipe for a terminal if variables such as FORCE_COLOR ask for colours.
    terminal = sys.stdout.isatty()
    live = terminal and console.is_interactive
    if options.live and not live:
        why = "TERM=dumb or TTY_INTERACTIVE=0 says that the terminal cannot show it"
        why = why if terminal else "the output is no terminal"
        raise ToolError(f"--live: {why}; --once and --json need none")
    with nodes.Group(options, TIMEOUT) as group:
        if live and not (options.once or options.json):
            _live(console, View(group, options.interval), options.interval)
        looks = look(group.nodes)
        if options.json:
            print(json.dumps({"nodes": [_as_json(each) for each in looks]}, indent=2))
        else:
            if not terminal:
                console.width = _PIPE_WIDTH
            console.print(table(looks, console, live=False, clustered=group.clustered))
    return 0 if all(each.stats is not None for each in looks) else 1


def _live(console: Console, view: View, interval: float) -> None:
    """Show the view, on a screen of its own, until Ctrl-C. What it showed last stays behind."""
    ends = _Ends()
    signal.pthread_sigmask(signal.SIG_BLOCK, _BETWEEN_LOOKS)
    display = Live(console=console, screen=True, auto_refresh=False)
    last: Group | None = None
    try:
        with ends.held():
            display.start()
        while True:
            due = time.monotonic() + interval
            view.look()
            while True:
                last = view.shown(console)
                display.update(last, refresh=True)
                got = _wait(due)
                if got is None:
                    break
                if got == signal.SIGTSTP:
                    with ends.held():
                        display.stop()
                        _suspend()
                        display.start()
    finally:
        with ends.held():
            display.stop()
            if last is not None:
                console.print(last)


class _Ends:
    """The signals that end the view, at once or when the terminal has its screen.

    Without a handler, most would leave the terminal in the mode of the view's screen. In the middle
    of a change of the screen, an exception would do so too.
    """

    def __init__(self) -> None:
        self._held = False
        self._came = 0
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            if signal.getsignal(each) is not signal.SIG_IGN:  # as under nohup
                signal.signal(each, self._on_signal)

    def _on_signal(self, number: int, _: object) -> None:
        self._came = number
        if not self._held:
            self._end()

    def _end(self) -> None:
        if self._came == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + self._came)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Let a signal wait for the end of this block."""
        self._held, self._came = True, 0
        try:
            yield
        finally:
            self._held = False
        if self._came:
            self._end()


def _wait(until: float) -> int | None:
    """Wait until a time of the monotonic clock, and return None; or a signal of _BETWEEN_LOOKS if
    one comes before or has come."""
    got = signal.sigtimedwait(_BETWEEN_LOOKS, max(0.0, until - time.monotonic()))
    return got.si_signo if got else None


def _suspend() -> None:
    """Let the shell have the terminal, as after any Ctrl-Z, until it continues this process."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    signal.raise_signal(signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
