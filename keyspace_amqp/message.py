"""An event, and what it becomes: a message for the broker, an element of the list.

Pure; any thread.
"""

from __future__ import annotations

import dataclasses

from .config import SHORT_STRING

# Bits of REDISMODULE_NOTIFY_* by position, as letters of notify-keyspace-events.
CLASS_LETTERS = "KEg$lshzxetm?dn"
CONTENT_TYPE = "text/plain"
# About how many bytes of memory an event takes, its key and its name not counted.
EVENT_BYTES = 256
# The first word of an element: a later form of elements will have another.
_ELEMENT_VERSION = b"1"


@dataclasses.dataclass(slots=True)
class Event:
    """A keyspace event with the identity that it keeps through all retries.

    `message_id` is unique over nodes and restarts; `time_ms` is Unix time in
    milliseconds; `letter` is the event's class as in notify-keyspace-events.
    """

    message_id: str
    time_ms: int
    db: int
    letter: str
    name: bytes
    key: bytes


def body(event: Event) -> bytes:
    r"""The message's body: db, event and key, separated by newlines.

    The key comes last and whole, whatever bytes it has: a reader splits at the
    first two newlines.
    """
    return b"%d\n%b\n%b" % (event.db, event.name, event.key)


def to_element(event: Event) -> bytes:
    """The event as an element of the fallback list.

    `version id time_ms db class name_length name key`, with blanks between: a
    person can read it, and the length of the name makes it binary-safe.
    """
    return b"%b %b %d %d %b %d %b %b" % (
        _ELEMENT_VERSION,
        event.message_id.encode(),
        event.time_ms,
        event.db,
        event.letter.encode(),
        len(event.name),
        event.name,
        event.key,
    )


def from_element(element: bytes) -> Event | None:
    """The event in an element of the fallback list; None if there is none."""
    try:
        version, message_id, time_ms, db, letter, name_length, rest = element.split(b" ", 6)
        length = int(name_length)
        event = Event(
            message_id.decode("ascii"),
            int(time_ms),
            int(db),
            letter.decode("ascii"),
            rest[:length],
            rest[length + 1 :],
        )
    except ValueError:
        return None
    # Anybody can push to the list; what pika could not send is no event.
    sound = (
        version == _ELEMENT_VERSION
        and 1 <= len(message_id) <= SHORT_STRING
        and 0 <= event.time_ms < 2**63
        and 0 <= event.db < 2**31
        and len(letter) == 1
        and length >= 0
        and rest[length : length + 1] == b" "
    )
    return event if sound else None
