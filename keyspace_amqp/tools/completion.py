"""`keyspace-amqp completion`: a script with which a shell completes the words of the command.

shtab makes it of the parser. It depends on nothing: completing a word starts no Python.
"""

from __future__ import annotations

import argparse

import shtab

from .parser import make_parser


def run(options: argparse.Namespace) -> int:
    """Print the script for a shell."""
    parser = make_parser()
    _describe(parser)
    print(shtab.complete(parser, options.shell))
    return 0


def _describe(parser: argparse.ArgumentParser) -> None:
    """Tell shtab which values are files and which are one of a few words, as the metavars say; and
    take the summary of each tool, of which zsh shows one line."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for each in action.choices.values():
                each.description = each.get_default("tool").summary
                _describe(each)
        elif action.metavar == "FILE":
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        elif isinstance(action.metavar, str) and "|" in action.metavar:
            action.choices = action.metavar.split("|")
