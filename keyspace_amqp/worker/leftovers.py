"""The file of leftovers: events that a stop can neither deliver nor put into the list.

At a stop the list cannot be written: Redis saves its own files before it tells modules of
a shutdown, and a change of the data set within MODULE UNLOAD would make Redis replicate
that command. The next load delivers the events of the file after the list, and before
new events. The file is one RPUSH as a client would send it, so people can read it and load
it by hand.

Any thread. The file is in the server's working directory, which is its `dir`.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import traceback
from collections.abc import Sequence

from ..failures import shown
from ..fallback import from_element, to_element
from ..jobs import parse
from ..message import Event
from ..tables.keys import KEY
from . import log


class Leftovers:
    """The file for the server on this port. It need not exist."""

    def __init__(self, port: int) -> None:
        self.path = pathlib.Path(f"keyspaceamqp-{port}.leftover")

    def write(self, events: Sequence[Event]) -> None:
        """Replace the file, and wait until it is on the disk. Raises OSError; the old file
        stays then. An event of which no element can be made is logged, and left out."""
        elements = []
        for event in events:
            try:
                elements.append(to_element(event))
            except Exception:
                text = "%s is lost, because the handler failed on it:\n%s"
                log.LOGGER.error(text, shown(event), traceback.format_exc())
        new = self.path.with_suffix(".new")
        with new.open("wb") as file:
            file.write(b"*%d\r\n" % (2 + len(elements)))
            for word in (b"RPUSH", KEY, *elements):
                file.write(b"$%d\r\n%b\r\n" % (len(word), word))
            file.flush()
            os.fsync(file.fileno())
        new.replace(self.path)
        # The rename is durable when the directory is on the disk.
        directory = os.open(".", os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def read(self) -> list[Event]:
        """Return the events in the file, oldest first; none if it does not exist. Raises
        OSError, and ValueError if the file is damaged."""
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
    """Write events to the file at the end of a load, or log that they are lost."""
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
    """Return the events in the file, oldest first. A file that cannot be read is renamed,
    and the log says so."""
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
