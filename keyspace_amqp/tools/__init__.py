"""What the command line offers to look inside a running module. Never imported inside
Redis."""
