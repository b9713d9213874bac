"""The events for which the server calls the module, and those of them that are captured.

capture.c runs against a small server in C, because a real one does not tell how often it calls a
module. Needs a C compiler and the tables of the build.
"""

from __future__ import annotations

import ctypes
import pathlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyspace_amqp.tables.events import EVENT_CLASSES

ROOT = pathlib.Path(__file__).resolve().parents[2]
GENERATED = ROOT / "build" / "generated"
BITS = {event_class.letter: event_class.bit for event_class in EVENT_CLASSES}
OLD = {c.letter for c in EVENT_CLASSES if not c.since}  # the classes of all servers
# What the servers say that they have: all bits below the first free one.
MASKS = {"7.0": 2**15 - 1, "8.2": 2**17 - 1, "8.4": 2**18 - 1, "8.10": 2**24 - 1}
IN_ALL = {c.letter for c in EVENT_CLASSES if c.in_all}
OWN = {"x", "e"}  # always needed, for the module's lists


class Server:
    """The server of capture_server.c."""

    def __init__(self, lib: ctypes.CDLL) -> None:
        self.lib = lib

    def start(
        self,
        bits: int,
        *,
        unsubscribes: bool = True,
        has_subkeys: bool = True,
        valkey: bool = False,
    ) -> None:
        self.lib.server_start(bits, unsubscribes, has_subkeys, valkey)

    def set_events(self, events: str, subkeys: int = 0) -> None:
        value = events.encode()
        self.lib.capture_classes(None, self.lib.parameters_classes(value, len(value)), subkeys)

    def tidy(self) -> None:
        self.lib.capture_tidy(None)

    def emit(self, bit: int) -> tuple[int, int]:
        """Emit an event; return how often the module was called, and how often it took it."""
        calls = self.lib.server_emit(bit)
        return calls, ctypes.c_int.in_dll(self.lib, "captured").value

    def set_filter(self, masks: str, databases: str = "ALL") -> None:
        self.lib.server_filter(masks.encode(), databases.encode())

    def emit_key(self, key: str, db: int = 0) -> int:
        """Emit an event of a key; return how often the module took it."""
        self.lib.server_emit_key(BITS["$"], key.encode(), db)
        return ctypes.c_int.in_dll(self.lib, "captured").value

    @property
    def counted(self) -> tuple[int, int]:
        """The events that were seen since the start, and those that passed the filter."""
        return self.lib.server_seen(), self.lib.server_matched()

    @property
    def subkeys(self) -> int:
        """The subkeys of the event that was emitted last."""
        return ctypes.c_int.in_dll(self.lib, "captured_subkeys").value

    @property
    def available(self) -> int:
        return int(self.lib.capture_available())

    @property
    def logged(self) -> int:
        return ctypes.c_int.in_dll(self.lib, "logged").value


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Server:
    library = tmp_path_factory.mktemp("capture") / "capture.so"
    sources = ["tests/shim/capture_server.c", "shim/capture.c", "shim/filter.c",
               "shim/parameters.c", "shim/redis_api.c", str(GENERATED / "tables.c")]  # fmt: skip
    command = ["gcc", "-std=gnu11", "-shared", "-fPIC", "-O1", "-I", "shim", "-I", str(GENERATED),
               "-o", str(library), *sources]  # fmt: skip
    subprocess.run(command, cwd=ROOT, check=True)
    return Server(ctypes.CDLL(str(library)))


events = st.text(st.sampled_from(["A", *BITS]), min_size=1, max_size=6)


@given(changes=st.lists(st.tuples(events, st.sampled_from([0, 9]), st.booleans()),
                        min_size=1, max_size=8),
       version=st.sampled_from(list(MASKS)))  # fmt: skip
def test_each_wanted_event_once(
    server: Server, changes: list[tuple[str, int, bool]], version: str
) -> None:
    """The classes that were wanted before make no difference, with subkeys or without."""
    unsubscribes = version != "7.0"
    server.start(MASKS[version], unsubscribes=unsubscribes, has_subkeys=version == "8.10")
    has = {letter for letter, bit in BITS.items() if MASKS[version] >> bit & 1}
    for value, subkeys, turn_ends in changes:
        server.set_events(value, subkeys)
        if turn_ends:
            server.tidy()
        wanted = {c for letter in value for c in (IN_ALL if letter == "A" else {letter})} & has
        for bit in range(31):
            letters = {letter for letter in wanted if BITS[letter] == bit}
            calls, captured = server.emit(bit)
            assert captured == len(letters)
            assert server.subkeys == (2 if captured and subkeys and version == "8.10" else 0)
            assert calls <= (1 if version != "8.10" else 2)
            if turn_ends and unsubscribes:
                assert calls == len({BITS[letter] for letter in wanted | OWN} & {bit})


def test_fewer_classes_end_at_the_end_of_the_turn(server: Server) -> None:
    """Until then the server may be iterating over its subscriptions."""
    server.start(MASKS["8.10"])
    server.set_events("A")
    before = server.lib.server_classes()
    server.set_events("$")
    assert server.lib.server_classes() == before
    assert server.emit(BITS["g"]) == (1, 0)
    assert server.emit(BITS["$"]) == (1, 1)
    server.tidy()
    assert server.emit(BITS["g"]) == (0, 0)
    assert server.emit(BITS["$"]) == (1, 1)
    assert server.lib.server_subscriptions() == 1


def test_an_older_server_keeps_its_subscriptions(server: Server) -> None:
    server.start(MASKS["7.0"], unsubscribes=False)
    server.set_events("A")
    server.set_events("$")
    server.tidy()
    assert server.emit(BITS["g"]) == (1, 0)
    server.lib.capture_end(None)  # the server ends them itself


def test_a_server_that_tells_no_subkeys(server: Server) -> None:
    """The log says so, once for each change from none."""
    server.start(MASKS["8.4"], has_subkeys=False)
    server.set_events("A", 9)
    server.set_events("h", 10)
    assert server.emit(BITS["h"]) == (1, 1)
    assert (server.subkeys, server.logged) == (0, 1)


@pytest.mark.parametrize("subkeys", [0, 9])
def test_masks_and_databases(server: Server, subkeys: int) -> None:
    """An event that does not pass is seen, and goes nowhere."""
    server.start(MASKS["8.10"])
    server.set_events("A", subkeys)
    server.set_filter("^user: !tmp", "0,2-3")
    found = [server.emit_key(key, db) for key, db in [("user:1", 0), ("user:1", 1), ("user:1", 3),
             ("order:1", 0), ("user:tmp", 2)]]  # fmt: skip
    assert found == [1, 0, 1, 0, 0]
    assert server.counted == (5, 2)
    server.set_filter("ALL")
    assert server.emit_key("order:1", 7) == 1
    server.set_filter("")
    assert server.emit_key("order:1") == 0
    assert server.counted == (7, 3)


def test_events_of_other_classes_are_not_filtered(server: Server) -> None:
    """Nor are they counted, whatever the masks."""
    server.start(MASKS["8.10"])
    server.set_events("g")
    server.set_filter("ALL")
    assert server.emit_key("user:1") == 0
    assert server.counted == (0, 0)


def test_an_unload_ends_all_subscriptions(server: Server) -> None:
    server.start(MASKS["8.10"])
    server.set_events("x")
    server.set_events("A", 9)
    server.set_events("A")
    server.lib.capture_end(None)
    assert server.lib.server_subscriptions() == 0


# ---- the classes that a server has ---------------------------------------------------------


@pytest.mark.parametrize(
    ("version", "letters"), [("7.0", ""), ("8.2", "oc"), ("8.4", "oc"), ("8.10", "oca")]
)
def test_the_classes_of_a_server(server: Server, version: str, letters: str) -> None:
    server.start(MASKS[version])
    assert server.available == sum(1 << BITS[letter] for letter in OLD | set(letters))
    assert server.logged == 0


@pytest.mark.parametrize("bit", [0, 1, 12, 17, 18, 19, 20, 21, 22])
def test_bits_without_events_of_the_data(server: Server, bit: int) -> None:
    """Bits that the server has for itself, or tells to modules only, are never captured."""
    server.start(MASKS["8.10"])
    server.set_events("Amnoc")
    assert server.emit(bit) == (0, 0)


def test_classes_that_nobody_knows_yet(server: Server) -> None:
    """The log names them, and their events are not captured."""
    server.start(2**26 - 1)
    assert server.logged == 1
    server.set_events("A")
    assert server.emit(24) == server.emit(25) == (0, 0)
    assert server.emit(BITS["a"]) == (1, 1)


def test_a_bit_that_valkey_gives_another_meaning(server: Server) -> None:
    """The classes that Redis has added are none of Valkey's."""
    server.start(2**17 - 1, valkey=True)
    assert server.available == sum(1 << BITS[letter] for letter in OLD)
    assert server.logged == 1
    server.start(2**15 - 1, valkey=True)
    assert server.available == sum(1 << BITS[letter] for letter in OLD)
    assert server.logged == 0
