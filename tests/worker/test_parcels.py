"""Messages laid out from records, byte for byte against those of the events in them."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp.broker.frames import Frames
from keyspace_amqp.config import DEFAULTS, Config
from keyspace_amqp.failures import STRIKES
from keyspace_amqp.message import Event, Format
from keyspace_amqp.values import replace
from keyspace_amqp.worker import records
from keyspace_amqp.worker.parcels import Packer, Parcel
from keyspace_amqp.worker.records import HEAD, LISTED_BIT, Reader
from keyspace_amqp.worker.shim_api import Layout
from tests.fix_shim import Shim
from tests.worker.fakes import event, subkeyed, valued

PLAIN = replace(DEFAULTS, events="A")
JSON = replace(PLAIN, format="json", headers=True, routing_key="{key:1}")
BODY_MAX = 300


def frames_for(config: Config = PLAIN) -> Frames:
    return Frames(config, Format(config, "here:6379"), 1, BODY_MAX)


def listed(record: bytes) -> bytes:
    at = HEAD.size - 1
    return record[:at] + bytes([record[at] | LISTED_BIT]) + record[at + 1 :]


@pytest.fixture(scope="module")
def layout(shim: Shim) -> Layout:
    bridge = importlib.import_module("keyspace_amqp.worker.bridge")
    return bridge.Layout()  # type: ignore[no-any-return]


def packer_for(layout: Layout, frames: Frames | None) -> Packer:
    return Packer("run", layout, lambda: frames)


def events_of(data: Sequence[bytes], first: int) -> list[Event]:
    reader = Reader("run")
    events: list[Event] = []
    for record in data:
        events += reader.parse(record, [first + len(events)])[0]
    return events


names = st.sampled_from([b"set", b"del", b"hset", "\u00e9".encode(), b"\xff", b""])
keys = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=20).map(str.encode),
    st.integers(BODY_MAX - 20, BODY_MAX + 20).map(lambda size: b"k" * size),
)
plain = st.builds(
    event, keys, names, time_ms=st.integers(0, 10_000) | st.sampled_from([7, 2**63]),
    db=st.integers(0, 20),
)  # fmt: skip
others = st.builds(valued, keys, st.just(3), st.just(b"abc")) | st.builds(
    lambda key: subkeyed(event(key), [b"field"]), keys
)
# From a number with three digits to one with four, and from a thousand to the next.
firsts = st.sampled_from([1, 995, 998, 1000, 1998, 12_345_999])


@given(
    data=st.lists(st.one_of(plain, plain, plain, others), min_size=1, max_size=12),
    first=firsts,
    config=st.sampled_from([PLAIN, PLAIN, replace(PLAIN, delivery_mode=2), JSON]),
)
@example(data=[event(b"k")] * 5, first=998, config=PLAIN)
@example(data=[event(b"k", time_ms=999), event(b"k", time_ms=1000)], first=1000, config=PLAIN)
def test_messages_are_those_of_the_events(
    layout: Layout, data: list[bytes], first: int, config: Config
) -> None:
    frames = frames_for(config)
    packer = packer_for(layout, frames)
    numbers = range(first, first + len(data))
    for _ in range(2):  # the second time with constants that are remembered
        packed = packer.pack(b"".join(data), numbers)
        assert packed is not None
        parcel, laid_out, size = packed
        expected = events_of(data, first)
        assert laid_out == frames.marshal(expected)
        assert size == len(b"".join(data))
        assert parcel.events() == expected
        assert parcel.count == len(data)
        assert times_of(parcel) == [one.time_ms for one in expected]


def times_of(parcel: Parcel) -> list[int]:
    times: list[int] = []
    for end, time_ms in parcel.times:
        assert end > len(times)
        times += [time_ms] * (end - len(times))
    return times


def test_hardly_any_event_becomes_an_object(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Event] = []
    monkeypatch.setattr(
        records, "Event", lambda *fields: made.append(Event(*fields)) or Event(*fields)
    )
    data = [event(b"key:%d" % number) for number in range(3000)]
    packed = packer_for(layout, frames_for()).pack(b"".join(data), range(1000, 4000))
    assert packed is not None
    assert packed[0].count == 3000
    assert not made


@pytest.mark.parametrize("first", [1, 5000])
@pytest.mark.parametrize("config", [PLAIN, JSON])
def test_a_parcel_ends_before_an_event_that_is_in_the_list(
    layout: Layout, first: int, config: Config
) -> None:
    data = [event(b"a"), event(b"b"), listed(event(b"c")), event(b"d")]
    packed = packer_for(layout, frames_for(config)).pack(b"".join(data), range(first, first + 4))
    assert packed is not None
    assert [one.key for one in packed[0].events() if one] == [b"a", b"b"]
    assert packed[2] == len(data[0] + data[1])


@pytest.mark.parametrize("config", [PLAIN, JSON])
def test_a_parcel_has_no_more_events_than_there_are_numbers(layout: Layout, config: Config) -> None:
    data = b"".join(event(b"%d" % number) for number in range(50))
    packed = packer_for(layout, frames_for(config)).pack(data, range(7000, 7020))
    assert packed is not None
    assert packed[0].count == 20


@pytest.mark.parametrize("config", [PLAIN, JSON])
@pytest.mark.parametrize("size", [100, 5_000, 70_000, 400_000])
def test_a_parcel_has_whole_events_and_a_bound(layout: Layout, config: Config, size: int) -> None:
    """However long its events are: with 400,000 bytes, each parcel has one."""
    data = [event(b"%06d" % number + b"k" * size) for number in range(12)]
    packer = packer_for(layout, frames_for(config))
    left, first, keys = b"".join(data), 6000, []
    while left:
        packed = packer.pack(left, range(first, first + 1000))
        assert packed is not None
        parcel, _, used = packed
        assert used <= records.PARSE_BYTES + size + 40
        keys += [one.key for one in parcel.events() if one]
        left, first = left[used:], first + parcel.count
    assert keys == [b"%06d" % number + b"k" * size for number in range(12)]


def test_other_parameters_make_other_messages(layout: Layout) -> None:
    """The next connection may have another channel and other parameters."""
    made: list[Frames] = [frames_for()]
    packer = Packer("run", layout, lambda: made[-1])
    first = packer.pack(event(b"k"), range(5000, 5001))
    made.append(frames_for(replace(PLAIN, routing_key="other")))
    second = packer.pack(event(b"k"), range(5000, 5001))
    assert first is not None
    assert second is not None
    assert b"other" in second[1]
    assert b"other" not in first[1]


def test_without_a_connection_there_are_no_parcels(layout: Layout) -> None:
    packer = packer_for(layout, None)
    assert not packer.is_ready
    assert packer.pack(event(b"k"), range(1, 2)) is None


def test_an_event_over_which_the_handler_fails(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It goes the way on which the failure is found; if it is in a parcel already, all others in
    the parcel are kept."""
    data = b"".join(event(key) for key in (b"a", b"poison", b"b"))
    packed = packer_for(layout, frames_for()).pack(data, range(5000, 5003))
    assert packed is not None
    parcel = packed[0]

    tried: list[bytes] = []

    def poisoned(*fields: object) -> Event:
        if b"poison" in fields:
            tried.append(b"poison")
            raise RuntimeError("broken on purpose")
        return Event(*fields)  # type: ignore[arg-type]

    monkeypatch.setattr(records, "Event", poisoned)
    assert [one and one.key for one in parcel.events()] == [b"a", None, b"b"]
    assert len(tried) == 1 + STRIKES  # once at the end of a batch, and then alone
    with pytest.raises(RuntimeError, match="broken on purpose"):
        packer_for(layout, frames_for(JSON)).pack(event(b"poison"), range(1, 2))
