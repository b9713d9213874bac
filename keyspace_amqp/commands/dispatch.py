"""KEYSPACEAMQP.*: what the commands are, and how the worker answers them.

`COMMANDS` is the table that COMMAND DOCS, HELP and the README are made from.
`answer` carries a command out on the worker thread. It is a generator: what has
to run under Redis it yields as a job and gets the job's result back, so that the
worker never waits. STATS and HELP are answered by the shim alone and are here
only for their documentation (and for STATS RESET).

A reply is Python data: int, bytes, str (a status), list, dict, None; an error
is raised as `CommandError`. `encode` writes it in the form that `play_reply` in
shim/module.c reads: per item a tag, a signed 64-bit number (the value, the
count, or the length of a text), and for texts the bytes and a NUL.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import itertools
import re
import secrets
import struct
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from .. import masks
from ..cluster.lists import LOOK_KEYS
from ..cluster.peers import LINK, Outcome
from ..cluster.slots import SLOTS, key_of
from ..cluster.topology import Topology
from ..cluster.wire import Register
from ..config import Config, format_masks
from ..fallback import (
    JOB_BYTES,
    JOB_ELEMENTS,
    lengths_job,
    move_job,
    peek_job,
    read_elements,
    to_element,
)
from ..jobs import Command, Failure, Job, JobError, SetParameters
from ..tables.commands import COMMANDS
from ..tables.keys import KEY, is_own_key
from ..tables.parameters import INDEX, PARAMETERS
from ..tables.stats import Stat
from .legacy import from_legacy

# As many as a person reads; more have to be asked for.
PEEK_DEFAULT = 10
# A reply that neither Redis nor a person can use any more.
PEEK_MAX = 10_000
PEEK_BYTES = 64 * 1024 * 1024
PEEK_ASKED_BYTES = 1024 * 1024


# Seconds of one IMPORT: the node that asks waits for ASK_TIMEOUT (spread.py), and the
# client for COMMAND_TIMEOUT_MS (shim/module.c).
IMPORT_SECONDS = 1.5
# What an error shows of an element.
SHOWN_BYTES = 64


class CommandError(Exception):
    """What the client gets as an error, without the leading `ERR`."""


# What a command waits for: a job's result, or whatever a function will bring.
Resume = Callable[[Any], None]
Wait = Job | Callable[[Resume], None]


@dataclasses.dataclass(frozen=True)
class Elsewhere:
    """Waits for other nodes, with nothing left to do here: the next command need not
    wait with this one."""

    ask: Callable[[Resume], None]

    def __call__(self, done: Resume) -> None:
        self.ask(done)


class Handler(Protocol):
    """What the commands need of the worker."""

    @property
    def config(self) -> Config: ...

    @property
    def raw_config(self) -> Sequence[bytes]: ...

    @property
    def topology(self) -> Topology:
        """The nodes of the cluster; this server alone, if it is in none."""
        ...

    @property
    def clustered(self) -> bool: ...

    @property
    def writable(self) -> bool:
        """Whether this node is a primary and not loading."""
        ...

    @property
    def list_keys(self) -> Sequence[bytes] | None:
        """The lists that it works with; None on a replica, and as long as it looks for
        them."""
        ...

    def look_done(self, done: Resume) -> None:
        """Calls `done` when the lists are known, or this node is not `writable`."""
        ...

    def numbers(self) -> dict[str, int]:
        """The counters as STATS shows them."""
        ...

    def about(self) -> dict[str, str | int]:
        """What CLUSTER shows of a node."""
        ...

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def begin_setting(self, done: Resume) -> None:
        """Calls `done` when nobody else sets parameters. One at a time, or what was set
        last were not what has the newest version."""
        ...

    def end_setting(self) -> None: ...

    def assign(self, values: Mapping[str, bytes]) -> Mapping[str, Register]:
        """Gives parameters, which were just set, a version for all nodes."""
        ...

    def merge(self, registers: Mapping[str, Register]) -> Mapping[str, bytes]:
        """The values of these that are newer than what this node has, and are to be
        set now."""
        ...

    def older(self, registers: Mapping[str, Register]) -> Sequence[str]:
        """Which of these this node has newer."""
        ...

    def tell(self, registers: Mapping[str, Register], done: Resume) -> None:
        """Has the other nodes set parameters; `done` gets an Outcome."""
        ...

    def run_elsewhere(self, words: Sequence[bytes], done: Resume) -> None:
        """Has the other nodes carry a command out; `done` gets an Outcome."""
        ...

    def drain(self) -> int:
        """Starts to deliver the list now; the number of elements that wait."""
        ...

    def purge(self, done: Resume) -> None:
        """Deletes the list; `done` gets the number of elements, or a JobError."""
        ...

    def imported(self, key: bytes, length: int, count: int) -> None:
        """So many elements were put to the end of a list of ours; it has `length` now."""
        ...

    def reset_stats(self) -> None: ...


Reply = int | bytes | str | list["Reply"] | dict[bytes, "Reply"] | None
Steps = Generator[Wait, Any, Reply]


@dataclasses.dataclass
class _Call:
    """A command that is being carried out. `local`: for this node alone; `asked`: by
    another node, on its client's behalf."""

    handler: Handler
    local: bool
    asked: bool = False
    registers: dict[str, Register] = dataclasses.field(default_factory=dict)

    @property
    def for_all(self) -> bool:
        """Whether the other nodes carry it out too."""
        return self.asked or not self.local

    @property
    def is_copy(self) -> bool:
        """Whether the list here is another node's, which will answer for it itself."""
        return self.for_all and not self.handler.writable


def answer(handler: Handler, arguments: Sequence[bytes], *, asked: bool = False) -> Steps:
    """Carries a command out, on all nodes unless it ends with LOCAL: yields what it
    waits for, returns the reply.

    `asked`: another node does, so it stays here. Worker thread. Raises CommandError
    for whatever the client did wrong.
    """
    first = arguments[0] if arguments else b""
    name = first.decode("ascii", "replace").upper().partition(".")[2]
    if name not in _COMMANDS:  # a node of another version has asked
        raise CommandError(f"there is no command {first.decode('utf-8', 'backslashreplace')!r}")
    rest = list(arguments[1:])
    local = asked or not handler.clustered
    if rest and rest[-1].upper() == b"LOCAL" and not _is_key_local(rest):
        rest.pop()
        local = True
    call = _Call(handler, local, asked)
    reply = yield from _COMMANDS[name](call, rest)
    if local:
        return reply
    subcommand = rest[0].decode("ascii", "replace").upper() if rest else ""
    if call.registers:
        outcome = yield Elsewhere(functools.partial(handler.tell, call.registers))
        return _report(handler, reply, outcome)
    merge = _MERGED.get((name, subcommand))
    if merge is None:
        return reply
    outcome = yield Elsewhere(functools.partial(handler.run_elsewhere, [arguments[0], *rest]))
    return merge(handler, reply, outcome, rest)


def apply(handler: Handler, registers: Mapping[str, Register]) -> Steps:
    """Sets what another node has set for all: what is newer, and what it can, if not
    everything. Raises CommandError over the rest."""
    errors = []
    yield handler.begin_setting
    try:
        if older := handler.older(registers):
            # Set by a clock that is behind. By the next hello the other one knows.
            errors.append(f"it has a newer setting of {', '.join(older)}; set it again")
        values = handler.merge(registers)
        if LINK in values:
            _set_link(handler, values[LINK])
        known = [(name, value) for name, value in values.items() if name in INDEX]
        error = yield from _set_here(known)
        if error is not None and len(known) > 1:
            for pair in known:
                error = yield from _set_here([pair])
                errors += [error] if error else []
        elif error is not None:
            errors.append(error)
    finally:
        handler.end_setting()
    if errors:
        raise CommandError("; ".join(errors))
    return "OK"


def _set_link(handler: Handler, wanted: bytes) -> None:
    if wanted == b"on":
        handler.connect()
    else:
        handler.disconnect()


# ---- what becomes of the answers of the other nodes -------------------------------


def _coverage(handler: Handler, outcome: Outcome) -> dict[bytes, Reply]:
    """How many nodes took it, this one among them, and who did not."""
    nodes = handler.topology.nodes
    missing = {
        (nodes[node_id].address if node_id in nodes else node_id): why
        for node_id, why in outcome.missing.items()
    }
    return {
        b"nodes": 1 + len(outcome.answers),
        b"of": 1 + len(outcome.answers) + len(outcome.missing),
        b"missing": [
            f"{address}: {why}".encode("utf-8", "backslashreplace")
            for address, why in missing.items()
        ],
    }


# Another node may be of another version: what it answers can have any shape.


def _number(value: Any) -> int:
    """A number as another node has answered it; 0 for what is none."""
    return value if isinstance(value, int) and -(2**63) <= value < 2**63 else 0


def _bytes(value: Any) -> bytes:
    """A text as another node has answered it (see `plain`); empty for what is none."""
    return value.encode("latin-1", "replace") if isinstance(value, str) else b""


def _shown(value: Any) -> str | int:
    return _number(value) if isinstance(value, int) else _bytes(value).decode("utf-8", "replace")


def _encoded(about: Mapping[str, str | int]) -> dict[bytes, Reply]:
    return {
        name.encode(): value if isinstance(value, int) else value.encode("utf-8", "replace")
        for name, value in about.items()
    }


def _sum(numbers: Iterable[Any]) -> int:
    return _number(sum(map(_number, numbers)))


def plain(reply: Reply) -> Any:
    """A reply as it goes to the node that has asked: JSON, bytes as latin-1."""
    if isinstance(reply, bytes):
        return reply.decode("latin-1")
    if isinstance(reply, list):
        return [plain(item) for item in reply]
    if isinstance(reply, dict):
        return {name.decode("latin-1"): plain(value) for name, value in reply.items()}
    return reply


def _report(handler: Handler, result: Reply, outcome: Outcome) -> Reply:
    return {b"result": result, **_coverage(handler, outcome)}


def _merge_same(handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]) -> Reply:
    return _report(handler, reply, outcome)


def _merge_sum(handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]) -> Reply:
    return _report(handler, _sum([reply, *outcome.answers.values()]), outcome)


def _merge_elements(
    handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]
) -> Reply:
    elements: list[Reply] = list(reply) if isinstance(reply, list) else []
    for answered in outcome.answers.values():
        if isinstance(answered, list):
            elements += [_bytes(element) for element in answered]
    return _report(handler, elements[: _peek_count(rest[1:])], outcome)


def _merge_numbers(
    handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]
) -> Reply:
    answers = [answered for answered in outcome.answers.values() if isinstance(answered, dict)]
    numbers: list[Mapping[str, Any]] = [handler.numbers(), *answers]
    names = [stat.name.lower() for stat in Stat]
    sums = {name.encode(): _sum(each.get(name) for each in numbers) for name in names}
    return {**_coverage(handler, outcome), **sums}


def _merge_nodes(handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]) -> Reply:
    topology, here = handler.topology, handler.about()
    rows: list[Reply] = []
    for node in sorted(topology.nodes.values(), key=lambda node: node.address):
        row: dict[bytes, Reply] = {b"id": node.id.encode(), b"address": node.address.encode()}
        about: Mapping[str, str | int] = here
        if node.id != topology.myself:
            answered = outcome.answers.get(node.id)
            if isinstance(answered, dict):
                about = {name: _shown(answered.get(name)) for name in about}
            else:
                about = {
                    **dict.fromkeys(about, ""),
                    "role": "primary" if node.primary else "replica",
                    "state": "unknown",
                    "last_error": outcome.missing.get(node.id, "not asked"),
                }
        rows.append(row | _encoded(about))
    return rows


_Merge = Callable[[Handler, Reply, Outcome, Sequence[bytes]], Reply]
_MERGED: dict[tuple[str, str], _Merge] = {
    ("FALLBACK", "LEN"): _merge_sum,
    ("FALLBACK", "PEEK"): _merge_elements,
    ("FALLBACK", "DRAIN"): _merge_sum,
    ("FALLBACK", "PURGE"): _merge_sum,
    ("FALLBACK", "IMPORT"): _merge_sum,
    ("STATS", "RESET"): _merge_same,
    ("STATS", "CLUSTER"): _merge_numbers,
    ("CLUSTER", ""): _merge_nodes,
}


# ---- the commands -----------------------------------------------------------------


def _is_key_local(rest: Sequence[bytes]) -> bool:
    """KEYMASK TEST or FALLBACK IMPORT with a key that is named like the word."""
    return len(rest) == 2 and rest[0].upper() in (b"TEST", b"IMPORT")


def _usage(command: str) -> CommandError:
    spec = next(spec for spec in COMMANDS if spec.name == command)
    forms = " | ".join(f"KEYSPACEAMQP.{usage}" for usage in spec.usage)
    return CommandError(f"wrong arguments, expected: {forms}")


def _subcommand(command: str, rest: Sequence[bytes]) -> tuple[str, Sequence[bytes]]:
    if not rest:
        raise _usage(command)
    return rest[0].decode("ascii", "replace").upper(), rest[1:]


def _set(call: _Call, pairs: Sequence[tuple[str, bytes]]) -> Generator[Wait, Any, None]:
    """Sets parameters: all or, if a value is refused, none."""
    if not pairs:
        return
    yield call.handler.begin_setting
    try:
        error = yield from _set_here(pairs)
        if error is not None:
            raise CommandError(error)
        if not call.local:
            call.registers |= call.handler.assign(dict(pairs))
    finally:
        call.handler.end_setting()


def _set_here(pairs: Sequence[tuple[str, bytes]]) -> Generator[Wait, Any, str | None]:
    """Sets parameters of this node; what is wrong, if a value is refused."""
    if not pairs:
        return None
    arguments = []
    for name, value in pairs:
        arguments += [name.encode(), value]
    reply = (yield Job([SetParameters(arguments)])).reply(0)
    return str(reply) if isinstance(reply, JobError) else None


def _link(call: _Call, wanted: bytes) -> None:
    """CONNECT, DISCONNECT."""
    if not call.local:
        call.registers |= call.handler.assign({LINK: wanted})
    _set_link(call.handler, wanted)


def _connect(call: _Call, rest: Sequence[bytes]) -> Steps:
    positional = [p for p in PARAMETERS if p.position is not None and p.name != "events"]
    values = list(rest[: len(positional) - 1])
    given_masks = rest[len(positional) - 1 :]
    pairs = [(parameter.name, value) for parameter, value in zip(positional, values, strict=False)]
    if given_masks:
        pairs.append(("masks", format_masks(_checked(given_masks))))
    yield from _set(call, pairs)
    _link(call, b"on")
    return "OK"


def _disconnect(call: _Call, rest: Sequence[bytes]) -> Steps:
    if rest:
        raise _usage("DISCONNECT")
    _link(call, b"off")
    return "OK"
    yield  # a generator like the others


def _config(call: _Call, rest: Sequence[bytes]) -> Steps:
    subcommand, arguments = _subcommand("CONFIG", rest)
    if subcommand == "GET" and len(arguments) == 1:
        pattern = arguments[0].decode("utf-8", "replace").lower()
        return {
            parameter.name.encode(): b"(hidden)" if parameter.sensitive and value else value
            for parameter, value in zip(PARAMETERS, call.handler.raw_config, strict=True)
            if fnmatch.fnmatchcase(parameter.name, pattern)
        }
    if subcommand == "SET" and arguments and len(arguments) % 2 == 0:
        pairs = []
        for name, value in zip(arguments[::2], arguments[1::2], strict=True):
            text = name.decode("utf-8", "replace").lower()
            if text not in INDEX:
                raise CommandError(f"there is no parameter {text!r}; there are {', '.join(INDEX)}")
            pairs.append((text, value))
        yield from _set(call, pairs)
        return "OK"
    raise _usage("CONFIG")


def _checked(given: Sequence[bytes]) -> Sequence[bytes]:
    for mask in given:
        if not mask:
            raise CommandError("a mask cannot be empty; ALL matches every key")
        if mask == masks.EXCLUDES:
            raise CommandError("nothing stands behind the ! of a mask; !^tmp: excludes ^tmp:")
    return given


def _keymask(call: _Call, rest: Sequence[bytes]) -> Steps:
    subcommand, arguments = _subcommand("KEYMASK", rest)
    present = list(call.handler.config.masks)
    match subcommand, len(arguments):
        case "LIST", 0:
            return list(present)
        case "TEST", 1:
            return int(masks.matches(present, arguments[0]))
        case "TEST", 2 if arguments[1].upper() == b"WHY":
            forwarded, why = masks.explain(present, arguments[0])
            return [int(forwarded), why]
        case "CLEAR", 0:
            changed: list[bytes] = []
        case "SET", count if count > 0:
            changed = list(dict.fromkeys(_checked(arguments)))
        case "ADD", count if count > 0:
            changed = list(dict.fromkeys([*present, *_checked(arguments)]))
        case "DEL", count if count > 0:
            for mask in arguments:
                if mask not in present:
                    raise CommandError(
                        f"there is no mask {mask.decode('utf-8', 'backslashreplace')!r}; "
                        "KEYMASK LIST shows what there is"
                    )
            changed = [mask for mask in present if mask not in arguments]
        case _:
            raise _usage("KEYMASK")
    yield from _set(call, [("masks", format_masks(changed))])
    return len(changed)


def _int(value: Any) -> int:
    """A job's number; its error becomes the client's."""
    if isinstance(value, JobError):
        raise CommandError(str(value))
    return int(value)


def _lists(call: _Call) -> Generator[Wait, Any, Mapping[bytes, int]]:
    """The lists on this server, with their lengths. On a replica they have to be
    looked for."""
    keys = call.handler.list_keys
    if keys is None:
        keys = [key_of(slot) for slot in range(SLOTS)] if call.handler.clustered else [KEY]
    found: dict[bytes, int] = {}
    for first in range(0, len(keys), LOOK_KEYS):
        some = keys[first : first + LOOK_KEYS]
        lengths = (yield lengths_job(some)).reply(0)
        if isinstance(lengths, JobError):
            raise CommandError(str(lengths))
        found.update((key, n) for key, n in zip(some, lengths, strict=True) if n)
    return found


def _peek_count(arguments: Sequence[bytes]) -> int:
    text = arguments[0] if arguments else b"%d" % PEEK_DEFAULT
    digits = text if text.isdigit() and len(text) < 10 else b"0"
    if not 1 <= int(digits) <= PEEK_MAX:
        shown = text[:20].decode("utf-8", "backslashreplace")
        raise CommandError(f"count: {shown!r} is not accepted; give a number from 1 to {PEEK_MAX}")
    return int(text)


def _fallback(call: _Call, rest: Sequence[bytes]) -> Steps:
    subcommand, arguments = _subcommand("FALLBACK", rest)
    match subcommand, len(arguments):
        case "LEN", 0:
            return 0 if call.is_copy else sum((yield from _lists(call)).values())
        case "DRAIN", 0:
            return call.handler.drain()
        case "PURGE", 0:
            return 0 if call.is_copy else _int((yield call.handler.purge))
        case "PEEK", 0 | 1:
            count = _peek_count(arguments)
            if call.is_copy:
                return []
            elements: list[Reply] = []
            room = PEEK_ASKED_BYTES if call.asked else PEEK_BYTES
            for key in (yield from _lists(call)):
                if len(elements) < count and room > 0:
                    result = yield peek_job(key, 0, count - len(elements), room)
                    try:
                        read = list(read_elements(result))
                    except JobError as error:
                        raise CommandError(str(error)) from None
                    room -= sum(map(len, read))
                    # A message between nodes is no place for an element without a bound.
                    elements += read[:-1] if call.asked and room < 0 else read
            return elements
        case "IMPORT", 1:
            return (yield from _import(call, arguments[0]))
        case _:
            raise _usage("FALLBACK")


def _import(call: _Call, source: bytes) -> Steps:
    """Takes over the list of the older C module, for a while: how many elements. The
    command is to be given again until there are none."""
    if is_own_key(source):
        raise CommandError("this is a list of this module; give the key of the older one's")
    if call.is_copy:
        return 0
    prefix, numbers = secrets.token_hex(8), itertools.count(1)
    ids = (f"{prefix}-{number}" for number in numbers)
    until = time.monotonic() + IMPORT_SECONDS
    taken = 0
    try:
        while time.monotonic() < until:
            some = yield from _import_some(call, source, ids)
            if not some:
                break
            taken += some
    except CommandError as error:
        if not taken:
            raise
        raise CommandError(f"{error} ({taken} elements before it were taken over)") from None
    return taken


def _import_some(call: _Call, source: bytes, ids: Iterator[str]) -> Generator[Wait, Any, int]:
    """Takes over as many elements as a job may move, in their order; up to the first
    that is no event, which is refused when it is the first."""
    handler = call.handler
    yield handler.look_done
    if not handler.writable:
        raise CommandError(str(JobError.of(Failure.READ_ONLY)))
    size, target = handler.config.fallback_size, next(iter(handler.list_keys or ()), None)
    look = [*peek_job(source, 0, JOB_ELEMENTS, JOB_BYTES).commands]
    if target is not None:
        look.append(Command("LLEN", [target]))
    result = yield Job(look)
    length = result.reply(1)
    if isinstance(length, JobError) and length.failure is Failure.NOT_SERVED and call.for_all:
        return 0  # the node that has it does it
    waiting = _int(length)
    if not waiting:
        return 0
    if size < 0:
        raise CommandError(f"there is no fallback list to take them: fallback-size is {size}")
    if target is None:
        raise CommandError(
            "there is no fallback list to take them: this node knows of no slot of its own"
        )
    listed = _int(result.reply(2))
    if 0 < size < listed + waiting:
        raise CommandError(
            f"{waiting} elements do not fit: {listed} of fallback-size {size} are taken"
        )
    elements, moved = list(read_elements(result)), []
    now = int(time.time() * 1000)
    for element in elements:
        event = from_legacy(element, next(ids), now)
        if event is None:
            break
        moved.append(to_element(event))
    if not moved:
        shown = elements[0][:SHOWN_BYTES].decode("utf-8", "backslashreplace")
        raise CommandError(
            f"the first element, {shown!r}, is not db, event and key with newlines between; mend "
            "it (LSET) or take it away (LPOP) and give the command again. Nothing was lost"
        )
    result = yield move_job(source, elements[: len(moved)], target, moved)
    length, cut = result.reply(1), result.reply(2)
    if isinstance(length, int):
        handler.imported(target, length, len(moved))
    if cut != b"OK":
        errors = [
            str(error) for error in map(result.reply, range(3)) if isinstance(error, JobError)
        ]
        why = next(filter(None, errors), "somebody else changes the list at the same time")
        raise CommandError(why)
    return len(moved)


def _stats(call: _Call, rest: Sequence[bytes]) -> Steps:
    subcommand, more = _subcommand("STATS", rest)
    if subcommand == "CLUSTER" and not more:
        if call.asked:
            return {name.encode(): number for name, number in call.handler.numbers().items()}
        return _merge_numbers(call.handler, None, Outcome(), rest)
    if subcommand != "RESET" or more:
        raise _usage("STATS")
    call.handler.reset_stats()
    return "OK"
    yield  # a generator like the others


def _cluster(call: _Call, rest: Sequence[bytes]) -> Steps:
    if rest:
        raise _usage("CLUSTER")
    if call.asked:
        return _encoded(call.handler.about())
    return _merge_nodes(call.handler, None, Outcome(), rest)
    yield  # a generator like the others


_COMMANDS: dict[str, Callable[[_Call, Sequence[bytes]], Steps]] = {
    "CONNECT": _connect,
    "DISCONNECT": _disconnect,
    "CONFIG": _config,
    "KEYMASK": _keymask,
    "FALLBACK": _fallback,
    "STATS": _stats,
    "CLUSTER": _cluster,
}

_ITEM = struct.Struct("=cq")
_CODE = re.compile(r"[A-Z]{2,} ")


def encode(reply: Reply | CommandError) -> bytes:
    """The reply in the form that the shim plays."""
    if isinstance(reply, CommandError):
        # An error is one line of the protocol, with a code as its first word.
        text = str(reply) if _CODE.match(str(reply)) else f"ERR {reply}"
        text = text.translate({0: " ", 10: " ", 13: " "})
        return _text(b"-", text.encode("utf-8", "backslashreplace"))
    if isinstance(reply, int):
        return _ITEM.pack(b":", reply)
    if isinstance(reply, bytes):
        return _text(b"$", reply)
    if isinstance(reply, str):
        return _text(b"+", reply.encode())
    if isinstance(reply, list):
        return _ITEM.pack(b"*", len(reply)) + b"".join(map(encode, reply))
    if isinstance(reply, dict):
        items = b"".join(encode(name) + encode(value) for name, value in reply.items())
        return _ITEM.pack(b"%", len(reply)) + items
    return _ITEM.pack(b"_", 0)


def _text(tag: bytes, text: bytes) -> bytes:
    return _ITEM.pack(tag, len(text)) + text + b"\0"
