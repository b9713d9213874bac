"""What the command line offers to look inside a running module. Never imported inside
Redis; this file needs the standard library alone."""


class ToolError(Exception):
    """What a tool cannot do; the text says what to do about it."""
