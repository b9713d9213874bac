"""pika is imported late, and may turn out to be broken then."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from keyspace_amqp.broker import bulk, connection
from keyspace_amqp.broker.ioloop import Loop
from keyspace_amqp.broker.late import LateBroker, PikaError
from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.message import Format

FORM = Format(DEFAULTS, "node")


class Made:
    """Stands for the Broker of connection.py: records how it was made and called."""

    server = "h:1"
    closing = True

    def __init__(self, *_: object, bulk: bool) -> None:
        self.heard: list[tuple[Any, ...]] = [("bulk", bulk)]

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments: self.heard.append((name, *arguments))


@pytest.fixture
def warned() -> list[str]:
    return []


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch, warned: list[str]) -> Any:
    monkeypatch.setattr(connection, "Broker", Made)
    loop = Loop()
    yield LateBroker(loop, object(), warned.append)  # type: ignore[arg-type]  # no calls
    loop.close()


def test_until_pika_is_there(broker: Any) -> None:
    assert (broker.server, broker.closing) == ("", False)
    broker.send([])
    broker.close()


def test_everything_goes_to_the_real_one(broker: Any, warned: list[str]) -> None:
    broker.configure(DEFAULTS, FORM)
    broker.prepare()
    real = broker._broker
    broker.prepare()
    assert broker._broker is real
    broker.configure(DEFAULTS, FORM)
    broker.connect(DEFAULTS, {})
    broker.send([])
    broker.close()
    assert real.heard == [
        ("bulk", True), ("configure", DEFAULTS, FORM), ("configure", DEFAULTS, FORM),
        ("connect", DEFAULTS, {}), ("send", []), ("close",),
    ]  # fmt: skip
    assert (broker.server, broker.closing) == ("h:1", True)
    assert warned == []


def test_a_pika_of_another_form(
    broker: Any, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "difference", lambda: "it is blue")
    broker.prepare()
    broker.prepare()
    assert warned == [f"{bulk.SLOW_PIKA}: it is blue"]
    assert broker._broker.heard == [("bulk", False)]


@pytest.mark.parametrize(
    ("module", "words"),
    [("pika", "cannot import pika: "), ("keyspace_amqp.broker.bulk", "cannot be used: ")],
)
def test_a_pika_that_is_broken(
    module: str, words: str, broker: Any, warned: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each attempt to connect tries again."""
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, module, None)
        broker.prepare()
        (line,) = warned
        assert line.startswith("no connection to RabbitMQ is possible: ")
        assert words in line
        with pytest.raises(PikaError, match=words):
            broker.connect(DEFAULTS, {})
        broker.send([])
        broker.close()
    broker.connect(DEFAULTS, {})
    assert broker._broker.heard == [("bulk", True), ("connect", DEFAULTS, {})]
    assert len(warned) == 1
