"""The broker that a tool talks to: the one that the options name, or the module's broker."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import logging
import os
import re
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import pika
import redis
from pika.adapters.utils import connection_workflow

from ..broker.login import ConnectError, parameters_for
from ..broker.reasons import reason_of
from ..broker.target import address, target_of
from ..config import Config
from ..tables.advice import end_of_refusal
from ..tables.parameters import INDEX, PARAMETERS
from . import ToolError, nodes
from .replies import mapping, reason

# Seconds for the TCP connection, for the whole handshake, and for an answer.
TIMEOUT = 5.0
# Seconds for the broker's answer to the end of the connection.
_GOODBYE = 2.0

# The tools print the errors themselves.
logging.getLogger("pika").addHandler(logging.NullHandler())


@dataclasses.dataclass(frozen=True)
class Target:
    """Where the module publishes, and how to log in.

    `shown`: the broker for people, without a password. `parameters`: those of pika for each
    server of the broker; the first that answers is used. Most likely failure: user
    or password are refused, and `connect` raises ToolError.
    """

    shown: str
    parameters: tuple[pika.ConnectionParameters, ...] = dataclasses.field(repr=False)
    exchange: str
    routing_keys: tuple[str, ...]

    @property
    def user(self) -> str:
        """The user's name, for people."""
        login = self.parameters[0].credentials
        return getattr(login, "username", b"the certificate's user").decode("utf-8", "replace")

    def connect(self) -> pika.BlockingConnection:
        """Return a connection. Raises ToolError."""
        try:
            return pika.BlockingConnection(self.parameters)
        except (
            pika.exceptions.AMQPError,
            connection_workflow.AMQPConnectorException,
            OSError,
        ) as error:
            raise ToolError(f"{self.shown}: {explain(error)}") from None


def close(connection: Any) -> None:
    """Close a connection, without a long wait for the broker's answer."""
    if connection.is_open:
        with contextlib.suppress(pika.exceptions.AMQPError):
            end_after(connection, _GOODBYE)
            connection.close()


def end_after(connection: Any, seconds: float) -> None:
    """End a connection after that time, even if the broker is silent: pika would wait."""
    link = connection._impl

    def end() -> None:
        if not link.is_closed:
            text = f"no answer within {seconds:.0f} seconds"
            link._terminate_stream(pika.exceptions.AMQPConnectionError(text))

    link._adapter_call_later(seconds, end)


def product(connection: Any) -> str:
    """Return the broker's name and version, as it says them."""
    said = connection._impl.server_properties or {}
    return f"{said.get('product', 'unknown')} {said.get('version', '')}".rstrip()


def explain(error: Exception) -> str:
    """Return the description of an error of the broker, for people."""
    if isinstance(error, connection_workflow.AMQPConnectorStackTimeout):
        return f"no AMQP 0-9-1 handshake within {TIMEOUT:.0f} seconds"
    if isinstance(error, pika.exceptions.ProbableAccessDeniedError):
        return f"the broker refuses the virtual host ({reason_of(error)})"
    return reason_of(error)


def target(options: argparse.Namespace, config: Mapping[str, str] | None = None) -> Target:
    """Return broker, exchange and routing keys from the options; those that the options do not
    name are the module's.

    `config`: the module's parameters; without it, the module is asked for them. Raises
    ToolError.
    """
    exchange, keys = options.exchange, options.routing_key
    if config is None and None in (options.amqp, exchange, keys):
        with contextlib.closing(nodes.connect(options)) as client:
            config = module_config(client)
    if exchange is None and config is not None:
        exchange = config["exchange"]
    if keys is None and config is not None:
        keys = [config["routing-key"]]
    try:
        goal = target_of(_broker_config(options.amqp, config or {}))
        make = parameters_for(goal, {"connection_name": "keyspace-amqp (tool)"})
    except ConnectError as error:
        raise ToolError(
            f"{error}. The file may be on the module's machine only; give --amqp"
        ) from None
    parameters = tuple(make(*server) for server in goal.servers)
    for each in parameters:
        each.socket_timeout = each.stack_timeout = each.blocked_connection_timeout = TIMEOUT
    return Target(", ".join(map(_shown, parameters)), parameters, exchange or "", tuple(keys))


def module_config(client: Any) -> dict[str, str]:
    """Return the parameters of the module in a server. Raises ToolError."""
    try:
        return mapping(client.execute_command("KEYSPACEAMQP.CONFIG GET", "*"))
    except (redis.RedisError, OSError) as error:
        raise ToolError(
            f"the module's parameters: {reason(error)}. "
            "With --amqp, --exchange and --routing-key they are not needed"
        ) from None


def _broker_config(url: str | None, parameters: Mapping[str, str]) -> Config:
    """Return the configuration for the URL of the options or, without one, for the module's
    parameters. These show no secrets, so the password comes from the environment. Raises
    ToolError."""
    values: dict[str, str] = {}
    if url is None:
        if parameters.get("url"):
            raise ToolError(
                "the module's broker is in its parameter url, which it does not show; give --amqp"
            )
        values |= parameters
    else:
        parameter = PARAMETERS[INDEX["url"]]
        if not url or not re.fullmatch(parameter.pattern, url):
            end = end_of_refusal(parameter, url)
            raise ToolError(f"the broker's URL is not accepted{end}")
        values["url"] = url
    values["password"] = os.environ.get("AMQP_PASSWORD", "guest")
    values["password-file"] = ""
    return config_of(values)


def config_of(parameters: Mapping[str, str]) -> Config:
    """Return the configuration for parameters of a module, which may be of another version:
    those that it lacks have their defaults."""
    values = [parameters.get(parameter.name, parameter.default) for parameter in PARAMETERS]
    return Config.from_values([os.fsencode(value) for value in values])


def _shown(parameters: Any) -> str:
    """Return the URL of a server, without a password."""
    scheme = "amqps" if parameters.ssl_options else "amqp"
    vhost = urllib.parse.quote(parameters.virtual_host, safe="")
    login = parameters.credentials  # with EXTERNAL there is no user name
    user = urllib.parse.quote(getattr(login, "username", b""), safe="")
    path = "" if vhost == "%2F" else vhost
    return f"{scheme}://{user}@{address(parameters.host, parameters.port)}/{path}"


def loopback(target: Target) -> bool:
    """True if the address of the broker is a loopback address."""
    hosts: Sequence[str] = [each.host for each in target.parameters]
    return any(host == "localhost" or host == "::1" or host.startswith("127.") for host in hosts)
