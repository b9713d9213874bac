"""The elements of the fallback list into a file, and back: `keyspace-amqp drain` and
`keyspace-amqp replay`.

The module may work with the list at the same time. It removes nothing that is not just
what it has read (fallback.trim_job), and books what others change. The same care is taken
here: read a batch, write it, have it on disk, and remove it by a script that looks whether
just that is at the head. After each of these steps an end is harmless.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import datetime
import json
import mmap
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import IO, Any

import redis

from ..cluster.lists import Lists
from ..cluster.slots import key_of
from ..cluster.topology import ALONE
from ..fallback import JOB_BYTES, JOB_ELEMENTS, from_element
from ..message import named
from .nodes import Node, ToolError, all_nodes, stats, topology

# States in which the module delivers nothing, for a while at least.
_AWAY = ("disconnected", "connecting")
# Others may change the list's head so often in a row between reading and removing.
_CHANGES = 100
# Elements that are removed at once. Comparing takes about a microsecond for each of
# Redis' main thread.
_BATCH = 500

# KEYS: the list; ARGV: elements and bytes. Its first elements, at least one; no more when
# they have so many bytes: with values they may have a megabyte each.
_READ = """
local found, size = {}, 0
for place = 0, tonumber(ARGV[1]) - 1 do
    local element = redis.call('LINDEX', KEYS[1], place)
    if not element then break end
    found[#found + 1] = element
    size = size + #element
    if size >= tonumber(ARGV[2]) then break end
end
return found
"""

# KEYS: the list; ARGV: what its head must be. How many elements were removed.
_REMOVE = """
for place, element in ipairs(ARGV) do
    if redis.call('LINDEX', KEYS[1], place - 1) ~= element then return 0 end
end
redis.call('LTRIM', KEYS[1], #ARGV, -1)
return #ARGV
"""


def to_line(element: bytes) -> bytes:
    """The element as a line of the file: readable, and the element itself in base64."""
    shown: dict[str, Any] = {}
    event = from_element(element)
    if event is not None:
        shown["id"] = event.message_id
        with contextlib.suppress(ValueError, OverflowError, OSError):  # beyond year 9999
            time = datetime.datetime.fromtimestamp(event.time_ms / 1000, datetime.UTC)
            shown["time"] = time.isoformat(timespec="milliseconds")
        shown["db"] = event.db
        shown["event"] = event.name.decode("utf-8", "backslashreplace")
        shown |= named("key", event.key)
    shown["element"] = base64.b64encode(element).decode()
    return json.dumps(shown, ensure_ascii=False).encode() + b"\n"


def from_line(line: bytes) -> bytes:
    """The element in a line. Raises ValueError if there is no event in it."""
    try:
        element = base64.b64decode(json.loads(line)["element"], validate=True)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError('this is no JSON object with an "element" in base64') from None
    if from_element(element) is None:
        raise ValueError("the element is no event, the module would drop it")
    return element


class _File:
    """Where the lines go. It is made with the first of them."""

    def __init__(self, path: str, *, append: bool) -> None:
        self._path = None if path == "-" else pathlib.Path(path)
        self._append = append
        self._file: IO[bytes] | None = None
        if self._path is None:
            self._file = open(sys.stdout.fileno(), "wb", closefd=False)  # noqa: SIM115

    def close(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):  # a write has failed, and was told
                self._file.close()

    def write(self, elements: Iterable[bytes]) -> None:
        """Returns when all of them are on disk. Raises OSError, ToolError."""
        if self._file is None:
            assert self._path is not None
            try:
                self._file = self._path.open("a+b" if self._append else "xb")
            except FileExistsError:
                raise ToolError(f"{self._path} exists; --append goes on at its end") from None
            if self._append:
                _end_last_line(self._file)
            folder = os.open(self._path.parent, os.O_RDONLY)
            os.fsync(folder)  # its name
            os.close(folder)
        self._file.writelines(map(to_line, elements))
        self._file.flush()
        if self._path is not None:
            os.fsync(self._file.fileno())


def _end_last_line(file: IO[bytes]) -> None:
    """A run that was killed may have left half a line; its element is still in Redis."""
    if file.seek(0, os.SEEK_END) == 0:
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = data.rfind(b"\n") + 1
        line = data[begin:]
    try:
        if line:
            from_line(line)
            file.write(b"\n")
    except ValueError:
        if not line.startswith(b"{"):
            raise ToolError(f"{file.name} is no file of this command: see its last line") from None
        file.truncate(begin)


def _lists(client: Any) -> dict[bytes, int]:
    """The lists of a primary that have elements, with their lengths. Raises
    redis.RedisError, ToolError."""
    known = topology(client)
    if known is ALONE and client.connection_pool.connection_kwargs.get("db"):
        raise ToolError("the list is in database 0: give --redis without another one")
    if known is ALONE and client.info("replication")["role"] != "master":
        raise ToolError("this server is a replica: give --redis its primary")
    keys = [key_of(slot) for slot in sorted(known.served)]
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.llen(key)
        lengths = pipeline.execute(raise_on_error=False)
    found = zip(keys, lengths, strict=True)
    return {key: length for key, length in found if isinstance(length, int) and length > 0}


def _check_away(node: Node) -> None:
    """Raises ToolError if the module may deliver its list just now."""
    try:
        state = stats(node.client)["state"]
    except redis.ResponseError as error:
        if "unknown command" in str(error):
            return  # the module is not loaded
        raise
    if state not in _AWAY:
        raise ToolError(
            f"the module of {node.address} is {state}, it delivers its list. Give "
            "KEYSPACEAMQP.DISCONNECT before, and CONNECT afterwards; or --force, and events "
            "may both be delivered and be in the file"
        )


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What goes wrong with Redis or a file is for the user."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise ToolError(str(error)) from None


@_told()
def drain(options: argparse.Namespace) -> int:
    """Moves the elements of all lists into a file; 1 if a node does not answer. Raises
    ToolError."""
    check = _check_away if not options.force else lambda node: None
    work: list[tuple[Node, dict[bytes, int]]] = []
    code = taken = 0
    file = _File(options.to, append=options.append)
    with contextlib.closing(file), all_nodes(options) as nodes:
        for node in nodes:
            try:
                work.append((node, _lists(node.client)))
            except (redis.ConnectionError, redis.TimeoutError) as error:
                _tell(f"{node.address} does not answer; its list, if any, stays there: {error}")
                code = 1
        try:
            for node, lists in work:
                for key, length in lists.items():
                    for count in _moved(node, key, length, file, check):
                        taken += count
                        _tell(f"{taken} elements taken out", end="\r")
        finally:
            _tell(f"{taken} elements taken out")
    return code


def _moved(
    node: Node, key: bytes, left: int, file: _File, check: Callable[[Node], None]
) -> Iterator[int]:
    """Moves so many elements; yields the size of each batch."""
    client: Any = node.client
    changes = 0
    while left > 0:
        check(node)
        elements = client.eval(_READ, 1, key, min(_BATCH, left), JOB_BYTES)
        if not elements:
            return
        file.write(elements)
        if _remove(client, key, elements):
            changes = 0
            left -= len(elements)
            yield len(elements)
        elif (changes := changes + 1) > _CHANGES:
            raise ToolError(f"somebody else changes {key.decode()} all the time")


def _remove(client: Any, key: bytes, elements: Sequence[bytes]) -> bool:
    """Removes these elements from the head of a list, if just they are there."""
    return bool(client.eval(_REMOVE, 1, key, *elements))


@_told()
def replay(options: argparse.Namespace) -> int:
    """Appends the elements of a file to the list. Raises ToolError."""
    pushed = 0
    with pathlib.Path(options.file).open("rb") as file, all_nodes(options) as nodes:
        count = sum(1 for _ in _elements(file))
        node, key = _home(nodes)
        client: Any = node.client
        length, most = client.llen(key), _fallback_size(client)
        if 0 < most < length + count and not options.force:
            raise ToolError(
                f"{length} elements wait in {key.decode()} of {node.address}; with {count} more "
                f"these are more than fallback-size ({most}), and the module would cut off the "
                "oldest. Raise fallback-size, or give --force"
            )
        file.seek(0)
        try:
            for batch in _batches(_elements(file)):
                client.rpush(key, *batch)
                pushed += len(batch)
                _tell(f"{pushed} of {count} elements pushed", end="\r")
        finally:
            _tell(f"{pushed} of {count} elements pushed to {key.decode()} of {node.address}")
    return 0


def _elements(file: IO[bytes]) -> Iterator[bytes]:
    for number, line in enumerate(file, 1):
        try:
            yield from_line(line)
        except ValueError as error:
            raise ToolError(f"{file.name}, line {number}: {error}") from None


def _batches(elements: Iterable[bytes]) -> Iterator[list[bytes]]:
    """What Redis' main thread takes in less than a millisecond, as the module's pushes."""
    batch: list[bytes] = []
    size = 0
    for element in elements:
        batch.append(element)
        size += len(element)
        if len(batch) == JOB_ELEMENTS or size >= JOB_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _home(nodes: Sequence[Node]) -> tuple[Node, bytes]:
    """A primary, and the key of the list that the module has there."""
    for node in nodes:
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            lists = Lists()
            lists.begin()
            lists.set_topology(topology(node.client))
            if lists.home is not None:
                return node, lists.home
    raise ToolError("no node that answers is a primary with slots")


def _fallback_size(client: Any) -> int:
    """0 if there is none, or nobody tells."""
    with contextlib.suppress(redis.ResponseError):
        return int(next(iter(client.config_get("keyspaceamqp.fallback-size").values()), 0))
    return 0


def _tell(text: str, end: str = "\n") -> None:
    """On standard error, for standard output may be the file."""
    if end == "\n" or sys.stderr.isatty():
        print(text, end=end, file=sys.stderr, flush=True)
