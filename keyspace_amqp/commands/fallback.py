"""FALLBACK: look at the fallback lists and at the events that were set aside; deliver the lists
now, delete them, import a list.

The commands yield jobs for what they read from Redis. Worker thread; never waits.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import Any

from ..cluster.lists import LOOK_KEYS
from ..cluster.peers import Outcome
from ..cluster.slots import SLOTS, key_of
from ..fallback import lengths_job, peek_job, read_elements
from ..jobs import JobError
from ..tables.keys import KEY
from .arguments import shown, split_subcommand, wrong_arguments
from .handler import Call, Handler, Steps, Wait
from .importing import import_list
from .merging import with_coverage
from .replies import CommandError, Reply, bytes_from_json, int_from_json

# Elements that are shown if the client gives no count: as many as a person reads.
PEEK_DEFAULT = 10
# Limits of a reply: a longer or larger one is too much for Redis' clients and for people.
PEEK_MAX = 10_000
PEEK_BYTES = 64 * 1024 * 1024
# The answer to a peer has to fit into a message of the cluster bus.
PEEK_ASKED_BYTES = 1024 * 1024
# Bytes of a wrong count that an error shows, at most.
_COUNT_SHOWN = 20


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
        keys = [key_of(slot) for slot in range(SLOTS)] if call.handler.clustered else [KEY]
    lengths: dict[bytes, int] = {}
    for first in range(0, len(keys), LOOK_KEYS):
        some = keys[first : first + LOOK_KEYS]
        reply = (yield lengths_job(some)).reply(0)
        if isinstance(reply, JobError):
            raise CommandError.of(reply)
        lengths.update((key, length) for key, length in zip(some, reply, strict=True) if length)
    return lengths


def _peek(call: Call, count: int) -> Generator[Wait, Any, list[Reply]]:
    """Return the first elements of this server's lists, at most `count`."""
    elements: list[Reply] = []
    room = PEEK_ASKED_BYTES if call.asked else PEEK_BYTES
    for key in (yield from _lengths(call)):
        if len(elements) >= count or room <= 0:
            break
        result = yield peek_job(key, 0, count - len(elements), room)
        try:
            read = list(read_elements(result))
        except JobError as error:
            raise CommandError.of(error) from None
        room -= sum(map(len, read))
        # The last element may be of any size, so it may not fit into the message for a peer.
        elements += read[:-1] if call.asked and room < 0 else read
    return elements


def _aside(call: Call, count: int) -> list[Reply]:
    """Return the newest events that this node has set aside: element, reason and time of each."""
    shown: list[Reply] = []
    room = PEEK_ASKED_BYTES if call.asked else PEEK_BYTES
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
    text = arguments[0]
    count = int(text) if text.isdigit() and len(text) < 10 else 0
    if not 1 <= count <= PEEK_MAX:
        raise CommandError(
            f"count: {shown(text[:_COUNT_SHOWN])} is not accepted; give a number from 1 to "
            f"{PEEK_MAX}"
        )
    return count


def merge_elements(
    handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]
) -> Reply:
    """Report the elements that all nodes have shown, at most as many as were asked for."""
    elements: list[Reply] = list(reply) if isinstance(reply, list) else []
    for answer in outcome.answers.values():
        if isinstance(answer, list):
            elements += [bytes_from_json(element) for element in answer]
    return with_coverage(handler, elements[: _peek_count(rest[1:])], outcome)


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
