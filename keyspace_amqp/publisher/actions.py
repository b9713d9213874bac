"""Actions: the values that `Publisher.poll` returns, and that the worker carries out."""

from __future__ import annotations

import enum
from collections.abc import Sequence

from ..jobs import Job
from ..message import Event
from ..values import value


@value
class Connect:
    """Open a connection; a call of `link_up` or `link_down` follows."""


@value
class Close:
    """Close the connection; the publisher gets no more calls about it."""


@value
class Send:
    """Publish these events; the first one has the delivery tag `first_tag`, and so on."""

    first_tag: int
    events: Sequence[Event]


@value
class SendFrames:
    """Publish messages that are laid out; the first one has the delivery tag `first_tag`."""

    first_tag: int
    count: int
    frames: bytes


@value
class Submit:
    """Run a job on Redis' main thread; a call of `job_done` follows."""

    job: Job


class FlushMode(enum.IntEnum):
    """The purpose of a flush; FLUSH_* in shim/api.h has the same values.

    STORE: a save follows, and the worker goes on. LEAVE: the worker ends, and the list
    cannot be written any more. DRAIN: the worker ends, and Redis keeps nothing on disk.
    """

    STORE = 0
    LEAVE = 1
    DRAIN = 2


@value
class Flushed:
    """The flush with this id is done.

    `leftovers`: events for the file of leftovers. The worker adds those that the publisher
    does not have. None: nothing is to be written to a file. `write_until`: the time until which
    the file may be written. `alone_at`: the time from which Redis does not wait any more.
    """

    id: int
    mode: FlushMode
    leftovers: Sequence[Event] | None = None
    write_until: float = 0.0
    alone_at: float = 0.0


@value
class Recovered:
    """All leftovers of an earlier load are delivered, stored or counted as lost."""


@value
class Log:
    """A line for the log; `level` is one of Redis' levels."""

    level: str
    text: str


Action = Connect | Close | Send | SendFrames | Submit | Flushed | Recovered | Log


def is_void_after_repair(action: Action) -> bool:
    """True if `Publisher.repair` takes the action back, because it concerns the link or a job."""
    return isinstance(action, (Connect, Close, Send, SendFrames, Submit))
