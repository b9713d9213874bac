"""Jobs for the fallback list, and the parsing of Redis' replies."""

from __future__ import annotations

import errno
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp import jobs
from keyspace_amqp.fallback import (
    length_job,
    peek_job,
    purge_job,
    push_job,
    read_elements,
    trim_job,
)
from keyspace_amqp.jobs import Command, Job, JobError, JobResult
from keyspace_amqp.tables.keys import KEY
from tests.pure.resp import WRONG_TYPE, to_resp


def reply_of(raw: bytes | None, error: int = 0) -> Any:
    return JobResult([(raw, error)]).reply(0)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b":0\r\n", 0),
        (b":-12\r\n", -12),
        (b"+OK\r\n", b"OK"),
        (b"+\r\n", b""),
        (b"$-1\r\n", None),
        (b"*-1\r\n", None),
        (b"$0\r\n\r\n", b""),
        (b"$4\r\n\r\n\r\n\r\n", b"\r\n\r\n"),
        (b"*0\r\n", []),
        (b"*3\r\n:1\r\n$-1\r\n*2\r\n+a\r\n$1\r\n\0\r\n", [1, None, [b"a", b"\0"]]),
    ],
)
def test_replies_of_redis(raw: bytes, value: object) -> None:
    assert reply_of(raw) == value


@given(
    st.recursive(
        st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1), st.binary()),
        lambda inner: st.lists(inner, max_size=5),
        max_leaves=20,
    )
)
def test_any_reply_of_redis(value: Any) -> None:
    assert reply_of(to_resp(value)) == value


def test_an_error_is_returned_and_not_raised() -> None:
    error = reply_of(b"-ERR some\xff thing\r\n")
    assert isinstance(error, JobError)
    assert str(error) == "ERR some\\xff thing"
    first, second = reply_of(b"*2\r\n-ERR no\r\n:1\r\n")
    assert isinstance(first, JobError)
    assert second == 1


@pytest.mark.parametrize("error", [*filter(None, jobs._ERRNO), errno.EINVAL])
def test_a_command_that_redis_did_not_run(error: int) -> None:
    value = reply_of(None, error)
    assert isinstance(value, JobError)
    assert str(value)


def test_elements_are_read_from_a_peek() -> None:
    peeked = JobResult([(to_resp([b"a", b"\r\n"]), 0), (b":2\r\n", 0)])
    assert list(read_elements(peeked)) == [b"a", b"\r\n"]
    with pytest.raises(JobError, match="WRONGTYPE"):
        list(read_elements(JobResult([(WRONG_TYPE, 0), (None, 0)])))


# ---- jobs -----------------------------------------------------------------------------


def redis_commands(job: Job) -> list[Command]:
    return [command for command in job.commands if isinstance(command, Command)]


def texts(job: Job) -> list[str]:
    """The commands as users see them in MONITOR; a look, which they do not see, is `look`."""
    return [
        " ".join([c.name if isinstance(c, Command) else "look", *(a.decode() for a in c.arguments)])
        for c in job.commands
    ]


def writes(job: Job) -> list[str]:
    return [command.name for command in redis_commands(job) if command.write]


LIST = KEY.decode()


def test_the_list_stays_on_the_node_that_has_slot_of_its_tag() -> None:
    """The shim knows the lists' keys by this prefix and suffix; the tag decides the slot."""
    assert KEY.startswith(b"keyspaceamqp:{")
    assert KEY.endswith(b"}:fallback")


@pytest.mark.parametrize("keep", [0, -1])
def test_push_without_a_cap(keep: int) -> None:
    job = push_job(KEY, [b"a", b"b"], keep)
    assert texts(job) == [f"RPUSH {LIST} a b"]
    assert writes(job) == ["RPUSH"]


def test_push_with_a_cap_keeps_the_newest() -> None:
    job = push_job(KEY, [b"a"], 1000)
    assert texts(job) == [f"RPUSH {LIST} a", f"LTRIM {LIST} -1000 -1"]
    assert writes(job) == ["RPUSH", "LTRIM"]


@pytest.mark.parametrize(
    ("start", "count", "bounds"), [(0, 1, "0 0"), (0, 10, "0 9"), (500, 250, "500 749")]
)
def test_peek_reads_a_range_and_changes_nothing(start: int, count: int, bounds: str) -> None:
    """LRANGE includes the last index."""
    job = peek_job(KEY, start, count, 100)
    assert texts(job) == [f"LRANGE {LIST} {bounds}", f"look {LIST}"]
    assert writes(job) == []
    assert all(command.expected is None for command in redis_commands(job))


def test_trim_looks_before_it_cuts() -> None:
    """A trim must remove exactly the delivered elements, as Redis replies with them."""
    job = trim_job(KEY, [b"first\r\n", b"", b"last"])
    assert texts(job) == [f"LRANGE {LIST} 0 2", f"LTRIM {LIST} 3 -1", f"look {LIST}"]
    expected = [command.expected for command in redis_commands(job)]
    assert expected == [b"*3\r\n$7\r\nfirst\r\n\r\n$0\r\n\r\n$4\r\nlast\r\n", None]
    assert writes(job) == ["LTRIM"]


@given(st.lists(st.binary(), min_size=1))
def test_what_a_trim_expects_is_the_elements(elements: list[bytes]) -> None:
    look, *_ = redis_commands(trim_job(KEY, elements))
    assert reply_of(look.expected) == elements


def test_length_and_purge() -> None:
    assert texts(length_job(KEY)) == [f"LLEN {LIST}"]
    assert writes(length_job(KEY)) == []
    assert texts(purge_job([KEY])) == [f"LLEN {LIST}", f"UNLINK {LIST}"]
    assert writes(purge_job([KEY])) == ["UNLINK"]
