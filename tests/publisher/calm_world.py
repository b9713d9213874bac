"""A world in which most events come as parcels."""

from __future__ import annotations

import random

from tests.publisher.simulated import Step
from tests.publisher.worlds import LosslessWorld


class CalmWorld(LosslessWorld):
    """Hardly anything is wrong, so most events come as parcels."""

    def __init__(self, chance: random.Random) -> None:
        super().__init__(chance)
        self.expresses = True
        self.broker.accepts = True
        self.steps_with_parcels = 0

    def steps(self) -> dict[Step, int]:
        return super().steps() | {
            self.time_passes: 2,
            self.events_come: 2,
            self.a_moment_passes: 200,
            self.an_event_comes: 150,
            self.main_thread_runs_the_job: 40,
            self.broker_does_something: 500,
            self.a_message_is_refused: 2,
        }

    def answer(self, place: int, *, multiple: bool, ack: bool) -> None:
        super().answer(place, multiple=multiple, ack=True)

    def a_message_is_refused(self, _chance: random.Random) -> None:
        if self.broker.connection is not None and self.broker.connection.unanswered:
            super().answer(0, multiple=False, ack=False)

    def a_moment_passes(self, chance: random.Random) -> None:
        self.now += chance.choice([0.001, 0.01, 0.05])

    def an_event_comes(self, _chance: random.Random) -> None:
        self.outside.append(self.new_event())

    def step(self, chance: random.Random) -> None:
        super().step(chance)
        self.steps_with_parcels += self.publisher.express.is_running
