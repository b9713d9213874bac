"""The fallback lists of this node, and the choice of the one that the publisher works with.

Outside of a cluster there is one list. In a cluster there may be more, because slots that
move to this node bring their lists along. They are delivered one after the other: the next
one is chosen when the current one is empty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..tables.keys import refused_key
from ..tables.stats import Stat
from .fallback_list import FallbackList, ListState
from .ledger import Ledger

# The reasons of losses, by the keyspace event of the command that has removed the elements.
_REASONS = {
    b"evicted": Stat.DROPPED_FALLBACK_EVICTED,
    b"expired": Stat.DROPPED_FALLBACK_EXPIRED,
    b"flushdb": Stat.DROPPED_FALLBACK_FLUSHED,
    b"swapdb": Stat.DROPPED_FALLBACK_FLUSHED,
}
# The reasons of losses for the log.
_TEXTS = {
    Stat.DROPPED_FALLBACK_EVICTED: "the fallback list was evicted",
    Stat.DROPPED_FALLBACK_EXPIRED: "the fallback list expired",
    Stat.DROPPED_FALLBACK_FLUSHED: "FLUSHALL, FLUSHDB or SWAPDB removed the fallback list",
    Stat.DROPPED_FALLBACK_REMOVED: "a client removed elements of the fallback list",
}


class Lists:
    """The lists of this node.

    `current`: the list that the publisher works with. `refused`: the list of the events that
    the broker has refused; it has a key while the node has a home. `primary`: this server is a
    primary.
    `writable`: it can write lists, because it is a primary and is not loading a data set.
    `known`: it is known which lists there are; if False, ClusterWatch looks for them.
    `kept`: the list into which the outbox may put events at any moment; no other one is chosen,
    because these events come before those that would go to the next list.
    `unserved_key`: the key of a list whose slot turned out not to be served by this node;
    ClusterWatch reads it and sets it back to None.
    """

    def __init__(self, current: FallbackList, refused: FallbackList, ledger: Ledger) -> None:
        self.current = current
        self.refused = refused
        self.primary = False
        self.writable = False
        self.known = False
        self.kept: bytes | None = None
        self.unserved_key: bytes | None = None
        self.others: dict[bytes, int] = {}  # lengths of the lists besides the current one
        self._home: bytes | None = None
        self._refused_key: bytes | None = None  # of the list beside home
        self._reasons: dict[bytes, Stat] = {}  # of the losses that the next lengths will show
        self._ledger = ledger

    @property
    def keys(self) -> Sequence[bytes]:
        """Return the keys of all lists of this node, the current one first."""
        keys = (self.current.key, *self.others, self.refused.key)
        return [key for key in keys if key is not None]

    def with_key(self, key: bytes) -> FallbackList | None:
        """Return the current list or the list of refused events if it has this key."""
        for one in (self.current, self.refused):
            if one.key == key:
                return one
        return None

    @property
    def complete(self) -> Sequence[bytes] | None:
        """Return the keys of all lists of this node, or None while they are not all known.

        They are not known on a replica, while lists are looked for, and until a list to work
        with is chosen.
        """
        chosen = self.current.key is not None or self.others or self._home is None
        return self.keys if self.known and chosen else None

    @property
    def length(self) -> int:
        """Return how many elements of all lists are not delivered."""
        both = self.current.undelivered + self.refused.undelivered
        return both + sum(self.others.values())

    @property
    def has_none(self) -> bool:
        """True if there is no list to work with; False also while the lists are still looked for:
        after a load and after a change of the role."""
        return self.current.key is None and self.current.state is ListState.NONE

    def set_role(self, *, primary: bool, writable: bool) -> None:
        """Set the role of this server.

        If `writable` changes, all lists are forgotten: another node delivers them, or they
        are looked for.
        """
        self.primary = primary
        if writable == self.writable:
            return
        self.writable = writable
        self.known = False
        self.current.leave()
        self.refused.leave()
        self._ledger.found(-sum(self.others.values()))
        self.others.clear()
        self._reasons.clear()

    def found(self, lengths: Mapping[bytes, int]) -> None:
        """Take the lengths of lists in slots of this node. Length 0: the list is gone."""
        for key, length in lengths.items():
            if self.with_key(key) is not None or not self.writable:
                continue
            before = self.others.pop(key, 0)
            if length:
                self.others[key] = length
            self.book_change(key, length - before)

    def set_lists(self, home: bytes | None, serves: Callable[[bytes], bool]) -> None:
        """End the search for lists: `found` was called for all of them.

        `home`: the key of this node's own list; None: the node has no slot. `serves`:
        returns True for a key in the node's slots. Lists in other slots are left.
        """
        if not self.writable:
            return
        self.known = True
        self._home = home
        self._refused_key = None if home is None else refused_key(home)
        self.leave(serves)
        if self.current.key is None and home is None and not self.others:
            self.current.state = ListState.NONE

    def leave(self, serves: Callable[[bytes], bool]) -> None:
        """Leave the lists in slots that this node does not serve any more."""
        for key in [key for key in self.others if not serves(key)]:
            self._ledger.found(-self.others.pop(key))
        for one in (self.current, self.refused):
            if one.key is not None and not serves(one.key):
                one.leave()

    def leave_unserved(self) -> None:
        """Leave the current list, whose slot this node does not serve; search for lists anew."""
        self.unserved_key = self.current.key
        self.current.leave()
        self.current.state = ListState.NONE
        self.refused.leave()
        self.known = False

    def changed_by_others(self, event: bytes, key: bytes) -> None:
        """Note that others have changed a list, or all lists (`key` is empty).

        `event`: the name of the keyspace event. It is the reason of the losses that the next
        reading of the length shows.
        """
        for changed in self.keys:
            if key in (b"", changed):
                self._reasons[changed] = _REASONS.get(event, Stat.DROPPED_FALLBACK_REMOVED)

    def book_change(self, key: bytes | None, change: int) -> None:
        """Count elements that others have added to a list, or removed (`change` is negative)."""
        if change > 0:
            self._ledger.found(change)
        elif change < 0:
            reason = Stat.DROPPED_FALLBACK_REMOVED
            if key is not None:
                reason = self._reasons.pop(key, reason)
            self._ledger.dropped(reason, -change, _TEXTS[reason])

    def set_length(self, one: FallbackList, length: int) -> None:
        """Set the length of a list, as it was read, and count what others changed."""
        self.book_change(one.key, one.set_length(length))

    def imported(self, key: bytes, length: int, count: int) -> None:
        """Count `count` elements that were put to the end of a list; its `length` after that."""
        if not self.known:
            return  # all lengths are about to be read, perhaps because the role has changed
        for new_length in (length - count, length):
            if key != self.current.key:
                self.found({key: new_length})
            elif self.current.is_ready:  # else its length is about to be read anyway
                self.set_length(self.current, new_length)

    def listed(self, key: bytes, count: int, length: int) -> tuple[int, int] | None:
        """Count elements that the outbox has put to the end of a list, and its length after that.

        Return the place of the first of them in the current list, and the list's generation; None
        if its place is not known.
        """
        current = self.current
        if key != current.key:
            if self.writable:
                self.others[key] = self.others.get(key, 0) + count
            else:
                self._ledger.found(-count)  # whoever has the list now delivers them
            return None
        place = current.end
        current.grow(count)
        if not current.is_ready:
            return None
        if current.length != length:
            self.set_length(current, length)
            return None
        return place, current.generation

    def choose(self) -> bool:
        """Choose the lists to work with; return True if another one than before is chosen.

        To be called while no job is under way.

        The current list is kept until it is empty. Then the longest of the other lists is
        chosen, or, if all are empty, the node's own. But see `kept`.
        """
        chosen = self._choose_refused()
        return self._choose_current() or chosen

    @property
    def waits_for_outbox(self) -> bool:
        """True if another list would be chosen if the outbox kept none."""
        current = self.current
        if not self.known or self.kept is None:
            return False
        return current.key != self.kept or (self.has_next and self._ends)

    @property
    def has_next(self) -> bool:
        """True if another list than the current one is to be worked with when this one is empty."""
        away = self.current.key not in (None, self._home) and self._home is not None
        return bool(self.others) or (self.known and away)

    @property
    def _ends(self) -> bool:
        """True if the current list is empty, or is none."""
        # A key that holds something else may never become a list; the other lists do not wait
        # for it.
        no_list = self.current.state is ListState.NONE and bool(self.others)
        return self.current.length == 0 and (self.current.is_ready or no_list)

    def _choose_refused(self) -> bool:
        key = self._refused_key
        if not self.known or key is None or key in (self.refused.key, self.current.key):
            return False
        if self.refused.key is not None:  # the one before is delivered as any other list
            before, length = self.refused.key, self.refused.length
            self.refused.leave()
            self.found({before: length})
        self.refused.choose(key, self.others.pop(key, 0))
        return True

    def _choose_current(self) -> bool:
        current = self.current
        if not self.known or not (current.key is None or self._ends):
            return False
        key = max(self.others, key=self.others.__getitem__, default=self._home)
        if key is None:
            current.state = ListState.NONE
            return False
        if self.kept is not None and key != self.kept:
            if current.key is not None or not (self.kept in self.others or self.kept == self._home):
                return False
            key = self.kept
        if key == current.key:
            return False
        current.choose(key, self.others.pop(key, 0))
        return True
