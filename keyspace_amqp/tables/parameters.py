"""The parameters: the one place that knows their names, positions, defaults and limits.

The shim's checks (shim/parameters.c), `Config`, the table in docs/configuration.md,
COMMAND DOCS and the options of the command line are made from this table. Pure: imports
nothing of the package.
"""

from __future__ import annotations

import enum
from typing import NamedTuple


class Kind(enum.Enum):
    """The kind of a parameter's values."""

    TEXT = "text"
    SWITCH = "switch"  # `on` or `off`; the shim checks it as a text
    INTEGER = "integer"
    EVENTS = "events"
    MASKS = "masks"


class Parameter(NamedTuple):
    """A parameter.

    `minimum` and `maximum` bound an integer, or a text's length in bytes. `pattern`: a
    regular expression that a text matches as a whole, in the syntax that POSIX (the shim)
    and Python (the command line) have in common; empty: any text. `accepted`: the end of
    the error for a refused value. `position`: the place among the module's arguments,
    from 1; None: by name only. `sensitive`: the value is never shown.
    """

    name: str
    kind: Kind
    default: str
    minimum: int
    maximum: int
    accepted: str
    help: str
    position: int | None = None
    pattern: str = ""
    sensitive: bool = False

    @property
    def field(self) -> str:
        """The parameter's field in `Config`."""
        return self.name.replace("-", "_")


INT64_MAX = 2**63 - 1
# The longest short string of AMQP 0-9-1, the type of names of exchanges and of routing keys.
SHORT_STRING = 255
# More than anybody needs, and quickly compiled.
MASKS_BYTES = 64 * 1024
MASK_BYTES = 1024
# The longest path of Linux.
PATH_BYTES = 4096
# A limit, because Redis' main thread copies the part of a value that goes into a message.
VALUE_BYTES = 1024 * 1024
# Limits on the subkeys of one event, because Redis' main thread copies them: their number, and
# their bytes with 4 more for each.
SUBKEYS = 10_000
SUBKEYS_BYTES = 64 * 1024

# ---- patterns of texts ------------------------------------------------------------------

_PORT = "([1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
# A name or IPv4 address, or an IPv6 address in brackets, with a port or without.
_SERVER = rf"([^][@/?#,: ]+|\[[0-9A-Fa-f:.]+(%[^][@/?#,: ]+)?\])(:{_PORT})?"
_BARE_IPV6 = "[0-9A-Fa-f]*:[0-9A-Fa-f.]*:[0-9A-Fa-f:.]*(%[^][@/?#,: ]+)?"
_ANY_SERVER = f"({_SERVER}|{_BARE_IPV6})"
_SERVERS = f"{_ANY_SERVER}(,{_ANY_SERVER})*"
# The servers in a URL, and the names in its query.
URL_SERVERS = f"{_SERVER}(,{_SERVER})*"
# The names that the query of a URL may have, and a pattern of the values of each.
URL_VALUES = {
    "heartbeat": "[0-9]{1,5}",
    "auth_mechanism": "(plain|external)",
    "verify": "verify_(peer|none)",
    "cacertfile": "[^&# ]*",
    "certfile": "[^&# ]*",
    "keyfile": "[^&# ]*",
    "server_name_indication": "[^&# ]*",
}
URL_NAMES = tuple(URL_VALUES)
_QUERY = f"({'|'.join(f'{name}={pattern}' for name, pattern in URL_VALUES.items())})"
_URL = f"(amqps?://([^@/?#, ]*@)?{URL_SERVERS}(/[^/?# ]*)?(\\?{_QUERY}(&{_QUERY})*)?)?"
_DATABASES = "ALL|[0-9]{1,9}(-[0-9]{1,9})?(,[0-9]{1,9}(-[0-9]{1,9})?)*"
_TEMPLATE = "([^{}]|[{][{]|[}][}]|[{](db|event|class|key|node|key:[1-9][0-9]?|key:[*])[}])*"
_PRIORITY = "([0-9]|[1-9][0-9]|1[0-9][0-9]|2[0-4][0-9]|25[0-5])?"
_EXPIRATION = "(0|[1-9][0-9]{0,8}|[1-3][0-9]{9})?"

# ---- rows -------------------------------------------------------------------------------


def _text(
    name: str,
    default: str,
    most: int,
    help_: str,
    *,
    least: int = 0,
    accepted: str = "a text of up to {} bytes",
    position: int | None = None,
    pattern: str = "",
    sensitive: bool = False,
) -> Parameter:
    accepted = accepted.replace("{}", str(most))
    return Parameter(
        name, Kind.TEXT, default, least, most, accepted, help_, position, pattern, sensitive
    )


def _name(
    name: str, default: str, help_: str, *, most: int = SHORT_STRING, position: int | None = None
) -> Parameter:
    return _text(name, default, most, help_, accepted="a name of up to {} bytes", position=position)


def _path(name: str, help_: str) -> Parameter:
    return _text(name, "", PATH_BYTES, help_, accepted="a path of up to {} bytes")


def _choice(name: str, default: str, choices: str, help_: str, *, accepted: str) -> Parameter:
    longest = max(map(len, choices.split("|")))
    return _text(name, default, longest, help_, least=1, accepted=accepted, pattern=choices)


def _switch(name: str, default: str, help_: str) -> Parameter:
    switch = _choice(name, default, "on|off", help_, accepted="on or off")
    return switch._replace(kind=Kind.SWITCH)


def _integer(
    name: str,
    default: int,
    least: int,
    most: int,
    help_: str,
    *,
    accepted: str = "a number from {} to {}",
    position: int | None = None,
) -> Parameter:
    accepted = accepted.replace("{}", str(least), 1).replace("{}", str(most), 1)
    return Parameter(name, Kind.INTEGER, str(default), least, most, accepted, help_, position)


_SECONDS = "a number of seconds from {} (off) to {}"

# Positional parameters come first, in the order of their positions.
PARAMETERS: tuple[Parameter, ...] = (
    Parameter(
        "events",
        Kind.EVENTS,
        "xe",
        1,
        64,
        "letters of A g $ l s h z x e t d m n, and a o c where the server has them",
        "classes of keyspace events; `A`: all but `m`, `n`, `o` and `c`",
        position=1,
    ),
    _text(
        "host",
        "127.0.0.1",
        1024,
        "where RabbitMQ is; several brokers are tried in a random order until one answers",
        least=1,
        accepted="names or addresses with commas between them, each with or without :port; an "
        "IPv6 address with a port as [::1]:5672",
        position=2,
        pattern=_SERVERS,
    ),
    _integer("port", 5672, 1, 65535, "RabbitMQ's port, where `host` has none", position=3),
    _text("username", "guest", 255, "RabbitMQ's user", position=4),
    _text(
        "password",
        "guest",
        1024,
        "the user's password; never shown by the module",
        position=5,
        sensitive=True,
    ),
    _integer(
        "heartbeat",
        30,
        0,
        65535,
        "seconds between heartbeats, 0 for none",
        accepted=_SECONDS,
        position=6,
    ),
    _name("exchange", "amq.direct", "exchange to publish to; it must exist", position=7),
    _text(
        "routing-key",
        "redis_keyspace_events",
        SHORT_STRING,
        "routing key of the messages, or a template for it",
        accepted="a text of up to {} bytes, with {db} {event} {class} {key} {key:1} {key:*} "
        "{node} or without; {{ and }} for braces",
        position=8,
        pattern=_TEMPLATE,
    ),
    _integer(
        "delivery-mode",
        1,
        1,
        2,
        "1: the broker may keep messages in memory only; 2: persistent",
        accepted="1 (kept in memory by the broker) or 2 (persistent)",
        position=9,
    ),
    _integer(
        "fallback-size",
        10_000_000,
        -INT64_MAX - 1,
        INT64_MAX,
        "maximum number of elements in the fallback list and the list of refused events together; "
        "0: no limit; negative: no lists",
        accepted="a whole number: > 0 the maximum of elements, 0 no limit, < 0 no list",
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
    _integer(
        "queue-limit",
        64 * 1024 * 1024,
        1024 * 1024,
        2**40,
        "bytes of events that may wait in memory; past half of it they spill into the list",
        accepted="a number of bytes from {} to {}",
    ),
    _integer(
        "worker-nice",
        5,
        0,
        19,
        "nice value of the worker thread, so that Redis comes first on a busy machine; 0: both "
        "are equal, and the worker does not delay messages for Redis either",
    ),
    # ---- reaching the broker
    _text(
        "url",
        "",
        2048,
        "the whole connection in one value; its parts override the single parameters",
        accepted="amqp[s]://[user[:password]@]host[:port][,host...][/vhost][?name=value&...], "
        f"names: {' '.join(URL_NAMES)}",
        pattern=_URL,
        sensitive=True,
    ),
    _name("vhost", "/", "RabbitMQ's virtual host"),
    _path(
        "password-file",
        "file with the password in its first line, read again for each connection; empty: "
        "`password` is used",
    ),
    _choice(
        "auth-mechanism",
        "plain",
        "plain|external",
        "`plain`: user and password; `external`: the client certificate is the login",
        accepted="plain or external",
    ),
    _switch("tls", "off", "use TLS to the broker; its port for TLS is usually 5671"),
    _path(
        "tls-ca-file",
        "certificates (PEM) of the authorities that may sign the broker's certificate; empty: "
        "those of the system",
    ),
    _path("tls-cert-file", "the module's certificate (PEM), if the broker asks for one"),
    _path("tls-key-file", "its key (PEM, not encrypted); empty: it is in `tls-cert-file`"),
    _name(
        "tls-server-name",
        "",
        "name that the broker's certificate must have; empty: the one in `host`",
    ),
    _switch("tls-verify", "on", "check the broker's certificate; `off` is for trials only"),
    _integer(
        "tcp-keepalive",
        60,
        0,
        32767,
        "seconds without traffic after which TCP checks that the broker's machine still answers",
        accepted=_SECONDS,
    ),
    _text(
        "node-name",
        "",
        128,
        "name of this server in RabbitMQ's tools, `{node}` and messages; empty: the machine's "
        "name and the server's port, in a cluster the address that the nodes use",
    ),
    # ---- messages
    _choice(
        "format",
        "text",
        "text|json|cloudevents|cloudevents-structured",
        "format of the messages; `cloudevents`: CloudEvents in binary mode, with the attributes as "
        "headers; `cloudevents-structured`: in structured mode, with all in the body",
        accepted="text, json, cloudevents or cloudevents-structured",
    ),
    _switch("headers", "off", "headers `db`, `event`, `class`, `node` and `sequence`"),
    _integer(
        "value",
        0,
        0,
        VALUE_BYTES,
        "maximum bytes of the key's value in a message, in all formats but `text`",
        accepted="a number of bytes from {} (off) to {}",
    ),
    _switch(
        "mandatory",
        "on",
        "have the broker report messages that reach no queue; they are counted as `returned`",
    ),
    _text("app-id", "", SHORT_STRING, "property `app_id`; empty: none"),
    _text("message-type", "", SHORT_STRING, "property `type`; empty: none"),
    _text(
        "priority",
        "",
        3,
        "property `priority`, for queues that have priorities; empty: none",
        accepted="a number from 0 to 255, or nothing",
        pattern=_PRIORITY,
    ),
    _text(
        "expiration",
        "",
        10,
        "property `expiration`: milliseconds that a message may wait in its queue; empty: no limit",
        accepted="a number of milliseconds from 0 to 3999999999, or nothing",
        pattern=_EXPIRATION,
    ),
    _switch(
        "deduplication-header",
        "off",
        "header `x-deduplication-header` with the message's id, for RabbitMQ's plugin that drops "
        "repeated messages",
    ),
    _text(
        "databases",
        "ALL",
        1024,
        "databases whose events are forwarded",
        least=1,
        accepted="ALL, or numbers and ranges with commas between them, like 0,2,8-15",
        pattern=_DATABASES,
    ),
    _integer(
        "confirm-timeout",
        60,
        0,
        86400,
        "seconds after which a connection is given up if the broker has not confirmed a message; "
        "everything without a confirm is sent again on the next one",
        accepted=_SECONDS,
    ),
    _integer(
        "fallback-memory",
        2,
        0,
        100,
        "percent of `maxmemory` that the fallback list may take when Redis is near it and can "
        "evict keys, and the same again for the list of refused events; 0: nothing",
        accepted="a number of percent from {} to {}",
    ),
    _integer(
        "subkeys",
        0,
        0,
        SUBKEYS,
        "maximum number of subkeys in a message, in all formats but `text`: the fields of a hash "
        "that the event is about; Redis 8.8 or later, elsewhere none",
        accepted="a number from {} (off) to {}",
    ),
    _choice(
        "outbox",
        "off",
        "off|reply|atomic",
        "the events that Redis itself puts into the fallback list. `off`: none; `reply`: all, "
        "before a client hears of its write; `atomic`: all, in one transaction with the write "
        "(Redis 7.2, Valkey 7.2, or later)",
        accepted="off, reply or atomic",
    ),
    _choice(
        "cloudevents-prefix",
        "cloudEvents:",
        "cloudEvents:|cloudEvents_|ce-",
        "prefix of the attributes' headers with `format cloudevents`. `cloudEvents:` and "
        "`cloudEvents_`: for consumers over AMQP 1.0; `ce-`: for those over AMQP 0-9-1, such as "
        "Knative's",
        accepted="cloudEvents:, cloudEvents_ or ce-",
    ),
)
INDEX = {parameter.name: index for index, parameter in enumerate(PARAMETERS)}
