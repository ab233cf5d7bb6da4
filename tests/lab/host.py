"""One test host: QEMU and its two file servers, started for one command and gone with it.

`run_command` is all that callers need. A `LabHost` owns every process, descriptor and file of a test host;
leaving its context ends and removes them, and they die with this process if it cannot do so itself.
"""

import contextlib
import os
import selectors
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from tests.framework import bytecode
from tests.framework.debian_kernel import DebianKernel
from tests.framework.runtime import CHECKOUT, MissingToolError
from tools import image
from vmm import paths
from vmm.engines import host_clock
from vmm.errors import VmmError
from vmm.log import Log

from . import EmulatorError, LabSetUpError, LostHostError, emulator, initramfs, machine
from .console import Console
from .settings import RESULTS_VARIABLE, Command, LabSettings
from .watchdog import Frozen, Watchdog

INSIDE = "/run/strato-lab/share"
"""Where host.sh mounts the share."""
_READ_BYTES = 65536
_LEAVE_S = 20.0  # from the command's end to QEMU's
# QEMU says this of a score of features at each start.
_NOISE = "TCG doesn't support requested feature"


class Listener(Protocol):
    """Who is told what a test host does, while it does it."""

    def output(self, data: bytes) -> None:
        """The command printed this (standard output and error)."""

    def console(self, line: str) -> None:
        """The test host's kernel printed this."""

    def progress(self) -> None:
        """Something happened; result files may have grown. Called every few seconds."""


@dataclass(frozen=True)
class Outcome:
    """How a command ended, and the seconds of its test host: until it ran, its own, and all."""

    status: int
    boot_s: float
    command_s: float
    total_s: float

    def __str__(self) -> str:
        return (
            f"test host up after {self.boot_s:.1f} s, command {self.command_s:.1f} s, "
            f"{self.total_s:.1f} s in all"
        )


class LabHost:
    """See the module. `results` is the folder behind the command's STRATO_LAB_RESULTS."""

    def __init__(self, command: Command, settings: LabSettings) -> None:
        self.settings = settings
        self.console = Console()
        self._command = command
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._sockets: list[socket.socket] = []
        # Short, because the names of sockets are limited to 107 bytes.
        self.directory = Path(tempfile.mkdtemp(prefix="strato-lab-"))
        self.share = self.directory / "share"
        self.results = self.share / "results"

    def __enter__(self) -> Self:
        try:
            self._start()
        except (MissingToolError, VmmError, OSError) as error:
            self.close()
            raise LabSetUpError(f"Test host cannot be started: {error}") from error
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """Pid of QEMU."""
        return self._processes["qemu"].pid

    def close(self) -> None:
        """Kill what still runs and remove every file."""
        for process in self._processes.values():
            process.kill()
            process.wait()
        for end in self._sockets:
            end.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def wait(self, listener: Listener) -> Outcome:
        """Wait for the command's end and the test host's. Raises LostHostError, EmulatorError."""
        watch = _Watch(self.settings, self.console, listener)
        console, output = self._sockets
        with selectors.DefaultSelector() as selector:
            selector.register(console, selectors.EVENT_READ, watch.on_console)
            selector.register(output, selectors.EVENT_READ, watch.on_output)
            while selector.get_map():
                for key, _ in selector.select(watch.seconds_left()):
                    data = _receive(key.fd)
                    if data:
                        key.data(data)
                    else:
                        selector.unregister(key.fileobj)
                listener.progress()
                why = watch.verdict()
                if why is not None:
                    raise self._lost(why)
        status = self._status()
        return watch.outcome(status)

    def _status(self) -> int:
        qemu = self._processes["qemu"]
        with contextlib.suppress(subprocess.TimeoutExpired):
            qemu.wait(_LEAVE_S)
        try:
            return int((self.share / "status").read_text())
        except FileNotFoundError as error:
            raise self._lost(f"ended before its command (QEMU's status {qemu.poll()})") from error

    def _lost(self, why: str) -> LostHostError:
        dead = [name for name, process in self._processes.items() if process.poll() is not None]
        logs = [f"--- console\n{self.console.tail()}"]
        for path in sorted(self.directory.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()
            text = "\n".join(line for line in lines if _NOISE not in line)
            logs += [f"--- {path.name}\n{text}"] if text else []
        alive = f"ended by then: {', '.join(dead) or 'nothing'}"
        fault = emulator.fault("\n".join(self.console.lines))
        if fault is not None:
            why = f"{why}: it {fault}"
        kind = EmulatorError if fault is not None or isinstance(why, Frozen) else LostHostError
        return kind("\n".join([f"Test host {why}; {alive}", *logs]))

    def _start(self) -> None:
        bytecode.compile_packages()
        kernel = DebianKernel.installed()
        archive = initramfs.build(image.find_busybox(), kernel.load_order(*initramfs.MODULES))
        initrd = self.directory / "initramfs"
        initrd.write_bytes(archive)
        self._fill_share(kernel)
        view = self.directory / "view"
        view.mkdir()
        reader = [sys.executable, "-m", "tests.lab.served_folder", "/", str(view)]
        sockets = {
            # Nothing changes below a running test host, so it may keep what it has seen.
            "machine": self._serve("machine", view, ["cache=always", "xattr"], reader),
            "share": self._serve("share", self.share, ["cache=none"], []),
        }
        console, output = (self._channel() for _ in range(2))
        with console, output:
            files = machine.MachineFiles(
                qemu=paths.qemu(),
                kernel=kernel.vmlinuz,
                initrd=initrd,
                console_fd=console.fileno(),
                output_fd=output.fileno(),
                machine_socket=sockets["machine"],
                share_socket=sockets["share"],
                # Debian's kernel and ours have the same CONFIG_HZ.
                clock=host_clock.guest_arguments(host_clock.tsc_khz(Log())),
            )
            self._spawn("qemu", machine.qemu_command(files, self.settings), console.fileno(), output.fileno())

    def _serve(self, name: str, source: Path, options: list[str], prefix: list[str]) -> Path:
        path = self.directory / f"{name}.sock"
        # Listening before the start lets QEMU connect at once.
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(1)
            command = machine.virtiofsd_command(paths.virtiofsd(), listener.fileno(), source, options)
            self._spawn(name, [*prefix, *command], listener.fileno())
        return path

    def _channel(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        self._sockets.append(ours)
        return theirs

    def _spawn(self, name: str, command: list[str], *descriptors: int) -> None:
        with (self.directory / f"{name}.log").open("wb") as log:
            self._processes[name] = subprocess.Popen(
                machine.bound_command(command, os.getpid()),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=descriptors,
                cwd=CHECKOUT,
                # Out of reach of a terminal's Ctrl-C, which is ours to answer.
                start_new_session=True,
            )

    def _fill_share(self, kernel: DebianKernel) -> None:
        self.results.mkdir(parents=True)
        (self.share / "modules").write_text(f"{kernel.module_root}\n")
        (self.share / "command").write_text(command_script(self._command))
        needed = [CHECKOUT, self._command.directory, kernel.directory]
        needed += [path.resolve() for path in (Path(sys.executable), paths.kernel(), paths.launcher())]
        kept = {_below_tmp(path) for path in needed}
        (self.share / "kept").write_text("".join(f"{name}\n" for name in sorted(kept - {""})))


class _Watch:
    """What is known of a test host while it runs, from what it prints."""

    def __init__(self, settings: LabSettings, console: Console, listener: Listener) -> None:
        self._console = console
        self._listener = listener
        self._begin = time.monotonic()
        self._up = self._ended = self._begin
        self._watchdog = Watchdog(settings, self._begin)
        self._leaving = False

    def seconds_left(self) -> float:
        """Until the watchdog wants to look again."""
        return max(0.0, self._watchdog.next_look() - time.monotonic())

    def verdict(self) -> str | None:
        """Why the test host has to be given up, or None."""
        return self._watchdog.verdict(time.monotonic())

    def outcome(self, status: int) -> Outcome:
        """How it all went, to be asked at the end."""
        total_s = time.monotonic() - self._begin
        return Outcome(status, self._up - self._begin, self._ended - self._up, total_s)

    def on_output(self, data: bytes) -> None:
        """The command printed this."""
        self._watchdog.output(time.monotonic())
        self._listener.output(data)

    def on_console(self, data: bytes) -> None:
        """The test host printed this."""
        now = time.monotonic()
        for found in self._console.feed(data):
            if isinstance(found, str):
                # How it leaves concerns nobody.
                if not self._leaving:
                    self._listener.console(found)
            elif found.kind == "beat":
                self._watchdog.beat(int(found.words[0]), now)
            elif found.kind == "up":
                self._up = now
                self._watchdog.up(now)
            else:
                self._ended, self._leaving = now, True


def run_command(command: Command, settings: LabSettings, listener: Listener) -> Outcome:
    """Run a command in a test host of its own. Raises LabSetUpError, LostHostError."""
    with LabHost(command, settings) as host:
        return host.wait(listener)


def command_script(command: Command) -> str:
    """The command as a script for host.sh."""
    environment = {**command.environment, RESULTS_VARIABLE: f"{INSIDE}/results"}
    lines = [f"export {name}={shlex.quote(value)}" for name, value in environment.items()]
    lines.append(f"cd {shlex.quote(str(command.directory))} || exit 125")
    return "\n".join([*lines, f"exec {shlex.join(command.words)}", ""])


def _below_tmp(path: Path) -> str:
    """The first part of a path below /tmp, which the test host has a new one of; '' for one elsewhere."""
    parts = path.parts
    return parts[2] if parts[:2] == ("/", "tmp") and len(parts) > 2 else ""


def _receive(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, _READ_BYTES)
    except ConnectionResetError:
        return b""  # QEMU ended with bytes of ours unread
