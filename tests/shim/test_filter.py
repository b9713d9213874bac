"""The filter in C, against the masks in Python and against the reference of both.

Both are compiled from values as CONFIG GET shows them.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyspace_amqp import masks
from keyspace_amqp.config import format_masks, parse_databases, parse_masks
from keyspace_amqp.tables.parameters import MASK_BYTES, MASKS_BYTES
from tests.fix_servers import ROOT
from tests.fix_shim import Shim
from tests.pure.test_masks import (
    SLOW,
    TABLE,
    key_with_sign,
    naive,
    reference,
    signed,
    small_key,
    some_mask,
)

WORD = 64  # positions in a machine word


class Filter:
    """The C functions of a filter."""

    def __init__(self, shim: Shim, value: bytes, databases: str = "ALL") -> None:
        self._shim = shim
        made = shim.lib.filter_new(value, len(value), databases.encode())
        self.all_pass = made == shim.ffi.NULL
        self._filter = shim.ffi.gc(made, shim.lib.filter_free)

    def passes(self, key: bytes, db: int = 0) -> bool:
        """True if it lets the key through. The bytes around the key are such that looking at them
        would change the answer."""
        if self.all_pass:
            return True
        around = self._shim.ffi.from_buffer(b"ALL" + key + key + b"a" + key)
        place = self._shim.ffi.addressof(around, 3 + len(key))
        passes = self._shim.lib.filter_passes(self._filter, db, place, len(key))
        assert passes in (0, 1)
        return bool(passes)


MakeFilter = Callable[..., Filter]


@pytest.fixture(scope="module")
def make(shim: Shim) -> MakeFilter:
    def make(*several: bytes, databases: str = "ALL") -> Filter:
        value = format_masks(several)
        assert parse_masks(value) == several
        return Filter(shim, value, databases)

    return make


# ---- masks ------------------------------------------------------------------------------


def hits(mask: bytes, key: bytes) -> bool:
    return mask == b"ALL" or reference(mask, key)


# The value of `masks` has no empty mask, and none that is only the sign.
one_mask = some_mask.filter(bool)
one_signed = signed.filter(lambda mask: mask not in (b"", b"!"))


@settings(max_examples=400)
@given(one_mask, small_key)
@example(b"^*", b"*")
@example(b"$*b", b"$$b")
@example(b"a.*b.*b$", b"ab")
def test_one_mask_means_what_the_reference_says(make: MakeFilter, mask: bytes, key: bytes) -> None:
    assert make(mask).passes(key) is hits(mask, key) is masks.matches([mask], key)


@settings(max_examples=400)
@given(one_mask, st.data())
def test_a_key_made_of_the_mask(make: MakeFilter, mask: bytes, data: st.DataObject) -> None:
    """Keys that nearly match: the mask's own bytes, some repeated, some gone."""
    key = b"".join(bytes([byte]) * data.draw(st.sampled_from([1, 1, 1, 0, 2])) for byte in mask[:7])
    assert make(mask).passes(key) is hits(mask, key)


@settings(max_examples=400)
@given(st.lists(one_signed, max_size=6), st.lists(key_with_sign, min_size=1, max_size=6))
def test_several_masks(make: MakeFilter, several: list[bytes], keys: list[bytes]) -> None:
    """With masks that exclude. The keys come one after the other and again, so that ways between
    states are used which earlier keys have made."""
    made = make(*several)
    for key in keys + keys:
        assert made.passes(key) is naive(several, key) is masks.matches(several, key)


@settings(max_examples=300)
@given(st.binary(min_size=1, max_size=6).filter(lambda mask: mask != b"!"),
       st.lists(st.binary(max_size=6), max_size=4))  # fmt: skip
def test_any_bytes(make: MakeFilter, mask: bytes, keys: list[bytes]) -> None:
    for several in ([mask], [mask + b"z*"], [mask, b"!" + mask[:1] + b"$"]):
        if b"!" not in several and b"!!" not in several:
            made = make(*several)
            for key in [*keys, mask, mask[1:], b""]:
                assert made.passes(key) is naive(several, key)


def test_each_byte_is_itself(make: MakeFilter) -> None:
    """All 256, with a mask of their own each and in one filter."""
    every = [bytes([byte]) for byte in range(256)]
    for byte in every:
        made = make(b"^" + byte + b"x$")
        wrong = [b for b in every if made.passes(b + b"x") is not (byte in (b, b"."))]
        assert not wrong
    together = make(*(b"^x" + byte + b"y" for byte in every if byte not in b".*"))
    assert [b for b in every if not together.passes(b"x" + b + b"y")] == [b"*", b"."]
    assert not together.passes(b"xab")


@pytest.mark.parametrize(("mask", "match", "differ"), TABLE, ids=[repr(row[0]) for row in TABLE])
def test_examples(make: MakeFilter, mask: bytes, match: list[bytes], differ: list[bytes]) -> None:
    made = make(mask) if mask else make(b".*")
    assert [key for key in match if not made.passes(key)] == []
    assert [key for key in differ if made.passes(key)] == []


@pytest.mark.parametrize(
    ("several", "all_pass"),
    [
        ([b"ALL"], True),
        ([b"^a", b"ALL"], True),
        ([b"ALL", b"!a"], False),
        ([b"!ALL"], False),
        ([], False),
        ([b".*"], False),
    ],
    ids=repr,
)
def test_no_filter_is_made_if_all_events_pass(
    make: MakeFilter, several: list[bytes], all_pass: bool
) -> None:
    assert make(*several).all_pass is all_pass
    assert not make(*several, databases="0").all_pass


# ---- the value of the parameter ----------------------------------------------------------

written = st.lists(
    st.sampled_from([b"a", b"\\x61", b"\\x20", b"\\x2A", b"*", b"\\\\", b"\\x21", b"!", b"\\xfF",
                     b"\\x00", b"^", b"\\x5e", b"x", b"4", b"1"]), min_size=1, max_size=5,
).map(b"".join)  # fmt: skip


@settings(max_examples=500)
@given(st.lists(st.tuples(written, st.sampled_from([b" ", b"\t", b"\r\n", b"\v", b"\f  "]))),
       st.sampled_from([b"", b" "]), st.data())  # fmt: skip
def test_blanks_and_escapes(
    shim: Shim, words: list[tuple[bytes, bytes]], start: bytes, data: st.DataObject
) -> None:
    value = start + b"".join(mask + blank for mask, blank in words)
    several = parse_masks(value)
    if b"!" in several:
        return  # refused
    made = Filter(shim, value)
    keys = st.lists(st.sampled_from(b"a *\\!\xff\x00^x41"), max_size=4).map(bytes)
    for key in data.draw(st.lists(keys, max_size=4)):
        assert made.passes(key) is naive(several, key)


def test_a_nul_in_the_value_ends_no_mask(shim: Shim) -> None:
    """The server refuses such a value; here it is a byte."""
    made = Filter(shim, b"^a\0b$")
    assert (made.passes(b"a\0b"), made.passes(b"a"), made.passes(b"ab")) == (True, False, False)


number = st.integers(0, 12)


@given(st.lists(st.tuples(number, st.none() | number), min_size=1, max_size=5), st.integers(-1, 14))
def test_databases(make: MakeFilter, parts: list[tuple[int, int | None]], db: int) -> None:
    value = ",".join(f"{a}" if b is None else f"{a}-{b}" for a, b in parts)
    wants = parse_databases(value)
    assert wants is not None
    assert make(b"ALL", databases=value).passes(b"k", db) is wants(db)
    assert make(b"^k", databases=value).passes(b"k", db) is wants(db)
    assert make(b"^x", databases=value).passes(b"k", db) is False


def test_large_numbers_of_databases(make: MakeFilter) -> None:
    made = make(b"ALL", databases="999999999,7-2000000")
    dbs = (6, 7, 2_000_000, 2_000_001, 999_999_999)
    assert [made.passes(b"", db) for db in dbs] == [False, True, True, False, True]


# ---- sets of more than one word ------------------------------------------------------------


@settings(max_examples=500)
@given(st.integers(0, 2 * WORD + 2), st.lists(one_signed, min_size=1, max_size=4),
       st.lists(key_with_sign, min_size=1, max_size=4))  # fmt: skip
def test_masks_at_any_place_in_the_words(
    make: MakeFilter, before: int, several: list[bytes], keys: list[bytes]
) -> None:
    """A mask that never matches moves the others over the border of two words."""
    filler = [b"^" + b"z" * before, b"!^" + b"z" * before] if before else []
    made = make(*filler, *several)
    for key in keys:
        expected = naive([*filler, *several], key)
        assert made.passes(key) is expected


@pytest.mark.parametrize("count", [1, 30, 31, 32, 33, 62, 63, 64, 65, 66, 126, 127, 128, 129, 500])
@pytest.mark.parametrize("before", [0, 1, 31, 63])
def test_long_runs_of_stars(make: MakeFilter, count: int, before: int) -> None:
    """All of them may match nothing, so one byte leads through all words at once."""
    filler = [b"^" + b"z" * before] if before else []
    skipped = make(*filler, b"^x" + b"a*" * count + b"b$")
    for key in (b"xb", b"xab", b"x" + b"a" * count + b"b", b"x" + b"a" * 1000 + b"b"):
        assert skipped.passes(key)
    for key in (b"x", b"xa", b"b", b"xcb", b"xba", b"x" + b"a" * 1000):
        assert not skipped.passes(key)
    ordered = bytes(33 + n % 90 for n in range(count)).replace(b"$", b"~").replace(b"*", b"~")
    ordered = ordered.replace(b".", b"~").replace(b"!", b"~").replace(b"^", b"~")
    each = make(*filler, b"^" + b"".join(bytes([byte]) + b"*" for byte in ordered) + b"$")
    for key in (b"", ordered, ordered[::2], ordered[:1] * 3 + ordered[-1:] * 3):
        assert each.passes(key)
    assert not each.passes(ordered + b"=")


@pytest.mark.parametrize("length", [62, 63, 64, 65, 127, 128, 1000, MASK_BYTES - 2])
def test_long_masks(make: MakeFilter, length: int) -> None:
    text = bytes(random.Random(length).choice(b"ab") for _ in range(length))
    made = make(b"^" + text + b"$", b"^c" + b"." * (length - 1) + b"$")
    assert made.passes(text)
    assert made.passes(b"c" + text[1:])
    assert not made.passes(text[:-1])
    assert not made.passes(text + b"a")
    assert not made.passes(b"d" + text[1:])


def test_many_masks(make: MakeFilter) -> None:
    """As many as the parameter takes, with and without an anchor, that include and exclude."""
    wanted = [b"^user:%d:" % n for n in range(1500)] + [b":inbox:%d:x" % n for n in range(1500)]
    unwanted = [b"!:tmp%d$" % n for n in range(1000)]
    made = make(*wanted, *unwanted)
    assert len(format_masks([*wanted, *unwanted])) < MASKS_BYTES
    for n in range(0, 1600, 7):
        assert made.passes(b"user:%d:name" % n) is (n < 1500)
        assert made.passes(b"a:inbox:%d:xy" % n) is (n < 1500)
        assert made.passes(b"user:1:tmp%d" % n) is (n >= 1000)
        assert made.passes(b"user:1:tmp%d:" % n)


@pytest.mark.parametrize("mask", [b"a", b"a*", b"^.b", b"!x"])
def test_the_largest_value(shim: Shim, mask: bytes) -> None:
    """Of very short masks: these have the most positions."""
    value = (mask + b" ") * (MASKS_BYTES // (len(mask) + 1))
    made = Filter(shim, value)
    for key in (b"", b"a", b"b", b"xb", b"bbx"):
        assert made.passes(key) is naive([mask], key)


# ---- states --------------------------------------------------------------------------------


def many_states(make: MakeFilter) -> tuple[Filter, Callable[[bytes], bool]]:
    """A filter with a million states, and what it should say about keys of `a` and `b`."""
    made = make(b"a" + b"." * 20 + b"b$", b"!^b")
    return made, lambda key: len(key) > 21 and key[-22:][:1] + key[-1:] == b"ab" and key[0] != 98


def test_a_full_table_of_states(make: MakeFilter) -> None:
    """All states are forgotten, in the middle of a key, and what follows is right."""
    made, expected = many_states(make)
    generator = random.Random(7)
    for length in [3, 10, 15, 19, 30, 1000, 3000] * 150:
        key = bytes(generator.choices(b"ab", k=length))
        assert made.passes(key) is expected(key)


def test_the_memory_of_states_is_bounded() -> None:
    """In a process of its own: in this one the allocator may still have what earlier tests gave
    back."""
    run = subprocess.run(
        [sys.executable, "-m", "tests.shim.memory", "filter_states"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    before, after = json.loads(run.stdout)
    # 8 MiB for each of the two kinds of masks; twice that while a table grows.
    assert after - before < 24 * 1024 * 1024


def seconds(run: Callable[[], object]) -> float:
    """The least processor time of three runs."""
    spent = []
    for _ in range(3):
        before = time.thread_time()
        run()
        spent.append(time.thread_time() - before)
    return min(spent)


@pytest.mark.parametrize("name", SLOW)
def test_time_grows_no_faster_than_the_key(make: MakeFilter, name: str) -> None:
    """Doubles the key, from a few bytes on, and stops at the first jump."""
    made = make(*SLOW[name])
    before, length = 0.002, 16
    while length <= 1_000_000:
        key = b"a" * length
        now = seconds(lambda key=key: made.passes(key))  # type: ignore[misc]
        assert now < 4 * max(before, 0.002), (length, before, now)
        before = now
        length *= 2
    assert not made.passes(b"a" * 100_000)


def test_new_states_cost_no_more_than_their_words(make: MakeFilter) -> None:
    """Keys that lead to new states all the time, with masks as large as they may be."""
    text = b"a" + b"." * (MASK_BYTES - 12)
    several = [text + b"%d$" % n for n in range(60)]
    made = make(*several)
    generator = random.Random(7)
    keys = [bytes(generator.choices(b"ab", k=2000)) for _ in range(2)]
    assert not any(map(made.passes, keys))
    # A second is a thousand times what other servers of a busy machine leave of it.
    assert seconds(lambda: list(map(made.passes, keys))) < 1


def interleaved(filters: Iterable[Filter]) -> Iterator[Sequence[bool]]:
    for key in (b"a1", b"b1", b"a2", b"c"):
        yield [made.passes(key) for made in filters]


def test_filters_share_nothing(make: MakeFilter) -> None:
    found = list(interleaved([make(b"^a"), make(b"^b"), make(b"!^b")]))
    assert found == [[True, False, True], [False, True, False], [True, False, True],
                     [False, False, True]]  # fmt: skip
