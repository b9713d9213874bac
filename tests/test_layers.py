"""Who may import whom, and how large files and classes may be; read from the source files.

The rooms of the package, from top to bottom: `worker` uses `commands`, `publisher`, `broker` and
`cluster`; these use the pure modules; the pure modules use `tables`. All of this runs inside
Redis. `tools`, `demo` and `cli` run outside, and nothing that runs inside imports them.

Imports inside functions and those for type checkers count too.
"""

from __future__ import annotations

import ast
import pathlib
import sys
from collections.abc import Iterable, Iterator, Mapping

from tests.fix_servers import ROOT

PACKAGE = "keyspace_amqp"

PURE = ("config", "message", "masks", "jobs", "fallback", "failures", "counts", "values")
INSIDE = ("tables", "pure", "publisher", "broker", "cluster", "commands", "worker")
OUTSIDE = ("tools", "demo", "cli")

# The one file that touches `lib` and `ffi` of the compiled module.
COMPILED = "_keyspace_amqp"
BRIDGE = "worker.bridge"

# What one needs to log in as the module does, and to say why that failed.
LOGIN = {"broker.login", "broker.reasons", "broker.target"}
# What is known about a cluster without being one of its nodes.
CLUSTER_PURE = {"cluster.lists", "cluster.slots", "cluster.topology"}

# The form of the file of leftovers, for the tool that reads one.
LEFTOVERS = {"worker.leftover_file"}
# The message of an event, for the tool that publishes one as the module does.
MESSAGES = {"broker.frames"}

# Per room what it may import besides itself and the version in the package's __init__.py: whole
# rooms, or single modules.
MAY_IMPORT: Mapping[str, set[str]] = {
    "tables": set(),
    "pure": {"tables"},
    "publisher": {"pure", "tables"},
    "broker": {"pure", "tables"},
    "cluster": {"pure", "tables"},
    "commands": {"pure", "tables", *CLUSTER_PURE, "cluster.peers", "cluster.wire"},
    "worker": {"pure", "tables", "publisher", "broker", "cluster", "commands"},
    "tools": {"pure", "tables", *CLUSTER_PURE, *LOGIN, *LEFTOVERS, *MESSAGES},
    "demo": {"pure", "tables", *CLUSTER_PURE, *LOGIN, "tools.path", "tools.replies"},
    "cli": {"pure", "tables", "tools", "demo"},
}
# The same for packages that are not of the standard library.
MAY_IMPORT_OTHERS: Mapping[str, set[str]] = {
    **{room: set() for room in INSIDE},
    "broker": {"pika"},
    "tools": {"pika", "redis", "rich", "prometheus_client", "shtab"},
    "demo": {"pika", "redis", "rich"},
    "cli": set(),
}

PYTHON_LINES = 650
C_LINES = 450
TEST_LINES = 1050
FIELDS = 25  # that a class sets in its __init__


def module_of(path: pathlib.Path, root: pathlib.Path = ROOT / PACKAGE) -> str:
    """The name of a module within the package; that of the package itself is empty."""
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_of(path): path for path in sorted((ROOT / PACKAGE).rglob("*.py"))}


def room_of(module: str) -> str:
    """The room of a module of the package."""
    if module in PURE:
        return "pure"
    room = module.partition(".")[0]
    assert room in MAY_IMPORT, f"{module or '__init__'} is in no room that this test knows"
    assert room == "cli" or SOURCES[module].parent != ROOT / PACKAGE, f"{module} needs a folder"
    return room


def imports_of(text: str, module: str, *, package: bool, known: Iterable[str]) -> set[str]:
    """What a source text imports: modules of the package by their names within it, the package
    itself as "", and others by their first names with a dot before them.

    `package`: the text is that of an __init__.py. `known`: all modules of the package.
    """
    found: set[str] = set()
    for name in _names(ast.parse(text), f"{PACKAGE}.{module}".rstrip("."), package=package):
        first, _, rest = name.partition(".")
        if first != PACKAGE:
            found.add(f".{first}")
            continue
        while rest and rest not in known:  # a function or a class of a module
            rest = rest.rpartition(".")[0]
        found.add(rest)
    return found - {module}


def _names(tree: ast.Module, module: str, *, package: bool) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=aliases):
                yield from (alias.name for alias in aliases)
            case ast.ImportFrom(module=source, names=aliases, level=level):
                parts = module.split(".")
                up = len(parts) - level + package
                start = [*parts[:up], *filter(None, [source])] if level else [source or ""]
                yield from (".".join([*start, alias.name]) for alias in aliases)
            case ast.Call(
                func=ast.Attribute(attr="import_module") | ast.Name(id="import_module"),
                args=[name, *_],
            ):
                # import_module("a.b"), or import_module(f"a.{b}"): the part that is known
                constants = (n.value for n in ast.walk(name) if isinstance(n, ast.Constant))
                yield str(next(constants, "")).rstrip(".")


def read(module: str) -> set[str]:
    """What a module of the package imports."""
    path = SOURCES[module]
    return imports_of(
        path.read_text(), module, package=path.name == "__init__.py", known=SOURCES.keys()
    )


IMPORTS = {module: read(module) for module in SOURCES}
MODULES = [module for module in SOURCES if module]


# ---- imports -------------------------------------------------------------------------


def test_imports_are_found_wherever_they_are() -> None:
    text = """
from __future__ import annotations
import os.path, pika.spec as s
from ..broker.target import Target
from .. import __version__, jobs
from . import log
from .throttle import Throttle
from keyspace_amqp.tables import keys
if TYPE_CHECKING:
    from ..cluster import wire
class A:
    def f(self):
        import redis
        importlib.import_module(f"keyspace_amqp.tools.{name}")
        import_module("keyspace_amqp.cli")
"""
    known = {
        "", "worker", "worker.loop", "worker.log", "worker.throttle", "broker", "broker.target",
        "jobs", "tables", "tables.keys", "cluster", "cluster.wire", "tools", "cli",
    }  # fmt: skip
    assert imports_of(text, "worker.loop", package=False, known=known) == {
        ".__future__", ".os", ".pika", ".redis", "", "broker.target", "jobs", "worker.log",
        "worker.throttle", "tables.keys", "cluster.wire", "tools", "cli",
    }  # fmt: skip
    assert imports_of(text, "worker", package=True, known=known) >= {
        "worker.log",
        "worker.throttle",
    }


def test_every_file_is_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} == {*INSIDE, *OUTSIDE}


def test_rooms_import_only_what_they_may() -> None:
    wrong = set()
    for module in MODULES:
        room = room_of(module)
        for name in IMPORTS[module]:
            if name.startswith("."):
                others = MAY_IMPORT_OTHERS[room] | ({COMPILED} if module == BRIDGE else set())
                if name[1:] not in sys.stdlib_module_names | others:
                    wrong.add((module, name[1:]))
            elif name and not {name, room_of(name)} & {room, *MAY_IMPORT[room]}:
                wrong.add((module, name))
    assert not wrong, "imports that the layers forbid"


def test_the_package_itself_imports_nothing() -> None:
    """Everything imports its version."""
    assert IMPORTS[""] <= {".__future__"}


def test_one_file_imports_the_compiled_module() -> None:
    assert [m for m in SOURCES if f".{COMPILED}" in IMPORTS[m]] == [BRIDGE]


def test_what_runs_inside_redis_needs_nothing_from_outside() -> None:
    """The worker with all that it imports, directly or through others."""
    reached: set[str] = set()
    waiting = [module for module in MODULES if room_of(module) == "worker"]
    while waiting:
        module = waiting.pop()
        if module not in reached:
            reached.add(module)
            waiting += [name for name in IMPORTS[module] if not name.startswith(".")]
    rooms = {room_of(module) for module in reached if module}
    assert rooms == set(INSIDE)
    others = {name[1:] for module in reached for name in IMPORTS[module] if name.startswith(".")}
    assert others - sys.stdlib_module_names == {COMPILED, "pika"}


def test_no_imports_in_a_circle() -> None:
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, "a circle: " + " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for name in sorted(IMPORTS[module]):
                if not name.startswith("."):
                    visit(name, (*way, module))
            done.add(module)

    for module in SOURCES:
        visit(module, ())


def test_folders_of_tests_are_named_for_rooms() -> None:
    """With tests of the C part, of the whole module on real servers, benchmarks, and files
    for containers and for other systems."""
    others = {"shim", "system", "bench", "containers", "reach"}
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= {*INSIDE, *OUTSIDE} | others


# ---- sizes ---------------------------------------------------------------------------


def longer(paths: Iterable[pathlib.Path], lines: int) -> set[str]:
    """Those of the files that have more lines."""
    return {
        str(path.relative_to(ROOT)) for path in paths if len(path.read_text().splitlines()) > lines
    }


def test_no_file_is_too_long() -> None:
    python = [*SOURCES.values(), *(ROOT / "shim").glob("*.py")]
    c = [path for path in (ROOT / "shim").iterdir() if path.suffix in (".c", ".h")]
    assert python
    assert c
    found = longer(python, PYTHON_LINES) | longer(c, C_LINES)
    assert not found, f"more than {PYTHON_LINES} lines of Python or {C_LINES} of C"


def test_no_test_file_is_too_long() -> None:
    paths = [path for path in (ROOT / "tests").rglob("*") if path.suffix in (".c", ".py")]
    assert longer(paths, TEST_LINES) == set()


def fields_of(node: ast.ClassDef) -> set[str]:
    """The names x of `self.x = …` and `self.x: … = …` in a class's __init__."""
    return {
        attribute.attr
        for method in node.body
        if isinstance(method, ast.FunctionDef) and method.name == "__init__"
        for attribute in ast.walk(method)
        if isinstance(attribute, ast.Attribute)
        and isinstance(attribute.ctx, ast.Store)
        and isinstance(attribute.value, ast.Name)
        and attribute.value.id == "self"
    }


def test_no_class_has_too_many_fields() -> None:
    counts = {
        f"{module}.{node.name}": len(fields_of(node))
        for module, path in SOURCES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    }
    assert max(counts.values()) > 5  # they are found at all
    found = {name for name, count in counts.items() if count > FIELDS}
    assert not found, f"classes with more than {FIELDS} fields"
