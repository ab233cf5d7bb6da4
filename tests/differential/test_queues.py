"""Several queues: our block and net over vhost-user on QEMU's q35 board, since the light board has one queue
(pair) for each device.
"""

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework import guest_image, guest_programs
from tests.framework.command import Background
from tests.framework.debian_kernel import DebianKernel
from tests.framework.device_vm import DeviceVm, DeviceVmSettings
from tests.framework.vhost_devices import Device, Disk, Net

pytestmark = pytest.mark.differential

QUEUES = 4
MIB = 1 << 20
PORT = 5002


@pytest.fixture
def directory() -> Iterator[Path]:
    """A folder with a short path."""
    made = Path(tempfile.mkdtemp(prefix="vmq-"))
    yield made
    shutil.rmtree(made, ignore_errors=True)


def boot(directory: Path, devices: list[Device]) -> DeviceVm:
    """A q35 VM with one vCPU for each queue and its drivers loaded; the caller closes it."""
    kernel = DebianKernel.installed()
    drivers = kernel.load_order("virtio_pci", "virtio_blk", "virtio_net")
    files = {path.name: path for path in drivers}
    for program in ("io_bench", "stream_bench"):
        files[program] = guest_programs.compile_static(program, directory)
    settings = DeviceVmSettings(
        image=guest_image.build(directory, files),
        devices=devices,
        cpus=QUEUES,
        kernel=kernel.vmlinuz,
        pci=True,
    )
    vm = DeviceVm(directory, settings).__enter__()
    for path in drivers:
        assert vm.ask(f"load /{path.name}") == "ok", path.name
    return vm


def test_disk_is_used_through_all_queues(directory: Path) -> None:
    (directory / "disk").write_bytes(bytes(16 * MIB))
    vm = boot(directory, [Disk("disk", directory / "disk", QUEUES)])
    try:
        assert sorted(vm.ask("list /sys/block/vda/mq").split()) == [str(number) for number in range(QUEUES)]
        before = interrupts(vm, "req")
        for verb in ("write", "read"):
            for cpu in range(QUEUES):
                vm.run("/io_bench", "on", cpu, "disk", "/dev/vda", verb, "random", 4096, 8, 200, cpu)
        assert (directory / "disk").read_bytes().count(b"\x5a") >= 200 * 4096
        after = interrupts(vm, "req")
        assert len(after) == QUEUES
        assert all(new > old for new, old in zip(after, before, strict=True))
    finally:
        vm.close()


def test_interface_is_used_through_all_queue_pairs(directory: Path) -> None:
    name = f"stq{os.getpid() % 100000}"
    words = ("mode", "tap", "multi_queue", "vnet_hdr")
    subprocess.run(["ip", "tuntap", "add", "dev", name, *words], check=True)
    try:
        subprocess.run(["ip", "address", "add", "10.97.0.1/24", "dev", name], check=True)
        subprocess.run(["ip", "link", "set", name, "up"], check=True)
        vm = boot(directory, [Net("net", name, "02:53:54:52:02:01", QUEUES)])
        try:
            queues = sorted(f"{way}-{number}" for way in ("rx", "tx") for number in range(QUEUES))
            assert sorted(vm.ask("list /sys/class/net/eth0/queues").split()) == queues
            vm.run("/stream_bench", "address", "eth0", "10.97.0.2")
            for pair in range(QUEUES):
                send_through(vm, pair)
                before = packets_to_pairs(name)
                for verb in ("send", "receive"):
                    use_streams(vm, directory, verb)
                after = packets_to_pairs(name)
                carried = [new - old for new, old in zip(after, before, strict=True)]
                # What is not of these streams (neighbours, groups) is little, and goes where it likes.
                assert carried[pair] > 0.9 * sum(carried), (pair, carried)
        finally:
            vm.close()
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)


def use_streams(vm: DeviceVm, directory: Path, verb: str) -> None:
    """Moves bytes over several streams between guest and host; all of them have to arrive."""
    address, size = f"tcp:10.97.0.1:{PORT}", MIB // QUEUES
    with Background([directory / "stream_bench", "serve", address, "8", str(size)]) as host:
        host.expect(b"listening")
        assert vm.run("/stream_bench", verb, address, 8, size).split()[1] == str(8 * size)


def send_through(vm: DeviceVm, pair: int) -> None:
    """Has the guest send all packets of new streams through one queue, whichever processor they come from."""
    for number in range(QUEUES):
        processors = (1 << QUEUES) - 1 if number == pair else 0
        path = f"/sys/class/net/eth0/queues/tx-{number}/xps_cpus"
        assert vm.ask(f"store {path} {processors:x}") == "ok", path


def packets_to_pairs(name: str) -> list[int]:
    """How many packets the host has sent through each queue of a tap.

    A tap sends a stream's packets through the queue that the stream's own last came from (tun_flow_update of
    drivers/net/tun.c), so that these counters tell of both directions.
    """
    words = ["tc", "-statistics", "-json", "qdisc", "show", "dev", name]
    shown = json.loads(subprocess.run(words, stdout=subprocess.PIPE, check=True).stdout)
    queues = [qdisc for qdisc in shown if "parent" in qdisc]
    packets = {int(qdisc["parent"].rpartition(":")[2], 16): qdisc["packets"] for qdisc in queues}
    return [packets[number] for number in range(1, QUEUES + 1)]


def interrupts(vm: DeviceVm, kind: str) -> list[int]:
    """How many interrupts each queue of that kind has had."""
    lines = vm.run("/io_bench", "cat", "/proc/interrupts").splitlines()
    queues = [line for line in lines if re.search(rf"virtio\d+-{kind}", line)]
    return [sum(int(word) for word in line.split()[1 : QUEUES + 1]) for line in queues]
