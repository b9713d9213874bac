"""The README and the pages in docs say what the code does.

Their tables of parameters, classes, commands, numbers and servers are made from the tables of the
code and the tests; `python -m tests.test_readme` writes them again. Each example of a mask is
tried. Needs no server and no module.
"""

from __future__ import annotations

import argparse
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator

import pytest

from keyspace_amqp import masks
from keyspace_amqp.config import parse_masks
from keyspace_amqp.tables.commands import COMMANDS
from keyspace_amqp.tables.events import EVENT_CLASSES
from keyspace_amqp.tables.parameters import PARAMETERS
from keyspace_amqp.tables.stats import HELP, TEXT_HELP, Stat, Text
from keyspace_amqp.tools.parser import make_parser
from tests.servers import PACKAGES, SYSTEMS, kind_of

ROOT = pathlib.Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
# A reader sees the first thing to type after so many words at most; and no paragraph,
# and no item of a list, has as many words as this.
WORDS_BEFORE_CODE = 250
PARAGRAPH_WORDS = 100
END = "<!-- end -->"
# The oldest glibc of the systems that the tests run on.
OLDEST_GLIBC = "2.36"

CODE = re.compile(r"`([^`]+)`")


def _cell(text: str) -> str:
    """A text as Markdown shows it in a table, except for text in backquotes."""

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
    positions = {s.name: str(s.position or "") for s in PARAMETERS}
    positions["masks"] += "…"
    rows = [
        (
            positions[s.name],
            f"`{s.name}`",
            f"`{s.default}`" if s.default else "",
            _cell(s.accepted),
            _cell(s.help),
        )
        for s in PARAMETERS
    ]
    return _table(("position", "name", "default", "accepted", "meaning"), *rows)


def classes() -> str:
    rows = [
        (
            f"`{c.letter}`",
            f"`{c.name}`",
            _cell(c.events),
            "yes" if c.in_all else "",
            f"Redis {c.since}" if c.since else "",
        )
        for c in EVENT_CLASSES
    ]
    return _table(("letter", "class", "events", "in `A`", "needs"), *rows)


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


def systems() -> str:
    """The systems that the tests run on, and the servers of Python packages."""
    rows = [
        (
            system.title,
            *(version or "none" for version in (system.redis, system.valkey)),
            system.rabbitmq,
            system.python,
        )
        for system in SYSTEMS.values()
    ]
    by_kind = {
        kind: ", ".join(
            p.version + (f" (with glibc {p.glibc} or later)" if p.glibc > OLDEST_GLIBC else "")
            for p in PACKAGES
            if kind_of(p.name) == kind
        )
        for kind in ("redis", "valkey")
    }
    packages = ("Python packages", by_kind["redis"], by_kind["valkey"], "", "")
    return _table(("from", "Redis", "Valkey", "RabbitMQ", "Python"), *rows, packages)


def versions() -> str:
    """The sentence of the README: the oldest and the newest of everything, and the systems."""
    packaged = [(kind_of(package.name), package.version) for package in PACKAGES]
    found: dict[str, list[str]] = {
        "Redis": [system.redis for system in SYSTEMS.values()]
        + [version for kind, version in packaged if kind == "redis"],
        "Valkey": [system.valkey for system in SYSTEMS.values() if system.valkey]
        + [version for kind, version in packaged if kind == "valkey"],
        "RabbitMQ": [system.rabbitmq for system in SYSTEMS.values()],
        "Python": [system.python for system in SYSTEMS.values()],
    }
    ranges = []
    for name, versions in found.items():
        versions.sort(key=lambda version: tuple(map(int, version.split("."))))
        ranges.append(f"{name} {versions[0]} to {versions[-1]}")
    titles = [system.title for system in SYSTEMS.values()]
    return (
        f"Tested on {', '.join(titles[:-1])} and {titles[-1]}, with {', '.join(ranges[:-1])} and "
        f"{ranges[-1]} ([all versions](docs/versions.md#what-it-is-tested-with))."
    )


TABLES: dict[str, Callable[[], str]] = {
    "tested": versions,
    "systems": systems,
    "parameters": parameters,
    "classes": classes,
    "commands": commands,
    "stats": stats,
}


def _place(marker: str) -> tuple[pathlib.Path, str, slice]:
    """The text between the line with a marker and the next end: the page, its text, and where."""
    for page in PAGES:
        text = page.read_text()
        before, found, _ = text.partition(f"<!-- {marker}")
        if found:
            start = text.index("\n", len(before)) + 1
            return page, text, slice(start, text.index(END, start))
    raise AssertionError(f"no page has the marker {marker!r}")


def write() -> None:
    """Makes the tables anew."""
    for name, table in TABLES.items():
        page, text, place = _place(f"table: {name} ")
        page.write_text(f"{text[: place.start]}{table()}\n{text[place.stop :]}")


@pytest.mark.parametrize("name", TABLES)
def test_table(name: str) -> None:
    _, text, place = _place(f"table: {name} ")
    assert text[place] == TABLES[name]() + "\n", "run: .venv/bin/python -m tests.test_readme"


def _mask_examples() -> Iterator[tuple[bytes, bytes, bool]]:
    r"""(mask, key, True if it matches); \xHH in a key is a byte."""
    _, text, place = _place("masks: ")
    for line in text[place].splitlines()[2:]:
        _, mask, matching, other, *_ = line.split("|")
        for cell, matches in ((matching, True), (other, False)):
            for key in CODE.findall(cell):
                yield CODE.findall(mask)[0].encode(), parse_masks(key.encode())[0], matches


@pytest.mark.parametrize(("mask", "key", "matches"), list(_mask_examples()))
def test_mask_example(mask: bytes, key: bytes, matches: bool) -> None:
    assert masks.matches([mask], key) is matches


def _headings(page: pathlib.Path) -> set[str]:
    return {
        re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-")
        for heading in re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: pathlib.Path) -> None:
    for link in re.findall(r"\]\(([^)]*)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, heading = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not heading or heading in _headings(target), link


# ---- names in the running text ---------------------------------------------------

TEXT = "".join(page.read_text() for page in PAGES)


def test_commands_are_those_that_there_are() -> None:
    usages = [usage for command in COMMANDS for usage in command.usage]
    for name, word in re.findall(r"KEYSPACEAMQP\.([A-Z]+)(?: ([A-Z]{3,}))?", TEXT):
        assert any(usage.split()[0] == name for usage in usages), name
        assert not word or any(usage.split()[:2] == [name, word] for usage in usages), word


def test_parameters_and_commands_by_their_redis_names() -> None:
    known = {s.name for s in PARAMETERS} | {command.name.lower() for command in COMMANDS}
    assert set(re.findall(r"keyspaceamqp\.([a-z-]+)", TEXT)) - {"name"} <= known


def test_examples_let_the_broker_keep_messages() -> None:
    """What people copy: every example that loads the module, and the image, sets delivery-mode 2,
    by name or as the ninth argument. None includes a file: the server would not be able to keep
    in it what CONFIG REWRITE writes."""
    texts = [*re.findall(r"^ *```text\n(.*?)```", TEXT, re.MULTILINE | re.DOTALL)]
    examples = [text for text in texts if re.search(r"^ *(loadmodule|MODULE LOADEX) ", text, re.M)]
    assert len(examples) >= 4
    examples.append((ROOT / "Dockerfile").read_text())
    for example in examples:
        assert re.search(r"keyspaceamqp\.delivery-mode 2\b|loadmodule (\S+ ){9}2\b", example), (
            example
        )
        assert not re.search(r"^ *include ", example, re.M), example


def test_numbers_are_those_of_stats() -> None:
    names = {stat.name.lower() for stat in Stat}
    spoken = re.findall(r"`((?:dropped|fallback|queue|confirm_ms|events|routing_keys)_[a-z_0-9]+)`",
                        TEXT)  # fmt: skip
    assert set(spoken) <= names


def test_options_of_the_command_line() -> None:
    """An option in a line with a command must be one of that command."""
    (commands,) = (
        action.choices
        for action in make_parser()._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    found = re.findall(r"keyspace-amqp ([a-z]+) ([^`\n]*(?:\\\n[^`\n]*)*)", TEXT)
    assert {"loadmodule", "status", "tail", "doctor", "exporter", "drain"} <= {n for n, _ in found}
    for name, rest in found:
        for option in re.findall(r"(--[a-z][a-z-]*)", rest.partition("#")[0]):
            assert option in commands[name]._option_string_actions, (name, option)


def test_what_the_shim_tells_latency() -> None:
    told = re.findall(
        r'MODULE_NAME "-([a-z]+)"',
        "".join(path.read_text() for path in (ROOT / "shim").glob("*.c")),
    )
    spoken = re.findall(r"`keyspaceamqp-([a-z]+)`", TEXT)
    assert set(told) == set(spoken) - {"amqp"}


def test_the_readme_is_read_in_ten_minutes() -> None:
    assert len(PAGES[0].read_text().split()) < 2500


def test_the_readme_soon_says_what_to_type() -> None:
    before, found, _ = PAGES[0].read_text().partition("\n```")
    assert found
    assert len(before.split()) <= WORDS_BEFORE_CODE


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paragraphs_are_short(page: pathlib.Path) -> None:
    lengths = {block: len(block.split()) for block in _paragraphs(page.read_text())}
    assert {block: n for block, n in lengths.items() if n >= PARAGRAPH_WORDS} == {}


def _paragraphs(text: str) -> list[str]:
    """Return the paragraphs and the items of lists; code and tables are left out."""
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^\|.*$", "", text, flags=re.MULTILINE)
    return re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|[0-9]+\.) )|\n(?=#)|(?<=\n)(?=<!--)", text)


def test_the_python_examples_compile() -> None:
    text = "".join(page.read_text() for page in PAGES)
    examples = re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert examples
    for example in examples:
        compile(example, "example", "exec")


if __name__ == "__main__":
    write()
