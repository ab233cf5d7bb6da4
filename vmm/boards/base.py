"""What a board is: a pure function from VmConfig to MachinePlan.

A plan lists devices by slot and the kernel's command line; an engine executes it. Engines add arguments
of their own (`Engine.kernel_arguments`), handed in so that the printed plan is the whole truth.
Nothing here does I/O.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ..config import BoardName, DriveConfig, NetConfig, RngConfig, ShareConfig, VmConfig, VsockConfig
from ..errors import ConfigError


class DeviceKind(StrEnum):
    """The virtio devices that a board can place."""

    CONSOLE = "console"
    RNG = "rng"
    VSOCK = "vsock"
    FS = "fs"
    BLOCK = "block"
    NET = "net"


DeviceSource = VsockConfig | RngConfig | ShareConfig | DriveConfig | NetConfig | None
"""The part of the configuration behind a device; None for those without settings."""


@dataclass(frozen=True, kw_only=True)
class DevicePlan:
    """One virtio device in one slot."""

    slot: int
    """Number of the virtio-mmio slot, from 0; the guest probes in this order."""
    kind: DeviceKind
    id: str
    """Name of the device for QMP and logs, unique in the VM."""
    source: DeviceSource

    def describe(self) -> str:
        """Return one line for people."""
        match self.source:
            case VsockConfig(guest_cid=cid, socket=socket):
                detail = f"cid {cid}, {socket}"
            case ShareConfig(tag=tag, directory=directory, cache=cache):
                detail = f"tag {tag}, {directory}, cache {cache}"
            case DriveConfig(path=path, readonly=readonly, cache=cache):
                detail = f"{path}, {'read-only' if readonly else 'read-write'}, cache {cache}"
            case NetConfig(mac=mac, link_up=link_up):
                detail = f"{mac}, link {'up' if link_up else 'down'}"
            case RngConfig(rate_kib=rate, burst_kib=burst):
                detail = f"{rate} KiB/s, {burst} KiB at once"
            case None:
                detail = ""
        return f"{self.slot:4}  {self.kind:8} {self.id:16} {detail}".rstrip()


@dataclass(frozen=True, kw_only=True)
class MachinePlan:
    """Everything an engine must know to run a VM."""

    name: str
    board: BoardName
    cpu_count: int
    memory_mib: int
    kernel: Path
    initrd: Path | None
    cmdline: str
    max_slots: int
    devices: tuple[DevicePlan, ...]

    def render(self) -> str:
        """Return the plan as text for people (`strato vm plan`)."""
        lines = [
            f"machine {self.name}",
            f"  board    {self.board}, {len(self.devices)} of {self.max_slots} slots used",
            f"  cpus     {self.cpu_count}",
            f"  memory   {self.memory_mib} MiB",
            f"  kernel   {self.kernel}",
            f"  initrd   {self.initrd or '-'}",
            f"  cmdline  {self.cmdline}",
            "slot  device   id               settings",
        ]
        return "\n".join(lines + [device.describe() for device in self.devices])


class Board(ABC):
    """A machine's shape."""

    name: BoardName

    @abstractmethod
    def plan(self, config: VmConfig, engine_arguments: Sequence[str]) -> MachinePlan:
        """Lay out the machine. Raises ConfigError for what does not fit the board."""


def board(name: BoardName) -> Board:
    """Return the board of that name."""
    match name:
        case BoardName.MICROVM:
            from .microvm import MicrovmBoard

            return MicrovmBoard()
    raise ConfigError("board", f"{name!r} is not built")
