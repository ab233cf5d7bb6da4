"""What serving devices costs strato-vmm itself: memory, and threads that leave signals to Python."""

import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.framework.vm import Vm, VmFactory
from tests.integration.test_vm_devices import connect_to_guest, exchange
from tests.perf import memory
from vmm.config import DriveConfig, ShareConfig, VsockConfig

pytestmark = pytest.mark.integration

MAX_ABOVE_INTERPRETER_KIB = 8 << 10

# As the installed launcher starts it: without the site module and what that imports.
COMMAND = [
    sys.executable,
    "-IS",
    "-c",
    f"import sys; sys.path[:0] = {[str(Path(__file__).parents[2]), *sys.path[-1:]]!r}; "
    "from vmm.__main__ import main; sys.exit(main())",
]


@pytest.fixture
def busy_vm(vms: VmFactory) -> Vm:
    """A VM whose devices have all had work."""
    config = vms.config()
    folder = config.runtime_dir
    (folder / "disk").write_bytes(bytes(8 << 20))
    for name in ("one", "two"):
        (folder / name).mkdir()
        (folder / name / "file").write_bytes(os.urandom(4 << 20))
    shares = tuple(ShareConfig(tag=name, directory=folder / name) for name in ("one", "two"))
    drive = DriveConfig(id="disk", path=folder / "disk")
    vsock = VsockConfig(socket=folder / "v.sock")
    vm = vms.boot(replace(config, vsock=vsock, drives=(drive,), shares=shares), command=COMMAND)
    for name in ("one", "two"):
        assert vm.ask(f"mount {name} /mnt-{name}") == "ok"
        vm.ask(f"cat /mnt-{name}/file")
    vm.ask("cat /dev/vda")
    assert vm.ask("vsock-echo 1024") == "ok"
    for _ in range(50):
        data = os.urandom(32 << 10)
        with connect_to_guest(vsock.socket, 1024) as connection:
            assert exchange(connection, data) == data
    return vm


def test_private_memory_stays_within_eight_mib_above_the_interpreter(busy_vm: Vm) -> None:
    bare, whole = memory.of_bare_interpreter(), memory.of_process(busy_vm.process.pid)

    above = whole.private - bare.private
    assert above <= MAX_ABOVE_INTERPRETER_KIB


def test_device_threads_show_their_device_and_block_signals(busy_vm: Vm) -> None:
    pid = busy_vm.process.pid
    names, masks = set(), []
    for task in Path(f"/proc/{pid}/task").iterdir():
        if int(task.name) != pid:
            fields = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            names.add(fields["Name"])
            masks.append(int(fields["SigBlk"], 16))

    assert {"rng", "vu-rng", "vsock", "vu-vsock", "fs0", "vu-fs0", "fs1", "disk", "fs0-one"} <= names
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP):
        assert all(mask >> (number - 1) & 1 for mask in masks), number
