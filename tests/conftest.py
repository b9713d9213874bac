"""Names the modules with fixtures, tests/fix_*.py, and gives test processes their ports."""

import os

from hypothesis import settings

from keyspace_amqp.demo.servers import ports

pytest_plugins = [
    "tests.fix_servers",
    "tests.fix_faults",
    "tests.fix_shim",
    "tests.fix_cluster",
    "tests.fix_nodes",
    "tests.fix_rabbit_cluster",
    "tests.fix_tools",
]

# Test processes that run side by side take their ports from different ranges.
_WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if _WORKER:
    _NUMBER = int(_WORKER.removeprefix("gw")) % 6
    ports.PORTS = range(15000 + 2500 * _NUMBER, 15000 + 2500 * (_NUMBER + 1))

# A shared machine may stand still for longer than an example may take.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
