"""The cluster around this node: carries out what the watch over the lists and the other
nodes ask for.

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
from .lanes import Lane
from .runner import Runner
from .status import RareLog


class Surroundings:
    """See the module's text. `lane`: for what other nodes ask."""

    def __init__(
        self,
        watch: ClusterWatch,
        spread: Peers,
        runner: Runner,
        lane: Lane,
        handler: Handler,
        identity: Identity,
        publisher: Publisher,
        rare_log: RareLog,
    ) -> None:
        self._watch = watch
        self._spread = spread
        self._runner = runner
        self._lane = lane
        self._handler = handler
        self._identity = identity
        self._publisher = publisher
        self._log = rare_log

    @property
    def known(self) -> bool:
        """True if the nodes of the cluster are known, or cannot be."""
        return self._watch.topology_known

    def look(self) -> None:
        """Do what the watch and the other nodes want now."""
        job = self._watch.poll()
        if job is not None:
            self._runner.submit(job, self._watch.done)
        self._identity.set_topology(self._watch.topology)
        self._spread.set_topology(self._watch.topology)
        for action in self._spread.poll():
            match action:
                case SendToPeer(target=target, data=data):
                    self.send(target, data)
                case ApplyRegisters(registers=registers, question=question):
                    steps = apply(self._handler, registers)
                    self._lane.add(steps, functools.partial(self._answer, question))
                case RunCommand(words=words, question=question):
                    steps = answer(self._handler, words, asked=True)
                    self._lane.add(steps, functools.partial(self._answer, question))
        self._complain()

    def send(self, target: str, data: bytes) -> None:
        """Send a message to a node, or to all; it may get lost. A node that needs an
        answer asks again."""
        self._runner.submit(Job([BusMessage([target.encode(), data])]), lambda result: None)

    def _answer(self, question: Question | None, reply: Reply | CommandError) -> None:
        error, value = None, None
        if isinstance(reply, CommandError):
            error = str(reply)
            text = f"refused what another node has sent: {error}"
            self._log.write("warning", text, "refused")
        else:
            value = to_json(reply)
        if question is not None:
            self._spread.answer(question, value, error)

    def _complain(self) -> None:
        if self._watch.problem:
            self._log.write("warning", self._watch.problem)
            self._publisher.last_error, self._watch.problem = self._watch.problem, ""
        if self._spread.last_rejected:
            self._log.write("warning", f"ignored: {self._spread.last_rejected}", "ignored")
            self._spread.last_rejected = ""

    def repair(self) -> None:
        """Mend what an exception may have left half done."""
        if not self._runner.expects(self._watch.done):
            self._watch.repair()

    def wake_at(self) -> float | None:
        """Return the time when `look` has to be called again if nothing else happens."""
        times = (self._watch.wake_at(), self._spread.wake_at())
        return min((time for time in times if time is not None), default=None)
