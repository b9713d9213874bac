"""The fallback list in Redis: which commands push, read and trim it.

A job is a sequence of Redis commands that the main thread runs in one turn; the
worker hands it over and gets the replies later. This module only builds jobs and
reads their replies: pure, any thread.
"""

from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Iterator, Sequence

# The list of a server that is not in a cluster; cluster.py has the other keys. The
# shim knows keys of this form as ours (OWN_KEY_* in shim/module.c).
KEY = b"keyspaceamqp:{0}:fallback"
_OWN_PREFIX, _OWN_SUFFIX = b"keyspaceamqp:{", b"}:fallback"

# Elements of one push or read, and about how many bytes, however large a single
# one is: Redis' main thread is held for less than a millisecond.
JOB_ELEMENTS = 2000
JOB_BYTES = 256 * 1024


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


def is_own_key(key: bytes) -> bool:
    """Whether the shim takes a key for one of ours."""
    middle = len(key) - len(_OWN_PREFIX) - len(_OWN_SUFFIX)
    return middle >= 0 and key.startswith(_OWN_PREFIX) and key.endswith(_OWN_SUFFIX)


def push_job(key: bytes, elements: Sequence[bytes], keep: int) -> Job:
    """Appends elements; a positive `keep` then leaves only so many, the newest."""
    commands = [Command("RPUSH", [key, *elements], write=True)]
    if keep > 0:
        commands.append(Command("LTRIM", [key, b"%d" % -keep, b"-1"], write=True))
    return Job(commands)


def peek_job(key: bytes, start: int, count: int, most: int = 0) -> Job:
    """Reads elements, and then the list's length. A positive `most` bounds the
    elements' bytes: the one that reaches it is the last."""
    stop = b"%d" % (start + count - 1)
    read = Command("LRANGE", [key, b"%d" % start, stop], most=most)
    return Job([read, Command("LLEN", [key])])


def length_job(key: bytes) -> Job:
    return Job([Command("LLEN", [key])])


def lengths_job(keys: Sequence[bytes]) -> Job:
    return Job([Lengths(keys)])


def trim_job(key: bytes, elements: Sequence[bytes]) -> Job:
    """Removes these elements from the list's head if just they are there. Somebody
    may have changed the list, also without a change of its length or its ends
    (LSET, LREM and LINSERT): what nobody has read must not go. Then its length.
    """
    return Job([_expect(key, elements), _cut(key, elements), Command("LLEN", [key])])


def move_job(source: bytes, elements: Sequence[bytes], target: bytes, as_: Sequence[bytes]) -> Job:
    """Takes these elements from the head of one list, if just they are there, and puts
    others for them at the end of another; first that."""
    push = Command("RPUSH", [target, *as_], write=True)
    return Job([_expect(source, elements), push, _cut(source, elements)])


def _expect(key: bytes, elements: Sequence[bytes]) -> Command:
    """Ends the job unless the list begins with these elements."""
    there = b"*%d\r\n" % len(elements) + b"".join(map(_bulk, elements))
    return Command("LRANGE", [key, b"0", b"%d" % (len(elements) - 1)], expected=there)


def _cut(key: bytes, elements: Sequence[bytes]) -> Command:
    return Command("LTRIM", [key, b"%d" % len(elements), b"-1"], write=True)


def purge_job(keys: Sequence[bytes]) -> Job:
    """Per key the length, and then the list is gone."""
    commands = [(Command("LLEN", [key]), Command("UNLINK", [key], write=True)) for key in keys]
    return Job([command for pair in commands for command in pair])


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def read_elements(result: JobResult) -> Iterator[bytes]:
    """The elements that a `peek_job` read. Raises JobError."""
    values = result.reply(0)
    if isinstance(values, JobError):
        raise values
    assert isinstance(values, list)
    for value in values:
        assert isinstance(value, bytes)
        yield value
