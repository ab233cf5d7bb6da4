"""The devices of engine kvm beside those of QEMU on the same KVM: `kvm-devices`.

Needs a usable /dev/kvm; without one it runs in the KVM lab (tests/lab). For each kind of device two VMs run
side by side with one kernel, command line and guest, and take turns: strato-vmm in its jail, and QEMU's
microvm with its own disk or interface, or with the program that serves such a device for it over vhost-user.

Time is the guest's. What an operation costs is the processor time of everything that it takes on the host,
the guest's included; the part that is spent outside the vCPU threads is told as the device's.
"""

import resource
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

from tests.framework import bytecode
from tests.framework.device_vm import DeviceVm, DeviceVmSettings
from tests.framework.host import PROC
from tests.framework.patience import patient
from tests.framework.vhost_devices import (
    REFERENCE,
    Device,
    QemuDisk,
    QemuNet,
    Share,
    Vsock,
    process_cpu_ns,
    thread_cpu_ns,
)
from tests.framework.vm import ANSWER, Vm, VmFailureError, vm_factory
from vmm.boards.base import board
from vmm.config import (
    DriveConfig,
    EngineName,
    JailConfig,
    MemoryConfig,
    NetConfig,
    ShareConfig,
    VmConfig,
    VsockConfig,
)
from vmm.engines.traits import traits
from vmm.log import Log

from .compare import Bound, Bounds, Side
from .loads import (
    MIB,
    PORT,
    TCP_CHUNK,
    VSOCK_CHUNK,
    Load,
    Streams,
    fill_disk,
    fill_share,
    image,
    run_programs,
    run_streams,
    scratch,
    taps,
    walk,
)

GROUP = "kvm-devices"
MEMORY_MIB = 512
OPEN_FILES = 1 << 20
BOUNDS = Bounds(time=Bound(1.0), host_cpu=Bound(1.0))


def _amount(count: int) -> int:
    """Less work where the tests are told to be patient: it takes as long there."""
    return int(count / patient(1))


FILE_MIB, CREATED_FILES = _amount(160), _amount(1000)
TCP_BYTES, VSOCK_BYTES = _amount(80) * MIB, _amount(20) * MIB
DISK_LOADS = tuple(
    Load(f"kvm block {title}", "request", ("disk", "{}", "read", *words, 1))
    for title, words in (
        ("4 KiB random read, depth 1", ("random", 4096, 1, _amount(2500))),
        ("4 KiB random read, depth 32", ("random", 4096, 32, _amount(10_000))),
        ("1 MiB sequential read, depth 2", ("sequential", MIB, 2, _amount(320))),
    )
)
FILE_LOADS = (
    Load(f"kvm fs sequential write of {FILE_MIB} MiB", "MiB", ("write", "{}/new", FILE_MIB)),
    Load(f"kvm fs sequential read of {FILE_MIB} MiB", "MiB", ("read", "{}/large")),
    Load("kvm fs create, stat, unlink", "file", ("create", "{}/made", CREATED_FILES)),
    replace(walk(), title=f"kvm {walk().title}"),
)


class StratoVm:
    """A running strato-vmm of engine kvm."""

    def __init__(self, vm: Vm) -> None:
        self._vm = vm
        self._pid = vm.process.pid
        with vm.qmp() as qmp:
            cpus = {int(cpu["thread-id"]) for cpu in qmp.execute("query-cpus-fast")}
        # Told in the numbers of strato-vmm's own pid namespace.
        tasks = (PROC / str(self._pid) / "task").iterdir()
        self._cpu_threads = [int(task.name) for task in tasks if _innermost_number(task) in cpus]
        assert len(self._cpu_threads) == len(cpus), vm.describe()

    def ask(self, line: str) -> str:
        """Gives the guest a command and returns its answer."""
        return self._vm.ask(line)

    def run(self, *words: str | Path | int, timeout_s: float) -> str:
        """See MeasuredVm. Raises VmFailureError if the program fails."""
        begin, mark = len(self._vm.output), f"{ANSWER}exit "
        self._vm.send(" ".join(["run", *map(str, words)]))
        self._vm.wait_for(mark, timeout_s=timeout_s)
        self._vm.wait_for("\n")
        output, _, status = self._vm.output[begin:].partition(mark)
        if int(status) != 0:
            raise VmFailureError(f"{words} ended with {status}\n{self._vm.describe()}")
        return output

    def device_cpu_ns(self, name: str) -> int:
        """See MeasuredVm: what is spent outside the vCPU threads."""
        return self.total_cpu_ns() - sum(thread_cpu_ns(self._pid, thread) for thread in self._cpu_threads)

    def total_cpu_ns(self) -> int:
        """See MeasuredVm."""
        return process_cpu_ns(self._pid)


def kvm_devices(rounds: int) -> list[str]:
    """Prints the comparison of each kind; returns what is surely out of its bounds."""
    bytecode.compile_packages()
    # Each file that a guest remembers is an open one of strato-vmm, and a test host gives its processes few.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, max(hard, OPEN_FILES)))
    return [missed for kind in (block, net, vsock, files) for missed in kind(rounds)]


def block(rounds: int) -> list[str]:
    """Our disk beside QEMU's: raw files on a tmpfs, both through the host's page cache and by io_uring."""
    with scratch() as directory:
        ours, theirs = directory / "ours", directory / "theirs"
        for path in (ours, theirs):
            fill_disk(path)
        drives = (DriveConfig(id="disk", path=ours),)
        device = QemuDisk("disk", theirs, aio="io_uring")
        with _pair(directory, lambda config: replace(config, drives=drives), device) as (strato, qemu):
            sides = _sides(Side(strato, "disk", "/dev/vda"), Side(qemu, "disk", "/dev/vda"))
            return run_programs(sides, DISK_LOADS, rounds, BOUNDS)


def net(rounds: int) -> list[str]:
    """Our interface beside QEMU's, without vhost: each on a tap."""
    with scratch() as directory, ExitStack() as stack:
        ours, theirs = taps(stack, 2)
        nets = (NetConfig(id="net", tap_fd=ours.fd, mac=ours.mac),)
        device = QemuNet("net", theirs.fd, theirs.mac)
        with _pair(directory, lambda config: replace(config, nets=nets), device) as (strato, qemu):
            for vm, tap in ((strato, ours), (qemu, theirs)):
                assert vm.ask(f"run /stream_bench address eth0 {tap.guest_address}") == "exit 0"
            sides = _sides(Side(strato, "net", ours.place), Side(qemu, "net", theirs.place))
            return run_streams("kvm net TCP", sides, Streams(1, TCP_BYTES, TCP_CHUNK), rounds, BOUNDS)


def vsock(rounds: int) -> list[str]:
    """Our vsock beside vhost-device-vsock, since QEMU's own is the kernel's."""
    with scratch() as directory:
        ours, theirs = directory / "v.ours", directory / "v.theirs"
        device = Vsock("vsock", theirs, REFERENCE)

        def configured(config: VmConfig) -> VmConfig:
            return replace(config, vsock=VsockConfig(socket=ours), jail=JailConfig(folders=(directory,)))

        with _pair(directory, configured, device) as (strato, qemu):
            place = f"vsock:2:{PORT}"
            sides = _sides(
                Side(strato, "vsock", place, f"unix:{ours}_{PORT}"),
                Side(qemu, "vsock", place, f"unix:{theirs}_{PORT}"),
            )
            return run_streams("kvm vsock", sides, Streams(1, VSOCK_BYTES, VSOCK_CHUNK), rounds, BOUNDS)


def files(rounds: int) -> list[str]:
    """Our share beside C virtiofsd's, on a tmpfs."""
    with scratch() as directory:
        ours, theirs = directory / "ours", directory / "theirs"
        for path in (ours, theirs):
            fill_share(path, FILE_MIB)
        shares = (ShareConfig(tag="share", directory=ours),)
        device = Share("share", theirs, REFERENCE)
        with _pair(directory, lambda config: replace(config, shares=shares), device) as (strato, qemu):
            for vm in (strato, qemu):
                assert vm.ask("mount share /share") == "ok"
            sides = _sides(Side(strato, "share", "/share"), Side(qemu, "share", "/share"))
            return run_programs(sides, FILE_LOADS, rounds, BOUNDS)


def _sides(ours: Side, theirs: Side) -> dict[str, Side]:
    return {"strato-vmm": ours, "QEMU": theirs}


@contextmanager
def _pair(
    directory: Path, configured: Callable[[VmConfig], VmConfig], device: Device
) -> Iterator[tuple[StratoVm, DeviceVm]]:
    """Boots strato-vmm with its device in the configuration, and QEMU with its own, otherwise alike."""
    guest = image(directory)
    with vm_factory(guest) as factory:
        config = replace(
            configured(factory.config()),
            engine=EngineName.KVM,
            memory=MemoryConfig(size_mib=MEMORY_MIB),
            spare_slots=0,
        )
        plan = board(config.board).plan(config, traits(EngineName.KVM, config, Log()))
        strato = StratoVm(factory.boot(config))
        with DeviceVm(directory, DeviceVmSettings(guest, [device], plan=plan)) as qemu:
            yield strato, qemu


def _innermost_number(task: Path) -> int:
    """The number of a thread in its own pid namespace."""
    lines = (task / "status").read_text().splitlines()
    return next(int(line.split()[-1]) for line in lines if line.startswith("NSpid:"))
