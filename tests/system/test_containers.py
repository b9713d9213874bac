"""In containers: the image of the Dockerfile, a cluster of three and a broker on networks of
their own, networks and containers that stop, an upgrade node by node, and compose.yaml.

Needs a Docker engine on this machine; `make test-containers` runs them, `make test` does not.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import functools
import itertools
import os
import shutil
import socket
import subprocess
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import docker
import pika
import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import DockerContainer
from testcontainers.core.docker_client import DockerClient
from testcontainers.core.exceptions import ContainerStartException
from testcontainers.core.image import DockerImage
from testcontainers.core.network import Network

from keyspace_amqp import __version__
from keyspace_amqp.cluster.slots import slot_of
from keyspace_amqp.demo.servers import wait_for
from keyspace_amqp.publisher.window import WINDOW
from tests.fix_faults import Background, Probe
from tests.fix_servers import _SERVERS, ROOT, Mailbox, list_length, once, settled, stats

pytestmark = pytest.mark.containers

# What tests/containers/base_images provides, for a release of Debian.
RELEASE = os.environ.get("BASE_RELEASE", "bookworm")
BASES = f"keyspace-amqp-base-{RELEASE}"
# An upgrade goes from the first to the second. No Valkey reads the RDB files of Redis 8, and Redis
# 8 does not read the nodes.conf of Valkey 8; so on Debian 13 both are the same server.
FIRST, SECOND = ("redis", "valkey") if RELEASE == "bookworm" else ("redis", "redis")
CONF = "/etc/keyspace-amqp/redis.conf"
USER = "events"  # of RabbitMQ; its password is the same
SLOTS = 16384
# The reaper is one more image to fetch; all that is started here ends in a `with`.
testcontainers_config.ryuk_disabled = True


# ---- images, networks, the broker ------------------------------------------


@functools.cache
def engine() -> docker.DockerClient:
    """The engine that testcontainers uses too."""
    return DockerClient().client


def built(base: str) -> str:
    """The image of the Dockerfile on one of the bases; its tag."""
    tag = f"keyspace-amqp-test-{RELEASE}:{base}"
    DockerImage(
        ROOT,
        tag=tag,
        clean_up=False,  # the next run finds the layers again
        buildargs={"BASE": f"{BASES}:{base}"},
        network_mode="host",  # where mirrors and proxies are, if there are any
    ).build()
    return tag


@pytest.fixture(scope="session")
def images() -> dict[str, str]:
    names = ["redis", "valkey"]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return dict(zip(names, pool.map(built, names), strict=True))


@dataclasses.dataclass
class Networks:
    """Two networks: between the nodes and with their clients, and to the broker."""

    redis: Network
    amqp: Network


@pytest.fixture(scope="session")
def networks() -> Iterator[Networks]:
    own = {"internal": True}  # no container needs the internet
    with Network(docker_network_kw=own) as first, Network(docker_network_kw=own) as second:
        yield Networks(first, second)


class Member:
    """A container that is reached from here by its address in a network."""

    def __init__(self, name: str, network: Network) -> None:
        self.name = name
        self.folder = "a container"  # for the report of a failing test
        self.network = network
        self.container: DockerContainer
        self._log = ""

    @property
    def id(self) -> str:
        return self.container.get_container_id()

    @property
    def ip(self) -> str:
        """Its address in a network. Raises OSError while it has none."""
        try:
            wrapped = self.container.get_wrapped_container()
            wrapped.reload()
        except (ContainerStartException, docker.errors.NotFound):
            raise OSError(f"{self.name} is not there") from None
        found = wrapped.attrs["NetworkSettings"]["Networks"].get(self.network.name, {})
        if not found.get("IPAddress"):
            raise OSError(f"{self.name} is cut off")
        return str(found["IPAddress"])

    def log(self) -> str:
        """For the report of a failing test; also when the container is no longer there."""
        with contextlib.suppress(docker.errors.NotFound):
            self._log = "\n".join(part.decode() for part in self.container.get_logs())
        return self._log

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Paused by Docker: it answers nothing, and no connection ends."""
        wrapped = self.container.get_wrapped_container()

        def is_paused() -> bool:
            # On a busy machine the engine may give up before all processes are frozen.
            with contextlib.suppress(docker.errors.APIError):
                wrapped.pause()
            wrapped.reload()
            return bool(wrapped.status == "paused")

        wait_for(is_paused, 120, f"{self.name} is paused", lambda: f"it is {wrapped.status}")
        try:
            yield
        finally:
            wrapped.unpause()

    @contextlib.contextmanager
    def cut_off(self, network: Network) -> Iterator[None]:
        """Takes it out of a network; links over that network hang. It may come back with another
        address."""
        self.leave(network)
        try:
            yield
        finally:
            network.connect(self.id, [self.name])

    def leave(self, network: Network) -> None:
        engine().networks.get(network.name).disconnect(self.id)


class Broker(Member):
    """RabbitMQ."""

    @contextlib.contextmanager
    def connection(self) -> Iterator[pika.BlockingConnection]:
        """See RabbitServer.connection."""
        parameters = pika.ConnectionParameters(
            self.ip,
            credentials=pika.PlainCredentials(USER, USER),
            socket_timeout=5,
            stack_timeout=10,
        )
        connection = pika.BlockingConnection(parameters)
        try:
            yield connection
        finally:
            with contextlib.suppress(pika.exceptions.AMQPError):
                connection.close()

    def ready(self) -> bool:
        try:
            # Before it listens, pika would fill the log.
            socket.create_connection((self.ip, 5672), 5).close()
            with self.connection():
                return True
        except (pika.exceptions.AMQPError, OSError):
            return False


@pytest.fixture(scope="session")
def session_rabbitmq(networks: Networks) -> Iterator[Broker]:
    broker = Broker("rabbitmq", networks.amqp)
    broker.container = (
        DockerContainer(f"{BASES}:rabbitmq-management", hostname="rabbitmq")
        .with_env("RABBITMQ_DEFAULT_USER", USER)
        .with_env("RABBITMQ_DEFAULT_PASS", USER)
        .with_network(networks.amqp)
        .with_network_aliases(broker.name)
    )
    with broker.container:
        wait_for(broker.ready, 120, "RabbitMQ")
        yield broker


@pytest.fixture
def rabbitmq(session_rabbitmq: Broker, request: pytest.FixtureRequest) -> Broker:
    request.node.stash.setdefault(_SERVERS, []).append(session_rabbitmq)
    return session_rabbitmq


# ---- Redis -----------------------------------------------------------------


class Node(Member):
    """A Redis with the module. Its data outlive the container."""

    port = 6379

    def __init__(self, name: str, networks: Networks, options: Sequence[str]) -> None:
        super().__init__(name, networks.redis)
        self.amqp = networks.amqp
        self.options = options
        self.volume = engine().volumes.create()
        self.running = False

    def start(self, image: str) -> None:
        self.container = (
            DockerContainer(image)
            .with_command([CONF, *self.options])
            .with_network(self.network)
            .with_network_aliases(self.name)
            .with_volume_mapping(self.volume.name, "/data", "rw")
            # When it is cut off from one network, it connects to its peers over the other one, and
            # Redis would wait for these connections as long as the kernel tries.
            .with_kwargs(sysctls={"net.ipv4.tcp_syn_retries": 1})
        )
        self.running = True
        self.container.start()
        self.amqp.connect(self.id, [self.name])
        wait_for(self.answers, 60, f"an answer of {self.name}")

    def stop(self) -> int:
        """Ends the server as `docker stop` does, and removes the container; the exit code."""
        wrapped = self.container.get_wrapped_container()
        wrapped.stop(timeout=30)
        code = int(wrapped.wait()["StatusCode"])
        self.remove()
        return code

    def remove(self) -> None:
        if self.running:
            self.running = False
            self.log()
            self.container.stop()

    def client(self, timeout: float = 60) -> redis.Redis:
        """A client that waits so many seconds for an answer: on a busy machine, it is late."""
        # A command that was sent must not be sent again.
        retry = Retry(NoBackoff(), 0)
        return redis.Redis(
            self.ip, socket_connect_timeout=timeout / 2, socket_timeout=timeout, retry=retry
        )

    def answers(self) -> bool:
        try:
            with self.client(2) as client:
                return bool(client.ping())
        except (redis.RedisError, OSError):
            return False


@dataclasses.dataclass
class Fleet:
    """Redis nodes, and the queue that their events go to."""

    nodes: list[Node]
    mailbox: Mailbox

    def start(self, image: str) -> None:
        """Starts them as a cluster."""
        for node in self.nodes:
            node.start(image)
        share = SLOTS // len(self.nodes)
        for number, node in enumerate(self.nodes):
            with node.client() as client:
                last = SLOTS if node is self.nodes[-1] else (number + 1) * share
                client.execute_command("CLUSTER ADDSLOTSRANGE", number * share, last - 1)
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                if number:
                    client.execute_command("CLUSTER MEET", self.nodes[0].ip, node.port)
        wait_for(self.whole, 60, "a whole cluster")

    def whole(self) -> bool:
        """True if every node sees all of them, and has links to all."""
        for node in self.nodes:
            with node.client() as client:
                info = client.execute_command("CLUSTER INFO")
                lines = client.execute_command("CLUSTER NODES")
            links = [line.get("connected", True) for line in lines.values()]
            fine = info["cluster_state"] == "ok" and info["cluster_slots_ok"] == str(SLOTS)
            if not fine or len(links) != len(self.nodes) or not all(links):
                return False
        return True

    def checked(self, writers: Sequence[Writer], repeated: int) -> None:
        """Sets and books: nothing waits anywhere, the books of every node balance, each
        event has arrived, nothing else has, first arrivals are in order per node, and at
        most `repeated` messages came again."""
        for node in self.nodes:
            with node.client() as client:
                settled(client, 60, fallback_length=0, queue_length=0, in_flight=0, dropped=0)
        messages = self.mailbox.receive()
        arrived = [message.event[2] for message in once(messages)]
        came = set(arrived)
        assert len(came) == len(arrived), "two events of one write"
        for writer in writers:
            answered = set(writer.answered)
            assert writer.answered, f"nothing was written to {writer.node.name}"
            assert not answered - came, (
                f"lost {len(answered - came)} of {len(answered)} of {writer.node.name}: "
                f"{sorted(answered - came)[:5]}"
            )
            theirs = [key for key in arrived if key in answered]
            assert theirs == writer.answered, f"disorder of {writer.node.name}"
        known = {key for writer in writers for key in (*writer.answered, *writer.unsure)}
        assert not came - known, f"unexpected: {sorted(came - known)[:5]}"
        again = len(messages) - len(arrived)
        assert again <= repeated, f"{again} messages came again, at most {repeated} may"


class Writer(Background):
    """SETs keys in one node's slots, hundreds a second, until its `with` ends. `answered`: keys
    that Redis has answered, in order. `unsure`: keys that may have been written or not."""

    def __init__(self, node: Node, nodes: Sequence[Node]) -> None:
        self.node = node
        self.answered: list[bytes] = []
        self.unsure: set[bytes] = set()
        share = SLOTS // len(nodes)
        place = nodes.index(node)
        tags = (b"tag%d" % number for number in itertools.count())
        self._tag = next(t for t in tags if min(slot_of(t) // share, len(nodes) - 1) == place)
        super().__init__()

    def _run(self) -> None:
        client: redis.Redis | None = None
        for number in itertools.count():
            if self._stop.wait(0.002):
                break
            key = b"{%b}%d" % (self._tag, number)
            try:
                if client is None:
                    client = self.node.client(2)
                client.set(key, 1)
            except (redis.RedisError, OSError):
                self.unsure.add(key)
                client = None
            else:
                self.answered.append(key)
        if client is not None:
            client.close()

    def more(self, count: int = 200) -> None:
        """Waits for more writes that were answered."""
        target = len(self.answered) + count
        wait_for(lambda: len(self.answered) >= target, 60, f"writes to {self.node.name}")


@contextlib.contextmanager
def written_to(nodes: Sequence[Node]) -> Iterator[list[Writer]]:
    """Writes to all nodes at the same time, to each its own keys."""
    with contextlib.ExitStack() as stack:
        writers = [stack.enter_context(Writer(node, nodes)) for node in nodes]
        for writer in writers:
            writer.more()
        yield writers


@pytest.fixture
def fleet(
    rabbitmq: Broker, networks: Networks, request: pytest.FixtureRequest
) -> Iterator[Callable[..., Fleet]]:
    """Makes nodes that are not started yet, with more options of the server."""
    nodes: list[Node] = []

    def make(count: int, *options: str) -> Fleet:
        mailbox = Mailbox(rabbitmq)  # type: ignore[arg-type]
        given = {
            "appendonly": "yes",
            "keyspaceamqp.host": rabbitmq.name,
            "keyspaceamqp.username": USER,
            "keyspaceamqp.password": USER,
            "keyspaceamqp.heartbeat": "4",  # a dead link is noticed in seconds
            "keyspaceamqp.events": "$",
            "keyspaceamqp.routing-key": mailbox.routing_key,
        }
        words = [word for name, value in given.items() for word in (f"--{name}", value)]
        for number in range(count):
            nodes.append(Node(f"redis-{number}", networks, [*words, *options]))
        request.node.stash.setdefault(_SERVERS, []).extend(nodes)
        return Fleet(list(nodes), mailbox)

    yield make
    for node in nodes:
        node.remove()
        node.volume.remove(force=True)


@pytest.fixture
def cluster(fleet: Callable[..., Fleet], images: dict[str, str]) -> Fleet:
    """A cluster of three, of one kind of server. A node that is away costs its own slots only."""
    made = fleet(
        3,
        *("--cluster-enabled", "yes"),
        *("--cluster-node-timeout", "2000"),
        *("--cluster-require-full-coverage", "no"),
    )
    made.start(images[FIRST])
    return made


def found(node: Node) -> dict[str, Any]:
    with node.client() as client:
        return stats(client)


def stores(node: Node, more: int = 100) -> None:
    """Waits until the node's list has grown by so many elements."""
    target = found(node)["fallback_length"] + more
    wait_for(lambda: found(node)["fallback_length"] >= target, 60, f"a list on {node.name}")


def delivers(node: Node, more: int = 100) -> None:
    """Waits until the broker has confirmed more."""
    target = found(node)["confirmed"] + more
    wait_for(lambda: found(node)["confirmed"] >= target, 60, f"confirms for {node.name}")


# ---- the tests -------------------------------------------------------------


@pytest.mark.parametrize("base", ["redis", "valkey"])
def test_the_image(base: str, fleet: Callable[..., Fleet], images: dict[str, str]) -> None:
    """On each base: it runs as the server's user and has nothing of the build in it. Its
    redis.conf can be rewritten, and then starts the server again. Events that wait at `docker stop`
    are there for the next container."""
    made = fleet(1)
    (node,) = made.nodes
    node.start(images[base])
    with node.client() as client:
        assert b"keyspaceamqp" in [module[b"name"] for module in client.module_list()]
        client.set("a", 1)
        settled(client, confirmed=1)

    def output(*command: str) -> str:
        result = node.container.exec(list(command))
        assert result.exit_code == 0, result.output
        return result.output.decode()

    (user,) = (x for x in output("cat", "/proc/1/status").splitlines() if x.startswith("Uid:"))
    assert "0" not in user.split(), "the server runs as root"
    assert output("keyspace-amqp", "--version").split()[-1] == __version__
    assert __version__ in node.log()
    for left in ("/usr/bin/gcc", "/opt/keyspace-amqp/bin/pip", "/source"):
        assert node.container.exec(["test", "-e", left]).exit_code == 1, f"{left} is in the image"

    with node.client() as client:
        client.config_set("keyspaceamqp.app-id", "rewritten")
        client.config_rewrite()
    assert "keyspaceamqp.app-id" in output("cat", CONF)
    node.container.get_wrapped_container().restart(timeout=30)
    wait_for(node.answers, 60, "an answer after a restart")
    with node.client() as client:
        assert client.config_get("keyspaceamqp.app-id") == {"keyspaceamqp.app-id": "rewritten"}
        client.config_set("keyspaceamqp.app-id", "")

    node.leave(node.amqp)
    with node.client() as client:
        client.set("b", 1)
        wait_for(lambda: list_length(client) == 1, 30, "one element")
    assert node.stop() == 0
    node.start(images[base])
    with node.client() as client:
        client.set("c", 1)
        settled(client, 60, fallback_length=0, fallback_found=1, confirmed=2, dropped=0)
    arrived = once(made.mailbox.receive())
    assert [message.event[2] for message in arrived] == [b"a", b"b", b"c"]
    assert {message.properties.delivery_mode for message in arrived} == {2}


def test_a_node_without_the_way_to_the_broker(cluster: Fleet) -> None:
    """It stores events while the others deliver, and connects again."""
    alone, *others = cluster.nodes
    with written_to(cluster.nodes) as writers:
        for _ in range(3):
            with alone.cut_off(alone.amqp):
                stores(alone)
                for node in others:
                    delivers(node)
            delivers(alone)
    cluster.checked(writers, repeated=3 * WINDOW)


@pytest.mark.parametrize("fault", ["network", "pause"])
def test_the_broker(fault: str, cluster: Fleet, rabbitmq: Broker, probe: Probe) -> None:
    """It is cut off from its network, and then paused."""
    node = cluster.nodes[0]
    with written_to(cluster.nodes) as writers:
        for _ in range(3):
            away = rabbitmq.paused() if fault == "pause" else rabbitmq.cut_off(rabbitmq.network)
            with probe(node, node.ip):
                with away:
                    for each in cluster.nodes:
                        stores(each)
                for each in cluster.nodes:
                    delivers(each)
    cluster.checked(writers, repeated=3 * 3 * WINDOW)


@pytest.mark.parametrize("fault", ["network", "pause"])
def test_a_node_without_its_cluster(fault: str, cluster: Fleet) -> None:
    """No other node reaches it though it reaches the broker; or it is paused. Events of commands
    that it had answered are delivered, and so are those of the others meanwhile."""
    alone, *others = cluster.nodes

    def missed() -> bool:
        with others[0].client() as client:
            lines = client.execute_command("CLUSTER NODES").values()
        return any("fail" in line["flags"].split(",") for line in lines)

    with written_to(cluster.nodes) as writers:
        with alone.paused() if fault == "pause" else alone.cut_off(alone.network):
            wait_for(missed, 60, "a node that is missed")
            for node in others:
                delivers(node)
        wait_for(alone.answers, 60)
        wait_for(cluster.whole, 60, "a whole cluster")
        for writer in writers:
            writer.more()
    cluster.checked(writers, repeated=3 * WINDOW)


def test_an_upgrade_node_by_node(cluster: Fleet, images: dict[str, str], rabbitmq: Broker) -> None:
    """Each node in turn ends, and a new container goes on with its data. During the first two the
    broker is away, so that there are lists to take over."""
    with written_to(cluster.nodes) as writers:

        def upgrade(node: Node) -> None:
            assert node.stop() == 0
            node.start(images[SECOND])
            with node.client() as client:
                assert client.info("server").get("server_name", "redis") == SECOND
            wait_for(cluster.whole, 60, "a whole cluster")

        with rabbitmq.cut_off(rabbitmq.network):
            for node in cluster.nodes[:2]:
                stores(node)
                upgrade(node)
                assert found(node)["fallback_found"] > 0
        upgrade(cluster.nodes[2])
        for writer in writers:
            writer.more()
    cluster.checked(writers, repeated=3 * WINDOW)


def composes() -> list[list[str]]:
    """The commands of Docker Compose that are here: the plugin, and the command of Debian 12,
    which is older and another program. Without any, the plugin."""
    plugin = (
        shutil.which("docker")
        and not subprocess.run(["docker", "compose", "version"], capture_output=True).returncode
    )
    found = [["docker", "compose"]] if plugin else []
    found += [["docker-compose"]] if shutil.which("docker-compose") else []
    return found or [["docker", "compose"]]


def compose(command: list[str], *words: str, project: str, image: str) -> str:
    """Runs Docker Compose on compose.yaml."""
    done = subprocess.run(
        [*command, "--project-name", project, *words],
        cwd=ROOT,
        env={
            **os.environ,
            "IMAGE": image,
            "RABBITMQ": f"{BASES}:rabbitmq-management",
            "PROMETHEUS": f"{BASES}:prometheus",
            # Any free ones.
            **dict.fromkeys(("RABBITMQ_PORT", "PROMETHEUS_PORT", "GRAFANA_PORT"), "0"),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def page(container: Any, port: int, path: str) -> bytes:
    """What a page says to this machine; empty if it does not answer."""
    container.reload()
    (address,) = container.ports[f"{port}/tcp"]
    assert address["HostIp"] == "127.0.0.1"
    try:
        place = f"http://127.0.0.1:{address['HostPort']}{path}"
        with urllib.request.urlopen(place, timeout=5) as answer:
            return bytes(answer.read())
    except OSError:
        return b""


@pytest.mark.parametrize("command", composes(), ids=" ".join)
def test_compose(command: list[str], images: dict[str, str]) -> None:
    """`docker compose up` shows events, also those of another client. With the profile, Prometheus
    has the metrics, and the rules. (No image of Grafana can be made from Debian's packages.)"""
    project = f"test-{uuid.uuid4().hex[:8]}"
    common = {"project": project, "image": images["redis"]}
    try:
        compose(command, "up", "--detach", "--no-build", **common)
        profile = ("--profile", "monitoring", "up", "--detach", "--no-build")
        label = f"com.docker.compose.project={project}"

        def services() -> dict[str, Any]:
            containers = engine().containers.list(filters={"label": label})
            return {each.labels["com.docker.compose.service"]: each for each in containers}

        first = services()
        assert first.keys() == {"redis", "rabbitmq", "consumer", "writer"}
        compose(command, *profile, "exporter", "prometheus", **common)

        def shown(text: bytes) -> bool:
            return text in first["consumer"].logs()

        try:
            wait_for(lambda: shown(b"visits"), 60)
            first["redis"].exec_run(["redis-cli", "SET", "note", "hello"])
            wait_for(lambda: shown(b"note"), 30)
            wait_for(lambda: b"RabbitMQ Management" in page(first["rabbitmq"], 15672, "/"), 30)
            prometheus = services()["prometheus"]
            wait_for(lambda: b"BrokerAway" in page(prometheus, 9090, "/api/v1/rules"), 60)
            query = "/api/v1/query?query=keyspace_amqp_confirmed_total>0"
            wait_for(lambda: b'"node":"redis"' in page(prometheus, 9090, query), 60)
        except TimeoutError:
            pytest.fail(compose(command, "logs", "--no-color", **common))
    finally:
        compose(command, "--profile", "monitoring", "down", "--volumes", "--timeout", "2", **common)
