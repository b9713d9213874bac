"""Parsing of records: the bytes in the queues become events and requests.

This file repeats record_t and RECORD_* of shim/api.h; bridge.py compares both at load.
Pure; worker thread.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator, Sequence, Set

from ..message import Event, Subkeys, Value
from ..tables.events import CLASS_LETTERS, UNKNOWN_TYPE, VALUE_TYPES
from ..values import value
from .shim_api import Queue


class Kind(enum.IntEnum):
    """The kind of a record: RECORD_* in shim/api.h."""

    EVENT = 0
    COMMAND = 1
    CONFIG = 2
    ROLE = 3
    FLUSH = 4
    LIST_CHANGED = 5
    MESSAGE = 6
    VALUED = 7
    SLOTS_MOVED = 8
    SUBKEYED = 9
    LISTED = 10


# record_t in shim/api.h
HEAD = struct.Struct("=IIQiHBB")
# valued_t in shim/api.h: length, the key's length, type, before, has_data
VALUED = struct.Struct("=QIBB?x")
# subkeyed_t in shim/api.h: the number of all, the bytes of those that follow, the kind behind them
SUBKEYED = struct.Struct("=IIB7x")
# listed_t in shim/api.h
LISTED = struct.Struct("=QQQqII")
# Set in the class of an event that is in the list already: LISTED_BIT in shim/api.h
LISTED_BIT = 0x80
_LENGTH = struct.Struct("=I")
_NUMBER = struct.Struct("=Q")
_FLUSH = struct.Struct("=QIIB")
_SLOTS = struct.Struct("=HH")
# Bytes of events that are parsed at once: a few events with keys of a megabyte are a lot.
PARSE_BYTES = 256 * 1024


# ---- events -----------------------------------------------------------------------


class Reader:
    """Converts records to events.

    The `message_id` of an event is the id of the load and the event's number in the queue.
    """

    def __init__(self, run_id: str) -> None:
        self._prefix = f"{run_id}-"

    def parse(
        self, data: bytes, numbers: Sequence[int], *, listed: bool = False
    ) -> tuple[list[Event], int]:
        """Parse the first records, one for each of `numbers` at most: only those of events that
        are in the list already (`listed`), or only others. The first other record ends the batch.

        Return the events, and the bytes of their records. A record that raises an exception ends
        the batch before it; if it is the first one, the exception is raised.
        """
        events: list[Event] = []
        prefix, listed_bit = self._prefix, LISTED_BIT if listed else 0
        unpack, head, plain = HEAD.unpack_from, HEAD.size, _EVENT
        stop = min(len(data), PARSE_BYTES)
        at = 0
        try:
            for number in numbers:
                if at >= stop:
                    break
                total, key_len, time_ms, db, name_len, kind, bit = unpack(data, at)
                if bit & LISTED_BIT != listed_bit:
                    break
                bit -= listed_bit
                name_at = at + head
                key_at = name_at + name_len
                end = key_at + key_len
                value = subkeys = None
                if kind != plain:
                    value, subkeys, key_at, end = _read_more(kind, data, key_at, end)
                events.append(
                    Event(
                        f"{prefix}{number}",
                        time_ms,
                        db,
                        CLASS_LETTERS[bit],
                        data[name_at : name_at + name_len],
                        data[key_at:end],
                        value,
                        subkeys,
                    )
                )
                at += total
        except Exception:
            if not events:
                raise
        return events, at


# Members of an enum cost more to compare.
_EVENT, _VALUED, _SUBKEYED = int(Kind.EVENT), int(Kind.VALUED), int(Kind.SUBKEYED)


def first_records(data: bytes, size: int, most: int, start: int = 0) -> tuple[int, int]:
    """Return the bytes and the number of the first records from `start` on: the fewest that have
    at least `size` bytes together, and `most` at most."""
    at = count = 0
    while at < size and count < most:
        (total,) = _LENGTH.unpack_from(data, start + at)
        at += total
        count += 1
    return at, count


def starts_listed(data: bytes) -> bool:
    """True if the first record is that of an event which is in the list already."""
    return bool(HEAD.unpack_from(data, 0)[-1] & LISTED_BIT)


def first_of_a_kind(data: bytes, most: int, *, listed: bool) -> tuple[int, int]:
    """Return the bytes and the number of the first records, `most` at most, up to the first one of
    an event that is in the list already, or (`listed`) that is not."""
    at = count = 0
    while count < most and at < len(data):
        total, *_, bit = HEAD.unpack_from(data, at)
        if bool(bit & LISTED_BIT) != listed:
            break
        at += total
        count += 1
    return at, count


def check_records(data: bytes) -> int:
    """Return the number of records in `data`, which comes from a file. Raises ValueError if
    they are not whole records of events."""
    at = count = 0
    try:
        while at < len(data):
            total, payload_len, _, _, name_len, kind, bit = HEAD.unpack_from(data, at)
            room = total - HEAD.size - name_len - payload_len
            payload_at = at + HEAD.size + name_len
            _check_payload(kind, data[payload_at : payload_at + payload_len])
            at += total
            count += 1
            if room < 0 or at > len(data) or bit >= len(CLASS_LETTERS):
                raise ValueError
    except (struct.error, ValueError):
        raise ValueError("a record is damaged") from None
    return count


def _check_payload(kind: int, payload: bytes) -> None:
    """Raise ValueError or struct.error if this is not the payload of an event."""
    if kind == _SUBKEYED:
        _, size, kind = SUBKEYED.unpack_from(payload)
        end = SUBKEYED.size + size
        at = SUBKEYED.size
        while at < end:
            at += _LENGTH.size + _LENGTH.unpack_from(payload, at)[0]
        if at != end or end > len(payload):
            raise ValueError
        payload = payload[end:]
    if kind == _VALUED:
        if len(payload) < VALUED.size + VALUED.unpack_from(payload)[1]:
            raise ValueError
    elif kind != _EVENT:
        raise ValueError


def _read_more(
    kind: int, data: bytes, at: int, end: int
) -> tuple[Value | None, Subkeys | None, int, int]:
    """Read the payload of a VALUED or SUBKEYED record: the value, the subkeys, and the start and
    end of the key."""
    value = subkeys = None
    if kind == _SUBKEYED:
        total, size, kind = SUBKEYED.unpack_from(data, at)
        at += SUBKEYED.size
        subkeys = Subkeys(data[at : at + size], total)
        at += size
    if kind == _VALUED:
        value, at, end = _read_value(data, at, end)
    return value, subkeys, at, end


def _read_value(data: bytes, at: int, end: int) -> tuple[Value, int, int]:
    """Read the payload of a VALUED record: the value, then the start and end of the key."""
    length, key_len, kind, before, has_data = VALUED.unpack_from(data, at)
    key_at = at + VALUED.size
    key_end = key_at + key_len
    content = data[key_end:end] if has_data else None
    name = VALUE_TYPES[kind] if kind < len(VALUE_TYPES) else UNKNOWN_TYPE
    return Value(name, length, content, bool(before)), key_at, key_end


# ---- requests ---------------------------------------------------------------------


@value
class RunCommand:
    """A client's command; the reply goes to `handle`."""

    handle: int
    words: Sequence[bytes]


@value
class SetConfig:
    """New values of all parameters, in the table's order."""

    values: Sequence[bytes]


@value
class SetRole:
    """The server's role. `agreed`: another server has all writes, because they were paused
    before the change, or because the slots were handed over."""

    primary: bool
    loading: bool
    agreed: bool

    @property
    def writable(self) -> bool:
        """True if lists can be written here."""
        return self.primary and not self.loading


@value
class ListChanged:
    """A fallback list was changed, and not by a job. `jobs`: so many jobs were run before.
    `what`: the name of the event or command. `key`: the list; empty: any list."""

    jobs: int
    what: bytes
    key: bytes


@value
class SlotsMoved:
    """Slots were handed over: to this node (`came`), or by it."""

    came: bool
    slots: Set[int]


@value
class PeerMessage:
    """A message from a peer."""

    sender: str
    data: bytes


@value
class StartFlush:
    """The main thread wants a flush within `seconds`. `began`: the time at which it began to
    wait, in the clock time.monotonic. `mode`: FLUSH_* in shim/api.h."""

    began: float
    id: int
    seconds: float
    mode: int


@value
class Listed:
    """Events that the outbox has put into a list; see listed_t in shim/api.h."""

    jobs: int
    number: int
    id: int
    length: int
    count: int
    handed: int
    key: bytes


Request = (
    RunCommand | SetConfig | SetRole | ListChanged | SlotsMoved | PeerMessage | StartFlush | Listed
)


def take_requests(queue: Queue) -> Iterator[tuple[int, bytes]]:
    """Take all requests out of a queue, oldest first, as kind and payload."""
    while data := bytes(queue.take()):
        at = 0
        taken = []
        while at < len(data):
            total, payload_len, _, _, name_len, kind, _ = HEAD.unpack_from(data, at)
            start = at + HEAD.size + name_len
            taken.append((kind, data[start : start + payload_len]))
            at += total
        queue.release(at, len(taken))
        yield from taken


def parse_request(kind: int, payload: bytes) -> Request:
    """Return the request in a record. Raises ValueError or struct.error if it has none."""
    match Kind(kind):
        case Kind.COMMAND:
            (handle,) = _NUMBER.unpack_from(payload)
            return RunCommand(handle, list(counted(payload, _NUMBER.size)))
        case Kind.CONFIG:
            return SetConfig(list(counted(payload)))
        case Kind.ROLE:
            return SetRole(*map(bool, payload))
        case Kind.LIST_CHANGED:
            (jobs,) = _NUMBER.unpack_from(payload)
            return ListChanged(jobs, *counted(payload, _NUMBER.size))
        case Kind.SLOTS_MOVED:
            ranges = _SLOTS.iter_unpack(payload[1:])
            slots = {slot for first, last in ranges for slot in range(first, last + 1)}
            return SlotsMoved(bool(payload[0]), slots)
        case Kind.MESSAGE:
            sender, data = counted(payload)
            return PeerMessage(sender.decode("ascii", "replace"), data)
        case Kind.FLUSH:
            began, flush_id, milliseconds, mode = _FLUSH.unpack_from(payload)
            return StartFlush(began / 1000, flush_id, milliseconds / 1000, mode)
        case Kind.LISTED:
            jobs, number, first, length, count, handed = LISTED.unpack_from(payload)
            return Listed(jobs, number, first, length, count, handed, payload[LISTED.size :])
        case event:
            raise ValueError(f"{event!r} is not a request")


def counted(payload: bytes, at: int = 0) -> Iterator[bytes]:
    """Read the counted arguments in a payload from an offset on."""
    while at < len(payload):
        (length,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        yield payload[at : at + length]
        at += length
