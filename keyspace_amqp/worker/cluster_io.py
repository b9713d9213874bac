"""The I/O of cluster/, which is sans I/O: submits its jobs, sends its messages, and runs the
commands that peers ask for.

Worker thread; nothing here waits.
"""

from __future__ import annotations

import functools

from ..cluster.peers import ApplyRegisters, Peers, Question, RunCommand, SendToPeer
from ..cluster.watch import ClusterWatch
from ..commands import CommandError, Reply, answer, apply, to_json
from ..jobs import BusMessage, Job
from ..publisher.publisher import Publisher
from .handler import Handler
from .identity import Identity
from .job_queue import JobQueue
from .lanes import Lane
from .status import RareLog


class ClusterIO:
    """See the module's docstring. `lane`: the lane for the commands of peers."""

    def __init__(
        self,
        watch: ClusterWatch,
        peers: Peers,
        job_queue: JobQueue,
        lane: Lane,
        handler: Handler,
        identity: Identity,
        publisher: Publisher,
        rare_log: RareLog,
    ) -> None:
        self._watch = watch
        self._peers = peers
        self._job_queue = job_queue
        self._lane = lane
        self._handler = handler
        self._identity = identity
        self._publisher = publisher
        self._log = rare_log

    @property
    def topology_known(self) -> bool:
        """True if the topology is known, or cannot be read."""
        return self._watch.topology_known

    def poll(self) -> None:
        """Ask the parts of cluster/ what to do, and do it."""
        job = self._watch.poll()
        if job is not None:
            self._job_queue.submit(job, self._watch.done)
        self._identity.set_topology(self._watch.topology)
        self._peers.set_topology(self._watch.topology)
        for action in self._peers.poll():
            match action:
                case SendToPeer(target=target, data=data):
                    self.send(target, data)
                case ApplyRegisters(registers=registers, question=question):
                    steps = apply(self._handler, registers)
                    self._lane.add(steps, functools.partial(self._answer, question))
                case RunCommand(words=words, question=question):
                    steps = answer(self._handler, words, asked=True)
                    self._lane.add(steps, functools.partial(self._answer, question))
        self._log_problems()

    def send(self, target: str, data: bytes) -> None:
        """Send a message to a node; an empty `target`: to all. It may get lost, so a node
        that needs an answer asks again."""
        self._job_queue.submit(Job([BusMessage([target.encode(), data])]), lambda result: None)

    def _answer(self, question: Question | None, reply: Reply | CommandError) -> None:
        error, value = None, None
        if isinstance(reply, CommandError):
            error = str(reply)
            text = f"refused what another node has sent: {error}"
            self._log.write("warning", text, "refused")
        else:
            value = to_json(reply)
        if question is not None:
            self._peers.answer(question, value, error)

    def _log_problems(self) -> None:
        if self._watch.problem:
            self._log.write("warning", self._watch.problem)
            self._publisher.last_error, self._watch.problem = self._watch.problem, ""
        if self._peers.last_rejected:
            self._log.write("warning", f"ignored: {self._peers.last_rejected}", "ignored")
            self._peers.last_rejected = ""

    def repair(self) -> None:
        """Restore a consistent state after an exception."""
        if not self._job_queue.expects(self._watch.done):
            self._watch.repair()

    def wake_at(self) -> float | None:
        """Return the time when `poll` has to be called again if nothing else happens."""
        times = (self._watch.wake_at(), self._peers.wake_at())
        return min((time for time in times if time is not None), default=None)
