"""The QEMU command line of a MachinePlan; pure, so that it can be tested without QEMU.

The timer set-up (no PIT, no PIC, with RTC, with ACPI, TSC frequency given) is the one that boots every
time under TCG and offers 24 virtio-mmio slots; others hang in one boot of eight or lack slots.
"""

from collections.abc import Mapping
from pathlib import Path

from ..boards.base import DeviceKind, DevicePlan, MachinePlan
from ..config import NetConfig, ShareConfig
from ..record import field, record

LAST_BUS = 23
"""QEMU's transport for slot 0. The following slots descend, because QEMU lists its transports in the DSDT
from the last to the first, and the guest probes in the order of the DSDT."""
MAX_SLOTS = 23
"""All of QEMU's 24 transports but number 0, which gets no interrupts: it sits on pin 0 of the second IO-APIC,
and QEMU's model takes pin 0 for ISA's IRQ 0 and turns it into pin 2 (hw/intc/ioapic.c, ioapic_set_irq)."""

FS_QUEUE_SIZE = 1024
_PANIC_DEVICE = "pvpanic"  # ISA, port 0x505, announced by ACPI as QEMU0001
_FIRMWARE = "qboot.rom"
"""Leaves the ACPI tables below 1 MiB. The default, SeaBIOS, takes 40 ms longer, and from 1.16.3 on puts them
at the end of a small guest's memory, where QEMU has the initramfs."""
TRANSLATION_BUFFER_MIB = 256
CPU_MODEL = "max,-erms,-fsrm"
"""All that TCG can do but fast string instructions, which it executes byte by byte: told that there are none,
kernel and C library copy by wide moves, two to three times as many bytes per second through a socket."""
_SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"


@record(frozen=True)
class Wiring:
    """Descriptors that connect QEMU to strato-vmm."""

    console_fd: int
    """Stream socket of the guest's console."""
    backend_fds: Mapping[str, int] = field(default_factory=dict)
    """vhost-user sockets by device id: connected, and for interfaces those to connect to (O_PATH)."""


@record(frozen=True)
class QemuHost:
    """What the command line needs to know of the host."""

    program: Path
    qmp_fd: int
    sandbox: bool = True
    """Whether QEMU is to forbid itself the system calls that it has no use for."""


def command_line(plan: MachinePlan, wiring: Wiring, host: QemuHost) -> list[str]:
    """Return the arguments of QEMU, program first."""
    machine = (
        "microvm,acpi=on,pit=off,pic=off,rtc=on,isa-serial=off,usb=off,"
        "auto-kernel-cmdline=off,memory-backend=ram,dump-guest-core=off"
    )
    arguments = [
        str(host.program),
        *("-name", f"guest={_escaped(plan.name)}"),
        *("-nodefaults", "-no-user-config", "-no-reboot"),
        *("-display", "none"),
        *("-machine", machine),
        *("-bios", _FIRMWARE),
        *("-accel", f"tcg,thread=multi,tb-size={TRANSLATION_BUFFER_MIB}"),
        *("-cpu", CPU_MODEL),
        *("-smp", f"{plan.cpu_count},maxcpus={plan.cpu_count}"),
        *("-m", f"{plan.memory.size_mib}M"),
        *("-object", f"memory-backend-memfd,id=ram,share=on,size={plan.memory.size_mib}M"),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-kernel", str(plan.kernel)),
        *("-append", plan.cmdline),
        # Built paused: the carrier of each interface is set before the guest can look at it.
        "-S",
        *("-chardev", f"socket,id=qmp,fd={host.qmp_fd}"),
        *("-mon", "chardev=qmp,mode=control"),
        *("-device", _PANIC_DEVICE),
    ]
    if host.sandbox:
        arguments += ["-sandbox", _SANDBOX]
    if plan.initrd is not None:
        arguments += ["-initrd", str(plan.initrd)]
    for device in plan.devices:
        arguments += _device(device, wiring)
    return arguments


def _device(device: DevicePlan, wiring: Wiring) -> list[str]:
    bus = f"bus=virtio-mmio-bus.{LAST_BUS - device.slot}"
    match device.kind:
        case DeviceKind.CONSOLE:
            return [
                *("-chardev", f"socket,id=console,fd={wiring.console_fd}"),
                *("-device", f"virtio-serial-device,id=serial,max_ports=1,{bus}"),
                *("-device", "virtconsole,bus=serial.0,nr=0,chardev=console"),
            ]
        case DeviceKind.RNG:
            return [
                *("-chardev", f"socket,id=chr-{device.id},fd={wiring.backend_fds[device.id]}"),
                *("-device", f"vhost-user-rng,chardev=chr-{device.id},{bus}"),
            ]
        case DeviceKind.VSOCK:
            return [
                *("-chardev", f"socket,id=chr-{device.id},fd={wiring.backend_fds[device.id]}"),
                *("-device", f"vhost-user-vsock-device,chardev=chr-{device.id},{bus}"),
            ]
        case DeviceKind.FS:
            assert isinstance(device.source, ShareConfig)
            tag = _escaped(device.source.tag)
            return [
                *("-chardev", f"socket,id=chr-{device.id},fd={wiring.backend_fds[device.id]}"),
                "-device",
                f"vhost-user-fs-device,chardev=chr-{device.id},tag={tag},queue-size={FS_QUEUE_SIZE},{bus}",
            ]
        case DeviceKind.BLOCK:
            return [
                *("-chardev", f"socket,id=chr-{device.id},fd={wiring.backend_fds[device.id]}"),
                *("-device", f"vhost-user-blk,id={device.id},chardev=chr-{device.id},num-queues=1,{bus}"),
            ]
        case DeviceKind.NET:
            assert isinstance(device.source, NetConfig)
            return _net(device.source, wiring.backend_fds[device.id], bus)
        case DeviceKind.BALLOON:
            raise AssertionError("Engine tcg has no balloon (EngineTraits)")


def _net(net: NetConfig, socket_fd: int, bus: str) -> list[str]:
    # QEMU keeps the control queue for itself and tells the device nothing of new offloads of the guest, so
    # the guest is not offered one.
    device = f"virtio-net-device,id={net.id},netdev=dev-{net.id},mac={net.mac},ctrl_guest_offloads=off,{bus}"
    if net.mtu is not None:
        device += f",host_mtu={net.mtu}"
    return [
        # A connected descriptor is refused for this kind of device; the name of one to connect to is not.
        *("-chardev", f"socket,id=chr-{net.id},path=/proc/self/fd/{socket_fd}"),
        *("-netdev", f"vhost-user,id=dev-{net.id},chardev=chr-{net.id}"),
        *("-device", device),
    ]


def _escaped(value: str) -> str:
    # A comma ends an option's value in QEMU's syntax; a doubled one stands for itself.
    return value.replace(",", ",,")
