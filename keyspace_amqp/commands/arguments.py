"""The words of a command: its name, its subcommand, and the error for wrong ones.

Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..masks import EXCLUDES
from ..tables.commands import COMMANDS
from .replies import CommandError

# Digits of a number, of which no argument needs more, and bytes of a wrong one in its error.
_DIGITS, _SHOWN = 9, 20
_USAGE = {command.name: command.usage for command in COMMANDS}


def upper_word(words: Sequence[bytes]) -> str:
    """Return the first word in upper case; empty if there is none."""
    return words[0].decode("ascii", "replace").upper() if words else ""


def split_subcommand(command: str, rest: Sequence[bytes]) -> tuple[str, Sequence[bytes]]:
    """Return the subcommand and its arguments. Raises CommandError if there is none."""
    if not rest:
        raise wrong_arguments(command)
    return upper_word(rest), rest[1:]


def wrong_arguments(command: str) -> CommandError:
    """Return the error that shows how the command is used."""
    forms = " | ".join(f"KEYSPACEAMQP.{usage}" for usage in _USAGE[command])
    return CommandError(f"wrong arguments, expected: {forms}")


def shown(text: bytes) -> str:
    """Return bytes in quotes, for the text of an error."""
    return repr(text.decode("utf-8", "backslashreplace"))


def number(name: str, text: bytes, most: int, what: str = "a number") -> int:
    """Return an argument that is a number from 1 to `most`. `what`: what it is, for people. Raises
    CommandError."""
    value = int(text) if text.isdigit() and len(text) <= _DIGITS else 0
    if not 1 <= value <= most:
        refused = f"{name}: {shown(text[:_SHOWN])} is not accepted"
        raise CommandError(f"{refused}; give {what} from 1 to {most}")
    return value


def check_masks(given: Sequence[bytes]) -> Sequence[bytes]:
    """Return the masks if the client may set them. The shim checks the rest."""
    for mask in given:
        if not mask:
            raise CommandError("a mask cannot be empty; ALL matches every key")
        if mask == EXCLUDES:
            raise CommandError("nothing stands behind the ! of a mask; !^tmp: excludes ^tmp:")
    return given
