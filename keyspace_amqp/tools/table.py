"""The table of the tools, which are the commands of `keyspace-amqp`: their options, and the
location of their code.

Needs the standard library alone: --help works without redis-py, pika and rich, and a tool's
code is imported when it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import math
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

from . import loadmodule

# Seconds from one look of `status` to the next. Who wants fewer looks has the exporter.
_LONGEST_INTERVAL = 3600.0


def _no_arguments(_parser: argparse.ArgumentParser) -> None:
    pass


@dataclasses.dataclass(frozen=True)
class Tool:
    """A tool. `code`: the module and the function that run it, as `module:function`;
    the function takes the options and returns the exit code. `extra`: the extra of the
    package that has what the code imports."""

    name: str
    code: str
    summary: str
    description: str
    epilog: str = ""
    arguments: Callable[[argparse.ArgumentParser], None] = _no_arguments
    redis: bool = False  # has the options of `_add_redis`
    amqp: bool = False  # has the options of `_add_amqp`
    extra: str = "tools"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        """Add all options of this tool."""
        if self.redis:
            _add_redis(parser)
        if self.amqp:
            _add_amqp(parser)
        self.arguments(parser)


# ---- options that several tools have -----------------------------------------------


def _add_redis(parser: argparse.ArgumentParser) -> None:
    """Add --redis; nodes.py reads it."""
    parser.add_argument(
        "--redis",
        metavar="URL",
        default=os.environ.get("REDIS_URL") or "redis://127.0.0.1:6379/0",
        help="a server, or any node of a cluster: redis://, rediss:// (TLS; certificates with "
        "?ssl_ca_certs=FILE&ssl_certfile=FILE&ssl_keyfile=FILE) or unix:// (default: REDIS_URL "
        "from the environment, or redis://127.0.0.1:6379/0); the password may be in the "
        "environment variable REDISCLI_AUTH",
    )


def _add_amqp(parser: argparse.ArgumentParser) -> None:
    """Add --amqp, --exchange and --routing-key; amqp.py reads them."""
    parser.add_argument(
        "--amqp",
        metavar="URL",
        default=os.environ.get("AMQP_URL") or None,
        help="the broker: amqp://user:password@host:port/vhost, or amqps:// (TLS; certificates "
        "with ?cacertfile=FILE&certfile=FILE&keyfile=FILE; default: AMQP_URL from the environment, "
        "or the module's broker, with the password in AMQP_PASSWORD or guest)",
    )
    parser.add_argument("--exchange", metavar="NAME", help="default: the module's exchange")
    parser.add_argument(
        "--routing-key",
        metavar="KEY",
        action="append",
        help="may be given several times; with wildcards for a topic exchange (default: the "
        "module's routing key)",
    )


# ---- types of options ----------------------------------------------------------------


def _positive(kind: type[int] | type[float], most: float = math.inf) -> Callable[[str], Any]:
    """Return a type for argparse: a number of a kind above 0, and not above `most`."""

    def number(text: str) -> Any:
        with contextlib.suppress(ValueError):
            value = kind(text)
            if 0 < value <= most and value < math.inf:
                return value
        words = "a whole number above 0" if kind is int else "a number of seconds above 0"
        limit = f", {most:g} at most" if most < math.inf else ""
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; give {words}{limit}")

    return number


def _address(text: str) -> tuple[str, int]:
    """Return host and port of `host:port`, with an IPv6 address in brackets."""
    host, _, port = text.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not host or not re.fullmatch("[0-9]{1,5}", port) or int(port) > 65535:
        raise argparse.ArgumentTypeError(
            f"{text!r} is not accepted; give host:port like 127.0.0.1:9808, or 0.0.0.0:9808 for "
            "all addresses"
        )
    return host, int(port)


# ---- options of each tool -------------------------------------------------------------


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--interval",
        metavar="SECONDS",
        type=_positive(float, _LONGEST_INTERVAL),
        default=1.0,
        help="seconds from one look to the next (default: 1)",
    )
    once = parser.add_mutually_exclusive_group()
    once.add_argument(
        "--live",
        action="store_true",
        help="the table and graphs of the last minutes, until Ctrl-C; the default on a terminal",
    )
    once.add_argument("--once", action="store_true", help="one table; the default in a pipe")
    once.add_argument("--json", action="store_true", help="all of STATS once, as JSON")


def _tail(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--count", metavar="N", type=_positive(int), help="end after N messages")
    output = parser.add_mutually_exclusive_group()
    output.add_argument("--json", action="store_true", help="one JSON object a line")
    output.add_argument("--body", action="store_true", help="the bodies of the messages, unchanged")


def _doctor(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="the findings as JSON")
    parser.add_argument(
        "--publish",
        action="store_true",
        help="send a marked message, and say whether a queue took it; consumers get it, as the "
        "event `doctor` with the header x-keyspaceamqp-doctor",
    )


def _argument(text: str) -> tuple[str, int | bool | str]:
    """Return name and value of `name=value`; a number or a truth value as such."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is not accepted; give NAME=VALUE")
    if name == "x-queue-type":
        raise argparse.ArgumentTypeError("give --queue-type for the kind of the queue")
    if re.fullmatch("-?[0-9]{1,18}", value):
        return name, int(value)
    return name, {"true": True, "false": False}.get(value, value)


def _declare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--queue",
        metavar="NAME",
        help="default: the routing key, or redis_keyspace_events if it depends on the event",
    )
    parser.add_argument(
        "--queue-type",
        choices=("classic", "quorum", "stream"),
        default="classic",
        help="quorum: with copies on several brokers of a cluster; stream: consumers may read old "
        "messages again (default: classic)",
    )
    parser.add_argument(
        "--argument",
        metavar="NAME=VALUE",
        type=_argument,
        action="append",
        help="an argument of the queue, such as x-max-length=1000000 or "
        "x-dead-letter-exchange=dead; may be given several times",
    )
    parser.add_argument(
        "--exchange-type",
        choices=("direct", "topic", "fanout", "headers"),
        help="default: the type that it has; for a new one topic if the routing key depends on "
        "the event, else direct",
    )
    parser.add_argument("--dry-run", action="store_true", help="say what would be done")


def _exporter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--listen",
        type=_address,
        metavar="HOST:PORT",
        default=("127.0.0.1", 9808),
        help="where to serve the metrics (default: 127.0.0.1:9808)",
    )
    parser.add_argument(
        "--node-label",
        metavar="TEXT",
        help="the label `node` of a server that is in no cluster (default: its host:port as in "
        "--redis); in a cluster the label is the address that the nodes know each other by",
    )
    prints = parser.add_mutually_exclusive_group()
    prints.add_argument(
        "--alerts",
        action="store_true",
        help="print rules with alerts for Prometheus, and end",
    )
    prints.add_argument(
        "--dashboard",
        action="store_true",
        help="print a dashboard to import into Grafana 10 or later, and end",
    )


def _drain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        required=True,
        metavar="FILE",
        help="a new file; - for standard output, for which the tool cannot ensure that the data "
        "is on disk",
    )
    parser.add_argument(
        "--append", action="store_true", help="append to a file of an earlier `drain`"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help="drain also while the module delivers the list; events may then be delivered and be "
        "in the file",
    )


def _replay(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="a file that `drain --to FILE` has written")
    parser.add_argument(
        "--force",
        action="store_true",
        help="push also if the list becomes longer than fallback-size; the module then cuts off "
        "the oldest elements",
    )


def _leftovers(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", help="such as keyspaceamqp-6379.leftover")


def _completion(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh"))


def _demo(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cluster",
        action="store_true",
        help="use a Redis Cluster of six nodes, with a failover and slots that move",
    )
    parser.add_argument(
        "--keep",
        action="store_true",
        help="leave the servers up at the end for you to play with, until Ctrl-C",
    )


# ---- the table ----------------------------------------------------------------------

TOOLS: Sequence[Tool] = (
    Tool(
        "path",
        "tools.path:run",
        "print where the module is",
        "Prints the path of the module.",
    ),
    Tool(
        "loadmodule",
        "tools.loadmodule:run",
        "print the lines for redis.conf",
        "Prints the lines that load the module, for redis.conf or valkey.conf. A parameter that\n"
        "is not given keeps its default, except that delivery-mode is 2: RabbitMQ keeps messages\n"
        "in durable queues when it restarts.",
        """\
example: keyspace-amqp loadmodule --host rabbit.example --events A \\
           --mask '^user:' --mask '^order:'""",
        loadmodule.add_arguments,
    ),
    Tool(
        "declare",
        "tools.declare:run",
        "declare the exchange, a durable queue and its binding",
        "Declares the exchange, a durable queue, and the binding for the module's routing key.\n"
        "Options that are not given are taken from the module in --redis. What is there already\n"
        "stays as it is. If it is of another kind, the command ends with an error. With the\n"
        "option --routing-key the queue is bound with these keys.",
        """\
example: keyspace-amqp declare --dry-run
         keyspace-amqp declare --queue-type quorum --argument x-max-length=1000000
         keyspace-amqp declare --queue audit --queue-type stream --routing-key 'redis.0.#'

exit code: 0 if everything is there (with --dry-run: or could be declared), 1 if not""",
        _declare,
        redis=True,
        amqp=True,
    ),
    Tool(
        "status",
        "tools.status:run",
        "show the state of all nodes, and graphs of the last minutes",
        "Shows state and counters of the server, or of all nodes of its cluster. On a terminal it\n"
        "also shows graphs of the last minutes, for all nodes together, until Ctrl-C: events and\n"
        "confirms per second, events that wait in the lists, and the time within which 99 of 100\n"
        "events were confirmed.",
        """\
example: keyspace-amqp status --redis redis://10.0.0.1:6379
         keyspace-amqp status --json | jq '.nodes[].stats.dropped'

exit code: with --once and --json 0 if all nodes have answered, 1 if not; 130 after Ctrl-C""",
        _status,
        redis=True,
    ),
    Tool(
        "tail",
        "tools.tail:run",
        "print events as they arrive at the broker",
        "Prints time, database, event, key, message id and flags of the messages that arrive at\n"
        "the exchange, until Ctrl-C. It reads a queue of its own, so it takes no message from\n"
        "other consumers. Options that are not given are taken from the module in --redis.",
        """\
example: keyspace-amqp tail --count 10
         keyspace-amqp tail --amqp amqp://events@rabbit.example --exchange ks \\
           --routing-key '*.expired' --json

exit code: 0 after --count messages, 130 after Ctrl-C, 1 if it cannot start""",
        _tail,
        redis=True,
        amqp=True,
    ),
    Tool(
        "doctor",
        "tools.doctor.run:run",
        "say what is wrong, and what to do about it",
        "Looks at the server, or at all nodes of its cluster, at the module, the broker and the\n"
        "parameters; on a primary outside of a cluster also at its replicas. Changes nothing: it\n"
        "sends the broker a message in a transaction, and rolls that back. Only with --publish a\n"
        "message reaches a queue. What could not be looked at is `unknown`.",
        """\
example: AMQP_PASSWORD=secret keyspace-amqp doctor --redis redis://10.0.0.1:6379

exit code: 0 if there is no problem (there may be warnings and unknowns), 1 if there is one""",
        _doctor,
        redis=True,
        amqp=True,
    ),
    Tool(
        "exporter",
        "tools.exporter:run",
        "serve metrics for Prometheus, and a dashboard for Grafana",
        "Serves the numbers of STATS as metrics for Prometheus, until SIGTERM or Ctrl-C: those of\n"
        "one server, or of all nodes of its cluster. It looks the nodes up anew at each scrape. A\n"
        "node that does not answer has keyspace_amqp_up 0, and delays a scrape by a few seconds\n"
        "at most. The user of Redis needs +info and +cluster|nodes.",
        """\
example: keyspace-amqp exporter --redis redis://10.0.0.1:6379 --listen 127.0.0.1:9808
         then in prometheus.yml, under scrape_configs:
           - job_name: keyspace-amqp
             static_configs: [{targets: ["127.0.0.1:9808"]}]
         keyspace-amqp exporter --dashboard > keyspace-amqp.json""",
        _exporter,
        redis=True,
    ),
    Tool(
        "drain",
        "tools.elements:drain",
        "move the fallback list out of Redis into a file",
        "Moves the elements of the fallback list into a file, oldest first, for instance when\n"
        "Redis needs the memory in a long outage of the broker. In a cluster it moves the lists\n"
        "of all primaries.\n\n"
        "A batch is on disk before it is removed from Redis, and only elements that were written\n"
        "are removed. So nothing is lost if the command is interrupted; its last batch may then\n"
        "be in the file and in Redis. Start it again with --append. Elements that are pushed\n"
        "meanwhile stay in the list.\n\n"
        "The module counts the elements taken out as dropped, in dropped_fallback_removed. The\n"
        "command refuses to work while the module delivers its list: run\n"
        "KEYSPACEAMQP.DISCONNECT first. If the broker comes back meanwhile, the command stops.",
        """\
The file has a JSON object a line: `element` in base64 is the element of the list as it
was, the rest is for people and jq.

example: keyspace-amqp drain --to events.jsonl
         jq .key events.jsonl
         keyspace-amqp replay events.jsonl

exit code: 0, also if the list is empty; 1 if elements stay in Redis because a node or the
file fails, or if there is neither a list nor the module""",
        _drain,
        redis=True,
    ),
    Tool(
        "replay",
        "tools.elements:replay",
        "put a file of drain back into the fallback list",
        "Appends the elements in a file of `drain` to the fallback list. The module delivers\n"
        "them, counts them as fallback_found, and they keep their message_id. In a cluster, one\n"
        "primary gets them all. The command checks the whole file first: if a line is invalid,\n"
        "it pushes nothing. If it is interrupted, repeat it: elements that it had pushed already\n"
        "then come twice, with the same message_id.",
        "example: keyspace-amqp replay events.jsonl",
        _replay,
        redis=True,
    ),
    Tool(
        "leftovers",
        "tools.leftovers:run",
        "print the events in a file of leftovers",
        "Prints the events that a stop of the server has left in a file for the next load, oldest\n"
        "first, in the form of a file of `drain`.",
        """\
example: keyspace-amqp leftovers keyspaceamqp-6379.leftover > events.jsonl
         keyspace-amqp replay events.jsonl""",
        _leftovers,
    ),
    Tool(
        "completion",
        "tools.completion:run",
        "print a script with which bash or zsh completes commands and options",
        "Prints a script for a shell, with which Tab completes commands, options and files.",
        """\
example: keyspace-amqp completion bash > /etc/bash_completion.d/keyspace-amqp
         keyspace-amqp completion zsh > /usr/local/share/zsh/site-functions/_keyspace-amqp""",
        _completion,
    ),
    Tool(
        "demo",
        "demo.run:run",
        "show it all: a private Redis, a private RabbitMQ, and an outage",
        "Starts a private Redis and a private RabbitMQ, shows events and their messages, kills\n"
        "RabbitMQ under load, starts it again, and checks that nothing was lost. Takes about half\n"
        "a minute and leaves nothing behind.",
        arguments=_demo,
        extra="demo",
    ),
)
