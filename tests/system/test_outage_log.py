"""What the server's log says about an outage: the reason once, and once how long it took."""

from __future__ import annotations

import re

from keyspace_amqp.demo.servers import RabbitServer, RedisServer, wait_for
from tests.fix_servers import EXCHANGE, Mailbox, StartRedis, arguments_for, settled, stats

_LINE = re.compile(r"<keyspaceamqp> ((?:connecting|connected|disconnected|blocked|idle)\b.*)")
_OUTAGE = r", after an outage of (\d+ min )?\d+(\.\d)? s(; .*)?"
# The line a minute: a broker may take that long to start on a busy machine.
_MINUTE = re.compile(r"# <keyspaceamqp> disconnected for \d+ min")


def about_the_link(server: RedisServer) -> list[str]:
    """Return the lines about the connection, but for those of each minute."""
    lines = (line for line in server.log().splitlines() if not _MINUTE.search(line))
    return _LINE.findall("\n".join(lines))


def test_a_broker_that_is_killed(own_broker: RabbitServer, start_redis: StartRedis) -> None:
    """Attempts fail meanwhile, in several ways while the broker starts."""
    mailbox = Mailbox(own_broker).keep()
    server = start_redis(arguments=arguments_for(own_broker, mailbox, "$"))
    client = server.client()
    client.set("first", 1)
    settled(client, confirmed=1)
    at = f"(127.0.0.1:{own_broker.port})"
    assert about_the_link(server) == [f"idle {at}", f"connected {at}"]
    own_broker.kill()
    client.set("second", 1)
    wait_for(lambda: "refused" in stats(client)["last_error"], 30)
    own_broker.start()
    settled(client, confirmed=2, fallback_length=0)
    *before, begin, end = about_the_link(server)
    assert before == [f"idle {at}", f"connected {at}"]
    assert re.fullmatch(re.escape(f"disconnected {at}: ") + ".+", begin)
    assert re.fullmatch(re.escape(f"connected {at}") + _OUTAGE, end)
    warnings = server.log().count("# <keyspaceamqp>") - len(_MINUTE.findall(server.log()))
    assert warnings == 1  # that at the begin


def test_a_broker_that_closes_every_connection(
    broker: RabbitServer, start_redis: StartRedis
) -> None:
    """The exchange is missing, so each attempt connects, and is closed over its first message."""
    mailbox = Mailbox(broker)
    arguments = arguments_for(broker, mailbox, "$")
    arguments[6] = mailbox.name
    server = start_redis(arguments=arguments)
    client = server.client()
    client.set("key", 1)
    wait_for(lambda: stats(client)["reconnects"] >= 4, 60)
    at = f"(127.0.0.1:{broker.port})"
    missing = f"404 NOT_FOUND - no exchange '{mailbox.name}' in vhost '/'"
    begin = [f"idle {at}", f"connected {at}", f"disconnected {at}: {missing}"]
    assert about_the_link(server) == begin
    with broker.connection() as connection:
        alternate = {"alternate-exchange": EXCHANGE}
        connection.channel().exchange_declare(mailbox.name, "direct", arguments=alternate)
        settled(client, confirmed=1, fallback_length=0)
        *before, end = about_the_link(server)
        connection.channel().exchange_delete(mailbox.name)
    assert before == begin
    assert re.fullmatch(re.escape(f"connected {at}") + _OUTAGE, end)


def test_a_user_disconnects(broker: RabbitServer, start_redis: StartRedis) -> None:
    """Which is no outage."""
    server = start_redis(arguments=arguments_for(broker, Mailbox(broker), "$"))
    client = server.client()
    client.set("key", 1)
    settled(client, confirmed=1)
    client.execute_command("KEYSPACEAMQP.DISCONNECT")
    settled(client, state="disconnected")
    client.execute_command("KEYSPACEAMQP.CONNECT")
    settled(client, state="connected")
    at = f"(127.0.0.1:{broker.port})"
    words = ["idle", "connected", "disconnected", "connected"]
    assert about_the_link(server) == [f"{word} {at}" for word in words]
