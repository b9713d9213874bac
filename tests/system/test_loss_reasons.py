"""A node with several lists: each loss is counted with the reason of its own list."""

from __future__ import annotations

from keyspace_amqp.cluster.slots import key_of
from keyspace_amqp.config import Config
from keyspace_amqp.publisher.publisher import Publisher
from keyspace_amqp.tables.parameters import PARAMETERS
from keyspace_amqp.tables.stats import Stat

ONE, TWO, THREE = (key_of(slot) for slot in (1, 2, 3))


def publisher_with(lengths: dict[bytes, int]) -> Publisher:
    publisher = Publisher(
        Config.from_values([s.default.encode() for s in PARAMETERS]), lambda: 0.0, lambda: 0
    )
    publisher.set_role(primary=True, loading=False)
    publisher.lists_found(lengths)
    return publisher


def test_a_flush_is_the_reason_for_all_lists() -> None:
    publisher = publisher_with({ONE: 5, TWO: 7})
    publisher.touched(b"flushdb")
    publisher.lists_found({ONE: 0, TWO: 0})
    assert publisher.counts[Stat.DROPPED_FALLBACK_FLUSHED] == 12
    assert publisher.counts[Stat.DROPPED_FALLBACK_REMOVED] == 0


def test_what_happens_to_one_list_is_no_reason_for_another() -> None:
    publisher = publisher_with({ONE: 5, TWO: 7, THREE: 11})
    publisher.touched(b"evicted", ONE)
    publisher.touched(b"expired", TWO)
    publisher.lists_found({THREE: 0})
    publisher.lists_found({TWO: 0, ONE: 0})
    assert publisher.counts[Stat.DROPPED_FALLBACK_EVICTED] == 5
    assert publisher.counts[Stat.DROPPED_FALLBACK_EXPIRED] == 7
    assert publisher.counts[Stat.DROPPED_FALLBACK_REMOVED] == 11
