"""The event loop of the worker, with real descriptors and clocks."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from keyspace_amqp.broker.ioloop import Loop


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    with one, other:
        yield one, other


def test_timers_run_in_order_and_once(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_later(0.002, lambda: ran.append("c"))
    # Due before that one, however long this takes.
    loop.call_later(-10, lambda: ran.append("a"))
    loop.call_later(-10, lambda: ran.append("b"))
    loop.remove_timeout(loop.call_later(-10, lambda: ran.append("removed")))
    while len(ran) < 3:
        loop.poll()
        loop.run_due()
    loop.run_due()
    assert ran == ["a", "b", "c"]


def test_what_a_callback_adds_runs_the_next_time(loop: Loop) -> None:
    """Else callbacks that add others would keep the loop from its descriptors."""
    ran: list[str] = []

    def again(name: str) -> None:
        ran.append(name)
        loop.call_later(0, lambda: again(name))

    def from_a_thread() -> None:
        ran.append("thread")
        loop.add_callback(from_a_thread)

    again("a")
    loop.add_callback(from_a_thread)
    ran.clear()
    for count in (1, 2, 3):
        time.sleep(0.001)  # so that the timer of the last turn is due
        loop.run_due()
        assert ran == ["thread", "a"] * count


def test_a_callback_may_remove_another_that_is_due(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_later(0, lambda: loop.remove_timeout(other))
    other = loop.call_later(0, lambda: ran.append("other"))
    loop.run_due()
    assert ran == []


def test_an_exception_loses_no_other_timer(loop: Loop) -> None:
    ran: list[str] = []
    loop.call_later(0, lambda: ran.append("a"))
    loop.call_later(0, lambda: 1 // 0)
    loop.call_later(0, lambda: ran.append("b"))
    with pytest.raises(ZeroDivisionError):
        loop.run_due()
    loop.run_due()
    assert ran == ["a", "b"]


def test_an_alarm_ends_the_wait(loop: Loop) -> None:
    start = time.monotonic()
    loop.set_alarm(100.0)
    loop.set_alarm(0.02)
    loop.poll()
    assert 0.02 <= time.monotonic() - start < 50
    loop.set_alarm(-1.0)  # it is due already
    loop.poll()
    loop.set_alarm(None)
    loop.call_later(0.01, lambda: None)
    loop.poll()


def test_another_thread_ends_the_wait(loop: Loop) -> None:
    ran: list[int] = []
    waits = threading.Event()

    def call() -> None:
        waits.wait()
        loop.add_callback(lambda: ran.append(1))

    thread = threading.Thread(target=call)
    thread.start()
    loop.set_alarm(60.0)
    start = time.monotonic()
    waits.set()  # this thread keeps the GIL until it waits in `poll`
    loop.poll()
    loop.run_due()
    thread.join()
    assert ran == [1]
    assert time.monotonic() - start < 50


def test_descriptors(loop: Loop, pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    heard: list[tuple[int, int]] = []
    loop.add_handler(one.fileno(), lambda *event: heard.append(event), loop.READ)
    loop.set_alarm(0.0)
    loop.poll()
    assert heard == []
    other.send(b"x")
    loop.poll()
    assert heard == [(one.fileno(), loop.READ)]
    loop.update_handler(one.fileno(), loop.WRITE | loop.ERROR)
    loop.poll()
    assert heard[1:] == [(one.fileno(), loop.WRITE)]
    loop.remove_handler(one.fileno())
    loop.poll()
    assert len(heard) == 2
    loop.add_handler(one.fileno(), lambda *event: heard.append(event), loop.READ)  # once more
    loop.poll()
    assert len(heard) == 3


def test_a_failure_goes_to_whoever_reads_or_writes(loop: Loop) -> None:
    """A pipe whose other end is gone is neither readable nor writable, only broken."""
    reading, writing = os.pipe()
    heard: list[int] = []
    loop.add_handler(reading, lambda _, events: heard.append(events), loop.READ)
    os.close(writing)
    loop.poll()
    assert heard == [loop.READ]
    loop.remove_handler(reading)
    os.close(reading)
    reading, writing = os.pipe()
    loop.add_handler(writing, lambda _, events: heard.append(events), loop.WRITE | loop.ERROR)
    os.close(reading)
    loop.poll()
    assert heard[1:] == [loop.WRITE | loop.ERROR]
    os.close(writing)


@pytest.mark.parametrize("replaces", [False, True])
def test_a_callback_may_remove_another_that_is_ready(
    replaces: bool, loop: Loop, pair: tuple[socket.socket, socket.socket]
) -> None:
    """It is not called any more: its owner may be gone, and its number another file's. What was
    found for it means nothing for the one that replaces it."""
    heard: list[int] = []
    ends = [end.fileno() for end in pair]

    def hear(descriptor: int, _: int) -> None:
        heard.append(descriptor)
        (other,) = set(ends) - {descriptor}
        loop.remove_handler(other)
        if replaces:
            loop.add_handler(other, lambda *event: heard.append(-1), loop.WRITE)

    for end in ends:
        loop.add_handler(end, hear, loop.WRITE)
    loop.poll()
    assert len(heard) == 1
