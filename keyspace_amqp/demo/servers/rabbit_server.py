"""A private RabbitMQ broker."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pika

from .ports import free_port, listens
from .process import STOP_TIMEOUT, Server, missing, wait_for

# Debian's scripts in /usr/sbin would run these as the user rabbitmq.
RABBITMQ_SERVER = "/usr/lib/rabbitmq/bin/rabbitmq-server"
RABBITMQCTL = "/usr/lib/rabbitmq/bin/rabbitmqctl"


class RabbitServer(Server):
    """A RabbitMQ broker with a name, ports, data and an epmd of its own.

    `options`: lines of rabbitmq.conf. `plugins`: their names. `first`: another broker of the
    same cluster; they share its epmd. Most likely failure: the broker takes longer to start
    than START_TIMEOUT on a busy machine.
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
        """The name of the Erlang node."""
        return f"keyspace-amqp-{self.port}@localhost"

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
            # Schedulers that spin while they wait for work would take the cores from Redis.
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+sbwt none +sbwtdcpu none +sbwtdio none",
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": str(self._epmd_port),
            # Erlang's secret is in the home folder; members of a cluster share it.
            "HOME": str(self.folder if self._first is None else self._first.folder),
        }

    def spawn(self) -> None:
        # The broker would start epmd as a daemon and leave it behind: this one is a child.
        if self._epmd is None and self._first is None:
            epmd = shutil.which("epmd")
            if epmd is None or not pathlib.Path(RABBITMQ_SERVER).exists():
                raise missing("rabbitmq-server")
            self._epmd = subprocess.Popen(
                [epmd, "-address", "127.0.0.1", "-port", str(self._epmd_port)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            wait_for(lambda: listens(self._epmd_port), what="epmd listens")
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
        """Run rabbitmqctl and return its output. Raises CalledProcessError, with that output."""
        try:
            return subprocess.run(
                [RABBITMQCTL, *arguments],
                env=dict(self.environment()),
                check=True,
                capture_output=True,
                text=True,
            ).stdout
        except subprocess.CalledProcessError as error:
            error.add_note(f"{error.stdout}\n{error.stderr}".strip())
            raise

    def keep(self) -> None:
        """Have the broker write its queues and bindings to disk. A broker that is killed
        forgets those of its last seconds, unless it keeps them in Khepri, which writes at once
        (since RabbitMQ 4.2)."""
        self.ctl("eval", "mnesia:sync_log().")

    @contextlib.contextmanager
    def connection(self, **parameters: Any) -> Iterator[pika.BlockingConnection]:
        """A new connection, closed at the end of the `with`."""
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
