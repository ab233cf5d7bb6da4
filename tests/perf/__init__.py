"""Measurements: ratios inside one run, never stored numbers. Run by `python -m tests.perf`."""
