"""The elements of the older C module's list, and the events in them.

That module kept an event as its message's body, under the key
`REDIS_MODULE-key_evt_amqp-fallback_storage`. The time, the class and the identity of
the event were not kept and are chosen here. Pure; any thread.
"""

from __future__ import annotations

from ..message import Event
from ..tables.events import UNKNOWN_CLASS

# The names of the servers' own events by class; each name has one class only.
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


def from_legacy(element: bytes, message_id: str, time_ms: int) -> Event | None:
    """Return the event in an element: db, event and key, separated by newlines.

    None if the element has another form. An event of another module has a name that is not
    in the table, so its class is unknown.
    """
    db, _, rest = element.partition(b"\n")
    name, newline, key = rest.partition(b"\n")
    if not (newline and name and db.isdigit() and len(db) <= 10 and int(db) < 2**31):
        return None
    letter = _CLASSES.get(name, UNKNOWN_CLASS)
    return Event(message_id, time_ms, int(db), letter, name, key)
