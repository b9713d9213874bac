"""The command line: `keyspace-amqp path | loadmodule | demo`.

Never imported inside Redis. The options of `loadmodule` come from the table of
parameters, and it refuses what the module would refuse. Needs the standard
library alone; the demo has packages of its own and is imported when it runs.
"""

from __future__ import annotations

import argparse
import functools
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

from . import __version__
from .config import SETTINGS, Kind, Setting, format_masks, quoted
from .masks import EXCLUDES

MODULE_FILE = "libredis_keyspace_amqp.so"

# The module knows which of these its server has.
_EVENT_LETTERS = frozenset("g$lshzxeAtdmnoc")
_INTEGER = re.compile(r"-?[0-9]+")


class _Failure(Exception):
    """What a command cannot do; the text says what to do about it."""


def module_path() -> pathlib.Path:
    """Where the module is: beside an installed package, or built in a checkout."""
    package = pathlib.Path(__file__).resolve().parent
    for folder in (package, package.parent / "build"):
        if (folder / MODULE_FILE).is_file():
            return folder / MODULE_FILE
    raise _Failure(
        f"{MODULE_FILE} is neither in {package} nor in {package.parent / 'build'}; "
        "run `make build` in a source checkout, or install the package again with pip"
    )


def redis_conf(path: pathlib.Path, values: Mapping[str, bytes]) -> str:
    """The lines of redis.conf that load the module with these parameters.

    Named, not as arguments: so they survive CONFIG REWRITE, and the password
    does not show in MODULE LIST.
    """
    lines = [f"loadmodule {quoted(os.fsencode(path))}"]
    lines += [f"keyspaceamqp.{name} {quoted(value)}" for name, value in values.items()]
    return "\n".join(lines)


def _checked(setting: Setting, text: str) -> bytes:
    """The value of an option, if the module will accept it."""
    value = os.fsencode(text)
    match setting.kind:
        case Kind.INTEGER:
            good = bool(_INTEGER.fullmatch(text)) and (
                setting.minimum <= int(text) <= setting.maximum
            )
        case Kind.EVENTS:
            good = bool(text) and _EVENT_LETTERS.issuperset(text)
        case Kind.MASKS:  # one of them; the length of all is checked later
            good = value not in (b"", EXCLUDES)
        case Kind.TEXT:
            good = setting.minimum <= len(value) <= setting.maximum
            good = good and (not setting.pattern or bool(re.fullmatch(setting.pattern, text)))
    if good and b"\0" not in value:
        return value
    shown = "this value" if setting.sensitive else repr(text)
    mask = "a mask, with ! before it one that excludes, or ALL for every key"
    accepted = mask if setting.kind is Kind.MASKS else setting.accepted
    raise argparse.ArgumentTypeError(f"{shown} is not accepted; give {accepted}")


def _add_setting(parser: argparse.ArgumentParser, setting: Setting) -> None:
    check = functools.partial(_checked, setting)
    if setting.kind is Kind.MASKS:
        parser.add_argument(
            "--mask",
            dest=setting.name,
            action="append",
            type=check,
            metavar="MASK",
            help="a key mask, with ! before it one that excludes; give the option once for each "
            "(default: ALL, every key)",
        )
        return
    parser.add_argument(
        f"--{setting.name}",
        dest=setting.name,
        type=check,
        metavar="NUMBER" if setting.kind is Kind.INTEGER else "TEXT",
        # argparse would expand a percent sign.
        help=f"{setting.help} (default: {setting.default})".replace("%", "%%"),
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "keyspace-amqp",
        description="Redis keyspace events in RabbitMQ: none lost, in order, and Redis does not "
        "notice it.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"keyspace-amqp {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    path = commands.add_parser(
        "path", help="print where the module is", description="Prints the path of the module."
    )
    path.set_defaults(run=_path)

    loadmodule = commands.add_parser(
        "loadmodule",
        help="print the lines for redis.conf",
        description="Prints the lines that load the module, for redis.conf or valkey.conf. "
        "What is not given keeps its default.",
        epilog="example: keyspace-amqp loadmodule --host rabbit.example --events A "
        "--delivery-mode 2 --mask '^user:' --mask '^order:'",
        allow_abbrev=False,
    )
    for setting in SETTINGS:
        _add_setting(loadmodule, setting)
    loadmodule.set_defaults(run=_loadmodule)

    demo = commands.add_parser(
        "demo",
        help="show it: a private Redis, a private RabbitMQ, and an outage",
        description="Starts a private Redis and a private RabbitMQ, shows events and their "
        "messages, kills RabbitMQ under load, starts it again, and checks that nothing was lost. "
        "Takes about half a minute and leaves nothing behind.",
        allow_abbrev=False,
    )
    demo.add_argument(
        "--cluster",
        action="store_true",
        help="with a Redis Cluster of six nodes, a failover and slots that move",
    )
    demo.add_argument(
        "--keep",
        action="store_true",
        help="leave the servers up at the end, to play with, until Ctrl-C",
    )
    demo.set_defaults(run=_demo)
    return parser


def _path(_options: argparse.Namespace) -> int:
    print(module_path())
    return 0


def _loadmodule(options: argparse.Namespace) -> int:
    given = vars(options)
    values: dict[str, bytes] = {}
    for setting in SETTINGS:
        value = given[setting.name]
        if value is None:
            continue
        if setting.kind is Kind.MASKS:
            value = format_masks(dict.fromkeys(value))
            if len(value) > setting.maximum:
                raise _Failure(f"--mask: all masks together may have {setting.maximum} bytes")
        values[setting.name] = value
    print(redis_conf(module_path(), values))
    return 0


def _demo(options: argparse.Namespace) -> int:
    try:
        from . import demo, demo_cluster
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("pika", "redis", "rich"):
            raise
        raise _Failure(
            f"the Python package {package} is missing: pip install 'keyspace-amqp[demo]'"
        ) from None
    run = demo_cluster.run if options.cluster else demo.run
    return run(module_path(), keep=options.keep)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code. Like argparse, raises SystemExit for wrong options."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except _Failure as failure:
        print(f"keyspace-amqp: {failure}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
