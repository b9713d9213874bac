"""The classes of keyspace events: their letters, bits and names.

Pure: imports nothing.
"""

from __future__ import annotations

# The letters of notify-keyspace-events; a letter's place is the class's bit in
# REDISMODULE_NOTIFY_*, the same on all servers. K, E and ? are no classes of events.
CLASS_LETTERS = "KEg$lshzxetm?dnoc"
# What a message calls them.
CLASS_NAMES = {
    "g": "generic",
    "$": "string",
    "l": "list",
    "s": "set",
    "h": "hash",
    "z": "zset",
    "x": "expired",
    "e": "evicted",
    "t": "stream",
    "m": "keymiss",
    "d": "module",
    "n": "new",
    "o": "overwritten",
    "c": "type_changed",
}
# What `A` stands for in the parameter `events`, as in Redis 7.0 and later.
ALL_CLASSES = "g$lshzxetd"
