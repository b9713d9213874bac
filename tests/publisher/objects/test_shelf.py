"""The shelf, against a plain list of records."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.publisher import shelf as shelf_file
from keyspace_amqp.publisher.ledger import Ledger
from keyspace_amqp.publisher.shelf import Shelf
from keyspace_amqp.tables.stats import Stat

# Records as the shelf sees them: bytes of some length.
records = st.lists(st.binary(min_size=1, max_size=9), max_size=5)


@pytest.fixture(autouse=True, scope="module")
def short_runs() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shelf_file, "_RUN_BYTES", 16)
        yield


@given(st.lists(st.tuples(st.sampled_from(["put", "release", "drop"]), records)))
def test_records_leave_in_their_order(steps: list[tuple[str, list[bytes]]]) -> None:
    ledger = Ledger(lambda: 0.0, lambda: 0)
    shelf = Shelf(ledger)
    model: list[tuple[int, bytes]] = []
    number = dropped = 0
    for step, batch in steps:
        if step == "put":
            numbers = [number := number + 2 for _ in batch]
            shelf.put(b"".join(batch), numbers)
            model += zip(numbers, batch, strict=True)
        elif model:
            data, numbers_taken = shelf.take()
            count = min(1 + len(batch), len(numbers_taken))
            leaving, model = model[:count], model[count:]
            assert list(numbers_taken[:count]) == [number for number, _ in leaving]
            size = sum(len(record) for _, record in leaving)
            assert data[:size] == b"".join(record for _, record in leaving)
            (shelf.release if step == "release" else shelf.drop)(size, count)
            dropped += count * (step == "drop")
        assert shelf.count == len(model)
        assert shelf.bytes == sum(8 + len(record) for _, record in model)
    assert ledger.counts[Stat.DROPPED_QUEUE_FULL] == dropped
    assert ledger.counts[Stat.EVENTS_MATCHED] == number // 2
    assert bool(shelf.take()[0]) is bool(model)
    assert shelf.clear() == len(model)
    assert (shelf.count, shelf.bytes, shelf.take()[0]) == (0, 0, b"")


def test_single_records_share_a_run() -> None:
    """Otherwise each would take as much memory as an event as objects."""
    shelf = Shelf(Ledger(lambda: 0.0, lambda: 0))
    for number in range(4):
        shelf.put(b"r%d" % number, [number])
    assert shelf.take()[0] == b"r0r1r2r3"
