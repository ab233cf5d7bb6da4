"""What serving devices costs strato-vmm itself: memory, and threads that leave signals to Python."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.busy_vm import busy_vm
from tests.framework.engine import engine_in_use
from tests.framework.vm import Vm
from tests.perf import memory
from vmm.config import EngineName

pytestmark = pytest.mark.integration

MAX_ABOVE_INTERPRETER_KIB = 8192  # measured: 6.2 MiB with engine tcg, 5.2 with kvm
# Conversations with QEMU about a device, or what QEMU would do.
OF_ENGINE = {
    EngineName.TCG: {"vu-rng", "vu-vsock", "vu-fs0"},
    EngineName.KVM: {"vcpu0", "console", "balloon"},
}


@pytest.fixture(scope="module")
def vm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Vm]:
    """A VM whose devices have all had work."""
    with busy_vm(tmp_path_factory.mktemp("busy")) as busy:
        yield busy.vm


def test_private_memory_stays_within_its_bound_above_the_interpreter(vm: Vm) -> None:
    bare, whole = memory.of_bare_interpreter(), memory.of_process(vm.process.pid)

    above = whole.private - bare.private
    assert above <= MAX_ABOVE_INTERPRETER_KIB


def test_device_threads_show_their_device_and_block_signals(vm: Vm) -> None:
    pid = vm.process.pid
    names, masks = set(), []
    for task in Path(f"/proc/{pid}/task").iterdir():
        if int(task.name) != pid:
            fields = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            names.add(fields["Name"])
            masks.append(int(fields["SigBlk"], 16))

    assert {"rng", "vsock", "fs0", "fs1", "disk", "fs0-one", "net0"} | OF_ENGINE[engine_in_use()] <= names
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
        assert all(mask >> (number - 1) & 1 for mask in masks), number
