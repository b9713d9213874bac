"""Which fallback lists this node has, and which of them the publisher works with.

Outside of a cluster there is one list. In a cluster there may be more: those that slots
brought along. They are delivered one after the other, when the present one is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..tables.stats import Stat
from .fallback_list import FallbackList, ListState
from .ledger import Ledger

# Why elements are gone, by the event or command that took them.
_REASONS = {
    b"evicted": Stat.DROPPED_FALLBACK_EVICTED,
    b"expired": Stat.DROPPED_FALLBACK_EXPIRED,
    b"flushdb": Stat.DROPPED_FALLBACK_FLUSHED,
    b"swapdb": Stat.DROPPED_FALLBACK_FLUSHED,
}


class Lists:
    """The lists of this node.

    `current`: the one that is worked with. `primary`, `writable`: the role of this server;
    the list can be written on a primary that is not loading a data set. `known`: the lists
    were looked for; False: they are to be looked for. `unserved_key`: the key of a list
    whose slot turned out not to be served here; cluster.Watch takes it.
    """

    def __init__(self, current: FallbackList, ledger: Ledger) -> None:
        self.current = current
        self.primary = False
        self.writable = False
        self.known = False
        self.unserved_key: bytes | None = None
        self.others: dict[bytes, int] = {}  # lengths of the lists besides the current one
        self._home: bytes | None = None
        self._reasons: dict[bytes, Stat] = {}  # why a list is, or may soon be, shorter
        self._ledger = ledger

    @property
    def keys(self) -> Sequence[bytes]:
        """Return the keys of all lists of this node, the current one first."""
        return [key for key in (self.current.key, *self.others) if key is not None]

    @property
    def complete(self) -> Sequence[bytes] | None:
        """Return the same, or None as long as the lists are looked for.

        None also on a replica, and until a list to work with is chosen.
        """
        known = self.known and (self.keys or self._home is None)
        return self.keys if known else None

    @property
    def length(self) -> int:
        """Return how many elements of all lists are not confirmed."""
        return self.current.undelivered + sum(self.others.values())

    def set_role(self, *, primary: bool, writable: bool) -> bool:
        """Set the role of this server; False if the lists stay writable, or not writable.

        Otherwise nothing is known any more: the lists are another node's to deliver, or
        are to be looked for.
        """
        self.primary = primary
        if writable == self.writable:
            return False
        self.writable = writable
        self.known = False
        self.current.leave()
        self._ledger.found(-sum(self.others.values()))
        self.others.clear()
        self._reasons.clear()
        return True

    def found(self, lengths: Mapping[bytes, int]) -> None:
        """Lists were looked at, in slots of this node. Length 0: the list is gone."""
        for key, length in lengths.items():
            if key == self.current.key or not self.writable:
                continue
            self.book_change(key, length - self.others.pop(key, 0))
            if length:
                self.others[key] = length

    def set_lists(self, home: bytes | None, serves: Callable[[bytes], bool]) -> None:
        """All lists have been looked for.

        `home`: the key of this node's own list; None: the node has no slot. `serves`: True
        for a key in the node's slots.
        """
        if not self.writable:
            return
        self.known = True
        self._home = home
        if self.current.key is not None and not serves(self.current.key):
            self.current.leave()
        for key in [key for key in self.others if not serves(key)]:
            self._ledger.found(-self.others.pop(key))

    def leave_unserved(self) -> None:
        """The current list's slot is not served here any more: look for the lists again."""
        self.unserved_key = self.current.key
        self.current.leave()
        self.current.state = ListState.NONE
        self.known = False

    def changed_by_others(self, what: bytes, key: bytes) -> None:
        """Somebody else has run a command on a list, or on all of them (`key` is empty).

        The length, when it is read, shows the effect.
        """
        for changed in self.keys:
            if key in (b"", changed):
                self._reasons[changed] = _REASONS.get(what, Stat.DROPPED_FALLBACK_REMOVED)

    def book_change(self, key: bytes | None, change: int) -> None:
        """Others have made a list longer or shorter by so many elements."""
        if change > 0:
            self._ledger.found(change)
        elif change < 0:
            reason = Stat.DROPPED_FALLBACK_REMOVED
            if key is not None:
                reason = self._reasons.pop(key, reason)
            how = reason.name.rpartition("_")[2].lower()
            self._ledger.dropped(reason, -change, f"the fallback list was {how} by somebody else")

    def set_length(self, length: int) -> None:
        """The current list's length was read."""
        self.book_change(self.current.key, self.current.set_length(length))

    def choose(self) -> bool:
        """Choose the list to work with; True if it is another one than before.

        The current one until it is empty; then another one that has elements, the longest
        first, or else the node's own.
        """
        current = self.current
        # Nobody waits for a key that holds something else to become a list.
        hopeless = current.state is ListState.NONE and bool(self.others)
        empty = current.length == 0 and (current.is_ready or hopeless)
        if not self.known or not (current.key is None or empty):
            return False
        key = max(self.others, key=self.others.__getitem__, default=self._home)
        if key is None:
            current.state = ListState.NONE
            return False
        if key == current.key:
            return False
        current.choose(key, self.others.pop(key, 0))
        return True
