"""The base class of the demos: a broker with a queue and a consumer, an outage of the
broker, and the comparison at the end.

Never imported inside Redis.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from rich.text import Text

from .books import CAME, WENT, Comparison
from .screen import BooksTable, Screen, examples, shown
from .servers import POLL, RabbitServer, RedisServer, wait_for
from .threads import EXCHANGE, FENCE, PATIENCE, QUEUE, ROUTING_KEY, Consumer, Thread

# The module's arguments after the broker's address: user, password, heartbeat, exchange,
# routing key, and messages that survive a restart of the broker.
ARGUMENTS = ("guest", "guest", "30", EXCHANGE, ROUTING_KEY, "2")

# Seconds for each part of the outage: the longest is the move of all slots of a primary.
PART_LIMIT = 3 * PATIENCE

# Lines of each server's log that are shown when a demo fails.
_LOG_LINES = 10

AnyThread = TypeVar("AnyThread", bound=Thread)


@dataclasses.dataclass(frozen=True)
class Workshop:
    """What a demo works with: the module's path, the screen, a folder that is removed at the
    end, and the stack that ends what the demo has started."""

    module: pathlib.Path
    screen: Screen
    stack: contextlib.ExitStack
    folder: pathlib.Path


class Demo:
    """One run of a demo. `events`: the classes of events that the module forwards.

    Most likely failures: a server does not start (ServerError), or something does not happen
    in time (TimeoutError). `log` then says more.
    """

    def __init__(self, workshop: Workshop, events: str) -> None:
        self._module = workshop.module
        self._screen = workshop.screen
        self._stack = workshop.stack
        self._broker = RabbitServer(workshop.folder / "rabbitmq")
        self._stack.callback(self._end_broker)
        self._arguments = (events, "127.0.0.1", str(self._broker.port), *ARGUMENTS)
        self._threads: list[Thread] = []
        self._began = 0.0

    # ---- what each demo has of its own ----------------------------------------

    def run(self) -> bool:
        """Run all parts. True if every promise was kept."""
        raise NotImplementedError

    def servers(self) -> Sequence[RedisServer]:
        """Return the Redis servers."""
        raise NotImplementedError

    def hints(self) -> str:
        """Return what the user may type while the servers stay."""
        raise NotImplementedError

    def _row(self) -> Text:
        """Return a row of the running table, without the time."""
        raise NotImplementedError

    # ---- after the parts -------------------------------------------------------

    def log(self) -> list[str]:
        """Return the module's last lines in the servers' logs."""
        lines = []
        for server in self.servers():
            said = [line for line in server.log().splitlines() if "<keyspaceamqp>" in line]
            lines += said[-_LOG_LINES:]
        return lines

    def keep(self) -> None:
        """Leave the servers to the user and print what arrives, until Ctrl-C."""
        self._screen.title("Yours to play with, until Ctrl-C")
        self._screen.say(
            f"RabbitMQ  amqp://guest:guest@127.0.0.1:{self._broker.port}/\n{self.hints()}\n\n"
            "Messages that arrive:"
        )
        for number in itertools.count(len(self._consumer.messages)):
            while number >= len(self._consumer.messages):
                self._check_threads()
                time.sleep(0.05)
            message = self._consumer.messages[number]
            self._screen.say(f"  {message.id}  {shown(message.body)}", "green")

    # ---- parts that both demos have ----------------------------------------------

    def _open_queue(self) -> None:
        """Wait for the broker, declare the queue and start the consumer."""
        self._broker.wait_ready()
        with self._broker.connection() as connection:
            channel = connection.channel()
            channel.queue_declare(QUEUE, durable=True)
            channel.queue_bind(QUEUE, EXCHANGE, ROUTING_KEY)
        self._broker.keep()
        self._consumer = self._start_thread(Consumer(self._broker))

    def _say_loadmodule(self) -> None:
        """Print the line of redis.conf that loads the module."""
        self._screen.command(f"loadmodule {self._module.name} {' '.join(self._arguments)}\n")

    def _add_comparison(
        self, table: BooksTable, events: int, source: str, result: Comparison
    ) -> None:
        lost, unexpected = result.lost.total(), result.unexpected.total()
        messages = len(self._consumer.messages)
        table.add("events", f"{events:,}", source)
        table.add("messages", f"{messages:,}", "received, repeated ones left out")
        table.add("lost", f"{lost:,}", examples(result.lost), good=not lost)
        table.add("unexpected", f"{unexpected:,}", examples(result.unexpected), good=not unexpected)

    def _add_repeated(self, table: BooksTable) -> None:
        remark = "in doubt when the broker died, so sent again: same message_id"
        table.add("repeated", f"{self._consumer.repeated:,}", remark)

    def _judge(self, reasons: Mapping[str, object], praise: str) -> bool:
        """Print the verdict. `reasons`: for each possible failure, whether it has happened.
        True if none has."""
        wrong = [reason for reason, is_wrong in reasons.items() if is_wrong]
        if wrong:
            self._screen.say(f"\nFAILED: {'; '.join(wrong)}.", "bold red")
        else:
            self._screen.say(f"\n{praise}", "bold green")
        return not wrong

    def _say_books(self, stats: Mapping[str, Any]) -> None:
        self._screen.say("  " + " + ".join(f"{name} {stats[name]}" for name in CAME) + " =")
        self._screen.say("  " + " + ".join(f"{name} {stats[name]}" for name in WENT))

    def _kill_broker(self) -> None:
        self._broker.kill()
        self._screen.say_happening("kill -9 RabbitMQ", "red")

    def _start_broker(self) -> None:
        self._broker.spawn()
        self._screen.say_happening("RabbitMQ is started again; the writes go on", "yellow")
        self._print_rows(lambda: self._broker.ready() or not self._broker.running)
        self._broker.wait_ready()
        self._screen.say_happening("RabbitMQ accepts connections", "green")

    # ---- threads and waiting -------------------------------------------------------

    def _start_thread(self, thread: AnyThread) -> AnyThread:
        """Start a thread that ends with the demo."""
        self._threads.append(thread)
        self._stack.callback(thread.end)
        thread.start()
        return thread

    def _check_threads(self) -> None:
        """Raise the exception that has ended a thread, if one has."""
        for thread in self._threads:
            if thread.error is not None:
                raise thread.error

    def _wait(
        self, condition: Callable[[], Any], what: str, seen: Callable[[], str] | None = None
    ) -> None:
        """Wait until a condition holds; see `wait_for`. Raises TimeoutError, or a thread's
        exception."""

        def checked() -> Any:
            self._check_threads()
            return condition()

        wait_for(checked, PATIENCE, what, seen)

    def _fence_consumer(self) -> None:
        """Wait until the consumer has everything that is in the queue now."""
        before = self._consumer.fences
        with self._broker.connection() as connection:
            connection.channel().basic_publish("", QUEUE, FENCE)
        self._wait(
            lambda: self._consumer.fences > before,
            "the consumer gets what is in the queue",
            lambda: f"it has {len(self._consumer.messages)} messages",
        )

    def _print_rows_for(self, seconds: float) -> None:
        """Print a row each second, for so long."""
        end = time.monotonic() + seconds
        self._print_rows(lambda: time.monotonic() >= end)

    def _print_rows(self, until: Callable[[], Any]) -> None:
        """Print a row each second until a condition holds, and then a last one. Raises
        TimeoutError, or a thread's exception."""
        limit = time.monotonic() + PART_LIMIT
        row_at = time.monotonic() + 1
        done = False
        while not done:
            self._check_threads()
            done = bool(until())
            now = time.monotonic()
            if now > limit:
                raise TimeoutError(
                    f"this part has not ended within {PART_LIMIT:.0f} s; the last row says how far "
                    "it is"
                )
            if now >= row_at or done:
                self._screen.row(Text(f"{now - self._began:5.1f} s  ").append(self._row()))
                row_at += 1
            time.sleep(POLL)

    def _end_broker(self) -> None:
        self._broker.kill()  # its data goes with the folder
        self._broker.stop()
