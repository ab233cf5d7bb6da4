"""Shares served by QEMU's C virtiofsd, one process per share.

The process stays in strato-vmm's mount namespace (``sandbox=chroot``), a recursive slave of the shim's, so
that mounts made later below the shared folder become visible to the guest (``announce_submounts`` gives
each its own device number there).
"""

import os
import socket
from collections.abc import Callable
from pathlib import Path

from .. import paths
from ..boards.base import DevicePlan
from ..config import ShareConfig
from ..errors import ConfigError, HostError
from ..processes import Process, ProcessTable
from .base import BackendStarter, PendingBackend


class VirtiofsdStarter(BackendStarter):
    """Starts virtiofsd for a share."""

    def __init__(self, program: Path | None, on_exit: Callable[[Process], None]) -> None:
        self._program = program
        self._on_exit = on_exit

    def start(self, device: DevicePlan, directory: Path, processes: ProcessTable) -> PendingBackend:
        """See `BackendStarter`. Raises HostError, ConfigError."""
        share = device.source
        assert isinstance(share, ShareConfig)
        if share.directory is None:
            raise ConfigError("shares", f"Share {share.tag!r} has no directory, which virtiofsd cannot serve")
        if not share.directory.is_dir():
            raise ConfigError("shares", f"Directory {share.directory} of share {share.tag!r} does not exist")
        program = self._program or paths.virtiofsd()
        source = share.directory
        if share.readonly:
            source = _readonly_view(share.tag, source, directory / f"{device.id}.ro")
        socket_path = directory / f"{device.id}.sock"
        socket_path.unlink(missing_ok=True)
        # Listening before the start lets the front end connect at once.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as listener:
            try:
                listener.bind(str(socket_path))
            except OSError as error:
                raise HostError(f"Socket {socket_path} cannot be made") from error
            listener.listen(1)
            process = processes.spawn(
                arguments(program, share, source, listener.fileno()),
                name=f"virtiofsd[{share.tag}]",
                pass_fds=(listener.fileno(),),
                on_exit=self._on_exit,
            )
        return PendingBackend(device, process, socket_path)


def arguments(program: Path, share: ShareConfig, source: Path, listener_fd: int) -> list[str]:
    """Return the command line that serves ``source`` as that share."""
    options = {
        "source": str(source).replace("\\", "\\\\").replace(",", "\\,"),  # libfuse's option escapes
        "cache": str(share.cache),
    }
    switches = (
        "xattr",
        "announce_submounts",
        "writeback" if share.writeback else "no_writeback",
        *(("posix_lock", "flock") if share.remote_locks else ("no_posix_lock", "no_flock")),
        "sandbox=chroot",
        "log_level=err",  # it reports the start and stop of each queue as information
    )
    command = [str(program), "-f", f"--fd={listener_fd}"]
    for name, value in options.items():
        command += ["-o", f"{name}={value}"]
    for switch in switches:
        command += ["-o", switch]
    return command


def _readonly_view(tag: str, directory: Path, view: Path) -> Path:
    # virtiofsd 7.2 has no read-only mode. The mount is visible in our mount namespace only, and dies with it.
    if os.getpid() != 1:
        raise ConfigError(
            "shares",
            f"Share {tag!r} is read-only, which needs strato-vmm in a mount namespace of its own: "
            "start it through strato-launch",
        )
    from ..sys import mount

    view.mkdir(mode=0o700, exist_ok=True)
    try:
        mount(str(directory), str(view), "", MS_BIND | MS_REC, "")
        mount("", str(view), "", MS_BIND | MS_REMOUNT | MS_RDONLY, "")
    except OSError as error:
        raise HostError(f"Read-only view of {directory} cannot be mounted") from error
    return view


# <linux/mount.h>
MS_RDONLY = 0x1
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
