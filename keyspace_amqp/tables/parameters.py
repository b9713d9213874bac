"""The parameters: the one place that knows their names, positions, defaults and limits.

The shim's checks (shim/parameters.c), the table in docs/configuration.md, COMMAND DOCS
and the command line are made from this table. Pure: imports nothing of the package.
"""

from __future__ import annotations

import dataclasses
import enum


class Kind(enum.Enum):
    """How the shim checks a value (`parameter_kind_t` in shim/parameters.h)."""

    TEXT = "PARAMETER_TEXT"
    INTEGER = "PARAMETER_INTEGER"
    EVENTS = "PARAMETER_EVENTS"
    MASKS = "PARAMETER_MASKS"


@dataclasses.dataclass(frozen=True)
class Parameter:
    """A parameter.

    `minimum` and `maximum` bound an integer, or a text's length in bytes; `pattern` is a
    regular expression that a text matches as a whole, in what POSIX (the shim) and Python
    (the command line) have in common. `position` counts the module's arguments from 1;
    None: only by name.
    """

    name: str
    kind: Kind
    default: str
    minimum: int
    maximum: int
    accepted: str
    help: str
    position: int | None = None
    sensitive: bool = False
    pattern: str = ""


INT64_MAX = 2**63 - 1
# The longest short string of AMQP 0-9-1, which names an exchange or a key.
SHORT_STRING = 255
# Of all masks, and of one: more than anybody types, and compiled in a moment.
MASKS_BYTES = 64 * 1024
MASK_BYTES = 1024
# A path of Linux.
PATH_BYTES = 4096
# What a message takes along of a value at most: it is copied on Redis' main thread.
VALUE_BYTES = 1024 * 1024
_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
# A name or IPv4 address, or an IPv6 address in brackets, with a port or without.
_SERVER = rf"([^][@/?#,: ]+|\[[0-9A-Fa-f:.]+(%[^][@/?#,: ]+)?\])(:{_PORT})?"
_BARE_IPV6 = "[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%[^][@/?#,: ]+)?"
_ANY_SERVER = f"({_SERVER}|{_BARE_IPV6})"
_QUERY = (
    "(heartbeat=[0-9]{1,5}|auth_mechanism=(plain|external)|verify=verify_(peer|none)"
    "|(cacertfile|certfile|keyfile|server_name_indication)=[^&# ]*)"
)
_URL = f"(amqps?://([^@/?#, ]*@)?{_SERVER}(,{_SERVER})*(/[^/?# ]*)?(\\?{_QUERY}(&{_QUERY})*)?)?"
SWITCH = "on|off"
_DATABASES = "ALL|[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*"
_TEMPLATE = "([^{}]|[{][{]|[}][}]|[{](db|event|class|key|node|key:[1-9][0-9]?|key:[*])[}])*"
PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "events",
        Kind.EVENTS,
        "xe",
        1,
        64,
        "letters of g $ l s h z x e A, and t d m n o c where the server has them",
        "classes of keyspace events, as in notify-keyspace-events; `A` is `g$lshzxe` and the "
        "server's `t` and `d`",
        position=1,
    ),
    Parameter(
        "host",
        Kind.TEXT,
        "127.0.0.1",
        1,
        1024,
        "names or addresses with commas between them, each with :port or without, IPv6 with one "
        "as [::1]:5672",
        "where RabbitMQ is; of several, which are tried in a random order, one that answers is "
        "taken",
        position=2,
        pattern=f"{_ANY_SERVER}(,{_ANY_SERVER})*",
    ),
    Parameter(
        "port",
        Kind.INTEGER,
        "5672",
        1,
        65535,
        "a number from 1 to 65535",
        "RabbitMQ's port, where `host` has none",
        position=3,
    ),
    Parameter(
        "username",
        Kind.TEXT,
        "guest",
        0,
        255,
        "a text of up to 255 bytes",
        "RabbitMQ's user",
        position=4,
    ),
    Parameter(
        "password",
        Kind.TEXT,
        "guest",
        0,
        1024,
        "a text of up to 1024 bytes",
        "the user's password; never shown by the module",
        position=5,
        sensitive=True,
    ),
    Parameter(
        "heartbeat",
        Kind.INTEGER,
        "30",
        0,
        65535,
        "a number of seconds from 0 (off) to 65535",
        "seconds between heartbeats, 0 for none",
        position=6,
    ),
    Parameter(
        "exchange",
        Kind.TEXT,
        "amq.direct",
        0,
        SHORT_STRING,
        f"a name of up to {SHORT_STRING} bytes",
        "exchange to publish to; it must exist",
        position=7,
    ),
    Parameter(
        "routing-key",
        Kind.TEXT,
        "redis_keyspace_events",
        0,
        SHORT_STRING,
        f"a text of up to {SHORT_STRING} bytes, with {{db}} {{event}} {{class}} {{key}} {{key:1}} "
        "{key:*} {node} or without; {{ and }} for braces",
        "routing key of the messages, or a template for it",
        position=8,
        pattern=_TEMPLATE,
    ),
    Parameter(
        "delivery-mode",
        Kind.INTEGER,
        "1",
        1,
        2,
        "1 (kept in memory by the broker) or 2 (persistent)",
        "1: the broker may keep messages in memory only; 2: persistent",
        position=9,
    ),
    Parameter(
        "fallback-size",
        Kind.INTEGER,
        "10000000",
        -INT64_MAX - 1,
        INT64_MAX,
        "a whole number: > 0 the most elements to keep, 0 no limit, < 0 no list",
        "elements that the fallback list may have; 0: no limit; negative: no list",
        position=10,
    ),
    Parameter(
        "masks",
        Kind.MASKS,
        "ALL",
        0,
        MASKS_BYTES,
        f"masks of up to {MASK_BYTES} bytes with blanks between them, a blank in a mask as "
        f"\\x20 and a backslash as \\\\, {MASKS_BYTES} bytes in all",
        "key masks, see below; `ALL`: every key; empty: none",
        position=11,
    ),
    Parameter(
        "queue-limit",
        Kind.INTEGER,
        "67108864",
        1024 * 1024,
        2**40,
        f"a number of bytes from {1024 * 1024} to {2**40}",
        "bytes of events that may wait in memory; past half of it they spill into the list",
    ),
    Parameter(
        "worker-nice",
        Kind.INTEGER,
        "5",
        0,
        19,
        "a number from 0 to 19",
        "how far the worker thread stands behind Redis for the processor; 0: not at all, "
        "and messages are not held back for it either",
    ),
    # ---- reaching the broker
    Parameter(
        "url",
        Kind.TEXT,
        "",
        0,
        2048,
        "amqp[s]://[user[:password]@]host[:port][,host...][/vhost][?name=value&...], names: "
        "heartbeat auth_mechanism verify cacertfile certfile keyfile server_name_indication",
        "all about the connection in one; what it says wins over the single parameters",
        sensitive=True,
        pattern=_URL,
    ),
    Parameter(
        "vhost",
        Kind.TEXT,
        "/",
        0,
        SHORT_STRING,
        f"a name of up to {SHORT_STRING} bytes",
        "RabbitMQ's virtual host",
    ),
    Parameter(
        "password-file",
        Kind.TEXT,
        "",
        0,
        PATH_BYTES,
        f"a path of up to {PATH_BYTES} bytes",
        "file with the password in its first line, read again for each connection; empty: "
        "`password` holds",
    ),
    Parameter(
        "auth-mechanism",
        Kind.TEXT,
        "plain",
        1,
        8,
        "plain or external",
        "`plain`: user and password; `external`: the client certificate tells who it is",
        pattern="plain|external",
    ),
    Parameter(
        "tls",
        Kind.TEXT,
        "off",
        1,
        3,
        "on or off",
        "TLS to the broker, whose port for it is usually 5671",
        pattern=SWITCH,
    ),
    Parameter(
        "tls-ca-file",
        Kind.TEXT,
        "",
        0,
        PATH_BYTES,
        f"a path of up to {PATH_BYTES} bytes",
        "certificates (PEM) of those who may vouch for the broker; empty: the system's",
    ),
    Parameter(
        "tls-cert-file",
        Kind.TEXT,
        "",
        0,
        PATH_BYTES,
        f"a path of up to {PATH_BYTES} bytes",
        "our own certificate (PEM), if the broker asks for one",
    ),
    Parameter(
        "tls-key-file",
        Kind.TEXT,
        "",
        0,
        PATH_BYTES,
        f"a path of up to {PATH_BYTES} bytes",
        "its key (PEM, not encrypted); empty: it is in `tls-cert-file`",
    ),
    Parameter(
        "tls-server-name",
        Kind.TEXT,
        "",
        0,
        255,
        "a name of up to 255 bytes",
        "name that the broker's certificate must have; empty: the one in `host`",
    ),
    Parameter(
        "tls-verify",
        Kind.TEXT,
        "on",
        1,
        3,
        "on or off",
        "whether the broker's certificate is checked; `off` is for trials only",
        pattern=SWITCH,
    ),
    Parameter(
        "tcp-keepalive",
        Kind.INTEGER,
        "60",
        0,
        32767,
        "a number of seconds from 0 (off) to 32767",
        "seconds without traffic after which TCP asks whether the broker's machine is there",
    ),
    Parameter(
        "node-name",
        Kind.TEXT,
        "",
        0,
        128,
        "a text of up to 128 bytes",
        "what this server is called in RabbitMQ's tools, `{node}` and messages; empty: the "
        "machine's name and the server's port, in a cluster the address that the nodes use",
    ),
    # ---- messages
    Parameter(
        "format",
        Kind.TEXT,
        "text",
        1,
        16,
        "text, json or cloudevents",
        "form of the messages",
        pattern="text|json|cloudevents",
    ),
    Parameter(
        "headers",
        Kind.TEXT,
        "off",
        1,
        3,
        "on or off",
        "headers `db`, `event`, `class`, `node` and `sequence`",
        pattern=SWITCH,
    ),
    Parameter(
        "value",
        Kind.INTEGER,
        "0",
        0,
        VALUE_BYTES,
        f"a number of bytes from 0 (off) to {VALUE_BYTES}",
        "bytes of the key's value that a message has, in the formats `json` and `cloudevents`",
    ),
    Parameter(
        "mandatory",
        Kind.TEXT,
        "on",
        1,
        3,
        "on or off",
        "whether the broker tells of messages that reach no queue, to be counted as `returned`",
        pattern=SWITCH,
    ),
    Parameter(
        "app-id",
        Kind.TEXT,
        "",
        0,
        SHORT_STRING,
        f"a text of up to {SHORT_STRING} bytes",
        "property `app_id`; empty: none",
    ),
    Parameter(
        "message-type",
        Kind.TEXT,
        "",
        0,
        SHORT_STRING,
        f"a text of up to {SHORT_STRING} bytes",
        "property `type`; empty: none",
    ),
    Parameter(
        "priority",
        Kind.TEXT,
        "",
        0,
        3,
        "a number from 0 to 255, or nothing",
        "property `priority`, for queues that have priorities; empty: none",
        pattern="([0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])?",
    ),
    Parameter(
        "expiration",
        Kind.TEXT,
        "",
        0,
        10,
        "a number of milliseconds from 0 to 3999999999, or nothing",
        "property `expiration`: how long a message may wait in its queue; empty: for ever",
        pattern="(0|[1-9][0-9]{0,8}|[1-3][0-9]{9})?",
    ),
    Parameter(
        "deduplication-header",
        Kind.TEXT,
        "off",
        1,
        3,
        "on or off",
        "header `x-deduplication-header` with the message's id, for RabbitMQ's plugin that leaves "
        "repeated messages out",
        pattern=SWITCH,
    ),
    Parameter(
        "databases",
        Kind.TEXT,
        "ALL",
        1,
        1024,
        "ALL, or numbers and ranges with commas between them, like 0,2,8-15",
        "databases whose events are forwarded",
        pattern=_DATABASES,
    ),
)
INDEX = {parameter.name: index for index, parameter in enumerate(PARAMETERS)}
