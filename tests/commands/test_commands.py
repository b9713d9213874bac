"""KEYSPACEAMQP.*: replies, and the calls of each command to Redis and to the worker."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import pytest

from keyspace_amqp.cluster.lists import LOOK_KEYS
from keyspace_amqp.cluster.slots import SLOTS, key_of, keys_of
from keyspace_amqp.commands import CommandError, answer, dispatch, encode
from keyspace_amqp.commands.fallback import PEEK_BYTES
from keyspace_amqp.fallback import JOB_BYTES, JOB_ELEMENTS, lengths_job, peek_job
from keyspace_amqp.jobs import Command, Job, JobError
from keyspace_amqp.publisher.aside import GivenUp
from keyspace_amqp.tables.commands import COMMANDS
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.parameters import INDEX, PARAMETERS
from tests.commands.handler import (
    CONFIG,
    CONNECT,
    FALLBACK,
    KEYMASK,
    NOTHING,
    OK,
    SNAPSHOT,
    FakeHandler,
    Results,
    Run,
    clustered,
    config_set,
    lengths,
    peeked,
    refused,
)
from tests.publisher.simulated import SimulatedList
from tests.pure.resp import WRONG_TYPE

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
    """One value is set, so that the shim checks it, and CONFIG GET and REWRITE see it."""
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


def test_keymask_test_why() -> None:
    handler = FakeHandler(masks=b"^a !^a\\x00")
    assert Run(handler, KEYMASK, b"TEST", b"a").reply == 1
    assert Run(handler, KEYMASK, b"TEST", b"a\0b").reply == 0
    assert Run(handler, KEYMASK, b"TEST", b"a", b"WHY").reply == [1, b"mask ^a matches it"]
    why = [0, b"mask !^a\0 excludes it"]
    assert Run(handler, KEYMASK, b"TEST", b"a\0b", b"why").reply == why
    assert Run(handler, KEYMASK, b"TEST", b"LOCAL", b"WHY").reply == [0, b"no mask matches it"]
    assert Run(handler, KEYMASK, b"TEST", b"WHY").reply == 0


def test_keymask_refusals() -> None:
    for words in ([b"ADD", b"a", b"!"], [b"SET", b"!"]):
        assert "nothing stands behind the !" in refused(KEYMASK, *words)
    assert "nothing stands behind the !" in refused(CONNECT, *[b"1"] * 9, b"!")
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
    # The text that Redis got, not the value that the handler reads from it.
    assert Run(FakeHandler(masks=b"a\\x20b  c"), CONFIG, b"GET", b"masks").reply == {
        b"masks": b"a\\x20b  c"
    }


def test_config_get_a_pattern() -> None:
    reply = Run(FakeHandler(), CONFIG, b"GET", b"*").reply
    assert list(reply) == [parameter.name.encode() for parameter in PARAMETERS]
    assert list(Run(FakeHandler(), CONFIG, b"GET", b"ho?t").reply) == [b"host"]
    assert list(Run(FakeHandler(), CONFIG, b"GET", b"*r*-*e").reply) == [
        b"delivery-mode", b"worker-nice", b"password-file", b"tls-cert-file", b"tls-server-name",
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", [b"*", b"password", b"PASS*"])
def test_config_get_hides_the_password(pattern: bytes) -> None:
    reply = Run(FakeHandler(password=b"hunter2"), CONFIG, b"GET", pattern).reply
    assert reply[b"password"] == b"(hidden)"
    assert b"hunter2" not in encode(reply)


def test_config_get_hides_the_url_if_there_is_one() -> None:
    assert Run(FakeHandler(), CONFIG, b"GET", b"url").reply == {b"url": b""}
    handler = FakeHandler(url=b"amqp://guest:hunter2@h")
    assert Run(handler, CONFIG, b"GET", b"url").reply == {b"url": b"(hidden)"}


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


# ---- SNAPSHOT -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "call"),
    [
        ([], "snapshot 10000"),
        ([b"RATE", b"1"], "snapshot 1"),
        ([b"rate", b"1000000"], "snapshot 1000000"),
        ([b"MASK", b"^a", b"!b"], "snapshot 10000 ^a !b"),
        ([b"RATE", b"7", b"mask", b"RATE", b"7"], "snapshot 7 RATE 7"),
    ],
)
def test_snapshot_start(arguments: list[bytes], call: str) -> None:
    handler = FakeHandler()
    assert Run(handler, SNAPSHOT, b"START", *arguments).reply == 42
    assert handler.calls == [call]


@pytest.mark.parametrize("rate", [b"0", b"1000001", b"-1", b"1.5", b"", b"9" * 500])
def test_snapshot_refuses_a_rate(rate: bytes) -> None:
    message = refused(SNAPSHOT, b"START", b"RATE", rate)
    assert message.startswith(f"RATE: '{rate[:20].decode()}' is not accepted; give a number")
    assert "from 1 to 1000000" in message


def test_snapshot_refuses_masks_as_keymask_does() -> None:
    for mask in (b"", b"!"):
        assert refused(SNAPSHOT, b"START", b"MASK", mask) == refused(KEYMASK, b"ADD", mask)


def test_snapshot_start_while_there_is_one() -> None:
    handler = FakeHandler()
    handler.snapshot_runs = True
    assert "is under way; SNAPSHOT STOP" in refused(SNAPSHOT, b"START", handler=handler)
    assert Run(handler, SNAPSHOT, b"STOP").reply == 1


def test_snapshot_start_that_fails() -> None:
    handler = FakeHandler()
    handler.started = JobError("a replica", code="READONLY")
    with pytest.raises(CommandError, match="a replica"):
        Run(handler, SNAPSHOT, b"START")


# ---- usage, LOCAL -------------------------------------------------------------------

WRONG = [
    [b"keyspaceamqp.disconnect", b"now"],
    [CONFIG], [CONFIG, b"GET"], [CONFIG, b"GET", b"a", b"b"], [CONFIG, b"SET"],
    [CONFIG, b"SET", b"port"], [CONFIG, b"SET", b"port", b"1", b"host"], [CONFIG, b"DEL", b"port"],
    [KEYMASK], [KEYMASK, b"LIST", b"x"], [KEYMASK, b"ADD"], [KEYMASK, b"SET"], [KEYMASK, b"DEL"],
    [KEYMASK, b"CLEAR", b"x"], [KEYMASK, b"TEST"], [KEYMASK, b"TEST", b"a", b"b"],
    [KEYMASK, b"\xff"], [KEYMASK, b""],
    [FALLBACK], [FALLBACK, b"LEN", b"x"], [FALLBACK, b"PEEK", b"1", b"2"],
    [FALLBACK, b"ASIDE", b"1", b"2"],
    [SNAPSHOT], [SNAPSHOT, b"STOP", b"x"], [SNAPSHOT, b"^user:"], [SNAPSHOT, b"START", b"^user:"],
    [SNAPSHOT, b"START", b"RATE"], [SNAPSHOT, b"START", b"MASK"],
    [SNAPSHOT, b"START", b"RATE", b"5", b"MASK"], [SNAPSHOT, b"START", b"RATE", b"5", b"^user:"],
    [FALLBACK, b"DRAIN", b"x"], [FALLBACK, b"PURGE", b"x"], [FALLBACK, b"POP"],
]  # fmt: skip


@pytest.mark.parametrize("arguments", WRONG, ids=[repr(b" ".join(row)[13:]) for row in WRONG])
def test_wrong_arguments_are_told_the_right_ones(arguments: list[bytes]) -> None:
    message = refused(*arguments)
    name = arguments[0].decode().upper().removeprefix("KEYSPACEAMQP.")
    (spec,) = (spec for spec in COMMANDS if spec.name == name)
    assert message.startswith("wrong arguments")
    assert all(f"KEYSPACEAMQP.{usage}" in message for usage in spec.usage)


def test_local_is_no_argument() -> None:
    for word in (b"LOCAL", b"local"):
        assert Run(FakeHandler(), KEYMASK, b"LIST", word).reply == [b"ALL"]
        run = Run(FakeHandler(), KEYMASK, b"ADD", b"a", word, results=[[OK]])
        assert run.jobs == config_set((b"masks", b"ALL a"))
        run = Run(FakeHandler(), CONNECT, word)
        assert run.jobs == []
        run = Run(FakeHandler(), FALLBACK, b"PEEK", word, results=[lengths(1), NOTHING])
        assert run.jobs == [lengths_job([KEY]), peek(10)]


def test_only_the_last_local_is_taken_away() -> None:
    run = Run(FakeHandler(), KEYMASK, b"SET", b"LOCAL", b"LOCAL", results=[[OK]])
    assert run.jobs == config_set((b"masks", b"LOCAL"))
    run = Run(FakeHandler(), KEYMASK, b"SET", b"LOCAL", b"a", results=[[OK]])
    assert run.jobs == config_set((b"masks", b"LOCAL a"))


def test_any_case_of_letters() -> None:
    assert Run(FakeHandler(), b"KeySpaceAmqp.KeyMask", b"lIsT").reply == [b"ALL"]


# ---- FALLBACK ------------------------------------------------------------------------


def peek(count: int, key: bytes = KEY) -> Job:
    """The job that shows the first elements of a list to a client."""
    return peek_job(key, 0, min(count, JOB_ELEMENTS), JOB_BYTES)


def test_fallback_len() -> None:
    run = Run(FakeHandler(), FALLBACK, b"LEN", results=[lengths(12)])
    assert (run.jobs, run.reply) == ([lengths_job([KEY])], 12)


def test_fallback_len_of_several_lists() -> None:
    handler = FakeHandler()
    handler.list_keys = [KEY, key_of(1), key_of(2)]
    run = Run(handler, FALLBACK, b"LEN", results=[lengths(12, 0, 30)])
    assert (run.jobs, run.reply) == ([lengths_job(handler.list_keys)], 42)
    handler.list_keys = []  # a node without slots
    run = Run(handler, FALLBACK, b"LEN")
    assert (run.jobs, run.reply) == ([], 0)


def test_fallback_len_where_the_lists_are_not_known() -> None:
    """On a replica, or before a primary has looked, it counts in every slot."""
    handler = clustered({})
    handler.list_keys = None
    results = [lengths(*[0] * LOOK_KEYS) for _ in range(0, 2 * SLOTS, LOOK_KEYS)]
    results[3] = lengths(5, *[0] * (LOOK_KEYS - 2), 6)
    run = Run(handler, FALLBACK, b"LEN", b"LOCAL", results=results)
    assert run.reply == 11
    looked = [key for job in run.jobs for key in job.commands[0].arguments]
    assert looked == [key for slot in range(SLOTS) for key in keys_of(slot)]


def test_fallback_peek() -> None:
    results = [lengths(9), peeked(b"a\r\n", b"", b"\xff\x00", length=9)]
    run = Run(FakeHandler(), FALLBACK, b"PEEK", b"3", results=results)
    assert run.jobs == [lengths_job([KEY]), peek(3)]
    assert run.reply == [b"a\r\n", b"", b"\xff\0"]


def test_fallback_peek_goes_on_in_the_next_list() -> None:
    handler = FakeHandler()
    handler.list_keys = [key_of(slot) for slot in range(4)]
    results: Results = [lengths(2, 0, 9, 9), peeked(b"a", b"b"), peeked(b"c", length=9)]
    run = Run(handler, FALLBACK, b"PEEK", b"3", results=results)
    assert run.jobs[1:] == [peek(3, key_of(0)), peek(1, key_of(2))]
    assert run.reply == [b"a", b"b", b"c"]


class ManyElements:
    """FALLBACK PEEK of a list that another client may change between the jobs."""

    def __init__(self, elements: list[bytes]) -> None:
        self.list = SimulatedList()
        self.list.elements = elements
        self.jobs: list[Job] = []

    def peek(self, change: Callable[[list[bytes]], None] = lambda elements: None) -> Any:
        steps = answer(FakeHandler(), [FALLBACK, b"PEEK", b"10000"])
        value: Any = None
        while True:
            try:
                job = steps.send(value)
            except StopIteration as stop:
                return stop.value
            assert isinstance(job, Job)
            value = self.list.run(job)
            if isinstance(job.commands[0], Command):
                self.jobs.append(job)
                change(self.list.elements)


SMALL = [b"%d" % number for number in range(12_000)]
LARGE = [b"%d" % number + b"x" * 6000 for number in range(1000)]


@pytest.mark.parametrize("elements", [SMALL, LARGE, SMALL[:JOB_ELEMENTS], [b"same"] * 5000])
def test_fallback_peek_reads_in_pieces(elements: list[bytes]) -> None:
    """As all other jobs, so that Redis' main thread is never held for longer."""
    run = ManyElements(elements[:])
    reply = run.peek()
    assert reply == elements[: len(reply)]
    size = sum(map(len, reply))
    assert len(reply) == min(len(elements), 10_000) or size >= PEEK_BYTES > size - len(reply[-1])
    for job in run.jobs:
        command, _ = job.commands
        assert isinstance(command, Command)
        first, last = map(int, command.arguments[1:])
        assert last - first <= JOB_ELEMENTS
        assert 0 < command.most <= JOB_BYTES + len(max(elements, key=len))
    assert len(run.jobs) <= max(size / JOB_BYTES, len(reply) / JOB_ELEMENTS) + 1


def trim(elements: list[bytes]) -> None:
    del elements[:700]


def push_to_the_head(elements: list[bytes]) -> None:
    elements.insert(0, b"new")


def empty(elements: list[bytes]) -> None:
    elements.clear()


@pytest.mark.parametrize("change", [trim, push_to_the_head, empty])
def test_fallback_peek_of_a_list_that_changes(change: Callable[[list[bytes]], None]) -> None:
    """No element is shown twice, and none is left out before one that is shown."""
    assert ManyElements(SMALL[:]).peek(change) == SMALL[:JOB_ELEMENTS]


def test_fallback_peek_of_a_list_that_grows() -> None:
    run = ManyElements(SMALL[:3000])
    reply = run.peek(lambda elements: elements.append(b"newest"))
    assert reply[:3000] == SMALL[:3000]
    assert set(reply[3000:]) <= {b"newest"}


@pytest.mark.parametrize("count", [b"1", b"10000"])
def test_fallback_peek_at_its_bounds(count: bytes) -> None:
    run = Run(FakeHandler(), FALLBACK, b"PEEK", count, results=[lengths(1), NOTHING])
    assert run.jobs == [lengths_job([KEY]), peek(int(count))]
    assert run.reply == []


@pytest.mark.parametrize(
    "count",
    [
        b"0", b"10001", b"-1", b"ten", b"", b"1.5", b" 1", b"+1", b"\xff", "\u00b2".encode(),
        pytest.param(b"9" * 5000, id="5000 digits"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("what", [b"PEEK", b"ASIDE"])
def test_fallback_peek_refuses_a_count(count: bytes, what: bytes) -> None:
    message = refused(FALLBACK, what, count)
    assert message.startswith("count: ")
    assert message.endswith("give a number from 1 to 10000")
    if count.isdigit():
        assert count[:20].decode() in message


def test_fallback_aside() -> None:
    handler = FakeHandler()
    assert Run(handler, FALLBACK, b"ASIDE").reply == []
    handler.aside = [GivenUp(b"%d" % n, f"why \udcff {n}", n) for n in range(20, 0, -1)]
    assert Run(handler, FALLBACK, b"ASIDE", b"2").reply == [
        [b"20", b"why \\udcff 20", 20],
        [b"19", b"why \\udcff 19", 19],
    ]
    assert len(Run(handler, FALLBACK, b"aside").reply) == 10


def test_fallback_aside_fits_into_a_message_for_a_peer() -> None:
    handler = FakeHandler()
    handler.aside = [GivenUp(b"x" * 300_000, "why", n) for n in range(9)]
    for asked in (False, True):
        assert len(Run(handler, FALLBACK, b"ASIDE", asked=asked).reply) == PEEK_BYTES // 300_003


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
    assert refused(FALLBACK, b"PEEK", results=[[reply]]) == text
    assert refused(FALLBACK, b"PEEK", results=[lengths(1), [reply, (None, 0)]]) == text
    assert text in refused(KEYMASK, b"CLEAR", results=[[reply]])


# ---- the table ---------------------------------------------------------------------------


def test_every_command_is_documented_and_answered() -> None:
    names = [spec.name for spec in COMMANDS]
    assert len(set(names)) == len(names)
    # HELP is the shim's alone.
    assert set(dispatch.COMMANDS) == set(names) - {"HELP"}
    for spec in COMMANDS:
        assert spec.usage
        assert all(usage.split()[0] == spec.name for usage in spec.usage)


def test_usage_of_connect_has_its_arguments_in_their_order() -> None:
    connect = COMMANDS[0]
    usage = connect.usage[0]
    names = [argument.name for argument in connect.arguments if argument.name != "local"]
    places = [usage.index(name) for name in names]
    assert places == sorted(places)
    assert usage.count("[") == usage.count("]")
    table = [s.name for s in PARAMETERS if s.position is not None][1:-1]
    assert names == [*table, "mask"]
