"""The link: the connection to the broker, as far as the publisher decides about it."""

from __future__ import annotations

import enum
from collections.abc import Callable

from . import backoff

# Seconds between attempts, at most.
BACKOFF_MAX = 5.0


class LinkState(enum.Enum):
    """The state of the link.

    OFF: DISCONNECT was given. IDLE: nothing needs a connection. WAITING: for the time of
    the next attempt. BLOCKED: the broker takes no messages (connection.blocked).
    """

    OFF = "off"
    IDLE = "idle"
    WAITING = "waiting"
    CONNECTING = "connecting"
    UP = "up"
    BLOCKED = "blocked"


# There is a connection, or one opens.
_OPEN = frozenset({LinkState.CONNECTING, LinkState.UP, LinkState.BLOCKED})


class Link:
    """Whether there is a connection, whether one is wanted, and when to try again.

    Methods that end a connection only change the state; the publisher asks for the action
    and takes back what was sent.
    """

    def __init__(self, clock: Callable[[], float], jitter: Callable[[], float]) -> None:
        self.state = LinkState.IDLE
        self.connections = 0  # so many were opened
        self.retry_at = clock()
        self._failures = 0  # attempts that failed since the broker last confirmed a message
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
        """True if the next attempt is awaited."""
        return self.state is LinkState.WAITING

    @property
    def is_blocked(self) -> bool:
        """True if the broker takes no messages for now."""
        return self.state is LinkState.BLOCKED

    @property
    def is_open(self) -> bool:
        """True if there is a connection, or if one opens."""
        return self.state in _OPEN

    @property
    def is_first_attempt(self) -> bool:
        """True if a connection is wanted, and no attempt has failed yet."""
        return self._failures == 0 and self.state not in (LinkState.OFF, LinkState.IDLE)

    def need(self) -> None:
        """There is something to send."""
        if self.state is LinkState.IDLE:
            self.state = LinkState.WAITING

    def want(self) -> None:
        """Try to connect now: CONNECT was given, or other parameters hold."""
        if not self.is_open:
            self.state = LinkState.WAITING
        self.retry()

    def retry(self) -> None:
        """Begin the attempts anew; the next one is due now."""
        self._failures = 0
        self.retry_at = self._clock()

    def turn_off(self) -> None:
        """DISCONNECT was given: stay away until `want`."""
        self.state = LinkState.OFF

    def rest(self) -> None:
        """Nothing is left to send, and nothing will come."""
        if self.state is not LinkState.OFF:
            self.state = LinkState.IDLE

    def is_due(self) -> bool:
        """True if it is time for the next attempt."""
        return self.state is LinkState.WAITING and self._clock() >= self.retry_at

    def connecting(self) -> None:
        """An attempt has begun."""
        self.state = LinkState.CONNECTING

    def up(self) -> None:
        """The connection is open, with publisher confirms on."""
        self.state = LinkState.UP
        self.connections += 1

    def down(self) -> None:
        """An attempt has failed, or the connection was lost."""
        self._failures += 1
        self.retry_at = self._clock() + backoff.delay(self._failures, BACKOFF_MAX, self._jitter)
        self.closed()

    def closed(self) -> None:
        """The connection has ended; another one is opened if one is wanted."""
        if self.is_open:
            self.state = LinkState.WAITING

    def confirmed(self) -> None:
        """The broker has confirmed a message: it works."""
        self._failures = 0

    def block(self) -> bool:
        """Note connection.blocked; True if the link was up."""
        if self.state is not LinkState.UP:
            return False
        self.state = LinkState.BLOCKED
        return True

    def unblock(self) -> bool:
        """Note connection.unblocked; True if the link was blocked."""
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
