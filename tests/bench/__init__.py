"""The benchmarks: `make bench`, `make bench-quick`, or `python -m tests.bench --help`.

On a shared machine absolute times are noise. So everything is measured side by side in one
run. Its rounds take turns (a bare Redis, one with a subscriber that does nothing, one with
the module, and again), and the result of a round is a ratio.
"""
