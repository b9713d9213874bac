"""The size of an entry, its form in the list, and how many entries fit."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp.fallback import from_element, to_element
from keyspace_amqp.message import EVENT_BYTES, Event, Value
from keyspace_amqp.publisher.entry import WAITING, Entry, element_of, fitting, size_of
from keyspace_amqp.values import replace
from tests.publisher.objects.parts import SIZE, make_entries, make_entry
from tests.publisher.simulated import event_of


@pytest.mark.parametrize(
    ("event", "size"),
    [
        (None, 0),
        (event_of(1, b"key"), EVENT_BYTES + len(b"del") + 3),
        (
            replace(event_of(1, b"k"), value=Value("string", 9, b"12345", False)),
            EVENT_BYTES + len(b"del") + 1 + 5,
        ),
        (
            replace(event_of(1, b"k"), value=Value("hash", 9, None, False)),
            EVENT_BYTES + len(b"del") + 1,
        ),
    ],
)
def test_the_size_counts_what_can_be_large(event: Event | None, size: int) -> None:
    assert Entry(event, 0.0).size == size


def test_a_new_entry_waits_in_memory() -> None:
    entry = Entry(event_of(1), 5.0)
    assert (entry.at, entry.state, entry.listed, entry.element) == (5.0, WAITING, False, None)


def test_the_size_of_several() -> None:
    assert size_of([]) == 0
    assert size_of(make_entries(3)) == 3 * SIZE


def test_an_element_that_was_read_is_used_as_it_was() -> None:
    """A trim compares it with the list byte by byte."""
    assert element_of(Entry(event_of(1), 0.0, b"as it was")) == b"as it was"
    assert element_of(Entry(None, 0.0, b"junk")) == b"junk"


def test_an_element_is_made_of_the_event() -> None:
    assert element_of(make_entry(1)) == to_element(event_of(1))
    assert from_element(element_of(make_entry(1))) == event_of(1)


def naive_fitting(sizes: list[int], size: int, limit: int) -> int:
    """One after the other, as long as those before are below the limit."""
    count = 0
    while count < len(sizes) and size + sum(sizes[:count]) < limit:
        count += 1
    return count


@example(sizes=[], size=0, limit=1)
@example(sizes=[100], size=0, limit=1)
@example(sizes=[100], size=1, limit=1)
@example(sizes=[1, 1], size=0, limit=1)
@example(sizes=[1, 100], size=0, limit=2)
@given(
    sizes=st.lists(st.integers(0, 5), max_size=8),
    size=st.integers(0, 20),
    limit=st.integers(1, 20),
)
def test_fitting_agrees_with_a_naive_loop(sizes: list[int], size: int, limit: int) -> None:
    entries = [make_entry(1, size=size) for size in sizes]
    assert fitting(entries, size, limit) == naive_fitting(sizes, size, limit)
