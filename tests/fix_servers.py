"""Real servers for the integration tests, and the checks at the end of every test.

The session shares a RabbitMQ, which takes seconds to start, and each test has a queue and a
routing key of its own. Tests that hurt a broker use another one. Each test starts a new
Redis, on one server or on several (servers.py). At the end of a test, every Redis that still
runs must have balanced books, must not have logged a crash, and must end cleanly: so a crash
cannot pass as green. The report of a failing test has the logs of all its servers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import uuid
import venv
from collections.abc import Callable, Iterator
from typing import Any

import pika
import pytest
import redis

from keyspace_amqp.demo.books import balance
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tools.path import CORE_FILE, MODULE_FILE
from keyspace_amqp.tools.replies import stats
from tests import servers

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODULE = ROOT / "build" / MODULE_FILE
# The core. MODULE is the loader, which opens it.
CORE = MODULE.with_name(CORE_FILE)
EXCHANGE = "amq.direct"

# Signs of a crash in a server's log.
_CRASH = re.compile(
    r"crashed by signal|ASSERTION FAILED|Guru Meditation|STACK TRACE|=== .*BUG REPORT"
)


@pytest.fixture(params=servers.SOME)
def family(request: pytest.FixtureRequest) -> str:
    """A server by its name: a test that uses it runs on old and new ones."""
    return str(request.param)


# For tests in which versions matter: `family` is each of all servers.
EVERY_FAMILY = pytest.mark.parametrize("family", servers.ALL)


# ---- logs of a failing test ------------------------------------------------

_SERVERS = pytest.StashKey[list[Any]]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    report = yield
    if report.failed:
        for server in item.stash.get(_SERVERS, []):
            lines = server.log().splitlines()[-80:]
            report.sections.append((f"{server.name} in {server.folder}", "\n".join(lines)))
    return report


# ---- RabbitMQ --------------------------------------------------------------


@dataclasses.dataclass
class Message:
    """A message as a consumer receives it."""

    body: bytes
    properties: pika.BasicProperties
    redelivered: bool

    @property
    def event(self) -> tuple[int, bytes, bytes]:
        """(db, event, key), read from a body of the format `text`."""
        db, name, key = self.body.split(b"\n", 2)
        return int(db), name, key


class Mailbox:
    """A durable queue with a routing key of its own.

    Most likely failure: fewer messages arrive than `receive` waits for (TimeoutError).
    """

    def __init__(self, broker: RabbitServer, **arguments: Any) -> None:
        self.broker = broker
        self.name = f"test-{uuid.uuid4()}"
        self.routing_key = self.name
        with broker.connection() as connection:
            channel = connection.channel()
            channel.queue_declare(self.name, durable=True, arguments=arguments or None)
            channel.queue_bind(self.name, EXCHANGE, self.routing_key)

    def keep(self) -> Mailbox:
        """Call RabbitServer.keep, for a broker that the test will kill."""
        self.broker.keep()
        return self

    def count(self) -> int:
        """Return the number of messages in the queue."""
        with self.broker.connection() as connection:
            return int(
                connection.channel().queue_declare(self.name, passive=True).method.message_count
            )

    def receive(self, count: int | None = None, timeout: float = 60) -> list[Message]:
        """Take `count` messages, or all messages in the queue. Raises TimeoutError."""
        messages: list[Message] = []

        def take() -> bool:
            with self.broker.connection() as connection:
                channel = connection.channel()
                queued = channel.queue_declare(self.name, passive=True).method.message_count
                wanted = queued if count is None else min(queued, count - len(messages))
                channel.basic_qos(prefetch_count=1000)
                for method, properties, body in channel.consume(self.name) if wanted else ():
                    messages.append(Message(body, properties, method.redelivered))
                    wanted -= 1
                    if wanted == 0 or method.delivery_tag % 500 == 0:
                        channel.basic_ack(method.delivery_tag, multiple=True)
                    if wanted == 0:  # the other messages go back to the queue
                        break
            return count is None or len(messages) >= count

        wait_for(take, timeout, f"{count} messages")
        return messages


def once(messages: list[Message]) -> list[Message]:
    """Return the first arrival of each message: a repeated message has the same message_id."""
    first: dict[str, Message] = {}
    for message in messages:
        first.setdefault(message.properties.message_id, message)
    return list(first.values())


# The limit of the session's broker, whatever its version: the default of RabbitMQ 3.10. The default
# of 4.0 is 16 MiB.
MAX_MESSAGE_SIZE = 128 * 1024 * 1024


@pytest.fixture(scope="session")
def session_broker() -> Iterator[RabbitServer]:
    with (
        tempfile.TemporaryDirectory(prefix="keyspace-amqp-") as folder,
        RabbitServer(pathlib.Path(folder), [f"max_message_size = {MAX_MESSAGE_SIZE}"]) as broker,
    ):
        yield broker


@pytest.fixture
def broker(session_broker: RabbitServer, request: pytest.FixtureRequest) -> RabbitServer:
    """The session's broker. A test must leave it as it is."""
    request.node.stash.setdefault(_SERVERS, []).append(session_broker)
    return session_broker


@pytest.fixture(scope="module")
def module_broker() -> Iterator[RabbitServer]:
    with tempfile.TemporaryDirectory(prefix="keyspace-amqp-") as folder:
        broker = RabbitServer(pathlib.Path(folder))
        yield broker
        broker.stop()


@pytest.fixture
def own_broker(module_broker: RabbitServer, request: pytest.FixtureRequest) -> RabbitServer:
    """A broker that a test may kill; running at the start of each test."""
    request.node.stash.setdefault(_SERVERS, []).append(module_broker)
    if not module_broker.running:
        module_broker.start()
    return module_broker


@pytest.fixture
def mailbox(broker: RabbitServer) -> Mailbox:
    return Mailbox(broker)


# ---- Redis -----------------------------------------------------------------


def lists_are_empty(client: redis.Redis, found: dict[str, Any]) -> bool:
    """True if the lists of a primary have no elements; `found`: its STATS."""
    if found["state"] == "replica":
        return True  # its lists are copies of the primary's
    try:
        return client.execute_command("KEYSPACEAMQP.FALLBACK", "LEN", "LOCAL") == 0
    except redis.ResponseError:  # a user without the right, or a handler that has stopped
        return True


def all_is_shown(client: redis.Redis, found: dict[str, Any]) -> bool:
    """True if STATS are still `found` after the handler has answered two commands. It shows what
    it has done at the end of a turn, and a command is answered before that; the second one is
    answered in a later turn."""
    for _ in range(2):
        with contextlib.suppress(redis.ResponseError):  # as in lists_are_empty
            client.execute_command("KEYSPACEAMQP.KEYMASK", "LIST")
    return stats(client) == found


def settled(client: redis.Redis, timeout: float = 30, **expected: Any) -> dict[str, Any]:
    """Wait until STATS stays the same, balances, and has the expected values. Return STATS.

    If no element is to wait, nothing may be in flight, unless `in_flight` is given; and the lists
    are looked at too: just after a load, and on a new primary, the handler does not know them yet.
    """
    last: dict[str, Any] = {}
    if expected.get("fallback_length") == 0:
        expected.setdefault("in_flight", 0)

    def ready() -> bool:
        before = dict(last)
        last.clear()
        last.update(stats(client))
        return (
            before == last
            and balance(last) == 0
            and all(last[name] == value for name, value in expected.items())
            and (expected.get("fallback_length") != 0 or lists_are_empty(client, last))
            and all_is_shown(client, last)
        )

    try:
        wait_for(ready, timeout)
    except TimeoutError:
        pytest.fail(f"not settled: off by {balance(last)}, expected {expected}, STATS are {last}")
    return last


def site_packages(prefix: pathlib.Path) -> pathlib.Path:
    """Return the folder of the packages in a virtual environment."""
    return prefix / "lib" / "python{}.{}".format(*sys.version_info) / "site-packages"


def installed_copy(prefix: pathlib.Path) -> pathlib.Path:
    """Copy the package with the module in it to where pip would install it. Return the module's
    path."""
    package = site_packages(prefix) / "keyspace_amqp"
    shutil.copytree(
        MODULE.parent.parent / "keyspace_amqp",
        package,
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    shutil.copy(MODULE, package)
    shutil.copy(CORE, package)
    return package / MODULE.name


def handler_copy(prefix: pathlib.Path) -> pathlib.Path:
    """Copy the package into a new virtual environment that has the packages which the module
    needs, for tests that change the handler. Return the module's path."""
    venv.create(prefix, symlinks=True)
    path = installed_copy(prefix)
    source = pathlib.Path(site_packages(pathlib.Path(sys.prefix)))
    for name in ("pika", *(p.name for p in source.glob("_cffi_backend*"))):
        (site_packages(prefix) / name).symlink_to(source / name)
    return path


def copy_sources(folder: pathlib.Path) -> None:
    """Copy everything that a build needs, for tests that change it before they build."""
    for name in ("shim", "keyspace_amqp"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "CMakeLists.txt", folder)


def build_module(folder: pathlib.Path, python: pathlib.Path) -> pathlib.Path:
    """Build a copy of the sources with cmake, as its users do, for this Python. Return the
    module's path; it runs the handler in the copy."""
    build = folder / "build"
    build.mkdir()
    for command in (
        ["cmake", "-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={python}", ".."],
        ["cmake", "--build", ".", "--target", "redis_keyspace_amqp"],
    ):
        subprocess.run(command, cwd=build, check=True, capture_output=True)
    return build / MODULE.name


StartRedis = Callable[..., RedisServer]


@pytest.fixture
def outbox() -> str:
    """The value of the parameter `outbox` on the servers of `start_redis`. Tests that run with
    several values have one of the marks in fix_outbox.py."""
    return "off"


def outbox_options(outbox: str) -> list[str]:
    """Return the lines of redis.conf for a value of the parameter `outbox`."""
    return [] if outbox == "off" else [f"keyspaceamqp.outbox {outbox}"]


@pytest.fixture
def start_redis(
    tmp_path: pathlib.Path, request: pytest.FixtureRequest, outbox: str
) -> Iterator[StartRedis]:
    """Starts a Redis with the module. `family` and `options` as for `RedisServer`;
    `arguments`: those of the module (None: start without the module)."""
    known: list[RedisServer] = request.node.stash.setdefault(_SERVERS, [])
    started: list[RedisServer] = []

    def start(
        family: str = servers.REDIS,
        arguments: list[Any] | None = (),  # type: ignore[assignment]
        options: list[str] | tuple[str, ...] = (),
        start: bool = True,
    ) -> RedisServer:
        module = [] if arguments is None else [str(MODULE), *map(str, arguments)]
        if arguments is not None:
            options = [*options, *outbox_options(outbox)]
        server = RedisServer(
            tmp_path / f"redis-{len(started)}", servers.program(family), module, options
        )
        known.append(server)
        started.append(server)
        if start:
            server.start()
        return server

    yield start
    failures = []
    for server in started:
        if server.running:
            with server.client() as client:
                try:
                    if b"keyspaceamqp" in [m[b"name"] for m in client.module_list()]:
                        settled(client)
                except (redis.exceptions.RedisError, pytest.fail.Exception) as error:
                    failures.append(f"{server.folder.name}: {error}")
            code = server.stop()
            if code != 0:
                failures.append(f"{server.folder.name} ended with {code}")
        if _CRASH.search(server.log()):
            failures.append(f"{server.folder.name} crashed")
    if failures:
        pytest.fail("; ".join(failures))


def arguments_for(
    broker: RabbitServer | int,
    mailbox: Mailbox | str = "nowhere",
    events: str = "A",
    mode: int = 2,
    size: int = 10_000_000,
    masks: tuple[str, ...] = (),
) -> list[Any]:
    """Return the module's positional arguments for a broker and a mailbox."""
    port = broker if isinstance(broker, int) else broker.port
    key = mailbox if isinstance(mailbox, str) else mailbox.routing_key
    return [events, "127.0.0.1", port, "guest", "guest", 30, EXCHANGE, key, mode, size, *masks]


def list_length(client: redis.Redis) -> int:
    """Return the length of the fallback list."""
    return int(client.llen(KEY))


def linked(replica: redis.Redis) -> None:
    """Wait until a replica has its full copy. Until its primary knows of that too, at most a second
    later, the replica receives no changes."""
    wait_for(
        lambda: replica.info("replication").get("master_link_status") == "up",
        60,
        "the replica is linked",
        lambda: f"INFO has {replica.info('replication')}",
    )


def replicated(primary: redis.Redis, replica: redis.Redis) -> None:
    """Wait until a replica has everything that its primary has now. The command WAIT would not
    do: it waits for the writes of its own client, and not for those of the module."""
    linked(replica)
    offset = primary.info("replication")["master_repl_offset"]
    wait_for(
        lambda: replica.info("replication")["slave_repl_offset"] >= offset,
        60,
        "the replica catches up",
    )
