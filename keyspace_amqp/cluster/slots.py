"""The hash slots of Redis Cluster, and the key of the fallback list of each slot.

Pure; any thread.
"""

from __future__ import annotations

import binascii
import functools
from collections.abc import Sequence

from ..tables.keys import KEY, refused_key, tagged

SLOTS = 16384


def slot_of(key: bytes) -> int:
    """Return the slot of a key (Redis Cluster specification, "Hash tags")."""
    start = key.find(b"{")
    if start >= 0:
        end = key.find(b"}", start + 1)
        if end > start + 1:
            key = key[start + 1 : end]
    return binascii.crc_hqx(key, 0) % SLOTS


@functools.cache
def tags() -> Sequence[bytes]:
    """Return for each slot the smallest number that is a tag of the slot.

    The tag of `KEY` is one of them, in slot 13907.
    """
    found: list[bytes | None] = [None] * SLOTS
    missing, number = SLOTS, 0
    while missing:
        tag = b"%d" % number
        slot = binascii.crc_hqx(tag, 0) % SLOTS
        if found[slot] is None:
            found[slot] = tag
            missing -= 1
        number += 1
    return [tag for tag in found if tag is not None]


def keys_of(slot: int) -> tuple[bytes, bytes]:
    """Return the keys of both lists in a slot: of refused events, and the fallback list."""
    return refused_key(key_of(slot)), key_of(slot)


def key_of(slot: int) -> bytes:
    """Return the key of the list in a slot."""
    if slot == KEY_SLOT:
        return KEY
    return tagged(tags()[slot])


# The slot of the list of a server that is in no cluster.
KEY_SLOT = slot_of(KEY)
