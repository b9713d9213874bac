"""The picture of the results, an SVG: Redis under a flood of SETs, and an outage of the broker
as Redis' clients see it."""

from __future__ import annotations

import html
import math
import pathlib
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from .report import Report, shown

WIDTH = 880
LABELS = {
    "bare": "bare Redis",
    "floor": "empty subscriber",
    "broker": "ours, RabbitMQ beside it",
    "sink": "ours, sink for a broker",
    "masks": "ours, no mask matches",
    "away": "ours, RabbitMQ away",
}
GREY, BLUE, ORANGE, RED, INK, PALE = (
    "#9aa4b1", "#2f6fb7", "#e59a2f", "#c4453c", "#24292f", "#d8dee6",
)  # fmt: skip
# The chart of the outage: its edges, and the powers of ten of its scale of milliseconds.
LEFT, RIGHT, TOP, BOTTOM = 70, WIDTH - 80, 300, 520
DECADES = range(-1, 4)
# The charts of scale.py: how many stand side by side, and their heights.
CHARTS = 4
CHART_HEIGHT, BAR_HEIGHT = 140, 75


def write(report: Report, path: pathlib.Path) -> None:
    """Draw the floods and the outage, as far as they were measured."""
    parts: list[str] = []
    if "floods" in report.series:
        parts += _floods(report.series["floods"])
    if "outage" in report.series:
        parts += _outage(report.series["outage"])
    if not parts:
        return
    title = "Redis with and without the module, and an outage of the broker"
    _save(path, title, parts, BOTTOM + 60)


def write_scale(panels: Sequence[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw a small chart for each column of each panel of scale.py."""
    parts: list[str] = []
    top = 30.0
    for panel in panels:
        parts.append(_text(20, top, panel["title"], weight="bold"))
        columns = list(panel["columns"].items())
        for number, (name, values) in enumerate(columns):
            line, place = divmod(number, CHARTS)
            left = 20 + place * (WIDTH - 40) / CHARTS
            names = [short(row) for row in panel["rows"]]
            parts += _chart(left, top + 24 + line * CHART_HEIGHT, name, names, values)
        top += CHART_HEIGHT * math.ceil(len(columns) / CHARTS) + 40
    _save(path, "How processor time, memory and latency grow", parts, round(top))


def short(name: str) -> str:
    """Return a number with `k` or `M` for its thousands or millions."""
    return name.replace(",000,000", "M").replace(",000", "k")


def _chart(
    left: float, top: float, title: str, names: Sequence[str], values: Sequence[float]
) -> Iterable[str]:
    """Yield the bars of one quantity, each with its value above and its name below."""
    step = ((WIDTH - 40) / CHARTS - 15) / len(values)
    most = max(*values, 1e-9)
    yield _text(left, top, title, size=11)
    for number, (name, value) in enumerate(zip(names, values, strict=True)):
        height = max(value, 0) / most * BAR_HEIGHT
        x, base = left + number * step, top + 24 + BAR_HEIGHT
        middle = x + step / 2 - 2
        yield _bar(
            x,
            base - height,
            step - 4,
            height,
            GREY if title.rpartition(", ")[0].endswith(" bare") and "above" not in title else BLUE,
        )
        yield _text(middle, base - height - 4, shown(value), "middle", size=10)
        yield _text(middle, base + 13, name, "middle", size=10)


def _save(path: pathlib.Path, title: str, parts: Iterable[str], height: int) -> None:
    """Write a picture. Its ground is white, so its text is readable on dark pages too."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="13" fill="{INK}">\n'
        f"<title>{title}</title>\n"
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


def _floods(floods: dict[str, dict[str, list[float]]]) -> Iterable[str]:
    """Yield the bars of medians, with lines from the smallest to the largest value."""
    charts = (
        ("SETs in a second, thousands", "rate", 1e-3, 190, 250),
        ("99 of 100 answered within, ms", "p99", 1, 550, 250),
    )
    for title, field, unit, left, width in charts:
        yield _text(left, 28, title, weight="bold")
        most = max(max(values[field]) for values in floods.values())
        for row, (name, values) in enumerate(floods.items()):
            y = 44 + row * 32
            low, median, high = (pick(values[field]) for pick in (min, statistics.median, max))
            colour = BLUE if name not in ("bare", "floor") else GREY
            if left < WIDTH / 2:
                yield _text(left - 10, y + 15, LABELS[name], "end")
            yield _bar(left, y, median / most * width, 22, colour)
            yield _line(left + low / most * width, y + 11, left + high / most * width, y + 11, INK)
            yield _text(left + high / most * width + 8, y + 15, shown(median * unit))
    yield _text(190, TOP - 56, "bars: medians of the rounds; lines: from smallest to largest")


def _outage(outage: dict[str, Any]) -> Iterable[str]:
    """Yield the chart of the times of answers, on a logarithmic scale, and of the list's length."""
    end: float = max(at for at, *_ in outage["intervals"]) / 1e3
    longest: float = max(1, *(length for _, length in outage["list"]))

    def x(seconds: float) -> float:
        return LEFT + (RIGHT - LEFT) * seconds / end

    def y(ms: float) -> float:
        low, high = DECADES[0], DECADES[-1]
        part = (math.log10(max(ms, 10**low)) - low) / (high - low)
        return BOTTOM - (BOTTOM - TOP) * min(part, 1)

    def length_y(length: float) -> float:
        return BOTTOM - (BOTTOM - TOP) * length / longest * 0.9

    yield _text(
        LEFT - 50, TOP - 32, "An outage of RabbitMQ, as Redis' clients see it", weight="bold"
    )
    filling = [(x(at), length_y(length)) for at, length in outage["list"] if at <= end]
    yield _points("polygon", [(filling[0][0], BOTTOM), *filling, (filling[-1][0], BOTTOM)], PALE)
    for decade in DECADES:
        yield _line(LEFT, y(10**decade), RIGHT, y(10**decade), PALE)
        yield _text(LEFT - 8, y(10**decade) + 4, f"{10**decade:g}", "end")
    yield _text(LEFT - 50, TOP - 10, "ms")
    for part in (0, 0.5, 1):
        length = longest * part
        yield _text(RIGHT + 8, length_y(length) + 4, f"{length:,.0f}")
    yield _text(RIGHT + 8, TOP - 10, "in the list")
    for second in range(0, int(end) + 1, 2 if end < 30 else 5):
        yield _text(x(second), BOTTOM + 18, f"{second} s", "middle")
    marks = {"killed": "kill -9", "back": "it accepts again", "drained": "list empty"}
    for number, (name, text) in enumerate(marks.items()):
        at = x(outage["marks"][name])
        yield _line(at, TOP - 4, at, BOTTOM, RED, "4 3")
        yield _text(at + 4, TOP + 8 + 16 * (number % 2), text)  # two marks may be close together
    curves = ((4, ORANGE, "slowest SET in 100 ms"), (3, BLUE, "99th percentile"))
    for number, (column, colour, text) in enumerate(curves):
        points = [(x(row[0] / 1e3), y(row[column] / 1e3)) for row in outage["intervals"] if row[1]]
        yield _points("polyline", points, colour)
        at = LEFT + 190 * number
        yield _line(at, BOTTOM + 40, at + 24, BOTTOM + 40, colour)
        yield _text(at + 30, BOTTOM + 44, text)
    yield _bar(LEFT + 340, BOTTOM + 33, 24, 13, PALE)
    yield _text(LEFT + 370, BOTTOM + 44, "events in the fallback list")


def _text(
    x: float, y: float, text: str, anchor: str = "start", weight: str = "normal", size: int = 13
) -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}"'
    if size != 13:
        place += f' font-size="{size}"'
    return f"<text {place}>{html.escape(text)}</text>"


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" fill="{colour}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "") -> str:
    dash = f' stroke-dasharray="{dashes}"' if dashes else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{colour}" stroke-width="1.5"{dash}/>'


def _points(kind: str, points: Sequence[tuple[float, float]], colour: str) -> str:
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    paint = f'fill="{colour}"' if kind == "polygon" else f'fill="none" stroke="{colour}"'
    return f'<{kind} points="{places}" {paint} stroke-width="1.2"/>'
