"""The queue's C functions for tests, with records that Python can compare."""

from __future__ import annotations

import struct
from typing import NamedTuple

from tests.fix_shim import Shim

CHUNK = 64 * 1024  # CHUNK_BYTES of queue.c: records around it are the corner cases
HEAD = struct.Struct("=IIQiHBB")
FIELDS = ("size", "payload_len", "time_ms", "db", "name_len", "kind", "class_bit")
EVENT, COMMAND = 0, 1


class Record(NamedTuple):
    name: bytes
    payload: bytes
    kind: int = EVENT
    db: int = 0
    time_ms: int = 0
    class_bit: int = 8

    @property
    def size(self) -> int:
        """Its bytes in the queue: head, name and payload, rounded up to a multiple of eight."""
        return (HEAD.size + len(self.name) + len(self.payload) + 7) // 8 * 8


class Queue:
    """The C functions of a queue, with records as arguments and results."""

    def __init__(self, shim: Shim, limit: int = 0) -> None:
        self.ffi, self.lib = shim.ffi, shim.lib
        self.queue = self.lib.queue_new(limit)
        self._head = self.ffi.new("record_t *")
        self._records = self.ffi.new("const char **")

    def push(self, record: Record) -> bool:
        head = self._head
        head.size = 0xDEAD  # the queue computes it itself
        head.payload_len = len(record.payload)
        head.time_ms = record.time_ms
        head.db = record.db
        head.name_len = len(record.name)
        head.kind = record.kind
        head.class_bit = record.class_bit
        code = self.lib.queue_push(self.queue, head, record.name, record.payload)
        assert code in (0, -1)
        return bool(code == 0)

    def look(self) -> bytes:
        """The bytes that can be taken now; they stay in the queue."""
        size = self.lib.queue_take(self.queue, self._records)
        return bytes(self.ffi.buffer(self._records[0], size)) if size else b""

    def take(self, most: int = 1 << 30) -> list[Record]:
        """Takes at most so many records, from those that lie together in memory."""
        data = self.look()
        records: list[Record] = []
        at = 0
        while at < len(data) and len(records) < most:
            size, record = parse(data, at)
            records.append(record)
            at += size
        assert at <= len(data)
        self.lib.queue_release(self.queue, at, len(records))
        return records

    def take_all(self) -> list[Record]:
        records: list[Record] = []
        while some := self.take():
            records += some
        return records

    @property
    def bytes(self) -> int:
        return int(self.lib.queue_bytes(self.queue))

    @property
    def length(self) -> int:
        return int(self.lib.queue_length(self.queue))

    @property
    def pushed(self) -> int:
        return int(self.lib.queue_pushed(self.queue))

    def free(self) -> None:
        self.lib.queue_free(self.queue)


def parse(data: bytes, at: int) -> tuple[int, Record]:
    size, payload_len, time_ms, db, name_len, kind, class_bit = HEAD.unpack_from(data, at)
    start = at + HEAD.size
    name = data[start : start + name_len]
    payload = data[start + name_len : start + name_len + payload_len]
    return size, Record(name, payload, kind, db, time_ms, class_bit)
