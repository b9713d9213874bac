"""Jobs: the commands that Redis' main thread runs for the worker, and their replies.

The main thread runs all commands of a job in one turn of its event loop.
The worker hands the job over and gets the replies later. Pure; any thread.
"""

from __future__ import annotations

import enum
import errno
import os
import re
from collections.abc import Sequence

from .values import mutable


@mutable
class Command:
    """A Redis command.

    `write`: it changes a list; it is replicated, and refused on a server that is not a
    primary or is loading. `grows`: the list in its first argument grows, and it is refused
    if the list may take no more memory (rule 21). `expected`: the job ends after this
    command unless its reply is exactly this, in RESP2. `most`, for LRANGE: the reply ends
    with the element with which it reaches this many bytes.
    """

    name: str
    arguments: Sequence[bytes]
    write: bool = False
    grows: bool = False
    expected: bytes | None = None
    most: int = 0


@mutable
class SetParameters:
    """Sets parameters of the module, all or none; arguments: name, value, name, value, …"""

    arguments: Sequence[bytes]


@mutable
class Lengths:
    """Looks at the lists under these keys, in any slots, and replies with their lengths.

    The length is 0 for a key that is missing, and -1 for one that holds something else. Nobody
    sees the look: no command runs, and nothing is counted or emitted.
    """

    arguments: Sequence[bytes]


@mutable
class BusMessage:
    """Sends a message to another node of the cluster.

    Arguments: the node's id (empty: all nodes), and the text. The reply is an error if
    the node is not connected.
    """

    arguments: Sequence[bytes]


@mutable
class OutboxStep:
    """Holds the outbox, or opens it for the list whose key is the argument. The reply is an error
    if it is off, or was closed meanwhile."""

    arguments: Sequence[bytes]
    open: bool


@mutable
class SnapshotStep:
    """Begins a snapshot, goes on with it or ends it, as the arguments say: job_snapshot in
    shim/api.h."""

    arguments: Sequence[bytes]


@mutable
class Job:
    """Commands for one turn of Redis' main thread."""

    commands: Sequence[Command | SetParameters | Lengths | BusMessage | OutboxStep | SnapshotStep]


class Failure(enum.Enum):
    """The kind of a JobError. Decisions depend on it, never on the error's words."""

    OTHER = "other"  # the code and the text say more
    NOT_RUN = "not run"  # an earlier command of the job ended it
    READ_ONLY = "read only"
    STOPPING = "stopping"
    PAUSED = "paused"
    NO_MEMORY = "no memory"
    NOT_SERVED = "not served"
    CLUSTER_DOWN = "cluster down"
    WRONG_TYPE = "wrong type"


# Per kind the code and the text of its error.
_TEXTS = {
    Failure.NOT_RUN: ("", ""),
    Failure.READ_ONLY: ("READONLY", "this server is a replica or is loading its data set"),
    Failure.STOPPING: ("", "the server or the module is stopping"),
    Failure.PAUSED: ("", "writes are paused (CLIENT PAUSE, a failover, or a shutdown)"),
    Failure.NO_MEMORY: (
        "",
        "Redis is near its maxmemory and the list takes no more; raise maxmemory, or free memory",
    ),
    Failure.NOT_SERVED: ("", "the list's slot is not served by this node"),
    Failure.CLUSTER_DOWN: ("", "the cluster is down"),
}
# The meaning of the errno values that the shim or RedisModule_Call sets.
_ERRNO = {
    0: Failure.NOT_RUN,
    errno.EROFS: Failure.READ_ONLY,
    errno.ESHUTDOWN: Failure.STOPPING,
    errno.EBUSY: Failure.PAUSED,
    errno.ENOSPC: Failure.NO_MEMORY,
    errno.EPERM: Failure.NOT_SERVED,
    errno.ENETDOWN: Failure.CLUSTER_DOWN,
}
# The first word of an error of Redis is its code; errors of our shim may have none.
_CODE = re.compile(r"([A-Z]{2,}) (.*)", re.DOTALL)
# The codes that decisions depend on.
_FAILURES = {"WRONGTYPE": Failure.WRONG_TYPE}


class JobError(Exception):
    """A command of a job failed.

    `failure`: its kind, for decisions. `code`: the code of Redis' error, empty if it has
    none. `text`: the rest, for people.
    """

    def __init__(self, text: str, failure: Failure = Failure.OTHER, code: str = "") -> None:
        super().__init__(f"{code} {text}" if code else text)
        self.failure = failure
        self.code = code
        self.text = text

    @classmethod
    def of(cls, failure: Failure) -> JobError:
        """Make the error of a kind that has a text of its own."""
        code, text = _TEXTS[failure]
        return cls(text, failure, code)

    @classmethod
    def of_redis(cls, line: str) -> JobError:
        """Make an error of the line that Redis or the shim has replied."""
        match = _CODE.fullmatch(line)
        code, text = match.groups() if match else ("", line)
        return cls(text, _FAILURES.get(code, Failure.OTHER), code)


Reply = int | bytes | None | list["Reply"] | JobError


@mutable
class JobResult:
    """The replies of a job: per command the RESP2 reply and the errno after it.

    A command that did not run because an earlier one ended the job has (None, 0).
    """

    replies: list[tuple[bytes | None, int]]

    def reply(self, number: int) -> Reply:
        """Return the parsed reply of a command; an error is returned, not raised."""
        raw, error = self.replies[number]
        failure = _ERRNO.get(error)
        if raw is None:
            return JobError(os.strerror(error)) if failure is None else JobError.of(failure)
        if raw.startswith(b"-") and error and failure is not None:
            return JobError.of(failure)
        return parse(raw)


def parse(raw: bytes) -> Reply:
    """Return the RESP2 value in `raw`. Raises ValueError if it is incomplete."""
    try:
        value, end = _parse(raw, 0)
    except (ValueError, RecursionError):
        raise ValueError("incomplete") from None
    if end != len(raw):
        raise ValueError("incomplete")
    return value


def _parse(raw: bytes, at: int) -> tuple[Reply, int]:
    """Return the RESP2 value at an offset, and the offset of what follows it."""
    end = raw.index(b"\r\n", at)
    tag, text, after = raw[at : at + 1], raw[at + 1 : end], end + 2
    if tag == b":":
        return int(text), after
    if tag == b"+":
        return text, after
    if tag == b"-":
        return JobError.of_redis(text.decode("utf-8", "backslashreplace")), after
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
        # A text is read here, without the cost of a call: texts come by the thousand.
        end = raw.index(b"\r\n", after)
        size, after = int(raw[after + 1 : end]), end + 2
        values.append(raw[after : after + size])
        after += size + 2
    return values, after
