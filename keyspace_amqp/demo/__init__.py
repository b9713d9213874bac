"""The demos, and the servers that they start. Never imported inside Redis."""
