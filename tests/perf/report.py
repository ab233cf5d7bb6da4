"""Where figures go: standard output, a line at once."""


def say(text: str) -> None:
    """Prints one line at once."""
    print(text, flush=True)  # noqa: T201
