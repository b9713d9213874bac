"""Numbers of things, in words."""

from __future__ import annotations

import re

import pytest

from keyspace_amqp.counts import counted
from tests.test_layers import SOURCES


@pytest.mark.parametrize(
    ("number", "noun", "form", "said"),
    [
        (0, "event", "", "0 events"),
        (1, "event", "", "1 event"),
        (2, "event", "", "2 events"),
        (1, "more node", "", "1 more node"),
        (1.0, "second", ".0f", "1 second"),
        (1234567, "element", ",", "1,234,567 elements"),
    ],
)
def test_counted(number: float, noun: str, form: str, said: str) -> None:
    assert counted(number, noun, form) == said


# A value of an f-string, and a noun behind it that would be wrong after 1. (A demo has many of
# everything.)
_NOUNS = "message|element|event|key|node|replica|problem|warning|server|record"
_WRITTEN = re.compile(rf"\}}(?: more)? (?:{_NOUNS})s\b")


@pytest.mark.parametrize("module", [name for name in SOURCES if not name.startswith("demo")])
def test_no_noun_is_written_behind_a_number(module: str) -> None:
    """`counted` is the only place that says how a noun ends, so that nothing says "1 events"."""
    lines = SOURCES[module].read_text().splitlines()
    assert not [line.strip() for line in lines if _WRITTEN.search(line)]
