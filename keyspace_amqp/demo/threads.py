"""The threads of the demos: a client that writes, a consumer, a witness, and any call that
takes long."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Callable
from typing import Any

import pika
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ..tables.keys import KEY
from .servers import RabbitServer, RedisServer

EXCHANGE = "amq.direct"
QUEUE = ROUTING_KEY = "redis_keyspace_events"

# Fast enough that an outage fills the list, slow enough that Python's own work does not
# show in the times of the answers.
WRITES_PER_SECOND = 500
# The prefix of the keys that the writer sets.
READING = "reading:"
# Seconds for an arrival or a reconnection: far more than they take, because a machine may be
# slow, or stand still for a while, and nothing is wrong then.
PATIENCE = 120.0
# Seconds for the end of a thread.
END_TIMEOUT = 20.0
# The text of a fence. A demo sends a fence to the consumer's queue or to the witness'
# channel; when the fence arrives, everything before it has arrived too.
FENCE = b"keyspace-amqp-demo"

_KEYEVENT = re.compile(rb"__keyevent@(\d+)__:(.*)", re.DOTALL)


class Thread(threading.Thread):
    """A thread of a demo. An exception that ends it is kept in `error`."""

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
        """Do the thread's work, until `ending` is set."""
        raise NotImplementedError

    def end(self) -> None:
        """Tell the thread to end, and wait for it."""
        self.ending.set()
        if self.is_alive():
            self.join(END_TIMEOUT)


class Task(Thread):
    """A call that takes long. Most likely failure: the call raises ServerError."""

    def __init__(self, call: Callable[[], object]) -> None:
        super().__init__()
        self._call = call

    def work(self) -> None:
        self._call()


@dataclasses.dataclass(frozen=True)
class Message:
    """A message when it arrived for the first time; `at` in seconds of perf_counter."""

    id: str
    body: bytes
    at: float


class Consumer(Thread):
    """Takes the messages from the queue whenever the broker is up.

    A message comes again if the module had to repeat it, or if its acknowledgement did not
    reach the broker before the broker died. Its message_id tells that it is the same, and it
    counts in `repeated`. Most likely failure: the broker is down, so the consumer tries
    again until it is back.
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
    """Sets numbered keys at a steady rate, and measures the time of each answer in seconds.

    `late`: the most that the writer's own timer was late, in seconds. Redis has no part in
    that, so an answer may be late by as much because of the machine. Most likely failure:
    Redis does not answer, and a redis.RedisError ends the thread.
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
        """Return the events of its writes, as bodies of messages."""
        numbers = range(self._first, self._first + len(self.answers))
        return [b"0\nset\n%b%d" % (READING.encode(), number) for number in numbers]


class Witness(Thread):
    """Listens to Redis' own notifications. Redis loses none for a subscriber that stays
    connected, so the witness never connects again: a lost connection ends the thread with a
    redis.RedisError, and nothing else does.

    `server`: the Redis. `events`: the notifications, as bodies of messages. Those of the fallback
    list are left out, because the module does not forward events of its own keys. `fences`: the
    number of fences that came.
    """

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.events: list[bytes] = []
        self.fences = 0
        self._server = server
        # Without a time limit: with one, redis-py may take a message that comes in two pieces for
        # a broken connection, and open another one without an error. The client is kept, because
        # a client that is thrown away closes all its connections.
        retry = Retry(NoBackoff(), 0)
        self._client: Any = server.client(socket_timeout=None, retry=retry)
        self._pubsub = self._client.pubsub()  # type: ignore[no-untyped-call]
        self._pubsub.psubscribe("__keyevent@*__:*")
        self._pubsub.subscribe(FENCE)

    def end(self) -> None:
        self.ending.set()
        with contextlib.suppress(redis.RedisError):  # it has ended, and the connection with it
            with self._server.client(retry=Retry(NoBackoff(), 0)) as client:
                client.publish(FENCE, b"")
        super().end()
        if not self.is_alive():
            self._pubsub.close()
            self._client.close()

    def work(self) -> None:
        for message in self._pubsub.listen():
            if self.ending.is_set():
                return
            if message["type"] not in ("message", "pmessage"):
                continue
            channel, data = message["channel"], message["data"]
            if channel == FENCE:
                self.fences += 1
            elif data != KEY:
                event = _KEYEVENT.fullmatch(channel)
                assert event is not None
                self.events.append(b"%b\n%b\n%b" % (event[1], event[2], data))
