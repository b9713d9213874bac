"""RabbitMQ clusters for the tests: brokers that share their queues."""

from __future__ import annotations

import contextlib
import json
import pathlib
import secrets
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest

from keyspace_amqp.demo.servers import RabbitServer, wait_for
from tests.fix_servers import _SERVERS


class RabbitCluster:
    """Brokers that are members of one cluster. Used in a `with`. The first starts alone, and the
    others join it, as their configuration says: if all look for each other while they start, and
    the machine is slow, each may make a cluster of its own.

    Most likely failure: a member takes longer to start than START_TIMEOUT on a busy machine.
    """

    def __init__(self, folder: pathlib.Path, count: int) -> None:
        first = RabbitServer(folder / "0")
        others = [RabbitServer(folder / str(n), first=first) for n in range(1, count)]
        self.brokers = [first, *others]
        # Each member would make a secret of its own.
        cookie = first.folder / ".erlang.cookie"
        cookie.write_text(secrets.token_hex(10).upper())
        cookie.chmod(0o400)
        for broker in self.brokers:
            lines = ["cluster_formation.peer_discovery_backend = classic_config"]
            for number, member in enumerate([first] if broker is first else [first, broker], 1):
                lines.append(f"cluster_formation.classic_config.nodes.{number} = {member.node}")
            (broker.folder / "rabbitmq.conf").write_text("\n".join(lines) + "\n")

    def __enter__(self) -> RabbitCluster:
        try:
            self.brokers[0].start()
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for broker in reversed(self.brokers):  # the first one ends the epmd of all
            broker.stop()

    @property
    def hosts(self) -> str:
        """The value of the parameter `host` that names all members."""
        return ",".join(f"127.0.0.1:{broker.port}" for broker in self.brokers)

    def at(self, address: str) -> RabbitServer:
        """Return the member with this address; STATS has it as `broker`."""
        return next(b for b in self.brokers if address == f"127.0.0.1:{b.port}")

    def named(self, node: str) -> RabbitServer:
        """Return the member with this name of an Erlang node."""
        return next(b for b in self.brokers if b.node == node)

    def start(self) -> None:
        """Start the members that do not run, and wait until all of them see each other."""
        for broker in self.brokers:
            if not broker.running:
                broker.spawn()
        for broker in self.brokers:
            broker.wait_ready()
        self.brokers[0].ctl("await_online_nodes", str(len(self.brokers)))

    def keep(self) -> None:
        """Call RabbitServer.keep for each member."""
        self.brokers[0].ctl("eval", "rpc:multicall(mnesia, sync_log, []).")

    def queue(self, name: str) -> dict[str, Any]:
        """Return the `leader`, the `members` and the `online` members of a quorum queue, as
        names of nodes; {} while no member can tell."""
        broker = next(b for b in self.brokers if b.running)
        with contextlib.suppress(subprocess.CalledProcessError):
            columns = ["name", "leader", "members", "online"]
            found = broker.ctl("list_queues", "--silent", "--formatter", "json", *columns)
            return next((row for row in json.loads(found) if row["name"] == name), {})
        return {}

    def whole(self, name: str) -> str:
        """Wait until all members of a quorum queue are online; return the leader's node."""
        found: dict[str, Any] = {}

        def online() -> bool:
            found.update(self.queue(name))
            return bool(found.get("leader")) and len(found["online"]) == len(self.brokers)

        wait_for(online, what="all members of the queue are online")
        return str(found["leader"])


@pytest.fixture(scope="module")
def module_cluster() -> Iterator[RabbitCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="keyspace-amqp-") as folder,
        RabbitCluster(pathlib.Path(folder), 3) as cluster,
    ):
        yield cluster


@pytest.fixture
def rabbit_cluster(module_cluster: RabbitCluster, request: pytest.FixtureRequest) -> RabbitCluster:
    """Three brokers that a test may kill; all of them run at the start of each test."""
    request.node.stash.setdefault(_SERVERS, []).extend(module_cluster.brokers)
    module_cluster.start()
    return module_cluster
