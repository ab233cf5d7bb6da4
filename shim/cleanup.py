"""The `delete` verb: clean up after a shim that is gone, from what is on disk. Standard library only.

containerd kills it after five seconds. It asks no guest and no shim: processes are found in state.json
and checked by their start time, mounts and taps have died with the processes that held them.

A shim that still runs holds the lock. For a member of a sandbox then only that container is ended, by
killing its holder, which the shim takes as an order. For the sandbox itself the caller has given the shim
up: it gets a moment to end, then it is killed.
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
from typing import Any

from . import cgroups, config, names, state
from .errors import ConfigError, HostError
from .params import ShimParams, encode_field

EXIT_STATUS = 128 + signal.SIGKILL
LOCK_TIMEOUT_S = 1.5
KILL_TIMEOUT_S = 1.5
EXIT_GRACE_S = 0.5


def main(params: ShimParams) -> int:
    """Clean up and print containerd.task.v2.DeleteResponse. Returns the exit code."""
    bundle = params.bundle or "."
    group = names.group_of(bundle, params.id)
    try:
        state_root = str(config.load_settings().shim.state_root)
    except ConfigError:
        state_root = names.DEFAULT_STATE_ROOT
    directory = Path(names.state_dir(state_root, params.address, params.namespace, group))
    pid = 0
    if directory.is_dir():
        pid = _clean(directory, params.id, is_sandbox=group == params.id)
    if group == params.id:
        _end_daemon(bundle, params.id)
        if directory.is_dir():
            # Made by a shim that was only coming up when we looked first.
            pid = _clean(directory, params.id, is_sandbox=True) or pid
        _remove_socket(bundle, names.socket_path(params.address, params.namespace, group, params.socket_dir))
    os.write(1, _answer(pid))
    return 0


def _answer(pid: int) -> bytes:
    now_ns = time.time_ns()
    timestamp = encode_field(1, now_ns // 10**9) + encode_field(2, now_ns % 10**9)
    return encode_field(1, pid) + encode_field(2, EXIT_STATUS) + encode_field(3, timestamp)


def _clean(directory: Path, container_id: str, *, is_sandbox: bool) -> int:
    """Returns the container's task pid, 0 when unknown."""
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


def _end_daemon(bundle: str, container_id: str) -> None:
    """End a shim that has not come as far as its state directory, or does not come to its end."""
    try:
        pid = int(Path(bundle, "shim.pid").read_text())
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        ours = b"run" in words and container_id.encode() in words
        # One that is ending already gets to deliver its last events.
        if ours and not select.select([pidfd], [], [], EXIT_GRACE_S)[0]:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            # Its listener must be gone before the socket is looked at.
            select.select([pidfd], [], [], KILL_TIMEOUT_S)
    except OSError:
        pass  # it has ended
    finally:
        os.close(pidfd)


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


def _remove_socket(bundle: str, default: str) -> None:
    """Remove the shim's socket if nobody listens on it any more."""
    import socket

    try:
        address = Path(bundle, "address").read_text().removeprefix("unix://")
    except OSError:
        address = default
    for path in {address, default}:
        probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            probe.settimeout(0.5)
            probe.connect(path)
        except ConnectionRefusedError:
            with contextlib.suppress(OSError):
                os.unlink(path)  # noqa: PTH108
        except OSError:
            pass
        finally:
            probe.close()


def remove_tree(path: str) -> None:
    """Remove a state directory: everything of ours, never anything below a mount point.

    A leftover mount (of a mount namespace that somebody else keeps alive) must not cost anyone's files, so
    that only this file system is walked and directories of a share are removed only when they are empty.
    """
    with contextlib.suppress(OSError):
        _remove_below(path, os.lstat(path).st_dev, depth=0)
    with contextlib.suppress(OSError):
        os.rmdir(path)  # noqa: PTH106


def _remove_below(path: str, device: int, *, depth: int) -> None:
    in_share = depth >= 2 and "/shared/" in f"{path}/"
    for entry in os.scandir(path):
        status = entry.stat(follow_symlinks=False)
        if stat.S_ISDIR(status.st_mode):
            if status.st_dev == device:
                with contextlib.suppress(OSError):
                    _remove_below(entry.path, device, depth=depth + 1)
            with contextlib.suppress(OSError):
                os.rmdir(entry.path)  # noqa: PTH106
        elif not in_share or status.st_size == 0:
            with contextlib.suppress(OSError):
                os.unlink(entry.path)  # noqa: PTH108
