"""The password is shown nowhere; and which users may give which commands.

Each place that gets the password has one of its own (`secret-…`), so that a failure says which of
them came out, and where.
"""

from __future__ import annotations

import contextlib
import pathlib
import re
import socket
import sys
import venv
from typing import Any

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tables.commands import COMMANDS
from tests.fix_servers import EVERY_FAMILY, MODULE, ROOT, StartRedis, settled, stats
from tests.servers import at_least, program
from tests.system.test_load import installed_copy, parameters, site_packages

SECRET = re.compile(r"secret-\w+")
CONF = "keyspaceamqp.password secret-conf"
# Everything is slow and everything is logged.
OPTIONS = [CONF, "slowlog-log-slower-than 0", "latency-monitor-threshold 1", "loglevel debug"]


def found(text: object) -> list[str]:
    return sorted(set(SECRET.findall(str(text))))


def refusal(client: redis.Redis, *words: Any) -> str:
    with pytest.raises(redis.exceptions.ResponseError) as raised:
        client.execute_command(*words)
    return str(raised.value)


def slow_log(client: redis.Redis) -> str:
    """The slow log, and Valkey's new name for it."""
    text = str(client.slowlog_get(10_000))
    for kind in ("slow", "large-request", "large-reply"):
        with contextlib.suppress(redis.exceptions.ResponseError):  # it has none
            text += str(client.execute_command("COMMANDLOG", "GET", 10_000, kind))
    return text


def shown(server: RedisServer, client: redis.Redis) -> dict[str, list[str]]:
    """The secrets at each place where a server tells about itself; those without
    any are left out."""
    texts = {
        "the log": server.log(),
        "SLOWLOG": slow_log(client),
        "INFO": client.execute_command("INFO", "everything"),
        "STATS": stats(client),
        "CONFIG GET": client.execute_command("KEYSPACEAMQP.CONFIG", "GET", "*"),
        "CLIENT LIST": client.execute_command("CLIENT", "LIST"),
        "MODULE LIST": client.module_list(),
        "LATENCY": (client.latency_latest(), client.execute_command("LATENCY", "DOCTOR")),
        "ACL LOG": client.acl_log(),
    }
    return {place: secrets for place, text in texts.items() if (secrets := found(text))}


def test_the_password_is_a_secret(
    family: str, broker: RabbitServer, start_redis: StartRedis
) -> None:
    """In whatever way it is given, and whatever is wrong with it."""
    server = start_redis(family, ["A"], [*OPTIONS, f"keyspaceamqp.port {broker.port}"])
    client = server.client()

    def last_error(text: str) -> None:
        wait_for(lambda: text in stats(client)["last_error"], 30, text)

    with server.client().monitor() as monitor:
        client.set("a", 1)  # the broker knows another password
        last_error("ACCESS_REFUSED")
        ours = ("KEYSPACEAMQP.CONFIG", "SET")
        client.execute_command(*ours, "port", free_port(), "PASSWORD", "secret-set")
        last_error("Connection refused")
        # Not UTF-8: an error message about that would show a byte of it.
        client.execute_command(*ours, "port", broker.port, "password", b"secret-bytes\xff")
        last_error("ACCESS_REFUSED")
        client.execute_command("KEYSPACEAMQP.CONNECT", "no.invalid", 1, "user", "secret-connect")
        wait_for(lambda: "ACCESS_REFUSED" not in stats(client)["last_error"], 30)
        url = f"amqps://user:secret-url@127.0.0.1:{broker.port}/%2f?verify=verify_none"
        client.execute_command(*ours, "url", url)
        last_error("TLS")
        client.execute_command(*ours, "url", url.replace("amqps", "amqp"))
        last_error("ACCESS_REFUSED")
        assert parameters(client)["url"] == url.replace("amqps", "amqp")
        client.execute_command(*ours, "url", "")
        wait_for(lambda: "ACCESS_REFUSED" not in stats(client)["last_error"], 30)
        too_long = "secret-" + "x" * 1100
        answers = [
            refusal(client, *ours, "password", too_long),
            refusal(client, *ours, "password", "secret-nul\0"),
            refusal(client, *ours, "password", "secret-beside", "port", "x"),
            refusal(client, *ours, "port", "x", "password", "secret-behind"),
            refusal(client, *ours, "password", "secret-odd", "port"),
            refusal(client, *ours, "passwrd", "secret-slip"),
            refusal(client, *ours, "url", "amqp://u:secret-url1@h:0"),
            refusal(client, *ours, "host", "amqp://u:secret-host@h"),
            refusal(client, "KEYSPACEAMQP.CONNECT", "amqp://u:secret-url3@h"),
            refusal(client, *ours, "url", "amqp://u:secret-url2@h", "port", "x"),
            refusal(client, "KEYSPACEAMQP.CONNECT", "h", "x", "user", "secret-wrong"),
            refusal(client, "KEYSPACEAMQP.CONNECT", "h", 1, "user", too_long),
            refusal(client, "KEYSPACEAMQP.CONNECT", "h", 1, "u", "secret-more", "x"),
        ]
        # Names and values are swapped: the answer shows only the word that is no name.
        refusal(client, *ours, "secret-swapped", "password")
        with client.pipeline() as pipeline:
            pipeline.execute_command(*ours, "password", "secret-multi")
            answers.append(str(pipeline.execute(raise_on_error=False)))
        client.set("end", 1)
        seen: list[str] = []
        while not seen or "end" not in seen[-1]:
            seen.append(monitor.next_command()["command"])
    assert found(answers) == []
    assert found(seen) == []
    assert shown(server, client) == {}
    assert parameters(client)["password"] == "secret-connect"
    # Redis' own command: whether it is refused or not, the reply and the log do not show it.
    answers = [refusal(client, "CONFIG", "SET", "keyspaceamqp.password", too_long)]
    with server.client().monitor() as monitor:
        client.config_set("keyspaceamqp.password", "secret-config")
        client.set("end", 1)
        assert "end" in monitor.next_command()["command"]
    assert found(answers) == []
    assert set(shown(server, client)) <= {"SLOWLOG"}


def test_what_no_module_can_prevent(family: str, start_redis: StartRedis) -> None:
    """Places where servers show it; the documentation lists them."""
    server = start_redis(family, None, OPTIONS[1:])
    client = server.client()
    path = str(MODULE)
    client.execute_command("MODULE", "LOAD", path, "A", "h", 1, "u", "secret-position")
    assert shown(server, client) == {
        "SLOWLOG": ["secret-position"],
        "MODULE LIST": ["secret-position"],
    }
    client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    client.slowlog_reset()
    client.execute_command(
        "MODULE", "LOADEX", path, "CONFIG", "keyspaceamqp.password", "secret-loadex"
    )
    assert shown(server, client) == {"SLOWLOG": ["secret-loadex"]}
    client.config_set("keyspaceamqp.password", "secret-config")
    assert shown(server, client) == {"SLOWLOG": ["secret-config", "secret-loadex"]}


def ended(server: RedisServer) -> int:
    """Waits for the end of a server; its exit code."""
    assert server.process is not None
    try:
        return server.process.wait(60)
    finally:
        server.kill()


def test_a_configuration_file_with_a_wrong_password(family: str, tmp_path: pathlib.Path) -> None:
    server = RedisServer(
        tmp_path / "redis", program(family), [str(MODULE)], [CONF + "x" * 2000, "loglevel debug"]
    )
    server.spawn()
    assert ended(server) == 1
    assert "this value is not accepted" in server.log()
    assert found(server.log()) == []


def test_a_crash_shows_no_password(family: str, tmp_path: pathlib.Path) -> None:
    """The report has the server's INFO, the client's command, and more."""
    # Without a test of the machine's memory, which would take seconds.
    options = [*OPTIONS, "crash-memcheck-enabled no"]
    server = RedisServer(tmp_path / "redis", program(family), [str(MODULE), "A"], options)
    for kind in ("SEGFAULT", "PANIC", "ASSERT"):
        with server:
            client = server.client()
            client.config_set("keyspaceamqp.port", free_port())
            if kind != "SEGFAULT":  # that server has it only from its file
                client.config_set("keyspaceamqp.password", "secret-config")
                client.execute_command("KEYSPACEAMQP.CONFIG", "SET", "password", "secret-set")
                client.execute_command(
                    "KEYSPACEAMQP.CONNECT", "127.0.0.1", 1, "u", "secret-connect"
                )
            client.set("a", 1)
            settled(client, fallback_length=1)
            with socket.create_connection(("127.0.0.1", server.port)) as link:
                link.sendall(f"DEBUG {kind}\r\n".encode())
                assert ended(server) != 0
    assert server.log().count("BUG REPORT START") == 3
    assert "keyspaceamqp" in server.log()
    assert found(server.log()) == []


BROKEN = {
    "at load": """
def rename(self):
    raise RuntimeError(f"broken on purpose: {self._config} {self._config!r}")
Identity._rename = rename
""",
    "at a change": """
before = Broker.configure
def configure(self, config, form):
    if config.host == "broken":
        raise RuntimeError(f"broken on purpose: {config} {config!r}")
    before(self, config, form)
Broker.configure = configure
""",
    "at a connection": """
before = pika.ConnectionParameters
def broken(**parameters):
    raise RuntimeError(f"broken on purpose: {parameters} {before(**parameters)!r}")
pika.ConnectionParameters = broken
""",
}


@pytest.mark.parametrize("where", list(BROKEN))
def test_an_exception_shows_no_password(
    where: str, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """A handler that raises with all that it knows; the log has tracebacks."""
    environment = tmp_path / "environment"
    venv.create(environment, symlinks=True)
    path = installed_copy(environment)
    for source in (site_packages(pathlib.Path(sys.prefix))).glob("*"):
        if source.name == "pika" or source.name.startswith("_cffi_backend"):
            (site_packages(environment) / source.name).symlink_to(source)
    place = "worker/identity.py" if where == "at load" else "broker/connection.py"
    with (path.parent / place).open("a") as file:
        file.write(BROKEN[where])
    server = start_redis(arguments=None, options=OPTIONS[1:])
    client = server.client()
    load = ("MODULE", "LOADEX", str(path), "CONFIG", "keyspaceamqp.password", "secret-loadex")
    if where == "at load":
        refusal(client, *load)
    else:
        client.execute_command(*load)
        client.execute_command("KEYSPACEAMQP.CONFIG", "SET", "password", "secret-set")
        client.execute_command("KEYSPACEAMQP.CONNECT", "broken", 1, "user", "secret-connect")
        wait_for(lambda: stats(client)["last_error"], 30)
        assert set(shown(server, client)) <= {"SLOWLOG"}  # of LOADEX
        client.execute_command("MODULE", "UNLOAD", "keyspaceamqp")
    assert "broken on purpose" in server.log()
    assert found(server.log()) == []


# ---- who may do what -----------------------------------------------------------

READING = [("KEYSPACEAMQP.STATS",), ("KEYSPACEAMQP.HELP",)]
WATCHING = [
    ("KEYSPACEAMQP.FALLBACK", "LEN"),
    ("KEYSPACEAMQP.KEYMASK", "LIST"),
]
ADMIN = [
    *WATCHING,
    ("KEYSPACEAMQP.CONNECT",),
    ("KEYSPACEAMQP.DISCONNECT",),
    ("KEYSPACEAMQP.CONFIG", "GET", "*"),
    ("KEYSPACEAMQP.CONFIG", "SET", "port", "1"),
    ("KEYSPACEAMQP.KEYMASK", "CLEAR"),
    ("KEYSPACEAMQP.FALLBACK", "PURGE"),
    ("KEYSPACEAMQP.SNAPSHOT", "STOP"),
]
USERS = {
    "app": READING,
    "watcher": READING + WATCHING,
    "operator": READING + ADMIN,
}


def allowed(server: RedisServer, user: str, password: str = "secret") -> list[tuple[str, ...]]:
    """The commands that a user may give, of all that exist. The user is not the default one, who
    may give all."""
    client = server.client(username=user, password=password)
    may = []
    for words in READING + ADMIN:
        try:
            client.execute_command(*words)
        except redis.exceptions.NoPermissionError:
            continue
        may.append(words)
    return may


@EVERY_FAMILY
def test_categories(family: str, start_redis: StartRedis) -> None:
    """From 7.2 on a module's commands have categories; also for users that were made before the
    module was loaded."""
    server = start_redis(family, None)
    client = server.client()
    users = {
        "reader": ["+@read"],
        "all": ["+@all"],
        "not-admin": ["+@all", "-@admin"],
        "not-dangerous": ["+@all", "-@dangerous"],
        "admin": ["+@admin"],
    }
    for user, rules in users.items():
        client.execute_command("ACL", "SETUSER", user, "on", ">secret", *rules)
    client.execute_command("MODULE", "LOAD", str(MODULE))
    has_them = at_least(family, redis="7.2", valkey="7.2")
    assert allowed(server, "all") == READING + ADMIN
    assert allowed(server, "reader") == (READING if has_them else [])
    assert allowed(server, "admin") == (ADMIN if has_them else [])
    for user in ("not-admin", "not-dangerous"):
        assert allowed(server, user) == READING + ([] if has_them else ADMIN)
    for category in ("read", "admin", "dangerous", "slow", "fast"):
        listed = [
            name.decode().rpartition(".")[2].upper()
            for name in client.execute_command("ACL", "CAT", category)
            if name.startswith(b"keyspaceamqp.")
        ]
        table = [c.name for c in COMMANDS if category in c.acl_categories.split()]
        assert sorted(listed) == (sorted(table) if has_them else [])


@EVERY_FAMILY
def test_the_lines_of_the_readme(family: str, start_redis: StartRedis) -> None:
    """Each of its users may give the commands that it says, and no other of the module."""
    text = (ROOT / "docs/commands.md").read_text().partition("### Access control")[2]
    block = text.partition("```text\n")[2].partition("```")[0]
    parts = re.findall(r"^# (.*)\n((?:ACL SETUSER .*\n)+)", block, re.MULTILINE)
    versions = [head.partition(":")[0] for head, _ in parts]
    assert versions == ["7.2 or later", "7.0", "any version", "any version"]
    server = start_redis(family)
    client = server.client()
    made = []
    for version, (_, lines) in zip(versions, parts, strict=True):
        if version in (
            "any version",
            "7.2 or later" if at_least(family, redis="7.2", valkey="7.2") else "7.0",
        ):
            for line in lines.splitlines():
                client.execute_command(*line.split())
                made.append(line.split()[2])
    assert made == list(USERS)
    for user, may in USERS.items():
        assert allowed(server, user) == may
