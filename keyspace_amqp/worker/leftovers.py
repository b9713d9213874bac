"""The file of leftovers: events that a stop finds in memory too late for the list.

Redis writes its own files before it tells modules of a shutdown, and a change of
the data set within MODULE UNLOAD would make Redis replicate that command. Events that
the broker does not take then are written here. The next load takes them up: after the
list, before anything new. The file is one RPUSH as a client would send it, so that
people can read it, and can load it by hand.

Any thread. The file is in the server's working directory, which is its `dir`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Sequence

from ..fallback import from_element, to_element
from ..jobs import parse
from ..message import Event
from ..tables.keys import KEY
from . import log


class Leftovers:
    """The file of the server on this port. It may not exist."""

    def __init__(self, port: int) -> None:
        self.path = pathlib.Path(f"keyspaceamqp-{port}.leftover")

    def write(self, events: Sequence[Event]) -> None:
        """Replace the file, and wait until it is on the disk. Raises OSError, and
        leaves the old file."""
        elements = [to_element(event) for event in events]
        new = self.path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(b"*%d\r\n" % (2 + len(elements)))
            for word in (b"RPUSH", KEY, *elements):
                file.write(b"$%d\r\n%b\r\n" % (len(word), word))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        # The new name is on the disk when the directory is.
        directory = os.open(".", os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def read(self) -> list[Event]:
        """Return the events in the file, oldest first; none if it does not exist. Raises
        OSError, and ValueError for a file that is not whole."""
        try:
            data = self.path.read_bytes()
        except FileNotFoundError:
            return []
        words = parse(data)
        if not isinstance(words, list) or words[:2] != [b"RPUSH", KEY]:
            raise ValueError("it is not the command that a shutdown writes")
        events = []
        for word in words[2:]:
            event = from_element(word) if isinstance(word, bytes) else None
            if event is None:
                raise ValueError(f"{word!r} is no event")
            events.append(event)
        return events

    def remove(self) -> None:
        """Delete the file. Raises OSError."""
        self.path.unlink(missing_ok=True)

    def set_aside(self) -> pathlib.Path:
        """Rename a file that cannot be read, so that the next one does not replace it,
        and return its new path. Raises OSError."""
        return self.path.replace(self.path.with_suffix(".unreadable"))


def store(file: Leftovers, events: Sequence[Event], sink: log.Sink) -> None:
    """Put events into the file at the end of a load, or say that they are lost."""
    if not events:
        return
    try:
        file.write(events)
    except OSError as error:
        why = f"{file.path} could not be written: {error}"
        sink("warning", f"{len(events)} events lost: {why}")
        return
    sink(
        "notice",
        f"{len(events)} events came too late for the fallback list; they are in "
        f"{file.path} for the next load",
    )


def recover(file: Leftovers) -> Sequence[Event]:
    """Return the events that an earlier load has left, oldest first. A file that cannot
    be read is set aside, and the log says so."""
    try:
        events = file.read()
    except (OSError, ValueError) as error:
        text = f"{file.path} cannot be read: {error}"
        with contextlib.suppress(OSError):
            text += f"; it is {file.set_aside()} now"
        log.LOGGER.error("%s", text)
        return []
    if events:
        log.LOGGER.info("%d events from %s", len(events), file.path)
    return events
