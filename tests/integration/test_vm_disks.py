"""The disks of a running VM: they grow, and a block device of the host is one."""

import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from vmm.config import DriveCache, DriveConfig
from vmm.errors import QmpCommandError

from .guest_scripts import MakeVms, results

pytestmark = pytest.mark.integration

MIB = 1 << 20


def test_disk_that_grows_is_larger_for_the_guest_at_once(equipped_vms: MakeVms) -> None:
    vms = equipped_vms("disk_check")
    config = vms.config()
    disk, fixed = config.runtime_dir / "disk", config.runtime_dir / "fixed"
    disk.write_bytes(bytes(2 * MIB))
    fixed.write_bytes(bytes(2 * MIB))
    drives = (DriveConfig(id="d0", path=disk), DriveConfig(id="d1", path=fixed, readonly=True))
    vm = vms.boot(replace(config, drives=drives))
    size = "/sys/block/vda/size"
    assert vm.ask(f"cat {size}") == str(2 * MIB // 512)

    with vm.qmp() as qmp:
        assert qmp.execute("block_resize", {"device": "d0", "size": 4 * MIB}) == {}
        assert vm.ask(f"wait {size} {4 * MIB // 512}") == "ok"
        assert disk.stat().st_size == 4 * MIB
        # Once more, by the other name, after the host's administrator has done it himself.
        os.truncate(disk, 6 * MIB)
        assert qmp.execute("block_resize", {"node-name": "d0", "size": 6 * MIB}) == {}
        assert vm.ask(f"wait {size} {6 * MIB // 512}") == "ok"
        assert [entry["inserted"]["image"]["virtual-size"] for entry in qmp.execute("query-block")] == [
            6 * MIB,
            2 * MIB,
        ]
        # Every block, new ones too, is zeros at first, takes what is written, and gives it back.
        assert vm.ask(f"run /disk_check /dev/vda {6 * MIB // 4096} 600 4711") == "exit 0"
        assert any(disk.read_bytes()[4 * MIB :])

        for change, words in (
            ({"device": "d0", "size": 4 * MIB}, "'d0' cannot become 4194304 bytes.*has 6291456.*not shrink"),
            ({"device": "d0", "size": 6 * MIB + 100}, "'size'.*512 bytes, not 6291556"),
            ({"device": "d0", "size": 0}, "'size'"),
            ({"device": "d0", "size": 1 << 63}, "'size'"),
            ({"device": "d1", "size": 4 * MIB}, "'d1'.*read-only and has 2097152"),
            ({"device": "d0", "node-name": "d0", "size": 8 * MIB}, "Exactly one"),
            ({"size": 8 * MIB}, "Exactly one"),
            ({"device": "none", "size": 8 * MIB}, "'none' not found"),
        ):
            with pytest.raises(QmpCommandError, match=words):
                qmp.execute("block_resize", change)
    assert (disk.stat().st_size, fixed.stat().st_size) == (6 * MIB, 2 * MIB)


@dataclass(frozen=True)
class LoopDisk:
    """A block device of the host with sectors of 4 KiB, and the file behind it."""

    device: Path
    file: Path


@pytest.fixture
def loop_disk(tmp_path: Path) -> Iterator[LoopDisk]:
    """Eight MiB of noise; to be asked for before VMs."""
    file = tmp_path / "behind"
    file.write_bytes(os.urandom(8 * MIB))
    command = ["losetup", "--find", "--show", "--sector-size", "4096", str(file)]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"No loop device can be made here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        yield LoopDisk(Path(device), file)
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


ON_A_BLOCK_DEVICE = [
    "open f0 vda O_RDWR|O_DIRECT 0",
    f"pread f0 {3 * MIB} 65536",
    f"pwrite f0 {MIB} 65536 7",
    "pwrite f0 512 512 7",  # no whole block: no driver may ask for that
    "fsync f0",
    f"pread f0 {MIB} 65536",
    f"discard f0 {2 * MIB} {MIB}",
    f"fallocate f0 zero {4 * MIB} {MIB}",
    f"fallocate f0 punch|keep {6 * MIB} {MIB}",
    "fsync f0",
    *(f"pread f0 {place * MIB} {MIB}" for place in (2, 4, 6)),
]


def data_of(data: bytes) -> str:
    """What a script says of data that it has read: size and checksum (FNV-1a)."""
    checksum = 0xCBF29CE484222325
    for byte in data:
        checksum = (checksum ^ byte) * 0x100000001B3 % (1 << 64)
    return f"{len(data)} {checksum:016x}"


@pytest.mark.parametrize("cache", DriveCache)
def test_block_device_of_the_host_is_a_disk(
    loop_disk: LoopDisk, equipped_vms: MakeVms, cache: DriveCache
) -> None:
    vms = equipped_vms("script", calls=ON_A_BLOCK_DEVICE)
    drive = DriveConfig(id="d0", path=loop_disk.device, cache=cache)
    vm = vms.boot(replace(vms.config(), drives=(drive,)))
    for name in ("logical_block_size", "physical_block_size", "discard_granularity"):
        assert vm.ask(f"cat /sys/block/vda/queue/{name}") == "4096"
    before, allocated = loop_disk.file.read_bytes(), loop_disk.file.stat().st_blocks * 512

    told = results(vm, "calls", "/dev")

    subprocess.run(["blockdev", "--flushbufs", loop_disk.device], check=True)
    after = loop_disk.file.read_bytes()
    noise, written = data_of(before[3 * MIB :][:65536]), data_of(after[MIB:][:65536])
    zeros = data_of(bytes(MIB))
    assert told == ["0", noise, "65536", "EINVAL", "0", written, "0", "0", "0", "0", zeros, zeros, zeros]
    changed = {place for place in range(8) if before[place * MIB :][:MIB] != after[place * MIB :][:MIB]}
    assert changed == {1, 2, 4, 6}
    assert all(after[place * MIB :][:MIB] == bytes(MIB) for place in (2, 4, 6))
    # What was discarded takes no room any more.
    assert loop_disk.file.stat().st_blocks * 512 <= allocated - MIB


def test_block_device_that_its_owner_has_grown_is_larger_for_the_guest(
    loop_disk: LoopDisk, equipped_vms: MakeVms
) -> None:
    vms = equipped_vms("script", tail=["open f0 vda O_RDONLY 0", f"pread f0 {9 * MIB} 4096"])
    drives = (DriveConfig(id="d0", path=loop_disk.device),)
    vm = vms.boot(replace(vms.config(), drives=drives))
    with vm.qmp() as qmp:
        request = {"device": "d0", "size": 10 * MIB}
        with pytest.raises(QmpCommandError, match=f"'d0'.*block device of {8 * MIB} bytes: change"):
            qmp.execute("block_resize", request)

        tail = os.urandom(2 * MIB)
        with loop_disk.file.open("ab") as file:
            file.write(tail)
        subprocess.run(["losetup", "--set-capacity", loop_disk.device], check=True)
        assert qmp.execute("block_resize", request) == {}

    assert vm.ask(f"wait /sys/block/vda/size {10 * MIB // 512}") == "ok"
    assert results(vm, "tail", "/dev") == ["0", data_of(tail[MIB:][:4096])]
