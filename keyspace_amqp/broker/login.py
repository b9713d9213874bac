"""The parameters of a connection as pika takes them: credentials, TLS and time limits.

Called by the connection and by the tools; any thread. Reads the files with passwords and
certificates, and never waits for the network.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from typing import Any

import pika

from .. import __version__
from .target import Target, is_utf8

# Seconds for the TCP connection, and for the TCP connection and the AMQP handshake together.
# The second limit ends an attempt at a broker that accepts and never answers.
CONNECT_TIMEOUT = 5.0
HANDSHAKE_TIMEOUT = 8.0
# TCP sends this many probes; the time between two is `tcp-keepalive` divided by the number.
_KEEPALIVE_PROBES = 3
# More than any password that RabbitMQ takes.
_PASSWORD_FILE_BYTES = 64 * 1024
# Python ends the texts of OpenSSL's errors with a line of its own source.
_SOURCE_LINE = re.compile(r" \(_ssl\.c:\d+\)$")


class ConnectError(Exception):
    """No connection can be tried; the text is for people."""


def parameters_for(
    target: Target, properties: Mapping[str, str]
) -> Callable[[str, int], pika.ConnectionParameters]:
    """Return a function that makes pika's parameters for a host and port.

    `properties`: what RabbitMQ's tools show of the connection. Raises ConnectError if a
    value or a file cannot be used.
    """
    if not is_utf8(target.vhost):
        raise ConnectError("vhost is not UTF-8, and RabbitMQ's names of virtual hosts are")
    credentials, tls = _credentials(target), _tls_context(target)

    def make(host: str, port: int) -> pika.ConnectionParameters:
        return pika.ConnectionParameters(
            host=host,
            port=port,
            virtual_host=target.vhost,
            credentials=credentials,
            heartbeat=target.heartbeat,
            connection_attempts=1,
            socket_timeout=CONNECT_TIMEOUT,
            stack_timeout=HANDSHAKE_TIMEOUT,
            ssl_options=tls and pika.SSLOptions(tls, target.server_name or host),
            tcp_options=_tcp_options(target.keepalive),
            client_properties={"product": "keyspace-amqp", "version": __version__, **properties},
        )

    return make


def _tcp_options(keepalive: int) -> dict[str, int] | None:
    """Return TCP's options for probes after this many idle seconds; None: keepalive is off."""
    if not keepalive:
        return None
    return {
        "TCP_KEEPIDLE": keepalive,
        "TCP_KEEPINTVL": max(1, keepalive // _KEEPALIVE_PROBES),
        "TCP_KEEPCNT": _KEEPALIVE_PROBES,
    }


def _credentials(target: Target) -> Any:
    """Return pika's credentials.

    User and password stay bytes. Pika would have to encode texts, and its error for a text
    that is not UTF-8 would show a byte of the password.
    """
    if target.external:
        return pika.credentials.ExternalCredentials()
    password = target.password
    if password is None:
        password = _password_of(target.password_file)
    return pika.PlainCredentials(target.username, password)


def _password_of(path: str) -> bytes:
    """Return the first line of a file, read anew for each connection."""
    try:
        # Without O_NONBLOCK, opening a pipe without a writer would block the worker.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as file:
            return file.read(_PASSWORD_FILE_BYTES).split(b"\n")[0].rstrip(b"\r")
    except OSError as error:
        raise ConnectError(f"password-file cannot be read: {error}") from None


def _tls_context(target: Target) -> ssl.SSLContext | None:
    """Return the context of TLS; None: no TLS.

    Its files are read anew for each connection, so that certificates can be renewed.
    """
    if not target.tls:
        return None
    try:
        context = ssl.create_default_context(cafile=target.ca_file or None)
    except OSError as error:  # ssl.SSLError is one
        raise ConnectError(
            f"tls-ca-file {target.ca_file} cannot be used: {tls_reason(error)}"
        ) from None
    if target.cert_file or target.key_file:
        _load_certificate(context, target.cert_file, target.key_file)
    if not target.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _load_certificate(context: ssl.SSLContext, cert_file: str, key_file: str) -> None:
    try:
        # Without a password OpenSSL would ask for one on the terminal.
        context.load_cert_chain(cert_file, key_file or None, password=lambda: "")
    except OSError as error:
        files = f"tls-cert-file {cert_file}"
        files += f" with tls-key-file {key_file}" if key_file else ""
        raise ConnectError(f"{files} cannot be used: {tls_reason(error)}") from None


def tls_reason(error: OSError) -> str:
    """Return OpenSSL's reason for people, without numbers and lines of source."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the broker's certificate is refused: {error.verify_message}"
    if isinstance(error, ssl.SSLError) and error.reason:
        return error.reason.replace("_", " ").lower()
    return _SOURCE_LINE.sub("", str(error))
