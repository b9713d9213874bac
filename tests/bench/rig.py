"""The servers that are compared, and the books of the server with the module."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

from keyspace_amqp.demo.servers import POLL, RabbitServer, RedisServer, free_port
from tests.fix_servers import EXCHANGE, MODULE, arguments_for, balance, stats
from tests.servers import program

from . import measure
from .measure import BUILT, LostEvents

QUEUE = "bench"  # and its routing key
DELIVERY_MODE = 1  # the module's default
# If STATS does not change for so many seconds, the end of a wait will never come.
STALLED = 30.0
# Realistic masks of which none matches a key of redis-benchmark (key:…) or of load.c.
MASKS = (
    "^user:.*", "^session:", "^order:.*:paid$", "^cart:.*:items$", "invoice", "^cache:page:",
    ":lock$", "^job:.*:state$", "^rate:.*:minute$", "token", "^product:.*:stock$", "^geo:",
    "^feed:.*", ":inbox$", "^tmp:", "^queue:mail:", "^a.*:b.*:c$", "^item:0*7$", "^profile:..:",
    "draft",
)  # fmt: skip

S = TypeVar("S", RedisServer, RabbitServer)


class Rig:
    """The servers of a run. Used in a `with`. Each server starts at its first use, and ends with
    the rig.

    `bare`: a Redis without modules; `floor`: one with a subscriber that does nothing; `ours`:
    one with the module and all events; `broker`: a RabbitMQ with a queue for the events.
    `losses`: the events that were lost. Most likely failure: STATS stops changing while
    events still wait (LostEvents).
    """

    def __init__(self, folder: pathlib.Path, family: str, options: Sequence[str] = ()) -> None:
        self._folder = folder
        self.family = family
        self._options = list(options)
        self._stack = contextlib.ExitStack()
        self._lender: Rig | None = None  # of the broker
        self._queue = QUEUE
        self.losses: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def beside(
        self, name: str, family: str, options: Sequence[str], own_broker: bool = False
    ) -> Rig:
        """Return a rig with other servers, whose configuration has these lines, and with the broker
        of this one or one of its own."""
        other = Rig(self._folder / name, family, options)
        other._lender = None if own_broker else self
        other.losses = self.losses
        return other

    def redis(
        self, name: str, module: Sequence[Any] = (), options: Sequence[str] = ()
    ) -> RedisServer:
        """Return a new Redis, which is not started; the caller starts and stops it."""
        binary = program(self.family)
        options = [*self._options, *options]
        return RedisServer(self._folder / name, binary, [str(word) for word in module], options)

    def _start(self, server: S) -> S:
        """Start a server that ends with the rig, also if the start is interrupted."""
        self._stack.callback(server.stop)
        server.start()
        return server

    @functools.cached_property
    def bare(self) -> RedisServer:
        return self._start(self.redis("bare"))

    @functools.cached_property
    def floor(self) -> RedisServer:
        return self._start(self.redis("floor", [BUILT / "empty.so"]))

    @functools.cached_property
    def ours(self) -> RedisServer:
        arguments = arguments_for(self.nobody, QUEUE, mode=DELIVERY_MODE, size=0)
        return self._start(self.redis("ours", [MODULE, *arguments]))

    @functools.cached_property
    def client(self) -> Any:
        """A client of `ours`."""
        return self._stack.enter_context(self.ours.client())

    @functools.cached_property
    def bare_client(self) -> Any:
        return self._stack.enter_context(self.bare.client())

    @functools.cached_property
    def worker(self) -> int:
        """The id of the worker thread in `ours`."""
        return measure.worker_thread(self.ours.pid)

    @functools.cached_property
    def nobody(self) -> int:
        """A port that nobody listens on."""
        return free_port()

    @functools.cached_property
    def sink(self) -> int:
        """The port of sink.c."""
        return self._stack.enter_context(measure.sink())

    @functools.cached_property
    def broker(self) -> RabbitServer:
        if self._lender is not None:
            return self._lender.broker
        broker = self._start(RabbitServer(self._folder / "rabbitmq"))
        with broker.connection() as connection:
            channel = connection.channel()
            channel.queue_declare(QUEUE, durable=True)
            channel.queue_bind(QUEUE, EXCHANGE, QUEUE)
        return broker

    @property
    def started_broker(self) -> RabbitServer | None:
        """The broker if it was started, else None."""
        return self.__dict__.get("broker")

    # ---- the broker's queue ------------------------------------------------

    def depth(self) -> int:
        """Return the number of messages in the queue."""
        with self.broker.connection() as connection:
            found = connection.channel().queue_declare(self._queue, passive=True)
            return int(found.method.message_count)

    def empty_queue(self) -> None:
        """Remove all messages from the queue."""
        with self.broker.connection() as connection:
            connection.channel().queue_purge(self._queue)

    @contextlib.contextmanager
    def queue(self, arguments: dict[str, Any], delivery_mode: int) -> Iterator[str]:
        """Let `ours` send to another queue, which is deleted after the `with`. Return its name."""
        before = {
            name: self.client.config_get(name)[name]
            for name in ("keyspaceamqp.routing-key", "keyspaceamqp.delivery-mode")
        }
        self._queue = f"{QUEUE}-{uuid.uuid4().hex}"
        with self.broker.connection() as connection:
            channel = connection.channel()
            channel.queue_declare(self._queue, durable=True, arguments=arguments)
            channel.queue_bind(self._queue, EXCHANGE, self._queue)
            self.client.config_set("keyspaceamqp.routing-key", self._queue)
            self.client.config_set("keyspaceamqp.delivery-mode", delivery_mode)
        yield self._queue
        with self.broker.connection() as connection:
            connection.channel().queue_delete(self._queue)
        self._queue = QUEUE
        for name, value in before.items():
            self.client.config_set(name, value)

    # ---- ours --------------------------------------------------------------

    def aim(self, port: int, masks: Sequence[str] = ("ALL",)) -> None:
        """Set the broker's port and the masks of `ours`, and wait until it is connected, unless
        the port is `nobody`."""
        self.client.config_set("keyspaceamqp.port", port)
        self.client.config_set("keyspaceamqp.masks", " ".join(masks))
        self.client.execute_command("KEYSPACEAMQP.CONNECT")
        if port != self.nobody:
            self.until(lambda numbers: numbers["state"] == "connected")

    def stats(self) -> dict[str, Any]:
        """Return STATS of `ours`."""
        return stats(self.client)

    def sets(self) -> int:
        """Return the number of SETs that `ours` has carried out."""
        commands = self.client.info("commandstats")
        return int(commands.get("cmdstat_set", {}).get("calls", 0))

    @contextlib.contextmanager
    def books(self, what: str, discard: bool = False, matches: bool = True) -> Iterator[None]:
        """A round of `what`, in a `with`: it starts and ends with nothing under way, and each of
        its SETs is accounted for. `discard`: events that are not delivered at the end are
        purged and count as accounted for. `matches`: True if the masks let events through.
        Missing events are added to `losses`. Raises LostEvents."""
        before, sets = self.rest(), self.sets()
        yield
        if discard:
            self.client.execute_command("KEYSPACEAMQP.DISCONNECT")
            self._wait(("queue_length", "in_flight"))
            self.client.execute_command("KEYSPACEAMQP.FALLBACK", "PURGE")
        after = self.rest()
        if discard:
            self.client.execute_command("KEYSPACEAMQP.CONNECT")
        new = {name: after[name] - before[name] for name in after if isinstance(after[name], int)}
        sets = self.sets() - sets
        done = new["confirmed"] + new["dropped_purged"] - new["fallback_found"]
        due = sets if matches else 0
        if new["events_seen"] != sets or new["events_matched"] != due or done != due:
            reasons = [
                f"{name} {number:,}"
                for name, number in new.items()
                if name.startswith("dropped_") and name != "dropped_purged" and number
            ]
            self.losses.append(
                f"{what}: {sets:,} SETs, {new['events_seen']:,} events seen, "
                f"{new['events_matched']:,} matched, {due - done:,} lost: {', '.join(reasons)}"
            )
            print(f"EVENTS LOST: {self.losses[-1]}", file=sys.stderr, flush=True)

    def rest(self) -> dict[str, Any]:
        """Wait until no event waits or is in flight, check the books, and return STATS. Raises
        LostEvents."""
        return self._wait(("queue_length", "in_flight", "fallback_length"))

    def _wait(self, names: Sequence[str]) -> dict[str, Any]:
        """Do the same for some of the gauges."""
        before: dict[str, Any] = {}

        def at_rest(numbers: dict[str, Any]) -> bool:
            calm = before == numbers and not any(numbers[name] for name in names)
            before.update(numbers)
            return calm

        numbers = self.until(at_rest)
        if balance(numbers):
            raise LostEvents(f"the books are off by {balance(numbers)}: {numbers}")
        return numbers

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Wait until a condition holds for STATS, and return STATS. Raises LostEvents if STATS
        stops changing before."""
        numbers = self.stats()
        changed = time.monotonic()
        while not condition(numbers):
            time.sleep(POLL)
            last, numbers = numbers, self.stats()
            if numbers != last:
                changed = time.monotonic()
            elif time.monotonic() > changed + STALLED:
                raise LostEvents(f"STATS does not change any more: {numbers}")
        return numbers
