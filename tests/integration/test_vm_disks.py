"""The disks of a running VM: they grow."""

import os
from dataclasses import replace

import pytest

from vmm.config import DriveConfig
from vmm.errors import QmpCommandError

from .guest_scripts import MakeVms

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
