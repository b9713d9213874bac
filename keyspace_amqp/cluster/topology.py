"""The nodes of the cluster and the slots of this one, read from CLUSTER NODES.

Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set

from ..values import value
from .slots import KEY_SLOT, SLOTS

# Flags of CLUSTER NODES.
_MYSELF = "myself"
_NO_MEMBER = "handshake"
# `fail?`: the node does not answer this one. This one does not wait; the node catches up later.
_FAILING = frozenset({"fail", "fail?", "noaddr"})


@value
class Node:
    """A member of the cluster."""

    id: str
    address: str  # host:port for clients
    primary: bool
    failing: bool


@value
class Topology:
    """The cluster as CLUSTER NODES shows it.

    `myself`: the id of this node. `served`: the slots of this node. `migrating`: those of
    them that are moving to another node. `inherited`: of a replica, the slots of its primary, which
    it may have to take over.
    """

    myself: str
    nodes: Mapping[str, Node]
    served: Set[int]
    migrating: Set[int] = frozenset()
    inherited: Set[int] = frozenset()


# For a server that is in no cluster; one slot stands for all of its data.
_SLOT = frozenset({KEY_SLOT})
ALONE = Topology("", {"": Node("", "", primary=True, failing=False)}, _SLOT, inherited=_SLOT)


def _slots(first: str, last: str) -> range:
    """Return the slots from the first to the last. Raises ValueError if they do not exist."""
    slots = range(int(first), int(last) + 1)
    if not slots or slots[0] < 0 or slots[-1] >= SLOTS:
        raise ValueError(f"there are no slots {first!r} to {last!r}")
    return slots


def read_topology(text: str) -> Topology:
    """Return the topology in a reply of CLUSTER NODES. Raises ValueError if it has none."""
    nodes: dict[str, Node] = {}
    slots: dict[str, Sequence[str]] = {}  # by node, as words
    myself = primary = ""  # this node; its primary, if it is a replica
    migrating: set[int] = set()
    for line in text.splitlines():
        words = line.split(" ")
        if len(words) < 8:
            raise ValueError(f"{line!r} is not a line of CLUSTER NODES")
        node_id, address, flags = words[0], words[1], frozenset(words[2].split(","))
        slots[node_id] = words[8:]
        if _MYSELF in flags:
            myself, primary = node_id, words[3]
            for word in words[8:]:
                slot, leaves, _ = word.removeprefix("[").partition("->-")
                if leaves:
                    migrating.update(_slots(slot, slot))
        elif _NO_MEMBER in flags:
            continue
        nodes[node_id] = Node(
            node_id, address.partition("@")[0], "master" in flags, bool(flags & _FAILING)
        )
    if not myself:
        raise ValueError("CLUSTER NODES does not say which node this is")
    served, inherited = (_all_slots(slots.get(node, ())) for node in (myself, primary))
    return Topology(myself, nodes, served, migrating, inherited)


def _all_slots(words: Sequence[str]) -> set[int]:
    """Return the slots in the last words of a line. Raises ValueError."""
    ranges = (word.partition("-") for word in words if not word.startswith("["))
    return {slot for first, _, last in ranges for slot in _slots(first, last or first)}
