"""Loading, parameters, and what happens when something is wrong at load."""

from __future__ import annotations

import os
import pathlib
import re
import secrets
import shutil
import subprocess
import sys
import venv
from typing import Any

import pytest
import redis

from keyspace_amqp import __version__
from keyspace_amqp.demo.servers import RedisServer, ServerError
from keyspace_amqp.tables.parameters import PARAMETERS
from tests.fix_servers import (
    CORE,
    EVERY_FAMILY,
    MODULE,
    Mailbox,
    StartRedis,
    arguments_for,
    build_module,
    copy_sources,
    handler_copy,
    installed_copy,
    settled,
    site_packages,
)
from tests.servers import at_least, old_program, program, version_of

DEFAULTS = {parameter.name: parameter.default for parameter in PARAMETERS}
GIVEN = ["$x", "localhost", "1234", "user", "secret", "20", "my-exchange", "my.key", "2", "0"]


def parameters(client: redis.Redis) -> dict[str, str]:
    found: dict[str, str] = client.config_get("keyspaceamqp.*")
    return {
        _text(name).removeprefix("keyspaceamqp."): _text(value) for name, value in found.items()
    }


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def loaded(client: redis.Redis) -> bool:
    return b"keyspaceamqp" in [module[b"name"] for module in client.module_list()]


@EVERY_FAMILY
def test_defaults(family: str, start_redis: StartRedis) -> None:
    server = start_redis(family)
    assert parameters(server.client()) == DEFAULTS
    assert __version__ in server.log()
    assert server.client().info("keyspaceamqp")["keyspaceamqp_version"] == __version__


@pytest.mark.parametrize("count", range(len(GIVEN) + 1))
def test_any_tail_of_the_arguments_may_be_left_out(count: int, start_redis: StartRedis) -> None:
    server = start_redis(arguments=GIVEN[:count])
    names = [parameter.name for parameter in PARAMETERS]
    expected = DEFAULTS | dict(zip(names, GIVEN[:count], strict=False))
    assert parameters(server.client()) == expected


def test_masks_are_the_rest_of_the_arguments(family: str, start_redis: StartRedis) -> None:
    server = start_redis(family, [*GIVEN, "^a b$", "c\\d", "^x.*y$"])
    client = server.client()
    assert client.execute_command("KEYSPACEAMQP.KEYMASK", "LIST") == [b"^a b$", b"c\\d", b"^x.*y$"]
    assert parameters(client)["masks"] == r"^a\x20b$ c\\d ^x.*y$"


@EVERY_FAMILY
def test_every_way_to_load(family: str, start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    server = start_redis(family, arguments=None)
    client = server.client()
    client.execute_command("MODULE", "LOAD", str(MODULE), "g")
    assert parameters(client)["events"] == "g"
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    client.execute_command(
        "MODULE",
        "LOADEX",
        str(MODULE),
        "CONFIG",
        "keyspaceamqp.port",
        "1000",
        "CONFIG",
        "keyspaceamqp.masks",
        "^a ^b",
        "ARGS",
        "l",
        "example.org",
        "2000",
    )
    found = parameters(client)
    # A named value wins over a positional one.
    assert (found["events"], found["host"], found["port"]) == ("l", "example.org", "1000")
    assert client.execute_command("KEYSPACEAMQP.KEYMASK", "LIST") == [b"^a", b"^b"]
    with pytest.raises(redis.exceptions.ResponseError):
        client.execute_command("MODULE", "LOAD", str(MODULE))  # loaded twice
    command_line = RedisServer(tmp_path / "command-line", program(family))
    command_line.write_config()
    arguments = [*command_line.command(), "--loadmodule", str(MODULE), "s"]
    command_line.command = lambda: arguments  # type: ignore[method-assign]
    with command_line:
        assert parameters(command_line.client())["events"] == "s"


def test_named_parameters_in_the_configuration_file(family: str, start_redis: StartRedis) -> None:
    server = start_redis(
        family, ["g", "a-host"], ["keyspaceamqp.host other-host", 'keyspaceamqp.masks "^a  ^b"']
    )
    client = server.client()
    found = parameters(client)
    assert (found["events"], found["host"]) == ("g", "other-host")
    assert client.execute_command("KEYSPACEAMQP.KEYMASK", "LIST") == [b"^a", b"^b"]


@EVERY_FAMILY
def test_rewrite_survives_a_restart(family: str, start_redis: StartRedis) -> None:
    server = start_redis(family, GIVEN)
    client = server.client()
    changed = {
        "events": "A",
        "host": "h",
        "port": "1",
        "username": "",
        "password": 'p w"\\x',
        "heartbeat": "0",
        "exchange": "",
        "routing-key": "k k",
        "delivery-mode": "1",
        "fallback-size": "-5",
        "masks": r"^\x20a ALL",
        "queue-limit": "2000000",
        "worker-nice": "3",
        "url": "amqps://u:p%20w@h,[::1]:1/v?heartbeat=1&verify=verify_none",
        "vhost": "v h",
        "password-file": "/a b",
        "auth-mechanism": "external",
        "tls": "on",
        "tls-ca-file": "/ca",
        "tls-cert-file": "/cert",
        "tls-key-file": "/key",
        "tls-server-name": "name",
        "tls-verify": "off",
        "tcp-keepalive": "0",
        "node-name": "node 1",
        "format": "json",
        "headers": "on",
        "value": "100",
        "mandatory": "off",
        "app-id": "app",
        "message-type": "type",
        "priority": "3",
        "expiration": "1000",
        "deduplication-header": "on",
        "databases": "0,2-3",
        "confirm-timeout": "90",
        "fallback-memory": "7",
        "subkeys": "7",
        "outbox": "reply",
        "cloudevents-prefix": "cloudEvents_",
    }
    if version_of(program(family)) in ("8.1.0", "8.1.1"):
        # Valkey has this defect: docs/versions.md.
        changed |= {"password": "p w", "masks": "^a ALL"}
    for name, value in changed.items():
        client.config_set(f"keyspaceamqp.{name}", value)
    assert parameters(client) == changed
    # A value that is the table's default, but not what the arguments say.
    client.config_set("keyspaceamqp.port", 5672)
    client.config_rewrite()
    server.stop()
    server.start()
    assert parameters(server.client()) == changed | {"port": "5672"}


@pytest.mark.parametrize("parameter", PARAMETERS, ids=lambda parameter: parameter.name)
def test_every_parameter_can_be_set_while_it_runs(
    parameter: Any,
    broker: Any,
    mailbox: Mailbox,
    start_redis: StartRedis,
    tmp_path: pathlib.Path,
) -> None:
    (tmp_path / "password").write_text("guest\n")
    other = {
        "events": "$",
        "host": "localhost",
        "port": str(broker.port),
        "username": "guest",
        "password": "guest",
        "heartbeat": "5",
        "exchange": "amq.direct",
        "routing-key": mailbox.routing_key,
        "delivery-mode": "2",
        "fallback-size": "5",
        "masks": "^a",
        "queue-limit": "1048576",
        "worker-nice": "19",
        "url": f"amqp://guest:guest@localhost:{broker.port}/%2f?heartbeat=7",
        "vhost": "/",
        "password-file": str(tmp_path / "password"),
        "auth-mechanism": "plain",
        "tls": "off",
        "tls-ca-file": "/of/no/meaning/without/tls",
        "tls-cert-file": "/of/no/meaning/without/tls",
        "tls-key-file": "/of/no/meaning/without/tls",
        "tls-server-name": "of.no.meaning.example",
        "tls-verify": "off",
        "tcp-keepalive": "1",
        "node-name": "one",
        "format": "text",
        "headers": "on",
        "value": "10",
        "mandatory": "off",
        "app-id": "app",
        "message-type": "event",
        "priority": "9",
        "expiration": "60000",
        "deduplication-header": "on",
        "databases": "0",
        "confirm-timeout": "90",
        "fallback-memory": "0",
        "subkeys": "10000",
        "outbox": "reply",
        "cloudevents-prefix": "ce-",
    }
    server = start_redis(arguments=arguments_for(broker, mailbox))
    client = server.client()
    client.set("a", 1)
    mailbox.receive(1)
    client.config_set(f"keyspaceamqp.{parameter.name}", other[parameter.name])
    assert parameters(client)[parameter.name] == other[parameter.name]
    client.set("a", 1)
    assert mailbox.receive(1)[0].event == (0, b"set", b"a")


WRONG = [
    ("events", "xq", "letter"),
    ("events", "", "letters"),
    ("host", "", "names or addresses"),
    ("host", "a:0", "names or addresses"),
    ("url", "http://h", "amqp:// or amqps://"),
    ("tls", "yes", "on or off"),
    ("auth-mechanism", "PLAIN", "plain or external"),
    ("format", "xml", "text, json, cloudevents or cloudevents-structured"),
    ("routing-key", "{keys}", "{key:1}"),
    ("priority", "256", "0 to 255"),
    ("expiration", "1s", "milliseconds"),
    ("databases", "0-", "0,2,8-15"),
    ("value", "1048577", "0 (off) to 1048576"),
    ("port", "0", "1 to 65535"),
    ("port", "65536", "1 to 65535"),
    ("port", "5672x", "1 to 65535"),
    ("port", "", "1 to 65535"),
    ("heartbeat", "-1", "0 (off) to 65535"),
    ("exchange", "e" * 256, "255"),
    ("routing-key", "k" * 256, "255"),
    ("delivery-mode", "3", "1 "),
    ("fallback-size", "many", "whole number"),
    ("fallback-size", "9223372036854775808", "whole number"),
    ("masks", "a\\b", "\\\\"),
    ("queue-limit", "1", "1048576"),
    ("worker-nice", "20", "0 to 19"),
    ("fallback-memory", "101", "0 to 100"),
    ("subkeys", "10001", "10000"),
    ("outbox", "on", "off, reply or atomic"),
    ("cloudevents-prefix", "cloudevents:", "cloudEvents:, cloudEvents_ or ce-"),
]


@pytest.mark.parametrize(("name", "value", "accepted"), WRONG)
def test_a_wrong_value_is_refused(
    name: str, value: str, accepted: str, start_redis: StartRedis
) -> None:
    """By CONFIG SET and by the module's command, with the old values kept; and at load."""
    server = start_redis()
    client = server.client()
    before = parameters(client)
    for command in (
        ["CONFIG", "SET", "keyspaceamqp.username", "changed", f"keyspaceamqp.{name}", value],
        ["KEYSPACEAMQP.CONFIG", "SET", "username", "changed", name, value],
    ):
        with pytest.raises(redis.exceptions.ResponseError) as refused:
            client.execute_command(*command)
        text = str(refused.value)
        assert name in text
        assert (value[:60] in text) is (name != "url")
        assert accepted in text
        assert parameters(client) == before
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    with pytest.raises(redis.exceptions.ResponseError):
        client.execute_command(
            "MODULE", "LOADEX", str(MODULE), "CONFIG", f"keyspaceamqp.{name}", value
        )
    assert not loaded(client)
    assert f"{name}: " in server.log()
    position = next(parameter.position for parameter in PARAMETERS if parameter.name == name)
    if position is not None and name != "masks":
        arguments = [parameter.default for parameter in PARAMETERS][: position - 1]
        with pytest.raises(redis.exceptions.ResponseError):
            client.execute_command("MODULE", "LOAD", str(MODULE), *arguments, value)
        assert f"argument {position}, {name}: " in server.log()
        assert not loaded(client)
    # The failed load has left nothing behind: the module can be loaded now.
    client.execute_command("MODULE", "LOAD", str(MODULE))
    assert parameters(client) == DEFAULTS


@EVERY_FAMILY
def test_a_mode_of_the_outbox_needs_a_newer_server(
    family: str, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """Elsewhere `atomic` is refused, however it is given, and the error says what to use."""
    server = start_redis(family)
    client = server.client()
    mode = ("keyspaceamqp.outbox", "atomic")
    other = RedisServer(tmp_path / "file", program(family), [str(MODULE)], [" ".join(mode)])
    if at_least(family, redis="7.2", valkey="7.2"):
        client.config_set(*mode)
        settled(client, outbox="atomic")
        with other:
            settled(other.client(), outbox="atomic")
        return
    client.config_set("keyspaceamqp.outbox", "reply")
    refusal = "outbox: 'atomic' is not accepted: it needs Redis 7.2 .*; give reply or off"
    for command in (["CONFIG", "SET", *mode], ["KEYSPACEAMQP.CONFIG", "SET", "outbox", "atomic"]):
        with pytest.raises(redis.exceptions.ResponseError, match=refusal):
            client.execute_command(*command)
    settled(client, outbox="reply")
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    with pytest.raises(redis.exceptions.ResponseError):
        client.execute_command("MODULE", "LOADEX", str(MODULE), "CONFIG", *mode)
    assert re.search(refusal, server.log())
    assert not loaded(client)
    client.execute_command("MODULE", "LOADEX", str(MODULE), "CONFIG", mode[0], "reply")
    settled(client, outbox="reply")
    with pytest.raises(ServerError):
        other.start()
    assert re.search(refusal, other.log())


def test_an_unknown_named_parameter(family: str, start_redis: StartRedis) -> None:
    client = start_redis(family, arguments=None).client()
    with pytest.raises(redis.exceptions.ResponseError):
        client.execute_command("MODULE", "LOADEX", str(MODULE), "CONFIG", "keyspaceamqp.no", "1")
    assert not loaded(client)
    client.execute_command("MODULE", "LOAD", str(MODULE))
    settled(client, state="idle")


def load_fails(server: RedisServer, path: pathlib.Path) -> str:
    """Loads a module, which must fail and leave the server up; returns the log."""
    client = server.client()
    with pytest.raises(redis.exceptions.ResponseError):
        client.execute_command("MODULE", "LOAD", str(path))
    assert client.ping()
    return server.log()


def test_a_server_that_is_too_old(start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    server = RedisServer(tmp_path / "old", old_program())
    server.config_path.write_text(f"port {server.port}\nbind 127.0.0.1\n")
    with server:
        log = load_fails(server, MODULE)
        assert "needs Redis 7.0 or later" in log


def test_packages_are_missing(family: str, start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """A virtual environment without the packages: the log says what to install."""
    server = start_redis(family, arguments=None)
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    path = installed_copy(environment)
    log = load_fails(server, path)
    assert "cannot import _cffi_backend" in log
    assert f"{environment}/bin/python" in log
    assert "-m pip install cffi" in log
    source = pathlib.Path(site_packages(pathlib.Path(sys.prefix)))
    for name in (p.name for p in source.glob("_cffi_backend*")):
        (site_packages(environment) / name).symlink_to(source / name)
    log = load_fails(server, path)
    assert f"{environment}/bin/python" in log
    assert "cannot import pika: No module named 'pika'. Check with: " in log
    assert "-m pip install pika" in log
    # Once they are there, the same process can load it.
    (site_packages(environment) / "pika").symlink_to(source / "pika")
    client = server.client()
    client.execute_command("MODULE", "LOAD", str(path))
    assert str(environment) in server.log()
    settled(client, state="idle")


def test_what_the_build_used_is_gone(start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """A module in a build folder depends on the sources and on the environment that it was built
    with. If one of them is gone, the log says which."""
    server = start_redis(arguments=None)
    environment, source = tmp_path / "environment", tmp_path / "source"
    venv.create(environment, symlinks=True)
    present = pathlib.Path(site_packages(pathlib.Path(sys.prefix)))
    for name in ("pika", "cffi", "pycparser", *(p.name for p in present.glob("_cffi_backend*"))):
        (site_packages(environment) / name).symlink_to(present / name)
    copy_sources(source)
    path = build_module(source, environment / "bin" / "python")
    shutil.move(source / "keyspace_amqp", tmp_path / "away")
    log = load_fails(server, path)
    assert f"the handler is missing: there is no {source}/keyspace_amqp/worker/loop.py" in log
    shutil.move(tmp_path / "away", source / "keyspace_amqp")
    shutil.move(environment, tmp_path / "away")
    log = load_fails(server, path)
    assert f"the Python environment is missing: {environment}/bin/python: No such file" in log
    shutil.move(tmp_path / "away", environment)
    client = server.client()
    client.execute_command("MODULE", "LOAD", str(path))
    settled(client, state="idle")


@pytest.mark.parametrize("present", [True, False], ids=["another-python", "no-python"])
def test_the_folder_was_copied_out_of_its_environment(
    present: bool, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """Away from its environment, another interpreter is used, which lacks the packages, or none is
    found. The log names the likely cause, and not only how to install packages."""
    server = start_redis(arguments=None)
    folder = tmp_path / "modules" / "keyspace_amqp"
    shutil.copytree(CORE.parent.parent / "keyspace_amqp", folder)
    shutil.copy(MODULE, folder)
    # As if built with another interpreter, on a machine where that one does not exist. Its path
    # takes the place of the real one in the file, so it must not be longer.
    room = len(sys.executable) - len("/tmp//bin/python")
    other = pathlib.Path("/tmp", secrets.token_hex(4)[:room])
    core = CORE.read_bytes()
    for python in (sys.executable, "/usr/bin/python{}.{}".format(*sys.version_info)):
        new = f"{other}/bin/python" if python == sys.executable else "/no"
        assert len(new) <= len(python)
        core = core.replace(python.encode() + b"\0", new.encode().ljust(len(python) + 1, b"\0"))
    (folder / CORE.name).write_bytes(core)
    other.mkdir()
    try:
        if present:
            venv.create(other, symlinks=True)
        log = load_fails(server, folder / MODULE.name)
    finally:
        shutil.rmtree(other)
    if present:
        assert f"{other}/bin/python cannot import _cffi_backend" in log
    else:
        assert f"the Python environment is missing: {other}/bin/python: No such file" in log
    assert f"Was {folder} copied out of its virtual environment?" in log
    assert "keyspace-amqp path prints its place" in log


def test_libpython_is_missing(start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    server = start_redis(arguments=None)
    path = pathlib.Path(shutil.copy(MODULE, tmp_path))
    name = "libpython{}.{}".format(*sys.version_info)
    library = CORE.read_bytes().replace(name.encode(), name.replace("python", "pythom").encode())
    (tmp_path / CORE.name).write_bytes(library)
    (line,) = (line for line in load_fails(server, path).splitlines() if "libpythom" in line)
    assert "keyspace-amqp not loaded: libpythom" in line
    assert "cannot open shared object file: No such file" in line
    assert f"It needs the {name} that it was built with" in line


def test_a_copy_without_the_core(
    family: str, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """One line of the log says which file is missing. It is looked for beside the real file only,
    and not in the folder of a link or where libraries are searched for."""
    server = start_redis(family, arguments=None, start=False)
    search = {**os.environ, "LD_LIBRARY_PATH": str(CORE.parent)}
    server.environment = lambda: search  # type: ignore[method-assign]
    server.start()
    (tmp_path / "copy").mkdir()
    path = pathlib.Path(shutil.copy(MODULE, tmp_path / "copy"))
    link = tmp_path / "link.so"
    link.symlink_to(path)
    (tmp_path / CORE.name).symlink_to(CORE)
    for loaded_path in (path, link):
        before = len(server.log())
        log = load_fails(server, loaded_path)[before:]
        (line,) = (line for line in log.splitlines() if CORE.name in line)
        assert f"keyspace-amqp not loaded: {path.with_name(CORE.name)}: cannot open" in line
        assert "keyspace-amqp path prints its place" in line
    server.client().execute_command("MODULE", "LOAD", str(MODULE))


def test_the_core_is_no_module(family: str, start_redis: StartRedis) -> None:
    """The core is refused, and leaves nothing in the process: libpython must not stay with the
    symbols that a server gives to a module."""
    server = start_redis(family, arguments=None)
    assert "OnLoad" in load_fails(server, CORE)
    maps = pathlib.Path(f"/proc/{server.pid}/maps")
    assert "libpython" not in maps.read_text()
    server.client().execute_command("MODULE", "LOAD", str(MODULE))
    assert "libpython" in maps.read_text()


def test_one_module_by_several_paths(
    family: str, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """A link is the same module; a copy of both files is another one, which needs a process of
    its own."""
    server = start_redis(family, arguments=None)
    client = server.client()
    link = tmp_path / "link.so"
    link.symlink_to(MODULE)
    for _ in range(2):
        client.execute_command("MODULE", "LOAD", str(link))
        assert "a module named keyspaceamqp is loaded already" in load_fails(server, MODULE)
        client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    copy = handler_copy(tmp_path / "copy")
    assert "another build of this module" in load_fails(server, copy)
    client.execute_command("MODULE", "LOAD", str(MODULE))
    settled(client, state="idle")


def test_an_error_in_the_handler(start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    server = start_redis(arguments=None)
    path = handler_copy(tmp_path / "environment")
    with (path.parent / "publisher" / "publisher.py").open("a") as file:
        file.write("\nraise RuntimeError('broken on purpose')\n")
    log = load_fails(server, path)
    assert "broken on purpose" in log


# Ends the process at setpriority, as the unit of Debian's redis-server has it.
UNDER_A_FILTER = """
import ctypes, os, struct, sys
number = {"x86_64": 141, "aarch64": 140}[os.uname().machine]
program = b"".join(struct.pack("HBBI", *line) for line in [
    (0x20, 0, 0, 0),           # load the number of the system call
    (0x15, 0, 1, number),      # is it setpriority?
    (0x06, 0, 0, 0x80000000),  # yes: kill the process
    (0x06, 0, 0, 0x7FFF0000),  # no: allow
])
buffer = ctypes.create_string_buffer(program)
filter = struct.pack("HxxxxxxQ", 4, ctypes.addressof(buffer))
libc = ctypes.CDLL(None)
assert libc.prctl(38, 1, 0, 0, 0) == 0      # no new privileges
assert libc.prctl(22, 2, filter) == 0       # seccomp
os.execvp(sys.argv[1], sys.argv[1:])
"""


def test_a_filter_on_system_calls(
    family: str, broker: Any, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    other = os.getpriority(os.PRIO_PROCESS, 0) + 1
    options = [f"keyspaceamqp.worker-nice {other}"]
    server = start_redis(family, arguments_for(broker, mailbox), options, start=False)
    command = [sys.executable, "-c", UNDER_A_FILTER, *server.command()]
    server.command = lambda: command  # type: ignore[method-assign]
    server.start()
    assert f"worker-nice {other} could not be set: a filter" in server.log()
    server.client().set("a", 1)
    assert mailbox.receive(1)[0].event == (0, b"set", b"a")


def test_the_worker_is_nice(start_redis: StartRedis) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    server = start_redis(options=[f"keyspaceamqp.worker-nice {ours + 5}"])
    values = []
    for task in pathlib.Path(f"/proc/{server.pid}/task").iterdir():
        name, _, fields = (task / "stat").read_text().partition("(")[2].rpartition(")")
        values.append((name, int(fields.split()[16])))
    assert ("keyspace-amqp", ours + 5) in values
    assert {value for name, value in values if name != "keyspace-amqp"} == {ours}


EXPORTED = {
    MODULE: {"RedisModule_OnLoad", "RedisModule_OnUnload"},
    CORE: {"keyspace_amqp_load", "keyspace_amqp_unload", "PyInit__keyspace_amqp"},
}


@pytest.mark.parametrize("path", EXPORTED, ids=lambda path: path.stem)
def test_only_the_entry_points_are_exported(path: pathlib.Path) -> None:
    """redis-server exports thousands of symbols; the module must not use one of them in place of
    its own."""
    listed = subprocess.run(
        ["nm", "-D", "--defined-only", str(path)], check=True, capture_output=True, text=True
    ).stdout
    assert {line.split()[-1] for line in listed.splitlines()} == EXPORTED[path]
