"""FALLBACK IMPORT: take over the list of the older C module.

Its elements move to the end of a list of this node, in their order, one job at a time.
A job moves only elements that are still in the places where they were read. Worker thread;
never waits: it yields the jobs and functions whose results it needs.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Generator, Iterator, Sequence
from typing import Any

from ..counts import counted
from ..fallback import JOB_BYTES, JOB_ELEMENTS, move_job, peek_job, read_elements, to_element
from ..jobs import Command, Failure, Job, JobError, JobResult
from ..tables import times
from ..tables.keys import is_own_key
from .arguments import shown
from .handler import Call, Steps, Wait
from .legacy import from_legacy
from .replies import CommandError

# Bytes of an element that an error shows, at most.
_SHOWN_BYTES = 64


def import_list(call: Call, source: bytes) -> Steps:
    """Take over elements for `times.IMPORT` seconds; return how many.

    The client gives the command again until the reply is 0.
    """
    if is_own_key(source):
        raise CommandError("this is a list of this module; give the key of the older module's list")
    if call.is_copy:
        return 0
    prefix = os.urandom(8).hex()
    message_ids = (f"{prefix}-{number}" for number in itertools.count(1))
    until = time.monotonic() + times.IMPORT
    taken = 0
    try:
        while time.monotonic() < until:
            moved = yield from _import_some(call, source, message_ids)
            if not moved:
                break
            taken += moved
    except CommandError as error:
        if not taken:
            raise
        raise CommandError(
            f"{error.text} (taken over: {counted(taken, 'element')} before it)", error.code
        ) from None
    return taken


def _import_some(
    call: Call, source: bytes, message_ids: Iterator[str]
) -> Generator[Wait, Any, int]:
    """Take over as many elements as one job may move, up to the first that is not an event.

    Returns their number. Raises CommandError if none can be taken over.
    """
    handler = call.handler
    yield handler.when_lists_known
    if not handler.writable:
        raise CommandError.of(JobError.of(Failure.READ_ONLY))
    target = next(iter(handler.list_keys or ()), None)
    read = peek_job(source, 0, JOB_ELEMENTS, JOB_BYTES).commands[0]
    look = [read, Command("LLEN", [source])]  # its error says why there is no list
    if target is not None:
        look.append(Command("LLEN", [target]))
    result: JobResult = yield Job(look)
    waiting = result.reply(1)
    if isinstance(waiting, JobError) and waiting.failure is Failure.NOT_SERVED and call.for_all:
        return 0  # the node that serves the key's slot imports it
    if not _number(waiting):
        return 0
    if target is None or handler.config.fallback_size < 0:
        raise _no_list(handler.config.fallback_size)
    _check_room(handler.config.fallback_size, _number(result.reply(2)), _number(waiting))
    elements = list(read_elements(result))
    converted = _convert(elements, message_ids)
    result = yield move_job(source, elements[: len(converted)], target, converted)
    length = result.reply(1)
    if isinstance(length, int):
        handler.imported(target, length, len(converted))
    _check_moved(result)
    return len(converted)


def _no_list(fallback_size: int) -> CommandError:
    if fallback_size < 0:
        why = f"fallback-size is {fallback_size}"
    else:
        why = "this node knows no slot of its own"
    return CommandError(f"there is no fallback list to import into: {why}")


def _check_room(fallback_size: int, listed: int, waiting: int) -> None:
    if 0 < fallback_size < listed + waiting:
        raise CommandError(
            f"no room for {counted(waiting, 'element')}: the list has {listed} of fallback-size "
            f"{fallback_size}"
        )


def _convert(elements: Sequence[bytes], message_ids: Iterator[str]) -> list[bytes]:
    """Return the first elements in our form, up to the first that is not an event."""
    converted: list[bytes] = []
    now = int(time.time() * 1000)
    for element in elements:
        event = from_legacy(element, next(message_ids), now)
        if event is None:
            break
        converted.append(to_element(event))
    if not converted:
        raise CommandError(
            f"the first element, {shown(elements[0][:_SHOWN_BYTES])}, is not db, event and key "
            "with newlines between; correct it (LSET) or remove it (LPOP), and repeat the "
            "command. Nothing was lost"
        )
    return converted


def _check_moved(result: JobResult) -> None:
    """Raise CommandError unless the job ran to its end, which cuts the source."""
    if result.reply(2) == b"OK":
        return
    for reply in map(result.reply, range(3)):
        if isinstance(reply, JobError) and reply.failure is not Failure.NOT_RUN:
            raise CommandError.of(reply)
    raise CommandError("another client changes the list at the same time")


def _number(reply: Any) -> int:
    """Return a reply that is a number; raise CommandError if it is an error."""
    if isinstance(reply, JobError):
        raise CommandError.of(reply)
    return int(reply)
