"""The worker's answers to KEYSPACEAMQP.* commands."""
