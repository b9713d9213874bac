"""The states of the link, its times, and the words that STATS shows."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keyspace_amqp.publisher import backoff
from keyspace_amqp.publisher.link import BACKOFF_MAX, Link, LinkState
from tests.publisher.objects.parts import Clock

OFF, IDLE, WAITING, CONNECTING, UP, BLOCKED = LinkState


def make_link(state: LinkState = IDLE, clock: Clock | None = None) -> Link:
    """A link that reached the state on the usual way."""
    link = Link(clock or Clock(), lambda: 1.0)
    if state is OFF:
        link.turn_off()
    elif state is not IDLE:
        link.need()
        if state is not WAITING:
            link.connecting()
        if state in (UP, BLOCKED):
            link.up()
        if state is BLOCKED:
            link.block("low on memory")
    assert link.state is state
    return link


def down(link: Link) -> None:
    link.down("refused")


def block(link: Link) -> None:
    link.block("low on memory")


# The state after each call, in the order of LinkState: OFF, IDLE, WAITING, CONNECTING, UP,
# BLOCKED.
TRANSITIONS: dict[Callable[[Link], object], tuple[LinkState, ...]] = {
    Link.need: (OFF, WAITING, WAITING, CONNECTING, UP, BLOCKED),
    Link.want: (WAITING, WAITING, WAITING, CONNECTING, UP, BLOCKED),
    Link.retry: (OFF, IDLE, WAITING, CONNECTING, UP, BLOCKED),
    Link.turn_off: (OFF, OFF, OFF, OFF, OFF, OFF),
    Link.rest: (OFF, IDLE, IDLE, IDLE, IDLE, IDLE),
    Link.is_due: (OFF, IDLE, WAITING, CONNECTING, UP, BLOCKED),
    Link.connecting: (CONNECTING,) * 6,
    Link.up: (UP,) * 6,
    down: (OFF, IDLE, WAITING, WAITING, WAITING, WAITING),
    Link.closed: (OFF, IDLE, WAITING, WAITING, WAITING, WAITING),
    Link.confirmed: (OFF, IDLE, WAITING, CONNECTING, UP, BLOCKED),
    Link.refused: (OFF, IDLE, WAITING, CONNECTING, UP, BLOCKED),
    block: (OFF, IDLE, WAITING, CONNECTING, BLOCKED, BLOCKED),
    Link.unblock: (OFF, IDLE, WAITING, CONNECTING, UP, UP),
}


@pytest.mark.parametrize("call", TRANSITIONS, ids=lambda call: call.__name__)
@pytest.mark.parametrize("state", LinkState)
def test_each_call_in_each_state(call: Callable[[Link], object], state: LinkState) -> None:
    link = make_link(state)
    call(link)
    assert link.state is TRANSITIONS[call][list(LinkState).index(state)]


@pytest.mark.parametrize("state", LinkState)
def test_the_questions_about_a_state(state: LinkState) -> None:
    link = make_link(state)
    assert link.is_up == (state is UP)
    assert link.is_off == (state is OFF)
    assert link.is_waiting == (state is WAITING)
    assert link.is_blocked == (state is BLOCKED)
    assert link.is_open == (state in (CONNECTING, UP, BLOCKED))


@pytest.mark.parametrize("state", LinkState)
def test_only_a_change_between_up_and_blocked_is_news(state: LinkState) -> None:
    assert make_link(state).block("low on memory") == (state is UP)
    assert make_link(state).unblock() == (state is BLOCKED)


WORDS = {OFF: "disconnected", CONNECTING: "connecting", UP: "connected", BLOCKED: "blocked"}


@pytest.mark.parametrize("primary", [True, False])
@pytest.mark.parametrize("state", LinkState)
def test_the_word_of_stats(state: LinkState, primary: bool) -> None:
    word = WORDS.get(state, "idle" if primary else "replica")
    assert make_link(state).word(primary=primary) == word


@pytest.mark.parametrize("state", [IDLE, WAITING])
def test_without_a_connection_it_is_idle_only_before_the_first_attempt(state: LinkState) -> None:
    failed = make_link(state)
    failed.down("refused")
    lost = make_link(UP)
    lost.closed()
    if state is IDLE:
        lost.rest()
    for link in (failed, lost):
        assert link.state is state
        assert link.word(primary=True) == "disconnected"
        assert link.word(primary=False) == "replica"


def test_the_first_attempt_is_due_at_once() -> None:
    assert make_link(WAITING).is_due()


@pytest.mark.parametrize("state", [state for state in LinkState if state is not WAITING])
def test_no_attempt_is_due_unless_one_is_awaited(state: LinkState) -> None:
    assert not make_link(state).is_due()


def test_attempts_come_less_and_less_often() -> None:
    clock = Clock()
    link = make_link(WAITING, clock)
    delays = []
    for _ in range(8):
        link.connecting()
        link.down("refused")
        assert not link.is_due()
        delays.append(link.retry_at - clock.now)
        clock.now = link.retry_at
        assert link.is_due()
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, BACKOFF_MAX, BACKOFF_MAX])


@pytest.mark.parametrize("call", [Link.want, Link.retry])
def test_attempts_begin_anew_when_somebody_asks(call: Callable[[Link], None]) -> None:
    link = make_link(CONNECTING)
    link.down("refused")
    assert not link.is_due()
    assert not link.is_first_attempt
    call(link)
    assert link.is_due()
    assert link.is_first_attempt


def test_need_does_not_make_an_attempt_earlier() -> None:
    link = make_link(CONNECTING)
    link.down("refused")
    link.need()
    assert not link.is_due()


def test_only_a_confirm_shows_that_the_broker_works() -> None:
    """A broker that takes connections and closes each of them at once is not tried faster."""
    clock = Clock()
    link = make_link(CONNECTING, clock)
    for delay in (0.1, 0.2, 0.4):
        link.up()
        link.down("refused")
        assert link.retry_at - clock.now == pytest.approx(delay)
    link.up()
    link.confirmed()
    link.down("refused")
    assert link.retry_at - clock.now == pytest.approx(backoff.FIRST)


@pytest.mark.parametrize("state", LinkState)
def test_the_first_attempt(state: LinkState) -> None:
    """Off and idle links have none to wait for."""
    link = make_link(state)
    assert link.is_first_attempt == (state not in (OFF, IDLE))
    link.down("refused")
    assert not link.is_first_attempt


@pytest.mark.parametrize("state", LinkState)
def test_trouble_is_what_is_wrong_now(state: LinkState) -> None:
    """The reason of an earlier failure is none when the link is up, off or at rest, nor after
    somebody has asked for a new attempt."""
    link = make_link(state)
    assert link.trouble == ("low on memory" if state is BLOCKED else "")
    link.down("refused")
    assert link.trouble == ("" if state in (OFF, IDLE) else "refused")
    if link.is_waiting:
        link.connecting()
        assert link.trouble == "refused"
        link.retry()
        assert link.trouble == ""
        link.down("timed out")
        assert link.trouble == "timed out"
        link.connecting()
        link.up()
        assert link.trouble == ""


@pytest.mark.parametrize("answer", [Link.confirmed, Link.refused])
def test_an_answer_proves_a_connection(answer: Callable[[Link], None]) -> None:
    link = make_link(UP)
    assert not link.is_proven
    answer(link)
    assert link.is_proven
    link.down("refused")
    link.connecting()
    link.up()
    assert not link.is_proven


def test_connections_are_counted() -> None:
    link = make_link(UP)
    assert link.connections == 1
    link.down("refused")
    assert link.connections == 1
    link.up()
    assert link.connections == 2
