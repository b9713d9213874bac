"""Lanes: in each, commands run one at a time, so each sees the changes of the one before.

Commands of clients may wait for peers. Commands that peers ask for never do, and have a
lane of their own: otherwise two nodes could wait for each other. Worker thread; nothing
here waits.
"""

from __future__ import annotations

import collections
from collections.abc import Callable

from ..commands import CommandError, Reply, Steps, WaitForPeers
from ..jobs import Job, JobResult
from ..values import mutable

Answer = Callable[[Reply | CommandError], None]
Submit = Callable[[Job, Callable[[JobResult], None]], None]


@mutable
class _Command:
    steps: Steps
    answer: Answer
    answered: bool = False


class Lane:
    """The commands that wait, and the one that runs.

    `submit` takes the jobs that commands wait for. `failed` is called in the `except`
    block of an exception that is no CommandError, with a text for the log.
    """

    def __init__(self, submit: Submit, failed: Callable[[str], None]) -> None:
        self._submit = submit
        self._failed = failed
        self._waiting: collections.deque[_Command] = collections.deque()
        self._running: _Command | None = None

    def add(self, steps: Steps, answer: Answer) -> None:
        """Append a command; `answer` gets its reply or its error, once."""
        self._waiting.append(_Command(steps, answer))

    def run(self) -> None:
        """Start waiting commands, until one of them has to wait for a job or for peers."""
        while self._running is None and self._waiting:
            self._running = self._waiting.popleft()
            self._step(self._running, None)

    def _step(self, command: _Command, value: object) -> None:
        """Continue a command until it waits for something, or ends."""
        if command.answered:
            return  # an exception has ended it, and what it waited for comes too late

        def resume(result: object) -> None:
            self._step(command, result)

        try:
            wait = command.steps.send(value)
            if isinstance(wait, WaitForPeers):
                self._let_next(command)
            if isinstance(wait, Job):
                self._submit(wait, resume)
            else:
                wait(resume)
            return
        except StopIteration as stop:
            reply = stop.value
        except CommandError as error:
            reply = error
        except Exception:
            reply = self._unexpected()
            command.steps.close()
        command.answered = True
        self._let_next(command)
        try:
            command.answer(reply)
        except Exception:
            command.answer(self._unexpected())

    def _let_next(self, command: _Command) -> None:
        """Let the next command start, if this one still holds the lane."""
        if self._running is command:
            self._running = None

    def _unexpected(self) -> CommandError:
        self._failed("unexpected exception in a command")
        return CommandError("unexpected exception in the handler, see the log")
