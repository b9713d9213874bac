"""`keyspace-amqp doctor` on real servers: what it finds, and what it says about what it cannot look
at."""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import pty
import re
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Iterator
from typing import Any

import pika
import pytest
import trustme

from keyspace_amqp import __version__
from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tools import amqp, nodes
from keyspace_amqp.tools.doctor import broker as broker_checks
from keyspace_amqp.tools.doctor import group, node
from keyspace_amqp.tools.doctor import run as doctor
from keyspace_amqp.values import replace
from tests.fix_servers import (
    EVERY_FAMILY,
    ROOT,
    Mailbox,
    StartRedis,
    arguments_for,
    handler_copy,
    linked,
    settled,
    stats,
)
from tests.fix_tools import SOON, Run, amqp_url, url
from tests.servers import old_program


def findings(run: Run, server: RedisServer, *words: str) -> tuple[int, list[str], str]:
    """The exit code, all findings except ok as `level about text → advice`, and the ok ones."""
    code, out, err = run("doctor", "--json", "--redis", url(server), *words)
    assert err == ""
    report = json.loads(out)
    lines: dict[bool, list[str]] = {True: [], False: []}
    for each in report["findings"]:
        line = "{level} {about} {text} → {advice}".format(**each)
        lines[each["level"] == "ok"].append(line)
        assert each["nodes"] == [f"127.0.0.1:{server.port}"]
        assert (each["advice"] != "") is (each["level"] != "ok"), line
    assert report["problem"] == sum(line.startswith("problem") for line in lines[False])
    assert code == (1 if report["problem"] else 0)
    return code, lines[False], "\n".join(lines[True])


def test_doctor_finds_nothing(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, run: Run
) -> None:
    """All is well. The doctor has changed nothing, and no queue gets its message, not even from an
    exchange that routes everything to all queues."""
    with broker.connection() as connection:
        channel = connection.channel()
        channel.exchange_declare("tools-all", "fanout")
        channel.queue_bind(mailbox.name, "tools-all")
        named = {"port": broker.port, "exchange": "tools-all", "delivery-mode": 2}
        options = [f"keyspaceamqp.{name} {value}" for name, value in named.items()]
        server = start_redis(
            family, ["$"], [*options, "keyspaceamqp.fallback-size 1000", "appendonly yes"]
        )
        with server.client() as client:
            client.set("k", "v")
            before = settled(client, confirmed=1)
            code, bad, good = findings(run, server)
            assert (code, bad) == (0, [])
            assert stats(client) == before
        for about in ("server", "python", "module", "role", "state", "losses", "list"):
            assert f"ok {about} " in good
        for about in ("persistence", "memory", "broker", "exchange", "publishing"):
            assert f"ok {about} " in good
        assert mailbox.count() == 1
        channel.exchange_delete("tools-all")
    code, out, _ = run("doctor", "--redis", url(server))
    assert re.search(r"^ok +broker .* accepts the login \(RabbitMQ \d+\.\d+", out, re.MULTILINE)
    assert re.search(r"^problem +exchange .*404", out, re.MULTILINE)
    assert out.rstrip().splitlines()[-1].startswith("1 problem, 0 warnings")


NO_MODULE = "is not loaded → put `loadmodule /.*libredis_keyspace_amqp.so`"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], "warning persistence neither RDB saves nor .* the list ends with the process"),
        (["maxmemory 100mb", "maxmemory-policy allkeys-lru"], "warning memory .*allkeys-lru can"),
        (["maxmemory 100mb"], "warning list it may take another 800.0 MB, and Redis has 1"),
        (["keyspaceamqp.fallback-size 0", "maxmemory 1gb"], "warning list it has no limit"),
        (["keyspaceamqp.fallback-size -1"], "warning list there is none: .*queue-limit"),
        (["min-replicas-to-write 1"], "problem role 0 replicas, .* writes are refused"),
        (["keyspaceamqp.delivery-mode 1"], "warning module delivery-mode is 1"),
        (["keyspaceamqp.exchange nowhere"], "problem exchange 404 .* no exchange 'nowhere'"),
        (['keyspaceamqp.exchange ""'], "problem exchange 404 .* no queue 'nowhere'"),
        (["keyspaceamqp.port 1"], "problem broker amqp://guest@127.0.0.1:1/: .*refused"),
        (["keyspaceamqp.username who"], "problem broker .*403 ACCESS_REFUSED .* AMQP_PASSWORD"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) and value else "",
)
def test_doctor_finds_in_the_settings(
    options: list[str], expected: str, broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    arguments = [] if "delivery-mode" in "".join(options) else arguments_for(broker)
    server = start_redis(arguments=arguments, options=options)
    _, bad, _ = findings(run, server)
    assert any(re.search(f"^{expected}", line) for line in bad), bad


def facts(outbox: str, now: str, *, size: int = 1000, **info: Any) -> node.Facts:
    """The answers of a primary; `now`: the text of STATS."""
    return node.Facts(
        {"role": "master", "aof_enabled": 1, **info},
        {"appendfsync": "everysec"},
        [],
        {"outbox": now, "last_error": "", "state": "idle", "fallback_length": 0},
        {"outbox": outbox, "fallback-size": str(size)},
    )


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (facts("off", "off"), ""),
        (facts("atomic", "atomic"), "ok atomic, the append-only file is written .* second"),
        (facts("reply", "reply", aof_enabled=0), "warning reply, .* no append-only file"),
        (facts("reply", "reply (waits)"), "warning reply, but it waits: .* through memory"),
        (facts("reply", "reply (waits)", size=-1), "problem reply, but there is no list"),
        (facts("reply", "reply (waits)", role="slave"), "ok reply, once this is a primary"),
        (facts("atomic", "atomic (waits)", cluster_enabled=1), "warning .* a primary with slots"),
    ],
)
def test_doctor_looks_at_the_outbox(given: node.Facts, expected: str) -> None:
    found = [f"{each.level} {each.text} {each.advice}" for each in node.outbox(given)]
    assert len(found) == bool(expected)
    assert all(re.search(f"^{expected}", line) for line in found), found


@pytest.mark.parametrize(
    ("given", "level", "expected"),
    [
        ("always", "ok", "with each write"),
        ("everysec", "ok", "once a second"),
        ("no", "warning", "when the system likes"),
    ],
)
def test_doctor_looks_at_the_append_only_file_of_an_outbox(
    given: str, level: str, expected: str
) -> None:
    found = facts("reply", "reply")
    found.redis_config["appendfsync"] = given
    (finding,) = node.outbox(found)
    assert (finding.level, expected in finding.text) == (level, True), finding


def test_doctor_and_an_outbox_that_has_missed_events(
    broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    """Here without a list. Its limit set, the outbox opens, and no event is lost."""
    options = ["keyspaceamqp.outbox reply", "keyspaceamqp.fallback-size -1", "appendonly yes"]
    server = start_redis(arguments=arguments_for(broker), options=options)
    with server.client() as client:
        client.set("k", "v")
        settled(client, outbox="reply (waits)", outbox_missed=1, returned=1)
        _, bad, _ = findings(run, server)
        for expected in (
            "problem outbox reply, but there is no list: .*→ set keyspaceamqp.fallback-size",
            "warning losses outbox_missed 1: .*→ they are not lost",
        ):
            assert any(re.search(f"^{expected}", line) for line in bad), (expected, bad)
        client.config_set("keyspaceamqp.fallback-size", 1000)
        settled(client, outbox="reply")
        client.execute_command("KEYSPACEAMQP.STATS", "RESET")
        _, bad, good = findings(run, server)
        assert not [line for line in bad if "outbox" in line]
        assert "ok outbox reply, " in good
        client.set("k", "v")
        settled(client, outbox_missed=0, returned=1, dropped=0)


def test_doctor_finds_that_memory_is_nearly_used_up(
    broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    server = start_redis(arguments=arguments_for(broker))
    with server.client() as client:
        client.config_set("maxmemory", client.info("memory")["used_memory"])
        _, bad, _ = findings(run, server)
    found = [line for line in bad if re.search(r"^warning memory \d+% of maxmemory \S+ MB", line)]
    assert found, bad


def test_doctor_finds_what_was_lost(
    broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    """Counters, a list that is nearly full, and why there is no connection."""
    server = start_redis(arguments=arguments_for(broker, size=10))
    with server.client() as client:
        client.set("k", "v")
        settled(client, returned=1)
        _, bad, _ = findings(run, server)
        has(bad, "problem losses returned 1: .*→ `keyspace-amqp declare`")
        client.config_set("keyspaceamqp.password", "s3cret")
        for number in range(12):
            client.set("k", number)
        settled(client, dropped_fallback_full=2, fallback_length=10)
        wait_for(lambda: "ACCESS_REFUSED" in stats(client)["last_error"], SOON)
        code, bad, _ = findings(run, server)
        assert code == 1
        for expected in (
            "problem losses dropped_fallback_full 2: .*→ raise fallback-size",
            "warning list 10 elements; at 10 the oldest are dropped",
            "(problem|warning) state (dis)?connect.*; why: 403 ACCESS_REFUSED",
        ):
            assert any(re.search(f"^{expected}", line) for line in bad), (expected, bad)
        client.config_set("keyspaceamqp.password", "guest")
        settled(client, fallback_length=0, in_flight=0, queue_length=0)


def test_doctor_of_another_version(
    broker: RabbitServer, start_redis: StartRedis, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start_redis(arguments=arguments_for(broker))
    monkeypatch.setattr(node, "__version__", "99.1")
    _, bad, good = findings(run, server)
    expected = f"warning module version {__version__}, and this command line is 99.1 → "
    assert any(line.startswith(expected) for line in bad), bad
    assert "ok module" not in good


def test_doctor_is_refused_where_the_module_is_not(
    broker: RabbitServer, start_redis: StartRedis, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module is connected, so a wrong password of the doctor is no problem of the module. A
    password among the arguments is reported, and not shown."""
    user = "tools-user"
    broker.ctl("add_user", user, "s3cret")
    broker.ctl("set_permissions", user, ".*", ".*", ".*")
    try:
        arguments = arguments_for(broker)
        server = start_redis(arguments=[*arguments[:3], user, "s3cret", *arguments[5:]])
        with server.client() as client:
            client.set("k", "v")
            settled(client, confirmed=1)
        _, bad, _ = findings(run, server)
        warning = [line for line in bad if line.startswith("warning broker")]
        assert "from here; the module is connected" in warning[0]
        assert any("shows in MODULE LIST" in line for line in bad)
        assert "s3cret" not in str(bad)
        monkeypatch.setenv("AMQP_PASSWORD", "s3cret")
        assert f"ok publishing {user} may" in findings(run, server)[2]
        broker.ctl("set_permissions", user, "", ".*", "")  # all that the module needs
        assert f"ok publishing {user} may" in findings(run, server)[2]
        broker.ctl("set_permissions", user, ".*", "", ".*")
        _, bad, _ = findings(run, server)
        assert any(re.search("^problem publishing 403 .*set_permissions", x) for x in bad), bad
    finally:
        broker.ctl("delete_user", user)


@pytest.mark.parametrize(
    ("routing_key", "topics", "expected"),
    [
        ("tmp.1", "^tmp", "ok publishing guest may publish"),
        ("tmp.1", "^user", "problem publishing 403 .* topic 'tmp.1' .*set_topic_permissions"),
        ("{key:1}", "^user", "warning publishing .* depends on the routing key .*topic"),
        ("{key:1}", ".*", "ok publishing guest may publish"),
    ],
)
def test_doctor_and_permissions_of_topics(
    routing_key: str,
    topics: str,
    expected: str,
    broker: RabbitServer,
    mailbox: Mailbox,
    start_redis: StartRedis,
    run: Run,
) -> None:
    """Nobody gets the message, even if it may be published."""
    exchange = f"tools-{mailbox.name}"
    with broker.connection() as connection:
        connection.channel().exchange_declare(exchange, "topic")
        connection.channel().queue_bind(mailbox.name, exchange, "#")
        broker.ctl("set_topic_permissions", "guest", exchange, topics, ".*")
        try:
            server = start_redis(arguments=[*arguments_for(broker)[:6], exchange, routing_key])
            _, bad, good = findings(run, server)
        finally:
            broker.ctl("clear_topic_permissions", "guest", exchange)
            connection.channel().exchange_delete(exchange)
    found = [*bad, *good.splitlines()]
    assert any(re.search(f"^{expected}", line) for line in found), found
    assert mailbox.count() == 0


def test_doctor_without_the_module(
    broker: RabbitServer, start_redis: StartRedis, run: Run, tmp_path: pathlib.Path
) -> None:
    """It says how to load the module; with --amqp, it checks the broker all the same."""
    server = start_redis(arguments=None)
    code, bad, good = findings(run, server, "--amqp", amqp_url(broker))
    assert code == 1
    assert re.search(f"^problem module {NO_MODULE}.*MODULE LOADEX /", "\n".join(bad), re.MULTILINE)
    assert "ok python " in good
    assert "ok exchange 'amq.direct'" in good
    server = start_redis(arguments=None, options=["enable-module-command no"])
    _, bad, good = findings(run, server)
    assert any("enable-module-command is no" in line for line in bad)
    assert "exchange" not in good
    old = RedisServer(tmp_path / "old", old_program())
    (tmp_path / "old" / "redis.conf").write_text(f"port {old.port}\nbind 127.0.0.1\n")
    with old:
        code, bad, _ = findings(run, old)
    assert any(re.search(r"^problem server Redis 6\.2\.\d+ is too old", line) for line in bad)


def test_doctor_and_files_that_cannot_be_written(
    broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    server = start_redis(arguments=arguments_for(broker), options=["save 3600 1"])
    (server.folder / "dump.rdb").mkdir()
    with server.client() as client:
        client.bgsave()
        wait_for(lambda: client.info("persistence")["rdb_last_bgsave_status"] == "err", SOON)
        _, bad, _ = findings(run, server)
        client.config_set("save", "")  # otherwise it could not end
    expected = "^problem persistence RDB saves fail, and clients' writes are refused"
    assert any(re.search(expected, line) for line in bad), bad


def test_doctor_and_an_append_only_file_that_cannot_be_written() -> None:
    """By what INFO says: a test cannot make a full disk."""
    info = {"aof_enabled": 1, "aof_last_write_status": "err", "rdb_last_bgsave_status": "ok"}
    (finding,) = node.persistence(node.Facts(info, {"save": ""}))
    assert (finding.about, finding.level) == ("persistence", "problem")
    assert finding.text.startswith("the append-only file cannot be written")


def test_doctor_on_a_replica(broker: RabbitServer, start_redis: StartRedis, run: Run) -> None:
    primary = start_redis(arguments=None, options=["repl-diskless-sync-delay 0"])
    server = start_redis(
        arguments=arguments_for(broker), options=[f"replicaof 127.0.0.1 {primary.port}"]
    )
    with server.client() as client:
        linked(client)
        _, _, good = findings(run, server)
        assert f"ok role replica of 127.0.0.1:{primary.port}, where events" in good
        assert "ok state replica" in good
        primary.kill()
        wait_for(lambda: client.info("replication")["master_link_status"] == "down", SOON)
    _, bad, _ = findings(run, server)
    assert any(line.startswith("warning role no link to") for line in bad)


def test_doctor_knows_of_the_defect_of_valkey(
    broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    server = start_redis("valkey-8.1", arguments_for(broker, events="g$"))
    assert "MOVE and COPY" in str(findings(run, server)[1])
    with server.client() as client:
        client.config_set("keyspaceamqp.events", "$")
    assert "MOVE and COPY" not in str(findings(run, server)[1])


@pytest.mark.parametrize(
    ("name", "version", "has_it"),
    [("valkey", version, True) for version in ("8.1.0", "8.1.1", "8.1.8", "9.0.3", "9.1.0")]
    + [("valkey", version, False) for version in ("7.2.9", "8.0.5", "8.1.9", "9.1.1", "9.10.0")]
    + [("redis", "8.1.8", False)],
)
def test_doctor_knows_which_versions_have_the_defect(name: str, version: str, has_it: bool) -> None:
    info = {"server_name": name, f"{name}_version": version}
    found = list(node.server(node.Facts(info, parameters={"events": "g"})))
    assert ("MOVE and COPY" in str(found)) is has_it


@EVERY_FAMILY
def test_the_defect_itself(family: str, start_redis: StartRedis) -> None:
    """The doctor warns of each server that has the defect, and of no other."""
    server = start_redis(family, arguments_for(free_port(), events="g"))
    with server.client(single_connection_client=True) as client:
        client.set("a", 1)
        client.execute_command("MOVE", "a", 1)
        moved = int(client.client_info()["db"]) != 0
        info = client.info("server")
    found = list(node.server(node.Facts(info, parameters={"events": "g"})))
    assert ("MOVE and COPY" in str(found)) is moved


def test_doctor_with_few_rights(
    broker: RabbitServer, start_redis: StartRedis, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names what it may not ask, and goes on with the rest; status needs few rights."""
    server = start_redis(arguments=arguments_for(broker))
    rights = ["+ping", "+info", "+keyspaceamqp.stats", "+module|list"]
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "watcher", "on", ">pw", *rights)
    place = f"redis://watcher:pw@127.0.0.1:{server.port}"
    assert run("status", "--redis", place)[0] == 0
    code, out, _ = run("doctor", "--redis", place)
    assert code == 0
    for command, subject in {
        "CONFIG GET": "persistence",
        "KEYSPACEAMQP.CONFIG GET": "broker, exchange and queue",
        "COMMAND INFO": "commands under other names",
    }.items():
        expected = f"^unknown +access +{command}: NOPERM.* Not looked at: .*{subject}"
        assert re.search(expected, out, re.MULTILINE), out
    assert out.splitlines()[-1].endswith(" 3 unknown")
    assert re.search("^ok +server +Redis", out, re.MULTILINE)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "watcher", "-module|list")
    _, out, _ = run("doctor", "--redis", place)
    assert re.search("^unknown +access +MODULE LIST: NOPERM", out, re.MULTILINE)
    assert "is not loaded" not in out


def test_doctor_and_a_handler_that_hangs(
    broker: RabbitServer, tmp_path: pathlib.Path, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It can tell that from a server that hangs."""
    path = handler_copy(tmp_path / "copy")
    with (path.parent / "commands" / "replies.py").open("a") as file:
        file.write(
            "\n\n_encode = encode\n\n\ndef encode(reply):\n    import pathlib, time\n"
            "    while pathlib.Path('hang').exists():\n        time.sleep(0.05)\n"
            "    return _encode(reply)\n"
        )
    server = RedisServer(tmp_path / "redis", module=[str(path), *map(str, arguments_for(broker))])
    with server:
        hang = server.folder / "hang"
        hang.touch()
        monkeypatch.setattr(doctor, "TIMEOUT", 3.0)
        code, bad, good = findings(run, server)
        hang.unlink()
    assert code == 1
    assert any(re.search("^problem handler KEYSPACEAMQP.CONFIG GET: ", line) for line in bad), bad
    assert "ok server" in good


def test_doctor_on_nodes_that_differ() -> None:
    """It reports what the rows of KEYSPACEAMQP.CLUSTER say."""

    class Client:
        def cluster(self, _: str) -> dict[str, str]:
            return {"cluster_state": "fail"}

        def execute_command(self, _: str) -> list[dict[bytes, Any]]:
            return [
                {b"address": b"a:1", b"state": b"idle", b"version": b"1", b"config_version": 1},
                {b"address": b"b:2", b"state": b"idle", b"version": b"2", b"config_version": 3},
            ]

    found = [(finding.level, finding.text) for finding in group.cluster(Client())]
    assert found == [
        ("problem", "its state is fail: lists can be neither written nor read"),
        ("problem", "version differs: a:1 1, b:2 2"),
        ("warning", "config_version differs: a:1 1, b:2 3"),
    ]


# ---- what cannot be looked at ----------------------------------------------------------


def found_by(run: Run, *words: str) -> tuple[int, list[str]]:
    """The exit code, and all findings as `level about text → advice`."""
    code, out, err = run("doctor", "--json", *words)
    assert err == ""
    return code, [
        "{level} {about} {text} → {advice}".format(**f) for f in json.loads(out)["findings"]
    ]


def has(lines: list[str], expected: str) -> None:
    """One of the lines matches, from its start."""
    assert any(re.match(expected, line) for line in lines), (expected, lines)


RIGHTS = ("+info", "+keyspaceamqp.stats", "+module|list", "+keyspaceamqp.config")


@pytest.mark.parametrize(
    ("rights", "options", "unknown"),
    [
        (("+info", "+keyspaceamqp.stats"), (), "MODULE LIST: NOPERM"),
        (("+info",), (), "KEYSPACEAMQP.CONFIG GET: NOPERM"),
        (("+keyspaceamqp.stats",), (), "INFO: NOPERM"),
        (RIGHTS, ('rename-command MODULE ""',), "MODULE LIST: the server has it under another"),
        (RIGHTS, ("rename-command MODULE other",), "MODULE LIST: the server has it under another"),
        (RIGHTS, ('rename-command INFO ""',), "INFO: the server has it under another"),
    ],
)
def test_doctor_sees_a_broker_away_and_losses_with_few_rights(
    rights: tuple[str, ...],
    options: tuple[str, ...],
    unknown: str,
    start_redis: StartRedis,
    run: Run,
) -> None:
    """State and losses are in STATS and in INFO. What could not be looked at is named."""
    server = start_redis(arguments=arguments_for(free_port(), size=10), options=options)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "watcher", "on", ">pw", "+cluster|nodes", *rights)
        for number in range(12):
            client.set("k", number)
        settled(client, dropped_fallback_full=2, fallback_length=10)
        wait_for(lambda: "refused" in stats(client)["last_error"], SOON)
        code, lines = found_by(run, "--redis", f"redis://watcher:pw@127.0.0.1:{server.port}")
    assert server.stop() == 0
    assert code == 1
    has(lines, "problem state (dis)?connect.* why: .*Connection refused → is the broker up")
    has(lines, "problem losses dropped_fallback_full 2")
    has(lines, f"unknown access {unknown}")
    assert not [line for line in lines if "is not loaded" in line]


def test_doctor_may_see_nothing_of_the_module(start_redis: StartRedis, run: Run) -> None:
    """Then it cannot say that all is well."""
    server = start_redis(arguments=arguments_for(free_port()))
    with server.client() as client:
        client.execute_command(
            "ACL", "SETUSER", "watcher", "on", ">pw", "+cluster|nodes", "+config|get"
        )
    code, lines = found_by(run, "--redis", f"redis://watcher:pw@127.0.0.1:{server.port}")
    assert code == 1
    has(lines, "problem access state and losses of the module cannot be seen → allow INFO or")
    has(lines, "unknown access INFO: NOPERM.* Not looked at: version, role, ")
    has(lines, "unknown access KEYSPACEAMQP.STATS: NOPERM.* Not looked at: state and losses")


@EVERY_FAMILY
@pytest.mark.parametrize("command", ["LLEN", "LRANGE", "RPUSH", "LTRIM"])
def test_doctor_and_commands_of_another_name(
    command: str,
    family: str,
    broker: RabbitServer,
    start_redis: StartRedis,
    run: Run,
) -> None:
    """The module looks well then: it is connected, and there are no losses."""
    server = start_redis(
        family,
        arguments_for(broker),
        [f"rename-command {command} other", "enable-debug-command yes"],
    )
    code, lines = found_by(run, "--redis", url(server))
    assert code == 1
    has(lines, f"problem commands the server does not know {command}: .*→ take the line rename-")
    assert len([line for line in lines if " commands " in line]) == 1


def test_doctor_and_a_missing_llen_that_only_the_module_tells(
    broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    """The doctor may not ask which commands there are. Without LLEN nothing is delivered."""
    options = ["rename-command LLEN other", "rename-command COMMAND more"]
    server = start_redis(arguments=arguments_for(broker), options=options)
    with server.client() as client:
        client.set("k", 1)
        wait_for(lambda: "LLEN" in stats(client)["last_error"], SOON)
        assert stats(client)["confirmed"] == 0
        code, lines = found_by(run, "--redis", url(server))
        server.kill()  # it cannot end cleanly: it knows of no list
    assert code == 1
    has(lines, "problem commands the server does not know LLEN")
    has(lines, "unknown access COMMAND INFO: the server has it under another name")


def test_tools_where_cluster_has_another_name(
    broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    server = start_redis(arguments=arguments_for(broker), options=["rename-command CLUSTER other"])
    assert run("status", "--redis", url(server))[0] == 0
    code, lines = found_by(run, "--redis", url(server))
    assert code == 0, lines


# ---- masks and queues --------------------------------------------------------------------


def test_doctor_and_masks_that_let_nothing_through(
    broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    server = start_redis(arguments=arguments_for(broker, masks=("^user:",)))
    with server.client() as client:
        for number in range(99):
            client.set(f"usr:{number}", 1)
        settled(client, events_seen=99)
        assert not [x for x in found_by(run, "--redis", url(server))[1] if " masks " in x]
        client.set("usr:99", 1)
        settled(client, events_seen=100)
        expected = "warning masks none of 100 events was let through by the masks → .*KEYMASK TEST "
        has(found_by(run, "--redis", url(server))[1], expected + "with a key, and WHY")
        client.config_set("keyspaceamqp.databases", "3")
        has(found_by(run, "--redis", url(server))[1], "warning masks .* and by databases 3 → ")
        client.config_set("keyspaceamqp.databases", "ALL")
        client.set("user:1", 1)
        settled(client, events_matched=1, queue_length=0, in_flight=0)
        assert not [x for x in found_by(run, "--redis", url(server))[1] if " masks " in x]


UNKNOWN_QUEUE = "unknown queue whether a queue gets the messages .*→ --publish sends"


@pytest.mark.parametrize("form", ["text", "json", "cloudevents"])
def test_doctor_publishes_a_message(
    form: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, run: Run
) -> None:
    """Only if it is asked to. It looks like the module's messages, and is marked."""
    options = [f"keyspaceamqp.format {form}", "keyspaceamqp.app-id mine"]
    server = start_redis(arguments=arguments_for(broker, mailbox), options=options)
    code, lines = found_by(run, "--redis", url(server))
    assert code == 0
    has(lines, UNKNOWN_QUEUE)
    assert mailbox.count() == 0
    code, lines = found_by(run, "--redis", url(server), "--publish")
    assert code == 0
    has(
        lines, f"ok queue a queue took the marked message .*'amq.direct', .*'{mailbox.routing_key}'"
    )
    (message,) = mailbox.receive(1)
    properties = message.properties
    assert properties.headers["x-keyspaceamqp-doctor"] is True
    assert (properties.delivery_mode, properties.app_id) == (2, "mine")
    if form == "text":
        assert message.event == (0, b"doctor", b"keyspaceamqp:doctor")
    else:
        event = json.loads(message.body)
        assert (event["event"], event["key"]) == ("doctor", "keyspaceamqp:doctor")
        assert event["id"] == properties.message_id
    with server.client() as client:
        assert stats(client)["events_seen"] == 0


def test_doctor_and_a_missing_queue(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, run: Run
) -> None:
    """It cannot be known without a message: one of the module's, or one of the doctor's."""
    server = start_redis(arguments=arguments_for(broker))
    code, lines = found_by(run, "--redis", url(server))
    assert code == 0
    has(lines, UNKNOWN_QUEUE)
    code, lines = found_by(run, "--redis", url(server), "--publish")
    assert code == 1
    has(lines, "problem queue no queue took the marked .*'nowhere'\\) → `keyspace-amqp declare`")
    with server.client() as client:
        client.set("k", 1)
        settled(client, returned=1)
        has(found_by(run, "--redis", url(server))[1], UNKNOWN_QUEUE)
        client.config_set("keyspaceamqp.routing-key", mailbox.routing_key)
        client.execute_command("KEYSPACEAMQP.STATS", "RESET")
        client.set("k", 2)
        settled(client, confirmed=1, returned=0)
        has(found_by(run, "--redis", url(server))[1], "ok queue 1 message so far, and none was")
        client.config_set("keyspaceamqp.mandatory", "off")  # the broker reports nothing
        has(found_by(run, "--redis", url(server))[1], UNKNOWN_QUEUE)


def test_doctor_and_a_queue_that_refuses(
    broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    full = Mailbox(broker, **{"x-max-length": 1, "x-overflow": "reject-publish"})
    server = start_redis(arguments=arguments_for(broker, full))
    assert found_by(run, "--redis", url(server), "--publish")[0] == 0

    lines: list[str] = []

    def refused() -> bool:  # the broker may take one more than the limit
        code, lines[:] = found_by(run, "--redis", url(server), "--publish")
        return code == 1

    wait_for(refused, SOON)
    has(lines, "problem queue a queue has refused the marked message .*→ a queue with reject-publ")


def test_doctor_and_a_template_of_routing_keys(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, run: Run
) -> None:
    """Only the user knows which keys there are."""
    template = ["keyspaceamqp.routing-key {event}.{{x}}"]
    server = start_redis(arguments=arguments_for(broker)[:7], options=template)
    has(found_by(run, "--redis", url(server))[1], UNKNOWN_QUEUE)
    code, lines = found_by(run, "--redis", url(server), "--publish")
    assert code == 0
    has(lines, "unknown queue the routing key is the template .*→ give one of these")
    words = ("--publish", "--routing-key", mailbox.routing_key, "--routing-key", "{no}")
    code, lines = found_by(run, "--redis", url(server), *words)
    assert code == 1
    has(lines, f"ok queue .*'{mailbox.routing_key}'")
    has(lines, "problem queue no queue took .*'{no}'")
    assert mailbox.count() == 1


def test_doctor_and_a_url_that_cannot_be_read(start_redis: StartRedis, run: Run) -> None:
    """It is what the user has given, so it is a problem. It is not shown."""
    server = start_redis(arguments=[])
    words = ("--redis", url(server), "--amqp", "amqp://u:s3cret#s3cret@h/")
    code, lines = found_by(run, *words)
    assert code == 1
    has(lines, "problem broker not looked at: the broker's URL is not accepted: it has a #")
    assert "s3cret" not in str(lines)
    with server.client() as client:
        client.config_set("keyspaceamqp.url", "amqp://h/")
    code, lines = found_by(run, "--redis", url(server))
    assert code == 0
    has(lines, "unknown broker not looked at: the module's broker is in its parameter url")


# ---- advice ------------------------------------------------------------------------------


@dataclasses.dataclass
class Secured:
    """A broker that wants TLS and client certificates; `files`: certificates by their names."""

    broker: RabbitServer
    port: int
    files: pathlib.Path

    def url(self, host: str = "localhost", **names: str) -> str:
        known = "&".join(f"{name}={self.files / value}" for name, value in names.items())
        return f"amqps://{host}:{self.port}/?{known}"


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("tls")
    authority, other = trustme.CA(), trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca"))
    other.cert_pem.write_to_path(str(folder / "other"))
    mine = authority.issue_cert("client.example").private_key_and_cert_chain_pem
    mine.write_to_path(str(folder / "mine"))
    server = authority.issue_cert("localhost")
    server.cert_chain_pems[0].write_to_path(str(folder / "cert"))
    server.private_key_pem.write_to_path(str(folder / "key"))
    port = free_port()
    options = [
        f"listeners.ssl.1 = 127.0.0.1:{port}",
        *(f"ssl_options.{name}file = {folder / name}" for name in ("cert", "key")),
        f"ssl_options.cacertfile = {folder / 'ca'}",
        "ssl_options.verify = verify_peer",
        "ssl_options.fail_if_no_peer_cert = true",
    ]
    with RabbitServer(folder / "broker", options) as broker:
        broker.ctl("add_vhost", "other")
        broker.ctl("add_user", "stranger", "pw")
        yield Secured(broker, port, folder)


def test_doctor_has_advice_for_tls_and_virtual_hosts(
    secured: Secured, start_redis: StartRedis, run: Run
) -> None:
    """For each mistake its own, and not whether the broker is up."""
    server = start_redis(arguments=None)
    port = secured.broker.port
    client = {"cacertfile": "ca", "certfile": "mine"}
    away = "is the broker up"
    for place, error, advice in (
        (secured.url(certfile="mine"), "certificate is refused", "name .*tls-ca-file .*cacertfile"),
        (secured.url(**client | {"cacertfile": "other"}), "is refused", "name .*tls-ca-file"),
        (secured.url("127.0.0.1", **client), "mismatch", ".*name in .*tls-server-name"),
        (secured.url(cacertfile="ca"), "(SSL|TLS)", ".*want a certificate .*tls-cert-file"),
        (f"amqp://localhost:{secured.port}/", "no AMQP 0-9-1 handshake", "if this .* set tls on"),
        (f"amqps://localhost:{port}/", "TLS: ", "this port does not speak TLS.*amqp://"),
        (secured.url(cacertfile="none"), "tls-ca-file .* No such file", "the files have to be PEM"),
        (secured.url(**client) + "&auth_mechanism=external", "EXTERNAL", "switch .*_mechanism_ssl"),
        (f"amqp://127.0.0.1:{port}/nope", "vhost nope not found", "`rabbitmqctl add_vhost`.*vhost"),
        (f"amqp://stranger:pw@127.0.0.1:{port}/other", "access to vhost", ".*set_permissions -p"),
        (f"amqp://stranger:no@127.0.0.1:{port}/", "403 ACCESS_REFUSED", "user and password"),
        ("amqp://nowhere.invalid/", "nowhere.invalid", "the name in host"),
        (f"amqp://ssl:tls@127.0.0.1:{free_port()}/SSLError", "Connection refused", away),
    ):
        _, lines = found_by(run, "--redis", url(server), "--amqp", place)
        (line,) = [line for line in lines if line.split()[1] == "broker"]
        assert re.match(f"(problem|unknown) broker .*{error}.* → {advice}", line), (place, line)
        assert (away in line) is (advice is away)
    _, lines = found_by(run, "--redis", url(server), "--amqp", secured.url(**client))
    has(lines, "ok broker ")


def test_doctor_has_advice_for_what_the_module_says(
    secured: Secured, start_redis: StartRedis, run: Run
) -> None:
    """The module knows, and the doctor may not ask for its parameters."""
    given = {"vhost": "nope", "port": secured.broker.port, "exchange": "nowhere", "events": "$"}
    options = [f"keyspaceamqp.{name} {value}" for name, value in given.items()]
    server = start_redis(arguments=[], options=options)
    with server.client() as client:
        client.set("k", 1)
        for name, value, error, advice in (
            ("vhost", "nope", "530 NOT_ALLOWED", "`rabbitmqctl add_vhost`"),
            ("vhost", "/", "404 NOT_FOUND - no exchange 'nowhere'", "`keyspace-amqp declare`"),
            ("tls", "on", "TLS: ", "this port does not speak TLS"),
        ):
            client.config_set(f"keyspaceamqp.{name}", value)
            wait_for(lambda error=error: error in stats(client)["last_error"], SOON)
            expected = re.compile(f"problem state .*{error}.* → {advice}")

            def says(expected: re.Pattern[str] = expected) -> bool:
                _, lines = found_by(run, "--redis", url(server))
                return any(map(expected.match, lines))

            # At the moment of an attempt the link may be up.
            wait_for(says, SOON, expected.pattern)


@pytest.mark.parametrize(
    ("state", "last_error", "expected"),
    [
        ("connecting", "", "warning connecting → look again"),
        (
            "connecting",
            "[Errno 111] Connection refused",
            "problem connecting; why: .*→ is the brok",
        ),
        ("disconnected", "", "problem disconnected → see broker"),
        ("connected", "404 NOT_FOUND - x", "ok connected; earlier error: 404 NOT_FOUND - x → $"),
    ],
)
def test_states_and_their_errors(state: str, last_error: str, expected: str) -> None:
    """While it connects again and again, the module has a problem at each moment."""
    (found,) = node.state(node.Facts(stats={"state": state, "last_error": last_error}))
    assert re.match(expected, f"{found.level} {found.text} → {found.advice}")


class Connection:
    """A connection, and its channels. `refusals`: the errors of its methods, by their names."""

    def __init__(self, **refusals: Exception) -> None:
        self._refusals = refusals

    def channel(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        def method(*_: Any, **__: Any) -> None:
            if name in self._refusals:
                raise self._refusals[name]

        return method


def way(connection: Connection, exchange: str, *, publish: bool) -> list[str]:
    """What the doctor finds on the way of a message."""
    login = pika.ConnectionParameters(credentials=pika.PlainCredentials(b"guest", b"guest"))
    target = amqp.Target("amqp://x/", (login,), exchange, ("key",))
    place = broker_checks.Place(target, replace(DEFAULTS, routing_key="key"))
    found = broker_checks.way(connection, place, publish=publish)
    return [f"{each.level} {each.about} {each.text} → {each.advice}" for each in found]


def test_doctor_and_a_message_without_a_confirm() -> None:
    """The queue is a quorum queue without its majority, for instance."""

    class Silent(Connection):
        def confirm_delivery(self) -> None:
            self._refusals["basic_publish"] = pika.exceptions.AMQPConnectionError("no answer")

    *_, last = way(Silent(), "ks", publish=True)
    assert re.match("problem queue the marked message got no confirm: no answer", last)


def test_doctor_may_not_look_at_the_queue_of_the_default_exchange() -> None:
    """RabbitMQ 4.3 asks for a permission, which the module does not need."""
    denied = pika.exceptions.ChannelClosedByBroker(403, "ACCESS_REFUSED")
    known = ["ok exchange the default one, queue 'key' → ", "ok publishing guest may publish → "]
    assert way(Connection(), "", publish=False) == known
    found = way(Connection(queue_declare=denied), "", publish=False)
    assert found[:1] == known[1:]
    has(found, UNKNOWN_QUEUE)
    assert len(found) == 2


def test_doctor_and_a_broker_that_is_silent(
    start_redis: StartRedis, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The doctor ends, and says what it waited for."""
    server = start_redis(arguments=None)
    monkeypatch.setattr("keyspace_amqp.tools.amqp.TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"amqp://127.0.0.1:{silent.getsockname()[1]}/"
        _, lines = found_by(run, "--redis", url(server), "--amqp", place, "--publish")
    has(lines, "problem broker .*no AMQP 0-9-1 handshake within .*→ does another program")


# ---- replicas ----------------------------------------------------------------------------


def test_doctor_compares_replicas_with_their_primary(
    family: str, broker: RabbitServer, start_redis: StartRedis, run: Run
) -> None:
    """Outside of a cluster each server has parameters of its own, and a promoted replica works with
    its own. Secrets are compared and not shown."""
    primary = start_redis(family, arguments_for(broker), ["repl-diskless-sync-delay 0"])
    options = [f"replicaof 127.0.0.1 {primary.port}", "keyspaceamqp.node-name its-own"]
    replica = start_redis(family, arguments_for(broker), options)
    bare = start_redis(family, None, options[:1])
    with replica.client() as client, bare.client() as other, primary.client() as first:
        linked(client)
        linked(other)
        place = f"127.0.0.1:{replica.port}"

        def compared() -> list[str]:
            _, lines = found_by(run, "--redis", url(primary))
            return [line for line in lines if line.split()[1] == "replicas"]

        lines = compared()
        has(lines, "ok replicas 1 of 2 have the same parameters")
        has(lines, f"warning replicas 127.0.0.1:{bare.port} does not have the module: .*→ load")
        assert len(lines) == 2
        client.config_set("keyspaceamqp.masks", "^user:")
        client.config_set("keyspaceamqp.password", "s3cret")
        expected = f"warning replicas {place} has other parameters than this primary: masks "
        expected += r"'\^user:' \(here 'ALL'\), password \(not shown\) → .* a promoted replica"
        has(compared(), expected)
        assert "s3cret" not in str(compared())
        client.execute_command("ACL", "SETUSER", "default", "-config")
        lines = compared()
        has(lines, expected.replace(r", password \(not shown\)", ""))
        has(lines, f"unknown replicas {place}: not looked at: whether password and url are those")
        client.execute_command("ACL", "SETUSER", "default", "-keyspaceamqp.config")
        has(compared(), f"unknown replicas {place}: NOPERM.* Not looked at: whether its parameters")
        client.execute_command("ACL", "SETUSER", "default", "+@all", "+keyspaceamqp.config")
        client.config_set("requirepass", "pw")
        has(
            compared(),
            f"unknown replicas {place} does not answer: it wants a password",
        )
        with replica.client(password="pw") as known:
            known.config_set("requirepass", "")
        assert first.info("replication")["connected_slaves"] == 2


def test_doctor_and_a_primary_that_goes_away() -> None:
    """After it has answered everything else."""
    primary = nodes.Node("127.0.0.1:1", nodes.open_client("redis://127.0.0.1:1", 1))
    replica = {"ip": "127.0.0.1", "port": 1}
    info = {"role": "master", "connected_slaves": 1, "slave0": replica}
    (finding,) = group.replicas(primary, node.Facts(info=info, parameters={"events": "A"}))
    assert finding.level == "unknown"
    assert "does not answer" in finding.text


# ---- the form of the report --------------------------------------------------------------


@pytest.mark.parametrize("width", [200, 80, 40, 20])
def test_no_line_is_wider_than_the_terminal(width: int, start_redis: StartRedis, run: Run) -> None:
    """However narrow that is, and each word is in it. No line ends with blanks."""
    server = start_redis(arguments=arguments_for(free_port(), "x" * 200))
    terminal, out = pty.openpty()
    fcntl.ioctl(out, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    with subprocess.Popen(
        [sys.executable, "-m", "keyspace_amqp.cli", "doctor", "--redis", url(server)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name != "COLUMNS"},
        stdin=subprocess.DEVNULL,
        stdout=out,
    ) as process:
        os.close(out)
        shown = b""
        with contextlib.suppress(OSError):  # EIO: the tool has ended
            while more := os.read(terminal, 65536):
                shown += more
        assert process.wait(SOON) == 1
    os.close(terminal)
    text = re.sub(r"\x1b\[[0-9;]*m", "", shown.decode())
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert not [line for line in lines if line.endswith(" ")]
    words = "neither RDB saves nor an append-only file: the list ends with the process"
    assert words in " ".join(text.split())
    _, out, _ = run("doctor", "--redis", url(server))
    assert words in out  # nothing is broken in a pipe
    assert not [line for line in out.splitlines() if line.endswith(" ")]


def test_columns_in_the_environment(
    start_redis: StartRedis, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They count in a pipe too: `watch` sets them."""
    server = start_redis(arguments=arguments_for(free_port()))
    monkeypatch.setenv("COLUMNS", "60")
    _, out, _ = run("doctor", "--redis", url(server))
    assert 40 < max(map(len, out.splitlines())) <= 60


def test_colours_in_a_pipe(
    start_redis: StartRedis, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable that asks for them makes no terminal of it: no line is broken."""
    server = start_redis(arguments=arguments_for(free_port()))
    monkeypatch.delenv("COLUMNS", raising=False)
    _, plain, _ = run("doctor", "--redis", url(server))
    monkeypatch.setenv("FORCE_COLOR", "1")
    _, out, _ = run("doctor", "--redis", url(server))
    assert "\x1b[" in out
    assert len(out.splitlines()) == len(plain.splitlines())
