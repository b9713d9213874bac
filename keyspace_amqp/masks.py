"""Key masks: Pike's matcher over bytes, in time linear in the key's length.

A mask means what the matcher in *The Practice of Programming* does with it:
`c` a literal byte, `.` any byte, `^` at the start and `$` at the end the key's
ends, `c*` any number of `c`. Consequences that people meet: a `*` with nothing
before it is a literal, so are a `^` that is not first and a `$` that is not
last, and a mask matches anywhere in the key unless anchored. Keys are bytes: NUL
and newline are bytes like others.

A `!` in front of a mask makes it exclude what it matches, wherever it stands among
the others; a second one is a byte. Masks that only exclude leave every other key in.

The original matcher goes back and tries again, which takes exponential time for
some masks. Here a mask becomes one of two things that never go back:

- Most masks have no star but `.*`. Between two `.*` lies text of a fixed length,
  and if the mask matches at all it matches with each text at its first place
  after the one before. An atomic group of a regular expression says just that.
- Masks with other stars run as an automaton on sets of positions, whose
  transitions are remembered.

Pure; any thread. The shim checks masks, so nothing is refused here.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence

ALL = b"ALL"
EXCLUDES = b"!"

_ANY = -1
# Remembered states of the automaton: enough for any mask that people write; a
# mask made to have more starts again with an empty memory.
_MAX_STATES = 1024


# Says of some bytes and two offsets whether the key between them matches: something
# true or false.
Matcher = Callable[[bytes, int, int], object]


def compile_masks(masks: Iterable[bytes]) -> Matcher:
    """A function that tells whether the masks let a key through: one of them matches it,
    and none excludes it. The key is given as a place in a larger piece of memory, so
    that nobody copies keys that do not match.

    `ALL` among them matches every key; no masks match none.
    """
    including, excluding = _parted(masks)
    if not excluding:
        return _compile(including)
    included, excluded = _compile(including or (ALL,)), _compile(excluding)
    return lambda data, start, end: included(data, start, end) and not excluded(data, start, end)


def _parted(masks: Iterable[bytes]) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """The masks that include, and those that exclude without their sign."""
    masks = tuple(masks)
    including = [mask for mask in masks if not mask.startswith(EXCLUDES)]
    return including, [mask[1:] for mask in masks if mask.startswith(EXCLUDES)]


def _compile(masks: Sequence[bytes]) -> Matcher:
    """Tells whether any of the masks matches, none of them being one that excludes."""
    if ALL in masks:
        return lambda data, start, end: True
    texts, patterns, others = [], [], []
    for mask in masks:
        parsed = _Mask(mask)
        if parsed.only_text():
            texts.append(parsed.pattern())
        elif parsed.only_gaps():
            patterns.append(parsed.pattern())
        else:
            others.append(parsed)
    # A regular expression's own start and end are those of the key.
    matchers: list[Matcher] = []
    if patterns:
        matchers.append(re.compile(b"|".join(patterns), re.DOTALL).match)
    if texts:  # looked for all at once
        matchers.append(re.compile(b"|".join(texts), re.DOTALL).search)
    if others:
        matchers.append(_Automaton(others).matches)
    if not matchers:
        return lambda data, start, end: False
    return functools.reduce(_either, matchers)


def _either(one: Matcher, other: Matcher) -> Matcher:
    return lambda data, start, end: one(data, start, end) or other(data, start, end)


def matches(masks: Iterable[bytes], key: bytes) -> bool:
    """Whether the masks let a key through."""
    return bool(compile_masks(masks)(key, 0, len(key)))


def explain(masks: Iterable[bytes], key: bytes) -> tuple[bool, bytes]:
    """Whether the masks let a key through; and why, for people."""
    including, excluding = _parted(masks)
    if (mask := _first(excluding, key)) is not None:
        return False, b"mask %b%b excludes it" % (EXCLUDES, mask)
    if (mask := _first(including, key)) is not None:
        return True, b"mask %b matches it" % mask
    if excluding and not including:
        return True, b"no mask excludes it"
    return False, b"no mask matches it" if including else b"there are no masks"


def _first(masks: Sequence[bytes], key: bytes) -> bytes | None:
    """The first mask that matches."""
    return next((mask for mask in masks if _compile([mask])(key, 0, len(key))), None)


class _Mask:
    """A mask taken apart: items of (byte or _ANY, starred), and the anchors."""

    def __init__(self, mask: bytes) -> None:
        self.at_start = mask.startswith(b"^")
        rest = mask[1:] if self.at_start else mask
        self.at_end = False
        self.items: list[tuple[int, bool]] = []
        at = 0
        while at < len(rest):
            byte = rest[at]
            starred = rest[at + 1 : at + 2] == b"*"
            if byte == ord("$") and at + 1 == len(rest):
                self.at_end = True
            else:
                self.items.append((_ANY if byte == ord(".") else byte, starred))
            at += 2 if starred else 1

    def only_text(self) -> bool:
        """Whether it matches wherever a text of fixed length is."""
        return not (self.at_start or self.at_end or any(starred for _, starred in self.items))

    def only_gaps(self) -> bool:
        return all(not starred or byte == _ANY for byte, starred in self.items)

    def pattern(self) -> bytes:
        r"""A regular expression for `match`, or for `search` if it is only a text; without
        back-tracking into a text.

        `^ab.*cd` is `ab(?>.*?cd)`; a text that must stand at the end is looked
        for there alone: `.*cd\Z`.
        """
        texts: list[bytes] = [b""]
        for byte, starred in self.items:
            if starred:
                texts.append(b"")
            else:
                texts[-1] += b"." if byte == _ANY else re.escape(bytes([byte]))
        if self.only_text():
            return texts[0]
        if not self.at_start:
            texts.insert(0, b"")  # a gap before the first text
        first, *rest = texts
        if not rest:
            return first + (rb"\Z" if self.at_end else b"")
        last = rest.pop() if self.at_end else None
        middle = b"".join(b"(?>.*?%b)" % text for text in rest if text)
        return first + middle + (b"" if last is None else rb".*%b\Z" % last)


class _State:
    """A set of positions, what it means, and where each byte leads."""

    __slots__ = ("accepts_at_end", "decided", "next", "positions")

    def __init__(self, positions: int, decided: bool | None, accepts_at_end: bool) -> None:
        self.positions = positions
        self.decided = decided
        self.accepts_at_end = accepts_at_end
        self.next: list[_State | None] = [None] * 256


class _Automaton:
    """Several masks at once: the positions of all lie side by side in one int.

    A position is a bit: how many items of its mask are behind it. The last
    position of a mask has no item and means that the mask has matched.
    """

    def __init__(self, masks: Iterable[_Mask]) -> None:
        self._bytes = [0] * 256  # positions whose item takes this byte
        any_byte = 0
        self._starred = 0
        self._restart = 0  # first positions of masks that match anywhere
        self._accept = 0
        self._accept_at_end = 0
        start = 0
        bit = 1
        for mask in masks:
            start |= bit
            if not mask.at_start:
                self._restart |= bit
            for byte, starred in mask.items:
                if byte == _ANY:
                    any_byte |= bit
                else:
                    self._bytes[byte] |= bit
                if starred:
                    self._starred |= bit
                bit <<= 1
            if mask.at_end:
                self._accept_at_end |= bit
            else:
                self._accept |= bit
            bit <<= 1
        self._bytes = [positions | any_byte for positions in self._bytes]
        self._states: dict[int, _State] = {}
        self._start = self._state(start)

    def _state(self, positions: int) -> _State:
        """The state of these positions, and of those behind skipped stars."""
        while True:
            wider = positions | (positions & self._starred) << 1
            if wider == positions:
                break
            positions = wider
        state = self._states.get(positions)
        if state is None:
            if len(self._states) >= _MAX_STATES:
                for old in self._states.values():
                    old.next = [None] * 256  # else they keep each other alive
                self._states.clear()
            decided = None
            if positions & self._accept:
                decided = True
            elif positions == 0:
                decided = False
            state = _State(positions, decided, bool(positions & self._accept_at_end))
            self._states[positions] = state
        return state

    def _step(self, state: _State, byte: int) -> _State:
        taken = state.positions & self._bytes[byte]
        stay = taken & self._starred
        following = self._state(stay | (taken & ~self._starred) << 1 | self._restart)
        state.next[byte] = following
        return following

    def matches(self, data: bytes, start: int, end: int) -> bool:
        state = self._start
        if state.decided is not None:
            return state.decided
        for byte in data[start:end]:
            state = state.next[byte] or self._step(state, byte)
            if state.decided is not None:
                return state.decided
        return state.accepts_at_end
