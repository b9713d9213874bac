"""KEYSPACEAMQP.*: replies, and what each command asks of Redis and the handler."""

from __future__ import annotations

import errno
import re
import struct
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp import commands, fallback
from keyspace_amqp.commands import CommandError, answer, encode
from keyspace_amqp.config import INDEX, SETTINGS, Config
from keyspace_amqp.fallback import (
    KEY,
    Command,
    Job,
    JobError,
    JobResult,
    SetParameters,
    length_job,
    peek_job,
    purge_job,
    push_job,
    read_elements,
    trim_job,
)

OK = (b"+OK\r\n", 0)

# ---- the form of replies -------------------------------------------------------


def decode(data: bytes) -> Any:
    """Reads an encoded reply as its description says: per item a tag, a signed
    64-bit number, and for texts so many bytes and a NUL."""

    def item(at: int) -> tuple[Any, int]:
        tag = data[at : at + 1]
        (number,) = struct.unpack_from("=q", data, at + 1)
        at += 9
        if tag == b":":
            return number, at
        if tag == b"_":
            assert number == 0
            return None, at
        if tag in (b"*", b"%"):
            items = []
            for _ in range(number * (2 if tag == b"%" else 1)):
                value, at = item(at)
                items.append(value)
            if tag == b"*":
                return items, at
            return dict(zip(items[::2], items[1::2], strict=True)), at
        assert tag in (b"$", b"+"), tag
        text = data[at : at + number]
        assert data[at + number : at + number + 1] == b"\0"
        return (text if tag == b"$" else text.decode()), at + number + 1

    value, end = item(0)
    assert end == len(data), "something follows the reply"
    return value


replies = st.recursive(
    st.one_of(
        st.none(),
        st.integers(-(2**63), 2**63 - 1),
        st.binary(max_size=20),
        st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=20),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=5), st.dictionaries(st.binary(max_size=9), inner, max_size=5)
    ),
    max_leaves=20,
)


@given(replies)
def test_a_reply_can_be_read_back(reply: Any) -> None:
    assert decode(encode(reply)) == reply


def test_the_form_of_each_kind() -> None:
    assert encode(-2) == b":" + struct.pack("=q", -2)
    assert encode(None) == b"_" + bytes(8)
    assert encode("OK") == b"+" + struct.pack("=q", 2) + b"OK\0"
    assert encode(b"\0\xff") == b"$" + struct.pack("=q", 2) + b"\0\xff\0"
    assert encode([]) == b"*" + bytes(8)
    assert encode({b"a": 1}) == b"%" + struct.pack("=q", 1) + encode(b"a") + encode(1)


@given(st.text())
def test_an_error_is_one_line(text: str) -> None:
    data = encode(CommandError(text))
    assert data[:1] == b"-"
    line = data[9:-1]
    assert not set(b"\r\n\0") & set(line)
    # A code comes first: that of the text, or ERR.
    assert line.startswith(b"ERR ") or re.match(rb"[A-Z]{2,} ", line)


def test_an_error_with_bytes_that_are_no_utf_8() -> None:
    text = b"mask \xff".decode("utf-8", "surrogateescape")
    assert encode(CommandError(text))[9:] == b"ERR mask \\udcff\0"


# ---- a command's way ------------------------------------------------------------


class FakeHandler:
    """What the worker is to a command; remembers what it was asked for."""

    def __init__(self, **changed: bytes) -> None:
        self.raw_config: Sequence[bytes] = [
            changed.get(s.name.replace("-", "_"), s.default.encode()) for s in SETTINGS
        ]
        self.config = Config.from_values(self.raw_config)
        self.calls: list[str] = []
        self.purged: int | JobError = 3

    def connect(self) -> None:
        self.calls.append("connect")

    def disconnect(self) -> None:
        self.calls.append("disconnect")

    def drain(self) -> int:
        self.calls.append("drain")
        return 17

    def purge(self, done: commands.Resume) -> None:
        self.calls.append("purge")
        done(self.purged)

    def reset_stats(self) -> None:
        self.calls.append("reset_stats")


class Run:
    """Carries a command out: jobs get the results given, in their order."""

    def __init__(
        self,
        handler: FakeHandler,
        *arguments: bytes,
        results: Sequence[Sequence[tuple[bytes | None, int]]] = (),
    ) -> None:
        self.jobs: list[Job] = []
        self.reply: Any = None
        waiting = list(results)
        steps = answer(handler, arguments)
        value: Any = None
        while True:
            try:
                wait = steps.send(value)
            except StopIteration as stop:
                self.reply = stop.value
                break
            if isinstance(wait, Job):
                self.jobs.append(wait)
                value = JobResult(list(waiting.pop(0)))
            else:
                brought: list[Any] = []
                wait(brought.append)
                (value,) = brought
        assert not waiting, "fewer jobs than results"
        encode(self.reply)  # whatever it is, it can be sent


def config_set(*pairs: tuple[bytes, bytes]) -> list[Job]:
    """The one job that sets parameters: all or none."""
    return [Job([SetParameters([text for pair in pairs for text in pair])])]


def refused(*arguments: bytes, handler: FakeHandler | None = None, **keywords: Any) -> str:
    """The error of a command that changes nothing."""
    handler = handler or FakeHandler()
    with pytest.raises(CommandError) as caught:
        Run(handler, *arguments, **keywords)
    assert handler.calls == []
    return str(caught.value)


CONNECT, CONFIG, KEYMASK = b"keyspaceamqp.connect", b"keyspaceamqp.config", b"keyspaceamqp.keymask"
FALLBACK = b"keyspaceamqp.fallback"

# ---- KEYMASK ----------------------------------------------------------------------


def test_keymask_list() -> None:
    assert Run(FakeHandler(), KEYMASK, b"LIST").reply == [b"ALL"]
    handler = FakeHandler(masks=b"^a\\x20b b*")
    run = Run(handler, KEYMASK, b"list")
    assert (run.reply, run.jobs) == ([b"^a b", b"b*"], [])
    assert Run(FakeHandler(masks=b""), KEYMASK, b"LIST").reply == []


@pytest.mark.parametrize(
    ("masks", "arguments", "value", "count"),
    [
        (b"^a b*", [b"ADD", b"c"], b"^a b* c", 3),
        (b"^a b*", [b"ADD", b"c d", b"\\", b"\xff"], b"^a b* c\\x20d \\\\ \\xff", 5),
        (b"^a b*", [b"ADD", b"b*", b"c", b"c"], b"^a b* c", 3),  # each once
        (b"", [b"ADD", b"c"], b"c", 1),
        (b"^a b*", [b"SET", b"c"], b"c", 1),
        (b"^a b*", [b"SET", b"d", b"c", b"d"], b"d c", 2),
        (b"^a b*", [b"SET", b"ALL"], b"ALL", 1),
        (b"^a b* c", [b"DEL", b"b*"], b"^a c", 2),
        (b"^a b* c", [b"DEL", b"c", b"^a"], b"b*", 1),
        (b"^a", [b"DEL", b"^a"], b"", 0),
        (b"^a b*", [b"CLEAR"], b"", 0),
        (b"", [b"CLEAR"], b"", 0),
        (b"^a", [b"add", b"list"], b"^a list", 2),
    ],
)
def test_keymask_changes(masks: bytes, arguments: list[bytes], value: bytes, count: int) -> None:
    """One value set, so that the shim checks it and CONFIG GET and REWRITE see it."""
    run = Run(FakeHandler(masks=masks), KEYMASK, *arguments, results=[[OK]])
    assert run.jobs == config_set((b"masks", value))
    assert run.reply == count


def test_keymask_test() -> None:
    handler = FakeHandler(masks=b"^a\\x00.*$ b*c")
    assert Run(handler, KEYMASK, b"TEST", b"a\0b").reply == 1
    assert Run(handler, KEYMASK, b"TEST", b"bbc").reply == 1
    assert Run(handler, KEYMASK, b"TEST", b"a").reply == 0
    assert Run(FakeHandler(masks=b""), KEYMASK, b"TEST", b"a").reply == 0
    assert Run(FakeHandler(), KEYMASK, b"TEST", b"").reply == 1


def test_keymask_refusals() -> None:
    assert "cannot be empty" in refused(KEYMASK, b"ADD", b"a", b"")
    assert "cannot be empty" in refused(KEYMASK, b"SET", b"")
    message = refused(KEYMASK, b"DEL", b"ALL", b"no\xffne")
    assert "no\\\\xffne" in message
    assert "KEYMASK LIST" in message
    assert (
        refused(KEYMASK, b"ADD", b"x", results=[[(b"-masks: no luck\r\n", 0)]]) == "masks: no luck"
    )


# ---- CONFIG -----------------------------------------------------------------------


def test_config_get_one() -> None:
    assert Run(FakeHandler(port=b"5671"), CONFIG, b"GET", b"port").reply == {b"port": b"5671"}
    assert Run(FakeHandler(), CONFIG, b"get", b"PORT").reply == {b"port": b"5672"}
    assert Run(FakeHandler(), CONFIG, b"GET", b"nothing").reply == {}
    # As Redis was given it, not as the handler reads it.
    assert Run(FakeHandler(masks=b"a\\x20b  c"), CONFIG, b"GET", b"masks").reply == {
        b"masks": b"a\\x20b  c"
    }


def test_config_get_a_pattern() -> None:
    reply = Run(FakeHandler(), CONFIG, b"GET", b"*").reply
    assert list(reply) == [setting.name.encode() for setting in SETTINGS]
    assert list(Run(FakeHandler(), CONFIG, b"GET", b"ho?t").reply) == [b"host"]
    assert list(Run(FakeHandler(), CONFIG, b"GET", b"*-*e").reply) == [
        b"delivery-mode", b"fallback-size", b"worker-nice",
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", [b"*", b"password", b"PASS*"])
def test_config_get_hides_the_password(pattern: bytes) -> None:
    reply = Run(FakeHandler(password=b"hunter2"), CONFIG, b"GET", pattern).reply
    assert reply[b"password"] == b"(hidden)"
    assert b"hunter2" not in encode(reply)


def test_config_set() -> None:
    run = Run(FakeHandler(), CONFIG, b"SET", b"Port", b"5671", b"masks", b"^\xff a", results=[[OK]])
    assert run.jobs == config_set((b"port", b"5671"), (b"masks", b"^\xff a"))
    assert run.reply == "OK"


def test_config_set_passes_the_words_of_the_check_on() -> None:
    error = b"-port: '0 - 1' is not accepted\r\n"
    message = refused(CONFIG, b"SET", b"port", b"0 - 1", results=[[(error, 0)]])
    assert message == "port: '0 - 1' is not accepted"


def test_config_set_of_what_is_not_there() -> None:
    message = refused(CONFIG, b"SET", b"port", b"1", b"prot\xff", b"2")
    assert "prot" in message
    assert all(name in message for name in INDEX)


# ---- CONNECT and DISCONNECT ---------------------------------------------------------


def test_connect_with_the_present_configuration() -> None:
    handler = FakeHandler()
    run = Run(handler, CONNECT)
    assert (run.jobs, run.reply, handler.calls) == ([], "OK", ["connect"])


def test_connect_maps_its_arguments_from_the_host_on() -> None:
    handler = FakeHandler()
    given = [
        b"broker", b"5671", b"app", b"secret", b"0", b"ex", b"rk", b"2", b"-1",
        b"^a b", b"c*",
    ]  # fmt: skip
    run = Run(handler, CONNECT, *given, results=[[OK]])
    names = [
        b"host", b"port", b"username", b"password", b"heartbeat", b"exchange", b"routing-key",
        b"delivery-mode", b"fallback-size",
    ]  # fmt: skip
    pairs = [*zip(names, given[:9], strict=True), (b"masks", b"^a\\x20b c*")]
    assert run.jobs == config_set(*pairs)
    assert (run.reply, handler.calls) == ("OK", ["connect"])


@pytest.mark.parametrize("count", range(1, 10))
def test_connect_leaves_the_rest_alone(count: int) -> None:
    run = Run(FakeHandler(), CONNECT, *[b"%d" % n for n in range(count)], results=[[OK]])
    assert len(run.jobs[0].commands[0].arguments) == 2 * count


def test_connect_with_a_bad_argument_changes_nothing() -> None:
    assert refused(CONNECT, b"h", b"p", results=[[(b"-port: no\r\n", 0)]]) == "port: no"
    assert "cannot be empty" in refused(CONNECT, *[b"1"] * 9, b"^a", b"")


def test_disconnect() -> None:
    handler = FakeHandler()
    run = Run(handler, b"keyspaceamqp.disconnect")
    assert (run.jobs, run.reply, handler.calls) == ([], "OK", ["disconnect"])


def test_stats_reset() -> None:
    handler = FakeHandler()
    assert Run(handler, b"KEYSPACEAMQP.STATS", b"RESET").reply == "OK"
    assert handler.calls == ["reset_stats"]


# ---- usage, LOCAL -------------------------------------------------------------------

WRONG = [
    [b"keyspaceamqp.disconnect", b"now"],
    [CONFIG], [CONFIG, b"GET"], [CONFIG, b"GET", b"a", b"b"], [CONFIG, b"SET"],
    [CONFIG, b"SET", b"port"], [CONFIG, b"SET", b"port", b"1", b"host"], [CONFIG, b"DEL", b"port"],
    [KEYMASK], [KEYMASK, b"LIST", b"x"], [KEYMASK, b"ADD"], [KEYMASK, b"SET"], [KEYMASK, b"DEL"],
    [KEYMASK, b"CLEAR", b"x"], [KEYMASK, b"TEST"], [KEYMASK, b"TEST", b"a", b"b"],
    [KEYMASK, b"\xff"], [KEYMASK, b""],
    [FALLBACK], [FALLBACK, b"LEN", b"x"], [FALLBACK, b"PEEK", b"1", b"2"],
    [FALLBACK, b"DRAIN", b"x"], [FALLBACK, b"PURGE", b"x"], [FALLBACK, b"POP"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG, ids=[repr(b" ".join(row)[13:]) for row in WRONG])
def test_wrong_arguments_are_told_the_right_ones(arguments: list[bytes]) -> None:
    message = refused(*arguments)
    name = arguments[0].decode().upper().removeprefix("KEYSPACEAMQP.")
    (spec,) = (spec for spec in commands.COMMANDS if spec.name == name)
    assert message.startswith("wrong arguments")
    assert all(f"KEYSPACEAMQP.{usage}" in message for usage in spec.usage)


def test_local_is_no_argument() -> None:
    for word in (b"LOCAL", b"local"):
        assert Run(FakeHandler(), KEYMASK, b"LIST", word).reply == [b"ALL"]
        run = Run(FakeHandler(), KEYMASK, b"ADD", b"a", word, results=[[OK]])
        assert run.jobs == config_set((b"masks", b"ALL a"))
        run = Run(FakeHandler(), CONNECT, word)
        assert run.jobs == []
        run = Run(
            FakeHandler(), FALLBACK, b"PEEK", word, results=[[(b"*0\r\n", 0), (b":0\r\n", 0)]]
        )
        assert run.jobs == [peek_job(0, 10)]


def test_only_the_last_local_is_taken_away() -> None:
    run = Run(FakeHandler(), KEYMASK, b"SET", b"LOCAL", b"LOCAL", results=[[OK]])
    assert run.jobs == config_set((b"masks", b"LOCAL"))
    run = Run(FakeHandler(), KEYMASK, b"SET", b"LOCAL", b"a", results=[[OK]])
    assert run.jobs == config_set((b"masks", b"LOCAL a"))


def test_any_case_of_letters() -> None:
    assert Run(FakeHandler(), b"KeySpaceAmqp.KeyMask", b"lIsT").reply == [b"ALL"]


# ---- FALLBACK ------------------------------------------------------------------------


def test_fallback_len() -> None:
    run = Run(FakeHandler(), FALLBACK, b"LEN", results=[[(b":12\r\n", 0)]])
    assert (run.jobs, run.reply) == ([length_job()], 12)


def test_fallback_peek() -> None:
    listed = b"*3\r\n$3\r\na\r\n\r\n$0\r\n\r\n$2\r\n\xff\x00\r\n"
    run = Run(FakeHandler(), FALLBACK, b"PEEK", b"3", results=[[(listed, 0), (b":9\r\n", 0)]])
    assert run.jobs == [peek_job(0, 3)]
    assert run.reply == [b"a\r\n", b"", b"\xff\0"]


@pytest.mark.parametrize("count", [b"1", b"10000"])
def test_fallback_peek_at_its_bounds(count: bytes) -> None:
    run = Run(FakeHandler(), FALLBACK, b"PEEK", count, results=[[(b"*0\r\n", 0), (b":0\r\n", 0)]])
    assert run.jobs == [peek_job(0, int(count))]
    assert run.reply == []


@pytest.mark.parametrize(
    "count",
    [
        b"0", b"10001", b"-1", b"ten", b"", b"1.5", b" 1", b"+1", b"\xff", "\u00b2".encode(),
        pytest.param(b"9" * 5000, id="5000 digits"),
    ],
)  # fmt: skip
def test_fallback_peek_refuses_a_count(count: bytes) -> None:
    message = refused(FALLBACK, b"PEEK", count)
    assert message.startswith("count: ")
    assert message.endswith("give a number from 1 to 10000")
    if count.isdigit():
        assert count[:20].decode() in message


def test_fallback_drain() -> None:
    handler = FakeHandler()
    run = Run(handler, FALLBACK, b"DRAIN")
    assert (run.jobs, run.reply, handler.calls) == ([], 17, ["drain"])


def test_fallback_purge() -> None:
    handler = FakeHandler()
    assert Run(handler, FALLBACK, b"PURGE").reply == 3
    assert handler.calls == ["purge"]
    handler.purged = JobError("the cluster is down")
    with pytest.raises(CommandError, match="the cluster is down"):
        Run(handler, FALLBACK, b"PURGE")


WRONG_TYPE = b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n"
FAILURES = [
    ((WRONG_TYPE, 0), "WRONGTYPE Operation against a key holding the wrong kind of value"),
    ((None, errno.EPERM), "the list's slot is not served by this node"),
    ((None, errno.ENETDOWN), "the cluster is down"),
    ((None, errno.EROFS), "READONLY this server is a replica or is loading its data set"),
    ((None, errno.EINVAL), "Invalid argument"),
]


@pytest.mark.parametrize(("reply", "text"), FAILURES, ids=[row[1][:20] for row in FAILURES])
def test_a_job_that_failed_is_the_commands_error(
    reply: tuple[bytes | None, int], text: str
) -> None:
    assert refused(FALLBACK, b"LEN", results=[[reply]]) == text
    assert refused(FALLBACK, b"PEEK", results=[[reply, (None, 0)]]) == text
    assert text in refused(KEYMASK, b"CLEAR", results=[[reply]])


# ---- fallback.py: replies ---------------------------------------------------------------


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


def to_resp(value: Any) -> bytes:
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    return b"*%d\r\n" % len(value) + b"".join(map(to_resp, value))


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


@pytest.mark.parametrize("error", [*fallback._ERRNO, errno.EINVAL])
def test_a_command_that_redis_did_not_run(error: int) -> None:
    value = reply_of(None, error)
    assert isinstance(value, JobError)
    assert str(value)


def test_elements_are_read_from_a_peek() -> None:
    peeked = JobResult([(to_resp([b"a", b"\r\n"]), 0), (b":2\r\n", 0)])
    assert list(read_elements(peeked)) == [b"a", b"\r\n"]
    with pytest.raises(JobError, match="WRONGTYPE"):
        list(read_elements(JobResult([(WRONG_TYPE, 0), (None, 0)])))


# ---- fallback.py: jobs ------------------------------------------------------------------


def redis_commands(job: Job) -> list[Command]:
    commands = [command for command in job.commands if isinstance(command, Command)]
    assert len(commands) == len(job.commands)
    return commands


def texts(job: Job) -> list[str]:
    commands = redis_commands(job)
    return [" ".join([c.name, *(a.decode() for a in c.arguments)]) for c in commands]


def writes(job: Job) -> list[str]:
    return [command.name for command in redis_commands(job) if command.write]


LIST = KEY.decode()


def test_the_list_stays_on_the_node_that_has_slot_of_its_tag() -> None:
    """The shim knows our keys by this prefix and suffix; the tag makes the slot."""
    assert KEY.startswith(b"keyspaceamqp:{")
    assert KEY.endswith(b"}:fallback")


@pytest.mark.parametrize("keep", [0, -1])
def test_push_without_a_cap(keep: int) -> None:
    job = push_job([b"a", b"b"], keep)
    assert texts(job) == [f"RPUSH {LIST} a b"]
    assert writes(job) == ["RPUSH"]


def test_push_with_a_cap_keeps_the_newest() -> None:
    job = push_job([b"a"], 1000)
    assert texts(job) == [f"RPUSH {LIST} a", f"LTRIM {LIST} -1000 -1"]
    assert writes(job) == ["RPUSH", "LTRIM"]


@pytest.mark.parametrize(
    ("start", "count", "bounds"), [(0, 1, "0 0"), (0, 10, "0 9"), (500, 250, "500 749")]
)
def test_peek_reads_a_range_and_changes_nothing(start: int, count: int, bounds: str) -> None:
    """LRANGE counts the end in."""
    job = peek_job(start, count)
    assert texts(job) == [f"LRANGE {LIST} {bounds}", f"LLEN {LIST}"]
    assert writes(job) == []
    assert all(command.expected is None for command in redis_commands(job))


def test_trim_looks_before_it_cuts() -> None:
    """All that goes must be what was delivered, in the form in which Redis replies."""
    job = trim_job([b"first\r\n", b"", b"last"])
    assert texts(job) == [f"LRANGE {LIST} 0 2", f"LTRIM {LIST} 3 -1", f"LLEN {LIST}"]
    expected = [command.expected for command in redis_commands(job)]
    assert expected == [b"*3\r\n$7\r\nfirst\r\n\r\n$0\r\n\r\n$4\r\nlast\r\n", None, None]
    assert writes(job) == ["LTRIM"]


@given(st.lists(st.binary(), min_size=1))
def test_what_a_trim_expects_is_the_elements(elements: list[bytes]) -> None:
    look, *_ = redis_commands(trim_job(elements))
    assert reply_of(look.expected) == elements


def test_length_and_purge() -> None:
    assert texts(length_job()) == [f"LLEN {LIST}"]
    assert writes(length_job()) == []
    assert texts(purge_job()) == [f"LLEN {LIST}", f"UNLINK {LIST}"]
    assert writes(purge_job()) == ["UNLINK"]


# ---- the table ---------------------------------------------------------------------------


def test_every_command_is_documented_and_answered() -> None:
    names = [spec.name for spec in commands.COMMANDS]
    assert len(set(names)) == len(names)
    # HELP is the shim's alone.
    assert set(commands._COMMANDS) == set(names) - {"HELP"}
    for spec in commands.COMMANDS:
        assert spec.usage
        assert all(usage.split()[0] == spec.name for usage in spec.usage)


def test_usage_of_connect_has_its_arguments_in_their_order() -> None:
    connect = commands.COMMANDS[0]
    usage = connect.usage[0]
    names = [argument.name for argument in connect.arguments if argument.name != "local"]
    places = [usage.index(name) for name in names]
    assert places == sorted(places)
    assert usage.count("[") == usage.count("]")
    table = [s.name for s in SETTINGS if s.position is not None][1:-1]
    assert names == [*table, "mask"]
