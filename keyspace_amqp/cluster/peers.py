"""What the nodes of a cluster tell each other: commands, and which parameters hold.

Every parameter that was set for all nodes has a version: a time in milliseconds, or
one more than the newest version seen, whichever is larger; and the run of the handler
that set it, which decides between two that are the same. The newest version wins on every node,
in whatever order the news arrive. All nodes say once in a while which versions they
have, and who has an older one asks for the newer: so a node that was away, or is
new, catches up. Values travel only to those who need them, the password as all.

wire.py has the form of the messages. What is not of this form is counted and ignored.
A later version of the form has to be understood by all before it is spoken: `hello`
says what a node understands.

Sans I/O, one thread. Messages go over Redis' cluster bus, which loses those whose
link is down: a question is asked again until it is answered or its time is up, and
the node that was asked does the work once.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from .topology import ALONE, Topology
from .wire import (
    VERSION,
    Register,
    Version,
    bytes_of,
    list_of,
    mapping_of,
    pack,
    plain_registers,
    registers_of,
    text_of,
    unpack,
    version_of,
)

# A pseudo-parameter: whether a connection is wanted (CONNECT, DISCONNECT).
LINK = "link"

# Seconds. With many nodes everybody says less often what he has.
HELLO_EVERY = 1.0
HELLO_NODES = 50
ASK_AGAIN = 0.5
ASK_TIMEOUT = 3.0
# A question that was put twice may come late, from a node that stood still.
ANSWERS_KEPT = 60.0

# Changes that are closer to each other were made at the same time.
SAME_TIME_MS = 1000


@dataclasses.dataclass(frozen=True)
class Transmit:
    """Send `data` to a node; to all of them if `target` is empty."""

    target: str
    data: bytes


@dataclasses.dataclass(frozen=True)
class Apply:
    """Set what `merge` gives of these; then `answer`, if there is a `question`."""

    registers: Mapping[str, Register]
    question: tuple[str, str] | None


@dataclasses.dataclass(frozen=True)
class Run:
    """Carry a command out on this node; then `answer`."""

    words: Sequence[bytes]
    question: tuple[str, str]


Action = Transmit | Apply | Run


@dataclasses.dataclass
class Outcome:
    """What the other nodes have answered, by id; and who has not, with the reason."""

    answers: dict[str, Any] = dataclasses.field(default_factory=dict)
    missing: dict[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass
class _Answer:
    """To a question that was put to us; `data` is None until there is one."""

    until: float
    data: bytes | None = None


@dataclasses.dataclass
class _Question:
    data: bytes
    waiting: set[str]
    until: float
    again_at: float
    done: Callable[[Outcome], None]
    outcome: Outcome = dataclasses.field(default_factory=Outcome)


class Spread:
    """See the module's text. `clock`: monotonic seconds; `wall`: Unix time in ms."""

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
        self._questions: dict[str, _Question] = {}
        # The oldest first; kept as long as somebody may ask again.
        self._answers: dict[tuple[str, str], _Answer] = {}
        self._hello_at = clock()

    @property
    def config_version(self) -> int:
        """The newest version of all parameters; the same on nodes that agree."""
        return max((register.version[0] for register in self._registers.values()), default=0)

    def set_topology(self, topology: Topology) -> None:
        self._topology = topology
        for question in self._questions.values():
            self._skip_absent(question)

    # ---- parameters ----------------------------------------------------------

    def assign(self, values: Mapping[str, bytes]) -> Mapping[str, Register]:
        """New versions of parameters, which were set here."""
        version = max(self._wall(), self.config_version + 1), self._run_id
        registers = {name: Register(version, value) for name, value in values.items()}
        self._registers |= registers
        return registers

    @property
    def registers(self) -> Mapping[str, Register]:
        """The newest that this node has heard of."""
        return dict(self._registers)

    def merge(self, registers: Mapping[str, Register]) -> dict[str, bytes]:
        """Takes what is newer; the values that are, which have to be set now."""
        newer = {
            name: register
            for name, register in registers.items()
            if self._is_newer(name, register.version)
        }
        self._registers |= newer
        return {name: register.value for name, register in newer.items()}

    def older(self, registers: Mapping[str, Register]) -> Sequence[str]:
        """Names of those that this node has newer and other, by so much that they were
        not set at the same time: by a clock that is behind."""
        return [
            name
            for name, register in registers.items()
            if (mine := self._registers.get(name)) is not None
            and mine.value != register.value
            and mine.version[0] > register.version[0] + SAME_TIME_MS
        ]

    def _is_newer(self, name: str, version: Version) -> bool:
        mine = self._registers.get(name)
        return mine is None or version > mine.version

    # ---- questions -----------------------------------------------------------

    def tell(self, registers: Mapping[str, Register], done: Callable[[Outcome], None]) -> None:
        """Has all other nodes set parameters."""
        self._ask({"kind": "have", "registers": plain_registers(registers)}, done)

    def run(self, words: Sequence[bytes], done: Callable[[Outcome], None]) -> None:
        """Has all other nodes carry a command out."""
        self._ask({"kind": "run", "words": list(words)}, done)

    def _ask(self, message: dict[str, Any], done: Callable[[Outcome], None]) -> None:
        self._asked += 1
        question_id = f"{self._run_id}:{self._asked}"
        now = self._clock()
        others = set(self._topology.nodes) - {self._topology.myself}
        question = _Question(
            pack({**message, "id": question_id}), others, now + ASK_TIMEOUT, now, done
        )
        self._questions[question_id] = question
        self._skip_absent(question)

    def _skip_absent(self, question: _Question) -> None:
        for node_id in list(question.waiting):
            node = self._topology.nodes.get(node_id)
            if node is None or node.failing:
                question.waiting.discard(node_id)
                why = "it has left the cluster" if node is None else "it is failing"
                question.outcome.missing[node_id] = why

    def answer(self, question: tuple[str, str], reply: Any, error: str | None) -> None:
        """What another node has asked for is done."""
        sender, question_id = question
        data = pack({"kind": "done", "id": question_id, "reply": reply, "error": error})
        if question in self._answers:
            self._answers[question].data = data
        self._actions.append(Transmit(sender, data))

    # ---- what comes in and goes out --------------------------------------------

    def received(self, sender: str, data: bytes) -> None:
        """A message of another node."""
        try:
            message = unpack(data)
            self._understand(sender, message)
        except ValueError as error:
            self.rejected += 1
            self.last_rejected = f"message of node {sender}: {error}"

    def _understand(self, sender: str, message: Mapping[str, Any]) -> None:
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
                self._send(sender, {"kind": "have", "registers": plain_registers(known)})
            case "have":
                registers = registers_of(message.get("registers"))
                question = self._question(sender, message) if "id" in message else None
                if question is not None or "id" not in message:
                    self._actions.append(Apply(registers, question))
            case "run":
                words = [bytes_of(word) for word in list_of(message.get("words"))]
                question = self._question(sender, message)
                if question is not None:
                    self._actions.append(Run(words, question))
            case "done":
                self._answered(sender, message)
            case kind:
                raise ValueError(f"kind {kind!r:.40} is not known")

    def _question(self, sender: str, message: Mapping[str, Any]) -> tuple[str, str] | None:
        """A question that is new; one that is not is answered as before."""
        question = sender, text_of(message.get("id"))
        answer = self._answers.get(question)
        if answer is None:
            self._answers[question] = _Answer(self._clock() + ANSWERS_KEPT)
            return question
        if answer.data is not None:
            self._actions.append(Transmit(sender, answer.data))
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
        self._actions.append(Transmit(target, pack(message)))

    def poll(self) -> list[Action]:
        """What is to be done now."""
        now = self._clock()
        while self._answers and now >= next(iter(self._answers.values())).until:
            del self._answers[next(iter(self._answers))]
        others = len(self._topology.nodes) - 1
        if others > 0 and now >= self._hello_at:
            self._hello_at = now + HELLO_EVERY * max(1, others / HELLO_NODES)
            versions = {name: r.version for name, r in self._registers.items()}
            self._send("", {"kind": "hello", "speaks": VERSION, "versions": versions})
        for question_id, question in list(self._questions.items()):
            if now >= question.until:
                for node_id in question.waiting:
                    question.outcome.missing[node_id] = "no answer"
                question.waiting.clear()
            if not question.waiting:
                del self._questions[question_id]
                question.done(question.outcome)
            elif now >= question.again_at:
                question.again_at = now + ASK_AGAIN
                self._actions += [Transmit(node, question.data) for node in question.waiting]
        actions, self._actions = self._actions, []
        return actions

    def wake_at(self) -> float | None:
        """When poll has to be called again if nothing else happens."""
        if self._actions:
            return self._clock()
        times = [min(q.again_at, q.until) for q in self._questions.values()]
        if len(self._topology.nodes) > 1:
            times.append(self._hello_at)
        return min(times) if times else None
