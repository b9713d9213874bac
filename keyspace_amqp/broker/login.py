"""What pika wants for a connection: credentials, TLS and time limits.

Any thread; reads files.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import pika

from .. import __version__
from .target import Target, is_text

# Seconds for the TCP connection, and for all of it with the AMQP handshake: a
# broker that accepts and never answers is given up after that.
CONNECT_TIMEOUT = 5.0
HANDSHAKE_TIMEOUT = 8.0
# An unanswered question of TCP's keepalive is asked again after this part of the time
# without traffic, and so often.
_KEEPALIVE_PROBES = 3
# More than any password that RabbitMQ takes.
_PASSWORD_FILE_BYTES = 64 * 1024


# The end of OpenSSL's texts: the line of its source.
_SOURCE_LINE = re.compile(r" \(_ssl\.c:\d+\)$")


class ConnectError(Exception):
    """Why no connection can even be tried; the text is for people."""


def parameters_for(
    goal: Target, properties: Mapping[str, str]
) -> Callable[[str, int], pika.ConnectionParameters]:
    """What pika wants for a host and port. Raises ConnectError if a file cannot be used."""
    if not is_text(goal.vhost):
        raise ConnectError("RabbitMQ's names of virtual hosts are UTF-8, and vhost is not")
    login, tls = _login(goal), _tls(goal)
    keepalive = {}
    if goal.keepalive:
        every = max(1, goal.keepalive // _KEEPALIVE_PROBES)
        keepalive = {
            "TCP_KEEPIDLE": goal.keepalive,
            "TCP_KEEPINTVL": every,
            "TCP_KEEPCNT": _KEEPALIVE_PROBES,
        }

    def make(host: str, port: int) -> pika.ConnectionParameters:
        return pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=goal.vhost,
            credentials=login,
            heartbeat=goal.heartbeat,
            connection_attempts=1,
            socket_timeout=CONNECT_TIMEOUT,
            stack_timeout=HANDSHAKE_TIMEOUT,
            ssl_options=tls and pika.SSLOptions(tls, goal.server_name or host),
            tcp_options=keepalive or None,
            client_properties={"product": "keyspace-amqp", "version": __version__, **properties},
        )

    return make


def _login(goal: Target) -> Any:
    """pika's credentials. Names and passwords are the bytes that they are: pika would
    refuse to encode others than UTF-8, and name the byte."""
    if goal.external:
        return pika.credentials.ExternalCredentials()
    password = goal.password
    if password is None:
        try:
            # A pipe that nobody writes to would hold up the worker.
            descriptor = os.open(goal.password_file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                password = file.read(_PASSWORD_FILE_BYTES).split(b"\n")[0].rstrip(b"\r")
        except OSError as error:
            raise ConnectError(f"password-file cannot be read: {error}") from None
    return pika.PlainCredentials(goal.username, password)


def _tls(goal: Target) -> ssl.SSLContext | None:
    """The files are read anew for each connection, so that certificates can be renewed."""
    if not goal.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=goal.ca_file or None)
    except OSError as error:  # ssl.SSLError among them
        raise ConnectError(
            f"tls-ca-file {goal.ca_file} cannot be used: {tls_reason(error)}"
        ) from None
    if goal.cert_file or goal.key_file:
        try:
            # Without an answer OpenSSL would ask on the terminal.
            context.load_cert_chain(goal.cert_file, goal.key_file or None, password=lambda: "")
        except OSError as error:
            files = f"tls-cert-file {goal.cert_file}"
            files += f" with tls-key-file {goal.key_file}" if goal.key_file else ""
            raise ConnectError(f"{files} cannot be used: {tls_reason(error)}") from None
    if not goal.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def tls_reason(error: OSError) -> str:
    """OpenSSL's words without its numbers and lines."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return _SOURCE_LINE.sub("", str(error))
