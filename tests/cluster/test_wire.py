"""Messages of other nodes that are damaged, of another version, or of any shape."""

from __future__ import annotations

import copy
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from keyspace_amqp.cluster import wire
from keyspace_amqp.cluster.peers import HELLO_EVERY, Action
from keyspace_amqp.cluster.wire import pack
from tests.cluster.bus import kinds, three

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
    """A node that has a parameter, and has asked another node something."""

    def __init__(self) -> None:
        self.bus, self.member, _, _ = three()
        self.spread = self.member.spread
        self.spread.assign({"port": b"5672"})
        self.member.run(b"x")
        self.member.hear()
        (self.asked,) = self.spread._questions

    def state(self) -> object:
        (question,) = self.spread._questions.values()
        outcome = copy.deepcopy(question.outcome)
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
    """Otherwise the tests below could not fail."""
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
    """Valid messages in which one value, at any depth, has another type; with the types that are
    right in that place."""
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


# Fields that may have any type, or may be missing.
FREE = {"speaks", "reply", "reply.0", "reply.1", "reply.1.a", "error"}


def test_wrong_types_in_every_field() -> None:
    tried = 0
    for message, path in wrong_shapes():
        if path in FREE:
            continue
        # `true` instead of a number does no harm, and neither does an empty list.
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
    """True if this message is not valid but has no effect: it asks for nothing and sets
    nothing."""
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
    # And what it sends is still valid.
    bus = listener.bus
    bus.now += HELLO_EVERY
    listener.member.hear()
    assert "hello" in kinds(bus.sent[-3:])
