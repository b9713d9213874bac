"""Jobs on the list: the choice of the next one, and replies that come too late."""

from __future__ import annotations

import errno

import pytest

from keyspace_amqp.fallback import JOB_ELEMENTS, length_job, lengths_job
from keyspace_amqp.jobs import Command, Failure, JobError, JobResult
from keyspace_amqp.publisher.actions import Submit
from keyspace_amqp.publisher.aside import Aside
from keyspace_amqp.publisher.entry import DONE, WAITING, element_of
from keyspace_amqp.publisher.fallback_list import FallbackList, ListState
from keyspace_amqp.publisher.list_jobs import (
    CHECK_EVERY,
    JOB_RETRY_AFTER,
    TRIM_ELEMENTS,
    TRIM_EVERY,
    Length,
    ListJobs,
    Purge,
    Push,
    Read,
    Trim,
)
from keyspace_amqp.publisher.lists import Lists
from keyspace_amqp.publisher.memory import Memory
from keyspace_amqp.publisher.recent import RecentPushes
from keyspace_amqp.publisher.window import WINDOW, Window
from keyspace_amqp.tables.keys import refused_key
from keyspace_amqp.tables.stats import FIRST_REASON, Stat
from tests.publisher.objects.parts import Clock, make_entries, make_ledger, numbers_of
from tests.publisher.simulated import BEGIN_MS, number_of

KEY = b"key"
REFUSED_KEY = refused_key(KEY)
NOT_SERVED = JobResult([(None, errno.EPERM), (None, 0)])
WRONG_TYPE = JobResult([(b"-WRONGTYPE not a list\r\n", 0), (None, 0)])
PAUSED = JobResult([(None, errno.EBUSY), (None, 0)])


def integer(value: int) -> tuple[bytes, int]:
    return b":%d\r\n" % value, 0


def look(*lengths: int) -> tuple[bytes, int]:
    """The reply of a Lengths."""
    return b"*%d\r\n" % len(lengths) + b"".join(b":%d\r\n" % n for n in lengths), 0


class Bench:
    """Jobs with all that they work on: a list whose known elements have numbers from 1 on."""

    def __init__(self, known: int = 0, *, length: int | None = None, memory: int = 0) -> None:
        self.clock = Clock()
        self.window = Window(self.clock)
        self.ledger = make_ledger(self.clock)
        self.list = FallbackList(self.window, self.ledger)
        self.refused_list = FallbackList(self.window, self.ledger)
        self.lists = Lists(self.list, self.refused_list, self.ledger)
        self.memory = Memory()
        self.refused = Memory()
        self.recent = RecentPushes(self.clock, keep=True)
        self.errors: list[str] = []
        aside = Aside(
            self.lists, self.memory, self.refused, self.window, self.ledger, lambda: BEGIN_MS
        )
        self.jobs = ListJobs(
            self.lists,
            self.memory,
            self.refused,
            self.window,
            self.recent,
            self.ledger,
            aside,
            self.clock,
            self.errors.append,
        )
        self.lists.set_role(primary=True, writable=True)
        self.lists.set_lists(KEY, lambda key: True)
        assert self.lists.choose()
        self.lists.set_length(self.list, known if length is None else length)
        self.list.read(make_entries(known))
        self.memory.add(make_entries(memory, first=known + 1))
        self.ledger.matched(memory)
        self.jobs.check_at = self.clock.now + CHECK_EVERY

    def send(self, count: int, *, done: int = 0) -> None:
        """Sends known elements; the first `done` of them are confirmed."""
        self.window.send(self.list.take(count, 0))
        for entry in list(self.list.known)[:done]:
            self.window.give_up(entry)
            self.list.mark_done(entry)
        self.ledger.counts[Stat.CONFIRMED] += done

    def done(self, *replies: tuple[bytes | None, int]) -> None:
        self.jobs.done(JobResult(list(replies)))

    def check(self) -> None:
        gauges = {
            Stat.FALLBACK_LENGTH: self.lists.length,
            Stat.QUEUE_LENGTH: self.memory.waiting + self.refused.waiting,
            Stat.IN_FLIGHT: self.memory.in_flight + self.refused.in_flight,
        }
        assert self.ledger.difference(gauges) == 0


@pytest.fixture
def quiet() -> Bench:
    """A list of two elements that is not in doubt."""
    bench = Bench(2)
    bench.jobs.check_now()
    bench.jobs.next_length()
    bench.done(integer(2), integer(0))
    return bench


def names(job: Submit | None) -> list[str]:
    assert job is not None
    return [
        command.name if isinstance(command, Command) else type(command).__name__
        for command in job.job.commands
    ]


# ---- the length ------------------------------------------------------------------------


def test_the_length_is_read_from_time_to_time() -> None:
    bench = Bench(2)
    assert bench.jobs.next_length() is None
    both = [bench.list, bench.refused_list]
    keys = [KEY, REFUSED_KEY]
    for job, is_look, replies in (
        (length_job(*keys), False, [integer(3), integer(4)]),
        (lengths_job(keys), True, [look(4, 5)]),
    ):
        bench.clock.now += CHECK_EVERY
        assert bench.jobs.next_length() == Submit(job)
        assert bench.jobs.running == Length(both, look=is_look)
        assert bench.jobs.check_at == bench.clock.now + CHECK_EVERY
        bench.done(*replies)
        assert bench.jobs.running is None
    assert [one.length for one in both] == [4, 5]
    bench.check()


def test_users_do_not_see_how_the_length_is_read(quiet: Bench) -> None:
    for _ in range(3):
        quiet.jobs.check_now()
        assert names(quiet.jobs.next_length()) == ["Lengths"]
        quiet.done(look(2, 0))
    assert quiet.jobs.check_at == quiet.clock.now + CHECK_EVERY
    quiet.check()


@pytest.mark.parametrize("length", [1, 0, -1])
def test_a_list_that_is_shorter_or_no_list_is_in_doubt(quiet: Bench, length: int) -> None:
    """Its slot may be another node's: nothing is counted before a command says that it is not."""
    quiet.jobs.check_now()
    quiet.jobs.next_length()
    quiet.done(look(length, 0))
    assert quiet.list.length == 2
    assert names(quiet.jobs.next_length()) == ["LLEN", "LLEN"]
    quiet.done(integer(1), integer(0))
    assert quiet.ledger.counts[Stat.DROPPED_FALLBACK_REMOVED] == 1
    quiet.jobs.check_now()
    assert names(quiet.jobs.next_length()) == ["Lengths"]
    quiet.check()


@pytest.mark.parametrize("result", [PAUSED, NOT_SERVED])
def test_after_a_job_that_failed_the_list_is_in_doubt(quiet: Bench, result: JobResult) -> None:
    quiet.memory.add(make_entries(1, first=3))
    quiet.ledger.matched(1)
    quiet.jobs.push(0)
    quiet.jobs.done(result)
    assert names(quiet.jobs.next_length()) == ["LLEN", "LLEN"]


def test_another_list_is_in_doubt(quiet: Bench) -> None:
    quiet.jobs.list_chosen()
    assert names(quiet.jobs.next_length()) == ["LLEN", "LLEN"]


def test_the_length_is_read_at_once_where_somebody_asks() -> None:
    bench = Bench(2)
    bench.jobs.check_now()
    assert bench.jobs.next_length() is not None


@pytest.mark.parametrize(
    ("result", "state", "key"),
    [
        (WRONG_TYPE, ListState.NONE, KEY),
        (NOT_SERVED, ListState.NONE, None),
        (PAUSED, ListState.READY, KEY),
    ],
)
def test_a_length_that_cannot_be_read(
    result: JobResult, state: ListState, key: bytes | None
) -> None:
    bench = Bench(2)
    bench.jobs.check_now()
    bench.jobs.next_length()
    bench.jobs.done(result)
    assert (bench.list.state, bench.list.key) == (state, key)
    assert bool(bench.errors) == (state is ListState.NONE)
    assert not bench.jobs.may_retry
    assert bench.jobs.check_at == bench.jobs.retry_at == bench.clock.now + CHECK_EVERY
    bench.check()


def test_no_list_to_wait_for_is_over_with_another_error() -> None:
    bench = Bench()
    for result, state in ((WRONG_TYPE, ListState.NONE), (PAUSED, ListState.UNKNOWN)):
        bench.jobs.check_now()
        bench.jobs.next_length()
        bench.jobs.done(result)
        assert bench.list.state is state


@pytest.mark.parametrize("memory", [0, 1])
def test_a_list_out_of_reach_is_an_error_only_if_something_waits_for_it(memory: int) -> None:
    bench = Bench(memory=memory)
    bench.jobs.check_now()
    bench.jobs.next_length()
    bench.jobs.done(PAUSED)
    assert len(bench.errors) == memory


# ---- push ------------------------------------------------------------------------------


def test_a_push_takes_the_oldest_and_their_places_are_known() -> None:
    bench = Bench(1, memory=3)
    bench.window.send(bench.memory.take(1, 0))
    job = bench.jobs.push(0)
    assert names(job) == ["RPUSH"]
    assert bench.jobs.running == Push(bench.list, bench.memory, 0)
    assert numbers_of(bench.memory.being_stored) == [2, 3, 4]
    bench.done(integer(4))
    assert not bench.memory
    assert numbers_of(bench.list.known) == [1, 2, 3, 4]
    assert bench.list.unread == 0
    assert bench.ledger.counts[Stat.FALLBACK_PUSHED] == 3
    assert [number_of(event) for event in bench.recent.take()] == [2, 3, 4]
    assert bench.window.count == 1  # its confirm is still awaited
    bench.check()


def test_pushed_behind_elements_that_are_not_read_they_are_read_later() -> None:
    bench = Bench(1, length=2, memory=3)
    bench.window.send(bench.memory.take(2, 0))
    entries = list(bench.memory)
    bench.jobs.push(0)
    entries[0].state = DONE
    bench.memory.confirmed(1)
    bench.ledger.confirmed([0])
    bench.done(integer(5))
    assert numbers_of(bench.list.known) == [1]
    assert (bench.list.length, bench.list.unread) == (5, 4)
    assert bench.ledger.counts[Stat.FALLBACK_PUSHED] == 3
    assert {entry.state for entry in entries} == {DONE}
    assert not bench.memory
    bench.check()


def test_only_as_many_waiting_entries_are_known_as_a_read_gives() -> None:
    bench = Bench(JOB_ELEMENTS - 1, memory=3)
    bench.jobs.push(0)
    bench.done(integer(JOB_ELEMENTS + 2))
    assert len(bench.list.known) == JOB_ELEMENTS
    assert bench.list.unread == 2
    bench.check()


def test_a_full_list_loses_its_oldest_elements() -> None:
    bench = Bench(3, memory=2)
    bench.send(2, done=1)
    assert names(bench.jobs.push(3)) == ["RPUSH", "LTRIM"]
    bench.done(integer(5), (b"+OK\r\n", 0))
    assert numbers_of(bench.list.known) == [3, 4, 5]
    assert bench.list.length == 3
    assert bench.ledger.counts[Stat.DROPPED_FALLBACK_FULL] == 1  # the other was confirmed
    bench.check()


def test_a_push_that_failed_is_tried_again_later() -> None:
    bench = Bench(memory=2)
    bench.jobs.push(0)
    bench.jobs.done(PAUSED)
    assert numbers_of(bench.memory) == [1, 2]
    assert bench.memory.storing == 0
    assert not bench.jobs.may_retry
    assert bench.jobs.retry_at == bench.clock.now + JOB_RETRY_AFTER
    assert bench.jobs.check_at == bench.clock.now
    assert len(bench.errors) == 1
    bench.check()


def test_on_a_replica_a_job_that_failed_is_no_error() -> None:
    bench = Bench(memory=2)
    bench.jobs.push(0)
    bench.lists.set_role(primary=False, writable=False)
    bench.jobs.done(JobResult([(None, errno.EROFS)]))
    assert bench.errors == []
    bench.check()


def test_a_push_to_a_list_that_was_left_meanwhile() -> None:
    """Another node has to deliver its entries now."""
    bench = Bench(1, memory=2)
    bench.jobs.push(0)
    bench.list.leave()
    bench.done(integer(3))
    assert not bench.memory
    assert (bench.list.key, bench.list.length, len(bench.list.known)) == (None, 0, 0)
    bench.check()


# ---- read ------------------------------------------------------------------------------


def test_elements_are_read_behind_the_known_head() -> None:
    bench = Bench(1, length=3)
    job = bench.jobs.next_read()
    assert names(job) == ["LRANGE", "Lengths"]
    assert job is not None
    assert job.job.commands[0].arguments[1] == b"1"
    element = element_of(make_entries(1, first=2)[0])
    bulks = b"*2\r\n$%d\r\n%b\r\n$4\r\njunk\r\n" % (len(element), element)
    bench.done((bulks, 0), look(3))
    known = list(bench.list.known)
    assert numbers_of(known) == [1, 2]
    assert [entry.state for entry in known] == [WAITING, WAITING, DONE]
    assert all(entry.listed for entry in known[1:])
    assert bench.ledger.counts[Stat.DROPPED_UNREADABLE] == 1
    bench.check()


@pytest.mark.parametrize(("known", "length"), [(0, 0), (2, 2), (WINDOW, WINDOW + 1)])
def test_nothing_is_read_if_all_is_known_or_enough(known: int, length: int) -> None:
    assert Bench(known, length=length).jobs.next_read() is None


def test_elements_that_were_read_of_a_shorter_list_are_read_again() -> None:
    bench = Bench(2, length=5)
    bench.jobs.next_read()
    bench.done((b"*1\r\n$4\r\njunk\r\n", 0), look(3))
    assert len(bench.list.known) == 2
    assert names(bench.jobs.next_length()) == ["LLEN", "LLEN"]  # of both lists
    bench.done(integer(3), integer(0))
    assert list(bench.list.known) == []
    assert bench.list.length == 3
    bench.check()


# ---- trim ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("known", "sent", "done", "at_once", "more", "trims"),
    [
        (3, 3, 0, True, False, 0),  # nothing is confirmed
        (3, 3, 3, False, False, 3),  # all is
        (3, 3, 3, False, True, 0),  # more confirms are to come
        (3, 3, 2, False, False, 0),
        (3, 3, 2, True, True, 2),
        (TRIM_ELEMENTS + 5, TRIM_ELEMENTS + 4, TRIM_ELEMENTS - 1, False, True, 0),
        (TRIM_ELEMENTS + 5, TRIM_ELEMENTS + 4, TRIM_ELEMENTS, False, True, TRIM_ELEMENTS),
    ],
)
def test_confirmed_elements_are_trimmed_in_large_pieces(
    known: int, sent: int, done: int, at_once: bool, more: bool, trims: int
) -> None:
    bench = Bench(known)
    bench.send(sent, done=done)
    bench.jobs.trim_at = bench.clock() + 1
    job = bench.jobs.next_trim(at_once=at_once, more=more)
    assert (job is not None) == (trims > 0)
    assert bench.jobs.running == (Trim(bench.list, trims, 0) if trims else None)


@pytest.mark.parametrize("patient", [False, True])
def test_confirmed_elements_are_trimmed_after_a_while(patient: bool) -> None:
    bench = Bench(5)
    bench.send(4, done=1)
    bench.jobs.trim_at = bench.clock() + TRIM_EVERY
    assert bench.jobs.next_trim(at_once=False, more=True, patient=patient) is None
    bench.clock.now += TRIM_EVERY
    assert bench.jobs.next_trim(at_once=False, more=True, patient=patient) is not None
    assert bench.jobs.running == Trim(bench.list, 1, 0)
    assert bench.jobs.trim_at == bench.clock() + TRIM_EVERY


def test_a_trim_removes_them_from_the_head() -> None:
    bench = Bench(3)
    bench.send(3, done=2)
    assert names(bench.jobs.next_trim(at_once=True, more=False)) == [
        "LRANGE", "LTRIM", "Lengths",
    ]  # fmt: skip
    bench.done((b"*0\r\n", 0), (b"+OK\r\n", 0), look(1))
    assert numbers_of(bench.list.known) == [3]
    assert (bench.list.length, bench.list.done) == (1, 0)
    assert bench.ledger.counts[Stat.FALLBACK_DRAINED] == 2
    bench.check()


def test_a_trim_of_other_elements_than_expected_reads_the_list_again() -> None:
    bench = Bench(3)
    bench.send(3, done=2)
    bench.jobs.next_trim(at_once=True, more=False)
    bench.done((b"*0\r\n", 0), (None, 0), (None, 0))
    assert list(bench.list.known) == []
    assert (bench.list.length, bench.list.undelivered) == (3, 3)
    assert bench.jobs.check_at == bench.clock.now
    assert bench.errors == []
    bench.check()


def test_a_trim_that_failed_is_tried_again() -> None:
    bench = Bench(3)
    bench.send(3, done=2)
    bench.jobs.next_trim(at_once=True, more=False)
    bench.done((b"*0\r\n", 0), (None, errno.EBUSY), (None, 0))
    assert len(bench.list.known) == 3
    assert not bench.jobs.may_retry
    bench.check()


def test_after_a_trim_the_list_may_have_moved_away() -> None:
    bench = Bench(3)
    bench.send(2, done=2)
    bench.jobs.next_trim(at_once=True, more=False)
    bench.done((b"*0\r\n", 0), (b"+OK\r\n", 0), look(0))
    assert bench.list.length == 1
    assert names(bench.jobs.next_length()) == ["LLEN", "LLEN"]
    bench.jobs.done(NOT_SERVED)
    assert bench.list.key is None
    assert sum(bench.ledger.counts[stat] for stat in Stat if stat >= FIRST_REASON) == 0
    bench.check()


# ---- replies that come too late --------------------------------------------------------


@pytest.mark.parametrize("kind", [Read, Trim])
def test_replies_mean_nothing_after_the_head_was_forgotten(kind: type) -> None:
    bench = Bench(3, length=5)
    bench.send(3, done=3)
    if kind is Read:
        bench.jobs.next_read()
    else:
        bench.jobs.next_trim(at_once=True, more=False)
    assert isinstance(bench.jobs.running, kind)
    bench.list.forget_head()
    bench.done((b"*1\r\n$4\r\njunk\r\n", 0), integer(5), integer(5))
    assert list(bench.list.known) == []
    assert bench.list.state is ListState.UNKNOWN
    assert bench.jobs.check_at == bench.clock.now
    bench.check()


# ---- purge -----------------------------------------------------------------------------


def test_a_purge_deletes_all_lists() -> None:
    bench = Bench(3)
    bench.lists.found({b"other": 2})
    bench.send(2, done=1)
    outcomes: list[int | JobError] = []
    for _ in range(2):
        bench.jobs.purge(outcomes.append)
    job = bench.jobs.next_purge()
    assert names(job) == ["LLEN", "UNLINK"] * 3
    assert bench.jobs.running == Purge([KEY, b"other", REFUSED_KEY])
    bench.done(integer(3), integer(1), integer(4), integer(1), integer(5), integer(1))
    assert outcomes == [12, 12]
    assert bench.ledger.counts[Stat.DROPPED_PURGED] == 12
    assert bench.lists.keys == [KEY, REFUSED_KEY]
    assert bench.lists.length == 0
    assert bench.jobs.next_purge() is None
    bench.check()


def test_a_purge_that_failed_tells_why() -> None:
    bench = Bench(3)
    outcomes: list[int | JobError] = []
    bench.jobs.purge(outcomes.append)
    bench.jobs.next_purge()
    bench.done(integer(3), (None, errno.EBUSY))
    (outcome,) = outcomes
    assert isinstance(outcome, JobError)
    assert outcome.failure is Failure.PAUSED
    assert bench.list.length == 3
    bench.check()


def test_a_purge_waits_until_the_lists_are_known() -> None:
    bench = Bench(3)
    bench.jobs.purge(lambda _: None)
    bench.lists.known = False
    assert bench.jobs.next_purge() is None
    bench.lists.known = True
    assert bench.jobs.next_purge() is not None


def test_lists_that_are_not_writable_are_not_purged() -> None:
    bench = Bench()
    outcomes: list[int | JobError] = []
    bench.jobs.purge(outcomes.append)
    bench.jobs.refuse_purges()
    (outcome,) = outcomes
    assert isinstance(outcome, JobError)
    assert outcome.failure is Failure.READ_ONLY
    assert bench.jobs.next_purge() is None


# ---- repair ----------------------------------------------------------------------------


@pytest.mark.parametrize("job_lost", [True, False])
def test_after_a_repair_the_list_is_read_again(job_lost: bool) -> None:
    bench = Bench(3, memory=2)
    bench.jobs.push(0)
    bench.jobs.repair(job_lost=job_lost)
    assert (bench.jobs.running is None) == job_lost
    assert bench.memory.storing == (0 if job_lost else 2)
    assert (bench.list.length, len(bench.list.known)) == (0, 0)
    assert bench.list.state is ListState.UNKNOWN
    assert bench.jobs.check_at == bench.clock.now
    bench.check()
    if not job_lost:
        bench.done(integer(5))
        assert bench.list.length == 5
        assert not bench.memory
        bench.check()


def test_another_list_is_looked_at_first() -> None:
    bench = Bench(memory=1)
    bench.jobs.push(0)
    bench.jobs.done(PAUSED)
    bench.jobs.list_chosen()
    assert bench.jobs.may_retry
    assert bench.jobs.next_length() is not None
