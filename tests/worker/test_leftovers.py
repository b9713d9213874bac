"""The file between two loads. Without the compiled module."""

from __future__ import annotations

import pathlib

import pytest

from keyspace_amqp.message import Event
from keyspace_amqp.worker.leftovers import Leftovers, recover, store

EVENTS = [Event(f"run-{n}", n, 0, "$", b"set", b"k\0\n\xff%d" % n) for n in range(3)]
Lines = list[tuple[str, str]]


@pytest.fixture
def file(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Leftovers:
    monkeypatch.chdir(tmp_path)
    return Leftovers(6379)


def stored(file: Leftovers, events: list[Event]) -> Lines:
    """Store events; return the log lines."""
    lines: Lines = []
    store(file, events, lambda level, line: lines.append((level, line)))
    return lines


def test_events_come_back(file: Leftovers, caplog: pytest.LogCaptureFixture) -> None:
    ((level, line),) = stored(file, EVENTS)
    assert level == "notice"
    assert line.startswith("3 events came too late")
    assert str(file.path) in line
    caplog.set_level("INFO")
    assert recover(file) == EVENTS
    assert f"3 events from {file.path}" in caplog.text


def test_nothing_to_store_makes_no_file(file: Leftovers) -> None:
    assert stored(file, []) == []
    assert not file.path.exists()
    assert recover(file) == []


def test_a_file_that_cannot_be_written(file: Leftovers) -> None:
    """The events are lost, and the log says so."""
    file.path.with_suffix(".new").mkdir()
    ((level, line),) = stored(file, EVENTS)
    assert level == "warning"
    assert line.startswith(f"3 events lost: {file.path} could not be written: ")


@pytest.mark.parametrize("data", [b"", b"garbage", b"*2\r\n$5\r\nRPUSH\r\n$1\r\nk\r\n"])
def test_a_file_that_cannot_be_read(
    file: Leftovers, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """It is renamed, so that the next file does not replace it."""
    file.path.write_bytes(data)
    assert recover(file) == []
    aside = file.path.with_suffix(".unreadable")
    assert f"{file.path} cannot be read: " in caplog.text
    assert f"; it is {aside} now" in caplog.text
    assert aside.read_bytes() == data
    assert not file.path.exists()


def test_a_file_that_is_there_and_cannot_be_moved(
    file: Leftovers, caplog: pytest.LogCaptureFixture
) -> None:
    file.path.mkdir()
    (file.path.with_suffix(".unreadable")).write_bytes(b"")
    assert recover(file) == []
    assert f"{file.path} cannot be read: " in caplog.text
    assert "; it is" not in caplog.text


def test_an_event_of_which_no_element_can_be_made(
    file: Leftovers, caplog: pytest.LogCaptureFixture
) -> None:
    """The others are in the file."""
    broken = Event("id", 0, 0, None, b"set", b"broken")  # type: ignore[arg-type]
    stored(file, [EVENTS[0], broken, EVENTS[1]])
    assert recover(file) == EVENTS[:2]
    assert "the event of key b'broken' (set, database 0) is lost" in caplog.text
    assert "AttributeError" in caplog.text
