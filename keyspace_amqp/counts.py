"""Words for people: numbers of things, and texts on one line. Pure; any thread."""

from __future__ import annotations


def counted(number: float, noun: str, form: str = "") -> str:
    """Return a number with its noun, which gets an s unless the number is 1. `form`: as in a
    format, such as `,` for a number with commas."""
    return f"{number:{form}} {noun}{'' if number == 1 else 's'}"


def one_line(text: str) -> str:
    """Return a text, which may come from outside, as one line, without characters that a terminal
    would obey."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())
