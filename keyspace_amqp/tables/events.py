"""The classes of keyspace events: their letters, their bits and their names; and the types of
values.

The letters are those of `notify-keyspace-events`, the bits those of REDISMODULE_NOTIFY_*.
A server says how many bits it has (GetKeyspaceNotificationFlagsAll). So a class exists on a
server if its bit does; but Valkey has none of the classes that Redis has added since 7.0. Pure:
imports nothing.
"""

from __future__ import annotations

import typing


class EventClass(typing.NamedTuple):
    """A class of events.

    `bit`: its position; `name`: its name in messages; `events`: the events in it, for the table on
    the page. `in_all`: the letter `A` stands for it too, as it does for the server. `since`: the
    first version of Redis that has it; empty: all supported servers do.
    """

    letter: str
    bit: int
    name: str
    events: str
    in_all: bool = True
    since: str = ""


EVENT_CLASSES = (
    EventClass(
        "g", 2, "generic", "`del`, `expire`, `persist`, `rename_from`, `rename_to`, `restore`, …"
    ),
    EventClass("$", 3, "string", "`set`, `incrby`, `append`, …"),
    EventClass("l", 4, "list", "`lpush`, `lpop`, `ltrim`, …"),
    EventClass("s", 5, "set", "`sadd`, `srem`, `spop`, …"),
    EventClass("h", 6, "hash", "`hset`, `hdel`, `hexpire`, …; from Redis also `hexpired`"),
    EventClass("z", 7, "zset", "`zadd`, `zrem`, `zincr`, …"),
    EventClass("x", 8, "expired", "`expired`; from Valkey also `hexpired`"),
    EventClass("e", 9, "evicted", "`evicted`"),
    EventClass("t", 10, "stream", "`xadd`, `xdel`, `xtrim`, …"),
    EventClass("d", 13, "module", "those of other modules' types"),
    EventClass("a", 23, "array", "`arset`, `ardel`, …", since="8.8"),
    EventClass("m", 11, "keymiss", "`keymiss`: a key that was read does not exist", in_all=False),
    EventClass("n", 14, "new", "`new`: a key was created, before the event that says how", False),
    EventClass(
        "o",
        15,
        "overwritten",
        "`overwritten`: the whole value of a key was replaced, before the event that says how",
        in_all=False,
        since="8.2",
    ),
    EventClass(
        "c",
        16,
        "type_changed",
        "`type_changed`: as `overwritten`, and the new value has another type",
        in_all=False,
        since="8.2",
    ),
)
# Bits that are no classes, or whose events are no changes of the data: the channels K and E, the
# channels of subkeys, keys that are loaded from a file, and keys that are removed because their
# slot has moved.
OTHER_BITS = (0, 1, 12, 17, 18, 19, 20, 21, 22)

# The class of the events of a snapshot, which no server emits. The bit is the sign of the server's
# masks, which no class can have, and the letter is none.
SNAPSHOT = EventClass("*", 31, "snapshot", "`snapshot`: a key exists")

# The letter of an event whose class is not known.
UNKNOWN_CLASS = "?"
_LETTERS = {event_class.bit: event_class.letter for event_class in (*EVENT_CLASSES, SNAPSHOT)}
# The letters of the classes by bit.
CLASS_LETTERS = "".join(_LETTERS.get(bit, UNKNOWN_CLASS) for bit in range(SNAPSHOT.bit + 1))

# The names that the command TYPE has for REDISMODULE_KEYTYPE_*, and the name of all others.
VALUE_TYPES = ("none", "string", "list", "hash", "set", "zset", "module", "stream")
UNKNOWN_TYPE = "unknown"
