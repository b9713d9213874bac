"""The command line: `keyspace-amqp path | loadmodule | exporter | drain | replay | demo`.

Never imported inside Redis. The options of `loadmodule` come from the table of
parameters, and it refuses what the module would refuse. Needs the standard
library alone; the demo and the tools have packages of their own and are imported when
they run.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

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
    """The options of all commands that talk to a running Redis."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(
        "--redis",
        metavar="URL",
        default=os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0",
        help="the server, or any node of the cluster; rediss:// for TLS (default: the "
        "environment's REDIS_URL, else redis://127.0.0.1:6379/0). A password may also come "
        "from the environment's REDISCLI_AUTH",
    )
    return parent


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
    """The commands that look into a running module, or take its list out."""
    exporter = commands.add_parser(
        "exporter",
        parents=[_redis_options()],
        help="metrics for Prometheus, and a dashboard for Grafana",
        description="Serves the numbers of STATS as metrics for Prometheus, until SIGTERM or "
        "Ctrl-C: of one server, or of all nodes of its cluster, which are looked up anew at each "
        "scrape. A node that does not answer has keyspace_amqp_up 0 and delays a scrape by a few "
        "seconds at most. The user of Redis needs +info and +cluster|nodes.",
        epilog="example: keyspace-amqp exporter --redis redis://127.0.0.1:6379 --listen "
        "127.0.0.1:9808, then in prometheus.yml: {job_name: keyspace-amqp, static_configs: "
        "[{targets: ['127.0.0.1:9808']}]}; and keyspace-amqp exporter --dashboard > grafana.json",
        allow_abbrev=False,
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
    exporter.set_defaults(run=functools.partial(_tool, "exporter", "run"))

    drain = commands.add_parser(
        "drain",
        parents=[_redis_options()],
        help="take the fallback list out of Redis, into a file",
        description="Moves what waits in the fallback list into a file, oldest first, for "
        "instance when Redis needs the memory during a long outage of the broker. In a cluster: "
        "the lists of all primaries. A batch is written to the file and on disk before it is "
        "removed from Redis, and only those elements are removed that were written. So nothing "
        "is lost if this is interrupted; what was just being removed may then be in the file and "
        "in Redis. Start it again with --append. What comes into the list meanwhile stays there. "
        "The module counts what was taken out as dropped, in dropped_fallback_removed. It is "
        "refused while the module delivers its list: give KEYSPACEAMQP.DISCONNECT before. If "
        "the broker comes back meanwhile, this stops.",
        epilog="The file has a JSON object per line: `element` in base64 is the element of the "
        "list as it was; the rest is for people and jq. Example: keyspace-amqp drain --to "
        "events.jsonl && jq .key events.jsonl; to put it back: keyspace-amqp replay events.jsonl",
        allow_abbrev=False,
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

    replay = commands.add_parser(
        "replay",
        parents=[_redis_options()],
        help="put a file of drain back into the fallback list",
        description="Appends the elements in a file of `drain` to the fallback list; the module "
        "delivers them, counts them as fallback_found, and they keep their message_id. In a "
        "cluster, one primary gets them all. The whole file is checked before: if a line is not "
        "sound, nothing is pushed. If this is interrupted, repeat it: what was pushed already "
        "comes twice then, with the same message_id.",
        epilog="example: keyspace-amqp replay events.jsonl",
        allow_abbrev=False,
    )
    replay.add_argument("file", metavar="FILE", help="what `drain --to FILE` has written")
    replay.add_argument(
        "--force",
        action="store_true",
        help="also if the list becomes longer than fallback-size; the module cuts off the oldest "
        "elements then",
    )
    replay.set_defaults(run=functools.partial(_tool, "elements", "replay"))


def _tool(module: str, function: str, options: argparse.Namespace) -> int:
    """Runs a function of a module in `tools`."""
    try:
        nodes = importlib.import_module(".tools.nodes", __package__)
        run = getattr(importlib.import_module(f".tools.{module}", __package__), function)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("redis", "rich", "prometheus_client"):
            raise
        raise _Failure(
            f"the Python package {package} is missing: pip install 'keyspace-amqp[tools]'"
        ) from None
    try:
        return int(run(options))
    except nodes.ToolError as error:
        raise _Failure(str(error)) from None
    except KeyboardInterrupt:
        return 130


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
