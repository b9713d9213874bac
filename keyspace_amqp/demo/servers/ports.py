"""Free ports of loopback."""

from __future__ import annotations

import random
import socket

from .process import ServerError

# Below the ports that the system hands out for outgoing connections. Tests that run side by
# side set a range each.
PORTS = range(12000, 30000)
_ATTEMPTS = 1000

_given: set[int] = set()


def free_port() -> int:
    """Return a port of PORTS that nobody listens on and that no earlier call returned: the
    server of an earlier call may be about to start. Raises ServerError."""
    for _ in range(_ATTEMPTS):
        port = random.choice(PORTS)
        if port in _given:
            continue
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            _given.add(port)
            return port
    raise ServerError(f"no free port between {PORTS.start} and {PORTS.stop - 1}")


def listens(port: int) -> bool:
    """True if a process listens on a port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
