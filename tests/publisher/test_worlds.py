"""The worlds of worlds.py, with sequences of steps that hypothesis finds and shortens.

`pytest -k "not test_world"` runs the examples only.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.publisher.calm_world import CalmWorld
from tests.publisher.outbox_worlds import OutboxWorld, SharedOutboxWorld, SlotsOutboxWorld
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
    [
        LosslessWorld,
        CalmWorld,
        ClusterWorld,
        NarrowWorld,
        FussyWorld,
        ImportWorld,
        SharedWorld,
        SlotsWorld,
        OutboxWorld,
        SharedOutboxWorld,
        SlotsOutboxWorld,
    ],
)
@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32), story=stories, expresses=st.booleans())
# In a cluster: a demotion between a push and its result.
@example(seed=171, story=[322741, 965231, 278573], expresses=False)
# In a world of slots: a demotion while events are being pushed that are newer than recent pushes.
@example(
    seed=0,
    story=[41, 3899539, 5, 7, 405, 31895, 531499, 13, 987740, 1034],
    expresses=False,
)
# With an outbox: a handler that fails during a cut; a job right after one that opens the outbox.
@example(seed=9, story=[228196, 286686], expresses=False)
@example(
    seed=1009,
    story=[141095, 153367, 866090, 394293, 974730, 562915, 802939],
    expresses=False,
)
def test_world(kind: type[World], seed: int, story: list[int], *, expresses: bool) -> None:
    chance = random.Random(seed)
    with pytest.MonkeyPatch.context() as patch:
        for name, values in LIMITS.items():
            set_limit(patch, name, chance.choice(values))
        world = kind(chance)
        world.expresses |= expresses
        world.turn()
        for number in story:
            world.step(random.Random(number))
        if chance.random() < 0.7:
            world.heal()
        else:
            world.stop(chance)


@settings(max_examples=1, deadline=None)
@given(first=st.just(0))  # steps can be noted within a test of hypothesis only
def test_the_calm_world_has_parcels(first: int) -> None:
    """Else the worlds would say nothing of them."""
    steps = with_parcels = 0
    for seed in range(first, first + 30):
        chance = random.Random(seed)
        with pytest.MonkeyPatch.context() as patch:
            for name, values in LIMITS.items():
                set_limit(patch, name, chance.choice(values))
            world = CalmWorld(chance)
            world.turn()
            for _ in range(150):
                world.step(chance)
        steps, with_parcels = steps + 150, with_parcels + world.steps_with_parcels
    assert with_parcels > steps / 20
