"""Where the configuration lives. Light imports: the `start` verb only looks whether a word occurs."""

from __future__ import annotations

import os

DEFAULT_FILE = "/etc/strato/config.toml"
ENVIRONMENT = "STRATO_CONFIG"
"""Names another configuration file; its drop-ins are then in `config.d` beside it."""


def files() -> list[str]:
    """The configuration files that exist, in the order in which later ones override earlier ones."""
    main = os.environ.get(ENVIRONMENT) or DEFAULT_FILE
    found = [main] if os.path.exists(main) else []  # noqa: PTH110
    drop_ins = f"{main.rpartition('/')[0] or '.'}/config.d"
    try:
        entries = sorted(os.listdir(drop_ins))  # noqa: PTH208
    except OSError:
        entries = []
    return found + [f"{drop_ins}/{entry}" for entry in entries if entry.endswith(".toml")]


def mention(word: bytes, further: str = "") -> bool:
    """Whether *word* occurs in any configuration file or in the file *further*.

    An unreadable file counts as a mention, so that the real parser gets to say what is wrong with it.
    """
    for path in files() + ([further] if further else []):
        try:
            with open(path, "rb") as file:  # noqa: PTH123
                if word in file.read():
                    return True
        except OSError:
            return True
    return False
