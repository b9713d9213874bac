"""Injected exceptions in the handler: they lose no events."""

from __future__ import annotations

import pathlib
import re

import pytest

from keyspace_amqp.demo.servers import RabbitServer, wait_for
from keyspace_amqp.tables.keys import KEY
from tests.fix_faults import Load, delivered, start_faulty
from tests.fix_servers import (
    Mailbox,
    StartRedis,
    arguments_for,
    list_length,
    outbox_options,
    settled,
    stats,
)
from tests.servers import NEW_REDIS, REDIS

# Appended to worker/loop.py in a copy of the handler. While a file named `faults` is in the
# server's directory, functions of the handler raise at a call, one function at a time, either
# before they have done anything or after they have done everything. Exceptions: the code that
# logs and repairs the effects of an exception (it could not finish with thousands of
# exceptions of its own), the frame of the loop, and calls of C that cannot fail and must happen
# once.
INJECT = """

import pathlib as _pathlib
import random as _random
import sys as _sys
from keyspace_amqp import fallback as _fallback, jobs as _jobs, message as _message
from keyspace_amqp.broker import (
    connection as _broker, ioloop as _ioloop, login as _login, reasons as _reasons,
)
from keyspace_amqp.publisher import (
    aside as _aside, delivery as _delivery, express as _express, fallback_list as _fallback_list,
    flush as _flush,
    flushing as _flushing,
    ledger as _ledger, link as _link, list_jobs as _list_jobs, lists as _lists, memory as _memory,
    outbox as _outbox_view,
    publisher as _publisher, recent as _recent, recovery as _recovery, renewal as _renewal,
    retries as _retries, storing as _storing, suspects as _suspects,
    window as _window,
)
from keyspace_amqp.worker import (
    batching as _batching, cluster_io as _cluster_io, handler as _handler, identity as _identity,
    intake as _intake, job_queue as _job_queue, lanes as _lanes,
    leftover_file as _leftover_file, leftovers as _leftovers, outbox as _outbox,
    parameters as _parameters, parcels as _parcels,
    records as _records, requests as _requests, status as _status, throttle as _throttle,
)

_FAULTS = _pathlib.Path("faults")
_chance = _random.Random({seed})
_LEFT_OUT = {{
    # the frame
    "_do", "_publish", "_turn", "activate", "close", "end", "enter_at", "main",
    "open", "run",
    # logging and repair
    "_count_waiting", "_keep_head", "_reread_length", "_lose_window", "_repair", "_unexpected",
    "_text", "balance", "clear", "closed", "down", "expects", "failed", "forget_head", "give_up",
    "hand_over", "is_void_after_repair", "link_down", "link_lost", "log", "lost", "repair",
    # what pika calls of the loop: an exception there would be one in the middle of pika
    "add_callback", "add_handler", "call_later", "remove_handler", "remove_timeout",
    "update_handler",
    # counts, which plain statements change
    "adopt", "confirmed", "dropped", "found", "matched", "released", "send_parcel",
    "settle_parcels",
    # calls of C
    "abandon", "after_wait", "before_wait", "command_done", "flush_done", "free", "outbox_booked",
    "outbox_taken", "outbox_wants", "ready", "release", "submit",
}}
# These methods share a name in _LEFT_OUT, but are ordinary code.
_NEVER_LEFT_OUT = {{
    (_aside.Aside, "give_up"), (_suspects.Suspects, "closed"), (_suspects.Suspects, "confirmed"),
    (_job_queue.JobQueue, "submit"), (_lists.Lists, "found"), (_publisher.Publisher, "give_up"),
    (_memory.Memory, "confirmed"), (_link.Link, "confirmed"), (_recent.RecentPushes, "clear"),
}}


_all = []
_faulty = {{}}
_calls = 0
_turn = None, False  # the next function that raises; True: after its call


def _is_due(function, done):
    global _calls, _turn
    _calls += 1
    due = _turn == (function, done) and _FAULTS.exists()
    # Skip functions that are hardly ever called, and leave calls without faults in between.
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


# Modules whose classes and functions are all wrapped; of other modules, those in _OWNERS.
_WORKER = (_batching, _cluster_io, _handler, _identity, _intake, _job_queue, _lanes, _leftover_file,
           _leftovers, _outbox, _parameters, _parcels, _records, _requests, _status, _throttle,
           bridge, _ioloop)
_PUBLISHER = (_aside, _delivery, _express, _fallback_list, _flush, _flushing, _ledger, _link,
              _list_jobs, _lists, _memory, _outbox_view, _publisher, _recent, _recovery, _renewal,
              _retries, _storing, _suspects, _window)
_OWNERS = [Worker, _broker.Broker, _broker, _login, _reasons, _fallback, _jobs, _message,
           *_WORKER]
for _module in (*_WORKER, *_PUBLISHER):
    _OWNERS += [value for value in vars(_module).values()
                if isinstance(value, type) and value.__module__ == _module.__name__
                and not getattr(value, "_is_protocol", False)]
for _owner in _OWNERS:
    for _name, _value in list(vars(_owner).items()):
        if isinstance(_value, property) and _owner.__module__.startswith("keyspace_amqp.worker."):
            _function = _value.fget
            _faulty[_value] = property(_wrap(_function), _value.fset)
            setattr(_owner, _name, _faulty[_value])
        if isinstance(_value, type(_wrap)):
            _module = _owner.__module__ if isinstance(_owner, type) else _owner.__name__
            left_out = _name.startswith("__") or (
                _name in _LEFT_OUT and (_owner, _name) not in _NEVER_LEFT_OUT
            )
            if _value.__module__ == _module and not left_out:
                _faulty[_value] = _wrap(_value)
                setattr(_owner, _name, _faulty[_value])
# Replace the functions also where they were imported by name.
for _module in [module for name, module in _sys.modules.items()
                if name.startswith("keyspace_amqp.")]:
    for _name, _value in list(vars(_module).items()):
        if isinstance(_value, type(_wrap)) and _value in _faulty:
            setattr(_module, _name, _faulty[_value])
"""


@pytest.mark.parametrize(
    ("family", "outbox", "there", "seed"),
    [
        (REDIS, "off", True, 0),
        (REDIS, "off", False, 1),
        (REDIS, "reply", True, 2),
        (NEW_REDIS, "atomic", False, 3),
    ],
    ids=["up", "away", "reply, up", "atomic, away"],
)
def test_exceptions_anywhere(
    family: str,
    outbox: str,
    there: bool,
    seed: int,
    own_broker: RabbitServer,
    start_redis: StartRedis,
    tmp_path: pathlib.Path,
) -> None:
    """Each is logged with its traceback and counted; the worker goes on."""
    mailbox = Mailbox(own_broker).keep()
    code = INJECT.format(seed=seed)
    arguments, options = arguments_for(own_broker, mailbox, "$"), outbox_options(outbox)
    server = start_faulty(start_redis, family, tmp_path, code, arguments, options)
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
    # Each exception costs the connection, and a whole window may be sent again.
    numbers = delivered(client, mailbox, [b"first", *load.keys], repeated=10**9)
    # Read only now: the last exception may be under way when the file of faults is removed.
    errors = numbers["handler_errors"]
    log = server.log()
    shown = re.findall(r"<keyspaceamqp> (\w+(?:Error|Exception)\b.*)", log)
    assert [line for line in shown if "injected" not in line] == []
    assert len(shown) >= errors
    assert log.count("Traceback (most recent call last)") >= errors
    assert numbers["confirmed"] >= len(load.keys)


def test_an_event_over_which_the_handler_always_fails(
    mailbox: Mailbox, broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """It is counted and given up; the others arrive."""
    code = """

from keyspace_amqp.worker import records as _records

def _poisoned(*fields, _make=_records.Event):
    event = _make(*fields)
    if event.key == b"poison":
        raise RuntimeError("broken on purpose")
    return event
_records.Event = _poisoned
"""
    server = start_faulty(start_redis, REDIS, tmp_path, code, arguments_for(broker, mailbox, "$"))
    client = server.client()
    with client.pipeline(transaction=False) as pipeline:
        for key in ("a", "b", "poison", "c", "poison", "d"):
            pipeline.set(key, 1)
        pipeline.execute()
    numbers = delivered(
        client, mailbox, [b"a", b"b", b"c", b"d"], repeated=4, dropped=2, dropped_handler_error=2
    )
    assert numbers["handler_errors"] >= 2
    assert "2 events lost: the handler failed on them" in server.log() or (
        server.log().count("1 event lost: the handler failed on them") >= 1
    )


# Appended to worker/loop.py in a copy of the handler: a function fails over events of key `poison`.
_POISON = """

from keyspace_amqp import {module} as _module

def _poisoned(event, *more, _function=_module.{name}):
    if event.key == b"poison":
        raise RuntimeError("broken on purpose")
    return _function(event, *more)
{replace}
"""


@pytest.mark.parametrize(
    ("module", "name", "there"),
    [("message", "body", True), ("message", "body", False), ("fallback", "to_element", False)],
    ids=["message", "message from the list", "element"],
)
def test_an_event_of_which_nothing_can_be_made(
    module: str,
    name: str,
    there: bool,
    own_broker: RabbitServer,
    start_redis: StartRedis,
    tmp_path: pathlib.Path,
) -> None:
    """Neither a message nor an element: it is counted and given up; the others arrive in order.
    (With headers, messages are not laid out by the shim.)"""
    mailbox = Mailbox(own_broker).keep()
    replace = (
        "_module.body = _poisoned"
        if name == "body"
        else "from keyspace_amqp.publisher import entry as _entry\n_entry.to_element = _poisoned"
    )
    code = _POISON.format(module=module, name=name, replace=replace)
    server = start_faulty(
        start_redis, REDIS, tmp_path, code, arguments_for(own_broker, mailbox, "$"),
        ["keyspaceamqp.headers on"],
    )  # fmt: skip
    client = server.client()
    client.set("first", 1)
    settled(client, confirmed=1)
    if not there:
        own_broker.stop()
    keys = ["a", "b", "poison", "c", "poison", "d"]
    with client.pipeline(transaction=False) as pipeline:
        for key in keys:
            pipeline.set(key, 1)
        pipeline.execute()
    if not there:
        stored = 6 if name == "body" else 4
        wait_for(lambda: list_length(client) == stored, 60)
        own_broker.start()
    numbers = delivered(
        client,
        mailbox,
        [b"first", b"a", b"b", b"c", b"d"],
        repeated=100,
        dropped=2,
        dropped_handler_error=2,
    )
    assert 6 <= numbers["handler_errors"] <= 8  # one more if the first attempt is of a parcel
    assert "the event of key b'poison' (set, database 0) is set aside: RuntimeError" in server.log()
    shown = client.execute_command("KEYSPACEAMQP.FALLBACK", "ASIDE")
    why = b"RuntimeError: broken on purpose"
    if name == "to_element":  # there is none to look at, so the reason names the event
        why = b"the event of key b'poison' (set, database 0), " + why
    assert [text for _, text, _ in shown] == [why] * 2


def test_an_element_over_which_the_handler_always_fails(
    own_broker: RabbitServer, start_redis: StartRedis, tmp_path: pathlib.Path
) -> None:
    """It is read from the list three times; the others arrive."""
    mailbox = Mailbox(own_broker).keep()
    code = """

from keyspace_amqp.publisher import aside as _aside

def _from_element(element, _function=_aside.from_element):
    if element.endswith(b"poison"):
        raise RuntimeError("broken on purpose")
    return _function(element)
_aside.from_element = _from_element
"""
    server = start_faulty(
        start_redis, REDIS, tmp_path, code, arguments_for(own_broker, mailbox, "$")
    )
    client = server.client()
    settled(client)
    elements = [b"1 x-%d 1700000000000 0 $ 3 set %b" % (n, key)
                for n, key in enumerate([b"a", b"poison", b"b", b"poison", b"c"])]  # fmt: skip
    client.rpush(KEY, *elements)
    delivered(client, mailbox, [b"a", b"b", b"c"], repeated=100, dropped=2, dropped_handler_error=2)
    assert "2 events lost: the handler failed on them" in server.log() or (
        server.log().count("1 event lost: the handler failed on them") >= 1
    )
