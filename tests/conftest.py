"""Fixtures are in the fix_* modules; this file says which there are."""

pytest_plugins = ["tests.fix_servers"]
