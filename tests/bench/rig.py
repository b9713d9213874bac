"""The servers that are compared, and the books of the one with the module."""

from __future__ import annotations

import contextlib
import functools
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

from keyspace_amqp.demo.servers import POLL, RabbitServer, RedisServer, free_port
from tests.fix_servers import EXCHANGE, FAMILIES, MODULE, arguments_for, balance, stats

from . import measure
from .measure import BUILT, LostEvents

QUEUE = "bench"  # and its routing key
DELIVERY_MODE = 1  # the module's default
# If STATS do not change for so many seconds, a wait for a change of them fails.
STUCK = 30.0
# Realistic masks of which none matches a key of redis-benchmark (key:…) or of load.c.
MASKS = (
    "^user:.*", "^session:", "^order:.*:paid$", "^cart:.*:items$", "invoice", "^cache:page:",
    ":lock$", "^job:.*:state$", "^rate:.*:minute$", "token", "^product:.*:stock$", "^geo:",
    "^feed:.*", ":inbox$", "^tmp:", "^queue:mail:", "^a.*:b.*:c$", "^item:0*7$", "^profile:..:",
    "draft",
)  # fmt: skip

S = TypeVar("S", RedisServer, RabbitServer)


class Rig:
    """In a `with`. Each server starts when it is first asked for, and ends with the rig.

    `bare`: Redis; `floor`: with a subscriber that does nothing; `ours`: with the module
    and all events; `broker`: RabbitMQ, with a queue for them.
    """

    def __init__(self, folder: pathlib.Path, family: str) -> None:
        self._folder = folder
        self._family = family
        self._stack = contextlib.ExitStack()
        self.losses: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def redis(
        self, name: str, module: Sequence[Any] = (), options: Sequence[str] = ()
    ) -> RedisServer:
        """A new Redis, not started; who starts it stops it."""
        binary = FAMILIES[self._family]()
        return RedisServer(self._folder / name, binary, [str(word) for word in module], options)

    def _start(self, server: S) -> S:
        """Starts a server that ends with the rig, also if it is interrupted just here."""
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
        """Of `ours`."""
        return self._stack.enter_context(self.ours.client())

    @functools.cached_property
    def bare_client(self) -> Any:
        return self._stack.enter_context(self.bare.client())

    @functools.cached_property
    def worker(self) -> int:
        """The thread of the module in `ours`."""
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
        broker = self._start(RabbitServer(self._folder / "rabbitmq"))
        with broker.connection() as connection:
            channel = connection.channel()
            channel.queue_declare(QUEUE, durable=True)
            channel.queue_bind(QUEUE, EXCHANGE, QUEUE)
        return broker

    @property
    def started_broker(self) -> RabbitServer | None:
        """The broker, if somebody has asked for it."""
        return self.__dict__.get("broker")

    # ---- the broker's queue ------------------------------------------------

    def depth(self) -> int:
        with self.broker.connection() as connection:
            found = connection.channel().queue_declare(QUEUE, passive=True)
            return int(found.method.message_count)

    def empty_queue(self) -> None:
        with self.broker.connection() as connection:
            connection.channel().queue_purge(QUEUE)

    # ---- ours --------------------------------------------------------------

    def aim(self, port: int, masks: Sequence[str] = ("ALL",)) -> None:
        """Where ours delivers, and what; returns when it is connected, unless there is
        nobody."""
        self.client.config_set("keyspaceamqp.port", port)
        self.client.config_set("keyspaceamqp.masks", " ".join(masks))
        self.client.execute_command("KEYSPACEAMQP.CONNECT")
        if port != self.nobody:
            self.until(lambda numbers: numbers["state"] == "connected")

    def stats(self) -> dict[str, Any]:
        return stats(self.client)

    def sets(self) -> int:
        """SETs that ours has carried out."""
        commands = self.client.info("commandstats")
        return int(commands.get("cmdstat_set", {}).get("calls", 0))

    @contextlib.contextmanager
    def books(self, what: str, discard: bool = False, matches: bool = True) -> Iterator[None]:
        """A round of `what`. Nothing is under way at its beginning and at its end, and each SET is
        accounted for. `discard`: events that are not delivered at the end are purged, which
        accounts for them. `matches`: the masks let events through. Losses are added to `losses`."""
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
        done = new["confirmed"] + new["dropped_purged"]
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
        """Waits until nothing is under way, and checks the books; STATS. Raises
        LostEvents."""
        return self._wait(("queue_length", "in_flight", "fallback_length"))

    def _wait(self, names: Sequence[str]) -> dict[str, Any]:
        """The same for some of the books."""
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
        """Waits until STATS are as they should be, and returns them. Raises LostEvents
        when they do not change any more."""
        numbers = self.stats()
        changed = time.monotonic()
        while not condition(numbers):
            time.sleep(POLL)
            last, numbers = numbers, self.stats()
            if numbers != last:
                changed = time.monotonic()
            elif time.monotonic() > changed + STUCK:
                raise LostEvents(f"nothing changes any more: {numbers}")
        return numbers
