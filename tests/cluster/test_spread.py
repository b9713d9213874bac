"""What the nodes of a cluster agree upon, over a bus that loses, delays, repeats and
reorders messages; and what becomes of messages that are none."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import random
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given, note, settings
from hypothesis import strategies as st

from keyspace_amqp.cluster import peers as module
from keyspace_amqp.cluster import wire
from keyspace_amqp.cluster.peers import (
    ASK_AGAIN,
    HELLO_EVERY,
    Action,
    ApplyRegisters,
    Outcome,
    Peers,
    RunCommand,
    SendToPeer,
)
from keyspace_amqp.cluster.topology import Node, Topology
from keyspace_amqp.cluster.wire import Register, pack, unpack
from keyspace_amqp.tables import times

DAY_MS = 24 * 3600 * 1000


class Bus:
    """The time, the members, and the messages that are on their way."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.members: dict[str, Member] = {}
        self.on_the_way: list[tuple[str, str, bytes]] = []  # sender, target, data
        self.sent: list[bytes] = []  # all there ever were
        self.apart: set[str] = set()  # these hear each other only
        self.failing: set[str] = set()
        self.lives = itertools.count(1)

    def join(self, *names: str, skew_ms: int = 0) -> Member:
        for name in names:
            self.members[name] = Member(self, name, skew_ms)
        self.tell_topology()
        return self.members[names[0]]

    def tell_topology(self) -> None:
        nodes = {n: Node(n, f"{n}:7000", True, n in self.failing) for n in self.members}
        for name, member in self.members.items():
            member.topology = Topology(name, nodes, frozenset())
            member.spread.set_topology(member.topology)

    def send(self, sender: str, target: str, data: bytes) -> None:
        self.sent.append(data)
        targets = [target] if target else [name for name in self.members if name != sender]
        self.on_the_way += [(sender, name, data) for name in targets]

    def arrive(self, place: int, *, keep: bool = False) -> None:
        """A message arrives, and perhaps once more later."""
        sender, target, data = self.on_the_way[place]
        if not keep:
            del self.on_the_way[place]
        apart = (sender in self.apart) is not (target in self.apart)
        if not apart and target in self.members:
            self.members[target].spread.received(sender, data)

    def settle(self, seconds: float = 0) -> None:
        """Everybody says and does what there is, without a loss; for a while."""
        until = self.now + seconds
        while True:
            while any(member.turn() for member in self.members.values()) or self.on_the_way:
                while self.on_the_way:
                    self.arrive(0)
            at = [member.spread.wake_at() for member in self.members.values()]
            self.now = max(self.now, min(time for time in at if time is not None))
            if self.now > until:
                self.now = until
                return


class Member:
    """A node with what a worker does for its Peers. What another node has asked for is
    done a little later, in its turn."""

    def __init__(self, bus: Bus, name: str, skew_ms: int) -> None:
        self.bus, self.name, self.skew_ms = bus, name, skew_ms
        self.topology = Topology(name, {}, frozenset())
        self.values: dict[str, bytes] = {}  # as they are set here
        self.ran: list[tuple[str, bytes]] = []  # in which life, and what
        self.outcomes: list[Outcome] = []
        self.begin()

    def begin(self) -> None:
        """A life of the module; the parameters are those of redis.conf."""
        self.life = f"{next(self.bus.lives):016x}"
        self.waiting: collections.deque[ApplyRegisters | RunCommand] = collections.deque()
        self.spread = Peers(
            self.life,
            lambda: self.bus.now,
            lambda: int(self.bus.now * 1000) + self.skew_ms,
        )
        self.spread.set_topology(self.topology)

    def turn(self) -> list[Action]:
        actions = self.spread.poll()
        for action in actions:
            if isinstance(action, SendToPeer):
                self.bus.send(self.name, action.target, action.data)
            else:
                self.waiting.append(action)
        self.work(len(self.waiting))
        return actions

    def hear(self) -> None:
        """A turn in which there is no time for what others have asked for."""
        for action in self.spread.poll():
            if isinstance(action, SendToPeer):
                self.bus.send(self.name, action.target, action.data)
            else:
                self.waiting.append(action)

    def work(self, count: int) -> None:
        for _ in range(min(count, len(self.waiting))):
            action = self.waiting.popleft()
            if isinstance(action, RunCommand):
                self.ran += [(self.life, word) for word in action.words]
                self.spread.answer(action.question, self.name, None)
                continue
            self.values |= self.spread.merge(action.registers)
            if action.question is not None:
                self.spread.answer(action.question, None, None)

    def set(self, **values: bytes) -> Mapping[str, Register]:
        """CONFIG SET of a client."""
        registers = self.spread.assign(values)
        self.values |= values
        self.spread.tell(registers, self.outcomes.append)
        return registers

    def run(self, *words: bytes) -> None:
        self.spread.run(words, self.outcomes.append)


def three() -> tuple[Bus, Member, Member, Member]:
    bus = Bus()
    bus.join("a", "b", "c")
    return bus, *bus.members.values()


def kinds(messages: Sequence[bytes]) -> list[str]:
    return [unpack(data)["kind"] for data in messages]


# ---- parameters ------------------------------------------------------------------------


def test_what_one_sets_all_have() -> None:
    bus, a, b, c = three()
    a.set(port=b"1", host=b"h")
    bus.settle()
    assert a.values == b.values == c.values == {"port": b"1", "host": b"h"}
    (outcome,) = a.outcomes
    assert (outcome.answers, outcome.missing) == ({"b": None, "c": None}, {})
    assert a.spread.config_version == b.spread.config_version == c.spread.config_version > 0


def test_a_node_that_was_away_and_a_new_one_catch_up() -> None:
    bus, a, b, c = three()
    bus.apart = {"c"}
    a.set(port=b"1")
    bus.settle(2 * HELLO_EVERY)
    assert c.values == {}
    bus.apart = set()
    d = bus.join("d")
    bus.settle(2 * HELLO_EVERY)
    assert c.values == d.values == b.values == {"port": b"1"}


def test_a_node_that_has_lost_everything_catches_up() -> None:
    bus, a, _b, _c = three()
    a.set(port=b"1")
    bus.settle()
    a.values = {}
    a.begin()
    bus.settle(2 * HELLO_EVERY)
    assert a.values == {"port": b"1"}


def test_two_changes_at_the_same_instant_end_the_same_everywhere() -> None:
    bus, a, b, c = three()
    a.set(port=b"1")
    c.set(port=b"3")
    assert a.spread.config_version == c.spread.config_version
    bus.settle(2 * HELLO_EVERY)
    assert a.values == b.values == c.values
    assert a.values["port"] in (b"1", b"3")
    assert a.spread.registers == b.spread.registers == c.spread.registers


def test_the_same_version_in_two_lives_of_a_node() -> None:
    """The node knows only that some version is far ahead of its clock, twice the same."""
    bus, a, b, c = three()
    bus.members["c"].skew_ms = DAY_MS
    c.set(host=b"h")
    bus.settle()
    bus.apart = {"a", "b"}
    first = a.set(port=b"1")
    bus.settle()
    a.begin()
    bus.apart = {"b"}  # which alone knows of it
    bus.settle(2 * HELLO_EVERY)
    second = a.set(port=b"2")
    assert first["port"].version[0] == second["port"].version[0]
    bus.apart = set()
    bus.settle(2 * HELLO_EVERY)
    assert a.values == b.values == c.values
    assert a.spread.registers == b.spread.registers == c.spread.registers


@pytest.mark.parametrize("skew_ms", [3 * DAY_MS, -3 * DAY_MS])
def test_clocks_that_differ_do_not_let_an_earlier_change_win(skew_ms: int) -> None:
    bus, a, b, c = three()
    a.skew_ms = skew_ms
    for number in range(4):
        (a, b)[number % 2].set(port=b"%d" % number)
        bus.settle()
        assert a.values == b.values == c.values == {"port": b"%d" % number}


def test_an_earlier_change_that_waits_does_not_undo_a_later_one() -> None:
    """What the other node has set waits for its turn; meanwhile a client sets it here."""
    bus, a, b, _c = three()
    a.set(port=b"1")
    a.hear()
    while bus.on_the_way:
        bus.arrive(0)
    b.hear()  # it knows, and has had no time to do it
    assert b.waiting
    b.set(port=b"2")
    bus.settle()
    assert a.values == b.values == {"port": b"2"}


def test_what_is_older_by_the_clock_is_told() -> None:
    """Not what was set at the same time, and not what is the same."""
    _bus, a, _b, _c = three()
    version = a.spread.assign({"port": b"1", "host": b"h"})["port"].version
    for earlier, value, older in (
        (5000, b"2", ["port"]),
        (5000, b"1", []),
        (module.SAME_TIME_MS, b"2", []),
        (-1, b"2", []),
    ):
        register = Register((version[0] - earlier, "x"), value)
        assert a.spread.outdated({"port": register, "other": register}) == older


@pytest.mark.parametrize("value", [bytes(range(256)), b"", b"\0\xff" * 524288], ids=len)
def test_values_are_bytes(value: bytes) -> None:
    bus, a, b, c = three()
    a.set(masks=value)
    bus.settle()
    assert b.values == c.values == {"masks": value}
    d = bus.join("d")
    bus.settle(2 * HELLO_EVERY)
    assert d.values == {"masks": value}


def test_values_travel_only_to_those_who_need_them() -> None:
    """The password, say: hello goes to all once a second, and has the versions only."""
    bus, a, _b, _c = three()
    a.set(password=b"hunter2")
    bus.settle(3 * HELLO_EVERY)
    bus.join("d")
    bus.settle(3 * HELLO_EVERY)
    secret = [data for data in bus.sent if b"hunter2" in data]
    assert set(kinds(secret)) == {"have"}
    assert {"hello", "want"} <= set(kinds(bus.sent))
    bus.settle(10 * HELLO_EVERY)
    assert [data for data in bus.sent if b"hunter2" in data] == secret  # all have it


def test_a_parameter_of_a_later_version_is_passed_on() -> None:
    bus, a, _b, _c = three()
    a.set(unheard=b"x")
    bus.settle()
    del bus.members["a"]
    d = bus.join("d")
    bus.settle(2 * HELLO_EVERY)
    assert d.values == {"unheard": b"x"}


def test_nothing_is_said_by_a_server_that_is_alone() -> None:
    bus = Bus()
    a = bus.join("a")
    a.set(port=b"1")
    a.turn()
    assert bus.sent == []
    assert a.outcomes == [Outcome()]
    assert a.spread.wake_at() is None


def test_many_nodes_say_less_often_what_they_have() -> None:
    bus = Bus()
    bus.join(*(f"n{number}" for number in range(1 + 4 * module.HELLO_NODES)))
    member = bus.members["n0"]
    start = bus.now
    said = 0
    while bus.now < start + 8.5 * HELLO_EVERY:
        said += len(member.spread.poll())
        bus.now += 0.25
    assert said == 3


# ---- questions -------------------------------------------------------------------------


def test_a_command_is_carried_out_everywhere_and_answered() -> None:
    bus, a, b, c = three()
    a.run(b"keyspaceamqp.fallback", b"LEN\xff")
    bus.settle()
    assert b.ran == [(b.life, b"keyspaceamqp.fallback"), (b.life, b"LEN\xff")]
    assert len(c.ran) == 2
    assert a.ran == []
    assert a.outcomes == [Outcome({"b": "b", "c": "c"})]


def test_what_is_asked_again_is_done_once() -> None:
    bus, a, b, _c = three()
    a.run(b"x")
    a.hear()
    for _ in range(4):  # the answers are lost
        while bus.on_the_way:
            bus.arrive(0)
        b.turn()
        bus.on_the_way.clear()
        bus.now += ASK_AGAIN
        a.hear()
    assert b.ran == [(b.life, b"x")]
    bus.settle()
    assert b.ran == [(b.life, b"x")]
    (outcome,) = a.outcomes
    assert outcome.answers["b"] == "b"


def test_who_does_not_answer_is_named() -> None:
    bus, a, _b, _c = three()
    bus.apart = {"c"}
    asked = bus.now
    a.run(b"x")
    bus.settle(times.ASK - 0.1)
    assert a.outcomes == []
    bus.settle(0.2)
    assert a.outcomes == [Outcome({"b": "b"}, {"c": "no answer"})]
    assert bus.now == pytest.approx(asked + times.ASK + 0.1)


def test_who_fails_is_not_waited_for() -> None:
    bus, a, _b, _c = three()
    bus.failing = {"c"}
    bus.tell_topology()
    a.run(b"x")
    bus.settle()
    assert a.outcomes == [Outcome({"b": "b"}, {"c": "it is failing"})]


@pytest.mark.parametrize("how", ["it is failing", "it has left the cluster"])
def test_who_goes_meanwhile_is_not_waited_for(how: str) -> None:
    bus, a, _b, _c = three()
    bus.apart = {"c"}
    a.run(b"x")
    bus.settle(0.1)
    assert a.outcomes == []
    if how == "it is failing":
        bus.failing = {"c"}
    else:
        del bus.members["c"]
    bus.tell_topology()
    bus.settle(0.01)
    assert a.outcomes == [Outcome({"b": "b"}, {"c": how})]


def test_a_refusal_is_told() -> None:
    bus, a, b, _c = three()
    a.spread.tell(a.spread.assign({"port": b"x"}), a.outcomes.append)
    a.hear()
    while bus.on_the_way:
        bus.arrive(0)
    (action,) = [action for action in b.spread.poll() if isinstance(action, ApplyRegisters)]
    assert action.question is not None
    b.spread.answer(action.question, None, "port: 'x' is not accepted")
    bus.settle()
    assert a.outcomes == [Outcome({"c": None}, {"b": "port: 'x' is not accepted"})]


def test_an_answer_that_comes_too_late_means_nothing() -> None:
    bus, a, b, _c = three()
    a.run(b"x")
    a.hear()
    while bus.on_the_way:
        bus.arrive(0)
    bus.now += times.ASK
    a.hear()
    assert set(a.outcomes[0].missing) == {"b", "c"}
    bus.settle()
    assert len(a.outcomes) == 1
    assert a.outcomes[0].answers == {}
    assert (a.spread.rejected, b.ran) == (0, [(b.life, b"x")])


def test_answers_are_kept_for_a_while() -> None:
    bus, a, b, _c = three()
    for _ in range(10):
        a.run(b"x")
        bus.settle()
    assert len(b.spread._answers) == 10
    bus.settle(module.ANSWERS_KEPT + 1)
    assert not b.spread._answers
    assert len(b.ran) == 10


# ---- garbage ---------------------------------------------------------------------------

VALID: list[dict[str, Any]] = [
    {"kind": "hello", "speaks": 1, "versions": {"port": [5, "x"], "host": [2**60, "y"]}},
    {"kind": "want", "names": ["port", "masks"]},
    {"kind": "have", "registers": {"port": [[2**60, "x"], "\xff"]}},
    {"kind": "have", "registers": {"port": [[2**60, "x"], "1"]}, "id": "q:1"},
    {"kind": "run", "words": ["keyspaceamqp.stats", "RESET"], "id": "q:2"},
    {"kind": "done", "id": "ASKED", "reply": [1, {"a": None}], "error": None},
    {"kind": "done", "id": "ASKED", "reply": None, "error": "no"},
]
OTHER: list[Any] = [None, True, 1, -1, 2**70, 1.5, "", "x", "\u20ac", [], [1], {}, {"a": 1}, [[]]]


class Listener:
    """A node that has a parameter, and has asked another something."""

    def __init__(self) -> None:
        self.bus, self.member, _, _ = three()
        self.spread = self.member.spread
        self.spread.assign({"port": b"5672"})
        self.member.run(b"x")
        self.member.hear()
        (self.asked,) = self.spread._questions

    def state(self) -> object:
        (question,) = self.spread._questions.values()
        outcome = dataclasses.astuple(question.outcome)
        return self.spread.registers, set(question.waiting), outcome, dict(self.spread._answers)

    def hears(self, data: bytes) -> list[Action]:
        self.spread.received("b", data)
        return self.spread.poll()

    def ignores(self, data: bytes) -> None:
        before = self.state()
        rejected = self.spread.rejected
        assert self.hears(data) == []
        assert self.spread.rejected == rejected + 1
        assert self.spread.last_rejected.startswith("message of node b: ")
        assert len(self.spread.last_rejected) < 300
        assert self.state() == before


def packed(message: Any, asked: str = "") -> bytes:
    return pack(json.loads(json.dumps(message).replace("ASKED", asked)))


def with_head(body: bytes, magic: bytes = b"KSA", version: int = 1) -> bytes:
    return wire._HEAD.pack(magic, version, zlib.crc32(body)) + body


@pytest.mark.parametrize("message", VALID, ids=lambda message: message["kind"])
def test_each_kind_is_understood(message: Any) -> None:
    """Or the tests below could not fail."""
    listener = Listener()
    before = listener.state()
    actions = listener.hears(packed(message, listener.asked))
    assert listener.spread.rejected == 0
    assert actions or listener.state() != before


@pytest.mark.parametrize("message", VALID, ids=lambda message: message["kind"])
def test_damaged_messages(message: Any) -> None:
    listener = Listener()
    data = packed(message, listener.asked)
    for end in range(len(data)):
        listener.ignores(data[:end])
    for bit in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        listener.ignores(bytes(flipped))
    listener.ignores(data + b"\0")
    listener.ignores(data * 2)


def test_other_peoples_messages_and_later_versions() -> None:
    listener = Listener()
    body = json.dumps(VALID[4]).encode()
    listener.ignores(with_head(body, magic=b"XYZ"))
    for version in (0, 2, 255):
        listener.ignores(with_head(body, version=version))
        assert f"version {version} is not known" in listener.spread.last_rejected
    listener.ignores(with_head(b""))
    listener.ignores(with_head(b"\xff\xfe{}"))
    listener.ignores(with_head(b'{"kind": "hello"} more'))
    listener.ignores(with_head(b"9" * 5000))


def wrong_shapes() -> Iterator[tuple[Any, str]]:
    """Valid messages in which something is of another type, at any depth, with what kinds
    of values are right there."""
    for message in VALID:
        for path in paths(message):
            for value in OTHER:
                changed = json.loads(json.dumps(message))
                *above, last = path
                inner = changed
                for step in above:
                    inner = inner[step]
                if type(inner[last]) is not type(value):
                    inner[last] = value
                    yield changed, ".".join(map(str, path))


def paths(value: Any) -> Iterator[tuple[Any, ...]]:
    items: Sequence[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for step, inner in items:
        yield (step,)
        yield from ((step, *rest) for rest in paths(inner))


# Whose type does not matter, or that may be missing.
FREE = {"speaks", "reply", "reply.0", "reply.1", "reply.1.a", "error"}


def test_wrong_types_in_every_field() -> None:
    tried = 0
    for message, path in wrong_shapes():
        if path in FREE:
            continue
        # A true that stands for a number harms nobody, no more than an empty list.
        listener = Listener()
        before, data = listener.state(), packed(message, listener.asked)
        actions = listener.hears(data)
        if listener.spread.rejected:
            assert actions == []
            assert listener.state() == before
            tried += 1
        else:
            assert kind_of_harmless(message), message
    assert tried > 200


def kind_of_harmless(message: Any) -> bool:
    """What may be heard although it is no message of ours: nothing is asked or told."""
    versions = list(message.get("versions", {}).values()) if message["kind"] == "hello" else []
    if message["kind"] == "have":
        versions = [register[0] for register in message["registers"].values()]
    as_number = any(version[0] is True for version in versions)
    return as_number or message.get("names") == [] or message.get("id") == ""


@pytest.mark.parametrize("missing", ["kind", "versions", "names", "registers", "words", "id"])
def test_missing_fields(missing: str) -> None:
    listener = Listener()
    for message in VALID:
        if missing in message and not (missing == "id" and message["kind"] == "have"):
            without = {name: value for name, value in message.items() if name != missing}
            listener.ignores(packed(without, listener.asked))


def test_an_error_that_is_no_text_leaves_the_question_open() -> None:
    listener = Listener()
    for error in (1, [], {"a": 1}, True):
        message = {"kind": "done", "id": listener.asked, "reply": 1, "error": error}
        listener.ignores(pack(message))
    listener.hears(pack({"kind": "done", "id": listener.asked, "reply": 1, "error": None}))
    (question,) = listener.spread._questions.values()
    assert question.outcome.answers == {"b": 1}


@pytest.mark.parametrize("field", ["kind", "versions", "names", "registers", "words", "id"])
def test_huge_nesting(field: str) -> None:
    """About as deep as Python's own stack, and deeper."""
    listener = Listener()
    (message,) = [m for m in VALID if field in m][:1]
    for depth in (10, *range(880, 1010, 3), 5000, 100_000):
        rest = {name: value for name, value in message.items() if name != field}
        body = json.dumps(rest)[:-1] + f', "{field}": ' + "[" * depth + "]" * depth + "}"
        listener.ignores(with_head(body.encode()))


def test_a_deep_answer_is_an_answer() -> None:
    listener = Listener()
    body = f'{{"kind": "done", "id": "{listener.asked}", "reply": ' + "[" * 400 + "]" * 400 + "}"
    listener.hears(with_head(body.encode()))
    assert listener.spread.rejected == 0


@given(st.binary(max_size=200))
def test_random_bytes(data: bytes) -> None:
    listener = Listener()
    listener.ignores(data)
    listener.ignores(with_head(data))


shapes = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)
words = st.sampled_from(["port", "x", "q:1", "ASKED"])
messages = st.fixed_dictionaries(
    {"kind": st.sampled_from(["hello", "want", "have", "run", "done", "more"])},
    optional={
        "versions": st.one_of(shapes, st.dictionaries(words, shapes, max_size=3)),
        "names": st.one_of(shapes, st.lists(st.one_of(words, shapes), max_size=3)),
        "registers": st.one_of(
            shapes, st.dictionaries(words, st.lists(shapes, min_size=2, max_size=2), max_size=2)
        ),
        "words": st.one_of(shapes, st.lists(st.one_of(words, shapes), max_size=3)),
        "id": st.one_of(shapes, words),
        "error": shapes,
        "reply": shapes,
    },
)


@settings(max_examples=500)
@given(st.one_of(shapes, messages))
def test_json_of_any_shape(message: Any) -> None:
    """It is ignored as a whole, or understood."""
    listener = Listener()
    before = listener.state()
    data = with_head(json.dumps(message).replace("ASKED", listener.asked).encode())
    actions = listener.hears(data)
    if listener.spread.rejected:
        assert actions == []
        assert listener.state() == before
    # And its own messages are still such.
    bus = listener.bus
    bus.now += HELLO_EVERY
    listener.member.hear()
    assert "hello" in kinds(bus.sent[-3:])


# ---- worlds in which anything may happen at any time -------------------------------------

Step = Callable[[random.Random], None]
NAMES = ("port", "host", "masks")


class World:
    """A step is one thing that happens. In the end all nodes must agree."""

    def __init__(self, chance: random.Random) -> None:
        self.bus = Bus()
        self.numbers = itertools.count(1)
        self.asked = 0
        self.ran: set[bytes] = set()
        for name in "abcd"[: chance.randint(2, 4)]:
            self.join(name, chance)

    def join(self, name: str, chance: random.Random) -> None:
        self.bus.join(name, skew_ms=chance.choice([0, 0, 1, 2 * DAY_MS, -2 * DAY_MS]))

    def pick(self, chance: random.Random) -> Member:
        return chance.choice(list(self.bus.members.values()))

    def step(self, chance: random.Random) -> None:
        steps: dict[Step, int] = {
            self.node_hears: 20,
            self.node_works: 10,
            self.message_arrives: 40,
            self.message_is_lost: 4,
            self.message_comes_twice: 4,
            self.somebody_sets: 5,
            self.somebody_runs: 3,
            self.time_passes: 8,
            self.cluster_falls_apart: 1,
            self.node_starts_again: 1,
            self.node_joins: 1,
            self.node_seems_to_fail: 1,
        }
        (happen,) = chance.choices(list(steps), weights=list(steps.values()))
        note(f"{self.bus.now:.3f} {happen.__name__}")
        happen(chance)
        for member in self.bus.members.values():
            assert member.spread.rejected == 0

    def node_hears(self, chance: random.Random) -> None:
        self.pick(chance).hear()

    def node_works(self, chance: random.Random) -> None:
        self.pick(chance).work(chance.choice([1, 10]))

    def message_arrives(self, chance: random.Random) -> None:
        if self.bus.on_the_way:
            self.bus.arrive(chance.randrange(len(self.bus.on_the_way)))

    def message_is_lost(self, chance: random.Random) -> None:
        if self.bus.on_the_way:
            del self.bus.on_the_way[chance.randrange(len(self.bus.on_the_way))]

    def message_comes_twice(self, chance: random.Random) -> None:
        if self.bus.on_the_way:
            self.bus.arrive(chance.randrange(len(self.bus.on_the_way)), keep=True)

    def somebody_sets(self, chance: random.Random) -> None:
        names = chance.sample(NAMES, chance.choice([1, 1, 2]))
        member = self.pick(chance)
        known = {name: register.version for name, register in member.spread.registers.items()}
        registers = member.set(**{name: b"%d" % next(self.numbers) for name in names})
        assert all(register.version > known.get(n, (0, "")) for n, register in registers.items())
        self.asked += 1

    def somebody_runs(self, chance: random.Random) -> None:
        word = b"%d" % next(self.numbers)
        self.pick(chance).run(word)
        self.ran.add(word)
        self.asked += 1

    def time_passes(self, chance: random.Random) -> None:
        self.bus.now += chance.choice([0, 0.01, 0.6, 1.1])

    def cluster_falls_apart(self, chance: random.Random) -> None:
        self.bus.apart = {name for name in self.bus.members if chance.random() < 0.3}

    def node_starts_again(self, chance: random.Random) -> None:
        member = self.pick(chance)
        self.asked -= len(member.spread._questions)  # nobody will answer these
        member.begin()

    def node_joins(self, chance: random.Random) -> None:
        name = "efgh"[len(self.bus.members) - 4 :][:1]
        if name and name not in self.bus.members:
            self.join(name, chance)

    def node_seems_to_fail(self, chance: random.Random) -> None:
        self.bus.failing = {name for name in self.bus.members if chance.random() < 0.1}
        self.bus.tell_topology()

    def rest(self) -> None:
        self.bus.apart = self.bus.failing = set()
        self.bus.tell_topology()
        self.bus.settle(times.ASK + 2 * HELLO_EVERY)
        members = list(self.bus.members.values())
        first = members[0].spread
        for member in members:
            assert member.spread.registers == first.registers
            assert member.spread.config_version == first.config_version
            newest = {name: register.value for name, register in first.registers.items()}
            # What redis.conf has and nobody knows of any more stays as it is.
            assert member.values | newest == member.values
            assert len(member.ran) == len(set(member.ran)), "done twice"
            assert {word for _, word in member.ran} <= self.ran
            for outcome in member.outcomes:
                assert not outcome.answers.keys() & outcome.missing.keys()
                assert member.name not in {*outcome.answers, *outcome.missing}
                assert set(outcome.missing.values()) <= {"no answer", "it is failing"}
        assert sum(len(member.outcomes) for member in members) == self.asked


stories = st.integers(0, 200).flatmap(
    lambda count: st.lists(st.integers(0, 2**32), min_size=count, max_size=count)
)


@settings(max_examples=250)
@given(seed=st.integers(0, 2**32), story=stories)
def test_all_nodes_agree_in_the_end(seed: int, story: list[int]) -> None:
    world = World(random.Random(seed))
    for number in story:
        world.step(random.Random(number))
    world.rest()
