"""Engine kvm: how its VMs boot, rest and end, where that is not the same with every engine."""

import os
import re
import select
import signal
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework import tiny_kernel
from tests.framework.command import eventually
from tests.framework.engine import kvm_is_emulated
from tests.framework.vm import DEADLINE_S, Vm, VmFactory, with_boot
from vmm.boards.microvm import PLATFORM
from vmm.config import CpuConfig, MemoryBackend, MemoryConfig, SerialConfig, VmConfig
from vmm.engines.kvm import GENERATION_SIZE
from vmm.exit_report import ExitCode, ExitKind

pytestmark = [
    pytest.mark.integration,
    pytest.mark.engine("kvm", reason="this is about its own machine"),
]

KVM_DEBUG = Path("/sys/kernel/debug/kvm")


def tiny(vms: VmFactory, code: bytes) -> VmConfig:
    """A VM whose kernel is these instructions."""
    config = vms.config()
    kernel = tiny_kernel.write(config.runtime_dir / "kernel", code)
    return with_boot(config, kernel=kernel, initrd=None)


def wait_started(vm: Vm) -> None:
    """Wait until the VM answers by QMP that it runs."""
    eventually(vm.qmp_path.exists, "QMP socket", timeout_s=DEADLINE_S)
    with vm.qmp() as qmp:
        assert qmp.execute("query-status")["running"] is True


@pytest.mark.parametrize(("cpus", "memory_mib"), [(1, 128), (2, 256), (4, 4096)])
def test_guest_boots_with_its_vcpus_and_all_of_its_memory(vms: VmFactory, cpus: int, memory_mib: int) -> None:
    config = replace(vms.config(), cpu=CpuConfig(count=cpus), memory=MemoryConfig(size_mib=memory_mib))
    if kvm_is_emulated():
        # Where two or more vCPUs start at the same time, QEMU's emulation of the processor sometimes makes of
        # it a triple fault: in 7 of 148 boots of ours, 3 of 93 of QEMU/KVM, none of 55 one by one.
        config = with_boot(config, cmdline="cpuhp.parallel=0")
    vm = vms.boot(config)

    assert vm.ask("cat /sys/devices/system/cpu/online") == ("0" if cpus == 1 else f"0-{cpus - 1}")
    seen_kib = int(vm.ask("cat /proc/meminfo").split()[1])
    # Less the kernel, its tables of pages (1/64), and what it keeps for itself at boot.
    assert (memory_mib - memory_mib // 40 - 40) << 10 < seen_kib < memory_mib << 10
    with vm.qmp() as qmp:
        assert len({cpu["thread-id"] for cpu in qmp.execute("query-cpus-fast")}) == cpus
    vm.send("poweroff")
    assert vm.wait_exit().kind is ExitKind.GUEST_SHUTDOWN


@pytest.mark.parametrize("backend", [MemoryBackend.MEMFD, MemoryBackend.FILE])
def test_guest_runs_in_other_memory_than_the_default(vms: VmFactory, backend: MemoryBackend) -> None:
    config = vms.config()
    file = config.runtime_dir / "ram"
    file.write_bytes(bytes(96 << 20))
    memory = MemoryConfig(size_mib=96, backend=backend, file=file if backend is MemoryBackend.FILE else None)
    vm = vms.boot(replace(config, memory=memory))

    assert vm.ask("echo hello") == "hello"
    # What the guest writes stays its own.
    assert file.read_bytes().strip(bytes(1)) == b""


@pytest.fixture
def reserved_huge_pages() -> Iterator[None]:
    """The host has 96 MiB in reserved pages of 2 MiB, as long as the test runs."""
    number = Path("/proc/sys/vm/nr_hugepages")
    before = number.read_text()
    number.write_text(str(int(before) + 48))
    try:
        if int(number.read_text()) < int(before) + 48:
            pytest.skip("the host has no 96 MiB that are not in pieces")
        yield
    finally:
        number.write_text(before)


def status_kib(vm: Vm, field: str) -> int:
    """A line of the process's status in proc(5), in KiB."""
    (line,) = (
        line
        for line in Path(f"/proc/{vm.process.pid}/status").read_text().splitlines()
        if line.startswith(f"{field}:")
    )
    return int(line.split()[1])


def test_preallocated_memory_is_there_from_the_start(vms: VmFactory) -> None:
    vm = vms.boot(replace(vms.config(), memory=MemoryConfig(size_mib=96, prealloc=True)))

    assert status_kib(vm, "RssAnon") >= 96 << 10


@pytest.mark.parametrize("backend", [MemoryBackend.AUTO, MemoryBackend.MEMFD])
@pytest.mark.usefixtures("reserved_huge_pages")
def test_guest_runs_in_reserved_huge_pages(vms: VmFactory, backend: MemoryBackend) -> None:
    memory = MemoryConfig(size_mib=96, backend=backend, huge_pages=True, prealloc=True)
    vm = vms.boot(replace(vms.config(), memory=memory))

    assert vm.ask("echo hello") == "hello"
    assert status_kib(vm, "HugetlbPages") == 96 << 10


def test_huge_pages_that_the_host_does_not_have_are_an_error_that_says_so(vms: VmFactory) -> None:
    if Path("/proc/sys/vm/nr_hugepages").read_text().strip() != "0":
        pytest.skip("this host has reserved huge pages")
    vm = vms.start(replace(vms.config(), memory=MemoryConfig(size_mib=96, huge_pages=True)))

    report = vm.wait_exit()
    assert report.kind is ExitKind.HOST_ERROR
    assert "huge pages" in report.message
    assert "nr_hugepages" in report.message


def test_generation_is_the_vms_own_and_outlives_a_reset(vms: VmFactory) -> None:
    def generation(vm: Vm) -> bytes:
        """What the guest finds at the place that the board's plan gives it (VMGenID)."""
        (ram,) = (
            entry
            for entry in Path(f"/proc/{vm.process.pid}/fd").iterdir()
            if "memfd:strato-ram" in str(entry.readlink())
        )
        with ram.open("rb") as file:
            return os.pread(file.fileno(), GENERATION_SIZE, PLATFORM.generation_addr)

    memory = MemoryConfig(size_mib=96, backend=MemoryBackend.MEMFD)
    vm, other = (vms.boot(replace(vms.config(), memory=memory)) for _ in range(2))
    first = generation(vm)
    with vm.qmp() as qmp:
        qmp.execute("system_reset")
    vm.wait_ready()

    assert first not in (generation(other), bytes(GENERATION_SIZE))
    assert generation(vm) == first
    assert "STRT0001:00" in vm.ask("list /sys/bus/platform/drivers/vmgenid").split()


def test_serial_port_carries_the_boot_messages(vms: VmFactory) -> None:
    config = vms.config()
    log = config.runtime_dir / "serial.log"
    vm = vms.boot(replace(config, serial=SerialConfig(log=log)))

    assert vm.ask("echo hello") == "hello"
    text = log.read_text(errors="replace")
    assert "Linux version" in text
    assert "Command line: earlyprintk=ttyS0" in text


def test_triple_fault_has_a_kind_of_its_own(vms: VmFactory) -> None:
    vm = vms.start(tiny(vms, tiny_kernel.TRIPLE_FAULT))

    report = vm.wait_exit()
    assert report.kind is ExitKind.TRIPLE_FAULT
    assert vm.process.returncode == ExitCode.PANIC


def test_linux_that_resets_by_triple_fault_is_not_taken_for_a_reset(vms: VmFactory) -> None:
    vm = vms.boot(with_boot(vms.config(), cmdline="reboot=t"))

    with vm.qmp() as qmp:
        vm.send("reset")
        assert qmp.wait_event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-reset"}
    assert vm.wait_exit().kind is ExitKind.TRIPLE_FAULT


def test_vcpu_that_kvm_cannot_run_has_a_kind_of_its_own_and_kvms_words(vms: VmFactory) -> None:
    vm = vms.start(tiny(vms, tiny_kernel.RUN_NOWHERE))

    report = vm.wait_exit()
    assert report.kind is ExitKind.VCPU_FAILED
    assert "KVM" in report.message
    assert vm.process.returncode == ExitCode.HOST


def test_bare_panic_and_bare_reset_are_told_apart(vms: VmFactory) -> None:
    panicked = vms.start(tiny(vms, tiny_kernel.PANIC))
    reset = vms.start(tiny(vms, tiny_kernel.RESET))

    assert panicked.wait_exit().kind is ExitKind.GUEST_PANIC
    assert reset.wait_exit().kind is ExitKind.GUEST_RESET


@pytest.mark.parametrize("code", [tiny_kernel.SPIN, tiny_kernel.HALT], ids=["spins", "halted"])
def test_guest_that_never_gives_way_is_paused_reset_and_ended(vms: VmFactory, code: bytes) -> None:
    vm = vms.start(replace(tiny(vms, code), cpu=CpuConfig(count=2)))
    wait_started(vm)

    with vm.qmp() as qmp:
        for _ in range(20):
            assert qmp.execute("stop") == qmp.execute("cont") == {}
        for _ in range(5):
            assert qmp.execute("system_reset") == {}
        assert qmp.execute("query-status")["running"] is True
        qmp.execute("quit")
    assert vm.wait_exit().kind is ExitKind.QUIT


def test_reset_of_a_paused_vm_leaves_it_paused(vms: VmFactory) -> None:
    vm = vms.boot()

    with vm.qmp() as qmp:
        qmp.execute("stop")
        qmp.execute("system_reset")
        assert qmp.execute("query-status")["status"] == "paused"
        qmp.execute("cont")
    vm.wait_ready()


def test_kernel_that_is_none_is_a_host_error_that_names_it(vms: VmFactory) -> None:
    config = vms.config()
    kernel = config.runtime_dir / "kernel"
    kernel.write_text("I am not a kernel")
    report = vms.start(with_boot(config, kernel=kernel)).wait_exit()

    assert report.kind is ExitKind.HOST_ERROR
    assert f"Kernel {kernel} cannot be loaded" in report.message


def test_killed_vmm_leaves_no_vm_behind(vms: VmFactory) -> None:
    vm = vms.boot(replace(vms.config(), cpu=CpuConfig(count=2)))
    pid = vm.process.pid
    assert list(KVM_DEBUG.glob(f"{pid}-*"))

    os.kill(pid, signal.SIGKILL)

    assert vm.process.wait(DEADLINE_S) == -signal.SIGKILL
    eventually(lambda: not list(KVM_DEBUG.glob(f"{pid}-*")), "the end of the VM in the kernel")
    assert not (vm.directory / "exit.json").exists()


def test_twenty_vms_run_at_once(vms: VmFactory) -> None:
    small = MemoryConfig(size_mib=64)
    started = [vms.start(replace(vms.config(), memory=small)) for _ in range(20)]

    for vm in started:
        vm.wait_ready(timeout_s=len(started) * DEADLINE_S)
    for number, vm in enumerate(started):
        assert vm.ask(f"echo {number}") == str(number)
    for vm in started:
        vm.send("poweroff")
    assert {vm.wait_exit().kind for vm in started} == {ExitKind.GUEST_SHUTDOWN}


def test_guest_clock_is_right_at_once_after_a_pause(vms: VmFactory) -> None:
    def behind() -> tuple[float, float]:
        """How far the guest's clock may be behind, from and to: the answer may be long on its way."""
        before = time.time()
        guest = float(vm.ask("now"))
        return before - guest, time.time() - guest

    vm = vms.boot()
    first = behind()
    with vm.qmp() as qmp:
        qmp.execute("stop")
        select.select([], [], [], 3.0)  # the time that the guest must notice
        qmp.execute("cont")
    last = behind()

    # A guest that boots slowly is behind by what it has lost before its first tick, but by no more than that.
    assert first[0] - 0.1 < last[1]
    assert last[0] < first[1] + 0.1


def test_counters_of_the_machine_are_told(vms: VmFactory) -> None:
    vm = vms.boot()

    with vm.qmp() as qmp:
        stats = qmp.execute("x-strato-stats")
        text = qmp.execute("x-strato-metrics")["text"]
        threads = [cpu["thread-id"] for cpu in qmp.execute("query-cpus-fast")]
    assert sum(stats["machine"].values()) > 0
    assert {device["kind"] for device in stats["devices"]} >= {"console", "rng"}
    for name in stats["machine"]:
        assert f'strato_vm_{name}{{vm="test"}}' in text
    # In the numbers of its own pid namespace.
    statuses = [path.read_text() for path in Path(f"/proc/{vm.process.pid}/task").glob("*/status")]
    numbers = [re.search(r"^NSpid:.*\t(\d+)$", status, re.MULTILINE) for status in statuses]
    assert set(threads) <= {int(found[1]) for found in numbers if found}
