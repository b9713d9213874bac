"""Failures over one event: an event that always fails must not stop those that come after it.

Pure; worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

from .message import Event
from .values import mutable

# An event over which the handler fails, or the broker closes the channel, so many times in a
# row is the cause. Fewer may be chance.
STRIKES = 3


class EventError(Exception):
    """The handler failed over this event; `__cause__` is the exception that was raised."""

    def __init__(self, event: Event) -> None:
        super().__init__(f"the handler failed over {shown(event)}")
        self.event = event

    @property
    def why(self) -> str:
        """The exception that was raised, as a line for people."""
        cause = self.__cause__
        return " ".join(f"{type(cause).__name__}: {cause}".split())


def each(events: Iterable[Event], make: Callable[[Event], object]) -> None:
    """Find the first event over which `make` fails. Raises EventError if there is one."""
    for event in events:
        try:
            make(event)
        except Exception as error:
            raise EventError(event) from error


# Bytes of a key that a line for people shows, at most.
_KEY_SHOWN = 100


def shown(event: Event) -> str:
    """Return the event as it appears in a line for people."""
    key = repr(event.key[:_KEY_SHOWN]) + ("…" if len(event.key) > _KEY_SHOWN else "")
    name = repr(event.name[:_KEY_SHOWN])[2:-1]
    return f"the event of key {key} ({name}, database {event.db})"


@mutable
class Strikes:
    """Counts failures in a row over the same thing."""

    _key: Hashable = None
    _count: int = 0

    def failed(self, key: Hashable) -> bool:
        """Count a failure over this thing; return True if it is STRIKES in a row."""
        self._count = self._count + 1 if key == self._key else 1
        self._key = key
        return self._count >= STRIKES
