"""The parser of the command line, made from the table of the tools. Needs the standard library
alone."""

from __future__ import annotations

import argparse

from .. import __version__
from .table import TOOLS


def make_parser() -> argparse.ArgumentParser:
    """Return the parser; the options that it reads have `tool`, the Tool to run."""
    parser = argparse.ArgumentParser(
        "keyspace-amqp",
        description="Redis keyspace events in RabbitMQ: at least once, in order per node, and "
        "Redis does not wait for the broker.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"keyspace-amqp {__version__}")
    parsers = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for tool in TOOLS:
        each = parsers.add_parser(
            tool.name,
            help=tool.summary,
            description=tool.description,
            epilog=tool.epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        tool.add_arguments(each)
        each.set_defaults(tool=tool)
    return parser
