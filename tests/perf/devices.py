"""Our device cores beside the programs they replace, under TCG: `fs`, `block`, `vsock` and `net`.

Both sides serve one guest (or, where a guest can have only one such device, two guests that run side by
side), and take turns. Time is the guest's; the cost is the host's processor time in the device's threads.
For a device of QEMU that is everything QEMU does outside its vCPU threads, which is too little: under TCG the
vCPU thread submits a disk's requests itself. So the figures favour QEMU.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

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

FILE_MIB = 256
RANDOM_READS = 4000
CREATED_FILES = 4000  # per sample; ten rounds and more make the 20,000

MANY = Streams(64, 4 * MIB, VSOCK_CHUNK)

NO_DEARER = Bounds(time=Bound(1.0), device_cpu=Bound(1.0))

FILE_LOADS = (
    Load(f"fs sequential write of {FILE_MIB} MiB", "MiB", ("write", "{}/new", FILE_MIB)),
    Load(f"fs sequential read of {FILE_MIB} MiB", "MiB", ("read", "{}/large")),
    Load("fs random read of 4 KiB", "read", ("random", "{}/large", RANDOM_READS, 1)),
    Load("fs create, stat, unlink", "file", ("create", "{}/made", CREATED_FILES)),
    walk(),
)
DISK_LOADS = tuple(
    Load(f"block {title}", "request", ("disk", "{}", *words, 1))
    for title, words in (
        ("4 KiB random read, depth 1", ("read", "random", 4096, 1, 2000)),
        ("4 KiB random read, depth 32", ("read", "random", 4096, 32, 8000)),
        ("4 KiB random write, depth 1", ("write", "random", 4096, 1, 2000)),
        ("4 KiB random write, depth 32", ("write", "random", 4096, 32, 8000)),
        ("256 KiB sequential read, depth 8", ("read", "sequential", 1 << 18, 8, 1500)),
        ("256 KiB sequential write, depth 8", ("write", "sequential", 1 << 18, 8, 1500)),
    )
)


def files(rounds: int) -> list[str]:
    """Our fs beside C virtiofsd: two shares of one guest, on a tmpfs of the host."""
    with scratch() as directory, ExitStack() as stack:
        shares = [Share("ours", directory / "a", STRATO), Share("reference", directory / "b", REFERENCE)]
        for share in shares:
            fill_share(share.directory, FILE_MIB)
        vm = stack.enter_context(_boot(directory, shares))
        for share in shares:
            assert vm.ask(f"mount {share.name} /{share.name}") == "ok"
        sides = {share.name: Side(vm, share.name, f"/{share.name}") for share in shares}
        return run_programs(sides, FILE_LOADS, rounds, NO_DEARER)


def block(rounds: int) -> list[str]:
    """Our block beside QEMU's own: two disks of one guest, files on a tmpfs of the host."""
    with scratch() as directory, ExitStack() as stack:
        for name in (STRATO, QEMU):
            fill_disk(directory / name)
        disks: list[Device] = [Disk(STRATO, directory / STRATO), QemuDisk(QEMU, directory / QEMU)]
        vm = stack.enter_context(_boot(directory, disks))
        sides = {STRATO: Side(vm, STRATO, "/dev/vda"), QEMU: Side(vm, QEMU, "/dev/vdb")}
        return run_programs(sides, DISK_LOADS, rounds, NO_DEARER)


def vsock(rounds: int) -> list[str]:
    """Our vsock beside vhost-device-vsock: two guests, since one has only one such device.

    Each way is judged where the device can decide it. A guest that receives 64 streams keeps an only vCPU,
    which is emulated, busy with its own copying whatever the device does; one that sends with two vCPUs does
    so with both processors of a small host. There ours must be no slower and no dearer.
    """
    wanted = Bounds(time=Bound(1.2, of_throughput=True))
    no_worse = Bounds(time=Bound(1.0, of_throughput=True), device_cpu=Bound(1.0))
    with _vsock_guests(cpus=1) as sides:
        over = run_streams("vsock 1 stream", sides, Streams(1, 256 * MIB, VSOCK_CHUNK), rounds, wanted)
        over += run_streams("vsock 64 streams, 1 vCPU", sides, MANY, rounds, send=wanted, receive=no_worse)
    with _vsock_guests(cpus=2) as sides:
        return over + run_streams(
            "vsock 64 streams, 2 vCPUs", sides, MANY, rounds, send=no_worse, receive=wanted
        )


@contextmanager
def _vsock_guests(*, cpus: int) -> Iterator[dict[str, Side]]:
    with scratch() as directory, ExitStack() as stack:
        sides: dict[str, Side] = {}
        for name in (STRATO, REFERENCE):
            path = directory / f"{name}.sock"
            vm = stack.enter_context(_boot(directory, [Vsock(name, path, name)], name, cpus=cpus))
            sides[name] = Side(vm, name, f"vsock:2:{PORT}", f"unix:{path}_{PORT}")
        yield sides


def net(rounds: int) -> list[str]:
    """Our net beside QEMU's own: two interfaces of one guest, each on a tap."""
    with scratch() as directory, ExitStack() as stack:
        ours, theirs = taps(stack, 2)
        devices: list[Device] = [Net(STRATO, ours.fd, ours.mac), QemuNet(QEMU, theirs.fd, theirs.mac)]
        vm = stack.enter_context(_boot(directory, devices))
        for number, tap in enumerate((ours, theirs)):
            vm.run("/stream_bench", "address", f"eth{number}", tap.guest_address)
        sides = {STRATO: Side(vm, STRATO, ours.place), QEMU: Side(vm, QEMU, theirs.place)}
        load = Streams(1, 128 * MIB, TCP_CHUNK)
        return run_streams("net TCP", sides, load, rounds, Bounds(device_cpu=Bound(1.0)))


@contextmanager
def _boot(
    directory: Path, devices: Sequence[Device], name: str = "vm", *, cpus: int = 1
) -> Iterator[DeviceVm]:
    (directory / name).mkdir()
    settings = DeviceVmSettings(image(directory / name), devices, cpus=cpus)
    with DeviceVm(directory / name, settings) as vm:
        yield vm
