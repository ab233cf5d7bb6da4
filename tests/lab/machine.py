"""The command lines of a test host: QEMU with the measured options, and a virtiofsd for each share. Pure.

The CPU is an AMD with nested paging, emulated by one thread for each vCPU; guest memory is shared, as
vhost-user wants it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .settings import LabSettings

KERNEL_ARGUMENTS = (
    "console=ttyS0",
    "quiet",
    # With -no-reboot a kernel that fails ends QEMU.
    "oops=panic",
    "panic=-1",
    # What follows makes it faster.
    "mitigations=off",
    "nokaslr",
    "cryptomgr.notests",
    "no_timer_check",
    "8250.nr_uarts=1",
    "i8042.noaux",
    "i8042.nokbd",
    "i8042.nopnp",
)
_TAGS = ("machine", "share")


@dataclass(frozen=True)
class MachineFiles:
    """What QEMU opens, by path or as connected sockets."""

    qemu: Path
    kernel: Path
    initrd: Path
    console_fd: int
    output_fd: int
    machine_socket: Path
    share_socket: Path
    clock: tuple[str, ...]
    """Arguments that tell the kernel of the TSC. Without them it takes the far slower HPET for its clock, and
    none of its guests has a stable one."""


def qemu_command(files: MachineFiles, settings: LabSettings) -> list[str]:
    """QEMU's command line, program first."""
    memory = f"memory-backend-memfd,id=ram,share=on,size={settings.memory_mib}M"
    arguments = (*KERNEL_ARGUMENTS, *files.clock)
    command = [
        *(str(files.qemu), "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *("-machine", "q35,usb=off,sata=off,smbus=off,dump-guest-core=off"),
        *("-accel", "tcg,thread=multi", "-cpu", "EPYC-Milan", "-smp", str(settings.cpus)),
        *("-m", f"{settings.memory_mib}M", "-object", memory, "-numa", "node,memdev=ram"),
        *("-kernel", str(files.kernel), "-initrd", str(files.initrd), "-append", " ".join(arguments)),
        *("-chardev", f"socket,id=console,fd={files.console_fd}", "-serial", "chardev:console"),
        *("-chardev", f"socket,id=output,fd={files.output_fd}", "-device", "virtio-serial-pci"),
        *("-device", "virtserialport,chardev=output,nr=1"),
    ]
    for tag, path in zip(_TAGS, (files.machine_socket, files.share_socket), strict=True):
        command += ["-chardev", f"socket,id={tag},path={path}"]
        command += ["-device", f"vhost-user-fs-pci,chardev={tag},tag={tag},queue-size=1024"]
    return command


def virtiofsd_command(program: Path, listener_fd: int, source: Path, options: Sequence[str]) -> list[str]:
    """virtiofsd's command line, program first. It ends when QEMU does."""
    command = [str(program), "-f", f"--fd={listener_fd}"]
    for option in (f"source={source}", "sandbox=chroot", "log_level=err", *options):
        command += ["-o", option]
    return command


def bound_command(command: Sequence[str], parent: int) -> list[str]:
    """A command that the kernel kills when its parent dies, and that does not start when it has already."""
    check = 'test "$PPID" = "$0" && exec "$@"'
    return ["setpriv", "--pdeathsig", "KILL", "sh", "-c", check, str(parent), *command]
