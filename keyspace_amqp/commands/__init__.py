"""The worker's answers to KEYSPACEAMQP.*; STATS without arguments and HELP are the shim's.

The worker calls `answer` for a command of a client or a peer, and `apply` for parameters
that a peer has set. Both return a generator that yields what it waits for, so the worker
never blocks. Worker thread only.
"""

from .dispatch import answer
from .handler import Handler, Resume, Steps, WaitForPeers
from .parameters import apply
from .replies import CommandError, Reply, encode, to_json

__all__ = [
    "CommandError",
    "Handler",
    "Reply",
    "Resume",
    "Steps",
    "WaitForPeers",
    "answer",
    "apply",
    "encode",
    "to_json",
]
