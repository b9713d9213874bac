"""A node's name, and the format of its messages. Without the compiled module."""

from __future__ import annotations

import socket

import pytest

from keyspace_amqp.cluster.topology import ALONE, Node, Topology
from keyspace_amqp.config import DEFAULTS, Config
from keyspace_amqp.message import Event, Format
from keyspace_amqp.values import replace
from keyspace_amqp.worker.identity import Identity

CONFIG = replace(DEFAULTS, headers=True)
EVENT = Event("run-1", 1, 0, "$", b"set", b"k")


class Messages:
    """The part of the broker's connection that makes messages."""

    def __init__(self) -> None:
        self.forms: list[tuple[Config, Format]] = []

    def configure(self, config: Config, form: Format) -> None:
        self.forms.append((config, form))


def at(address: str, node_id: str = "me") -> Topology:
    return Topology(node_id, {node_id: Node(node_id, address, True, False)}, frozenset())


def made(
    config: Config = CONFIG, topology: Topology = ALONE, *, clustered: bool = False
) -> tuple[Identity, Messages]:
    messages = Messages()
    return Identity(messages, config, topology, 6379, clustered=clustered), messages


@pytest.mark.parametrize(
    ("node_name", "topology", "name"),
    [
        ("", ALONE, f"{socket.gethostname()}:6379"),
        ("", at("10.0.0.1:7000"), "10.0.0.1:7000"),
        ("", at("::1:7000"), "::1:7000"),
        ("", at(":7000"), f"{socket.gethostname()}:7000"),
        ("mine", at("10.0.0.1:7000"), "mine"),
        ("m\udcff", ALONE, "m\\xff"),
    ],
)
def test_names(node_name: str, topology: Topology, name: str) -> None:
    identity, messages = made(replace(CONFIG, node_name=node_name), topology)
    assert identity.name == name
    ((_, form),) = messages.forms
    assert form.headers is not None
    assert form.headers(EVENT)["node"] == name


def test_a_cluster_tells_the_name_later() -> None:
    identity, messages = made()
    identity.set_topology(at("10.0.0.1:7000"))
    assert identity.name == "10.0.0.1:7000"
    assert len(messages.forms) == 2
    identity.set_topology(at("10.0.0.1:7000"))  # read again, and the same
    assert len(messages.forms) == 2


def test_new_parameters_make_another_form() -> None:
    """Even if the name stays the same."""
    identity, messages = made()
    other = replace(CONFIG, format="json")
    identity.configure(other)
    config, form = messages.forms[-1]
    assert (config, form.content.type) == (other, "application/json")
    assert identity.name == f"{socket.gethostname()}:6379"


def test_a_count_of_cut_routing_keys_goes_on() -> None:
    identity, messages = made(replace(CONFIG, routing_key="x" * 200 + "{key:*}"))
    form = messages.forms[-1][1]
    form.routing_key(replace(EVENT, key=b"y" * 200))
    assert identity.cut == 1
    identity.set_topology(at("10.0.0.1:7000"))
    messages.forms[-1][1].routing_key(replace(EVENT, key=b"y" * 200))
    assert identity.cut == 2
    identity.cut = 0
    assert identity.cut == messages.forms[-1][1].cut == 0


@pytest.mark.parametrize(("clustered", "cluster"), [(True, "node me"), (False, "none")])
def test_what_the_broker_is_told(clustered: bool, cluster: str) -> None:
    identity, _ = made(topology=at("10.0.0.1:7000"), clustered=clustered)
    assert identity.properties() == {
        "connection_name": "keyspace-amqp 10.0.0.1:7000",
        "node": "10.0.0.1:7000",
        "cluster": cluster,
    }
