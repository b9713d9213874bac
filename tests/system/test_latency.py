"""Times with real servers: from an event to its confirm, in STATS; and of Redis' waits for the
module, in Redis' own LATENCY."""

from __future__ import annotations

import time

import pytest
import redis

from keyspace_amqp.demo.servers import RabbitServer, free_port, wait_for
from keyspace_amqp.publisher.flush import STORE_GRACE
from keyspace_amqp.publisher.window import STALLED_AFTER
from tests.fix_faults import Proxy
from tests.fix_servers import (
    MODULE,
    Mailbox,
    StartRedis,
    arguments_for,
    list_length,
    settled,
    stats,
)
from tests.publisher.test_confirm_times import NAMES


def test_stats_tell_of_an_outage(
    broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """An event that came while the link was dead took as long as the outage."""
    with Proxy(broker.port) as proxy:
        client = start_redis(arguments=arguments_for(proxy.port, mailbox, events="$")).client()
        for number in range(20):
            client.set(f"a{number}", 1)
        numbers = settled(client, confirmed=20)
        assert sum(numbers[name] for name in NAMES) == 20
        proxy.deaf = True
        begin = client.time()
        client.set("b", 1)
        wait_for(lambda: client.time()[0] > begin[0] + 1, 30)
        proxy.deaf = False
        numbers = settled(client, confirmed=21, fallback_length=0)
        assert numbers["confirm_ms_le_5000"] + numbers["confirm_ms_le_inf"] >= 1
        assert sum(numbers[name] for name in NAMES) == 21
        assert numbers["confirm_ms_sum"] > 1000
        shown = client.info("keyspaceamqp")
        assert all(shown[f"keyspaceamqp_{name}"] == numbers[name] for name in NAMES)
        client.execute_command("KEYSPACEAMQP.STATS", "RESET")
        numbers = settled(client, confirmed=0, confirm_ms_sum=0)
        assert sum(numbers[name] for name in NAMES) == 0
        wait_for(lambda: stats(client)["fallback_length"] == 0, 30)


# ---- Redis' own LATENCY ---------------------------------------------------------------


def watched(client: redis.Redis) -> dict[str, int]:
    """What Redis has noted of the module: the longest time in milliseconds by event."""
    found = {name.decode(): longest for name, _, _, longest, *_ in client.latency_latest()}
    return {name: longest for name, longest in found.items() if name.startswith("keyspaceamqp")}


@pytest.mark.parametrize("threshold", [1, 0])
def test_a_long_job(family: str, threshold: int, start_redis: StartRedis) -> None:
    """The main thread has to copy an element of 25 MB. With a threshold of 0 nothing is noted."""
    client = start_redis(family, arguments_for(free_port(), events="$")).client()
    client.config_set("latency-monitor-threshold", threshold)
    client.set("small", 1)
    wait_for(lambda: list_length(client) == 1, 30)
    client.set(b"k" * 25_000_000, 1)
    wait_for(lambda: list_length(client) == 2, 30)
    if threshold == 0:
        assert watched(client) == {}
    else:
        assert watched(client)["keyspaceamqp-job"] >= 1
        assert len(client.latency_history("keyspaceamqp-job")) >= 1


def test_waits_for_the_handler(
    family: str, broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis
) -> None:
    """A save and an unload wait some time for a silent broker."""
    server = start_redis(family, None)
    client = server.client()
    client.config_set("latency-monitor-threshold", 1)
    with Proxy(broker.port) as proxy:
        arguments = [str(a) for a in arguments_for(proxy.port, mailbox, events="$")]
        client.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
        assert watched(client)["keyspaceamqp-load"] >= 1
        client.set("a", 1)
        settled(client, confirmed=1)
        for wait, command, least in (
            ("save", ("SAVE",), STORE_GRACE),
            ("unload", ("MODULE", "UNLOAD", "keyspaceamqp"), STALLED_AFTER),
        ):
            proxy.deaf = True
            begin = time.monotonic()
            with client.pipeline(transaction=False) as pipeline:
                pipeline.set("b", 1)
                pipeline.execute_command(*command)
                pipeline.execute()
            longest = (time.monotonic() - begin) * 1000
            assert least * 1000 / 2 <= watched(client)[f"keyspaceamqp-{wait}"] <= longest
            proxy.deaf = False
            if wait == "save":
                settled(client, fallback_length=0, in_flight=0)
        client.execute_command("MODULE", "LOAD", str(MODULE), *arguments)
        settled(client, fallback_length=0, queue_length=0, in_flight=0)
