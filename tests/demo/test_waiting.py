"""The waiting of the demos and the tests: errors that say enough, and clients that wait."""

from __future__ import annotations

import contextlib
import re
import signal
import threading

import pytest
import redis

from keyspace_amqp.demo.servers import wait_for
from keyspace_amqp.demo.threads import Witness
from tests.fix_servers import StartRedis


def test_the_error_says_what_was_awaited_and_what_there_is() -> None:
    with pytest.raises(TimeoutError) as raised:
        wait_for(lambda: False, 0.01, "the list is empty", lambda: "it has 17 elements")
    assert re.fullmatch(
        r"not within 0.01 s: the list is empty; it has 17 elements \(load \S+ on \d+ processors\)",
        str(raised.value),
    )


def test_a_condition_without_a_name_is_named_by_its_code() -> None:
    with pytest.raises(TimeoutError) as raised:
        wait_for(lambda: 1 > 2, 0.01)
    text = str(raised.value)
    assert "test_waiting.py:" in text
    assert ": wait_for(lambda: 1 > 2, 0.01); the last result was False" in text
    with pytest.raises(TimeoutError, match="method-wrapper '__len__' of list"):
        wait_for([].__len__, 0.01)


def test_a_late_answer_does_not_repeat_the_command(start_redis: StartRedis) -> None:
    server = start_redis(arguments=None)
    goes_on = threading.Timer(1, server.signal, [signal.SIGCONT])
    with server.client(socket_timeout=0.2) as hasty:

        def answers() -> bool:
            try:
                return bool(hasty.ping())
            except redis.TimeoutError:  # the machine is busy
                return False

        wait_for(answers, what="an answer in time")
        server.signal(signal.SIGSTOP)
        goes_on.start()
        with contextlib.suppress(redis.TimeoutError):
            hasty.incr("n")
        goes_on.join()
    client = server.client()
    for _ in range(10):  # connections and commands that were sent before come first
        client.ping()
    assert client.get("n") == b"1"


def test_the_witness_does_not_connect_anew(start_redis: StartRedis) -> None:
    """Otherwise the witness would miss events in between, and nobody would notice."""
    server = start_redis(arguments=None, options=["notify-keyspace-events EA"])
    witness = Witness(server)
    witness.start()
    client = server.client()
    client.set("a", 1)
    wait_for(lambda: witness.events == [b"0\nset\na"])
    client.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    witness.join(30)
    witness.end()
    assert isinstance(witness.error, redis.ConnectionError)


def test_the_witness_ends(start_redis: StartRedis) -> None:
    server = start_redis(arguments=None)
    witness = Witness(server)
    witness.start()
    witness.end()
    assert not witness.is_alive()
    assert witness.error is None
