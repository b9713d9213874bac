"""The snapshot: the event `snapshot` for each key that exists, for SNAPSHOT START.

The main thread makes the events, by a job for each step (shim/snapshot.c). This file decides when
the next step follows, and how many events it may have: at a bounded rate, and only while few events
wait. So a snapshot never fills the list or memory: those have room for what happens meanwhile.

Worker thread; nothing here waits.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Sequence
from typing import Protocol

from ..config import format_masks
from ..counts import counted
from ..jobs import Job, JobError, JobResult, Reply, SnapshotStep
from ..masks import ALL
from ..tables.stats import Stat

# Seconds between two steps, at least. A step takes half a millisecond of Redis' main thread at
# most, so a snapshot takes no more than a twentieth of its time, whatever its rate.
STEP_EVERY = 0.01
# Seconds after which a snapshot that waits looks again.
LOOK_EVERY = 0.1
# Seconds without a step after which STATS shows that the snapshot waits.
SHOWN_AFTER = 1.0
# Events of one step at most; with short keys, their time is over before.
STEP_EVENTS = 1000
# Bytes of the records of one step.
STEP_BYTES = 1024 * 1024
# The events that may wait for the broker, those of clients included, and the bytes of those of the
# snapshot. Enough for the broker's answers to be on their way: the window has 4,000.
WAITING_EVENTS = 10_000
WAITING_BYTES = 16 * 1024 * 1024
# The part of a limit that the events which wait may take.
LIST_PART = 2
QUEUE_PART = 4

# States of the link in which events are delivered. `idle`: the first event opens the connection.
_DELIVERING = ("idle", "connected", "unconfirmed")

Submit = Callable[[Job, Callable[[JobResult], None]], None]


class Publisher(Protocol):
    """The members of the publisher that the snapshot uses; see publisher.py."""

    @property
    def state(self) -> str: ...

    @property
    def flushing(self) -> bool: ...


class Snapshot:
    """See the module's docstring.

    `submit`: gives a job to the main thread. `numbers`: returns the counters and gauges, the index
    is a `Stat`. `limits`: returns `fallback-size` and `queue-limit`. `log`: takes a line for
    Redis' log.

    `events`: events of snapshots since the load or the last reset. `runs`: true from the start of
    a snapshot to its end. `state`: what STATS shows, see tables/stats.py. `looked`: keys that the
    present or last snapshot has looked at. `total`: the keys that there were at its start.
    `job_done`: the callback of the job that is under way.
    """

    def __init__(
        self,
        submit: Submit,
        publisher: Publisher,
        numbers: Callable[[], Sequence[int]],
        limits: Callable[[], tuple[int, int]],
        log: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.events = self.looked = self.total = 0
        self.state = "none"
        self.runs = False
        self.job_done: Callable[[JobResult], None] | None = None
        self._submit = submit
        self._publisher = publisher
        self._numbers = numbers
        self._limits = limits
        self._log = log
        self._clock = clock
        self._rate = 0
        self._sent = 0  # events of this snapshot
        # The newest steps, also those of the snapshot before, that have events which may wait:
        # their events, and the bytes of these; and the sums.
        self._recent: collections.deque[tuple[int, int]] = collections.deque()
        self._recent_events = self._recent_bytes = 0
        self._may = 0.0  # events that the rate allows now
        self._counted_at = self._next_at = self._stepped_at = 0.0

    # ---- commands ---------------------------------------------------------------

    def start(
        self, rate: int, masks: Sequence[bytes], done: Callable[[int | JobError], None]
    ) -> None:
        """Begin a snapshot with `rate` events per second at most, of the keys that these masks
        match, or all. `done` gets the number of keys that there are, or the error."""
        before = self.state, self.looked, self.total
        self.runs, self.state = True, "running"
        self.looked = self.total = self._sent = 0
        self._rate, self._may = rate, 0.0
        self._counted_at = self._next_at = self._stepped_at = self._clock()

        def started(reply: Reply, newest: bool) -> None:
            total = reply if isinstance(reply, JobError) else _number(reply)
            if newest and isinstance(total, JobError):
                self.runs = False
                self.state, self.looked, self.total = before
            elif newest and isinstance(total, int):
                self.total = total
                self._log(
                    "notice",
                    f"snapshot: started; {counted(total, 'key')}, at most "
                    f"{counted(rate, 'event')} per second",
                )
            done(total)  # also after a STOP that has come from another node meanwhile

        self._run([b"START", format_masks(masks or [ALL])], started)

    def stop(self) -> int:
        """End the snapshot. Return 1, or 0 if there is none."""
        if not self.runs:
            return 0
        self._end("stopped")
        self._run([b"STOP"], lambda reply, newest: None)
        return 1

    def _end(self, state: str) -> None:
        self.runs, self.state = False, state
        self._log(
            "notice",
            f"snapshot: {state}; looked at {self.looked} of {counted(self.total, 'key')}, "
            f"{counted(self._sent, 'event')}",
        )

    def _run(self, words: Sequence[bytes], done: Callable[[Reply, bool], None]) -> None:
        """Have the main thread carry these words out. `done` gets the reply, and whether they are
        the newest words. If not, another snapshot may be under way."""

        def job_done(result: JobResult) -> None:
            newest = self.job_done is job_done
            if newest:
                self.job_done = None
            done(result.reply(0), newest)

        self._submit(Job([SnapshotStep(words)]), job_done)
        self.job_done = job_done  # not before: if there is no job, none is waited for

    # ---- steps ------------------------------------------------------------------

    def poll(self) -> None:
        """Have the main thread make the next events, if it is time and there is room for them."""
        now = self._clock()
        if not self.runs or self.job_done is not None or now < self._next_at:
            return
        if self._publisher.flushing:  # Redis waits until nothing waits
            self._next_at = now + LOOK_EVERY
            return
        obstacle, room, room_bytes = self._room()
        # What was not used while the snapshot had to wait is not made up for.
        most = max(1.0, self._rate * LOOK_EVERY)
        self._may = min(self._may + self._rate * (now - self._counted_at), most)
        self._counted_at = now
        if obstacle:
            self._wait(obstacle)
        elif self._may < 1:
            self._next_at = now + (1 - self._may) / self._rate
            return
        else:
            self._next_at = now + STEP_EVERY
        # The main thread ends a snapshot too. It is asked even if there is no room.
        events = min(int(self._may), room, STEP_EVENTS)
        size = min(room_bytes, STEP_BYTES)
        self._run([b"STEP", b"%d" % events, b"%d" % size], self._stepped)

    def _room(self) -> tuple[str, int, int]:
        """Return why the snapshot has to wait, or for how many events and bytes there is room."""
        if self._publisher.state not in _DELIVERING:
            return f"the broker: {self._publisher.state}", 0, 0
        numbers = self._numbers()
        list_cap, queue_limit = self._limits()
        waiting = (
            numbers[Stat.FALLBACK_LENGTH] + numbers[Stat.QUEUE_LENGTH] + numbers[Stat.IN_FLIGHT]
        )
        most_bytes = WAITING_BYTES
        if queue_limit:
            most_bytes = min(most_bytes, queue_limit // QUEUE_PART)
        most = WAITING_EVENTS
        if list_cap > 0:
            most = min(most, max(list_cap // LIST_PART, 1))
        room, room_bytes = most - waiting, most_bytes - self._waiting_bytes(waiting)
        full = queue_limit and numbers[Stat.QUEUE_BYTES] > queue_limit // QUEUE_PART
        if room <= 0 or room_bytes <= 0 or full:
            return "others are to be delivered first", 0, 0
        return "", room, room_bytes

    def _waiting_bytes(self, waiting: int) -> int:
        """Return the bytes of the snapshot's events that wait, at most, if so many wait: they are
        the newest ones, because events leave in their order."""
        recent = self._recent
        while recent and self._recent_events - recent[0][0] >= waiting:
            events, size = recent.popleft()
            self._recent_events -= events
            self._recent_bytes -= size
        return self._recent_bytes

    def _wait(self, obstacle: str) -> None:
        now = self._clock()
        self._next_at = now + LOOK_EVERY
        if now >= self._stepped_at + SHOWN_AFTER:
            self.state = f"waits ({obstacle})"

    def _stepped(self, reply: Reply, newest: bool) -> None:
        if isinstance(reply, JobError):
            if newest:
                self._end(f"ended ({reply})")
            return
        assert isinstance(reply, list)
        ended, obstacle, *numbers = reply
        looked, events, size = map(_number, numbers)
        assert isinstance(obstacle, bytes)
        self.events += events
        if events:
            self._recent.append((events, size))
            self._recent_events += events
            self._recent_bytes += size
        if not newest:  # it was stopped meanwhile
            return
        self.looked += looked
        self._sent += events
        self._may -= events
        if looked:
            self._stepped_at = self._clock()
            self.state = "running"
        if ended:
            self._end("done")
        elif obstacle:
            self._wait(obstacle.decode())

    def wake_at(self) -> float | None:
        """Return the time at which to call `poll` again if nothing else happens."""
        return self._next_at if self.runs and self.job_done is None else None

    def repair(self, *, job_lost: bool) -> None:
        """Go on after an exception. `job_lost`: a job under way will not be heard of."""
        if job_lost:
            self.job_done = None


def _number(reply: Reply) -> int:
    assert isinstance(reply, int)
    return reply
