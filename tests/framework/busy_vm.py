"""A VM in which every kind of device works, to see what serving them costs strato-vmm."""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from vmm.config import DriveConfig, JailConfig, NetConfig, ShareConfig, VsockConfig
from vmm.sys import open_tap

from . import bytecode, guest_image, guest_programs
from .vm import Vm, vm_factory

SHARES = ("one", "two")
_MIB = 1 << 20
_DISK_MIB, _FILE_MIB = 16, 4
_STREAMS, _CHUNK = 8, 28 << 10
_PORT = 5002
_HOST, _GUEST = "10.97.0.1", "10.97.0.2"


@dataclass(frozen=True)
class BusyVm:
    """The VM and what its guest's programs need."""

    vm: Vm
    directory: Path

    def work(self) -> None:
        """Gives every device a few mebibytes to move, but for the entropy device: the guest's kernel asks it.

        Raises AssertionError when one of them fails.
        """
        for name in SHARES:
            self._run(f"/io_bench read /mnt-{name}/file")
            self._run(f"/io_bench write /mnt-{name}/written {_FILE_MIB}")
            self._run(f"/io_bench create /mnt-{name}/made 100")
        for verb in ("read", "write"):
            self._run(f"/io_bench disk /dev/vda {verb} random 4096 8 500 1")
        for verb in ("send", "receive"):
            self._stream(verb, f"unix:{self.directory}/v.sock_{_PORT}", f"vsock:2:{_PORT}")
            self._stream(verb, f"tcp:{_HOST}:{_PORT}", f"tcp:{_HOST}:{_PORT}")

    def _run(self, words: str) -> None:
        answer = self.vm.ask(f"run {words}")
        assert answer == "exit 0", f"{words}: {answer}\n{self.vm.describe()}"

    def _stream(self, verb: str, host: str, guest: str) -> None:
        words = [str(self.directory / "stream_bench"), "serve", host, str(_STREAMS), str(_MIB)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None and server.stdout.readline() == b"listening\n"
            try:
                self._run(f"/stream_bench {verb} {guest} {_STREAMS} {_MIB} {_CHUNK}")
            finally:
                server.kill()


@contextmanager
def busy_vm(directory: Path) -> Iterator[BusyVm]:
    """Boots it with its files in `directory`; everything has worked once."""
    bytecode.compile_packages()
    with ExitStack() as stack:
        programs = {
            name: guest_programs.compile_static(name, directory) for name in ("io_bench", "stream_bench")
        }
        vms = stack.enter_context(vm_factory(guest_image.build(directory, programs)))
        (directory / "disk").write_bytes(bytes(_DISK_MIB * _MIB))
        for name in SHARES:
            (directory / name).mkdir()
            (directory / name / "file").write_bytes(os.urandom(_FILE_MIB * _MIB))
        interface = f"busy{os.getpid() % 100000}"
        tap = open_tap(None, interface)
        try:
            subprocess.run(["ip", "address", "add", f"{_HOST}/24", "dev", interface], check=True)
            subprocess.run(["ip", "link", "set", interface, "up"], check=True)
            config = replace(
                vms.config(),
                jail=JailConfig(folders=(directory,)),
                vsock=VsockConfig(socket=directory / "v.sock"),
                drives=(DriveConfig(id="disk", path=directory / "disk"),),
                shares=tuple(ShareConfig(tag=name, directory=directory / name) for name in SHARES),
                nets=(NetConfig(id="net0", tap_fd=tap, mac="02:53:54:52:00:09"),),
            )
            busy = BusyVm(vms.boot(config), directory)
        finally:
            os.close(tap)
        for name in SHARES:
            assert busy.vm.ask(f"mount {name} /mnt-{name}") == "ok"
        assert busy.vm.ask(f"run /stream_bench address eth0 {_GUEST}") == "exit 0"
        busy.work()
        yield busy
