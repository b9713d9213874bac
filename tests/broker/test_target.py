"""The target of a connection, from the parameters."""

from __future__ import annotations

from typing import Any

import pytest

from keyspace_amqp.broker.target import Target, target_of
from keyspace_amqp.config import DEFAULTS
from keyspace_amqp.values import replace

PLAIN = replace(DEFAULTS, events="A")


def goal(**changed: Any) -> Target:
    return target_of(replace(PLAIN, **changed))


@pytest.mark.parametrize(
    ("host", "servers"),
    [
        ("a", [("a", 5672)]),
        ("a,b:1,127.0.0.1:2", [("a", 5672), ("b", 1), ("127.0.0.1", 2)]),
        ("::1", [("::1", 5672)]),
        ("[::1]", [("::1", 5672)]),
        ("[::1]:7,fe80::1%eth0", [("::1", 7), ("fe80::1%eth0", 5672)]),
    ],
)
def test_hosts(host: str, servers: list[tuple[str, int]]) -> None:
    assert goal(host=host).servers == tuple(servers)


def test_a_url_wins_where_it_says_something() -> None:
    single = goal()
    assert goal(url="amqp://h/") == goal(url="amqp://h")
    assert goal(url="amqp://h") == replace(single, servers=(("h", 5672),))
    tls = replace(single, servers=(("h", 5671),), tls=True)
    assert goal(url="amqps://h") == tls
    assert goal(url="amqp://h", tls=True).tls is False
    assert goal(url="amqp://a:1,[::1],c/v").servers == (("a", 1), ("::1", 5672), ("c", 5672))
    full = goal(
        url="amqps://us%40er:p%3a%ff@h:1/v%2fh?heartbeat=7&auth_mechanism=external&"
        "verify=verify_none&cacertfile=/a%20b&certfile=/c&keyfile=/k&server_name_indication=n"
    )
    assert full == Target(
        servers=(("h", 1),), username=b"us@er", password=b"p:\xff", password_file="",
        external=True, vhost="v/h", heartbeat=7, tls=True, ca_file="/a b", cert_file="/c",
        key_file="/k", server_name="n", verify=False, keepalive=60,
    )  # fmt: skip
    # A password in a file, unless the URL has one.
    assert goal(url="amqp://u@h", password_file="/f").password is None
    assert goal(url="amqp://u:p@h", password_file="/f").password == b"p"
