"""The nice value of the worker thread, and filters on system calls."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading

import pytest

from keyspace_amqp.demo.servers import wait_for
from keyspace_amqp.worker import nice
from tests.fix_servers import StartRedis
from tests.servers import REDIS, VALKEY
from tests.system.test_load import UNDER_A_FILTER

# Forbids swapoff, and so nothing that matters here.
UNDER_ANOTHER_FILTER = UNDER_A_FILTER.replace(
    '"x86_64": 141, "aarch64": 140', '"x86_64": 168, "aarch64": 225'
)
SET_NICE = """
from keyspace_amqp.worker import nice
try:
    nice.set_nice(NICE)
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
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        name, _, fields = (task / "stat").read_text().partition("(")[2].rpartition(")")
        if name == "keyspace-amqp":
            return int(fields.split()[16])
    raise AssertionError("no worker")


def test_a_thread_is_nice_alone() -> None:
    before = os.getpriority(os.PRIO_PROCESS, 0)
    found = []

    def run() -> None:
        nice.set_nice(before + 1)
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
    assert nice._survives_trial()
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    assert not nice._survives_trial()


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
