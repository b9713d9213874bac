"""Messages between the nodes, which a changed handler records and sends."""

from __future__ import annotations

import json
import struct
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from keyspace_amqp.cluster.wire import MAGIC, VERSION, pack, unpack
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from keyspace_amqp.worker.status import LOG_EVERY
from tests.fix_nodes import SOON, Nodes, as_map, everybody, started, sums, write
from tests.fix_servers import _SERVERS, Mailbox, handler_copy, once, settled, stats
from tests.servers import REDIS
from tests.system.test_secrets import found, shown

# Appended to worker/loop.py in a copy of the handler. A node sends the messages in a file named
# `say`. While there is a file named `keep`, it appends what it sends to `sent`. While there is one
# named `later`, its messages have the additions of a later version.
TALK = """

import pathlib as _pathlib
import struct as _struct
from keyspace_amqp.cluster import peers as _peers
from keyspace_amqp.jobs import BusMessage as _BusMessage
from keyspace_amqp.worker.records import counted as _counted


def _submit(self, job, done, _submit=JobQueue.submit):
    for command in job.commands:
        if isinstance(command, _BusMessage) and _pathlib.Path("keep").exists():
            with _pathlib.Path("sent").open("ab") as file:
                file.write(b"".join(_struct.pack("=I", len(p)) + p for p in command.arguments))
    _submit(self, job, done)


def _poll(self, _poll=ClusterIO.poll):
    say = _pathlib.Path("say")
    if say.exists():
        texts = list(_counted(say.read_bytes()))
        say.unlink()
        for text in texts:
            self.send("", text)
    _poll(self)


def _pack(message, _pack=_peers.pack):
    if _pathlib.Path("later").exists():
        message = {**message, "more": {"of": ["this", 1, None]}, "Kind": 7}
        version = [1, "of later"]
        if message["kind"] == "hello":
            message["speaks"] = 2
            message["versions"] = {**message["versions"], "later-name": version}
        if message["kind"] == "have":
            given = {"later-name": [version, "later-value"]}
            message["registers"] = {**message["registers"], **given}
    return _pack(message)


JobQueue.submit = _submit
ClusterIO.poll = _poll
_peers.pack = _pack
"""


@pytest.fixture(scope="module")
def talking_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    folder = tmp_path_factory.mktemp("talking")
    module = handler_copy(folder / "environment")
    with (module.parent / "worker" / "loop.py").open("a") as file:
        file.write(TALK)
    with started(Nodes(folder, REDIS, module)) as nodes:
        yield nodes


@pytest.fixture
def talking(talking_cluster: Nodes, request: pytest.FixtureRequest) -> Nodes:
    """A cluster whose messages a test can read and make, see TALK."""
    request.node.stash.setdefault(_SERVERS, []).extend(talking_cluster.nodes)
    for node in talking_cluster.nodes:
        for name in ("say", "keep", "sent", "later"):
            (node.folder / name).unlink(missing_ok=True)
    talking_cluster.fresh()
    return talking_cluster


def say(cluster: Nodes, node: RedisServer, messages: Sequence[bytes]) -> None:
    """Makes a node send messages to all others."""
    data = b"".join(struct.pack("=I", len(message)) + message for message in messages)
    (node.folder / "said").write_bytes(data)
    (node.folder / "said").rename(node.folder / "say")
    cluster.run(node, "CLUSTER LOCAL")  # it is awake
    wait_for(lambda: not (node.folder / "say").exists(), SOON)


def sent(node: RedisServer) -> list[tuple[str, dict[str, Any]]]:
    """What a node has sent since the file `keep` is there: targets and messages."""
    path = node.folder / "sent"
    data = path.read_bytes() if path.exists() else b""
    parts, at = [], 0
    while at < len(data):
        (length,) = struct.unpack_from("=I", data, at)
        if at + 4 + length > len(data):  # it is being written
            break
        parts.append(data[at + 4 : at + 4 + length])
        at += 4 + length
    return [
        (target.decode(), unpack(text))
        for target, text in zip(parts[::2], parts[1::2], strict=False)
    ]


def framed(body: bytes, version: int = VERSION, magic: bytes = MAGIC) -> bytes:
    """A message with a right checksum."""
    return struct.pack("!3sBI", magic, version, zlib.crc32(body)) + body


def garbage() -> list[bytes]:
    """Messages that no node understands."""
    good = pack({"kind": "have", "registers": {"exchange": [(9**17, "x"), b"bad"]}})
    wrong: list[Any] = [
        [],
        "hello",
        None,
        {},
        {"kind": ["hello"]},
        {"kind": "goodbye"},
        {"kind": "hello"},
        {"kind": "hello", "versions": []},
        {"kind": "hello", "versions": {"exchange": 9**17}},
        {"kind": "hello", "versions": {"exchange": [9**17]}},
        {"kind": "hello", "versions": {"exchange": [-1, "x"]}},
        {"kind": "hello", "versions": {"exchange": [2**63, "x"]}},
        {"kind": "hello", "versions": {"exchange": [9**17, 1]}},
        {"kind": "want"},
        {"kind": "want", "names": "exchange"},
        {"kind": "want", "names": [["exchange"]]},
        {"kind": "have"},
        {"kind": "have", "registers": {"exchange": "bad"}},
        {"kind": "have", "registers": {"exchange": [[9**17, "x"], 1]}},
        {"kind": "have", "registers": {"exchange": [[9**17, "x"], "\u1234"]}},
        {"kind": "have", "registers": {"exchange": [[9**17, "x"], "bad"], "port": 1}},
        {"kind": "have", "registers": {"exchange": [[9**17, "x"], "bad"]}, "id": 1},
        {"kind": "run"},
        {"kind": "run", "words": ["KEYSPACEAMQP.DISCONNECT"]},
        {"kind": "run", "words": [1], "id": "1"},
        {"kind": "run", "words": "KEYSPACEAMQP.DISCONNECT", "id": "1"},
        {"kind": "done"},
        {"kind": "done", "id": {}},
    ]
    return [
        b"",
        b"K",
        b"garbage " * 1000,
        bytes(range(256)),
        good[:-1],
        good + b" ",
        good[:20] + bytes([good[20] ^ 1]) + good[21:],
        framed(good[8:], magic=b"KSX"),
        # Of other versions, whose form may be another or the same.
        framed(good[8:], version=2),
        framed(b"\0\1\2", version=3),
        framed(good[8:], version=0),
        framed(b"\xff\xfe"),
        framed(b"{"),
        framed(b"[" * 100_000),
        framed(b'{"kind": "hello", "versions": {"exchange": [' + b"9" * 5000 + b', "x"]}}'),
        *(framed(json.dumps(message).encode()) for message in wrong),
    ]


def test_garbage_is_ignored(talking: Nodes) -> None:
    """It is counted, logged at a bounded rate, and changes nothing."""
    speaker, *others = talking.nodes
    messages = garbage()
    talking.run(speaker, "CONFIG SET", "exchange", "good")
    versions = talking.versions()
    marks = [len(node.log()) for node in talking.nodes]
    begin = time.monotonic()
    for _ in range(5):
        say(talking, speaker, messages)
    for word in ("abcdefghijklmnopqrstuvwxyz" * 2)[:30]:  # each with a complaint of its own
        say(talking, speaker, [pack({"kind": word})])
    count = 5 * len(messages) + 30
    for node in others:
        settled(talking.at(node), messages_rejected=count, handler_errors=0)
    assert stats(talking.at(speaker))["messages_rejected"] == 0
    assert talking.versions() == versions
    assert talking.values("exchange") == [b"good"] * 6
    for mark, node in zip(marks[1:], others, strict=True):
        lines = [line for line in node.log()[mark:].splitlines() if "message of node" in line]
        assert 1 <= len(lines) <= 2 + (time.monotonic() - begin) // LOG_EVERY
        assert talking.id_of(speaker) in lines[0]
    for node in talking.nodes:
        assert as_map(talking.run(node, "CONFIG SET", "heartbeat", node.port)) == everybody(b"OK")
        assert len(talking.rows(node)) == 6
        assert stats(talking.at(node))["state"] != "disconnected" or node in talking.primaries()
    talking.agree(heartbeat=talking.nodes[-1].port)
    assert talking.run(speaker, "STATS CLUSTER")[b"messages_rejected"] == count * 5
    assert as_map(talking.run(speaker, "STATS RESET")) == everybody(b"OK")
    assert talking.run(speaker, "STATS CLUSTER")[b"messages_rejected"] == 0


def test_commands_and_answers_that_nobody_knows(talking: Nodes) -> None:
    """Their form is right, their content is not: a command that does not exist, answers without a
    question, values that are refused. Nothing breaks."""
    speaker, *others = talking.nodes
    late = talking.versions()[0] + 1
    write(talking, [str(number) for number in range(30)])
    say(
        talking,
        speaker,
        [
            pack(message)
            for message in (
                {"kind": "run", "words": ["KEYSPACEAMQP.LATER", "SET"], "id": "a:1"},
                {"kind": "run", "words": ["later"], "id": "a:2"},
                {"kind": "run", "words": [], "id": "a:3"},
                {"kind": "run", "words": ["KEYSPACEAMQP.STATS", "\xff"], "id": "a:4"},
                {"kind": "run", "words": ["KEYSPACEAMQP.STATS"], "id": "a:5"},
                {"kind": "done", "id": "nobody:1", "reply": {"a": [None]}, "error": None},
                {"kind": "have", "registers": {"port": [[late, "x"], "no port"]}, "id": "a:6"},
            )
        ],
    )
    for node in others:
        wait_for(lambda node=node: "refused what another node" in node.log(), SOON)
        settled(talking.at(node), handler_errors=0, messages_rejected=0)
    for node in talking.nodes:
        assert as_map(talking.run(node, "CONFIG SET", "port", node.port)) == everybody(b"OK")
    talking.agree(port=talking.nodes[-1].port)
    assert as_map(talking.run(speaker, "FALLBACK LEN")) == everybody(30)
    assert sums(talking, talking.nodes)["events_seen"] == 30


def test_nodes_of_a_later_version(talking: Nodes) -> None:
    """A rolling upgrade: half of the nodes send fields that the others do not know, and have a
    parameter that the others do not have."""
    later, earlier = talking.nodes[::2], talking.nodes[1::2]
    for node in later:
        (node.folder / "later").touch()
    for number, node in enumerate(talking.nodes):
        for line, result in (
            (f"CONFIG SET exchange x{number}", b"OK"),
            (f"KEYMASK SET m{number}", 1),
            ("CONNECT", b"OK"),
            ("FALLBACK LEN", 0),
            ("FALLBACK DRAIN", 0),
        ):
            assert as_map(talking.run(node, line)) == everybody(result)
        assert len(talking.rows(node)) == 6
        assert talking.run(node, "STATS CLUSTER")[b"nodes"] == 6
    talking.agree(exchange="x5", masks="m5")
    # A node that starts again hears everything from all others, also the unknown parameter.
    earlier[0].kill()
    earlier[0].start()
    talking.ready()
    talking.agree(exchange="x5", masks="m5")
    for node in talking.nodes:
        (node.folder / "keep").touch()
    wait_for(
        lambda: [m for n in earlier for _, m in sent(n) if "later-name" in m.get("versions", {})],
        SOON,
        "earlier ones have kept it for the others",
    )
    for node in talking.nodes:
        settled(talking.at(node), messages_rejected=0, handler_errors=0)


def test_the_password(
    talking: Nodes, broker: RabbitServer, mailbox: Mailbox, request: pytest.FixtureRequest
) -> None:
    """The password is set on one node, and all nodes log in with it. No output shows it. It is sent
    only to nodes that do not have it."""
    user, password = f"user-{uuid.uuid4()}", f"secret-{uuid.uuid4().hex}"
    broker.ctl("add_user", user, password)
    request.addfinalizer(lambda: broker.ctl("delete_user", user))
    broker.ctl("set_permissions", user, ".*", ".*", ".*")
    for node in talking.nodes:
        talking.at(node).config_set("slowlog-log-slower-than", 0)
        talking.at(node).config_set("loglevel", "debug")
    setter = talking.nodes[0]
    ids = {talking.id_of(node): node for node in talking.nodes}
    talking.run(setter, "CONFIG SET", "port", broker.port, "routing-key", mailbox.routing_key)
    for node in talking.nodes:
        (node.folder / "keep").touch()

    def hellos(more: int) -> None:
        """Waits until each node has sent this many hellos."""

        def count(node: RedisServer) -> int:
            return sum(message["kind"] == "hello" for _, message in sent(node))

        target = {node: count(node) + more for node in talking.nodes}
        wait_for(lambda: all(count(node) >= target[node] for node in talking.nodes), SOON)

    def carriers() -> list[tuple[RedisServer, RedisServer | None, dict[str, Any]]]:
        """The messages with the password: sender, receiver (None: all), and message."""
        return [
            (node, ids.get(target), message)
            for node in talking.nodes
            for target, message in sent(node)
            if password in json.dumps(message)
        ]

    reply = talking.run(setter, "CONFIG SET", "username", user, "password", password)
    assert as_map(reply) == everybody(b"OK")
    keys = [f"key:{number}" for number in range(30)]
    write(talking, keys)
    for primary in talking.primaries():
        settled(talking.at(primary), state="connected", fallback_length=0)
    arrived = once(mailbox.receive(30))
    assert {message.event[2].decode() for message in arrived} == set(keys)
    hellos(1)
    told = carriers()
    assert {target for _, target, _ in told} == set(talking.nodes[1:])
    for sender, target, message in told:
        assert (message["kind"], set(message["registers"])) == ("have", {"username", "password"})
        if sender is not setter:  # sent its hello before the other node had the new value
            assert target is not None
            assert "want" in {asked["kind"] for to, asked in sent(target) if ids.get(to) is sender}
    # Nothing else makes a node send it: no other change, command, or failure.
    for node in talking.nodes:
        talking.run(node, "CONFIG SET", "heartbeat", 33)
        talking.run(node, "KEYMASK SET", "ALL")
        talking.run(node, "CONNECT")
        talking.run(node, "FALLBACK PEEK", 100)
        talking.run(node, "STATS CLUSTER")
    hellos(1)
    assert carriers() == told
    # A node that has lost it gets it again.
    back = talking.replica_of(talking.primaries()[0])
    back.kill()
    back.start()
    talking.ready()
    talking.agree(heartbeat=33, username=user)
    again = [row for row in carriers() if row not in told]
    assert {target for _, target, _ in again} == {back}
    assert {message["kind"] for _, _, message in again} == {"have"}
    # And it works there.
    talking.at(back).execute_command("CLUSTER FAILOVER")
    wait_for(lambda: stats(talking.at(back))["state"] != "replica", SOON)
    talking.ready()
    write(talking, keys)
    for primary in talking.primaries():
        settled(talking.at(primary), state="connected", fallback_length=0)
    texts = [
        talking.run(node, line) for node in talking.nodes for line in ("CLUSTER", "STATS CLUSTER")
    ]
    assert found(texts) == []
    for node in talking.nodes:
        assert shown(node, talking.at(node)) == {}
        assert password in talking.at(node).config_get("keyspaceamqp.password").values()
