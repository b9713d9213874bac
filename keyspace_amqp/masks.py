"""Key masks: Pike's matcher over bytes, in time linear in the key's length.

A mask means the same as for the matcher in *The Practice of Programming*: `c` is a
literal byte, `.` any byte, `c*` any number of `c`, `^` at the start of a mask the key's
start, and `$` at the end of a mask the key's end. It follows that a `*` with nothing
before it is a literal, and so are a `^` that is not first and a `$` that is not last. A
mask without `^` and `$` matches anywhere in the key. Keys are bytes: NUL and newline are
bytes like others.

A `!` in front of a mask makes it exclude the keys that it matches, wherever the mask
stands among the others; a second `!` is a literal byte. If all masks exclude, every other
key is let through.

The original matcher backtracks, which takes exponential time for some masks. Here all masks run
as an automaton on sets of positions, whose transitions are cached.

This is the meaning of masks, for people who read it, for KEYMASK TEST and for old files of
leftovers. In Redis' event callback, shim/filter.c applies them; the tests hold both against each
other.

Pure; any thread. The shim has checked the masks, so nothing is refused here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

ALL = b"ALL"
EXCLUDES = b"!"

_ANY = -1
# States that an automaton caches: enough for all masks that people write. With a mask that
# is made to need more, the automaton empties its cache and continues.
_MAX_STATES = 1024


# Takes a key, and returns True if it matches.
Matcher = Callable[[bytes], bool]


def compile_masks(masks: Iterable[bytes]) -> Matcher:
    """Return a function that is True if the masks let a key through.

    They do if one of them matches the key and none excludes it. `ALL` matches every key;
    no masks match no key.
    """
    including, excluding = _split(masks)
    if not excluding:
        return _compile(including)
    included, excluded = _compile(including or (ALL,)), _compile(excluding)
    return lambda key: included(key) and not excluded(key)


def _split(masks: Iterable[bytes]) -> tuple[Sequence[bytes], Sequence[bytes]]:
    """Return the masks that include, and those that exclude, without their `!`."""
    masks = tuple(masks)
    including = [mask for mask in masks if not mask.startswith(EXCLUDES)]
    return including, [mask[1:] for mask in masks if mask.startswith(EXCLUDES)]


def _compile(masks: Sequence[bytes]) -> Matcher:
    """Return a function that is True if one of the masks, all without `!`, matches."""
    if ALL in masks:
        return lambda key: True
    return _Automaton(map(_Mask, masks)).matches


def matches(masks: Iterable[bytes], key: bytes) -> bool:
    """True if the masks let a key through."""
    return compile_masks(masks)(key)


def explain(masks: Iterable[bytes], key: bytes) -> tuple[bool, bytes]:
    """Return True if the masks let a key through, and the reason for people."""
    including, excluding = _split(masks)
    if (mask := _first(excluding, key)) is not None:
        return False, b"mask %b%b excludes it" % (EXCLUDES, mask)
    if (mask := _first(including, key)) is not None:
        return True, b"mask %b matches it" % mask
    if excluding and not including:
        return True, b"no mask excludes it"
    return False, b"no mask matches it" if including else b"there are no masks"


def _first(masks: Sequence[bytes], key: bytes) -> bytes | None:
    """Return the first mask that matches."""
    return next((mask for mask in masks if _compile([mask])(key)), None)


class _Mask:
    """A parsed mask: items of (byte or _ANY, starred), and the anchors."""

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


class _State:
    """A set of positions, the decision (None: none yet), and the next state per byte."""

    __slots__ = ("accepts_at_end", "decided", "next", "positions")

    def __init__(self, positions: int, decided: bool | None, accepts_at_end: bool) -> None:
        self.positions = positions
        self.decided = decided
        self.accepts_at_end = accepts_at_end
        self.next: list[_State | None] = [None] * 256


class _Automaton:
    """Runs several masks at once: the positions of all lie side by side in one int.

    A position is a bit. It stands for a mask and the number of its items that have
    matched; the last position of a mask means that all have.
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
        """Return the state of these positions and of those after skipped stars."""
        while True:
            wider = positions | (positions & self._starred) << 1
            if wider == positions:
                break
            positions = wider
        state = self._states.get(positions)
        if state is None:
            if len(self._states) >= _MAX_STATES:
                for old in self._states.values():
                    old.next = [None] * 256  # else the states would keep each other in memory
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

    def matches(self, key: bytes) -> bool:
        state = self._start
        if state.decided is not None:
            return state.decided
        for byte in key:
            state = state.next[byte] or self._step(state, byte)
            if state.decided is not None:
                return state.decided
        return state.accepts_at_end
