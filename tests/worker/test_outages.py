"""The log lines about outages of the broker: one at the begin, one a minute, one at the end."""

from __future__ import annotations

import itertools

import pytest

from keyspace_amqp.worker.outages import BEGINS, EVERY, Outages

REFUSED = "[Errno 111] Connection refused"
BEGIN = ("warning", f"disconnected (h:1): {REFUSED}")


class World:
    """A broker that comes and goes, and the lines about it."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.outages = Outages(lambda: self.now)
        self.broker = "h:1"

    def show(
        self, state: str, trouble: str = "", *, waiting: int = 0, proven: bool = False
    ) -> list[tuple[str, str]]:
        return self.outages.lines(state, self.broker, trouble, waiting=waiting, proven=proven)

    def attempts(self, seconds: float, trouble: str = REFUSED) -> list[tuple[str, str]]:
        """An attempt that fails every five seconds, for so long."""
        lines, end = [], self.now + seconds
        while self.now < end:
            self.now += 2.5
            lines += self.show("connecting", trouble, waiting=7)
            self.now += 2.5
            lines += self.show("disconnected", trouble, waiting=7)
        return lines


@pytest.fixture
def world() -> World:
    return World()


def test_a_short_outage(world: World) -> None:
    assert world.show("idle") == [("notice", "idle (h:1)")]
    assert world.show("connecting") == []
    assert world.show("connected", waiting=3) == [("notice", "connected (h:1)")]
    assert world.show("connected", proven=True) == []
    assert world.show("disconnected", "320 CONNECTION_FORCED", waiting=5) == [
        ("warning", "disconnected (h:1): 320 CONNECTION_FORCED")
    ]
    assert world.show("disconnected", "320 CONNECTION_FORCED", waiting=5) == []
    world.now += 0.36
    assert world.show("connecting", "320 CONNECTION_FORCED", waiting=900) == []
    assert world.show("connected", waiting=1400) == []
    assert world.show("connected", waiting=1200, proven=True) == [
        ("notice", "connected (h:1), after an outage of 0.4 s; 1,200 events wait")
    ]
    assert world.show("connected", proven=True) == []


def test_another_reason_by_the_end(world: World) -> None:
    world.show("idle")
    assert world.show("disconnected", REFUSED, waiting=7) == [BEGIN]
    world.attempts(10, "timed out")
    world.now += 2
    assert world.show("connected", waiting=1, proven=True) == [
        ("notice", "connected (h:1), after an outage of 12 s; 1 event waits; "
                   "the last reason: timed out")
    ]  # fmt: skip
    assert world.show("disconnected", REFUSED) == [BEGIN]


def test_a_long_outage_is_a_line_a_minute(world: World) -> None:
    """With an attempt every five seconds, and the reason that is the present one."""
    world.show("idle")
    assert world.show("disconnected", REFUSED, waiting=7) == [BEGIN]
    assert world.attempts(EVERY - 5) == []
    assert world.attempts(5) == [
        ("warning", f"disconnected for 1 min (h:1): {REFUSED}; 7 events wait")
    ]
    assert world.attempts(60, "timed out") == [
        ("warning", "disconnected for 2 min (h:1): timed out; 7 events wait")
    ]
    for minute in range(3, 60):
        (line,) = world.attempts(60)
        assert line[1].startswith(f"disconnected for {minute} min (h:1)")
    world.now += 59
    assert world.show("connected", waiting=1, proven=True) == [
        ("notice", "connected (h:1), after an outage of 59 min 59 s; 1 event waits")
    ]


def test_a_connection_shows_nothing_before_an_answer(world: World) -> None:
    """A broker that takes connections and closes each over a missing exchange: one outage."""
    missing = "404 NOT_FOUND - no exchange 'ks' in vhost '/'"
    lines = [*world.show("connected", waiting=1), *world.show("disconnected", missing, waiting=1)]
    assert lines[1:] == [("warning", f"disconnected (h:1): {missing}")]
    for _ in range(11):
        world.now += 5
        assert world.show("connecting", missing, waiting=1) == []
        assert world.show("connected", waiting=1) == []
        assert world.show("disconnected", missing, waiting=1) == []
    world.now += 5
    assert len(world.show("connected", waiting=1)) == 1
    assert world.show("connected") == [("notice", "connected (h:1), after an outage of 1 min")]


def test_the_time_goes_on_while_it_decides() -> None:
    times = itertools.count(1000)
    outages = Outages(lambda: next(times) / 1000)
    assert outages.lines("disconnected", "h:1", REFUSED, waiting=0, proven=False) == [BEGIN]


def test_nothing_to_send_needs_no_answer(world: World) -> None:
    world.show("disconnected", REFUSED)
    world.now += 10
    assert world.show("connected") == [("notice", "connected (h:1), after an outage of 10 s")]


@pytest.mark.parametrize(
    ("state", "trouble", "shown"),
    [
        ("blocked", "blocked by the broker: low on memory", "blocked by the broker: low on memory"),
        ("unconfirmed", "", "a message has had no confirm for 5 seconds"),
    ],
)
def test_a_broker_that_takes_no_messages(
    world: World, state: str, trouble: str, shown: str
) -> None:
    """Is an outage as well, even if the connection is there."""
    world.show("connected", proven=True)
    assert world.show(state, trouble, waiting=9) == [("warning", f"{state} (h:1): {shown}")]
    world.now += EVERY
    assert world.outages.wake_at == world.now
    assert world.show(state, trouble, waiting=9) == [
        ("warning", f"{state} for 1 min (h:1): {shown}; 9 events wait")
    ]
    assert world.show("connected", waiting=8, proven=True) == [
        ("notice", "connected (h:1), after an outage of 1 min; 8 events wait")
    ]
    assert world.outages.wake_at is None


def test_one_outage_of_many_kinds(world: World) -> None:
    """The connection is given up over a message without a confirm, and comes back."""
    world.show("connected", proven=True)
    assert len(world.show("unconfirmed", waiting=1, proven=True)) == 1
    world.now += 55
    assert world.show("disconnected", "no confirm for 60 seconds", waiting=1) == []
    assert world.show("connecting", "no confirm for 60 seconds", waiting=1) == []
    assert world.show("connected", waiting=1) == []
    world.now += 5
    assert world.show("unconfirmed", waiting=1) == [
        (
            "warning",
            "unconfirmed for 1 min (h:1): a message has had no confirm for 5 seconds; "
            "1 event waits",
        )
    ]
    assert len(world.show("connected", waiting=1, proven=True)) == 1


def test_a_user_ends_it(world: World) -> None:
    """DISCONNECT in an outage, or a demotion; CONNECT makes the next attempt the first one."""
    for state in ("disconnected", "replica", "idle"):
        world.now += 100
        world.show("disconnected", REFUSED)
        world.now += 50
        assert world.show("connecting") == []
        assert world.show(state) == [("notice", f"{state} (h:1), after an outage of 50 s")]
        assert world.show(state) == []


def test_states_without_an_outage(world: World) -> None:
    for state in ("idle", "connected", "disconnected", "connected", "replica"):
        assert world.show("connecting") == []
        assert world.show(state, waiting=1) == [("notice", f"{state} (h:1)")]
        assert world.show(state, waiting=1) == []
    world.broker = "h:2"
    assert world.show("connected") == [("notice", "connected (h:2)")]
    world.broker = "h:3"
    assert world.show("connected") == [("notice", "connected (h:3)")]


def test_a_broker_that_comes_and_goes(world: World) -> None:
    """Few lines, and no outage that lasts stays unsaid."""
    world.show("connected", proven=True)
    lines = []
    for _ in range(200):
        world.now += 0.5
        lines += world.show("disconnected", REFUSED)
        world.now += 0.5
        lines += world.show("connected", proven=True)
    assert len(lines) == 2 * BEGINS * 4
    assert lines[2 * BEGINS] == (
        "warning",
        f"disconnected (h:1): {REFUSED}; {60 - BEGINS} more outages since the last line",
    )
    assert world.show("disconnected", REFUSED) == []
    at = world.outages.wake_at
    assert at is not None
    assert world.now < at < world.now + EVERY
    begun, world.now = world.now, at
    (line,) = world.show("disconnected", REFUSED)
    assert line[1].startswith(f"disconnected for {at - begun:.0f} s (h:1): {REFUSED}; ")
    assert len(world.show("connected", proven=True)) == 1


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.9, "59 s"),
        (60, "1 min"),
        (185.5, "3 min 5 s"),
        (3600, "1 h"),
        (7500, "2 h 5 min"),
        (86400 * 3 + 3600 * 4 + 59, "3 d 4 h"),
    ],
)
def test_durations(world: World, seconds: float, shown: str) -> None:
    world.show("disconnected", REFUSED)
    world.now += seconds
    assert world.show("connected") == [("notice", f"connected (h:1), after an outage of {shown}")]
