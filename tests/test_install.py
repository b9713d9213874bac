"""`pip install .` into a fresh environment; the installed module needs nothing
of the source folder and no environment variables."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

from keyspace_amqp import __version__
from keyspace_amqp.servers import RedisServer

from .fix_servers import ROOT, Mailbox, settled

PRINT_FACTS = (
    "import sys, sysconfig, os; print(sys.version_info >= (3, 11) and "
    "bool(sysconfig.get_config_var('Py_ENABLE_SHARED')) and "
    "os.path.exists(os.path.join(sysconfig.get_path('include'), 'Python.h')))"
)


def interpreters() -> list[str]:
    """This one, and the system's if a module can be built with it."""
    found = [sys.executable]
    system = "/usr/bin/python3"
    if pathlib.Path(system).exists() and pathlib.Path(sys.base_prefix) != pathlib.Path("/usr"):
        facts = subprocess.run([system, "-c", PRINT_FACTS], capture_output=True, text=True)
        if facts.stdout.strip() == "True":
            found.append(system)
    return found


@pytest.mark.parametrize("python", interpreters())
def test_pip_install(python: str, tmp_path: pathlib.Path, mailbox: Mailbox) -> None:
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".venv", "build", ".git", "__pycache__", ".*_cache")
    shutil.copytree(ROOT, source, ignore=ignored)
    environment = tmp_path / "environment"
    subprocess.run([python, "-m", "venv", environment], check=True)
    bin_folder = environment / "bin"
    install = [bin_folder / "python", "-m", "pip", "install", "--quiet", "."]
    subprocess.run(install, cwd=source, check=True)
    shutil.rmtree(source)

    def run(*words: str) -> str:
        return subprocess.run(
            [bin_folder / "keyspace-amqp", *words],
            cwd="/",
            env={"PATH": os.defpath},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    assert __version__ in run("--version")
    path = pathlib.Path(run("path"))
    assert path.is_relative_to(environment)
    assert (path.parent / "tools" / "grafana.json").is_file()
    lines = run(
        "loadmodule",
        "--port",
        str(mailbox.broker.port),
        "--events",
        "A",
        "--routing-key",
        mailbox.routing_key,
    ).splitlines()
    server = RedisServer(tmp_path / "redis", options=lines)
    server.environment = lambda: {"PATH": os.defpath}  # type: ignore[method-assign]
    with server:
        client = server.client()
        client.set("a", 1)
        assert mailbox.receive(1)[0].event == (0, b"set", b"a")
        settled(client, confirmed=1)
        # What it needs is in the environment, not where this test runs.
        assert str(environment) in server.log()
        maps = pathlib.Path(f"/proc/{server.pid}/maps").read_text()
    assert sysconfig.get_config_var("LDLIBRARY").partition(".so")[0] in maps
    assert str(ROOT) not in maps
