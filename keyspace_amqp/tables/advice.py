"""Advice for values that are refused: which character or name is wrong, and how to write it.

A refusal of a value says what is accepted. Where that does not help, because the value has many
parts, or because it is right for something else, there is a row here. The shim
(shim/parameters.c) and the command line say the same. Pure: imports only the parameters.
"""

from __future__ import annotations

import re
import typing

from .parameters import URL_NAMES, URL_SERVERS, URL_VALUES, Kind, Parameter


class Advice(typing.NamedTuple):
    """Advice for the refused values of a parameter in which a pattern is found or, if `found` is
    false, is not found. The pattern is in the syntax that POSIX and Python have in common.
    `text`: the end of the error. It quotes nothing of the value, which may have a password."""

    parameter: str
    pattern: str
    text: str
    found: bool = True


_LOGIN = "^amqps?://[^/?]*"
# The start of a login whose password has a sign after which the rest would not be part of the
# login any more. What has only digits after the colon is a host with its port.
# Each piece ends where the next begins, or Python's search would take minutes.
_PASSWORD = "^amqps?://[^@/?,:]*:[0-9]*[^@/?0-9][^@/?]*"  # a pattern
# Names of other clients: those of RabbitMQ's own URLs, and those of pika.
_OTHER_NAMES = (
    "connection_timeout", "channel_max", "frame_max", "fail_if_no_peer_cert", "depth", "password",
    "socket_timeout", "stack_timeout", "blocked_connection_timeout", "connection_attempts",
    "retry_delay", "locale", "ssl_options", "tcp_options", "client_properties", "ssl", "name",
)  # fmt: skip


def _query(only: str = "") -> str:
    """Return a pattern of the URLs in whose query every name is known, and has any value,
    but the name `only` one that is accepted."""
    values = dict.fromkeys(URL_NAMES, "[^&]*")
    if only:
        values[only] = URL_VALUES[only]
    pair = f"({'|'.join(f'{name}={pattern}' for name, pattern in values.items())})"
    return f"^[^?]*([?]{pair}(&{pair})*)?$"


# For each parameter, the first row that applies is used.
ADVICE: tuple[Advice, ...] = (
    Advice(
        "events",
        "[KESTIV]",
        "K, E, S, T, I and V choose channels of pub/sub; leave them out",
    ),
    Advice("events", "[ ,]", "the letters have nothing between them"),
    Advice("host", "://|@", "give a URL in the parameter url"),
    Advice("host", "/", "give the virtual host in the parameter vhost"),
    Advice("host", "[ \t\r\n]", "it has a blank; between two names is a comma alone"),
    Advice("url", "#", "it has a #; write %23"),
    Advice("url", "[ \t\r\n]", "it has a blank; write %20"),
    Advice("url", "^amqps?://", "it begins with amqp:// or amqps://", found=False),
    Advice(
        "url",
        f"{_LOGIN}@[^/?@]*,[^/?@]*@",
        "user and password stand once, before the first server",
    ),
    Advice("url", f"{_LOGIN}@[^/?]*@", "the user or the password has an @; write %40"),
    Advice("url", "^amqps?://[^@/?]*,[^@/?]*@", "the user or the password has a comma; write %2C"),
    Advice("url", f"{_PASSWORD}/[^?]*@", "the user or the password has a /; write %2F"),
    Advice("url", f"{_PASSWORD}[?].*@", "the user or the password has a ?; write %3F"),
    Advice(
        "url",
        f"^amqps?://([^@/?]*@)?{URL_SERVERS}([/?]|$)",
        "after amqp:// or user:password@ stand servers with commas between them, each a name, an "
        "address or [an IPv6 address], with or without a port (:1 to :65535)",
        found=False,
    ),
    Advice(
        "url",
        "^amqps?://[^/?]*/[^?]*/",
        "the virtual host has a /; write %2F. The virtual host / is /%2F at the end",
    ),
    *(
        Advice("url", f"[?&]{name}(=|&|$)", f"the module has no {name}; leave it out")
        for name in _OTHER_NAMES
    ),
    Advice(
        "url",
        _query(),
        "behind the ? may stand, as name=value with & between them, "
        + ", ".join(URL_NAMES[:-1])
        + " and "
        + URL_NAMES[-1],
        found=False,
    ),
    *(
        Advice("url", _query(only=name), f"{name} is {accepted}", found=False)
        for name, accepted in (
            ("heartbeat", "a number of seconds"),
            ("auth_mechanism", "plain or external"),
            ("verify", "verify_peer or verify_none"),
        )
    ),
)


def end_of_refusal(parameter: Parameter, value: str) -> str:
    """Return the end of the error about a refused value of a parameter: the advice for it, or
    what is accepted."""
    accepted = f"; give {parameter.accepted}"
    for advice in ADVICE:
        if advice.parameter != parameter.name:
            continue
        if (re.search(advice.pattern, value) is not None) is advice.found:
            return f": {advice.text}{accepted if parameter.kind is Kind.EVENTS else ''}"
    return accepted
