"""STATS RESET, STATS CLUSTER and CLUSTER: the counters and states of the nodes.

Worker thread; never waits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..cluster.peers import Outcome
from ..tables.stats import Stat
from .arguments import split_subcommand, wrong_arguments
from .handler import Call, Handler, at_once
from .merging import coverage, sum_of
from .replies import Reply, bytes_from_json, int_from_json


@at_once
def stats(call: Call, rest: Sequence[bytes]) -> Reply:
    """STATS RESET, STATS CLUSTER."""
    subcommand, more = split_subcommand("STATS", rest)
    if subcommand == "CLUSTER" and not more:
        if call.asked:
            return {name.encode(): number for name, number in call.handler.counters().items()}
        return merge_counters(call.handler, None, Outcome(), rest)
    if subcommand != "RESET" or more:
        raise wrong_arguments("STATS")
    call.handler.reset_stats()
    return "OK"


@at_once
def cluster(call: Call, rest: Sequence[bytes]) -> Reply:
    """CLUSTER: a row for each node."""
    if rest:
        raise wrong_arguments("CLUSTER")
    if call.asked:
        return _row(call.handler.node_state())
    return merge_nodes(call.handler, None, Outcome(), rest)


def merge_counters(
    handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]
) -> Reply:
    """Return the sums of all nodes' counters, with the coverage."""
    answers = [answer for answer in outcome.answers.values() if isinstance(answer, dict)]
    counters: list[Mapping[str, Any]] = [handler.counters(), *answers]
    names = [stat.name.lower() for stat in Stat]
    sums = {name.encode(): sum_of(each.get(name) for each in counters) for name in names}
    return {**coverage(handler, outcome), **sums}


def merge_nodes(handler: Handler, reply: Reply, outcome: Outcome, rest: Sequence[bytes]) -> Reply:
    """Return a row for each node of the cluster, in the order of their addresses."""
    topology, own_state = handler.topology, handler.node_state()
    rows: list[Reply] = []
    for node in sorted(topology.nodes.values(), key=lambda node: node.address):
        answer = outcome.answers.get(node.id)
        state: Mapping[str, str | int]
        if node.id == topology.myself:
            state = own_state
        elif isinstance(answer, dict):
            state = {name: _from_peer(answer.get(name)) for name in own_state}
        else:
            state = {
                **dict.fromkeys(own_state, ""),
                "role": "primary" if node.primary else "replica",
                "state": "unknown",
                "last_error": outcome.missing.get(node.id, "not asked"),
            }
        rows.append({b"id": node.id.encode(), b"address": node.address.encode(), **_row(state)})
    return rows


def _row(state: Mapping[str, str | int]) -> dict[bytes, Reply]:
    return {
        name.encode(): value if isinstance(value, int) else value.encode("utf-8", "replace")
        for name, value in state.items()
    }


def _from_peer(value: Any) -> str | int:
    if isinstance(value, int):
        return int_from_json(value)
    return bytes_from_json(value).decode("utf-8", "replace")
