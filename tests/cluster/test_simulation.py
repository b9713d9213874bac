"""The simulated cluster, through changes that hypothesis chooses."""

from __future__ import annotations

import random

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from keyspace_amqp.cluster import lists as lists_module
from tests.cluster.simulation import PATCHES, Simulation

NO_SHRINK = [phase for phase in Phase if phase is not Phase.shrink]


def test_each_list_is_known_to_the_node_of_its_slot() -> None:
    """Through more than three thousand changes of the topology."""
    changes = []

    @settings(max_examples=120, deadline=None, phases=NO_SHRINK)
    @given(seed=st.integers(0, 2**64), count=st.integers(100, 300))
    def world(seed: int, count: int) -> None:
        chance = random.Random(seed)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in PATCHES.items():
                patch.setattr(lists_module, name, value)
            sim = Simulation(chance)
            for _ in range(count):
                sim.step(chance)
            changes.append(sim.changes)
            sim.rest()

    world()
    print(f"{sum(changes)} changes of the topology in {len(changes)} worlds")
    assert sum(changes) >= 3000
