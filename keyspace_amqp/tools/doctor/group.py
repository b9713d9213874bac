"""The checks that compare several servers: the nodes of a cluster, and the replicas of a primary
that is in none."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import redis

from ...counts import counted
from ...tables.parameters import PARAMETERS
from .. import nodes
from ..replies import mapping, reason
from .finding import OK, PROBLEM, UNKNOWN, WARNING, Finding
from .node import Facts, gather

# Parameters that differ from server to server.
_OWN = ("node-name",)
# Parameters that the module does not show. Redis' own CONFIG GET shows them to those who may.
_HIDDEN = tuple(parameter.name for parameter in PARAMETERS if parameter.sensitive)
# Characters of a value in a finding.
_SHOWN = 60


def cluster(client: Any) -> Iterator[Finding]:
    """Compare the nodes, as one of them sees them."""
    try:
        down = client.cluster("info").get("cluster_state") != "ok"
        rows = [mapping(row) for row in client.execute_command("KEYSPACEAMQP.CLUSTER")]
    except (redis.RedisError, OSError) as error:
        yield Finding("cluster", PROBLEM, f"KEYSPACEAMQP.CLUSTER: {reason(error)}")
        return
    if down:
        text = "its state is fail: lists can be neither written nor read"
        yield Finding("cluster", PROBLEM, text, "`redis-cli --cluster check`")
    known = [row for row in rows if row["state"] != "unknown"]
    for row in rows:
        if row not in known:
            text = f"missing: {row['address']}: {row['last_error']}"
            advice = "is it up, is the module loaded there?"
            yield Finding("cluster", PROBLEM, text, advice)
    if not down and len(known) == len(rows):
        yield Finding("cluster", OK, f"{counted(len(rows), 'node')}: each knows all others")
    for name, level, advice in (
        ("version", PROBLEM, "restart the nodes that have the older one"),
        ("config_version", WARNING, "look again in a moment; the nodes tell each other"),
    ):
        of = {row["address"]: row[name] for row in known}
        if len(set(of.values())) > 1:
            each = ", ".join(f"{address} {value}" for address, value in of.items())
            yield Finding("cluster", level, f"{name} differs: {each}", advice)


# ---- replicas outside of a cluster -----------------------------------------------------


def replicas(primary: nodes.Node, facts: Facts) -> Iterator[Finding]:
    """Compare the modules of a primary's replicas with the primary's, because a promoted replica
    works with its own parameters. `facts`: the primary's answers."""
    places = _places(facts)
    if not places or not facts.parameters:
        return
    secrets = _secrets(primary)
    others = [nodes.Node(place, nodes.sibling(primary.client, place)) for place in places]
    try:
        answers = nodes.ask(others, lambda node: (gather(node), _secrets(node)))
    finally:
        for node in others:
            node.client.close()
    alike = 0
    for node, answer in answers:
        if isinstance(answer, Exception):
            text = f"{node.address} does not answer: {reason(answer)}. Not looked at: whether its "
            text += "parameters are those of its primary"
            advice = "run this where its address can be reached, with a user that it knows too"
            yield Finding("replicas", UNKNOWN, text, advice)
            continue
        found = list(_compared(node.address, facts, secrets, *answer))
        alike += not found
        yield from found
    if alike:
        yield Finding("replicas", OK, f"{alike} of {len(places)} have the same parameters")


def _places(facts: Facts) -> list[str]:
    """Return the addresses of a primary's replicas, as it says them."""
    if facts.info.get("role") != "master":
        return []
    found = [facts.info.get(f"slave{number}") for number in range(facts.info["connected_slaves"])]
    return [f"{each['ip']}:{each['port']}" for each in found if isinstance(each, dict)]


def _secrets(node: nodes.Node) -> dict[str, str] | None:
    """Return the hidden parameters of a node, to be compared and never shown; None if nobody
    knows them: its user may not read them, or it does not answer any more."""
    names = [f"keyspaceamqp.{name}" for name in _HIDDEN]
    try:
        return mapping(node.client.execute_command("CONFIG GET", *names))  # type: ignore[no-untyped-call]
    except (redis.RedisError, OSError):
        return None


def _compared(
    address: str,
    primary: Facts,
    secrets: dict[str, str] | None,
    replica: Facts,
    its_secrets: dict[str, str] | None,
) -> Iterator[Finding]:
    """Compare a replica with its primary."""
    if replica.loaded is False:
        text = f"{address} does not have the module: once promoted, it captures no events"
        yield Finding("replicas", WARNING, text, "load the module there too")
        return
    if not replica.parameters:
        refusal = next((each.reason for each in replica.refused.values()), "no answer")
        text = f"{address}: {refusal}. Not looked at: whether its parameters are those of its "
        text += "primary"
        yield Finding("replicas", UNKNOWN, text, "allow KEYSPACEAMQP.CONFIG to the user there")
        return
    versions = [facts.info.get("keyspaceamqp_version") for facts in (replica, primary)]
    if None not in versions and len(set(versions)) > 1:
        text = "{} has version {} of the module, and this primary {}".format(address, *versions)
        yield Finding("replicas", WARNING, text, "install the same version on both")
    differ = []
    for name in primary.parameters.keys() & replica.parameters.keys() - {*_OWN, *_HIDDEN}:
        theirs, ours = replica.parameters[name], primary.parameters[name]
        if theirs != ours:
            differ.append(f"{name} {_cut(theirs)} (here {_cut(ours)})")
    differ.sort()
    if secrets is not None and its_secrets is not None:
        differ += [
            f"{name} (not shown)"
            for name in _HIDDEN
            if secrets.get(f"keyspaceamqp.{name}") != its_secrets.get(f"keyspaceamqp.{name}")
        ]
    if differ:
        text = f"{address} has other parameters than this primary: {', '.join(differ)}"
        advice = "outside of a cluster each server has its own. Set them alike on both, with "
        advice += "CONFIG SET and in the configuration file: a promoted replica works with its own"
        yield Finding("replicas", WARNING, text, advice)
    if secrets is None or its_secrets is None:
        text = f"{address}: not looked at: whether {' and '.join(_HIDDEN)} are those of its primary"
        yield Finding("replicas", UNKNOWN, text, "allow CONFIG GET to the user in --redis on both")


def _cut(value: str) -> str:
    """Return a value for people."""
    return repr(value if len(value) <= _SHOWN else f"{value[:_SHOWN]}…")
