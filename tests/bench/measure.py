"""The instruments: CPU and memory of processes, from /proc, and the two generators of load,
redis-benchmark and load.c."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import functools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import redis

from keyspace_amqp.demo.servers import RedisServer, wait_for

ROOT = pathlib.Path(__file__).resolve().parents[2]
SOURCES = pathlib.Path(__file__).parent
SHIM = ROOT / "shim"
BUILT = ROOT / "build" / "bench"
WORKER = "keyspace-amqp"  # the name of the worker's thread
PIPELINE = 16  # commands that each of redis-benchmark's clients sends at once
CLIENTS = 50
# Seconds: the longest start, and between two attempts to connect.
START_TIMEOUT = 60.0
START_POLL = 0.0003


class BenchError(Exception):
    """A program is missing or has failed; the text says which."""


class LostEvents(Exception):
    """The books do not balance, or events were dropped. No other result is as bad."""


def build() -> None:
    """Compile the C programs into build/bench. Raises BenchError."""
    for program, package in (("cc", "gcc"), ("redis-benchmark", "redis-tools")):
        if shutil.which(program) is None:
            raise BenchError(f"{program} is missing; Debian's {package} has it")
    BUILT.mkdir(parents=True, exist_ok=True)
    flags = ["-std=gnu11", "-D_GNU_SOURCE", "-O2", "-Wall", "-Wextra", "-Werror"]
    for source, more, output in (
        ("load.c", [], "load"),
        ("sink.c", [], "sink"),
        ("empty.c", ["-fPIC", "-shared", str(SHIM / "redis_api.c")], "empty.so"),
    ):
        command = ["cc", *flags, *more, str(SOURCES / source), "-o", str(BUILT / output)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"{' '.join(command)}:\n{done.stderr}")


# ---- a start ---------------------------------------------------------------


def start_seconds(server: RedisServer) -> float:
    """Start a server. Return the seconds until it has answered a PING. Raises BenchError."""
    start = time.monotonic()
    server.spawn()
    while True:
        try:
            connection = socket.create_connection(("127.0.0.1", server.port), START_TIMEOUT)
            break
        except ConnectionRefusedError:
            if not server.running or time.monotonic() > start + START_TIMEOUT:
                raise BenchError(f"no start: {server.log()}") from None
            time.sleep(START_POLL)
    with connection:
        # A server that loads a module may accept connections, and answers later.
        connection.sendall(b"PING\r\n")
        answer = connection.recv(64)
    seconds = time.monotonic() - start
    if not answer.startswith(b"+PONG"):
        raise BenchError(f"{answer!r} instead of an answer: {server.log()}")
    return seconds


# ---- /proc -----------------------------------------------------------------


def thread_ns(pid: int, thread: int | None = None) -> int:
    """Return the CPU nanoseconds of a thread, by default of the main thread. Raises BenchError."""
    path = pathlib.Path(f"/proc/{pid}/task/{thread or pid}/schedstat")
    try:
        return int(path.read_text().split()[0])
    except FileNotFoundError:
        raise BenchError(f"{path} is missing: the kernel was built without it") from None


def session_ns(pid: int) -> int:
    """Return the CPU nanoseconds of all processes of a session; each server is a session. The
    kernel counts them in ticks of 10 ms."""
    ticks = 0
    for path in pathlib.Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name of the program, in brackets, may have blanks.
            words = path.read_text().rpartition(")")[2].split()
            if int(words[3]) == pid:
                ticks += int(words[11]) + int(words[12])
    return ticks * (10**9 // os.sysconf("SC_CLK_TCK"))


@contextlib.contextmanager
def held(core: int) -> Iterator[None]:
    """Hold this thread, and what it starts in the `with`, to one core, as taskset does."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def waited_ns(pid: int) -> int:
    """Return the nanoseconds for which the main thread could run and had no processor."""
    return int(pathlib.Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[1])


def worker_thread(pid: int) -> int:
    """Return the id of the module's worker thread in a Redis. Raises BenchError."""
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == WORKER:
            return int(task.name)
    raise BenchError(f"process {pid} has no thread with the name {WORKER}")


def resident(pid: int | str) -> int:
    """Return the resident memory of a process, in bytes. Raises BenchError."""
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise BenchError(f"process {pid} has ended")


def machine_busy(seconds: float = 0.5) -> float:
    """Return how busy all cores are, in per cent. While no benchmark runs, that is the load of
    other programs."""

    def jiffies() -> tuple[int, int]:
        words = pathlib.Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        numbers = [int(word) for word in words]
        return sum(numbers), sum(numbers) - numbers[3] - numbers[4]  # idle, and waiting for I/O

    all_before, busy_before = jiffies()
    time.sleep(seconds)
    all_after, busy_after = jiffies()
    return (busy_after - busy_before) / max(1, all_after - all_before) * 100


# ---- load ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Flood:
    """The result of as many SETs as Redis can take: `rate` per second, times in milliseconds."""

    rate: float
    p99: float
    slowest: float


def flood(port: int, requests: int, keys: int = 100_000, clients: int = CLIENTS) -> Flood:
    """Run redis-benchmark with keys chosen at random among so many. Raises BenchError."""
    command = [
        "redis-benchmark", "-p", str(port), "-t", "set", "-n", str(requests), "-r", str(keys),
        "-P", str(PIPELINE), "-c", str(clients), "--csv",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True)
    rows = list(csv.DictReader(done.stdout.splitlines()))
    if done.returncode or len(rows) != 1:
        raise BenchError(f"redis-benchmark failed: {done.stdout}{done.stderr}")
    (row,) = rows
    return Flood(float(row["rps"]), float(row["p99_latency_ms"]), float(row["max_latency_ms"]))


@functools.lru_cache(1)
def _commands(requests: int, length: int) -> bytes:
    head = b"*3\r\n$3\r\nSET\r\n$%d\r\nkey:" % length
    tail = b"k" * (length - 16) + b"\r\n$3\r\nxxx\r\n"
    return b"".join(
        b"%b%012d%b" % (head, number * 7919 % 100_000, tail) for number in range(requests)
    )


def pipeline(port: int, requests: int, length: int = 16) -> None:
    """Send so many SETs at once on one connection: so little else varies from run to run.
    `length`: bytes of a key."""
    with socket.create_connection(("127.0.0.1", port)) as link:
        sender = threading.Thread(target=link.sendall, args=(_commands(requests, length),))
        sender.start()
        missing = requests * len(b"+OK\r\n")
        while missing:
            missing -= len(link.recv(1 << 20))
        sender.join()


# The function of Redis that tells all subscribers of an event.
NOTIFY = ("notifyKeyspaceEvent",)
# Those that read and carry out commands, and what precedes the sleep of the event loop. The rest of
# the main thread is Redis' housekeeping.
WORK = ("readQueryFromClient", "beforeSleep")


def instructions(
    server: RedisServer,
    sets: int,
    functions: Sequence[str] = NOTIFY,
    ready: Callable[[redis.Redis], bool] = lambda client: True,
) -> float:
    """Return the machine instructions of functions of Redis' main thread for a SET: a figure
    without noise. `server` is not started yet; it runs under valgrind. The SETs begin when it is
    `ready`. Raises BenchError."""
    counted = server.folder / "callgrind"
    words = [
        "valgrind", "--tool=callgrind", *(f"--toggle-collect={name}" for name in functions),
        f"--callgrind-out-file={counted}", *server.command(),
    ]  # fmt: skip
    server.command = lambda: words  # type: ignore[method-assign]
    with server, server.client() as client:
        wait_for(lambda: ready(client), 60)
        flood(server.port, sets, keys=1)  # a new key would cause an event of its own
    found = re.search(r"^summary: ([0-9]+)", counted.read_text(), re.MULTILINE)
    if found is None:
        raise BenchError(f"valgrind has counted nothing: {server.log()}")
    return int(found[1]) / sets


class Load:
    """A run of load.c, which SETs at a fixed rate. Used in a `with`, until its end or `stop`.

    After the end, `intervals` has rows of (ms since the start, replies, p50, p99, largest)
    with times in microseconds, and `whole` has the last line. `first`: it gets a processor before
    all other programs, as packets from another machine do. Most likely failure: replies
    are missing at the end (BenchError), or the user may not put a program first
    (PermissionError).
    """

    def __init__(
        self, port: int, rate: int, seconds: float = 0, key: str = "number", first: bool = False
    ) -> None:
        self.intervals: list[list[float]] = []
        self.whole: dict[str, Any] = {}
        # Not a pipe: it would be read at the end only, and may be full before.
        self._output = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed in __exit__
        self._process = subprocess.Popen(
            [BUILT / "load", str(port), str(rate), str(seconds), key],
            stdout=self._output,
            stderr=subprocess.PIPE,
            text=True,
        )
        if first:
            os.sched_setscheduler(self._process.pid, os.SCHED_FIFO, os.sched_param(1))

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()

    def stop(self) -> None:
        """Stop it. Raises BenchError."""
        self._process.send_signal(signal.SIGTERM)
        self.wait()

    def wait(self) -> None:
        """Wait for its end. Raises BenchError."""
        _, errors = self._process.communicate()
        if self._process.returncode:
            raise BenchError(errors or "load: commands were not answered")
        self._output.seek(0)
        *lines, last = self._output.readlines()
        self.intervals = [[float(word) for word in line.split()] for line in lines]
        self.whole = json.loads(last)


def typical(intervals: Sequence[Sequence[float]]) -> float:
    """Return the median of the 99th percentiles of all whole intervals of 100 ms (see load.c): what
    other programs do for a moment does not count."""
    inner = intervals[1:-1] or intervals
    return statistics.median(p99 for _, _, _, p99, _ in inner)


def steady(port: int, rate: int, seconds: float, key: str = "number") -> dict[str, Any]:
    """SET at a fixed rate for so long. Return the last line of load.c. Raises BenchError."""
    with Load(port, rate, seconds, key) as load:
        load.wait()
        return load.whole


@contextlib.contextmanager
def sink() -> Iterator[int]:
    """A running sink.c, until the end of the `with`. Yields its port."""
    with subprocess.Popen(
        [BUILT / "sink"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield int(process.stdout.readline())
        finally:
            process.kill()


def ratios(ours: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return the ratio of each round."""
    return [a / b for a, b in zip(ours, others, strict=True)]
