"""Messages that the shim lays out: where it ends, and that it stays within its room.

tests/worker/test_parcels.py compares every byte with the messages of broker/frames.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fix_shim import Shim
from tests.worker.fakes import event, valued
from tests.worker.test_parcels import listed

GUARD = b"\xa5" * 64
PARTS = (b"first ", b" second run-", b" third ")


def write(
    shim: Shim, data: bytes, *, size: int | None = None, most: int = 100, room: int = 100_000,
    body_max: int = 50_000, number: int = 1000,
) -> tuple[int, int, bytes, list[int]]:  # fmt: skip
    """Returns the events, the bytes of their records, the messages, and the runs of times."""
    ffi, lib = shim.ffi, shim.lib
    out, times = ffi.new("char[]", room + len(GUARD)), ffi.new("uint64_t[]", 2 * most)
    ffi.buffer(out)[room:] = GUARD
    # Exactly as long as the records, so that a sanitizer sees a look behind them.
    records = ffi.new("char[]", len(data))
    ffi.buffer(records)[:] = data
    parts = [ffi.from_buffer(part) for part in PARTS]
    messages = ffi.new("messages_t *", {
        "first_len": len(PARTS[0]), "second_len": len(PARTS[1]), "third_len": len(PARTS[2]),
        "body_max": body_max, "number": number, "most": most, "room": room,
    })  # fmt: skip
    messages.first, messages.second, messages.third = parts
    messages.out, messages.times = out, times
    lib.messages_write(messages, records, len(data) if size is None else size)
    assert bytes(ffi.buffer(out)[room:]) == GUARD
    assert messages.len <= room
    runs = ffi.unpack(times, 2 * messages.runs)
    return messages.count, messages.size, ffi.buffer(out, messages.len)[:], runs


def message(key: bytes, number: int, time_ms: int = 7, name: bytes = b"set", db: int = 0) -> bytes:
    body = b"%d\n%b\n%b" % (db, name, key)
    size, seconds = len(body), time_ms // 1000
    sizes = size.to_bytes(8, "big"), size.to_bytes(4, "big")
    head = PARTS[0] + sizes[0] + PARTS[1] + b"%d" % number + seconds.to_bytes(8, "big")
    return head + PARTS[2] + sizes[1] + body + b"\xce"


def test_messages_and_times(shim: Shim) -> None:
    data = [event(b"a", time_ms=999), event(b"bc", b"del", time_ms=999, db=15),
            event(b"", time_ms=1000), event(b"d", time_ms=999)]  # fmt: skip
    count, size, out, runs = write(shim, b"".join(data), number=9_999)
    assert (count, size) == (4, len(b"".join(data)))
    assert out == b"".join([
        message(b"a", 9_999, 999), message(b"bc", 10_000, 999, b"del", 15),
        message(b"", 10_001, 1000), message(b"d", 10_002, 999),
    ])  # fmt: skip
    assert runs == [2, 999, 3, 1000, 4, 999]


@pytest.mark.parametrize(
    "last",
    [
        valued(b"k", 1, b"v"),
        listed(event(b"k")),
        event(b"\xff"),
        event(b"k", b"\xff"),
        event(b"k", db=-1),
        event(b"k" * 101),
    ],
)
def test_it_ends_before_an_event_that_is_not_plain(shim: Shim, last: bytes) -> None:
    count, size, out, runs = write(shim, event(b"a") + last + event(b"b"), body_max=106)
    assert (count, size) == (1, len(event(b"a")))
    assert out == message(b"a", 1000)
    assert runs == [1, 7]
    assert write(shim, last, body_max=106)[:3] == (0, 0, b"")


def test_the_longest_body(shim: Shim) -> None:
    assert write(shim, event(b"k" * 100), body_max=106)[0] == 1


@pytest.mark.parametrize("most", [1, 2, 3])
def test_the_most(shim: Shim, most: int) -> None:
    data = event(b"a") * 3
    assert write(shim, data, most=most)[:2] == (most, most * len(event(b"a")))
    size = (most - 1) * len(event(b"a")) + 1
    assert write(shim, data, size=size)[:2] == (most, most * len(event(b"a")))


@given(
    keys=st.lists(st.binary(max_size=30), min_size=1, max_size=5),
    room=st.integers(0, 600),
    number=st.integers(0, 2**64 - 10),
)
def test_the_room(shim: Shim, keys: list[bytes], room: int, number: int) -> None:
    """Nothing is written behind it, and what is written is whole."""
    data = b"".join(event(key, db=2**31 - 1) for key in keys)
    count, _, out, _ = write(shim, data, room=room, number=number)
    expected = [message(key, number + place, db=2**31 - 1) for place, key in enumerate(keys)]
    assert out == b"".join(expected[:count])


@given(st.binary(max_size=12) | st.text(max_size=5).map(str.encode))
def test_text_is_what_python_decodes(shim: Shim, key: bytes) -> None:
    try:
        key.decode()
    except UnicodeDecodeError:
        assert write(shim, event(key))[0] == 0
    else:
        assert write(shim, event(key))[0] == 1


@pytest.mark.parametrize(
    "edge",
    [b"\xc1\xbf", b"\xc2\x80", b"\xdf\xbf", b"\xe0\x9f\xbf", b"\xe0\xa0\x80", b"\xed\x9f\xbf",
     b"\xed\xa0\x80", b"\xee\x80\x80", b"\xf0\x8f\xbf\xbf", b"\xf0\x90\x80\x80",
     b"\xf4\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xc2", b"\xe1\x80",
     b"\xf1\x80\x80", b"\xf1\x80\x80\xc0", b"\x80"],
)  # fmt: skip
@pytest.mark.parametrize("before", [b"", b"1234567"])
def test_edges_of_utf8(shim: Shim, edge: bytes, before: bytes) -> None:
    key = before + edge
    try:
        valid = bool(key.decode()) or True
    except UnicodeDecodeError:
        valid = False
    assert write(shim, event(key))[0] == valid
