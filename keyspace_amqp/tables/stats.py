"""The counters, gauges and texts that STATS and `INFO keyspaceamqp` show.

The shim keeps them and shows them in this order; any thread may read them, even when
the worker is stuck. The worker writes those that it owns. Pure: imports nothing.
"""

from __future__ import annotations

import enum
import itertools


class Stat(enum.IntEnum):
    """A counter or gauge; the value is its place in the shim's array."""

    EVENTS_SEEN = 0
    EVENTS_MATCHED = 1
    PUBLISHED = 2
    CONFIRMED = 3
    NACKED = 4
    RETURNED = 5
    DROPPED = 6
    FALLBACK_LENGTH = 7
    FALLBACK_PUSHED = 8
    FALLBACK_DRAINED = 9
    FALLBACK_FOUND = 10
    QUEUE_LENGTH = 11
    QUEUE_BYTES = 12
    IN_FLIGHT = 13
    RECONNECTS = 14
    HANDLER_ERRORS = 15
    MESSAGES_REJECTED = 16
    ROUTING_KEYS_CUT = 17
    CONFIRM_MS_LE_1 = 18
    CONFIRM_MS_LE_2 = 19
    CONFIRM_MS_LE_5 = 20
    CONFIRM_MS_LE_10 = 21
    CONFIRM_MS_LE_25 = 22
    CONFIRM_MS_LE_50 = 23
    CONFIRM_MS_LE_100 = 24
    CONFIRM_MS_LE_250 = 25
    CONFIRM_MS_LE_500 = 26
    CONFIRM_MS_LE_1000 = 27
    CONFIRM_MS_LE_5000 = 28
    CONFIRM_MS_LE_INF = 29
    CONFIRM_MS_SUM = 30
    REFUSED_WAITING = 31
    OUTBOX_MISSED = 32
    SNAPSHOT_EVENTS = 33
    SNAPSHOT_LOOKED = 34
    SNAPSHOT_KEYS = 35
    DROPPED_QUEUE_FULL = 36
    DROPPED_FALLBACK_FULL = 37
    DROPPED_FALLBACK_EVICTED = 38
    DROPPED_FALLBACK_EXPIRED = 39
    DROPPED_FALLBACK_FLUSHED = 40
    DROPPED_FALLBACK_REMOVED = 41
    DROPPED_PURGED = 42
    DROPPED_UNREADABLE = 43
    DROPPED_STOPPED = 44
    DROPPED_TOO_LARGE = 45
    DROPPED_HANDLER_ERROR = 46
    DROPPED_NO_MEMORY = 47
    DROPPED_SET_ASIDE = 48


# Milliseconds. An event counts in the first of CONFIRM_MS_LE_* whose bound it does not exceed.
CONFIRM_BOUNDS = (1, 2, 5, 10, 25, 50, 100, 250, 500, 1000, 5000)


class Text(enum.IntEnum):
    """A text that is shown before the counters."""

    STATE = 0
    BROKER = 1
    LAST_ERROR = 2
    OUTBOX = 3
    SNAPSHOT = 4


TEXT_HELP: dict[Text, str] = {
    Text.STATE: "`idle` (nothing to send yet), `connecting`, `connected`, `blocked` (by the "
    "broker), `unconfirmed` (connected, but a message has had no confirm for 5 seconds), "
    "`disconnected`, `replica`, `stopping` (MODULE UNLOAD was refused because the handler hangs)",
    Text.BROKER: "`host:port` of the connection, or of the last attempt",
    Text.LAST_ERROR: "the last problem with the broker or the list; empty: none so far",
    Text.OUTBOX: "the parameter `outbox`; with ` (waits)` while events go through memory",
    Text.SNAPSHOT: "`none` (since the load), `running`, `waits (why)`, `done`, `stopped`, or "
    "`ended (why)`",
}
# The end of the text OUTBOX.
OUTBOX_WAITS = " (waits)"

HELP: dict[Stat, str] = {
    Stat.EVENTS_SEEN: "events of the chosen classes since load or STATS RESET",
    Stat.EVENTS_MATCHED: "events that the masks and `databases` let through",
    Stat.PUBLISHED: "messages sent, including those sent again",
    Stat.CONFIRMED: "events that the broker confirmed",
    Stat.NACKED: "refusals by the broker; the message is sent again",
    Stat.RETURNED: "messages that reached no queue; they count as confirmed too",
    Stat.DROPPED: "events lost, the sum of the reasons below",
    Stat.FALLBACK_LENGTH: "events that wait in the fallback list and in the list of refused events",
    Stat.FALLBACK_PUSHED: "elements pushed to the list",
    Stat.FALLBACK_DRAINED: "elements removed from the list after their confirm",
    Stat.FALLBACK_FOUND: "elements of the list that this load of the module did not push itself, "
    "and those that FALLBACK IMPORT took over, less those handed over when this node became a "
    "replica",
    Stat.QUEUE_LENGTH: "events in memory that are not sent yet",
    Stat.QUEUE_BYTES: "bytes of memory that these events need",
    Stat.IN_FLIGHT: "events in memory that are sent and not confirmed yet",
    Stat.RECONNECTS: "connections after the first",
    Stat.HANDLER_ERRORS: "unexpected exceptions in the handler; the log has the tracebacks",
    Stat.MESSAGES_REJECTED: "messages from other nodes of the cluster that were ignored: garbage, "
    "an unknown version, or too many at once",
    Stat.ROUTING_KEYS_CUT: "routing keys longer than 255 bytes, which end with `~` and a hash",
    Stat.CONFIRM_MS_LE_1: "events that the broker confirmed within 1 ms of their emission",
    **{
        Stat(Stat.CONFIRM_MS_LE_1 + place): f"within {bound} ms, and not within {before}"
        for place, (before, bound) in enumerate(itertools.pairwise(CONFIRM_BOUNDS), 1)
    },
    Stat.CONFIRM_MS_LE_INF: f"not within {CONFIRM_BOUNDS[-1]} ms",
    Stat.CONFIRM_MS_SUM: "sum of the milliseconds from the emission of events to their confirms",
    Stat.REFUSED_WAITING: "refused events, which will be sent again: the broker has refused them, "
    "or left them without a confirm. They are in `fallback_length`, `queue_length` and `in_flight` "
    "too",
    Stat.OUTBOX_MISSED: "events that went through memory though `outbox` was on, because the list "
    "could not be written; and events that were held back until the outbox opened",
    Stat.SNAPSHOT_EVENTS: "events `snapshot`; they count in `events_seen` and `events_matched` too",
    Stat.SNAPSHOT_LOOKED: "keys that the present or last snapshot has looked at",
    Stat.SNAPSHOT_KEYS: "keys that there were at its start",
    Stat.DROPPED_QUEUE_FULL: "`queue-limit` was reached, and the list was off or out of reach",
    Stat.DROPPED_FALLBACK_FULL: "oldest elements of a list that had reached `fallback-size`",
    Stat.DROPPED_FALLBACK_EVICTED: "the list was evicted (maxmemory-policy)",
    Stat.DROPPED_FALLBACK_EXPIRED: "the list expired: a client had set a time to live",
    Stat.DROPPED_FALLBACK_FLUSHED: "FLUSHALL, FLUSHDB or SWAPDB",
    Stat.DROPPED_FALLBACK_REMOVED: "elements that a client removed from the list",
    Stat.DROPPED_PURGED: "KEYSPACEAMQP.FALLBACK PURGE",
    Stat.DROPPED_UNREADABLE: "elements of the list that are not events of this module",
    Stat.DROPPED_TOO_LARGE: "larger than the broker's max_message_size",
    Stat.DROPPED_HANDLER_ERROR: "events on which the handler failed repeatedly, see the log",
    Stat.DROPPED_NO_MEMORY: "`queue-limit` was reached, and the list took no more because Redis "
    "was near its `maxmemory`",
    Stat.DROPPED_SET_ASIDE: "messages over which the broker closed the channel, though it took "
    "others; KEYSPACEAMQP.FALLBACK ASIDE shows them",
    Stat.DROPPED_STOPPED: "in memory at shutdown or unload, neither delivered nor stored in time",
}

FIRST_REASON = Stat.DROPPED_QUEUE_FULL
