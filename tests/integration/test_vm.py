"""Real VMs under strato-vmm: how they boot, what can be done to them, and how they end."""

import os
import select
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework.vm import DEADLINE_S, DIRECT, VmFactory, processes_naming, with_boot, with_programs
from vmm import paths
from vmm.config import EngineName, ProgramsConfig, ShareConfig, VsockConfig
from vmm.engines import host_clock
from vmm.engines.probe import verdict
from vmm.exit_report import ExitCode, ExitKind
from vmm.log import Log

pytestmark = pytest.mark.integration


def test_guest_boots_and_powers_off(vms: VmFactory) -> None:
    vm = vms.boot()

    vm.send("poweroff")

    report = vm.wait_exit()
    assert report.kind is ExitKind.GUEST_SHUTDOWN
    assert vm.process.returncode == ExitCode.OK
    assert "=> ready" in report.console_tail


def test_guest_sees_its_vcpus_and_memory(vms: VmFactory) -> None:
    config = vms.config()
    vm = vms.boot(
        replace(config, cpu=replace(config.cpu, count=2), memory=replace(config.memory, size_mib=384))
    )

    assert vm.ask("cat /sys/devices/system/cpu/online") == "0-1"
    assert 340 << 10 < int(vm.ask("cat /proc/meminfo").split()[1]) < 384 << 10


def test_panic_is_told_with_its_reason(vms: VmFactory) -> None:
    vm = vms.boot()

    with vm.qmp() as qmp:
        vm.send("panic")
        report = vm.wait_exit()
        qmp.wait_event("GUEST_PANICKED")
        assert qmp.wait_event("SHUTDOWN")["data"] == {"guest": True, "reason": "guest-panic"}

    assert report.kind is ExitKind.GUEST_PANIC
    assert "Attempted to kill init" in report.message
    assert vm.process.returncode == ExitCode.PANIC


def test_reset_by_the_guest_ends_the_vm(vms: VmFactory) -> None:
    vm = vms.boot()

    vm.send("reset")

    assert vm.wait_exit().kind is ExitKind.GUEST_RESET
    assert vm.process.returncode == ExitCode.RESET


def test_sigterm_ends_the_vm_and_all_that_it_started(vms: VmFactory) -> None:
    vm = vms.boot()

    vm.process.send_signal(signal.SIGTERM)

    assert vm.wait_exit().kind is ExitKind.SIGNAL
    assert vm.process.returncode == ExitCode.SIGNAL


@pytest.mark.engine("tcg", reason="only this engine has QEMU for a child")
def test_killed_qemu_is_a_host_error_that_names_it(vms: VmFactory) -> None:
    vm = vms.boot()

    os.kill(vm.child("qemu-system-x86_64"), signal.SIGKILL)

    report = vm.wait_exit()
    assert report.kind is ExitKind.HOST_ERROR
    assert "qemu-system-x86_64" in report.message
    assert "SIGKILL" in report.message


@pytest.mark.engine("tcg", reason="only this engine serves devices by programs")
@pytest.mark.parametrize("program", ["virtiofsd", "vhost-device-vsock"])
def test_killed_backend_is_a_host_error_that_names_it(vms: VmFactory, tmp_path: Path, program: str) -> None:
    # Only reference programs can be killed: our own devices live and die with strato-vmm.
    programs = ProgramsConfig(virtiofsd=paths.virtiofsd(), vhost_device_vsock=paths.vhost_device_vsock())
    config = with_programs(vms.config(), programs)
    vsock = VsockConfig(socket=config.runtime_dir / "v.sock")
    vm = vms.boot(replace(config, vsock=vsock, shares=(ShareConfig(tag="t", directory=tmp_path),)))

    os.kill(vm.child(program), signal.SIGKILL)

    report = vm.wait_exit()
    assert report.kind is ExitKind.HOST_ERROR
    assert program in report.message
    assert "SIGKILL" in report.message


@pytest.mark.engine("tcg", reason="only this engine has QEMU for a child")
def test_killed_qemu_with_backends_is_not_blamed_on_them(vms: VmFactory, tmp_path: Path) -> None:
    config = vms.config()
    vsock = VsockConfig(socket=config.runtime_dir / "v.sock")
    vm = vms.boot(replace(config, vsock=vsock, shares=(ShareConfig(tag="t", directory=tmp_path),)))

    os.kill(vm.child("qemu-system-x86_64"), signal.SIGKILL)

    assert "qemu-system-x86_64" in vm.wait_exit().message


def test_killed_strato_vmm_takes_its_pid_namespace_along(vms: VmFactory, tmp_path: Path) -> None:
    config = replace(vms.config(), shares=(ShareConfig(tag="t", directory=tmp_path),))
    vm = vms.boot(config)

    vm.process.kill()

    vm.process.wait(DEADLINE_S)
    assert processes_naming(str(config.runtime_dir)) == []


def test_absent_kernel_is_a_config_error_that_names_it(vms: VmFactory) -> None:
    vm = vms.start(with_boot(vms.config(), kernel=Path("/nonexistent/vmlinux")), command=DIRECT)

    report = vm.wait_exit()
    assert report.kind is ExitKind.CONFIG_ERROR
    assert "boot.kernel" in report.message
    assert "/nonexistent/vmlinux" in report.message
    assert vm.process.returncode == ExitCode.CONFIG


@pytest.mark.engine("tcg", reason="only this engine has QEMU for a child")
def test_kernel_that_is_none_is_a_host_error_with_qemus_words(vms: VmFactory) -> None:
    config = vms.config()
    kernel = config.runtime_dir / "kernel"
    kernel.write_text("I am not a kernel")
    vm = vms.start(with_boot(config, kernel=kernel))

    report = vm.wait_exit()
    assert report.kind is ExitKind.HOST_ERROR
    assert str(kernel) in report.message or "kernel" in report.message


@pytest.mark.engine("tcg", reason="only this engine has QEMU for a child")
def test_absent_program_is_a_host_error_that_names_it(vms: VmFactory) -> None:
    config = vms.config()
    programs = ProgramsConfig(qemu=Path("/nonexistent/qemu"))
    vm = vms.start(replace(config, programs=programs), command=DIRECT)

    report = vm.wait_exit()
    assert report.kind is ExitKind.HOST_ERROR
    assert "/nonexistent/qemu" in report.message


def test_more_memory_than_the_host_has_is_refused(vms: VmFactory) -> None:
    config = vms.config()
    vm = vms.start(replace(config, memory=replace(config.memory, size_mib=1 << 20)))

    report = vm.wait_exit()
    assert report.kind is ExitKind.HOST_ERROR
    assert "memory.size_mib" in report.message


def test_engine_kvm_without_usable_kvm_is_an_error_that_says_why(vms: VmFactory) -> None:
    found = verdict(Log())
    if found.engine is EngineName.KVM:
        pytest.skip(f"KVM is usable here: {found.reason}")
    vm = vms.start(replace(vms.config(), engine=EngineName.KVM), command=DIRECT)

    report = vm.wait_exit()
    assert report.kind is ExitKind.HOST_ERROR
    assert f"Engine kvm cannot run here: {found.reason}" in report.message


def test_guest_clock_follows_the_hosts(vms: VmFactory) -> None:
    def look() -> tuple[float, float, float]:
        """The guest's time between two of the host's: the answer may be long on its way."""
        before = time.time()
        return before, float(vm.ask("now")), time.time()

    vm = vms.boot()
    first_before, first, first_after = look()
    select.select([], [], [], 2.0)  # the measured quantity is a span of time
    last_before, last, last_after = look()

    assert last_before - first_after - 0.1 < last - first < last_after - first_before + 0.1


@pytest.mark.engine("tcg", reason="a processor of KVM has a timer with a known frequency")
def test_guest_is_told_the_frequencies_of_its_timers(vms: VmFactory) -> None:
    vm = vms.boot(with_boot(vms.config(), cmdline="apic=verbose"))

    period = host_clock.APIC_TIMER_KHZ * 1000 // host_clock.GUEST_HZ
    assert f"lapic timer already calibrated {period}" in vm.ask("logged lapic")
    assert vm.ask("logged calibration") == "not logged"


def test_console_output_is_kept_in_ring_and_log_within_limits(vms: VmFactory) -> None:
    config = vms.config()
    log = config.runtime_dir / "console.log"
    console = replace(config.console, log=log, limit_kib=8, ring_kib=4)
    vm = vms.boot(replace(config, console=console))

    assert vm.ask("flood 2000") == "ok"
    with vm.qmp() as qmp:
        tail = qmp.execute("x-strato-console-tail")

    assert tail["data"].endswith("flood 1\r\n=> ok\r\n")
    assert len(tail["data"]) == 4096
    assert tail["dropped"] > 10_000
    assert log.stat().st_size <= 4096
    assert log.with_name("console.log.1").stat().st_size <= 4096
    vm.send("poweroff")
    assert len(vm.wait_exit().console_tail) == 4096
