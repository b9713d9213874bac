"""The worlds of worlds.py, with sequences of steps that hypothesis finds and shortens.

`pytest -k "not test_world"` runs the examples only.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.publisher.simulated import set_limit
from tests.publisher.worlds import (
    LIMITS,
    ClusterWorld,
    FussyWorld,
    ImportWorld,
    LosslessWorld,
    NarrowWorld,
    SharedWorld,
    SlotsWorld,
    World,
    stories,
)


@pytest.mark.parametrize(
    "kind",
    [LosslessWorld, ClusterWorld, NarrowWorld, FussyWorld, ImportWorld, SharedWorld, SlotsWorld],
)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), story=stories)
def test_world(kind: type[World], seed: int, story: list[int]) -> None:
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        for name, values in LIMITS.items():
            set_limit(patch, name, chance.choice(values))
        world = kind(chance)
        world.turn()
        for number in story:
            world.step(random.Random(number))
        if chance.random() < 0.7:
            world.heal()
        else:
            world.stop(chance)
