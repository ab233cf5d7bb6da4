"""A VM made for its devices: QEMU alone with the guest of framework/guest_init.c and any set of vhost-user
and QEMU devices side by side.

strato-vmm starts one kind of each device; comparisons want two in one guest. The machine is that of
engine tcg (microvm), or q35 with PCI for what the light board does not offer, or microvm on KVM to be
compared with a strato-vmm of engine kvm.
"""

import json
import socket
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from vmm import paths
from vmm.boards.base import MachinePlan
from vmm.boards.microvm import MicrovmBoard
from vmm.config import BootConfig, CpuConfig, EngineName, MemoryConfig, RngConfig, VmConfig
from vmm.engines import qemu_arguments
from vmm.engines.qemu_arguments import Wiring
from vmm.engines.traits import traits
from vmm.log import Log

from . import qemu_kvm
from .vhost_devices import Device, Server, process_cpu_ns, thread_cpu_ns
from .vm import ANSWER, DEADLINE_S, VmFailureError

_LOOK_S = 5.0  # how often a long wait looks whether everybody still lives
_FIRST_SLOT = 2  # of the light machine: slot 0 holds the console, slot 1 the port for programs' output


@dataclass(frozen=True)
class DeviceVmSettings:
    """What a DeviceVm is made of. `kernel` with `pci` is a kernel that drives q35. With a `plan` of engine
    kvm QEMU runs that machine on KVM, with `devices` in the place of the plan's.
    """

    image: Path
    devices: Sequence[Device]
    memory_mib: int = 512
    cpus: int = 1
    kernel: Path | None = None
    pci: bool = False
    plan: MachinePlan | None = None

    @property
    def light(self) -> bool:
        """Whether it is the machine of engine tcg."""
        return not self.pci and self.plan is None


class DeviceVm:
    """One running QEMU with its device servers. Leaving the context ends all of them."""

    def __init__(self, directory: Path, settings: DeviceVmSettings) -> None:
        self.directory = directory
        self.settings = settings
        self.servers: dict[str, Server] = {}
        ours, theirs = zip(*(socket.socketpair() for _ in range(3)), strict=True)
        self._control = ours[0]
        self._console = _Channel(ours[1])
        # What programs print; the consoles of the other machines do for both.
        self._output = _Channel(ours[2]) if settings.light else self._console
        self._ours = ours
        self._log = directory / "qemu.log"
        try:
            for device in settings.devices:
                server = device.serve(directory)
                if server is not None:
                    self.servers[device.name] = server
            self._start(*(end.fileno() for end in theirs))
        except BaseException:
            self.close()
            raise
        finally:
            for end in theirs:
                end.close()
        self._cpu_threads: list[int] = []

    def __enter__(self) -> Self:
        try:
            self._wait_for(self._console, f"{ANSWER}ready\n")
            self._cpu_threads = [int(cpu["thread-id"]) for cpu in self._query("query-cpus-fast")]
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def ask(self, line: str) -> str:
        """Gives the guest a command and returns its answer."""
        self._send(line)
        self._wait_for(self._console, ANSWER)
        return self._wait_for(self._console, "\n").strip()

    def run(self, *words: str | Path | int, timeout_s: float = DEADLINE_S) -> str:
        """Runs a program in the guest and returns what it printed. Raises VmFailureError if it fails."""
        output, status = self.try_run(*words, timeout_s=timeout_s)
        if status != 0:
            raise VmFailureError(f"{words} ended with {status}\n{output}\n{self.describe()}")
        return output

    def try_run(self, *words: str | Path | int, timeout_s: float = DEADLINE_S) -> tuple[str, int]:
        """Runs a program in the guest: what it printed and its exit status (negative: a signal)."""
        self.begin(*words)
        return self.finish(timeout_s=timeout_s)

    def begin(self, *words: str | Path | int) -> None:
        """Starts a program in the guest; `finish` must follow before anything else is asked."""
        self._send(" ".join(["run", *map(str, words)]))

    def finish(self, *, timeout_s: float = DEADLINE_S) -> tuple[str, int]:
        """Waits for the end of the program; returns what it printed and its exit status."""
        mark = f"{ANSWER}exit "
        output = self._wait_for(self._output, mark, timeout_s=timeout_s)
        return output.removesuffix(mark), int(self._wait_for(self._output, "\n"))

    def device_cpu_ns(self, name: str) -> int:
        """Processor time spent for one device: its server's, or for one that QEMU serves all that QEMU has
        spent outside its vCPU threads. On KVM both, since QEMU passes the server's interrupts on.
        """
        if self.settings.plan is not None and name in self.servers:
            return self.servers[name].cpu_ns() + self.qemu_cpu_ns()
        return self.servers[name].cpu_ns() if name in self.servers else self.qemu_cpu_ns()

    def qemu_cpu_ns(self) -> int:
        """Processor time of QEMU's threads but the vCPUs'."""
        pid = self.process.pid
        return process_cpu_ns(pid) - sum(thread_cpu_ns(pid, thread) for thread in self._cpu_threads)

    def total_cpu_ns(self) -> int:
        """Processor time of QEMU, vCPUs included, and of all servers."""
        return process_cpu_ns(self.process.pid) + sum(server.cpu_ns() for server in self.servers.values())

    def describe(self) -> str:
        """The console and the logs for a failure message."""
        logs = [self._log, *(server.log for server in self.servers.values())]
        texts = [f"--- {path.name}\n{path.read_text(errors='replace')}" for path in logs if path.exists()]
        ended = [f"{name} has ended with status {status}" for name, status in self._dead_servers().items()]
        return "\n".join(["--- console", self._console.text[-8000:], *texts, *ended])

    def close(self) -> None:
        """Ends QEMU and the servers."""
        process = getattr(self, "process", None)
        if process is not None:
            process.kill()
            process.wait()
        for server in self.servers.values():
            server.close()
        for end in self._ours:
            end.close()

    def _start(self, control_fd: int, console_fd: int, output_fd: int) -> None:
        settings = self.settings
        if settings.plan is not None:
            command = _kvm_machine(settings.plan, control_fd, console_fd, shared_memory=bool(self.servers))
        elif settings.pci:
            command = _pci_machine(settings, control_fd, console_fd)
        else:
            command = _light_machine(settings, control_fd, console_fd) + _output_port(output_fd)
        for slot, device in enumerate(settings.devices, _FIRST_SLOT):
            server = self.servers.get(device.name)
            bus = f",bus=virtio-mmio-bus.{qemu_arguments.LAST_BUS - slot}" if settings.light else ""
            command += device.arguments(server, "pci" if settings.pci else "device", bus)
        fds = [control_fd, console_fd, output_fd]
        connections = [server.connection.fileno() for server in self.servers.values()]
        fds += [fd for fd in connections if fd >= 0]
        for device in settings.devices:
            fds += [] if device.name in self.servers else device.descriptors()
        self._control.sendall(b'{"execute":"qmp_capabilities"}{"execute":"cont"}')
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=fds
            )
        for server in self.servers.values():
            # QEMU has it now. Should QEMU die, the server must see the end of the connection.
            server.connection.close()

    def _dead_servers(self) -> dict[str, int]:
        polled = {name: server.process.poll() for name, server in self.servers.items()}
        return {name: status for name, status in polled.items() if status is not None}

    def _send(self, line: str) -> None:
        self._console.socket.sendall(line.encode() + b"\n")

    def _wait_for(self, channel: "_Channel", text: str, *, timeout_s: float = DEADLINE_S) -> str:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return channel.read_to(text, min(_LOOK_S, deadline - time.monotonic()))
            except TimeoutError as error:
                # A guest whose device has died may wait for it for ever.
                if time.monotonic() < deadline and self.process.poll() is None and not self._dead_servers():
                    continue
                raise VmFailureError(f"{error}\n{self.describe()}") from None

    def _query(self, name: str) -> list[dict[str, Any]]:
        self._control.sendall(json.dumps({"execute": name, "id": name}).encode())
        self._control.settimeout(DEADLINE_S)
        with self._control.makefile("rb") as replies:
            for line in replies:
                reply = json.loads(line)
                if reply.get("id") == name:
                    answer: list[dict[str, Any]] = reply["return"]
                    return answer
        raise VmFailureError(f"QEMU did not answer {name}\n{self.describe()}")


class _Channel:
    """One stream of text from the guest."""

    def __init__(self, end: socket.socket) -> None:
        self.socket = end
        self.text = ""

    def read_to(self, text: str, timeout_s: float) -> str:
        """Everything up to `text` and with it. Raises TimeoutError with what has come instead."""
        deadline = time.monotonic() + timeout_s
        searched = 0
        # Pieces of a long output arrive by the thousand: only what is new is searched.
        while (found := self.text.find(text, max(0, searched - len(text)))) < 0:
            searched = len(self.text)
            self.socket.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                data = b""
            if not data:
                raise TimeoutError(f"The guest did not print {text!r} but {self.text[-4000:]!r}")
            self.text += data.decode(errors="replace").replace("\r", "")
        taken, self.text = self.text[: found + len(text)], self.text[found + len(text) :]
        return taken


def _output_port(output_fd: int) -> list[str]:
    bus = f"virtio-mmio-bus.{qemu_arguments.LAST_BUS - _FIRST_SLOT + 1}"
    return [
        *("-chardev", f"socket,id=output,fd={output_fd}"),
        *("-device", f"virtio-serial-device,id=ports,bus={bus}"),
        *("-device", "virtserialport,bus=ports.0,chardev=output,name=output"),
    ]


def _light_machine(settings: DeviceVmSettings, control_fd: int, console_fd: int) -> list[str]:
    config = VmConfig(
        name="devices",
        runtime_dir=Path("/tmp"),
        boot=BootConfig(kernel=settings.kernel or paths.kernel().resolve(), initrd=settings.image),
        cpu=CpuConfig(count=settings.cpus),
        memory=MemoryConfig(size_mib=settings.memory_mib),
        rng=RngConfig(enabled=False),
    )
    plan = MicrovmBoard().plan(config, traits(EngineName.TCG, config, Log()))
    host = qemu_arguments.QemuHost(program=paths.qemu(), qmp_fd=control_fd)
    return qemu_arguments.command_line(plan, Wiring(console_fd=console_fd), host)


def _pci_machine(settings: DeviceVmSettings, control_fd: int, console_fd: int) -> list[str]:
    assert settings.kernel is not None
    return [
        str(paths.qemu()),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-S", "-display", "none"),
        *("-machine", "q35,memory-backend=ram", "-accel", "tcg,thread=multi"),
        *("-cpu", qemu_arguments.CPU_MODEL),
        *("-smp", str(settings.cpus), "-m", f"{settings.memory_mib}M"),
        *("-object", f"memory-backend-memfd,id=ram,share=on,size={settings.memory_mib}M"),
        *("-kernel", str(settings.kernel), "-initrd", str(settings.image)),
        *("-append", "console=ttyS0 quiet panic=-1"),
        *("-chardev", f"socket,id=qmp,fd={control_fd}", "-mon", "chardev=qmp,mode=control"),
        *("-chardev", f"socket,id=console,fd={console_fd}", "-serial", "chardev:console"),
    ]


def _kvm_machine(plan: MachinePlan, control_fd: int, console_fd: int, *, shared_memory: bool) -> list[str]:
    console = f"socket,fd={console_fd}"
    return [
        *qemu_kvm.command_line(plan, console=console, shared_memory=shared_memory),
        *("-S", "-chardev", f"socket,id=qmp,fd={control_fd}", "-mon", "chardev=qmp,mode=control"),
    ]
