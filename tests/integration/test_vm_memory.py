"""Memory that the guest does not need goes back to the host: the balloon, and free pages that are
reported."""

import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.framework import guest_image
from tests.framework.command import eventually
from tests.framework.vm import DEADLINE_S, Vm, VmFactory, vm_factory
from tools import image
from vmm.boards.base import DeviceKind
from vmm.config import BalloonConfig, EngineName, JailConfig, MemoryConfig, VmConfig
from vmm.errors import QmpCommandError
from vmm.qmp.client import QmpClient

pytestmark = pytest.mark.integration

MIB = 1 << 20
USED_MIB = 128

kvm_only = pytest.mark.engine("kvm", reason="engine tcg has no balloon")


@pytest.fixture
def busybox_vms(tmp_path: Path) -> Iterator[VmFactory]:
    """VMs whose guest can fill and empty files."""
    with vm_factory(guest_image.build(tmp_path, {"busybox": image.find_busybox()})) as factory:
        yield factory


def with_balloon(config: VmConfig, **changes: Any) -> VmConfig:
    """A VM of 384 MiB with such a balloon."""
    balloon = replace(BalloonConfig(), **changes)
    return replace(config, balloon=balloon, memory=MemoryConfig(size_mib=384))


def resident_mib(vm: Vm) -> int:
    """What the process of the VM holds of the host's memory."""
    lines = Path(f"/proc/{vm.process.pid}/status").read_text().splitlines()
    (line,) = [line for line in lines if line.startswith("VmRSS:")]
    return int(line.split()[1]) >> 10


def use_and_free(vm: Vm) -> int:
    """Let the guest use memory and let go of it; what the VM held when it was full."""
    assert vm.ask(f"run /busybox dd if=/dev/zero of=/full bs=1M count={USED_MIB}") == "exit 0"
    full = resident_mib(vm)
    assert vm.ask("run /busybox rm /full") == "exit 0"
    return full


@kvm_only
def test_free_pages_are_reported_and_come_back_by_themselves(busybox_vms: VmFactory) -> None:
    vm = busybox_vms.boot(with_balloon(busybox_vms.config()))
    full = use_and_free(vm)

    eventually(
        lambda: resident_mib(vm) < full - USED_MIB * 3 // 4, "memory that comes back", timeout_s=DEADLINE_S
    )
    assert vm.ask("echo hello") == "hello"
    # What was given back can be used again.
    assert use_and_free(vm) >= full - 16


@kvm_only
def test_balloon_takes_memory_and_gives_it_back(busybox_vms: VmFactory) -> None:
    vm = busybox_vms.boot(with_balloon(busybox_vms.config(), reporting=False))
    full = use_and_free(vm)
    with vm.qmp() as qmp:
        assert qmp.execute("query-balloon") == {"actual": 384 * MIB}
        assert resident_mib(vm) > full - 16
        available = int(vm.ask("cat /proc/meminfo").split()[7])

        qmp.execute("balloon", {"value": 192 * MIB})
        while qmp.wait_event("BALLOON_CHANGE")["data"]["actual"] != 192 * MIB:
            pass
        assert qmp.execute("query-balloon") == {"actual": 192 * MIB}
        assert resident_mib(vm) < full - USED_MIB * 3 // 4
        assert int(vm.ask("cat /proc/meminfo").split()[7]) < available - (150 << 10)

        qmp.execute("balloon", {"value": 384 * MIB})
        while qmp.wait_event("BALLOON_CHANGE")["data"]["actual"] != 384 * MIB:
            pass
    # A processor's own list of free pages, which no figure counts, keeps up to an eighth of them for a while.
    eventually(
        lambda: int(vm.ask("cat /proc/meminfo").split()[7]) > available - (32 << 10),
        "memory that the guest has again",
        timeout_s=DEADLINE_S,
    )
    assert use_and_free(vm) >= full - 16


def balloon_counters(qmp: QmpClient) -> dict[str, int]:
    """What the balloon counts."""
    (counters,) = (
        entry["counters"]
        for entry in qmp.execute("x-strato-stats")["devices"]
        if entry["kind"] == DeviceKind.BALLOON
    )
    return dict(counters)


@kvm_only
@pytest.mark.parametrize("jailed", [True, False])
def test_statistics_of_the_guest_are_told_again_and_again(vms: VmFactory, jailed: bool) -> None:
    config = replace(vms.config(), jail=JailConfig(enabled=jailed))
    vm = vms.boot(with_balloon(config, statistics_s=1))
    total = int(vm.ask("cat /proc/meminfo").split()[1]) << 10

    with vm.qmp() as qmp:
        eventually(
            lambda: balloon_counters(qmp)["stats_updates"] >= 2, "second statistics", timeout_s=DEADLINE_S
        )
        told = balloon_counters(qmp)
        text = qmp.execute("x-strato-metrics")["text"]
    assert told["guest_total_memory"] == total
    assert 0 < told["guest_free_memory"] <= total
    assert 0 < told["guest_available_memory"] <= total
    assert told["guest_minor_faults"] > 0
    assert time.time() - DEADLINE_S < told["stats_updated_s"] <= time.time()
    assert f'strato_balloon_guest_total_memory{{vm="test",device="balloon"}} {total}\n' in text


@kvm_only
def test_without_statistics_none_are_told(vms: VmFactory) -> None:
    vm = vms.boot(with_balloon(vms.config()))

    with vm.qmp() as qmp:
        told = balloon_counters(qmp)
    assert "inflated_pages" in told
    assert [name for name in told if name.startswith("guest_")] == []


@kvm_only
@pytest.mark.parametrize(
    ("deflate_on_oom", "answer"), [(True, "exit 0"), (False, f"exit -{signal.SIGKILL:d}")]
)
def test_guest_under_pressure_has_its_memory_back_if_the_balloon_may_give_it(
    busybox_vms: VmFactory, deflate_on_oom: bool, answer: str
) -> None:
    vm = busybox_vms.boot(with_balloon(busybox_vms.config(), deflate_on_oom=deflate_on_oom))
    with vm.qmp() as qmp:
        qmp.execute("balloon", {"value": 144 * MIB})
        while qmp.wait_event("BALLOON_CHANGE")["data"]["actual"] != 144 * MIB:
            pass

        # A program with a buffer of more than is left, all of which it writes to; so much is promised to it.
        assert vm.ask("store /proc/sys/vm/overcommit_memory 1") == "ok"
        assert vm.ask("run /busybox dd if=/dev/zero of=/dev/null bs=192M count=1") == answer

        assert (qmp.execute("query-balloon")["actual"] > 144 * MIB) is deflate_on_oom
    assert vm.ask("echo alive") == "alive"


def test_without_a_balloon_the_commands_say_so_as_qemu_does(vms: VmFactory) -> None:
    vm = vms.boot(replace(vms.config(), balloon=BalloonConfig(enabled=False)))

    with vm.qmp() as qmp:
        for command, arguments in (("query-balloon", {}), ("balloon", {"value": 128 * MIB})):
            with pytest.raises(QmpCommandError, match="No balloon device") as caught:
                qmp.execute(command, arguments)
            assert caught.value.error_class == "DeviceNotActive"
        assert qmp.execute("query-memory-size-summary") == {"base-memory": 256 * MIB, "plugged-memory": 0}


@kvm_only
def test_balloon_beyond_the_memory_is_refused(vms: VmFactory) -> None:
    vm = vms.boot()

    with vm.qmp() as qmp:
        assert qmp.execute("query-kvm") == {"enabled": True, "present": True}
        assert qmp.execute("x-strato-info")["engine"] == EngineName.KVM
        for size in (0, -1, 257 * MIB):
            with pytest.raises(QmpCommandError, match="'value' expects"):
                qmp.execute("balloon", {"value": size})
