"""Key masks against an independent, slow and obvious reading of their rules."""

from __future__ import annotations

import gc
import itertools
import random
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from keyspace_amqp import masks
from keyspace_amqp.masks import compile_masks

# ---- the reference: Pike's three functions, told over bytes with a length ----


def reference(mask: bytes, key: bytes) -> bool:
    """A first `^` ties the rest to the start; otherwise a match may begin at every place in the
    key, also at its end."""
    if mask[:1] == b"^":
        return _here(mask, 1, key, 0)
    return any(_here(mask, 0, key, at) for at in range(len(key) + 1))


def _here(mask: bytes, i: int, key: bytes, at: int) -> bool:
    """True if the mask from `i` on matches at this very place. The cases come in the matcher's
    order: end of the mask, a star behind, a last `$`, one byte."""
    if i == len(mask):
        return True
    if mask[i + 1 : i + 2] == b"*":
        return _star(mask[i], mask, i + 2, key, at)
    if mask[i:] == b"$":
        return at == len(key)
    if at < len(key) and mask[i] in (ord("."), key[at]):
        return _here(mask, i + 1, key, at + 1)
    return False


def _star(byte: int, mask: bytes, i: int, key: bytes, at: int) -> bool:
    """The rest without this byte, or one more such byte and then the rest again."""
    while not _here(mask, i, key, at):
        if at == len(key) or byte not in (ord("."), key[at]):
            return False
        at += 1
    return True


# Few bytes, so that masks and keys often match; among them all that are special somewhere.
ALPHABET = b"ab.^$*\x00\n"
small = st.lists(st.sampled_from(ALPHABET), max_size=8).map(bytes)
# Masks with no star but `.*`, as most masks of people.
gap = st.sampled_from([b"a", b"b", b".", b".*", b"^", b"$", b"\n", b"\x00", b"["])
small_gaps = st.lists(gap, max_size=7).map(b"".join)
some_mask = st.one_of(small, small_gaps)
small_key = st.one_of(small, st.lists(st.sampled_from(b"ab\n"), max_size=12).map(bytes))


@settings(max_examples=1000)
@given(some_mask, small_key)
@example(b"^*", b"*")
@example(b"$*b", b"$$b")
@example(b"a.*b.*b$", b"ab")
def test_one_mask_means_what_the_reference_says(mask: bytes, key: bytes) -> None:
    assert compile_masks([mask])(key) is reference(mask, key)


@settings(max_examples=1000)
@given(some_mask, st.data())
def test_a_key_made_of_the_mask(mask: bytes, data: st.DataObject) -> None:
    """Keys that nearly match: the mask's own bytes, some repeated, some gone."""
    key = b"".join(bytes([byte]) * data.draw(st.sampled_from([1, 1, 1, 0, 2])) for byte in mask[:7])
    assert compile_masks([mask])(key) is reference(mask, key)


@settings(max_examples=1000)
@given(st.lists(some_mask, max_size=5), st.lists(small_key, min_size=1, max_size=4))
def test_several_masks_match_what_any_of_them_matches(
    several: list[bytes], keys: list[bytes]
) -> None:
    matches = compile_masks(several)
    for key in keys:
        expected = b"ALL" in several or any(reference(mask, key) for mask in several)
        assert matches(key) is expected


@given(
    st.binary(max_size=6).filter(lambda mask: mask != b"ALL" and mask[:1] != b"!"),
    st.binary(max_size=6),
)
def test_any_bytes(mask: bytes, key: bytes) -> None:
    assert compile_masks([mask])(key) is reference(mask, key)
    assert compile_masks([mask + b"z*"])(key) is reference(mask + b"z*", key)


def test_every_short_mask_and_key() -> None:
    """All masks of up to four bytes of the constructs, on all keys of up to three."""
    keys = [bytes(key) for n in range(4) for key in itertools.product(b"a*$.^", repeat=n)]
    for length in range(5):
        for letters in itertools.product(b"a.^$*", repeat=length):
            mask = bytes(letters)
            matches = compile_masks([mask])
            wrong = [key for key in keys if matches(key) is not reference(mask, key)]
            assert not wrong, (mask, wrong)


# Written by hand from the documented meaning, not from the code or the reference.
TABLE = [
    # the constructs of the table
    (b"c", [b"c", b"abc", b"cab"], [b"", b"ab"]),
    (b"a.c", [b"abc", b"a\nc", b"a\x00c", b"a\xffc", b"xa.cx"], [b"ac", b"abbc"]),
    (b"^ab", [b"ab", b"abc"], [b"cab", b"", b"^ab"]),
    (b"ab$", [b"ab", b"cab"], [b"abc", b"ab\n", b"ab$"]),
    (b"ab*c", [b"ac", b"abc", b"xabbbcx"], [b"a", b"adc"]),
    (b"^prefix.*$", [b"prefix", b"prefix:1", b"prefix\n\x00"], [b"xprefix", b"prefi"]),
    (b"^user:.*:cart$", [b"user::cart", b"user:1:cart"], [b"user:cart", b"user:1:cart2"]),
    (b"^a.*b.*c$", [b"abc", b"axxbxxc", b"abcbc"], [b"acb", b"abcd", b"ab"]),
    # a star with nothing before it is a byte like others
    (b"*", [b"*", b"a*b"], [b"", b"a"]),
    (b"^*", [b"*", b"*a"], [b"", b"a*"]),
    (b"^*a", [b"*a"], [b"a", b"**a"]),
    # … and can itself be repeated
    (b"**", [b"", b"*", b"***", b"a"], []),
    (b"^**a", [b"a", b"*a", b"***a"], [b"", b"ba"]),
    (b"^a**$", [b"*", b"aa*"], [b"", b"a", b"a**"]),
    # the star is looked at before the dollar, and before the caret inside
    (b"^$*$", [b"", b"$", b"$$$"], [b"a", b"$a"]),
    (b"^^*a", [b"a", b"^a", b"^^a"], [b"ba"]),
    # anchors elsewhere are bytes
    (b"^^", [b"^", b"^a"], [b"", b"a^"]),
    (b"a^b", [b"a^b"], [b"ab"]),
    (b"a$b", [b"a$b", b"xa$bx"], [b"ab", b"a$"]),
    (b"$$", [b"$", b"a$"], [b"", b"$a"]),
    (b"$a", [b"$a"], [b"a", b""]),
    # empty or nearly empty
    (b"", [b"", b"a", b"\n"], []),
    (b"^", [b"", b"a"], []),
    (b"$", [b"", b"a"], []),
    (b"^$", [b""], [b"a", b"\n", b"\x00"]),
    (b".", [b"a", b"\n", b"\x00"], [b""]),
    (b".*", [b"", b"a"], []),
    # special in a regular expression, and not here
    (b"a+b", [b"a+b"], [b"aab"]),
    (b"[ab]", [b"[ab]"], [b"a"]),
    (b"(a|b)", [b"(a|b)"], [b"a"]),
    (b"a|b", [b"a|b"], [b"a", b"b"]),
    (b"a\\d", [b"a\\d"], [b"a1"]),
    (b"a{2}", [b"a{2}"], [b"aa"]),
    (b"(?i)a", [b"(?i)a"], [b"A", b"a"]),
    (b"a?", [b"a?"], [b"a"]),
    (b"a b#c", [b"a b#c"], [b"abc"]),
    # bytes are bytes
    (b"^\x00a$", [b"\x00a"], [b"a", b"\x00", b"\x00a\x00"]),
    (b"\n$", [b"\n", b"a\n"], [b"\na", b"a"]),
    (b"^\xff\xfe.*$", [b"\xff\xfe", b"\xff\xfe\x80"], [b"\xc3\xbf\xc3\xbe"]),
    ("^\u00e9.$".encode(), ["\u00e9a".encode()], ["\u00e9\u00e9".encode()]),
    (b"^\xff*$", [b"", b"\xff\xff"], [b"\xfe"]),
    # ALL is the word, not a mask that contains it
    (b"ALL", [b"", b"anything", b"ALL"], []),
    (b"all", [b"small"], [b"", b"ALL"]),
    (b"ALLx", [b"ALLx"], [b"", b"ALL"]),
]


@pytest.mark.parametrize(("mask", "match", "differ"), TABLE, ids=[repr(row[0]) for row in TABLE])
def test_examples(mask: bytes, match: list[bytes], differ: list[bytes]) -> None:
    matches = compile_masks([mask])
    assert [key for key in match if not matches(key)] == []
    assert [key for key in differ if matches(key)] == []


@pytest.mark.parametrize("other", [b"^never$", b"n*ever$", b""])
def test_all_wins_wherever_it_stands(other: bytes) -> None:
    for several in ([b"ALL", other], [other, b"ALL"], [other, b"ALL", other]):
        assert compile_masks(several)(b"\xff") is True


def test_no_masks_match_nothing() -> None:
    matches = compile_masks([])
    assert matches(b"") is False
    assert matches(b"ALL") is False


# ---- masks that exclude --------------------------------------------------------


def naive(several: Iterable[bytes], key: bytes) -> bool:
    """The rule in its simplest reading: one mask after the other, each by itself."""
    several = list(several)

    def hits(mask: bytes) -> bool:
        return mask == b"ALL" or reference(mask, key)

    wanted = [mask for mask in several if mask[:1] != b"!"]
    unwanted = [mask[1:] for mask in several if mask[:1] == b"!"]
    if any(hits(mask) for mask in unwanted):
        return False
    return any(hits(mask) for mask in wanted) or (not wanted and bool(unwanted))


signed = st.tuples(
    st.sampled_from([b"", b"!", b"!!"]), st.one_of(some_mask, st.just(b"ALL"), st.just(b"^!"))
).map(b"".join)
key_with_sign = st.one_of(small_key, st.lists(st.sampled_from(b"ab!"), max_size=4).map(bytes))


@settings(max_examples=1000)
@given(
    st.lists(signed.filter(lambda mask: mask != b"!"), max_size=5),
    st.lists(key_with_sign, min_size=1, max_size=4),
    st.randoms(use_true_random=False),
)
def test_masks_that_exclude(several: list[bytes], keys: list[bytes], order: random.Random) -> None:
    """Compared with the simplest reading, with the masks in any order."""
    shuffled = order.sample(several, len(several))
    for key in keys:
        expected = naive(several, key)
        assert compile_masks(several)(key) is expected
        assert compile_masks(shuffled)(key) is expected


@settings(max_examples=500)
@given(st.lists(signed.filter(lambda mask: mask != b"!"), max_size=9), key_with_sign)
def test_the_reason_names_a_mask_that_decides(several: list[bytes], key: bytes) -> None:
    forwarded, why = masks.explain(several, key)
    assert forwarded is naive(several, key)
    assert masks.matches(several, key) is forwarded
    excluding = [mask for mask in several if mask[:1] == b"!" and not naive([mask], key)]
    including = [mask for mask in several if mask[:1] != b"!" and naive([mask], key)]
    if excluding:
        assert why == b"mask %b excludes it" % excluding[0]
    elif including:
        assert why == b"mask %b matches it" % including[0]
    elif not several:
        assert why == b"there are no masks"
    else:
        assert why == (b"no mask excludes it" if forwarded else b"no mask matches it")


@pytest.mark.parametrize(
    ("several", "match", "differ"),
    [
        ([b"!^tmp:"], [b"a", b"", b"a:tmp:"], [b"tmp:", b"tmp:1"]),
        ([b"^a", b"!z$"], [b"a", b"ab"], [b"az", b"b", b"z"]),
        ([b"ALL", b"!^tmp:"], [b"a"], [b"tmp:"]),
        ([b"!a", b"a"], [], [b"a", b"ba", b"b"]),
        # ALL is the word also behind the sign
        ([b"!ALL"], [], [b"", b"a", b"ALL"]),
        ([b"ALL", b"!ALL"], [], [b"", b"a"]),
        ([b"!.*ALL"], [b"", b"AL"], [b"ALL", b"xALLx"]),
        # the second sign is a byte, and so is one that is not first
        ([b"!!x"], [b"x", b"!", b"!ax"], [b"!x", b"a!x"]),
        ([b"^!"], [b"!", b"!x"], [b"x!", b""]),
        ([b".*!x"], [b"!x", b"a!xb"], [b"x", b"!"]),
        ([b"a!"], [b"a!", b"ba!c"], [b"a", b"!"]),
        ([b"!^!"], [b"a!", b""], [b"!", b"!a"]),
    ],
    ids=repr,
)
def test_examples_that_exclude(
    several: list[bytes], match: list[bytes], differ: list[bytes]
) -> None:
    matches = compile_masks(several)
    assert [key for key in match if not matches(key)] == []
    assert [key for key in differ if matches(key)] == []


def test_masks_may_come_from_an_iterator() -> None:
    assert compile_masks(iter([b"^a$", b"b*c"]))(b"xbc") is True


# ---- cost --------------------------------------------------------------------

MANY = [b"^%da*%da*a*b$" % (n % 10, n % 7) for n in range(19)] + [b"^a*a*a*b$"]
# None of them matches a key of 'a's only. A matcher that backtracks needs quadratic to exponential
# time to find that out.
SLOW: dict[str, list[bytes]] = {
    "two gaps": [b"^a.*a.*b$"],
    "five gaps": [b"a.*a.*a.*a.*a.*b"],
    "gaps and dots": [b".*.a.*.a.*...b.$"],
    "long text": [b"a" * 30 + b"b$"],
    "stars": [b"^a*a*b$"],
    "many stars": [b"^a*a*a*a*a*a*b$"],
    "stars and gaps": [b"a*.*a*.*a*.*b$"],
    "starred dots": [b"^.*a*.*a*.*b"],
    "twenty masks": MANY,
    "twenty masks with gaps": [b"a.*%d.*a.*b" % n for n in range(20)],
    "both kinds": [b"a.*a.*b", b"a*a*b$"],
}


def cpu_seconds(run: Callable[[], object], times: int = 5) -> float:
    """The median of the processor time that this thread spent in it."""
    spent = []
    for _ in range(times):
        before = time.thread_time()
        run()
        spent.append(time.thread_time() - before)
    return sorted(spent)[times // 2]


@pytest.mark.parametrize("name", SLOW)
def test_time_grows_no_faster_than_the_key(name: str) -> None:
    """Doubles the key, from a few bytes on, and stops at the first jump: a matcher that is not
    linear fails here at once instead of hanging."""
    matches = compile_masks(SLOW[name])
    floor = 0.001  # below it the clock and the first call count more than the key
    before = floor
    length = 16
    while length <= 20_000:
        key = b"a" * length
        now = cpu_seconds(lambda key=key: matches(key), 1)  # type: ignore[misc]
        assert now < 4 * max(before, floor), (length, before, now)
        before = now
        length *= 2
    short, long = b"a" * 10_000, b"a" * 20_000
    assert matches(short) is matches(long) is False
    once, twice = cpu_seconds(lambda: matches(short)), cpu_seconds(lambda: matches(long))
    assert twice < 4 * max(once, floor / 10)
    assert twice < 5  # against a hang only


def lines_run(run: Callable[[], object], most: int) -> int:
    """The number of lines of masks.py that ran, which does not depend on the load of the machine.
    Stops a match that needs more than `most`, instead of waiting for it."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        nonlocal count
        if frame.f_code.co_filename != masks.__file__:
            return None
        count += event == "line"
        assert count <= most
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        run()
    finally:
        sys.settrace(before)
    return count


@pytest.mark.parametrize("name", SLOW)
def test_work_grows_with_the_key_only(name: str) -> None:
    def work(length: int) -> int:
        matches = compile_masks(SLOW[name])
        return lines_run(lambda: matches(b"a" * length), 1000 * length)

    first, second, third = work(64), work(128), work(192)
    assert first > 0
    # The first bytes may cost more: at these the states are made.
    assert third - second <= second - first + 8


def test_work_on_keys_that_differ() -> None:
    """Random keys lead to new states all the time; a byte must still cost a bounded number of
    lines."""
    matches = compile_masks([b"b*a............c$"])
    key = bytes(random.Random(7).choice(b"ab") for _ in range(4000))
    assert lines_run(lambda: matches(key), 40 * len(key)) > len(key)


def test_memory_does_not_grow_with_what_was_seen() -> None:
    """The automaton of this mask has millions of states, of which only a few may be kept."""
    matches = compile_masks([b"b*a........................c$"])
    generator = random.Random(7)
    tracemalloc.start()
    try:
        for _ in range(6):
            matches(bytes(generator.choice(b"ab") for _ in range(2000)))
        gc.collect()
        grown, _peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # 1024 states of about 2.3 KB.
    assert grown < 8 * 1024 * 1024
