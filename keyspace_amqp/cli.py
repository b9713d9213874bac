"""The command line: `keyspace-amqp path | loadmodule | status | tail | doctor | demo`.

Never imported inside Redis. The options of `loadmodule` come from the table of
parameters, and it refuses what the module would refuse. Needs the standard
library alone; tools and demos need packages and are imported when they run.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import pathlib
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from . import __version__
from .config import SETTINGS, Kind, Setting, format_masks, quoted
from .tools import ToolError

MODULE_FILE = "libredis_keyspace_amqp.so"

# The module knows which of these its server has.
_EVENT_LETTERS = frozenset("g$lshzxeAtdmn")
_INTEGER = re.compile(r"-?[0-9]+")


class _Failure(ToolError):
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
            good = bool(value)
        case Kind.TEXT:
            good = setting.minimum <= len(value) <= setting.maximum
    if good and b"\0" not in value:
        return value
    shown = "this value" if setting.sensitive else repr(text)
    accepted = "a mask, or ALL for every key" if setting.kind is Kind.MASKS else setting.accepted
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
            help="a key mask; give the option once for each (default: ALL, every key)",
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

    _add_tools(commands)

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


def _redis_options() -> argparse.ArgumentParser:
    """The options of all tools that talk to Redis, as a parent of their parsers; see
    tools/nodes.py."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--redis",
        metavar="URL",
        default=os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0",
        help="a server, or any node of a cluster: redis://, rediss:// (TLS) or unix:// "
        "(default: REDIS_URL from the environment, or redis://127.0.0.1:6379/0); the password "
        "may be in the environment variable REDISCLI_AUTH",
    )
    return parent


def _amqp_options() -> argparse.ArgumentParser:
    """The same for those that talk to the broker; see tools/amqp.py."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--amqp",
        metavar="URL",
        default=os.environ.get("AMQP_URL") or None,
        help="the broker: amqp://user:password@host:port/vhost, or amqps:// (default: AMQP_URL "
        "from the environment, or the module's, with the password in AMQP_PASSWORD or guest)",
    )
    parent.add_argument("--exchange", metavar="NAME", help="default: the module's")
    parent.add_argument(
        "--routing-key",
        metavar="KEY",
        action="append",
        help="may be given again; with wildcards for a topic exchange (default: the module's)",
    )
    return parent


def _positive(kind: Callable[[str], Any]) -> Callable[[str], Any]:
    def number(text: str) -> Any:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise ValueError
        return value

    return number


def _add_tools(commands: Any) -> None:
    redis_options, amqp_options = _redis_options(), _amqp_options()

    def add(name: str, summary: str, description: str, epilog: str, *parents: Any) -> Any:
        parser = commands.add_parser(
            name,
            parents=parents,
            help=summary,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        parser.set_defaults(run=functools.partial(_tool, name))
        return parser

    status = add(
        "status",
        "how all nodes are, in one table",
        "Shows state and counters of the server, or of all nodes of its cluster, until Ctrl-C.",
        """\
example: keyspace-amqp status --redis redis://10.0.0.1:6379
         keyspace-amqp status --json | jq '.nodes[].stats.dropped'

exit code: with --once and --json 0 if all nodes have answered, 1 if not; 130 after Ctrl-C""",
        redis_options,
    )
    status.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_positive(float),
        default=1.0,
        help="between two looks (default: 1)",
    )
    once = status.add_mutually_exclusive_group()
    once.add_argument("--once", action="store_true", help="one look; so it is too in a pipe")
    once.add_argument("--json", action="store_true", help="one look, all of STATS, as JSON")

    tail = add(
        "tail",
        "print events as they arrive at the broker",
        "Prints time, database, event, key, message id and flags of the messages that arrive at\n"
        "the exchange, until Ctrl-C. It reads a queue of its own, so nobody misses a message.\n"
        "What is not given is taken from the module in --redis.",
        """\
example: keyspace-amqp tail --count 10
         keyspace-amqp tail --amqp amqp://events@rabbit.example --exchange ks \\
           --routing-key '*.expired' --json

exit code: 0 after --count messages, 130 after Ctrl-C, 1 if it cannot begin""",
        redis_options,
        amqp_options,
    )
    tail.add_argument("--count", metavar="N", type=_positive(int), help="end after N messages")
    form = tail.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="one JSON object a line")
    form.add_argument("--body", action="store_true", help="the messages' bodies as they are")

    doctor = add(
        "doctor",
        "say what is wrong, and what to do about it",
        "Looks at the server, or at all nodes of its cluster, at the module, the broker and the\n"
        "settings. Changes nothing; the broker is sent a message that it has to refuse.",
        """\
example: AMQP_PASSWORD=secret keyspace-amqp doctor --redis redis://10.0.0.1:6379

exit code: 0 if there is no problem (there may be warnings), 1 if there is""",
        redis_options,
        amqp_options,
    )
    doctor.add_argument("--json", action="store_true", help="the findings as JSON")
    doctor.set_defaults(module_path=module_path)


def _tool(name: str, options: argparse.Namespace) -> int:
    """Runs a tool of the folder tools/."""
    try:
        tool = importlib.import_module(f"keyspace_amqp.tools.{name}")
    except ModuleNotFoundError as error:
        raise _missing_package(error, "tools") from None
    return int(tool.run(options))


def _missing_package(error: ModuleNotFoundError, extra: str) -> Exception:
    package = (error.name or "").partition(".")[0]
    if package not in ("pika", "redis", "rich", "prometheus_client"):
        return error
    return _Failure(
        f"the Python package {package} is missing: pip install 'keyspace-amqp[{extra}]'"
    )


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
        raise _missing_package(error, "demo") from None
    run = demo_cluster.run if options.cluster else demo.run
    return run(module_path(), keep=options.keep)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; the exit code. Like argparse, raises SystemExit for wrong options."""
    options = _parser().parse_args(argv)
    try:
        return int(options.run(options))
    except ToolError as failure:
        print(f"keyspace-amqp: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # of stdout: who reads it has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141  # as if SIGPIPE had ended it


if __name__ == "__main__":
    sys.exit(main())
