"""OCI hooks. None is run yet: a spec with hooks is refused, by the JSON path of the first one.

A hook that is silently skipped would leave the container half set up (without its network, for one), so
there is no mode that ignores them. The refusals themselves are rows of `coverage`; `names` lists them for
messages and tests.
"""

from .coverage import tree


def names() -> tuple[str, ...]:
    """The hook kinds of the specification, in the order of the container's life."""
    return tuple(tree().children["hooks"].children)
