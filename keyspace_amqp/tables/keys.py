"""The keys of the fallback lists: `keyspaceamqp:{tag}:fallback`, and of the lists of refused
events: `keyspaceamqp:{tag}:refused`.

The shim's OWN_KEY_* are made from these. Pure: imports nothing.
"""

from __future__ import annotations

PREFIX, SUFFIX, REFUSED_SUFFIX = b"keyspaceamqp:{", b"}:fallback", b"}:refused"


def tagged(tag: bytes) -> bytes:
    """Return the key of the list with this tag; the tag decides the slot."""
    return PREFIX + tag + SUFFIX


def refused_key(key: bytes) -> bytes:
    """Return the key of the list of refused events that belongs to this fallback list."""
    return key.removesuffix(SUFFIX) + REFUSED_SUFFIX


# The lists of a server that is not in a cluster.
KEY = tagged(b"0")
REFUSED_KEY = refused_key(KEY)


def is_own_key(key: bytes) -> bool:
    """True if a key has the form of the keys of our lists."""
    suffix = SUFFIX if key.endswith(SUFFIX) else REFUSED_SUFFIX
    return len(key) >= len(PREFIX) + len(suffix) and key.startswith(PREFIX) and key.endswith(suffix)
