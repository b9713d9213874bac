"""Commands one at a time. Without the compiled module."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from keyspace_amqp.commands import CommandError, Reply, Steps, WaitForPeers
from keyspace_amqp.commands.handler import Wait
from keyspace_amqp.jobs import Job, JobResult
from keyspace_amqp.worker.lanes import Lane
from tests.worker.fakes import Failures


class World:
    """A lane, and the jobs that its commands wait for."""

    def __init__(self) -> None:
        self.jobs: list[tuple[Job, Callable[[JobResult], None]]] = []
        self.failures = Failures()
        self.lane = Lane(lambda job, done: self.jobs.append((job, done)), self.failures)
        self.replies: dict[str, Any] = {}
        self.log: list[str] = []

    def add(self, name: str, *waits: Wait, reply: Reply | Exception = "OK") -> None:
        self.lane.add(self._steps(name, waits, reply), lambda reply: self._reply(name, reply))

    def _steps(self, name: str, waits: tuple[Wait, ...], reply: Any) -> Steps:
        self.log.append(f"{name} begins")
        for wait in waits:
            self.log.append(f"{name} gets {(yield wait)}")
        if isinstance(reply, Exception):
            raise reply
        return reply

    def _reply(self, name: str, reply: Any) -> None:
        assert name not in self.replies, "once"
        self.replies[name] = reply


class Later:
    """A wait of a command, which the test ends."""

    def __init__(self) -> None:
        self.resume: Callable[[Any], None] | None = None

    def __call__(self, resume: Callable[[Any], None]) -> None:
        self.resume = resume

    def bring(self, value: Any) -> None:
        assert self.resume is not None
        self.resume(value)


UNEXPECTED = "unexpected exception in the handler, see the log"


def test_commands_that_wait_for_nothing() -> None:
    world = World()
    world.add("a", reply=1)
    world.add("b", reply={b"x": [b"y"]})
    assert world.replies == {}
    world.lane.run()
    assert world.replies == {"a": 1, "b": {b"x": [b"y"]}}


def test_one_at_a_time() -> None:
    """The second command sees the changes of the first."""
    world, later = World(), Later()
    world.add("a", later)
    world.add("b")
    world.lane.run()
    world.lane.run()
    assert world.log == ["a begins"]
    later.bring("it")
    assert (world.log, world.replies) == (["a begins", "a gets it"], {"a": "OK"})
    world.lane.run()
    assert world.replies == {"a": "OK", "b": "OK"}


def test_a_job_goes_to_the_main_thread() -> None:
    world = World()
    jobs = [Job([]), Job([])]
    world.add("a", *jobs, reply=7)
    world.lane.run()
    ((job, done),) = world.jobs
    assert job is jobs[0]
    done(JobResult([(b"x", 0)]))
    assert world.log[-1] == "a gets JobResult(replies=[(b'x', 0)])"
    assert world.replies == {}
    world.jobs[1][1](JobResult([]))
    assert world.replies == {"a": 7}


def test_what_is_there_at_once() -> None:
    """A wait that ends within the call for it."""
    world = World()
    world.add("a", lambda done: done(1), lambda done: done(2))
    world.lane.run()
    assert world.log == ["a begins", "a gets 1", "a gets 2"]
    assert world.replies == {"a": "OK"}


def test_the_next_command_need_not_wait_for_other_nodes() -> None:
    world, elsewhere, later = World(), Later(), Later()
    world.add("a", WaitForPeers(elsewhere))
    world.add("b", later)
    world.add("c")
    world.lane.run()
    assert world.log == ["a begins", "b begins"]
    elsewhere.bring("answers")
    world.lane.run()
    assert (world.replies, world.log[2:]) == ({"a": "OK"}, ["a gets answers"])
    later.bring("it")
    world.lane.run()
    assert list(world.replies) == ["a", "b", "c"]


def test_an_error_of_the_client() -> None:
    world = World()
    error = CommandError("no such thing")
    world.add("a", reply=error)
    world.add("b")
    world.lane.run()
    assert world.replies == {"a": error, "b": "OK"}
    assert world.failures.told == []


def test_an_exception_is_told_and_answered() -> None:
    world = World()
    world.add("a", reply=RuntimeError("broken on purpose"))
    world.add("b")
    world.lane.run()
    assert isinstance(world.replies["a"], CommandError)
    assert str(world.replies["a"]) == UNEXPECTED
    assert world.replies["b"] == "OK"
    assert world.failures.told == ["unexpected exception in a command"]


def test_a_wait_that_fails_ends_the_command() -> None:
    """A result that comes after the end is ignored."""
    world = World()
    resumes: list[Callable[[Any], None]] = []

    def wait(done: Callable[[Any], None]) -> None:
        resumes.append(done)
        raise RuntimeError("broken on purpose")

    world.add("a", wait)
    world.lane.run()
    assert str(world.replies["a"]) == UNEXPECTED
    resumes[0]("late")
    assert world.log == ["a begins"]


def test_a_command_that_fails_ends_what_it_has_begun() -> None:
    world = World()

    def steps() -> Generator[Wait, Any, Reply]:
        try:
            yield lambda done: 1 / 0
        finally:
            world.log.append("ended")

    world.lane.add(steps(), lambda reply: None)
    world.lane.run()
    assert world.log == ["ended"]


def test_a_reply_that_cannot_be_sent() -> None:
    """The client gets an error instead."""
    world = World()
    sent: list[Any] = []

    def answer(reply: Any) -> None:
        if not isinstance(reply, CommandError):
            raise RuntimeError("broken on purpose")
        sent.append(str(reply))

    world.lane.add(world._steps("a", (), 1), answer)
    world.add("b")
    world.lane.run()
    assert (sent, world.replies) == ([UNEXPECTED], {"b": "OK"})
    assert world.failures.told == ["unexpected exception in a command"]


def test_lanes_do_not_wait_for_each_other() -> None:
    """A peer's command is answered while a client's command waits for that peer."""
    clients, peers = World(), World()
    clients.add("a", Later())
    peers.add("b")
    clients.lane.run()
    peers.lane.run()
    assert (clients.replies, peers.replies) == ({}, {"b": "OK"})
