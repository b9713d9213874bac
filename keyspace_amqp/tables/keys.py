"""The keys of the fallback lists; the shim's OWN_KEY_* are made from them.

Pure: imports nothing of the package.
"""

from __future__ import annotations

# The list of a server that is not in a cluster; cluster.py has the other keys. The
# shim knows keys of this form as ours (OWN_KEY_* in shim/module.c).
KEY = b"keyspaceamqp:{0}:fallback"
_OWN_PREFIX, _OWN_SUFFIX = b"keyspaceamqp:{", b"}:fallback"


def is_own_key(key: bytes) -> bool:
    """Whether the shim takes a key for one of ours."""
    middle = len(key) - len(_OWN_PREFIX) - len(_OWN_SUFFIX)
    return middle >= 0 and key.startswith(_OWN_PREFIX) and key.endswith(_OWN_SUFFIX)
