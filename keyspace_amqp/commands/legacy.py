"""The list of the older C module, and what its elements become.

That module kept an event as its message's body, under the key
`REDIS_MODULE-key_evt_amqp-fallback_storage`. What it did not keep (the time, the
class, an identity) has to come from elsewhere. Pure; any thread.
"""

from __future__ import annotations

from ..message import Event

# The names of the servers' own events, by class; no name has two of them.
_NAMES = {
    "g": "del expire persist rename_from rename_to move_from move_to copy_to restore",
    "$": "set setrange append incrby incrbyfloat setbit pfadd",
    "l": "lpush rpush lpop rpop linsert lset lrem ltrim sortstore",
    "s": "sadd srem spop sinterstore sunionstore sdiffstore",
    "h": "hset hdel hincrby hincrbyfloat hexpire hpersist hexpired",
    "z": "zadd zincr zrem zremrangebyscore zremrangebyrank zremrangebylex zpopmin zpopmax "
    "zunionstore zinterstore zdiffstore zrangestore georadiusstore geosearchstore",
    "x": "expired",
    "e": "evicted",
    "t": "xadd xdel xtrim xsetid xgroup-create xgroup-createconsumer xgroup-delconsumer "
    "xgroup-destroy xgroup-setid",
    "m": "keymiss",
    "n": "new",
}
_CLASSES = {name.encode(): letter for letter, names in _NAMES.items() for name in names.split()}
# Of the events of other modules.
UNKNOWN = "?"


def from_legacy(element: bytes, message_id: str, time_ms: int) -> Event | None:
    """The event in an element `db, newline, event, newline, key`; None if there is none."""
    db, _, rest = element.partition(b"\n")
    name, found, key = rest.partition(b"\n")
    if not (found and name and db.isdigit() and len(db) <= 10 and int(db) < 2**31):
        return None
    return Event(message_id, time_ms, int(db), _CLASSES.get(name, UNKNOWN), name, key)
