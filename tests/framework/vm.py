"""Starting VMs in tests: strato-vmm in its jail, the tests' own guest, driven through the guest's console.

`VmFactory` makes `Vm` objects and ends what a test has left running; a `Vm` is one strato-vmm process with
its log, exit.json and QMP socket. Nothing here sleeps: each wait has a deadline and an event to wait for.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from vmm import paths
from vmm.config import BootConfig, ConsoleConfig, JailConfig, ProgramsConfig, VmConfig
from vmm.decoding import decode, dump, encode
from vmm.errors import HostError, QmpError
from vmm.exit_report import ExitReport, read
from vmm.jail.facts import completed
from vmm.log import Level, Log
from vmm.qmp.client import QmpClient

from .engine import wanted_engine
from .launched import LaunchedVmm
from .patience import patient

DEADLINE_S = patient(60.0)
DIRECT = [sys.executable, "-m", "vmm"]
"""Runs strato-vmm without namespaces and root of its own: to see its own words about what is missing."""
ANSWER = "=> "


class VmFailureError(AssertionError):
    """The VM did not do what the test waited for; the message holds its console and log."""


class Vm:
    """One strato-vmm process."""

    def __init__(
        self, config: VmConfig, *, command: list[str] | None = None, more_fds: Sequence[int] = ()
    ) -> None:
        self.directory = config.runtime_dir
        self.qmp_path = self.directory / "qmp.sock"
        self.log_path = self.directory / "vmm.log"
        self.output = ""
        self._seen = 0
        self._forks = command is not None and "--fork" in command
        jailed = command is None and config.jail.enabled
        if jailed:
            config = decode(VmConfig, completed(encode(config), Log(Level.ERROR)))
        self.config = config
        config_path = self.directory / "vm.json"
        config_path.write_text(dump(config))
        arguments = ["--config", str(config_path), "--qmp-path", str(self.qmp_path), "--log-level", "debug"]
        passed = [*more_fds, *(net.tap_fd for net in config.nets if net.tap_fd is not None)]
        self.process: subprocess.Popen[bytes] | LaunchedVmm
        with self.log_path.open("wb") as log:
            if jailed:
                self.process = LaunchedVmm(config, arguments, stderr=log, pass_fds=passed)
                return
            self.process = subprocess.Popen(
                [*(command or DIRECT), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=passed,
                cwd=Path(__file__).parents[2],
            )

    def wait_for(self, text: str, *, timeout_s: float = DEADLINE_S) -> None:
        """Wait until the console has printed that text after what has been waited for before."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + timeout_s
        while (found := self.output.find(text, self._seen)) < 0:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                raise VmFailureError(f"Console did not print {text!r}\n{self.describe()}")
            self.output += data.decode(errors="replace")
        self._seen = found + len(text)

    def send(self, line: str) -> None:
        """Give the guest a command without waiting for its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def ask(self, line: str) -> str:
        """Give the guest a command and return its answer."""
        self.send(line)
        self.wait_for(ANSWER)
        start = self._seen
        self.wait_for("\n")
        return self.output[start : self._seen].strip()

    def wait_ready(self, *, timeout_s: float = DEADLINE_S) -> Self:
        """Wait until the guest's user space answers."""
        self.wait_for(f"{ANSWER}ready", timeout_s=timeout_s)
        self.wait_for("\n")
        return self

    def qmp(self) -> QmpClient:
        """Return a new QMP connection; the caller closes it."""
        return QmpClient(self.qmp_path, timeout_s=DEADLINE_S)

    def wait_exit(self) -> ExitReport:
        """Wait until strato-vmm has ended and return its exit.json."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + DEADLINE_S
        while select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
            data = os.read(self.process.stdout.fileno(), 65536)
            if not data:
                break
            self.output += data.decode(errors="replace")
        try:
            self.process.wait(max(0.1, deadline - time.monotonic()))
            return read(self.directory)
        except (subprocess.TimeoutExpired, OSError) as error:
            raise VmFailureError(f"VM did not end as it should\n{self.describe()}") from error

    def describe(self) -> str:
        """Return console, log and, of a VM that runs, counters for a failure message."""
        log = self.log_path.read_text(errors="replace")
        status = self.process.poll()
        counters = self._counters() if status is None else "gone with it"
        return (
            f"--- console\n{self.output}\n--- strato-vmm (status {status})\n{log}\n--- counters\n{counters}"
        )

    def _counters(self) -> str:
        try:
            with QmpClient(self.qmp_path, timeout_s=patient(5.0)) as qmp:
                return json.dumps(qmp.execute("x-strato-stats"))
        except (HostError, QmpError) as error:
            return str(error)

    def close(self) -> None:
        """End the VM if it runs, and everything that it started."""
        if self.process.poll() is None:
            os.kill(self._vmm_pid(), signal.SIGTERM)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                for pid in self.children():
                    os.kill(pid, signal.SIGKILL)
                self.process.kill()
                self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue  # a command that the guest did not live to read

    def _vmm_pid(self) -> int:
        # unshare --fork stays behind as a parent that takes no part.
        children = self.children()
        return children[0] if self._forks and children else self.process.pid

    def children(self) -> list[int]:
        """Return the host pids of what strato-vmm has started and not reaped."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        try:
            return [int(pid) for pid in path.read_text().split()]
        except FileNotFoundError:
            return []

    def child(self, name: str) -> int:
        """Return the host pid of the child whose program has that name."""
        for pid in self.children():
            if Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode().endswith(name):
                return pid
        raise VmFailureError(f"There is no child {name}\n{self.describe()}")


class VmFactory:
    """Makes VMs in folders of their own below one folder with a short path."""

    def __init__(self, directory: Path, image: Path) -> None:
        self._directory = directory
        self._image = image
        self._vms: list[Vm] = []
        self._directories: list[Path] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for vm in self._vms:
            vm.close()

    def directory(self) -> Path:
        """Make the runtime folder of the next VM."""
        directory = self._directory / str(len(self._directories))
        directory.mkdir()
        self._directories.append(directory)
        return directory

    def config(self, directory: Path | None = None) -> VmConfig:
        """Return the configuration of the smallest VM; change it with `dataclasses.replace`."""
        return VmConfig(
            name="test",
            runtime_dir=directory or self.directory(),
            engine=wanted_engine(),
            boot=BootConfig(kernel=paths.kernel().resolve(), initrd=self._image),
            console=ConsoleConfig(stdio=True),
        )

    def start(
        self,
        config: VmConfig | None = None,
        *,
        command: list[str] | None = None,
        more_fds: Sequence[int] = (),
    ) -> Vm:
        """Start a VM, perhaps with descriptors that it has no use for; it ends with the factory."""
        vm = Vm(config or self.config(), command=command, more_fds=more_fds)
        self._vms.append(vm)
        return vm

    def boot(self, config: VmConfig | None = None, *, command: list[str] | None = None) -> Vm:
        """Start a VM and wait for its user space."""
        return self.start(config, command=command).wait_ready()


@contextmanager
def vm_factory(image: Path) -> Iterator[VmFactory]:
    """Make a factory with a folder of its own, and prove in the end that its VMs have left no process."""
    directory = Path(tempfile.mkdtemp(prefix="vmt-"))  # pytest's own folders are too long for sockets
    try:
        with VmFactory(directory, image) as factory:
            yield factory
        assert processes_naming(str(directory)) == []
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def with_boot(config: VmConfig, **changes: object) -> VmConfig:
    """Return the configuration with changes to its boot part."""
    return replace(config, boot=replace(config.boot, **changes))  # type: ignore[arg-type]


def with_programs(config: VmConfig, programs: ProgramsConfig) -> VmConfig:
    """Return the configuration with reference programs in the place of our devices; they know no jail."""
    jail = JailConfig(enabled=(programs.virtiofsd or programs.vhost_device_vsock) is None)
    return replace(config, programs=programs, jail=jail)


def processes_naming(text: str) -> list[str]:
    """Return the command lines of all processes that mention a text, such as a folder's path."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            except OSError:
                continue
            if text in command:
                found.append(command)
    return found


def load_json(path: Path) -> dict[str, object]:
    """Read a JSON object."""
    document = json.loads(path.read_text())
    assert isinstance(document, dict)
    return document
