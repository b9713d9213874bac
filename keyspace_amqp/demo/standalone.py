"""The demo with one Redis: its events in RabbitMQ, with an outage of the broker between.

It starts both as private servers, prints what Redis says of its keys beside the messages
that arrive, kills the broker under a stream of writes, starts it again, and compares both
sides byte for byte. Every figure is measured in this run; the exit code tells whether the
promises were kept.

Never imported inside Redis.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from ..tables.keys import KEY
from ..tools.replies import stats
from .base import Demo, Workshop
from .books import at_rest, balance, compare
from .screen import BooksTable, plain_table, shown
from .servers import RedisServer
from .threads import FENCE, READING, WRITES_PER_SECOND, Witness, Writer

# Seconds of writes before the outage, and between the end of the broker and its new start.
BEFORE_OUTAGE = 2.0
OUTAGE = 3.0

# So many elements of the list are one mark of the bar.
BAR_UNIT = 400

SESSION = "session:7"
COMMANDS: tuple[tuple[str | bytes | int, ...], ...] = (
    ("SET", "note", "hello"),
    ("APPEND", "note", "!"),
    ("INCR", "visits"),
    ("RPUSH", "tasks", "a", "b"),
    ("LPOP", "tasks"),
    ("SADD", "tags", "new"),
    ("HSET", "user:42", "name", "Ada"),
    ("ZADD", "scores", 17, "ada"),
    ("XADD", "log", "*", "line", "hi"),
    ("RENAME", "note", "memo"),
    ("DEL", "tags"),
    ("SET", b"\0\xff\n", 1),
    ("SET", SESSION, "x", "PX", 50),
)
EXPIRED = b"0\nexpired\n" + SESSION.encode()


class StandaloneDemo(Demo):
    """One run of the demo with one Redis. For its most likely failures see `Demo`."""

    def __init__(self, workshop: Workshop) -> None:
        super().__init__(workshop, "A")
        self._redis = RedisServer(
            workshop.folder / "redis",
            module=[str(workshop.module), *self._arguments],
            options=[
                # For the witness only; the module needs neither.
                "notify-keyspace-events EA",
                "client-output-buffer-limit pubsub 0 0 0",
            ],
        )
        self._stack.callback(self._redis.stop)
        self._client: Any = self._redis.client()  # redis-py types only some of its methods
        self._fences = 0  # sent to the witness

    def run(self) -> bool:
        """Run all parts. True if nothing was lost, unexpected or out of order."""
        self._start()
        self._show_events()
        self._show_outage()
        return self._show_books()

    def servers(self) -> Sequence[RedisServer]:
        return [self._redis]

    def hints(self) -> str:
        cli = f"redis-cli -p {self._redis.port}"
        return (
            f"Redis     {cli}\n\nTry this in another terminal:\n\n"
            f"  {cli} SET greeting hello EX 3\n"
            f"  {cli} KEYSPACEAMQP.STATS\n"
            f"  {cli} KEYSPACEAMQP.HELP"
        )

    # ---- the parts -------------------------------------------------------------

    def _start(self) -> None:
        self._screen.title("1. A private Redis and a private RabbitMQ")
        self._screen.say(
            "Both start now, on free ports and in a temporary folder; RabbitMQ takes a while."
        )
        start = time.monotonic()
        self._broker.spawn()
        self._redis.start()
        self._open_queue()
        self._client.execute_command("KEYSPACEAMQP.CONNECT")
        self._wait(
            lambda: self._stats()["state"] == "connected",
            "the module is connected to RabbitMQ",
            lambda: "STATS has state {state}, last_error {last_error}".format(**self._stats()),
        )
        self._witness = self._start_thread(Witness(self._redis))
        # Its subscription is under way. A message that nobody gets does not count.
        self._wait(self._publish_fence, "Redis has the witness as a subscriber")
        self._fence_witness()
        version = self._client.info("server")["redis_version"]
        self._screen.say(
            f"Ready after {time.monotonic() - start:.1f} s: Redis {version} on port "
            f"{self._redis.port}, RabbitMQ on port {self._broker.port}. The line in redis.conf:\n"
        )
        self._say_loadmodule()
        self._screen.say(
            "A: events of all classes; 2: persistent messages. A consumer takes the messages from "
            "a durable queue. A witness subscribes to Redis' own notifications, to compare with."
        )

    def _show_events(self) -> None:
        self._screen.title("2. Each event of Redis, and the message that arrived for it")
        rows = self._run_commands()
        events, messages = self._witness.events, self._consumer.messages
        self._wait(
            lambda: len(messages) >= len(events),
            f"a message for each of {len(events)} events",
            lambda: f"{len(messages)} came, the last was {messages[-1:]}",
        )
        table = plain_table()
        table.add_column("Redis command")
        table.add_column("event", style="cyan")
        table.add_column("message body", style="green")
        table.add_column("message_id", style="dim")
        table.add_column("after", justify="right", no_wrap=True)
        for (command, started), event, message in zip(rows, events, messages, strict=False):
            table.add_row(
                Text(command),
                Text(shown(event.split(b"\n")[1])),
                Text(shown(message.body), style="" if message.body == event else "bold red"),
                Text(message.id if self._screen.wide else f"..{message.id[-8:]}"),
                "" if started is None else f"{(message.at - started) * 1000:.1f} ms",
            )
        self._screen.table(table)
        self._screen.say(
            "\nA body is db, event and key, with newlines between; the key comes whole, whatever "
            "its bytes. The time is from before the command until the consumer had the message."
        )

    def _run_commands(self) -> list[tuple[str, float | None]]:
        """Run COMMANDS. Return for each event the command that caused it (empty for further
        events of one command), and when the command was sent."""
        events = self._witness.events
        rows: list[tuple[str, float | None]] = []
        for words in COMMANDS:
            start = time.perf_counter()
            self._client.execute_command(*words)
            self._fence_witness()
            command = " ".join(shown(word) for word in words)
            # The key that expires is set last, so it does not expire in this loop.
            rows += [
                (command if n == len(rows) else "", start) for n in range(len(rows), len(events))
            ]
        # Only Redis knows when it expired the key, so its event has no time to measure from.
        self._wait(
            lambda: EXPIRED in events,
            f"Redis expires the key {SESSION}",
            lambda: f"its last event was {events[-1]!r}",
        )
        self._fence_witness()
        return rows + [("(a moment later)", None)] * (len(events) - len(rows))

    def _show_outage(self) -> None:
        self._screen.title("3. The broker dies under load, and comes back")
        self._screen.say(
            f"A client now sets {WRITES_PER_SECOND} keys a second and times each answer.\n"
        )
        self._writer = self._start_thread(Writer(self._redis.client()))
        self._began = time.monotonic()
        self._row_from = 0
        columns = "   time  the module       SETs  received  slowest SET  in list"
        self._screen.say(columns, "bold")
        self._print_rows_for(BEFORE_OUTAGE)
        self._killed_at = len(self._writer.answers)
        self._kill_broker()
        self._print_rows_for(OUTAGE)
        self._started_at = len(self._writer.answers)
        self._start_broker()
        self._print_rows(self._drained)
        self._drained_at = len(self._writer.answers)
        self._screen.say_happening("the list is empty: all of it was confirmed", "green")
        self._print_rows_for(1.0)
        self._writer.end()
        self._check_threads()
        self._screen.say(
            f"\nThe list is a key in Redis, {KEY.decode()}, replicated and saved like others."
        )

    def _show_books(self) -> bool:
        self._screen.title("4. The books")
        self._fence_witness()
        self._wait(
            lambda: at_rest(self._stats()),
            "the module has delivered everything",
            lambda: f"STATS are {self._stats()}",
        )
        self._fence_consumer()
        events, messages = self._witness.events, self._consumer.messages
        result = compare(events, [message.body for message in messages])
        table = BooksTable()
        self._add_comparison(table, len(events), "by Redis' own notifications", result)
        disorder = result.out_of_order
        table.add("out of order", f"{disorder:,}", good=not disorder)
        self._add_repeated(table)
        self._add_times(table)
        self._screen.table(table.table)

        numbers = self._stats()
        self._screen.say("\nThe module's own counters (KEYSPACEAMQP.STATS) balance:")
        self._say_books(numbers)

        seen = [event for event in events if event.startswith(b"0\nset\n" + READING.encode())]
        reasons = {
            f"{result.lost.total()} lost": result.lost,
            f"{result.unexpected.total()} unexpected": result.unexpected,
            f"{disorder} out of order": disorder,
            "the witness did not see what was written": seen != self._writer.events(),
            "the module did not count each event": numbers["events_matched"] != len(events),
            "the module's counters do not balance": balance(numbers),
        }
        return self._judge(reasons, "Nothing lost, everything in order, byte for byte.")

    def _add_times(self, table: BooksTable) -> None:
        """Add the slowest answers: with the broker, without it, and while the list drains."""
        answers = self._writer.answers
        for name, times in (
            ("slowest SET, broker up", answers[: self._killed_at] + answers[self._drained_at :]),
            ("  broker dead", answers[self._killed_at : self._started_at]),
            ("  it starts, list drains", answers[self._started_at : self._drained_at]),
        ):
            half = statistics.median(times) * 1000
            remark = f"of {len(times):,}; half took at most {half:.2f} ms"
            table.add(name, _milliseconds(max(times)), remark)
        late = _milliseconds(self._writer.late)
        table.add("slowest timer", late, "of the same client, without Redis")

    # ---- used by the parts -------------------------------------------------------

    def _fence_witness(self) -> None:
        """Wait until the witness has seen every event so far."""
        self._publish_fence()
        self._wait(
            lambda: self._witness.fences >= self._fences,
            f"the witness gets message {self._fences} of the channel {FENCE.decode()}",
            lambda: f"it has {self._witness.fences}, and {len(self._witness.events)} events",
        )

    def _publish_fence(self) -> int:
        """Send the witness a fence. Return the number of subscribers that get it: 1, or 0."""
        sent = int(self._client.publish(FENCE, b""))
        self._fences += sent
        return sent

    def _stats(self) -> dict[str, Any]:
        return stats(self._client)

    def _drained(self) -> bool:
        numbers = self._stats()
        return bool(numbers["state"] == "connected" and numbers["fallback_length"] == 0)

    def _row(self) -> Text:
        numbers = self._stats()
        length = numbers["fallback_length"]
        answers = self._writer.answers[self._row_from :]
        self._row_from += len(answers)
        bar = "#" * math.ceil(length / BAR_UNIT)
        line = Text(
            f"{numbers['state']:12}  {self._row_from:7,}  "
            f"{len(self._consumer.messages):8,}  "
            f"{_milliseconds(max(answers, default=0)):>11}  {length:7,} "
        )
        return line.append(bar, "yellow")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"
