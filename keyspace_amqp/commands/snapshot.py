"""SNAPSHOT: begin a snapshot of the keys that exist, or stop it.

Worker thread; never waits.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ..jobs import JobError
from .arguments import check_masks, number, split_subcommand, upper_word, wrong_arguments
from .handler import Call, Steps
from .replies import CommandError

# Events per second without RATE: a million keys in less than two minutes, and a small part of what
# Redis, the module and a broker can do.
RATE_DEFAULT = 10_000
RATE_MAX = 1_000_000


def snapshot(call: Call, rest: Sequence[bytes]) -> Steps:
    """SNAPSHOT START and STOP."""
    subcommand, arguments = split_subcommand("SNAPSHOT", rest)
    if subcommand == "STOP" and not arguments:
        return call.handler.snapshot_stop()
    if subcommand != "START":
        raise wrong_arguments("SNAPSHOT")
    rate, masks = _options(arguments)
    if call.is_copy:
        return 0
    if call.handler.snapshot_runs:
        raise CommandError("a snapshot is under way; SNAPSHOT STOP ends it")
    result: int | JobError = yield functools.partial(call.handler.snapshot_start, rate, masks)
    if isinstance(result, JobError):
        raise CommandError.of(result)
    return result


def _options(arguments: Sequence[bytes]) -> tuple[int, Sequence[bytes]]:
    """Return the rate and the masks; no masks: every key."""
    rate = RATE_DEFAULT
    if upper_word(arguments) == "RATE" and len(arguments) > 1:
        rate = number("RATE", arguments[1], RATE_MAX, "a number of events per second")
        arguments = arguments[2:]
    if not arguments:
        return rate, []
    if upper_word(arguments) != "MASK" or len(arguments) == 1:
        raise wrong_arguments("SNAPSHOT")
    return rate, check_masks(arguments[1:])
