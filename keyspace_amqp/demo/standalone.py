"""The demo: events of a real Redis in a real RabbitMQ, with an outage between.

It starts both as private servers, shows what Redis says of its keys beside the
messages that arrive, kills the broker under a stream of writes, starts it again,
and compares both sides byte for byte. Every number is measured in this run; the
exit code tells whether the promise was kept.

Whatever happens, Ctrl-C included, the servers end and their folder is removed.
Never imported inside Redis.
"""

from __future__ import annotations

import functools
import math
import pathlib
import re
import statistics
import time
from collections.abc import Sequence
from typing import Any

from rich.text import Text

from ..tables.keys import KEY
from . import show
from .servers import RedisServer
from .show import FENCE, READING, shown

BEFORE_OUTAGE = 2.0
OUTAGE = 3.0

# A mark of the list's bar stands for so many elements.
BAR_UNIT = 400

KEYEVENT = re.compile(rb"__keyevent@(\d+)__:(.*)", re.DOTALL)

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


class Witness(show.Thread):
    """Listens to Redis' own notifications, which are lost to nobody who is there.

    `events` has them in the form of the messages' bodies, without those of the
    fallback list: the module does not forward its own keys.
    """

    def __init__(self, client: Any) -> None:
        super().__init__()
        self.events: list[bytes] = []
        self.fences = 0
        self._pubsub = client.pubsub()
        self._pubsub.psubscribe("__keyevent@*__:*")
        self._pubsub.subscribe(FENCE)

    def work(self) -> None:
        while not self.ending.is_set():
            message = self._pubsub.get_message(timeout=0.2)
            if message is None or message["type"] not in ("message", "pmessage"):
                continue
            channel, data = message["channel"], message["data"]
            if channel == FENCE:
                self.fences += 1
            elif data != KEY:
                event = KEYEVENT.fullmatch(channel)
                assert event is not None
                self.events.append(b"%b\n%b\n%b" % (event[1], event[2], data))


class Demo(show.Show):
    """One run."""

    def __init__(self, stage: show.Stage) -> None:
        super().__init__(stage, "A")
        self._redis = RedisServer(
            stage.folder / "redis",
            module=[str(stage.module), *self._arguments],
            options=[
                # For the witness alone; the module needs none of it.
                "notify-keyspace-events EA",
                "client-output-buffer-limit pubsub 0 0 0",
            ],
        )
        stage.stack.callback(self._redis.stop)
        self._client: Any = self._redis.client()  # redis-py types only some of its methods

    def run(self) -> bool:
        """All of it; whether nothing was lost, unexpected or out of order."""
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

    # ---- the parts of the show ---------------------------------------------

    def _start(self) -> None:
        self._title("1. A private Redis and a private RabbitMQ")
        self._say(
            "Both start now, on free ports and in a temporary folder; RabbitMQ takes a while."
        )
        start = time.monotonic()
        self._broker.spawn()
        self._redis.start()
        self._open_queue()
        self._client.execute_command("KEYSPACEAMQP.CONNECT")
        self._wait(lambda: self._stats()["state"] == b"connected", "the module is connected")
        self._witness = self._thread(Witness(self._redis.client()))
        self._wait(lambda: self._client.publish(FENCE, b""), "the witness listens")
        version = self._client.info("server")["redis_version"]
        self._say(
            f"Ready after {time.monotonic() - start:.1f} s: Redis {version} on port "
            f"{self._redis.port}, RabbitMQ on port {self._broker.port}, and in redis.conf:\n"
        )
        self._say_loadmodule()
        self._say(
            "A: events of all classes; 2: persistent messages. A consumer takes the messages from "
            "a durable queue. A witness subscribes to Redis' own notifications, to compare with."
        )

    def _show_events(self) -> None:
        self._title("2. Each event of Redis, and the message that arrived for it")
        events, messages = self._witness.events, self._consumer.messages
        table = show.plain_table()
        table.add_column("Redis command")
        table.add_column("event", style="cyan")
        table.add_column("message body", style="green")
        table.add_column("message_id", style="dim")
        table.add_column("after", justify="right", no_wrap=True)
        full = self._console.width >= show.FULL_WIDTH
        rows: list[tuple[str, float | None]] = []
        for words in COMMANDS:
            start = time.perf_counter()
            self._client.execute_command(*words)
            self._fence_witness()
            command = " ".join(shown(word) for word in words)
            # The key that expires is last, so this cannot meet its end.
            rows += [
                (command if n == len(rows) else "", start) for n in range(len(rows), len(events))
            ]
        # Redis alone knows when it expired the key: no time to measure from.
        self._wait(lambda: EXPIRED in events, "the key expires")
        self._fence_witness()
        rows += [("(a moment later)", None)] * (len(events) - len(rows))
        self._wait(lambda: len(messages) >= len(events), "a message for each event")
        for (command, started), event, message in zip(rows, events, messages, strict=False):
            table.add_row(
                Text(command),
                Text(shown(event.split(b"\n")[1])),
                Text(shown(message.body), style="" if message.body == event else "bold red"),
                Text(message.id if full else f"..{message.id[-8:]}"),
                "" if started is None else f"{(message.at - started) * 1000:.1f} ms",
            )
        self._console.print(table)
        self._say(
            "\nA body is db, event and key, with newlines between; the key comes whole, whatever "
            "its bytes. The time is from before the command until the consumer had the message."
        )

    def _show_outage(self) -> None:
        self._title("3. The broker dies under load, and comes back")
        self._say(
            f"A client now sets {show.WRITES_PER_SECOND} keys a second and times each answer.\n"
        )
        self._writer = self._thread(show.Writer(self._redis.client()))
        self._began = time.monotonic()
        self._row_from = 0
        columns = "   time  the module       SETs  received  slowest SET  in list"
        self._say(columns, "bold")
        self._rows(self._after(BEFORE_OUTAGE))
        self._killed_at = len(self._writer.answers)
        self._kill_broker()
        self._rows(self._after(OUTAGE))
        self._started_at = len(self._writer.answers)
        self._start_broker()
        self._rows(self._drained)
        self._drained_at = len(self._writer.answers)
        self._happens("the list is empty: all of it was confirmed", "green")
        self._rows(self._after(1.0))
        self._writer.end()
        self._check_threads()
        self._say(
            f"\nThe list is a key in Redis, {KEY.decode()}, replicated and saved like others."
        )

    def _show_books(self) -> bool:
        self._title("4. The books")
        self._fence_witness()
        self._wait(lambda: show.at_rest(self._stats()), "the module has delivered everything")
        self._fence_consumer()
        events, messages = self._witness.events, self._consumer.messages
        result = show.compare(events, [message.body for message in messages])
        answers = self._writer.answers
        away = answers[self._killed_at : self._started_at]
        back = answers[self._started_at : self._drained_at]
        there = answers[: self._killed_at] + answers[self._drained_at :]
        table = show.books_table()
        row = functools.partial(show.add_row, table)
        self._add_comparison(table, len(events), "by Redis' own notifications", result)
        row("out of order", f"{result.out_of_order:,}", "", not result.out_of_order)
        self._add_repeated(table)
        row("slowest SET, broker up", _milliseconds(max(there)), _of(there))
        row("  broker dead", _milliseconds(max(away)), _of(away))
        row("  it starts, list drains", _milliseconds(max(back)), _of(back))
        row("slowest timer", _milliseconds(self._writer.late), "of the same client, without Redis")
        self._console.print(table)

        stats = self._stats()
        self._say("\nThe module's own numbers (KEYSPACEAMQP.STATS) balance:")
        self._say_books(stats)

        written = self._writer.events()
        seen = [event for event in events if event.startswith(b"0\nset\n" + READING.encode())]
        reasons = {
            f"{result.lost.total()} lost": result.lost,
            f"{result.unexpected.total()} unexpected": result.unexpected,
            f"{result.out_of_order} out of order": result.out_of_order,
            "the witness did not see what was written": seen != written,
            "the module did not count each event": stats["events_matched"] != len(events),
            "the module's numbers do not balance": show.balance(stats),
        }
        return self._judge(reasons, "Nothing lost, everything in order, byte for byte.")

    # ---- help for these ----------------------------------------------------

    def _fence_witness(self) -> None:
        """Waits until the witness has seen all that happened before."""
        before = self._witness.fences
        self._client.publish(FENCE, b"")
        self._wait(lambda: self._witness.fences > before, "the witness hears")

    def _stats(self) -> dict[str, Any]:
        return show.numbers(self._client)

    def _drained(self) -> bool:
        stats = self._stats()
        return bool(stats["state"] == b"connected" and stats["fallback_length"] == 0)

    def _row(self) -> Text:
        stats = self._stats()
        length = stats["fallback_length"]
        answers = self._writer.answers[self._row_from :]
        self._row_from += len(answers)
        bar = "#" * math.ceil(length / BAR_UNIT)
        line = Text(
            f"{stats['state'].decode():12}  {self._row_from:7,}  "
            f"{len(self._consumer.messages):8,}  "
            f"{_milliseconds(max(answers, default=0)):>11}  {length:7,} "
        )
        return line.append(bar, "yellow")


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _of(answers: Sequence[float]) -> str:
    half = statistics.median(answers) * 1000
    return f"of {len(answers):,}; half took at most {half:.2f} ms"


def run(module: pathlib.Path, *, keep: bool = False) -> int:
    """Runs the demo with the module at this path; the exit code."""
    return show.perform(Demo, module, "demo", keep=keep)
