"""Records: events through databases and masks, and requests. Without the compiled module."""

from __future__ import annotations

import dataclasses
import struct

import pytest

from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.message import Event, Value
from keyspace_amqp.worker import records
from keyspace_amqp.worker.records import (
    PARSE_BYTES,
    Kind,
    ListChanged,
    PeerMessage,
    Reader,
    RunCommand,
    SetConfig,
    SetRole,
    StartFlush,
    parse_request,
    record_size,
    take_requests,
)
from tests.worker.fakes import FakeQueue, counted, event, keys_of, record, valued


def reader(*masks: bytes, databases: str = "ALL") -> Reader:
    config = dataclasses.replace(DEFAULTS, masks=masks or (b"ALL",), databases=databases)
    return Reader("run", config)


# ---- events ---------------------------------------------------------------------------


def test_an_event_is_what_its_record_says() -> None:
    data = record(
        Kind.EVENT, b"k\0\n\xff", name=b"expired", time_ms=1_700_000_000_123, db=-1, bit=8
    )
    events, size, count = reader().parse(data, 10, 5)
    assert events == [Event("run-5", 1_700_000_000_123, -1, "x", b"expired", b"k\0\n\xff")]
    assert (size, count) == (len(data), 1)
    assert type(events[0].key) is bytes


def test_numbers_count_every_record() -> None:
    """Masked events count too, so masks do not change the ids of other events."""
    data = b"".join(map(event, [b"a1", b"b", b"a2", b"b", b"a3"]))
    events, size, count = reader(b"^a").parse(data, 10, 100)
    assert [(e.message_id, e.key) for e in events] == [
        ("run-100", b"a1"),
        ("run-102", b"a2"),
        ("run-104", b"a3"),
    ]
    assert (size, count) == (len(data), 5)


def test_no_more_than_wanted() -> None:
    each = [event(b"a"), event(b"bb" * 9), event(b"c")]
    events, size, count = reader().parse(b"".join(each), 2, 1)
    assert keys_of(events) == [b"a", b"bb" * 9]
    assert (size, count) == (len(each[0]) + len(each[1]), 2)
    assert reader().parse(b"".join(each), 0, 1) == ([], 0, 0)


def test_no_more_bytes_than_fit_a_batch() -> None:
    """A record above the bound comes alone; the record that crosses the bound is the last."""
    large, small = event(bytes(PARSE_BYTES)), event(b"a")
    assert reader().parse(large + small, 10, 1)[1:] == (len(large), 1)
    assert reader().parse(small + large + small, 10, 1)[1:] == (len(small + large), 2)


def test_databases() -> None:
    data = b"".join(event(b"%d" % db, db=db) for db in range(6))
    assert keys_of(reader(databases="1,4-5").parse(data, 10, 1)[0]) == [b"1", b"4", b"5"]


def test_another_filter() -> None:
    parses = reader(b"^a")
    parses.set_filter(dataclasses.replace(DEFAULTS, masks=(b"^b",), databases="0"))
    data = event(b"a") + event(b"b") + event(b"b", db=1)
    assert keys_of(parses.parse(data, 10, 1)[0]) == [b"b"]


@pytest.mark.parametrize(
    ("kind", "name"), [(0, "none"), (1, "string"), (2, "list"), (7, "stream"), (8, "unknown")]
)
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("data", [None, b"", b"\0data"])
def test_values(kind: int, name: str, before: int, data: bytes | None) -> None:
    """The key ends where the data begin, also for masks."""
    raw = valued(b"key", 12345, data, kind=kind, before=before) + event(b"next key")
    events, size, _ = reader(b"key$").parse(raw, 10, 1)
    assert keys_of(events) == [b"key", b"next key"]
    assert events[0].value == Value(name, 12345, data, bool(before))
    assert events[1].value is None
    assert size == len(raw)


def test_an_exception_ends_the_batch_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The events before it are safe; the next call raises the exception."""

    def compiled(masks: object) -> object:
        def matches(data: bytes, start: int, end: int) -> bool:
            if data[start:end] == b"poison":
                raise RuntimeError("broken on purpose")
            return True

        return matches

    monkeypatch.setattr(records, "compile_masks", compiled)
    each = [event(b"a"), event(b"b"), event(b"poison"), event(b"c")]
    events, size, count = reader().parse(b"".join(each), 10, 1)
    assert (keys_of(events), size, count) == ([b"a", b"b"], len(each[0] + each[1]), 2)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        reader().parse(b"".join(each)[size:], 10, 3)


def test_the_size_of_a_record() -> None:
    assert record_size(event(b"a") + event(b"b")) == len(event(b"a"))


# ---- requests ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "payload", "request_"),
    [
        (
            Kind.COMMAND,
            struct.pack("=Q", 2**63) + counted(b"keyspaceamqp.stats", b"", b"\0x"),
            RunCommand(2**63, [b"keyspaceamqp.stats", b"", b"\0x"]),
        ),
        (Kind.COMMAND, struct.pack("=Q", 1), RunCommand(1, [])),
        (
            Kind.CONFIG,
            struct.pack("=Q", 77) + counted(b"A", b"localhost"),
            SetConfig(77, [b"A", b"localhost"]),
        ),
        (Kind.ROLE, b"\1\0\0", SetRole(primary=True, loading=False, agreed=False)),
        (Kind.ROLE, b"\0\1\0", SetRole(primary=False, loading=True, agreed=False)),
        (Kind.ROLE, b"\0\0\1", SetRole(primary=False, loading=False, agreed=True)),
        (Kind.LIST_CHANGED, counted(b"del", b"list"), ListChanged(b"del", b"list")),
        (Kind.LIST_CHANGED, counted(b"flushdb", b""), ListChanged(b"flushdb", b"")),
        (Kind.MESSAGE, counted(b"ab\xff", b"\xfftext"), PeerMessage("ab\ufffd", b"\xfftext")),
        (Kind.FLUSH, struct.pack("=IIB", 9, 1500, 2), StartFlush(9, 1.5, 2)),
    ],
)
def test_requests(kind: Kind, payload: bytes, request_: object) -> None:
    assert parse_request(kind, payload) == request_


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(Kind.EVENT, b"key"), (Kind.VALUED, b"key"), (99, b""), (Kind.COMMAND, b"short"),
     (Kind.MESSAGE, counted(b"alone"))],
)  # fmt: skip
def test_what_is_no_request(kind: int, payload: bytes) -> None:
    with pytest.raises((ValueError, struct.error)):
        parse_request(kind, payload)


@pytest.mark.parametrize(
    ("primary", "loading", "writable"),
    [(True, False, True), (True, True, False), (False, False, False), (False, True, False)],
)
def test_a_role_that_can_write(primary: bool, loading: bool, writable: bool) -> None:
    assert SetRole(primary, loading, agreed=False).writable is writable


def test_requests_are_taken_oldest_first_from_all_pieces() -> None:
    queue = FakeQueue(together=2)
    queue.push(*(record(Kind.MESSAGE, bytes([i]) * i, name=b"n" * i) for i in range(5)))
    assert list(take_requests(queue)) == [(Kind.MESSAGE, bytes([i]) * i) for i in range(5)]
    assert (queue.length, queue.released) == (0, 5)
    assert list(take_requests(queue)) == []


def test_a_request_that_comes_meanwhile() -> None:
    """It is taken by the same call, as a job may depend on it."""
    queue = FakeQueue()
    queue.push(record(Kind.ROLE, b"\1\0\0"))
    taken = []
    for kind, _ in take_requests(queue):
        taken.append(kind)
        if kind == Kind.ROLE:
            queue.push(record(Kind.FLUSH))
    assert taken == [Kind.ROLE, Kind.FLUSH]
