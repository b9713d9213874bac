"""Replies as Redis writes them to a client, in RESP2."""

from __future__ import annotations

from typing import Any

WRONG_TYPE = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"


def to_resp(value: Any) -> bytes:
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    return b"*%d\r\n" % len(value) + b"".join(map(to_resp, value))
