"""state.json: what the `delete` verb needs when nobody answers any more; and the lock of a state directory.

Written by the daemon on every change, atomically; read by leftovers.py, by `strato ps` and its siblings
(vmm/cli/sandboxes.py) and the benchmark. Only the standard library, and little of it.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from pathlib import Path

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from typing import Any

VERSION = 1
FILE_NAME = "state.json"
LOCK_NAME = "lock"


def start_time_of(pid: int) -> int:
    """Field `starttime` of /proc/PID/stat in clock ticks since boot; 0 when there is no such process.

    Together with the pid it names a process for ever (proc(5)).
    """
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return 0
    # The name in parentheses may hold anything, so count from its end; starttime is the 22nd field.
    return int(stat.rpartition(b")")[2].split()[19])


def process_entry(pid: int) -> dict[str, int]:
    """How a process is written down."""
    return {"pid": pid, "start_time": start_time_of(pid)}


class StateFile:
    """The sandbox's state.json. `data` is changed in place and then saved."""

    def __init__(self, directory: Path) -> None:
        self._path = directory / FILE_NAME
        self.data: dict[str, Any] = {"version": VERSION, "created_at": time.time()}

    def save(self) -> None:
        """Write `data`, whole or not at all. Raises OSError."""
        temporary = self._path.with_suffix(".tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps(self.data, indent=1, default=str).encode())
        finally:
            os.close(fd)
        temporary.rename(self._path)


def load(directory: Path) -> dict[str, Any]:
    """The state written last; empty when there is none or it cannot be read as such."""
    try:
        data = json.loads((directory / FILE_NAME).read_bytes())
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) and data.get("version") == VERSION else {}


def lock(directory: Path) -> int | None:
    """Take the lock of a state directory; its descriptor, or None while a live shim holds it.

    The lock ends with the last descriptor, so it is never passed to a child. Raises OSError.
    """
    fd = os.open(directory / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd
