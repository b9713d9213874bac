"""What the handler imports, and when: the server waits for a load, and imports are most of it.

1. At load, on Redis' main thread: worker/loop.py and all that it imports at the top of files.
   tests/worker/test_imports.py lists what this may be of the standard library.
2. In the worker's first turn, when the load has ended: LATER, then pika with all that it imports
   (broker/late.py). Files that use a module of LATER import it inside a function.
3. After that nothing, if possible: an upgrade may have replaced the files of Python and of
   packages, and what is imported then may be missing or of another version. (A trial of nice.py
   imports subprocess during the load.)

Worker thread.
"""

from __future__ import annotations

import importlib

from . import log

# Modules of the standard library that the handler uses, and that take long to import: some do a lot
# themselves, others import many more.
LATER = (
    "datetime",  # CloudEvents
    "encodings.idna",  # names of hosts
    "hashlib",  # routing keys that are cut; with OpenSSL
    "logging",  # what libraries log
    "pathlib",  # leftovers; with urllib and ipaddress
    "traceback",  # exceptions; with tokenize
    "urllib.parse",  # CloudEvents; with ipaddress
)


def import_later() -> None:
    """Import LATER. What is missing is logged, and tried again by whoever needs it."""
    for name in LATER:
        try:
            importlib.import_module(name)
        except Exception as error:
            log.write("warning", f"{name} of Python's standard library is missing: {error}")
