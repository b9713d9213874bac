"""What the demos have in common: a broker with a consumer, a writer, the comparison
of both sides, lines on the console, and an end that leaves nothing behind.

Never imported inside Redis.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import pathlib
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import pika
import redis
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .servers import RabbitServer, RedisServer, ServerError, wait_for

EXCHANGE = "amq.direct"
QUEUE = ROUTING_KEY = "redis_keyspace_events"
# The module's arguments after the broker's address: user, password, heartbeat,
# exchange, routing key, and messages that survive the broker.
ARGUMENTS = ("guest", "guest", "30", EXCHANGE, ROUTING_KEY, "2")

# Fast enough that an outage piles something up, slow enough that Python's own
# work does not show in the answers' times.
WRITES_PER_SECOND = 500
# An arrival, a reconnection, the end of a thread: far more than these take.
PATIENCE = 20.0

# Lines are not longer than this, and just so long in a pipe. From FULL_WIDTH on
# there is room for whole message ids.
WIDTH = 100
FULL_WIDTH = 90

# Not a key: a message in both streams behind which nothing is missing.
FENCE = b"keyspace-amqp-demo"
READING = "reading:"

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

# The two sides of the module's books.
CAME = ("events_matched", "fallback_found")
WENT = ("confirmed", "dropped", "fallback_length", "queue_length", "in_flight")


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


class Thread(threading.Thread):
    """A thread of a demo; what went wrong in it is in `error`."""

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


AnyThread = TypeVar("AnyThread", bound=Thread)


class Consumer(Thread):
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


class Writer(Thread):
    """Sets numbered keys at a steady rate and measures each answer, in seconds.

    `late` is how late its own timer was at most, Redis having no part in that: so
    much of an answer's time may be the machine's.
    """

    def __init__(self, client: Any, first: int = 0) -> None:
        super().__init__()
        self.answers: list[float] = []
        self.late = 0.0
        self._client = client
        self._first = first

    def work(self) -> None:
        due = time.perf_counter()
        while not self.ending.is_set():
            due += 1 / WRITES_PER_SECOND
            pause = due - time.perf_counter()
            if pause > 0:
                self.ending.wait(pause)
                self.late = max(self.late, time.perf_counter() - due)
            number = self._first + len(self.answers)
            start = time.perf_counter()
            self._client.set(f"{READING}{number}", number)
            self.answers.append(time.perf_counter() - start)

    def events(self) -> list[bytes]:
        """What it has caused, as messages' bodies."""
        numbers = range(self._first, self._first + len(self.answers))
        return [b"0\nset\n%b%d" % (READING.encode(), number) for number in numbers]


@dataclasses.dataclass(frozen=True)
class Stage:
    """Where a demo runs. `stack` ends what it has started."""

    module: pathlib.Path
    console: Console
    stack: contextlib.ExitStack
    folder: pathlib.Path


class Show:
    """One run of a demo. `events`: the classes that the module forwards."""

    def __init__(self, stage: Stage, events: str) -> None:
        self._module = stage.module
        self._console = stage.console
        self._stack = stage.stack
        self._broker = RabbitServer(stage.folder / "rabbitmq")
        stage.stack.callback(self._end_broker)
        self._arguments = (events, "127.0.0.1", str(self._broker.port), *ARGUMENTS)
        self._threads: list[Thread] = []
        self._began = 0.0

    def run(self) -> bool:
        """All of it; whether the promise was kept."""
        raise NotImplementedError

    def servers(self) -> Sequence[RedisServer]:
        raise NotImplementedError

    def hints(self) -> str:
        """What to type when the servers stay."""
        raise NotImplementedError

    def log(self) -> list[str]:
        """What the module has last said in the logs."""
        return [
            line
            for server in self.servers()
            for line in [line for line in server.log().splitlines() if "<keyspaceamqp>" in line][
                -10:
            ]
        ]

    def keep(self) -> None:
        """Leaves the servers to the user and shows what arrives, until Ctrl-C."""
        self._title("Yours to play with, until Ctrl-C")
        self._say(
            f"RabbitMQ  amqp://guest:guest@127.0.0.1:{self._broker.port}/\n{self.hints()}\n\n"
            "Messages that arrive:"
        )
        for number in itertools.count(len(self._consumer.messages)):
            while number >= len(self._consumer.messages):
                self._check_threads()
                time.sleep(0.05)
            message = self._consumer.messages[number]
            self._say(f"  {message.id}  {shown(message.body)}", "green")

    # ---- the parts that all have -------------------------------------------

    def _open_queue(self) -> None:
        """Waits for the broker, and has a consumer take what comes."""
        self._broker.wait_ready()
        with self._broker.connection() as connection:
            channel = connection.channel()
            channel.queue_declare(QUEUE, durable=True)
            channel.queue_bind(QUEUE, EXCHANGE, ROUTING_KEY)
        self._broker.keep()
        self._consumer = self._thread(Consumer(self._broker))

    def _say_loadmodule(self) -> None:
        # One line even where the window is narrower: people copy it.
        line = Text(f"loadmodule {self._module.name} {' '.join(self._arguments)}\n", "cyan")
        self._console.print(line, soft_wrap=True)

    def _add_comparison(self, table: Table, events: int, source: str, result: Comparison) -> None:
        lost, unexpected = result.lost.total(), result.unexpected.total()
        messages = len(self._consumer.messages)
        add_row(table, "events", f"{events:,}", source)
        add_row(table, "messages", f"{messages:,}", "received, repeated ones left out")
        add_row(table, "lost", f"{lost:,}", examples(result.lost), not lost)
        add_row(table, "unexpected", f"{unexpected:,}", examples(result.unexpected), not unexpected)

    def _add_repeated(self, table: Table) -> None:
        repeated = f"{self._consumer.repeated:,}"
        add_row(
            table,
            "repeated",
            repeated,
            "in doubt when the broker died, so sent again: same message_id",
        )

    def _judge(self, reasons: Mapping[str, object], praise: str) -> bool:
        """Says what is wrong: the reasons that are so. Whether none is."""
        wrong = [reason for reason, is_wrong in reasons.items() if is_wrong]
        if wrong:
            self._say(f"\nFAILED: {'; '.join(wrong)}.", "bold red")
        else:
            self._say(f"\n{praise}", "bold green")
        return not wrong

    def _say_books(self, stats: Mapping[str, Any]) -> None:
        self._say("  " + " + ".join(f"{name} {stats[name]}" for name in CAME) + " =")
        self._say("  " + " + ".join(f"{name} {stats[name]}" for name in WENT))

    def _kill_broker(self) -> None:
        self._broker.kill()
        self._happens("kill -9 RabbitMQ", "red")

    def _start_broker(self) -> None:
        self._broker.spawn()
        self._happens("RabbitMQ is started again; the writes go on", "yellow")
        self._rows(lambda: self._broker.ready() or not self._broker.running)
        self._broker.wait_ready()
        self._happens("RabbitMQ accepts connections", "green")

    # ---- help for these ----------------------------------------------------

    def _happens(self, what: str, colour: str) -> None:
        """A line between the rows."""
        self._say(f"         {what}", f"bold {colour}")

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

    def _fence_consumer(self) -> None:
        """Waits until the consumer has got all that is in the queue."""
        before = self._consumer.fences
        with self._broker.connection() as connection:
            connection.channel().basic_publish("", QUEUE, FENCE)
        self._wait(lambda: self._consumer.fences > before, "the consumer gets the last message")

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
                self._print_row(Text(f"{now - self._began:5.1f} s  ").append(self._row()))
                row_at += 1
            time.sleep(0.02)

    def _print_row(self, row: Text) -> None:
        self._console.print(row, no_wrap=True, overflow="crop")

    def _row(self) -> Text:
        """How things are, after the time."""
        raise NotImplementedError

    def _end_broker(self) -> None:
        self._broker.kill()  # its data goes with the folder
        self._broker.stop()


def numbers(client: Any, *words: str) -> dict[str, Any]:
    """The reply of KEYSPACEAMQP.STATS, with further words."""
    return named(client.execute_command("KEYSPACEAMQP.STATS", *words))


def named(reply: Any) -> dict[str, Any]:
    """A reply that is a map."""
    if not isinstance(reply, dict):  # RESP2 has no maps
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    return {name.decode(): value for name, value in reply.items()}


def at_rest(stats: Mapping[str, Any]) -> bool:
    return not any(stats[name] for name in ("fallback_length", "queue_length", "in_flight"))


def balance(stats: Mapping[str, Any]) -> int:
    """What the books are off by."""
    return int(sum(stats[name] for name in CAME) - sum(stats[name] for name in WENT))


def plain_table(**options: Any) -> Table:
    """A table without lines."""
    return Table(box=None, padding=(0, 2, 0, 0), header_style="bold", **options)


def books_table() -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    table.add_column()
    table.add_column(justify="right")
    table.add_column()
    return table


def add_row(table: Table, name: str, value: str, remark: str, good: bool = True) -> None:
    table.add_row(name, Text(value, style="bold" if good else "bold red"), Text(remark))


def shown(word: str | bytes | int) -> str:
    """A word as people read it; bytes that are no text are escaped."""
    return repr(word)[2:-1] if isinstance(word, bytes) else str(word)


def examples(bodies: Iterable[bytes]) -> str:
    return "  ".join(shown(body) for body in itertools.islice(bodies, 3))


def _ignore_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def _interrupt(_number: int, _frame: object) -> None:
    """The first signal ends the demo; none may disturb the cleaning up after it."""
    _ignore_signals()
    raise KeyboardInterrupt


def perform(make: Callable[[Stage], Show], module: pathlib.Path, target: str, *, keep: bool) -> int:
    """Runs a demo with the module at this path, in a folder that goes at the end; the
    exit code. `target`: of make."""
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
            show = make(Stage(module, console, stack, pathlib.Path(folder)))
            stack.callback(_ignore_signals)
            try:
                good = show.run()
                if keep:
                    show.keep()
            except (
                ServerError,
                TimeoutError,
                redis.RedisError,
                pika.exceptions.AMQPError,
            ) as error:
                console.print(Text(f"\nThe demo cannot go on: {error}", style="bold red"))
                for line in show.log():
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
        f"(make {target} DEMO_ARGS=--keep) the servers stay, to play with."
    )
    return 0 if good else 1
