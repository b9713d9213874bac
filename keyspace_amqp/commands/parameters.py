"""CONNECT, DISCONNECT, CONFIG and KEYMASK: commands that show or set parameters.

Redis checks and keeps the values, so they are set by a job on its main thread. Worker
thread; never waits.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from .. import masks
from ..cluster.peers import LINK
from ..cluster.wire import Register
from ..config import format_masks
from ..jobs import Job, JobError, SetParameters
from ..tables.parameters import INDEX, PARAMETERS
from .arguments import check_masks, shown, split_subcommand, wrong_arguments
from .handler import Call, Handler, Steps, Wait, at_once
from .replies import CommandError, Reply

# The values of the register LINK.
_ON, _OFF = b"on", b"off"
# The arguments of CONNECT before the masks, in their order.
_CONNECT_NAMES = [
    parameter.name
    for parameter in PARAMETERS
    if parameter.position is not None and parameter.name not in ("events", "masks")
]


# ---- the commands ---------------------------------------------------------------------


def connect(call: Call, rest: Sequence[bytes]) -> Steps:
    """CONNECT: set the parameters that are given, and want a connection."""
    pairs = list(zip(_CONNECT_NAMES, rest, strict=False))
    if given_masks := rest[len(_CONNECT_NAMES) :]:
        pairs.append(("masks", format_masks(check_masks(given_masks))))
    yield from _set(call, pairs)
    _want_link(call, _ON)
    return "OK"


@at_once
def disconnect(call: Call, rest: Sequence[bytes]) -> Reply:
    """DISCONNECT: want no connection."""
    if rest:
        raise wrong_arguments("DISCONNECT")
    _want_link(call, _OFF)
    return "OK"


def config(call: Call, rest: Sequence[bytes]) -> Steps:
    """CONFIG GET, CONFIG SET."""
    subcommand, arguments = split_subcommand("CONFIG", rest)
    if subcommand == "GET" and len(arguments) == 1:
        return _matching(call.handler.raw_config, arguments[0])
    if subcommand == "SET" and arguments and len(arguments) % 2 == 0:
        yield from _set(call, _pairs(arguments))
        return "OK"
    raise wrong_arguments("CONFIG")


def keymask(call: Call, rest: Sequence[bytes]) -> Steps:
    """KEYMASK LIST, ADD, SET, DEL, CLEAR and TEST."""
    subcommand, arguments = split_subcommand("KEYMASK", rest)
    present = list(call.handler.config.masks)
    match subcommand, len(arguments):
        case "LIST", 0:
            return list(present)
        case "TEST", 1:
            return int(masks.matches(present, arguments[0]))
        case "TEST", 2 if arguments[1].upper() == b"WHY":
            forwarded, why = masks.explain(present, arguments[0])
            return [int(forwarded), why]
        case "CLEAR", 0:
            changed: list[bytes] = []
        case "SET", count if count > 0:
            changed = list(dict.fromkeys(check_masks(arguments)))
        case "ADD", count if count > 0:
            changed = list(dict.fromkeys([*present, *check_masks(arguments)]))
        case "DEL", count if count > 0:
            changed = _without(present, arguments)
        case _:
            raise wrong_arguments("KEYMASK")
    yield from _set(call, [("masks", format_masks(changed))])
    return len(changed)


# ---- parameters that a peer has set ---------------------------------------------------


def apply(handler: Handler, registers: Mapping[str, Register]) -> Steps:
    """Set the registers of a peer that are newer than this node's.

    If this node refuses some of them, it sets the others. Raises CommandError with the
    reasons of all that it did not set.
    """
    errors: list[str] = []
    yield handler.lock_parameters
    try:
        if outdated := handler.outdated(registers):
            # The peer's clock is behind. The next hello makes it ask for the newer value.
            errors.append(f"it has a newer value of {', '.join(outdated)}; set it again")
        values = handler.merge(registers)
        if LINK in values:
            _set_link(handler, values[LINK])
        # A peer of a newer version may have parameters that this node does not know.
        known = [(name, value) for name, value in values.items() if name in INDEX]
        error = yield from _set_here(known)
        if error is not None and len(known) == 1:
            errors.append(str(error))
        elif error is not None:
            for pair in known:
                error = yield from _set_here([pair])
                errors += [str(error)] if error is not None else []
    finally:
        handler.unlock_parameters()
    if errors:
        raise CommandError("; ".join(errors))
    return "OK"


# ---- setting ----------------------------------------------------------------------------


def _set(call: Call, pairs: Sequence[tuple[str, bytes]]) -> Generator[Wait, Any, None]:
    """Set parameters: all of them, or none if a value is refused."""
    if not pairs:
        return
    yield call.handler.lock_parameters
    try:
        error = yield from _set_here(pairs)
        if error is not None:
            raise CommandError.of(error)
        if not call.local:
            call.registers |= call.handler.assign(dict(pairs))
    finally:
        call.handler.unlock_parameters()


def _set_here(pairs: Sequence[tuple[str, bytes]]) -> Generator[Wait, Any, JobError | None]:
    """Set parameters of this node alone; return the error if a value is refused."""
    if not pairs:
        return None
    arguments: list[bytes] = []
    for name, value in pairs:
        arguments += [name.encode(), value]
    reply = (yield Job([SetParameters(arguments)])).reply(0)
    return reply if isinstance(reply, JobError) else None


def _want_link(call: Call, wanted: bytes) -> None:
    if not call.local:
        call.registers |= call.handler.assign({LINK: wanted})
    _set_link(call.handler, wanted)


def _set_link(handler: Handler, wanted: bytes) -> None:
    if wanted == _ON:
        handler.connect()
    else:
        handler.disconnect()


# ---- arguments --------------------------------------------------------------------------


def _matching(values: Sequence[bytes], pattern: bytes) -> dict[bytes, Reply]:
    """Return the parameters whose names match a glob pattern, secrets hidden."""
    text = pattern.decode("utf-8", "replace").lower()
    return {
        parameter.name.encode(): b"(hidden)" if parameter.sensitive and value else value
        for parameter, value in zip(PARAMETERS, values, strict=True)
        if fnmatch.fnmatchcase(parameter.name, text)
    }


def _pairs(arguments: Sequence[bytes]) -> list[tuple[str, bytes]]:
    """Return (name, value) of arguments that are names and values by turns."""
    pairs = []
    for word, value in zip(arguments[::2], arguments[1::2], strict=True):
        name = word.decode("utf-8", "replace").lower()
        if name not in INDEX:
            raise CommandError(f"there is no parameter {name!r}; there are {', '.join(INDEX)}")
        pairs.append((name, value))
    return pairs


def _without(present: Sequence[bytes], removed: Sequence[bytes]) -> list[bytes]:
    for mask in removed:
        if mask not in present:
            raise CommandError(f"there is no mask {shown(mask)}; KEYMASK LIST shows what there is")
    return [mask for mask in present if mask not in removed]
