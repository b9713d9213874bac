"""`keyspace-amqp path`: prints the path of the module. Needs the standard library alone."""

from __future__ import annotations

import argparse
import pathlib
import sys

from . import ToolError

MODULE_FILE = "libredis_keyspace_amqp.so"
# The core, which the module's file opens. It is in the same folder.
CORE_FILE = "libredis_keyspace_amqp_core.so"


def module_path() -> pathlib.Path:
    """Return the path of the module: in an installed package, or built in a checkout. If there is
    a link to it at the top of the environment, as in the image, that is the path: it stays when
    Python's version changes. Raises ToolError."""
    package = pathlib.Path(__file__).resolve().parents[1]
    for folder in (package, package.parent / "build"):
        if all((folder / name).is_file() for name in (MODULE_FILE, CORE_FILE)):
            module = folder / MODULE_FILE
            link = pathlib.Path(sys.prefix, MODULE_FILE)
            return link if link.exists() and link.samefile(module) else module
    raise ToolError(
        f"{MODULE_FILE} and {CORE_FILE} are neither in {package} nor in "
        f"{package.parent / 'build'}; run `make build` in a source checkout, or install the "
        "package again with pip"
    )


def run(_options: argparse.Namespace) -> int:
    """Print the path. Raises ToolError."""
    print(module_path())
    return 0
