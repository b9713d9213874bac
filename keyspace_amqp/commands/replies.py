"""Replies of commands: as Python data, as the shim plays them, and as JSON for a peer.

A reply is an int, bytes, a str (a status), a list, a dict or None. An error is raised
as `CommandError`. Pure; any thread.
"""

from __future__ import annotations

import struct
from typing import Any

from ..jobs import JobError

Reply = int | bytes | str | list["Reply"] | dict[bytes, "Reply"] | None

# One item of an encoded reply: a tag, and a number or a length.
_ITEM = struct.Struct("=cq")
# An error is one line of the protocol, and the shim takes a text up to its first NUL.
_ONE_LINE = str.maketrans("\0\r\n", "   ")
_DEFAULT_CODE = "ERR"


class CommandError(Exception):
    """The error that the client gets: `code`, a blank, and `text`."""

    def __init__(self, text: str, code: str = _DEFAULT_CODE) -> None:
        super().__init__(text if code == _DEFAULT_CODE else f"{code} {text}")
        self.text = text
        self.code = code

    @classmethod
    def of(cls, error: JobError) -> CommandError:
        """Make the client's error of a job's error."""
        return cls(error.text, error.code or _DEFAULT_CODE)


def encode(reply: Reply | CommandError) -> bytes:
    """Return the reply in the form that `play_reply` in the shim reads.

    Per item a tag, a signed 64-bit number (the value, the count, or the length of a
    text), and for texts the bytes and a NUL.
    """
    if isinstance(reply, CommandError):
        line = f"{reply.code} {reply.text}".translate(_ONE_LINE)
        return _encode_text(b"-", line.encode("utf-8", "backslashreplace"))
    if isinstance(reply, int):
        return _ITEM.pack(b":", reply)
    if isinstance(reply, bytes):
        return _encode_text(b"$", reply)
    if isinstance(reply, str):
        return _encode_text(b"+", reply.encode())
    if isinstance(reply, list):
        return _ITEM.pack(b"*", len(reply)) + b"".join(map(encode, reply))
    if isinstance(reply, dict):
        items = b"".join(encode(name) + encode(value) for name, value in reply.items())
        return _ITEM.pack(b"%", len(reply)) + items
    return _ITEM.pack(b"_", 0)


def _encode_text(tag: bytes, text: bytes) -> bytes:
    return _ITEM.pack(tag, len(text)) + text + b"\0"


# ---- between nodes: JSON, with bytes as latin-1 ------------------------------------


def to_json(reply: Reply) -> Any:
    """Return the reply as it goes to the peer that asked for it."""
    if isinstance(reply, bytes):
        return reply.decode("latin-1")
    if isinstance(reply, list):
        return [to_json(item) for item in reply]
    if isinstance(reply, dict):
        return {name.decode("latin-1"): to_json(value) for name, value in reply.items()}
    return reply


# A peer may run another version of the module, so its answer can have any shape.


def int_from_json(value: Any) -> int:
    """Return a peer's number; 0 if the value is not a 64-bit number."""
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else 0


def bytes_from_json(value: Any) -> bytes:
    """Return a peer's text; empty if the value is not a text."""
    return value.encode("latin-1", "replace") if isinstance(value, str) else b""
