"""The test ladder. `python -m tests.ladder` runs it; docs on each rung are in CONTRIBUTING.md."""
