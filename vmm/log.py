"""strato-vmm's log: one line per event on standard error, ``level msg key=value …``.

The standard logging package costs more to import than the rest of the log's use; the shim passes these
lines on to containerd with their level. One `Log` per process, made by ``vmm.__main__``.
"""

import os
from enum import IntEnum

STDERR = 2
MAX_LINE = 4096  # below PIPE_BUF, so that lines of several writers do not mix


class Level(IntEnum):
    """Severity, with containerd's names."""

    DEBUG = 0
    INFO = 1
    WARN = 2
    ERROR = 3


class Log:
    """Writes lines at or above a level. A log that cannot be written never harms the VM."""

    def __init__(self, level: Level = Level.INFO, fd: int = STDERR) -> None:
        self._level = level
        self._fd = fd

    def debug(self, message: str, /, **fields: object) -> None:
        """Say what only a developer wants to know."""
        self._write(Level.DEBUG, message, fields)

    def info(self, message: str, /, **fields: object) -> None:
        """Say what happened."""
        self._write(Level.INFO, message, fields)

    def warn(self, message: str, /, **fields: object) -> None:
        """Say what went wrong without consequence for the VM."""
        self._write(Level.WARN, message, fields)

    def error(self, message: str, /, **fields: object) -> None:
        """Say what ended the VM, or failed a command."""
        self._write(Level.ERROR, message, fields)

    def _write(self, level: Level, message: str, fields: dict[str, object]) -> None:
        if level < self._level:
            return
        pairs = "".join(f" {key}={_quoted(str(value))}" for key, value in fields.items())
        line = f"{level.name.lower()} {_flat(message)}{pairs}".encode(errors="replace")
        try:
            os.write(self._fd, line[: MAX_LINE - 1] + b"\n")
        except OSError:
            self._fd = -1  # the reader is gone; later lines fail here quickly


def _flat(text: str) -> str:
    return "".join(character if character.isprintable() else "?" for character in text.replace("\n", " | "))


def _quoted(text: str) -> str:
    text = _flat(text)
    return f'"{text}"' if not text or " " in text or "=" in text else text
