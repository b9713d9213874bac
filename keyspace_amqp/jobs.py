"""Jobs: what the worker has Redis' main thread do, and the replies.

A job is a sequence of Redis commands that the main thread runs in one turn; the
worker hands it over and gets the replies later. Pure; any thread.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Sequence


@dataclasses.dataclass
class Command:
    """A Redis command. `write`: it changes the list, so it is replicated, and
    refused on a server that is no primary or is loading. `expected`: the job ends
    after this command unless its reply is just this, in RESP2. `most`, for LRANGE:
    the reply ends with the element that brings it to so many bytes.
    """

    name: str
    arguments: Sequence[bytes]
    write: bool = False
    expected: bytes | None = None
    most: int = 0


@dataclasses.dataclass
class SetParameters:
    """Sets parameters of the module, all or none; arguments: names and values."""

    arguments: Sequence[bytes]


@dataclasses.dataclass
class Lengths:
    """The lengths of the lists under these keys, in whatever slot; 0 for other keys."""

    arguments: Sequence[bytes]


@dataclasses.dataclass
class Message:
    """A message to another node of the cluster; arguments: its id (empty: all nodes),
    and the text. The reply is an error if it is not connected."""

    arguments: Sequence[bytes]


@dataclasses.dataclass
class Job:
    commands: Sequence[Command | SetParameters | Lengths | Message]


class JobError(Exception):
    """A command of a job failed: Redis' own words, or why it was not run."""


NOT_SERVED = "the list's slot is not served by this node"
READ_ONLY = "READONLY this server is a replica or is loading its data set"
# What stands behind the errno values that the shim or RedisModule_Call gives.
_ERRNO = {
    errno.EROFS: READ_ONLY,
    errno.ESHUTDOWN: "the server or the module ends",
    errno.EBUSY: "writes are paused (CLIENT PAUSE, a failover, or a shutdown)",
    errno.EPERM: NOT_SERVED,
    errno.ENETDOWN: "the cluster is down",
}
Value = int | bytes | None | list["Value"] | JobError


@dataclasses.dataclass
class JobResult:
    """Per command the raw reply in RESP2 and errno after it; (None, 0) for a
    command that did not run because of one before it."""

    replies: list[tuple[bytes | None, int]]

    def reply(self, number: int) -> Value:
        """The parsed reply of a command; an error is returned, not raised."""
        raw, error = self.replies[number]
        if raw is None:
            text = "" if error == 0 else _ERRNO.get(error) or os.strerror(error)
            return JobError(text)
        if raw.startswith(b"-") and error in _ERRNO:
            return JobError(_ERRNO[error])
        return parse(raw)


def parse(raw: bytes) -> Value:
    """The RESP2 value in `raw`. Raises ValueError if it is not whole."""
    try:
        value, end = _parse(raw, 0)
    except (ValueError, RecursionError):
        raise ValueError("not whole") from None
    if end != len(raw):
        raise ValueError("not whole")
    return value


def _parse(raw: bytes, at: int) -> tuple[Value, int]:
    """The RESP2 value at an offset, and the offset behind it."""
    end = raw.index(b"\r\n", at)
    tag, text, after = raw[at : at + 1], raw[at + 1 : end], end + 2
    if tag == b":":
        return int(text), after
    if tag == b"+":
        return text, after
    if tag == b"-":
        return JobError(text.decode("utf-8", "backslashreplace")), after
    length = int(text)
    if length < 0:
        return None, after
    if tag == b"$":
        return raw[after : after + length], after + length + 2
    values: list[Value] = []
    for _ in range(length):
        if raw[after : after + 1] != b"$" or raw[after + 1 : after + 2] == b"-":
            value, after = _parse(raw, after)
            values.append(value)
            continue
        # The same for a text, without the price of a call: they come by the thousand.
        end = raw.index(b"\r\n", after)
        size, after = int(raw[after + 1 : end]), end + 2
        values.append(raw[after : after + size])
        after += size + 2
    return values, after
