"""The end of the process while the worker's thread ends.

What libraries keep for a thread is freed at the end of the thread; and by OpenSSL also at the end
of the process, without a lock. Both at once damage the memory of malloc.
"""

from __future__ import annotations

import pathlib
import subprocess

import pytest

from keyspace_amqp.demo.servers import free_port
from tests.fix_servers import ROOT, StartRedis, arguments_for, settled
from tests.servers import NEW_REDIS, NEW_VALKEY, REDIS


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A library for LD_PRELOAD: see exits.c."""
    library = tmp_path_factory.mktemp("exits") / "exits.so"
    source = ROOT / "tests" / "system" / "exits.c"
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-o", library, source], check=True)
    return library


@pytest.mark.parametrize("family", [REDIS, NEW_REDIS, NEW_VALKEY])
@pytest.mark.parametrize("how", ["SIGTERM", "SHUTDOWN"])
def test_the_process_ends_after_the_thread(
    family: str,
    how: str,
    exits: pathlib.Path,
    start_redis: StartRedis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(exits))
    server = start_redis(family, arguments_for(free_port(), "q"))
    monkeypatch.delenv("LD_PRELOAD")
    with server.client() as client:
        client.set("key", 1)
        settled(client, fallback_length=1)
        if how == "SHUTDOWN":
            client.shutdown(nosave=True)
    assert server.stop() == 0
    assert "a thread ends before the process" in server.log()
    assert "a thread ends with the process" not in server.log()
