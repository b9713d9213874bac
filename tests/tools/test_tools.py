"""`keyspace-amqp status` and `tail` on real servers: what they show, what they say when something
is away, and how they end; and what all tools have in common."""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import Any

import pika
import pytest
import redis
import trustme

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from keyspace_amqp.tools import amqp, nodes, replies
from tests.fix_cluster import StartCluster
from tests.fix_faults import Proxy
from tests.fix_servers import ROOT, Mailbox, StartRedis, arguments_for, settled
from tests.fix_tools import SOON, Run, Running, amqp_url, url
from tests.servers import REDIS

ALL_TOOLS = ("declare", "status", "tail", "doctor")


# ---- a tool that runs ----------------------------------------------------------------


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


@dataclasses.dataclass
class Files:
    """Files of two authorities in a folder: `ca` and `other`; of the server and of a client, both
    of the first authority: `cert`, `key`, `mine`, `mykey`; and `junk`."""

    folder: pathlib.Path

    def __post_init__(self) -> None:
        authority = trustme.CA()
        server, client = authority.issue_cert("localhost"), authority.issue_cert("client.example")
        for name, blob in (
            ("ca", authority.cert_pem),
            ("other", trustme.CA().cert_pem),
            ("cert", server.cert_chain_pems[0]),
            ("key", server.private_key_pem),
            ("mine", client.cert_chain_pems[0]),
            ("mykey", client.private_key_pem),
        ):
            blob.write_to_path(str(self.folder / name))
        (self.folder / "junk").write_text("no certificate")

    def query(self, **names: str) -> str:
        """The query of a URL; the values are names of files, or words."""
        known = {name: self.folder / value for name, value in names.items()}
        return "&".join(
            f"{name}={path if path.exists() else names[name]}" for name, path in known.items()
        )


def test_tls_to_a_server(start_redis: StartRedis, run: Run, tmp_path: pathlib.Path) -> None:
    """With the certificates that the URL names. Every mistake has an error that says what to give,
    and the file or the name that is wrong."""
    files, port = Files(tmp_path), free_port()
    server = start_redis(
        options=[
            f"tls-port {port}",
            *(f"tls-{name}-file {tmp_path / name}" for name in ("cert", "key")),
            f"tls-ca-cert-file {tmp_path / 'ca'}",
        ]
    )
    client = {"ssl_certfile": "mine", "ssl_keyfile": "mykey"}
    place = f"rediss://localhost:{port}"

    def status(where: str, **names: str) -> tuple[int, str, str]:
        return run("status", "--redis", f"{where}?{files.query(**names)}")

    code, out, _ = status(place, ssl_ca_certs="ca", **client)
    assert code == 0
    assert rows(out)[f"localhost:{port}"]["state"] == "idle"
    by_number = f"rediss://127.0.0.1:{port}"
    for more in ({"ssl_check_hostname": "no"}, {"ssl_cert_reqs": "none"}):
        assert status(by_number, ssl_ca_certs="ca", **client, **more)[0] == 0
    for where, names, expected in (
        (place, client, r"certificate is refused: self.signed .*\?ssl_ca_certs=FILE"),
        (place, {"ssl_ca_certs": "other", **client}, r"refused: self.signed .*\?ssl_ca_certs=FILE"),
        (
            by_number,
            {"ssl_ca_certs": "ca", **client},
            "refused: IP address mismatch.*check_hostname",
        ),
        (place, {"ssl_ca_certs": "ca"}, "want a certificate .*ssl_certfile=FILE&ssl_keyfile=FILE"),
        (f"redis://localhost:{port}", {}, "if this port wants TLS: rediss://"),
        (place, {"ssl_ca_certs": "/none"}, "ssl_ca_certs /none cannot be used: .*No such file"),
        (place, {"ssl_ca_certs": "junk"}, "ssl_ca_certs .*/junk cannot be used: no certificate"),
        (place, {"ssl_ca_path": "/none"}, "ssl_ca_path /none is no folder"),
        (place, {"ssl_certfile": "mine", "ssl_keyfile": "key"}, "ssl_keyfile .*/key .*mismatch"),
        (place, {"ssl_keyfile": "mykey"}, "ssl_keyfile is of use with ssl_certfile only"),
        (place, {"ssl_cert_reqs": "maybe"}, "'maybe' is not accepted; give required"),
        (
            place,
            {"ssl_ca_cert": "ca"},
            "'ssl_ca_cert' is not accepted in the URL; give ssl_ca",
        ),
        (url(server), {"ssl_ca_certs": "ca"}, "ssl_ca_certs is for TLS.* rediss://"),
    ):
        code, out, err = status(where, **names)
        assert (code, out, err.count("\n")) == (1, "", 1), (names, err)
        assert re.search(expected, err), err


def test_a_server_without_tls(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may wait for the end of what it takes for a command."""
    monkeypatch.setattr("keyspace_amqp.tools.status.TIMEOUT", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        place = f"rediss://127.0.0.1:{silent.getsockname()[1]}"
        code, _, err = run("status", "--redis", place)
    assert code == 1
    assert "no answer in time; does this port speak TLS? Without TLS: redis://" in err


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
        said = settled(client, confirmed=1234, fallback_length=0, queue_length=0, in_flight=0)
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
            words = cells[0].split() if cells else []  # of half a row, if the rest has not come
            return len(words) > 7 and int(words[6].replace(",", "")) > 0

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
    assert re.search(r"^ok +cluster +6 nodes: each knows all others", out, re.MULTILINE)
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
    """Text, JSON, CloudEvents in both modes; anything else as its escaped body. Control characters
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
        publish(b"3\ndel\n\x00\xff\n \x1b[31m", "application/octet-stream", message_id="id-2"),
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
        publish(
            json.dumps({"specversion": "1.0", "data": {**data, "key": "a:c"}}).encode(),
            "application/cloudevents+json",
            message_id="id-6",
        ),
        publish(b'{"specversion": "1.0"}', "application/cloudevents+json; charset=utf-8"),
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
    assert [re.split(" {2,}", line) for line in (lines[0], lines[3], lines[4], lines[8])] == [
        [clock, "0", "set", "user:1", "id-1"],
        [f"{clock}.123", "2", "set", "a:b", "id-3"],
        [f"{clock}.123", "2", "set", r"\x00\xff", "id-4"],
        [f"{clock}.123", "2", "set", "a:c", "id-6"],
    ]
    assert r" 3  del          \x00\xff\n \x1b[31m " in lines[1]
    assert re.search(r"klö b +id-1 +repeated$", lines[2])
    assert r'{"no": "event\x1b"' in lines[5]
    assert lines[6].endswith(r"\xff\xff")
    assert len(lines) == len(messages)
    assert r"\xed\xa0\x80" in lines[-2]
    assert "no lines" in lines[7]
    assert '{"specversion": "1.0"}' in lines[9]

    objects = [json.loads(line) for line in shown("--json").splitlines()]
    assert [o.get("key") for o in objects] == [
        *("user:1", None, "klö b", "a:b"),
        *[None] * 4,
        "a:c",
        *[None] * 6,
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
        ((*ours, "--amqp", "http://u:s3cret@x"), "it begins with amqp:// or amqps://"),
        ((*ours, "--amqp", "amqp://u:s3cret@x:port"), "(:1 to :65535)"),
        ((*ours, "--amqp", "amqp://u:s3cret#@x"), "write %23"),
        ((*ours, "--amqp", ""), "it begins with amqp:// or amqps://"),
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
