"""The worker: the thread that owns all state, and its loop.

One turn of the loop: take what Redis' main thread has put into the queues, ask the
publisher what to do, do it, and wait for the broker, for Redis, or for the next time
that something is due. While it waits the GIL is free, and it waits for nothing else:
jobs for Redis' main thread are handed over, and their results are read in a later turn.

python.c imports this file; from then on the worker thread enters at `main`.
"""

from __future__ import annotations

import contextlib
import gc
import secrets
import time
import traceback
from collections.abc import Sequence

from ..broker.connection import Broker
from ..broker.ioloop import Loop
from ..broker.target import address, target_of
from ..cluster.peers import Peers
from ..cluster.watch import ClusterWatch
from ..config import Config
from ..message import Event
from ..publisher.actions import (
    Action,
    Close,
    Connect,
    Flushed,
    FlushMode,
    Log,
    Recovered,
    Send,
    Submit,
    is_void_after_repair,
)
from ..publisher.publisher import Publisher
from ..tables.times import STOP_GOODBYE, STOP_LEFTOVERS
from . import bridge, log
from .handler import Handler
from .identity import Identity
from .intake import Intake
from .interface import Shim
from .lanes import Lane
from .leftovers import Leftovers, recover, store
from .nap import Naps
from .nice import set_nice
from .parameters import Parameters
from .records import SetConfig, SetRole, parse_request, take_requests
from .requests import Requests
from .runner import Runner
from .status import RareLog, Status
from .surroundings import Surroundings

# Objects to be made, more than are freed, before Python looks for cycles of garbage.
_GARBAGE = 50_000
# Seconds of sleep after an exception that nobody foresaw, so that it cannot fill the log.
_ERROR_PAUSE = 0.1
# The goodbye of the broker is looked for so often (seconds).
_GOODBYE_EVERY = 0.01


class Worker:
    """One load of the module: makes all parts, and runs them."""

    def __init__(self, shim: Shim) -> None:
        values, role = _first_requests(shim)
        config = Config.from_values(values)
        # 64 random bits tell nodes and restarts apart, an event's place among all
        # that came through the queue tells events apart.
        run_id = secrets.token_hex(8)
        clustered = shim.clustered
        self._shim = shim
        self._stopped = False
        self._broken = False  # after an exception, until all is repaired
        self._loop = Loop()
        self._loop.add_reader(shim.wake_fd)
        publisher = Publisher(config, time.monotonic, _unix_ms, clustered=clustered)
        publisher.set_role(primary=role.primary, loading=role.loading)
        watch = ClusterWatch(publisher.lists, time.monotonic, clustered=clustered)
        watch.set_role(writable=role.writable)
        spread = Peers(run_id, time.monotonic, _unix_ms)
        rare_log = RareLog(shim.log)
        self._publisher = publisher
        self._broker = Broker(self._loop.ioloop, publisher)
        self._identity = Identity(
            self._broker, config, watch.topology, shim.port, clustered=clustered
        )
        self._status = Status(
            shim, publisher, spread, self._identity, self._broker_address, rare_log
        )
        self._intake = Intake(shim.events, publisher, run_id, config, self._status.failed)
        self._naps = Naps(shim.events, self._intake, publisher)
        self._parameters = Parameters(
            values, config, self._intake, self._identity, publisher, set_nice
        )
        self._handler = Handler(
            self._parameters, publisher, watch, spread, self._status, clustered=clustered
        )
        self._runner = Runner(shim, self._unexpected)
        self._clients = Lane(self._runner.submit, self._status.failed)
        self._peers = Lane(self._runner.submit, self._status.failed)
        self._requests = Requests(
            shim, self._clients, self._handler, self._parameters, publisher, watch, spread,
            self._unexpected,
        )  # fmt: skip
        self._surroundings = Surroundings(
            watch, spread, self._runner, self._peers, self._handler, self._identity, publisher,
            rare_log,
        )  # fmt: skip
        self._leftovers = Leftovers(shim.port)
        if events := recover(self._leftovers):
            publisher.recover(events)

    def run(self) -> None:
        """RunCommand until a flush with stop is done. Never raises."""
        self._loop.activate()
        self._naps.open()
        while not self._stopped:
            try:
                self._naps.take()
                self._turn()
                if self._stopped:
                    break
                self._shim.before_wait()
                self._loop.poll()
                self._shim.after_wait()
                self._loop.run_due()
            except Exception:
                with contextlib.suppress(Exception):  # the next turn tries again
                    self._unexpected()
        self._end()

    def _turn(self) -> None:
        if self._broken:
            self._repair()
        # Requests that came before a job ran are carried out before its result is read,
        # and those that the job itself caused before the next command.
        finished = self._runner.count_finished()
        # Only events up to here are taken in this turn: if masks were changed before one
        # of them, the change is among the requests that are read next.
        pushed = self._shim.events.pushed
        self._requests.take()
        self._runner.finish(finished)
        self._requests.take()
        self._surroundings.look()
        self._handler.look_again()
        # A client's command may be for all nodes, so they have to be known.
        if self._surroundings.known:
            self._clients.run()
        self._peers.run()
        self._intake.take(pushed)
        self._publish()
        self._status.show()
        self._schedule()

    def _publish(self) -> None:
        """Ask the publisher what to do, and do it."""
        failed = False
        most = self._naps.most() if self._parameters.config.worker_nice > 0 else None
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
            case Submit(job=job):
                self._runner.submit(job, self._publisher.job_done)
            case Connect():
                try:
                    self._broker.connect(self._parameters.config, self._identity.properties())
                except Exception as error:  # a file, or a value that pika does not like
                    self._publisher.link_down(f"cannot connect: {error}")
            case Close():
                self._broker.close()
            case Log(level=level, text=text):
                self._shim.log(level, text)
            case Flushed(id=flush_id, mode=mode, leftovers=events):
                try:
                    if mode is not FlushMode.STORE:
                        self._stopped = True
                        self._leave(events)
                finally:
                    self._shim.flush_done(flush_id)
            case Recovered():
                self._leftovers.remove()

    def _leave(self, events: Sequence[Event] | None) -> None:
        """End the load: put the events that cannot be stored in Redis any more into the
        file of leftovers, or log that they are lost. None: there is to be no file."""
        if events is not None:
            until = time.monotonic() + STOP_LEFTOVERS
            rest = self._intake.take_rest(lambda: time.monotonic() >= until)
            store(self._leftovers, [*events, *rest], self._shim.log)
        if lost := self._intake.waiting:
            # All of them count, as those that find the queue full: no mask was applied.
            text = f"{lost} more events lost: there was no time to take them in"
            self._shim.log("warning", text)

    def _schedule(self) -> None:
        """Set the time of the next turn, if nothing happens before."""
        if self._publisher.has_more or (self._intake.waiting and self._publisher.room() > 0):
            self._loop.set_alarm(0.0)
            return
        times = [self._publisher.wake_at(), self._surroundings.wake_at(), self._naps.wake_at()]
        at = min((time for time in times if time is not None), default=None)
        self._loop.set_alarm(None if at is None else max(at - time.monotonic(), 0.0))

    def _broker_address(self) -> str:
        """Return the server of the connection, or of the last attempt."""
        return self._broker.server or address(*target_of(self._parameters.config).servers[0])

    # ---- exceptions, and the end ---------------------------------------------

    def _unexpected(self) -> None:
        """Show an exception that is a mistake of ours, and go on. The connection and the
        list may be in any state, so both are taken up anew."""
        self._broken = True
        with contextlib.suppress(Exception):
            self._status.failed("unexpected exception in the handler")
        with contextlib.suppress(Exception):
            self._status.show()
        time.sleep(_ERROR_PAUSE)
        self._repair()

    def _repair(self) -> None:
        self._broker.close()
        self._publisher.link_down("unexpected exception in the handler, see the log")
        job_lost = not self._runner.expects(self._publisher.job_done)
        self._publisher.repair(job_lost=job_lost)
        self._surroundings.repair()
        self._broken = False

    def _end(self) -> None:
        """Give the descriptors back. Wait a moment for the broker's goodbye."""
        with contextlib.suppress(Exception):
            self._broker.close()
            until = time.monotonic() + STOP_GOODBYE
            while self._broker.closing and time.monotonic() < until:
                self._loop.set_alarm(_GOODBYE_EVERY)
                self._loop.poll()
                self._loop.run_due()
        self._status.show()
        self._naps.close()
        self._runner.end()
        with contextlib.suppress(Exception):
            self._loop.close()


def _first_requests(shim: Shim) -> tuple[Sequence[bytes], SetRole]:
    """Return the values of the parameters, and the server's role: the shim puts both into
    the queue before the worker starts."""
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
    """RunCommand the worker thread, from load to unload; -1 if it cannot start."""
    log.install(shim.log)
    try:
        worker = Worker(shim)
    except Exception:
        log.LOGGER.error("the handler cannot start:\n%s", traceback.format_exc())
        shim.ready(False)
        return -1
    # Events are in no cycles, and a look at the thousands that wait took 8% of the time.
    gc.set_threshold(_GARBAGE)
    shim.ready(True)
    worker.run()
    # Its parts refer to each other: without this they would stay in memory for long,
    # with all events that waited.
    del worker
    gc.collect()
    return 0


bridge.enter_at(main)
