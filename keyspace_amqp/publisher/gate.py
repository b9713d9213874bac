"""When events may take the express: while nothing but "send it" is to be done with any of them."""

from __future__ import annotations

from collections.abc import Callable

from .delivery import Delivery
from .express import Express
from .flushing import Flushing
from .link import Link
from .lists import Lists
from .memory import Memory
from .recent import RecentPushes
from .recovery import Recovery
from .storing import Storing
from .suspects import Suspects
from .window import WINDOW_BYTES, Window


class Gate:
    """See the module's docstring."""

    def __init__(
        self,
        express: Express,
        link: Link,
        window: Window,
        memory: Memory,
        lists: Lists,
        delivery: Delivery,
        storing: Storing,
        flushing: Flushing,
        suspects: Suspects,
        recovery: Recovery,
        recent: RecentPushes,
        clock: Callable[[], float],
    ) -> None:
        self._express = express
        self._link = link
        self._window = window
        self._memory = memory
        self._lists = lists
        self._delivery = delivery
        self._storing = storing
        self._flushing = flushing
        self._suspects = suspects
        self._recovery = recovery
        self._recent = recent
        self._clock = clock

    @property
    def is_open(self) -> bool:
        """True if the express may run, as soon as memory is empty."""
        lists = self._lists
        if not self._link.is_up or lists.current.length or lists.others:
            return False
        if self._storing.pressure or self._storing.config.has_outbox or self._recovery.active:
            return False
        if self._flushing.current is not None or self._suspects.limit is not None:
            return False
        if self._delivery.has_refused or self._recent.wanted or not lists.primary:
            return False
        late_at = self._express.late_at
        late = late_at is not None and self._clock() >= late_at
        may_send = self._delivery.may_send_memory
        return may_send and not (late or self._express.is_crowded or self._window.is_stalled)

    def room(self) -> int | None:
        """Return how many events the express has room for; None: it does not run.

        0 may begin a time in which newer events wait for those in memory, so it is not to be asked
        while there are none.
        """
        if not self.is_open:
            return None
        if self._memory or len(self._window):
            return 0 if not self._memory.storing and self._express.may_settle() else None
        return self._window.room if self._window.bytes < WINDOW_BYTES else 0
