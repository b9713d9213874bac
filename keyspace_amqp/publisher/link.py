"""The link: the state of the connection to the broker, and the time of the next attempt.

It opens and closes nothing: the publisher returns the actions for that.
"""

from __future__ import annotations

import enum
from collections.abc import Callable

from . import backoff

# Seconds between attempts, at most.
BACKOFF_MAX = 5.0


class LinkState(enum.Enum):
    """The state of the link.

    OFF: DISCONNECT was given. IDLE: nothing needs a connection. WAITING: waiting for the
    time of the next attempt. CONNECTING: an attempt is under way. UP: messages can be sent.
    BLOCKED: connected, but the broker takes no messages (connection.blocked).
    """

    OFF = "off"
    IDLE = "idle"
    WAITING = "waiting"
    CONNECTING = "connecting"
    UP = "up"
    BLOCKED = "blocked"


# A connection exists, or one is being opened.
_OPEN = frozenset({LinkState.CONNECTING, LinkState.UP, LinkState.BLOCKED})


class Link:
    """The state of the connection, and the time of the next attempt.

    Methods that end a connection only change the state. The publisher returns the action
    Close, and makes the messages in flight wait again.
    """

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self.state = LinkState.IDLE
        self.connections = 0  # opened since the module was loaded
        self.retry_at = clock()
        self.is_proven = False  # the broker has answered a message on this connection
        self.reason = ""  # of the last failure, or of connection.blocked
        self._failures = 0  # failed attempts and lost connections since the last confirm
        self._clock = clock
        self._jitter = jitter

    @property
    def is_up(self) -> bool:
        """True if messages can be sent."""
        return self.state is LinkState.UP

    @property
    def is_off(self) -> bool:
        """True after DISCONNECT."""
        return self.state is LinkState.OFF

    @property
    def is_waiting(self) -> bool:
        """True if the link waits for the time of the next attempt."""
        return self.state is LinkState.WAITING

    @property
    def is_blocked(self) -> bool:
        """True if the broker takes no messages for now."""
        return self.state is LinkState.BLOCKED

    @property
    def is_open(self) -> bool:
        """True if a connection exists, or is being opened."""
        return self.state in _OPEN

    @property
    def trouble(self) -> str:
        """Return why no messages can be sent: an attempt failed, the connection was lost, or the
        broker blocks it. Empty if it is none of these."""
        failed = self._failures and self.state in (LinkState.WAITING, LinkState.CONNECTING)
        return self.reason if failed or self.is_blocked else ""

    @property
    def is_first_attempt(self) -> bool:
        """True if a connection is wanted, and none failed or was lost since the last confirm."""
        return self._failures == 0 and self.state not in (LinkState.OFF, LinkState.IDLE)

    def need(self) -> None:
        """Ask for a connection, because there is something to send."""
        if self.state is LinkState.IDLE:
            self.state = LinkState.WAITING

    def want(self) -> None:
        """Connect now, because a user asks for it; this ends OFF."""
        if not self.is_open:
            self.state = LinkState.WAITING
        self.retry()

    def retry(self) -> None:
        """Forget failed attempts; if a connection is wanted, the next attempt is due now."""
        self._failures = 0
        self.retry_at = self._clock()

    def turn_off(self) -> None:
        """Stay disconnected until `want` is called: DISCONNECT was given."""
        self.state = LinkState.OFF

    def rest(self) -> None:
        """Do without a connection until `need`: nothing is left to send."""
        if self.state is not LinkState.OFF:
            self.state = LinkState.IDLE

    def is_due(self) -> bool:
        """True if it is time for the next attempt."""
        return self.state is LinkState.WAITING and self._clock() >= self.retry_at

    def connecting(self) -> None:
        """Note that an attempt has begun."""
        self.state = LinkState.CONNECTING

    def up(self) -> None:
        """Note that the connection is open, with publisher confirms on."""
        self.state = LinkState.UP
        self.is_proven = False
        self.connections += 1

    def down(self, reason: str, *, hurry: bool = False) -> None:
        """Note that an attempt has failed, or that the connection was lost, and why.

        `hurry`: the next attempt comes as soon as after a single failure.
        """
        self.reason = reason
        self._failures += 1
        count = 1 if hurry else self._failures
        self.retry_at = self._clock() + backoff.delay(count, BACKOFF_MAX, self._jitter)
        self.closed()

    def closed(self) -> None:
        """Note that the connection has ended; wait for the next attempt."""
        if self.is_open:
            self.state = LinkState.WAITING

    def confirmed(self) -> None:
        """Note a confirm: the broker works, so earlier failures do not count any more."""
        self._failures = 0
        self.is_proven = True

    def refused(self) -> None:
        """Note a refusal: the broker has answered."""
        self.is_proven = True

    def block(self, reason: str) -> bool:
        """Note connection.blocked; return True if the link was up."""
        if self.state is not LinkState.UP:
            return False
        self.reason = reason
        self.state = LinkState.BLOCKED
        return True

    def unblock(self) -> bool:
        """Note connection.unblocked; return True if the link was blocked."""
        if self.state is not LinkState.BLOCKED:
            return False
        self.state = LinkState.UP
        return True

    def word(self, *, primary: bool) -> str:
        """Return the state as STATS shows it."""
        match self.state:
            case LinkState.UP:
                return "connected"
            case LinkState.CONNECTING | LinkState.BLOCKED:
                return str(self.state.value)
            case LinkState.OFF:
                return "disconnected"
        if not primary:
            return "replica"
        return "disconnected" if self._failures or self.connections else "idle"
