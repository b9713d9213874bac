"""`keyspace-amqp status`, `tail` and `doctor` on real servers: what they show, what they
say when something is away, and how they end."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import pty
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pika
import pytest
import redis
import trustme

from keyspace_amqp import __version__, cli
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tools import amqp, doctor, nodes, replies
from tests.fix_cluster import StartCluster
from tests.fix_faults import Proxy
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
from tests.servers import REDIS, old_program

ALL_TOOLS = ("declare", "status", "tail", "doctor")
# Bounds against hangs.
SOON = 30.0


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_URL", "REDISCLI_AUTH", "AMQP_URL", "AMQP_PASSWORD"):
        monkeypatch.delenv(name, raising=False)


def url(server: RedisServer) -> str:
    return f"redis://127.0.0.1:{server.port}"


def amqp_url(broker: RabbitServer, user: str = "guest:guest") -> str:
    return f"amqp://{user}@127.0.0.1:{broker.port}/"


# ---- a tool that runs ----------------------------------------------------------------

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a tool in this process; returns its exit code, stdout and stderr."""

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main(words)
        return code, *capfd.readouterr()

    return run


class Running:
    """A tool in a process of its own. In a `with`, which ends it."""

    def __init__(self, folder: pathlib.Path, *words: str, terminal: bool = False) -> None:
        self._outputs = folder / "stdout", folder / "stderr"
        self._terminal = -1
        with contextlib.ExitStack() as stack:
            stdout, stderr = (stack.enter_context(p.open("wb")) for p in self._outputs)
            out: Any = stdout
            if terminal:
                self._terminal, out = pty.openpty()
                os.set_blocking(self._terminal, False)
                stack.callback(os.close, out)
            self.process = subprocess.Popen(
                [sys.executable, "-m", "keyspace_amqp.cli", *words],
                cwd=ROOT,
                env=os.environ | {"COLUMNS": "200", "LINES": "50", "TERM": "xterm"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=stderr,
                # The tests may run where Ctrl-C is ignored: in the background of a script.
                preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
            )
        self._shown = b""

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        if self._terminal >= 0:
            os.close(self._terminal)

    @property
    def out(self) -> str:
        if self._terminal >= 0:
            with contextlib.suppress(BlockingIOError, OSError):  # EIO: the other end is closed
                while more := os.read(self._terminal, 65536):
                    self._shown += more
            return self._shown.decode()
        return self._outputs[0].read_text()

    @property
    def err(self) -> str:
        return self._outputs[1].read_text()

    def waits(self, condition: Callable[[Running], Any], what: str = "") -> Any:
        def met() -> Any:
            assert self.process.poll() is None, f"it has ended: {self.out}{self.err}"
            return condition(self)

        try:
            return wait_for(met, SOON, what)
        except TimeoutError:
            pytest.fail(f"waited for {what}: {self.out}\n{self.err}")

    def interrupted(self) -> int:
        """Sends Ctrl-C; returns the exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(SOON)


def tailing(folder: pathlib.Path, *words: str) -> Running:
    """A `tail` that has its queue."""
    tail = Running(folder, "tail", *words)
    try:
        tail.waits(lambda tail: "routing key" in tail.err, "it reads")
    except BaseException:
        tail.__exit__()
        raise
    return tail


# ---- the command line ----------------------------------------------------------------


@pytest.mark.parametrize("tool", ALL_TOOLS)
def test_without_packages(tool: str) -> None:
    """--help needs only the standard library, and explains; everything else says which package is
    missing."""

    def bare(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-S", "-m", "keyspace_amqp.cli", tool, *words]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SOON)

    helped = bare("--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "example: " in helped.stdout
    assert "exit code: " in helped.stdout
    ended = bare()
    assert ended.returncode == 1
    assert re.search(r"package \w+ is missing: pip install 'keyspace-amqp\[tools\]'", ended.stderr)


@pytest.mark.parametrize("tool", ALL_TOOLS)
@pytest.mark.parametrize("given", ["redis://u:s3cret@127.0.0.1:{port}", "http://u:s3cret@x", ":"])
def test_no_server(tool: str, given: str, run: Run) -> None:
    """An error message, without the password."""
    code, out, err = run(tool, "--redis", given.format(port=free_port()))
    assert (code, out) == (1, "")
    assert err.startswith("keyspace-amqp: ")
    assert "s3cret" not in err


def test_a_server_that_hangs(start_redis: StartRedis) -> None:
    """It is not asked several times, which would take several times as long."""
    server = start_redis()
    with Proxy(server.port) as link:
        options = argparse.Namespace(redis=f"redis://127.0.0.1:{link.port}")
        with nodes.connect(options, timeout=2) as client:
            assert replies.stats(client)["state"] == "idle"
            link.deaf = True
            with pytest.raises(redis.TimeoutError):
                replies.stats(client)
            link.deaf = False
            assert replies.stats(client)["state"] == "idle"
        assert link.links == 2


def test_nodes_are_asked_at_the_same_time() -> None:
    """However long one node takes, and whatever it answers."""
    barrier = threading.Barrier(3)

    def question(node: nodes.Node) -> str:
        barrier.wait(SOON)
        if node.address == "b":
            raise redis.TimeoutError
        return node.address

    group = [nodes.Node(name, redis.Redis()) for name in "abc"]
    first, second, third = [answer for _, answer in nodes.ask(group, question)]
    assert (first, third) == ("a", "c")
    assert isinstance(second, redis.TimeoutError)


def test_ways_to_a_server(
    start_redis: StartRedis, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Addresses and passwords, from the command line and the environment."""
    server = start_redis(options=["unixsocket redis.sock"], arguments=None)
    with server.client() as client:
        client.config_set("requirepass", "pw")
    path = server.folder / "redis.sock"
    place = f"127.0.0.1:{server.port}"
    _, _, err = run("status", "--redis", url(server))
    assert "it wants a password" in err
    for given in (f"redis://:pw@{place}", f"unix://:pw@{path}", f"redis://{place}?password=pw"):
        _, out, _ = run("status", "--redis", given)
        assert "the module is not loaded" in out
        assert (str(path) if "unix" in given else place) in out
    monkeypatch.setenv("REDISCLI_AUTH", "pw")
    monkeypatch.setenv("REDIS_URL", url(server))
    _, out, _ = run("status")
    assert "the module is not loaded" in out
    with server.client(password="pw") as client:
        client.config_set("requirepass", "")  # for the end of the test


def test_tls_to_a_server(start_redis: StartRedis, run: Run, tmp_path: pathlib.Path) -> None:
    """With the certificates that the URL names; a server with an unknown certificate is refused."""
    authority, port = trustme.CA(), free_port()
    mine = authority.issue_cert("127.0.0.1")
    files = {name: str(tmp_path / name) for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(files["ca"])
    mine.cert_chain_pems[0].write_to_path(files["cert"])
    mine.private_key_pem.write_to_path(files["key"])
    start_redis(
        options=[
            f"tls-port {port}",
            *(f"tls-{name}-file {files[name]}" for name in ("cert", "key")),
            f"tls-ca-cert-file {files['ca']}",
            "tls-auth-clients no",
        ]
    )
    code, out, _ = run("status", "--redis", f"rediss://127.0.0.1:{port}?ssl_ca_certs={files['ca']}")
    assert code == 0
    assert rows(out)[f"127.0.0.1:{port}"]["state"] == "idle"
    code, _, err = run("status", "--redis", f"rediss://127.0.0.1:{port}")
    assert code == 1
    assert "CERTIFICATE_VERIFY_FAILED" in err


def test_nodes_come_and_go(start_redis: StartRedis) -> None:
    """A group of nodes follows the cluster; a server outside of a cluster does not know its own
    host."""
    options = ["cluster-enabled yes", "cluster-config-file nodes.conf"]
    one, two = (
        start_redis(arguments=None, options=[*options, f"cluster-port {free_port()}"])
        for _ in range(2)
    )
    with nodes.Group(argparse.Namespace(redis=url(one))) as group, one.client() as client:

        def known(*servers: RedisServer) -> bool:
            group.renew(client)
            addresses = sorted(f"127.0.0.1:{server.port}" for server in servers)
            return [node.address for node in group.nodes] == addresses

        assert known(one)
        bus = two.options[-1].split()[1]
        client.execute_command("CLUSTER", "MEET", "127.0.0.1", two.port, bus)
        wait_for(lambda: known(one, two), SOON, "there are two")
        answers = nodes.ask(group.nodes, lambda node: node.client.info("server")["tcp_port"])
        assert sorted(port for _, port in answers) == sorted([one.port, two.port])
        with two.client() as other:
            client.execute_command("CLUSTER", "FORGET", other.execute_command("CLUSTER MYID"))
        wait_for(lambda: known(one), SOON, "there is one")


# ---- status --------------------------------------------------------------------------


def rows(out: str) -> dict[str, dict[str, str]]:
    """The rows of the table, by address; columns are at least two blanks apart."""
    head, *lines = [re.split(r" {2,}", line.rstrip()) for line in out.splitlines()]
    return {line[0]: dict(zip(head[1:], line[1:], strict=False)) for line in lines}


def test_status(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, run: Run
) -> None:
    """The table and JSON say what STATS says."""
    options = ["keyspaceamqp.outbox reply"]
    server = start_redis(family, arguments_for(broker, mailbox), options)
    with server.client() as client:
        for number in range(1234):
            client.set("k", number)
        said = settled(client, confirmed=1234, fallback_length=0)  # the list is trimmed
    code, out, err = run("status", "--redis", url(server))
    assert (code, err) == (0, "")
    (row,) = rows(out).values()
    assert row["role"] == "primary"
    assert row["state"] == "connected"
    assert row["broker"] == f"127.0.0.1:{broker.port}"
    assert row["outbox"] == "reply"
    assert row["matched"] == row["confirmed"] == "1,234"
    assert row["dropped"] == row["list"] == row["in flight"] == row["queue"] == "0"
    code, out, err = run("status", "--json", "--redis", url(server))
    assert (code, err) == (0, "")
    (node,) = json.loads(out)["nodes"]
    assert node == {"address": f"127.0.0.1:{server.port}", "role": "primary", "stats": said}


def test_status_live(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """On a terminal it goes on until Ctrl-C, also while a server is away. It shows confirms per
    second, and losses stand out."""
    server = start_redis(arguments=arguments_for(broker, mailbox))
    words = ("status", "--interval", "0.05", "--redis", url(server))
    with Running(tmp_path, *words, terminal=True) as status, server.client() as client:

        def more() -> bool:
            client.set("k", "v")
            cells = re.findall(r"127\.0\.0\.1:\d+  primary .*", status.out)[-1:]
            return bool(cells) and int(cells[0].split()[6].replace(",", "")) > 0

        status.waits(lambda status: "per s" in status.out, "a table")
        status.waits(lambda _: more(), "confirms per second")
        settled(client)
        client.execute_command("KEYSPACEAMQP.DISCONNECT")
        client.set("k", "v")
        settled(client, fallback_length=1)
        client.execute_command("KEYSPACEAMQP.FALLBACK", "PURGE")
        status.waits(lambda status: re.search(r"41m *1\x1b", status.out), "a loss on red")
        server.signal(signal.SIGSTOP)
        status.waits(lambda status: "no answer in time" in status.out, "no answer")
        server.signal(signal.SIGCONT)
        there = len(status.out)
        status.waits(lambda status: "disconnected" in status.out[there:], "it is back")
        assert status.interrupted() == 130
        assert status.err == ""
        client.execute_command("KEYSPACEAMQP.CONNECT")


# ---- a cluster -----------------------------------------------------------------------


def test_a_cluster(
    broker: RabbitServer,
    start_cluster: StartCluster,
    run: Run,
    tmp_path: pathlib.Path,
) -> None:
    """All three tools see all nodes; a node that is down and one that hangs do not stop them."""
    bench = start_cluster(REDIS, broker, options=["unixsocket redis.sock"])
    primary = bench.cluster.primaries()[0]
    with tailing(tmp_path, "--redis", url(primary), "--count", "300") as tail:
        bench.write(300)
        assert tail.process.wait(SOON) == 0
        came = {line.split()[3].encode() for line in tail.out.splitlines()}
        assert came == {key for _, key in bench.written}
    bench.waits_for(confirmed=300)
    socket = f"unix://{primary.folder}/redis.sock"
    code, out, _ = run("status", "--redis", socket)
    assert code == 0
    shown = rows(out)
    assert list(shown) == [*sorted(f"127.0.0.1:{node.port}" for node in bench.running), "sum"]
    assert [shown[row]["role"] for row in shown].count("replica") == 3
    assert shown["sum"]["role"] == "6 of 6"
    assert re.search(r"^sum .* 300 +300 +0 +0 +0 +0$", out.rstrip(), re.MULTILINE)

    code, out, _ = run("doctor", "--redis", socket)
    assert code == 0, out
    assert re.search(r"^ok +server +Redis [\d.]+  \[6 of 6 nodes\]", out, re.MULTILINE)
    assert re.search(r"^ok +cluster +all 6 nodes know each other", out, re.MULTILINE)
    assert len(re.findall(r"^ok +broker", out, re.MULTILINE)) == 1  # one for all
    assert re.search(r"^ok +role +primary  \[[\d.:]+, [\d.:]+, [\d.:]+\]", out, re.MULTILINE)

    replicas = [node for node in bench.running if bench.role(node) == "replica"]
    down, hangs = replicas[:2]
    down.kill()
    hangs.signal(signal.SIGSTOP)
    try:
        code, out, _ = run("status", "--redis", url(primary))
        assert code == 1
        shown = rows(out)
        assert shown["sum"]["role"] == "4 of 6"
        assert re.search(rf":{down.port} .*no answer .*Connection refused", out)
        assert re.search(rf":{hangs.port} .*no answer .*no answer in time", out)
        code, out, _ = run("doctor", "--json", "--redis", url(primary))
        assert code == 1
        found = json.loads(out)["findings"]
        away = {f"127.0.0.1:{node.port}" for node in (down, hangs)}
        silent = [f for f in found if "does not answer" in f["text"]]
        assert {address for f in silent for address in f["nodes"]} == away
        missing = [f["text"] for f in found if f["about"] == "cluster"]
        assert {word for text in missing for word in away if word in text} == away
        assert [f["level"] for f in found if f["about"] == "publishing"] == ["ok"]
    finally:
        hangs.signal(signal.SIGCONT)
    bench.cluster.wait_settled()
    bench.checked()


# ---- tail ----------------------------------------------------------------------------


def test_tail_shows_all_forms(broker: RabbitServer, start_redis: StartRedis, run: Run) -> None:
    """Text, JSON, CloudEvents in binary mode; anything else as its escaped body. Control characters
    are escaped, and repeated messages are marked."""
    mailbox = Mailbox(broker)
    data = {"db": 2, "event": "set", "class": "$", "time_ms": 1700000000123}

    def publish(body: bytes, content_type: str, **properties: Any) -> tuple[Any, ...]:
        return body, pika.BasicProperties(content_type=content_type, **properties)

    # Anything that other clients may send; it must not end the tool.
    foreign = [b'{"event": 1, "key_base64": 5}', b"[" * 100_000, b"[]", b'{"event": 1}', b'"x"']
    foreign += [b'{"event": "\\ud800", "key": "\\ud800", "time_ms": 1e9}']
    foreign += [b'{"event": "set", "key": {"a": null}, "time_ms": 9' + b"9" * 30 + b"}"]
    messages = [
        publish(b"0\nset\nuser:1", "text/plain", message_id="id-1", timestamp=1700000000),
        publish(b"3\ndel\n\x00\xff\n \x1b[31m", "text/plain", message_id="id-2"),
        publish("0\nset\nklö b".encode(), "text/plain", message_id="id-1"),
        publish(json.dumps({**data, "key": "a:b"}).encode(), "application/json", message_id="id-3"),
        publish(
            json.dumps({**data, "key_base64": "AP8="}).encode(),
            "application/json",
            headers={"cloudEvents:id": "id-4", "cloudEvents:type": "redis.set"},
        ),
        publish(b'{"no": "event\x1b"', "application/json", message_id="id-5"),
        publish(b"\xff" * 5000, "application/octet-stream"),
        publish(b"no lines", "text/plain"),
        *(publish(body, "application/json", timestamp=2**63) for body in foreign),
    ]
    words = ("--amqp", amqp_url(broker), "--exchange", "amq.direct")
    words += ("--routing-key", mailbox.routing_key, "--count", str(len(messages)))

    def shown(*more: str) -> str:
        folder = pathlib.Path(broker.folder) / f"tail{len(more)}{''.join(more)}"
        folder.mkdir()
        with tailing(folder, *words, *more) as tail:
            with broker.connection() as connection:
                channel = connection.channel()
                for body, properties in messages:
                    channel.basic_publish("amq.direct", mailbox.routing_key, body, properties)
            assert tail.process.wait(SOON) == 0
            return (folder / "stdout").read_bytes().decode("latin-1")

    clock = time.strftime("%H:%M:%S", time.localtime(1700000000))
    lines = shown().encode("latin-1").decode().splitlines()
    assert [re.split(" {2,}", line) for line in (lines[0], lines[3], lines[4])] == [
        [clock, "0", "set", "user:1", "id-1"],
        [f"{clock}.123", "2", "set", "a:b", "id-3"],
        [f"{clock}.123", "2", "set", r"\x00\xff", "id-4"],
    ]
    assert r" 3  del          \x00\xff\n \x1b[31m " in lines[1]
    assert re.search(r"klö b +id-1 +repeated$", lines[2])
    assert r'{"no": "event\x1b"' in lines[5]
    assert lines[6].endswith(r"\xff\xff")
    assert len(lines) == len(messages)
    assert r"\xed\xa0\x80" in lines[-2]
    assert "no lines" in lines[7]

    objects = [json.loads(line) for line in shown("--json").splitlines()]
    assert [o.get("key") for o in objects] == [
        *("user:1", None, "klö b", "a:b"),
        *[None] * 9,
        *("\ud800", {"a": None}),
    ]
    assert [o.get("key_base64") for o in objects[:5]] == [None, "AP8KIBtbMzFt", None, None, "AP8="]
    assert [o["repeated"] for o in objects] == [number == 2 for number in range(len(objects))]
    assert objects[3].items() > data.items()
    assert objects[3]["message_id"] == "id-3"
    assert objects[7]["body"] == "no lines"
    assert shown("--body").encode("latin-1") == b"".join(body + b"\n" for body, _ in messages)


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout"])
def test_tail_of_an_exchange(
    kind: str, broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """It takes broker, exchange and routing key from the module, and leaves nothing at the
    broker."""
    exchange = f"tools-{kind}"
    with broker.connection() as connection:
        connection.channel().exchange_declare(exchange, kind)
        arguments = [*arguments_for(broker)[:6], exchange, "events.of.redis"]
        server = start_redis(arguments=["A", *arguments[1:]])
        more = ("--routing-key", "*.of.#", "--routing-key", "none") if kind == "topic" else ()
        with server.client() as client, tailing(tmp_path, "--redis", url(server), *more) as tail:
            client.set("key:1", "v")
            tail.waits(lambda tail: "key:1" in tail.out, "the event")
            assert tail.interrupted() == 130
            assert tail.out.count("\n") == 1
            assert tail.err.count("\n") == 1
            assert settled(client)["returned"] == 0
        connection.channel().exchange_delete(exchange)
    wait_for(lambda: "amq.gen" not in broker.ctl("list_queues", "name"), SOON, "its queue is gone")


def test_tail_over_a_restart_of_the_broker(
    own_broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """It says that it has missed messages, and goes on. Ctrl-C ends it also while the broker
    hangs."""
    server = start_redis(arguments=arguments_for(own_broker))
    with server.client() as client, tailing(tmp_path, "--redis", url(server)) as tail:
        client.set("before", "v")
        tail.waits(lambda tail: "before" in tail.out, "the first event")
        own_broker.kill()
        tail.waits(lambda tail: "the connection is lost: " in tail.err, "it tells of the loss")
        own_broker.start()
        tail.waits(lambda tail: re.search(r"connected again. What .* was missed", tail.err))
        settled(client, in_flight=0, fallback_length=0, queue_length=0)
        client.set("after", "v")
        tail.waits(lambda tail: "after" in tail.out, "the second event")
        own_broker.signal(signal.SIGSTOP)
        try:
            assert tail.interrupted() == 130
        finally:
            own_broker.signal(signal.SIGCONT)
        assert "Traceback" not in tail.err


def test_tail_cannot_begin(
    broker: RabbitServer, start_redis: StartRedis, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it says why, exits with 1, and shows no password."""
    server = start_redis(arguments=arguments_for(broker))
    bare = start_redis(arguments=None)
    ours, away = ("--redis", url(server)), f"amqp://u:s3cret@127.0.0.1:{free_port()}/"
    for words, expected in (
        ((*ours, "--exchange", "nowhere"), "no exchange 'nowhere'"),
        ((*ours, "--exchange", ""), "nothing can be bound"),
        ((*ours, "--amqp", amqp_url(broker, "guest:s3cret")), "403 ACCESS_REFUSED"),
        ((*ours, "--amqp", amqp_url(broker) + "nowhere"), "virtual host"),
        ((*ours, "--amqp", away), "Connection refused"),
        ((*ours, "--amqp", "http://u:s3cret@x"), "amqp://user:password@host"),
        ((*ours, "--amqp", "amqp://u:s3cret@x:port"), "cannot be read"),
        (("--redis", url(bare)), "the module is not loaded"),
    ):
        code, out, err = run("tail", *words)
        assert (code, out) == (1, ""), words
        assert expected in err
        assert "s3cret" not in err
        assert err.count("\n") == 1
    with monkeypatch.context() as patch, socket.create_server(("127.0.0.1", 0)) as silent:
        patch.setattr(amqp, "TIMEOUT", 1.0)
        _, _, err = run("tail", *ours, "--amqp", f"amqp://127.0.0.1:{silent.getsockname()[1]}/")
    assert "no AMQP 0-9-1 handshake within 1 seconds" in err
    monkeypatch.setenv("AMQP_PASSWORD", "wrong")
    code, _, err = run("tail", *ours)
    assert "403 ACCESS_REFUSED" in err
    monkeypatch.setenv("AMQP_URL", away)
    assert "Connection refused" in run("tail", *ours)[2]


# ---- doctor --------------------------------------------------------------------------


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


def facts(outbox: str, now: str, *, size: int = 1000, **info: Any) -> doctor.Facts:
    """The answers of a primary; `now`: the text of STATS."""
    return doctor.Facts(
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
def test_doctor_looks_at_the_outbox(given: doctor.Facts, expected: str) -> None:
    found = [f"{each.level} {each.text} {each.advice}" for each in doctor.outbox(given)]
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
    (finding,) = doctor.outbox(found)
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
        assert any(re.search("^problem losses returned 1: .*→ bind a queue", x) for x in bad), bad
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
    monkeypatch.setattr(doctor, "__version__", "99.1")
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
    (finding,) = doctor.persistence(doctor.Facts(info, {"save": ""}))
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
    found = list(doctor.server(doctor.Facts(info, parameters={"events": "g"})))
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
    found = list(doctor.server(doctor.Facts(info, parameters={"events": "g"})))
    assert ("MOVE and COPY" in str(found)) is moved


def test_doctor_with_few_rights(
    broker: RabbitServer, start_redis: StartRedis, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names what it may not ask, and goes on with the rest; status needs few rights."""
    server = start_redis(arguments=arguments_for(broker))
    rights = ["+ping", "+info", "+cluster|nodes", "+keyspaceamqp.stats", "+module|list"]
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "watcher", "on", ">pw", *rights)
    place = f"redis://watcher:pw@127.0.0.1:{server.port}"
    assert run("status", "--redis", place)[0] == 0
    code, out, _ = run("doctor", "--redis", place)
    assert code == 0
    for command in ("CONFIG GET", "KEYSPACEAMQP.CONFIG GET"):
        assert re.search(f"^warning +access +{command}: NOPERM", out, re.MULTILINE)
    assert re.search("^ok +server +Redis", out, re.MULTILINE)
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "watcher", "-module|list")
    _, out, _ = run("doctor", "--redis", place)
    assert re.search("^warning +access +MODULE LIST: NOPERM", out, re.MULTILINE)
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

    found = [(finding.level, finding.text) for finding in doctor.cluster(Client())]
    assert found == [
        ("problem", "its state is fail: lists can be neither written nor read"),
        ("problem", "version differs: a:1 1, b:2 2"),
        ("warning", "config_version differs: a:1 1, b:2 3"),
    ]
