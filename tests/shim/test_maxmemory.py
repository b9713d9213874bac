"""How often the shim asks the server about its memory, and what it allows.

maxmemory.c runs against a small server in C: a real one is never at exactly these numbers, and its
memory does not stand still. tests/system/test_maxmemory.py has the real ones. Needs a C compiler
and the tables of the build.
"""

from __future__ import annotations

import ctypes
import pathlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

ROOT = pathlib.Path(__file__).resolve().parents[2]
GENERATED = ROOT / "build" / "generated"
KIB, MIB = 1024, 1024 * 1024
KEY, OTHER = b"keyspaceamqp:{0}:fallback", b"keyspaceamqp:{0}:refused"
SHARE = 2 * MIB  # of the list: 2% of maxmemory
ROOM = 1000 * KIB  # that the list has left in most tests


class Server:
    """The server of maxmemory_server.c, near its maxmemory."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        self._lib = lib

    def start(self, **says: float | bytes) -> None:
        """Begin anew. `says`: what differs from a cache that is full of keys."""
        self.says(ratio=0.95, maxmemory=100 * MIB, keys=10_000_000, expires=0,
                  policy=b"allkeys-lru", list_bytes=SHARE - ROOM)  # fmt: skip
        self.says(**says)
        self._lib.server_start(2)

    def says(self, **numbers: float | bytes) -> None:
        for name, value in numbers.items():
            if isinstance(value, bytes):
                ctypes.memmove(ctypes.addressof(ctypes.c_char.in_dll(self._lib, name)),
                               value + b"\0", len(value) + 1)  # fmt: skip
            elif name == "ratio":
                ctypes.c_double.in_dll(self._lib, name).value = value
            else:
                ctypes.c_longlong.in_dll(self._lib, name).value = int(value)

    def turn(self, ms: int = 0) -> None:
        """Begin another turn, so much later."""
        self._lib.server_turn(ms)

    def push(self, size: int, times: int = 1, key: bytes = KEY) -> int:
        """Ask for so many bytes, so many times; return how often they were allowed."""
        return int(self._lib.server_push(key, ctypes.c_longlong(size), times))

    @property
    def asked(self) -> tuple[int, int]:
        """How often it was asked about itself, and about a list."""
        names = ("asked_info", "asked_list")
        info, lists = (ctypes.c_int.in_dll(self._lib, name).value for name in names)
        return info, lists


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    library = tmp_path_factory.mktemp("maxmemory") / "maxmemory.so"
    sources = ["tests/shim/maxmemory_server.c", "shim/maxmemory.c", "shim/buffer.c",
               "shim/redis_api.c"]  # fmt: skip
    command = ["gcc", "-std=gnu11", "-shared", "-fPIC", "-O1", "-I", "shim", "-I", str(GENERATED),
               "-o", str(library), *sources]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    return Server(ctypes.CDLL(str(library)))


# ---- what it costs -------------------------------------------------------------------------


@pytest.mark.parametrize("ratio", [0, 0.5, 0.899])
def test_below_the_limit_nothing_is_asked(server: Server, ratio: float) -> None:
    server.start(ratio=ratio, list_bytes=10 * SHARE)
    assert server.push(64 * MIB, 1000) == 1000
    assert server.asked == (0, 0)


@pytest.mark.parametrize("size", [100, 10 * ROOM])
def test_the_server_is_asked_once_in_a_turn(server: Server, size: int) -> None:
    """However often something is pushed, and refused."""
    server.start()
    assert server.push(size, 1000) == (1000 if size == 100 else 0)
    assert server.asked == (1, 1)


def test_many_turns_share_an_answer(server: Server) -> None:
    server.start()
    for _ in range(99):
        assert server.push(100, 10) == 10
        server.turn(1)
    assert server.asked == (1, 1)
    server.turn(1)
    server.push(100)
    assert server.asked == (2, 2)
    server.turn(-5000)  # the clock was set back
    server.push(100)
    assert server.asked == (3, 3)


def test_what_is_used_up_is_asked_again_in_the_next_turn(server: Server) -> None:
    """What was asked may be old: the list was delivered meanwhile, for example."""
    server.start()
    assert server.push(KIB, 1500) == 1000
    server.turn()
    server.says(list_bytes=SHARE - 10 * KIB)
    assert server.push(KIB, 1500) == 10
    assert server.asked == (2, 2)


def test_each_list_has_its_share(server: Server) -> None:
    server.start()
    assert server.push(KIB, 1500) == 1000
    assert server.push(KIB, 1500, OTHER) == 1000
    assert server.asked == (1, 2)


# ---- what it allows ------------------------------------------------------------------------


@given(
    sizes=st.lists(st.integers(1, 300 * KIB), min_size=1, max_size=50),
    turns=st.sampled_from([0, 1, 40, 200]),
    keys=st.integers(0, 100_000),
)
def test_never_more_than_the_share_nor_than_evictions_free(
    server: Server, sizes: list[int], turns: int, keys: int
) -> None:
    """At each moment, of what is there then: the list grows by what is allowed."""
    server.start(keys=keys)
    taken = SHARE - ROOM
    for size in sizes:
        if server.push(size):
            taken += size
            assert taken <= SHARE
            assert size <= keys * 50 / 2
            server.says(list_bytes=taken)
        if turns:
            server.turn(turns)


@given(st.lists(st.integers(1, 300 * KIB), min_size=1, max_size=50), st.integers(0, 100_000))
def test_all_of_a_turn_counts_together(server: Server, sizes: list[int], keys: int) -> None:
    """The server evicts nothing meanwhile. What fits is allowed."""
    server.start(keys=keys)
    room = min(ROOM, keys * 50 / 2)
    for size in sizes:
        assert server.push(size) == (size <= room)
        room -= size if size <= room else 0


def test_memory_gets_near_the_limit_during_a_command(server: Server) -> None:
    """A script of 100,000 writes: no turn begins meanwhile."""
    server.start(ratio=0.5)
    assert server.push(80, 50_000) == 50_000
    server.says(ratio=0.91)
    assert server.push(80, 50_000) == ROOM // 80
    assert server.asked == (1, 1)
    server.says(ratio=0.89)
    assert server.push(80, 100) == 100


@pytest.mark.parametrize(
    ("policy", "keys", "expires", "allowed"),
    [
        (b"noeviction", 1000, 1000, 0),
        (b"allkeys-lru", 1000, 0, 25),  # each frees 50 bytes, and half of that is spare
        (b"allkeys-random", 1000, 1000, 25),
        (b"volatile-ttl", 1000, 500, 12),
        (b"volatile-lru", 1000, 0, 0),
    ],
)
def test_policies(server: Server, policy: bytes, keys: int, expires: int, allowed: int) -> None:
    server.start(policy=policy, keys=keys, expires=expires)
    assert server.push(1000, 100) == allowed


def test_a_list_that_is_missing_and_one_that_cannot_be_measured(server: Server) -> None:
    server.start(list_bytes=-1)
    assert server.push(KIB, 5000) == SHARE // KIB
    server.start(list_bytes=-2)
    assert server.push(KIB, 5000) == 0
