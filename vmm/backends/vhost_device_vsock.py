"""The vsock device served by the crate vhost-device-vsock (0.3.0).

It speaks Firecracker's protocol on the unix socket. It is weak on half-close and on data buffered at
close; the byte counts on the agent's control channel make that harmless.
"""

from collections.abc import Callable
from pathlib import Path

from .. import paths
from ..boards.base import DevicePlan
from ..config import VsockConfig
from ..processes import Process, ProcessTable
from .base import BackendStarter, PendingBackend


class VhostDeviceVsockStarter(BackendStarter):
    """Starts vhost-device-vsock."""

    def __init__(self, program: Path | None, on_exit: Callable[[Process], None]) -> None:
        self._program = program
        self._on_exit = on_exit

    def start(self, device: DevicePlan, directory: Path, processes: ProcessTable) -> PendingBackend:
        """See `BackendStarter`. Raises HostError."""
        vsock = device.source
        assert isinstance(vsock, VsockConfig)
        program = self._program or paths.vhost_device_vsock()
        socket_path = directory / f"{device.id}.sock"
        socket_path.unlink(missing_ok=True)
        vsock.socket.unlink(missing_ok=True)  # left by a VM that was killed
        process = processes.spawn(
            arguments(program, vsock, socket_path), name="vhost-device-vsock", on_exit=self._on_exit
        )
        return PendingBackend(device, process, socket_path)


def arguments(program: Path, vsock: VsockConfig, socket_path: Path) -> list[str]:
    """Return the command line that serves that device on ``socket_path``."""
    return [
        str(program),
        f"--guest-cid={vsock.guest_cid}",
        f"--socket={socket_path}",
        f"--uds-path={vsock.socket}",
    ]
