"""Records: events and requests. Without the compiled module."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.message import Event, Subkeys, Value
from keyspace_amqp.values import replace
from keyspace_amqp.worker import records
from keyspace_amqp.worker.records import (
    HEAD,
    PARSE_BYTES,
    SUBKEYED,
    Kind,
    ListChanged,
    PeerMessage,
    Reader,
    RunCommand,
    SetConfig,
    SetRole,
    SlotsMoved,
    StartFlush,
    check_records,
    first_records,
    parse_request,
    take_requests,
)
from tests.worker.fakes import FakeQueue, counted, event, keys_of, record, subkeyed, valued


def parse(data: bytes, numbers: Sequence[int]) -> tuple[list[Event], int]:
    return Reader("run").parse(data, numbers)


# ---- events ---------------------------------------------------------------------------


def test_an_event_is_what_its_record_says() -> None:
    data = record(
        Kind.EVENT, b"k\0\n\xff", name=b"expired", time_ms=1_700_000_000_123, db=-1, bit=8
    )
    events, size = parse(data, range(5, 15))
    assert events == [Event("run-5", 1_700_000_000_123, -1, "x", b"expired", b"k\0\n\xff")]
    assert size == len(data)
    assert type(events[0].key) is bytes


def test_each_record_has_the_id_of_its_number() -> None:
    """The numbers of a file of leftovers may have gaps."""
    events, size = parse(event(b"a", db=7) + event(b"b"), [3, 9])
    assert [(e.message_id, e.key) for e in events] == [("run-3", b"a"), ("run-9", b"b")]
    assert size == 2 * len(event(b"a"))


def test_no_more_than_wanted() -> None:
    each = [event(b"a"), event(b"bb" * 9), event(b"c")]
    events, size = parse(b"".join(each), range(1, 3))
    assert keys_of(events) == [b"a", b"bb" * 9]
    assert size == len(each[0]) + len(each[1])
    assert parse(b"".join(each), range(0)) == ([], 0)


def test_no_more_bytes_than_fit_a_batch() -> None:
    """A record above the bound comes alone; the record that crosses the bound is the last."""
    large, small = event(bytes(PARSE_BYTES)), event(b"a")
    assert parse(large + small, range(1, 11))[1] == len(large)
    assert parse(small + large + small, range(1, 11))[1] == len(small + large)


@pytest.mark.parametrize(
    ("kind", "name"), [(0, "none"), (1, "string"), (2, "list"), (7, "stream"), (8, "unknown")]
)
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("data", [None, b"", b"\0data"])
def test_values(kind: int, name: str, before: int, data: bytes | None) -> None:
    """The key ends where the data begin."""
    raw = valued(b"key", 12345, data, kind=kind, before=before) + event(b"next key")
    events, size = parse(raw, range(1, 11))
    assert keys_of(events) == [b"key", b"next key"]
    assert events[0].value == Value(name, 12345, data, bool(before))
    assert events[1].value is None
    assert size == len(raw)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler fails over events with the key `poison`."""

    def make(*fields: Any) -> Event:
        made = Event(*fields)
        if made.key == b"poison":
            raise RuntimeError("broken on purpose")
        return made

    monkeypatch.setattr(records, "Event", make)


def test_an_exception_ends_the_batch_before_it(poison: None) -> None:
    """The events before it are safe; the next call raises the exception."""
    each = [event(b"a"), event(b"b"), event(b"poison"), event(b"c")]
    events, size = parse(b"".join(each), range(1, 11))
    assert (keys_of(events), size) == ([b"a", b"b"], len(each[0] + each[1]))
    with pytest.raises(RuntimeError, match="broken on purpose"):
        parse(b"".join(each)[size:], range(3, 13))


@pytest.mark.parametrize(
    ("size", "most", "count"), [(0, 9, 0), (1, 9, 1), (32, 9, 1), (33, 9, 2), (99, 1, 1), (9, 0, 0)]
)
def test_the_first_records(size: int, most: int, count: int) -> None:
    data = event(b"a") + event(b"b") + event(b"c")
    assert len(event(b"a")) == 32
    assert first_records(data, size, most) == (32 * count, count)


some = st.binary(max_size=9)


@given(st.lists(some, max_size=5), st.integers(0, 2**20), some, st.none() | some, st.booleans())
def test_subkeys(
    names: list[bytes], more: int, key: bytes, data: bytes | None, plain: bool
) -> None:
    inner = event(key, db=3, time_ms=9) if plain else valued(key, 10, data)
    whole = subkeyed(inner, names, len(names) + more)
    (found, without), _ = parse(whole + inner, [1, 2])
    assert found.subkeys == Subkeys.of(names, len(names) + more)
    assert replace(found, subkeys=None, message_id="run-2") == without
    # An event takes no more room for them than its record: the limits count in bytes of records.
    assert found.more_bytes - without.more_bytes <= len(whole) - len(inner)
    assert check_records(whole + inner) == 2


@pytest.mark.parametrize(
    ("total", "size", "kind", "rest"),
    [
        (1, 5, Kind.EVENT, counted(b"ab")),  # the last subkey is longer than all of them
        (1, 3, Kind.EVENT, counted(b"ab")),
        (1, 7, Kind.EVENT, counted(b"ab")),  # the record ends within them
        (1, 6, Kind.VALUED, counted(b"ab") + b"short"),
        (1, 6, Kind.SUBKEYED, counted(b"ab") + b"key"),
        (1, 6, Kind.COMMAND, counted(b"ab") + b"key"),
    ],
)
def test_a_record_whose_subkeys_do_not_agree(
    total: int, size: int, kind: Kind, rest: bytes
) -> None:
    good = record(Kind.SUBKEYED, SUBKEYED.pack(1, 6, 0) + counted(b"ab") + b"key", name=b"hset")
    assert check_records(good) == 1
    with pytest.raises(ValueError, match="damaged"):
        check_records(record(Kind.SUBKEYED, SUBKEYED.pack(total, size, kind) + rest, name=b"hset"))


@given(st.data())
def test_a_damaged_record_with_subkeys_is_found_or_can_be_read(data: st.DataObject) -> None:
    """The file of leftovers may be damaged: no byte of it may have other records read wrongly."""
    whole = bytearray(subkeyed(valued(b"key", 5, b"da"), [b"one", b"two"], 4))
    place = data.draw(st.integers(HEAD.size, len(whole) - 1))
    whole[place] = data.draw(st.integers(0, 255))
    try:
        check_records(bytes(whole))
    except ValueError:
        return
    (found,), size = parse(bytes(whole), [1])
    assert size == len(whole)
    assert found.subkeys is None or len(found.subkeys.names) <= 4


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
            counted(b"A", b"localhost"),
            SetConfig([b"A", b"localhost"]),
        ),
        (Kind.ROLE, b"\1\0\0", SetRole(primary=True, loading=False, agreed=False)),
        (Kind.ROLE, b"\0\1\0", SetRole(primary=False, loading=True, agreed=False)),
        (Kind.ROLE, b"\0\0\1", SetRole(primary=False, loading=False, agreed=True)),
        (
            Kind.LIST_CHANGED,
            struct.pack("=Q", 7) + counted(b"del", b"list"),
            ListChanged(7, b"del", b"list"),
        ),
        (
            Kind.LIST_CHANGED,
            struct.pack("=Q", 7) + counted(b"flushdb", b""),
            ListChanged(7, b"flushdb", b""),
        ),
        (Kind.MESSAGE, counted(b"ab\xff", b"\xfftext"), PeerMessage("ab\ufffd", b"\xfftext")),
        (Kind.FLUSH, struct.pack("=QIIB", 8500, 9, 1500, 2), StartFlush(8.5, 9, 1.5, 2)),
        (Kind.SLOTS_MOVED, b"\0", SlotsMoved(came=False, slots=set())),
        (
            Kind.SLOTS_MOVED,
            struct.pack("=B4H", 1, 3, 5, 16383, 16383),
            SlotsMoved(came=True, slots={3, 4, 5, 16383}),
        ),
    ],
)
def test_requests(kind: Kind, payload: bytes, request_: object) -> None:
    assert parse_request(kind, payload) == request_


@pytest.mark.parametrize(
    ("kind", "payload"),
    [(Kind.EVENT, b"key"), (Kind.VALUED, b"key"), (99, b""), (Kind.COMMAND, b"short"),
     (Kind.MESSAGE, counted(b"alone")), (Kind.SLOTS_MOVED, b"\1\0")],
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
