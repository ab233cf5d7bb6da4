"""The running VM: its backends, its engine, its console and its state.

One `Machine` per process, made by ``vmm.__main__``, which reads like the boot of a VM: plan, console,
backends, engine, attach. It ends once, by `finish` or by the engine's end; the first cause wins. After
that everything that was started is ended, and the event loop is stopped when the last child is reaped.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .backends.base import Backend, BackendStarter, PendingBackend
from .backends.in_process import DeviceServer
from .boards.base import DeviceKind, DevicePlan, MachinePlan, board
from .config import EngineName, LimitConfig, NetConfig, VmConfig, check_limit
from .console import Console
from .engines.base import Done, Engine, EngineEnd, Observer, Wiring
from .engines.probe import resolve
from .errors import ConfigError, VmmError
from .exit_report import ExitKind, ExitReport
from .log import Log
from .loop import EventLoop
from .processes import Process, ProcessTable
from .runstate import RunState, Trigger, advance, require_operable

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any, TypeAlias

QUIT_GRACE_S = 2.0
"""Time for everything to end by itself before it is killed."""

BACKEND_VERDICT_S = 1.0
"""How long after a backend's good end the end of the engine may explain it."""

OWN_KINDS = frozenset({DeviceKind.VSOCK, DeviceKind.RNG, DeviceKind.BLOCK, DeviceKind.FS, DeviceKind.NET})
"""The devices that our own cores serve."""

EventSink: TypeAlias = "Callable[[str, Mapping[str, Any]], None]"

_KINDS = {
    "guest-shutdown": ExitKind.GUEST_SHUTDOWN,
    "guest-reset": ExitKind.GUEST_RESET,
    "guest-panic": ExitKind.GUEST_PANIC,
    "host-qmp-quit": ExitKind.QUIT,
}
_MESSAGES = {
    ExitKind.GUEST_SHUTDOWN: "Guest powered off",
    ExitKind.GUEST_RESET: "Guest reset itself",
    ExitKind.GUEST_PANIC: "Guest kernel panicked",
    ExitKind.QUIT: "Ended by QMP command quit",
}


class Machine(Observer):
    """See the module's docstring."""

    def __init__(self, config: VmConfig, *, loop: EventLoop, log: Log, started_at: float) -> None:
        self.config = config
        self.state = RunState.PRELAUNCH
        self.report: ExitReport | None = None
        self.phases_ms: dict[str, float] = {}
        self.on_event: EventSink | None = None
        self._started_at = started_at
        self._loop = loop
        self._log = log
        self._processes = ProcessTable(loop, log)
        self._console: Console | None = None
        self._engine: Engine | None = None
        self._engine_running = False
        self._backends: list[Backend] = []
        self._devices = DeviceServer(log, lost=self._blame, front_end_gone=self._suspect)
        self._panic_seen = False

    # --- boot -------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start everything that the configuration asks for; the guest runs when this returns.

        Raises ConfigError, HostError, EngineError; the caller then passes the error to `fail`.
        """
        config = self.config
        _check_files(config)
        _raise_descriptor_limit()
        self._engine = engine = self._make_engine()
        plan = board(config.board).plan(config, engine.kernel_arguments())
        self.phase("planned")
        self._console = console = Console(config.console, loop=self._loop, log=self._log)
        self._backends = backends = self._start_backends(plan)
        self.phase("backends_connected")
        wiring = Wiring(
            console_fd=console.guest_end.fileno(),
            backend_fds={backend.device.id: backend.connection.fileno() for backend in backends},
        )
        engine.start(plan, wiring)
        self._engine_running = True
        for backend in backends:
            backend.connection.close()
        self.phase("engine_spawned")
        self._devices.serve()
        self.phase("devices_served")
        self._log.info("VM started", name=config.name, engine=engine.name, **engine.pids())

    def attach(self) -> None:
        """Begin to take note of what happens; needs the event loop to run soon."""
        if self._engine is not None and self._console is not None:
            self._console.attach()
            self._engine.attach()
            self._devices.attach(self._loop)

    def phase(self, name: str) -> None:
        """Note that a phase of the boot is over, in milliseconds since strato-vmm's own first line."""
        self.phases_ms[name] = round((time.monotonic() - self._started_at) * 1000, 2)

    def _make_engine(self) -> Engine:
        match resolve(self.config.engine):
            case EngineName.TCG:
                from .engines.tcg import TcgEngine

                return TcgEngine(
                    self.config,
                    loop=self._loop,
                    processes=self._processes,
                    observer=self,
                    log=self._log,
                )
            case other:
                raise ConfigError("engine", f"{other} is not built in this release")

    def _start_backends(self, plan: MachinePlan) -> list[Backend]:
        # Programs are all started before one is waited for: they come up side by side.
        pending: list[PendingBackend] = []
        connected: list[Backend] = []
        for device in plan.devices:
            starter = self._starter(device)
            if starter is not None:
                pending.append(starter.start(device, self.config.runtime_dir, self._processes))
            elif device.kind is DeviceKind.NET:
                connected.append(self._devices.listen(device, self.config.runtime_dir))
            elif device.kind in OWN_KINDS:
                connected.append(self._devices.connect(device))
        self.phase("backends_spawned")
        return connected + [backend.connect(self._processes.reap) for backend in pending]

    def _starter(self, device: DevicePlan) -> BackendStarter | None:
        programs = self.config.programs
        match device.kind:
            case DeviceKind.VSOCK if programs.vhost_device_vsock is not None:
                from .backends.vhost_device_vsock import VhostDeviceVsockStarter

                return VhostDeviceVsockStarter(programs.vhost_device_vsock, self._on_backend_exit)
            case DeviceKind.FS if programs.virtiofsd is not None:
                from .backends.virtiofsd import VirtiofsdStarter

                return VirtiofsdStarter(programs.virtiofsd, self._on_backend_exit)
            case _:
                return None

    # --- operations -------------------------------------------------------------------------------

    @property
    def engine_name(self) -> str:
        """The engine in use."""
        return "none" if self._engine is None else str(self._engine.name)

    def stop(self, done: Done) -> None:
        """Pause the VM; nothing happens when it is paused. Raises StateError."""
        require_operable(self.state, "stop")
        self._running_engine().pause(done)

    def cont(self, done: Done) -> None:
        """Resume the VM; nothing happens when it runs. Raises StateError."""
        require_operable(self.state, "cont")
        self._running_engine().resume(done)

    def reset(self, done: Done) -> None:
        """Reset the VM. Raises StateError."""
        require_operable(self.state, "system_reset")
        self._running_engine().reset(done)

    def powerdown(self, done: Done) -> None:
        """Press the power button. Raises StateError."""
        require_operable(self.state, "system_powerdown")
        self._running_engine().powerdown(done)

    def set_link(self, device_id: str, up: bool, done: Done) -> None:
        """Change the carrier of an interface. Raises KeyError for an unknown one, StateError."""
        if device_id not in {net.id for net in self.config.nets}:
            raise KeyError(device_id)
        require_operable(self.state, "set_link")
        self._devices.set_link(device_id, up)
        self._running_engine().set_link(device_id, up, done)

    def set_net_limit(self, device_id: str, direction: str, limit: LimitConfig) -> None:
        """Replace the limit of what an interface receives or sends (``direction``: receive, transmit).

        Raises KeyError for an unknown interface, ConfigError, StateError.
        """
        check_limit("", limit)
        if direction not in ("receive", "transmit"):
            raise ConfigError("direction", f"{direction!r} is neither receive nor transmit")
        require_operable(self.state, "x-strato-set-net-limit")
        self._devices.set_net_limit(device_id, direction, limit)

    def cpus(self, done: Done) -> None:
        """Answer with the vCPUs. Raises StateError."""
        require_operable(self.state, "query-cpus-fast")
        self._running_engine().cpus(done)

    def console_tail(self) -> tuple[str, int]:
        """Return the latest console output and the number of bytes that came before it."""
        if self._console is None:
            return "", 0
        return self._console.ring.text(), self._console.ring.dropped

    def backends(self) -> list[dict[str, Any]]:
        """Describe the backends for `x-strato-info`."""
        return [
            {"device": backend.device.id, "program": backend.program, "pid": backend.pid}
            for backend in self._backends
        ]

    def add_share(self, tag: str, name: str, directory: Path, *, readonly: bool) -> None:
        """Show a folder below a share that has no folder of its own. Raises QmpCommandError, HostError."""
        self._devices.add_share(tag, name, directory, readonly=readonly)

    def remove_share(self, tag: str, name: str) -> None:
        """Take such a folder away, so that it can be unmounted. Raises as `add_share`."""
        self._devices.remove_share(tag, name)

    def device_metrics(self) -> list[dict[str, Any]]:
        """Return the counters of the devices that are served here, for `x-strato-stats`."""
        return self._devices.metrics()

    def pids(self) -> dict[str, int]:
        """Return the engine's processes by name, and our own."""
        return {"vmm": os.getpid(), **({} if self._engine is None else self._engine.pids())}

    def _running_engine(self) -> Engine:
        assert self._engine is not None  # implied by the operable states
        return self._engine

    # --- what happens -----------------------------------------------------------------------------

    def observe(self, trigger: Trigger, data: Mapping[str, Any]) -> None:
        """See `Observer`."""
        if trigger is Trigger.STARTED:
            self.phase("running")
        if trigger is Trigger.PANICKED:
            self._panic_seen = True
            self._log.error("guest kernel panicked")
        transition = advance(self.state, trigger)
        if transition.state is not self.state:
            self._log.debug("state", old=self.state, new=transition.state)
        self.state = transition.state
        for name in transition.events:
            if self.on_event is not None:
                self.on_event(name, data)

    def ended(self, end: EngineEnd) -> None:
        """See `Observer`."""
        self._engine_running = False
        if self._console is not None:
            self._console.drain()
        guest = end.reason.startswith("guest-")
        self.observe(Trigger.ENDED, {"guest": guest, "reason": end.reason})
        kind = ExitKind.GUEST_PANIC if self._panic_seen else _KINDS.get(end.reason, ExitKind.HOST_ERROR)
        self.finish(kind, self._message(kind, end))
        self._end_backends()
        self._stop_if_done()

    def finish(self, kind: ExitKind, message: str) -> None:
        """Decide how the VM has ended and begin to end the rest; only the first call counts."""
        if self.report is not None:
            return
        self.report = ExitReport(kind, message)
        self._log.info("VM ends", kind=kind, message=message)
        if self._engine is not None and self._engine_running:
            self._engine.quit()
        else:
            self._end_backends()
        self._loop.call_later(QUIT_GRACE_S, self._kill_all)
        self._stop_if_done()

    def fail(self, error: VmmError, text: str) -> None:
        """Finish because of an error at boot."""
        self._log.error("VM cannot start", cause=text)
        kind = ExitKind.CONFIG_ERROR if isinstance(error, ConfigError) else ExitKind.HOST_ERROR
        self.finish(kind, text)

    def close(self) -> ExitReport:
        """Give back files and sockets after the loop has ended; return the report with the console's tail."""
        assert self.report is not None
        self._devices.close()
        tail = ""
        if self._console is not None:
            self._console.drain()
            tail = self._console.ring.text()
            self._console.close()
        _remove_leftovers(self.config)
        return ExitReport(self.report.kind, self.report.message, tail)

    def _message(self, kind: ExitKind, end: EngineEnd) -> str:
        if kind is ExitKind.GUEST_PANIC and self._console is not None:
            lines = [line for line in self._console.ring.text().splitlines() if "Kernel panic" in line]
            if lines:
                return f"{_MESSAGES[kind]}: {lines[-1].strip()}"
        return _MESSAGES.get(kind) or f"VM ended with {end.reason}: {end.detail or 'no more is known'}"

    def _on_backend_exit(self, process: Process) -> None:
        text = f"Backend died: {process.describe_exit()}"
        if process.status == 0:
            self._suspect(text)
        else:
            self._blame(text)
        self._stop_if_done()

    def _suspect(self, text: str) -> None:
        # Backends end well when their front end has ended: then the engine is to tell the cause, and
        # its own end is about to be seen.
        if self._engine_running:
            self._loop.call_later(BACKEND_VERDICT_S, lambda: self._blame(text))
        else:
            self._blame(text)

    def _blame(self, text: str) -> None:
        if self.report is None:
            self._log.error("backend died", cause=text)
            self.finish(ExitKind.HOST_ERROR, text)

    def _end_backends(self) -> None:
        for process in self._processes.living():
            process.signal(signal.SIGTERM)

    def _kill_all(self) -> None:
        for process in self._processes.living():
            self._log.warn("killed: it did not end in time", name=process.name, pid=process.pid)
            process.signal(signal.SIGKILL)

    def _stop_if_done(self) -> None:
        if self.report is not None and not self._processes.living():
            self._loop.stop()


def _raise_descriptor_limit() -> None:
    # The vsock device holds a descriptor for each stream, a share one for each inode that the guest knows.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _check_files(config: VmConfig) -> None:
    if not config.runtime_dir.is_dir():
        raise ConfigError("runtime_dir", f"Folder {config.runtime_dir} does not exist: make it first")
    files: list[tuple[str, Path]] = [("boot.kernel", config.boot.kernel)]
    if config.boot.initrd is not None:
        files.append(("boot.initrd", config.boot.initrd))
    for path, file in files:
        try:
            file.open("rb").close()
        except OSError as error:
            raise ConfigError(path, f"File {file} cannot be read") from error
    for index, net in enumerate(config.nets):
        _check_tap(index, net)


def _check_tap(index: int, net: NetConfig) -> None:
    if net.tap_fd is None:
        return
    try:
        os.set_inheritable(net.tap_fd, False)
    except OSError as error:
        raise ConfigError(f"nets[{index}].tap_fd", f"Descriptor {net.tap_fd} is not open") from error


def _remove_leftovers(config: VmConfig) -> None:
    if config.vsock is not None:
        config.vsock.socket.unlink(missing_ok=True)
    for pattern in ("fs*.sock", "vsock.sock"):
        for leftover in config.runtime_dir.glob(pattern):
            leftover.unlink(missing_ok=True)
