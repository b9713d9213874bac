"""The form of the messages that the nodes of a cluster send each other.

A message is MAGIC, a version, a checksum, and a JSON object in which bytes are text
of as many characters (latin-1). Pure; any thread.
"""

from __future__ import annotations

import dataclasses
import json
import struct
import zlib
from collections.abc import Mapping
from typing import Any

MAGIC = b"KSA"
VERSION = 1
_HEAD = struct.Struct("!3sBI")
Version = tuple[int, str]


@dataclasses.dataclass(frozen=True)
class Register:
    """A parameter that was set for all nodes."""

    version: Version
    value: bytes


def pack(message: Mapping[str, Any]) -> bytes:
    """A message as it travels."""
    text = json.dumps(message, ensure_ascii=False, default=lambda value: value.decode("latin-1"))
    body = text.encode()
    return _HEAD.pack(MAGIC, VERSION, zlib.crc32(body)) + body


def unpack(data: bytes) -> dict[str, Any]:
    """The message in `data`. Raises ValueError for what is none of this version."""
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
        raise ValueError(f"no JSON: {error}") from None
    if not isinstance(message, dict):
        raise ValueError("no object")
    return message


def text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} is no text")
    return value


def bytes_of(value: Any) -> bytes:
    return text_of(value).encode("latin-1")  # UnicodeEncodeError is a ValueError


def list_of(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r:.40} is no list")
    return value


def version_of(value: Any) -> Version:
    match value:
        case [int(time), str(node)] if 0 <= time < 2**63:
            return time, node
    raise ValueError(f"{value!r:.40} is no version")


def mapping_of(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"{value!r:.40} is no object")
    return value


def registers_of(value: Any) -> dict[str, Register]:
    registers = {}
    for name, given in mapping_of(value).items():
        if not isinstance(given, list) or len(given) != 2:
            raise ValueError(f"{name!r:.40} has no version and value")
        registers[name] = Register(version_of(given[0]), bytes_of(given[1]))
    return registers


def plain_registers(registers: Mapping[str, Register]) -> dict[str, Any]:
    return {name: [register.version, register.value] for name, register in registers.items()}
