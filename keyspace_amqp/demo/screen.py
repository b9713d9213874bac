"""The lines and tables that a demo prints."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

# No line is longer; in a pipe the width is exactly this.
WIDTH = 100
# From this width on, whole message ids fit.
_FULL_WIDTH = 90


class Screen:
    """The console of a demo. In a pipe it prints plain text."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        terminal = self._console.is_terminal
        self._console.width = min(self._console.width, WIDTH) if terminal else WIDTH

    @property
    def wide(self) -> bool:
        """True if whole message ids fit into a table."""
        return self._console.width >= _FULL_WIDTH

    def title(self, text: str) -> None:
        """Print the title of a part."""
        self._console.print()
        self._console.rule(f"[bold]{text}", align="left")

    def say(self, text: str, style: str = "") -> None:
        """Print a paragraph."""
        self._console.print(Text(text, style=style))

    def say_happening(self, text: str, colour: str) -> None:
        """Print what happens now, as a line between the rows of a running table."""
        self.say(f"         {text}", f"bold {colour}")

    def command(self, line: str) -> None:
        """Print a line to copy: one line also where the window is narrower."""
        self._console.print(Text(line, "cyan"), soft_wrap=True)

    def row(self, row: Text) -> None:
        """Print a row of a running table, cut off at the width of the window."""
        self._console.print(row, no_wrap=True, overflow="crop")

    def table(self, table: Table) -> None:
        """Print a table."""
        self._console.print(table)


def plain_table(**options: Any) -> Table:
    """Return a table without lines. `options`: those of rich's Table."""
    return Table(box=None, padding=(0, 2, 0, 0), header_style="bold", **options)


class BooksTable:
    """The table of the books: a name, a figure and a remark in each row."""

    def __init__(self) -> None:
        self.table = Table(box=None, show_header=False, padding=(0, 2))
        self.table.add_column()
        self.table.add_column(justify="right")
        self.table.add_column()

    def add(self, name: str, value: str, remark: str = "", *, good: bool = True) -> None:
        """Add a row; a figure that is not good is red."""
        style = "bold" if good else "bold red"
        self.table.add_row(name, Text(value, style=style), Text(remark))


def shown(word: str | bytes | int) -> str:
    """Return a word as people read it, with the bytes of binary data escaped."""
    return repr(word)[2:-1] if isinstance(word, bytes) else str(word)


def examples(bodies: Iterable[bytes]) -> str:
    """Return the first few bodies in one line."""
    return "  ".join(shown(body) for body in itertools.islice(bodies, 3))
