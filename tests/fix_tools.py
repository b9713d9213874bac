"""A tool of the command line that runs in the process of the test."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from keyspace_amqp import cli
from keyspace_amqp.demo.servers import RabbitServer, RedisServer

# Bounds against hangs.
SOON = 30.0


def url(server: RedisServer) -> str:
    """Return the URL of a Redis server."""
    return f"redis://127.0.0.1:{server.port}"


def amqp_url(broker: RabbitServer, user: str = "guest:guest") -> str:
    """Return the URL of a broker; `user`: with the password."""
    return f"amqp://{user}@127.0.0.1:{broker.port}/"


# Takes the words after `keyspace-amqp`; returns the exit code, stdout and stderr.
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a tool in this process, without what the environment says about it."""
    for name in ("REDIS_URL", "REDISCLI_AUTH", "AMQP_URL", "AMQP_PASSWORD", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)

    def run(*words: str) -> tuple[int, str, str]:
        capfd.readouterr()
        code = cli.main(words)
        return code, *capfd.readouterr()

    return run
