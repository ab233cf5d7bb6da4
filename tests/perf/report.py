"""Where figures go: standard output, a line at once."""

OVER = "Over budget: "
"""How the last line of a run begins that has found something."""


def say(text: str) -> None:
    """Prints one line at once."""
    print(text, flush=True)  # noqa: T201
