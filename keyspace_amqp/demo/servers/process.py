"""A server as a process with a log file: start, wait until it answers, signal, stop."""

from __future__ import annotations

import contextlib
import linecache
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

# Seconds. Long, because a shared machine may stand still for a while, and a broker starts slowly.
TIMEOUT = 60.0
START_TIMEOUT = 180.0
STOP_TIMEOUT = 20.0
# Seconds between two looks at a condition.
POLL = 0.02
# Lines of the log that an error quotes.
_LOG_LINES = 25


class ServerError(Exception):
    """A server is missing, or did not start. The text ends with the last lines of its log."""


def wait_for(
    condition: Callable[[], Any],
    timeout: float = TIMEOUT,
    what: str = "",
    seen: Callable[[], str] | None = None,
) -> Any:
    """Call `condition` until its result is true, and return that result.

    Raises TimeoutError after `timeout` seconds. The error says what was awaited, what there is
    instead, and how busy the machine is. `what`: the condition in words; without it, the error has
    its line of code. `seen`: returns what there is; without it, the error has the last result.
    """
    until = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            there = seen() if seen is not None else f"the last result was {value!r}"
            raise TimeoutError(
                f"not within {timeout:g} s: {what or _code_of(condition)}; {there} "
                f"(load {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors)"
            )
        time.sleep(POLL)


def _code_of(condition: Callable[[], Any]) -> str:
    """Return the place and the line of code of a function."""
    code = getattr(condition, "__code__", None)
    if code is None:
        return repr(condition)
    line = linecache.getline(code.co_filename, code.co_firstlineno).strip()
    return f"{code.co_filename}:{code.co_firstlineno}: {line}"


class Server:
    """A server process with a log file, in a session of its own. The base class of the
    servers.

    Most likely failure: the program is not installed, or ends while it starts; both raise
    ServerError.
    """

    name = "server"

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def command(self) -> Sequence[str]:
        """Return the program and its arguments."""
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        """Return the environment of the process."""
        return os.environ

    def ready(self) -> bool:
        """True if the server answers."""
        raise NotImplementedError

    def log(self) -> str:
        """Return the whole log."""
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> None:
        """Start the server and wait until it answers. Raises ServerError."""
        self.spawn()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Wait until a server that was spawned answers. Raises ServerError."""
        try:
            wait_for(self._ready_or_dead, START_TIMEOUT, f"{self.name} answers")
        except TimeoutError:
            self.kill()
            raise ServerError(f"{self.name} does not answer; {self._log_end()}") from None

    def spawn(self) -> None:
        """Start the server without waiting for it. Raises ServerError."""
        with self.log_path.open("ab") as log:
            try:
                self.process = subprocess.Popen(
                    self.command(),
                    cwd=self.folder,
                    env=dict(self.environment()),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise missing(str(error.filename)) from None

    def _ready_or_dead(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise ServerError(f"{self.name} ended while it started; {self._log_end()}")
        return self.ready()

    def _log_end(self) -> str:
        return "the end of its log:\n" + "\n".join(self.log().splitlines()[-_LOG_LINES:])

    @property
    def pid(self) -> int:
        """The process id, which is also the id of the session. Only after a start."""
        assert self.process is not None
        return self.process.pid

    @property
    def running(self) -> bool:
        """True from the start of the process to its end."""
        return self.process is not None and self.process.poll() is None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to all processes of the server."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL and wait for the end of the server and of the programs that it started."""
        if self.process is not None:
            self._end(self._started())

    def _started(self) -> set[tuple[int, str]]:
        """Return the programs that the server started. None after its end: its id may be that
        of another process then."""
        return _started_by(self.pid) if self.running else set()

    def _end(self, programs: set[tuple[int, str]]) -> None:
        """Kill the server, and wait for its end and for that of programs that it started, which
        may have sessions of their own: those of Erlang end only when they see that the broker
        has ended."""
        assert self.process is not None
        self.signal(signal.SIGKILL)
        self.process.wait()
        try:
            wait_for(lambda: not programs & _programs().keys(), STOP_TIMEOUT)
        except TimeoutError:
            for pid, _ in programs & _programs().keys():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """Send SIGTERM, and SIGKILL if the server still runs `timeout` seconds later. Return
        the exit code."""
        if self.process is None:
            return 0
        programs = self._started()
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        code = self.process.poll()
        self._end(programs)
        return -signal.SIGKILL if code is None else code


def _programs() -> dict[tuple[int, str], int]:
    """Return the id and the start (in the kernel's ticks) of each process that runs, with the id
    of the process that started it, from /proc."""
    found = {}
    for process in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            # The name, in brackets, may have spaces; from `state` on, fields are numbers.
            fields = (process / "stat").read_text().rpartition(")")[2].split()
            if fields[0] != "Z":
                found[int(process.name), fields[19]] = int(fields[1])
    return found


def _started_by(pid: int) -> set[tuple[int, str]]:
    """Return the processes (id and start) that a process started, and those that they started."""
    programs = _programs()
    found: set[tuple[int, str]] = set()
    parents = {pid}
    while parents:
        children = {key for key, parent in programs.items() if parent in parents}
        found |= children
        parents = {child for child, _ in children}
    return found


def missing(program: str) -> ServerError:
    """Return the error for a program that is not installed."""
    return ServerError(f"{program} is missing; `make setup` or the system's packages have it")
