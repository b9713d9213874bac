"""A private Redis Cluster, made with `redis-cli --cluster`."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Sequence
from typing import Any

import redis

from .ports import free_port
from .process import START_TIMEOUT, ServerError, wait_for
from .redis_server import ANSWER_TIMEOUT, RedisServer

# Characters of redis-cli's output that an error quotes.
_OUTPUT = 2000


class RedisCluster:
    """A Redis Cluster on loopback: primaries with the same number of replicas each.

    `make` returns a server, not started, with these lines in its configuration file: those
    of a cluster node. Most likely failure: the nodes do not agree in time, and
    `wait_settled` raises TimeoutError.
    """

    # After this time a node that does not answer counts as failing. Short: all nodes are near.
    NODE_TIMEOUT_MS = 2000
    # For a machine that may stand still for a while: no node fails then.
    LONG_NODE_TIMEOUT_MS = 5000

    def __init__(
        self,
        make: Callable[[Sequence[str]], RedisServer],
        primaries: int = 3,
        replicas: int = 1,
        node_timeout_ms: int = NODE_TIMEOUT_MS,
    ) -> None:
        self._make = make
        self._node_timeout_ms = node_timeout_ms
        self._replicas = replicas
        self.nodes = [self.make_node() for _ in range(primaries * (1 + replicas))]

    def make_node(self) -> RedisServer:
        """Return one more node, which is not started and in no cluster yet."""
        return self._make(
            [
                "cluster-enabled yes",
                f"cluster-port {free_port()}",
                f"cluster-node-timeout {self._node_timeout_ms}",
                "cluster-config-file nodes.conf",
                "repl-diskless-sync-delay 0",
            ]
        )

    def start(self) -> None:
        """Start the nodes and make them one cluster. Raises ServerError."""
        for node in self.nodes:
            node.spawn()
        for node in self.nodes:
            node.wait_ready()
        addresses = [f"127.0.0.1:{node.port}" for node in self.nodes]
        self.cli("create", *addresses, "--cluster-replicas", str(self._replicas), "--cluster-yes")
        self.wait_settled()

    def stop(self) -> None:
        """Stop all nodes."""
        for node in self.nodes:
            node.stop()

    def cli(self, command: str, *arguments: str) -> str:
        """Run `redis-cli --cluster` and return its output. Raises ServerError."""
        done = subprocess.run(
            ["redis-cli", "--cluster", command, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            output = done.stdout[-_OUTPUT:]
            raise ServerError(f"redis-cli --cluster {command}: {output}{done.stderr}")
        return done.stdout

    def reshard_words(self, source: RedisServer, target: RedisServer, slots: int) -> list[str]:
        """Return the arguments for `cli` that move so many slots from one primary to another."""
        return [
            *("reshard", f"127.0.0.1:{source.port}"),
            *("--cluster-from", self.id_of(source)),
            *("--cluster-to", self.id_of(target)),
            *("--cluster-slots", str(slots), "--cluster-yes"),
        ]

    def client(self, **options: Any) -> redis.RedisCluster:
        """Return a new client of the whole cluster, which waits for late answers; replies are
        bytes."""
        options.setdefault("socket_timeout", ANSWER_TIMEOUT)
        port = next(node.port for node in self.nodes if node.running)
        return redis.RedisCluster(host="127.0.0.1", port=port, **options)

    def wait_settled(self, timeout: float = START_TIMEOUT) -> None:
        """Wait until all running nodes agree that all slots are served, and the replicas are
        connected to their primaries. Raises TimeoutError."""
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
        """Return the cluster as a node sees it: port, role, slots and id of each node, without
        the nodes that fail."""
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
        """Return the running primaries, as the first running node sees them."""
        seen = self.view(next(node for node in self.nodes if node.running))
        ports = {port for port, role, *_ in seen if role == "primary"}
        return [node for node in self.nodes if node.running and node.port in ports]

    def replica_of(self, primary: RedisServer) -> RedisServer:
        """Return a running replica of a primary. Raises ServerError if it has none."""
        for node in self.nodes:
            if node.running:
                with node.client() as client:
                    roles: dict[str, Any] = client.info("replication")
                    if roles.get("master_port") == primary.port:
                        return node
        raise ServerError(f"the node on port {primary.port} has no replica")

    def id_of(self, node: RedisServer) -> str:
        """Return a node's id in the cluster."""
        with node.client() as client:
            return as_text(client, "CLUSTER MYID")


def as_text(client: redis.Redis, command: str) -> str:
    """Return the reply of a command as the server sent it, where redis-py would parse it."""
    client.set_response_callback(command, lambda reply, **_: reply)
    reply: Any = client.execute_command(command)  # type: ignore[no-untyped-call]
    return bytes(reply).decode()
