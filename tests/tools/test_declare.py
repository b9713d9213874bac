"""`keyspace-amqp declare` on a real broker: what it makes, what it leaves alone, and its errors."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, free_port, wait_for
from keyspace_amqp.demo.servers.ports import listens
from keyspace_amqp.tools import ToolError, declare
from tests import servers
from tests.fix_servers import ROOT, StartRedis, arguments_for, settled
from tests.fix_tools import Run, amqp_url, url
from tests.servers import REDIS

Step = Callable[[Any], object]


class Place:
    """A broker with a name that nothing else has, for a queue and an exchange."""

    def __init__(self, broker: RabbitServer, run: Run) -> None:
        self.broker = broker
        self.name = f"declare-{uuid.uuid4()}"
        self.url = amqp_url(broker)
        self._run = run

    def run(self, *words: str) -> tuple[int, str, str]:
        """Runs it; returns its exit code, stdout and stderr. The name stands for NAME."""
        words = tuple(word.replace("NAME", self.name) for word in words)
        code, out, err = self._run("declare", *words)
        return code, out.replace(self.name, "NAME"), err.replace(self.name, "NAME")

    def alone(self, *words: str, exchange: str = "NAME", key: str = "NAME") -> tuple[int, str, str]:
        """Runs it for this exchange and binding key, without a server of Redis."""
        where = ("--amqp", self.url, "--exchange", exchange, "--routing-key", key)
        return self.run(*where, "--queue", "NAME", *words)

    def attempt(self, step: Step) -> str:
        """Carries out a step; returns the broker's error, if it closes the channel."""
        with self.broker.connection() as connection:
            try:
                step(connection.channel())
            except pika.exceptions.ChannelClosed as error:
                return str(error.reply_text)
        return ""

    @property
    def has_queue(self) -> bool:
        return not self.attempt(lambda c: c.queue_declare(self.name, passive=True))

    @property
    def has_exchange(self) -> bool:
        return not self.attempt(lambda c: c.exchange_declare(self.name, passive=True))

    def queue(self, **arguments: Any) -> None:
        error = self.attempt(lambda c: c.queue_declare(self.name, **arguments))
        assert not error, error

    def exchange(self, kind: str, **arguments: Any) -> None:
        error = self.attempt(lambda c: c.exchange_declare(self.name, kind, **arguments))
        assert not error, error

    def routes(self, exchange: str, key: str) -> bool:
        """True if a message reaches a queue."""
        with self.broker.connection() as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            try:
                channel.basic_publish(exchange, key, b"", mandatory=True)
            except pika.exceptions.UnroutableError:
                return False
        return True


@pytest.fixture
def place(broker: RabbitServer, run: Run) -> Iterator[Place]:
    place = Place(broker, run)
    yield place
    with broker.connection() as connection:
        for step in ("queue_delete", "exchange_delete"):
            with contextlib.suppress(pika.exceptions.ChannelClosed):
                getattr(connection.channel(), step)(place.name)


# ---- what it makes ---------------------------------------------------------------------------


def test_from_nothing_to_a_message(family: str, place: Place, start_redis: StartRedis) -> None:
    """All comes from the module's parameters. A second run changes nothing, and a consumer may
    declare the queue itself."""
    arguments = [*arguments_for(place.broker)[:6], "amq.direct", place.name, 2]
    server = start_redis(family, arguments)
    where = ("--redis", url(server))
    shown = (
        f"broker    amqp://guest@127.0.0.1:{place.broker.port}/ (RabbitMQ VERSION)\n"
        "exchange  'amq.direct' (direct): is there\n"
        "queue     'NAME' (classic, durable): DECLARED\n"
        "binding   'amq.direct' to 'NAME' with 'NAME': BOUND\n"
    )
    for words, declared, bound in (
        (("--dry-run",), "would be declared", "would be bound"),
        ((), "declared", "bound"),
        ((), "is there", "bound"),
        (("--dry-run",), "is there", "would be bound"),
    ):
        code, out, err = place.run(*where, *words)
        expected = shown.replace("DECLARED", declared).replace("BOUND", bound)
        version = out.partition("RabbitMQ ")[2].partition(")")[0]
        assert (code, out, err) == (0, expected.replace("VERSION", version), "")
        if declared.startswith("would"):
            assert not place.has_queue
    client = server.client()
    client.set("user:42", "Ada")
    settled(client, confirmed=1, returned=0)
    place.queue(durable=True)  # as in the pages
    assert place.routes("", place.name)


@contextlib.contextmanager
def ended(pidfile: pathlib.Path) -> Iterator[None]:
    """A `with` at whose end a server in the background is killed, if it still has its file. It
    writes that before it listens, and removes it at the end of a shutdown."""
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int(pidfile.read_text()), signal.SIGKILL)


def test_the_commands_of_the_readme(broker: RabbitServer, tmp_path: pathlib.Path) -> None:
    """From nothing to a message, with the ports of this test instead of the usual ones."""
    lines = (ROOT / "README.md").read_text().partition("### A first message\n")[2].splitlines()
    block = lines[lines.index("```console") + 1 : lines.index("```")]
    commands = [line.removeprefix("$ ") for line in block if line.startswith("$ ")]
    assert len(commands) == 3
    port, programs, pidfile = free_port(), tmp_path / "programs", tmp_path / "pid"
    programs.mkdir()
    own = f"--port {port} --dir {tmp_path} --pidfile {pidfile} --keyspaceamqp.port {broker.port}"
    for name, command in {
        "redis-server": f'{servers.program(REDIS)} "$@" {own}',
        "redis-cli": f'{shutil.which("redis-cli")} -p {port} "$@"',
        "keyspace-amqp": f'{sys.executable} -m keyspace_amqp.cli "$@"',
    }.items():
        (programs / name).write_text(f"#!/bin/sh\nexec {command}\n")
        (programs / name).chmod(0o755)
    environment = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "REDIS_URL": f"redis://127.0.0.1:{port}",
    }

    def typed(command: str) -> str:
        return subprocess.run(
            ["sh", "-c", command],
            env=environment, cwd=ROOT, check=True, capture_output=True, text=True, timeout=60,
        ).stdout  # fmt: skip

    with (
        ended(pidfile),
        redis.Redis(port=port) as client,
        broker.connection() as connection,
    ):
        typed(commands[0])
        wait_for(lambda: pidfile.exists() and listens(port), 60)
        try:
            said = typed(commands[1])
            assert [line for line in said.splitlines() if not line.startswith("broker")] == [
                line for line in block if line.startswith(("exchange", "queue", "binding"))
            ]
            assert typed(commands[2]).strip() == block[-1]
            settled(client, confirmed=1, returned=0)
            _, _, body = connection.channel().basic_get("redis_keyspace_events", auto_ack=True)
            assert body == b"0\nset\nuser:42"
        finally:
            client.shutdown(nosave=True)
            connection.channel().queue_delete("redis_keyspace_events")


@pytest.mark.parametrize(
    ("kind", "argument", "shown"),
    [
        ("classic", "x-max-length=1000", "classic, durable, x-max-length 1000"),
        ("quorum", "x-dead-letter-exchange=dead", "quorum, durable, x-dead-letter-exchange dead"),
        ("stream", "x-max-age=7D", "stream, durable, x-max-age 7D"),
        ("quorum", "x-single-active-consumer=true",
         "quorum, durable, x-single-active-consumer True"),
    ],
)  # fmt: skip
def test_kinds_of_queues(kind: str, argument: str, shown: str, place: Place) -> None:
    words = ("--queue-type", kind, "--argument", argument)
    for done in ("declared", "is there"):
        code, out, err = place.alone(*words)
        assert (code, err) == (0, "")
        assert f"queue     'NAME' ({shown}): {done}\n" in out
        assert f"exchange  'NAME' (direct): {done}\n" in out
    assert place.routes(place.name, place.name)


def test_a_stream_without_a_limit(place: Place) -> None:
    code, out, _ = place.alone("--queue-type", "stream")
    assert code == 0
    assert "note      a stream keeps all messages, unless" in out


def test_delivery_mode(place: Place, start_redis: StartRedis) -> None:
    """With 1, a durable queue of the kind classic loses its messages when the broker restarts."""
    for mode, kind, told in ((1, "classic", True), (1, "quorum", False), (2, "classic", False)):
        server = start_redis(
            arguments=[*arguments_for(place.broker)[:6], "amq.direct", place.name, mode]
        )
        where = ("--redis", url(server), "--queue-type", kind, "--dry-run")
        assert ("delivery-mode is 1" in place.run(*where)[1]) is told


def test_a_routing_key_that_depends_on_the_event(place: Place, start_redis: StartRedis) -> None:
    """A new exchange is a topic one, and the queue gets all events and nothing else."""
    key = "redis.{db}.{event}.{key:1}"
    arguments = [*arguments_for(place.broker)[:6], place.name, key, 2]
    server = start_redis(arguments=arguments)
    where = ("--redis", url(server), "--queue", "NAME")
    code, out, _ = place.run(*where)
    assert code == 0
    assert "exchange  'NAME' (topic): declared\n" in out
    assert "binding   'NAME' to 'NAME' with 'redis.#': bound\n" in out
    client = server.client()
    client.set("user:42", "Ada")
    settled(client, confirmed=1, returned=0)
    assert not place.routes(place.name, "other.0.set.user")
    code, out, _ = place.run(*where, "--routing-key", "other.#")
    assert "binding   'NAME' to 'NAME' with 'other.#': bound\n" in out
    assert place.routes(place.name, "other.0.set.user")


@pytest.mark.parametrize("kind", ["direct", "topic", "fanout", "headers"])
def test_an_exchange_that_is_there(kind: str, place: Place) -> None:
    """Is taken as it is, unless its type is asked for; it may have an alternate exchange."""
    place.exchange(kind, durable=True, arguments={"alternate-exchange": "amq.fanout"})
    code, out, _ = place.alone()
    assert code == 0
    assert f"exchange  'NAME' ({kind}): is there\n" in out
    other = "topic" if kind == "direct" else "direct"
    code, _, err = place.alone("--exchange-type", other)
    assert code == 1
    assert (
        f"exchange 'NAME' exists already and differs: its type is {kind}; give --exchange-type"
        in err
    )
    assert place.alone("--exchange-type", kind)[0] == 0


@pytest.mark.parametrize(
    ("exchange", "kind"),
    [("amq.topic", "topic"), ("amq.fanout", "fanout"), ("amq.match", "headers")],
)
def test_exchanges_of_every_broker(exchange: str, kind: str, place: Place) -> None:
    code, out, _ = place.alone(exchange=exchange)
    assert code == 0
    assert f"exchange  '{exchange}' ({kind}): is there\n" in out
    code, _, err = place.alone("--exchange-type", "direct", exchange=exchange)
    assert (code, err) == (
        1,
        f"keyspace-amqp: the exchange '{exchange}' is of the type {kind} in every broker\n",
    )
    assert place.routes(exchange, place.name)


def test_the_default_exchange(place: Place, start_redis: StartRedis) -> None:
    """It reaches the queue with the name of the routing key, without a binding."""
    arguments = [*arguments_for(place.broker)[:6], "", place.name, 2]
    server = start_redis(arguments=arguments)
    where = ("--redis", url(server))
    code, _, err = place.run(*where, "--queue", "other")
    assert code == 1
    assert "sends messages to the queue 'NAME' only: leave out --queue" in err
    code, out, _ = place.run(*where)
    assert code == 0
    assert out.splitlines()[1:] == [
        "exchange  the default one: is there",
        "queue     'NAME' (classic, durable): declared",
    ]
    assert place.routes("", place.name)


# ---- what it refuses ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("there", "words", "expected"),
    [
        ({"durable": True}, ("--queue-type", "quorum"),
         "its x-queue-type is classic; give --queue-type classic, or another --queue"),
        ({"durable": True, "arguments": {"x-queue-type": "quorum"}}, (),
         "its x-queue-type is quorum; give --queue-type quorum, or another --queue"),
        ({"durable": True, "arguments": {"x-max-length": 5}}, (),
         "its x-max-length is 5; give --argument x-max-length=5, or another --queue"),
        ({"durable": True, "arguments": {"x-max-length": 5}}, ("--argument", "x-max-length=6"),
         "its x-max-length is 5; give --argument x-max-length=5, or another --queue"),
        ({"durable": True}, ("--argument", "x-max-length=6"),
         "its x-max-length is not set; leave out --argument x-max-length, or give another --queue"),
        ({"durable": True, "auto_delete": True}, (),
         "its auto_delete is true; delete it, or give another --queue"),
    ],
)  # fmt: skip
def test_a_queue_that_differs(
    there: dict[str, Any], words: tuple[str, ...], expected: str, place: Place
) -> None:
    """Also with --dry-run; nothing is changed, and nothing is bound."""
    place.queue(**there)
    for more in ((), ("--dry-run",)):
        code, out, err = place.alone(*words, *more)
        assert (code, err) == (
            1,
            f"keyspace-amqp: the queue 'NAME' exists already and differs: {expected}\n",
        )
        assert "binding" not in out
    place.queue(**there)


@pytest.mark.parametrize(
    ("there", "expected"),
    [
        ({"auto_delete": True, "durable": True}, "its auto_delete is true"),
        ({"internal": True, "durable": True}, "its internal is true"),
        ({}, "its durable is false"),
    ],
)
def test_an_exchange_that_differs(there: dict[str, Any], expected: str, place: Place) -> None:
    place.exchange("direct", **there)
    code, _, err = place.alone()
    assert code == 1
    assert f"the exchange 'NAME' exists already and differs: {expected}; delete it" in err
    assert not place.has_queue


def test_a_direct_exchange_and_a_key_that_depends_on_the_event(
    place: Place, start_redis: StartRedis
) -> None:
    arguments = [*arguments_for(place.broker)[:6], "amq.direct", "{event}", 2]
    server = start_redis(arguments=arguments)
    where = ("--redis", url(server), "--queue", "NAME")
    code, _, err = place.run(*where)
    assert code == 1
    assert "type direct, and the routing key is '{event}': give --routing-key for each" in err
    assert not place.has_queue
    code, out, _ = place.run(*where, "--routing-key", "set", "--routing-key", "expired")
    assert code == 0
    assert out.count("binding") == 2


def test_a_dry_run_makes_nothing(place: Place) -> None:
    code, out, _ = place.alone("--dry-run", key="redis.#")
    assert code == 0
    assert out.splitlines()[1:] == [
        "exchange  'NAME' (topic): would be declared",
        "queue     'NAME' (classic, durable): would be declared",
        "binding   'NAME' to 'NAME' with 'redis.#': would be bound",
    ]
    assert not place.has_queue
    assert not place.has_exchange


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--argument", "x-max-length=five"), "expected integer"),
        (("--queue-type", "stream", "--argument", "x-message-ttl=5"), "x-message-ttl"),
        (("--queue", "amq.mine"), "reserved prefix"),
    ],
)
def test_what_the_broker_refuses(words: tuple[str, ...], expected: str, place: Place) -> None:
    code, _, err = place.alone(*words)
    assert code == 1
    assert err.startswith("keyspace-amqp: the queue ")
    assert expected in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--argument", "x"), "'x' is not accepted; give NAME=VALUE"),
        (("--argument", "x-queue-type=quorum"), "give --queue-type"),
        (("--queue-type", "lazy"), "invalid choice: 'lazy'"),
    ],
)
def test_wrong_options(
    words: tuple[str, ...], expected: str, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        place.alone(*words)
    assert expected in capfd.readouterr().err


def test_a_user_who_may_not(place: Place) -> None:
    """The module's user needs no right to declare."""
    place.broker.ctl("add_user", place.name, "secret")
    try:
        place.broker.ctl("set_permissions", place.name, "", ".*", ".*")
        place.url = place.url.replace("guest:guest", f"{place.name}:secret")
        code, _, err = place.alone()
    finally:
        place.broker.ctl("delete_user", place.name)
    assert code == 1
    assert "403 ACCESS_REFUSED" in err
    assert "This user is NAME; --amqp names another one" in err


def test_no_broker(place: Place) -> None:
    place.url = "amqp://u:s3cret@127.0.0.1:1/"
    code, _, err = place.alone()
    assert code == 1
    assert "refused" in err
    assert "s3cret" not in err


# ---- routing keys, without a broker ------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "fixed", "pattern"),
    [
        ("redis_keyspace_events", "redis_keyspace_events", None),
        ("", "", None),
        ("a{{b}}.c", "a{b}.c", None),
        ("redis.{db}.{event}.{key:*}", None, "redis.#"),
        ("a.b.{key}", None, "a.b.#"),
        ("{class}.{key}", None, "#"),
        ("a{db}.x", None, "#"),
        ("x.a{{{db}.y", None, "x.#"),
    ],
)
def test_binding_keys(template: str, fixed: str | None, pattern: str | None) -> None:
    assert declare.fixed(template) == fixed
    topic = declare.bindings("x", "topic", None, template)
    assert topic == [pattern if fixed is None else fixed]
    assert declare.bindings("x", "fanout", None, template) == [""]
    assert declare.bindings("x", "direct", ["given"], template) == ["given"]
    with pytest.raises(ToolError, match="give --routing-key for each"):
        declare.bindings("x", "x-consistent-hash", None, template)


@pytest.mark.parametrize(
    ("exchange", "given", "template", "name"),
    [
        ("x", None, "key", "key"),
        ("x", "mine", "key", "mine"),
        ("x", None, "{event}", declare.QUEUE),
        ("x", None, "", declare.QUEUE),
        ("x", None, "amq.key", declare.QUEUE),
        ("", None, "key", "key"),
        ("", "key", "key", "key"),
    ],
)
def test_names_of_queues(exchange: str, given: str | None, template: str, name: str) -> None:
    assert declare.queue_name(exchange, given, template) == name


@pytest.mark.parametrize(("given", "template"), [("mine", "key"), (None, "{key}")])
def test_the_default_exchange_reaches_one_queue(given: str | None, template: str) -> None:
    with pytest.raises(ToolError, match="the default one"):
        declare.queue_name("", given, template)
