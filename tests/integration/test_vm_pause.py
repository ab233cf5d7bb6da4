"""What a guest is in the middle of survives pause and resume: a disk under load."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.framework import guest_image, guest_programs
from tests.framework.command import eventually
from tests.framework.vm import DEADLINE_S, VmFactory, vm_factory
from vmm.config import CpuConfig, DriveConfig
from vmm.qmp.client import QmpClient

pytestmark = pytest.mark.integration

BLOCKS, ROUNDS = 2048, 2000
PAUSES = 20


@pytest.fixture
def checking_vms(tmp_path: Path) -> Iterator[VmFactory]:
    """VMs whose guest can check a disk."""
    program = guest_programs.compile_static("disk_check", tmp_path)
    with vm_factory(guest_image.build(tmp_path, {"disk_check": program})) as factory:
        yield factory


def requests(devices: list[dict[str, Any]]) -> int:
    """How many requests the disk has taken."""
    (counters,) = (entry["counters"] for entry in devices if entry["device"] == "d0")
    return int(counters["requests"])


def wait_for_requests(qmp: QmpClient, *, since: int) -> None:
    """Wait until the disk has taken more requests than that."""
    eventually(
        lambda: requests(qmp.execute("x-strato-stats")["devices"]) > since,
        "requests of the guest after a pause",
        timeout_s=DEADLINE_S,
    )


def test_disk_under_load_loses_nothing_across_pauses(checking_vms: VmFactory) -> None:
    config = checking_vms.config()
    disk = config.runtime_dir / "disk"
    disk.write_bytes(bytes(BLOCKS * 4096))
    drives = (DriveConfig(id="d0", path=disk),)
    vm = checking_vms.boot(replace(config, drives=drives, cpu=CpuConfig(count=2)))

    with vm.qmp() as qmp:
        idle = requests(qmp.execute("x-strato-stats")["devices"])
        vm.send(f"run /disk_check /dev/vda {BLOCKS} {ROUNDS} 4711")
        wait_for_requests(qmp, since=idle)
        for _ in range(PAUSES):
            qmp.execute("stop")
            before = qmp.execute("x-strato-stats")["devices"]
            qmp.execute("query-status")
            assert qmp.execute("x-strato-stats")["devices"] == before
            qmp.execute("cont")
            wait_for_requests(qmp, since=requests(before))
        vm.wait_for("=> exit ")
        vm.wait_for("\n")

    assert "=> exit 0" in vm.output, vm.output
    # The host sees what the guest has flushed.
    assert any(disk.read_bytes())
