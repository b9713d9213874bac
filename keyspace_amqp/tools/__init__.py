"""The tools: the commands of `keyspace-amqp`. They run outside Redis, and most look into a
running module.

`table.py` declares them all; it, `parser.py`, `path.py` and `loadmodule.py` need the standard
library alone. This file does too.
"""


class ToolError(Exception):
    """A tool cannot do its work. The text says why, and what to do about it."""
