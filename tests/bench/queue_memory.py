"""Prints the memory that an event in the shim's queue takes, in bytes.

Runs in a process of its own: memory that an earlier measurement had freed would be used again
and not be counted.
"""

from __future__ import annotations

from tests.fix_shim import load

from .measure import resident

EVENTS = 500_000
EVENT, KEY = b"set", b"key:000000000000"


def measure() -> float:
    """Return the resident memory for each event: record, its part of a chunk, and the overhead of
    malloc."""
    shim = load()
    queue = shim.lib.queue_new(0)
    head = shim.ffi.new("record_t *", {"payload_len": len(KEY), "name_len": len(EVENT)})
    before = resident("self")
    for _ in range(EVENTS):
        shim.lib.queue_push(queue, head, EVENT, KEY)
    return (resident("self") - before) / EVENTS


if __name__ == "__main__":
    print(measure())
