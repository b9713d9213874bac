"""Records: events through databases and masks, and requests. Without the compiled module."""

from __future__ import annotations

import dataclasses
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.message import Event, Subkeys, Value
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


def reader(*masks: bytes, databases: str = "ALL") -> Reader:
    config = dataclasses.replace(DEFAULTS, masks=masks or (b"ALL",), databases=databases)
    return Reader("run", config)


# ---- events ---------------------------------------------------------------------------


def test_an_event_is_what_its_record_says() -> None:
    data = record(
        Kind.EVENT, b"k\0\n\xff", name=b"expired", time_ms=1_700_000_000_123, db=-1, bit=8
    )
    events, size, count = reader().parse(data, range(5, 15))
    assert events == [Event("run-5", 1_700_000_000_123, -1, "x", b"expired", b"k\0\n\xff")]
    assert (size, count) == (len(data), 1)
    assert type(events[0].key) is bytes


def test_numbers_count_every_record() -> None:
    """Masked events count too, so masks do not change the ids of other events."""
    data = b"".join(map(event, [b"a1", b"b", b"a2", b"b", b"a3"]))
    events, size, count = reader(b"^a").parse(data, range(100, 110))
    assert [(e.message_id, e.key) for e in events] == [
        ("run-100", b"a1"),
        ("run-102", b"a2"),
        ("run-104", b"a3"),
    ]
    assert (size, count) == (len(data), 5)


def test_no_more_than_wanted() -> None:
    each = [event(b"a"), event(b"bb" * 9), event(b"c")]
    events, size, count = reader().parse(b"".join(each), range(1, 3))
    assert keys_of(events) == [b"a", b"bb" * 9]
    assert (size, count) == (len(each[0]) + len(each[1]), 2)
    assert reader().parse(b"".join(each), range(0)) == ([], 0, 0)


def test_no_more_bytes_than_fit_a_batch() -> None:
    """A record above the bound comes alone; the record that crosses the bound is the last."""
    large, small = event(bytes(PARSE_BYTES)), event(b"a")
    assert reader().parse(large + small, range(1, 11))[1:] == (len(large), 1)
    assert reader().parse(small + large + small, range(1, 11))[1:] == (len(small + large), 2)


def test_databases() -> None:
    data = b"".join(event(b"%d" % db, db=db) for db in range(6))
    assert keys_of(reader(databases="1,4-5").parse(data, range(1, 11))[0]) == [b"1", b"4", b"5"]


def test_another_filter() -> None:
    parses = reader(b"^a")
    parses.set_filter(dataclasses.replace(DEFAULTS, masks=(b"^b",), databases="0"))
    data = event(b"a") + event(b"b") + event(b"b", db=1)
    assert keys_of(parses.parse(data, range(1, 11))[0]) == [b"b"]


@pytest.mark.parametrize(
    ("kind", "name"), [(0, "none"), (1, "string"), (2, "list"), (7, "stream"), (8, "unknown")]
)
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("data", [None, b"", b"\0data"])
def test_values(kind: int, name: str, before: int, data: bytes | None) -> None:
    """The key ends where the data begin, also for masks."""
    raw = valued(b"key", 12345, data, kind=kind, before=before) + event(b"next key")
    events, size, _ = reader(b"key$").parse(raw, range(1, 11))
    assert keys_of(events) == [b"key", b"next key"]
    assert events[0].value == Value(name, 12345, data, bool(before))
    assert events[1].value is None
    assert size == len(raw)


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler fails over events with the key `poison`."""

    def compiled(masks: object) -> object:
        def matches(data: bytes, start: int, end: int) -> bool:
            if data[start:end] == b"poison":
                raise RuntimeError("broken on purpose")
            return True

        return matches

    monkeypatch.setattr(records, "compile_masks", compiled)


def test_an_exception_ends_the_batch_before_it(poison: None) -> None:
    """The events before it are safe; the next call raises the exception."""
    each = [event(b"a"), event(b"b"), event(b"poison"), event(b"c")]
    events, size, count = reader().parse(b"".join(each), range(1, 11))
    assert (keys_of(events), size, count) == ([b"a", b"b"], len(each[0] + each[1]), 2)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        reader().parse(b"".join(each)[size:], range(3, 13))


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
    (found, without), _, _ = Reader("run").parse(whole + inner, [1, 2])
    assert found.subkeys == Subkeys.of(names, len(names) + more)
    assert dataclasses.replace(found, subkeys=None, message_id="run-2") == without
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
    (found,), size, _ = Reader("run").parse(bytes(whole), [1])
    assert size == len(whole)
    assert found.subkeys is None or len(found.subkeys.names) <= 4


def test_without_a_filter_all_events_pass() -> None:
    data = event(b"a", db=7) + event(b"b")
    events, size, count = Reader("run").parse(data, [3, 9])
    assert [(e.message_id, e.key) for e in events] == [("run-3", b"a"), ("run-9", b"b")]
    assert (size, count) == (len(data), 2)


# ---- records that stay records ------------------------------------------------------------


@pytest.mark.parametrize("most", [0, 1, 2, 5, 9, 100])
@pytest.mark.parametrize("databases", ["ALL", "0"])
def test_sifted_records_become_the_events_that_pass(most: int, databases: str) -> None:
    raw = [
        event(b"a1"), event(b"b"), valued(b"a2", 5, b"b data"), event(b"a3", db=1),
        valued(b"b2", 5, b"a"), event(b"b3"), valued(b"a4", 2, None), event(b"a5"),
        subkeyed(event(b"a6"), [b"b"]), subkeyed(event(b"b"), [b"a", b""]),
        subkeyed(valued(b"a7", 2, b"b"), [b"b"], 7), subkeyed(valued(b"b", 2, b"a"), [b"a"]),
    ]  # fmt: skip
    data, numbers = b"".join(raw), range(10, 10 + most)
    sifts = reader(b"^a", databases=databases)
    kept, kept_numbers, size, count = sifts.sift(data, numbers)
    expected, *taken = sifts.parse(data, numbers)
    assert [size, count] == taken
    assert len(kept_numbers) == len(expected)
    assert Reader("run").parse(kept, kept_numbers) == (expected, len(kept), len(expected))


def test_an_exception_ends_the_sift_before_it(poison: None) -> None:
    each = [event(b"a"), event(b"poison"), event(b"c")]
    kept, numbers, size, count = reader().sift(b"".join(each), range(1, 4))
    assert (kept, numbers, size, count) == (each[0], [1], len(each[0]), 1)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        reader().sift(b"".join(each[1:]), range(2, 4))


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
