"""The virtual machine on KVM, with devices of `vmm.devices.device` in its slots.

The steps of a boot, in this order: `Machine`, `add_memory`, `add_platform`, `add_slot`, `plug`, `add_cpus`,
`load`, `resume`. vCPUs and devices have threads of their own; no call into Python ever comes from them: what
happens is in the event ring. Everything raises OSError with the library's sentence. Used by engine kvm only.
"""

from __future__ import annotations

from . import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType
    from typing import Any

    from .device import Device
    from .events import EventRing

_BACKENDS = {"anonymous": 0, "memfd": 1, "file": 2}
_ENTRIES = {"auto": 0, "linux64": 1, "pvh": 2}
_NO_FD = -1


def probe(kvm_fd: int) -> tuple[bool, str]:
    """Return whether this host's KVM runs an unmodified kernel, and why or why not."""
    return calls.probe(kvm_fd)


class Machine:
    """A virtual machine. A context manager."""

    def __init__(
        self,
        events: EventRing,
        tag: int,
        name: str,
        *,
        kvm_fd: int,
        num_cpus: int,
        threads_per_core: int = 1,
    ) -> None:
        self._machine: Any = None
        self._machine = calls.machine_create(events.handle(), tag, name, kvm_fd, num_cpus, threads_per_core)

    def __enter__(self) -> Machine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def add_memory(
        self,
        regions: Sequence[tuple[int, int]],
        *,
        backend: str = "anonymous",
        fd: int | None = None,
        huge_pages: bool = False,
        prealloc: bool = False,
    ) -> None:
        """Give the guest RAM: ascending (guest address, bytes); ``fd`` is the file of that backend."""
        modes = (_BACKENDS[backend], int(huge_pages), int(prealloc))
        calls.machine_add_memory(self._open(), regions, _NO_FD if fd is None else fd, modes)

    def add_platform(
        self,
        *,
        ged_gsi: int,
        pvpanic_port: int,
        power_port: int,
        tables_addr: int,
        generation_addr: int,
        serial_port: int = 0,
        serial_gsi: int = 0,
        serial_fd: int = _NO_FD,
    ) -> None:
        """Add the devices that are not virtio. A serial port of 0 means none; its output is duplicated."""
        calls.machine_add_platform(
            self._open(),
            ged_gsi,
            (pvpanic_port, power_port),
            (serial_port, serial_gsi, serial_fd),
            (tables_addr, generation_addr),
        )

    def add_slot(self, index: int, *, guest_addr: int, gsi: int) -> None:
        """Add an empty slot; the guest is told of it in the order of the indices."""
        calls.machine_add_slot(self._open(), index, guest_addr, gsi)

    def plug(self, slot: int, device: Device) -> None:
        """Put a device into an empty slot, before the boot or later. It stays the caller's to close."""
        calls.machine_plug(self._open(), slot, device.handle())

    def unplug(self, slot: int) -> None:
        """Take the device out of a slot. EBUSY: the guest's driver has it; it must be unbound there first."""
        calls.machine_unplug(self._open(), slot)

    def add_cpus(self) -> None:
        """Make the vCPUs and their threads, which stand still. No slot can be added afterwards."""
        calls.machine_add_cpus(self._open())

    def load(
        self, *, kernel_fd: int, cmdline: str, initrd_fd: int | None = None, entry: str = "auto"
    ) -> None:
        """Load a kernel; to be done again after every reset. The descriptors are duplicated."""
        initrd = _NO_FD if initrd_fd is None else initrd_fd
        calls.machine_load(self._open(), kernel_fd, initrd, _ENTRIES[entry], cmdline)

    def resume(self) -> None:
        """Let devices and vCPUs go on."""
        calls.machine_resume(self._open())

    def pause(self, *, timeout_ms: int) -> None:
        """Return when no vCPU is in the guest and no device touches its memory. TimeoutError: it goes on."""
        calls.machine_pause(self._open(), timeout_ms)

    def reset(self) -> None:
        """Set everything to power-on and RAM to zeros, of a machine that is paused or has come to an end."""
        calls.machine_reset(self._open())

    def power_button(self) -> None:
        """Press the power button."""
        calls.machine_power_button(self._open())

    def set_generation(self, guid: bytes) -> None:
        """Give the VM a new generation of 16 bytes (VMGenID), and tell the guest's kernel."""
        if len(guid) != 16:
            raise ValueError(f"A generation has 16 bytes, not {len(guid)}")
        calls.machine_set_generation(self._open(), guid)

    def cpus(self) -> list[int]:
        """Return the thread of each vCPU, by index."""
        return calls.machine_cpus(self._open())

    def metrics(self) -> dict[str, int]:
        """Return the machine's counters by name: exits by kind, of all vCPUs together."""
        return calls.machine_metrics(self._open())

    def close(self) -> None:
        """End the vCPUs, take the devices out of their slots, give everything back. May be called twice."""
        machine, self._machine = self._machine, None
        if machine is not None:
            calls.machine_destroy(machine)

    def abandon(self) -> None:
        """Forget the machine without waiting for its threads, one of which will never come to rest."""
        self._machine = None

    def _open(self) -> Any:
        if self._machine is None:
            raise ValueError("This machine is closed")
        return self._machine
