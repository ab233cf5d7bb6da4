"""Where in a guest everything is: memory, slots, interrupts and the platform's own registers.

The vocabulary of boards, handed to an engine that has no layout of its own; the numbers are the boards'.
Nothing here does I/O.
"""

from ..record import record


@record(frozen=True)
class MemoryRegion:
    """A range of RAM in the guest's physical address space."""

    guest_addr: int
    bytes: int

    def describe(self) -> str:
        """Return its first and last address."""
        return f"{self.guest_addr:#x}-{self.guest_addr + self.bytes - 1:#x}"


@record(frozen=True)
class SlotPlan:
    """A place for one virtio-mmio device, taken or spare."""

    index: int
    guest_addr: int
    gsi: int

    def describe(self) -> str:
        """Return number, address and interrupt in columns."""
        return f"{self.index:4}  {self.guest_addr:#x}  {self.gsi:4}"


@record(frozen=True, kw_only=True)
class PlatformPlan:
    """What the board has besides virtio."""

    ged_gsi: int
    """Interrupt of the generic event device (power button, new generation)."""
    power_port: int
    """First of the four ports for events, sleep and reset."""
    pvpanic_port: int
    tables_addr: int
    """Where the ACPI tables begin."""
    generation_addr: int
    """Where the guest finds the number of its generation (VMGenID)."""
    serial_port: int | None = None
    """First port of the serial port; None: there is none."""
    serial_gsi: int | None = None


@record(frozen=True, kw_only=True)
class MachineLayout:
    """The whole map of a machine."""

    ram: tuple[MemoryRegion, ...]
    hotplug_addr: int
    """Where memory that is added later (virtio-mem) begins. Nothing is or comes there otherwise."""
    slots: tuple[SlotPlan, ...]
    """All slots that the guest is told of, in the order in which it probes them."""
    platform: PlatformPlan

    def describe(self) -> list[str]:
        """Return lines for people, without the slots."""
        platform = self.platform
        lines = [
            f"  ram      {', '.join(region.describe() for region in self.ram)}",
            f"  hotplug  from {self.hotplug_addr:#x}, none",
            f"  acpi     tables {platform.tables_addr:#x}, generation {platform.generation_addr:#x}, "
            f"events {platform.power_port:#x} gsi {platform.ged_gsi}",
            f"  pvpanic  port {platform.pvpanic_port:#x}",
        ]
        if platform.serial_port is not None:
            lines.append(f"  serial   port {platform.serial_port:#x} gsi {platform.serial_gsi}")
        return lines
