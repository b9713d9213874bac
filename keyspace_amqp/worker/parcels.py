"""Parcels: records of events, and their messages laid out at once.

The shim lays out the messages of plain events (no value, no subkeys), if all messages have the same
form: text, a fixed routing key, no headers. All other events are made into objects, which live
until their messages are laid out.

Worker thread; nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ..failures import STRIKES
from ..message import EVENT_BYTES, Event
from .records import HEAD, PARSE_BYTES, Reader, first_records
from .shim_api import Layout, Template

if TYPE_CHECKING:
    from ..broker.frames import Frames

# Events that are made into objects at once if the shim leaves one to us: others are near it.
_OBJECTS = 32


class Parcel:
    """See publisher/express.py. `numbers`: those of the events in the shim's queue."""

    __slots__ = ("_data", "_numbers", "_reader", "count", "size", "times")

    def __init__(
        self, data: bytes, numbers: range, times: Sequence[tuple[int, int]], reader: Reader
    ) -> None:
        self._data = data
        self._numbers = numbers
        self._reader = reader
        self.count = len(numbers)
        self.size = len(data) + self.count * (EVENT_BYTES - HEAD.size)
        self.times = times

    def events(self) -> list[Event | None]:
        """Make the events anew; None: the handler has failed over it STRIKES times in a row."""
        events: list[Event | None] = []
        at = failures = 0
        while len(events) < self.count:
            rest, numbers = self._data[at:], self._numbers[len(events) :]
            try:
                some, size = self._reader.parse(rest, numbers)
            except Exception:
                failures += 1
                if failures < STRIKES:
                    continue
                events.append(None)
                size, _ = first_records(rest, 1, 1)
            else:
                events += some
            at += size
            failures = 0
        return events


class Packer:
    """Makes parcels. `frames`: makes messages for the present connection; returns None if there is
    none, or if it takes messages one by one only."""

    def __init__(self, run_id: str, layout: Layout, frames: Callable[[], Frames | None]) -> None:
        self._id_start = f"{run_id}-".encode()
        self._reader = Reader(run_id)
        self._layout = layout
        self._frames = frames
        # By the length of the id, for one object that makes messages.
        self._templates: dict[int, Template | None] = {}
        self._templates_of: Frames | None = None

    @property
    def is_ready(self) -> bool:
        """True if there is a connection that takes messages which are laid out."""
        return self._frames() is not None

    def pack(self, data: bytes, numbers: range) -> tuple[Parcel, bytes, int] | None:
        """Return the parcel of the first records, one for each of `numbers` at most, with its
        messages and the bytes of the records. It ends before the first event that is in the list
        already, and has at most PARSE_BYTES and one event more.

        None: there is no connection any more. An exception: the handler fails over one of the
        events.
        """
        frames = self._frames()
        if frames is None:
            return None
        parts: list[bytes] = []
        times: list[tuple[int, int]] = []
        at = count = 0
        stop = min(len(data), PARSE_BYTES)
        while count < len(numbers) and at < stop:
            number, most = numbers[count], len(numbers) - count
            digits = len(str(number))
            template = self._template(frames, digits)
            if template is not None:
                most = min(most, 10**digits - number)
                laid_out = self._layout.lay_out(
                    data, at, stop, template, frames.body_max, number, most
                )
                if laid_out.events:
                    parts.append(laid_out.frames)
                    times += [(count + end, time_ms) for end, time_ms in laid_out.times]
                    at, count = at + laid_out.size, count + laid_out.events
                    continue
                most = min(most, _OBJECTS)
            size, _ = first_records(data, stop - at, most, start=at)
            events, size = self._reader.parse(data[at : at + size], numbers[count:])
            if not events:
                break
            parts.append(frames.marshal(events))
            times += [(place, event.time_ms) for place, event in enumerate(events, count + 1)]
            at, count = at + size, count + len(events)
        if not count:
            return None
        return Parcel(data[:at], numbers[:count], times, self._reader), b"".join(parts), at

    def _template(self, frames: Frames, digits: int) -> Template | None:
        """Return the parts of messages for numbers with so many digits; None: messages do not
        consist of such parts."""
        if frames is not self._templates_of:
            self._templates_of = frames
            self._templates.clear()
        if digits not in self._templates:
            parts = frames.template(len(self._id_start) + digits)
            first, second, third = parts or (b"", b"", b"")
            self._templates[digits] = (first, second + self._id_start, third) if parts else None
        return self._templates[digits]
