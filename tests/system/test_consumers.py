"""Programs that read the messages, as people have them: kombu, and those of docs/consumers.md."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pathlib
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import kombu
import pika
import pytest

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from tests.fix_outbox import with_outbox
from tests.fix_servers import ROOT, Mailbox, StartRedis, arguments_for, settled
from tests.servers import REDIS

# Keys that are text, and keys that are not. The last one is cut within a character.
KEYS = [b"user:1", "clé:ü".encode(), b"\xff\xfe", b"\0\n", "user:€".encode()[:-1]]


# ---- kombu -----------------------------------------------------------------------


def by_kombu(broker: RabbitServer, mailbox: Mailbox, count: int, **options: Any) -> list[Any]:
    """Return the payloads of messages, as kombu gives them to a program. Raises what ends such a
    program."""
    payloads: list[Any] = []

    def on_message(payload: Any, message: kombu.Message) -> None:
        payloads.append(payload)
        message.ack()

    address = f"amqp://guest:guest@127.0.0.1:{broker.port}//"
    queue = kombu.Queue(mailbox.name, no_declare=True)
    with kombu.Connection(address) as connection:
        with connection.Consumer(queue, callbacks=[on_message], prefetch_count=100, **options):
            while len(payloads) < count:
                try:
                    connection.drain_events(timeout=60)
                except TimeoutError:
                    pytest.fail(f"{len(payloads)} of {count} messages")
    return payloads


def as_bytes(payload: str | bytes) -> bytes:
    return payload.encode() if isinstance(payload, str) else payload


@with_outbox([REDIS])
def test_kombu_lives_on_after_keys_that_are_no_text(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """Text is `str`, all else is `bytes`: of single messages, of many at a time, and of those that
    come from the list."""
    server = start_redis(family, arguments_for(broker, mailbox, "$"))
    client = server.client()
    expected = []

    def write(keys: list[bytes]) -> None:
        with client.pipeline(transaction=False) as pipeline:
            for key in keys:
                pipeline.set(key, 1)
                expected.append(b"0\nset\n" + key)
            pipeline.execute()

    for key in KEYS:
        write([key])
    write(KEYS * 200)
    settled(client, confirmed=len(expected))
    client.execute_command("KEYSPACEAMQP.DISCONNECT")
    write(KEYS * 200)
    settled(client, fallback_length=len(KEYS) * 200, queue_length=0)
    client.execute_command("KEYSPACEAMQP.CONNECT")
    settled(client, confirmed=len(expected), fallback_length=0)
    accept = ["text/plain", "application/octet-stream"]
    payloads = by_kombu(broker, mailbox, len(expected), accept=accept)
    assert [as_bytes(payload) for payload in payloads] == expected
    assert [type(payload) for payload in payloads[: len(KEYS)]] == [str, str, bytes, str, bytes]


@pytest.mark.parametrize("form", ["json", "cloudevents", "cloudevents-structured"])
def test_kombu_reads_the_other_formats(
    form: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    server = start_redis(
        arguments=arguments_for(broker, mailbox, "$"), options=[f"keyspaceamqp.format {form}"]
    )
    client = server.client()
    for key in KEYS:
        client.set(key, 1)
    payloads = by_kombu(broker, mailbox, len(KEYS))
    kind = str if form == "cloudevents-structured" else dict
    assert [type(payload) for payload in payloads] == [kind] * len(KEYS)


# ---- the programs of the page ----------------------------------------------------

PAGE = (ROOT / "docs" / "consumers.md").read_text()
QUEUE, DEAD = "redis-events", "redis-events.dead"
# What a program that starts on a busy machine may take, and a compiler.
SOON = 120


def of_page(language: str) -> str:
    """Return the first piece of code in this language."""
    (found, *_) = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


# The languages whose programs have to run: a test of these that cannot run fails.
REQUIRED = os.environ.get("KEYSPACE_AMQP_LANGUAGES", "").split()


class Missing(Exception):
    """This machine lacks a part of a toolchain. The text says which."""


def needed(*programs: str) -> None:
    """Raise Missing if this machine lacks one of the programs."""
    for program in programs:
        if shutil.which(program) is None:
            raise Missing(f"no {program} here")


def cache(language: str) -> pathlib.Path:
    """Return a folder for what need not be fetched or compiled again."""
    folder = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(folder, "keyspace-amqp", language)


def python(folder: pathlib.Path) -> tuple[list[str], Mapping[str, str]]:
    (folder / "consumer.py").write_text(of_page("python"))
    return [sys.executable, "consumer.py"], {"DATABASE": "events.sqlite"}


def javascript(folder: pathlib.Path) -> tuple[list[str], Mapping[str, str]]:
    """amqplib comes from npm, once."""
    needed("node", "npm")
    modules = cache("node") / "node_modules"
    if not (modules / "amqplib" / "package.json").exists():
        modules.mkdir(parents=True, exist_ok=True)
        command = ["npm", "install", "--no-audit", "--no-fund", "--no-save", "amqplib@2"]
        done = subprocess.run(
            command, cwd=modules.parent, timeout=SOON, capture_output=True, text=True
        )
        if done.returncode != 0:
            raise Missing(f"npm cannot install amqplib: {done.stderr}")
    (folder / "consumer.js").write_text(of_page("javascript"))
    return ["node", "consumer.js"], {"NODE_PATH": str(modules)}


def java(folder: pathlib.Path) -> tuple[list[str], Mapping[str, str]]:
    """Debian has no Spring AMQP, so the jars are named by the environment."""
    needed("java", "javac")
    jars = os.environ.get("SPRING_AMQP_CLASSPATH")
    if jars is None:
        raise Missing("SPRING_AMQP_CLASSPATH does not name Spring AMQP, Jackson and what they need")
    (folder / "Consumer.java").write_text(of_page("java"))
    subprocess.run(["javac", "-cp", jars, "Consumer.java"], cwd=folder, check=True)
    return ["java", "-cp", f"{jars}:.", "Consumer"], {}


def go(folder: pathlib.Path) -> tuple[list[str], Mapping[str, str]]:
    """The library is that of Debian's package, without modules."""
    needed("go")
    path = pathlib.Path(os.environ.get("GOPATH", "/usr/share/gocode"))
    if not (path / "src/github.com/rabbitmq/amqp091-go").exists():
        raise Missing(f"no amqp091-go in {path}; Debian: golang-github-rabbitmq-amqp091-go-dev")
    (folder / "consumer.go").write_text(of_page("go"))
    more = {"GO111MODULE": "off", "GOPATH": str(path), "GOCACHE": str(cache("go"))}
    for command in (["vet", "consumer.go"], ["build", "consumer.go"]):
        subprocess.run(["go", *command], cwd=folder, check=True, env=os.environ | more)
    return ["./consumer"], {}


LANGUAGES: dict[str, Callable[[pathlib.Path], tuple[list[str], Mapping[str, str]]]] = {
    "python": python,
    "javascript": javascript,
    "java": java,
    "go": go,
}


@dataclasses.dataclass
class Code:
    """A program of the page, ready to run in its folder."""

    language: str
    command: list[str]
    environment: Mapping[str, str]


@pytest.fixture(params=LANGUAGES)
def code(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Code:
    """The program of each language in turn. Without its toolchain, the test is skipped, or fails
    if the language is among the required ones."""
    language = str(request.param)
    try:
        return Code(language, *LANGUAGES[language](tmp_path))
    except Missing as error:
        (pytest.fail if language in REQUIRED else pytest.skip)(str(error))


@dataclasses.dataclass
class Program:
    """A program of the page that runs. `out`: what it says."""

    process: subprocess.Popen[bytes]
    out: pathlib.Path

    @property
    def lines(self) -> list[str]:
        return self.out.read_text(errors="replace").splitlines()


@contextlib.contextmanager
def running(code: Code, folder: pathlib.Path, broker: RabbitServer) -> Iterator[Program]:
    more = {**code.environment, "AMQP_URL": f"amqp://guest:guest@127.0.0.1:{broker.port}"}
    out, errors = folder / "out", folder / "errors"
    with out.open("ab") as stdout, errors.open("ab") as stderr:
        process = subprocess.Popen(
            code.command, cwd=folder, env=os.environ | more, stdout=stdout, stderr=stderr
        )
    try:
        yield Program(process, out)
    except BaseException:
        print(errors.read_text())
        raise
    finally:
        process.kill()
        process.wait()


def waiting(broker: RabbitServer, queue: str) -> tuple[int, int]:
    """Return the messages of a queue that are ready, and its consumers; -1: there is none."""
    with broker.connection() as connection:
        try:
            method = connection.channel().queue_declare(queue, passive=True).method
        except pika.exceptions.ChannelClosedByBroker:
            return -1, -1
        return method.message_count, method.consumer_count


def publish(channel: Any, identity: str, body: bytes) -> None:
    """Publish a message as the module would."""
    properties = pika.BasicProperties(message_id=identity, delivery_mode=2)
    channel.basic_publish("amq.topic", "redis.0.set.x", body, properties)


@pytest.fixture
def queues(broker: RabbitServer) -> Iterator[None]:
    """The queues that the programs declare are gone after the test."""
    yield
    with broker.connection() as connection:
        for queue in (QUEUE, DEAD):
            connection.channel().queue_delete(queue)


def as_on_the_page(broker: RabbitServer, start_redis: StartRedis) -> RedisServer:
    """Return a server with the lines of the page's redis.conf."""
    text = of_page("text")
    lines = [*text.splitlines(), f"keyspaceamqp.port {broker.port}"]
    return start_redis(arguments=["A"], options=lines)


def test_a_program_of_the_page(
    code: Code,
    broker: RabbitServer,
    queues: None,
    start_redis: StartRedis,
    tmp_path: pathlib.Path,
) -> None:
    """It works on each event once and in order, also if a message is repeated. A message that
    fails each time is dead after a while, and holds up no other."""
    server = as_on_the_page(broker, start_redis)
    client = server.client()
    with running(code, tmp_path, broker) as program, broker.connection() as admin:
        wait_for(lambda: waiting(broker, QUEUE)[1] == 1, SOON, f"{code.language} consumes")
        keys = [f"user:{number}" for number in range(300)]
        for key in keys:
            client.set(key, 1)
        client.set(b"\xff", 1)
        settled(client, confirmed=301)  # so they are in the queue before what follows
        channel = admin.channel()
        repeated = b'{"db":0,"event":"set","key":"repeated"}'
        publish(channel, "twice", repeated)
        publish(channel, "twice", repeated)
        publish(channel, "bad", b"no JSON")
        wait_for(lambda: waiting(broker, DEAD)[0] == 1, SOON, "the bad message is dead")
        client.set("last", 1)
        wait_for(lambda: program.lines[-1:] == ["0 set last"], SOON, "the last event")
        assert program.lines[:300] == [f"0 set {key}" for key in keys]
        assert program.lines[301:] == ["0 set repeated", "0 set last"]
        failures = (tmp_path / "errors").read_text(errors="replace").count("bad failed")
        assert failures >= 6  # a program may say each of them more than once
        # It acknowledges the last event after it has said so.
        listed = ("list_queues", "--quiet", "--no-table-headers", "name", "messages")
        wait_for(lambda: f"{QUEUE}\t0" in broker.ctl(*listed).splitlines(), SOON, "all is done")
    settled(client, confirmed=302, returned=0)
    # What was not acknowledged would come back now.
    wait_for(lambda: waiting(broker, QUEUE)[1] == 0, SOON, "the program is gone")
    assert waiting(broker, QUEUE)[0] == 0
    with broker.connection() as connection:
        _, properties, body = connection.channel().basic_get(DEAD)
        assert (properties.message_id, body) == ("bad", b"no JSON")
        assert properties.headers["x-death"][0]["queue"] == QUEUE


def test_a_program_begins_again(
    code: Code, broker: RabbitServer, queues: None, tmp_path: pathlib.Path
) -> None:
    """After a queue that it cannot use, and after the end of its connection."""
    with broker.connection() as connection:
        connection.channel().queue_declare(QUEUE, durable=True)
    with running(code, tmp_path, broker) as program:
        errors = tmp_path / "errors"
        wait_for(lambda: b"inequivalent arg" in errors.read_bytes(), SOON, "it cannot declare")
        with broker.connection() as connection:
            connection.channel().queue_delete(QUEUE)
        for key in ("first", "second"):
            wait_for(lambda: waiting(broker, QUEUE)[1] == 1, SOON, f"{code.language} consumes")
            with broker.connection() as connection:
                body = b'{"db":0,"event":"set","key":"%s"}' % key.encode()
                publish(connection.channel(), key, body)
            wait_for(lambda last=f"0 set {key}": program.lines[-1:] == [last], SOON, key)
            broker.ctl("close_all_connections", "for a test")


def test_the_python_program_is_killed(
    broker: RabbitServer, queues: None, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """Each event is worked on exactly once, wherever the kills hit."""
    code = Code("python", *python(tmp_path))
    client = as_on_the_page(broker, start_redis).client()

    def work() -> list[bytes]:
        with contextlib.closing(sqlite3.connect(tmp_path / "events.sqlite")) as database:
            return [key for (key,) in database.execute("SELECT key FROM changes")]

    expected = [b"key:%d" % number for number in range(800)]
    for begin in range(0, 800, 200):
        with running(code, tmp_path, broker) as program:
            wait_for(lambda: waiting(broker, QUEUE)[1] == 1, SOON, "the program consumes")
            for key in expected[begin : begin + 200]:
                client.set(key, 1)
            wait_for(lambda end=begin + 40: len(work()) > end, SOON, "a part of the work")
            program.process.send_signal(signal.SIGKILL)
            program.process.wait()
    with running(code, tmp_path, broker):
        wait_for(lambda: len(work()) >= len(expected), SOON, "all of the work")
        wait_for(lambda: waiting(broker, QUEUE)[0] == 0, SOON, "nothing waits")
    assert sorted(work()) == sorted(expected)
