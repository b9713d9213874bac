"""Replies of Redis as dicts and texts, and errors of Redis as codes and reasons.

For the tools, the demos and the tests. Needs redis-py.
"""

from __future__ import annotations

from typing import Any

import redis

from . import tls


def stats(client: Any, *words: str) -> dict[str, Any]:
    """Return KEYSPACEAMQP.STATS: texts as str, counters and gauges as int. `words`: more
    arguments of the command. Raises redis.RedisError."""
    return mapping(client.execute_command("KEYSPACEAMQP.STATS", *words))


def mapping(reply: Any) -> dict[str, Any]:
    """Return a reply that is a map as a dict, with texts as str."""
    if not isinstance(reply, dict):  # RESP2 has no maps
        reply = dict(zip(reply[::2], reply[1::2], strict=True))
    return {decoded(name): decoded(value) for name, value in reply.items()}


def decoded(value: Any) -> Any:
    """Return bytes as str, anything else as it is."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def error_code(error: Exception) -> str:
    """Return the code of an error reply, its first word, such as NOPERM; empty if the error
    is no reply or has no code that can be known.

    redis-py cuts the codes that it knows off the text, and only newer versions keep them in
    `status_code`. Of the codes that it knows, older versions leave ERR without a class.
    """
    if code := getattr(error, "status_code", None):
        return str(code)
    if isinstance(error, redis.exceptions.NoPermissionError):
        return "NOPERM"
    if type(error) is redis.ResponseError:
        first = str(error).partition(" ")[0]
        return first if first.isupper() else "ERR"
    return ""


def is_unknown_command(error: Exception) -> bool:
    """True if the server does not have the command. Redis gives this error the code ERR,
    as it does many others, so only the text can tell."""
    return isinstance(error, redis.ResponseError) and str(error).lower().startswith(
        "unknown command"
    )


def reason(error: Exception) -> str:
    """Return the reason why a server did not answer or refused, for people."""
    if isinstance(error, redis.TimeoutError):
        return "no answer in time"
    if error_code(error) == "NOAUTH":
        return "it wants a password, in the URL or in REDISCLI_AUTH"
    words = tls.explain(str(error) or type(error).__name__)
    if isinstance(error, redis.AuthenticationError) and not error_code(error):
        return f"{words} (a password may be in the URL or in REDISCLI_AUTH)"
    if is_unknown_command(error) and "keyspaceamqp" in words.lower():
        return "the module is not loaded"
    return words
