"""Graphs of the last minutes, made of characters. Pure: looks and times go in, lines come out."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

from rich.table import Table
from rich.text import Text

from ..tables.stats import CONFIRM_BOUNDS
from .looks import Look, latency, latency_text

# Seconds that the graphs show, unless the looks are so far apart that they need more.
SPAN = 180.0
# Looks that are kept: enough for SPAN with ten a second, and for the widest terminal.
_POINTS = 2000
# Characters for the name and the numbers of a graph.
_LABEL = 15
# Rows of a graph: no more, however high the terminal is.
_MOST_ROWS = 5
# Characters that are filled more and more.
_BLOCKS = " ▁▂▃▄▅▆▇█"
_ASCII = " #"
# In place of a value that is not known.
_UNKNOWN = "."


@dataclasses.dataclass(frozen=True)
class Point:
    """All nodes together, from one look (`begin`, in seconds) to the next (`end`).

    `matched`, `confirmed`: events per second. `waiting`: events in the lists. `latency`: see
    `looks.latency`. None: not known.
    """

    begin: float
    end: float
    matched: float | None = None
    confirmed: float | None = None
    waiting: float | None = None
    latency: float | None = None


@dataclasses.dataclass(frozen=True)
class _Graph:
    """`text`: of a value. `lowest`: the value that has no height. `highest`: that of the full
    height; without it, the highest value shown has the full height."""

    title: str
    style: str
    value: Callable[[Point], float | None]
    text: Callable[[float], str]
    lowest: float = 0
    highest: float | None = None


def _per_second(value: float) -> str:
    return f"{value:,.0f} /s"


_GRAPHS = (
    _Graph("events", "cyan", lambda point: point.matched, _per_second),
    _Graph("confirms", "green", lambda point: point.confirmed, _per_second),
    _Graph("list", "yellow", lambda point: point.waiting, lambda value: f"{value:,.0f}"),
    # The bounds grow about as powers do, so the height is that of a logarithmic scale.
    _Graph(
        "99% within",
        "magenta",
        lambda point: point.latency,
        lambda value: latency_text(int(value)),
        lowest=-1,
        highest=len(CONFIRM_BOUNDS),
    ),
)


class History:
    """The looks of the last minutes. `interval`: seconds from one to the next."""

    def __init__(self, interval: float) -> None:
        self._interval = interval
        self._points: collections.deque[Point] = collections.deque(maxlen=_POINTS)

    def add(self, looks: Sequence[Look], now: float) -> None:
        """Add a look at all nodes. `now`: seconds of a clock that does not go back."""
        begin = self._points[-1].end if self._points else now
        answered = [each.stats for each in looks if each.stats is not None]
        rates = [each.rates for each in looks if each.rates is not None]
        point = Point(
            begin,
            now,
            sum(each.matched for each in rates) if rates else None,
            sum(each.confirmed for each in rates) if rates else None,
            sum(each["fallback_length"] for each in answered) if answered else None,
            latency(rates),
        )
        self._points.append(point)

    def graphs(self, width: int, height: int, *, ascii_only: bool = False) -> Table:
        """Return all graphs, above each other, for a part of the terminal with so many characters
        and lines; with fewer lines than `least_height` they take these."""
        rows = min(_MOST_ROWS, max(1, (height - 1) // len(_GRAPHS)))
        width = max(1, width - _LABEL - 1)
        step = max(SPAN / width, self._interval)
        columns = list(self._columns(width, step))
        result = Table.grid(padding=(0, 1, 0, 0))
        result.add_column(width=_LABEL, no_wrap=True)
        result.add_column(width=width, no_wrap=True)
        shown = [[graph.value(column) for column in columns] for graph in _GRAPHS]
        tops = [max((v for v in values if v is not None), default=None) for values in shown]
        for graph, values, top in zip(_GRAPHS, shown, tops, strict=True):
            part = (graph.highest or top or 0) - graph.lowest
            shares = [None if v is None else part and (v - graph.lowest) / part for v in values]
            lines = chart(shares, rows, _ASCII if ascii_only else _BLOCKS)
            text = Text("\n".join(line.rjust(width) for line in lines), graph.style)
            result.add_row(self._label(graph, top, rows), text)
        result.add_row("", Text(_axis(width, step * width), "dim"))
        return result

    def _columns(self, width: int, step: float) -> Iterator[Point]:
        """Yield the last columns, `step` seconds each: the highest values of all points in each."""
        if not self._points:
            return
        last = math.floor(self._points[-1].end / step)
        found: dict[int, list[Point]] = {}
        for point in self._points:
            first = max(math.floor(point.begin / step), last - width + 1)
            for place in range(first, math.floor(point.end / step) + 1):
                found.setdefault(place, []).append(point)
        for place in sorted(found):
            points = found[place]
            highest = {
                name: max((v for p in points if (v := getattr(p, name)) is not None), default=None)
                for name in ("matched", "confirmed", "waiting", "latency")
            }
            yield Point(place * step, (place + 1) * step, **highest)

    def _label(self, graph: _Graph, top: float | None, rows: int) -> Text:
        """Return what stands beside a graph: as much as there are rows for."""
        value = graph.value(self._points[-1]) if self._points else None
        now = "" if value is None else graph.text(value)
        if rows == 1:
            return Text(f"{graph.title[: _LABEL - 1 - len(now)]} {now}")
        label = Text(f"{graph.title}\n").append(now, "bold")
        if rows > 2 and top is not None:
            label.append(f"\nmax {graph.text(top)}", "dim")
        return label


def least_height() -> int:
    """Return the number of lines of the smallest graphs, with the axis of time."""
    return len(_GRAPHS) + 1


def chart(shares: Sequence[float | None], rows: int, levels: str = _BLOCKS) -> list[str]:
    """Return the lines of a chart of columns, the highest line first. `shares`: how much of each
    column is filled, from 0 to 1; None: a mark that says that this is not known. `levels`: the
    characters from empty to full. What is above 0 can be seen."""
    full = len(levels) - 1
    heights = [share if share is None else math.ceil(share * rows * full) for share in shares]

    def mark(height: int | None, row: int) -> str:
        if height is None:
            return _UNKNOWN if row == 0 else " "
        return levels[min(max(height - row * full, 0), full)]

    return ["".join(mark(height, row) for height in heights) for row in reversed(range(rows))]


def _axis(width: int, seconds: float) -> str:
    """Return the axis of time, in so many characters."""
    ago = f"{seconds / 60:.3g} min ago" if seconds < 6000 else f"{seconds / 3600:,.0f} h ago"
    if seconds < 100:
        ago = f"{seconds:.0f} s ago"
    return f"{ago}{'now':>{max(width - len(ago), 4)}}"
