"""The messages between the nodes of a cluster: commands, and parameters for all nodes.

Each parameter that was set for all nodes has a version: a time in milliseconds, or the
newest version seen plus one, whichever is larger; then the run id of the handler that
set it, which decides between two equal times. On every node the newest version wins, in
whatever order the messages arrive. All nodes regularly say which versions they have
(`hello`); a node with an older one asks for the newer (`want`, `have`). So a node that
was away, or is new, catches up. Values, the password among them, travel only to nodes
that need them.

wire.py has the form of the messages. A message of another form is counted and ignored. A
later version of the form must be understood by all nodes before any node may use it;
`hello` says which version a node understands.

Sans I/O; worker thread. Messages go over Redis' cluster bus, which loses those for a node
whose link is down. So a question is asked again until it is answered or its time is up,
and the node that is asked carries it out once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from ..tables import times
from ..values import mutable, value
from .topology import ALONE, Topology
from .wire import (
    VERSION,
    Register,
    Version,
    bytes_of,
    list_of,
    mapping_of,
    pack,
    registers_of,
    registers_to_wire,
    text_of,
    unpack,
    version_of,
)

# The register that is not a parameter: it has the last of CONNECT and DISCONNECT.
LINK = "link"

# Seconds between two hellos; in a larger cluster each node says hello less often.
HELLO_EVERY = 1.0
HELLO_NODES = 50
# Seconds before a question is asked again.
ASK_AGAIN = 0.5
# Seconds for which an answer is kept: a node that was suspended may ask a question again,
# and late.
ANSWERS_KEPT = 60.0

# Changes that are closer to each other than this count as made at the same time.
SAME_TIME_MS = 1000


class Question(NamedTuple):
    """A question that a peer has asked this node."""

    sender: str
    id: str


@value
class SendToPeer:
    """Send `data` to a node, or to all other nodes if `target` is empty."""

    target: str
    data: bytes


@value
class ApplyRegisters:
    """Set the values that `merge` returns for these; then `answer`, if there is a question."""

    registers: Mapping[str, Register]
    question: Question | None


@value
class RunCommand:
    """Carry out a command on this node; then `answer`."""

    words: Sequence[bytes]
    question: Question


Action = SendToPeer | ApplyRegisters | RunCommand


@mutable
class Outcome:
    """The answers of the other nodes by id, and the nodes without one, with the reason."""

    answers: dict[str, Any]
    missing: dict[str, str]

    def __init__(
        self, answers: dict[str, Any] | None = None, missing: dict[str, str] | None = None
    ) -> None:
        self.answers = {} if answers is None else answers
        self.missing = {} if missing is None else missing


@mutable
class _Answer:
    """The answer to a question of a peer; `data` is None until there is one."""

    until: float
    data: bytes | None = None


@mutable
class _OpenQuestion:
    """A question of this node that some nodes have still to answer."""

    data: bytes
    waiting: set[str]
    until: float
    again_at: float
    done: Callable[[Outcome], None]
    outcome: Outcome


class Peers:
    """The exchange with the other nodes: questions, answers and registers.

    `clock`: monotonic seconds; `wall`: Unix time in milliseconds. `rejected`: the number
    of messages that were ignored; `last_rejected`: the last of them, for the log.
    """

    def __init__(self, run_id: str, clock: Callable[[], float], wall: Callable[[], int]) -> None:
        self.rejected = 0
        self.last_rejected = ""
        self._run_id = run_id
        self._clock = clock
        self._wall = wall
        self._topology = ALONE
        self._registers: dict[str, Register] = {}
        self._actions: list[Action] = []
        self._asked = 0
        self._questions: dict[str, _OpenQuestion] = {}
        # The oldest first; kept as long as the peer may ask again.
        self._answers: dict[Question, _Answer] = {}
        self._hello_at = clock()

    @property
    def config_version(self) -> int:
        """The newest version of all parameters; the same on nodes that agree."""
        return max((register.version[0] for register in self._registers.values()), default=0)

    def set_topology(self, topology: Topology) -> None:
        """Note the nodes; answers of nodes that fail or have left are not awaited any more."""
        self._topology = topology
        for question in self._questions.values():
            self._skip_absent(question)

    # ---- parameters ----------------------------------------------------------

    def assign(self, values: Mapping[str, bytes]) -> Mapping[str, Register]:
        """Give new versions to parameters that were set on this node."""
        version = max(self._wall(), self.config_version + 1), self._run_id
        registers = {name: Register(version, value) for name, value in values.items()}
        self._registers |= registers
        return registers

    @property
    def registers(self) -> Mapping[str, Register]:
        """The newest registers that this node knows."""
        return dict(self._registers)

    def merge(self, registers: Mapping[str, Register]) -> dict[str, bytes]:
        """Take over the newer registers; return their values, which must be set now."""
        newer = {
            name: register
            for name, register in registers.items()
            if self._is_newer(name, register.version)
        }
        self._registers |= newer
        return {name: register.value for name, register in newer.items()}

    def outdated(self, registers: Mapping[str, Register]) -> Sequence[str]:
        """Return the names of the registers of which this node has a newer value.

        The peer that has just set such a register has a clock that is behind. A difference
        of up to SAME_TIME_MS does not count: both were set at the same time.
        """
        return [
            name
            for name, register in registers.items()
            if (own := self._registers.get(name)) is not None
            and own.value != register.value
            and own.version[0] > register.version[0] + SAME_TIME_MS
        ]

    def _is_newer(self, name: str, version: Version) -> bool:
        own = self._registers.get(name)
        return own is None or version > own.version

    # ---- questions -----------------------------------------------------------

    def tell(self, registers: Mapping[str, Register], done: Callable[[Outcome], None]) -> None:
        """Have all other nodes set parameters; `done` gets the outcome."""
        self._ask({"kind": "have", "registers": registers_to_wire(registers)}, done)

    def run(self, words: Sequence[bytes], done: Callable[[Outcome], None]) -> None:
        """Have all other nodes carry out a command; `done` gets the outcome."""
        self._ask({"kind": "run", "words": list(words)}, done)

    def _ask(self, message: dict[str, Any], done: Callable[[Outcome], None]) -> None:
        self._asked += 1
        question_id = f"{self._run_id}:{self._asked}"
        now = self._clock()
        others = set(self._topology.nodes) - {self._topology.myself}
        question = _OpenQuestion(
            pack({**message, "id": question_id}), others, now + times.ASK, now, done, Outcome()
        )
        self._questions[question_id] = question
        self._skip_absent(question)

    def _skip_absent(self, question: _OpenQuestion) -> None:
        for node_id in list(question.waiting):
            node = self._topology.nodes.get(node_id)
            if node is None or node.failing:
                question.waiting.discard(node_id)
                why = "it has left the cluster" if node is None else "it is failing"
                question.outcome.missing[node_id] = why

    def answer(self, question: Question, reply: Any, error: str | None) -> None:
        """Send the reply, or the error, to the peer that has asked."""
        data = pack({"kind": "done", "id": question.id, "reply": reply, "error": error})
        if question in self._answers:
            self._answers[question].data = data
        self._actions.append(SendToPeer(question.sender, data))

    # ---- input and output ------------------------------------------------------

    def received(self, sender: str, data: bytes) -> None:
        """Take a message of another node."""
        try:
            self._take(sender, unpack(data))
        except ValueError as error:
            self.rejected += 1
            self.last_rejected = f"message of node {sender}: {error}"

    def _take(self, sender: str, message: Mapping[str, Any]) -> None:
        match message.get("kind"):
            case "hello":
                versions = mapping_of(message.get("versions"))
                wanted = [
                    name
                    for name, version in versions.items()
                    if self._is_newer(name, version_of(version))
                ]
                if wanted:
                    self._send(sender, {"kind": "want", "names": wanted})
            case "want":
                names = [text_of(name) for name in list_of(message.get("names"))]
                known = {n: self._registers[n] for n in names if n in self._registers}
                self._send(sender, {"kind": "have", "registers": registers_to_wire(known)})
            case "have":
                registers = registers_of(message.get("registers"))
                question = self._new_question(sender, message) if "id" in message else None
                if question is not None or "id" not in message:
                    self._actions.append(ApplyRegisters(registers, question))
            case "run":
                words = [bytes_of(word) for word in list_of(message.get("words"))]
                question = self._new_question(sender, message)
                if question is not None:
                    self._actions.append(RunCommand(words, question))
            case "done":
                self._answered(sender, message)
            case kind:
                raise ValueError(f"kind {kind!r:.40} is not known")

    def _new_question(self, sender: str, message: Mapping[str, Any]) -> Question | None:
        """Return the question if it is new; else send the earlier answer again and return None."""
        question = Question(sender, text_of(message.get("id")))
        answer = self._answers.get(question)
        if answer is None:
            self._answers[question] = _Answer(self._clock() + ANSWERS_KEPT)
            return question
        if answer.data is not None:
            self._actions.append(SendToPeer(sender, answer.data))
        return None

    def _answered(self, sender: str, message: Mapping[str, Any]) -> None:
        question = self._questions.get(text_of(message.get("id")))
        if question is None or sender not in question.waiting:
            return
        error = message.get("error")
        if error is None:
            question.outcome.answers[sender] = message.get("reply")
        else:
            question.outcome.missing[sender] = text_of(error)
        question.waiting.discard(sender)

    def _send(self, target: str, message: Mapping[str, Any]) -> None:
        self._actions.append(SendToPeer(target, pack(message)))

    def poll(self) -> list[Action]:
        """Return what is to be done now."""
        now = self._clock()
        self._forget_answers(now)
        self._say_hello(now)
        for question_id, question in list(self._questions.items()):
            self._ask_again(question_id, question, now)
        actions, self._actions = self._actions, []
        return actions

    def _forget_answers(self, now: float) -> None:
        while self._answers:
            question, answer = next(iter(self._answers.items()))
            if now < answer.until:
                return
            del self._answers[question]

    def _say_hello(self, now: float) -> None:
        others = len(self._topology.nodes) - 1
        if others > 0 and now >= self._hello_at:
            self._hello_at = now + HELLO_EVERY * max(1, others / HELLO_NODES)
            versions = {name: register.version for name, register in self._registers.items()}
            self._send("", {"kind": "hello", "speaks": VERSION, "versions": versions})

    def _ask_again(self, question_id: str, question: _OpenQuestion, now: float) -> None:
        """Ask the nodes that have not answered, or end the question."""
        if now >= question.until:
            question.outcome.missing.update(dict.fromkeys(question.waiting, "no answer"))
            question.waiting.clear()
        if not question.waiting:
            del self._questions[question_id]
            question.done(question.outcome)
        elif now >= question.again_at:
            question.again_at = now + ASK_AGAIN
            self._actions += [SendToPeer(node_id, question.data) for node_id in question.waiting]

    def wake_at(self) -> float | None:
        """Return the time at which to call `poll` again if nothing else happens."""
        if self._actions:
            return self._clock()
        at = [min(question.again_at, question.until) for question in self._questions.values()]
        if len(self._topology.nodes) > 1:
            at.append(self._hello_at)
        return min(at) if at else None
