"""Real VMs under strato-vmm: how they boot, what can be done to them, and how they end."""

import os
import signal
from dataclasses import replace

import pytest

from tests.framework.vm import VmFactory
from vmm.exit_report import ExitCode, ExitKind

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
    vm = vms.boot(replace(config, cpu=replace(config.cpu, count=2), memory=replace(config.memory, size_mib=384)))

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


def test_killed_qemu_is_a_host_error_that_names_it(vms: VmFactory) -> None:
    vm = vms.boot()

    os.kill(vm.child("qemu-system-x86_64"), signal.SIGKILL)

    report = vm.wait_exit()
    assert report.kind is ExitKind.HOST_ERROR
    assert "qemu-system-x86_64" in report.message
    assert "SIGKILL" in report.message
