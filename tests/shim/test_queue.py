"""The queue between Redis' main thread and the worker, driven from Python."""

from __future__ import annotations

import collections
import json
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp.worker.records import HEAD as READ_HEAD
from tests.fix_servers import ROOT
from tests.fix_shim import Shim
from tests.shim.queues import CHUNK, FIELDS, HEAD, Queue, Record, parse

MakeQueue = Callable[..., Queue]


@pytest.fixture
def make(shim: Shim) -> Iterator[MakeQueue]:
    queues: list[Queue] = []

    def make(limit: int = 0) -> Queue:
        queues.append(Queue(shim, limit))
        return queues[-1]

    yield make
    for queue in queues:
        queue.free()


def measured(case: str, *arguments: int) -> list[int]:
    """Bytes of memory, see memory.py. In a process of its own: in this one the allocator
    may still have what earlier tests gave back, and take it instead of new memory.
    """
    run = subprocess.run(
        [sys.executable, "-m", "tests.shim.memory", case, *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    return list(json.loads(run.stdout))


# ---- the record ---------------------------------------------------------------


def test_head_is_what_the_handler_reads(shim: Shim) -> None:
    """One struct, which C and the handler define separately."""
    ffi = shim.ffi
    head = ffi.new("record_t *")
    assert READ_HEAD.size == HEAD.size == ffi.sizeof("record_t")
    values = (0xA1A2A3A4, 0xB1B2B3B4, 0xC1C2C3C4C5C6C7C8, -123456789, 0xE1E2, 0xF1, 0xF2)
    for field, value in zip(FIELDS, values, strict=True):
        setattr(head, field, value)
    for layout in (HEAD, READ_HEAD):
        assert layout.unpack(bytes(ffi.buffer(head, layout.size))) == values


@pytest.mark.parametrize("name_len", [0, 1, 6, 15])
@pytest.mark.parametrize("payload_len", [0, 1, 7, 8, 9, 100])
def test_an_event_costs_at_most_48_bytes_more_than_its_text(
    make: MakeQueue, name_len: int, payload_len: int
) -> None:
    queue = make()
    queue.push(Record(b"n" * name_len, b"k" * payload_len))
    taken = len(queue.look())
    assert taken == queue.bytes
    assert taken % 8 == 0
    assert 24 <= taken - name_len - payload_len <= 48


# ---- first in, first out -------------------------------------------------------

lengths = st.one_of(
    st.integers(0, 40),
    st.sampled_from([CHUNK - 25, CHUNK - 24, CHUNK - 23, CHUNK, CHUNK + 1, 3 * CHUNK, 20 * CHUNK]),
    st.integers(10_000, 70_000),
)
payloads = st.one_of(
    st.binary(max_size=40),
    st.tuples(st.binary(min_size=1, max_size=5), lengths).map(lambda p: (p[0] * p[1])[: p[1]]),
)
records = st.builds(
    Record,
    name=st.one_of(st.binary(max_size=20), st.just(b"n" * 65535)),
    payload=payloads,
    kind=st.integers(0, 5),
    db=st.integers(-(2**31), 2**31 - 1),
    time_ms=st.integers(0, 2**64 - 1),
    class_bit=st.integers(0, 255),
)


@given(st.lists(st.one_of(records, st.integers(0, 5)), max_size=30))
@example([Record(b"", b""), Record(b"e", b"k" * (CHUNK - 48)), Record(b"e", b"k"), 1, 1, 1, 1])
def test_what_goes_in_comes_out(shim: Shim, steps: list[Record | int]) -> None:
    """A record is pushed, a number takes so many records; a deque is the model."""
    queue = Queue(shim)
    model: collections.deque[Record] = collections.deque()
    pushed = 0
    try:
        for step in steps:
            if isinstance(step, Record):
                assert queue.push(step)
                model.append(step)
                pushed += 1
            else:
                for record in queue.take(step):
                    assert record == model.popleft()
            assert queue.length == len(model)
            assert queue.bytes == sum(record.size for record in model)
            assert queue.pushed == pushed
        assert queue.take_all() == list(model)
        assert (queue.length, queue.bytes, queue.pushed) == (0, 0, pushed)
    finally:
        queue.free()


def test_an_empty_queue_has_nothing_to_take(make: MakeQueue) -> None:
    queue = make()
    assert queue.look() == b""
    assert queue.take() == []
    assert (queue.length, queue.bytes, queue.pushed) == (0, 0, 0)
    queue.push(Record(b"set", b"k"))
    queue.take()
    assert queue.look() == b""


def test_a_prefix_can_be_given_back(make: MakeQueue) -> None:
    queue = make()
    pushed = [Record(b"e%d" % n, b"k" * n) for n in range(100)]
    for record in pushed:
        queue.push(record)
    assert queue.take(30) == pushed[:30]
    assert (queue.length, queue.bytes) == (70, sum(r.size for r in pushed[30:]))
    before = queue.look()
    queue.push(Record(b"late", b"k"))
    assert queue.look().startswith(before), "what was taken and not given back has moved"
    assert queue.take(0) == []
    assert queue.take_all() == [*pushed[30:], Record(b"late", b"k")]


def test_a_queue_may_be_freed_with_records_in_it() -> None:
    """Many times, so that memory that is not given back shows."""
    before, after = measured("filled_and_freed")
    assert after - before < 20_000_000  # of 200 MB that went through


# ---- the limit -----------------------------------------------------------------


def test_an_event_past_the_limit_is_refused_and_not_counted(make: MakeQueue) -> None:
    event = Record(b"expire", b"k" * 10)  # 40 bytes
    queue = make(10 * event.size)
    assert [queue.push(event) for _ in range(10)] == [True] * 10, "the last one just fits"
    for refused in (event, Record(b"", b""), Record(b"e", b"k" * 100_000)):
        assert not queue.push(refused)
    assert (queue.length, queue.bytes, queue.pushed) == (10, 400, 10)
    assert queue.take_all() == [event] * 10


@pytest.mark.parametrize("kind", range(1, 6))
def test_requests_are_taken_whatever_the_limit(make: MakeQueue, kind: int) -> None:
    queue = make(1)
    assert not queue.push(Record(b"e", b"k"))
    requests = [Record(b"", b"p" * n, kind) for n in (0, 1, 100_000)]
    assert all(queue.push(request) for request in requests)
    assert not queue.push(Record(b"e", b"k"))
    assert queue.pushed == queue.length == 3
    assert queue.take_all() == requests


def test_there_is_room_again_when_records_are_given_back(make: MakeQueue) -> None:
    event = Record(b"expire", b"k" * 10)
    queue = make(3 * event.size)
    for _ in range(5000):  # through many chunks
        while queue.push(event):
            pass
        assert queue.length == 3
        queue.look()
        assert not queue.push(event), "looking gives nothing back"
        assert queue.take(1) == [event]
        assert queue.push(event)
        assert not queue.push(event)
        assert queue.take_all() == [event] * 3


def test_the_limit_can_be_changed(make: MakeQueue) -> None:
    event = Record(b"expire", b"k" * 10)
    queue = make(event.size)
    assert queue.lib.queue_get_limit(queue.queue) == event.size
    assert [queue.push(event), queue.push(event)] == [True, False]
    queue.lib.queue_set_limit(queue.queue, 2 * event.size)
    assert queue.lib.queue_get_limit(queue.queue) == 2 * event.size
    assert [queue.push(event), queue.push(event)] == [True, False]
    queue.lib.queue_set_limit(queue.queue, event.size)  # less than there is
    assert queue.length == 2
    queue.take(1)
    assert not queue.push(event)
    queue.take(1)
    assert queue.push(event)
    queue.lib.queue_set_limit(queue.queue, 0)
    assert all(queue.push(event) for _ in range(1000))


@given(st.integers(1, 5000), st.lists(st.integers(0, 600), min_size=20, max_size=60))
def test_events_never_take_more_than_the_limit(
    shim: Shim, limit: int, payload_lengths: list[int]
) -> None:
    queue = Queue(shim, limit)
    expected = []
    try:
        for number, length in enumerate(payload_lengths):
            record = Record(b"e", b"k" * length, db=number)
            before = queue.bytes
            fits = before + record.size <= limit
            assert queue.push(record) is fits
            assert queue.bytes == before + record.size * fits <= limit
            if fits:
                expected.append(record)
        assert queue.take_all() == expected
    finally:
        queue.free()


# ---- memory ---------------------------------------------------------------------


def test_a_steady_flow_takes_no_more_memory() -> None:
    """Two million events, some waiting all the time: 250 MB go through."""
    before, after, pushed = measured("steady_flow")
    assert pushed == 2_000_000
    assert after < 1.1 * before, (before, after)


@pytest.mark.parametrize("payload_len", [100, 40_000, 300_000])
def test_a_flood_is_given_back(payload_len: int) -> None:
    """Fills the queue up and empties it, again and again."""
    before, after = measured("floods", payload_len)
    assert after - before < 20_000_000, "more memory has stayed than the queue may hold"


def test_a_large_event_is_given_back_at_once() -> None:
    """Not only when the next event comes."""
    before, full, after = measured("large_event")
    assert full - before > 40_000_000
    assert after - before < 10_000_000


# ---- two threads ----------------------------------------------------------------

PATTERN = bytes(random.Random(3).randrange(256) for _ in range(100_300))


def numbered(number: int, most: int) -> tuple[bytes, bytes]:
    """Name and payload of a record: of many sizes, and no two neighbours alike."""
    length = 100_000 if number % 20_000 == 19_999 else number * 7919 % most
    start = number % 97
    return b"e%d" % (number % 10), PATTERN[start : start + length]


@pytest.mark.parametrize(
    ("count", "most", "limit"),
    [
        pytest.param(300_000, 200, 0, id="small"),
        # The pushing thread often meets a full queue.
        pytest.param(300_000, 200, 150_000, id="small with a limit"),
        # A few records fill a chunk: the change of chunks is where threads meet.
        pytest.param(80_000, 60_000, 400_000, id="large"),
    ],
)
def test_two_threads(make: MakeQueue, count: int, most: int, limit: int) -> None:
    """cffi releases the GIL in each call, so that one thread's C code runs beside the other's. A
    thread that has nothing to do waits for the other: two threads that only poll would keep the GIL
    from each other on a busy machine."""
    queue = make(limit)
    ffi, lib, handle = queue.ffi, queue.lib, queue.queue
    give_up = time.monotonic() + 60  # against a hang only
    ended = threading.Event()
    refused = threading.Event()
    arrived, room = threading.Event(), threading.Event()

    def push() -> None:
        head = ffi.new("record_t *")
        for number in range(count):
            name, payload = numbered(number, most)
            head.payload_len, head.name_len = len(payload), len(name)
            head.time_ms, head.db = number * 1_000_003, number
            while True:
                room.clear()
                if lib.queue_push(handle, head, name, payload) == 0:
                    break
                refused.set()
                room.wait(1)
                if ended.is_set():
                    return
            arrived.set()

    thread = threading.Thread(target=push)
    thread.start()
    expected = 0
    try:
        if limit:
            assert refused.wait(60), "nothing was refused"
        while expected < count:
            assert time.monotonic() < give_up, f"stuck at {expected} of {count}"
            arrived.clear()
            for _ in range(100):  # to take a record the moment that it comes
                data = queue.look()
                if data:
                    break
            else:
                arrived.wait(1)
                continue
            at = records = 0
            while at < len(data):
                size, record = parse(data, at)
                assert (record.db, record.time_ms) == (expected, expected * 1_000_003)
                assert (record.name, record.payload) == numbered(expected, most)
                expected += 1
                at += size
                records += 1
            lib.queue_release(handle, at, records)
            room.set()
    finally:
        ended.set()
        thread.join()
    assert refused.is_set() is (limit > 0)
    assert (queue.length, queue.bytes, queue.pushed) == (0, 0, count)
    assert queue.look() == b""
