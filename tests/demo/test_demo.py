"""The demo is the first thing that people see: it ends well, by itself."""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys
import tempfile

import pytest

from keyspace_amqp.demo.servers import RedisServer
from keyspace_amqp.tables.parameters import PARAMETERS

ROOT = pathlib.Path(__file__).resolve().parents[2]


def command_line(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "keyspace_amqp.cli", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


# With ports that no other test takes.
DEMO = """
import sys
from keyspace_amqp import cli
from keyspace_amqp.demo.servers import ports
ports.PORTS = range(12000, 15000)
sys.exit(cli.main(["demo", *sys.argv[1:]]))
"""


@pytest.mark.parametrize("options", [(), ("--cluster",)], ids=["one server", "cluster"])
def test_the_demo(options: tuple[str, ...]) -> None:
    with tempfile.TemporaryDirectory(prefix="keyspace-amqp-") as folder:
        ended = subprocess.run(
            [sys.executable, "-c", DEMO, *options],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert not list(pathlib.Path(folder).iterdir())
        assert not processes_in(folder)
    assert "\x1b" not in ended.stdout  # a pipe gets plain text
    assert "events_matched" in ended.stdout


def processes_in(folder: str) -> list[str]:
    """Command lines of processes that work in a folder."""
    found = []
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd").startswith(folder):  # noqa: PTH115
                found.append((process / "cmdline").read_text())
        except OSError:
            continue
    return found


def test_the_printed_lines_load(tmp_path: pathlib.Path) -> None:
    ended = command_line(
        "loadmodule",
        "--host",
        "broker.example",
        "--password",
        'p "w',
        "--mask",
        "^a b$",
        "--mask",
        "!^a bc",
        "--fallback-size",
        "-1",
    )
    assert ended.returncode == 0, ended.stderr
    path = command_line("path").stdout.strip()
    assert ended.stdout.startswith(f"loadmodule {path}\n")
    server = RedisServer(tmp_path, options=ended.stdout.splitlines())
    with server:
        client = server.client(decode_responses=True)
        found = client.config_get("keyspaceamqp.*")
    expected = {f"keyspaceamqp.{parameter.name}": parameter.default for parameter in PARAMETERS} | {
        "keyspaceamqp.host": "broker.example",
        "keyspaceamqp.password": 'p "w',
        "keyspaceamqp.masks": r"^a\x20b$ !^a\x20bc",
        "keyspaceamqp.fallback-size": "-1",
        "keyspaceamqp.delivery-mode": "2",  # not the default, so that the broker keeps messages
    }
    assert found == expected


def test_the_printed_delivery_mode() -> None:
    """2, unless an option says otherwise; the help says so."""
    name = "keyspaceamqp.delivery-mode"
    assert f"{name} 2" in command_line("loadmodule").stdout.splitlines()
    lines = command_line("loadmodule", "--delivery-mode", "1").stdout.splitlines()
    assert [line for line in lines if line.startswith(name)] == [f"{name} 1"]
    help_ = " ".join(command_line("loadmodule", "--help").stdout.split())
    assert re.search(r"2: persistent \(default: 2\)", help_)


def test_a_wrong_option() -> None:
    ended = command_line("loadmodule", "--port", "70000")
    assert ended.returncode != 0
    assert "port" in ended.stderr
    assert "70000" in ended.stderr
    assert "1 to 65535" in ended.stderr
    ended = command_line("loadmodule", "--mask", "!")
    assert ended.returncode != 0
    assert "'!' is not accepted; give a mask" in ended.stderr
