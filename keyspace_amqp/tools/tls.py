"""TLS to Redis: what the URL of --redis may say about it, and what its errors mean.

The names are those of redis-py, which takes them from the URL.
"""

from __future__ import annotations

import pathlib
import re
import ssl
import urllib.parse
from collections.abc import Mapping

from ..broker.login import tls_reason
from . import ToolError

_CA, _CA_FOLDER, _CERT, _KEY = "ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"
# A value that the query of the URL may have: a pattern, and the same for people.
_ANY = ("(?s:.*)", "any text")
_SECONDS = (r"(?=.*[1-9])[0-9]{1,6}(\.[0-9]{1,6})?", "seconds above 0, such as 5 or 0.5")
# The names that the query may have, and their values: those for TLS, and the others.
_TLS_NAMES: Mapping[str, tuple[str, str]] = {
    _CA: _ANY,
    _CA_FOLDER: _ANY,
    _CERT: _ANY,
    _KEY: _ANY,
    "ssl_password": _ANY,
    "ssl_cert_reqs": ("(?i:required|optional|none)", "required, optional or none"),
    "ssl_check_hostname": ("(?i:yes|no|true|false)", "yes, no, true or false"),
}
_NAMES: Mapping[str, tuple[str, str]] = {
    **_TLS_NAMES,
    "db": ("[0-9]{1,9}", "a number from 0"),
    "username": _ANY,
    "password": _ANY,
    "client_name": _ANY,
    "protocol": ("[23]", "2 or 3"),
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
}
_CERTIFICATE = (
    "does the server want a certificate that an authority of its own has signed? "
    "?ssl_certfile=FILE&ssl_keyfile=FILE in the URL"
)
# Parts of errors as redis-py shows them, and what to say in their place.
_ERRORS = (
    (
        r"certificate verify failed: (.*not valid for.*?|.*mismatch.*?)\.? \(_ssl",
        "the server's certificate is refused: {}. Connect to a name in it, or give "
        "?ssl_check_hostname=no in the URL",
    ),
    (
        r"certificate verify failed: (.*?) \(_ssl",
        "the server's certificate is refused: {}. ?ssl_ca_certs=FILE in the URL names its "
        "authority",
    ),
    (
        r"(alert certificate required|alert unknown ca|alert bad certificate|handshake failure|"
        r"EOF occurred in violation of protocol)",
        "{}: " + _CERTIFICATE,
    ),
    (
        r"(wrong version number|record layer failure|packet length too long)",
        "{}: does this port speak TLS? Without TLS: redis://",
    ),
)


def check(url: str) -> None:
    """Check the query of the URL of a Redis server: names, values, and the files that it names.
    Raises ToolError that names what is wrong, and what is accepted."""
    scheme, _, rest = url.partition("://")
    query = rest.partition("?")[2]
    # Of two values of a name, redis-py takes the first.
    given = dict(reversed(urllib.parse.parse_qsl(query, keep_blank_values=True)))
    secret = "password=" in query  # names and values may be a part of it
    for name, value in given.items():
        if name not in _NAMES:
            what = f"{name!r} is not accepted in the URL"
            if secret:
                what = "a name behind the ? is not accepted (in a password, write & as %26)"
            raise ToolError(f"--redis: {what}; give {', '.join(_NAMES)}")
        if name in _TLS_NAMES and scheme != "rediss":
            raise ToolError(f"--redis: {name} is for TLS, which a URL with rediss:// has")
        pattern, accepted = _NAMES[name]
        if not re.fullmatch(pattern, value):
            what = "its value" if secret else repr(value)
            raise ToolError(f"--redis: {name}: {what} is not accepted; give {accepted}")
    if _KEY in given and _CERT not in given:
        raise ToolError(f"--redis: {_KEY} is of use with {_CERT} only")
    _check_files(given)


def _check_files(given: Mapping[str, str]) -> None:
    """Check that the files can be used: redis-py does not name the file that it cannot use.
    Raises ToolError."""
    folder = given.get(_CA_FOLDER)
    if folder is not None and not pathlib.Path(folder).is_dir():
        raise ToolError(f"--redis: {_CA_FOLDER} {folder} is no folder")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        what = ", ".join(f"{name} {given[name]}" for name in (_CA, _CA_FOLDER) if name in given)
        if what:
            context.load_verify_locations(given.get(_CA), folder)
        if _CERT in given:
            what = ", ".join(f"{name} {given[name]}" for name in (_CERT, _KEY) if name in given)
            password = given.get("ssl_password", "")  # without one, OpenSSL would ask for it
            context.load_cert_chain(given[_CERT], given.get(_KEY), lambda: password)
    except OSError as error:
        raise ToolError(f"--redis: {what} cannot be used: {tls_reason(error)}") from None


def explain(error: str) -> str:
    """Return the text of an error of the connection to Redis for people: the same if it is not
    about TLS."""
    for pattern, text in _ERRORS:
        if match := re.search(pattern, error, re.IGNORECASE):
            return text.format(match[1])
    return error


def hint(url: str, error: str) -> str:
    """Return what may be wrong about TLS if a server ends the connection instead of an answer, or
    does not answer at all; empty if the error says more. `error`: for people."""
    secure = url.startswith("rediss:")
    if any(words in error for words in ("reset by peer", "closed by server", "Broken pipe")):
        return _CERTIFICATE if secure else "if this port wants TLS: rediss://"
    if secure and "no answer in time" in error:
        return "does this port speak TLS? Without TLS: redis://"
    return ""
