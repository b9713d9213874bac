"""The nice value of the worker thread: how far it stands behind Redis for the processor.

Called by the worker on its own thread, first while the module is loaded. Knows neither
Redis nor the shim.

A filter on system calls (seccomp) may end the process at setpriority instead of
returning an error; the unit of Debian's redis-server has such a filter, that of a
container usually allows the call. Nothing tells what a filter does, so a child process
tries it, once in a process: a filter never goes away. That happens at the first call of
`set_nice`. Redis' main thread waits for the end of the load then, so it does not look
for children, and cannot take ours for one of its own.
"""

from __future__ import annotations

import functools
import os
import pathlib
import subprocess
import sys
import threading

# The trial takes about 20 ms; on a machine that is short of processors, longer.
_TRIAL_SECONDS = 10.0
# Sets the priority that the child has already. It writes a word, because an exit status may be
# lost: whoever waits for any child can take it.
_TRIAL = """
import os
os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
os.write(1, b"done")
os._exit(0)
"""


def set_nice(nice: int) -> None:
    """Give the calling thread this nice value. Raises OSError if that is not possible."""
    allowed = _is_allowed()  # even if there is nothing to set: later is too late for a trial
    thread = threading.get_native_id()  # Linux keeps a nice value for each thread
    if os.getpriority(os.PRIO_PROCESS, thread) == nice:
        return
    if not allowed:
        raise PermissionError("a filter on system calls forbids it")
    os.setpriority(os.PRIO_PROCESS, thread, nice)


@functools.cache
def _is_allowed() -> bool:
    """True unless a filter on system calls would end the process at setpriority."""
    try:
        status = pathlib.Path("/proc/thread-self/status").read_text()
    except OSError:  # no /proc: a filter is possible
        return _survives_trial()
    return not _has_filter(status) or _survives_trial()


def _has_filter(status: str) -> bool:
    """True if a thread with this status (proc(5)) has a filter on system calls. A kernel
    without them has no such line."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return fields.get("Seccomp", "0").strip() != "0"


def _survives_trial() -> bool:
    """True if a child process survives a call of setpriority."""
    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TRIAL_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return False  # no trial, so nothing is known
    return child.stdout == b"done"
