"""The values of all parameters at one moment, and the forms of a value.

Pure: no I/O, any thread.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence

from .tables.parameters import PARAMETERS, SWITCH, Kind


@dataclasses.dataclass(frozen=True)
class Config:
    """The values of all parameters at one moment, checked by the shim.

    Texts that go to the broker stay bytes: Redis does not know encodings.
    """

    events: str
    host: str
    port: int
    username: str
    password: str = dataclasses.field(repr=False)
    heartbeat: int = 30
    exchange: str = "amq.direct"
    routing_key: str = "redis_keyspace_events"
    delivery_mode: int = 1
    fallback_size: int = 10_000_000
    masks: tuple[bytes, ...] = (b"ALL",)
    queue_limit: int = 64 * 1024 * 1024
    worker_nice: int = 5
    url: str = dataclasses.field(default="", repr=False)
    vhost: str = "/"
    password_file: str = ""
    auth_mechanism: str = "plain"
    tls: bool = False
    tls_ca_file: str = ""
    tls_cert_file: str = ""
    tls_key_file: str = ""
    tls_server_name: str = ""
    tls_verify: bool = True
    tcp_keepalive: int = 60
    node_name: str = ""
    format: str = "text"
    headers: bool = False
    value: int = 0
    mandatory: bool = True
    app_id: str = ""
    message_type: str = ""
    priority: str = ""
    expiration: str = ""
    deduplication_header: bool = False
    databases: str = "ALL"

    @classmethod
    def from_values(cls, values: Sequence[bytes]) -> Config:
        """Makes a configuration from raw values in the table's order."""
        fields: dict[str, str | int | tuple[bytes, ...]] = {}  # a bool is an int
        for parameter, value in zip(PARAMETERS, values, strict=True):
            field = parameter.name.replace("-", "_")
            if parameter.kind is Kind.INTEGER:
                fields[field] = int(value)
            elif parameter.kind is Kind.MASKS:
                fields[field] = parse_masks(value)
            elif parameter.pattern == SWITCH:
                fields[field] = value == b"on"
            else:
                fields[field] = value.decode("utf-8", "surrogateescape")
        return cls(**fields)  # type: ignore[arg-type]  # one dict, fields of several types


def raw(text: str) -> bytes:
    """The bytes of a text in a configuration."""
    return text.encode("utf-8", "surrogateescape")


def parse_databases(value: str) -> Callable[[int], bool] | None:
    """Whether a database is among those of a checked value; None: all are."""
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
    """Splits the value of `masks` into masks.

    The value must have passed the shim's check: blanks separate masks, `\\xHH`
    is any byte, `\\\\` a backslash.
    """
    return tuple(
        _ESCAPE.sub(lambda m: b"\\" if m[2] else bytes([int(m[1], 16)]), mask)
        for mask in value.split()
    )


def format_masks(masks: Iterable[bytes]) -> bytes:
    """The value of `masks` for these masks: the inverse of `parse_masks`."""
    return b" ".join(
        _UNSAFE.sub(lambda m: b"\\\\" if m[0] == b"\\" else b"\\x%02x" % m[0][0], mask)
        for mask in masks
    )


# What redis.conf takes as it is; anything else goes in quotes.
_PLAIN = re.compile(rb"[A-Za-z0-9_.:/@%+,$^*-]+")
_ESCAPED = re.compile(rb"[^ !#-\[\]-~]")


def quoted(value: bytes) -> str:
    """A value as a word of redis.conf."""
    if _PLAIN.fullmatch(value):
        return value.decode()
    escaped = _ESCAPED.sub(
        lambda m: b"\\" + m[0] if m[0] in b'"\\' else b"\\x%02x" % m[0][0], value
    )
    return f'"{escaped.decode()}"'
