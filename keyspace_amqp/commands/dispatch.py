"""From the words of a command to its reply, on this node or on all of them.

`answer` is called by the worker for commands of clients and of peers. Worker thread;
never waits: it yields the jobs and functions whose results it needs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

from ..cluster.peers import Outcome
from . import fallback, nodes, parameters, snapshot
from .arguments import shown, upper_word
from .handler import Call, Command, Handler, Steps, WaitForPeers
from .merging import Merge, merge_same, merge_sum
from .replies import CommandError

# Each name of tables/commands.py but HELP, which the shim answers alone.
COMMANDS: dict[str, Command] = {
    "CONNECT": parameters.connect,
    "DISCONNECT": parameters.disconnect,
    "CONFIG": parameters.config,
    "KEYMASK": parameters.keymask,
    "FALLBACK": fallback.fallback,
    "SNAPSHOT": snapshot.snapshot,
    "STATS": nodes.stats,
    "CLUSTER": nodes.cluster,
}

# The commands that run on every node, and how the replies become one.
MERGES: dict[tuple[str, str], Merge] = {
    ("FALLBACK", "LEN"): merge_sum,
    ("FALLBACK", "PEEK"): fallback.merge_elements,
    ("FALLBACK", "ASIDE"): fallback.merge_aside,
    ("FALLBACK", "DRAIN"): merge_sum,
    ("FALLBACK", "PURGE"): merge_sum,
    ("FALLBACK", "IMPORT"): merge_sum,
    ("SNAPSHOT", "START"): merge_sum,
    ("SNAPSHOT", "STOP"): merge_sum,
    ("STATS", "RESET"): merge_same,
    ("STATS", "CLUSTER"): nodes.merge_counters,
    ("CLUSTER", ""): nodes.merge_nodes,
}


def answer(handler: Handler, arguments: Sequence[bytes], *, asked: bool = False) -> Steps:
    """Carry out a command: yield what it waits for, return the reply.

    It runs on all nodes unless its last word is LOCAL. `asked`: a peer asked for it, so
    it runs on this node alone. Raises CommandError for every mistake of the client.
    """
    name, rest, local = _split(arguments)
    call = Call(handler, local or asked or not handler.clustered, asked, {})
    reply = yield from COMMANDS[name](call, rest)
    if call.local:
        return reply
    outcome: Outcome
    if call.registers:
        outcome = yield WaitForPeers(functools.partial(handler.tell, call.registers))
        return merge_same(handler, reply, outcome, rest)
    merge = MERGES.get((name, upper_word(rest)))
    if merge is None:
        return reply
    words = [arguments[0], *rest]
    outcome = yield WaitForPeers(functools.partial(handler.run_elsewhere, words))
    return merge(handler, reply, outcome, rest)


def _split(arguments: Sequence[bytes]) -> tuple[str, Sequence[bytes], bool]:
    """Return the command's name, its words without LOCAL, and whether LOCAL was given."""
    first, *rest = arguments or [b""]
    name = upper_word([first]).partition(".")[2]
    if name not in COMMANDS:  # a peer of another version asked for it
        raise CommandError(f"there is no command {shown(first)}")
    if rest and rest[-1].upper() == b"LOCAL" and not _is_key_local(rest):
        return name, rest[:-1], True
    return name, rest, False


def _is_key_local(rest: Sequence[bytes]) -> bool:
    """True for KEYMASK TEST or FALLBACK IMPORT with a key that is named LOCAL."""
    return len(rest) == 2 and rest[0].upper() in (b"TEST", b"IMPORT")
