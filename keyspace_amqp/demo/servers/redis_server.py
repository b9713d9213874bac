"""A private redis-server or valkey-server."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import redis
from redis.backoff import ExponentialBackoff, NoBackoff
from redis.retry import Retry

from ...config import quoted
from .ports import free_port
from .process import Server

# Seconds. A server on a machine that stands still for a while answers late, but it answers.
ANSWER_TIMEOUT = 120.0
# Seconds between two attempts to connect, the number of attempts, and how long one may take.
_RETRY_AFTER, _RETRY_AFTER_AT_MOST, _RETRIES = 0.01, 1.0, 10
_CONNECT_TIMEOUT = 30.0


def patient() -> dict[str, Any]:
    """Return options for clients that wait for late answers. With the defaults of some of its
    versions, redis-py gives up after 5 seconds and sends the command again, so that it runs twice.
    A lost connection is opened again."""
    backoff = ExponentialBackoff(_RETRY_AFTER_AT_MOST, _RETRY_AFTER)
    return {
        "socket_timeout": ANSWER_TIMEOUT,
        "socket_connect_timeout": _CONNECT_TIMEOUT,
        "retry": Retry(backoff, _RETRIES, supported_errors=(redis.ConnectionError,)),
    }


class RedisServer(Server):
    """A redis-server or valkey-server on a free port.

    `module`: the path of a module, and its arguments. `options`: lines of the configuration
    file. Most likely failure: the module refuses to load; the end of the log, which the
    ServerError quotes, says why.
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
        """Write the configuration file. CONFIG REWRITE may change it later."""
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
        with self.client(socket_timeout=5, retry=Retry(NoBackoff(), 0)) as client:
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:
                return False

    def client(self, **options: Any) -> redis.Redis:
        """Return a new client with the options of `patient` and these; replies are bytes."""
        return redis.Redis(host="127.0.0.1", port=self.port, **(patient() | options))
