"""Our device cores beside the programs they replace: `fs`, `block`, `vsock` and `net`.

Both sides serve one guest (or, where a guest can have only one such device, two guests that run side by
side), and take turns. Time is the guest's; the cost is the host's processor time in the device's threads.
For a device of QEMU that is everything QEMU does outside its vCPU threads, which is too little: under TCG the
vCPU thread submits a disk's requests itself. So the figures favour QEMU.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.framework import guest_image, guest_programs
from tests.framework.device_vm import DeviceVm, DeviceVmSettings
from tests.framework.vhost_devices import (
    QEMU,
    REFERENCE,
    STRATO,
    Device,
    Disk,
    Net,
    QemuDisk,
    QemuNet,
    Share,
    Vsock,
)
from vmm.sys import open_tap

from .measure import interleave, ratio, series
from .report import say

MIB = 1 << 20
TIMEOUT_S = 200.0
TOLERANCE = 0.05  # design rule: an interval within this of the bound has reached it

FILE_MIB = 256
RANDOM_READS = 4000
CREATED_FILES = 4000  # per sample; ten rounds and more make the 20,000
TREE_FOLDERS, TREE_FILES = 40, 100
DISK_MIB = 128
PORT = 5001
# vhost-device-vsock loses what comes in several pieces, as Linux sends anything beyond 32 KiB.
VSOCK_CHUNK = 28 << 10


@dataclass(frozen=True)
class Sample:
    """One measurement: guest's nanoseconds and the device's nanoseconds of processor, for each operation; and
    those of everything on the host.
    """

    time_ns: float
    device_ns: float
    host_ns: float


@dataclass(frozen=True)
class Bound:
    """What the ratio ours ÷ theirs must reach: at most, or for throughput at least, a value."""

    value: float
    of_throughput: bool = False

    def missed(self, low: float, high: float) -> bool:
        """Whether an interval is surely outside."""
        if self.of_throughput:
            return high < self.value * (1 - TOLERANCE)
        return low > self.value * (1 + TOLERANCE)


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: its VM and the name of its device there."""

    vm: DeviceVm
    device: str

    def sample(self, run: Callable[[], str]) -> Sample:
        """Runs a program that prints nanoseconds and operations."""
        device, host = self.vm.device_cpu_ns(self.device), self.vm.total_cpu_ns()
        duration, operations = (int(word) for word in run().split())
        device, host = self.vm.device_cpu_ns(self.device) - device, self.vm.total_cpu_ns() - host
        return Sample(duration / operations, device / operations, host / operations)


def files(rounds: int) -> list[str]:
    """Our fs beside C virtiofsd: two shares of one guest, on a tmpfs of the host."""
    with _scratch() as directory, ExitStack() as stack:
        shares = [Share("ours", directory / "a", STRATO), Share("reference", directory / "b", REFERENCE)]
        for share in shares:
            _fill_share(share.directory)
        vm = stack.enter_context(_boot(directory, shares))
        for share in shares:
            assert vm.ask(f"mount {share.name} /{share.name}") == "ok"
        over = []
        for title, unit, words in (
            (f"fs sequential write of {FILE_MIB} MiB", "MiB", ("write", "{}/new", FILE_MIB)),
            (f"fs sequential read of {FILE_MIB} MiB", "MiB", ("read", "{}/large")),
            ("fs random read of 4 KiB", "read", ("random", "{}/large", RANDOM_READS, 1)),
            ("fs create, stat, unlink", "file", ("create", "{}/made", CREATED_FILES)),
            (f"fs walk over {TREE_FOLDERS * TREE_FILES} files", "file", ("walk", "{}/tree")),
        ):
            cases = {
                share.name: _program(Side(vm, share.name), *(str(w).format(f"/{share.name}") for w in words))
                for share in shares
            }
            over += _compare(title, unit, cases, rounds, time=Bound(1.0), cpu=Bound(1.0))
        return over


def block(rounds: int) -> list[str]:
    """Our block beside QEMU's own: two disks of one guest, files on a tmpfs of the host."""
    with _scratch() as directory, ExitStack() as stack:
        for name in (STRATO, QEMU):
            (directory / name).write_bytes(os.urandom(MIB) * DISK_MIB)
        disks: list[Device] = [Disk(STRATO, directory / STRATO), QemuDisk(QEMU, directory / QEMU)]
        vm = stack.enter_context(_boot(directory, disks))
        nodes = {STRATO: "/dev/vda", QEMU: "/dev/vdb"}
        over = []
        for title, words in (
            ("block 4 KiB random read, depth 1", ("read", "random", 4096, 1, 2000)),
            ("block 4 KiB random read, depth 32", ("read", "random", 4096, 32, 8000)),
            ("block 4 KiB random write, depth 1", ("write", "random", 4096, 1, 2000)),
            ("block 4 KiB random write, depth 32", ("write", "random", 4096, 32, 8000)),
            ("block 256 KiB sequential read, depth 8", ("read", "sequential", 1 << 18, 8, 1500)),
            ("block 256 KiB sequential write, depth 8", ("write", "sequential", 1 << 18, 8, 1500)),
        ):
            cases = {name: _program(Side(vm, name), "disk", node, *words, 1) for name, node in nodes.items()}
            over += _compare(title, "request", cases, rounds, time=Bound(1.0), cpu=Bound(1.0))
        return over


def vsock(rounds: int) -> list[str]:
    """Our vsock beside vhost-device-vsock: two guests, since one has only one such device."""
    with _scratch() as directory, ExitStack() as stack:
        sides: dict[str, tuple[Side, Path]] = {}
        for name in (STRATO, REFERENCE):
            path = directory / f"{name}.sock"
            vm = stack.enter_context(_boot(directory, [Vsock(name, path, name)], name))
            sides[name] = (Side(vm, name), Path(f"{path}_{PORT}"))
        over = []
        for streams, size in ((1, 64 * MIB), (64, MIB)):
            for verb, way in (("send", "guest to host"), ("receive", "host to guest")):
                title = f"vsock {streams} {'stream' if streams == 1 else 'streams'}, {way}"
                cases = {
                    name: _streams(
                        side, f"unix:{path}", f"vsock:2:{PORT}", (verb, streams, size, VSOCK_CHUNK)
                    )
                    for name, (side, path) in sides.items()
                }
                bound = Bound(1.2, of_throughput=True)
                over += _compare(title, "MiB", cases, rounds, time=bound, cpu=None, scale=MIB)
        return over


def net(rounds: int) -> list[str]:
    """Our net beside QEMU's own: two interfaces of one guest, each on a tap."""
    with _scratch() as directory, ExitStack() as stack:
        devices: list[Device] = []
        for number, name in enumerate((STRATO, QEMU)):
            tap = open_tap(None, f"stp{os.getpid() % 100000}-{number}")
            stack.callback(os.close, tap)
            _give_address(tap_name=f"stp{os.getpid() % 100000}-{number}", address=f"10.98.{number}.1/24")
            mac = f"02:53:54:52:01:0{number}"
            devices.append(Net(name, tap, mac) if name == STRATO else QemuNet(name, tap, mac))
        vm = stack.enter_context(_boot(directory, devices))
        over = []
        for number in range(len(devices)):
            vm.run("/stream_bench", "address", f"eth{number}", f"10.98.{number}.2")
        for verb, way in (("send", "guest to host"), ("receive", "host to guest")):
            cases = {}
            for number, device in enumerate(devices):
                place = f"tcp:10.98.{number}.1:{PORT}"
                side = Side(vm, device.name)
                cases[device.name] = _streams(side, place, place, (verb, 1, 128 * MIB, 256 << 10))
            over += _compare(f"net TCP, {way}", "MiB", cases, rounds, time=None, cpu=Bound(1.0), scale=MIB)
        return over


def _compare(
    title: str,
    unit: str,
    cases: Mapping[str, Callable[[], Sample]],
    rounds: int,
    *,
    time: Bound | None,
    cpu: Bound | None,
    scale: int = 1,
) -> list[str]:
    """Prints all values and the ratios; what is surely out of bounds. The first case is ours."""
    samples = interleave(cases, rounds)
    over = []
    for what, bound, field in (
        ("time", time, "time_ns"),
        ("device CPU", cpu, "device_ns"),
        ("all host CPU", None, "host_ns"),
    ):
        values = {
            name: [getattr(one, field) * scale / 1000 for one in taken] for name, taken in samples.items()
        }
        for name, taken in values.items():
            say(f"{title}: {name}: {what} {series(taken, f'us/{unit}', 1)}")
        ours, theirs = values.values()
        if min(*ours, *theirs) <= 0:
            say(f"{title}: {what}: too small to compare")
            continue
        # Throughput is the inverse of time.
        found = ratio(theirs, ours) if bound and bound.of_throughput else ratio(ours, theirs)
        words = "throughput" if bound and bound.of_throughput else what
        relation = "at least" if bound and bound.of_throughput else "at most"
        wanted = f", wanted {relation} {bound.value}" if bound else ""
        missed = bound is not None and bound.missed(found.low, found.high)
        say(f"{title}: {words} {' ÷ '.join(values)} = {found}{wanted}{': MISSED' if missed else ''}")
        over += [f"{title} ({words})"] if missed else []
    return over


def _program(side: Side, *words: str | int) -> Callable[[], Sample]:
    return lambda: side.sample(lambda: side.vm.run("/io_bench", *words, timeout_s=TIMEOUT_S))


def _streams(side: Side, host: str, guest: str, load: tuple[str, int, int, int]) -> Callable[[], Sample]:
    verb, streams, size, chunk = load

    def run() -> str:
        program = side.vm.settings.image.parent / "stream_bench"
        words = [str(program), "serve", host, str(streams), str(size)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None and server.stdout.readline() == b"listening\n"
            try:
                return side.vm.run("/stream_bench", verb, guest, streams, size, chunk, timeout_s=TIMEOUT_S)
            finally:
                server.kill()

    return lambda: side.sample(run)


@contextmanager
def _boot(directory: Path, devices: Sequence[Device], name: str = "vm") -> Iterator[DeviceVm]:
    (directory / name).mkdir()
    programs = {
        program: guest_programs.compile_static(program, directory / name)
        for program in ("io_bench", "stream_bench")
    }
    image = guest_image.build(directory / name, programs)
    with DeviceVm(directory / name, DeviceVmSettings(image, devices)) as vm:
        yield vm


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in memory where the host has one, so that no disk adds its noise to either side."""
    parent = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="vmp-", dir=parent if os.access(parent, os.W_OK) else None))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _fill_share(directory: Path) -> None:
    directory.mkdir()
    (directory / "large").write_bytes(os.urandom(MIB) * FILE_MIB)
    for folder in range(TREE_FOLDERS):
        (directory / "tree" / str(folder)).mkdir(parents=True)
        for number in range(TREE_FILES):
            (directory / "tree" / str(folder) / str(number)).write_text("x")


def _give_address(tap_name: str, address: str) -> None:
    subprocess.run(["ip", "address", "add", address, "dev", tap_name], check=True)
