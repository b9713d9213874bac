"""The values of all parameters at one moment, and the forms of a value.

Pure: no I/O, any thread.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .tables.parameters import PARAMETERS, Kind
from .values import text_of, value


@value
class Config:
    """The values of all parameters at one moment, as the shim has checked them.

    One field per parameter of tables/parameters.py, in that order. A text may contain any
    bytes, because Redis knows no encodings; `raw` returns them.
    """

    events: str
    host: str
    port: int
    username: str
    password: str
    heartbeat: int
    exchange: str
    routing_key: str
    delivery_mode: int
    fallback_size: int
    masks: tuple[bytes, ...]
    queue_limit: int
    worker_nice: int
    url: str
    vhost: str
    password_file: str
    auth_mechanism: str
    tls: bool
    tls_ca_file: str
    tls_cert_file: str
    tls_key_file: str
    tls_server_name: str
    tls_verify: bool
    tcp_keepalive: int
    node_name: str
    format: str
    headers: bool
    value: int
    mandatory: bool
    app_id: str
    message_type: str
    priority: str
    expiration: str
    deduplication_header: bool
    databases: str
    confirm_timeout: int
    fallback_memory: int
    subkeys: int
    outbox: str
    cloudevents_prefix: str

    def __repr__(self) -> str:
        return text_of(self, hidden=("password", "url"))

    @property
    def has_outbox(self) -> bool:
        """True if all events go through the list."""
        return self.outbox != "off" and self.fallback_size >= 0

    @classmethod
    def from_values(cls, values: Sequence[bytes]) -> Config:
        """Make a Config of the values in the table's order, as CONFIG GET shows them."""
        fields = {
            parameter.field: _PARSERS[parameter.kind](value)
            for parameter, value in zip(PARAMETERS, values, strict=True)
        }
        return cls(**fields)


def _text(value: bytes) -> str:
    return value.decode("utf-8", "surrogateescape")


def raw(text: str) -> bytes:
    """Return the bytes of a text in a Config."""
    return text.encode("utf-8", "surrogateescape")


def parse_databases(value: str) -> Callable[[int], bool] | None:
    """Return a function that is True for the databases of a checked value.

    None: all databases are.
    """
    if value == "ALL":
        return None
    ranges = []
    for part in value.split(","):
        first, *last = sorted(map(int, part.split("-")))
        ranges.append(range(first, max(last, default=first) + 1))
    return lambda db: any(db in numbers for numbers in ranges)


_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{2})|(\\))")
_UNSAFE = re.compile(rb"[^!-\[\]-~]")


def parse_masks(value: bytes) -> tuple[bytes, ...]:
    """Split a checked value of `masks` into masks.

    Blanks separate masks, `\\xHH` is any byte, `\\\\` is a backslash.
    """
    return tuple(
        _ESCAPE.sub(lambda m: b"\\" if m[2] else bytes([int(m[1], 16)]), mask)
        for mask in value.split()
    )


def format_masks(masks: Iterable[bytes]) -> bytes:
    """Return the value of `masks` for these masks: the inverse of `parse_masks`."""
    return b" ".join(
        _UNSAFE.sub(lambda m: b"\\\\" if m[0] == b"\\" else b"\\x%02x" % m[0][0], mask)
        for mask in masks
    )


_PARSERS: dict[Kind, Callable[[bytes], Any]] = {
    Kind.TEXT: _text,
    Kind.SWITCH: lambda value: value == b"on",
    Kind.INTEGER: int,
    Kind.EVENTS: _text,
    Kind.MASKS: parse_masks,
}
# The defaults of all parameters.
DEFAULTS = Config.from_values([parameter.default.encode() for parameter in PARAMETERS])

# Values that redis.conf takes without quotes.
_PLAIN = re.compile(rb"[A-Za-z0-9_.:/@%+,$^*-]+")
_ESCAPED = re.compile(rb"[^ !#-\[\]-~]")


def quoted(value: bytes) -> str:
    """Return a value as a word of redis.conf, in quotes if it needs them."""
    if _PLAIN.fullmatch(value):
        return value.decode()
    escaped = _ESCAPED.sub(
        lambda m: b"\\" + m[0] if m[0] in b'"\\' else b"\\x%02x" % m[0][0], value
    )
    return f'"{escaped.decode()}"'
