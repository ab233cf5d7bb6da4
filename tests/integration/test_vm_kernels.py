"""The forms in which engine kvm takes Linux: compressed, another's build, and by the entry of PVH."""

import os
import re
import select
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework.command import eventually
from tests.framework.debian_kernel import DebianKernel
from tests.framework.vm import DEADLINE_S, VmFactory, with_boot
from vmm import paths
from vmm.boards.microvm import PLATFORM, SERIAL_GSI, SERIAL_PORT, ram
from vmm.config import SerialConfig
from vmm.devices import EventRing, Machine
from vmm.engines.probe import open_kvm
from vmm.exit_report import ExitKind

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine("kvm", reason="this is about its own machine"),
]

READY = "=> ready"
RAM_MIB = 192

LOADERS = {
    "linux64": 0xFF,  # one without a number of its own (Documentation/arch/x86/boot.rst, type_of_loader)
    "pvh": 0xB0,  # what Linux's entry of PVH fills in itself (arch/x86/platform/pvh/enlighten.c)
}
"""What each entry makes the guest believe of its boot loader."""


def compressed_kernel() -> Path:
    """The bzImage that the guest kernel's build leaves beside vmlinux."""
    return paths.kernel().with_name("bzImage").resolve()


def test_compressed_kernel_boots_and_boots_again(vms: VmFactory) -> None:
    vm = vms.boot(with_boot(vms.config(), kernel=compressed_kernel()))

    assert vm.ask("echo hello") == "hello"
    with vm.qmp() as qmp:
        qmp.execute("system_reset")
    vm.wait_ready()
    vm.send("poweroff")
    assert vm.wait_exit().kind is ExitKind.GUEST_SHUTDOWN


def test_a_distributions_kernel_reaches_user_space(vms: VmFactory) -> None:
    # Its virtio drivers are modules, which the guest has not; its console is the serial port.
    config = vms.config()
    log = config.runtime_dir / "serial.log"
    kernel = DebianKernel.installed().vmlinuz
    config = replace(config, serial=SerialConfig(log=log))
    vms.start(with_boot(config, kernel=kernel))

    eventually(
        lambda: log.exists() and READY in log.read_text(errors="replace"),
        "words of the guest's init",
        timeout_s=DEADLINE_S,
    )
    assert "Debian" in log.read_text(errors="replace")


@pytest.fixture
def events() -> Iterator[EventRing]:
    with EventRing() as ring:
        yield ring


@pytest.mark.parametrize(("entry", "loader"), LOADERS.items())
def test_linux_boots_by_the_entry_that_is_asked_for(
    events: EventRing, guest: Path, entry: str, loader: int
) -> None:
    # A configuration cannot ask for one, whoever uses the library can: the guest kernel has both.
    kvm_fd = open_kvm()
    read_end, write_end = os.pipe()
    try:
        with Machine(events, 1, "vm", kvm_fd=kvm_fd, num_cpus=1) as machine:
            machine.add_memory([(region.guest_addr, region.bytes) for region in ram(RAM_MIB)])
            machine.add_platform(
                ged_gsi=PLATFORM.ged_gsi,
                pvpanic_port=PLATFORM.pvpanic_port,
                power_port=PLATFORM.power_port,
                tables_addr=PLATFORM.tables_addr,
                generation_addr=PLATFORM.generation_addr,
                serial_port=SERIAL_PORT,
                serial_gsi=SERIAL_GSI,
                serial_fd=write_end,
            )
            machine.add_cpus()
            with paths.kernel().open("rb") as kernel, guest.open("rb") as initrd:
                machine.load(
                    kernel_fd=kernel.fileno(),
                    initrd_fd=initrd.fileno(),
                    cmdline='console=ttyS0 quiet reboot=a pci=off -- "cat /proc/sys/kernel/bootloader_type"',
                    entry=entry,
                )
            machine.resume()
            answer = read_number(read_end)
    finally:
        for fd in (kvm_fd, read_end, write_end):
            os.close(fd)
    assert answer == loader
    assert events.events() == []


def read_number(fd: int) -> int:
    """Read from the guest's serial port until a number has been answered, and return it."""
    said = ""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := re.search(r"=> (\d+) ?\r?\n", said)):
        assert select.select([fd], [], [], max(0, deadline - time.monotonic()))[0], f"only {said!r}"
        said += os.read(fd, 65536).decode(errors="replace")
    return int(found[1])
