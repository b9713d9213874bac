"""The command line `keyspace-amqp`: reads the options and runs one of the tools in
tools/table.py.

Never imported inside Redis. Needs the standard library alone; a tool's code is imported
when it runs.
"""

from __future__ import annotations

import argparse
import importlib
import io
import os
import sys
from collections.abc import Sequence

from .tools import ToolError
from .tools.parser import make_parser
from .tools.table import Tool

# What the extras of the package install.
_PACKAGES = ("pika", "redis", "rich", "prometheus_client", "shtab")
# The exit code of a shell for a process that SIGINT or SIGPIPE has ended.
_INTERRUPTED = 130
_BROKEN_PIPE = 141


def _run(tool: Tool, options: argparse.Namespace) -> int:
    """Import a tool's code and run it. Raises ToolError if a package is missing."""
    module, _, function = tool.code.partition(":")
    try:
        code = importlib.import_module(f"keyspace_amqp.{module}")
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _PACKAGES:
            raise
        raise ToolError(
            f"the Python package {package} is missing: pip install 'keyspace-amqp[{tool.extra}]'"
        ) from None
    return int(getattr(code, function)(options))


def main(argv: Sequence[str] | None = None) -> int:
    """Run a tool and return its exit code. Like argparse, raises SystemExit for wrong
    options."""
    options = make_parser().parse_args(argv)
    # Names in texts have characters that the locale may lack.
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        return _run(options.tool, options)
    except ToolError as error:
        print(f"keyspace-amqp: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of standard output has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


if __name__ == "__main__":
    sys.exit(main())
