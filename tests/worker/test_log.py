"""All that Python prints or logs goes to the sink that log.install was given."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import subprocess
import sys
import threading
import traceback
from collections.abc import Iterator

import pytest

from keyspace_amqp.worker import log

ROOT = pathlib.Path(__file__).resolve().parents[2]
Lines = list[tuple[str, str]]
LOGGER = logging.getLogger("a.library")


@contextlib.contextmanager
def installed() -> Iterator[Lines]:
    """The lines that reach the sink. Afterwards the process is as before. Not a fixture: pytest
    sets sys.stderr again between a fixture and its test."""
    root = logging.getLogger()
    loggers = [root, logging.getLogger("pika"), LOGGER]
    levels = [logger.level for logger in loggers]
    handlers = root.handlers[:]
    streams = sys.stdout, sys.stderr
    hooks = sys.excepthook, sys.unraisablehook, threading.excepthook
    collected: Lines = []
    sink = log._sink
    try:
        log.install(lambda level, line: collected.append((level, line)))
        log.take_loggers()
        yield collected
    finally:
        log._sink = sink
        sys.stdout, sys.stderr = streams
        sys.excepthook, sys.unraisablehook, threading.excepthook = hooks
        root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def test_lines_of_the_worker() -> None:
    with installed() as lines:
        log.write("notice", "one\ntwo\r\nthree")
        log.write("warning", "four")
        assert lines == [
            ("notice", "one"), ("notice", "two"), ("notice", "three"), ("warning", "four"),
        ]  # fmt: skip


def test_a_traceback_is_logged_line_by_line() -> None:
    with installed() as lines:
        try:
            raise ValueError("bad luck")
        except ValueError:
            log.exception("it failed")
            expected = traceback.format_exc().splitlines()
        assert lines == [("warning", line) for line in ["it failed:", *expected]]


@pytest.mark.parametrize("level", [logging.CRITICAL, logging.ERROR, logging.WARNING])
def test_levels_of_libraries(level: int) -> None:
    with installed() as lines:
        LOGGER.log(level, "%d of %s", 3, "four\nand five")
        assert lines == [("warning", "3 of four"), ("warning", "and five")]


def test_debug_is_off_until_somebody_wants_it() -> None:
    with installed() as lines:
        LOGGER.info("too much")
        assert lines == []
        LOGGER.setLevel(logging.DEBUG)
        LOGGER.debug("wanted")
        assert lines == [("debug", "wanted")]


def test_other_loggers() -> None:
    """Warnings of other libraries are logged; those of pika are not, because the broker's own lines
    replace them."""
    with installed() as lines:
        logging.getLogger("somebody.else").warning("look")
        logging.getLogger("somebody.else").info("la la la")
        logging.getLogger("pika.adapters").error("the worker says so in one line")
        assert lines == [("warning", "look")]


def test_what_is_printed() -> None:
    with installed() as lines:
        print("to stdout")
        print("to stderr", 1, file=sys.stderr, flush=True)
        assert lines == [("warning", "to stdout"), ("warning", "to stderr 1")]


def test_a_line_is_logged_when_it_is_whole() -> None:
    with installed() as lines:
        assert sys.stderr.write("one ") == 4
        sys.stderr.flush()
        assert lines == []
        assert sys.stderr.write("line\ntwo\nand ") == 13
        assert lines == [("warning", "one line"), ("warning", "two")]
        sys.stderr.write("three\n")
        assert lines[2:] == [("warning", "and three")]


def test_a_stream_that_is_no_terminal() -> None:
    with installed():
        assert sys.stderr.isatty() is False
        assert sys.stderr.encoding == "utf-8"


def test_an_exception_that_nobody_caught() -> None:
    with installed() as lines:
        try:
            raise KeyError("lost")
        except KeyError as error:
            sys.excepthook(KeyError, error, error.__traceback__)
            expected = traceback.format_exc().splitlines()
        assert lines == [("warning", line) for line in expected]
        assert lines[-1] == ("warning", "KeyError: 'lost'")


def test_an_exception_with_nothing_but_its_kind() -> None:
    with installed() as lines:
        sys.excepthook(KeyError, None, None)  # type: ignore[arg-type]  # as C code may call it
        assert lines == [("warning", "<class 'KeyError'>")]


def test_an_exception_in_another_thread() -> None:
    with installed() as lines:

        def fail() -> None:
            raise RuntimeError("first\nsecond")

        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        assert lines[0] == ("warning", "Traceback (most recent call last):")
        assert lines[-2:] == [("warning", "RuntimeError: first"), ("warning", "second")]


def test_an_exception_that_cannot_be_raised() -> None:
    with installed() as lines:

        class Unruly:
            def __del__(self) -> None:
                raise RuntimeError("in a destructor")

        Unruly()
        assert lines[-1] == ("warning", "RuntimeError: in a destructor")


def test_a_later_call_replaces_the_sink() -> None:
    with installed() as lines:
        later: Lines = []
        log.install(lambda level, line: later.append((level, line)))
        LOGGER.error("one")
        print("two")
        sys.excepthook(KeyError, KeyError("three"), None)
        assert lines == []
        assert later == [("warning", "one"), ("warning", "two"), ("warning", "KeyError: 'three'")]


def test_a_record_that_cannot_be_formatted_harms_nobody() -> None:
    """The caller must not get the exception. The handlers of the module logging catch it
    too."""
    with installed() as lines:
        LOGGER.error("%d", "no number")
        assert lines


PROGRAM = """
import sys, threading, warnings
from keyspace_amqp.worker import log
out = sys.__stdout__
log.install(lambda level, line: print(level, line, file=out, flush=True))
warnings.warn("old-fashioned")
thread = threading.Thread(target=lambda: 1 / 0)
thread.start()
thread.join()
raise SystemError("the end")
"""


def test_in_a_process_of_its_own() -> None:
    """Without pytest's own hooks: nothing reaches the real stderr."""
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True, text=True, timeout=60, check=False, cwd=ROOT,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr) == (1, "")
    lines = ended.stdout.splitlines()
    assert lines[0].endswith("UserWarning: old-fashioned")
    assert "warning ZeroDivisionError: division by zero" in lines
    assert lines[-1] == "warning SystemError: the end"
    assert all(line.startswith("warning ") for line in lines)
