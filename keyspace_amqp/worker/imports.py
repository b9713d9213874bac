"""What the handler imports, and when: the server waits for a load, and imports are most of it.

1. At load, on Redis' main thread: worker/loop.py and all that it imports at the top of files.
   tests/worker/test_imports.py lists what this may be of the standard library.
2. When the load has ended and the worker knows its lists, or when it connects: the modules below,
   then pika with all that it imports (broker/late.py). Files that use one of these modules import
   it inside a function.
3. After that nothing, if possible: an upgrade may have replaced the files of Python and of
   packages, and what is imported then may be missing or of another version. (A trial of nice.py
   imports subprocess during the load.)

Worker thread.
"""

from __future__ import annotations

from . import log


def import_later() -> None:
    """Import the modules of the standard library that the handler uses, and that take long to
    import: some do a lot, others import many more. Logs what is missing; whoever needs it tries
    again."""
    try:
        import datetime  # noqa: F401  # CloudEvents
        import encodings.idna  # noqa: F401  # names of hosts
        import hashlib  # noqa: F401  # routing keys that are cut; with OpenSSL
        import logging  # noqa: F401  # what libraries log
        import pathlib  # noqa: F401  # leftovers; with urllib and ipaddress
        import traceback  # noqa: F401  # exceptions; with tokenize
        import urllib.parse  # noqa: F401  # CloudEvents; with ipaddress
    except Exception as error:
        log.write("warning", f"Python's standard library is not complete: {error}")
