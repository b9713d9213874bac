"""Prints the bytes that an event takes in the shim's queue.

In a process of its own: the allocator would use memory that an earlier measurement freed, and the
result would be too small.
"""

from __future__ import annotations

from tests.fix_shim import load

from .measure import resident

EVENTS = 500_000
EVENT, KEY = b"set", b"key:000000000000"


def measure() -> float:
    """Resident memory for each event, all of it: records, chunks, what malloc adds."""
    shim = load()
    queue = shim.lib.queue_new(0)
    head = shim.ffi.new("record_t *", {"payload_len": len(KEY), "name_len": len(EVENT)})
    before = resident("self")
    for _ in range(EVENTS):
        shim.lib.queue_push(queue, head, EVENT, KEY)
    return (resident("self") - before) / EVENTS


if __name__ == "__main__":
    print(measure())
