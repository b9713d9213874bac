"""`keyspace-amqp loadmodule`: the lines of redis.conf that load the module.

Its options come from the table of parameters, and it refuses what the module would refuse.
Needs the standard library alone.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import re
from collections.abc import Mapping

from ..config import format_masks, quoted
from ..masks import EXCLUDES
from ..tables.advice import end_of_refusal
from ..tables.events import EVENT_CLASSES
from ..tables.parameters import PARAMETERS, Kind, Parameter
from . import ToolError
from .path import module_path

# All letters of any server. Only the module knows which of them its server has.
_EVENT_LETTERS = frozenset({"A", *(event_class.letter for event_class in EVENT_CLASSES)})
# A pattern that is a choice of a few words.
_WORDS = re.compile(r"[a-z-]+(\|[a-z-]+)+")
_INTEGER = re.compile(r"-?[0-9]+")
# Values that the lines have unless an option says otherwise: defaults for those who begin. That of
# the module for delivery-mode is the one of the older C module: the broker forgets messages.
_RECOMMENDED = {"delivery-mode": b"2"}
_ACCEPTED_MASK = "a mask, with ! before it one that excludes, or ALL for every key"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add an option for each parameter."""
    for parameter in PARAMETERS:
        check = functools.partial(checked, parameter)
        if parameter.kind is Kind.MASKS:
            parser.add_argument(
                "--mask",
                dest=parameter.name,
                action="append",
                type=check,
                metavar="MASK",
                help="a key mask, with ! before it one that excludes; give the option once for "
                "each mask (default: ALL, every key)",
            )
        else:
            default = _RECOMMENDED.get(parameter.name, os.fsencode(parameter.default)).decode()
            parser.add_argument(
                f"--{parameter.name}",
                dest=parameter.name,
                type=check,
                metavar=_metavar(parameter),
                # argparse would expand a percent sign.
                help=f"{parameter.help} (default: {default or 'empty'})".replace("%", "%%"),
            )


def _metavar(parameter: Parameter) -> str:
    """Return what the help names a value; completion.py completes files and `one|of|these`."""
    if _WORDS.fullmatch(parameter.pattern):
        return parameter.pattern
    if parameter.name.endswith("-file"):
        return "FILE"
    return "NUMBER" if parameter.kind is Kind.INTEGER else "TEXT"


def checked(parameter: Parameter, text: str) -> bytes:
    """Return the value of an option, if the module will accept it. Raises
    ArgumentTypeError."""
    value = os.fsencode(text)
    if _is_accepted(parameter, text, value) and b"\0" not in value:
        return value
    # With a URL in the wrong option, the text may have a password too.
    shown = "this value" if parameter.sensitive or "@" in text else repr(text)
    end = f"; give {_ACCEPTED_MASK}"
    if parameter.kind is not Kind.MASKS:
        end = end_of_refusal(parameter, text)
    raise argparse.ArgumentTypeError(f"{shown} is not accepted{end}")


def _is_accepted(parameter: Parameter, text: str, value: bytes) -> bool:
    match parameter.kind:
        case Kind.INTEGER:
            return bool(_INTEGER.fullmatch(text)) and (
                parameter.minimum <= int(text) <= parameter.maximum
            )
        case Kind.EVENTS:
            return bool(text) and _EVENT_LETTERS.issuperset(text)
        case Kind.MASKS:  # a single mask; `run` checks the length of all together
            return value not in (b"", EXCLUDES)
        case Kind.TEXT | Kind.SWITCH:
            fits = parameter.minimum <= len(value) <= parameter.maximum
            return fits and (not parameter.pattern or bool(re.fullmatch(parameter.pattern, text)))


def run(options: argparse.Namespace) -> int:
    """Print the lines. Raises ToolError."""
    given = vars(options)
    values: dict[str, bytes] = {}
    for parameter in PARAMETERS:
        value = given[parameter.name]
        if value is None:
            value = _RECOMMENDED.get(parameter.name)
        if value is None:
            continue
        if parameter.kind is Kind.MASKS:
            value = format_masks(dict.fromkeys(value))
            if len(value) > parameter.maximum:
                raise ToolError(f"--mask: all masks together may have {parameter.maximum} bytes")
        values[parameter.name] = value
    print(redis_conf(module_path(), values))
    return 0


def redis_conf(path: pathlib.Path, values: Mapping[str, bytes]) -> str:
    """Return the lines of redis.conf that load the module with these parameters.

    The parameters are named ones and not arguments of `loadmodule`, so they survive CONFIG
    REWRITE, and MODULE LIST does not show the password.
    """
    lines = [f"loadmodule {quoted(os.fsencode(path))}"]
    lines += [f"keyspaceamqp.{name} {quoted(value)}" for name, value in values.items()]
    return "\n".join(lines)
