"""The way of lines to Redis' log: the worker's own, and all that Python prints or logs.

A daemonized server has no stderr, so output of Python there would be lost. The worker
calls `install` before it does anything else, and `take_loggers` before it imports a library
that logs. Any thread may log.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import TextIO

# Redis' levels: debug, verbose, notice, warning.
Sink = Callable[[str, str], None]

_sink: Sink | None = None  # None: not installed


def write(level: str, text: str) -> None:
    """Log each line of a text; `level` is one of Redis'."""
    if _sink is not None:
        for line in text.splitlines():
            _sink(level, line)


def exception(what: str) -> None:
    """Log the traceback of the exception that is being handled, after `what`."""
    import traceback  # see imports.py

    write("warning", f"{what}:\n{traceback.format_exc()}")


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
    """Send all that is printed, and exceptions that nobody has caught, to `sink(level, line)`; a
    later call replaces the sink."""
    global _sink
    _sink = sink
    stream: TextIO = _Stderr(sink)  # type: ignore[assignment]  # the methods that print and warnings use
    sys.stderr = sys.stdout = stream

    def hook(kind: type[BaseException], error: BaseException | None, trace: object) -> None:
        import traceback  # see imports.py

        write("warning", "".join(traceback.format_exception(error) if error else [str(kind)]))

    sys.excepthook = hook
    sys.unraisablehook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)
    threading.excepthook = lambda args: hook(args.exc_type, args.exc_value, args.exc_traceback)


def take_loggers() -> None:
    """Send what libraries log to the sink, too."""
    import logging  # see imports.py

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            level = "warning" if record.levelno >= logging.WARNING else "debug"
            try:
                write(level, self.format(record))
            except Exception:  # a bad log call must not raise in its caller
                self.handleError(record)

    root = logging.getLogger()
    root.handlers[:] = [Handler()]
    root.setLevel(logging.WARNING)
    # pika logs each failed attempt several times, with tracebacks; the worker logs one line.
    logging.getLogger("pika").setLevel(logging.CRITICAL)
