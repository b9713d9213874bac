"""The target of a connection: where the broker is and how to log in.

It is read from the parameters; `url` overrides the single ones. Pure; any thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from ..config import Config, raw
from ..values import replace, text_of, value

PORT, TLS_PORT = 5672, 5671

_ESCAPED = re.compile(b"%([0-9A-Fa-f]{2})")
# A server of a checked list: [address] or name, with a port or without. An IPv6 address
# without brackets does not match.
_SERVER = re.compile(r"\[([^]]*)\](?::([0-9]+))?|([^:]*)(?::([0-9]+))?")


@value
class Target:
    """Where the broker is, and how to log in.

    `servers`: (host, port) of each. `external`: the client certificate is the login.
    """

    servers: tuple[tuple[str, int], ...]
    username: bytes
    password: bytes | None  # None: it is in password_file
    password_file: str
    external: bool
    vhost: str
    heartbeat: int
    tls: bool
    ca_file: str
    cert_file: str
    key_file: str
    server_name: str
    verify: bool
    keepalive: int

    def __repr__(self) -> str:
        return text_of(self, hidden=("password",))


def target_of(config: Config) -> Target:
    """Return the target that the parameters describe."""
    single = Target(
        servers=_servers(config.host, config.port),
        username=raw(config.username),
        password=None if config.password_file else raw(config.password),
        password_file=config.password_file,
        external=config.auth_mechanism == "external",
        vhost=config.vhost,
        heartbeat=config.heartbeat,
        tls=config.tls,
        ca_file=config.tls_ca_file,
        cert_file=config.tls_cert_file,
        key_file=config.tls_key_file,
        server_name=config.tls_server_name,
        verify=config.tls_verify,
        keepalive=config.tcp_keepalive,
    )
    return _with_url(single, config.url) if config.url else single


def needs_new_connection(old: Config, new: Config) -> bool:
    """True if a change of parameters needs a new connection to the broker."""
    return target_of(old) != target_of(new) or old.node_name != new.node_name


def _with_url(single: Target, url: str) -> Target:
    """Return the target with what a checked URL contains.

    See https://www.rabbitmq.com/docs/uri-spec and .../uri-query-parameters.
    """
    scheme, _, rest = url.partition("://")
    rest, _, query = rest.partition("?")
    authority, _, vhost = rest.partition("/")
    login, _, servers = authority.rpartition("@")
    tls = scheme == "amqps"
    changes: dict[str, object] = {
        "servers": _servers(servers, TLS_PORT if tls else PORT),
        "tls": tls,
    }
    if login:
        username, colon, password = login.partition(":")
        changes["username"] = _unquoted(username)
        if colon:
            changes["password"] = _unquoted(password)
    if vhost:  # `/` alone is not taken for the virtual host with the empty name
        changes["vhost"] = _unquoted(vhost).decode("utf-8", "surrogateescape")
    for pair in query.split("&") if query else ():
        name, _, value = pair.partition("=")
        field, read = _QUERY[name]
        changes[field] = read(_unquoted(value).decode("utf-8", "surrogateescape"))
    return replace(single, **changes)


# Per name in a URL's query the field of Target, and how it is read.
_QUERY: dict[str, tuple[str, Callable[[str], object]]] = {
    "heartbeat": ("heartbeat", lambda text: min(int(text), 65535)),
    "auth_mechanism": ("external", lambda text: text == "external"),
    "verify": ("verify", lambda text: text == "verify_peer"),
    "cacertfile": ("ca_file", str),
    "certfile": ("cert_file", str),
    "keyfile": ("key_file", str),
    "server_name_indication": ("server_name", str),
}


def _servers(text: str, port: int) -> tuple[tuple[str, int], ...]:
    servers = []
    for server in text.split(","):
        match = _SERVER.fullmatch(server)
        if match is None:
            servers.append((server, port))
        else:
            servers.append((match[1] or match[3], int(match[2] or match[4] or port)))
    return tuple(servers)


def address(host: str, port: int) -> str:
    """Return `host:port` as people write it."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_utf8(text: str) -> bool:
    """True if the bytes of a text in a Config are UTF-8."""
    return not any("\udc80" <= character <= "\udcff" for character in text)


def _unquoted(text: str) -> bytes:
    return _ESCAPED.sub(lambda m: bytes([int(m[1], 16)]), raw(text))
