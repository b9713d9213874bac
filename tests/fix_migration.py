"""Helpers for the tests of atomic migrations: the commands of the two servers that have them."""

from __future__ import annotations

from typing import Any

import pytest

from keyspace_amqp.demo.servers import RedisCluster, RedisServer, wait_for
from tests.servers import ALL, at_least

# The servers that have such migrations.
BOTH = pytest.mark.parametrize(
    "family", [name for name in ALL if at_least(name, redis="8.4", valkey="9.0")]
)


class Migration:
    """A migration of slots from one primary to another. Making the object starts it.

    Valkey is asked at the source, Redis at the target. Most likely failure: it does not end in
    time, or fails, and `wait` says why.
    """

    def __init__(
        self, cluster: RedisCluster, source: RedisServer, target: RedisServer, *ranges: int
    ) -> None:
        self.source = source
        self.target = target
        with source.client() as there, target.client() as here:
            self._valkey = "valkey_version" in there.info("server")
            if self._valkey:
                words = ["SLOTSRANGE", *ranges, "NODE", cluster.id_of(target)]
                there.execute_command("CLUSTER", "MIGRATESLOTS", *words)
            else:
                here.execute_command("CLUSTER", "MIGRATION", "IMPORT", *ranges)

    def _newest(self, node: RedisServer) -> dict[bytes, Any]:
        words = ("GETSLOTMIGRATIONS",) if self._valkey else ("MIGRATION", "STATUS", "ALL")
        with node.client(protocol=3) as client:
            rows: list[Any] = client.execute_command("CLUSTER", *words)
        row = rows[0]
        return dict(zip(row[::2], row[1::2], strict=True)) if isinstance(row, list) else row

    @property
    def state(self) -> str:
        """The state that the node shows which was asked for the migration."""
        return bytes(self._newest(self.source if self._valkey else self.target)[b"state"]).decode()

    def wait(self, timeout: float = 60) -> None:
        """Wait until all nodes know the new owner."""
        good = "success" if self._valkey else "completed"
        wait_for(lambda: self.state == good, timeout, "the migration")

    def cancel(self) -> None:
        """Cancel it, and wait until the target has no import any more."""
        words = ("CANCELSLOTMIGRATIONS",) if self._valkey else ("MIGRATION", "CANCEL", "ALL")
        with (self.source if self._valkey else self.target).client() as client:
            client.execute_command("CLUSTER", *words)
        ended = ("failed", "cancelled", "canceled")
        wait_for(lambda: bytes(self._newest(self.target)[b"state"]).decode() in ended)


def slow_down(node: RedisServer, microseconds: int) -> None:
    """Make a node take so much time for each key that it copies."""
    with node.client() as client:
        client.config_set("rdb-key-save-delay", microseconds)


def commands_run(node: RedisServer) -> int:
    """Return how many commands that make keys a node has run; those of an import count too."""
    with node.client() as client:
        calls: dict[str, dict[str, int]] = client.info("commandstats")
    names = ("set", "hset", "hmset", "rpush", "sadd", "zadd", "restore", "xadd")
    return sum(calls.get(f"cmdstat_{name}", {}).get("calls", 0) for name in names)
