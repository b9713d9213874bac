"""The worker: the thread that owns all state, and its loop.

The only module that touches `ffi` and `lib`. One turn of the loop: take what
Redis' main thread has put into the queues, ask the publisher what to do, do it,
and wait in pika's IOLoop for the broker, for Redis, or for the next time that
something is due. While it waits the GIL is free, and it waits for nothing else:
jobs for Redis' main thread are handed over, and their results are fetched in a
later turn.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import gc
import os
import re
import secrets
import socket
import struct
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence

from _keyspace_amqp import ffi, lib
from pika.adapters.select_connection import IOLoop

from .. import __version__, commands
from ..broker.connection import Broker
from ..broker.target import address, target_of
from ..cluster.peers import ApplyRegisters, Peers, Question, RunCommand, SendToPeer
from ..cluster.topology import Topology
from ..cluster.watch import ClusterWatch
from ..cluster.wire import Register
from ..config import Config, parse_databases, raw
from ..jobs import BusMessage, Command, Job, JobResult, Lengths, SetParameters
from ..masks import Matcher, compile_masks
from ..message import CLASS_LETTERS, Event, Format, Value
from ..publisher.publisher import (
    Action,
    Close,
    Connect,
    Flush,
    Flushed,
    Log,
    Publisher,
    Recovered,
    Send,
    Submit,
    is_stale,
)
from ..tables.stats import Stat, Text
from . import log
from .leftovers import Leftovers
from .pace import Pace

# record_t in shim/api.h
_HEAD = struct.Struct("=IIQiHBB")
_LENGTH = struct.Struct("=I")
# valued_t there: length, key's length, type, before, whether there are data
_VALUED = struct.Struct("=QIBB?x")
# REDISMODULE_KEYTYPE_* as TYPE calls them
_TYPES = ("none", "string", "list", "hash", "set", "zset", "module", "stream")
# The queue's filling, in parts of its limit: from here on events go to the list
# even if the broker is there, from there on they do not, and from there on the
# oldest are given up because nothing else has helped.
_PRESSURE_ON = 1 / 2
_PRESSURE_OFF = 1 / 4
_OVERFLOW = 7 / 8
# From so many events and confirms a second on, the worker sleeps so many seconds before
# each turn: for long while the broker has enough to do. At 20,000 events a second it takes
# a fifth of a core this way, instead of all of it; naps of 3 ms and more for all cases
# made Redis' own latency worse, because what follows them comes in larger lumps.
_BUSY = 8000
_NAP = 0.001
_LONG_NAP = 0.005
# The rate is looked at no more often than this (seconds).
_COUNT_EVERY = 0.01
# Bytes of events taken at once.
_TAKE_BYTES = 256 * 1024
# Objects to be made, more than are freed, before Python looks for cycles of garbage.
_GARBAGE = 50_000
# The same complaint is logged once in this many seconds.
_LOG_EVERY = 10.0
_LOG_KINDS = 100
_DIGITS = re.compile(r"[0-9]+")
# After an exception that nobody foresaw, the loop takes a breath.
_ERROR_PAUSE = 0.1
# An event over which the handler fails so often is given up.
_ATTEMPTS = 3
# How long a stop waits for the broker to agree to the end of the connection.
_CLOSE_TIMEOUT = 0.5
# And how long it takes in events for the file of leftovers.
_LEAVE_TIMEOUT = 2.0


_Job = tuple["ffi.CData", Job, Callable[[JobResult], None]]
_Answer = Callable[[commands.Reply | commands.CommandError], None]


@dataclasses.dataclass(eq=False)
class _Command:
    steps: commands.Steps
    answer: _Answer
    answered: bool = False


class _Lane:
    """Commands one at a time: each sees what the one before it has changed."""

    def __init__(self) -> None:
        self.waiting: collections.deque[_Command] = collections.deque()
        self.running: _Command | None = None


class Worker:
    """One life of the module, from load to unload. Also what commands act on."""

    config: Config
    raw_config: Sequence[bytes]

    def __init__(self) -> None:
        # 64 random bits tell nodes and restarts apart, an event's place among all
        # that came through the queue tells events apart.
        self._run_id = secrets.token_hex(8)
        self._taken = 0  # events taken from the queue
        self._failures = 0  # in a row, over the event that is next
        self._events = lib.shim_events()
        self._requests = lib.shim_requests()
        self._pointer = ffi.new("const char **")
        self._stats = lib.shim_stats()
        self._shown = [0] * len(Stat)
        self._shown_texts: dict[Text, str] = {}
        self._logged: dict[str, float] = {}
        self._jobs: collections.deque[_Job] = collections.deque()
        # What clients ask may wait for other nodes; what these ask never does, or two
        # nodes could wait for each other.
        self._clients, self._peers = _Lane(), _Lane()
        # Whoever sets parameters, and who wants to after that.
        self._setting: collections.deque[commands.Resume] = collections.deque()
        # Who waits until the lists are known.
        self._need_lists: list[commands.Resume] = []
        # New masks and databases apply to events behind the change, not to those before it.
        self._filter_changes: collections.deque[tuple[int, Config]] = collections.deque()
        self._pace = Pace()
        self._schedstat = -1  # in this file Linux tells of the main thread
        # See _nap.
        self._counted = 0
        self._counted_at = 0.0
        self._busy = False
        self._stopped = False
        self._broken = False  # after an exception, until all is repaired
        self._ioloop = IOLoop()
        self._ioloop.add_handler(lib.shim_wake_fd(), lambda fd, events: None, IOLoop.READ)
        self._wake_up: object = None
        primary = loading = False
        for kind, payload in self._read_requests():
            if kind == lib.RECORD_ROLE:
                primary, loading = bool(payload[0]), bool(payload[1])
            elif kind == lib.RECORD_CONFIG:
                self.raw_config = list(_counted(payload, 8))
        self.config = Config.from_values(self.raw_config)
        self._set_filter(self.config)
        self.clustered = bool(lib.shim_clustered())
        self._publisher = Publisher(self.config, time.monotonic, _unix_ms, clustered=self.clustered)
        self._publisher.set_role(primary=primary, loading=loading)
        self._watch = ClusterWatch(self._publisher, time.monotonic, clustered=self.clustered)
        self._watch.set_role(writable=primary and not loading)
        self._spread = Peers(self._run_id, time.monotonic, _unix_ms)
        self._broker = Broker(self._ioloop, self._publisher)
        self._topology = self._watch.topology
        self._node = ""
        self._form = Format(self.config, self._node)
        self._name_node()
        self._set_nice()
        self._leftovers = Leftovers(lib.shim_port())
        self._recover()

    # ---- the loop ----------------------------------------------------------

    def run(self) -> None:
        """Runs until a flush with stop is done. Never raises."""
        self._ioloop.activate_poller()
        with contextlib.suppress(OSError):  # a Linux without these numbers
            self._schedstat = os.open(f"/proc/self/task/{os.getpid()}/schedstat", os.O_RDONLY)
        while not self._stopped:
            try:
                self._nap()
                self._turn()
                if self._stopped:
                    break
                lib.shim_before_wait()
                self._ioloop.poll()
                lib.shim_after_wait()
                self._ioloop.process_timeouts()
            except Exception:
                with contextlib.suppress(Exception):  # the next turn tries again
                    self._unexpected()
        self._end()

    def _nap(self) -> None:
        """Where many events come, they are dealt with many at a time: a turn for each
        takes ten times the CPU, which Redis and the broker may need, and Redis' main
        thread has to wake a worker that waits for each."""
        now = time.monotonic()
        elapsed = now - self._counted_at
        if elapsed >= _COUNT_EVERY:
            # Both events and confirms: these too come one by one if nobody waits.
            dealt = int(lib.queue_pushed(self._events)) + self._publisher.counts[Stat.CONFIRMED]
            self._busy = dealt - self._counted > _BUSY * elapsed
            self._counted, self._counted_at = dealt, now
            if self._schedstat >= 0:
                ran, waited, _ = os.pread(self._schedstat, 100, 0).split()
                self._pace.look(now, int(ran) / 1e9, int(waited) / 1e9)
        if not self._busy or self._publisher.flushing:
            return
        if self._memory() < int(lib.queue_get_limit(self._events)) * _PRESSURE_OFF:
            time.sleep(_LONG_NAP if self._publisher.ahead else _NAP)

    def _turn(self) -> None:
        if self._broken:
            self._repair()
        # What others did before a job ran is to be known before its result is
        # read, and what the job itself changed before the next command.
        finished = self._count_finished_jobs()
        # Only events up to here are taken: a change of masks that came before
        # any of them is among the requests that are read next.
        pushed = int(lib.queue_pushed(self._events))
        self._take_requests()
        for _ in range(finished):
            self._job_finished(*self._jobs.popleft())
        self._take_requests()
        self._look_around()
        need_lists, self._need_lists = self._need_lists, []
        for resume in need_lists:
            self.when_lists_known(resume)
        # A client's command may be for all nodes, so they have to be known.
        for lane in (self._clients, self._peers) if self._watch.topology_known else (self._peers,):
            while lane.running is None and lane.waiting:
                lane.running = lane.waiting.popleft()
                self._step(lane, lane.running, None)
        self._take_events(pushed)
        failed = False
        more, most = self._waiting_outside() > 0, None
        if self.config.worker_nice > 0:
            most = self._pace.allows(time.monotonic())
        for action in self._publisher.poll(more=more, most=most):
            try:
                if not (failed and is_stale(action)):
                    self._do(action)
            except Exception:
                failed = True
                self._unexpected()
        self._show()
        self._schedule()

    def _unexpected(self) -> None:
        """An exception that is a mistake of ours: show it, and go on. Connection
        and list may be in any state, so they are taken up anew."""
        self._broken = True
        self._publisher.counts[Stat.HANDLER_ERRORS] += 1
        with contextlib.suppress(Exception):
            log.LOGGER.error("unexpected exception in the handler:\n%s", traceback.format_exc())
        with contextlib.suppress(Exception):
            self._show()
        time.sleep(_ERROR_PAUSE)
        self._repair()

    def _repair(self) -> None:
        self._broker.close()
        self._publisher.link_down("unexpected exception in the handler, see the log")
        jobs = [done for _, _, done in self._jobs]
        self._publisher.repair(job_lost=self._publisher.job_done not in jobs)
        if self._watch.done not in jobs:
            self._watch.repair()
        self._broken = False

    def _end(self) -> None:
        """Gives the descriptors back. Waits a moment for the broker's goodbye."""
        with contextlib.suppress(Exception):
            self._broker.close()
            until = time.monotonic() + _CLOSE_TIMEOUT
            while self._broker.closing and time.monotonic() < until:
                self._ioloop.call_later(0.01, lambda: None)
                self._ioloop.poll()
                self._ioloop.process_timeouts()
        self._show()
        if self._schedstat >= 0:
            os.close(self._schedstat)
        for _ in range(self._count_finished_jobs()):
            lib.job_free(self._jobs.popleft()[0])
        with contextlib.suppress(Exception):
            self._ioloop.remove_handler(lib.shim_wake_fd())
            self._ioloop.deactivate_poller()
            self._ioloop.close()

    def _schedule(self) -> None:
        """Sets the time of the next turn, if nothing happens before."""
        if self._wake_up is not None:
            self._ioloop.remove_timeout(self._wake_up)
            self._wake_up = None
        if self._publisher.again or (self._waiting_outside() and self._publisher.room() > 0):
            delay = 0.0
        else:
            times = [self._publisher.wake_at(), self._watch.wake_at(), self._spread.wake_at()]
            if self._pace.rate is not None:
                times.append(self._counted_at + _COUNT_EVERY)
            at = min((time for time in times if time is not None), default=None)
            if at is None:
                return
            delay = max(at - time.monotonic(), 0.0)
        self._wake_up = self._ioloop.call_later(delay, self._on_time)

    def _on_time(self) -> None:
        self._wake_up = None

    def _do(self, action: Action) -> None:
        match action:
            case Send(events=events):
                self._broker.send(events)
            case Submit(job=job):
                self._submit(job, self._publisher.job_done)
            case Connect():
                try:
                    self._broker.connect(self.config, self._client_properties())
                except Exception as error:  # a file, or a value that pika does not like
                    self._publisher.link_down(f"cannot connect: {error}")
            case Close():
                self._broker.close()
            case Log(level=level, text=text):
                _sink(level, text)
            case Flushed(id=flush_id, mode=mode, left=left):
                try:
                    if mode is not Flush.STORE:
                        self._stopped = True
                        self._leave(left)
                finally:
                    lib.shim_flush_done(flush_id)
            case Recovered():
                self._leftovers.remove()

    def _leave(self, events: Sequence[Event] | None) -> None:
        """The end: what has no place in Redis any more goes to a file, or is told of."""
        left = list(events or ())
        if events is not None:
            until = time.monotonic() + _LEAVE_TIMEOUT
            while time.monotonic() < until:
                size = int(lib.queue_take(self._events, self._pointer))
                if not size:
                    break
                late, at, count = self._parse(ffi.buffer(self._pointer[0], size), size, size)
                self._release(at, count)
                left += late
        if left:
            try:
                self._leftovers.write(left)
                _sink(
                    "notice",
                    f"{len(left)} events came too late for the fallback list; they are in "
                    f"{self._leftovers.path} for the next load",
                )
            except OSError as error:
                why = f"{self._leftovers.path} could not be written: {error}"
                _sink("warning", f"{len(left)} events lost: {why}")
        if rest := self._waiting_outside():
            # As with events that found the queue full, nobody asked a mask.
            _sink("warning", f"{rest} more events lost: there was no time to take them in")

    def _recover(self) -> None:
        """Takes up what an earlier life of this server has left."""
        try:
            events = self._leftovers.read()
        except (OSError, ValueError) as error:
            text = f"{self._leftovers.path} cannot be read: {error}"
            with contextlib.suppress(OSError):
                text += f"; it is {self._leftovers.set_aside()} now"
            log.LOGGER.error("%s", text)
            return
        if events:
            log.LOGGER.info("%d events from %s", len(events), self._leftovers.path)
            self._publisher.recover(events)

    # ---- from Redis --------------------------------------------------------

    def _waiting_outside(self) -> int:
        return int(lib.queue_length(self._events))

    def _read_requests(self) -> Iterator[tuple[int, bytes]]:
        """Takes all requests, oldest first."""
        while True:
            size = lib.queue_take(self._requests, self._pointer)
            if size == 0:
                return
            data = ffi.buffer(self._pointer[0], size)[:]
            at = count = 0
            records = []
            while at < size:
                total, payload_len, _, _, name_len, kind, _ = _HEAD.unpack_from(data, at)
                start = at + _HEAD.size + name_len
                records.append((kind, data[start : start + payload_len]))
                at += total
                count += 1
            lib.queue_release(self._requests, size, count)
            yield from records

    def _take_requests(self) -> None:
        for kind, payload in self._read_requests():
            try:
                self._request(kind, payload)
            except Exception:  # the others are to be heard all the same
                self._unexpected()

    def _request(self, kind: int, payload: bytes) -> None:
        if kind == lib.RECORD_COMMAND:
            (handle,) = struct.unpack_from("=Q", payload)
            steps = commands.answer(self, list(_counted(payload, 8)))
            self._clients.waiting.append(_Command(steps, functools.partial(_reply, handle)))
        elif kind == lib.RECORD_CONFIG:
            (pushed,) = struct.unpack_from("=Q", payload)
            self._configure(list(_counted(payload, 8)), pushed)
        elif kind == lib.RECORD_ROLE:
            primary, loading, agreed = map(bool, payload)
            self._publisher.set_role(primary=primary, loading=loading, agreed=agreed)
            self._watch.set_role(writable=primary and not loading)
        elif kind == lib.RECORD_TOUCHED:
            what, key = _counted(payload, 0)
            self._publisher.touched(what, key)
            self._watch.list_changed(key)
        elif kind == lib.RECORD_MESSAGE:
            sender, text = _counted(payload, 0)
            self._spread.received(sender.decode("ascii", "replace"), text)
        elif kind == lib.RECORD_FLUSH:
            flush_id, milliseconds, mode = struct.unpack_from("=IIB", payload)
            self._publisher.flush(flush_id, milliseconds / 1000, Flush(mode))

    def _configure(self, values: Sequence[bytes], pushed: int) -> None:
        if values == self.raw_config:
            return
        old, new = self.config, Config.from_values(values)
        if (new.masks, new.databases) != (old.masks, old.databases):
            self._filter_changes.append((pushed, new))
        self.raw_config = values
        self.config = new
        if self.config.worker_nice != old.worker_nice:
            self._set_nice()
        self._node = ""
        self._name_node()
        self._publisher.configure(self.config)

    def _set_filter(self, config: Config) -> None:
        self._masks: Matcher = compile_masks(config.masks)
        self._wants_db = parse_databases(config.databases)

    def _name_node(self) -> None:
        """Finds out what this server is called; a cluster tells it after a while, and may
        call it another name later."""
        # RabbitMQ and JSON want text.
        name = raw(self.config.node_name).decode("utf-8", "backslashreplace")
        if not name:
            topology = self._watch.topology
            own = topology.nodes.get(topology.myself)
            host, _, port = (own.address if own is not None else "").rpartition(":")
            name = f"{host or socket.gethostname()}:{port or lib.shim_port()}"
        if name != self._node:
            self._node = name
            cut = self._form.cut
            self._form = Format(self.config, name)
            self._form.cut = cut
            self._broker.configure(self.config, self._form)

    def _client_properties(self) -> dict[str, str]:
        """What RabbitMQ's tools show of the connection."""
        cluster = f"node {self._watch.topology.myself}" if self.clustered else "none"
        return {
            "connection_name": f"keyspace-amqp {self._node}",
            "node": self._node,
            "cluster": cluster,
        }

    def _set_nice(self) -> None:
        error = ffi.new("char[128]")
        if lib.shim_set_nice(self.config.worker_nice, error, 128) != 0:
            log.LOGGER.warning(
                "worker-nice %d could not be set: %s",
                self.config.worker_nice,
                ffi.string(error).decode(),
            )

    def _take_events(self, until: int) -> None:
        """Takes events, the first to the one with number `until`, as many as the
        publisher has room for, through the masks."""
        limit = int(lib.queue_get_limit(self._events))
        while True:
            if self._filter_changes and self._taken >= self._filter_changes[0][0]:
                self._set_filter(self._filter_changes.popleft()[1])
                continue
            room = self._publisher.room()
            memory = self._memory()
            over = memory - int(limit * _OVERFLOW)
            if over >= 0 and (room <= 0 or self._publisher.stuck):
                # A single event may need nearly all that there is.
                if self._publisher.drop_oldest(over + 1, keep=int(memory <= limit)):
                    continue
                if room <= 0:
                    break
            if room <= 0 or self._taken >= until:
                break
            room = min(room, until - self._taken)
            size = lib.queue_take(self._events, self._pointer)
            if size == 0:
                break
            if self._filter_changes:
                room = min(room, self._filter_changes[0][0] - self._taken)
            # Given back when they are safe: an exception before that loses nothing.
            events, at, count = self._parse(ffi.buffer(self._pointer[0], size), size, room)
            self._publisher.add(events)
            self._release(at, count)
        memory = self._memory()
        if memory > limit * _PRESSURE_ON:
            self._publisher.set_pressure(True)
        elif memory < limit * _PRESSURE_OFF:
            self._publisher.set_pressure(False)

    def _memory(self) -> int:
        """Bytes of events that wait, here and outside."""
        return int(lib.queue_bytes(self._events)) + self._publisher.gauges()[Stat.QUEUE_BYTES]

    def _release(self, size: int, count: int) -> None:
        """Gives the memory of parsed records back."""
        lib.queue_release(self._events, size, count)
        self._taken += count

    def _parse(self, data: ffi.buffer, size: int, most: int) -> tuple[list[Event], int, int]:
        """Parses at most so many records: the events that a mask lets through, and
        the number of bytes and records that were parsed."""
        events: list[Event] = []
        wants_db, valued = self._wants_db, int(lib.RECORD_VALUED)
        unpack, head, matches, run_id = _HEAD.unpack_from, _HEAD.size, self._masks, self._run_id
        at = count = 0
        # In bytes too: with keys of a megabyte a few events are a lot.
        while at < size and count < most and at < _TAKE_BYTES:
            total, key_len, time_ms, db, name_len, kind, bit = unpack(data, at)
            try:
                name_at = at + head
                key_at = name_at + name_len
                end = key_at + key_len
                value = None
                if kind == valued:
                    value, key_at, end = _read_value(data, key_at, end)
                if (wants_db is None or wants_db(db)) and matches(data, key_at, end):
                    message_id = f"{run_id}-{self._taken + count + 1}"
                    letter, name = CLASS_LETTERS[bit], data[name_at : name_at + name_len]
                    events.append(
                        Event(message_id, time_ms, db, letter, name, data[key_at:end], value)
                    )
            except Exception:
                if count:  # those before it first; then it is the first
                    break
                self._failures += 1
                if self._failures < _ATTEMPTS:
                    raise
                self._give_up_event()
            self._failures = 0
            at += total
            count += 1
        return events, at, count

    def _give_up_event(self) -> None:
        """An event over which the handler fails again and again must not stop all
        that come after it."""
        self._publisher.counts[Stat.HANDLER_ERRORS] += 1
        log.LOGGER.error("the handler fails over an event:\n%s", traceback.format_exc())
        self._publisher.give_up()

    # ---- jobs --------------------------------------------------------------

    def _submit(self, job: Job, done: Callable[[JobResult], None]) -> None:
        pointer = lib.job_new()
        for command in job.commands:
            match command:
                case SetParameters():
                    lib.job_parameters(pointer)
                case Lengths():
                    lib.job_lengths(pointer)
                case BusMessage():
                    lib.job_message(pointer)
                case Command():
                    lib.job_command(pointer, command.name.encode(), command.write)
            lengths = ffi.new("size_t[]", list(map(len, command.arguments)))
            lib.job_arguments(pointer, b"".join(command.arguments), lengths, len(lengths))
            if isinstance(command, Command) and command.expected is not None:
                lib.job_expect(pointer, command.expected, len(command.expected))
            if isinstance(command, Command) and command.most:
                lib.job_most(pointer, command.most)
        self._jobs.append((pointer, job, done))
        lib.job_submit(pointer)

    def _count_finished_jobs(self) -> int:
        """How many, from the oldest on, Redis' main thread has run."""
        unfinished = (n for n, job in enumerate(self._jobs) if not lib.job_done(job[0]))
        return next(unfinished, len(self._jobs))

    def _job_finished(
        self, pointer: ffi.CData, job: Job, done: Callable[[JobResult], None]
    ) -> None:
        try:
            size = ffi.new("size_t *")
            error = ffi.new("int *")
            replies: list[tuple[bytes | None, int]] = []
            for number in range(len(job.commands)):
                raw = lib.job_reply(pointer, number, size, error)
                replies.append((None if raw == ffi.NULL else ffi.buffer(raw, size[0])[:], error[0]))
            done(JobResult(replies))
        except Exception:
            self._unexpected()
        finally:
            lib.job_free(pointer)

    # ---- commands ----------------------------------------------------------

    def _step(self, lane: _Lane, command: _Command, value: object) -> None:
        """Carries a command on until it waits for something, or ends."""
        if command.answered:
            return  # with an error, after an exception

        def resume(result: object) -> None:
            self._step(lane, command, result)

        try:
            wait = command.steps.send(value)
            if isinstance(wait, commands.WaitForPeers) and lane.running is command:
                lane.running = None
            if isinstance(wait, Job):
                self._submit(wait, resume)
            else:
                wait(resume)
            return
        except StopIteration as stop:
            reply = stop.value
        except commands.CommandError as error:
            reply = error
        except Exception:
            reply = self._command_failed()
            command.steps.close()
        command.answered = True
        if lane.running is command:
            lane.running = None
        try:
            command.answer(reply)
        except Exception:
            command.answer(self._command_failed())

    def _command_failed(self) -> commands.CommandError:
        self._publisher.counts[Stat.HANDLER_ERRORS] += 1
        log.LOGGER.error("unexpected exception in a command:\n%s", traceback.format_exc())
        return commands.CommandError("unexpected exception in the handler, see the log")

    def connect(self) -> None:
        self._publisher.connect()

    def disconnect(self) -> None:
        self._publisher.disconnect()

    def drain(self) -> int:
        self._publisher.drain()
        self._watch.list_changed(b"")
        return self._publisher.gauges()[Stat.FALLBACK_LENGTH]

    def purge(self, done: commands.Resume) -> None:
        self._publisher.purge(done)

    def imported(self, key: bytes, length: int, count: int) -> None:
        self._publisher.imported(key, length, count)
        if key != self._publisher.key:
            self._watch.list_changed(key)

    def reset_stats(self) -> None:
        self._publisher.reset_stats()
        self._spread.rejected = self._form.cut = 0
        lib.shim_reset_numbers()

    @property
    def writable(self) -> bool:
        return self._publisher.writable

    @property
    def list_keys(self) -> Sequence[bytes] | None:
        return self._publisher.lists

    def when_lists_known(self, done: commands.Resume) -> None:
        if self.writable and self.list_keys is None:
            self._need_lists.append(done)
        else:
            done(None)

    def counters(self) -> dict[str, int]:
        self._show()
        numbers = ffi.new("int64_t[]", len(Stat))
        lib.shim_numbers(numbers)
        return {stat.name.lower(): int(numbers[stat]) for stat in Stat}

    def node_state(self) -> dict[str, str | int]:
        numbers = self.counters()
        return {
            "role": "primary" if self._publisher.primary else "replica",
            "version": __version__,
            "config_version": self._spread.config_version,
            "state": self._publisher.state,
            "fallback_length": numbers["fallback_length"],
            "queue_length": numbers["queue_length"],
            "last_error": self._publisher.last_error,
        }

    # ---- the other nodes -----------------------------------------------------

    @property
    def topology(self) -> Topology:
        return self._watch.topology

    def lock_parameters(self, done: commands.Resume) -> None:
        self._setting.append(done)
        if len(self._setting) == 1:
            done(None)

    def unlock_parameters(self) -> None:
        self._setting.popleft()
        if self._setting:
            self._setting[0](None)

    def assign(self, values: Mapping[str, bytes]) -> Mapping[str, Register]:
        return self._spread.assign(values)

    def merge(self, registers: Mapping[str, Register]) -> Mapping[str, bytes]:
        return self._spread.merge(registers)

    def outdated(self, registers: Mapping[str, Register]) -> Sequence[str]:
        return self._spread.outdated(registers)

    def tell(self, registers: Mapping[str, Register], done: commands.Resume) -> None:
        self._spread.tell(registers, done)

    def run_elsewhere(self, words: Sequence[bytes], done: commands.Resume) -> None:
        self._spread.run(words, done)

    def _look_around(self) -> None:
        """What the lists and the other nodes of the cluster want."""
        job = self._watch.poll()
        if job is not None:
            self._submit(job, self._watch.done)
        if self._watch.topology is not self._topology:
            self._topology = self._watch.topology
            self._name_node()
        self._spread.set_topology(self._topology)
        for action in self._spread.poll():
            match action:
                case SendToPeer(target=target, data=data):
                    # Whether it went out will show; who needs an answer asks again.
                    self._submit(Job([BusMessage([target.encode(), data])]), lambda result: None)
                case ApplyRegisters(registers=registers, question=question):
                    answer = functools.partial(self._answer_peer, question)
                    self._peers.waiting.append(_Command(commands.apply(self, registers), answer))
                case RunCommand(words=words, question=question):
                    steps = commands.answer(self, words, asked=True)
                    answer = functools.partial(self._answer_peer, question)
                    self._peers.waiting.append(_Command(steps, answer))
        if self._watch.problem:
            self._log_seldom("warning", self._watch.problem)
            self._publisher.last_error, self._watch.problem = self._watch.problem, ""
        if self._spread.last_rejected:
            self._log_seldom("warning", f"ignored: {self._spread.last_rejected}", "ignored")
            self._spread.last_rejected = ""

    def _answer_peer(
        self, question: Question | None, reply: commands.Reply | commands.CommandError
    ) -> None:
        error, value = None, None
        if isinstance(reply, commands.CommandError):
            error = str(reply)
            text = f"refused what another node has sent: {error}"
            self._log_seldom("warning", text, "refused")
        else:
            value = commands.to_json(reply)
        if question is not None:
            self._spread.answer(question, value, error)

    # ---- what people see ---------------------------------------------------

    def _log_seldom(self, level: str, text: str, kind: str = "") -> None:
        """Logs, but the same kind of line only every few seconds. `kind` says which it
        is where others choose the words."""
        kind = kind or _DIGITS.sub("#", text)
        now = time.monotonic()
        if now >= self._logged.get(kind, -_LOG_EVERY) + _LOG_EVERY:
            if len(self._logged) >= _LOG_KINDS:
                self._logged.clear()
            self._logged[kind] = now
            _sink(level, text)

    def _show(self) -> None:
        """Brings the counters and texts up to date."""
        publisher = self._publisher
        publisher.counts[Stat.MESSAGES_REJECTED] = self._spread.rejected
        publisher.counts[Stat.ROUTING_KEYS_CUT] = self._form.cut
        numbers = publisher.counts.copy()
        for stat, number in publisher.gauges().items():
            numbers[stat] = number
        for place, (number, shown) in enumerate(zip(numbers, self._shown, strict=True)):
            if number != shown:
                self._stats[place] = number
        self._shown = numbers
        state = publisher.state
        texts = {
            Text.STATE: state,
            Text.BROKER: self._broker.server or address(*target_of(self.config).servers[0]),
            Text.LAST_ERROR: publisher.last_error,
        }
        for text, value in texts.items():
            if self._shown_texts.get(text) != value:
                self._shown_texts[text] = value
                clean = " ".join(value.split()).replace("\0", " ")
                lib.shim_set_text(text, clean.encode("utf-8", "backslashreplace"))
                if text is Text.STATE:
                    self._log_seldom("notice", f"{state} ({texts[Text.BROKER]})")
                elif text is Text.LAST_ERROR and value:
                    self._log_seldom("warning", clean)


def _unix_ms() -> int:
    return int(time.time() * 1000)


def _reply(handle: int, reply: commands.Reply | commands.CommandError) -> None:
    """Ends the command of a client."""
    data = commands.encode(reply)
    lib.shim_command_done(handle, data, len(data))


def _counted(payload: bytes, at: int) -> Iterator[bytes]:
    """The arguments in a request's payload, each with its length before it."""
    while at < len(payload):
        (length,) = _LENGTH.unpack_from(payload, at)
        at += _LENGTH.size
        yield payload[at : at + length]
        at += length


def _read_value(data: ffi.buffer, at: int, end: int) -> tuple[Value, int, int]:
    """The value in the payload of a RECORD_VALUED, and where its key begins and ends."""
    length, key_len, kind, before, has_data = _VALUED.unpack_from(data, at)
    key_at = at + _VALUED.size
    key_end = key_at + key_len
    content = data[key_end:end] if has_data else None
    name = _TYPES[kind] if kind < len(_TYPES) else "unknown"
    return Value(name, length, content, bool(before)), key_at, key_end


def _sink(level: str, line: str) -> None:
    lib.shim_log(level.encode(), line.encode("utf-8", "backslashreplace").replace(b"\0", b" "))


@ffi.def_extern(error=-1)  # type: ignore[untyped-decorator]
def handler_main() -> int:
    """The shim's way in: the life of the worker thread. Returns at unload."""
    log.install(_sink)
    try:
        worker = Worker()
    except Exception:
        log.LOGGER.error("the handler cannot start:\n%s", traceback.format_exc())
        lib.shim_ready(0)
        return -1
    # Events are no cycles; to look at the thousands that wait took 8% of the time.
    gc.set_threshold(_GARBAGE)
    lib.shim_ready(1)
    worker.run()
    # Its parts know each other: with all that waited they would stay, for many a life.
    del worker
    gc.collect()
    return 0
