"""The reasons for which a connection failed or ended, as one line for people.

The reasons are exceptions of pika, of TLS and of the system. Called by the connection and
by the tools. Pure; any thread.
"""

from __future__ import annotations

import re
import ssl

import pika
import pika.exceptions

from ..counts import one_line
from .login import HANDSHAKE_TIMEOUT, tls_reason

# Parts of pika's texts: the broker's reason for closing a connection that was opening, and
# the system's reason for losing a connection. pika keeps neither as a value.
_CLOSED = re.compile(r"""\((\d+)\) (["'])(.*)\2""")
_LOST = re.compile(r"""StreamLostError: \((["'])(.*)\1,\)""")


def reason_of(error: BaseException) -> str:
    """Return what went wrong in one line for people, never with a secret."""
    return one_line(_reason_of(error))


def _reason_of(error: BaseException) -> str:
    error = _cause(error)
    if isinstance(error, (pika.exceptions.ConnectionClosed, pika.exceptions.ChannelClosed)):
        return f"{error.reply_code} {error.reply_text}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {tls_reason(error)}"
    if isinstance(error, pika.exceptions.AuthenticationError):
        return f"the broker does not offer the authentication {error}"
    if isinstance(error, pika.exceptions.ConnectionOpenAborted):  # by our timeout
        return f"no AMQP 0-9-1 handshake within {HANDSHAKE_TIMEOUT:.0f} seconds"
    text = " ".join((str(error) or type(error).__name__).split())
    closed, lost = _CLOSED.search(text), _LOST.search(text)
    if closed:
        return f"{closed[1]} {closed[3]}"
    if isinstance(error, pika.exceptions.IncompatibleProtocolError):
        return f"no AMQP 0-9-1 handshake: {lost[2] if lost else text}"
    return lost[2] if lost else text


def _cause(error: BaseException) -> BaseException:
    """Return the innermost of the exceptions that pika has wrapped one in another."""
    while True:
        inner = getattr(error, "exceptions", None) or getattr(error, "exception", None)
        if isinstance(inner, (list, tuple)):
            inner = inner[-1] if inner else None
        if inner is None and error.args and isinstance(error.args[0], BaseException):
            inner = error.args[0]
        if not isinstance(inner, BaseException):
            return error
        error = inner
