"""Measures the memory that the queue and the filter take in a process.

`python -m tests.shim.memory CASE` prints the numbers that a case returns, as JSON. test_queue.py
and test_filter.py start it, so that no earlier work in the process changes them.
"""

from __future__ import annotations

import json
import pathlib
import random
import resource
import sys
from collections.abc import Callable

from tests.fix_shim import load
from tests.shim.queues import Queue, Record

SHIM = load()


def resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def filled_and_freed() -> list[int]:
    """Before and after queues of 2 MB each were freed with records in them."""
    big = Record(b"e", b"k" * 200_000)

    def fill_and_free() -> None:
        queue = Queue(SHIM)
        for _ in range(10):
            queue.push(big)
            queue.push(Record(b"e", b"small"))
        queue.take(3)
        queue.free()

    for _ in range(10):
        fill_and_free()
    before = resident()
    for _ in range(100):
        fill_and_free()
    return [before, resident()]


def steady_flow() -> list[int]:
    """After a tenth of two million events and after all; and how many there were."""
    queue = Queue(SHIM)
    ffi, lib = queue.ffi, queue.lib
    head = ffi.new("record_t *", {"payload_len": 96, "name_len": 6})
    pointer = ffi.new("const char **")
    handle, name, key, push = queue.queue, b"expire", b"k" * 96, lib.queue_push
    size = Record(name, key).size

    def flow(rounds: int) -> None:
        for _ in range(rounds):
            for _ in range(1000):
                push(handle, head, name, key)
            while queue.length > 500:
                taken = lib.queue_take(handle, pointer)
                lib.queue_release(handle, taken, taken // size)

    flow(200)
    before = resident()
    flow(1800)
    numbers = [before, resident(), queue.pushed]
    queue.free()
    return numbers


def floods(payload_len: int) -> list[int]:
    """After the queue was filled up and emptied two times, and many times."""
    queue = Queue(SHIM, 20_000_000)
    record = Record(b"expire", b"k" * payload_len)

    def flood() -> None:
        while queue.push(record):
            pass
        while queue.length:
            size = queue.lib.queue_take(queue.queue, queue._records)
            queue.lib.queue_release(queue.queue, size, size // record.size)

    for _ in range(2):
        flood()
    before = resident()
    rounds = 5 if payload_len == 100 else 30
    for _ in range(rounds):
        flood()
    after = resident()
    queue.free()
    return [before, after]


def large_event() -> list[int]:
    """Before an event of 50 MB, with it in the queue, and after it was given back."""
    queue = Queue(SHIM)
    record = Record(b"set", b"k" * 50_000_000)
    numbers = [resident()]
    queue.push(record)
    size = queue.lib.queue_take(queue.queue, queue._records)
    numbers.append(resident())
    queue.lib.queue_release(queue.queue, size, 1)
    numbers.append(resident())
    queue.free()
    return numbers


def filter_states() -> list[int]:
    """Before and after a million states were needed, by masks that include and that exclude."""
    masks = b"a" + b"." * 24 + b"b$ !a" + b"." * 24 + b"c$"
    made = SHIM.lib.filter_new(masks, len(masks), b"ALL")
    generator = random.Random(7)
    keys = [bytes(generator.choices(b"ab", k=5000)) for _ in range(200)]
    before = resident()
    for key in keys:
        SHIM.lib.filter_passes(made, 0, key, len(key))
    numbers = [before, resident()]
    SHIM.lib.filter_free(made)
    return numbers


CASES: dict[str, Callable[..., list[int]]] = {
    case.__name__: case
    for case in (filled_and_freed, steady_flow, floods, large_event, filter_states)
}

if __name__ == "__main__":
    print(json.dumps(CASES[sys.argv[1]](*map(int, sys.argv[2:]))))
