"""Private servers on loopback, for the demo and for tests: real ones.

Each server is started by `start` (or `with`), which returns only when it
answers, and ends with all its processes at `stop`. Ports are free ones, data
lies in a folder of its own. Never imported inside Redis.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import pika
import redis

from ..config import quoted

# Generous: a shared machine may stand still for a while.
START_TIMEOUT = 60.0
STOP_TIMEOUT = 20.0
POLL = 0.02

RABBITMQ_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"


class ServerError(Exception):
    """A server is missing, or did not start; the text has the end of its log."""


# Below those that the system hands out for outgoing connections.
PORTS = range(12000, 30000)

_given: set[int] = set()


def free_port() -> int:
    """A port that nobody listens on, of PORTS. None that was given before: its server may be
    about to start."""
    for _ in range(1000):
        port = random.choice(PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise ServerError(f"no free port between {PORTS.start} and {PORTS.stop - 1}")


def wait_for(condition: Callable[[], Any], timeout: float = START_TIMEOUT, what: str = "") -> Any:
    """Calls `condition` until it is true and returns what it returned.

    Raises TimeoutError after `timeout` seconds.
    """
    until = time.monotonic() + timeout
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > until:
            raise TimeoutError(f"not within {timeout} seconds: {what or condition}")
        time.sleep(POLL)


class _Server:
    """A process with a log file, in a session of its own."""

    name = "server"

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.log_path = folder / f"{self.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def command(self) -> Sequence[str]:
        raise NotImplementedError

    def environment(self) -> Mapping[str, str]:
        return os.environ

    def ready(self) -> bool:
        raise NotImplementedError

    def log(self) -> str:
        return self.log_path.read_text(errors="replace") if self.log_path.exists() else ""

    def start(self) -> None:
        """Starts the server and waits until it answers. Raises ServerError."""
        self.spawn()
        self.wait_ready()

    def wait_ready(self) -> None:
        """Waits until a server that was spawned answers. Raises ServerError."""
        try:
            wait_for(self._ready_or_dead, what=f"{self.name} answers")
        except TimeoutError:
            self.kill()
            raise ServerError(f"{self.name} does not answer; {self._log_end()}") from None

    def spawn(self) -> None:
        """Starts the server without waiting for it."""
        with self.log_path.open("ab") as log:
            try:
                self.process = subprocess.Popen(
                    self.command(),
                    cwd=self.folder,
                    env=dict(self.environment()),
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise ServerError(
                    f"{error.filename} is missing; `make setup` or the system's packages have it"
                ) from None

    def _ready_or_dead(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise ServerError(f"{self.name} ended while it started; {self._log_end()}")
        return self.ready()

    def _log_end(self) -> str:
        return "the end of its log:\n" + "\n".join(self.log().splitlines()[-25:])

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to all processes of the server."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """kill -9, and waits for the end."""
        if self.process is not None:
            self.signal(signal.SIGKILL)
            self.process.wait()

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        """SIGTERM, SIGKILL if that does not help; the exit code."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGCONT)
                self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout)
        code = self.process.poll()
        self.kill()
        return -signal.SIGKILL if code is None else code

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None


class RedisServer(_Server):
    """A redis-server or valkey-server.

    `options`: lines of its configuration file. `module`: path of a module and
    its arguments.
    """

    name = "redis"

    def __init__(
        self,
        folder: pathlib.Path,
        binary: str = "redis-server",
        module: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        super().__init__(folder)
        self.binary = binary
        self.module = module
        self.options = list(options)
        self.port = free_port()
        self.config_path = folder / "redis.conf"

    def command(self) -> Sequence[str]:
        if not self.config_path.exists():
            self.write_config()
        return [self.binary, str(self.config_path)]

    def write_config(self) -> None:
        """Writes the configuration file (CONFIG REWRITE may change it later)."""
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            f"dir {self.folder}",
            'save ""',
            "enable-module-command yes",
            "enable-debug-command yes",
            *self.options,
        ]
        if self.module:
            lines.append(
                "loadmodule " + " ".join(quoted(os.fsencode(word)) for word in self.module)
            )
        self.config_path.write_text("\n".join(lines) + "\n")

    def ready(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:
                return False

    def client(self, **options: Any) -> redis.Redis:
        """A new client; replies are bytes."""
        return redis.Redis(host="127.0.0.1", port=self.port, **options)


class RedisCluster:
    """A Redis Cluster on loopback: primaries with one replica each.

    `make` gives a server with these options, those of a cluster node.
    """

    # Until a node that does not answer is declared failing: short, nobody is far away.
    NODE_TIMEOUT_MS = 2000

    def __init__(
        self,
        make: Callable[[Sequence[str]], RedisServer],
        primaries: int = 3,
        replicas: int = 1,
    ) -> None:
        self._make = make
        self._replicas = replicas
        self.nodes = [self.make_node() for _ in range(primaries * (1 + replicas))]

    def make_node(self) -> RedisServer:
        """One more node, which is not started and in no cluster yet."""
        return self._make(
            [
                "cluster-enabled yes",
                f"cluster-port {free_port()}",
                f"cluster-node-timeout {self.NODE_TIMEOUT_MS}",
                "cluster-config-file nodes.conf",
                "repl-diskless-sync-delay 0",
            ]
        )

    def start(self) -> None:
        """Starts the nodes and makes them one cluster. Raises ServerError."""
        for node in self.nodes:
            node.spawn()
        for node in self.nodes:
            node.wait_ready()
        addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
        self.cli("create", *addresses, "--cluster-replicas", str(self._replicas), "--cluster-yes")
        self.wait_settled()

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()

    def cli(self, command: str, *arguments: str) -> str:
        """Runs redis-cli --cluster; its output. Raises ServerError."""
        done = subprocess.run(
            ["redis-cli", "--cluster", command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise ServerError(f"redis-cli --cluster {command}: {done.stdout[-2000:]}{done.stderr}")
        return done.stdout

    def client(self, **options: Any) -> redis.RedisCluster:
        """A new client of the whole cluster; replies are bytes."""
        port = next(node.port for node in self.nodes if node.running)
        return redis.RedisCluster(host="127.0.0.1", port=port, **options)

    def wait_settled(self, timeout: float = START_TIMEOUT) -> None:
        """Waits until all running nodes agree: all slots served, replicas in sync."""
        wait_for(self._settled, timeout, "the cluster settles")

    def _settled(self) -> bool:
        running = [node for node in self.nodes if node.running]
        views = set()
        for node in running:
            with node.client() as client:
                try:
                    state = as_text(client, "CLUSTER INFO")
                    roles = client.info("replication")
                except redis.exceptions.RedisError:
                    return False
            if "cluster_state:ok" not in state:
                return False
            if roles["role"] == "slave" and roles["master_link_status"] != "up":
                return False
            views.add(frozenset(node_view[:3] for node_view in self.view(node)))
        return len(views) == 1

    @staticmethod
    def view(node: RedisServer) -> list[tuple[int, str, str, str]]:
        """The cluster as a node sees it: per node port, role, slots and id. Nodes that
        fail are left out."""
        rows = []
        with node.client() as client:
            text = as_text(client, "CLUSTER NODES")
        for line in text.splitlines():
            words = line.split(" ")
            flags = words[2].split(",")
            if not {"fail", "noaddr", "handshake"} & set(flags):
                role = "primary" if "master" in flags else "replica"
                port = int(words[1].partition("@")[0].rpartition(":")[2])
                slots = " ".join(word for word in words[8:] if not word.startswith("["))
                rows.append((port, role, slots, words[0]))
        return rows

    def primaries(self) -> list[RedisServer]:
        """The running nodes that are primaries, as the first of them says."""
        seen = self.view(next(node for node in self.nodes if node.running))
        ports = {port for port, role, *_ in seen if role == "primary"}
        return [node for node in self.nodes if node.running and node.port in ports]

    def replica_of(self, primary: RedisServer) -> RedisServer:
        """A running replica of a primary."""
        for node in self.nodes:
            if node.running:
                with node.client() as client:
                    roles: dict[str, Any] = client.info("replication")
                    if roles.get("master_port") == primary.port:
                        return node
        raise ServerError(f"the node on port {primary.port} has no replica")

    def id_of(self, node: RedisServer) -> str:
        """A node's id in the cluster."""
        with node.client() as client:
            return as_text(client, "CLUSTER MYID")


def as_text(client: redis.Redis, command: str) -> str:
    """A reply as it is, where redis-py has its own idea of it."""
    client.set_response_callback(command, lambda reply, **_: reply)
    reply: Any = client.execute_command(command)  # type: ignore[no-untyped-call]
    return bytes(reply).decode()


class RabbitServer(_Server):
    """A RabbitMQ broker with a name, ports, data and an epmd of its own.

    `options`: lines of rabbitmq.conf; `plugins`: their names; `first`: another broker, of
    whose cluster this one can become a member (see `join`).
    """

    name = "rabbitmq"

    def __init__(
        self,
        folder: pathlib.Path,
        options: Sequence[str] = (),
        plugins: Sequence[str] = (),
        first: RabbitServer | None = None,
    ) -> None:
        super().__init__(folder)
        self.port = free_port()
        self._dist_port = free_port()
        self._epmd_port: int = free_port() if first is None else first._epmd_port
        self._first = first
        self._epmd: subprocess.Popen[bytes] | None = None
        (folder / "enabled_plugins").write_text(f"[{','.join(plugins)}].\n")
        (folder / "rabbitmq.conf").write_text("".join(f"{line}\n" for line in options))

    @property
    def node(self) -> str:
        return f"keyspace-amqp-{self.port}@localhost"

    def join(self) -> None:
        """Makes a running broker a member of its first one's cluster."""
        assert self._first is not None
        self.ctl("stop_app")
        self.ctl("join_cluster", self._first.node)
        self.ctl("start_app")
        self.wait_ready()

    def command(self) -> Sequence[str]:
        return [RABBITMQ_SERVER]

    def environment(self) -> Mapping[str, str]:
        return os.environ | {
            "RABBITMQ_NODENAME": self.node,
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(self.folder / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.folder / "log"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.folder / "enabled_plugins"),
            "RABBITMQ_CONF_ENV_FILE": str(self.folder / "none"),
            "RABBITMQ_CONFIG_FILE": str(self.folder / "rabbitmq.conf"),
            # Schedulers that spin for work would take the cores from everybody else.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            # Members of a cluster share the secret that is there.
            "HOME": str(self.folder if self._first is None else self._first.folder),
        }

    def spawn(self) -> None:
        # In the foreground and ours: the broker would leave a daemon behind.
        if self._epmd is None and self._first is None:
            epmd = shutil.which("epmd")
            if epmd is None or not pathlib.Path(RABBITMQ_SERVER).exists():
                raise ServerError(
                    "rabbitmq-server is missing; `make setup` or the system's packages have it"
                )
            self._epmd = subprocess.Popen(
                [epmd, "-address", "127.0.0.1", "-port", str(self._epmd_port)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            wait_for(lambda: _listens(self._epmd_port), what="epmd listens")
        super().spawn()

    def ready(self) -> bool:
        try:
            with self.connection():
                return True
        except pika.exceptions.AMQPError:
            return False

    def stop(self, timeout: float = STOP_TIMEOUT) -> int:
        code = super().stop(timeout)
        if self._epmd is not None:
            self._epmd.kill()
            self._epmd.wait()
            self._epmd = None
        return code

    def ctl(self, *arguments: str) -> str:
        """Runs rabbitmqctl; its output. Raises CalledProcessError."""
        return subprocess.run(
            ["/usr/lib/rabbitmq/bin/rabbitmqctl", *arguments],
            env=dict(self.environment()),
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def keep(self) -> None:
        """Has the broker write its queues and bindings to disk: killed, it forgets what it
        has heard of them in the last seconds."""
        self.ctl("eval", "mnesia:sync_log().")

    @contextlib.contextmanager
    def connection(self, **parameters: Any) -> Iterator[pika.BlockingConnection]:
        """A connection of its own, closed at the end."""
        connection = pika.BlockingConnection(
            pika.ConnectionParameters(
                "127.0.0.1",
                self.port,
                connection_attempts=1,
                socket_timeout=5,
                stack_timeout=10,
                **parameters,
            )
        )
        try:
            yield connection
        finally:
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.close()


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
