"""The status of the worker as users see it: in STATS, in INFO and in the log.

Each number and text goes to the shim when it changes, so INFO and STATS answer even while
the worker is stuck. Worker thread; nothing here waits.
"""

from __future__ import annotations

import operator
import re
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from .. import __version__
from ..counts import one_line
from ..tables.stats import Stat, Text
from . import log
from .outages import Outages
from .shim_api import Shim

# A line of one kind is logged at most once in this many seconds.
LOG_EVERY = 60.0
# The number of kinds that RareLog remembers; a bound on its memory.
LOG_KINDS = 100
_DIGITS = re.compile(r"[0-9]+")


# Gauges of events that wait for a confirm.
_WAITING = (Stat.FALLBACK_LENGTH, Stat.QUEUE_LENGTH, Stat.IN_FLIGHT)


class Link(Protocol):
    """The members of the link that are shown; see publisher/link.py."""

    is_proven: bool

    @property
    def trouble(self) -> str: ...


class Publisher(Protocol):
    """The members of the publisher that are shown; see publisher.py."""

    last_error: str

    @property
    def link(self) -> Link: ...

    @property
    def counts(self) -> list[int]: ...

    @property
    def taken(self) -> int: ...

    @property
    def primary(self) -> bool: ...

    @property
    def state(self) -> str: ...

    def gauges(self) -> Mapping[Stat, int]: ...

    def reset_stats(self) -> None: ...


class Peers(Protocol):
    """The members of cluster.peers.Peers that are shown; see there."""

    rejected: int

    @property
    def config_version(self) -> int: ...


class Messages(Protocol):
    """The part of Identity that is shown. `cut`: routing keys that were too long."""

    cut: int


class Snapshot(Protocol):
    """The members of the snapshot that are shown; see snapshot.py."""

    events: int
    looked: int
    total: int
    state: str


class RareLog:
    """A log that writes lines of one kind at a bounded rate."""

    def __init__(self, sink: log.Sink, clock: Callable[[], float] = time.monotonic) -> None:
        self._sink = sink
        self._clock = clock
        self._logged: dict[str, float] = {}

    def write(self, level: str, text: str, kind: str = "") -> None:
        """Log a line, unless one of the same kind was logged within LOG_EVERY. Lines that
        differ only in numbers are of one kind. Pass `kind` if the text comes from outside,
        such as an error of another node."""
        kind = kind or _DIGITS.sub("#", text)
        now = self._clock()
        if now >= self._logged.get(kind, -LOG_EVERY) + LOG_EVERY:
            if len(self._logged) >= LOG_KINDS:
                self._logged.clear()
            self._logged[kind] = now
            self._sink(level, text)


class Status:
    """Collects and shows the state of the worker's parts. `broker`: returns the address of
    the connection, or of the last attempt. `outages`: decides what the log says about the
    connection."""

    def __init__(
        self,
        shim: Shim,
        publisher: Publisher,
        peers: Peers,
        messages: Messages,
        broker: Callable[[], str],
        rare_log: RareLog,
        outages: Outages,
        snapshot: Snapshot,
    ) -> None:
        self._shim = shim
        self._outages = outages
        self._publisher = publisher
        self._peers = peers
        self._messages = messages
        self._broker = broker
        self._log = rare_log
        self._snapshot = snapshot
        self._shown = [0] * len(Stat)
        self._shown_texts: dict[Text, str] = {}

    def show(self) -> None:
        """Update the counters and texts in the shim."""
        publisher = self._publisher
        publisher.counts[Stat.MESSAGES_REJECTED] = self._peers.rejected
        publisher.counts[Stat.ROUTING_KEYS_CUT] = self._messages.cut
        publisher.counts[Stat.SNAPSHOT_EVENTS] = self._snapshot.events
        numbers = publisher.counts.copy()
        for stat, number in publisher.gauges().items():
            numbers[stat] = number
        numbers[Stat.SNAPSHOT_LOOKED] = self._snapshot.looked
        numbers[Stat.SNAPSHOT_KEYS] = self._snapshot.total
        # The shim counts the matched events itself, and has to know how many of them were taken.
        numbers[Stat.EVENTS_MATCHED] = publisher.taken
        if numbers != self._shown:
            counters = self._shim.counters
            changed = map(operator.ne, numbers, self._shown)
            for index in [index for index, differs in enumerate(changed) if differs]:
                counters[index] = numbers[index]
            self._shown = numbers
        state, broker, trouble = publisher.state, self._broker(), publisher.link.trouble
        self._changed(Text.STATE, state)
        self._changed(Text.BROKER, broker)
        self._changed(Text.SNAPSHOT, self._snapshot.state)
        for level, line in self._outages.lines(
            state, broker, one_line(trouble),
            waiting=sum(numbers[stat] for stat in _WAITING), proven=publisher.link.is_proven,
        ):  # fmt: skip
            self._shim.log(level, line)
        error = self._changed(Text.LAST_ERROR, publisher.last_error)
        if error and not (trouble and trouble in publisher.last_error):
            self._log.write("warning", error)

    @property
    def wake_at(self) -> float | None:
        """Return when `show` has to be called again if nothing else happens; None: never."""
        return self._outages.wake_at

    def _changed(self, text: Text, value: str) -> str | None:
        """Show a text. Return it as one line if it has changed, else None."""
        if self._shown_texts.get(text) == value:
            return None
        clean = one_line(value)
        self._shim.set_text(text, clean)
        self._shown_texts[text] = value
        return clean

    def failed(self, what: str) -> None:
        """Count the exception that is being handled, which is a defect of the handler, and
        log its traceback after `what`."""
        self._publisher.counts[Stat.HANDLER_ERRORS] += 1
        log.exception(what)

    def reset(self) -> None:
        """Set all counters to 0, for STATS RESET."""
        publisher = self._publisher
        publisher.reset_stats()
        self._peers.rejected = self._messages.cut = self._snapshot.events = 0
        self._shim.reset_numbers(publisher.taken - publisher.counts[Stat.EVENTS_MATCHED])
        self.show()

    def counters(self) -> dict[str, int]:
        """Return the counters and gauges as STATS shows them."""
        self.show()
        numbers = self._shim.numbers()
        return {stat.name.lower(): numbers[stat] for stat in Stat}

    def node_state(self) -> dict[str, str | int]:
        """Return the row of this node for KEYSPACEAMQP.CLUSTER."""
        numbers = self.counters()
        return {
            "role": "primary" if self._publisher.primary else "replica",
            "version": __version__,
            "config_version": self._peers.config_version,
            "state": self._publisher.state,
            "snapshot": self._snapshot.state,
            "fallback_length": numbers["fallback_length"],
            "queue_length": numbers["queue_length"],
            "last_error": one_line(self._publisher.last_error),
        }
