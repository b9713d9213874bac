"""A tool of the command line that runs in the process of the test, or in one of its own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pty
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from keyspace_amqp import cli
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from keyspace_amqp.tools import amqp
from tests.fix_servers import ROOT

# Bounds against hangs.
SOON = 30.0


def url(server: RedisServer) -> str:
    """Return the URL of a Redis server."""
    return f"redis://127.0.0.1:{server.port}"


def amqp_url(broker: RabbitServer, user: str = "guest:guest") -> str:
    """Return the URL of a broker; `user`: with the password."""
    return f"amqp://{user}@127.0.0.1:{broker.port}/"


# Takes the words after `keyspace-amqp`; returns the exit code, stdout and stderr.
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a tool in this process, without what the environment says about it, and with patience:
    a machine that stands still for some seconds is no broker that does not answer."""
    monkeypatch.setattr(amqp, "TIMEOUT", 60.0)
    for name in ("REDIS_URL", "REDISCLI_AUTH", "AMQP_URL", "AMQP_PASSWORD", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main(words)
        return code, *capfd.readouterr()

    return run


# Variables that say something about the terminal or the output.
_OF_TERMINALS = {"COLUMNS", "LINES", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"}


def _take_signals() -> None:
    """Ignore none of the signals that end or stop a tool on a terminal. The tests may run where
    some are ignored: in the background of a script, or under nohup."""
    for each in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, signal.SIGTSTP):
        signal.signal(each, signal.SIG_DFL)


class Running:
    """A tool in a process of its own. In a `with`, which ends it. `terminal`: its output is a
    terminal of this `size`, columns and lines. `env`: more variables of the environment."""

    def __init__(
        self,
        folder: pathlib.Path,
        *words: str,
        terminal: bool = False,
        size: tuple[int, int] = (200, 50),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._outputs = folder / "stdout", folder / "stderr"
        self._terminal = -1
        with contextlib.ExitStack() as stack:
            stdout, stderr = (stack.enter_context(p.open("wb")) for p in self._outputs)
            out: Any = stdout
            if terminal:
                self._terminal, out = pty.openpty()
                os.set_blocking(self._terminal, False)
                stack.callback(os.close, out)
                termios.tcsetwinsize(out, (size[1], size[0]))
            own = {name: text for name, text in os.environ.items() if name not in _OF_TERMINALS}
            self.process = subprocess.Popen(
                [sys.executable, "-m", "keyspace_amqp.cli", *words],
                cwd=ROOT,
                env=own | {"TERM": "xterm"} | dict(env or {}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=stderr,
                # A group whose parent is outside of it can be stopped as Ctrl-Z does it.
                process_group=0,
                preexec_fn=_take_signals,
            )
        self._shown = b""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._terminal >= 0:
            os.close(self._terminal)

    @property
    def out(self) -> str:
        if self._terminal >= 0:
            with contextlib.suppress(BlockingIOError, OSError):  # EIO: the other end is closed
                while more := os.read(self._terminal, 65536):
                    self._shown += more
            return self._shown.decode(errors="replace")  # the end of a character may not be there
        return self._outputs[0].read_text()

    @property
    def err(self) -> str:
        return self._outputs[1].read_text()

    def resize(self, size: tuple[int, int]) -> None:
        """Gives its terminal another size. (The kernel tells only the terminal's own session.)"""
        termios.tcsetwinsize(self._terminal, (size[1], size[0]))
        self.process.send_signal(signal.SIGWINCH)

    def waits(self, condition: Callable[[Running], Any], what: str = "") -> Any:
        def met() -> Any:
            assert self.process.poll() is None, f"it has ended: {self.out}{self.err}"
            return condition(self)

        try:
            return wait_for(met, SOON, what)
        except TimeoutError:
            pytest.fail(f"waited for {what}: {self.out}\n{self.err}")

    def interrupted(self) -> int:
        """Sends Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SOON)
