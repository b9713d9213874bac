"""What pip makes of the project: a source distribution, and for each Python on this machine
that can have the module a wheel, which works in a fresh environment and needs nothing of the
source folder and no environment variables."""

from __future__ import annotations

import dataclasses
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

from keyspace_amqp import __version__
from keyspace_amqp.demo.servers import RedisServer
from keyspace_amqp.tools.path import CORE_FILE, MODULE_FILE
from tests.fix_servers import ROOT, Mailbox, settled

PRINT_FACTS = """
import os, sys, sysconfig
print("%d.%d" % sys.version_info[:2])
print(sys.base_prefix)
print(sysconfig.get_config_var("LDLIBRARY"))
header = os.path.join(sysconfig.get_path("include"), "Python.h")
fit = sysconfig.get_config_var("Py_ENABLE_SHARED") and os.path.exists(header)
print(bool(fit and sys.version_info >= (3, 11)))
"""


@dataclasses.dataclass(frozen=True)
class Interpreter:
    path: str
    version: str
    prefix: str
    library: str  # the file name of its libpython


def interpreters() -> list[Interpreter]:
    """Interpreters with headers and a shared libpython, each version once: this one, the system's,
    and others in PATH or installed by pyenv or uv. The system's also if this one is of the same
    version, because it lays out its folders in another way."""
    home = pathlib.Path.home()
    managed = [
        pathlib.Path(os.environ.get("PYENV_ROOT", home / ".pyenv"), "versions"),
        home / ".local/share/uv/python",
    ]
    candidates = [sys.executable, "/usr/bin/python3"]
    candidates += sorted(str(p) for folder in managed for p in folder.glob("*/bin/python3"))
    candidates += [path for n in range(11, 20) if (path := shutil.which(f"python3.{n}"))]
    found: dict[tuple[str, bool], Interpreter] = {}
    for path in candidates:
        if not pathlib.Path(path).exists():
            continue
        asked = subprocess.run([path, "-c", PRINT_FACTS], capture_output=True, text=True)
        *facts, fit = asked.stdout.split("\n")[:4] if asked.returncode == 0 else ["False"]
        if fit == "True":
            interpreter = Interpreter(path, *facts)
            found.setdefault((interpreter.version, interpreter.prefix == "/usr"), interpreter)
    return list(found.values())


def named(interpreter: Interpreter) -> str:
    return interpreter.version + ("-system" if interpreter.prefix == "/usr" else "")


def works(environment: pathlib.Path, library: str, mailbox: Mailbox, folder: pathlib.Path) -> None:
    """Checks the command and the module of an environment; all parts have the same version."""

    def run(*words: str | pathlib.Path) -> str:
        return subprocess.run(
            [environment / "bin" / words[0], *words[1:]],
            cwd="/",
            env={"PATH": os.defpath},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    assert run("keyspace-amqp", "--version") == f"keyspace-amqp {__version__}"
    metadata = "from importlib.metadata import version; print(version('keyspace-amqp'))"
    assert run("python", "-c", metadata) == __version__
    path = pathlib.Path(run("keyspace-amqp", "path"))
    assert path.is_relative_to(environment)
    for name in ("alerts.yml", "grafana.json"):
        assert (path.parent / "tools" / name).is_file()
    lines = run(
        "keyspace-amqp",
        "loadmodule",
        "--port",
        str(mailbox.broker.port),
        "--events",
        "A",
        "--routing-key",
        mailbox.routing_key,
    ).splitlines()
    server = RedisServer(folder / "redis", options=lines)
    server.environment = lambda: {"PATH": os.defpath}  # type: ignore[method-assign]
    with server:
        client = server.client()
        client.set("a", 1)
        assert mailbox.receive(1)[0].event == (0, b"set", b"a")
        settled(client, confirmed=1)
        # It must find its packages in the environment, not where this test runs.
        assert str(environment) in server.log()
        maps = pathlib.Path(f"/proc/{server.pid}/maps").read_text()
        assert client.info("keyspaceamqp")["keyspaceamqp_version"] == __version__
        (module,) = (m for m in client.module_list() if m[b"name"] == b"keyspaceamqp")
        major, minor, patch = (int(part) for part in __version__.split("."))
        assert module[b"ver"] == major * 10000 + minor * 100 + patch
    assert library.partition(".so")[0] in maps
    assert str(ROOT) not in maps


def test_source_distribution(source_distribution: pathlib.Path) -> None:
    """All of the package and of the shim, what the build reads, and nothing that was built."""
    expected = {"CHANGELOG.md", "CMakeLists.txt", "LICENSE", "README.md", "pyproject.toml"}
    expected |= {
        str(path.relative_to(ROOT))
        for folder in ("docs", "keyspace_amqp", "shim")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    with tarfile.open(source_distribution) as archive:
        top = f"keyspace_amqp-{__version__}/"
        names = {member.name.removeprefix(top) for member in archive if member.isfile()}
    assert names - {"PKG-INFO"} == expected


@pytest.fixture(scope="module")
def source_distribution(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("source")
    command = [sys.executable, "-m", "build", "--sdist", "--outdir", folder, ROOT]
    # In the checkout, `build` would be the folder of that name.
    subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
    (archive,) = folder.glob("*.tar.gz")
    return archive


@pytest.mark.parametrize("python", interpreters(), ids=named)
def test_wheel(
    python: Interpreter,
    source_distribution: pathlib.Path,
    tmp_path: pathlib.Path,
    mailbox: Mailbox,
) -> None:
    environment = tmp_path / "environment"
    subprocess.run([python.path, "-m", "venv", environment], check=True)
    pip = [environment / "bin" / "python", "-m", "pip", "--quiet"]
    subprocess.run(
        [*pip, "wheel", "--no-deps", "--wheel-dir", tmp_path, source_distribution], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {n for n in archive.namelist() if ".dist-info/" not in n}
    with tarfile.open(source_distribution) as source:
        package = {m.name.partition("/")[2] for m in source if "/keyspace_amqp/" in m.name}
    assert names == package | {f"keyspace_amqp/{MODULE_FILE}", f"keyspace_amqp/{CORE_FILE}"}
    subprocess.run([*pip, "install", wheel], check=True)
    works(environment, python.library, mailbox, tmp_path)


def test_pip_install_in_a_checkout(tmp_path: pathlib.Path, mailbox: Mailbox) -> None:
    """As the documentation says; the checkout may be removed afterwards."""
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".venv", "build", ".git", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, source, ignore=ignored)
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    install = [environment / "bin" / "python", "-m", "pip", "install", "--quiet", "."]
    subprocess.run(install, cwd=source, check=True)
    shutil.rmtree(source)
    works(environment, interpreters()[0].library, mailbox, tmp_path)
    # A link at the top of the environment, as in the image, is the path that stays.
    path = [environment / "bin" / "keyspace-amqp", "path"]
    module = subprocess.run(path, check=True, capture_output=True, text=True).stdout.strip()
    link = environment / MODULE_FILE
    link.symlink_to(module)
    assert subprocess.run(path, check=True, capture_output=True, text=True).stdout == f"{link}\n"
    link.unlink()
    shutil.copy(module, link)  # a copy is no link: it would not find its handler
    assert subprocess.run(path, check=True, capture_output=True, text=True).stdout != f"{link}\n"
