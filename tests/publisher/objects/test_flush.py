"""A flush: its times, and the reasons for which it waits."""

from __future__ import annotations

import itertools

import pytest

from keyspace_amqp.publisher.actions import FlushMode
from keyspace_amqp.publisher.flush import MARGIN, STOP_RESERVE, STORE_GRACE, Flush, Outlook
from keyspace_amqp.values import replace

STORE, LEAVE, DRAIN = FlushMode
NOW, SECONDS = 1000.0, 5.0
UNTIL = NOW + SECONDS - MARGIN

NOTHING = Outlook(*[False] * 8)


def flush_of(mode: FlushMode, seconds: float = SECONDS) -> Flush:
    return Flush(7, mode, NOW, seconds)


@pytest.mark.parametrize("mode", FlushMode)
def test_only_a_save_does_not_end_the_worker(mode: FlushMode) -> None:
    flush = flush_of(mode)
    assert (flush.id, flush.mode) == (7, mode)
    assert flush.ends == (mode is not STORE)


@pytest.mark.parametrize(
    ("mode", "grace_until"),
    [
        (STORE, NOW + STORE_GRACE),
        (LEAVE, UNTIL - STOP_RESERVE),
        (DRAIN, UNTIL - STOP_RESERVE),
    ],
)
def test_the_time_for_confirms(mode: FlushMode, grace_until: float) -> None:
    flush = flush_of(mode)
    assert flush.in_grace(grace_until - 0.001)
    assert flush.wakes_at(grace_until - 0.001) == grace_until
    assert not flush.in_grace(grace_until)
    assert flush.wakes_at(grace_until) == UNTIL


@pytest.mark.parametrize("mode", FlushMode)
@pytest.mark.parametrize("seconds", [0.0, MARGIN / 2, MARGIN])
def test_with_too_little_time_a_flush_ends_at_once(mode: FlushMode, seconds: float) -> None:
    flush = flush_of(mode, seconds)
    assert flush.until == NOW
    assert not flush.in_grace(NOW)
    assert flush.is_done(replace(NOTHING, memory=True, can_store=True), NOW)


@pytest.mark.parametrize("mode", FlushMode)
def test_the_time_for_confirms_ends_with_the_flush(mode: FlushMode) -> None:
    """Also where the whole time is shorter than it would be."""
    flush = flush_of(mode, MARGIN + STORE_GRACE / 2)
    assert not flush.in_grace(flush.until)


# Modes, what the publisher can still do, and: True if the flush is done before its time.
# Words: the fields of Outlook that are true.
TABLE = [
    # Nothing left to do.
    ("STORE LEAVE DRAIN", "", True),
    ("STORE LEAVE DRAIN", "can_store may_deliver connected", True),
    ("STORE LEAVE", "listed may_deliver connected", True),  # safe in the list
    # Memory is stored, delivered or left for the file.
    ("STORE LEAVE DRAIN", "memory can_store", False),
    ("STORE LEAVE DRAIN", "memory may_deliver", False),
    ("STORE LEAVE DRAIN", "memory job", False),
    ("STORE LEAVE DRAIN", "memory", True),
    ("LEAVE DRAIN", "memory to_file", True),
    # A stop that would lose what is in memory waits for the broker.
    ("LEAVE DRAIN", "memory connected", False),
    ("LEAVE DRAIN", "memory connected to_file", True),
    ("STORE", "memory connected", True),
    # A job under way may be a push; its replies are waited for.
    ("STORE LEAVE DRAIN", "job", False),
    # Confirmed elements are removed before the list is left to the next load.
    ("STORE LEAVE DRAIN", "trimmable can_store", False),
    ("STORE LEAVE DRAIN", "trimmable", True),
    # Nothing keeps the list.
    ("DRAIN", "listed may_deliver", False),
    ("DRAIN", "listed", True),
    ("DRAIN", "listed connected", True),
]


@pytest.mark.parametrize(
    ("mode", "words", "done"),
    [(FlushMode[mode], words, done) for modes, words, done in TABLE for mode in modes.split()],
)
def test_a_flush_is_done_when_nothing_can_be_done(mode: FlushMode, words: str, done: bool) -> None:
    outlook = replace(NOTHING, **dict.fromkeys(words.split(), True))
    assert flush_of(mode).is_done(outlook, UNTIL - 0.001) == done


@pytest.mark.parametrize("mode", FlushMode)
def test_no_flush_goes_on_after_its_time(mode: FlushMode) -> None:
    """The publisher says `may_deliver` only in the time for confirms, which is over."""
    for values in itertools.product([False, True], repeat=8):
        outlook = replace(Outlook(*values), may_deliver=False)
        assert flush_of(mode).is_done(outlook, UNTIL)
