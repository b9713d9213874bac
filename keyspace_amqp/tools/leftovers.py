"""`keyspace-amqp leftovers`: prints the events in a file of leftovers."""

from __future__ import annotations

import argparse
import pathlib
import sys

from ..fallback import JOB_ELEMENTS, to_element
from ..worker.leftover_file import UNREADABLE, Reading
from . import ToolError
from .elements import to_line


def run(options: argparse.Namespace) -> int:
    """Print a line for each event, in the form of `drain`. Raises ToolError."""
    try:
        with pathlib.Path(options.file).open("rb") as file:
            reading = Reading(file)
            while not reading.done:
                events, step = reading.peek(JOB_ELEMENTS)
                sys.stdout.buffer.writelines(to_line(to_element(event)) for event in events)
                reading.advance(step)
    except UNREADABLE as error:
        raise ToolError(f"{options.file} cannot be read: {error}") from None
    finally:
        sys.stdout.flush()
    return 0
