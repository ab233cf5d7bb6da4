"""Devices of a `DeviceVm`: what serves each, and the words QEMU needs to plug it.

The same device can be served by our own core, by the reference program that it replaces, or by QEMU itself;
that choice is all in which two devices of a comparison differ.
"""

import contextlib
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from vmm import paths
from vmm.backends import virtiofsd
from vmm.config import ShareCache, ShareConfig

from . import host
from .patience import deadline_after

CONNECT_TIMEOUT_S = 10.0
STRATO, REFERENCE, QEMU = "strato", "reference", "qemu"
FS_QUEUE_SIZE = 1024


class Server:
    """A running program that serves one device. `connection` is the front end's socket."""

    def __init__(self, command: list[str], path: Path, log: Path, pass_fds: tuple[int, ...] = ()) -> None:
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, pass_fds=pass_fds
            )
        self.log = log
        self.path = path
        self.connection = socket.socket(socket.AF_UNIX)
        deadline = deadline_after(CONNECT_TIMEOUT_S)
        while True:
            try:
                self.connection.connect(str(path))
                break
            except OSError:
                if self.process.poll() is not None or time.monotonic() > deadline:
                    self.close()
                    raise AssertionError(f"{command} does not listen: {log.read_text()}") from None
            time.sleep(0.005)  # the reference programs have no other sign of readiness than their socket

    def pids(self) -> list[int]:
        """The program and what it has forked."""
        return [self.process.pid, *host.descendants(self.process.pid)]

    def cpu_ns(self) -> int:
        """Processor time of all its threads so far, those that have ended included."""
        return sum(process_cpu_ns(pid) for pid in self.pids())

    def close(self) -> None:
        """Ends the program."""
        self.connection.close()
        self.process.kill()
        self.process.wait()


class Device(Protocol):
    """What a DeviceVm needs of a device."""

    @property
    def name(self) -> str:
        """Name for QEMU, unique in the VM; the tag or serial number that the guest sees."""

    def serve(self, directory: Path) -> Server | None:
        """Starts what serves it; None when QEMU does."""

    def descriptors(self) -> tuple[int, ...]:
        """Open descriptors that go to whoever serves the device."""

    def arguments(self, server: Server | None, kind: str, bus: str) -> list[str]:
        """QEMU's words. `kind` ends the device's type (`device` or `pci`), `bus` is an option or empty."""


@dataclass(frozen=True)
class VhostUser(ABC):
    """A device of our own or of a reference program, over vhost-user."""

    name: str

    @abstractmethod
    def command(self, socket_path: Path, listener_fd: int) -> list[str]:
        """The program's command line. A program that takes a listener is given its descriptor."""

    @abstractmethod
    def device(self, kind: str) -> str:
        """The words of QEMU's -device but for chardev and bus."""

    def chardev(self, server: Server) -> list[str]:
        """The words of QEMU that stand before -device."""
        return ["-chardev", f"socket,id=chr-{self.name},fd={server.connection.fileno()}"]

    def serve(self, directory: Path) -> Server:
        """See Device."""
        path = directory / f"{self.name}.sock"
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as listener:
            if self._takes_listener():
                listener.bind(str(path))
                listener.listen(1)
            command = self.command(path, listener.fileno())
            passed = (listener.fileno(), *self.descriptors())
            return Server(command, path, directory / f"{self.name}.log", passed)

    def arguments(self, server: Server | None, kind: str, bus: str) -> list[str]:
        """See Device."""
        assert server is not None
        return [*self.chardev(server), "-device", self.device(kind) + bus]

    def descriptors(self) -> tuple[int, ...]:
        """Open descriptors that go to whoever serves the device."""
        return ()

    def _takes_listener(self) -> bool:
        return False


@dataclass(frozen=True)
class Share(VhostUser):
    """A virtio-fs share, mounted by its name."""

    directory: Path
    by: str
    cache: str = "auto"
    writeback: bool = False
    remote_locks: bool = False

    def command(self, socket_path: Path, listener_fd: int) -> list[str]:
        """See VhostUser."""
        if self.by == REFERENCE:
            share = ShareConfig(
                tag=self.name,
                directory=self.directory,
                cache=ShareCache(self.cache),
                writeback=self.writeback,
                remote_locks=self.remote_locks,
            )
            return virtiofsd.arguments(paths.virtiofsd(), share, self.directory, listener_fd)
        return [
            *(str(paths.strato_vhost_device()), "fs", "--socket", str(socket_path)),
            *("--directory", str(self.directory), "--cache", self.cache, "--tag", self.name),
            *(["--writeback"] if self.writeback else []),
            *(["--remote-locks"] if self.remote_locks else []),
        ]

    def device(self, kind: str) -> str:
        """See VhostUser."""
        return f"vhost-user-fs-{kind},chardev=chr-{self.name},tag={self.name},queue-size={FS_QUEUE_SIZE}"

    def _takes_listener(self) -> bool:
        return self.by == REFERENCE


@dataclass(frozen=True)
class Vsock(VhostUser):
    """The vsock device; `path` is the unix socket of the host's side."""

    path: Path
    by: str
    guest_cid: int = 3

    def command(self, socket_path: Path, listener_fd: int) -> list[str]:
        """See VhostUser."""
        words = [f"--guest-cid={self.guest_cid}", f"--socket={socket_path}", f"--uds-path={self.path}"]
        if self.by == REFERENCE:
            return [str(paths.vhost_device_vsock()), *words]
        return [
            *(str(paths.strato_vhost_device()), "vsock", "--socket", str(socket_path)),
            *("--uds", str(self.path), "--guest-cid", str(self.guest_cid)),
        ]

    def device(self, kind: str) -> str:
        """See VhostUser."""
        return f"vhost-user-vsock-{kind},chardev=chr-{self.name}"


@dataclass(frozen=True)
class Disk(VhostUser):
    """A disk served by our own core."""

    path: Path
    queues: int = 1

    def command(self, socket_path: Path, listener_fd: int) -> list[str]:
        """See VhostUser."""
        words = ["block", "--socket", str(socket_path), "--file", str(self.path), "--serial", self.name]
        words += ["--queues", str(self.queues)] if self.queues > 1 else []
        return [str(paths.strato_vhost_device()), *words]

    def device(self, kind: str) -> str:
        """See VhostUser."""
        name = "vhost-user-blk" if kind == "device" else f"vhost-user-blk-{kind}"
        return f"{name},chardev=chr-{self.name},num-queues={self.queues}"


@dataclass(frozen=True)
class QemuDisk:
    """A disk served by QEMU, with the host's page cache and flushes honoured, as `Disk` has it."""

    name: str
    path: Path
    aio: str = "threads"

    def serve(self, directory: Path) -> None:
        """See Device."""

    def descriptors(self) -> tuple[int, ...]:
        """See Device."""
        return ()

    def arguments(self, server: Server | None, kind: str, bus: str) -> list[str]:
        """See Device."""
        backend = (
            f"driver=raw,node-name={self.name},discard=unmap,file.driver=file,"
            f"file.filename={self.path},file.aio={self.aio}"
        )
        device = f"virtio-blk-{kind},drive={self.name},serial={self.name}{bus}"
        return ["-blockdev", backend, "-device", device]


@dataclass(frozen=True)
class Net(VhostUser):
    """An interface served by our own core: on an open tap, which the caller keeps, or on one by name."""

    tap: int | str
    mac: str
    queues: int = 1

    def command(self, socket_path: Path, listener_fd: int) -> list[str]:
        """See VhostUser."""
        words = ["net", "--socket", str(socket_path), "--mac", self.mac]
        words += ["--tap" if isinstance(self.tap, str) else "--tap-fd", str(self.tap)]
        words += ["--queues", str(self.queues)] if self.queues > 1 else []
        return [str(paths.strato_vhost_device()), *words]

    def descriptors(self) -> tuple[int, ...]:
        """See VhostUser."""
        return () if isinstance(self.tap, str) else (self.tap,)

    def serve(self, directory: Path) -> Server:
        """See Device."""
        server = super().serve(directory)
        # QEMU's netdev wants to connect by name, and the server serves one front end at a time.
        server.connection.close()
        return server

    def chardev(self, server: Server) -> list[str]:
        """See VhostUser."""
        queues = f",queues={self.queues}" if self.queues > 1 else ""
        netdev = f"vhost-user,id=net-{self.name},chardev=chr-{self.name}{queues}"
        return ["-chardev", f"socket,id=chr-{self.name},path={server.path}", "-netdev", netdev]

    def device(self, kind: str) -> str:
        """See VhostUser."""
        words = ",mq=on" if self.queues > 1 else ""
        # Without MSI-X: QEMU 7.2 without KVM crashes when a vector of a vhost-user net is unmasked.
        words += ",vectors=0" if kind == "pci" else ""
        return f"virtio-net-{kind},netdev=net-{self.name},mac={self.mac}{words}"


@dataclass(frozen=True)
class QemuNet:
    """An interface served by QEMU on an open tap, which the caller keeps."""

    name: str
    tap: int
    mac: str

    def serve(self, directory: Path) -> None:
        """See Device."""

    def descriptors(self) -> tuple[int, ...]:
        """See Device."""
        return (self.tap,)

    def arguments(self, server: Server | None, kind: str, bus: str) -> list[str]:
        """See Device."""
        netdev = f"tap,id=net-{self.name},fd={self.tap},vhost=off"
        return ["-netdev", netdev, "-device", f"virtio-net-{kind},netdev=net-{self.name},mac={self.mac}{bus}"]


def process_cpu_ns(pid: int) -> int:
    """Processor time of a process in nanoseconds, threads that have ended included."""
    # The clock of another process: MAKE_PROCESS_CPUCLOCK(pid, CPUCLOCK_SCHED) in linux/posix-timers.h.
    with contextlib.suppress(OSError):
        return time.clock_gettime_ns((~pid << 3) | 2)
    return 0


def thread_cpu_ns(pid: int, thread: int) -> int:
    """Processor time of one thread: the first field of its schedstat."""
    return int((host.PROC / str(pid) / "task" / str(thread) / "schedstat").read_text().split()[0])
