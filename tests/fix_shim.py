"""The built core as an extension module of plain Python.

Inside Redis the shim starts Python; here Python loads the shim. So tests of the queue and of
the checks of parameters need no server.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any, Protocol, cast

import pytest

BUILT = pathlib.Path(__file__).resolve().parents[1] / "build" / "libredis_keyspace_amqp_core.so"
# test_sanitizers.py names another build than that of `make build`.
MODULE = pathlib.Path(os.environ.get("KEYSPACE_AMQP_SHIM", BUILT))
NAME = "_keyspace_amqp"


class Shim(Protocol):
    """The members of the module that cffi generates; they have no types."""

    ffi: Any
    lib: Any


def load() -> Shim:
    """Load the module into this process and return it."""
    loader = importlib.machinery.ExtensionFileLoader(NAME, str(MODULE))
    spec = importlib.util.spec_from_loader(NAME, loader)
    assert spec is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return cast("Shim", module)


@pytest.fixture(scope="session")
def shim() -> Iterator[Shim]:
    """The shim's `ffi` and `lib`. While a test uses it, the handler can import it too."""
    if not MODULE.exists():
        pytest.fail(f"{MODULE} is not built: run `make build`")
    loaded = load()
    sys.modules[NAME] = cast("ModuleType", loaded)
    yield loaded
    del sys.modules[NAME]
