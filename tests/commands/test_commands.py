"""KEYSPACEAMQP.*: replies, and what each command asks of Redis, the handler, and the
other nodes of a cluster."""

from __future__ import annotations

import errno
import json
import re
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyspace_amqp import commands, jobs
from keyspace_amqp.cluster.lists import LOOK_KEYS
from keyspace_amqp.cluster.peers import LINK, Outcome
from keyspace_amqp.cluster.slots import SLOTS, key_of
from keyspace_amqp.cluster.topology import ALONE, Node, Topology
from keyspace_amqp.cluster.wire import Register
from keyspace_amqp.commands import CommandError, answer, dispatch, encode
from keyspace_amqp.commands.fallback import PEEK_ASKED_BYTES, PEEK_BYTES
from keyspace_amqp.config import Config
from keyspace_amqp.fallback import (
    length_job,
    lengths_job,
    peek_job,
    purge_job,
    push_job,
    read_elements,
    trim_job,
)
from keyspace_amqp.jobs import Command, Job, JobError, JobResult, SetParameters
from keyspace_amqp.tables.commands import COMMANDS
from keyspace_amqp.tables.keys import KEY
from keyspace_amqp.tables.parameters import INDEX, PARAMETERS
from keyspace_amqp.tables.stats import Stat

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


def nodes_of(*others: str, primary: bool = True) -> Topology:
    """This node, `me`, and others; an id is an address too."""
    nodes = {name: Node(name, f"{name}:7000", primary, False) for name in ("me", *others)}
    return Topology("me", nodes, frozenset(range(SLOTS)))


class FakeHandler:
    """What the worker is to a command; remembers what it was asked for."""

    def __init__(self, topology: Topology = ALONE, **changed: bytes) -> None:
        self.raw_config: Sequence[bytes] = [
            changed.get(s.name.replace("-", "_"), s.default.encode()) for s in PARAMETERS
        ]
        self.config = Config.from_values(self.raw_config)
        self.calls: list[str] = []
        self.purged: int | JobError = 3
        self.topology = topology
        self.clustered = topology is not ALONE
        self.writable = True
        self.list_keys: Sequence[bytes] | None = [KEY]
        self.keys_found: Sequence[bytes] | None = None  # by a look
        self.outcome = Outcome()  # what the other nodes answer
        self.registers: dict[str, Register] = {}
        self.setting = False
        self.behind: Sequence[str] = ()
        self.told: list[Mapping[str, bytes]] = []  # to the other nodes, to set
        self.ran: list[Sequence[bytes]] = []  # by the other nodes

    def counters(self) -> dict[str, int]:
        return {stat.name.lower(): 100 + stat for stat in Stat}

    def node_state(self) -> dict[str, str | int]:
        return {"role": "primary", "state": "idle", "fallback_length": 7, "last_error": "h\u00e9"}

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

    def when_lists_known(self, done: commands.Resume) -> None:
        self.list_keys = self.list_keys or self.keys_found
        done(None)

    def imported(self, key: bytes, length: int, count: int) -> None:
        self.calls.append(f"imported {key.decode()} {length} {count}")

    def reset_stats(self) -> None:
        self.calls.append("reset_stats")

    def lock_parameters(self, done: commands.Resume) -> None:
        assert not self.setting
        self.setting = True
        done(None)

    def unlock_parameters(self) -> None:
        assert self.setting
        self.setting = False

    def assign(self, values: Mapping[str, bytes]) -> Mapping[str, Register]:
        version = (len(self.registers), "me")
        registers = {name: Register(version, value) for name, value in values.items()}
        self.registers |= registers
        return registers

    def merge(self, registers: Mapping[str, Register]) -> Mapping[str, bytes]:
        newer = {
            name: register
            for name, register in registers.items()
            if name not in self.registers or register.version > self.registers[name].version
        }
        self.registers |= newer
        return {name: register.value for name, register in newer.items()}

    def outdated(self, registers: Mapping[str, Register]) -> Sequence[str]:
        return self.behind

    def tell(self, registers: Mapping[str, Register], done: commands.Resume) -> None:
        assert all(self.registers[name] == register for name, register in registers.items())
        self.told.append({name: register.value for name, register in registers.items()})
        done(self.outcome)

    def run_elsewhere(self, words: Sequence[bytes], done: commands.Resume) -> None:
        self.ran.append(words)
        done(self.outcome)


Results = Sequence[Sequence[tuple[bytes | None, int]]]


class Run:
    """Carries a command out: jobs get the results given, in their order."""

    def __init__(
        self, handler: FakeHandler, *arguments: bytes, results: Results = (), asked: bool = False
    ) -> None:
        self.jobs: list[Job] = []
        self.reply: Any = None
        self.run(answer(handler, arguments, asked=asked), results)
        encode(self.reply)  # whatever it is, it can be sent
        json.dumps(commands.to_json(self.reply))  # to a node, too

    def run(self, steps: commands.Steps, results: Results) -> None:
        waiting = list(results)
        value: Any = None
        while True:
            try:
                wait = steps.send(value)
            except StopIteration as stop:
                self.reply = stop.value
                break
            except CommandError:
                assert not waiting, "fewer jobs than results"
                raise
            if isinstance(wait, Job):
                self.jobs.append(wait)
                value = JobResult(list(waiting.pop(0)))
            else:
                brought: list[Any] = []
                wait(brought.append)
                (value,) = brought
        assert not waiting, "fewer jobs than results"


def config_set(*pairs: tuple[bytes, bytes]) -> list[Job]:
    """The one job that sets parameters: all or none."""
    return [Job([SetParameters([text for pair in pairs for text in pair])])]


def refused(*arguments: bytes, handler: FakeHandler | None = None, **keywords: Any) -> str:
    """The error of a command that changes nothing."""
    handler = handler or FakeHandler()
    with pytest.raises(CommandError) as caught:
        Run(handler, *arguments, **keywords)
    assert (handler.calls, handler.told, handler.ran, handler.registers) == ([], [], [], {})
    return str(caught.value)


def to_resp(value: Any) -> bytes:
    if value is None:
        return b"$-1\r\n"
    if isinstance(value, int):
        return b":%d\r\n" % value
    if isinstance(value, bytes):
        return b"$%d\r\n%b\r\n" % (len(value), value)
    return b"*%d\r\n" % len(value) + b"".join(map(to_resp, value))


def lengths(*numbers: int) -> Sequence[tuple[bytes, int]]:
    """The result of a look at the lists."""
    return [(to_resp(list(numbers)), 0)]


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
    # As Redis was given it, not as the handler reads it.
    assert Run(FakeHandler(masks=b"a\\x20b  c"), CONFIG, b"GET", b"masks").reply == {
        b"masks": b"a\\x20b  c"
    }


def test_config_get_a_pattern() -> None:
    reply = Run(FakeHandler(), CONFIG, b"GET", b"*").reply
    assert list(reply) == [setting.name.encode() for setting in PARAMETERS]
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
        assert run.jobs == [lengths_job([KEY]), peeked(10)]


def test_only_the_last_local_is_taken_away() -> None:
    run = Run(FakeHandler(), KEYMASK, b"SET", b"LOCAL", b"LOCAL", results=[[OK]])
    assert run.jobs == config_set((b"masks", b"LOCAL"))
    run = Run(FakeHandler(), KEYMASK, b"SET", b"LOCAL", b"a", results=[[OK]])
    assert run.jobs == config_set((b"masks", b"LOCAL a"))


def test_any_case_of_letters() -> None:
    assert Run(FakeHandler(), b"KeySpaceAmqp.KeyMask", b"lIsT").reply == [b"ALL"]


# ---- FALLBACK ------------------------------------------------------------------------


NOTHING = [(b"*0\r\n", 0), (b":0\r\n", 0)]


def peeked(count: int, key: bytes = KEY) -> Job:
    """The job that shows the first elements of a list to a client."""
    return peek_job(key, 0, count, PEEK_BYTES)


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
    """On a replica, or before a primary has looked: in every slot."""
    handler = clustered({})
    handler.list_keys = None
    results = [lengths(*[0] * LOOK_KEYS) for _ in range(0, SLOTS, LOOK_KEYS)]
    results[3] = lengths(5, *[0] * (LOOK_KEYS - 2), 6)
    run = Run(handler, FALLBACK, b"LEN", b"LOCAL", results=results)
    assert run.reply == 11
    looked = [key for job in run.jobs for key in job.commands[0].arguments]
    assert looked == [key_of(slot) for slot in range(SLOTS)]


def test_fallback_peek() -> None:
    listed = b"*3\r\n$3\r\na\r\n\r\n$0\r\n\r\n$2\r\n\xff\x00\r\n"
    results = [lengths(9), [(listed, 0), (b":9\r\n", 0)]]
    run = Run(FakeHandler(), FALLBACK, b"PEEK", b"3", results=results)
    assert run.jobs == [lengths_job([KEY]), peeked(3)]
    assert run.reply == [b"a\r\n", b"", b"\xff\0"]


def test_fallback_peek_goes_on_in_the_next_list() -> None:
    handler = FakeHandler()
    handler.list_keys = [key_of(slot) for slot in range(4)]
    results: Results = [
        lengths(2, 0, 9, 9),
        [(to_resp([b"a", b"b"]), 0), (b":2\r\n", 0)],
        [(to_resp([b"c"]), 0), (b":9\r\n", 0)],
    ]
    run = Run(handler, FALLBACK, b"PEEK", b"3", results=results)
    assert run.jobs[1] == peeked(3, key_of(0))
    assert run.jobs[2] == peek_job(key_of(2), 0, 1, PEEK_BYTES - 2)
    assert run.reply == [b"a", b"b", b"c"]


@pytest.mark.parametrize("count", [b"1", b"10000"])
def test_fallback_peek_at_its_bounds(count: bytes) -> None:
    run = Run(FakeHandler(), FALLBACK, b"PEEK", count, results=[lengths(1), NOTHING])
    assert run.jobs == [lengths_job([KEY]), peeked(int(count))]
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
    assert refused(FALLBACK, b"PEEK", results=[[reply]]) == text
    assert refused(FALLBACK, b"PEEK", results=[lengths(1), [reply, (None, 0)]]) == text
    assert text in refused(KEYMASK, b"CLEAR", results=[[reply]])


# ---- on all nodes ---------------------------------------------------------------------


def clustered(answers: Mapping[str, Any] | None = None, **missing: str) -> FakeHandler:
    """A handler in a cluster whose other nodes answer, or do not for a reason."""
    answers = answers or {}
    handler = FakeHandler(nodes_of(*answers, *missing))
    handler.outcome = Outcome(dict(answers), dict(missing))
    return handler


def spread_over(result: Any, nodes: int, *missing: bytes) -> dict[bytes, Any]:
    """The reply of a command that was carried out on so many nodes."""
    return {
        b"result": result,
        b"nodes": nodes,
        b"of": nodes + len(missing),
        b"missing": list(missing),
    }


STATS, DISCONNECT = b"keyspaceamqp.stats", b"keyspaceamqp.disconnect"
CLUSTER = b"keyspaceamqp.cluster"
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
    """Of the one job, if there is any."""
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
    """No version is made of it, so it is not passed on later either."""
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


PEEKED: Results = [lengths(1), [(to_resp([b"a"]), 0), OK]]
# The command, the results of its jobs here, what another node answers, and the sum.
RUNNING: list[tuple[list[bytes], Results, Any, Any]] = [
    ([FALLBACK, b"LEN"], [lengths(12)], 30, 42),
    ([FALLBACK, b"drain"], [], 30, 47),
    ([FALLBACK, b"PURGE"], [], 30, 33),
    ([FALLBACK, b"PEEK", b"2"], PEEKED, ["\xff\0"], [b"a", b"\xff\0"]),
    ([FALLBACK, b"PEEK", b"1"], PEEKED, ["b"], [b"a"]),
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
    assert run.jobs[1] == peek_job(KEY, 0, 10, PEEK_ASKED_BYTES)


@pytest.mark.parametrize(
    ("arguments", "empty"),
    [([b"LEN"], 0), ([b"PURGE"], 0), ([b"PEEK"], []), ([b"PEEK", b"5"], [])],
    ids=lambda value: repr(value),
)
def test_a_replica_does_not_answer_for_its_copy(arguments: list[bytes], empty: Any) -> None:
    """Its primary does; with LOCAL one may look at it."""
    handler = clustered({"a": 5 if empty == 0 else ["x"]})
    handler.writable = False
    handler.list_keys = None
    assert Run(handler, FALLBACK, *arguments, asked=True).reply == empty
    reply = Run(handler, FALLBACK, *arguments).reply
    assert reply == spread_over(5 if empty == 0 else [b"x"], 2)
    assert handler.calls == []
    if arguments == [b"LEN"]:
        results = [lengths(*[1] * LOOK_KEYS) for _ in range(0, SLOTS, LOOK_KEYS)]
        assert Run(handler, FALLBACK, b"LEN", b"LOCAL", results=results).reply == SLOTS


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
    # What it tells of itself is what it understands of others.
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
    """A node of a later version may answer what it likes: there is a reply all the same,
    and what is understood is in it."""
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
    """Sets what another node has set for all: the newest of it."""

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
    """A parameter of a later version."""
    handler = clustered({"a": None})
    assert Applied(handler, {"later": b"x"}).jobs == []
    assert Applied(handler, {"later": b"x", "port": b"1"}, [[OK]]).jobs == config_set(
        (b"port", b"1")
    )


def test_apply_leaves_what_was_set_since() -> None:
    """It may have waited, and a client of this node was faster."""
    handler = clustered({"a": None})
    handler.registers = {
        "port": Register((10, "me"), b"2"),
        LINK: Register((10, "me"), b"off"),
    }
    run = Applied(handler, {"port": b"1", "host": b"h", LINK: b"on"}, [[OK]])
    assert run.jobs == config_set((b"host", b"h"))
    assert handler.calls == []


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
    """LRANGE counts the end in."""
    job = peek_job(KEY, start, count)
    assert texts(job) == [f"LRANGE {LIST} {bounds}", f"LLEN {LIST}"]
    assert writes(job) == []
    assert all(command.expected is None for command in redis_commands(job))


def test_trim_looks_before_it_cuts() -> None:
    """All that goes must be what was delivered, in the form in which Redis replies."""
    job = trim_job(KEY, [b"first\r\n", b"", b"last"])
    assert texts(job) == [f"LRANGE {LIST} 0 2", f"LTRIM {LIST} 3 -1", f"LLEN {LIST}"]
    expected = [command.expected for command in redis_commands(job)]
    assert expected == [b"*3\r\n$7\r\nfirst\r\n\r\n$0\r\n\r\n$4\r\nlast\r\n", None, None]
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
