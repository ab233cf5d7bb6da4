"""What the devices of a comparison are given to do: programs in the guest (framework/guest_programs), and the
files that they find. The same for every pair of VMs.
"""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.framework import compiler, guest_image
from tests.framework.patience import patient
from vmm.sys import open_tap

from .compare import Bounds, Sample, Side, compare

MIB = 1 << 20
TIMEOUT_S = patient(200.0)
PORT = 5001
# vhost-device-vsock loses what comes in several pieces, as Linux sends anything beyond 32 KiB.
VSOCK_CHUNK = 28 << 10
TCP_CHUNK = 256 << 10

DISK_MIB = 128
TREE_FOLDERS, TREE_FILES = 40, 100

Sides = Mapping[str, Side]
"""The two that are compared, ours first."""


@dataclass(frozen=True)
class Load:
    """Words of io_bench, `{}` standing for the device's place; `unit` is what it counts."""

    title: str
    unit: str
    words: tuple[str | int, ...]


@dataclass(frozen=True)
class Streams:
    """What stream_bench moves: so many bytes on each stream."""

    count: int
    size: int
    chunk: int


def walk() -> Load:
    """A walk over the tree of `fill_share`."""
    return Load(f"fs walk over {TREE_FOLDERS * TREE_FILES} files", "file", ("walk", "{}/tree"))


def run_programs(sides: Sides, loads: Sequence[Load], rounds: int, bounds: Bounds) -> list[str]:
    """Compares the sides under each load; what is surely out of bounds."""
    over = []
    for load in loads:
        cases = {name: _program(side, load.words) for name, side in sides.items()}
        over += compare(load.title, load.unit, cases, rounds, bounds)
    return over


def run_streams(
    title: str, sides: Sides, load: Streams, rounds: int, send: Bounds, receive: Bounds | None = None
) -> list[str]:
    """Compares streams both ways, as the guest sends and receives; what is surely out of bounds."""
    over = []
    for verb, way, bounds in (("send", "guest to host", send), ("receive", "host to guest", receive or send)):
        cases = {name: _streams(side, verb, load) for name, side in sides.items()}
        over += compare(f"{title}, {way}", "MiB", cases, rounds, bounds, scale=MIB)
    return over


def image(directory: Path) -> Path:
    """The guest's image with the programs."""
    programs = {name: compiler.guest_program(name) for name in ("io_bench", "stream_bench")}
    return guest_image.build(directory, programs)


def fill_disk(path: Path) -> None:
    """Writes a disk that holds no zeroes."""
    path.write_bytes(os.urandom(MIB) * DISK_MIB)


def fill_share(directory: Path, mib: int) -> None:
    """Makes a share with a large file and a tree."""
    directory.mkdir()
    (directory / "large").write_bytes(os.urandom(MIB) * mib)
    for folder in range(TREE_FOLDERS):
        (directory / "tree" / str(folder)).mkdir(parents=True)
        for number in range(TREE_FILES):
            (directory / "tree" / str(folder) / str(number)).write_text("x")


@dataclass(frozen=True)
class Tap:
    """A tap with an address, and what the guest needs to talk to it."""

    fd: int
    mac: str
    guest_address: str
    place: str


def taps(stack: ExitStack, count: int) -> list[Tap]:
    """Opens taps, each with a network of its own, that close with the stack."""
    made = []
    for number in range(count):
        name = f"stp{os.getpid() % 100000}-{number}"
        fd = open_tap(None, name)
        stack.callback(os.close, fd)
        host = f"10.98.{number}.1"
        subprocess.run(["ip", "address", "add", f"{host}/24", "dev", name], check=True)
        made.append(Tap(fd, f"02:53:54:52:01:0{number}", f"10.98.{number}.2", f"tcp:{host}:{PORT}"))
    return made


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder in memory where the host has one, so that no disk adds its noise to either side."""
    parent = Path("/dev/shm")
    directory = Path(tempfile.mkdtemp(prefix="vmp-", dir=parent if os.access(parent, os.W_OK) else None))
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _program(side: Side, words: Sequence[str | int]) -> Callable[[], Sample]:
    placed = [str(word).format(side.place) for word in words]
    return lambda: side.sample(lambda: side.vm.run("/io_bench", *placed, timeout_s=TIMEOUT_S))


def _streams(side: Side, verb: str, load: Streams) -> Callable[[], Sample]:
    count, size = load.count, load.size

    def run() -> str:
        program = compiler.guest_program("stream_bench")
        words = [str(program), "serve", side.host_place or side.place, str(count), str(size)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None and server.stdout.readline() == b"listening\n"
            try:
                return side.vm.run(
                    "/stream_bench", verb, side.place, count, size, load.chunk, timeout_s=TIMEOUT_S
                )
            finally:
                server.kill()

    return lambda: side.sample(run)
