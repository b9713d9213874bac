"""Elements of the fallback list that the shim makes, against those of `to_element`."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp.fallback import from_element, to_element
from keyspace_amqp.message import Event
from keyspace_amqp.tables.events import CLASS_LETTERS, UNKNOWN_CLASS, VALUE_TYPES
from keyspace_amqp.values import replace
from keyspace_amqp.worker.records import HEAD, VALUED, Kind, Reader
from tests.fix_shim import Shim
from tests.worker.fakes import record, subkeyed

RUN = "0123456789abcdef"
GUARD = b"\xa5" * 64


def write(shim: Shim, data: bytes, prefix: bytes, number: int) -> bytes:
    """The element that the shim makes of a record, within the room that it asks for."""
    ffi, lib = shim.ffi, shim.lib
    head = ffi.new("record_t *")
    ffi.buffer(head)[:] = data[: HEAD.size]
    # Apart from each other, as in the capture.
    name_end = HEAD.size + head.name_len
    name = ffi.new("char[]", data[HEAD.size : name_end])
    payload = ffi.new("char[]", data[name_end : name_end + head.payload_len])
    room = lib.element_room(head, len(prefix))
    out = ffi.new("char[]", room + len(GUARD))
    ffi.buffer(out)[room:] = GUARD
    size = lib.element_write(out, head, name, payload, prefix, len(prefix), number)
    assert size <= room
    assert bytes(ffi.buffer(out)[room:]) == GUARD
    return bytes(ffi.buffer(out, size))


def read(data: bytes, number: int = 1) -> Event:
    """The event that the worker makes of a record."""
    (event,), _ = Reader(RUN).parse(data, [number])
    return event


def check(shim: Shim, data: bytes, number: int = 1) -> None:
    event = read(data, number)
    element = write(shim, data, f"{RUN}-".encode(), number)
    assert element == to_element(event)
    assert from_element(element) == event


AWKWARD = (b"", b" ", b"\n", b"\0", b"a b", b"1 2 3", b"1:a ", b"\xff\xfe", b"k" * 70_000)
some_bytes = st.binary(max_size=40) | st.sampled_from(AWKWARD)
names = st.binary(max_size=40) | st.sampled_from([b"", b" 3 x", b"n" * 65535])
# Where the number of digits changes.
EDGES = sorted({10**n + more for n in range(20) for more in (-1, 0, 1)} | {2**64 - 1, 2**63})


def numbers(most: int) -> st.SearchStrategy[int]:
    return st.integers(0, most) | st.sampled_from([edge for edge in EDGES if edge <= most])


@st.composite
def payloads(draw: st.DrawFn) -> tuple[Kind, bytes]:
    """Kind and payload of an event without subkeys."""
    key = draw(some_bytes)
    if draw(st.booleans()):
        return Kind.EVENT, key
    data = draw(st.none() | some_bytes)
    length = len(data or b"") + draw(numbers(2**64 - 1 - 70_000))
    head = VALUED.pack(length, len(key), draw(st.integers(0, 255)), draw(st.integers(0, 1)),
                       data is not None)  # fmt: skip
    return Kind.VALUED, head + key + (data or b"")


@st.composite
def records(draw: st.DrawFn) -> bytes:
    kind, payload = draw(payloads())
    fields = {"time_ms": 2**63 - 1, "db": 2**31 - 1}
    chosen = {field: draw(numbers(most)) for field, most in fields.items()}
    bit = draw(st.integers(0, len(CLASS_LETTERS) - 1))
    inner = record(kind, payload, name=draw(names), bit=bit, **chosen)
    if draw(st.booleans()):
        return inner
    lengths = st.sampled_from([9, 10, 11, 99, 100, 101, 999, 1000, 9999, 10_000])
    listed = draw(st.lists(some_bytes | lengths.map(bytes), max_size=6))
    return subkeyed(inner, listed, len(listed) + draw(numbers(2**32 - 10)))


@given(records(), numbers(2**64 - 1))
@example(record(Kind.EVENT), 0)
@example(
    record(Kind.EVENT, b"a\0 \n\xff", name=b" 3 x", time_ms=2**63 - 1, db=2**31 - 1), 2**64 - 1
)
def test_an_element_is_that_of_the_handler(shim: Shim, data: bytes, number: int) -> None:
    check(shim, data, number)


@given(records(), numbers(2**64 - 1))
def test_a_record_without_value_and_subkeys(shim: Shim, data: bytes, number: int) -> None:
    ffi, lib = shim.ffi, shim.lib
    head = ffi.new("record_t *")
    ffi.buffer(head)[:] = data[: HEAD.size]
    name_end = HEAD.size + head.name_len
    payload = ffi.from_buffer("char[]", data[name_end : name_end + head.payload_len])
    left = ffi.new("const char **", payload)
    lib.element_strip(head, left)
    key = bytes(ffi.buffer(left[0], head.payload_len))
    event = read(data, number)
    assert (head.kind, key) == (Kind.EVENT, event.key)
    stripped = bytes(ffi.buffer(head)) + data[HEAD.size : name_end] + key
    bare = replace(event, value=None, subkeys=None)
    assert read(stripped + bytes(-len(stripped) % 8), number) == bare


def test_an_element_as_on_the_page(shim: Shim) -> None:
    data = record(Kind.EVENT, b"session:42", name=b"expire", time_ms=1700000000123, bit=8)
    assert write(shim, data, b"5f0c9a-", 7) == b"1 5f0c9a-7 1700000000123 0 x 6 expire session:42"


@pytest.mark.parametrize("number", EDGES)
def test_numbers(shim: Shim, number: int) -> None:
    """All that a field of a record can hold, also what no server has."""
    element = write(shim, record(Kind.EVENT, b"k", name=b"e", time_ms=number), b"", number)
    assert element == b"1 %d %d 0 ? 1 e k" % (number, number)
    if number <= 2**31:
        for db in (-number, min(number, 2**31 - 1)):
            element = write(shim, record(Kind.EVENT, db=db), b"", 0)
            assert element == to_element(Event("0", 0, db, "?", b"", b""))


@pytest.mark.parametrize("kind", range(len(VALUE_TYPES) + 2))
@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("data", [None, b"", b"\0data "])
def test_types_of_values(shim: Shim, kind: int, before: int, data: bytes | None) -> None:
    head = VALUED.pack(12345, 3, kind, before, data is not None)
    check(shim, record(Kind.VALUED, head + b"key" + (data or b""), name=b"set", bit=3))


@pytest.mark.parametrize("bit", range(len(CLASS_LETTERS)))
def test_letters(shim: Shim, bit: int) -> None:
    check(shim, record(Kind.EVENT, b"key", name=b"set", bit=bit))


@pytest.mark.parametrize("bit", [len(CLASS_LETTERS), 255])
def test_a_class_that_nobody_knows(shim: Shim, bit: int) -> None:
    element = write(shim, record(Kind.EVENT, b"key", name=b"set", bit=bit), b"r-", 1)
    assert element == b"1 r-1 0 0 %b 3 set key" % UNKNOWN_CLASS.encode()


@pytest.mark.parametrize("length", [0, 1, 9, 10, 99, 100, 999, 1000, 70_000])
@pytest.mark.parametrize("count", [0, 1, 10, 1000])
def test_many_subkeys(shim: Shim, length: int, count: int) -> None:
    inner = record(Kind.EVENT, b"key", name=b"hset", bit=6)
    check(shim, subkeyed(inner, [b"f" * length] * min(count, 7_000_000 // (length + 1))))
