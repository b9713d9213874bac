"""`keyspace-amqp demo`: one run of a demo, in a folder that is removed at the end.

Whatever happens, Ctrl-C included, the servers end and nothing is left behind.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import signal
import sys
import tempfile
import time
from collections.abc import Iterator

import pika
import redis

from ..tools.path import module_path
from .base import Workshop
from .cluster import ClusterDemo
from .screen import Screen
from .servers import ServerError
from .standalone import StandaloneDemo

_TOO_SLOW = (
    "On a machine that is very slow or busy this may happen: end what else runs there, and try "
    "again. If it happens again, something is wrong; the last lines of the module's log are:"
)

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# Exceptions that end a demo with a message instead of a traceback.
_EXPECTED = (ServerError, TimeoutError, redis.RedisError, pika.exceptions.AMQPError)
# Seconds between two turns of Python's threads. Short, so that the writer's times show
# Redis and not the other threads.
_SWITCH_INTERVAL = 0.0005


def run(options: argparse.Namespace) -> int:
    """Run the demo that the options name. Return the exit code; raises ToolError if the module
    is not built."""
    module, screen = module_path(), Screen()
    sys.setswitchinterval(_SWITCH_INTERVAL)
    start = time.monotonic()
    good = False
    try:
        with _interrupting_signals(), contextlib.ExitStack() as stack:
            folder = tempfile.TemporaryDirectory(
                prefix="keyspace-amqp-demo-", ignore_cleanup_errors=True
            )
            workshop = Workshop(module, screen, stack, pathlib.Path(stack.enter_context(folder)))
            demo = ClusterDemo(workshop) if options.cluster else StandaloneDemo(workshop)
            stack.callback(_ignore_signals)
            try:
                good = demo.run()
                if options.keep:
                    demo.keep()
            except _EXPECTED as error:
                screen.say(f"\nThe demo cannot go on: {error}", "bold red")
                if isinstance(error, TimeoutError):
                    screen.say(_TOO_SLOW)
                for line in demo.log():
                    screen.say(line)
                return 1
    except KeyboardInterrupt:
        screen.say("\nStopped; the servers are ended and their folder is removed.")
        return 0 if good and options.keep else 130
    target = "demo-cluster" if options.cluster else "demo"
    screen.say(
        f"That took {time.monotonic() - start:.0f} s; nothing is left running. With --keep "
        f"(make {target} DEMO_ARGS=--keep) the servers stay up for you to play with."
    )
    return 0 if good else 1


@contextlib.contextmanager
def _interrupting_signals() -> Iterator[None]:
    """A `with` in which the signals that end a process raise KeyboardInterrupt."""
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:  # by nohup, or in the background of a script
            signal.signal(number, _interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _interrupt(_number: int, _frame: object) -> None:
    """End the demo at the first signal. A second one must not disturb the cleaning up."""
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals() -> None:
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
