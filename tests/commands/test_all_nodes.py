"""Commands on all nodes: the messages of a node to the others, and their answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp import commands
from keyspace_amqp.cluster.lists import LOOK_KEYS
from keyspace_amqp.cluster.peers import LINK
from keyspace_amqp.cluster.slots import SLOTS
from keyspace_amqp.cluster.wire import Register
from keyspace_amqp.commands import CommandError
from keyspace_amqp.commands.fallback import PEEK_BYTES
from keyspace_amqp.fallback import JOB_BYTES, peek_job
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.stats import Stat
from tests.commands.handler import (
    CLUSTER,
    CONFIG,
    CONNECT,
    DISCONNECT,
    FALLBACK,
    KEYMASK,
    NOTHING,
    OK,
    SNAPSHOT,
    STATS,
    FakeHandler,
    Results,
    Run,
    clustered,
    config_set,
    lengths,
    peeked,
    refused,
    spread_over,
)

# Commands that set something, what they reply, and what they tell the others to set.
SETTING = [
    ([CONFIG, b"SET", b"Port", b"1", b"host", b"h"], "OK", {"port": b"1", "host": b"h"}),
    ([CONFIG, b"SET", b"password", b"\0\xff"], "OK", {"password": b"\0\xff"}),
    ([KEYMASK, b"ADD", b"a b"], 2, {"masks": b"ALL a\\x20b"}),
    ([KEYMASK, b"SET", b"c"], 1, {"masks": b"c"}),
    ([KEYMASK, b"DEL", b"ALL"], 0, {"masks": b""}),
    ([KEYMASK, b"CLEAR"], 0, {"masks": b""}),
    ([CONNECT, b"h", b"1"], "OK", {"host": b"h", "port": b"1", LINK: b"on"}),
    ([CONNECT], "OK", {LINK: b"on"}),
    ([DISCONNECT], "OK", {LINK: b"off"}),
]
setting_commands = pytest.mark.parametrize(
    ("arguments", "result", "told"), SETTING, ids=[repr(b" ".join(row[0])[13:]) for row in SETTING]
)


def results_of(told: Mapping[str, bytes]) -> Results:
    """The results of the one job, if there is any."""
    return [[OK]] if set(told) - {LINK} else []


@setting_commands
def test_what_is_set_is_told_to_all(
    arguments: list[bytes], result: Any, told: Mapping[str, bytes]
) -> None:
    handler = clustered({"a": None}, b="no answer", c="masks: no")
    run = Run(handler, *arguments, results=results_of(told))
    assert run.reply == spread_over(result, 2, b"b:7000: no answer", b"c:7000: masks: no")
    assert handler.told == [told]
    assert handler.ran == []
    assert {name: r.value for name, r in handler.registers.items()} == told


@setting_commands
@pytest.mark.parametrize("how", ["LOCAL", "asked", "alone"])
def test_what_is_set_here_only(
    how: str, arguments: list[bytes], result: Any, told: Mapping[str, bytes]
) -> None:
    """It gets no version, so it is not passed on later either."""
    handler = FakeHandler() if how == "alone" else clustered({"a": None})
    words = [*arguments, b"local"] if how == "LOCAL" else arguments
    run = Run(handler, *words, results=results_of(told), asked=how == "asked")
    assert run.reply == result
    assert (handler.told, handler.ran, handler.registers) == ([], [], {})


@pytest.mark.parametrize(
    "arguments",
    [row[0] for row in SETTING[:7]],
    ids=[repr(b" ".join(row[0])[13:]) for row in SETTING[:7]],
)
def test_what_is_refused_here_is_told_to_nobody(arguments: list[bytes]) -> None:
    refusal: Results = [[(b"-port: no luck\r\n", 0)]]
    assert refused(*arguments, handler=clustered({"a": None}), results=refusal) == "port: no luck"


def test_a_refusal_leaves_what_was_set_before() -> None:
    handler = clustered({"a": None})
    Run(handler, CONFIG, b"SET", b"port", b"1", results=[[OK]])
    before = handler.registers
    with pytest.raises(CommandError):
        Run(handler, CONFIG, b"SET", b"port", b"x", results=[[(b"-no\r\n", 0)]])
    assert handler.registers == before
    assert len(handler.told) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        [CONFIG, b"GET", b"*"],
        [KEYMASK, b"LIST"],
        [KEYMASK, b"TEST", b"k"],
        [KEYMASK, b"TEST", b"LOCAL"],
    ],
    ids=lambda arguments: repr(b" ".join(arguments)[13:]),
)
def test_what_is_the_same_everywhere_is_answered_here(arguments: list[bytes]) -> None:
    handler = clustered({"a": None})
    assert Run(handler, *arguments).reply == Run(FakeHandler(), *arguments).reply
    assert (handler.told, handler.ran) == ([], [])


PEEKED: Results = [lengths(1), peeked(b"a")]
# The command, the results of its jobs here, the answer of another node, and both together.
RUNNING: list[tuple[list[bytes], Results, Any, Any]] = [
    ([FALLBACK, b"LEN"], [lengths(12)], 30, 42),
    ([FALLBACK, b"drain"], [], 30, 47),
    ([FALLBACK, b"PURGE"], [], 30, 33),
    ([FALLBACK, b"PEEK", b"2"], PEEKED, ["\xff\0"], [b"a", b"\xff\0"]),
    ([FALLBACK, b"PEEK", b"1"], PEEKED, ["b"], [b"a"]),
    ([FALLBACK, b"ASIDE", b"2"], [], [["\xff", "no", 7], ["b", "no", 9]],
     [[b"b", b"no", 9], [b"\xff", b"no", 7]]),
    ([FALLBACK, b"ASIDE", b"1"], [], [["a", "no", 7], ["b", "no", 9]], [[b"b", b"no", 9]]),
    ([FALLBACK, b"ASIDE"], [], [None, "x", ["a", "no"], [None, 5, "x"]], [[b"", b"", 0]]),
    ([SNAPSHOT, b"START", b"RATE", b"5"], [], 30, 72),
    ([SNAPSHOT, b"stop"], [], 1, 2),
    ([STATS, b"RESET"], [], "OK", "OK"),
]  # fmt: skip
running_commands = pytest.mark.parametrize(
    ("arguments", "results", "answered", "result"),
    RUNNING,
    ids=[repr(b" ".join(row[0])[13:]) for row in RUNNING],
)


@running_commands
def test_what_is_run_on_all_nodes(
    arguments: list[bytes], results: Results, answered: Any, result: Any
) -> None:
    handler = clustered({"a": answered}, b="no answer")
    run = Run(handler, *arguments, results=results)
    assert run.reply == spread_over(result, 2, b"b:7000: no answer")
    assert handler.ran == [arguments]
    assert (handler.told, handler.registers) == ([], {})


@running_commands
@pytest.mark.parametrize("how", ["LOCAL", "asked"])
def test_what_is_run_here_only(
    how: str, arguments: list[bytes], results: Results, answered: Any, result: Any
) -> None:
    handler, alone = clustered({"a": answered}), FakeHandler()
    words = [*arguments, b"LOCAL"] if how == "LOCAL" else arguments
    # So that it fits into a message, another node gets less of the list than a client.
    run = Run(handler, *words, results=results, asked=how == "asked")
    assert run.reply == Run(alone, *arguments, results=results).reply
    assert (handler.ran, handler.calls) == ([], alone.calls)


def test_another_node_gets_elements_that_fit_into_a_message() -> None:
    run = Run(FakeHandler(), FALLBACK, b"PEEK", results=[lengths(1), NOTHING], asked=True)
    assert run.jobs[1] == peek_job(KEY, 0, 10, JOB_BYTES)


def test_elements_of_all_nodes_are_no_more_than_one_node_may_show() -> None:
    element = "x" * (PEEK_BYTES // 4)
    handler = clustered({"a": [element] * 3, "b": [element] * 3})
    reply = Run(handler, FALLBACK, b"PEEK", results=PEEKED).reply
    assert reply[b"result"] == [b"a", *[element.encode()] * 4]


@pytest.mark.parametrize(
    ("arguments", "empty"),
    [([b"LEN"], 0), ([b"PURGE"], 0), ([b"PEEK"], []), ([b"PEEK", b"5"], [])],
    ids=lambda value: repr(value),
)
def test_a_replica_does_not_answer_for_its_copy(arguments: list[bytes], empty: Any) -> None:
    """Its primary does; with LOCAL a replica shows its copy."""
    handler = clustered({"a": 5 if empty == 0 else ["x"]})
    handler.writable = False
    handler.list_keys = None
    assert Run(handler, FALLBACK, *arguments, asked=True).reply == empty
    reply = Run(handler, FALLBACK, *arguments).reply
    assert reply == spread_over(5 if empty == 0 else [b"x"], 2)
    assert handler.calls == []
    if arguments == [b"LEN"]:
        results = [lengths(*[1] * LOOK_KEYS) for _ in range(0, 2 * SLOTS, LOOK_KEYS)]
        assert Run(handler, FALLBACK, b"LEN", b"LOCAL", results=results).reply == 2 * SLOTS


def test_a_replica_makes_no_snapshot() -> None:
    """Its primary does; with LOCAL a replica says why not, as the job's error."""
    handler = clustered({"a": 5})
    handler.writable = False
    assert Run(handler, SNAPSHOT, b"START").reply == spread_over(5, 2)
    assert handler.calls == []
    Run(handler, SNAPSHOT, b"START", b"LOCAL")
    assert handler.calls == ["snapshot 10000"]


def test_a_replica_outside_of_a_cluster_shows_its_copy() -> None:
    handler = FakeHandler()
    handler.writable = False
    assert Run(handler, FALLBACK, b"LEN", results=[lengths(5)]).reply == 5


def test_stats_of_all_nodes() -> None:
    others = {name: {stat.name.lower(): 1000 for stat in Stat} for name in "ab"}
    handler = clustered(others, c="it is failing")
    reply = Run(handler, STATS, b"CLUSTER").reply
    assert list(reply)[:3] == [b"nodes", b"of", b"missing"]
    assert (reply[b"nodes"], reply[b"of"]) == (3, 4)
    assert reply[b"missing"] == [b"c:7000: it is failing"]
    for stat in Stat:
        assert reply[stat.name.lower().encode()] == 2100 + stat
    assert handler.ran == [[STATS, b"CLUSTER"]]
    reply = Run(handler, STATS, b"CLUSTER", asked=True).reply
    assert reply == {stat.name.lower().encode(): 100 + stat for stat in Stat}
    reply = Run(FakeHandler(), STATS, b"CLUSTER").reply  # alone
    assert (reply[b"nodes"], reply[b"of"], reply[b"published"]) == (1, 1, 102)


def test_the_table_of_the_nodes() -> None:
    about = {"role": "replica", "state": "up", "fallback_length": 3, "last_error": "h\xc3\xa9"}
    handler = clustered({"a": about}, z="no answer")
    rows = Run(handler, CLUSTER).reply
    assert [row[b"id"] for row in rows] == [b"a", b"me", b"z"]  # by their addresses
    assert rows[0] == {
        b"id": b"a",
        b"address": b"a:7000",
        b"role": b"replica",
        b"state": b"up",
        b"fallback_length": 3,
        b"last_error": "h\u00e9".encode(),
    }
    assert rows[1][b"last_error"] == "h\u00e9".encode()
    assert rows[2][b"state"] == b"unknown"
    assert rows[2][b"role"] == b"primary"
    assert rows[2][b"last_error"] == b"no answer"
    assert all(list(row) == list(rows[0]) for row in rows)
    # It reads from others the same fields that it sends itself.
    own = commands.to_json(Run(handler, CLUSTER, asked=True).reply)
    (row,) = [row for row in Run(clustered({"a": own}), CLUSTER).reply if row[b"id"] == b"a"]
    assert row[b"last_error"] == "h\u00e9".encode()
    assert len(Run(FakeHandler(), CLUSTER).reply) == 1
    assert "wrong arguments" in refused(CLUSTER, b"x")


anything = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.one_of(
                st.sampled_from(["role", "state", "fallback_length", "published", "last_error"]),
                st.text(st.characters(), max_size=3),
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=8,
)


@given(answered=anything, error=st.text(st.characters(exclude_categories=[])))
@example(answered={"role": "\ud800"}, error="\ud800")
def test_answers_of_any_shape(answered: Any, error: str) -> None:
    """A node of a later version may answer anything: there is a reply, with the parts that are
    understood."""
    for arguments, results, _, _ in RUNNING:
        reply = Run(clustered({"a": answered}, b=error), *arguments, results=results).reply
        assert reply[b"nodes"] == 2
    for words in ([STATS, b"CLUSTER"], [CLUSTER]):
        Run(clustered({"a": answered}, b=error), *words)


def test_what_is_not_understood_is_left_empty() -> None:
    handler = clustered({"a": ["x", None, 1, ["y"]], "b": {"x": 1}, "c": "xyz"})
    reply = Run(handler, FALLBACK, b"PEEK", results=PEEKED).reply
    assert reply[b"result"] == [b"a", b"x", b"", b"", b""]
    reply = Run(clustered({"a": "12", "b": [5], "c": 7}), FALLBACK, b"DRAIN").reply
    assert reply[b"result"] == 17 + 7
    reply = Run(clustered({"a": {"published": "5"}, "b": 9}), STATS, b"CLUSTER").reply
    assert reply[b"published"] == 100 + Stat.PUBLISHED
    about = {"role": 5, "state": [1], "later": "x"}
    (row,) = [row for row in Run(clustered({"a": about}), CLUSTER).reply if row[b"id"] == b"a"]
    assert (row[b"role"], row[b"state"]) == (5, b"")
    assert b"later" not in row


def test_an_answer_with_more_nesting_than_a_stack() -> None:
    deep: Any = []
    for _ in range(900):
        deep = [deep]
    for arguments, results, _, _ in RUNNING:
        Run(clustered({"a": deep, "b": [deep], "c": {"role": deep}}), *arguments, results=results)
    for words in ([STATS, b"CLUSTER"], [CLUSTER]):
        Run(clustered({"a": deep, "b": {"role": deep, "published": deep}}), *words)


def test_numbers_that_are_too_large_for_a_reply() -> None:
    for number in (2**63, 2**63 - 1, -(2**63) - 1):
        Run(clustered({"a": number, "b": 2**63 - 1}), FALLBACK, b"DRAIN")
        Run(clustered({"a": {"published": number, "state": number}}), STATS, b"CLUSTER")
        Run(clustered({"a": {"published": number, "state": number}}), CLUSTER)


@pytest.mark.parametrize("words", [[], [b""], [b"x"], [b"keyspaceamqp.later"], [b"\xff.HELP"]])
def test_another_node_asks_for_what_is_not_there(words: list[bytes]) -> None:
    with pytest.raises(CommandError, match="there is no command"):
        Run(clustered({"a": None}), *words, asked=True)


def test_stats_of_what_is_not_there() -> None:
    assert "wrong arguments" in refused(STATS, b"LATER")


# ---- what another node has set -------------------------------------------------------------


class Applied(Run):
    """Sets the values that another node has set for all, if they are the newest."""

    def __init__(
        self, handler: FakeHandler, values: Mapping[str, bytes], results: Results = ()
    ) -> None:
        self.jobs = []
        self.reply = None
        registers = {name: Register((9, "a"), value) for name, value in values.items()}
        self.run(commands.apply(handler, registers), results)


def test_apply_sets_all_at_once() -> None:
    handler = clustered({"a": None})
    run = Applied(handler, {"port": b"1", "masks": b"\xff"}, [[OK]])
    assert run.jobs == config_set((b"port", b"1"), (b"masks", b"\xff"))
    assert (handler.calls, handler.told, len(handler.registers)) == ([], [], 2)


@pytest.mark.parametrize(("value", "call"), [(b"on", "connect"), (b"off", "disconnect")])
def test_apply_connects_and_disconnects_after_the_rest(value: bytes, call: str) -> None:
    handler = clustered({"a": None})
    run = Applied(handler, {LINK: value, "port": b"1"}, [[OK]])
    assert run.jobs == config_set((b"port", b"1"))
    assert handler.calls == [call]
    handler = clustered({"a": None})
    assert Applied(handler, {LINK: value}).jobs == []
    assert handler.calls == [call]
    assert not handler.setting


def test_apply_sets_what_it_can() -> None:
    handler = clustered({"a": None})
    no = [(b"-port: no\r\n", 0)]
    with pytest.raises(CommandError, match=r"^port: no$"):
        Applied(handler, {"port": b"x", "host": b"h", LINK: b"on"}, [no, no, [OK]])
    assert handler.calls == ["connect"]
    with pytest.raises(CommandError, match=r"^port: no$"):
        Applied(clustered({"a": None}), {"port": b"x"}, [no])


def test_apply_says_what_is_older() -> None:
    handler = clustered({"a": None})
    handler.behind = ["port"]
    with pytest.raises(CommandError, match=r"^it has a newer value of port; set it again$"):
        Applied(handler, {"host": b"h"}, [[OK]])


def test_apply_leaves_what_it_does_not_know() -> None:
    """It may be a parameter of a later version."""
    handler = clustered({"a": None})
    assert Applied(handler, {"later": b"x"}).jobs == []
    assert Applied(handler, {"later": b"x", "port": b"1"}, [[OK]]).jobs == config_set(
        (b"port", b"1")
    )


def test_apply_leaves_what_was_set_since() -> None:
    """The change may have waited while a client of this node set the parameter."""
    handler = clustered({"a": None})
    handler.registers = {
        "port": Register((10, "me"), b"2"),
        LINK: Register((10, "me"), b"off"),
    }
    run = Applied(handler, {"port": b"1", "host": b"h", LINK: b"on"}, [[OK]])
    assert run.jobs == config_set((b"host", b"h"))
    assert handler.calls == []
