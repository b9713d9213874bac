"""What is imported at load, and what later."""

from __future__ import annotations

import pathlib
import subprocess
import sys

import pytest

from keyspace_amqp.demo.servers import RabbitServer, wait_for
from tests.fix_faults import start_faulty
from tests.fix_servers import (
    ROOT,
    Mailbox,
    StartRedis,
    arguments_for,
    settled,
)
from tests.fix_shim import MODULE
from tests.servers import REDIS

# Imports what the embedded interpreter imports at load, in its order, and prints all of it.
PROGRAM = f"""
import importlib.machinery, importlib.util, sys
before = set(sys.modules)
import _cffi_backend
path = sys.argv[1]
loader = importlib.machinery.ExtensionFileLoader("_keyspace_amqp", path)
core = importlib.util.module_from_spec(importlib.util.spec_from_loader("_keyspace_amqp", loader))
loader.exec_module(core)
sys.modules["_keyspace_amqp"] = core
sys.path.append({str(ROOT)!r})
import keyspace_amqp.worker.loop
print(*set(sys.modules) - before)
"""
# Modules of the standard library, and pika, that take long to import. They are imported later, or
# not at all.
SLOW = {
    "_hashlib", "_ssl", "ast", "asyncio", "concurrent.futures", "dataclasses", "datetime", "dis",
    "hashlib", "importlib.metadata", "inspect", "ipaddress", "locale", "logging", "pathlib", "pika",
    "random", "secrets", "selectors", "socket", "ssl", "string", "subprocess", "tempfile",
    "textwrap", "tokenize", "traceback", "urllib.parse", "uuid",
}  # fmt: skip
# More would be a new library, or one that imports many others.
MODULES = 140


def test_a_load_imports_little() -> None:
    """Each millisecond of it is one in which the server does not start."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", PROGRAM, MODULE], check=True, capture_output=True, text=True
    )
    imported = set(done.stdout.split())
    assert "keyspace_amqp.publisher.publisher" in imported
    assert imported & SLOW == set()
    assert len(imported) <= MODULES


# Appended to worker/loop.py: prints what is imported after the modules that follow a load.
WATCH = """

import sys as _sys
_prepare = LateBroker.prepare

def _watch(event, arguments):
    if event == "import":
        print("imported late:", arguments[0])

def _prepared(self):
    _prepare(self)
    print("all is imported")
    _sys.addaudithook(_watch)

LateBroker.prepare = _prepared
"""


def test_nothing_is_imported_later(
    own_broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """An upgrade may have replaced the files by then."""
    mailbox = Mailbox(own_broker).keep()
    arguments = arguments_for(own_broker, mailbox, "A")
    server = start_faulty(start_redis, REDIS, tmp_path, WATCH, arguments)
    client = server.client()
    wait_for(lambda: "all is imported" in server.log())
    for name, value in (
        ("host", "localhost"), ("value", 100), ("headers", "on"), ("format", "json"),
        ("deduplication-header", "on"), ("format", "cloudevents"),
        ("format", "cloudevents-structured"), ("routing-key", "{key:*}"),
        ("databases", "0-3"), ("fallback-size", 1000), ("masks", "^a ^k"), ("worker-nice", 7),
        ("tls-ca-file", "/of/no/meaning"), ("url", f"amqp://guest@localhost:{own_broker.port}"),
    ):  # fmt: skip
        client.config_set(f"keyspaceamqp.{name}", value)
        client.set("k" * 300, name)
        client.set(b"a\xff", name)
        settled(client, in_flight=0, queue_length=0)
    for words in (
        "KEYMASK LIST", "KEYMASK TEST a", "CONFIG GET *", "CONFIG SET app-id b", "FALLBACK LEN",
        "FALLBACK PEEK", "FALLBACK DRAIN", "STATS", "HELP", "SNAPSHOT START",
        "SNAPSHOT STOP", "STATS RESET",
    ):  # fmt: skip
        client.execute_command(*f"KEYSPACEAMQP.{words}".split())
    with pytest.raises(Exception, match="unknown"):
        client.execute_command("KEYSPACEAMQP.CONFIG", "SET", "unknown", "1")
    settled(client, fallback_length=0, queue_length=0)
    own_broker.kill()
    client.set("a", 1)
    settled(client, fallback_length=1)
    client.config_set("keyspaceamqp.fallback-size", -1)
    client.set("a", 2)
    client.save()
    server.stop()
    late = {line for line in server.log().splitlines() if "imported late" in line}
    assert late == set()
