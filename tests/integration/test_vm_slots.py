"""All slots of engine kvm in use: more devices than interrupt lines, so that some share one."""

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework import guest_image, guest_programs
from tests.framework.vm import Vm, VmFactory, vm_factory
from tools import image
from vmm.boards.microvm import MAX_SLOTS, SLOT_GSIS
from vmm.config import DriveConfig

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine("kvm", reason="other engines have fewer slots than lines"),
]

BLOCKS, ROUNDS = 512, 400
FIRST = 3  # after console, random numbers and balloon
DRIVES = MAX_SLOTS - FIRST

# Both disks at the same time; the script's status says which of them went wrong.
SCRIPT = """#!/busybox sh
/disk_check /dev/{one} {blocks} {rounds} 4711 &
/disk_check /dev/{other} {blocks} {rounds} 4712 || exit 3
wait $! || exit 2
"""


def disk_name(index: int) -> str:
    """Linux's name of the disk of that number (sd_format_disk_name of drivers/block/virtio_blk.c)."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    return "vd" + (letters[index // 26 - 1] if index >= 26 else "") + letters[index % 26]


@pytest.fixture
def checking_vms(tmp_path: Path) -> Iterator[VmFactory]:
    """VMs whose guest can check two disks at once, of which one has the line of the other."""
    script = tmp_path / "both"
    script.write_text(
        SCRIPT.format(one=disk_name(0), other=disk_name(SLOT_GSIS), blocks=BLOCKS, rounds=ROUNDS)
    )
    files = {
        "busybox": image.find_busybox(),
        "disk_check": guest_programs.compile_static("disk_check", tmp_path),
        "both": script,
    }
    with vm_factory(guest_image.build(tmp_path, files)) as factory:
        yield factory


def interrupts(vm: Vm, device: str) -> tuple[int, list[str]]:
    """How often the line of a device was raised, and all devices on it."""
    start = len(vm.output)
    assert vm.ask(f"run /busybox grep -w {device} /proc/interrupts") == "exit 0"
    found = re.search(r"\d+: +(\d+) .*-(?:edge|fasteoi) +(.*\S)", vm.output[start:])
    assert found, vm.output[start:]
    return int(found[1]), found[2].split(", ")


def test_disks_that_share_a_line_lose_nothing_with_all_slots_in_use(checking_vms: VmFactory) -> None:
    config = checking_vms.config()
    drives = []
    for index in range(DRIVES):
        path = config.runtime_dir / f"disk{index}"
        path.write_bytes(bytes(BLOCKS * 4096))
        drives.append(DriveConfig(id=f"d{index}", path=path))
    vm = checking_vms.boot(replace(config, drives=tuple(drives)))

    with vm.qmp() as qmp:
        slots = qmp.execute("x-strato-query-slots")
    assert len(slots) == MAX_SLOTS
    assert all("device" in slot for slot in slots)
    found = {name for name in vm.ask("list /sys/block").split() if name.startswith("vd")}
    assert found == {disk_name(index) for index in range(DRIVES)}
    before, sharers = interrupts(vm, f"virtio{FIRST}")
    assert sharers == [f"virtio{FIRST}", f"virtio{FIRST + SLOT_GSIS}"]

    assert vm.ask("run /both") == "exit 0", vm.describe()

    assert interrupts(vm, f"virtio{FIRST}")[0] > before
    for index in (0, SLOT_GSIS):
        assert any((config.runtime_dir / f"disk{index}").read_bytes())
