"""The servers that a tool talks to: one, or all nodes of its cluster."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import os
from collections.abc import Iterator
from typing import Any

import redis

from ..cluster import ALONE, Topology, read_topology

# A node that is stopped must not stop the tool.
TIMEOUT = 5.0


@dataclasses.dataclass(frozen=True)
class Node:
    """A server; `address` is `host:port` as the cluster knows it."""

    address: str
    client: redis.Redis


class ToolError(Exception):
    """What a tool cannot do; the text says what to do about it."""


def connect(options: argparse.Namespace) -> redis.Redis:
    """A client of the server that the options name (see cli.py). Raises ToolError when
    it does not answer."""
    client = redis.Redis.from_url(
        options.redis,
        password=os.environ.get("REDISCLI_AUTH"),
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        protocol=3,
    )
    try:
        client.ping()
    except (redis.RedisError, OSError) as error:
        raise ToolError(f"{options.redis} does not answer: {error}") from None
    return client


@contextlib.contextmanager
def all_nodes(options: argparse.Namespace) -> Iterator[list[Node]]:
    """The server that the options name and, if it is in a cluster, all other nodes, whether
    they answer or not; in the order of their addresses. Closed at the end."""
    first = connect(options)
    with contextlib.ExitStack() as stack:
        stack.callback(first.close)
        own = first.connection_pool.connection_kwargs
        nodes = [Node(f"{own.get('host', 'localhost')}:{own.get('port', 6379)}", first)]
        if first.info("cluster").get("cluster_enabled"):
            nodes = []
            for address in sorted(node.address for node in topology(first).nodes.values()):
                host, _, port = address.rpartition(":")
                if not host:  # nobody knows where it is
                    continue
                # Of the same class too, or TLS would be left out.
                pool = redis.ConnectionPool(
                    connection_class=first.connection_pool.connection_class,
                    **{**own, "host": host, "port": int(port)},
                )
                client = redis.Redis.from_pool(pool)
                stack.callback(client.close)
                nodes.append(Node(address, client))
        yield nodes


def stats(client: Any) -> dict[str, Any]:
    """KEYSPACEAMQP.STATS: texts as str, numbers as int. Raises redis.RedisError."""
    reply = client.execute_command("KEYSPACEAMQP.STATS")
    if not isinstance(reply, dict):  # RESP2 has no maps
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    return {
        name.decode(): value.decode("utf-8", "replace") if isinstance(value, bytes) else value
        for name, value in reply.items()
    }


def topology(client: Any) -> Topology:
    """The cluster of a node, as this node sees it. Raises redis.RedisError."""
    if not client.info("cluster").get("cluster_enabled"):
        return ALONE
    # As one word it would be parsed by redis-py.
    reply = client.execute_command("CLUSTER", "NODES")
    return read_topology(bytes(reply).decode("utf-8", "replace"))
