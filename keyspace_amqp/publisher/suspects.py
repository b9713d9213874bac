"""Messages over which the broker closes the channel: find them, and let the others go.

The broker names a message that it does not want by closing the channel or the connection; the
reply does not tell which message it was. All that were in flight may be the cause, and all
are sent again. So after each such closure half as many messages may be in flight, down to one:
then the message that was alone in flight is suspected. Suspects are passed over, in their
places. As soon as the broker has confirmed another message on a connection, the oldest suspect
is sent on the same connection, alone. If the broker closes it again, that message is the
culprit, and it is given up. Otherwise it is confirmed, a little late.

So nothing is given up unless the broker takes other messages on the same connection: not when
it refuses all of them, nor when one server of several is broken.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..failures import Strikes
from .delivery import Delivery
from .entry import HELD, SENT, WAITING, Entry
from .lists import Lists
from .memory import Memory
from .window import WINDOW, WINDOW_BYTES, Window

# Closures in a row, without a confirm, after which the next attempts come as slowly as after other
# failures: the broker may refuse everything. More of them if it has taken messages beside a
# culprit within the last AWARE seconds.
QUICK = 100
QUICK_AWARE = 1000
# Seconds after a culprit was found during which others are expected: then a message is suspected
# after one closure, not after STRIKES in a row.
AWARE = 60.0
# Confirms after which the number of messages in flight may double, at least. It has to be more
# than the number of messages that were in flight at the last closure.
CALM = 32
# If there are more than MANY suspects and more than MANY other messages wait, these do not wait for
# all trials: the trial of a suspect comes FLOW seconds after the first confirm of a connection,
# if the last connection has ended with a trial.
MANY = 100
FLOW = 0.1
# Suspects, at most; a bound on memory.
SUSPECTS = 10_000
# After QUICK closures, every other attempt passes over this many messages, to find one that the
# broker takes: first the first number, then the second, and so on, and then all over again.
FAR = (100, 400, 1600, 6400)


class Suspects:
    """The suspects, and how many messages may be in flight.

    `limit`: messages in flight, at most; None: nothing is wrong, and the other methods need
    not be called. `hurry`: the next attempt to connect should come soon.
    """

    def __init__(
        self,
        lists: Lists,
        memory: Memory,
        delivery: Delivery,
        window: Window,
        clock: Callable[[], float],
    ) -> None:
        self.limit: int | None = None
        self.hurry = False
        self._lists = lists
        self._memory = memory
        self._delivery = delivery
        self._window = window
        self._clock = clock
        self._strikes = Strikes()
        self._ids: dict[str, None] = {}  # of the suspects, oldest suspicion first
        self._closures = 0  # in a row, without a confirm
        self._in_vain = 0  # trials of suspects in a row, without a confirm
        self._confirms = 0  # since the last closure
        self._aware_until = clock()
        self._ended_by_trial = False  # the last connection
        # On this connection:
        self._held: list[Entry] = []  # entries that were passed over, oldest first
        self._held_bytes = 0  # about: those that went meanwhile are counted
        self._tried: Entry | None = None  # a suspect that is sent alone
        self._confirmed_at: float | None = None  # the first confirm
        self._skip = 0  # so many messages are still to be passed over
        self._oldest_first = False  # the first message is sent even if it is suspected
        self._search = 0  # connections that have passed over messages of FAR

    @property
    def _aware(self) -> bool:
        return self._clock() < self._aware_until

    def closed(self) -> Entry | None:
        """Note that the broker has closed the channel, perhaps over one of the entries in flight.

        Return the culprit, if it is known. To be called before `lost`.
        """
        in_flight = self._window.recent()
        self._ended_by_trial = False
        if not in_flight:
            self.hurry = False
            return None
        self._closures += 1
        self._confirms = 0
        self.hurry = self._closures <= (QUICK_AWARE if self._aware else QUICK)
        oldest = in_flight[0]
        assert oldest.event is not None
        name = oldest.event.message_id
        if len(in_flight) > 1 or name not in self._ids:
            self.limit = max(1, len(in_flight) // 2)
        if len(in_flight) > 1:
            return None
        if name not in self._ids:
            certain = self._aware or self._ids or self._strikes.failed(name)
            # A message far behind that fails too, after many others, is no more suspect than all.
            if certain and self.hurry and len(self._ids) < SUSPECTS:
                self._ids[name] = None
            return None
        if self._confirmed_at is None:  # nothing new is known
            self._in_vain += 1
            self.hurry = False
            return None
        del self._ids[name]
        self._ended_by_trial = True
        self._aware_until = self._clock() + AWARE
        return oldest

    def lost(self) -> None:
        """Make entries that were passed over wait again: the connection has ended."""
        for entry in self._held:
            if entry.state is HELD:
                entry.state = WAITING
        self._held.clear()
        self._held_bytes = 0
        self._tried = self._confirmed_at = None

    def opened(self) -> None:
        """Choose what the new connection is to be tried with.

        After many closures, the broker may refuse everything, or a long row of messages. So the
        attempts try the oldest message and one that is far behind, by turns.
        """
        slow = self._closures > (QUICK_AWARE if self._aware else QUICK)
        self._oldest_first = slow and not self._oldest_first
        self._skip = 0
        if slow and not self._oldest_first:
            self._skip = FAR[self._search % len(FAR)]
            self._search += 1

    def confirmed(self, entries: Sequence[Entry]) -> None:
        """Note that the broker has confirmed these entries."""
        assert self.limit is not None
        if not entries:
            return
        self._closures = self._skip = self._in_vain = 0
        if self._confirmed_at is None:
            self._confirmed_at = self._clock()
        for entry in entries if self._ids else ():
            if entry.event is not None:
                self._ids.pop(entry.event.message_id, None)
        self._confirms += len(entries)
        if self._confirms >= max(CALM, 2 * self.limit):
            self._confirms = 0
            self.limit = min(2 * self.limit, WINDOW)
            if self.limit == WINDOW and not self._held:
                self._ids.clear()  # suspects that never came again are not there any more
                self.limit = None

    # ---- sending -----------------------------------------------------------

    def room(self, room: int) -> int:
        """Return how many messages may be sent now, at most `room`."""
        if self.limit is None:
            return room
        return max(0, min(room, self.limit - len(self._window.recent())))

    def fill(self, batch: list[Entry], room: int, fill: Callable[[list[Entry], int], None]) -> None:
        """Fill the batch up to `room` with `fill`, but pass over suspects.

        When the turn of those that were passed over has come, send them: each suspect alone.
        """
        before = None
        while room > len(batch) and before != self._unsent:
            held = self._take_held(room, len(self._window.recent()) + len(batch))
            self._delivery.resume(held)
            batch += held
            if held or self._is_trying:
                return
            before = self._unsent
            fill(batch, room + self._skip)
            self._pass_over(batch)
            if batch:
                return

    @property
    def _unsent(self) -> int:
        return self._lists.current.unsent + self._memory.unsent + self._delivery.refused_unsent

    @property
    def _others_wait(self) -> bool:
        """True if there are other messages, with which the connection can be tried first."""
        current, memory = self._lists.current, self._memory
        if current.unsent or current.unread or memory.storing:
            return True
        return memory.unsent > 0 and not self._lists.others

    @property
    def _is_trying(self) -> bool:
        """True if nothing else may be sent: a suspect is alone in flight, or is about to be."""
        return self._trial_is_due or (self._tried is not None and self._tried.state is SENT)

    def _take_held(self, room: int, in_flight: int) -> list[Entry]:
        """Return entries that were passed over, and whose turn has come: a suspect alone."""
        self._held = [entry for entry in self._held if entry.state is HELD]
        due = self._trial_is_due or not (self._others_wait or in_flight)
        if not self._held or not due or room <= 0:
            return []
        count = 0
        while count < min(room, len(self._held)) and not self._is_suspect(self._held[count]):
            count += 1
        if count == 0 and not in_flight:
            # If nothing is known of any of them, each is tried in turn: a good one may be
            # among them, and nothing else might ever be confirmed.
            place = self._in_vain % len(self._held) if self._confirmed_at is None else 0
            self._tried = self._held.pop(place)
            return [self._tried]
        taken, self._held = self._held[:count], self._held[count:]
        return taken

    def _pass_over(self, batch: list[Entry]) -> None:
        """Take entries out of a batch that is about to be sent, and keep them for later."""
        if self._oldest_first and not self._held and self._confirmed_at is None:
            return
        # If suspects are tried at once, what is behind the first of them waits for the trial.
        at_once = self._confirmed_at is not None and not self._flows
        passed: list[Entry] = []
        kept: list[Entry] = []
        for entry in batch:
            if self._skip > 0 and self._held_bytes < WINDOW_BYTES:
                self._skip -= 1
            elif not self._is_suspect(entry) and not (passed and at_once):
                kept.append(entry)
                continue
            passed.append(entry)
            self._held_bytes += entry.size
        batch[:] = kept
        self._held += passed
        self._delivery.hold(passed)

    def _is_suspect(self, entry: Entry) -> bool:
        return entry.event is not None and entry.event.message_id in self._ids

    @property
    def _flows(self) -> bool:
        """True if the other messages are sent for FLOW seconds before the next trial."""
        others = self._unsent + self._lists.current.unread
        return self._ended_by_trial and len(self._ids) > MANY and others > MANY

    @property
    def _trial_at(self) -> float | None:
        """Return the time for the trial of entries that were passed over; None: not yet."""
        if not self._held or self._confirmed_at is None:
            return None
        return self._confirmed_at + (FLOW if self._flows else 0.0)

    @property
    def _trial_is_due(self) -> bool:
        at = self._trial_at
        return at is not None and self._clock() >= at

    @property
    def wakes_at(self) -> float | None:
        """Return the time at which a trial becomes due; None: nothing waits for it."""
        at = self._trial_at
        return at if at is not None and at > self._clock() else None
