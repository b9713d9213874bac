"""The end of a server is the end of the programs that it started."""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Sequence

import pytest

from keyspace_amqp.demo.servers import process, wait_for

# A program in a session of its own, as those of Erlang: it ends when its input ends, half a second
# later ("late"), or not by itself ("never").
HELPER = """
import pathlib, sys, time
pathlib.Path("started").touch()
sys.stdin.read()
time.sleep({"late": 0.5, "never": 3600}[sys.argv[1]])
pathlib.Path("ended").touch()
"""
SERVER = """
import subprocess, sys
command = [sys.executable, "-c", sys.argv[2], sys.argv[1]]
subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True).wait()
"""


class WithHelper(process.Server):
    def __init__(self, folder: pathlib.Path, end: str) -> None:
        super().__init__(folder)
        self.end = end

    def command(self) -> Sequence[str]:
        return [sys.executable, "-c", SERVER, self.end, HELPER]

    def ready(self) -> bool:
        return (self.folder / "started").exists()


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_programs_that_end_late_are_awaited(tmp_path: pathlib.Path, way: str) -> None:
    server = WithHelper(tmp_path, "late")
    server.start()
    getattr(server, way)()
    assert (tmp_path / "ended").exists()


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_programs_that_stay_are_killed(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    server = WithHelper(tmp_path, "never")
    server.start()
    (helper,) = children(server.pid)
    monkeypatch.setattr(process, "STOP_TIMEOUT", 0.1)
    if way == "stop":
        server.stop(5)
    else:
        server.kill()
    wait_for(lambda: ended(helper), what="the helper has ended")
    assert not (tmp_path / "ended").exists()


def children(pid: int) -> list[int]:
    return [
        int(child) for child in pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    ]


def ended(pid: int) -> bool:
    """True if a process is gone, or waits only for its parent to take note of its end."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
