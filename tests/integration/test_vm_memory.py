"""Memory that the guest does not need goes back to the host: the balloon, and free pages that are
reported."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework import guest_image
from tests.framework.command import eventually
from tests.framework.vm import DEADLINE_S, Vm, VmFactory, vm_factory
from tools import image
from vmm.config import BalloonConfig, EngineName, MemoryConfig, VmConfig
from vmm.errors import QmpCommandError

pytestmark = pytest.mark.integration

MIB = 1 << 20
USED_MIB = 128

kvm_only = pytest.mark.engine("kvm", reason="engine tcg has no balloon")


@pytest.fixture
def busybox_vms(tmp_path: Path) -> Iterator[VmFactory]:
    """VMs whose guest can fill and empty files."""
    with vm_factory(guest_image.build(tmp_path, {"busybox": image.find_busybox()})) as factory:
        yield factory


def with_balloon(config: VmConfig, **changes: bool) -> VmConfig:
    """A VM of 384 MiB with such a balloon."""
    return replace(config, balloon=BalloonConfig(**changes), memory=MemoryConfig(size_mib=384))


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
