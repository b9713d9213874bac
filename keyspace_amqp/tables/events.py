"""The classes of keyspace events: their letters, their bits and their names.

The letters are those of `notify-keyspace-events`, the bits those of
REDISMODULE_NOTIFY_*, which are the same on all servers. Pure: imports nothing.
"""

from __future__ import annotations

import typing


class EventClass(typing.NamedTuple):
    """A class of events. `bit`: its position; `name`: its name in messages."""

    letter: str
    bit: int
    name: str


EVENT_CLASSES = (
    EventClass("g", 2, "generic"),
    EventClass("$", 3, "string"),
    EventClass("l", 4, "list"),
    EventClass("s", 5, "set"),
    EventClass("h", 6, "hash"),
    EventClass("z", 7, "zset"),
    EventClass("x", 8, "expired"),
    EventClass("e", 9, "evicted"),
    EventClass("t", 10, "stream"),
    EventClass("m", 11, "keymiss"),
    EventClass("d", 13, "module"),
    EventClass("n", 14, "new"),
    EventClass("o", 15, "overwritten"),
    EventClass("c", 16, "type_changed"),
)
# The letter `A` stands for these, as in Redis 7.0 and later.
ALL_CLASSES = "g$lshzxetd"
