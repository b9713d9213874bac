"""The demos, and the servers that they and the tests start. Never imported inside Redis."""
