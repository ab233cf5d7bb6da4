"""The shim's log: containerd's `log` fifo and bounded files, none of which may ever block.

Lines look like containerd's own (logrus text format), because containerd copies the fifo to its stderr:
`time="…" level=info msg="…" key=value`. Set up by server.py, once per daemon.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from pathlib import Path

from .early_log import VMM_LEVELS as VMM_LEVELS
from .early_log import deliver
from .early_log import fields as fields

FILE_LIMIT = 1 << 20
"""Bytes of shim.log; at half of it the file moves to shim.log.1, so that two halves are kept."""

VMM = "vmm"
"""The logger whose lines are strato-vmm's."""

_LEVELS = {"WARNING": "warning", "CRITICAL": "fatal"}


class LogrusFormatter(logging.Formatter):
    """logrus' text format."""

    def format(self, record: logging.LogRecord) -> str:
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        nanoseconds = int(record.created % 1 * 1e9)
        level = _LEVELS.get(record.levelname, record.levelname.lower())
        message = record.getMessage()
        if record.exc_info:
            message = f"{message}\n{self.formatException(record.exc_info)}"
        line = f'time="{seconds}.{nanoseconds:09d}Z" level={level} msg={_quoted(message, always=True)}'
        for key, value in getattr(record, "fields", {}).items():
            line += f" {key}={_quoted(str(value))}"
        return line


def _quoted(text: str, *, always: bool = False) -> str:
    plain = text and all(char.isalnum() or char in "-._/@^+:" for char in text)
    if plain and not always:
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return '"' + "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in escaped) + '"'


class DescriptorHandler(logging.Handler):
    """Writes lines to a non-blocking descriptor; a line that does not fit is dropped whole and counted."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self.dropped = 0

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record).encode("utf-8", "replace") + b"\n"
        try:
            # Up to PIPE_BUF a write to a fifo is all or nothing (pipe(7)).
            os.write(self._fd, line[:4095] + b"\n" if len(line) > 4096 else line)
        except OSError:
            self.dropped += 1


class BoundedFileHandler(logging.Handler):
    """Appends lines to a file of at most FILE_LIMIT bytes, together with its predecessor."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._size = os.fstat(self._fd).st_size

    def emit(self, record: logging.LogRecord) -> None:
        line = self.format(record).encode("utf-8", "replace") + b"\n"
        with contextlib.suppress(OSError):
            if self._size + len(line) > FILE_LIMIT // 2:
                self._path.replace(f"{self._path}.1")
                os.close(self._fd)
                self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                self._size = 0
            self._size += os.write(self._fd, line)


def set_up(level: str, fd: int = 2) -> None:
    """Send every logger to *fd* (the bundle's log fifo) from *level* on, first what early_log.py kept."""
    root = logging.getLogger()
    handler = DescriptorHandler(fd)
    handler.setFormatter(LogrusFormatter())
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.getLogger("asyncio").setLevel(logging.WARNING)
    deliver()


def add_files(shim_log: Path, vmm_log: Path) -> None:
    """Send strato-vmm's lines to the file *vmm_log* as well, and all others to *shim_log*."""
    own, vmm = BoundedFileHandler(shim_log), BoundedFileHandler(vmm_log)
    own.addFilter(lambda record: record.name != VMM)
    for handler, logger in ((own, None), (vmm, VMM)):
        handler.setFormatter(LogrusFormatter())
        logging.getLogger(logger).addHandler(handler)
