"""The file between two loads. Without the compiled module."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import pathlib
import random
import resource
import struct
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from keyspace_amqp.counts import counted
from keyspace_amqp.fallback import to_element
from keyspace_amqp.message import Event
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.stats import Stat
from keyspace_amqp.worker import leftover_file, leftovers, log, records
from keyspace_amqp.worker.intake import STRIKES
from keyspace_amqp.worker.leftover_file import Origin, Writer
from keyspace_amqp.worker.leftovers import Leftovers, store
from tests.worker.fakes import event, keys_of, record, valued
from tests.worker.test_intake import World

EVENTS = [Event(f"run-{n}", n, 0, "$", b"set", b"k\0\n\xff%d" % n) for n in range(3)]
Lines = list[tuple[str, str]]
LINE = "{} events came too late for the fallback list, and went to {} for the next load"


@pytest.fixture(autouse=True)
def path(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """The path of the file, in the server's directory."""
    monkeypatch.chdir(tmp_path)
    return Leftovers(6379).path


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Lines:
    """The lines of the worker's own log."""
    lines: Lines = []
    monkeypatch.setattr(log, "_sink", lambda level, line: lines.append((level, line)))
    return lines


def text_of(lines: Lines) -> str:
    return "\n".join(line for _, line in lines)


def never() -> bool:
    return False


def stop(
    world: World,
    events: Iterable[Event] = (),
    is_late: Callable[[], bool] = never,
    is_alone: Callable[[], bool] = never,
) -> Lines:
    """Write the leftovers of a load, of which the publisher has `events`; return the log."""
    lines: Lines = []
    store(
        world.leftovers, events, world.intake, is_late, is_alone,
        lambda level, line: lines.append((level, line)), world.failures,
    )  # fmt: skip
    return lines


def load(space: int = 10_000, limit: int = 10**6) -> World:
    """The next load, before its first turn."""
    world = World(space=space, limit=limit)
    world.leftovers.open()
    return world


def all_of_it() -> World:
    """The next load, when it has read the file."""
    world = load()
    world.take()
    assert not world.leftovers.pending
    return world


# ---- what comes back -------------------------------------------------------------------


def test_events_come_back(path: pathlib.Path, logged: Lines) -> None:
    assert stop(World(), EVENTS) == [("notice", LINE.format(3, path))]
    assert list(pathlib.Path().iterdir()) == [path]
    assert all_of_it().receiver.events == EVENTS
    assert f"{path} has {path.stat().st_size} bytes of events, which come first" in text_of(logged)


def test_objects_are_a_command_that_clients_can_send(path: pathlib.Path) -> None:
    stop(World(), EVENTS[:1])
    element = to_element(EVENTS[0])
    assert path.read_bytes() == b"*3\r\n$5\r\nRPUSH\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (
        len(KEY), KEY, len(element), element,
    )  # fmt: skip


def test_records_come_back_behind_the_objects() -> None:
    """Those of the queue, with the ids that they would have had."""
    world = World(space=1)
    world.push("abc")
    world.take()
    world.queue.push(valued(b"valued", 3, b"\r\nx"), event(b"d"))
    assert world.intake.memory() > 0
    assert stop(world, world.receiver.events)[0][1].startswith("5 events")
    assert (world.intake.waiting, world.queue.released) == (0, 5)
    assert world.receiver.ledger.counts[Stat.EVENTS_MATCHED] == 1
    after = all_of_it()
    assert keys_of(after.receiver.events) == [b"a", b"b", b"c", b"valued", b"d"]
    assert after.numbers == [1, 2, 3, 4, 5]
    assert after.receiver.events[3].value is not None
    assert after.receiver.events[3].value.data == b"\r\nx"


def test_records_of_an_earlier_version_still_have_to_pass(path: pathlib.Path) -> None:
    """That version applied masks and databases in the handler. Ids are those of the numbers, also
    with gaps."""
    writer = Writer(path)
    writer.records(Origin("run"), range(1, 3), event(b"a") + event(b"b"))
    data = event(b"a") + event(b"\xff\\b ax")
    writer.records(Origin("run", masks=(b"^\xff\\b a", b"!z")), range(3, 5), data)
    data = event(b"c") + valued(b"d", 9, b"value") + event(b"z", db=3) + event(b"e", db=1)
    writer.records(Origin("run", "1,3-4", (b"ALL", b"!z")), [5, 7, 11, 13], data)
    writer.records(Origin("run", masks=()), range(14, 16), event(b"f") + event(b"g"))
    writer.keep()
    for stops in range(3):
        world = load(space=stops)
        world.take()
        stop(world, world.receiver.events)
    after = all_of_it()
    assert keys_of(after.receiver.events) == [b"a", b"b", b"\xff\\b ax", b"e"]
    assert after.numbers == [1, 2, 4, 13]
    assert after.receiver.recovering is False


def test_a_file_of_an_earlier_version(path: pathlib.Path) -> None:
    """One command with all events, however many."""
    words = [b"RPUSH", KEY, *(to_element(EVENTS[n % 3]) for n in range(5000))]
    path.write_bytes(
        b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)
    )
    world = load(space=3000)
    world.take()
    assert (len(world.receiver.events), world.leftovers.pending) == (3000, True)
    world.receiver.space = 9000
    world.take()
    assert world.receiver.events == [EVENTS[n % 3] for n in range(5000)]


# ---- piece by piece ----------------------------------------------------------------------


def test_newer_events_wait_until_the_file_is_read() -> None:
    world = World(space=2)
    world.push("abcde")
    world.take()
    stop(world, world.receiver.events)
    after = load(space=1)
    after.push("xyz")
    after.take()
    assert (after.keys, after.receiver.recovering, after.queue.length) == ("a", True, 3)
    after.receiver.space = 4
    after.take()
    assert (after.keys, after.receiver.recovering, after.queue.length) == ("abcd", True, 3)
    after.receiver.space = 7
    after.take()
    assert (after.keys, after.receiver.recovering, after.queue.length) == ("abcdexy", False, 1)
    assert after.numbers == [1, 2, 3, 4, 5, 1, 2]


@pytest.mark.parametrize("space", range(9))
@pytest.mark.parametrize("delivered", [0, 1])
def test_a_stop_while_the_file_is_read(
    space: int, delivered: int, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has what is not delivered of the old file and of the newer events, in order."""
    monkeypatch.setattr(leftovers, "JOB_ELEMENTS", 2)
    monkeypatch.setattr(leftover_file, "JOB_ELEMENTS", 3)
    world = World(space=5, together=2)
    world.push("abcdefghi")
    world.take()
    stop(world, world.receiver.events)
    between = load(space)
    between.push("vw")
    between.take()
    between.push("xyz")
    delivered = min(delivered, space)
    stop(between, between.receiver.events[delivered:])
    assert all_of_it().keys == "abcdefghivwxyz"[delivered:]


def test_a_stop_within_a_command_of_an_earlier_version(path: pathlib.Path) -> None:
    keys = [b"%d" % number for number in range(5000)]
    elements = [to_element(Event("r-1", 1, 0, "$", b"set", key)) for key in keys]
    path.write_bytes(
        b"*%d\r\n" % (len(keys) + 2)
        + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in [b"RPUSH", KEY, *elements])
    )
    world = load(space=1700)
    world.take()
    stop(world, world.receiver.events[1000:])
    assert keys_of(all_of_it().receiver.events) == keys[1000:]


def test_a_full_memory_drops_no_leftovers() -> None:
    """They are in the file; to drop those that were read would only make room for more."""
    world = World()
    world.push("abcdef")
    stop(world)
    after = load(space=2, limit=4 * len(event(b"k")))
    after.receiver.can_only_wait = True
    after.take()
    after.push("stuvwxyz")
    after.take()
    assert (after.keys, after.receiver.dropped) == ("ab", [])
    assert after.queue.length < 4
    stop(after, after.receiver.events)
    assert all_of_it().keys.startswith("abcdef")


# ---- the end of a load -------------------------------------------------------------------


def test_nothing_to_store_makes_no_file(path: pathlib.Path) -> None:
    assert stop(World()) == []
    assert list(pathlib.Path().iterdir()) == []


def test_a_file_whose_events_are_delivered_does_not_stay(path: pathlib.Path) -> None:
    stop(World(), EVENTS)
    world = all_of_it()
    assert path.exists()
    assert stop(world) == []
    assert not path.exists()


def test_a_file_that_cannot_be_deleted(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, logged: Lines
) -> None:
    """The log says so, and no exception closes the connection."""
    stop(World(), EVENTS)
    world = all_of_it()

    def refused(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, "unlink", refused)
        world.leftovers.remove()
    assert f"{path} cannot be deleted: [Errno 13] Permission denied; its events" in text_of(logged)
    assert all_of_it().receiver.events == EVENTS


@pytest.mark.parametrize("error", [MemoryError(), OverflowError(), struct.error()])
def test_an_exception_over_the_bytes_of_a_file_sets_it_aside(
    error: Exception, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the module, and so the server, would not start again."""
    stop(World(), EVENTS)

    def broken(*_: object) -> None:
        raise error

    monkeypatch.setattr(leftover_file.Reading, "fill", broken)
    assert all_of_it().receiver.events == []
    assert path.with_suffix(".unreadable").exists()


def test_a_file_that_could_not_be_read_is_not_removed(path: pathlib.Path) -> None:
    path.mkdir()
    path.with_suffix(".unreadable").write_bytes(b"in the way")
    world = load()
    stop(world)
    assert path.exists()


def test_what_is_too_late_is_lost_and_logged(path: pathlib.Path) -> None:
    world = World(together=2)
    world.push("abcde")
    late = iter([False, False, True])
    assert stop(world, EVENTS[:1], lambda: next(late)) == [
        ("warning", "1 event lost: there was no time to write them"),
        ("notice", LINE.format(5, path)),
    ]
    assert keys_of(all_of_it().receiver.events)[1:] == [b"a", b"b", b"c", b"d"]


@pytest.mark.parametrize("old", [True, False])
def test_nothing_written_in_time_makes_no_file(old: bool, path: pathlib.Path) -> None:
    """Nor does an old file stay, whose events are delivered."""
    if old:
        stop(World(), EVENTS)
    world = all_of_it()
    world.push("ab")
    lines = stop(world, is_late=lambda: True, is_alone=lambda: True)
    why = "there was no time to write them"
    assert lines == [("warning", f"2 events left in the queue, for the next handler: {why}")]
    assert list(pathlib.Path().iterdir()) == []


@pytest.mark.parametrize("there", [True, False])
def test_what_stays_in_the_queue_of_a_module_that_goes_on_is_not_lost(
    there: bool, path: pathlib.Path
) -> None:
    world = World(together=2)
    world.push("abcde")
    late = iter([False, False, True])
    if not there:
        path.with_suffix(".new").mkdir()
    lines = stop(world, EVENTS[:1], lambda: next(late), lambda: True)
    stay = f"{counted(world.queue.length, 'event')} left in the queue, for the next handler: "
    if there:
        assert lines[0] == ("warning", stay + "there was no time to write them")
        assert lines[1:] == [("notice", LINE.format(5, path))]
    else:
        assert [line[: len(stay)] for _, line in lines] == [
            stay,
            f"1 event lost: {path} could not be written"[: len(stay)],
        ]


# ---- exceptions --------------------------------------------------------------------------


def test_an_exception_over_an_event_loses_only_that_one(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def element(event: Event) -> bytes:
        if event is EVENTS[1]:
            raise RuntimeError("broken on purpose")
        return to_element(event)

    monkeypatch.setattr(leftovers, "to_element", element)
    world = World()
    world.push("ab")
    assert stop(world, EVENTS) == [("notice", LINE.format(4, path))]
    assert len(world.failures.told) == 4
    assert keys_of(all_of_it().receiver.events) == [EVENTS[0].key, EVENTS[2].key, b"a", b"b"]


@pytest.mark.parametrize("call", range(8))
def test_an_exception_in_between_loses_nothing(
    call: int, path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even what was made for a part of a command."""
    world = World(space=2, together=2)
    world.push("abcdef")
    world.take()
    stop(world, world.receiver.events)
    between = load(space=1)
    between.push("xyz")
    between.take()
    calls = 0
    sync = Writer._sync

    def broken(writer: Writer, least: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call and least:
            writer._file.write(b"a part of a command")
            raise RuntimeError("broken on purpose")
        sync(writer, least)

    monkeypatch.setattr(Writer, "_sync", broken)
    stop(between, between.receiver.events)
    after = all_of_it()
    assert after.keys == "abcdefxyz"


def test_a_file_that_cannot_be_written(path: pathlib.Path) -> None:
    """The events are lost, and the log says so."""
    path.with_suffix(".new").mkdir()
    world = World()
    world.push("a")
    ((level, line),) = stop(world, EVENTS)
    assert level == "warning"
    assert line.startswith(f"4 events lost: {path} could not be written: ")


def full_disk(monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    """Let the disk be full at this synchronization, each of which follows a command."""
    fsync, calls = os.fsync, itertools.count()

    def full(descriptor: int) -> None:
        if next(calls) == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(leftover_file, "_SYNC_EVERY", 1)
    monkeypatch.setattr(os, "fsync", full)


def test_a_disk_that_becomes_full_keeps_the_old_file(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rest is not in the new one."""
    stop(World(), EVENTS)
    world = load(space=2)
    world.take()
    world.push("a")
    with monkeypatch.context() as patch:
        full_disk(patch, 1)
        ((level, line),) = stop(world, world.receiver.events)
        assert (level, line[:15]) == ("warning", "3 events lost: ")
    world.leftovers.close()
    assert list(pathlib.Path().iterdir()) == [path]
    assert all_of_it().receiver.events == EVENTS


def test_a_disk_that_becomes_full_keeps_what_was_written(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = World(together=2)
    world.push("abcdef")
    with monkeypatch.context() as patch:
        full_disk(patch, 2)
        (_, lost), (_, line) = stop(world, EVENTS)
    assert lost.startswith(f"4 events lost: {path} could not be written: [Errno 28] No space")
    assert line.startswith("5 events came too late")
    after = keys_of(all_of_it().receiver.events)
    assert after == [*(event.key for event in EVENTS), b"a", b"b"]


def test_a_disk_that_becomes_full_keeps_an_old_file_that_was_read(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its events are not safe elsewhere, and the new file does not have all of them."""
    stop(World(), EVENTS)
    world = all_of_it()
    world.push("a")
    monkeypatch.setattr(leftovers, "JOB_ELEMENTS", 2)
    with monkeypatch.context() as patch:
        full_disk(patch, 1)
        ((level, line),) = stop(world, world.receiver.events)
    assert (level, line[:15]) == ("warning", "4 events lost: ")
    assert all_of_it().receiver.events == EVENTS


def test_a_disk_that_fails_at_the_end_keeps_what_is_on_it(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leftovers, "JOB_ELEMENTS", 2)
    with monkeypatch.context() as patch:
        full_disk(patch, 1)
        size = len(resp(b"RPUSH", KEY, *map(to_element, EVENTS[:2])))
        patch.setattr(leftover_file, "_SYNC_EVERY", size)
        (_, lost), (_, line) = stop(World(), EVENTS)
    assert lost.startswith(f"1 event lost: {path} could not be written: [Errno 28] No space")
    assert line.startswith("2 events came too late")
    assert all_of_it().receiver.events == EVENTS[:2]


def test_a_full_disk_keeps_what_fits(path: pathlib.Path) -> None:
    """With a real limit of the file's size, at any byte."""
    world = World(together=2)
    world.push("abcdef")
    stop(world, EVENTS)
    size = path.stat().st_size
    path.unlink()
    chance = random.Random(1)
    for limit in [1, size - 1, size, *(chance.randrange(size) for _ in range(20))]:
        child = os.fork()
        if child == 0:  # it leaves nothing behind but the file
            with contextlib.suppress(BaseException):
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                world = World(together=2)
                world.push("abcdef")
                stop(world, EVENTS)
                os._exit(0)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        keys = keys_of(all_of_it().receiver.events)
        whole = [*(event.key for event in EVENTS), *(b"%c" % key for key in b"abcdef")]
        assert keys == whole[: len(keys)]
        head = len(resp(b"RPUSH", KEY, *map(to_element, EVENTS)))
        command = (size - head) // 3
        fits = 0 if limit < head else 3 + 2 * ((limit - head) // command)
        assert len(keys) == fits, limit
        path.unlink(missing_ok=True)


def test_an_old_file_that_cannot_be_copied_stays(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop(World(), EVENTS)
    world = load(space=0)
    world.push("a")

    def broken(*_: object) -> None:
        raise RuntimeError("broken on purpose")

    with monkeypatch.context() as patch:
        patch.setattr(Writer, "copy", broken)
        ((_, line),) = stop(world)
    assert line == (
        f"1 event lost: {path} could not be written: the handler cannot write them; the old file "
        "stays, and its events are not lost"
    )
    world.leftovers.close()
    assert all_of_it().receiver.events == EVENTS


# ---- files that cannot be read -------------------------------------------------------------

ELEMENT = to_element(EVENTS[0])


def resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(w), w) for w in words)


def records_command(
    data: bytes,
    layout: bytes = leftover_file.LAYOUT,
    databases: bytes = b"ALL",
    numbers: bytes = b"",
) -> bytes:
    return resp(b"RECORDS", layout, b"run", databases, b"ALL", b"1", numbers, data)


BROKEN_RECORDS = {
    "short": event(b"a")[:-1],
    "no record": b"x" * 64,
    "empty": bytes(64),
    "request": record(records.Kind.COMMAND, b"a", name=b"set"),
    "class": record(records.Kind.EVENT, b"a", name=b"set", bit=250),
    "key beyond value": valued(b"k" * 100, 0, None)[:80] + b"",
}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"garbage", "incomplete"),
        (b"garbage\r\n", "no protocol of Redis"),
        (b"*2\r\n$5\r\nRPUSH\r\n$1\r\nk\r\n", "a command that a stop does not write"),
        (b"*9999999999999999999\r\n", "incomplete"),
        (b"*2\r\n$5\r\nRPUSH\r\n$9999999999999999999\r\n", "incomplete"),
        (b"*2\r\n$5\r\nRPUSH\r\n$999999999999999\r\n", "incomplete"),
        (b"*1\r\n$5\r\nRPUSH\r\n", "a command that a stop does not write"),
        (resp(b"RPUSH", KEY, b"1 no event"), "b'1 no event' is no event"),
        (resp(b"RPUSH", KEY, ELEMENT)[:-3], "incomplete"),
        (records_command(event(b"a"), layout=b"2 big"), "records have the form '2 big', not '1 "),
        (records_command(event(b"a"), databases=b"x"), "invalid literal"),
        (records_command(event(b"a"), numbers=bytes(16)), "a number of records is wrong"),
        (records_command(event(b"a"))[:-9], "incomplete"),
        (resp(b"RECORDS", leftover_file.LAYOUT), "not enough values"),
        *((records_command(data), "a record is damaged") for data in BROKEN_RECORDS.values()),
    ],
)
def test_a_file_that_cannot_be_read(
    path: pathlib.Path, data: bytes, why: str, logged: Lines
) -> None:
    """It is renamed, so that the next file does not replace it. The events before are read."""
    start = resp(b"RPUSH", KEY, ELEMENT)
    for before in (b"", start):
        path.write_bytes(before + data)
        world = all_of_it()
        assert world.receiver.events == ([EVENTS[0]] if before else [])
        assert not world.receiver.recovering
        aside = path.with_suffix(".unreadable")
        assert f"{path} cannot be read: " in text_of(logged)
        assert why in text_of(logged)
        assert f"; it is {aside} now" in text_of(logged)
        assert aside.read_bytes() == before + data
        assert not path.exists()
        logged.clear()


def test_a_file_that_is_there_and_cannot_be_moved(path: pathlib.Path, logged: Lines) -> None:
    path.mkdir()
    path.with_suffix(".unreadable").write_bytes(b"")
    assert all_of_it().receiver.events == []
    assert f"{path} cannot be read: " in text_of(logged)
    assert "; it is" not in text_of(logged)


def test_an_event_of_the_file_over_which_the_handler_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The others arrive; this one is tried again, and then dropped."""
    world = World()
    world.push("abc")
    stop(world)

    def make(*fields: Any) -> Event:
        made = Event(*fields)
        if made.key == b"b":
            raise RuntimeError("broken on purpose")
        return made

    monkeypatch.setattr(records, "Event", make)
    after = load()
    for _ in range(STRIKES - 1):
        with pytest.raises(RuntimeError):
            after.take()
    after.take()
    assert (after.keys, after.receiver.given_up) == ("ac", 1)
    counts = after.receiver.ledger.counts
    assert (counts[Stat.FALLBACK_FOUND], counts[Stat.EVENTS_MATCHED]) == (1, 0)
