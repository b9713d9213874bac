"""The form of replies: what the handler writes and the shim reads."""

from __future__ import annotations

import re
import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.commands import CommandError, encode


def decode(data: bytes) -> Any:
    """Reads an encoded reply as its description says: per item a tag, a signed
    64-bit number, and for texts so many bytes and a NUL."""

    def item(at: int) -> tuple[Any, int]:
        tag = data[at : at + 1]
        (number,) = struct.unpack_from("=q", data, at + 1)
        at += 9
        if tag == b":":
            return number, at
        if tag == b"_":
            assert number == 0
            return None, at
        if tag in (b"*", b"%"):
            items = []
            for _ in range(number * (2 if tag == b"%" else 1)):
                value, at = item(at)
                items.append(value)
            if tag == b"*":
                return items, at
            return dict(zip(items[::2], items[1::2], strict=True)), at
        assert tag in (b"$", b"+"), tag
        text = data[at : at + number]
        assert data[at + number : at + number + 1] == b"\0"
        return (text if tag == b"$" else text.decode()), at + number + 1

    value, end = item(0)
    assert end == len(data), "something follows the reply"
    return value


replies = st.recursive(
    st.one_of(
        st.none(),
        st.integers(-(2**63), 2**63 - 1),
        st.binary(max_size=20),
        st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.binary(max_size=9), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(replies)
def test_a_reply_can_be_read_back(reply: Any) -> None:
    assert decode(encode(reply)) == reply


def test_the_form_of_each_kind() -> None:
    assert encode(-2) == b":" + struct.pack("=q", -2)
    assert encode(None) == b"_" + bytes(8)
    assert encode("OK") == b"+" + struct.pack("=q", 2) + b"OK\0"
    assert encode(b"\0\xff") == b"$" + struct.pack("=q", 2) + b"\0\xff\0"
    assert encode([]) == b"*" + bytes(8)
    assert encode({b"a": 1}) == b"%" + struct.pack("=q", 1) + encode(b"a") + encode(1)


@given(st.text())
def test_an_error_is_one_line(text: str) -> None:
    data = encode(CommandError(text))
    assert data[:1] == b"-"
    line = data[9:-1]
    assert not set(b"\r\n\0") & set(line)
    # A code comes first: that of the text, or ERR.
    assert line.startswith(b"ERR ") or re.match(rb"[A-Z]{2,} ", line)


def test_an_error_with_bytes_that_are_no_utf_8() -> None:
    text = b"mask \xff".decode("utf-8", "surrogateescape")
    assert encode(CommandError(text))[9:] == b"ERR mask \\udcff\0"
