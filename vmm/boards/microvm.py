"""The microvm board: virtio-mmio slots, ACPI, no PCI, no firmware, no serial port.

Slot order is probe order: the console first, so that early output is seen, then what the agent needs,
then disks and interfaces in the order of the configuration (which fixes vda… and eth0…).
"""

from collections.abc import Sequence

from ..config import BoardName, VmConfig
from ..errors import ConfigError
from .base import Board, DeviceKind, DevicePlan, DeviceSource, MachinePlan

MAX_SLOTS = 32
"""Slots of the board; an engine may offer fewer."""

KERNEL_ARGUMENTS = (
    "console=hvc0",
    "quiet",  # printing the boot messages costs more than the boot
    "panic=-1",  # a panic resets at once; the engine has seen it by pvpanic before
    "reboot=t",  # triple fault: the shortest way to a reset
    "cryptomgr.notests",
    # The default maps the per-processor areas by huge pages, and then each chunk of 2 MiB carries 4 MiB of
    # accounting for the memory controller.
    "percpu_alloc=page",
)


class MicrovmBoard(Board):
    """See the module's docstring."""

    name = BoardName.MICROVM

    def plan(self, config: VmConfig, engine_arguments: Sequence[str]) -> MachinePlan:
        """Lay out the machine. Raises ConfigError when the devices need more slots than there are."""
        wanted: list[tuple[DeviceKind, str, DeviceSource]] = [(DeviceKind.CONSOLE, "console", None)]
        if config.rng.enabled:
            wanted.append((DeviceKind.RNG, "rng", config.rng))
        if config.vsock is not None:
            wanted.append((DeviceKind.VSOCK, "vsock", config.vsock))
        wanted.extend((DeviceKind.FS, f"fs{index}", share) for index, share in enumerate(config.shares))
        wanted.extend((DeviceKind.BLOCK, drive.id, drive) for drive in config.drives)
        wanted.extend((DeviceKind.NET, net.id, net) for net in config.nets)
        if len(wanted) > MAX_SLOTS:
            raise ConfigError("", f"{len(wanted)} devices do not fit the {MAX_SLOTS} slots of board microvm")
        arguments = [*KERNEL_ARGUMENTS, *engine_arguments]
        if config.boot.cmdline:
            arguments.append(config.boot.cmdline)
        return MachinePlan(
            name=config.name,
            board=self.name,
            cpu_count=config.cpu.count,
            memory_mib=config.memory.size_mib,
            kernel=config.boot.kernel,
            initrd=config.boot.initrd,
            cmdline=" ".join(arguments),
            max_slots=MAX_SLOTS,
            devices=tuple(
                DevicePlan(slot=slot, kind=kind, id=name, source=source)
                for slot, (kind, name, source) in enumerate(wanted)
            ),
        )
