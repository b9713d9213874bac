"""The nice value and the time slice of the worker thread, which give Redis precedence for the
processor.

Called by the worker on its own thread, first while the module is loaded. Knows neither
Redis nor the shim.

Since 6.6, Linux lets a thread that runs finish its time slice before a thread that wakes up gets
the processor, whatever their nice values: Redis' main thread waited for up to half a millisecond
for a worker on the same core. A thread with a shorter slice need not wait, though. So the worker
asks for a long one. It gets no more of the processor by that.

A filter on system calls (seccomp) may kill the process at setpriority instead of
returning an error. The systemd unit of Debian's redis-server has such a filter; the filter
of a container usually allows the call. A process cannot ask what a filter does, so a
child process tries the calls. One trial is enough, as a filter is never removed. The trial
is made at the first call of `set_nice`. At that time Redis' main thread waits for the end
of the load, so it does not look for children, and cannot take ours for one of its own.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from typing import Protocol

# The longest slice that Linux accepts (nanoseconds).
_LONG_SLICE = 100_000_000
# The trial takes about 20 ms; on a machine that is short of processors, longer.
_TRIAL_SECONDS = 10.0
# Sets the priority that the child has already, then makes the call for the slice, without
# arguments: it fails, but a filter sees its number. It writes a letter after each, because
# its exit status may be lost: any other code of the process that waits for children can take it.
_TRIAL = """
import os, sys
try:
    os.setpriority(os.PRIO_PROCESS, 0, os.getpriority(os.PRIO_PROCESS, 0))
except OSError:
    pass
os.write(1, b"n")
import ctypes
ctypes.CDLL(None).syscall(int(sys.argv[1]), 0, 0, 0)
os.write(1, b"s")
os._exit(0)
"""
_NICE, _SLICE = b"n", b"s"


class Slices(Protocol):
    """What is used of the shim; see shim_api.py."""

    @property
    def slice_call(self) -> int: ...

    def set_slice(self, nice: int, nanoseconds: int) -> int: ...


def set_nice(nice: int, slices: Slices) -> None:
    """Give the calling thread this nice value, and a long time slice unless the value is 0. Raises
    OSError if the nice value is not possible. Without the slice the worker is only less polite."""
    allowed = _allowed(slices.slice_call)  # first: a trial is possible at load only
    thread = threading.get_native_id()  # Linux keeps a nice value for each thread
    if os.getpriority(os.PRIO_PROCESS, thread) != nice:
        if _NICE not in allowed:
            raise PermissionError("a filter on system calls forbids it")
        os.setpriority(os.PRIO_PROCESS, thread, nice)
    if _SLICE in allowed:
        slices.set_slice(nice, _LONG_SLICE if nice else 0)


@functools.cache
def _allowed(slice_call: int) -> bytes:
    """Return the letters of the calls at which no filter ends the process."""
    try:
        with open("/proc/thread-self/status") as file:  # noqa: PTH123  # see imports.py
            status = file.read()
    except OSError:  # no /proc: assume a filter
        return _try(slice_call)
    return _try(slice_call) if _has_filter(status) else _NICE + _SLICE


def _has_filter(status: str) -> bool:
    """True if the status of a thread (see proc(5)) shows a filter on system calls. A kernel
    without such filters does not have the line."""
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return fields.get("Seccomp", "0").strip() != "0"


def _try(slice_call: int) -> bytes:
    """Return the letters of the calls that a child process survives."""
    import subprocess  # not at load: most servers have no filter

    try:
        child = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL, str(slice_call)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TRIAL_SECONDS,
        )
    except (OSError, subprocess.SubprocessError):
        return b""  # no trial was possible: assume that it would not survive
    return child.stdout
