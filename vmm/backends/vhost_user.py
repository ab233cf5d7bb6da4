"""All devices of one QEMU: our own cores, and the reference programs that the configuration names.

Made by engine tcg for one `build`. Programs are all started before one is waited for: they come up side by
side.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ..boards.base import DeviceKind, DevicePlan, MachinePlan
from ..config import ProgramsConfig
from ..processes import Process, ProcessTable
from .base import Backend, BackendStarter, PendingBackend
from .in_process import DeviceServer

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any

OWN_KINDS = frozenset({DeviceKind.VSOCK, DeviceKind.RNG, DeviceKind.BLOCK, DeviceKind.FS, DeviceKind.NET})
"""The devices that our own cores serve to QEMU."""


class VhostUserBackends:
    """See the module's docstring. ``on_exit`` hears of the end of a program."""

    def __init__(
        self, programs: ProgramsConfig, devices: DeviceServer, *, on_exit: Callable[[Process], None]
    ) -> None:
        self._programs = programs
        self._devices = devices
        self._on_exit = on_exit
        self._backends: list[Backend] = []

    def start(self, plan: MachinePlan, directory: Path, processes: ProcessTable) -> None:
        """Begin to serve every device that QEMU does not have itself. Raises ConfigError, HostError."""
        pending: list[PendingBackend] = []
        for device in plan.devices:
            starter = self._starter(device)
            if starter is not None:
                pending.append(starter.start(device, directory, processes))
            elif device.kind is DeviceKind.NET:
                self._backends.append(self._devices.listen(device, directory))
            elif device.kind in OWN_KINDS:
                self._backends.append(self._devices.connect(device))
        self._backends += [backend.connect(processes.reap) for backend in pending]

    def descriptors(self) -> dict[str, int]:
        """Return QEMU's end of each device's connection by device id."""
        return {backend.device.id: backend.connection.fileno() for backend in self._backends}

    def close(self) -> None:
        """Close QEMU's ends: it has them now, or never will."""
        for backend in self._backends:
            backend.connection.close()

    def servers(self) -> list[dict[str, Any]]:
        """Say of each device which program serves it."""
        return [
            {"device": backend.device.id, "program": backend.program, "pid": backend.pid}
            for backend in self._backends
        ]

    def _starter(self, device: DevicePlan) -> BackendStarter | None:
        programs = self._programs
        match device.kind:
            case DeviceKind.VSOCK if programs.vhost_device_vsock is not None:
                from .vhost_device_vsock import VhostDeviceVsockStarter

                return VhostDeviceVsockStarter(programs.vhost_device_vsock, self._on_exit)
            case DeviceKind.FS if programs.virtiofsd is not None:
                from .virtiofsd import VirtiofsdStarter

                return VirtiofsdStarter(programs.virtiofsd, self._on_exit)
            case _:
                return None
