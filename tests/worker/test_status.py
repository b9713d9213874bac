"""The status in STATS, INFO and the log. Without the compiled module."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from keyspace_amqp import __version__
from keyspace_amqp.tables.stats import Stat, Text
from keyspace_amqp.worker import log
from keyspace_amqp.worker.outages import EVERY, Outages
from keyspace_amqp.worker.status import LOG_EVERY, LOG_KINDS, RareLog, Status
from tests.worker.fakes import FakeShim


class Link:
    trouble = ""
    is_proven = False


class Publisher:
    def __init__(self) -> None:
        self.link = Link()
        self.counts = [0] * len(Stat)
        self.last_error = ""
        self.primary = True
        self.state = "idle"
        self.queued = 0
        self.taken = 0
        self.kept = 0  # events that still count as matched after a reset

    def gauges(self) -> Mapping[Stat, int]:
        return {Stat.FALLBACK_LENGTH: 3, Stat.QUEUE_LENGTH: self.queued}

    def reset_stats(self) -> None:
        self.counts[:] = [0] * len(Stat)
        self.counts[Stat.EVENTS_MATCHED] = self.kept


class Peers:
    rejected = 0
    config_version = 77


class Messages:
    cut = 0


class Snapshot:
    events = looked = total = 0
    state = "none"


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.shim = FakeShim()
        self.publisher, self.peers, self.messages = Publisher(), Peers(), Messages()
        self.snapshot = Snapshot()
        self.broker = "h:5672"
        self.rare_log = RareLog(self.shim.log, lambda: self.now)
        self.status = Status(
            self.shim, self.publisher, self.peers, self.messages,
            lambda: self.broker, self.rare_log, Outages(lambda: self.now), self.snapshot,
        )  # fmt: skip

    def lines(self) -> list[tuple[str, str]]:
        """Return the lines logged since the last call."""
        lines, self.shim.lines = self.shim.lines, []
        return lines


@pytest.fixture
def world() -> World:
    return World()


# ---- counters and texts ------------------------------------------------------------------


def test_counters_and_gauges(world: World) -> None:
    world.publisher.counts[Stat.CONFIRMED] = 5
    world.publisher.queued = 9
    world.peers.rejected, world.messages.cut = 2, 4
    world.status.show()
    shown = {stat: world.shim.counters[stat] for stat in Stat if world.shim.counters[stat]}
    assert shown == {
        Stat.CONFIRMED: 5,
        Stat.FALLBACK_LENGTH: 3,
        Stat.QUEUE_LENGTH: 9,
        Stat.MESSAGES_REJECTED: 2,
        Stat.ROUTING_KEYS_CUT: 4,
    }
    world.publisher.queued = 0
    world.status.show()
    assert world.shim.counters[Stat.QUEUE_LENGTH] == 0


def test_only_what_has_changed(world: World) -> None:
    """The shim owns some counters; they are not overwritten."""
    world.publisher.counts[Stat.CONFIRMED] = 5
    world.status.show()
    world.shim.counters[:] = [1000] * len(Stat)
    world.shim.texts.clear()
    world.publisher.counts[Stat.PUBLISHED] = 6
    world.publisher.state = "connected"
    world.status.show()
    assert world.shim.counters[Stat.PUBLISHED] == 6
    assert sum(world.shim.counters) == 1000 * (len(Stat) - 1) + 6
    assert world.shim.texts == {Text.STATE: "connected"}


def test_texts(world: World) -> None:
    world.publisher.last_error = "no\nway\0out \x1b of here"
    world.status.show()
    assert world.shim.texts == {
        Text.STATE: "idle",
        Text.BROKER: "h:5672",
        Text.LAST_ERROR: "no way out of here",
        Text.SNAPSHOT: "none",
    }
    world.publisher.last_error, world.broker = "", "[::1]:5671"
    world.status.show()
    assert (world.shim.texts[Text.LAST_ERROR], world.shim.texts[Text.BROKER]) == ("", "[::1]:5671")


def test_a_text_that_could_not_be_shown_comes_again(world: World) -> None:
    def fail(text: Text, value: str) -> None:
        raise RuntimeError

    world.shim.set_text = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError):
        world.status.show()
    del world.shim.set_text
    world.status.show()
    assert world.shim.texts[Text.STATE] == "idle"


def test_the_state_and_errors_are_logged_when_they_change(world: World) -> None:
    world.status.show()
    assert world.lines() == [("notice", "idle (h:5672)")]
    world.status.show()
    assert world.lines() == []
    world.publisher.last_error = "fallback list:\nWRONGTYPE"
    world.status.show()
    assert world.lines() == [("warning", "fallback list: WRONGTYPE")]
    world.publisher.last_error = ""
    world.status.show()
    assert world.lines() == []


def test_the_reason_of_an_outage_is_in_its_line_only(world: World) -> None:
    """`last_error` has it too, in the words of the state `blocked` with something before it."""
    for state, why, error in (
        ("disconnected", "no\nway", "no\nway"),
        ("blocked", "low on memory", "blocked by the broker: low on memory"),
    ):
        world.publisher.state = state
        world.publisher.link.trouble, world.publisher.last_error = why, error
        world.status.show()
        shown = " ".join(why.split())
        assert world.lines() == [("warning", f"{state} (h:5672): {shown}")]
        assert world.shim.texts[Text.LAST_ERROR] == " ".join(error.split())
        world.publisher.last_error = f"fallback list: {state}"
        world.status.show()
        assert world.lines() == [("warning", f"fallback list: {state}")]
        world.publisher.state, world.publisher.link.trouble = "connected", ""
        world.publisher.queued = 2
        world.status.show()
        assert world.lines() == []  # nothing shows yet that the broker takes messages
        world.now += 30
        world.publisher.link.is_proven = True
        world.status.show()
        assert world.lines() == [
            ("notice", "connected (h:5672), after an outage of 30 s; 5 events wait")
        ]
        world.publisher.link.is_proven = False


def test_it_is_woken_for_the_next_line(world: World) -> None:
    assert world.status.wake_at is None
    world.publisher.link.trouble, world.publisher.state = "refused", "disconnected"
    world.status.show()
    assert world.status.wake_at == world.now + EVERY


def test_what_stats_shows(world: World) -> None:
    """Including the shim's own counters."""
    world.shim.counters[Stat.EVENTS_SEEN] = 11
    world.publisher.counts[Stat.CONFIRMED] = 5
    numbers = world.status.counters()
    assert list(numbers) == [stat.name.lower() for stat in Stat]
    assert (numbers["events_seen"], numbers["confirmed"]) == (11, 5)


@pytest.mark.parametrize(("primary", "role"), [(True, "primary"), (False, "replica")])
def test_what_cluster_shows(world: World, primary: bool, role: str) -> None:
    world.publisher.primary = primary
    world.publisher.state, world.publisher.last_error = "blocked", "by the broker"
    world.publisher.queued = 8
    assert world.status.node_state() == {
        "role": role,
        "version": __version__,
        "config_version": 77,
        "state": "blocked",
        "snapshot": "none",
        "fallback_length": 3,
        "queue_length": 8,
        "last_error": "by the broker",
    }


def test_a_snapshot(world: World) -> None:
    world.snapshot.state, world.snapshot.looked, world.snapshot.total = "running", 5, 9
    world.snapshot.events = 4
    numbers = world.status.counters()
    assert world.shim.texts[Text.SNAPSHOT] == "running"
    assert [numbers[f"snapshot_{name}"] for name in ("events", "looked", "keys")] == [4, 5, 9]
    world.status.reset()
    numbers = world.status.counters()
    assert [numbers[f"snapshot_{name}"] for name in ("events", "looked", "keys")] == [0, 5, 9]


def test_reset(world: World) -> None:
    world.publisher.counts[Stat.CONFIRMED] = 5
    world.peers.rejected, world.messages.cut = 2, 4
    world.status.show()
    world.status.reset()
    assert (world.peers.rejected, world.messages.cut) == (0, 0)
    assert world.shim.heard == [("reset_numbers", 0)]
    world.status.show()
    assert {stat for stat in Stat if world.shim.counters[stat]} == {Stat.FALLBACK_LENGTH}


def test_a_reset_forgets_events_and_not_that_they_were_taken(world: World) -> None:
    """The shim has to know how many of the matched events are with the worker, or were."""
    for taken, kept in ((10, 4), (17, 0), (18, 1)):
        world.publisher.taken, world.publisher.kept = taken, kept
        world.status.reset()
        assert world.shim.heard.pop() == ("reset_numbers", taken - kept)
        world.status.show()
        assert world.shim.counters[Stat.EVENTS_MATCHED] == taken


def test_an_exception_of_ours(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "_sink", lambda level, line: lines.append(line))
    try:
        raise ValueError("bad luck")
    except ValueError:
        world.status.failed("it broke")
    assert world.publisher.counts[Stat.HANDLER_ERRORS] == 1
    assert lines[:2] == ["it broke:", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: bad luck"


# ---- lines that would come too often ----------------------------------------------------------


def test_a_line_comes_once_in_a_while(world: World) -> None:
    for _ in range(3):
        world.rare_log.write("warning", "again")
    assert world.lines() == [("warning", "again")]
    world.now += LOG_EVERY - 0.01
    world.rare_log.write("warning", "again")
    assert world.lines() == []
    world.now += 0.02
    world.rare_log.write("notice", "again")
    assert world.lines() == [("notice", "again")]


def test_lines_that_differ_in_numbers_are_of_a_kind(world: World) -> None:
    for text in ("h:1 refused 22", "h:345 refused 6", "h:1 accepted 22"):
        world.rare_log.write("notice", text)
    assert world.lines() == [("notice", "h:1 refused 22"), ("notice", "h:1 accepted 22")]


def test_lines_with_the_words_of_others(world: World) -> None:
    for text in ("ignored: abc", "ignored: xyz"):
        world.rare_log.write("warning", text, "ignored")
    world.rare_log.write("warning", "something else")
    assert world.lines() == [("warning", "ignored: abc"), ("warning", "something else")]


def test_the_memory_of_lines_is_bounded(world: World) -> None:
    kinds = ["x" * n for n in range(1, LOG_KINDS + 2)]
    for kind in kinds:
        world.rare_log.write("notice", kind)
    assert len(world.lines()) == LOG_KINDS + 1
    world.rare_log.write("notice", kinds[-1])
    assert world.lines() == []
    world.rare_log.write("notice", kinds[0])  # forgotten
    assert len(world.lines()) == 1
