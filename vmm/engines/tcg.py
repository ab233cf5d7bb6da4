"""Engine tcg: QEMU's emulator as the CPU, for hosts without usable KVM.

One QEMU child, driven over a private QMP socketpair. Commands may be written before QEMU reads them: the
set-up (`qmp_capabilities`, carriers, `cont`) is in the socket when QEMU starts, so no round trip delays
the guest.
"""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import Mapping
from contextlib import suppress

from .. import paths
from ..backends.vhost_user import VhostUserBackends
from ..boards.base import MachinePlan
from ..config import EngineName, NetConfig, VmConfig
from ..errors import HostError, QmpClosedError, QmpCommandError, QmpProtocolError, VmmError
from ..processes import Process
from ..qmp.protocol import MAX_REPLY_BYTES, MessageReader, command, result_of, serialise
from ..runstate import Trigger
from . import qemu_arguments
from .base import Done, Engine, EngineEnd, EngineHost
from .qemu_arguments import Wiring

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any

_TRIGGERS = {
    "STOP": Trigger.PAUSED,
    "RESUME": Trigger.RESUMED,
    "RESET": Trigger.RESET,
    "POWERDOWN": Trigger.POWERDOWN,
    "GUEST_PANICKED": Trigger.PANICKED,
    "GUEST_CRASHLOADED": Trigger.CRASH_LOADED,
}
_READ_BYTES = 65536
QEMU_DESCRIPTORS = 1024
"""Open files that QEMU may have: some eight for each of its slots, and a few dozen of its own."""


class TcgEngine(Engine):
    """See the module's docstring."""

    name = EngineName.TCG

    def __init__(self, config: VmConfig, host: EngineHost) -> None:
        self._config = config
        self._host = host
        self._loop = host.loop
        self._observer = host.observer
        self._backends = VhostUserBackends(config.programs, host.devices, on_exit=self._on_backend_exit)
        self._process: Process | None = None
        ours, self._theirs = socket.socketpair(type=socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._channel = QemuChannel(ours)
        self._reason: str | None = None
        self._started = False

    def build(self, plan: MachinePlan, console_fd: int) -> None:
        """See `Engine`."""
        program = self._config.programs.qemu or paths.qemu()
        self._backends.start(plan, self._config.runtime_dir, self._host.processes)
        self._observer.phase("backends_connected")
        self._channel.send("qmp_capabilities")
        for device in plan.devices:
            if isinstance(device.source, NetConfig) and not device.source.link_up:
                self._channel.send("set_link", {"name": device.id, "up": False})
        wiring = Wiring(console_fd=console_fd, backend_fds=self._backends.descriptors())
        qemu = qemu_arguments.QemuHost(
            program=program, qmp_fd=self._theirs.fileno(), sandbox=self._config.jail.enabled
        )
        with self._theirs as theirs:
            self._process = self._host.processes.spawn(
                qemu_arguments.command_line(plan, wiring, qemu),
                name=program.name,
                pass_fds=[theirs.fileno(), console_fd, *wiring.backend_fds.values()],
                on_exit=self._on_exit,
            )
        if self._config.jail.enabled:
            _limit_descriptors(self._process.pid)
        self._backends.close()
        self._observer.phase("engine_spawned")
        self._host.devices.serve()
        self._observer.phase("devices_served")

    def start(self) -> None:
        """See `Engine`."""
        # A QEMU that has ended by now had words of its own, which its end brings to light.
        with suppress(HostError):
            self._channel.send("cont")

    def attach(self) -> None:
        """See `Engine`."""
        self._loop.add_reader(self._channel.socket.fileno(), self._on_readable)

    def pids(self) -> dict[str, int]:
        """See `Engine`."""
        return {} if self._process is None else {"qemu": self._process.pid}

    def servers(self) -> list[dict[str, Any]]:
        """See `Engine`."""
        return self._backends.servers()

    def pause(self, done: Done) -> None:
        """See `Engine`."""
        self._execute("stop", None, done)

    def resume(self, done: Done) -> None:
        """See `Engine`."""
        self._execute("cont", None, done)

    def reset(self, done: Done) -> None:
        """See `Engine`."""
        # QEMU runs with -no-reboot so that a reset by the guest ends the VM; one asked for from outside
        # is let through, and the rule is put back once the machine has been reset.
        self._channel.send("set-action", {"reboot": "reset"})
        self._execute("system_reset", None, done)

    def powerdown(self, done: Done) -> None:
        """See `Engine`."""
        self._execute("system_powerdown", None, done)

    def set_link(self, device_id: str, up: bool, done: Done) -> None:
        """See `Engine`."""
        self._execute("set_link", {"name": device_id, "up": up}, done)

    def cpus(self, done: Done) -> None:
        """See `Engine`."""
        self._execute("query-cpus-fast", None, done)

    def quit(self) -> None:
        """See `Engine`."""
        if self._process is not None and self._process.alive:
            try:
                self._channel.send("quit")
            except HostError:
                self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self._process.signal(signal.SIGKILL)

    def _execute(self, name: str, arguments: Mapping[str, Any] | None, done: Done) -> None:
        try:
            self._channel.send(name, arguments, done)
        except HostError as error:
            done(error)

    def _on_readable(self) -> None:
        try:
            open_still = self._channel.receive(self._on_event)
        except QmpProtocolError as error:
            self._host.log.error("QEMU sent something that is not QMP", cause=error)
            open_still = False
            self._kill()
        if not open_still:
            self._loop.remove_reader(self._channel.socket.fileno())
            self._channel.fail_all(QmpClosedError("QEMU has ended"))

    def _on_event(self, name: str, data: Mapping[str, Any]) -> None:
        if name == "SHUTDOWN":
            self._reason = str(data.get("reason", "host-error"))
        trigger = _TRIGGERS.get(name)
        if trigger is None:
            return
        if trigger is Trigger.RESUMED and not self._started:
            self._started = True
            trigger = Trigger.STARTED
        if trigger is Trigger.RESET:
            self._channel.send("set-action", {"reboot": "shutdown"})
        self._observer.observe(trigger, data)

    def _on_exit(self, process: Process) -> None:
        # What QEMU said before it ended may still be in the socket.
        self._on_readable_until_end()
        if self._reason is None:
            self._observer.ended(EngineEnd("host-error", process.describe_exit()))
        else:
            self._observer.ended(EngineEnd(self._reason))

    def _on_backend_exit(self, process: Process) -> None:
        text = f"Backend died: {process.describe_exit()}"
        if process.status == 0:
            self._observer.suspect(text)
        else:
            self._observer.lost(text)

    def _on_readable_until_end(self) -> None:
        while not self._channel.closed and self._channel.has_input():
            self._on_readable()


def _limit_descriptors(pid: int) -> None:
    # QEMU has inherited what strato-vmm needs for shares, and opens next to nothing once it has started.
    try:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (QEMU_DESCRIPTORS, QEMU_DESCRIPTORS))
    except OSError as error:
        raise HostError("QEMU's open files cannot be limited") from error


class QemuChannel:
    """The private QMP connection: pipelined commands and their callbacks."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.closed = False
        self._reader = MessageReader(MAX_REPLY_BYTES)
        self._pending: dict[int, tuple[str, Done | None]] = {}
        self._next_id = 1

    def send(self, name: str, arguments: Mapping[str, Any] | None = None, done: Done | None = None) -> None:
        """Send a command. Without ``done`` a refusal is QEMU's last word and raises from `receive`.

        Raises HostError when QEMU has ended.
        """
        message = serialise(command(name, dict(arguments or {}), self._next_id))
        try:
            # A few hundred bytes into an empty socket buffer: this never waits.
            self.socket.sendall(message)
        except OSError as error:
            raise HostError(f"Command {name} cannot be sent to QEMU: it has ended") from error
        self._pending[self._next_id] = (name, done)
        self._next_id += 1

    def has_input(self) -> bool:
        """Return whether `receive` would find bytes or the end of the stream."""
        try:
            self.socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True
        return True

    def receive(self, on_event: Any) -> bool:
        """Take what has arrived; return False at the end of the stream. Raises QmpProtocolError."""
        try:
            data = self.socket.recv(_READ_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return True
        except OSError:
            data = b""
        if not data:
            self.closed = True
            return False
        for message in self._reader.feed(data):
            if "event" in message:
                on_event(str(message["event"]), message.get("data") or {})
            elif "id" in message:
                self._complete(message)
        return True

    def fail_all(self, error: VmmError) -> None:
        """Answer every pending command with an error."""
        pending, self._pending = self._pending, {}
        for _, done in pending.values():
            if done is not None:
                done(error)

    def _complete(self, message: dict[str, Any]) -> None:
        name, done = self._pending.pop(message["id"], ("", None))
        try:
            result: Any = result_of(message)
        except QmpCommandError as error:
            if done is None:
                raise QmpProtocolError(f"QEMU refuses {name}") from error
            result = error
        if done is not None:
            done(result)
