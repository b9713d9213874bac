"""The results: printed as a table while they come, and written as JSON at the end."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import statistics
from collections.abc import Sequence
from typing import Any

from .targets import TARGETS, Target

_WIDTH = 58


@dataclasses.dataclass(frozen=True)
class Row:
    """A quantity: its value in each round, and the target for their median, if it has one.

    `fair`: the values by which a miss is called gross.
    """

    name: str
    text: str
    unit: str
    values: Sequence[float]
    target: Target | None
    fair: Sequence[float]

    @property
    def median(self) -> float:
        """The median over the rounds."""
        return statistics.median(self.values)

    @property
    def verdict(self) -> str:
        """`met` or `missed`; `GROSS` if no round comes within the target's factor `gross`, so that
        it cannot be the machine's noise; empty without a target."""
        if self.target is None:
            return ""
        if self.target.met(self.median):
            return "met"
        near = any(self.target.met(value, self.target.gross) for value in self.fair)
        return "missed" if near else "GROSS"

    def __str__(self) -> str:
        low, high = min(self.values), max(self.values)
        spread = f"{shown(low)}–{shown(high)}" if len(self.values) > 1 else ""
        target = "" if self.target is None else f"{self.target}"
        value = f"{shown(self.median)} {self.unit}".rstrip()
        line = f"  {self.text:<{_WIDTH}} {value:>14}  {spread:>19}  {target:>11}  {self.verdict}"
        return line.rstrip()


def shown(value: float) -> str:
    """Return a value with about three digits."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


class Report:
    """The results of a run. `rows`: by name; `how`: the method of each item; `series`: results
    for the picture that are no rows."""

    def __init__(self) -> None:
        self.rows: dict[str, Row] = {}
        self.how: dict[str, str] = {}
        self.series: dict[str, Any] = {}

    def item(self, name: str, how: str) -> None:
        """Begin an item and print how it is measured; its rows follow."""
        self.how[name] = how
        print(f"\n{name}: {how}", flush=True)

    def row(
        self,
        name: str,
        text: str,
        unit: str,
        values: Sequence[float],
        fair: Sequence[float] | None = None,
    ) -> None:
        """Add a row and print it. `fair`: see Row; by default the values."""
        row = Row(name, text, unit, list(values), TARGETS.get(name), list(fair or values))
        self.rows[name] = row
        print(row, flush=True)

    def heading(self) -> None:
        """Print the heads of the columns."""
        heads = ("median", "min–max", "target")
        print(f"  {'':<{_WIDTH}} {heads[0]:>14}  {heads[1]:>19}  {heads[2]:>11}")

    def names(self, verdict: str) -> list[str]:
        """Return the names of the rows with a verdict."""
        return [row.name for row in self.rows.values() if row.verdict == verdict]

    def write(self, path: pathlib.Path, about: dict[str, Any]) -> None:
        """Write everything as JSON. `about`: facts about the run."""
        rows = {
            row.name: {
                "text": row.text,
                "unit": row.unit,
                "median": row.median,
                "values": row.values,
                "target": None if row.target is None else str(row.target),
                "verdict": row.verdict,
            }
            for row in self.rows.values()
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        whole = {"about": about, "rows": rows, "how": self.how, "series": self.series}
        path.write_text(json.dumps(whole, indent=1) + "\n")
