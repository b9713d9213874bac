"""Shared by the tests of single objects: a clock, entries by number, a ledger."""

from __future__ import annotations

from collections.abc import Iterable

from keyspace_amqp.message import EVENT_BYTES
from keyspace_amqp.publisher.entry import SENT, Entry, State
from keyspace_amqp.publisher.ledger import Ledger
from keyspace_amqp.publisher.memory import Memory
from tests.publisher.simulated import BEGIN_MS, event_of, number_of


class Clock:
    """A clock that only the test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def make_ledger(clock: Clock | None = None) -> Ledger:
    return Ledger(clock or Clock(), lambda: BEGIN_MS)


def make_entry(number: int, state: State = State.WAITING, *, size: int | None = None) -> Entry:
    """An entry of the event with this number; `size`: its bytes of memory."""
    entry = Entry(event_of(number), 1000.0)
    entry.state = state
    if size is not None:
        entry.size = size
    return entry


def make_entries(count: int, state: State = State.WAITING, *, first: int = 1) -> list[Entry]:
    return [make_entry(number, state) for number in range(first, first + count)]


def numbers_of(entries: Iterable[Entry]) -> list[int]:
    return [number_of(entry.event) for entry in entries if entry.event is not None]


def mark_sent(entries: Iterable[Entry]) -> None:
    """Changes the entries as Window.send does."""
    for entry in entries:
        entry.state = SENT


def lose_link(memory: Memory, in_flight: Iterable[Entry]) -> None:
    """Calls memory.link_lost; Window.close has changed the states before that."""
    entries = list(in_flight)
    for entry in entries:
        entry.state = State.WAITING
    memory.link_lost(entries)


# Bytes of memory of an entry that make_entry makes: the name `del` and the key `k`.
SIZE = EVENT_BYTES + 4
