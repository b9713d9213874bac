"""The fallback list in Redis: the jobs on it, and the form of its elements.

This module builds jobs and reads their replies; the worker hands them to Redis' main
thread. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from .jobs import Command, Job, JobError, JobResult, Lengths
from .message import Event, Subkeys, Value
from .tables.parameters import SHORT_STRING

# Limits of one job that pushes, reads or trims. The element with which it reaches the limit
# of bytes is its last one. So it blocks Redis' main thread for less than a millisecond.
JOB_ELEMENTS = 2000
JOB_BYTES = 256 * 1024


def push_job(key: bytes, elements: Sequence[bytes], keep: int) -> Job:
    """Append elements; if `keep` is positive, keep only this many of the newest."""
    commands = [Command("RPUSH", [key, *elements], write=True, grows=True)]
    if keep > 0:
        commands.append(Command("LTRIM", [key, b"%d" % -keep, b"-1"], write=True))
    return Job(commands)


def peek_job(key: bytes, start: int, count: int, most: int) -> Job:
    """Read elements and then the list's length, which is a reply of Lengths.

    The element with which the reply reaches `most` bytes is the last. Nobody sees the reading.
    """
    stop = b"%d" % (start + count - 1)
    return Job([Command("LRANGE", [key, b"%d" % start, stop], most=most), Lengths([key])])


def length_job(*keys: bytes) -> Job:
    """Read the lengths of these lists, or an error that says why there is none.

    Users see the commands, so `lengths_job` is better where it does.
    """
    return Job([Command("LLEN", [key]) for key in keys])


def lengths_job(keys: Sequence[bytes]) -> Job:
    """Look at the lists under these keys; the reply is one of Lengths."""
    return Job([Lengths(keys)])


def trim_job(
    key: bytes, elements: Sequence[bytes], moved: Sequence[bytes] = (), to: bytes = b""
) -> Job:
    """Remove these elements from the list's head, and then read its length.

    The job ends without a change unless the list begins with exactly these elements. A client
    may have changed the list, even without a change of its length or its ends (LSET, LREM
    and LINSERT), and an element that the worker has not read must not be removed.
    `moved`: before that, append these of them to the list `to`.
    """
    push = [Command("RPUSH", [to, *moved], write=True)] if moved else []
    return Job([_expect(key, elements), *push, _cut(key, elements), Lengths([key])])


def move_job(source: bytes, elements: Sequence[bytes], target: bytes, as_: Sequence[bytes]) -> Job:
    """Append `as_` to the target, and then remove `elements` from the source's head.

    The job ends without a change unless the source begins with exactly these elements.
    """
    push = Command("RPUSH", [target, *as_], write=True)
    return Job([_expect(source, elements), push, _cut(source, elements)])


def _expect(key: bytes, elements: Sequence[bytes]) -> Command:
    """End the job unless the list begins with these elements."""
    reply = b"*%d\r\n" % len(elements) + b"".join(map(_bulk, elements))
    return Command("LRANGE", [key, b"0", b"%d" % (len(elements) - 1)], expected=reply)


def _cut(key: bytes, elements: Sequence[bytes]) -> Command:
    return Command("LTRIM", [key, b"%d" % len(elements), b"-1"], write=True)


def cut_job(key: bytes, keep: int) -> Job:
    """Read the list's length, and then keep only this many of the newest elements."""
    return Job([Lengths([key]), Command("LTRIM", [key, b"%d" % -keep, b"-1"], write=True)])


def purge_job(keys: Sequence[bytes]) -> Job:
    """Per key, read the list's length and delete the list."""
    commands: list[Command] = []
    for key in keys:
        commands += [Command("LLEN", [key]), Command("UNLINK", [key], write=True)]
    return Job(commands)


def _bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def read_elements(result: JobResult) -> Iterator[bytes]:
    """Return the elements that a `peek_job` has read. Raises JobError."""
    values = result.reply(0)
    if isinstance(values, JobError):
        raise values
    assert isinstance(values, list)
    for value in values:
        assert isinstance(value, bytes)
        yield value


# ---- elements ---------------------------------------------------------------------------

# The first word of an element names its form: without a value, with one, or with subkeys before
# one of the other forms.
_PLAIN, _VALUED, _SUBKEYED = b"1", b"2", b"3"


def to_element(event: Event) -> bytes:
    """Return the event as an element of the fallback list. (shim/element.c does the same.)

    Without a value: `1 id time_ms db class name_length name key`. With a value:
    `2 id time_ms db class name_length key_length type length before data_length name key
    data`, where a data_length of -1 means that the value has no data. With subkeys: `3 total
    count`, as many times `length:subkey`, and one of the other forms. Blanks make elements
    readable for people; the lengths make them binary-safe.
    """
    if event.subkeys is None:
        return _to_element(event)
    names, total = event.subkeys.names, event.subkeys.total
    listed = b"".join([b"%d:%b " % (len(name), name) for name in names])
    return b"%b %d %d %b%b" % (_SUBKEYED, total, len(names), listed, _to_element(event))


def _to_element(event: Event) -> bytes:
    """Return the event as an element without its subkeys."""
    value = event.value
    head = b"%b %d %d %b %d " % (
        event.message_id.encode(),
        event.time_ms,
        event.db,
        event.letter.encode(),
        len(event.name),
    )
    if value is None:
        return b"%b %b%b %b" % (_PLAIN, head, event.name, event.key)
    return b"%b %b%d %b %d %d %d %b %b %b" % (
        _VALUED,
        head,
        len(event.key),
        value.type.encode(),
        value.length,
        value.before,
        -1 if value.data is None else len(value.data),
        event.name,
        event.key,
        value.data or b"",
    )


def from_element(element: bytes) -> Event | None:
    """Return the event in an element of the fallback list; None if it has no event.

    Anybody can push to the list. Every event that is returned can be sent by pika.
    """
    subkeys = None
    try:
        if element.startswith(_SUBKEYED + b" "):
            subkeys, element = _from_subkeyed(element)
        version, message_id, time_ms, db, letter, name_length, rest = element.split(b" ", 6)
        length = int(name_length)
        value = None
        if version == _VALUED:
            value, key_length, rest = _from_valued(rest)
            if len(rest) != length + 1 + key_length:
                return None
        event = Event(
            message_id.decode("ascii"),
            int(time_ms),
            int(db),
            letter.decode("ascii"),
            rest[:length],
            rest[length + 1 :],
            value,
            subkeys,
        )
    except ValueError:
        return None
    valid = (
        version in (_PLAIN, _VALUED)
        and 1 <= len(message_id) <= SHORT_STRING
        and 0 <= event.time_ms < 2**63
        and 0 <= event.db < 2**31
        and len(letter) == 1
        and length >= 0
        and rest[length : length + 1] == b" "
    )
    return event if valid else None


def _from_subkeyed(element: bytes) -> tuple[Subkeys, bytes]:
    """Return the subkeys of an element, and the element without them. Raises ValueError."""
    _, total, count, rest = element.split(b" ", 3)
    names = []
    at = 0
    for _ in range(_number(count)):
        colon = rest.index(b":", at)
        end = colon + 1 + _number(rest[at:colon])
        if rest[end : end + 1] != b" ":
            raise ValueError("no subkey")
        names.append(rest[colon + 1 : end])
        at = end + 1
    if _number(total) < len(names):
        raise ValueError("too many subkeys")
    return Subkeys.of(names, int(total)), rest[at:]


def _number(digits: bytes) -> int:
    """Return the number in these digits. Raises ValueError."""
    if not digits.isdigit():
        raise ValueError("no number")
    return int(digits)


def _from_valued(rest: bytes) -> tuple[Value, int, bytes]:
    """Return the value, the key's length, and `name key`, of what follows `name_length`.

    Raises ValueError if the element has no value.
    """
    key_length, kind, length, before, data_length, rest = rest.split(b" ", 5)
    size = int(data_length)
    data = None
    if size >= 0:
        data, rest = rest[len(rest) - size :], rest[: len(rest) - size]
    if size < -1 or not rest.endswith(b" ") or int(length) < max(size, 0):
        raise ValueError("no value")
    value = Value(kind.decode("ascii"), int(length), data, bool(int(before)))
    return value, int(key_length), rest[:-1]
