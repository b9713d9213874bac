"""The findings of the doctor, and their form on a screen or in a pipe. Needs rich."""

from __future__ import annotations

import dataclasses
import enum
import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from rich.console import Console
from rich.text import Text

from ...counts import counted


class Level(enum.StrEnum):
    """The severity of a finding. UNKNOWN: something could not be looked at."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARNING = "warning"
    PROBLEM = "problem"


OK, UNKNOWN, WARNING, PROBLEM = Level
_COLOURS = {OK: "green", UNKNOWN: "cyan", WARNING: "yellow", PROBLEM: "bold red"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """A finding: its subject, its text, and advice. It is also the key that groups equal
    findings of several nodes."""

    about: str
    level: Level
    text: str
    advice: str = ""


# The addresses of the nodes that each finding is about.
Findings = Mapping[Finding, Sequence[str]]

# The most nodes that a finding names; of more nodes it gives the number.
_NAMED = 3
# Columns between two cells, before a text that stands below its cells, and the fewest that a text
# needs beside them.
_GAP, _INDENT, _BESIDE = 2, 2, 30


def console() -> Console:
    """Return the console for standard output. Its width is that of the terminal, or what
    COLUMNS says. In a pipe without COLUMNS, no line is broken."""
    result = Console(highlight=False)
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdecimal():
        result.width = 1 << 20
    return result


def lines(found: Findings, count: int, screen: Console) -> Iterator[Text]:
    """Yield the lines of a report, of which none is wider than the screen. `count`: the number
    of nodes."""
    level_width = max((len(finding.level) for finding in found), default=0) + _GAP
    about_width = max((len(finding.about) for finding in found), default=0) + _GAP
    indent = level_width + about_width
    below = screen.width < indent + _BESIDE
    for finding, addresses in found.items():
        head = Text().append(finding.level.ljust(level_width), _COLOURS[finding.level])
        head.append(finding.about.ljust(about_width))
        shown = wrapped(_text(finding, addresses, count), screen, _INDENT if below else indent)
        if below:
            shown[:0] = wrapped(head, screen, 0)
        else:
            shown[0] = head + shown[0][indent:]
        yield from shown


def wrapped(text: Text, screen: Console, indent: int = 0) -> list[Text]:
    """Return the lines of a text, each behind so many blanks, and none with blanks at its end."""
    room = max(1, screen.width - indent)
    result = [Text(" " * indent) + line for line in text.wrap(screen, room, overflow="fold")]
    for line in result:
        line.rstrip()
    return result


def _text(finding: Finding, addresses: Sequence[str], count: int) -> Text:
    """Return the text of a finding with the nodes that it is about, and advice on a line of its
    own."""
    text = Text(finding.text)
    if count > 1 and addresses:
        where = ", ".join(addresses)
        if len(addresses) > _NAMED:
            where = f"{len(addresses)} of {counted(count, 'node')}"
        text.append(f"  [{where}]", "dim")
    if finding.advice and finding.level is not OK:
        text.append(f"\n→ {finding.advice}", "italic")
    return text
