"""The bridge to C: the only file that touches `ffi` and `lib` of the compiled module.

Its classes have the types of shim_api.py, so the code that uses them can be checked by
mypy and tested without the compiled module. Each method makes one call of shim/api.h, or
a few that belong together; shim/api.h documents them. No decisions are made here.
Worker thread only, except `Bridge.log`, which any thread may call.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from _keyspace_amqp import ffi, lib

from ..jobs import (
    BusMessage,
    Command,
    Job,
    JobResult,
    Lengths,
    OutboxStep,
    SetParameters,
    SnapshotStep,
)
from ..tables.stats import Stat, Text
from . import records
from .shim_api import LaidOut, OutboxState, Template


def _check_layouts() -> None:
    """Check that records.py and the compiled module agree on the layout of records. Raises
    ImportError."""
    names = {name for name in dir(lib) if name.startswith("RECORD_")}
    for kind in records.Kind:
        name = f"RECORD_{kind.name}"
        if getattr(lib, name, None) != kind:
            raise ImportError(f"{name} in shim/api.h is not {kind!r} in records.py")
        names.remove(name)
    if names:
        raise ImportError(f"records.py does not know {', '.join(sorted(names))} of shim/api.h")
    layouts = {
        "record_t": records.HEAD,
        "valued_t": records.VALUED,
        "subkeyed_t": records.SUBKEYED,
        "listed_t": records.LISTED,
    }
    for struct, layout in layouts.items():
        if ffi.sizeof(struct) != layout.size:
            raise ImportError(f"{struct} in shim/api.h has another size than in records.py")


_check_layouts()


class Queue:
    """See shim_api.Queue."""

    def __init__(self, queue: Any) -> None:
        self._queue = queue
        self._records = ffi.new("const char **")

    @property
    def pushed(self) -> int:
        return int(lib.queue_pushed(self._queue))

    @property
    def released(self) -> int:
        return int(lib.queue_released(self._queue))

    @property
    def length(self) -> int:
        return int(lib.queue_length(self._queue))

    @property
    def size(self) -> int:
        return int(lib.queue_bytes(self._queue))

    @property
    def limit(self) -> int:
        return int(lib.queue_get_limit(self._queue))

    def take(self) -> Any:
        size = lib.queue_take(self._queue, self._records)
        return ffi.buffer(self._records[0], size) if size else b""

    def release(self, size: int, count: int) -> None:
        lib.queue_release(self._queue, size, count)


class PendingJob:
    """See shim_api.PendingJob."""

    def __init__(self, job: Job) -> None:
        self._count = len(job.commands)
        self._job = pointer = lib.job_new()
        for command in job.commands:
            match command:
                case SetParameters():
                    lib.job_parameters(pointer)
                case Lengths():
                    lib.job_lengths(pointer)
                case BusMessage():
                    lib.job_message(pointer)
                case OutboxStep(open=opens):
                    lib.job_outbox(pointer, opens)
                case SnapshotStep():
                    lib.job_snapshot(pointer)
                case Command():
                    lib.job_command(pointer, command.name.encode(), command.write)
                    if command.grows:
                        lib.job_grows(pointer)
            lengths = ffi.new("size_t[]", list(map(len, command.arguments)))
            lib.job_arguments(pointer, b"".join(command.arguments), lengths, len(lengths))
            if isinstance(command, Command) and command.expected is not None:
                lib.job_expect(pointer, command.expected, len(command.expected))
            if isinstance(command, Command) and command.most:
                lib.job_most(pointer, command.most)

    @property
    def done(self) -> bool:
        return bool(lib.job_done(self._job))

    def submit(self) -> None:
        lib.job_submit(self._job)

    def result(self) -> JobResult:
        size = ffi.new("size_t *")
        error = ffi.new("int *")
        replies: list[tuple[bytes | None, int]] = []
        for number in range(self._count):
            raw = lib.job_reply(self._job, number, size, error)
            replies.append((None if raw == ffi.NULL else ffi.buffer(raw, size[0])[:], error[0]))
        return JobResult(replies)

    def free(self) -> None:
        lib.job_free(self._job)

    def abandon(self) -> None:
        lib.job_abandon(self._job)


# Bytes of messages that are laid out at once, and their number.
_MESSAGES_BYTES = 512 * 1024
_MESSAGES = 4096


class Layout:
    """See shim_api.Layout."""

    def __init__(self) -> None:
        self._out = ffi.new("char[]", _MESSAGES_BYTES)
        self._times = ffi.new("uint64_t[]", 2 * _MESSAGES)
        self._all = ffi.new("messages_t *")
        self._all.out, self._all.room = self._out, _MESSAGES_BYTES
        self._all.times = self._times

    def lay_out(
        self, records: bytes, at: int, size: int, template: Template, body_max: int,
        number: int, most: int,
    ) -> LaidOut:  # fmt: skip
        messages = self._all
        parts = [ffi.from_buffer(part) for part in template]
        messages.first, messages.second, messages.third = parts
        messages.first_len, messages.second_len, messages.third_len = map(len, parts)
        messages.body_max, messages.number = body_max, number
        messages.most = min(most, _MESSAGES)
        lib.messages_write(messages, ffi.from_buffer(records) + at, size - at)
        runs = ffi.unpack(self._times, 2 * messages.runs)
        return LaidOut(
            messages.count,
            messages.size,
            ffi.buffer(self._out, messages.len)[:],
            list(zip(runs[::2], runs[1::2], strict=True)),
        )


class Bridge:
    """See shim_api.Shim."""

    def __init__(self) -> None:
        self.events = Queue(lib.shim_events())
        self.requests = Queue(lib.shim_requests())
        self.counters: Any = lib.shim_stats()
        self.layout = Layout()
        self.clustered = bool(lib.shim_clustered())
        self.port = int(lib.shim_port())
        self.wake_fd = int(lib.shim_wake_fd())
        self.slice_call = int(lib.shim_slice_call())

    def set_slice(self, nice: int, nanoseconds: int) -> int:
        return int(lib.shim_set_slice(nice, nanoseconds))

    def before_wait(self) -> None:
        lib.shim_before_wait()

    def after_wait(self) -> None:
        lib.shim_after_wait()

    def log(self, level: str, line: str) -> None:
        lib.shim_log(level.encode(), _text(line))

    def set_text(self, text: Text, value: str) -> None:
        lib.shim_set_text(text, _text(value))

    def numbers(self) -> list[int]:
        numbers = ffi.new("int64_t[]", len(Stat))
        lib.shim_numbers(numbers)
        return list(numbers)

    def reset_numbers(self, forgotten: int) -> None:
        lib.shim_reset_numbers(forgotten)

    def make_job(self, job: Job) -> PendingJob:
        return PendingJob(job)

    def outbox_state(self) -> OutboxState:
        return OutboxState(lib.shim_outbox_state())

    def outbox_start(self, prefix: str, key: bytes) -> None:
        lib.shim_outbox_start(prefix.encode(), key)

    def outbox_wants(self, wanted: bool) -> None:
        lib.shim_outbox_wants(wanted)

    def outbox_booked(self, count: int) -> None:
        lib.shim_outbox_booked(count)

    def outbox_taken(self, count: int) -> None:
        lib.shim_outbox_taken(count)

    def command_done(self, handle: int, reply: bytes) -> None:
        lib.shim_command_done(handle, reply, len(reply))

    def flush_done(self, flush_id: int) -> None:
        lib.shim_flush_done(flush_id)

    def ready(self, ok: bool) -> bool:
        return bool(lib.shim_ready(ok))


def _text(text: str) -> bytes:
    """Return a text for C, which would end it at the first NUL: NUL becomes a space."""
    return text.encode("utf-8", "backslashreplace").replace(b"\0", b" ")


def enter_at(main: Callable[[Bridge], int]) -> None:
    """Set the function that the worker thread runs, from load to unload. It must not
    raise."""

    def handler_main() -> int:
        return main(Bridge())

    ffi.def_extern(error=-1)(handler_main)
