"""A boot of the guest kernel by QEMU alone: the machine of engine tcg with a trivial PID 1 and no devices but
the console and the entropy source. The yardstick of `make kernel-report` and `make bench`.

Imports `vmm`, so it runs under build/venv. A boot is one QEMU process from its start to its end.
"""

import os
import selectors
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rootfs.cpio import character_device, directory, regular, write_cpio
from rootfs.errors import BootError
from rootfs.kernel import build as kernel_build
from vmm import paths
from vmm.boards.microvm import MicrovmBoard
from vmm.config import BootConfig, CpuConfig, EngineName, MemoryConfig, RngConfig, VmConfig
from vmm.console import make_room
from vmm.engines import qemu_arguments
from vmm.engines.qemu_arguments import Wiring
from vmm.engines.traits import traits
from vmm.log import Log

from . import layout
from .cache import Cache, digest_files
from .progress import run

REACHED = "user space reached"
_PROBE = Path(kernel_build.__file__).parent / "probe_init.c"
_DEADLINE_S = 60.0


@dataclass(frozen=True)
class BareBoot:
    """One measured boot: wall-clock and processor seconds of the whole QEMU process, console output."""

    seconds: float
    cpu_seconds: float
    console: str


def probe_image(cache: Cache) -> Path:
    """An initramfs with the trivial PID 1, kept in the cache. Raises CommandError."""

    def build(output: Path) -> None:
        program = output / "probe_init"
        run(
            ["gcc", "-std=c17", "-Os", "-Wall", "-Wextra", "-static", "-s", "-o", program, _PROBE],
            log=layout.LOGS / "probe.log",
        )
        nodes = [
            directory("dev"),
            character_device("dev/console", 5, 1),
            regular("init", program.read_bytes(), 0o755),
        ]
        (output / "probe.img").write_bytes(write_cpio(nodes))

    inputs = {"source": digest_files([_PROBE], _PROBE.parent), "compiler": kernel_build.compiler_version()}
    return cache.entry("probe-image", inputs, build) / "probe.img"


def boot(
    kernel: Path, image: Path, arguments: Sequence[str] = (), *, cpus: int = 2, kvm: bool = False
) -> BareBoot:
    """Boot once, with further kernel arguments; with `kvm` on the host's processor instead of TCG.

    Raises BootError when user space is not reached or the boot does not end within a minute.
    """
    config = VmConfig(
        name="bare-boot",
        runtime_dir=Path("/tmp"),
        boot=BootConfig(kernel=kernel, initrd=image, cmdline=" ".join(arguments)),
        cpu=CpuConfig(count=cpus),
        memory=MemoryConfig(size_mib=256),
        rng=RngConfig(enabled=False),  # it would need somebody to serve it
    )
    machine = traits(EngineName.TCG, config, Log())
    if kvm:
        # The guest has kvmclock, and needs to be told nothing of the TSC.
        machine = replace(machine, kernel_arguments=("reboot=t",))
    plan = MicrovmBoard().plan(config, machine)
    ours, console = socket.socketpair()
    make_room(console)
    control, qmp = socket.socketpair()
    with ours, control:
        with console, qmp:
            host = qemu_arguments.QemuHost(program=paths.qemu(), qmp_fd=qmp.fileno())
            command = qemu_arguments.command_line(plan, Wiring(console_fd=console.fileno()), host)
            if kvm:
                for option, value in (("-accel", "kvm"), ("-cpu", "host")):
                    command[command.index(option) + 1] = value
            # QEMU reads these as soon as its monitor is up, so nothing waits for a round trip.
            control.sendall(b'{"execute":"qmp_capabilities"}{"execute":"cont"}')
            begin = time.monotonic()
            process = subprocess.Popen(
                command, pass_fds=(console.fileno(), qmp.fileno()), stdin=subprocess.DEVNULL
            )
        try:
            output = _read_to_end(ours, control, begin + _DEADLINE_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - begin
    process.returncode = os.waitstatus_to_exitcode(status)
    if REACHED not in output:
        raise BootError(
            f"{kernel} did not reach user space; QEMU's status {process.returncode}, console:\n{output}"
        )
    return BareBoot(seconds, usage.ru_utime + usage.ru_stime, output)


def _read_to_end(console: socket.socket, control: socket.socket, deadline: float) -> str:
    """The console's output until QEMU closes it; what the monitor says is thrown away."""
    output = b""
    with selectors.DefaultSelector() as selector:
        selector.register(console, selectors.EVENT_READ)
        selector.register(control, selectors.EVENT_READ)
        while True:
            remaining = deadline - time.monotonic()
            if remaining <= 0:
                text = output.decode(errors="replace")
                raise BootError(f"No end of the boot within {_DEADLINE_S:.0f} s; console:\n{text}")
            for key, _ in selector.select(remaining):
                assert isinstance(key.fileobj, socket.socket)
                try:
                    data = key.fileobj.recv(65536)
                except ConnectionResetError:
                    data = b""
                if not data:
                    if key.fileobj is console:
                        return output.decode(errors="replace").replace("\r", "")
                    selector.unregister(key.fileobj)
                elif key.fileobj is console:
                    output += data
