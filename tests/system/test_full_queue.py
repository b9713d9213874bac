"""A full queue that refuses messages (reject-publish) beside a healthy one."""

from __future__ import annotations

import collections
import threading
import time

from keyspace_amqp.demo.servers import RabbitServer, wait_for
from tests.fix_faults import Probe
from tests.fix_servers import Mailbox, Message, StartRedis, arguments_for, once, settled, stats

# Seconds for which a queue is full.
FULL = 25.0
# Seconds from an event to its message in a healthy queue, on a busy machine. A queue that waited
# for the full one would take much longer.
SOON = FULL / 2
_LIMIT = {"x-max-length": 1, "x-overflow": "reject-publish"}


class Reader:
    """A consumer of a queue, in a `with`. `arrived`: the time of each message, by its key."""

    def __init__(self, mailbox: Mailbox) -> None:
        self.arrived: dict[bytes, list[float]] = collections.defaultdict(list)
        self._mailbox = mailbox
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with self._mailbox.broker.connection() as connection:
            channel = connection.channel()
            channel.basic_qos(prefetch_count=100)
            for method, properties, body in channel.consume(
                self._mailbox.name, inactivity_timeout=0.1
            ):
                if method is not None:
                    message = Message(body, properties, method.redelivered)
                    self.arrived[message.event[2]].append(time.monotonic())
                    channel.basic_ack(method.delivery_tag)
                elif self._stop.is_set():
                    return

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def declare(kind: str, queues: dict[str, Mailbox]) -> str:
    """Declare an exchange and bind queues to it by their routing keys. Return its name."""
    first = next(iter(queues.values()))
    exchange = f"{kind}-{first.name}"
    with first.broker.connection() as connection:
        channel = connection.channel()
        channel.exchange_declare(exchange, kind, durable=True)
        for key, mailbox in queues.items():
            channel.queue_bind(mailbox.name, exchange, key)
    return exchange


def _wait_until(then: float) -> None:
    time.sleep(max(0.0, then - time.monotonic()))


def test_a_healthy_queue_goes_on(
    broker: RabbitServer, start_redis: StartRedis, probe: Probe
) -> None:
    """Sixty messages a second for the full queue, and a thousand for the other."""
    full, healthy = Mailbox(broker, **_LIMIT), Mailbox(broker)
    arguments = arguments_for(broker, "{key:1}", "$")
    arguments[6] = declare("topic", {"a": full, "b": healthy})
    server = start_redis(arguments=arguments)
    client = server.client()
    emitted: dict[bytes, float] = {}
    refused: list[bytes] = []
    with Reader(healthy) as reader:
        begin = time.monotonic()
        with probe(server):
            while (now := time.monotonic()) < begin + FULL:
                pipeline = client.pipeline(transaction=False)
                for _ in range(3):
                    refused.append(b"a:%d" % len(refused))
                    pipeline.set(refused[-1], 1)
                for _ in range(50):
                    key = b"b:%d" % len(emitted)
                    emitted[key] = now
                    pipeline.set(key, 1)
                pipeline.execute()
                time.sleep(max(0.0, now + 0.05 - time.monotonic()))
        wait_for(lambda: len(reader.arrived) == len(emitted), SOON, "all are in the healthy queue")
        late = max(reader.arrived[key][0] - then for key, then in emitted.items())
        print(f"{len(emitted)} events, the slowest after {late:.2f} s")
        assert late < SOON
        assert list(reader.arrived) == list(emitted)
    assert stats(client)["nacked"] > 0
    with Reader(full) as reader:
        wait_for(lambda: len(reader.arrived) == len(refused), 60, "the refused ones arrive too")
    assert set(reader.arrived) == set(refused)
    settled(client, fallback_length=0, dropped=0, confirmed=len(emitted) + len(refused))


def test_copies_grow_rare(broker: RabbitServer, start_redis: StartRedis) -> None:
    """A fanout to a full and a healthy queue: each attempt that the full one refuses is one more
    copy for the other."""
    full, healthy = Mailbox(broker, **_LIMIT), Mailbox(broker)
    arguments = arguments_for(broker, "none", "$")
    arguments[6] = declare("fanout", {"": full, "none": healthy})
    server = start_redis(arguments=arguments)
    client = server.client()
    keys = [b"k:%d" % number for number in range(20)]
    copies = {}
    for key in keys:
        client.set(key, 1)
    begin = time.monotonic()
    for start, end in [(10, 15), (25, 45)]:
        _wait_until(begin + start)
        before = stats(client)["published"]
        _wait_until(begin + end)
        copies[end - start] = stats(client)["published"] - before
    print(f"messages sent in a window of so many seconds: {copies}")
    # At most half as many a second, and some for chance.
    assert copies[20] / 20 <= (copies[5] / 5) / 2 + 2 / 20
    with Reader(full) as reader:
        wait_for(lambda: len(reader.arrived) == len(keys), 60, "the refused ones arrive too")
    settled(client, fallback_length=0, dropped=0, confirmed=len(keys))
    assert {message.event[2] for message in once(healthy.receive())} == set(keys)
