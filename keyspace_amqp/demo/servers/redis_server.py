"""A private redis-server or valkey-server."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence
from typing import Any

import redis

from ...config import quoted
from .ports import free_port
from .process import Server


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
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.exceptions.RedisError:
                return False

    def client(self, **options: Any) -> redis.Redis:
        """Return a new client; replies are bytes."""
        return redis.Redis(host="127.0.0.1", port=self.port, **options)
