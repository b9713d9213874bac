"""The name of this node, and the format of its messages, which contains the name.

Worker thread; nothing here waits.
"""

from __future__ import annotations

import os
from typing import Protocol

from ..cluster.topology import Topology
from ..config import Config, raw
from ..message import Format


class Messages(Protocol):
    """The part of the broker's connection that makes messages."""

    def configure(self, config: Config, message_format: Format) -> None: ...


class Identity:
    """Keeps the name and the format up to date.

    The name is the parameter `node-name`. If that is empty, it is this node's address in
    the cluster, which is known a while after the start and may change; or else the host's
    name and the port.
    """

    def __init__(
        self, messages: Messages, config: Config, topology: Topology, port: int, *, clustered: bool
    ) -> None:
        self._messages = messages
        self._config = config
        self._topology = topology
        self._port = port
        self._clustered = clustered
        self.name = ""
        self._format = Format(config, "")
        self._rename()

    @property
    def cut(self) -> int:
        """The number of routing keys that were too long and were cut."""
        return self._format.cut

    @cut.setter
    def cut(self, count: int) -> None:
        self._format.cut = count

    def configure(self, config: Config) -> None:
        """Take new parameters, from the next message on."""
        self._config = config
        self.name = ""  # so that the format is made anew even if the name stays
        self._rename()

    def set_topology(self, topology: Topology) -> None:
        """Take a new topology of the cluster."""
        if topology is not self._topology:
            self._topology = topology
            self._rename()

    def _rename(self) -> None:
        # RabbitMQ and JSON need text, not bytes.
        name = raw(self._config.node_name).decode("utf-8", "backslashreplace")
        if not name:
            own = self._topology.nodes.get(self._topology.myself)
            host, _, port = (own.address if own is not None else "").rpartition(":")
            name = f"{host or os.uname().nodename}:{port or self._port}"
        if name != self.name:
            self.name = name
            cut = self.cut
            self._format = Format(self._config, name)
            self.cut = cut
            self._messages.configure(self._config, self._format)

    def properties(self) -> dict[str, str]:
        """Return the client properties, which RabbitMQ's tools show for the connection."""
        cluster = f"node {self._topology.myself}" if self._clustered else "none"
        return {
            "connection_name": f"keyspace-amqp {self.name}",
            "node": self.name,
            "cluster": cluster,
        }
