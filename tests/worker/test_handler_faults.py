"""The handler at fault: exceptions anywhere in it lose nothing."""

from __future__ import annotations

import pathlib
import re

import pytest

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from tests.fix_faults import Load, delivered
from tests.fix_servers import Mailbox, StartRedis, arguments_for, handler_copy, settled, stats

# Appended to worker/loop.py in a copy of the handler. While there is a file named `faults` in the
# server's directory, one function after the other raises at its next call, either before its work
# or after it. Functions that report and repair the damage of an exception are left out (they would
# not survive thousands of faults), and so is the outermost function of the loop.
INJECT = """

import pathlib as _pathlib
import random as _random
from keyspace_amqp import fallback as _fallback, jobs as _jobs, message as _message
from keyspace_amqp.broker import connection as _broker, login as _login, reasons as _reasons
from keyspace_amqp.publisher import publisher as _publisher

_FAULTS = _pathlib.Path("faults")
_chance = _random.Random({seed})
_LEFT_OUT = {{
    "_unexpected", "_repair", "repair", "link_down", "_link_lost", "close", "run", "_end",
    "_hand_over", "_forget_listed", "_forget", "_join_waiting", "is_stale",
    "handler_main", "_do", "_turn", "__init__",
}}


_all = []
_faulty = []
_calls = 0
_turn = None, False  # who is next, and whether when it is done


def _is_due(function, done):
    global _calls, _turn
    _calls += 1
    due = _turn == (function, done) and _FAULTS.exists()
    # Some are hardly ever called; and between two exceptions life goes on.
    if due or _calls % 2000 == 0:
        _turn = None, False
    elif _turn[0] is None and _calls % 300 == 0:
        _turn = _chance.choice(_all), _chance.random() < 0.5
    return due


def _wrap(function):
    def faulty(*arguments, **named):
        if _is_due(function, False):
            raise RuntimeError(f"injected before {{function.__name__}}")
        result = function(*arguments, **named)
        if _is_due(function, True):
            raise RuntimeError(f"injected after {{function.__name__}}")
        return result
    _all.append(function)
    return faulty


_OWNERS = (Worker, _publisher.Publisher, _broker.Broker, _broker, _login, _reasons, _fallback,
           _jobs, _message)
for _owner in _OWNERS:
    for _name, _value in list(vars(_owner).items()):
        if isinstance(_value, type(_wrap)) and _name not in _LEFT_OUT:
            _module = _owner.__module__ if isinstance(_owner, type) else _owner.__name__
            if _value.__module__ == _module:
                _value = _wrap(_value)
                _faulty.append(_value)
                setattr(_owner, _name, _value)
# What was imported by name before.
for _module in (_publisher, _broker):
    for _source in (_message, _fallback, _login, _reasons):
        for _name, _value in vars(_source).items():
            if _value in _faulty and hasattr(_module, _name):
                setattr(_module, _name, _value)
"""


def start_faulty(
    start_redis: StartRedis,
    family: str,
    tmp_path: pathlib.Path,
    code: str,
    arguments: list,
) -> RedisServer:
    """Starts a server with a copy of the handler to whose loop.py `code` is added."""
    path = handler_copy(tmp_path / "environment")
    with (path.parent / "worker" / "loop.py").open("a") as file:
        file.write(code)
    server = start_redis(family, None, start=False)
    server.module = [str(path), *map(str, arguments)]
    server.start()
    return server


@pytest.mark.parametrize(("there", "seed"), [(True, 0), (False, 1)], ids=["up", "away"])
def test_exceptions_anywhere(
    there: bool,
    seed: int,
    own_broker: RabbitServer,
    start_redis: StartRedis,
    tmp_path: pathlib.Path,
) -> None:
    """Each is logged with its traceback and counted; the worker goes on."""
    mailbox = Mailbox(own_broker).keep()
    code = INJECT.format(seed=seed)
    server = start_faulty(
        start_redis, "redis-7.0", tmp_path, code, arguments_for(own_broker, mailbox, "$")
    )
    client = server.client()
    client.set("first", 1)
    settled(client, confirmed=1)
    if not there:
        own_broker.kill()
    faults = server.folder / "faults"
    faults.touch()
    with Load(server, batch=20, pause=0.02) as load:
        wait_for(lambda: stats(client)["handler_errors"] >= 40, 300)
        faults.unlink()
        load.more(200)
    if not there:
        own_broker.start()
    errors = stats(client)["handler_errors"]
    log = server.log()
    shown = re.findall(r"<keyspaceamqp> (\w+(?:Error|Exception)\b.*)", log)
    assert [line for line in shown if "injected" not in line] == []
    assert len(shown) >= errors
    assert log.count("Traceback (most recent call last)") >= errors
    # Each exception costs the connection, and a window may have to go again.
    numbers = delivered(
        client, mailbox, [b"first", *load.keys], repeated=10**9, handler_errors=errors
    )
    assert numbers["confirmed"] >= len(load.keys)


def test_an_event_over_which_the_handler_always_fails(
    mailbox: Mailbox, broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """It is counted and given up; the other events arrive."""
    code = """

def _compile(masks, _compile=compile_masks):
    matches = _compile(masks)
    def poisoned(data, start, end):
        if data[start:end] == b"poison":
            raise RuntimeError("broken on purpose")
        return matches(data, start, end)
    return poisoned
compile_masks = _compile
"""
    server = start_faulty(
        start_redis, "redis-7.0", tmp_path, code, arguments_for(broker, mailbox, "$")
    )
    client = server.client()
    with client.pipeline(transaction=False) as pipeline:
        for key in ("a", "b", "poison", "c", "poison", "d"):
            pipeline.set(key, 1)
        pipeline.execute()
    numbers = delivered(
        client, mailbox, [b"a", b"b", b"c", b"d"], repeated=4, dropped=2, dropped_handler_error=2
    )
    assert numbers["handler_errors"] >= 2
    assert "2 events lost: the handler failed over them" in server.log() or (
        server.log().count("1 events lost: the handler failed over them") >= 1
    )
