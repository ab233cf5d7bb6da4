"""Devices served by our own cores, each in a process of its own (`strato-vhost-device`).

The program listens on one vhost-user socket for one device and ends when the front end has gone. It loses
no byte at a close, keeps half-closes, and its listener survives a reset of the guest.
"""

from collections.abc import Callable
from pathlib import Path

from ..boards.base import DevicePlan
from ..config import ShareConfig, VsockConfig
from ..errors import ConfigError
from ..processes import Process, ProcessTable
from .base import BackendStarter, PendingBackend


class StratoDeviceStarter(BackendStarter):
    """Starts strato-vhost-device for the vsock device or a share."""

    def __init__(self, program: Path, on_exit: Callable[[Process], None]) -> None:
        self._program = program
        self._on_exit = on_exit

    def start(self, device: DevicePlan, directory: Path, processes: ProcessTable) -> PendingBackend:
        """See `BackendStarter`. Raises HostError, ConfigError."""
        socket_path = directory / f"{device.id}.sock"
        match device.source:
            case VsockConfig() as vsock:
                name = "strato-vhost-device"
                arguments = vsock_arguments(self._program, vsock, socket_path)
            case ShareConfig() as share:
                if not share.directory.is_dir():
                    message = f"Directory {share.directory} of share {share.tag!r} does not exist"
                    raise ConfigError("shares", message)
                name = f"strato-vhost-device[{share.tag}]"
                arguments = share_arguments(self._program, share, socket_path)
            case other:
                raise AssertionError(other)
        # Sockets left by a VM that was killed are replaced by the program itself.
        process = processes.spawn(arguments, name=name, on_exit=self._on_exit)
        return PendingBackend(device, process, socket_path)


def vsock_arguments(program: Path, vsock: VsockConfig, socket_path: Path) -> list[str]:
    """Return the command line that serves the vsock device on ``socket_path``."""
    return [
        str(program),
        "vsock",
        *("--socket", str(socket_path)),
        *("--uds", str(vsock.socket)),
        *("--guest-cid", str(vsock.guest_cid)),
        "--once",
    ]


def share_arguments(program: Path, share: ShareConfig, socket_path: Path) -> list[str]:
    """Return the command line that serves the share on ``socket_path``."""
    return [
        str(program),
        "fs",
        *("--socket", str(socket_path)),
        *("--directory", str(share.directory)),
        *("--cache", str(share.cache)),
        *(["--readonly"] if share.readonly else []),
        *("--tag", share.tag),
        "--once",
    ]
