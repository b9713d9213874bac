"""The form of messages, without servers: routing keys, elements of the list, formats."""

from __future__ import annotations

import base64
import json
import pathlib
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.fallback import from_element, to_element
from keyspace_amqp.message import Event, Format, Subkeys, Value
from keyspace_amqp.values import replace

PLAIN = replace(DEFAULTS, events="A")
FORMATS = ("text", "json", "cloudevents", "cloudevents-structured")
PREFIXES = ("cloudEvents:", "cloudEvents_", "ce-")


def form(node: str = "here:6379", **changed: Any) -> Format:
    return Format(replace(PLAIN, **changed), node)


def event(key: bytes = b"session:42:x", name: bytes = b"expired", **more: Any) -> Event:
    return Event(**({"message_id": "a1-7", "time_ms": 1_700_000_000_123, "db": 3, "letter": "x",
                     "name": name, "key": key} | more))  # fmt: skip


# ---- routing keys ------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "key", "expected"),
    [
        ("redis.{db}.{event}.{class}", b"a", b"redis.3.expired.expired"),
        ("{node}", b"a", b"here:6379"),
        ("{key}", b"session:42:x", b"session:42:x"),
        ("{key:1}-{key:2}-{key:3}-{key:4}", b"session:42:x", b"session-42-x-"),
        ("{key:2}", b"a:b:c:d", b"b"),
        ("{key:*}", b"session:42:x", b"session.42.x"),
        ("{key:*}", b"a.b:c", b"a%2Eb.c"),
        ("{key}", b"a.b*c#d%e f\xff\n", b"a%2Eb%2Ac%23d%25e%20f%FF%0A"),
        ("{{{key:1}}}", b"a", b"{a}"),
        ("fixed", b"a", b"fixed"),
        ("", b"a", b""),
    ],
)
def test_a_routing_key(template: str, key: bytes, expected: bytes) -> None:
    made = form(routing_key=template)
    assert made.routing_key(event(key)) == expected
    assert (made.fixed_key == expected) is ("{" not in template)


@given(st.binary(max_size=2000))
@example(b"k" * 255)
@example(b"k" * 256)
@example(b"." * 85)
def test_no_routing_key_is_too_long(key: bytes) -> None:
    """A key that is cut stays different from others, and is counted."""
    made = form(routing_key="{key}")
    first, other = made.routing_key(event(key)), made.routing_key(event(key + b"x" * 256))
    assert len(first) <= 255
    assert len(other) == 255
    assert first != other
    assert made.cut == 1 + (len(first) == 255 and b"~" in first[-17:] and len(key) > 84)


# ---- elements of the list ----------------------------------------------------


values = st.one_of(
    st.none(),
    st.builds(
        Value,
        type=st.sampled_from(["string", "hash"]),
        length=st.integers(10_000, 2**40),
        data=st.one_of(st.none(), st.binary(max_size=50)),
        before=st.booleans(),
    ),
)
words = st.one_of(
    st.binary(max_size=50), st.sampled_from([b"", b" ", b"1 2 3", b" \n ", b"1:a ", b"3 1 1 1:a "])
)
subkeys = st.one_of(
    st.none(), st.builds(Subkeys.of, names=st.lists(words, max_size=4),
                         total=st.integers(4, 2**31)),
)  # fmt: skip


@given(words, words, values, subkeys)
def test_an_element_keeps_all_of_an_event(
    name: bytes, key: bytes, value: Value | None, subkeys: Subkeys | None
) -> None:
    whole = event(key, name, value=value, subkeys=subkeys)
    element = to_element(whole)
    assert from_element(element) == whole
    form = b"1" if value is None else b"2"
    assert element.split()[0] == (form if subkeys is None else b"3")


@given(words, words, values, subkeys, st.data())
def test_a_damaged_element_is_an_event_or_none(
    name: bytes, key: bytes, value: Value | None, subkeys: Subkeys | None, data: st.DataObject
) -> None:
    element = bytearray(to_element(event(key, name, value=value, subkeys=subkeys)))
    place = data.draw(st.integers(0, len(element) - 1))
    element[place] = data.draw(st.integers(0, 255))
    found = from_element(bytes(element))
    if found is not None:
        for shape in FORMATS:
            made = form(format=shape, headers=True, routing_key="{event}.{key:*}")
            made.content_of(made.body(found))
            made.routing_key(found)
            assert made.headers is not None
            made.headers(found)


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        (b"2 a1-7 1 3 x 2 3 string 9 0 4 ab", b"2 a1-7 1 3 x 2 4 string 9 0 4 ab"),
        (b" 9 0 4 ", b" 9 0 5 "),
        (b" 9 0 4 ", b" 9 0 -2 "),
        (b" 9 0 4 ", b" 3 0 4 "),
        (b" 9 0 4 ", b" 9 0 99 "),
        (b"2 a1-7", b"3 a1-7"),
        (b"2 a1-7", b"4 a1-7"),
    ],
)
def test_lengths_of_an_element_that_do_not_agree(right: bytes, wrong: bytes) -> None:
    element = b"2 a1-7 1 3 x 2 3 string 9 0 4 ab key data"
    found = from_element(element)
    assert found is not None
    assert (found.name, found.key) == (b"ab", b"key")
    assert found.value == Value("string", 9, b"data", before=False)
    assert right in element
    assert from_element(element.replace(right, wrong)) is None


# ---- formats -----------------------------------------------------------------


@pytest.mark.parametrize("shape", FORMATS)
@given(words, words)
@example(b"set", b"\xff")
@example(b"set", "\u00fc".encode())
@example(b"set", "\u20ac".encode()[:2])
@example(b"\xff", b"key")
def test_the_content_is_what_the_body_is(shape: str, name: bytes, key: bytes) -> None:
    """A consumer that decodes text as it is told to does not fail over any key."""
    made = form(format=shape)
    body = made.body(event(key, name))
    kind, encoding = made.content_of(body)
    try:
        body.decode()
    except UnicodeDecodeError:
        assert shape == "text"
        assert (kind, encoding) == ("application/octet-stream", "binary")
    else:
        assert encoding is None
        assert kind == {"text": "text/plain", "cloudevents-structured":
                        "application/cloudevents+json"}.get(shape, "application/json")  # fmt: skip


@given(st.integers(0, 2**63 - 1))
@example(253_402_300_800_000)
@example(2**63 - 1)
def test_a_cloudevent_of_any_time(time_ms: int) -> None:
    """Any client can push an element with any time."""
    made = form(format="cloudevents").headers
    assert made is not None
    whole = event(time_ms=time_ms)
    is_date = time_ms < 253_402_300_800_000
    assert ("cloudEvents:time" in made(whole)) is is_date
    structured = json.loads(form(format="cloudevents-structured").body(whole))
    assert ("time" in structured) is is_date


@given(words, words, values, subkeys)
def test_a_structured_cloudevent_has_what_the_binary_one_has(
    name: bytes, key: bytes, value: Value | None, subkeys: Subkeys | None
) -> None:
    whole = event(key, name, value=value, subkeys=subkeys)
    structured = form(format="cloudevents-structured")
    item = json.loads(structured.body(whole))
    assert structured.headers is None
    assert item.pop("data") == json.loads(form(format="json").body(whole))
    assert item.pop("datacontenttype") == "application/json"
    for prefix in PREFIXES:
        headers = form(format="cloudevents", cloudevents_prefix=prefix).headers
        assert headers is not None
        shown = {f"{prefix}{attribute}": value for attribute, value in item.items()}
        if prefix == "ce-":
            shown["ce-datacontenttype"] = "application/json"
        assert headers(whole) == shown


def test_a_prefix_is_for_cloudevents_only() -> None:
    for shape in FORMATS:
        made = form(format=shape, cloudevents_prefix="ce-")
        assert (made.headers is not None) is (shape == "cloudevents")


@given(words, words, values, st.integers(0, 2**63 - 1))
def test_json_tells_all(name: bytes, key: bytes, value: Value | None, time_ms: int) -> None:
    text = form(format="json").body(event(key, name, value=value, time_ms=time_ms))
    item = json.loads(text)
    shown = item["key"].encode() if "key" in item else base64.b64decode(item["key_base64"])
    assert shown == key
    assert ("key" in item) != ("key_base64" in item)
    assert (item["db"], item["class"], item["id"]) == (3, "expired", "a1-7")
    assert item["time_ms"] == time_ms
    assert ("value" in item) is (value is not None)
    if value is not None:
        assert item["value"]["length"] == value.length
        assert item["value"]["before"] is value.before
        assert ("cut" in item["value"]) is (value.data is not None)


def test_a_cut_text_is_still_text() -> None:
    cut = Value("string", 6, "aé€".encode()[:5], before=False)
    item = json.loads(form(format="json").body(event(value=cut)))
    assert item["value"]["data"] == "aé"
    assert item["value"]["cut"] is True
    binary = Value("string", 9, b"a\xff\xfe", before=True)
    item = json.loads(form(format="json").body(event(value=binary)))
    assert base64.b64decode(item["value"]["data_base64"]) == b"a\xff\xfe"


# ---- subkeys ---------------------------------------------------------------------


PLAIN_ELEMENT = b"1 a1-7 1 3 h 4 hset key"


def test_an_element_with_subkeys_can_be_read_by_a_person() -> None:
    whole = event(b"user:42", b"hset", subkeys=Subkeys.of((b"name", b"e mail"), 5))
    assert to_element(whole).startswith(b"3 5 2 4:name 6:e mail 1 ")


@pytest.mark.parametrize(
    "damaged",
    [
        b"3 2 2 1:a " + PLAIN_ELEMENT,  # a subkey is missing
        b"3 1 1 2:a " + PLAIN_ELEMENT,
        b"3 1 1 9999:a " + PLAIN_ELEMENT,
        b"3 1 1 1:a_" + PLAIN_ELEMENT,  # no blank behind it
        b"3 1 1 -1:a " + PLAIN_ELEMENT,
        b"3 1 1 +1:a " + PLAIN_ELEMENT,
        b"3 1 -1 1:a " + PLAIN_ELEMENT,
        b"3 1 2 1:a 1:b " + PLAIN_ELEMENT,  # more than there are
        b"3 x 1 1:a " + PLAIN_ELEMENT,
        b"3 1 999999999999 1:a " + PLAIN_ELEMENT,
        b"3 1 1 1:a",
        b"3 1 1 1:a ",
        b"3 1 1",
        b"3 ",
        b"3 1 1 1:a 3 1 1 1:b " + PLAIN_ELEMENT,
    ],
)
def test_subkeys_of_an_element_that_do_not_agree(damaged: bytes) -> None:
    found = from_element(b"3 1 1 1:a " + PLAIN_ELEMENT)
    assert found is not None
    assert (found.key, found.subkeys) == (b"key", Subkeys.of((b"a",), 1))
    assert from_element(damaged) is None


@pytest.mark.parametrize("shape", ["json", "cloudevents", "cloudevents-structured"])
@pytest.mark.parametrize(
    ("names", "total", "shown"),
    [
        ([b"a", b"b"], 2, {"names": ["a", "b"], "total": 2, "cut": False}),
        ([b"a", b"a"], 9, {"names": ["a", "a"], "total": 9, "cut": True}),
        ([b"", "ä\n".encode()], 2, {"names": ["", "ä\n"], "total": 2, "cut": False}),
        ([b"a", b"\xff"], 2, {"names_base64": ["YQ==", "/w=="], "total": 2, "cut": False}),
        ([], 3, {"names": [], "total": 3, "cut": True}),
    ],
)
def test_subkeys_in_json(shape: str, names: list[bytes], total: int, shown: Any) -> None:
    whole = event(b"k", b"hset", subkeys=Subkeys.of(names, total))

    def data(of: Event) -> Any:
        item = json.loads(form(format=shape).body(of))
        return item["data"] if shape == "cloudevents-structured" else item

    assert data(whole)["subkeys"] == shown
    assert "subkeys" not in data(event(b"k"))
    assert form().body(whole) == b"3\nhset\nk"


def test_the_memory_of_subkeys_and_values() -> None:
    """The memory is that of the names, and that of the length of each name."""
    names = Subkeys.of((b"a" * 100, b"b" * 200), 2)
    whole = event(b"k", b"hset", value=Value("string", 50, b"v" * 50, before=False), subkeys=names)
    assert whole.more_bytes == 50 + 104 + 204
    assert replace(whole, subkeys=None).more_bytes == 50
    assert event(b"k").more_bytes == 0


# ---- the examples of the page ----------------------------------------------------


@pytest.mark.parametrize("shape", ["json", "cloudevents-structured"])
def test_the_examples_of_the_page(shape: str) -> None:
    page = pathlib.Path(__file__).parents[2] / "docs" / "messages.md"
    whole = Event("a17796f8171ce8be-13", 1795371986069, 0, "$", b"set", b"user:42")
    example = form(node="redis-1:6379", format=shape).body(whole).decode()
    assert f"\n{example}\n" in page.read_text()
