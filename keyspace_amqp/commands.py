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
import re
import struct
from collections.abc import Callable, Generator, Sequence
from typing import Any, Protocol

from . import masks
from .config import INDEX, SETTINGS, Config, format_masks
from .fallback import Job, JobError, SetParameters, length_job, peek_job, read_elements


@dataclasses.dataclass(frozen=True)
class Argument:
    """An argument as COMMAND DOCS shows it (RedisModuleCommandArg)."""

    name: str
    type: str = "STRING"
    token: str | None = None
    optional: bool = False
    multiple: bool = False
    arguments: tuple[Argument, ...] = ()


def _token(name: str, *arguments: Argument) -> Argument:
    """A subcommand: a word, alone or before arguments."""
    word = Argument(name.lower(), "PURE_TOKEN", token=name)
    return Argument(name.lower(), "BLOCK", arguments=(word, *arguments)) if arguments else word


_LOCAL = Argument("local", "PURE_TOKEN", token="LOCAL", optional=True)


@dataclasses.dataclass(frozen=True)
class CommandSpec:
    """A command: its name after `KEYSPACEAMQP.`, and its documentation."""

    name: str
    usage: tuple[str, ...]
    summary: str
    arguments: tuple[Argument, ...] = ()
    complexity: str = "O(1)"
    flags: str = "admin deny-script allow-stale"
    acl_categories: str = "admin slow dangerous"


COMMANDS: tuple[CommandSpec, ...] = (
    CommandSpec(
        "CONNECT",
        (
            "CONNECT [host [port [username [password [heartbeat [exchange [routing-key "
            "[delivery-mode [fallback-size [mask ...]]]]]]]]]]",
        ),
        "Connects to RabbitMQ, with the present parameters or with those given",
        (
            *(
                Argument(
                    "mask" if setting.name == "masks" else setting.name,
                    "INTEGER" if setting.kind.name == "INTEGER" else "STRING",
                    optional=True,
                    multiple=setting.name == "masks",
                )
                for setting in SETTINGS
                if setting.position is not None and setting.name != "events"
            ),
            _LOCAL,
        ),
    ),
    CommandSpec(
        "DISCONNECT",
        ("DISCONNECT",),
        "Closes the connection until CONNECT; events go to the fallback list",
        (_LOCAL,),
    ),
    CommandSpec(
        "CONFIG",
        ("CONFIG GET pattern", "CONFIG SET name value [name value ...]"),
        "Shows or sets parameters",
        (
            Argument(
                "subcommand",
                "ONEOF",
                arguments=(
                    _token("GET", Argument("pattern", "PATTERN")),
                    _token(
                        "SET",
                        Argument(
                            "data",
                            "BLOCK",
                            multiple=True,
                            arguments=(
                                Argument("name"),
                                Argument("value"),
                            ),
                        ),
                    ),
                ),
            ),
            _LOCAL,
        ),
        "O(N) where N is the number of parameters",
    ),
    CommandSpec(
        "KEYMASK",
        (
            "KEYMASK LIST",
            "KEYMASK ADD mask [mask ...]",
            "KEYMASK SET mask [mask ...]",
            "KEYMASK DEL mask [mask ...]",
            "KEYMASK CLEAR",
            "KEYMASK TEST key",
        ),
        "Shows, changes or tries the key masks",
        (
            Argument(
                "subcommand",
                "ONEOF",
                arguments=(
                    _token("LIST"),
                    _token("ADD", Argument("mask", multiple=True)),
                    _token("SET", Argument("mask", multiple=True)),
                    _token("DEL", Argument("mask", multiple=True)),
                    _token("CLEAR"),
                    # A string, not a key: nothing is read, and a cluster must not redirect.
                    _token("TEST", Argument("key")),
                ),
            ),
            _LOCAL,
        ),
        "O(N) where N is the number of masks, and for TEST the length of the key",
    ),
    CommandSpec(
        "FALLBACK",
        ("FALLBACK LEN", "FALLBACK PEEK [count]", "FALLBACK DRAIN", "FALLBACK PURGE"),
        "Looks at the fallback list, has it delivered now, or deletes it",
        (
            Argument(
                "subcommand",
                "ONEOF",
                arguments=(
                    _token("LEN"),
                    _token("PEEK", Argument("count", "INTEGER", optional=True)),
                    _token("DRAIN"),
                    _token("PURGE"),
                ),
            ),
            _LOCAL,
        ),
        "O(N) where N is the number of elements shown or deleted",
    ),
    CommandSpec(
        "STATS",
        ("STATS", "STATS RESET"),
        "Shows the state and the counters, or starts the counters again",
        (Argument("reset", "PURE_TOKEN", token="RESET", optional=True), _LOCAL),
        flags="deny-script allow-loading allow-stale",
        acl_categories="read slow",
    ),
    CommandSpec(
        "HELP",
        ("HELP",),
        "Shows the commands",
        flags="fast allow-loading allow-stale",
        acl_categories="read fast",
    ),
)

# As many as a person reads; more have to be asked for.
PEEK_DEFAULT = 10
# A reply that neither Redis nor a person can use any more.
PEEK_MAX = 10_000


class CommandError(Exception):
    """What the client gets as an error, without the leading `ERR`."""


# What a command waits for: a job's result, or whatever a function will bring.
Resume = Callable[[Any], None]
Wait = Job | Callable[[Resume], None]


class Handler(Protocol):
    """What the commands need of the worker."""

    @property
    def config(self) -> Config: ...

    @property
    def raw_config(self) -> Sequence[bytes]: ...

    def connect(self) -> None: ...

    def disconnect(self) -> None: ...

    def drain(self) -> int:
        """Starts to deliver the list now; the number of elements that wait."""
        ...

    def purge(self, done: Resume) -> None:
        """Deletes the list; `done` gets the number of elements, or a JobError."""
        ...

    def reset_stats(self) -> None: ...


Reply = int | bytes | str | list["Reply"] | dict[bytes, "Reply"] | None
Steps = Generator[Wait, Any, Reply]


def answer(handler: Handler, arguments: Sequence[bytes]) -> Steps:
    """Carries a command out: yields jobs, returns the reply.

    Worker thread. Raises CommandError for whatever the client did wrong.
    """
    name = arguments[0].decode("ascii", "replace").upper().partition(".")[2]
    rest = list(arguments[1:])
    # In a cluster LOCAL keeps a command on its node; on a single node it is
    # where it would be anyway.
    if rest and rest[-1].upper() == b"LOCAL" and not _is_test_of_local(rest):
        rest.pop()
    return (yield from _COMMANDS[name](handler, rest))


def _is_test_of_local(rest: Sequence[bytes]) -> bool:
    """KEYMASK TEST with a key that is named like the word."""
    return len(rest) == 2 and rest[0].upper() == b"TEST"


def _usage(command: str) -> CommandError:
    spec = next(spec for spec in COMMANDS if spec.name == command)
    forms = " | ".join(f"KEYSPACEAMQP.{usage}" for usage in spec.usage)
    return CommandError(f"wrong arguments, expected: {forms}")


def _subcommand(command: str, rest: Sequence[bytes]) -> tuple[str, Sequence[bytes]]:
    if not rest:
        raise _usage(command)
    return rest[0].decode("ascii", "replace").upper(), rest[1:]


def _set(pairs: Sequence[tuple[str, bytes]]) -> Generator[Wait, Any, None]:
    """Sets parameters: all or, if a value is refused, none."""
    arguments = []
    for name, value in pairs:
        arguments += [name.encode(), value]
    result = yield Job([SetParameters(arguments)])
    reply = result.reply(0)
    if isinstance(reply, JobError):
        raise CommandError(str(reply))


def _connect(handler: Handler, rest: Sequence[bytes]) -> Steps:
    settings = [s for s in SETTINGS if s.position is not None and s.name != "events"]
    values = list(rest[: len(settings) - 1])
    given_masks = rest[len(settings) - 1 :]
    pairs = [(setting.name, value) for setting, value in zip(settings, values, strict=False)]
    if given_masks:
        pairs.append(("masks", format_masks(_checked(given_masks))))
    if pairs:
        yield from _set(pairs)
    handler.connect()
    return "OK"


def _disconnect(handler: Handler, rest: Sequence[bytes]) -> Steps:
    if rest:
        raise _usage("DISCONNECT")
    handler.disconnect()
    return "OK"
    yield  # a generator like the others


def _config(handler: Handler, rest: Sequence[bytes]) -> Steps:
    subcommand, arguments = _subcommand("CONFIG", rest)
    if subcommand == "GET" and len(arguments) == 1:
        pattern = arguments[0].decode("utf-8", "replace").lower()
        return {
            setting.name.encode(): b"(hidden)" if setting.sensitive else value
            for setting, value in zip(SETTINGS, handler.raw_config, strict=True)
            if fnmatch.fnmatchcase(setting.name, pattern)
        }
    if subcommand == "SET" and arguments and len(arguments) % 2 == 0:
        pairs = []
        for name, value in zip(arguments[::2], arguments[1::2], strict=True):
            text = name.decode("utf-8", "replace").lower()
            if text not in INDEX:
                raise CommandError(f"there is no parameter {text!r}; there are {', '.join(INDEX)}")
            pairs.append((text, value))
        yield from _set(pairs)
        return "OK"
    raise _usage("CONFIG")


def _checked(given: Sequence[bytes]) -> Sequence[bytes]:
    for mask in given:
        if not mask:
            raise CommandError("a mask cannot be empty; ALL matches every key")
    return given


def _keymask(handler: Handler, rest: Sequence[bytes]) -> Steps:
    subcommand, arguments = _subcommand("KEYMASK", rest)
    present = list(handler.config.masks)
    match subcommand, len(arguments):
        case "LIST", 0:
            return list(present)
        case "TEST", 1:
            return int(masks.compile_masks(present)(arguments[0]))
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
    yield from _set([("masks", format_masks(changed))])
    return len(changed)


def _int(value: Any) -> int:
    """A job's number; its error becomes the client's."""
    if isinstance(value, JobError):
        raise CommandError(str(value))
    return int(value)


def _fallback(handler: Handler, rest: Sequence[bytes]) -> Steps:
    subcommand, arguments = _subcommand("FALLBACK", rest)
    match subcommand, len(arguments):
        case "LEN", 0:
            result = yield length_job()
            return _int(result.reply(0))
        case "DRAIN", 0:
            return handler.drain()
        case "PURGE", 0:
            return _int((yield handler.purge))
        case "PEEK", 0 | 1:
            text = arguments[0] if arguments else b"%d" % PEEK_DEFAULT
            digits = text if text.isdigit() and len(text) < 10 else b"0"
            if not 1 <= int(digits) <= PEEK_MAX:
                shown = text[:20].decode("utf-8", "backslashreplace")
                raise CommandError(
                    f"count: {shown!r} is not accepted; give a number from 1 to {PEEK_MAX}"
                )
            result = yield peek_job(0, int(text))
            try:
                return list(read_elements(result))
            except JobError as error:
                raise CommandError(str(error)) from None
        case _:
            raise _usage("FALLBACK")


def _stats(handler: Handler, rest: Sequence[bytes]) -> Steps:
    handler.reset_stats()
    return "OK"
    yield  # a generator like the others


_COMMANDS: dict[str, Callable[[Handler, Sequence[bytes]], Steps]] = {
    "CONNECT": _connect,
    "DISCONNECT": _disconnect,
    "CONFIG": _config,
    "KEYMASK": _keymask,
    "FALLBACK": _fallback,
    "STATS": _stats,
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
