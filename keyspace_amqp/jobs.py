"""Jobs: what the worker has Redis' main thread do, and the replies.

A job is a sequence of Redis commands that the main thread runs in one turn; the
worker hands it over and gets the replies later. Pure; any thread.
"""

from __future__ import annotations

import dataclasses
import enum
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
class BusMessage:
    """A message to another node of the cluster; arguments: its id (empty: all nodes),
    and the text. The reply is an error if it is not connected."""

    arguments: Sequence[bytes]


@dataclasses.dataclass
class Job:
    commands: Sequence[Command | SetParameters | Lengths | BusMessage]


class Failure(enum.Enum):
    """The kind of a JobError. Decisions hang on it, never on the error's words."""

    OTHER = "other"  # Redis' own words say more
    NOT_RUN = "not run"  # an earlier command of the job ended it
    READ_ONLY = "read only"
    STOPPING = "stopping"
    PAUSED = "paused"
    NOT_SERVED = "not served"
    CLUSTER_DOWN = "cluster down"
    WRONG_TYPE = "wrong type"


_TEXTS = {
    Failure.NOT_RUN: "",
    Failure.READ_ONLY: "READONLY this server is a replica or is loading its data set",
    Failure.STOPPING: "the server or the module ends",
    Failure.PAUSED: "writes are paused (CLIENT PAUSE, a failover, or a shutdown)",
    Failure.NOT_SERVED: "the list's slot is not served by this node",
    Failure.CLUSTER_DOWN: "the cluster is down",
}
# The meaning of the errno values that the shim or RedisModule_Call sets.
_ERRNO = {
    0: Failure.NOT_RUN,
    errno.EROFS: Failure.READ_ONLY,
    errno.ESHUTDOWN: Failure.STOPPING,
    errno.EBUSY: Failure.PAUSED,
    errno.EPERM: Failure.NOT_SERVED,
    errno.ENETDOWN: Failure.CLUSTER_DOWN,
}
# The first words of Redis' errors that decide something.
_CODES = {"WRONGTYPE": Failure.WRONG_TYPE}


class JobError(Exception):
    """A command of a job failed. The text is for people; `failure` is its kind."""

    def __init__(self, text: str, failure: Failure = Failure.OTHER) -> None:
        super().__init__(text)
        self.failure = failure

    @classmethod
    def of(cls, failure: Failure) -> JobError:
        """Make the error of a kind that has a text of its own."""
        return cls(_TEXTS[failure], failure)


Reply = int | bytes | None | list["Reply"] | JobError


@dataclasses.dataclass
class JobResult:
    """Per command the raw reply in RESP2 and errno after it; (None, 0) for a
    command that did not run because of one before it."""

    replies: list[tuple[bytes | None, int]]

    def reply(self, number: int) -> Reply:
        """The parsed reply of a command; an error is returned, not raised."""
        raw, error = self.replies[number]
        failure = _ERRNO.get(error)
        if raw is None:
            return JobError(os.strerror(error)) if failure is None else JobError.of(failure)
        if raw.startswith(b"-") and error and failure is not None:
            return JobError.of(failure)
        return parse(raw)


def parse(raw: bytes) -> Reply:
    """The RESP2 value in `raw`. Raises ValueError if it is not whole."""
    try:
        value, end = _parse(raw, 0)
    except (ValueError, RecursionError):
        raise ValueError("not whole") from None
    if end != len(raw):
        raise ValueError("not whole")
    return value


def _parse(raw: bytes, at: int) -> tuple[Reply, int]:
    """The RESP2 value at an offset, and the offset behind it."""
    end = raw.index(b"\r\n", at)
    tag, text, after = raw[at : at + 1], raw[at + 1 : end], end + 2
    if tag == b":":
        return int(text), after
    if tag == b"+":
        return text, after
    if tag == b"-":
        words = text.decode("utf-8", "backslashreplace")
        return JobError(words, _CODES.get(words.partition(" ")[0], Failure.OTHER)), after
    length = int(text)
    if length < 0:
        return None, after
    if tag == b"$":
        return raw[after : after + length], after + length + 2
    values: list[Reply] = []
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
