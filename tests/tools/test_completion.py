"""`keyspace-amqp completion` in real shells: what Tab makes of a line."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pty
import re
import shutil
import subprocess

import pytest

from keyspace_amqp.demo.servers import wait_for
from keyspace_amqp.tools.table import TOOLS
from tests.fix_tools import Run

PROMPT = "ready> "
# Started with no file of the user's. Tab shows all that fits at once.
SHELLS = {
    "bash": (
        ["bash", "--norc", "--noprofile", "-i"],
        "bind 'set show-all-if-ambiguous on' 'set bell-style none' "
        "'set enable-bracketed-paste off' 'set page-completions off' "
        "'set completion-query-items 0' 2>/dev/null; . {script}",
    ),
    "zsh": (
        ["zsh", "-f", "-i"],
        "unsetopt zle_bracketed_paste prompt_sp; LISTMAX=1000; fpath=({folder} $fpath); "
        "autoload -U compinit; compinit -D -u",
    ),
}


class Terminal:
    """A shell in a terminal, in a `with`; `said` is what it has written."""

    def __init__(self, shell: str, script: pathlib.Path) -> None:
        words, first = SHELLS[shell]
        self._terminal, inside = pty.openpty()
        os.set_blocking(self._terminal, False)
        self._process = subprocess.Popen(
            words,
            cwd=script.parent,
            env={"PATH": os.defpath, "TERM": "dumb", "COLUMNS": "400", "LINES": "200",
                 "PS1": PROMPT, "LC_ALL": "C.UTF-8"},
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
        )  # fmt: skip
        os.close(inside)
        self._all = ""
        self._type(first.format(script=script.name, folder=script.parent) + "; stty rows 200 ")
        self._type("cols 400; PS1=; PS1='rea''dy> '\n")
        self.expect(PROMPT)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._terminal)

    def _type(self, text: str) -> None:
        os.write(self._terminal, text.encode())

    def _said(self) -> str:
        with contextlib.suppress(BlockingIOError):
            self._all += os.read(self._terminal, 100_000).decode()
        return self._all

    def expect(self, pattern: str) -> str:
        """Waits until it has written this, and returns all since the last call."""
        wait_for(lambda: re.search(pattern, self._said()), 30, pattern, lambda: repr(self._all))
        said, self._all = self._all, ""
        return said

    def completes(self, line: str, pattern: str) -> str:
        """A line and Tab, then a new prompt; the pattern is in what is shown after the line."""
        self._type(f"{line}\t")
        said = self.expect(pattern)
        self._type("\x15\n")  # removes the line
        self.expect(PROMPT)
        return said


@pytest.mark.parametrize("shell", SHELLS)
def test_completion(shell: str, run: Run, tmp_path: pathlib.Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not on this machine")
    code, script, err = run("completion", shell)
    assert (code, err) == (0, "")
    file = tmp_path / "_keyspace-amqp"
    file.write_text(script)
    (tmp_path / "events one.jsonl").touch()
    with Terminal(shell, file) as terminal:
        terminal.completes("keyspace-amqp decl", r"decl\S*are ")
        for tool in TOOLS:
            terminal.completes("keyspace-amqp ", rf"\b{tool.name}\b")
        terminal.completes("keyspace-amqp declare --dr", r"--dr\S*y-run ")
        # The options of a tool are those of this tool.
        terminal.completes("keyspace-amqp declare --queue-type q", r" q\S*uorum")
        options = terminal.completes("keyspace-amqp status --", "--interval")
        assert "--queue" not in options
        terminal.completes("keyspace-amqp loadmodule --outbox at", r" at\S*omic ")
        terminal.completes("keyspace-amqp replay ev", r" ev\S*ents\\ one.jsonl ")
        terminal.completes("keyspace-amqp loadmodule --tls-ca-file ev", r" ev\S*ents\\ one.jsonl ")
