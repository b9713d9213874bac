"""Merge the replies of all nodes into one, which also names the nodes that did not answer.

Pure; worker thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..cluster.peers import Outcome
from .handler import Handler
from .replies import Reply, int_from_json

# From this node's reply, the peers' outcome and the words after the command's name.
Merge = Callable[[Handler, Reply, Outcome, Sequence[bytes]], Reply]


def coverage(handler: Handler, outcome: Outcome) -> dict[bytes, Reply]:
    """Return how many nodes carried the command out, of how many, and which did not."""
    members = handler.topology.nodes
    missing: list[Reply] = []
    for node_id, reason in outcome.missing.items():
        address = members[node_id].address if node_id in members else node_id
        missing.append(f"{address}: {reason}".encode("utf-8", "backslashreplace"))
    carried_out = 1 + len(outcome.answers)  # this node is one of them
    return {b"nodes": carried_out, b"of": carried_out + len(missing), b"missing": missing}


def with_coverage(handler: Handler, result: Reply, outcome: Outcome) -> Reply:
    """Return a result together with its coverage."""
    return {b"result": result, **coverage(handler, outcome)}


def sum_of(numbers: Iterable[Any]) -> int:
    """Return the sum of numbers that may come from peers."""
    return int_from_json(sum(map(int_from_json, numbers)))


def merge_same(handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]) -> Reply:
    """Report this node's reply, which is the same on all nodes."""
    return with_coverage(handler, reply, outcome)


def merge_sum(handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]) -> Reply:
    """Report the sum of all nodes' numbers."""
    return with_coverage(handler, sum_of([reply, *outcome.answers.values()]), outcome)
