"""The Redis servers that a tool talks to: one, or all nodes of its cluster."""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import dataclasses
import os
import re
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..cluster.topology import ALONE, Topology, read_topology
from . import ToolError, tls
from .replies import error_code, is_unknown_command, reason

# Seconds for a connection and for each answer: a node that hangs must not stop the tool.
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
    """Return a client that is not connected yet and never repeats a command. A repetition would
    wait once more for a node that hangs, and a push without an answer may have been carried
    out. Raises ToolError if the URL cannot be read, or its query cannot be used."""
    try:
        if "@" in url.partition("?")[2]:  # the question mark is in the password
            raise ValueError
        tls.check(url)
        client = redis.Redis.from_url(
            url,
            password=os.environ.get("REDISCLI_AUTH"),  # a password in the URL wins
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            retry=Retry(NoBackoff(), 0),
            protocol=3,
        )
        _check_path(url)  # redis-py takes a path that is no number for database 0
        return client
    except ValueError:  # its text may quote a part of the URL, with a password
        raise ToolError(f"--redis: the URL cannot be read: {_wrong_with(url)}") from None


def _check_path(url: str) -> None:
    """Check the path of a URL, which is the number of a database. Raises ValueError."""
    parts = urllib.parse.urlsplit(url)
    if parts.scheme != "unix" and not re.fullmatch("/?[0-9]{0,9}", parts.path):
        raise ValueError


def _wrong_with(url: str) -> str:
    """Return what is wrong with a URL that cannot be read, and how to write it; nothing of it that
    may be a password."""
    if url.startswith(("redis://", "rediss://", "unix://")):
        return (
            "the port and the database behind the / are numbers; in user and password, write # as "
            "%23, / as %2F, ? as %3F, [ as %5B and ] as %5D"
        )
    like = "redis://user:password@host:port"
    if re.fullmatch(r"[A-Za-z0-9.-]+(:[0-9]+)?", url):
        like = f"redis://{url}"
    elif url.startswith("/"):
        like = f"unix://{url}"
    return f"it begins with redis://, rediss:// (TLS) or unix:// (a socket), as {like} does"


def sibling(client: redis.Redis, address: str) -> redis.Redis:
    """Return a client of another node, with the same user, password, TLS and time limits."""
    host, _, port = address.rpartition(":")
    kind = client.connection_pool.connection_class  # another class would leave TLS out
    own = {**client.connection_pool.connection_kwargs, "host": host, "port": int(port)}
    if own.pop("path", None) is not None:  # a Unix socket leads to one node only
        kind = redis.Connection
    return redis.Redis.from_pool(redis.ConnectionPool(connection_class=kind, **own))


def place(client: redis.Redis) -> str:
    """Return the address that a client connects to: a path, or `host:port`."""
    own = client.connection_pool.connection_kwargs
    return own.get("path") or f"{own.get('host', 'localhost')}:{own.get('port', 6379)}"


def connect(options: argparse.Namespace, timeout: float = TIMEOUT) -> redis.Redis:
    """Return a client of the server in the option --redis. Raises ToolError if the server
    does not answer."""
    client = open_client(options.redis, timeout)
    try:
        with contextlib.suppress(redis.ResponseError):  # that is an answer too
            client.ping()
    except (redis.RedisError, OSError, ValueError) as error:
        words = reason(error)
        hint = tls.hint(options.redis, words)
        text = f"{without_secrets(options.redis)}: {words}" + (f"; {hint}" if hint else "")
        raise ToolError(text) from None
    return client


class Group:
    """The server in the option --redis and, if it is in a cluster, all other nodes, whether
    they answer or not; in the order of their addresses. Used in a `with`.

    Most likely failure: the server does not answer, or its user may not ask for the nodes;
    both raise ToolError.
    """

    def __init__(self, options: argparse.Namespace, timeout: float = TIMEOUT) -> None:
        self._first = connect(options, timeout)
        self.nodes = [Node(place(self._first), self._first)]
        self.clustered = True
        try:
            self.renew(self._first)
        except (redis.RedisError, OSError) as error:
            # A server that is in no cluster refuses with the code ERR. If the user may not ask, or
            # the command has another name, INFO says it too.
            plain = error_code(error) == "ERR" and not is_unknown_command(error)
            if not plain and not _is_alone(self._first):
                raise ToolError(f"CLUSTER NODES: {reason(error)}") from None
            self.clustered = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.client.close()
        self._first.close()

    def renew(self, client: Any) -> None:
        """Update `nodes` to the present nodes of the cluster, according to one of them. Raises
        redis.RedisError, OSError."""
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


def _is_alone(client: redis.Redis) -> bool:
    """True if INFO says that a server is in no cluster."""
    with contextlib.suppress(redis.RedisError, OSError):
        return str(client.info("cluster").get("cluster_enabled")) == "0"
    return False


@contextlib.contextmanager
def all_nodes(options: argparse.Namespace, timeout: float = TIMEOUT) -> Iterator[list[Node]]:
    """The nodes of a `Group` as they are now, closed at the end of the `with`."""
    with Group(options, timeout) as group:
        yield group.nodes


def _addresses(reply: Any) -> Iterator[tuple[str, int]]:
    """Yield host and port of each node in CLUSTER NODES as redis-py reads it. The host of a
    node that knows no other is empty."""
    for address, node in reply.items():
        if not {"noaddr", "handshake"} & set(node["flags"].split(",")):
            host, _, port = address.rpartition(":")
            yield host, int(port)


def ask(
    nodes: Sequence[Node], question: Callable[[Node], _Answer]
) -> list[tuple[Node, _Answer | Exception]]:
    """Ask all nodes at the same time. Return for each node its answer, or the exception that
    says why it has none."""

    def one(node: Node) -> _Answer | Exception:
        try:
            return question(node)
        except (redis.RedisError, OSError) as error:
            return error

    with concurrent.futures.ThreadPoolExecutor(min(len(nodes), _THREADS)) as pool:
        return list(zip(nodes, pool.map(one, nodes), strict=True))


def topology(client: Any) -> Topology:
    """Return the cluster of a node, as this node sees it. Raises redis.RedisError."""
    if not client.info("cluster").get("cluster_enabled"):
        return ALONE
    # Two words: redis-py would parse the reply to the command as one word.
    reply = client.execute_command("CLUSTER", "NODES")
    return read_topology(bytes(reply).decode("utf-8", "replace"))


def without_secrets(url: str) -> str:
    """Return a URL that may be shown, even if it is malformed: without everything before the
    last @, and without its query."""
    scheme, colon, rest = url.partition("://")
    where = rest.rpartition("@")[2].partition("?")[0]
    return f"{scheme}{colon}{where}" if colon else "the URL"
