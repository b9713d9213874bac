"""The wire form of the messages that the nodes of a cluster send each other.

A message is MAGIC, a version, a checksum, and a JSON object in which bytes are latin-1
text. Pure; any thread.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

from ..values import value

MAGIC = b"KSA"
VERSION = 1
_HEAD = struct.Struct("!3sBI")
# Milliseconds, and the run id of the node that made the version.
Version = tuple[int, str]


@value
class Register:
    """The value of a parameter that was set for all nodes, and its version."""

    version: Version
    value: bytes


def pack(message: Mapping[str, Any]) -> bytes:
    """Return a message as it goes over the bus."""
    text = json.dumps(message, ensure_ascii=False, default=lambda value: value.decode("latin-1"))
    body = text.encode()
    return _HEAD.pack(MAGIC, VERSION, zlib.crc32(body)) + body


def unpack(data: bytes) -> dict[str, Any]:
    """Return the message in `data`. Raises ValueError if it is not a message of this version."""
    if len(data) < _HEAD.size:
        raise ValueError("too short")
    magic, version, checksum = _HEAD.unpack_from(data)
    body = data[_HEAD.size :]
    if magic != MAGIC or zlib.crc32(body) != checksum:
        raise ValueError("garbage")
    if version != VERSION:
        raise ValueError(f"version {version} is not known")
    try:
        message = json.loads(body)
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    if not isinstance(message, dict):
        raise ValueError("not an object")
    return message


# ---- parts of a message; each raises ValueError for a value of another form -----------------


def text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is not a text")
    return value


def bytes_of(value: Any) -> bytes:
    return text_of(value).encode("latin-1")  # UnicodeEncodeError is a ValueError


def list_of(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.40} is not a list")
    return value


def version_of(value: Any) -> Version:
    match value:
        case [int(time), str(node)] if 0 <= time < 2**63:
            return time, node
    raise ValueError(f"{value!r:.40} is not a version")


def mapping_of(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} is not an object")
    return value


def registers_of(value: Any) -> dict[str, Register]:
    registers = {}
    for name, given in mapping_of(value).items():
        if not isinstance(given, list) or len(given) != 2:
            raise ValueError(f"{name!r:.40} has no version and value")
        registers[name] = Register(version_of(given[0]), bytes_of(given[1]))
    return registers


def registers_to_wire(registers: Mapping[str, Register]) -> dict[str, Any]:
    """Return registers as a part of a message: the inverse of `registers_of`."""
    return {name: [register.version, register.value] for name, register in registers.items()}
