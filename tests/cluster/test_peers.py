"""The parameters that the nodes of a cluster agree upon, and the commands that they ask each other
to run."""

from __future__ import annotations

import pytest

from keyspace_amqp.cluster import peers as module
from keyspace_amqp.cluster.peers import ASK_AGAIN, HELLO_EVERY, ApplyRegisters, Outcome
from keyspace_amqp.cluster.wire import Register, pack
from keyspace_amqp.tables import times
from tests.cluster.bus import DAY_MS, Bus, kinds, three


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
    """Before and after a restart it makes the same version of two values: each time it knows only
    that some version is far ahead of its clock."""
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
    """A change of another node waits its turn; meanwhile a client sets the parameter here."""
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
    """But not values of the same time, and not equal values."""
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
    """As for the password: `hello` goes to all once a second, and has only versions."""
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


def test_a_question_that_comes_again() -> None:
    """The work is done once, and the answer is kept as long as a node may ask for it."""
    now = 0.0
    asked = pack({"kind": "run", "words": ["KEYSPACEAMQP.STATS", "RESET"], "id": "a:1"})
    node = module.Peers("b", lambda: now, lambda: 0)

    def actions() -> list[module.Action]:
        node.received("a", asked)
        return node.poll()

    (run,) = actions()
    assert isinstance(run, module.RunCommand)
    assert actions() == []
    node.answer(run.question, "OK", None)
    (answer,) = node.poll()
    now = module.times.ASK
    assert actions() == [answer]
    now = module.ANSWERS_KEPT + 1
    node.poll()
    assert actions() == [run]  # it has been forgotten
