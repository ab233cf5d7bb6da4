"""Starting processes: strato-vmm through strato-launch, holders, and whatever else the shim runs.

Never forks: posix_spawn only. Everything started here is a child of the shim (strato-launch clones its
program as a sibling of itself) and is reaped by the one `Reaper`, so that a pid in the shim's hands is
never a recycled one. Imported before asyncio; everything here is synchronous and bounded in time.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vmm.record import record

from .errors import HostError

STATUS_TIMEOUT_S = 20.0
"""For the status line of strato-launch and strato-holder: fork, namespaces and exec, on a loaded machine."""

_STATUS_LIMIT = 4096
_CLEAN_ENVIRONMENT = ("PATH", "LANG", "LC_ALL", "TMPDIR", "STRATO_LIBRARY_DIR", "STRATO_CONFIG")


@record(frozen=True)
class VmCommand:
    """How to start strato-vmm."""

    config_fd: int
    qmp_fd: int
    log_fd: int
    tap_fds: tuple[int, ...]
    cgroups: tuple[Path, ...]
    log_level: str
    jail: tuple[str, ...]
    """strato-launch's options for a root of its own (`vmm.jail.view`); none without the jail."""


def clean_environment() -> dict[str, str]:
    """The environment of processes that are no business of containerd's."""
    return {name: os.environ[name] for name in _CLEAN_ENVIRONMENT if name in os.environ}


def spawn(
    argv: Sequence[str],
    *,
    fds: Mapping[int, int],
    environment: Mapping[str, str] | None = None,
) -> int:
    """Start *argv* with exactly the descriptors *fds* (number in the child -> ours); return its pid.

    Signals that Python ignores are at their defaults in the child. Raises HostError.
    """
    first = 200
    # Two rounds of dup2, so that no target overwrites a source that is still needed.
    actions: list[tuple[int, int, int] | tuple[int, int]] = []
    for index, source in enumerate(fds.values()):
        actions.append((os.POSIX_SPAWN_DUP2, source, first + index))
    for index, target in enumerate(fds):
        actions.append((os.POSIX_SPAWN_DUP2, first + index, target))
        actions.append((os.POSIX_SPAWN_CLOSE, first + index))
    try:
        return os.posix_spawn(
            argv[0],
            list(argv),
            dict(clean_environment() if environment is None else environment),
            file_actions=actions,
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
            setsigmask=[],
        )
    except OSError as error:
        raise HostError(f"Cannot start {argv[0]}: {error.strerror}") from error


def launch_vmm(launcher: Path, command: VmCommand) -> int:
    """Start strato-vmm in its own namespaces and in the sandbox's cgroup; return its host pid.

    Raises HostError with strato-launch's words.
    """
    from vmm import sys as native
    from vmm.jail.view import command as vmm_command

    arguments = ["--new", "pid,mount,ipc,uts,net", "--mount-proc", "--die-with-parent"]
    arguments += command.jail
    for directory in command.cgroups:
        arguments += ["--cgroup", str(directory)]
    program = [*vmm_command(), "--config", str(command.config_fd)]
    program += ["--qmp-fd", str(command.qmp_fd), "--log-level", command.log_level]
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        launched = native.launch(
            str(launcher),
            [*arguments, "--", *program],
            pass_fds=(command.config_fd, command.qmp_fd, *command.tap_fds),
            stdio=(null, null, command.log_fd),
            env=clean_environment(),
        )
    except native.LaunchError as error:
        raise HostError(f"Cannot start strato-vmm: {error}") from error
    finally:
        os.close(null)
    return launched.pid


def start_holder(holder: Path, *, netns: str | None, title: str, cgroups: Sequence[Path], log_fd: int) -> int:
    """Start a holder in network namespace *netns* (None: a new one); return its pid once it is in there.

    Raises HostError with strato-holder's words.
    """
    argv = [str(holder), "--die-with-parent", "--name", title]
    argv += ["--netns", netns] if netns else ["--new-netns"]
    for directory in cgroups:
        argv += ["--cgroup", str(directory)]
    pid, line = _spawn_with_status(argv, log_fd)
    if line != "ready":
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        word, _, value = line.partition(" ")
        reason = value if word == "error" else "strato-holder ended without a word"
        raise HostError(f"Cannot hold the network namespace {netns or '(new)'}: {reason}")
    return pid


def _spawn_with_status(argv: list[str], log_fd: int) -> tuple[int, str]:
    """Spawn *argv* with `--status-fd`; return (pid, first line of status without its end)."""
    reading, writing = os.pipe2(os.O_CLOEXEC)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    try:
        command = [*argv, "--status-fd", "3"]
        pid = spawn(command, fds={0: null, 1: null, 2: log_fd, 3: writing})
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
        os.close(null)
    try:
        return pid, _read_line(reading)
    finally:
        os.close(reading)


def _read_line(fd: int) -> str:
    deadline = time.monotonic() + STATUS_TIMEOUT_S
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    data = b""
    while b"\n" not in data and len(data) < _STATUS_LIMIT:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not poll.poll(remaining * 1000):
            break
        part = os.read(fd, _STATUS_LIMIT)
        if not part:
            break
        data += part
    return data.partition(b"\n")[0].decode("utf-8", "replace")


class Reaper:
    """Collects every child that ends, and tells whoever waits for it.

    `reap` is called on SIGCHLD. Children nobody waits for (orphans of the namespaces, since the shim is a
    subreaper) are collected all the same. Signals go through `kill`, which refuses pids already collected.
    """

    def __init__(self) -> None:
        self._waiting: dict[int, Callable[[int], None]] = {}

    def watch(self, pid: int, callback: Callable[[int], None]) -> None:
        """Call *callback* with the wait status of child *pid* once, when it has ended.

        To be called before `reap` can run, that is without leaving the loop after starting the child.
        """
        self._waiting[pid] = callback

    def reap(self) -> None:
        """Collect all ended children."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            callback = self._waiting.pop(pid, None)
            if callback is not None:
                callback(status)

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        """Signal the watched child *pid*; nothing happens once it has been collected."""
        if pid in self._waiting:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
