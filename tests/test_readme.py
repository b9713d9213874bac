"""The README says what the code does.

Its tables of parameters, commands and numbers are made from the code's tables;
`python -m tests.test_readme` writes them anew. Each example of a mask is tried.
Needs no server and no module.
"""

from __future__ import annotations

import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

import pytest

from keyspace_amqp import masks
from keyspace_amqp.commands import COMMANDS
from keyspace_amqp.config import SETTINGS, parse_masks
from keyspace_amqp.stats import HELP, TEXT_HELP, Stat, Text

ROOT = pathlib.Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
END = "<!-- end -->"

CODE = re.compile(r"`([^`]+)`")


def _cell(text: str) -> str:
    """A text as Markdown shows it in a table, but for what stands in backquotes."""

    def plain(part: str) -> str:
        return re.sub(r"([\\*_<>\[\]])", r"\\\1", part)

    parts = text.split("`")
    parts[::2] = map(plain, parts[::2])
    return "`".join(parts).replace("|", "\\|")


def _table(*rows: Iterable[str]) -> str:
    """A table of Markdown; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * lines[0].count(" | ") + "---|", *lines[1:]])


def parameters() -> str:
    positions = {s.name: str(s.position or "") for s in SETTINGS}
    positions["masks"] += "…"
    rows = [
        (positions[s.name], f"`{s.name}`", f"`{s.default}`", _cell(s.accepted), _cell(s.help))
        for s in SETTINGS
    ]
    return _table(("position", "name", "default", "accepted", "meaning"), *rows)


def commands() -> str:
    rows = [
        (
            "<br>".join(f"`KEYSPACEAMQP.{usage}`" for usage in command.usage),
            _cell(command.summary),
            _cell(command.complexity),
        )
        for command in COMMANDS
    ]
    return _table(("command", "what it does", "complexity"), *rows)


def stats() -> str:
    rows = [(f"`{text.name.lower()}`", _cell(TEXT_HELP[text])) for text in Text]
    rows += [(f"`{stat.name.lower()}`", _cell(HELP[stat])) for stat in Stat]
    return _table(("name", "meaning"), *rows)


TABLES: dict[str, Callable[[], str]] = {
    "parameters": parameters,
    "commands": commands,
    "stats": stats,
}


def _place(text: str, marker: str) -> slice:
    """What stands between the line with a marker and the next end."""
    before, found, _ = text.partition(f"<!-- {marker}")
    assert found, f"README.md has no marker {marker!r}"
    start = text.index("\n", len(before)) + 1
    return slice(start, text.index(END, start))


def written(text: str) -> str:
    """The README with its tables made anew."""
    for name, table in TABLES.items():
        place = _place(text, f"table: {name} ")
        text = f"{text[: place.start]}{table()}\n{text[place.stop :]}"
    return text


@pytest.mark.parametrize("name", TABLES)
def test_table(name: str) -> None:
    text = README.read_text()
    assert text[_place(text, f"table: {name} ")] == TABLES[name]() + "\n", (
        "run: .venv/bin/python -m tests.test_readme"
    )


def _mask_examples() -> Iterator[tuple[bytes, bytes, bool]]:
    r"""(mask, key, whether it matches); \xHH in a key is a byte."""
    text = README.read_text()
    for line in text[_place(text, "masks: ")].splitlines()[2:]:
        _, mask, matching, other, *_ = line.split("|")
        for cell, matches in ((matching, True), (other, False)):
            for key in CODE.findall(cell):
                yield CODE.findall(mask)[0].encode(), parse_masks(key.encode())[0], matches


@pytest.mark.parametrize(("mask", "key", "matches"), list(_mask_examples()))
def test_mask_example(mask: bytes, key: bytes, matches: bool) -> None:
    assert masks.matches([mask], key) is matches


def test_links_lead_to_headings() -> None:
    text = README.read_text()
    headings = {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    }
    assert set(re.findall(r"\]\(#([^)]*)\)", text)) <= headings


def test_the_python_example_compiles() -> None:
    examples = re.findall(r"^```python\n(.*?)^```", README.read_text(), re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        compile(example, "README.md", "exec")


if __name__ == "__main__":
    README.write_text(written(README.read_text()))
