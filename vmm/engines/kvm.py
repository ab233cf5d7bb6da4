"""Engine kvm: the virtual machine in this process, its vCPUs run by KVM.

Python assembles the machine and decides what its events mean; everything that runs while the guest does is in
libstrato_vmm.so (`vmm.devices.Machine`), on threads of its own. No call here waits for the guest longer than
`PAUSE_TIMEOUT_MS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..boards.base import DeviceKind, DevicePlan, MachinePlan
from ..boards.layout import MachineLayout
from ..config import EngineName, MemoryBackend
from ..errors import EngineError, HostError
from ..exit_report import ExitKind
from ..runstate import Trigger
from .base import Done, Engine, EngineEnd, EngineHost
from .probe import open_kvm

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any

    from ..devices import DeviceEvent, Machine

PAUSE_TIMEOUT_MS = 5000
"""How long vCPUs and devices may take to come to rest: a vCPU answers at once, a device when the host's disks
have."""
PANIC_GRACE_S = 1.0
"""How long a guest that has panicked may go on: to say why, and to reset itself."""

GENERATION_SIZE = 16
"""Bytes of a GUID."""

_SERIAL_MODE = 0o640


class KvmEngine(Engine):
    """See the module's docstring."""

    name = EngineName.KVM

    def __init__(self, host: EngineHost) -> None:
        self._host = host
        self._machine: Machine | None = None
        self._plan: MachinePlan | None = None
        # Kept for resets: their names may be out of reach by then.
        self._kernel_fd = self._initrd_fd = -1
        # A reset is the same VM. One that is made of another's state would need a new one (VMGenID).
        self._generation = os.urandom(GENERATION_SIZE)
        self._running = False
        self._ended = False

    # --- boot -------------------------------------------------------------------------------------

    def build(self, plan: MachinePlan, console_fd: int) -> None:
        """See `Engine`."""
        layout = plan.layout
        assert layout is not None  # EngineTraits.own_layout
        self._plan = plan
        self._kernel_fd = _open(plan.kernel, "boot.kernel")
        if plan.initrd is not None:
            self._initrd_fd = _open(plan.initrd, "boot.initrd")
        with _sentences(f"VM {plan.name} cannot be made"):
            self._machine = machine = self._create(plan)
            self._add_memory(machine, plan, layout)
            self._add_platform(machine, plan, layout)
            for slot in layout.slots:
                machine.add_slot(slot.index, guest_addr=slot.guest_addr, gsi=slot.gsi)
            self._host.observer.phase("machine_made")
            self._plug_all(machine, plan, console_fd)
            self._host.observer.phase("devices_plugged")
            machine.add_cpus()
        self._load(machine, plan)

    def start(self) -> None:
        """See `Engine`."""
        with _sentences("VM cannot be started"):
            self._made().resume()
        self._running = True

    def attach(self) -> None:
        """See `Engine`."""
        self._host.observer.observe(Trigger.STARTED, {})

    def _create(self, plan: MachinePlan) -> Machine:
        ring = self._host.devices.ring()
        from .. import devices

        tag = self._host.devices.listen_to_tag(self._on_event)
        kvm_fd = open_kvm()
        try:
            return devices.Machine(ring, tag, plan.name, kvm_fd=kvm_fd, num_cpus=plan.cpu_count)
        finally:
            os.close(kvm_fd)

    def _add_memory(self, machine: Machine, plan: MachinePlan, layout: MachineLayout) -> None:
        memory = plan.memory
        with _opened(memory.file, "memory.file") as fd:
            machine.add_memory(
                [(region.guest_addr, region.bytes) for region in layout.ram],
                backend="anonymous" if memory.backend is MemoryBackend.AUTO else str(memory.backend),
                fd=fd,
                huge_pages=memory.huge_pages,
                prealloc=memory.prealloc,
            )

    def _add_platform(self, machine: Machine, plan: MachinePlan, layout: MachineLayout) -> None:
        platform = layout.platform
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        with _opened(plan.serial_log, "serial.log", flags) as serial_fd:
            machine.add_platform(
                ged_gsi=platform.ged_gsi,
                power_port=platform.power_port,
                pvpanic_port=platform.pvpanic_port,
                tables_addr=platform.tables_addr,
                generation_addr=platform.generation_addr,
                serial_port=platform.serial_port or 0,
                serial_gsi=platform.serial_gsi or 0,
                serial_fd=-1 if serial_fd is None else serial_fd,
            )

    def _plug_all(self, machine: Machine, plan: MachinePlan, console_fd: int) -> None:
        devices = self._host.devices
        devices.expect_shares(sum(device.kind is DeviceKind.FS for device in plan.devices))
        for device in plan.devices:
            fd = console_fd if device.kind is DeviceKind.CONSOLE else None
            machine.plug(device.slot, devices.make(device, fd=fd))

    def _load(self, machine: Machine, plan: MachinePlan) -> None:
        """Fill the empty RAM of a machine at power-on."""
        initrd_fd = None if plan.initrd is None else self._initrd_fd
        with _sentences(f"Kernel {plan.kernel} cannot be loaded"):
            machine.load(kernel_fd=self._kernel_fd, initrd_fd=initrd_fd, cmdline=plan.cmdline)
        with _sentences(f"VM {plan.name} cannot be given a generation"):
            machine.set_generation(self._generation)

    # --- operations -------------------------------------------------------------------------------

    def pids(self) -> dict[str, int]:
        """See `Engine`."""
        return {}

    def servers(self) -> list[dict[str, Any]]:
        """See `Engine`."""
        return self._host.devices.servers()

    def pause(self, done: Done) -> None:
        """See `Engine`."""
        with _sentences("VM cannot be paused"):
            self._pause()
        self._host.observer.observe(Trigger.PAUSED, {})
        done({})

    def resume(self, done: Done) -> None:
        """See `Engine`."""
        with _sentences("VM cannot be resumed"):
            self._resume()
        self._host.observer.observe(Trigger.RESUMED, {})
        done({})

    def reset(self, done: Done) -> None:
        """See `Engine`."""
        machine, plan, was_running = self._made(), self._plan, self._running
        assert plan is not None
        with _sentences("VM cannot be reset"):
            self._pause()
            machine.reset()
        self._load(machine, plan)
        self._host.observer.observe(Trigger.RESET, {"guest": False, "reason": "host-qmp-system-reset"})
        if was_running:
            with _sentences("VM cannot be resumed"):
                self._resume()
        done({})

    def powerdown(self, done: Done) -> None:
        """See `Engine`."""
        with _sentences("Power button cannot be pressed"):
            self._made().power_button()
        self._host.observer.observe(Trigger.POWERDOWN, {})
        done({})

    def set_link(self, device_id: str, up: bool, done: Done) -> None:
        """See `Engine`."""
        done({})  # the device tells the guest

    def cpus(self, done: Done) -> None:
        """See `Engine`."""
        with _sentences("vCPUs cannot be listed"):
            threads = self._made().cpus()
        done(
            [
                {
                    "cpu-index": index,
                    "qom-path": f"/machine/unattached/device[{index}]",
                    "thread-id": thread,
                    "target": os.uname().machine,
                }
                for index, thread in enumerate(threads)
            ]
        )

    def metrics(self) -> dict[str, int]:
        """See `Engine`."""
        with _sentences("Counters cannot be read"):
            return self._made().metrics()

    def plug(self, device: DevicePlan, *, fd: int | None) -> None:
        """See `Engine`."""
        made = self._host.devices.make(device, fd=fd)
        try:
            with _sentences(f"Device {device.id} cannot be put into slot {device.slot}"):
                self._made().plug(device.slot, made)
        except BaseException:
            self._host.devices.close_device(device.id)
            raise

    def unplug(self, device: DevicePlan) -> None:
        """See `Engine`."""
        with _sentences(f"Device {device.id} cannot be taken out of slot {device.slot}"):
            self._made().unplug(device.slot)
        self._host.devices.close_device(device.id)

    def quit(self) -> None:
        """See `Engine`."""
        self._host.loop.call_later(0, lambda: self._end(EngineEnd("host-qmp-quit")))

    def close(self) -> None:
        """See `Engine`."""
        if self._machine is not None:
            if self._host.devices.broken:
                self._machine.abandon()
            self._machine.close()
        for fd in (self._kernel_fd, self._initrd_fd):
            if fd >= 0:
                os.close(fd)

    def _made(self) -> Machine:
        if self._machine is None:
            raise EngineError("Engine kvm has no VM: it could not be made")
        return self._machine

    def _pause(self) -> None:
        if self._running:
            self._made().pause(timeout_ms=PAUSE_TIMEOUT_MS)
            self._running = False

    def _resume(self) -> None:
        if not self._running:
            self._made().resume()
            self._running = True

    # --- what happens -----------------------------------------------------------------------------

    def _on_event(self, event: DeviceEvent) -> None:
        from ..devices import DeviceEventKind as Kind

        observer = self._host.observer
        match event.kind:
            case Kind.GUEST_SHUTDOWN:
                self._end(EngineEnd("guest-shutdown"))
            case Kind.GUEST_RESET:
                self._end(EngineEnd("guest-reset"))
            case Kind.GUEST_PANICKED:
                observer.observe(Trigger.PANICKED, {"action": "poweroff"})
                # The reason may still be on its way to the console: Linux flushes it after the notifiers, of
                # which pvpanic is one, and then resets the machine (kernel/panic.c).
                self._host.loop.call_later(PANIC_GRACE_S, lambda: self._end(EngineEnd("guest-panic")))
            case Kind.CRASH_LOADED:
                observer.observe(Trigger.CRASH_LOADED, {"action": "run"})
            case Kind.TRIPLE_FAULT:
                # QEMU takes it for a reset; with our kernel arguments it is never meant as one.
                self._end(EngineEnd("guest-reset", event.text, ExitKind.TRIPLE_FAULT))
            case Kind.VCPU_FAILED:
                self._end(EngineEnd("host-error", event.text, ExitKind.VCPU_FAILED))
            case _:
                observer.lost(f"Bug in the virtual machine: {event.text}")

    def _end(self, end: EngineEnd) -> None:
        if not self._ended:
            self._ended = True
            self._host.observer.ended(end)


@contextmanager
def _sentences(what: str) -> Iterator[None]:
    """Turn the library's errors into ours, with its sentence as the cause."""
    try:
        yield
    except OSError as error:
        raise HostError(what) from error


def _open(path: Path, section: str, flags: int = os.O_RDONLY) -> int:
    try:
        return os.open(path, flags | os.O_CLOEXEC, _SERIAL_MODE)
    except OSError as error:
        raise HostError(f"File {path} ({section}) cannot be opened") from error


@contextmanager
def _opened(path: Path | None, section: str, flags: int = os.O_RDONLY) -> Iterator[int | None]:
    if path is None:
        yield None
        return
    fd = _open(path, section, flags)
    try:
        yield fd
    finally:
        os.close(fd)
