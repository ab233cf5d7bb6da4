"""What a board is: a pure function from VmConfig to MachinePlan.

A plan lists devices by slot, the kernel's command line and, for an engine without a layout of its own, where
in the guest everything is; an engine executes it. What an engine adds or lacks (`EngineTraits`) is handed in,
so that the printed plan is the whole truth. Nothing here does I/O.
"""

from abc import ABC, abstractmethod
from enum import StrEnum
from pathlib import Path

from ..config import (
    BalloonConfig,
    BoardName,
    DriveConfig,
    EngineName,
    MemoryConfig,
    NetConfig,
    RngConfig,
    ShareConfig,
    VmConfig,
    VsockConfig,
)
from ..errors import ConfigError
from ..record import record
from .layout import MachineLayout


class DeviceKind(StrEnum):
    """The virtio devices that a board can place."""

    CONSOLE = "console"
    RNG = "rng"
    VSOCK = "vsock"
    BALLOON = "balloon"
    FS = "fs"
    BLOCK = "block"
    NET = "net"


DeviceSource = VsockConfig | RngConfig | BalloonConfig | ShareConfig | DriveConfig | NetConfig | None
"""The part of the configuration behind a device; None for those without settings."""


@record(frozen=True, kw_only=True)
class EngineTraits:
    """What a board must know of the engine that is to run its plan (`vmm.engines.traits`)."""

    engine: EngineName
    max_slots: int
    kernel_arguments: tuple[str, ...]
    """What the engine adds to the guest's command line."""
    own_layout: bool
    """Whether the engine itself decides about addresses and interrupts; then it has no spare slots either."""
    balloon: bool
    """Whether the engine offers a balloon."""


@record(frozen=True, kw_only=True)
class DevicePlan:
    """One virtio device in one slot."""

    slot: int
    """Number of the virtio-mmio slot, from 0; the guest probes in this order."""
    kind: DeviceKind
    id: str
    """Name of the device for QMP and logs, unique in the VM."""
    source: DeviceSource

    def describe(self) -> str:
        """Return kind, name and settings in columns for people."""
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
            case BalloonConfig(reporting=reporting):
                detail = f"free pages {'reported' if reporting else 'not reported'}"
            case None:
                detail = ""
        return f"{self.kind:8} {self.id:16} {detail}".rstrip()


@record(frozen=True, kw_only=True)
class MachinePlan:
    """Everything an engine must know to run a VM."""

    name: str
    board: BoardName
    engine: EngineName
    cpu_count: int
    memory: MemoryConfig
    kernel: Path
    initrd: Path | None
    cmdline: str
    serial_log: Path | None
    max_slots: int
    devices: tuple[DevicePlan, ...]
    layout: MachineLayout | None
    """Where everything is; None: the engine decides."""

    def render(self) -> str:
        """Return the plan as text for people (`strato vm plan`)."""
        lines = [
            f"machine {self.name}",
            f"  board    {self.board}, {len(self.devices)} of {self.max_slots} slots used",
            f"  cpus     {self.cpu_count}",
            f"  memory   {self.memory.size_mib} MiB, {self.memory.backend}",
            f"  kernel   {self.kernel}",
            f"  initrd   {self.initrd or '-'}",
            f"  cmdline  {self.cmdline}",
        ]
        if self.layout is None:
            lines.append(f"  layout   addresses and interrupts are chosen by engine {self.engine}")
            lines.append("slot  device   id               settings")
            lines += [f"{device.slot:4}  {device.describe()}" for device in self.devices]
            return "\n".join(lines)
        lines += self.layout.describe()
        lines.append("slot  address     gsi  device   id               settings")
        names = {device.slot: device.describe() for device in self.devices}
        lines += [f"{slot.describe()}  {names.get(slot.index, 'spare')}" for slot in self.layout.slots]
        return "\n".join(lines)


class Board(ABC):
    """A machine's shape."""

    name: BoardName

    @abstractmethod
    def plan(self, config: VmConfig, engine: EngineTraits) -> MachinePlan:
        """Lay out the machine. Raises ConfigError for what does not fit the board."""


def board(name: BoardName) -> Board:
    """Return the board of that name."""
    match name:
        case BoardName.MICROVM:
            from .microvm import MicrovmBoard

            return MicrovmBoard()
    raise ConfigError("board", f"{name!r} is not built")
