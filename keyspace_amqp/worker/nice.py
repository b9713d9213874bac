"""The nice value of the worker thread, which gives Redis precedence for the processor.

Called by the worker on its own thread, first while the module is loaded. Knows neither
Redis nor the shim.

A filter on system calls (seccomp) may kill the process at setpriority instead of
returning an error. The systemd unit of Debian's redis-server has such a filter; the filter
of a container usually allows the call. A process cannot ask what a filter does, so a
child process tries the call. One trial is enough, as a filter is never removed. The trial
is made at the first call of `set_nice`. At that time Redis' main thread waits for the end
of the load, so it does not look for children, and cannot take ours for one of its own.
"""

from __future__ import annotations

import functools
import os
import sys
import threading

# The trial takes about 20 ms; on a machine that is short of processors, longer.
_TRIAL_SECONDS = 10.0
# Sets the priority that the child has already. It writes a word, because its exit status may
# be lost: any other code of the process that waits for children can take it.
_TRIAL = """
import os
try:
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
except OSError:
    pass
os.write(1, b"done")
os._exit(0)
"""


def set_nice(nice: int) -> None:
    """Give the calling thread this nice value. Raises OSError if that is not possible."""
    allowed = _is_allowed()  # first: a trial is possible at load only
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
        with open("/proc/thread-self/status") as file:  # noqa: PTH123  # see imports.py
            status = file.read()
    except OSError:  # no /proc: assume a filter
        return _survives_trial()
    return not _has_filter(status) or _survives_trial()


def _has_filter(status: str) -> bool:
    """True if the status of a thread (see proc(5)) shows a filter on system calls. A kernel
    without such filters does not have the line."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return fields.get("Seccomp", "0").strip() != "0"


def _survives_trial() -> bool:
    """True if a child process survives a call of setpriority."""
    import subprocess  # not at load: most servers have no filter

    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TRIAL_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return False  # no trial was possible: assume that it would not survive
    return child.stdout == b"done"
