"""The microvm board: virtio-mmio slots, ACPI, no PCI, no firmware; a serial port for debugging only.

Slot order is probe order: the console first, so that early output is seen, then what the agent needs,
then disks and interfaces in the order of the configuration (which fixes vda… and eth0…), then spare slots.
"""

from ..config import BoardName, VmConfig
from ..errors import ConfigError
from .base import Board, DeviceKind, DevicePlan, DeviceSource, EngineTraits, MachinePlan
from .layout import MachineLayout, MemoryRegion, PlatformPlan, SlotPlan

MAX_SLOTS = 32
"""Slots of the board; an engine may offer fewer."""

MIB = 1 << 20
HOLE_ADDR = 0xC000_0000
"""RAM ends here at the latest; the rest of it begins where the hole ends. In the hole are the slots and,
where x86 wants them, the interrupt controllers."""
HOLE_END_ADDR = 0x1_0000_0000
HOTPLUG_ALIGNMENT = 2 << 30
"""Linux adds memory by blocks, of at most 2 GiB each (arch/x86/mm/init_64.c, probe_memory_block_size)."""
SLOT_BYTES = 0x1000
FIRST_SLOT_GSI = 6
SLOT_GSIS = 18
"""GSIs of the slots, 6 to 23: the IOAPIC has no more. Slots beyond share them, which virtio-mmio allows."""

PLATFORM = PlatformPlan(
    ged_gsi=5,
    power_port=0x600,
    pvpanic_port=0x505,  # pvpanic's default (docs/specs/pvpanic.txt of QEMU)
    tables_addr=0xE_0000,  # where a guest without firmware looks for the RSDP (ACPI 6.5, section 5.2.5.1)
    generation_addr=0xF_F000,
)
SERIAL_PORT, SERIAL_GSI = 0x3F8, 4  # COM1, where Linux expects it (arch/x86/include/asm/serial.h)

KERNEL_ARGUMENTS = (
    "console=hvc0",
    "panic=-1",  # a panic resets at once; the engine has seen it by pvpanic before
    "cryptomgr.notests",
    # The default maps the per-processor areas by huge pages, and then each chunk of 2 MiB carries 4 MiB of
    # accounting for the memory controller.
    "percpu_alloc=page",
    # Takes 64 MiB as soon as there is RAM above 4 GiB, for devices that cannot reach it. Ours reach all.
    "swiotlb=noforce",
)


class MicrovmBoard(Board):
    """See the module's docstring."""

    name = BoardName.MICROVM

    def plan(self, config: VmConfig, engine: EngineTraits) -> MachinePlan:
        """Lay out the machine. Raises ConfigError when the devices need more slots than there are."""
        wanted = _wanted(config, engine)
        max_slots = min(MAX_SLOTS, engine.max_slots)
        if len(wanted) > max_slots:
            raise ConfigError(
                "",
                f"{len(wanted)} devices do not fit the {max_slots} slots of board microvm "
                f"with engine {engine.engine}",
            )
        layout = None
        if not engine.own_layout:
            layout = _layout(config, slots=min(len(wanted) + config.spare_slots, max_slots))
        return MachinePlan(
            name=config.name,
            board=self.name,
            engine=engine.engine,
            cpu_count=config.cpu.count,
            memory=config.memory,
            kernel=config.boot.kernel,
            initrd=config.boot.initrd,
            cmdline=" ".join(_arguments(config, engine)),
            serial_log=config.serial.log,
            max_slots=max_slots,
            devices=tuple(
                DevicePlan(slot=slot, kind=kind, id=name, source=source)
                for slot, (kind, name, source) in enumerate(wanted)
            ),
            layout=layout,
        )


def ram(size_mib: int) -> tuple[MemoryRegion, ...]:
    """Return where so much RAM is: below the hole as far as it fits, the rest beyond."""
    size = size_mib * MIB
    low = MemoryRegion(0, min(size, HOLE_ADDR))
    if size <= HOLE_ADDR:
        return (low,)
    return (low, MemoryRegion(HOLE_END_ADDR, size - HOLE_ADDR))


def hotplug_addr(regions: tuple[MemoryRegion, ...]) -> int:
    """Return where memory that is added later begins: beyond the hole, and on a block's boundary."""
    end = max(HOLE_END_ADDR, regions[-1].guest_addr + regions[-1].bytes)
    return -(-end // HOTPLUG_ALIGNMENT) * HOTPLUG_ALIGNMENT


def _layout(config: VmConfig, *, slots: int) -> MachineLayout:
    platform = PLATFORM
    if config.serial.log is not None:
        from ..record import replace

        platform = replace(platform, serial_port=SERIAL_PORT, serial_gsi=SERIAL_GSI)
    regions = ram(config.memory.size_mib)
    return MachineLayout(
        ram=regions,
        hotplug_addr=hotplug_addr(regions),
        slots=tuple(
            SlotPlan(index, HOLE_ADDR + index * SLOT_BYTES, FIRST_SLOT_GSI + index % SLOT_GSIS)
            for index in range(slots)
        ),
        platform=platform,
    )


def _wanted(config: VmConfig, engine: EngineTraits) -> list[tuple[DeviceKind, str, DeviceSource]]:
    wanted: list[tuple[DeviceKind, str, DeviceSource]] = [(DeviceKind.CONSOLE, "console", None)]
    if config.rng.enabled:
        wanted.append((DeviceKind.RNG, "rng", config.rng))
    if config.vsock is not None:
        wanted.append((DeviceKind.VSOCK, "vsock", config.vsock))
    if engine.balloon and config.balloon.enabled:
        wanted.append((DeviceKind.BALLOON, "balloon", config.balloon))
    wanted.extend((DeviceKind.FS, f"fs{index}", share) for index, share in enumerate(config.shares))
    wanted.extend((DeviceKind.BLOCK, drive.id, drive) for drive in config.drives)
    wanted.extend((DeviceKind.NET, net.id, net) for net in config.nets)
    return wanted


def _arguments(config: VmConfig, engine: EngineTraits) -> list[str]:
    if config.serial.log is None:
        arguments = [*KERNEL_ARGUMENTS, "quiet"]  # printing the boot messages costs more than the boot
    else:
        # The last console is /dev/console; the first is heard from the kernel's first line on.
        arguments = ["earlyprintk=ttyS0", "console=ttyS0", *KERNEL_ARGUMENTS]
    arguments += engine.kernel_arguments
    if config.boot.cmdline:
        arguments.append(config.boot.cmdline)
    return arguments
