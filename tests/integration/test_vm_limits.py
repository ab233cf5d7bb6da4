"""Limits of a disk bound what a guest gets: from the configuration, and changed while the VM runs.

Only upper bounds are asked for: a slow machine is no defect, and no faster one goes beyond them.
"""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.framework import guest_image
from tests.framework.vm import Vm, VmFactory, vm_factory
from tools import image
from vmm.config import DriveConfig, LimitConfig
from vmm.qmp.client import QmpClient

pytestmark = pytest.mark.integration

KIB, MIB = 1 << 10, 1 << 20
DISK_MIB = 32
RATE, BURST = 2 * MIB, 1 * MIB
READ_MIB = 5  # two seconds at that rate


@pytest.fixture
def busybox_vms(tmp_path: Path) -> Iterator[VmFactory]:
    """VMs whose guest can read from disks."""
    with vm_factory(guest_image.build(tmp_path, {"busybox": image.find_busybox()})) as factory:
        yield factory


def boot(vms: VmFactory, limit: LimitConfig) -> Vm:
    """A VM with one disk of that limit; where its requests end is no matter of the guest's cache."""
    config = vms.config()
    disk = config.runtime_dir / "disk"
    disk.write_bytes(bytes(DISK_MIB * MIB))
    return vms.boot(replace(config, drives=(DriveConfig(id="d0", path=disk, limit=limit),)))


def read_s(vm: Vm, *, skip_mib: int) -> float:
    """Let the guest read `READ_MIB` of the disk that it has not read yet; the seconds that it took."""
    begin = time.monotonic()
    command = f"run /busybox dd if=/dev/vda of=/dev/null bs=64k skip={skip_mib * 16} count={READ_MIB * 16}"
    assert vm.ask(command) == "exit 0"
    return time.monotonic() - begin


def counted(qmp: QmpClient) -> dict[str, Any]:
    """What the disk counts."""
    (counters,) = (
        entry["counters"] for entry in qmp.execute("x-strato-stats")["devices"] if entry["device"] == "d0"
    )
    return dict(counters)


def test_disk_with_a_limit_gives_no_more_than_burst_and_rate(busybox_vms: VmFactory) -> None:
    vm = boot(busybox_vms, LimitConfig(bandwidth=RATE, bandwidth_burst=BURST))

    seconds = read_s(vm, skip_mib=1)

    assert BURST + RATE * seconds >= READ_MIB * MIB
    with vm.qmp() as qmp:
        assert counted(qmp)["throttled"] > 0


def test_limit_of_a_disk_in_use_is_changed_and_lifted(busybox_vms: VmFactory) -> None:
    vm = boot(busybox_vms, LimitConfig())
    with vm.qmp() as qmp:
        read_s(vm, skip_mib=1)
        assert counted(qmp)["throttled"] == 0

        qmp.execute("x-strato-set-block-limit", {"id": "d0", "bandwidth": RATE, "bandwidth_burst": BURST})
        (inserted,) = (disk["inserted"] for disk in qmp.execute("query-block"))
        assert (inserted["bps"], inserted["iops"]) == (RATE, 0)
        seconds = read_s(vm, skip_mib=8)
        assert BURST + RATE * seconds >= READ_MIB * MIB

        qmp.execute("x-strato-set-block-limit", {"id": "d0"})
        before = counted(qmp)["throttled"]
        read_s(vm, skip_mib=16)
        assert counted(qmp)["throttled"] == before


def test_limit_of_operations_bounds_requests_of_any_size(busybox_vms: VmFactory) -> None:
    vm = boot(busybox_vms, LimitConfig())
    rate, burst = 20, 5
    with vm.qmp() as qmp:
        qmp.execute("x-strato-set-block-limit", {"id": "d0", "operations": rate, "operations_burst": burst})
        before = counted(qmp)

        seconds = read_s(vm, skip_mib=8)

        after = counted(qmp)
    requests = after["reads"] - before["reads"]
    # As large as the guest likes; more than the burst in any case, or nothing has been proven.
    assert requests > 2 * burst
    assert requests <= burst + rate * seconds + 1
    assert after["throttled"] > before["throttled"]
