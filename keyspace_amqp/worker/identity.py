"""The name of this server, and the form of its messages, which has the name in it.

Worker thread; nothing here waits.
"""

from __future__ import annotations

import socket
from typing import Protocol

from ..cluster.topology import Topology
from ..config import Config, raw
from ..message import Format


class Messages(Protocol):
    """The broker, as far as it makes messages."""

    def configure(self, config: Config, form: Format) -> None: ...


class Identity:
    """The parameter `node-name`; without one the address that the cluster has for this
    server, which it tells after a while and may change; or the host's name and the port."""

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
        """Routing keys that were too long."""
        return self._format.cut

    @cut.setter
    def cut(self, count: int) -> None:
        self._format.cut = count

    def configure(self, config: Config) -> None:
        """Take new parameters, from the next message on."""
        self._config = config
        self.name = ""  # messages have another form, whatever the name
        self._rename()

    def set_topology(self, topology: Topology) -> None:
        """Take what is known of the cluster now."""
        if topology is not self._topology:
            self._topology = topology
            self._rename()

    def _rename(self) -> None:
        # RabbitMQ and JSON want text.
        name = raw(self._config.node_name).decode("utf-8", "backslashreplace")
        if not name:
            own = self._topology.nodes.get(self._topology.myself)
            host, _, port = (own.address if own is not None else "").rpartition(":")
            name = f"{host or socket.gethostname()}:{port or self._port}"
        if name != self.name:
            self.name = name
            cut = self.cut
            self._format = Format(self._config, name)
            self.cut = cut
            self._messages.configure(self._config, self._format)

    def properties(self) -> dict[str, str]:
        """Return what RabbitMQ's tools show of the connection."""
        cluster = f"node {self._topology.myself}" if self._clustered else "none"
        return {
            "connection_name": f"keyspace-amqp {self.name}",
            "node": self.name,
            "cluster": cluster,
        }
