"""Advice for errors of the broker and of the way to it, by their texts. Pure.

The texts are those of `broker/reasons.py`: of the tools' own connection, and of the module's, which
are in `last_error` of STATS.
"""

from __future__ import annotations

import re

_TLS_PORT = "the broker's port for TLS is usually 5671, and the one without it 5672"
# The first that is found in the error counts.
_ADVICE = tuple(
    (re.compile(pattern), advice)
    for pattern, advice in (
        (
            r"vhost .* not found",
            "`rabbitmqctl add_vhost` makes the virtual host, or set keyspaceamqp.vhost (in a URL, "
            "the part behind the port) to one of `rabbitmqctl list_vhosts`",
        ),
        (
            r"virtual host|access to vhost",
            "`rabbitmqctl set_permissions -p VHOST` lets the user into the virtual host",
        ),
        (
            r"certificate is refused: .*(mismatch|not valid for)",
            "connect to a name in the broker's certificate, or give that name: tls-server-name "
            "(in a URL, server_name_indication)",
        ),
        (
            r"certificate is refused: .*(expired|not yet valid)",
            "renew the broker's certificate; are the clocks of both machines right?",
        ),
        (
            r"certificate is refused",
            "name the certificate of the authority that has signed the broker's: tls-ca-file "
            "(in a URL, cacertfile)",
        ),
        (
            r"tls-(ca|cert|key)-file .* cannot be used",
            "the files have to be PEM, readable for the server's user, and fit each other",
        ),
        (
            r"TLS: .*(wrong version number|record layer|packet length|http request)",
            f"this port does not speak TLS: {_TLS_PORT}. Without TLS: tls off, or amqp://",
        ),
        (
            r"TLS: |SSL\w*Error\(",
            "the broker may want a certificate that an authority of its own has signed: "
            "tls-cert-file and tls-key-file (in a URL, certfile and keyfile). Its log says more",
        ),
        (
            r"does not offer the authentication",
            "switch the broker's plugin rabbitmq_auth_mechanism_ssl on for auth-mechanism "
            "external, or take plain",
        ),
        (
            r"no AMQP 0-9-1 handshake within",
            "does another program have this port, or does the broker hang? See its log",
        ),
        (
            r"no AMQP 0-9-1 handshake",
            f"if this port wants TLS, set tls on (in a URL, amqps://); {_TLS_PORT}",
        ),
        (
            r"404 NOT_FOUND",
            "`keyspace-amqp declare` declares it in the broker; or change keyspaceamqp.exchange",
        ),
        (
            r"403 ACCESS_REFUSED - (write )?access to (exchange|topic)",
            "`rabbitmqctl set_permissions`, and for a topic `set_topic_permissions`, have to let "
            "the user write there",
        ),
        (
            r"403 ACCESS_REFUSED - Login",
            "user and password (here: --amqp or AMQP_PASSWORD)? guest may by default log in from "
            "the broker's own machine only",
        ),
        (
            r"Name or service not known|name resolution|No address associated",
            "the name in host is not known here: is it right, does the name server answer?",
        ),
        (
            r"Connection refused|No route|unreachable|timed out",
            "is the broker up, are host and port right, does a firewall close the port?",
        ),
    )
)

# What to do if messages reach no queue.
BIND = "`keyspace-amqp declare` binds a queue to the exchange with the routing key"


def advice_for(error: str) -> str:
    """Return advice for an error; empty if its text is not known."""
    return next((advice for pattern, advice in _ADVICE if pattern.search(error)), "")
