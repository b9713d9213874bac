"""Fixtures are in the fix_* modules; this file says which there are."""

from hypothesis import settings

pytest_plugins = ["tests.fix_servers", "tests.fix_faults", "tests.fix_shim", "tests.fix_cluster"]

# A shared machine may stand still for longer than an example may take.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
