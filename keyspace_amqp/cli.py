"""The command line: `keyspace-amqp path | loadmodule | status | tail | doctor | exporter | drain |
replay | demo`.

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
from .config import format_masks, quoted
from .masks import EXCLUDES
from .tables.parameters import PARAMETERS, Kind, Parameter
from .tools import ToolError

MODULE_FILE = "libredis_keyspace_amqp.so"

# The module knows which of these its server has.
_EVENT_LETTERS = frozenset("g$lshzxeAtdmnoc")
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


def _checked(parameter: Parameter, text: str) -> bytes:
    """The value of an option, if the module will accept it."""
    value = os.fsencode(text)
    match parameter.kind:
        case Kind.INTEGER:
            good = bool(_INTEGER.fullmatch(text)) and (
                parameter.minimum <= int(text) <= parameter.maximum
            )
        case Kind.EVENTS:
            good = bool(text) and _EVENT_LETTERS.issuperset(text)
        case Kind.MASKS:  # one of them; the length of all is checked later
            good = value not in (b"", EXCLUDES)
        case Kind.TEXT | Kind.SWITCH:
            good = parameter.minimum <= len(value) <= parameter.maximum
            good = good and (not parameter.pattern or bool(re.fullmatch(parameter.pattern, text)))
    if good and b"\0" not in value:
        return value
    # A URL in the wrong place may have a password too.
    shown = "this value" if parameter.sensitive or "@" in text else repr(text)
    mask = "a mask, with ! before it one that excludes, or ALL for every key"
    accepted = mask if parameter.kind is Kind.MASKS else parameter.accepted
    raise argparse.ArgumentTypeError(f"{shown} is not accepted; give {accepted}")


def _add_parameter(parser: argparse.ArgumentParser, parameter: Parameter) -> None:
    check = functools.partial(_checked, parameter)
    if parameter.kind is Kind.MASKS:
        parser.add_argument(
            "--mask",
            dest=parameter.name,
            action="append",
            type=check,
            metavar="MASK",
            help="a key mask, with ! before it one that excludes; give the option once for each "
            "(default: ALL, every key)",
        )
        return
    parser.add_argument(
        f"--{parameter.name}",
        dest=parameter.name,
        type=check,
        metavar="NUMBER" if parameter.kind is Kind.INTEGER else "TEXT",
        # argparse would expand a percent sign.
        help=f"{parameter.help} (default: {parameter.default})".replace("%", "%%"),
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
    for parameter in PARAMETERS:
        _add_parameter(loadmodule, parameter)
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


def _listen(text: str) -> tuple[str, int]:
    """`host:port`, with an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not accepted; give host:port like 127.0.0.1:9808, 0.0.0.0:9808 for "
            "all addresses"
        )
    return host, int(port)


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
        parser.set_defaults(run=functools.partial(_tool, name, "run"))
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

    exporter = add(
        "exporter",
        "metrics for Prometheus, and a dashboard for Grafana",
        "Serves the numbers of STATS as metrics for Prometheus, until SIGTERM or Ctrl-C: of one\n"
        "server, or of all nodes of its cluster, which are looked up anew at each scrape. A node\n"
        "that does not answer has keyspace_amqp_up 0, and delays a scrape by a few seconds at\n"
        "most. The user of Redis needs +info and +cluster|nodes.",
        """\
example: keyspace-amqp exporter --redis redis://10.0.0.1:6379 --listen 127.0.0.1:9808
         then in prometheus.yml, under scrape_configs:
           - job_name: keyspace-amqp
             static_configs: [{targets: ["127.0.0.1:9808"]}]
         keyspace-amqp exporter --dashboard > keyspace-amqp.json""",
        redis_options,
    )
    exporter.add_argument(
        "--listen",
        type=_listen,
        metavar="HOST:PORT",
        default=("127.0.0.1", 9808),
        help="where to serve the metrics (default: 127.0.0.1:9808)",
    )
    exporter.add_argument(
        "--node-label",
        metavar="TEXT",
        help="the label `node` of a server that is in no cluster (default: its host:port as in "
        "--redis); in a cluster it is the address that the nodes know each other by",
    )
    exporter.add_argument(
        "--dashboard",
        action="store_true",
        help="print a dashboard to import into Grafana 10 or later, and end",
    )

    drain = add(
        "drain",
        "take the fallback list out of Redis, into a file",
        "Moves what waits in the fallback list into a file, oldest first, for instance when Redis\n"
        "needs the memory in a long outage of the broker. In a cluster: the lists of all\n"
        "primaries.\n\n"
        "A batch is on disk before it is removed from Redis, and only those elements are removed\n"
        "that were written. So nothing is lost if this is interrupted; what was just being\n"
        "removed may then be in the file and in Redis. Start it again with --append. What comes\n"
        "into the list meanwhile stays there.\n\n"
        "The module counts what was taken out as dropped, in dropped_fallback_removed. While it\n"
        "delivers its list, this is refused: give KEYSPACEAMQP.DISCONNECT before. If the broker\n"
        "comes back meanwhile, this stops.",
        """\
The file has a JSON object a line: `element` in base64 is the element of the list as it
was, the rest is for people and jq.

example: keyspace-amqp drain --to events.jsonl
         jq .key events.jsonl
         keyspace-amqp replay events.jsonl

exit code: 0, or 1 if something is left because a node or a file fails""",
        redis_options,
    )
    drain.add_argument(
        "--to",
        required=True,
        metavar="FILE",
        help="a new file; - for the standard output, which nobody can promise to be on disk",
    )
    drain.add_argument(
        "--append", action="store_true", help="go on at the end of a file that exists"
    )
    drain.add_argument(
        "--force",
        action="store_true",
        help="also while the module delivers the list; then events may be delivered and be in "
        "the file",
    )
    drain.set_defaults(run=functools.partial(_tool, "elements", "drain"))

    replay = add(
        "replay",
        "put a file of drain back into the fallback list",
        "Appends the elements in a file of `drain` to the fallback list. The module delivers\n"
        "them, counts them as fallback_found, and they keep their message_id. In a cluster, one\n"
        "primary gets them all. The whole file is checked before: if a line is not sound,\n"
        "nothing is pushed. If this is interrupted, repeat it: what was pushed already comes\n"
        "twice then, with the same message_id.",
        "example: keyspace-amqp replay events.jsonl",
        redis_options,
    )
    replay.add_argument("file", metavar="FILE", help="what `drain --to FILE` has written")
    replay.add_argument(
        "--force",
        action="store_true",
        help="also if the list becomes longer than fallback-size; the module cuts off the oldest "
        "elements then",
    )
    replay.set_defaults(run=functools.partial(_tool, "elements", "replay"))


def _tool(name: str, function: str, options: argparse.Namespace) -> int:
    """Runs a tool of the folder tools/."""
    try:
        tool = importlib.import_module(f"keyspace_amqp.tools.{name}")
    except ModuleNotFoundError as error:
        raise _missing_package(error, "tools") from None
    return int(getattr(tool, function)(options))


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
    for parameter in PARAMETERS:
        value = given[parameter.name]
        if value is None:
            continue
        if parameter.kind is Kind.MASKS:
            value = format_masks(dict.fromkeys(value))
            if len(value) > parameter.maximum:
                raise _Failure(f"--mask: all masks together may have {parameter.maximum} bytes")
        values[parameter.name] = value
    print(redis_conf(module_path(), values))
    return 0


def _demo(options: argparse.Namespace) -> int:
    try:
        from .demo import cluster as demo_cluster
        from .demo import standalone as demo
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
