"""The broker that a tool talks to: the one that the options name, or else the module's."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import ssl
import urllib.parse
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pika
import redis
from pika.adapters.utils import connection_workflow

from ..broker import describe
from . import ToolError, nodes

# For TCP, for all of the handshake, and for an answer.
TIMEOUT = 5.0
_GOODBYE = 2.0

# What goes wrong is said by the tools.
logging.getLogger("pika").addHandler(logging.NullHandler())


@dataclasses.dataclass(frozen=True)
class Target:
    """Where events go. `shown` is the broker for people; of several `parameters`, one
    that answers is meant."""

    shown: str
    parameters: tuple[pika.ConnectionParameters, ...] = dataclasses.field(repr=False)
    exchange: str
    routing_keys: tuple[str, ...]

    def connect(self) -> pika.BlockingConnection:
        """A connection. Raises ToolError."""
        try:
            return pika.BlockingConnection(self.parameters)
        except (
            pika.exceptions.AMQPError,
            connection_workflow.AMQPConnectorException,
            OSError,
        ) as error:
            raise ToolError(f"{self.shown}: {explain(error)}") from None


def close(connection: Any) -> None:
    """Says goodbye, and does not wait long for the answer."""
    if connection.is_open:
        with contextlib.suppress(pika.exceptions.AMQPError):
            end_after(connection, _GOODBYE)
            connection.close()


def end_after(connection: Any, seconds: float) -> None:
    """Ends a connection after that time, also if the broker says nothing: pika would wait."""
    link = connection._impl

    def end() -> None:
        if not link.is_closed:
            text = f"no answer within {seconds:.0f} seconds"
            link._terminate_stream(pika.exceptions.AMQPConnectionError(text))

    link._adapter_call_later(seconds, end)


def explain(error: Exception) -> str:
    """What the broker has against it."""
    if isinstance(error, connection_workflow.AMQPConnectorStackTimeout):
        return f"no AMQP 0-9-1 handshake within {TIMEOUT:.0f} seconds"
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
        return f"the broker refuses the virtual host ({describe(error)})"
    return describe(error)


def target(options: argparse.Namespace, config: Mapping[str, str] | None = None) -> Target:
    """The options' broker, exchange and routing keys; what they do not say is taken from
    `config`, the module's parameters, which are asked for if not given. Raises ToolError."""
    exchange, keys = options.exchange, options.routing_key
    if config is None and None in (options.amqp, exchange, keys):
        with contextlib.closing(nodes.connect(options)) as client:
            config = module_config(client)
    if exchange is None and config is not None:
        exchange = config["exchange"]
    if keys is None and config is not None:
        keys = [config["routing-key"]]
    if options.amqp is not None:
        parameters = (_from_url(options.amqp),)
    else:
        assert config is not None
        parameters = tuple(_from_config(config))
    for each in parameters:
        each.socket_timeout = each.stack_timeout = each.blocked_connection_timeout = TIMEOUT
        each.connection_attempts = 1
        each.client_properties = {"connection_name": "keyspace-amqp (tool)"}
    return Target(", ".join(map(_shown, parameters)), parameters, exchange or "", tuple(keys))


def module_config(client: Any) -> dict[str, str]:
    """The parameters of the module in a server. Raises ToolError."""
    try:
        return nodes.mapping(client.execute_command("KEYSPACEAMQP.CONFIG GET", "*"))
    except (redis.RedisError, OSError) as error:
        raise ToolError(
            f"the module's parameters: {nodes.reason(error)}. "
            "Give --amqp, --exchange and --routing-key to do without"
        ) from None


def _from_url(url: str) -> Any:
    """pika's reading of a URL, but for user and password: the password may be elsewhere,
    and no error shows it."""
    try:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("amqp", "amqps") or not parts.hostname:
            raise ValueError("it has the form amqp://user:password@host:port/vhost")
        bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
        parameters = pika.URLParameters(bare.geturl())
    except ValueError as error:
        raise ToolError(f"the broker's URL cannot be read: {error}") from None
    password = None if parts.password is None else urllib.parse.unquote(parts.password)
    parameters.credentials = _credentials(urllib.parse.unquote(parts.username or ""), password)
    return parameters


def _from_config(config: Mapping[str, str]) -> Iterator[Any]:
    """The broker, or each of several, as the module's parameters say."""
    if config.get("url"):
        raise ToolError("the module's broker is in its parameter url, which is hidden; give --amqp")
    tls = None
    if config.get("tls", "off") == "on":
        try:
            tls = ssl.create_default_context(cafile=config.get("tls-ca-file") or None)
            if config.get("tls-verify") == "off":
                tls.check_hostname, tls.verify_mode = False, ssl.CERT_NONE
            if config.get("tls-cert-file"):
                tls.load_cert_chain(config["tls-cert-file"], config.get("tls-key-file") or None)
        except OSError as error:
            raise ToolError(f"the module's TLS files: {error}; give --amqp") from None
    for server in config["host"].split(","):
        # IPv6 addresses have brackets if they have a port.
        host, colon, port = server.rpartition(":")
        if not colon or ":" in host.partition("]")[2] or (":" in host and "[" not in host):
            host, port = server, config["port"]
        host = host.strip("[]")
        yield pika.ConnectionParameters(
            host,
            int(port),
            config.get("vhost", "/"),
            _credentials(config["username"]),
            ssl_options=tls and pika.SSLOptions(tls, config.get("tls-server-name") or host),
        )


def _credentials(user: str, password: str | None = None) -> Any:
    if password is None:
        password = os.environ.get("AMQP_PASSWORD", "guest")
    return pika.PlainCredentials(user or "guest", password)


def _shown(parameters: Any) -> str:
    scheme = "amqps" if parameters.ssl_options else "amqp"
    host = f"[{parameters.host}]" if ":" in parameters.host else parameters.host
    vhost = urllib.parse.quote(parameters.virtual_host, safe="")
    user = urllib.parse.quote(parameters.credentials.username, safe="")
    path = "" if vhost == "%2F" else vhost
    return f"{scheme}://{user}@{host}:{parameters.port}/{path}"


def loopback(target: Target) -> bool:
    """Whether the broker is said to be on the machine that asks."""
    hosts: Sequence[str] = [each.host for each in target.parameters]
    return any(host == "localhost" or host == "::1" or host.startswith("127.") for host in hosts)
