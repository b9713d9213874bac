"""The parameters: one table, and the values of one moment.

The table is the only place that knows a parameter. The shim's checks (see
`shim/settings.c`), the README's table, COMMAND DOCS and the command line are
made from it. Pure: no I/O, any thread, imports nothing of the package.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Iterable, Sequence


class Kind(enum.Enum):
    """How the shim checks a value (`setting_kind_t` in shim/settings.h)."""

    TEXT = "SETTING_TEXT"
    INTEGER = "SETTING_INTEGER"
    EVENTS = "SETTING_EVENTS"
    MASKS = "SETTING_MASKS"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A parameter.

    `minimum` and `maximum` bound an integer, or a text's length in bytes.
    `position` counts the module's arguments from 1; None: only by name.
    """

    name: str
    kind: Kind
    default: str
    minimum: int
    maximum: int
    accepted: str
    help: str
    position: int | None = None
    sensitive: bool = False


INT64_MAX = 2**63 - 1
# The longest short string of AMQP 0-9-1, which names an exchange or a key.
SHORT_STRING = 255
# More than anybody types; little enough to compile in a moment. MASK_BYTES is in
# shim/settings.c too.
MASKS_BYTES = 64 * 1024
MASK_BYTES = 1024

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "events",
        Kind.EVENTS,
        "xe",
        1,
        64,
        "letters of g $ l s h z x e A, and t d m n where the server has them",
        "classes of keyspace events, as in notify-keyspace-events; `A` is `g$lshzxe` and the "
        "server's `t` and `d`",
        position=1,
    ),
    Setting(
        "host",
        Kind.TEXT,
        "127.0.0.1",
        1,
        255,
        "a name or an address of 1 to 255 bytes",
        "where RabbitMQ is",
        position=2,
    ),
    Setting(
        "port",
        Kind.INTEGER,
        "5672",
        1,
        65535,
        "a number from 1 to 65535",
        "RabbitMQ's port",
        position=3,
    ),
    Setting(
        "username",
        Kind.TEXT,
        "guest",
        0,
        255,
        "a text of up to 255 bytes",
        "RabbitMQ's user",
        position=4,
    ),
    Setting(
        "password",
        Kind.TEXT,
        "guest",
        0,
        1024,
        "a text of up to 1024 bytes",
        "the user's password; never shown by the module",
        position=5,
        sensitive=True,
    ),
    Setting(
        "heartbeat",
        Kind.INTEGER,
        "30",
        0,
        65535,
        "a number of seconds from 0 (off) to 65535",
        "seconds between heartbeats, 0 for none",
        position=6,
    ),
    Setting(
        "exchange",
        Kind.TEXT,
        "amq.direct",
        0,
        SHORT_STRING,
        f"a name of up to {SHORT_STRING} bytes",
        "exchange to publish to; it must exist",
        position=7,
    ),
    Setting(
        "routing-key",
        Kind.TEXT,
        "redis_keyspace_events",
        0,
        SHORT_STRING,
        f"a text of up to {SHORT_STRING} bytes",
        "routing key of every message",
        position=8,
    ),
    Setting(
        "delivery-mode",
        Kind.INTEGER,
        "1",
        1,
        2,
        "1 (kept in memory by the broker) or 2 (persistent)",
        "1: the broker may keep messages in memory only; 2: persistent",
        position=9,
    ),
    Setting(
        "fallback-size",
        Kind.INTEGER,
        "10000000",
        -INT64_MAX - 1,
        INT64_MAX,
        "a whole number: > 0 the most elements to keep, 0 no limit, < 0 no list",
        "elements that the fallback list may have; 0: no limit; negative: no list",
        position=10,
    ),
    Setting(
        "masks",
        Kind.MASKS,
        "ALL",
        0,
        MASKS_BYTES,
        f"masks of up to {MASK_BYTES} bytes with blanks between them, a blank in a mask as "
        f"\\x20 and a backslash as \\\\, {MASKS_BYTES} bytes in all",
        "key masks, see below; `ALL`: every key; empty: none",
        position=11,
    ),
    Setting(
        "queue-limit",
        Kind.INTEGER,
        "67108864",
        1024 * 1024,
        2**40,
        f"a number of bytes from {1024 * 1024} to {2**40}",
        "bytes of events that may wait in memory; past half of it they spill into the list",
    ),
    Setting(
        "worker-nice",
        Kind.INTEGER,
        "5",
        0,
        19,
        "a number from 0 to 19",
        "how far the worker thread stands behind Redis for the processor; 0: not at all, "
        "and messages are not held back for it either",
    ),
)

INDEX = {setting.name: index for index, setting in enumerate(SETTINGS)}


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

    @classmethod
    def from_values(cls, values: Sequence[bytes]) -> Config:
        """Makes a configuration from raw values in the table's order."""
        fields: dict[str, str | int | tuple[bytes, ...]] = {}
        for setting, value in zip(SETTINGS, values, strict=True):
            field = setting.name.replace("-", "_")
            if setting.kind is Kind.INTEGER:
                fields[field] = int(value)
            elif setting.kind is Kind.MASKS:
                fields[field] = parse_masks(value)
            else:
                fields[field] = value.decode("utf-8", "surrogateescape")
        return cls(**fields)  # type: ignore[arg-type]  # one dict, fields of several types


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
