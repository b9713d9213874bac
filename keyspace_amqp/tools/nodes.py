"""The servers that a tool talks to: one, or all nodes of its cluster."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..cluster.topology import ALONE, Topology, read_topology
from . import ToolError as ToolError

# A node that is stopped must not stop the tool.
TIMEOUT = 5.0
# Nodes that are asked at the same time.
_THREADS = 64

_Answer = TypeVar("_Answer")


@dataclasses.dataclass(frozen=True)
class Node:
    """A server; `address` is `host:port` as the cluster knows it."""

    address: str
    client: redis.Redis


def open_client(url: str, timeout: float) -> redis.Redis:
    """A client that is not connected yet and tries nothing twice: a node that hangs would
    take its time again, and a push that was not answered may have been carried out. Raises
    ValueError if the URL cannot be read."""
    return redis.Redis.from_url(
        url,
        password=os.environ.get("REDISCLI_AUTH"),  # one in the URL goes before
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        retry=Retry(NoBackoff(), 0),
        protocol=3,
    )


def sibling(client: redis.Redis, address: str) -> redis.Redis:
    """A client of another node, with the same user, password, TLS and time limits."""
    host, _, port = address.rpartition(":")
    kind = client.connection_pool.connection_class  # another one would leave TLS out
    own = {**client.connection_pool.connection_kwargs, "host": host, "port": int(port)}
    if own.pop("path", None) is not None:  # a Unix socket leads to one node only
        kind = redis.Connection
    return redis.Redis.from_pool(redis.ConnectionPool(connection_class=kind, **own))


def place(client: redis.Redis) -> str:
    """Where a client connects to: a path, or `host:port`."""
    own = client.connection_pool.connection_kwargs
    return own.get("path") or f"{own.get('host', 'localhost')}:{own.get('port', 6379)}"


def connect(options: argparse.Namespace, timeout: float = TIMEOUT) -> redis.Redis:
    """A client of the server that the options name (see cli.py). Raises ToolError when
    it does not answer."""
    try:
        client = open_client(options.redis, timeout)
        with contextlib.suppress(redis.ResponseError):  # that is an answer too
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        raise ToolError(f"{without_secrets(options.redis)}: {reason(error)}") from None
    return client


class Group:
    """The server that the options name and, if it is in a cluster, all other nodes, whether
    they answer or not; in the order of their addresses. In a `with`."""

    def __init__(self, options: argparse.Namespace, timeout: float = TIMEOUT) -> None:
        self._first = connect(options, timeout)
        self.nodes = [Node(place(self._first), self._first)]
        try:
            self.renew(self._first)
            self.clustered = True
        except redis.ResponseError as error:
            if "cluster support disabled" not in str(error):
                raise ToolError(f"CLUSTER NODES: {reason(error)}") from None
            self.clustered = False
        except (redis.RedisError, OSError) as error:
            raise ToolError(f"CLUSTER NODES: {reason(error)}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for node in self.nodes:
            node.client.close()
        self._first.close()

    def renew(self, client: Any) -> None:
        """Takes in which nodes the cluster has now, as one of them says. Raises what
        redis-py does."""
        reply = client.execute_command("CLUSTER NODES")
        known = {node.address: node for node in self.nodes}
        own_host = self._first.connection_pool.connection_kwargs.get("host", "localhost")
        nodes = []
        for host, port in sorted(_addresses(reply)):
            address = f"{host or own_host}:{port}"
            node = known.pop(address, None)
            nodes.append(node or Node(address, sibling(self._first, address)))
        self.nodes = nodes
        for node in known.values():
            node.client.close()


@contextlib.contextmanager
def all_nodes(options: argparse.Namespace, timeout: float = TIMEOUT) -> Iterator[list[Node]]:
    """The nodes of a `Group` as they are now. Closed at the end."""
    with Group(options, timeout) as group:
        yield group.nodes


def _addresses(reply: Any) -> Iterator[tuple[str, int]]:
    """Host and port of each node in CLUSTER NODES as redis-py reads it; a node that has met
    no other does not know its host."""
    for address, node in reply.items():
        if not {"noaddr", "handshake"} & set(node["flags"].split(",")):
            host, _, port = address.rpartition(":")
            yield host, int(port)


def ask(
    nodes: Sequence[Node], question: Callable[[Node], _Answer]
) -> list[tuple[Node, _Answer | Exception]]:
    """What each node answers, or why it does not; all are asked at the same time."""

    def one(node: Node) -> _Answer | Exception:
        try:
            return question(node)
        except (redis.RedisError, OSError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(min(len(nodes), _THREADS)) as pool:
        return list(zip(nodes, pool.map(one, nodes), strict=True))


def stats(client: Any) -> dict[str, Any]:
    """KEYSPACEAMQP.STATS: texts as str, numbers as int. Raises redis.RedisError."""
    return mapping(client.execute_command("KEYSPACEAMQP.STATS"))


def topology(client: Any) -> Topology:
    """The cluster of a node, as this node sees it. Raises redis.RedisError."""
    if not client.info("cluster").get("cluster_enabled"):
        return ALONE
    # As one word it would be parsed by redis-py.
    reply = client.execute_command("CLUSTER", "NODES")
    return read_topology(bytes(reply).decode("utf-8", "replace"))


def mapping(reply: Any) -> dict[str, Any]:
    """A reply that is a map, with texts as str."""
    if not isinstance(reply, dict):  # RESP2 has no maps
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    return {text(name): text(value) for name, value in reply.items()}


def text(value: Any) -> Any:
    """Bytes as str, anything else as it is."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def reason(error: Exception) -> str:
    """Why a server did not answer, for people."""
    if isinstance(error, redis.TimeoutError):
        return "no answer in time"
    if type(error) is ValueError:  # it may have quoted a part of the URL
        return "the URL cannot be read; write special characters of a password as %XX"
    words = str(error) or type(error).__name__
    if isinstance(error, redis.AuthenticationError) and words.startswith("HELLO"):
        return "it wants a password, in the URL or in REDISCLI_AUTH"
    if words.lower().startswith("unknown command") and "keyspaceamqp" in words.lower():
        return "the module is not loaded"
    return words


def without_secrets(url: str) -> str:
    """A URL that may be shown, whatever is wrong with it: nothing of what stands before the
    last @, nor of a query."""
    scheme, colon, rest = url.partition("://")
    where = rest.rpartition("@")[2].partition("?")[0]
    return f"{scheme}{colon}{where}" if colon else "the URL"
