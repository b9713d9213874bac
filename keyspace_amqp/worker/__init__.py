"""The worker thread inside Redis: its loop, and the parts that only it uses."""
