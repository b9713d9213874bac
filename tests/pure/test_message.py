"""Events as message bodies and as elements of the fallback list."""

from __future__ import annotations

import pika
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp.fallback import from_element, to_element
from keyspace_amqp.message import Event, body
from keyspace_amqp.tables.events import CLASS_LETTERS
from keyspace_amqp.values import replace

EXPIRED = Event("5f0c9a-7", 1700000000123, 0, "x", b"expire", b"session:42")

AWKWARD = (b"", b" ", b"\n", b"a b", b"a\nb\n", b"1 x 2", b"\x00", b"\xff\xfe", b"k" * 70_000)
some_bytes = st.one_of(st.binary(max_size=40), st.sampled_from(AWKWARD))
events = st.builds(
    Event,
    message_id=st.text("0123456789abcdef-", min_size=1, max_size=40),
    time_ms=st.integers(0, 2**63 - 1),
    db=st.integers(0, 2**31 - 1),
    letter=st.sampled_from(CLASS_LETTERS),
    name=some_bytes,
    key=some_bytes,
)


def test_body_of_the_example() -> None:
    assert body(EXPIRED) == b"0\nexpire\nsession:42"


@given(events)
def test_body_gives_the_key_whole(event: Event) -> None:
    """A consumer splits the body at its first two newlines; names of events have none."""
    event = replace(event, name=event.name.replace(b"\n", b"_"))
    db, name, key = body(event).split(b"\n", 2)
    assert (int(db), name, key) == (event.db, event.name, event.key)


@pytest.mark.parametrize("key", [b"", b"\x00", b"\n", b"a\nb\n", b"\xff\xfe", b" a "])
def test_body_adds_nothing_to_awkward_keys(key: bytes) -> None:
    assert body(replace(EXPIRED, db=15, key=key)) == b"15\nexpire\n" + key


@given(events)
@example(Event("a-1", 0, 0, "?", b"with blanks 3 x", b" \n\x00\xff"))
def test_an_element_brings_the_event_back(event: Event) -> None:
    assert from_element(to_element(event)) == event


@given(events, events)
def test_different_events_have_different_elements(one: Event, other: Event) -> None:
    assert (to_element(one) == to_element(other)) == (one == other)


def test_an_element_can_be_read_by_a_person() -> None:
    assert to_element(EXPIRED) == b"1 5f0c9a-7 1700000000123 0 x 6 expire session:42"


def test_letters_stand_where_the_bits_of_the_classes_are() -> None:
    """REDISMODULE_NOTIFY_*: from K (1 << 0) to n (1 << 14), as in redismodule.h."""
    assert {letter: CLASS_LETTERS.index(letter) for letter in "g$lshzxetmdn"} == {
        "g": 2, "$": 3, "l": 4, "s": 5, "h": 6, "z": 7,
        "x": 8, "e": 9, "t": 10, "m": 11, "d": 13, "n": 14,
    }  # fmt: skip


# ---- what somebody else has put into the list ---------------------------------


@given(st.binary(max_size=60))
@example(b"")
@example(b"1 ")
def test_garbage_gives_none_and_raises_nothing(element: bytes) -> None:
    event = from_element(element)
    assert event is None or element.startswith(b"1 ")


GARBAGE = [
    b"",
    b"hello",
    b"      ",
    b"0\nexpire\nsession:42",
    b"\xff" * 100,
    b"2 5f0c9a-7 1700000000123 0 x 6 expire session:42",  # another form
    b" 1 5f0c9a-7 1700000000123 0 x 6 expire session:42",
    b"1 5f0c9a-7 soon 0 x 6 expire session:42",
    b"1 5f0c9a-7 1700000000123 zero x 6 expire session:42",
    b"1 5f0c9a-7 1700000000123 0 x six expire session:42",
    b"1 5f0c9a-7 1700000000123 0 x 5 expire session:42",
    b"1 5f0c9a-7 1700000000123 0 x 7 expire session:42",
    b"1 5f0c9a-7 1700000000123 0 x -1 expire session:42",
    b"1 5f0c9a-7 1700000000123 0 x -11 expire session:42",  # a blank, counted from the end
    b"1 5f0c9a-7 1700000000123 0 x 600 expire session:42",
    b"1 5f0c9a-7 1700000000123 0 x 6 expire",
    b"1 5f0c9a-7 1700000000123 0 x 6.0 expire session:42",
    b"1 5f0c9a-\xc3\xa9 1700000000123 0 x 6 expire session:42",
    b"1 5f0c9a-7 1700000000123 0 \xff 6 expire session:42",
    # more digits than Python likes to read
    b"1 5f0c9a-7 " + b"9" * 5000 + b" 0 x 6 expire session:42",
    b"1 5f0c9a-7 1700000000123 0 x " + b"9" * 5000 + b" expire session:42",
]


@pytest.mark.parametrize("element", GARBAGE, ids=range(len(GARBAGE)))
def test_elements_that_are_no_events(element: bytes) -> None:
    assert from_element(element) is None


@given(events)
def test_an_element_cut_off_before_its_key_is_no_event(event: Event) -> None:
    element = to_element(event)
    head = len(element) - len(event.key)
    for end in {head - 1, head - 2, head // 2, 1, 0}:
        assert from_element(element[:end]) is None


@given(events, st.data())
def test_a_damaged_element_raises_nothing(event: Event, data: st.DataObject) -> None:
    element = bytearray(to_element(event)[:200])
    at = data.draw(st.integers(0, len(element) - 1))
    element[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    found = from_element(bytes(element))
    assert found is None or isinstance(found, Event)


UNSENDABLE = {
    "id too long": b"1 " + b"i" * 256 + b" 1700000000123 0 x 6 expire session:42",
    "no id": b"1  1700000000123 0 x 6 expire session:42",
    "time before 1970": b"1 5f0c9a-7 -1000 0 x 6 expire session:42",
    "time too late": b"1 5f0c9a-7 99999999999999999999999 0 x 6 expire session:42",
    "no such db": b"1 5f0c9a-7 1700000000123 -1 x 6 expire session:42",
    "db too large": b"1 5f0c9a-7 1700000000123 2147483648 x 6 expire session:42",
    "two classes": b"1 5f0c9a-7 1700000000123 0 xe 6 expire session:42",
}


@pytest.mark.parametrize("element", UNSENDABLE.values(), ids=UNSENDABLE)
def test_an_event_that_no_message_can_carry_is_no_event(element: bytes) -> None:
    """It would fail at every attempt, and with it the events behind it."""
    assert from_element(element) is None


@given(st.builds(replace, events, message_id=st.just("i" * 255)))
def test_what_an_element_brings_back_can_be_sent(event: Event) -> None:
    """At the bounds too: pika writes the properties."""
    found = from_element(to_element(event))
    assert found is not None
    pika.BasicProperties(message_id=found.message_id, timestamp=found.time_ms // 1000).encode()
