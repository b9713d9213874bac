"""Redirection of logging, sys.stdout, sys.stderr and the exception hooks to Redis' log.

A daemonized server has no stderr, so output of Python there would be lost. The worker
calls `install` before it does anything else. Any thread may log.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from collections.abc import Callable
from typing import TextIO

LOGGER = logging.getLogger("keyspace_amqp")

# Redis' levels: debug, verbose, notice, warning.
Sink = Callable[[str, str], None]


class _RedisHandler(logging.Handler):
    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno >= logging.WARNING:
            level = "warning"
        elif record.levelno >= logging.INFO:
            level = "notice"
        else:
            level = "debug"
        try:
            for line in self.format(record).splitlines():
                self._sink(level, line)
        except Exception:  # a bad log call must not raise in its caller
            self.handleError(record)


class _Stderr:
    """A text stream that logs each line when it is complete."""

    encoding = "utf-8"

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._rest = ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._sink("warning", line)
        return len(text)

    def flush(self) -> None:
        """Do nothing: a line is logged when it is complete."""

    def isatty(self) -> bool:
        return False


def install(sink: Sink) -> None:
    """Send everything to `sink(level, line)`; a later call replaces the sink."""
    root = logging.getLogger()
    root.handlers[:] = [_RedisHandler(sink)]
    root.setLevel(logging.WARNING)
    LOGGER.setLevel(logging.INFO)
    # pika logs each failed attempt several times, with tracebacks; the worker logs one line.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
    stream: TextIO = _Stderr(sink)  # type: ignore[assignment]  # the methods that print and warnings use
    sys.stderr = sys.stdout = stream

    def hook(kind: type[BaseException], error: BaseException | None, trace: object) -> None:
        lines = traceback.format_exception(error) if error else [str(kind)]
        for line in "".join(lines).splitlines():
            sink("warning", line)

    sys.excepthook = hook
    sys.unraisablehook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)
    threading.excepthook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)
