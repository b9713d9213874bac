"""Numbers of things, in words for people. Pure; any thread."""

from __future__ import annotations


def counted(number: float, noun: str, form: str = "") -> str:
    """Return a number with its noun, which gets an s unless the number is 1. `form`: as in a
    format, such as `,` for a number with commas."""
    return f"{number:{form}} {noun}{'' if number == 1 else 's'}"
