"""The shelf: events that a mask has let through and that can only wait, as records.

A record takes a fifth of the memory of an event as objects. The records are bytes that only
the worker can read. All events of memory are older than those on the shelf.
"""

from __future__ import annotations

import collections
from array import array
from collections.abc import Sequence

from .ledger import Ledger

# A run takes more records until it has so many bytes: few events at a time share a run.
_RUN_BYTES = 64 * 1024
_NUMBER_BYTES = 8


class Shelf:
    """Runs of records, oldest first, each with the number of its event in the shim's queue.

    `count` and `bytes` of the events; the bytes include those of the numbers.
    """

    def __init__(self, ledger: Ledger) -> None:
        self.count = 0
        self.bytes = 0
        self._ledger = ledger
        self._runs: collections.deque[tuple[bytearray, array[int]]] = collections.deque()
        # Of the first run, the bytes and records that have left.
        self._left_bytes = 0
        self._left = 0

    def put(self, records: bytes, numbers: Sequence[int]) -> None:
        """Add records of events that a mask has let through, and count them as matched."""
        if not numbers:
            return
        if not self._runs or len(self._runs[-1][0]) >= _RUN_BYTES:
            self._runs.append((bytearray(), array("Q")))
        data, known = self._runs[-1]
        data += records
        known.extend(numbers)
        self.count += len(numbers)
        self.bytes += len(records) + _NUMBER_BYTES * len(numbers)
        self._ledger.matched(len(numbers))

    def take(self) -> tuple[bytes, array[int]]:
        """Return the oldest run, and the numbers of its events; both empty if there is none."""
        if not self._runs:
            return b"", array("Q")
        data, numbers = self._runs[0]
        return bytes(memoryview(data)[self._left_bytes :]), numbers[self._left :]

    def release(self, size: int, count: int) -> None:
        """Forget the oldest `count` records, which have `size` bytes. They are in another
        place, which counts them."""
        self._left_bytes += size
        self._left += count
        self.count -= count
        self.bytes -= size + _NUMBER_BYTES * count
        if self._left >= len(self._runs[0][1]):
            self._runs.popleft()
            self._left_bytes = self._left = 0

    def drop(self, size: int, count: int) -> None:
        """Give up the oldest `count` records, which have `size` bytes, because memory is full."""
        self.release(size, count)
        self._ledger.queue_full(count)

    def hand_over(self, size: int, count: int) -> None:
        """Hand the oldest `count` records, which have `size` bytes, over to the next load."""
        self.release(size, count)
        self._ledger.found(-count)

    def clear(self) -> int:
        """Forget all records; return how many. The caller counts them."""
        count, self.count, self.bytes = self.count, 0, 0
        self._runs.clear()
        self._left_bytes = self._left = 0
        return count
