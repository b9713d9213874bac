"""FALLBACK: look at the fallback lists and at the events that were set aside; deliver the lists
now, delete them, import a list.

The commands yield jobs for what they read from Redis. Worker thread; never waits.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from ..cluster.lists import LOOK_KEYS
from ..cluster.peers import Outcome
from ..cluster.slots import KEY_SLOT, SLOTS, keys_of
from ..fallback import JOB_BYTES, JOB_ELEMENTS, lengths_job, peek_job, read_elements
from ..jobs import JobError, JobResult
from .arguments import number, split_subcommand, wrong_arguments
from .handler import Call, Handler, Steps, Wait
from .importing import import_list
from .merging import with_coverage
from .replies import CommandError, Reply, bytes_from_json, int_from_json

# Elements that are shown if the client gives no count: as many as a person reads.
PEEK_DEFAULT = 10
# Limits of a reply. Redis' main thread gives it to the client at once, which takes about a
# millisecond; and the answer to a peer has to fit into a message of the cluster bus. The element
# with which a reply reaches the limit of bytes is its last one.
PEEK_MAX = 10_000
PEEK_BYTES = 1024 * 1024


def fallback(call: Call, rest: Sequence[bytes]) -> Steps:
    """FALLBACK LEN, PEEK, ASIDE, DRAIN, PURGE and IMPORT."""
    subcommand, arguments = split_subcommand("FALLBACK", rest)
    match subcommand, len(arguments):
        case "LEN", 0:
            return 0 if call.is_copy else sum((yield from _lengths(call)).values())
        case "PEEK", 0 | 1:
            count = _peek_count(arguments)
            return [] if call.is_copy else (yield from _peek(call, count))
        case "ASIDE", 0 | 1:
            return _aside(call, _peek_count(arguments))
        case "DRAIN", 0:
            return call.handler.drain()
        case "PURGE", 0:
            return 0 if call.is_copy else (yield from _purge(call))
        case "IMPORT", 1:
            return (yield from import_list(call, arguments[0]))
        case _:
            raise wrong_arguments("FALLBACK")


def _lengths(call: Call) -> Generator[Wait, Any, Mapping[bytes, int]]:
    """Return the lists on this server that are not empty, with their lengths."""
    keys = call.handler.list_keys
    if keys is None:  # for example on a replica: every slot may have a list
        slots = range(SLOTS) if call.handler.clustered else [KEY_SLOT]
        keys = [key for slot in slots for key in keys_of(slot)]
    lengths: dict[bytes, int] = {}
    for first in range(0, len(keys), LOOK_KEYS):
        some = keys[first : first + LOOK_KEYS]
        reply = (yield lengths_job(some)).reply(0)
        if isinstance(reply, JobError):
            raise CommandError.of(reply)
        lengths.update((key, length) for key, length in zip(some, reply, strict=True) if length > 0)
    return lengths


def _peek(call: Call, count: int) -> Generator[Wait, Any, list[Reply]]:
    """Return the first elements of this server's lists, at most `count`."""
    elements: list[bytes] = []
    for key in (yield from _lengths(call)):
        elements += yield from _first_elements(
            key, count - len(elements), PEEK_BYTES - sum(map(len, elements))
        )
    # The last element may be of any size, so it may not fit into the message for a peer.
    too_large = call.asked and sum(map(len, elements)) > PEEK_BYTES
    return list(elements[:-1] if too_large else elements)


def _first_elements(key: bytes, count: int, size: int) -> Generator[Wait, Any, list[bytes]]:
    """Return the first elements of a list: at most `count`, up to the one that reaches `size`.

    They are read in pieces, and the list may change between two of them. So each piece begins
    with the last element of the one before. If another element has taken its place, the result
    ends before that piece: no element is in it twice, and none is left out before another.
    """
    elements: list[bytes] = []
    length = count
    while len(elements) < min(count, length) and size > 0:
        last = elements[-1:]
        result = yield peek_job(
            key,
            len(elements) - len(last),
            min(count - len(elements), JOB_ELEMENTS) + len(last),
            min(size, JOB_BYTES) + sum(map(len, last)),
        )
        try:
            read = list(read_elements(result))
        except JobError as error:
            raise CommandError.of(error) from None
        length = _length(result)
        new = read[len(last) :]
        if read[: len(last)] != last or not new:
            break
        elements += new
        size -= sum(map(len, new))
    return elements


def _length(result: JobResult) -> int:
    """Return the list's length that a `peek_job` has read."""
    lengths = result.reply(1)
    assert isinstance(lengths, list)
    assert isinstance(lengths[0], int)
    return lengths[0]


def _aside(call: Call, count: int) -> list[Reply]:
    """Return the newest events that this node has set aside: element, reason and time of each."""
    shown: list[Reply] = []
    room = PEEK_BYTES
    for event in call.handler.set_aside(count):
        why = event.why.encode("utf-8", "backslashreplace")
        room -= len(event.element) + len(why)
        if room < 0:
            break
        shown.append([event.element, why, event.at_ms])
    return shown


def _purge(call: Call) -> Generator[Wait, Any, int]:
    result: int | JobError = yield call.handler.purge
    if isinstance(result, JobError):
        raise CommandError.of(result)
    return result


def _peek_count(arguments: Sequence[bytes]) -> int:
    if not arguments:
        return PEEK_DEFAULT
    return number("count", arguments[0], PEEK_MAX)


def merge_elements(
    handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]
) -> Reply:
    """Report the elements that all nodes have shown, as many as one node may show."""
    elements: list[Reply] = []
    count, size = _peek_count(rest[1:]), 0
    shown_here = reply if isinstance(reply, list) else []
    for answer in (shown_here, *outcome.answers.values()):
        for element in answer if isinstance(answer, list) else ():
            if len(elements) < count and size < PEEK_BYTES:
                text = element if isinstance(element, bytes) else bytes_from_json(element)
                elements.append(text)
                size += len(text)
    return with_coverage(handler, elements, outcome)


def merge_aside(handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]) -> Reply:
    """Report the events that all nodes have set aside: the newest, at most as many as asked for."""
    shown = [item for item in reply if isinstance(item, list)] if isinstance(reply, list) else []
    for answer in outcome.answers.values():
        for item in answer if isinstance(answer, list) else ():
            if isinstance(item, list) and len(item) == 3:
                element, why, at_ms = item
                shown.append([bytes_from_json(element), bytes_from_json(why), int_from_json(at_ms)])
    shown.sort(key=_time_of, reverse=True)
    newest: list[Reply] = [*shown[: _peek_count(rest[1:])]]
    return with_coverage(handler, newest, outcome)


def _time_of(item: list[Reply]) -> int:
    return int_from_json(item[2])
