"""What runs on the worker thread inside Redis."""
