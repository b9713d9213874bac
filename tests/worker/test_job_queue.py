"""Jobs for the main thread, and their results. Without the compiled module."""

from __future__ import annotations

import pytest

from keyspace_amqp.jobs import Command, Job, JobResult
from keyspace_amqp.worker.job_queue import JobQueue
from tests.worker.fakes import Failures, FakeShim


class World:
    def __init__(self) -> None:
        self.shim = FakeShim()
        self.failures = Failures()
        self.before: list[int] = []
        self.job_queue = JobQueue(self.shim, self.failures, self.before.append)
        self.results: list[JobResult] = []

    def submit(self, count: int = 1) -> None:
        for _ in range(count):
            self.job_queue.submit(Job([Command("PING", [])]), self.results.append)


def test_a_result_is_handed_back_in_a_later_turn() -> None:
    world = World()
    job = Job([Command("PING", [])])
    world.job_queue.submit(job, world.results.append)
    (pending,) = world.shim.jobs
    assert (pending.job, pending.submitted) == (job, True)
    assert world.job_queue.count_finished() == 0
    pending.run((b"+PONG\r\n", 0))
    assert world.job_queue.count_finished() == 1
    assert world.results == []
    world.job_queue.finish(1)
    assert world.results == [JobResult([(b"+PONG\r\n", 0)])]
    assert pending.freed
    assert world.job_queue.count_finished() == 0


def test_results_come_in_the_order_of_the_jobs() -> None:
    world = World()
    world.submit(3)
    world.shim.jobs[1].run((b"1", 0))
    assert world.job_queue.count_finished() == 0
    world.shim.jobs[0].run((b"0", 0))
    assert world.job_queue.count_finished() == 2
    world.job_queue.finish(2)
    assert [result.replies[0][0] for result in world.results] == [b"0", b"1"]
    assert [job.freed for job in world.shim.jobs] == [True, True, False]


def test_only_as_many_as_were_counted() -> None:
    """Jobs that finish while requests are read are for the next turn."""
    world = World()
    world.submit(2)
    world.shim.jobs[0].run()
    counted = world.job_queue.count_finished()
    world.shim.jobs[1].run()
    world.job_queue.finish(counted)
    assert len(world.results) == 1


def test_an_exception_over_a_result() -> None:
    """`failed` is called; the job is freed, and the next result is passed on."""
    world = World()

    def fail(result: JobResult) -> None:
        raise RuntimeError("broken on purpose")

    world.job_queue.submit(Job([]), fail)
    world.submit()
    for job in world.shim.jobs:
        job.run()
    world.job_queue.finish(2)
    assert world.failures.told == [""]
    assert len(world.results) == 1
    assert all(job.freed for job in world.shim.jobs)


def test_a_job_that_cannot_be_made() -> None:
    world = World()

    def fail(job: Job) -> None:
        raise RuntimeError("broken on purpose")

    world.shim.make_job = fail  # type: ignore[assignment, method-assign]
    with pytest.raises(RuntimeError):
        world.submit()
    assert not world.job_queue.expects(world.results.append)


def test_a_job_is_known_before_the_main_thread_has_it() -> None:
    """Otherwise its result could be lost."""
    world = World()
    expected = []
    make = world.shim.make_job

    def made(job: Job) -> object:
        pending = make(job)
        pending.submit = lambda: expected.append(  # type: ignore[method-assign]
            world.job_queue.expects(world.results.append)
        )
        return pending

    world.shim.make_job = made  # type: ignore[assignment, method-assign]
    world.submit()
    assert expected == [True]


def test_what_is_still_to_come() -> None:
    world = World()
    other: list[JobResult] = []
    assert not world.job_queue.expects(world.results.append)
    world.submit()
    assert world.job_queue.expects(world.results.append)
    assert not world.job_queue.expects(other.sort)  # type: ignore[arg-type]  # another method
    world.shim.jobs[0].run()
    assert world.job_queue.expects(world.results.append)
    world.job_queue.finish(1)
    assert not world.job_queue.expects(world.results.append)


def test_at_the_end_all_jobs_are_abandoned() -> None:
    """Those that are done, too: the main thread may finish more of them meanwhile."""
    world = World()
    world.submit(3)
    world.shim.jobs[0].run()
    world.job_queue.end()
    world.job_queue.end()
    assert [job.abandoned for job in world.shim.jobs] == [True, True, True]
    assert world.results == []
