"""`keyspace-amqp drain` and `keyspace-amqp replay`: move the elements of the fallback list into
a file, and back.

The module may work with the list at the same time. It removes only elements that it has read
(fallback.trim_job), and counts the changes that others make. `drain` takes the same care: it
reads a batch, writes it to disk, and removes it with a script that first compares the head of
the list with the batch. An interruption after any of these steps loses nothing.
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
from ..cluster.slots import keys_of
from ..cluster.topology import ALONE
from ..counts import counted
from ..fallback import JOB_BYTES, JOB_ELEMENTS, from_element
from ..message import named
from . import ToolError
from .nodes import Node, all_nodes, topology
from .replies import is_unknown_command, stats

# States in which the module delivers nothing, for a while at least.
_AWAY = ("disconnected", "connecting")
# Batches in a row that may fail because another client changes the list's head between
# reading and removing.
_CHANGES = 100
# Elements that are read and removed at once: to compare one takes about a microsecond of
# Redis' main thread.
_BATCH = 500

# Read the first elements. KEYS: the list; ARGV: the most elements, and the most bytes. The
# element that reaches the bytes is the last: with a value it may have a megabyte.
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

# Remove elements from the head. KEYS: the list; ARGV: the elements. Returns how many it has
# removed: all, or none if the head is not these elements.
_REMOVE = """
for place, element in ipairs(ARGV) do
    if redis.call('LINDEX', KEYS[1], place - 1) ~= element then return 0 end
end
redis.call('LTRIM', KEYS[1], #ARGV, -1)
return #ARGV
"""


def to_line(element: bytes) -> bytes:
    """Return a line of the file for an element: readable, and the element itself in base64."""
    shown: dict[str, Any] = {}
    event = from_element(element)
    if event is not None:
        shown["id"] = event.message_id
        with contextlib.suppress(ValueError, OverflowError, OSError):  # a time after the year 9999
            time = datetime.datetime.fromtimestamp(event.time_ms / 1000, datetime.UTC)
            shown["time"] = time.isoformat(timespec="milliseconds")
        shown["db"] = event.db
        shown["event"] = event.name.decode("utf-8", "backslashreplace")
        shown |= named("key", event.key)
    shown["element"] = base64.b64encode(element).decode()
    return json.dumps(shown, ensure_ascii=False).encode() + b"\n"


def from_line(line: bytes) -> bytes:
    """Return the element in a line. Raises ValueError if it holds no event."""
    try:
        element = base64.b64decode(json.loads(line)["element"], validate=True)
    except (ValueError, TypeError, KeyError, RecursionError):
        raise ValueError('this is no JSON object with an "element" in base64') from None
    if from_element(element) is None:
        raise ValueError("the element is no event; the module would drop it")
    return element


class _File:
    """The file for the lines, or standard output. A new file to which nothing was written is
    removed at the end.

    Raises OSError, ToolError if the file cannot be used. Most likely failure: the disk is full.
    `write` then raises OSError, and nothing of that batch is removed from Redis.
    """

    def __init__(self, path: str, *, append: bool) -> None:
        self._path = None if path == "-" else pathlib.Path(path)
        self._is_new = False
        if self._path is None:
            self._file: IO[bytes] = open(sys.stdout.fileno(), "wb", closefd=False)  # noqa: SIM115
            return
        self._is_new = not append or not self._path.exists()
        try:
            self._file = self._path.open("a+b" if append else "xb")
        except FileExistsError:
            raise ToolError(f"{self._path} exists; --append adds to it") from None
        try:
            if append:
                _end_last_line(self._file)
        except ToolError:
            self._file.close()
            raise
        folder = os.open(self._path.parent, os.O_RDONLY)
        os.fsync(folder)  # so that the file's name is on disk
        os.close(folder)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # an earlier write has raised its error
            self._file.close()
        if self._path is not None and self._is_new:
            self._path.unlink(missing_ok=True)

    def write(self, elements: Iterable[bytes]) -> None:
        """Write elements, and return when all of them are on disk. Raises OSError."""
        self._is_new = False
        self._file.writelines(map(to_line, elements))
        self._file.flush()
        if self._path is not None:
            os.fsync(self._file.fileno())


def _end_last_line(file: IO[bytes]) -> None:
    """End the last line of a file, or cut it off: a run that was killed may have left half a
    line, whose element is still in Redis. Raises ToolError if it is not a file of `drain`."""
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


def _keys(client: Any) -> list[bytes]:
    """Return the keys of the lists that a server may have; none if it is a replica of a cluster,
    or has no slots. Raises redis.RedisError, ToolError."""
    known = topology(client)
    if known is ALONE and client.connection_pool.connection_kwargs.get("db"):
        raise ToolError("the list is in database 0; give --redis without another database")
    if known is ALONE and client.info("replication")["role"] != "master":
        raise ToolError("this server is a replica; give its primary with --redis")
    return [key for slot in sorted(known.served) for key in keys_of(slot)]


def _lengths(client: Any, keys: Sequence[bytes]) -> dict[bytes, int]:
    """Return the keys of the lists that have elements, and their lengths. Raises
    redis.RedisError."""
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.llen(key)
        lengths = pipeline.execute()
    return {key: length for key, length in zip(keys, lengths, strict=True) if length}


def _has_module(node: Node) -> bool:
    """True if the module is loaded. Raises redis.RedisError."""
    try:
        stats(node.client)
    except redis.ResponseError as error:  # a server looks for the command before it asks for rights
        return not is_unknown_command(error)
    return True


def _check_away(node: Node) -> None:
    """Make sure that the module does not deliver its list now. Raises ToolError if it may."""
    try:
        state = str(stats(node.client)["state"])
    except redis.ResponseError as error:
        if is_unknown_command(error):
            return
        raise ToolError(
            f"whether the module of {node.address} delivers its list now: {error}. It is in "
            "KEYSPACEAMQP.STATS: give a user who may ask for it, or --force"
        ) from None
    if state not in _AWAY:
        does = "delivers" if state == "connected" else "may at any time deliver"
        raise ToolError(
            f"the module of {node.address} is {state} and {does} its list. Give "
            "KEYSPACEAMQP.DISCONNECT before, and CONNECT afterwards. With --force, events may "
            "both be delivered and be in the file"
        )


@contextlib.contextmanager
def _errors_for_people() -> Iterator[None]:
    """A `with` in which errors of Redis and of files become a ToolError."""
    try:
        yield
    except (redis.RedisError, OSError) as error:
        raise ToolError(str(error)) from None


@_errors_for_people()
def drain(options: argparse.Namespace) -> int:
    """Move the elements of all lists into a file. Return 1 if a node does not answer. Raises
    ToolError."""
    check = _check_away if not options.force else lambda node: None
    taken = 0
    with all_nodes(options) as nodes:
        work, code = _survey(nodes, check)
        with contextlib.closing(_File(options.to, append=options.append)) as file:
            try:
                for node, lists in work:
                    for key, length in lists.items():
                        for size in _move(node, key, length, file, check):
                            taken += size
                            _tell(f"{counted(taken, 'element')} taken out", end="\r")
            finally:
                _tell(f"{counted(taken, 'element')} taken out")
    return code


def _survey(
    nodes: Sequence[Node], check: Callable[[Node], None]
) -> tuple[list[tuple[Node, dict[bytes, int]]], int]:
    """Return the lists of each node that answers, with their lengths, and 1 if a node does not
    answer, else 0. `check` is called for each node that may have lists. Raises ToolError."""
    work, code = [], 0
    for node in nodes:
        try:
            if keys := _keys(node.client):
                check(node)
                work.append((node, _lengths(node.client, keys)))
        except (redis.ConnectionError, redis.TimeoutError) as error:
            _tell(f"{node.address} does not answer; its list, if any, stays there: {error}")
            code = 1
    if work and not any(lists or _has_module(node) for node, lists in work):
        where = ", ".join(node.address for node, _ in work)
        raise ToolError(f"there is neither the module nor a list of it in {where}: see --redis")
    return work, code


def _move(
    node: Node, key: bytes, count: int, file: _File, check: Callable[[Node], None]
) -> Iterator[int]:
    """Move so many elements of a list, and yield the size of each batch. `check` is called
    before each batch. Raises ToolError, redis.RedisError, OSError."""
    client: Any = node.client
    changes = 0
    while count > 0:
        check(node)
        elements = client.eval(_READ, 1, key, min(_BATCH, count), JOB_BYTES)
        if not elements:
            return
        file.write(elements)
        if _remove(client, key, elements):
            changes = 0
            count -= len(elements)
            yield len(elements)
        elif (changes := changes + 1) > _CHANGES:
            raise ToolError(f"another client keeps changing the head of {key.decode()}")


def _remove(client: Any, key: bytes, elements: Sequence[bytes]) -> bool:
    """Remove elements from the head of a list, if they are still its head. True if they were
    removed."""
    return bool(client.eval(_REMOVE, 1, key, *elements))


@_errors_for_people()
def replay(options: argparse.Namespace) -> int:
    """Append the elements of a file to the list. Raises ToolError."""
    pushed = 0
    with pathlib.Path(options.file).open("rb") as file, all_nodes(options) as nodes:
        count = sum(1 for _ in _elements(file))
        node, key = _home(nodes)
        client: Any = node.client
        length, most = client.llen(key), _fallback_size(client)
        if 0 < most < length + count and not options.force:
            raise ToolError(
                f"{key.decode()} of {node.address} has {counted(length, 'element')}; with {count} "
                f"more these are more than fallback-size ({most}), and the module would cut off "
                "the oldest. Raise fallback-size, or give --force"
            )
        file.seek(0)
        try:
            for batch in _batches(_elements(file)):
                client.rpush(key, *batch)
                pushed += len(batch)
                _tell(f"{pushed} of {counted(count, 'element')} pushed", end="\r")
        finally:
            done = f"{pushed} of {counted(count, 'element')} pushed"
            _tell(f"{done} to {key.decode()} of {node.address}")
    return 0


def _elements(file: IO[bytes]) -> Iterator[bytes]:
    """Yield the elements in a file. Raises ToolError for an invalid line."""
    for number, line in enumerate(file, 1):
        try:
            yield from_line(line)
        except ValueError as error:
            raise ToolError(f"{file.name}, line {number}: {error}") from None


def _batches(elements: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield batches of the size of the module's own pushes: each takes less than a millisecond
    of Redis' main thread."""
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
    """Return a primary, and the key of the list that its module pushes to. Raises ToolError."""
    for node in nodes:
        with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
            lists = Lists()
            lists.begin()
            lists.set_topology(topology(node.client))
            if lists.home is not None:
                return node, lists.home
    raise ToolError("no node that answers is a primary with slots")


def _fallback_size(client: Any) -> int:
    """Return the parameter fallback-size; 0 if the server does not tell it."""
    with contextlib.suppress(redis.ResponseError):
        return int(next(iter(client.config_get("keyspaceamqp.fallback-size").values()), 0))
    return 0


def _tell(text: str, end: str = "\n") -> None:
    """Print on standard error: standard output may be the file. A line that another will
    replace is for terminals only."""
    if end == "\n" or sys.stderr.isatty():
        print(text, end=end, file=sys.stderr, flush=True)
