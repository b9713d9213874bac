"""The way to the broker: URL, virtual hosts, TLS, client certificates, password files, and
several brokers, with real ones."""

from __future__ import annotations

import dataclasses
import datetime
import json
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pika
import pytest
import redis
import trustme

from keyspace_amqp import __version__
from keyspace_amqp.demo.servers import RabbitServer, RedisServer, free_port, wait_for
from tests.fix_brokers import displaced, unconfirmed
from tests.fix_faults import Load, delivered
from tests.fix_rabbit_cluster import RabbitCluster
from tests.fix_servers import Mailbox, StartRedis, arguments_for, once, settled, stats

# ---- one broker ------------------------------------------------------------


def connected(client: redis.Redis, **more: Any) -> dict[str, Any]:
    client.execute_command("KEYSPACEAMQP.CONNECT")
    return settled(client, state="connected", **more)


def refused(client: redis.Redis, *words: str) -> None:
    """The connection fails with a text that has these words, and events go to the list."""
    before = stats(client)["fallback_length"]
    client.execute_command("KEYSPACEAMQP.CONNECT")
    client.set("refused", 1)
    numbers = settled(client, fallback_length=before + 1, state="disconnected")
    assert all(word in numbers["last_error"] for word in words), numbers["last_error"]


@pytest.fixture
def client(broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis) -> redis.Redis:
    return start_redis(arguments=arguments_for(broker, mailbox)).client()


def config_set(client: redis.Redis, **values: Any) -> None:
    for name, value in values.items():
        client.config_set(f"keyspaceamqp.{name.replace('_', '-')}", str(value))


def test_a_url_and_a_virtual_host(broker: RabbitServer, client: redis.Redis) -> None:
    broker.ctl("add_vhost", "other/host")
    broker.ctl("add_user", "us@er", "p:w/d")
    broker.ctl("set_permissions", "-p", "other/host", "us@er", ".*", ".*", ".*")
    client.execute_command("KEYSPACEAMQP.CONNECT")
    config_set(client, host="nowhere.invalid", port=1, username="nobody", password="wrong")
    config_set(client, url=f"amqp://us%40er:p%3aw%2fd@localhost:{broker.port}/other%2Fhost")
    client.set("a", 1)
    settled(client, state="connected", confirmed=1, broker=f"localhost:{broker.port}")
    with broker.connection(
        virtual_host="other/host", credentials=pika.PlainCredentials("us@er", "p:w/d")
    ) as connection:
        channel = connection.channel()
        queue = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(queue, "amq.fanout")
        config_set(client, exchange="amq.fanout")
        client.set("a", 1)
        settled(client, confirmed=2)
        assert channel.basic_get(queue, auto_ack=True)[2] == b"0\nset\na"
    config_set(client, url="", host="localhost", port=broker.port, vhost="no/such")
    config_set(client, username="us@er", password="p:w/d")
    refused(client, "530", "no/such")
    config_set(client, vhost="other/host")
    settled(client, state="connected", fallback_length=0)


def test_a_password_from_a_file(
    broker: RabbitServer, client: redis.Redis, tmp_path: pathlib.Path
) -> None:
    """It is read again at each connection, so it can be changed at run time."""
    broker.ctl("add_user", "rotating", "first")
    broker.ctl("set_permissions", "rotating", ".*", ".*", ".*")
    file = tmp_path / "password"
    config_set(client, username="rotating", password_file=file)
    refused(client, "password-file", str(file), "No such file")
    file.write_text("first\nnot this line\n")
    client.set("a", 1)
    connected(client, fallback_length=0)
    broker.ctl("change_password", "rotating", "second")
    file.write_text("second")
    broker.ctl("close_all_user_connections", "rotating", "test")
    client.set("a", 1)
    settled(client, state="connected", fallback_length=0, confirmed=3, reconnects=1)


def test_what_the_broker_knows_of_us(broker: RabbitServer, client: redis.Redis) -> None:
    config_set(client, node_name="shop-1", tcp_keepalive=17)
    connected(client)

    def known() -> str:
        return broker.ctl("list_connections", "client_properties", "--formatter", "json")

    wait_for(lambda: '"keyspace-amqp shop-1"' in known())
    for word in (f'"{__version__}"', '"cluster"', '"node"'):
        assert word in known()
    config_set(client, node_name="")
    connected(client)
    wait_for(
        lambda: f':{client.connection_pool.connection_kwargs["port"]}"' in known(),
        what="the name by default is that of machine and port",
    )


def keepalive_timers(server: RedisServer, port: int) -> list[float]:
    """Seconds until TCP asks whether the other side is there, for the server's connections
    to a port; from the kernel's table, whose times are in hundredths of a second."""
    rows = pathlib.Path(f"/proc/{server.pid}/net/tcp").read_text().splitlines()[1:]
    timers = []
    for _, _, remote, state, _, timer, *_ in map(str.split, rows):
        kind, _, left = timer.partition(":")
        if state == "01" and remote.endswith(f":{port:04X}") and kind == "02":
            timers.append(int(left, 16) / 100)
    return timers


def test_tcp_keepalive(broker: RabbitServer, mailbox: Mailbox, start_redis: StartRedis) -> None:
    server = start_redis(arguments=arguments_for(broker, mailbox))
    client = server.client()
    connected(client)
    wait_for(lambda: any(7 < left <= 60 for left in keepalive_timers(server, broker.port)))
    config_set(client, tcp_keepalive=7)
    connected(client)
    wait_for(lambda: any(0 < left <= 7 for left in keepalive_timers(server, broker.port)))
    config_set(client, tcp_keepalive=0)
    connected(client)
    wait_for(lambda: not keepalive_timers(server, broker.port))


# ---- TLS -------------------------------------------------------------------


class Authority:
    """A certificate authority, with what it signed in files."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        folder.mkdir()
        self.file = folder / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.file))

    def issue(self, name: str, *identities: str, **more: Any) -> tuple[str, str]:
        """Writes files with a certificate and its key, also over older ones."""
        leaf = self._ca.issue_cert(*identities, **more)
        cert, key = self._folder / f"{name}.pem", self._folder / f"{name}.key"
        leaf.cert_chain_pems[0].write_to_path(str(cert))
        leaf.private_key_pem.write_to_path(str(key))
        return str(cert), str(key)


@dataclasses.dataclass
class Secured:
    """A broker that wants TLS and a client certificate."""

    broker: RabbitServer
    port: int
    ours: Authority
    other: Authority

    def present(self, *identities: str, **more: Any) -> None:
        """Gives the broker another certificate."""
        self.ours.issue("server", *identities, **more)
        self.broker.ctl("eval", "ssl:clear_pem_cache().")


@pytest.fixture(scope="module")
def secured() -> Iterator[Secured]:
    with tempfile.TemporaryDirectory(prefix="keyspace-amqp-") as name:
        folder = pathlib.Path(name)
        ours, other = Authority(folder / "ours"), Authority(folder / "other")
        cert, key = ours.issue("server", "localhost", "127.0.0.1", "::1")
        port = free_port()
        options = [
            f"listeners.ssl.4 = 127.0.0.1:{port}",
            f"listeners.ssl.6 = ::1:{port}",
            f"ssl_options.cacertfile = {ours.file}",
            f"ssl_options.certfile = {cert}",
            f"ssl_options.keyfile = {key}",
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = true",
            "auth_mechanisms.1 = PLAIN",
            "auth_mechanisms.2 = EXTERNAL",
            "ssl_cert_login_from = common_name",
        ]
        with RabbitServer(folder / "broker", options, ["rabbitmq_auth_mechanism_ssl"]) as broker:
            broker.ctl("add_user", "from-certificate", "unknown")
            broker.ctl("set_permissions", "from-certificate", ".*", ".*", ".*")
            yield Secured(broker, port, ours, other)


def test_tls(secured: Secured, start_redis: StartRedis, tmp_path: pathlib.Path) -> None:
    """Whatever is wrong with a certificate: no connection, a clear text, nothing lost."""
    mailbox = Mailbox(secured.broker)
    client = start_redis(arguments=arguments_for(secured.port, mailbox)).client()
    cert, key = secured.ours.issue("client", "client.example", common_name="from-certificate")

    refused(client)  # TLS is off
    config_set(client, tls="on")
    refused(client, "TLS", "certificate is refused", "self-signed certificate in certificate")
    config_set(client, tls_ca_file="/there/is/none")
    refused(client, "tls-ca-file /there/is/none", "No such file")
    config_set(client, tls_ca_file=secured.other.file)
    refused(client, "certificate is refused")
    config_set(client, tls_ca_file=secured.ours.file)
    refused(client)  # it wants a client certificate; the text depends on the TLS library
    config_set(client, tls_cert_file=cert)
    refused(client, f"tls-cert-file {cert}", "cannot be used")  # without the key
    wrong = secured.ours.issue("wrong", "other.example")
    config_set(client, tls_key_file=wrong[1])
    refused(client, f"tls-key-file {wrong[1]}", "mismatch")
    config_set(client, tls_key_file=key)
    connected(client, fallback_length=0)

    config_set(client, tls_server_name="other.example")
    refused(client, "certificate is refused", "Hostname mismatch")
    config_set(client, tls_server_name="")
    connected(client, fallback_length=0)

    yesterday = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
    secured.present("localhost", "127.0.0.1", not_after=yesterday)
    config_set(client, tcp_keepalive=59)  # a new connection
    refused(client, "certificate is refused", "certificate has expired")
    config_set(client, tls_verify="off")
    connected(client, fallback_length=0)
    secured.present("other.example")
    config_set(client, tls_verify="on")
    refused(client, "certificate is refused", "IP address mismatch")
    config_set(client, tls_server_name="other.example")
    connected(client, fallback_length=0)
    secured.present("localhost", "127.0.0.1", "::1")
    config_set(client, tls_server_name="")
    connected(client, fallback_length=0)

    # The user's name may be in the certificate.
    config_set(client, auth_mechanism="external", username="nobody", password="wrong")
    client.set("a", 1)
    numbers = connected(client, fallback_length=0, queue_length=0, in_flight=0)
    wait_for(lambda: "from-certificate" in secured.broker.ctl("list_connections", "user"))
    config_set(
        client,
        tls="off", auth_mechanism="plain", tls_ca_file="", tls_cert_file="", tls_key_file="",
        url=f"amqps://localhost:{secured.port}/?cacertfile={secured.ours.file}&certfile={cert}"
        f"&keyfile={key}&auth_mechanism=external",
    )  # fmt: skip
    client.set("a", 1)
    numbers = settled(client, state="connected", confirmed=numbers["confirmed"] + 1)
    assert len(mailbox.receive()) == numbers["confirmed"]

    # A tool connects with the same URL, and an IPv6 address is a name like any other.
    url = f"amqps://[::1]:{secured.port}/?cacertfile={secured.ours.file}&certfile={cert}"
    url += f"&keyfile={key}&auth_mechanism=external"
    command = [sys.executable, "-m", "keyspace_amqp.cli", "tail", "--amqp", url, "--json"]
    command += ["--exchange", "amq.fanout", "--routing-key", "", "--count", "1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tail:
        assert tail.stderr is not None
        assert b"amq.fanout" in tail.stderr.readline()
        config_set(client, exchange="amq.fanout", url=url)
        client.set("a", 1)
        out, err = tail.communicate(timeout=30)
    assert json.loads(out)["key"] == "a", err
    settled(client, state="connected", broker=f"[::1]:{secured.port}")


def test_tls_under_load(secured: Secured, start_redis: StartRedis) -> None:
    """With large messages, and a connection that is closed again and again."""
    secured.present("localhost", "127.0.0.1")
    mailbox = Mailbox(secured.broker)
    cert, key = secured.ours.issue("client", "client.example", common_name="from-certificate")
    server = start_redis(
        arguments=arguments_for(secured.port, mailbox, "$"),
        options=[
            "keyspaceamqp.tls on",
            f"keyspaceamqp.tls-ca-file {secured.ours.file}",
            f"keyspaceamqp.tls-cert-file {cert}",
            f"keyspaceamqp.tls-key-file {key}",
        ],
    )
    client = server.client()
    large = [b"%d" % number + b"x" * 300_000 for number in range(20)]
    for name in large:
        client.set(name, 1)
    with Load(server) as load:
        for _ in range(3):
            load.more(5000)
            secured.broker.ctl("close_all_connections", "test")
        load.more(5000)
    delivered(client, mailbox, [*large, *load.keys], repeated=4 * 4000)


# ---- several brokers -------------------------------------------------------


def test_hosts_are_tried_one_after_the_other(broker: RabbitServer, client: redis.Redis) -> None:
    """One of them answers. The first attempt finds it, whatever the others do."""
    dead = [f"127.0.0.1:{free_port()}" for _ in range(3)]
    config_set(client, host=",".join([*dead, f"localhost:{broker.port}"]), port=1)
    for _ in range(4):
        client.execute_command("KEYSPACEAMQP.DISCONNECT")
        client.set("a", 1)
        connected(client, fallback_length=0, broker=f"localhost:{broker.port}")
    config_set(client, host=",".join(dead))
    refused(client, *(f"{address}: [Errno 111] Connection refused" for address in dead))


@pytest.fixture(scope="module")
def pair() -> Iterator[RabbitCluster]:
    with (
        tempfile.TemporaryDirectory(prefix="keyspace-amqp-") as folder,
        RabbitCluster(pathlib.Path(folder), 2) as cluster,
    ):
        yield cluster


def test_failover_between_two_brokers(pair: RabbitCluster, start_redis: StartRedis) -> None:
    """The broker in use dies under load. A quorum queue with a member on each broker has no
    majority until it is back: events that are not confirmed wait in the list."""
    quorum = {"x-queue-type": "quorum", "x-quorum-initial-group-size": 2}
    mailbox = Mailbox(pair.brokers[0], **quorum)
    mailbox.keep()
    server = start_redis(
        arguments=arguments_for(1, mailbox, "$"), options=[f"keyspaceamqp.host {pair.hosts}"]
    )
    client = server.client()
    with Load(server, batch=20, pause=0.05) as load:
        load.more(2000)
        dead = pair.at(stats(client)["broker"])
        left = next(broker for broker in pair.brokers if broker is not dead)
        dead.kill()
        wait_for(
            lambda: (
                stats(client)["broker"].endswith(f":{left.port}")
                and stats(client)["state"] == "connected"
            ),
            what="it uses the other broker",
        )
        load.more(2000)
        wait_for(lambda: stats(client)["fallback_length"] > 0, what="events go to the list")
        dead.start()
        load.more(2000)
    mailbox.broker = dead
    at_rest = {"fallback_length": 0, "queue_length": 0, "in_flight": 0, "dropped": 0}
    numbers = settled(client, 60, **at_rest)
    arrived = [message.event[2] for message in once(mailbox.receive())]
    place = {key: number for number, key in enumerate(load.keys)}
    assert sorted(arrived) == sorted(place)
    assert displaced([place[key] for key in arrived]) <= unconfirmed(numbers)
