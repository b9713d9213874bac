"""The keys of the fallback lists: `keyspaceamqp:{tag}:fallback`.

The shim's OWN_KEY_PREFIX and OWN_KEY_SUFFIX are made from these. Pure: imports
nothing.
"""

from __future__ import annotations

PREFIX, SUFFIX = b"keyspaceamqp:{", b"}:fallback"


def tagged(tag: bytes) -> bytes:
    """Return the key of the list with this tag; the tag decides the slot."""
    return PREFIX + tag + SUFFIX


# The list of a server that is not in a cluster.
KEY = tagged(b"0")


def is_own_key(key: bytes) -> bool:
    """True if a key has the form of the keys of our lists."""
    return len(key) >= len(PREFIX) + len(SUFFIX) and key.startswith(PREFIX) and key.endswith(SUFFIX)
