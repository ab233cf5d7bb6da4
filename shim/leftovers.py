"""What a shim leaves in its state directory when it was killed: found in state.json, checked, removed.

Used by cleanup.py when there is something left, and by the daemon for its own directory. Standard library
only; processes are named by pid and start time, mounts and taps have died with the processes that held them.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import stat
import time
from collections.abc import Iterable
from pathlib import Path

from . import cgroups, state
from .errors import HostError

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from typing import Any

# Names of layout.py. The files of the first may be somebody's, if a mount has survived.
SHARED_NAME = "shared"
RUNTIME_NAME = "vmm"

LOCK_TIMEOUT_S = 1.5
KILL_TIMEOUT_S = 1.5


def clean(directory: Path, container_id: str, *, is_sandbox: bool) -> int:
    """End and remove what is left of a container, or of the whole sandbox; its task pid, 0 when unknown."""
    data = state.load(directory)
    entry = (data.get("containers") or {}).get(container_id) or {}
    holder = entry.get("holder") or {}
    lock_fd = state.lock(directory)
    if lock_fd is None and not is_sandbox:
        _kill([holder])
        return int(holder.get("pid", 0))
    if lock_fd is None:
        lock_fd = _wait_for_lock(directory)
    if lock_fd is None:
        _kill([data.get("shim") or {}])
        lock_fd = _wait_for_lock(directory)
    if not directory.is_dir():
        return int(holder.get("pid", 0))  # the shim came to its end after all
    data = state.load(directory) or data
    containers = (data.get("containers") or {}).values()
    _kill([data.get("vmm") or {}, *((item.get("holder") or {}) for item in containers), holder])
    created = [path for path in data.get("cgroups") or [] if isinstance(path, str)]
    with contextlib.suppress(HostError):
        cgroups.remove(path for path in created if path.startswith("/sys/fs/cgroup/"))
    remove_tree(str(directory))
    return int(holder.get("pid", 0))


def _wait_for_lock(directory: Path) -> int | None:
    deadline = time.monotonic() + LOCK_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            fd = state.lock(directory)
        except FileNotFoundError:
            return None
        if fd is not None:
            return fd
        time.sleep(0.02)  # flock has no deadline; SIGALRM would be worse
    return None


def _kill(entries: Iterable[dict[str, Any]]) -> None:
    """SIGKILL the processes written down in *entries*, if they are still the same, and see them gone."""
    pidfds = []
    for entry in entries:
        pid, start_time = entry.get("pid", 0), entry.get("start_time", 0)
        if not isinstance(pid, int) or pid <= 1:
            continue
        try:
            pidfd = os.pidfd_open(pid)
        except OSError:
            continue
        # The pidfd pins the process, so that a start time read now is that of the process it names.
        if start_time and state.start_time_of(pid) == start_time:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            pidfds.append(pidfd)
        else:
            os.close(pidfd)
    deadline = time.monotonic() + KILL_TIMEOUT_S
    for pidfd in pidfds:
        select.select([pidfd], [], [], max(0.0, deadline - time.monotonic()))
        os.close(pidfd)


def remove_tree(path: str) -> None:
    """Remove a state directory: everything of ours, never anything below a mount point.

    A leftover mount (of a mount namespace that somebody else keeps alive) must not cost anyone's files, so
    that only this file system is walked and directories of a share are removed only when they are empty.
    """
    with contextlib.suppress(OSError):
        device = os.lstat(path).st_dev
        _flatten(path, RUNTIME_NAME, device)
        _remove_below(path, device, in_share=False)
    with contextlib.suppress(OSError):
        os.rmdir(path)  # noqa: PTH106


def _flatten(top: str, name: str, device: int) -> None:
    """Move every directory below *top*/*name* up to *top*.

    strato-vmm writes there, and one that has been taken over could nest more directories than a path can
    name or a recursion reach.
    """
    waiting = [f"{top}/{name}"]
    while waiting:
        directory = waiting.pop()
        with contextlib.suppress(OSError):
            if os.lstat(directory).st_dev != device:
                continue
            for entry in os.scandir(directory):
                if entry.is_dir(follow_symlinks=False):
                    moved = f"{top}/.moved-{os.urandom(8).hex()}"
                    os.rename(entry.path, moved)  # noqa: PTH104
                    waiting.append(moved)


def _remove_below(path: str, device: int, *, in_share: bool) -> None:
    for entry in os.scandir(path):
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if status.st_dev == device:
                shared = in_share or entry.name == SHARED_NAME
                with contextlib.suppress(OSError):
                    _remove_below(entry.path, device, in_share=shared)
            with contextlib.suppress(OSError):
                os.rmdir(entry.path)  # noqa: PTH106
        elif not in_share or status.st_size == 0:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)  # noqa: PTH108
