"""The demo: events of a real Redis in a real RabbitMQ, with an outage between.

It starts both as private servers, shows what Redis says of its keys beside the
messages that arrive, kills the broker under a stream of writes, starts it again,
and compares both sides byte for byte. Every number is measured in this run; the
exit code tells whether the promise was kept.

Whatever happens, Ctrl-C included, the servers end and their folder is removed.
Never imported inside Redis.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import math
import pathlib
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import pika
import redis
from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import fallback
from .servers import RabbitServer, RedisServer, ServerError, wait_for

EXCHANGE = "amq.direct"
QUEUE = ROUTING_KEY = "redis_keyspace_events"
# The module's arguments after the broker's address: user, password, heartbeat,
# exchange, routing key, and messages that survive the broker.
ARGUMENTS = ("guest", "guest", "30", EXCHANGE, ROUTING_KEY, "2")

# Fast enough that an outage piles something up, slow enough that Python's own
# work does not show in the answers' times.
WRITES_PER_SECOND = 500
BEFORE_OUTAGE = 2.0
OUTAGE = 3.0
# An arrival, a reconnection, the end of a thread: far more than these take.
PATIENCE = 20.0

# Lines are not longer than this, and just so long in a pipe. From FULL_WIDTH on
# there is room for whole message ids.
WIDTH = 100
FULL_WIDTH = 90
# A mark of the list's bar stands for so many elements.
BAR_UNIT = 400

# Not a key: a message in both streams behind which nothing is missing.
FENCE = b"keyspace-amqp-demo"
KEYEVENT = re.compile(rb"__keyevent@(\d+)__:(.*)", re.DOTALL)
READING = "reading:"

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

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclasses.dataclass(frozen=True)
class Message:
    """A message when it arrived for the first time; `at` in perf_counter's seconds."""

    id: str
    body: bytes
    at: float


@dataclasses.dataclass(frozen=True)
class Comparison:
    """What is wrong with the messages, if anything."""

    lost: collections.Counter[bytes]
    unexpected: collections.Counter[bytes]
    out_of_order: int


def compare(events: Sequence[bytes], bodies: Sequence[bytes]) -> Comparison:
    """Holds the messages' bodies against the events, both in their order.

    Out of order is a message that arrives after one of a later event.
    """
    lost = collections.Counter(events)
    lost.subtract(bodies)
    places: dict[bytes, collections.deque[int]] = collections.defaultdict(collections.deque)
    for place, event in enumerate(events):
        places[event].append(place)
    latest = -1
    out_of_order = 0
    for body in bodies:
        if places[body]:
            place = places[body].popleft()
            out_of_order += place < latest
            latest = max(latest, place)
    return Comparison(+lost, -lost, out_of_order)


class _Thread(threading.Thread):
    """A thread of the demo; what went wrong in it is in `error`."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ending = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.work()
        except Exception as error:
            self.error = error

    def work(self) -> None:
        raise NotImplementedError

    def end(self) -> None:
        self.ending.set()
        if self.is_alive():
            self.join(PATIENCE)


AnyThread = TypeVar("AnyThread", bound=_Thread)


class Witness(_Thread):
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
            elif data != fallback.KEY:
                event = KEYEVENT.fullmatch(channel)
                assert event is not None
                self.events.append(b"%b\n%b\n%b" % (event[1], event[2], data))


class Consumer(_Thread):
    """Takes the messages from the queue, whenever there is a broker.

    A message acknowledged too late for the broker that died comes again, like
    one that the module had to repeat: its message_id tells.
    """

    def __init__(self, broker: RabbitServer) -> None:
        super().__init__()
        self.messages: list[Message] = []
        self.repeated = 0
        self.fences = 0
        self._broker = broker
        self._known: dict[str, bytes] = {}

    def work(self) -> None:
        while not self.ending.is_set():
            try:
                with self._broker.connection() as connection:
                    self._consume(connection.channel())
            except (pika.exceptions.AMQPError, OSError):
                self.ending.wait(0.1)

    def _consume(self, channel: Any) -> None:
        channel.basic_qos(prefetch_count=500)
        for method, properties, body in channel.consume(QUEUE, inactivity_timeout=0.2):
            if self.ending.is_set():
                return
            if method is not None:
                self._received(properties.message_id, body)
                channel.basic_ack(method.delivery_tag)

    def _received(self, message_id: str, body: bytes) -> None:
        if body == FENCE:
            self.fences += 1
        elif self._known.get(message_id) == body:
            self.repeated += 1
        else:
            self._known[message_id] = body
            self.messages.append(Message(message_id, body, time.perf_counter()))


class Writer(_Thread):
    """Sets numbered keys at a steady rate and measures each answer, in seconds.

    `late` is how late its own timer was at most, Redis having no part in that: so
    much of an answer's time may be the machine's.
    """

    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self.answers: list[float] = []
        self.late = 0.0
        self._client = client

    def work(self) -> None:
        due = time.perf_counter()
        while not self.ending.is_set():
            due += 1 / WRITES_PER_SECOND
            pause = due - time.perf_counter()
            if pause > 0:
                self.ending.wait(pause)
                self.late = max(self.late, time.perf_counter() - due)
            number = len(self.answers)
            start = time.perf_counter()
            self._client.set(f"{READING}{number}", number)
            self.answers.append(time.perf_counter() - start)


class Demo:
    """One run. Whoever makes it closes `stack` at the end."""

    def __init__(
        self,
        console: Console,
        stack: contextlib.ExitStack,
        folder: pathlib.Path,
        module: pathlib.Path,
    ) -> None:
        self._console = console
        self._stack = stack
        self._broker = RabbitServer(folder / "rabbitmq")
        stack.callback(self._end_broker)
        self._arguments = ("A", "127.0.0.1", str(self._broker.port), *ARGUMENTS)
        self._redis = RedisServer(
            folder / "redis",
            module=[str(module), *self._arguments],
            options=[
                # For the witness alone; the module needs none of it.
                "notify-keyspace-events EA",
                "client-output-buffer-limit pubsub 0 0 0",
            ],
        )
        stack.callback(self._redis.stop)
        self._module = module
        self._client: Any = self._redis.client()  # redis-py types only some of its methods
        self._threads: list[_Thread] = []

    def run(self) -> bool:
        """All of it; whether nothing was lost, unexpected or out of order."""
        self._start()
        self._show_events()
        self._show_outage()
        return self._show_books()

    def log(self) -> list[str]:
        """What the module has last said in Redis' log."""
        return [line for line in self._redis.log().splitlines() if "<keyspaceamqp>" in line][-10:]

    # ---- the parts of the show ---------------------------------------------

    def _start(self) -> None:
        self._title("1. A private Redis and a private RabbitMQ")
        self._say(
            "Both start now, on free ports and in a temporary folder; RabbitMQ takes a while."
        )
        start = time.monotonic()
        self._broker.spawn()
        self._redis.start()
        self._broker.wait_ready()
        with self._broker.connection() as connection:
            channel = connection.channel()
            channel.queue_declare(QUEUE, durable=True)
            channel.queue_bind(QUEUE, EXCHANGE, ROUTING_KEY)
        self._client.execute_command("KEYSPACEAMQP.CONNECT")
        self._wait(lambda: self._stats()["state"] == b"connected", "the module is connected")
        self._witness = self._thread(Witness(self._redis.client()))
        self._consumer = self._thread(Consumer(self._broker))
        self._wait(lambda: self._client.publish(FENCE, b""), "the witness listens")
        version = self._client.info("server")["redis_version"]
        self._say(
            f"Ready after {time.monotonic() - start:.1f} s: Redis {version} on port "
            f"{self._redis.port}, RabbitMQ on port {self._broker.port}, and in redis.conf:\n"
        )
        # One line even where the window is narrower: people copy it.
        line = Text(f"loadmodule {self._module.name} {' '.join(self._arguments)}\n", "cyan")
        self._console.print(line, soft_wrap=True)
        self._say(
            "A: events of all classes; 2: persistent messages. A consumer takes the messages from "
            "a durable queue. A witness subscribes to Redis' own notifications, to compare with."
        )

    def _show_events(self) -> None:
        self._title("2. Each event of Redis, and the message that arrived for it")
        events, messages = self._witness.events, self._consumer.messages
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
        table.add_column("Redis command")
        table.add_column("event", style="cyan")
        table.add_column("message body", style="green")
        table.add_column("message_id", style="dim")
        table.add_column("after", justify="right", no_wrap=True)
        full = self._console.width >= FULL_WIDTH
        rows: list[tuple[str, float | None]] = []
        for words in COMMANDS:
            start = time.perf_counter()
            self._client.execute_command(*words)
            self._fence_witness()
            shown = " ".join(_shown(word) for word in words)
            # The key that expires is last, so this cannot meet its end.
            rows += [
                (shown if n == len(rows) else "", start) for n in range(len(rows), len(events))
            ]
        # Redis alone knows when it expired the key: no time to measure from.
        self._wait(lambda: EXPIRED in events, "the key expires")
        self._fence_witness()
        rows += [("(a moment later)", None)] * (len(events) - len(rows))
        self._wait(lambda: len(messages) >= len(events), "a message for each event")
        for (command, started), event, message in zip(rows, events, messages, strict=False):
            table.add_row(
                Text(command),
                Text(_shown(event.split(b"\n")[1])),
                Text(_shown(message.body), style="" if message.body == event else "bold red"),
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
        self._say(f"A client now sets {WRITES_PER_SECOND} keys a second and times each answer.\n")
        self._writer = self._thread(Writer(self._redis.client()))
        self._began = time.monotonic()
        self._row_from = 0
        columns = "   time  the module       SETs  received  slowest SET  in list"
        self._say(columns, "bold")
        self._rows(self._after(BEFORE_OUTAGE))
        self._killed_at = len(self._writer.answers)
        self._broker.kill()
        self._say("         kill -9 RabbitMQ", "bold red")
        self._rows(self._after(OUTAGE))
        self._started_at = len(self._writer.answers)
        self._broker.spawn()
        self._say("         RabbitMQ is started again; the writes go on", "bold yellow")
        self._rows(lambda: self._broker.ready() or not self._broker.running)
        self._broker.wait_ready()
        self._say("         RabbitMQ accepts connections", "bold green")
        self._rows(self._drained)
        self._drained_at = len(self._writer.answers)
        self._say("         the list is empty: all of it was confirmed", "bold green")
        self._rows(self._after(1.0))
        self._writer.end()
        self._check_threads()
        self._say(
            f"\nThe list is a key in Redis, {fallback.KEY.decode()}, replicated and saved like "
            "others."
        )

    def _show_books(self) -> bool:
        self._title("4. The books")
        self._fence_witness()
        self._wait(self._at_rest, "the module has delivered everything")
        self._fence_consumer()
        events, messages = self._witness.events, self._consumer.messages
        result = compare(events, [message.body for message in messages])
        lost, unexpected = result.lost.total(), result.unexpected.total()
        answers = self._writer.answers
        away = answers[self._killed_at : self._started_at]
        back = answers[self._started_at : self._drained_at]
        there = answers[: self._killed_at] + answers[self._drained_at :]
        table = Table(box=None, show_header=False, padding=(0, 2))
        table.add_column()
        table.add_column(justify="right")
        table.add_column()

        def row(name: str, value: str, remark: str, good: bool = True) -> None:
            table.add_row(name, Text(value, style="bold" if good else "bold red"), Text(remark))

        row("events", f"{len(events):,}", "by Redis' own notifications")
        row("messages", f"{len(messages):,}", "received, repeated ones left out")
        row("lost", f"{lost:,}", _examples(result.lost), not lost)
        row("unexpected", f"{unexpected:,}", _examples(result.unexpected), not unexpected)
        row("out of order", f"{result.out_of_order:,}", "", not result.out_of_order)
        row(
            "repeated", f"{self._consumer.repeated:,}",
            "in doubt when the broker died",
        )  # fmt: skip
        row("slowest SET, broker up", _milliseconds(max(there)), _of(there))
        row("  broker dead", _milliseconds(max(away)), _of(away))
        row("  it starts, list drains", _milliseconds(max(back)), _of(back))
        row("slowest timer", _milliseconds(self._writer.late), "of the same client, without Redis")
        self._console.print(table)

        stats = self._stats()
        left = ("events_matched", "fallback_found")
        right = ("confirmed", "dropped", "fallback_length", "queue_length", "in_flight")
        self._say("\nThe module's own numbers (KEYSPACEAMQP.STATS) balance:")
        self._say("  " + " + ".join(f"{name} {stats[name]}" for name in left) + " =")
        self._say("  " + " + ".join(f"{name} {stats[name]}" for name in right))

        written = [b"0\nset\n%b%d" % (READING.encode(), n) for n in range(len(answers))]
        seen = [event for event in events if event.startswith(b"0\nset\n" + READING.encode())]
        reasons = {
            f"{lost} lost": lost,
            f"{unexpected} unexpected": unexpected,
            f"{result.out_of_order} out of order": result.out_of_order,
            "the witness did not see what was written": seen != written,
            "the module did not count each event": stats["events_matched"] != len(events),
            "the module's numbers do not balance": sum(stats[name] for name in left)
            != sum(stats[name] for name in right),
        }
        wrong = [reason for reason, is_wrong in reasons.items() if is_wrong]
        if wrong:
            self._say(f"\nFAILED: {'; '.join(wrong)}.", "bold red")
        else:
            self._say("\nNothing lost, everything in order, byte for byte.", "bold green")
        return not wrong

    def keep(self) -> None:
        """Leaves the servers to the user and shows what arrives, until Ctrl-C."""
        cli = f"redis-cli -p {self._redis.port}"
        self._title("Yours to play with, until Ctrl-C")
        self._say(
            f"Redis     {cli}\n"
            f"RabbitMQ  amqp://guest:guest@127.0.0.1:{self._broker.port}/\n\n"
            "Try this in another terminal:\n\n"
            f"  {cli} SET greeting hello EX 3\n"
            f"  {cli} KEYSPACEAMQP.STATS\n"
            f"  {cli} KEYSPACEAMQP.HELP\n\n"
            "Messages that arrive:"
        )
        for number in itertools.count(len(self._consumer.messages)):
            while number >= len(self._consumer.messages):
                self._check_threads()
                time.sleep(0.05)
            message = self._consumer.messages[number]
            self._say(f"  {message.id}  {_shown(message.body)}", "green")

    # ---- help for these ----------------------------------------------------

    def _title(self, text: str) -> None:
        self._console.print()
        self._console.rule(f"[bold]{text}", align="left")

    def _say(self, text: str, style: str = "") -> None:
        self._console.print(Text(text, style=style))

    def _thread(self, thread: AnyThread) -> AnyThread:
        self._threads.append(thread)
        self._stack.callback(thread.end)
        thread.start()
        return thread

    def _check_threads(self) -> None:
        for thread in self._threads:
            if thread.error is not None:
                raise thread.error

    def _wait(self, condition: Callable[[], Any], what: str) -> None:
        def checked() -> Any:
            self._check_threads()
            return condition()

        wait_for(checked, PATIENCE, what)

    def _fence_witness(self) -> None:
        """Waits until the witness has seen all that happened before."""
        before = self._witness.fences
        self._client.publish(FENCE, b"")
        self._wait(lambda: self._witness.fences > before, "the witness hears")

    def _fence_consumer(self) -> None:
        """Waits until the consumer has got all that is in the queue."""
        before = self._consumer.fences
        with self._broker.connection() as connection:
            connection.channel().basic_publish("", QUEUE, FENCE)
        self._wait(lambda: self._consumer.fences > before, "the consumer gets the last message")

    def _stats(self) -> dict[str, Any]:
        reply: Any = self._client.execute_command("KEYSPACEAMQP.STATS")
        if not isinstance(reply, dict):  # RESP2 has no maps
            reply = dict(zip(reply[::2], reply[1::2], strict=True))
        return {name.decode(): value for name, value in reply.items()}

    def _drained(self) -> bool:
        stats = self._stats()
        return bool(stats["state"] == b"connected" and stats["fallback_length"] == 0)

    def _at_rest(self) -> bool:
        stats = self._stats()
        return not any(stats[name] for name in ("fallback_length", "queue_length", "in_flight"))

    @staticmethod
    def _after(seconds: float) -> Callable[[], bool]:
        until = time.monotonic() + seconds
        return lambda: time.monotonic() >= until

    def _rows(self, until: Callable[[], Any]) -> None:
        """Shows how things are, each second, until a condition holds."""
        limit = time.monotonic() + 3 * PATIENCE
        row_at = time.monotonic() + 1
        done = False
        while not done:
            self._check_threads()
            done = bool(until())
            now = time.monotonic()
            if now > limit:
                raise TimeoutError("the outage does not end")
            if now >= row_at or done:
                self._row()
                row_at += 1
            time.sleep(0.02)

    def _row(self) -> None:
        stats = self._stats()
        length = stats["fallback_length"]
        answers = self._writer.answers[self._row_from :]
        self._row_from += len(answers)
        bar = "#" * math.ceil(length / BAR_UNIT)
        passed = time.monotonic() - self._began
        line = Text(
            f"{passed:5.1f} s  {stats['state'].decode():12}  {self._row_from:7,}  "
            f"{len(self._consumer.messages):8,}  "
            f"{_milliseconds(max(answers, default=0)):>11}  {length:7,} "
        )
        line.append(bar, "yellow")
        self._console.print(line, no_wrap=True, overflow="crop")

    def _end_broker(self) -> None:
        self._broker.kill()  # its data goes with the folder
        self._broker.stop()


def _shown(word: str | bytes | int) -> str:
    """A word as people read it; bytes that are no text are escaped."""
    return repr(word)[2:-1] if isinstance(word, bytes) else str(word)


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def _of(answers: Sequence[float]) -> str:
    half = statistics.median(answers) * 1000
    return f"of {len(answers):,}; half took at most {half:.2f} ms"


def _examples(bodies: Iterable[bytes]) -> str:
    return "  ".join(_shown(body) for body in itertools.islice(bodies, 3))


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(_number: int, _frame: object) -> None:
    """The first signal ends the demo; none may disturb the cleaning up after it."""
    _ignore_signals()
    raise KeyboardInterrupt


def run(module: pathlib.Path, *, keep: bool = False) -> int:
    """Runs the demo with the module at this path; the exit code."""
    console = Console(highlight=False)
    console.width = min(console.width, WIDTH) if console.is_terminal else WIDTH
    # The writer's times should show Redis, not the other threads' turns.
    sys.setswitchinterval(0.0005)
    before = {number: signal.getsignal(number) for number in SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # by nohup, or in the background of a script
            signal.signal(number, _interrupt)
    start = time.monotonic()
    good = False
    try:
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(
                    prefix="keyspace-amqp-demo-", ignore_cleanup_errors=True
                )
            )
            demo = Demo(console, stack, pathlib.Path(folder), module)
            stack.callback(_ignore_signals)
            try:
                good = demo.run()
                if keep:
                    demo.keep()
            except (
                ServerError,
                TimeoutError,
                redis.RedisError,
                pika.exceptions.AMQPError,
            ) as error:
                console.print(Text(f"\nThe demo cannot go on: {error}", style="bold red"))
                for line in demo.log():
                    console.print(Text(line))
                return 1
    except KeyboardInterrupt:
        console.print("\nStopped; the servers are ended and their folder is removed.")
        return 0 if good and keep else 130
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    console.print(
        f"That took {time.monotonic() - start:.0f} s; nothing is left running. With --keep "
        "(make demo DEMO_ARGS=--keep) the servers stay, to play with."
    )
    return 0 if good else 1
