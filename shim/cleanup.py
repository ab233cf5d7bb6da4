"""The `delete` verb: clean up after a shim that is gone, from what is on disk. Standard library only.

containerd kills it after five seconds, and waits for it in every removal of a container, also where the
shim has left nothing. So this module imports next to nothing (a test holds the list): the work that a
killed shim leaves is in leftovers.py. It asks no guest and no shim.

A shim that still runs holds the lock. For a member of a sandbox then only that container is ended, by
killing its holder, which the shim takes as an order. For the sandbox itself the caller has given the shim
up: it gets a moment to end, then it is killed.
"""

from __future__ import annotations

import os
import time

from . import names
from .params import ShimParams, encode_field

EXIT_STATUS = 128 + 9
END_TIMEOUT_S = 1.5
EXIT_GRACE_S = 0.5

# open and os.path here, because pathlib takes as long to import as the interpreter to start.
# ruff: noqa: PTH112, PTH123, PTH108, PTH110


def main(params: ShimParams) -> int:
    """Clean up and print containerd.task.v2.DeleteResponse. Returns the exit code."""
    bundle = params.bundle or "."
    group = names.group_of(bundle, params.id)
    is_sandbox = group == params.id
    sockets = _sockets(bundle, names.socket_path(params.address, params.namespace, group, params.socket_dir))
    pid = 0
    if is_sandbox and names.has_ended(bundle):
        _end_daemon(bundle, params.id)
    else:
        directory = names.state_dir(_state_root(), params.address, params.namespace, group)
        pid = _clean(directory, params.id, is_sandbox=is_sandbox)
        if is_sandbox:
            _end_every_daemon(bundle, params.id, sockets)
            # Made by a shim that was only coming up when we looked first.
            pid = _clean(directory, params.id, is_sandbox=True) or pid
    if is_sandbox:
        for path in sockets:
            _remove_socket(path)
    os.write(1, _answer(pid))
    return 0


def _state_root() -> str:
    from . import config_files

    if not config_files.files():
        return names.DEFAULT_STATE_ROOT
    from . import config
    from .errors import ConfigError

    try:
        return str(config.load_settings().shim.state_root)
    except ConfigError:
        return names.DEFAULT_STATE_ROOT


def _answer(pid: int) -> bytes:
    now_ns = time.time_ns()
    timestamp = encode_field(1, now_ns // 10**9) + encode_field(2, now_ns % 10**9)
    return encode_field(1, pid) + encode_field(2, EXIT_STATUS) + encode_field(3, timestamp)


def _clean(directory: str, container_id: str, *, is_sandbox: bool) -> int:
    if not os.path.isdir(directory):
        return 0
    from pathlib import Path

    from . import leftovers

    return leftovers.clean(Path(directory), container_id, is_sandbox=is_sandbox)


def _end_daemon(bundle: str, container_id: str) -> None:
    """End a shim that has not come as far as its state directory, or does not come to its end."""
    try:
        with open(f"{bundle}/shim.pid", "rb") as file:
            pid = int(file.read())
        pidfd = os.pidfd_open(pid)
    except (OSError, ValueError):
        return
    import _signal  # type: ignore[import-not-found]  # the part of signal that is compiled in
    import select

    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            words = file.read().split(b"\0")
        ours = b"run" in words and container_id.encode() in words
        # One that is ending already gets to deliver its last events.
        if ours and not select.select([pidfd], [], [], EXIT_GRACE_S)[0]:
            _signal.pidfd_send_signal(pidfd, 9)
            # Its listener must be gone before the socket is looked at.
            select.select([pidfd], [], [], END_TIMEOUT_S)
    except OSError:
        pass  # it has ended
    finally:
        os.close(pidfd)


def _end_every_daemon(bundle: str, container_id: str, sockets: set[str]) -> None:
    """As _end_daemon, also for one that has not written its pid yet (its `start` was killed): it listens."""
    deadline = time.monotonic() + END_TIMEOUT_S
    _end_daemon(bundle, container_id)
    while any(_listens(path) for path in sockets) and time.monotonic() < deadline:
        time.sleep(0.02)  # it writes shim.pid first of all
        _end_daemon(bundle, container_id)


def _sockets(bundle: str, default: str) -> set[str]:
    """Where the shim may listen."""
    try:
        with open(f"{bundle}/address") as file:
            return {default, file.read().removeprefix("unix://")}
    except OSError:
        return {default}


def _listens(path: str) -> bool | None:
    """Whether somebody listens on that socket; None when it does not exist or cannot be asked."""
    if not os.path.exists(path):
        return None
    import _socket

    probe = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
    try:
        probe.settimeout(0.5)
        probe.connect(path)
    except ConnectionRefusedError:
        return False
    except OSError:
        return None
    finally:
        probe.close()
    return True


def _remove_socket(path: str) -> None:
    """Remove a socket if nobody listens on it any more."""
    if _listens(path) is False:
        try:  # noqa: SIM105 (contextlib is not imported here)
            os.unlink(path)
        except OSError:
            pass
