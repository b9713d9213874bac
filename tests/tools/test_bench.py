"""The pure parts of the benchmarks: typical tails, jobs, tables and pictures of growth."""

from __future__ import annotations

import os
import pathlib
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from tests.bench import draw, measure, scale, tail
from tests.bench.targets import TARGETS

SVG = "{http://www.w3.org/2000/svg}"
PANELS: list[dict[str, Any]] = [
    {"title": "Rate of events", "grows": "events/s", "rows": ["1,000", "200,000"],
     "columns": {"worker, %": [1.5, 120.0], "99th percentile bare, µs": [30.0, 90.0]}},
    {"title": "Length of the list", "grows": "elements", "rows": ["10,000,000"],
     "columns": {f"column {n}, µs": [float(n)] for n in range(6)}},
]  # fmt: skip


def interval(p99: float) -> list[float]:
    """A line of load.c."""
    return [100.0, 2000.0, 20.0, p99, p99 * 2]


def test_the_typical_tail_forgets_a_moment() -> None:
    lines = [interval(9999), *map(interval, [40, 5000, 42, 41, 43]), interval(1)]
    assert measure.typical(lines) == 42
    assert measure.typical([interval(7)]) == 7


def test_the_part_of_slow_jobs() -> None:
    assert tail.slow_part(1, 1000) == TARGETS["tail.jobs_slow"].bound
    assert tail.slow_part(0, 0) == 0


@pytest.mark.parametrize("count", scale.MASK_COUNTS)
def test_masks_of_which_none_matches(count: int) -> None:
    masks = scale.many_masks(count)
    assert len(set(masks)) == count
    assert not any(mask.strip("^$") in "key:000000000000" for mask in masks)


def test_a_list_that_does_not_fit_is_left_out() -> None:
    assert scale.fits(10_000_000, 4 << 30)
    assert not scale.fits(10_000_000, 2 << 30)


def test_the_table() -> None:
    first, second = scale.table(PANELS).strip().split("\n\n")
    assert first.splitlines() == [
        "| events/s | worker, % | 99th percentile bare, µs |",
        "|---|---|---|",
        "| 1,000 | 1.50 | 30.0 |",
        "| 200,000 | 120 | 90.0 |",
    ]
    assert second.count("column") == 6


def test_the_picture(tmp_path: pathlib.Path) -> None:
    """Each value and each name is there, nothing is outside of the picture."""
    path = tmp_path / "scale.svg"
    draw.write_scale(PANELS, path)
    root = ET.fromstring(path.read_text())
    texts = [node.text for node in root.iter(f"{SVG}text")]
    assert {"Rate of events", "1k", "200k", "10M", "1.50", "120", "5.00"} <= set(texts)
    height = float(root.attrib["viewBox"].split()[3])
    ground, *bars = root.iter(f"{SVG}rect")
    assert len(bars) == 2 * 2 + 6
    assert ground.attrib["fill"] == "#ffffff"
    for bar in bars:
        assert 0 <= float(bar.attrib["y"]) <= height - float(bar.attrib["height"])
        assert float(bar.attrib["x"]) + float(bar.attrib["width"]) <= draw.WIDTH
    fills = [bar.attrib["fill"] for bar in bars]
    assert fills.count(draw.GREY) == 2  # the bare server


def test_short_names() -> None:
    assert [draw.short(name) for name in ("16 B", "50,000", "1,000,000")] == ["16 B", "50k", "1M"]


def test_held_to_a_core() -> None:
    before = os.sched_getaffinity(0)
    with measure.held(min(before)):
        assert os.sched_getaffinity(0) == {min(before)}
    assert os.sched_getaffinity(0) == before
