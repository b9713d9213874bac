"""Delivery: which messages are sent next, and what the broker's answers to them change.

Two streams of messages share the window. The first has all events, in their order: the
elements of the list, then memory. The second has the events that the broker has refused, or
left without a confirm while it confirmed others: they wait in a log and a list of their own,
and are sent again within the limits of `retries`. So they do not hold up the first stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from .entry import DONE, HELD, WAITING, Entry, size_of
from .fallback_list import FallbackList, ListState
from .ledger import Ledger
from .list_jobs import SENT_ELEMENTS
from .lists import Lists
from .memory import Memory
from .retries import Retries
from .window import Window

# Seconds between two looks for late messages that are in the way of others.
LOOK_EVERY = 0.25


class Delivery:
    """See the module's docstring.

    `memory`: the events of the first stream; `refused`: those of the second.
    """

    def __init__(
        self,
        window: Window,
        retries: Retries,
        memory: Memory,
        refused: Memory,
        lists: Lists,
        ledger: Ledger,
        clock: Callable[[], float],
    ) -> None:
        self._window = window
        self._retries = retries
        self._memory = memory
        self._refused = refused
        self._lists = lists
        self._list = lists.current
        self._ledger = ledger
        self._clock = clock
        self._look_at = clock()

    # ---- sending -----------------------------------------------------------------

    def take(self, most: int, *, refused_in_memory: bool) -> list[Entry]:
        """Return at most `most` messages that are to be sent now, in their order.

        `refused_in_memory`: refused events in memory do not wait for their list.
        """
        batch = self._take_refused(most, in_memory=refused_in_memory)
        room, size = most - len(batch), self._window.bytes + size_of(batch)
        listed = self._list.take(room, size)
        batch += [entry for entry in listed if entry.state is WAITING]
        if not self.list_comes_first and not self._memory.storing and self.may_send_memory:
            batch += self._memory.take(room - len(listed), size + size_of(listed))
        return batch

    def _take_refused(self, most: int, *, in_memory: bool) -> list[Entry]:
        if not self.may_retry:
            return []
        room = max(0, min(most, self._retries.limit - self._refused.in_flight))
        listed = self._lists.refused
        if listed.known:
            entries = listed.take(max(0, room - listed.in_flight), self._window.bytes)
            return [entry for entry in entries if entry.state is WAITING]
        if (listed.unread and listed.is_ready) or self._refused.storing or not in_memory:
            return []  # those are older
        return self._refused.take(room, self._window.bytes)

    @property
    def may_retry(self) -> bool:
        """True if there are refused events, and the time for them has come."""
        return self.has_refused and self._retries.is_due

    @property
    def has_refused(self) -> bool:
        """True if there are refused events."""
        return bool(self._refused or self._lists.refused.length)

    @property
    def refused_unsent(self) -> int:
        """Return the number of refused events that are known and not sent."""
        return self._refused.unsent + self._lists.refused.unsent

    @property
    def refused_waiting(self) -> int:
        """Return the number of refused events that are not confirmed yet."""
        in_memory = self._refused.waiting + self._refused.in_flight
        return in_memory + self._lists.refused.undelivered + self._list.refused

    @property
    def list_comes_first(self) -> bool:
        """True if elements of a list are to be sent before memory."""
        return bool(self._list.unsent or self._list.unread or self._lists.others)

    @property
    def may_send_memory(self) -> bool:
        """True if the length of the list is known, or if memory does not wait for a list."""
        return self._list.state is not ListState.UNKNOWN or not self._lists.primary

    @property
    def has_unsent(self) -> bool:
        """True if the first stream has something that can be sent."""
        may_send = self.may_send_memory and not self._memory.storing
        return bool(self._list.unsent) or (may_send and self._memory.unsent > 0)

    # ---- answers -----------------------------------------------------------------

    def confirmed(self, below: int, tags: Sequence[int]) -> Sequence[Entry]:
        """Take confirms: of all messages up to and including tag `below`, and of these `tags`.

        Return the entries that they confirm.
        """
        entries = self._window.settle(below, tags)
        self._ledger.confirmed([e.event.time_ms for e in entries if e.event is not None])
        others: list[Entry] = []
        for entry in entries:
            entry.state = DONE
            if entry.place:  # not in memory, or refused before
                others.append(entry)
        again: list[Entry] = []
        for entry in others:
            if entry.refused:
                again.append(entry)
            else:
                self._list.mark_done(entry)
        if again:
            self._confirmed_again(again)
        self._memory.confirmed(len(entries) - len(others))
        return entries

    def _confirmed_again(self, entries: Sequence[Entry]) -> None:
        """Note the confirms of refused events."""
        listed = [entry for entry in entries if entry.listed]
        for entry in listed:
            self._lists.refused.mark_done(entry)
        self._refused.confirmed(len(entries) - len(listed))
        self._retries.confirmed(len(entries))

    def _list_of(self, entry: Entry) -> FallbackList:
        return self._lists.refused if entry.refused else self._list

    def nacked(self, tag: int, multiple: bool) -> int:
        """Take the refusal of a message, or of all up to this tag; return how many it refuses."""
        entries = self._window.settle(tag) if multiple else self._window.settle(0, [tag])
        self._ledger.refused(len(entries))
        self._refuse(entries)
        return len(entries)

    def _refuse(self, entries: Sequence[Entry]) -> None:
        """Make entries, which were in flight, REFUSED."""
        if any(entry.refused for entry in entries):
            self._retries.refused()
        elif entries and not self.has_refused:
            self._retries.begin()
        for entry in entries:
            if entry.listed:
                self._list_of(entry).mark_refused(entry)
        for log, own in self._by_log(entries):
            log.refused(own)

    def collect(self, *, careful: bool = False) -> None:
        """Move entries of memory that are REFUSED to the refused events.

        Messages count as refused too if they are late, and others have to wait for them.
        `careful`: few messages may be in flight, so those that are late take the place of others.
        """
        self._refuse(self._window.take_late())
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + LOOK_EVERY
            self._refuse(self._window.take(self._late_in_the_way(careful=careful)))
        stuck = self._list.refused and self._lists.refused.key is None and self._retries.is_due
        if stuck or (self._list.refused and self._lists.refused.state is ListState.NONE):
            self._list.resend_refused()  # there is no list to which they can move
        for log in (self._memory, self._refused):
            for_refused = log.take_refused()
            for entry in for_refused:
                entry.state, entry.refused, entry.at = WAITING, True, self._clock()
            self._refused.add(for_refused)

    def _late_in_the_way(self, *, careful: bool) -> list[Entry]:
        """Return late messages for which others have to wait."""
        late = self._window.late()
        if careful:
            return late
        current = self._list
        wait = len(current.known) - current.unsent >= SENT_ELEMENTS
        others_wait = bool(self._lists.others) and not current.unsent and not current.unread
        if wait or others_wait:
            overtaken = set(map(id, self._window.late(overtaken=True)))
            return [
                entry
                for entry in late
                if entry.refused or (entry.listed and (others_wait or id(entry) in overtaken))
            ]
        return [entry for entry in late if entry.refused]

    def sent(self) -> list[Entry]:
        """Return the messages in flight, and the refused events, which were sent before."""
        entries = (*self._window.in_flight(), *self._refused, *self._lists.refused.known)
        return [entry for entry in dict.fromkeys(entries) if entry.state is not DONE]

    def hold(self, entries: Sequence[Entry]) -> None:
        """Make entries that were taken to be sent HELD: they are sent later, or wait again."""
        for log, own in self._by_log(entries):
            log.put_back(own)
        for entry in entries:
            entry.state = HELD

    def resume(self, entries: Sequence[Entry]) -> None:
        """Count entries that were HELD as in flight: they are sent now."""
        for log, own in self._by_log(entries):
            log.send_again(own)

    def _by_log(self, entries: Sequence[Entry]) -> Iterator[tuple[Memory, Sequence[Entry]]]:
        own = [entry for entry in entries if not entry.listed]
        yield self._memory, [entry for entry in own if not entry.refused]
        yield self._refused, [entry for entry in own if entry.refused]

    def refuse(self, entries: Sequence[Entry]) -> None:
        """Make entries, which were taken out of the window, refused events."""
        self._refuse(entries)
        self.collect()

    def link_lost(self, *, renewed: bool) -> None:
        """Make everything that was sent and not confirmed wait again, in its old place.

        `renewed`: see Retries.link_lost.
        """
        for log, own in self._by_log(self._window.close()):
            log.link_lost(own)
        resend = not self._lists.refused.is_ready
        self._list.link_lost(resend_refused=resend)
        self._lists.refused.link_lost(resend_refused=resend)
        self._retries.link_lost(renewed=renewed)
