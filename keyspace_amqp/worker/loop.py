"""The worker: builds its parts, and runs the loop of the worker thread.

One turn of the loop: take the records from the queues, ask the publisher what to do, do
it, and wait for the broker, for Redis, or for the next deadline. The GIL is free during
this wait. The worker waits for nothing else: it submits jobs to Redis' main thread and
reads their results in a later turn.

shim/python.c imports this file; then the worker thread calls `main`.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import time
from collections.abc import Sequence

from ..broker.ioloop import Loop
from ..broker.late import LateBroker
from ..broker.target import address, target_of
from ..cluster.peers import Peers
from ..cluster.slots import tags
from ..cluster.watch import ClusterWatch
from ..config import Config
from ..failures import EventError
from ..publisher.actions import (
    Action,
    Close,
    Connect,
    Flushed,
    FlushMode,
    Log,
    Recovered,
    Send,
    SendFrames,
    Submit,
    is_void_after_repair,
)
from ..publisher.publisher import Publisher
from ..tables.keys import KEY
from ..tables.stats import Stat
from ..tables.times import STOP_GOODBYE
from . import bridge, log
from .batching import Batching
from .cluster_io import ClusterIO
from .handler import Handler
from .identity import Identity
from .imports import import_later
from .intake import Intake
from .job_queue import JobQueue
from .lanes import Lane
from .leftovers import Leftovers, log_lost, store
from .nice import set_nice
from .outages import Outages
from .outbox import Outbox
from .parameters import Parameters
from .parcels import Packer
from .records import SetConfig, SetRole, parse_request, take_requests
from .requests import Requests
from .shim_api import Shim
from .snapshot import Snapshot
from .status import RareLog, Status

# New objects, minus freed ones, before Python collects cycles of garbage.
_GARBAGE = 50_000
# Seconds of sleep after an unexpected exception, so that it cannot fill the log.
_ERROR_PAUSE = 0.1
# Seconds between checks for the end of the connection at a stop.
_GOODBYE_EVERY = 0.01


class Worker:
    """Builds all parts of the worker for one load, and runs them."""

    def __init__(self, shim: Shim) -> None:
        values, role = _first_requests(shim)
        config = Config.from_values(values)
        # The prefix of each message_id: 64 random bits differ between nodes and loads. The
        # event's number in the queue follows it.
        run_id = os.urandom(8).hex()
        clustered = shim.clustered
        self._shim = shim
        self._stopped = False
        self._prepared = False
        self._broken = False  # true after an exception until `_repair` has succeeded
        self._loop = Loop()
        self._loop.add_reader(shim.wake_fd)
        publisher = Publisher(config, time.monotonic, _unix_ms, clustered=clustered)
        publisher.set_role(primary=role.primary, loading=role.loading)
        watch = ClusterWatch(publisher.lists, time.monotonic, clustered=clustered)
        watch.set_role(writable=role.writable)
        peers = Peers(run_id, time.monotonic, _unix_ms)
        rare_log = RareLog(shim.log)
        self._publisher = publisher
        self._broker = LateBroker(self._loop, publisher, lambda line: shim.log("warning", line))
        self._identity = Identity(
            self._broker, config, watch.topology, shim.port, clustered=clustered
        )
        self._snapshot = Snapshot(
            lambda job, done: self._job_queue.submit(job, done),
            publisher,
            shim.numbers,
            lambda: (self._parameters.config.fallback_size, self._parameters.config.queue_limit),
            shim.log,
        )
        self._status = Status(
            shim, publisher, peers, self._identity, self._broker_address, rare_log,
            Outages(time.monotonic), self._snapshot,
        )  # fmt: skip
        self._leftovers = Leftovers(shim.port)
        self._job_queue = JobQueue(shim, self._unexpected, lambda jobs: self._requests.book(jobs))
        self._outbox = Outbox(
            shim,
            publisher.outbox,
            self._job_queue.submit,
            lambda: self._intake.waiting + self._leftovers.pending,
            lambda: watch.inherited_home,
        )
        self._intake = Intake(
            shim.events, publisher, self._leftovers, run_id, self._status.failed,
            self._outbox, Packer(run_id, shim.layout, self._broker.frames),
        )  # fmt: skip
        self._batching = Batching(
            shim.events, shim.requests, self._job_queue, self._intake, publisher
        )
        self._parameters = Parameters(
            values, config, self._identity, publisher, lambda nice: set_nice(nice, shim)
        )
        self._handler = Handler(
            self._parameters, publisher, watch, peers, self._status, self._snapshot,
            clustered=clustered,
        )  # fmt: skip
        self._client_lane = Lane(self._job_queue.submit, self._status.failed)
        self._peer_lane = Lane(self._job_queue.submit, self._status.failed)
        self._requests = Requests(
            shim, self._client_lane, self._handler, self._parameters, publisher, watch, peers,
            self._outbox, self._unexpected,
        )  # fmt: skip
        self._cluster_io = ClusterIO(
            watch, peers, self._job_queue, self._peer_lane, self._handler, self._identity,
            publisher, rare_log,
        )  # fmt: skip
        self._leftovers.open()
        no_cluster = not (clustered or self._leftovers.pending)
        self._outbox.start(KEY if no_cluster else b"")
        try:
            self._intake.take(0)
        except Exception:  # the first turn tries again
            self._status.failed("cannot read the leftovers")
        self._status.show()  # the first of the leftovers, before the load has ended

    def run(self) -> None:
        """Run turns of the loop until the flush of a stop is done. Never raises."""
        self._batching.open()
        while not self._stopped:
            try:
                self._batching.pause()
                self._turn()
                if self._stopped:
                    break
                # Not before the lists are known: a save right after the load has to find the
                # worker able to store what is in memory.
                if not self._prepared and not (
                    self._handler.writable and self._handler.list_keys is None
                ):
                    self._prepare()
                self._shim.before_wait()
                self._loop.poll()
                self._shim.after_wait()
                self._loop.run_due()
            except Exception:
                with contextlib.suppress(Exception):  # the next turn tries again
                    self._unexpected()
        self.end()

    def _prepare(self) -> None:
        """Do what takes long, and what the load did not wait for."""
        if self._prepared:
            return
        self._prepared = True
        import_later()
        log.take_loggers()
        self._broker.prepare()
        if self._shim.clustered:
            tags()

    def _turn(self) -> None:
        if self._broken:
            self._repair()
        # Order: first the requests that came before a job ran, then the job's result, then
        # the requests that the job itself caused, then the next command. (Of several jobs that have
        # run, `book` knows between which of them a list was changed.)
        # Only the events pushed so far are taken in this turn: a turn ends, however fast they come,
        # and what the main thread did before one of them is among the requests that are taken next.
        # If one of them is in the list already, the request that says so is booked in this turn.
        pushed = self._shim.events.pushed
        finished = self._job_queue.count_finished()
        self._requests.take()
        self._job_queue.finish(finished)
        self._requests.take()
        self._requests.book(self._job_queue.finished)
        self._cluster_io.poll()
        self._handler.resume_commands()
        # A client's command may be for all nodes, so the topology has to be known.
        if self._cluster_io.topology_known:
            self._client_lane.run()
        self._peer_lane.run()
        most = self._batching.message_limit() if self._parameters.config.worker_nice > 0 else None
        published = self._publisher.counts[Stat.PUBLISHED]
        self._intake.take(pushed, most)
        self._publish(most)
        self._batching.sent(self._publisher.counts[Stat.PUBLISHED] - published)
        self._outbox.poll(enabled=self._parameters.config.has_outbox)
        self._status.show()
        self._outbox.show()
        self._snapshot.poll()  # what waits is in the numbers now
        self._schedule(None if most is None else 0)

    def _publish(self, most: int | None) -> None:
        """Ask the publisher what to do, and do it. `most`: how many messages should be sent, at
        most; None: any number."""
        failed = False
        for action in self._publisher.poll(more=self._intake.waiting > 0, most=most):
            try:
                if not (failed and is_void_after_repair(action)):
                    self._do(action)
            except Exception:
                failed = True
                self._unexpected()

    def _do(self, action: Action) -> None:
        match action:
            case Send(events=events):
                self._broker.send(events)
            case SendFrames(frames=frames):
                self._broker.send_frames(frames)
            case Submit(job=job):
                self._job_queue.submit(job, self._publisher.job_done)
            case Connect():
                self._prepare()
                try:
                    self._broker.connect(self._parameters.config, self._identity.properties())
                except Exception as error:  # an unreadable TLS file, or a value that pika refuses
                    self._publisher.link_down(f"cannot connect: {error}")
            case Close():
                self._broker.close()
            case Log(level=level, text=text):
                self._shim.log(level, text)
            case Flushed():
                try:
                    if action.mode is not FlushMode.STORE:
                        self._stopped = True
                        self._leave(action)
                finally:
                    self._shim.flush_done(action.id)
            case Recovered():
                self._leftovers.remove()

    def _leave(self, stop: Flushed) -> None:
        """End the load: write the events that can no longer be stored in Redis to the file
        of leftovers, or log that they are lost."""

        def is_late() -> bool:
            return time.monotonic() >= stop.write_until

        def is_alone() -> bool:
            return time.monotonic() >= stop.alone_at

        if stop.leftovers is not None:
            store(
                self._leftovers, stop.leftovers, self._intake, is_late, is_alone,
                self._shim.log, self._status.failed,
            )  # fmt: skip
        else:
            why = "there was no time to read them from the queue"
            log_lost(0, self._intake.waiting, why, is_alone, self._shim.log)

    def _schedule(self, most: int | None) -> None:
        """Set the time at which the next turn starts at the latest. `most`: how many more messages
        should be sent before that; None: any number."""
        waiting = self._intake.waiting or self._leftovers.pending
        if self._publisher.has_more or (waiting and self._intake.room(most) > 0):
            self._loop.set_alarm(0.0)
            return
        times = [self._publisher.wake_at(), self._cluster_io.wake_at(), self._batching.wake_at()]
        times.append(self._status.wake_at)
        times.append(self._outbox.wake_at(enabled=self._parameters.config.has_outbox))
        times.append(self._snapshot.wake_at())
        at = min((time for time in times if time is not None), default=None)
        self._loop.set_alarm(None if at is None else max(at - time.monotonic(), 0.0))

    def _broker_address(self) -> str:
        """Return the address of the connection, or of the last attempt."""
        return self._broker.server or address(*target_of(self._parameters.config).servers[0])

    # ---- exceptions, and the end ---------------------------------------------

    def _unexpected(self) -> None:
        """Log an exception that is a defect of the handler, and repair. The connection and
        the list may be in any state, so the connection is closed and the list read anew."""
        self._broken = True
        error = sys.exception()
        with contextlib.suppress(Exception):
            self._status.failed("unexpected exception in the handler")
        if isinstance(error, EventError):
            with contextlib.suppress(Exception):
                self._publisher.aside.failed_over(error.event, error.why)
        with contextlib.suppress(Exception):
            self._status.show()
        time.sleep(_ERROR_PAUSE)
        self._repair()

    def _repair(self) -> None:
        self._broker.close()
        self._publisher.link_down("unexpected exception in the handler, see the log")
        job_lost = not self._job_queue.expects(self._publisher.job_done)
        self._publisher.repair(job_lost=job_lost, taken=self._intake.taken + self._outbox.balance)
        self._cluster_io.repair()
        self._outbox.repair(job_lost=not self._job_queue.expects(self._outbox.job_done))
        waits_for = self._snapshot.job_done
        self._snapshot.repair(job_lost=waits_for is None or not self._job_queue.expects(waits_for))
        self._broken = False

    def end(self) -> None:
        """Close the connection, waiting a moment for the broker's answer, and free everything."""
        with contextlib.suppress(Exception):
            self._broker.close()
            until = time.monotonic() + STOP_GOODBYE
            while self._broker.closing and time.monotonic() < until:
                self._loop.set_alarm(_GOODBYE_EVERY)
                self._loop.poll()
                self._loop.run_due()
        self._status.show()
        self._leftovers.close()
        self._batching.close()
        self._job_queue.end()
        with contextlib.suppress(Exception):
            self._loop.close()


def _first_requests(shim: Shim) -> tuple[Sequence[bytes], SetRole]:
    """Return the values of the parameters, and the server's role. The shim pushes both
    before the worker starts."""
    values: Sequence[bytes] = ()
    role = SetRole(primary=False, loading=False, agreed=False)
    for kind, payload in take_requests(shim.requests):
        match parse_request(kind, payload):
            case SetConfig(values=values):
                pass
            case SetRole() as role:
                pass
    return values, role


def _unix_ms() -> int:
    return int(time.time() * 1000)


def main(shim: Shim) -> int:
    """Run the worker, from load to unload. Return 0, or -1 if it cannot start."""
    log.install(shim.log)
    try:
        worker = Worker(shim)
    except Exception:
        log.exception("the handler cannot start")
        shim.ready(False)
        return -1
    # Events are not in cycles, and scanning the thousands that wait took 8% of the time.
    gc.set_threshold(_GARBAGE)
    if shim.ready(True):
        worker.run()
    else:
        log.write("warning", "the handler ends: its load was given up before it was ready")
        worker.end()
    # The worker's parts are in a reference cycle. Without the collection they would stay in
    # memory for long, with all waiting events.
    del worker
    gc.collect()
    return 0


bridge.enter_at(main)
