"""The nice value and the time slice of the worker thread, and filters on system calls."""

from __future__ import annotations

import ctypes
import os
import pathlib
import struct
import subprocess
import sys
import threading

import pytest

from keyspace_amqp.demo.servers import wait_for
from keyspace_amqp.worker import nice
from tests.fix_servers import StartRedis
from tests.fix_shim import load
from tests.servers import REDIS, VALKEY
from tests.system.test_load import UNDER_A_FILTER

# Forbids swapoff, and so nothing that matters here.
UNDER_ANOTHER_FILTER = UNDER_A_FILTER.replace(
    '"x86_64": 141, "aarch64": 140', '"x86_64": 168, "aarch64": 225'
)
# Forbids sched_setattr.
UNDER_A_FILTER_OF_SLICES = UNDER_A_FILTER.replace(
    '"x86_64": 141, "aarch64": 140', '"x86_64": 314, "aarch64": 274'
)
SET_NICE = """
from keyspace_amqp.worker import nice
from tests.fix_shim import load
class Slices:
    slice_call = load().lib.shim_slice_call()
    set_slice = load().lib.shim_set_slice
try:
    nice.set_nice(NICE, Slices)
except OSError as error:
    print(error)
"""


def set_under(filter: str, value: int) -> str:
    """Return the output of a process that sets its nice value under a filter."""
    done = subprocess.run(
        [sys.executable, "-c", filter, sys.executable, "-c", SET_NICE.replace("NICE", str(value))],
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def nice_of_worker(pid: int) -> int:
    return os.getpriority(os.PRIO_PROCESS, worker_of(pid))


class Slices:
    """Remembers what was set."""

    slice_call = load().lib.shim_slice_call()

    def __init__(self) -> None:
        self.heard: list[tuple[int, int]] = []

    def set_slice(self, nice: int, nanoseconds: int) -> int:
        self.heard.append((nice, nanoseconds))
        return 0


def slice_of(thread: int) -> int:
    """Return the time slice of a thread in nanoseconds; 0 if this Linux has none for each."""
    attr = ctypes.create_string_buffer(struct.calcsize("IIQiIQQQ"))
    call = {"x86_64": 315, "aarch64": 275}[os.uname().machine]  # sched_getattr
    assert ctypes.CDLL(None).syscall(call, thread, attr, len(attr), 0) == 0
    return int(struct.unpack("IIQiIQQQ", attr.raw)[5])


def worker_of(pid: int) -> int:
    """Return the id of the worker thread of a server."""
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        if (task / "comm").read_text().strip() == "keyspace-amqp":
            return int(task.name)
    raise AssertionError("no worker")


def test_a_thread_is_nice_alone() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    found = []

    def run() -> None:
        nice.set_nice(before + 1, Slices())
        found.append(os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [before + 1]
    assert os.getpriority(os.PRIO_PROCESS, os.getpid()) == before


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("Name:\tredis-server\nSeccomp:\t0\nSeccomp_filters:\t0\n", False),
        ("Name:\tredis-server\nSeccomp:\t2\nSeccomp_filters:\t1\n", True),
        ("Name:\tSeccomp:\t2\nThreads:\t4\n", False),  # a kernel without seccomp
    ],
)
def test_a_filter_is_seen(status: str, found: bool) -> None:
    assert nice._has_filter(status) is found


def test_under_a_filter() -> None:
    now = os.getpriority(os.PRIO_PROCESS, 0)
    assert set_under(UNDER_A_FILTER, now + 5) == "a filter on system calls forbids it"
    assert set_under(UNDER_A_FILTER, now) == ""  # nothing to set


def test_under_a_filter_that_allows_it() -> None:
    assert set_under(UNDER_ANOTHER_FILTER, os.getpriority(os.PRIO_PROCESS, 0) + 5) == ""


def test_a_trial_that_cannot_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    assert nice._try(Slices.slice_call) == b"ns"
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert nice._try(Slices.slice_call) == b""


def test_the_slice_is_long_for_a_nice_worker_only() -> None:
    now, slices = os.getpriority(os.PRIO_PROCESS, 0), Slices()
    nice.set_nice(now, slices)
    assert slices.heard == [(now, 100_000_000 if now else 0)]


def test_the_slice_of_the_worker(start_redis: StartRedis) -> None:
    """It is longer than that of Redis' main thread, which so gets the processor at once; with
    `worker-nice` 0 both are equal."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    server = start_redis(options=[f"keyspaceamqp.worker-nice {ours + 5}"])
    worker, usual = worker_of(server.pid), slice_of(server.pid)
    if usual == 0:
        pytest.skip("Linux before 6.12 has no slice for each thread")
    assert slice_of(worker) == 100_000_000 > usual
    assert nice_of_worker(server.pid) == ours + 5
    server.client().config_set("keyspaceamqp.worker-nice", ours + 7)
    wait_for(lambda: nice_of_worker(server.pid) == ours + 7)
    assert slice_of(worker) == 100_000_000


def test_a_server_whose_workers_are_equal(start_redis: StartRedis) -> None:
    server = start_redis(options=["keyspaceamqp.worker-nice 0"])
    assert slice_of(worker_of(server.pid)) == slice_of(server.pid)


def test_under_a_filter_of_slices(start_redis: StartRedis) -> None:
    """The nice value is set all the same."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    server = start_redis(options=[f"keyspaceamqp.worker-nice {ours + 5}"], start=False)
    command = [sys.executable, "-c", UNDER_A_FILTER_OF_SLICES, *server.command()]
    server.command = lambda: command  # type: ignore[method-assign]
    server.start()
    assert "could not be set" not in server.log()
    assert nice_of_worker(server.pid) == ours + 5
    assert slice_of(worker_of(server.pid)) == slice_of(server.pid)


@pytest.mark.parametrize("family", [REDIS, VALKEY])
def test_the_trial_is_made_at_load(family: str, start_redis: StartRedis) -> None:
    """At a later time the server might take the child of a trial for one of its own."""
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    server = start_redis(family, options=[f"keyspaceamqp.worker-nice {ours}"], start=False)
    command = [sys.executable, "-c", UNDER_A_FILTER, *server.command()]
    server.command = lambda: command  # type: ignore[method-assign]
    server.start()
    assert "could not be set" not in server.log()  # there was nothing to set
    client = server.client()
    client.config_set(
        "rdb-key-save-delay", 20_000
    )  # microseconds: the child of the save runs meanwhile
    client.mset({f"key:{n}": n for n in range(50)})
    client.bgsave()
    client.config_set("keyspaceamqp.worker-nice", ours + 7)
    wait_for(lambda: f"worker-nice {ours + 7} could not be set: a filter" in server.log())
    wait_for(lambda: client.info("persistence")["rdb_bgsave_in_progress"] == 0)
    assert client.info("persistence")["rdb_last_bgsave_status"] == "ok"
    assert "unmatched pid" not in server.log()


def test_a_filter_that_allows_it(start_redis: StartRedis) -> None:
    server = start_redis(start=False)
    command = [sys.executable, "-c", UNDER_ANOTHER_FILTER, *server.command()]
    server.command = lambda: command  # type: ignore[method-assign]
    server.start()
    assert nice_of_worker(server.pid) == 5
    assert "could not be set" not in server.log()
    assert "unmatched pid" not in server.log()
