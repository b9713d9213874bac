"""The server's malloc is the module's too, whatever it is.

A server may have a shared malloc of its own: Debian's servers are linked with libjemalloc, and
LD_PRELOAD puts one before any server. All code in the process must use the same one: memory that
one takes and another gives back ends the process. Valkey opens modules in a way (RTLD_DEEPBIND)
that makes code in one process use two of them; shim/loader.c says how.
"""

from __future__ import annotations

import ctypes
import os
import pathlib
import re

import pytest

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from tests.fix_faults import delivered
from tests.fix_servers import (
    CORE,
    EVERY_FAMILY,
    MODULE,
    Mailbox,
    StartRedis,
    arguments_for,
    list_length,
    settled,
)
from tests.servers import ALL, kind_of

# Debian's redis-server depends on it.
JEMALLOC = "libjemalloc.so.2"
MALLOC = {"malloc", "calloc", "realloc", "free"}
# A line of the dynamic linker's report: who uses a symbol, and whose.
_BINDING = re.compile(r"binding file (.+) \[0\] to (.+) \[0\]: normal symbol `(\w+)'")


def with_environment(server: RedisServer, **variables: str) -> None:
    """Starts a server with these variables added to its environment."""
    server.environment = lambda: {**os.environ, **variables}  # type: ignore[method-assign]
    server.start()


def libraries(server: RedisServer) -> set[str]:
    """The files that a server has opened as code."""
    maps = pathlib.Path(f"/proc/{server.pid}/maps").read_text()
    return {os.path.realpath(path) for path in re.findall(r"r-xp .* (/.+)", maps)}


@pytest.mark.parametrize("family", [name for name in ALL if kind_of(name) == "valkey"])
def test_a_malloc_of_the_server(
    family: str, own_broker: RabbitServer, start_redis: StartRedis
) -> None:
    """Events, an outage, another load, and a clean end with a shared jemalloc."""
    mailbox = Mailbox(own_broker).keep()
    arguments = arguments_for(own_broker, mailbox, "$g")
    server = start_redis(family, arguments, start=False)
    with_environment(server, LD_PRELOAD=JEMALLOC)
    assert JEMALLOC in pathlib.Path(f"/proc/{server.pid}/maps").read_text()
    client = server.client()
    keys: list[bytes] = []

    def write(count: int) -> None:
        with client.pipeline(transaction=False) as pipeline:
            for _ in range(count):
                keys.append(b"%d-" % len(keys) + b"k" * (len(keys) % 1000))
                pipeline.set(keys[-1], "value")
            pipeline.execute()

    write(1000)
    settled(client, confirmed=1000, in_flight=0)
    own_broker.kill()
    write(1000)
    wait_for(lambda: list_length(client) == 1000, 30)
    for name, value in (("masks", "^.*k$ ^ ALL"), ("format", "json"), ("format", "text")):
        client.config_set(f"keyspaceamqp.{name}", value)
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    client.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
    write(1000)
    own_broker.start()
    settled(client, 60, confirmed=2000, fallback_length=0, in_flight=0)
    delivered(client, mailbox, keys)


@EVERY_FAMILY
@pytest.mark.parametrize("preload", ["", JEMALLOC], ids=["libc", "jemalloc"])
def test_whose_symbols_are_used(
    family: str, preload: str, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """All files in the process use one malloc, as the dynamic linker reports. No file that comes
    with the module uses one of the server's thousands of symbols instead of its own."""
    bare = start_redis(family, None, start=False)
    with_environment(bare, LD_PRELOAD=preload)
    # The linker names the program by its first word, which the server would replace by a title.
    server = start_redis(family, [], ["set-proc-title no"], start=False)
    with_environment(
        server,
        LD_PRELOAD=preload,
        LD_BIND_NOW="1",
        LD_DEBUG="bindings",
        LD_DEBUG_OUTPUT=str(tmp_path / "report"),
    )
    text = (tmp_path / f"report.{server.pid}").read_text(errors="replace")
    used = _BINDING.findall(text)
    owners = {owner for _, owner, name in used if name in MALLOC and owner != server.binary}
    assert len(owners) == 1, owners
    assert not preload or preload in owners.pop()
    added = libraries(server) - libraries(bare)
    used = [row for row in used if os.path.realpath(row[0]) in added]
    for name in (str(MODULE), str(CORE), "libpython", "_cffi_backend"):
        assert any(name in user for user, _, _ in used), name
    # A program may stand for variables and functions of libc: then all files use them by its copy.
    libc = ctypes.CDLL("libc.so.6")
    own = [row for row in used if row[1] == server.binary]
    assert [row for row in own if not hasattr(libc, row[2])] == []
