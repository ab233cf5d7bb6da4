"""The running VM: its engine, its devices, its console and its state.

One `Machine` per process, made by ``vmm.__main__``, whose `boot` reads like the boot of a VM: engine, plan,
console, build, start. It ends once, by `finish` or by the engine's end; the first cause wins. After
that everything that was started is ended, and the event loop is stopped when the last child is reaped.
"""

from __future__ import annotations

import os
import resource
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from .backends.in_process import DeviceServer
from .boards.base import DevicePlan, MachinePlan, board
from .config import DriveConfig, EngineName, LimitConfig, NetConfig, VmConfig
from .config_check import check_limit
from .console import Console
from .engines.base import Done, Engine, EngineEnd, EngineHost, Observer
from .engines.probe import resolve
from .engines.traits import traits
from .errors import ConfigError, HostError, QmpCommandError, VmmError
from .exit_report import ExitKind, ExitReport
from .hotplug import Hotplug
from .jail.lockdown import Lockdown
from .log import Log
from .loop import EventLoop
from .processes import ProcessTable
from .record import replace
from .runstate import RunState, Trigger, advance, require_operable

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any, TypeAlias

QUIT_GRACE_S = 2.0
"""Time for everything to end by itself before it is killed."""

SECTOR_BYTES = 512
"""The unit of a virtio disk's capacity (virtio 1.2, 5.2.4)."""

MAX_FILE_BYTES = 1 << 63
"""No file of Linux is as large as that (loff_t)."""

BACKEND_VERDICT_S = 1.0
"""How long after a backend's good end the end of the engine may explain it."""

BALLOON_EVENT_S = 1.0
"""Time between two events about the size of the guest's memory, as in QEMU."""

MAX_DESCRIPTORS = 1 << 20
"""Open files at most, each about a KiB of the kernel's memory: as many as shares ever divide among themselves
(fs/passthrough/config.rs)."""

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
    ExitKind.TRIPLE_FAULT: "Guest met a triple fault",
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
        self._plan: MachinePlan | None = None
        self._engine: Engine | None = None
        self._hotplug: Hotplug | None = None
        self._drive_limits: dict[str, LimitConfig] = {}
        self._engine_running = False
        self._lockdown = Lockdown(config, log)
        self._devices = DeviceServer(
            log,
            prepare=self._lockdown.before_threads,
            lost=self.lost,
            front_end_gone=self.suspect,
            balloon_changed=self._on_balloon,
        )
        self._balloon_told = False
        self._panic_seen = False

    # --- boot -------------------------------------------------------------------------------------

    def boot(self) -> None:
        """Start everything that the configuration asks for; the guest runs when this returns.

        Raises ConfigError, HostError, EngineError; the caller then passes the error to `fail`.
        """
        config = self.config
        _check_files(config)
        _check_memory(config)
        _set_descriptor_limit()
        name = resolve(config.engine, self._log, proven=config.cpu.kvm_proven)
        self._plan = plan = board(config.board).plan(config, traits(name, config, self._log))
        self.phase("planned")
        self._console = console = Console(config.console, loop=self._loop, log=self._log)
        self._engine = engine = self._make_engine(name)
        self._lockdown.before_programs()
        engine.build(plan, console.guest_end.fileno())
        self._engine_running = True
        self.phase("built")
        self._lockdown.last()
        self.phase("confined")
        engine.start()
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

    def _make_engine(self, name: EngineName) -> Engine:
        host = EngineHost(
            loop=self._loop,
            processes=self._processes,
            devices=self._devices,
            observer=self,
            log=self._log,
        )
        if name is EngineName.KVM:
            from .engines.kvm import KvmEngine

            return KvmEngine(host)
        from .engines.tcg import TcgEngine

        return TcgEngine(self.config, host)

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

    def set_drive_limit(self, device_id: str, limit: LimitConfig) -> None:
        """Replace the limit of a disk. Raises KeyError for an unknown one, ConfigError, StateError."""
        check_limit("", limit)
        require_operable(self.state, "x-strato-set-block-limit")
        self._devices.set_drive_limit(device_id, limit)
        self._drive_limits[device_id] = limit

    def resize_drive(self, device_id: str, size: int) -> None:
        """Make a disk larger, and its file with it unless that is so large already.

        Raises KeyError for an unknown disk, QmpCommandError, HostError, StateError.
        """
        if not 0 < size < MAX_FILE_BYTES or size % SECTOR_BYTES:
            raise QmpCommandError(
                "GenericError", f"Parameter 'size' expects a multiple of {SECTOR_BYTES} bytes, not {size}"
            )
        require_operable(self.state, "block_resize")
        self._devices.resize_drive(device_id, size)

    def reset_vsock(self) -> None:
        """End all vsock connections, as a VM needs it that has become another's copy.

        Raises QmpCommandError, HostError, StateError.
        """
        require_operable(self.state, "x-strato-reset-vsock")
        self._devices.reset_vsock()

    def hotplug(self, operation: str) -> Hotplug:
        """Return what adds and removes devices. Raises StateError, EngineError where nothing can."""
        require_operable(self.state, operation)
        if self._hotplug is None:
            assert self._plan is not None  # implied by the operable states
            self._hotplug = Hotplug(self._plan, self._running_engine())
        return self._hotplug

    def remove_device(self, device_id: str) -> None:
        """Take an added device away. Raises QmpCommandError, HostError, StateError, EngineError."""
        self.hotplug("device_del").remove(device_id)
        self._drive_limits.pop(device_id, None)
        self._announce("DEVICE_DELETED", {"device": device_id, "path": f"/machine/peripheral/{device_id}"})

    def drives(self) -> list[tuple[DevicePlan, DriveConfig, int]]:
        """Return all disks as they are now, with their sizes in bytes as far as these can be known."""
        if self._plan is None:
            return []
        devices = self._plan.devices if self._hotplug is None else self._hotplug.devices
        return [
            (device, self._limited(device.source), _size_of(device.source.path))
            for device in devices
            if isinstance(device.source, DriveConfig)
        ]

    def _limited(self, drive: DriveConfig) -> DriveConfig:
        limit = self._drive_limits.get(drive.id)
        return drive if limit is None else replace(drive, limit=limit)

    def set_balloon(self, size: int) -> None:
        """Ask the guest to make do with so many bytes of its memory. Raises QmpCommandError, StateError."""
        require_operable(self.state, "balloon")
        ram = self.config.memory.size_mib << 20
        if not 0 < size <= ram:
            raise QmpCommandError("GenericError", f"Parameter 'value' expects a size up to {ram} bytes")
        self._devices.set_balloon(ram - size)

    def balloon_bytes(self) -> int:
        """Return how many bytes of its memory the guest has. Raises QmpCommandError without a balloon."""
        return (self.config.memory.size_mib << 20) - self._devices.balloon_bytes()

    def cpus(self, done: Done) -> None:
        """Answer with the vCPUs. Raises StateError."""
        require_operable(self.state, "query-cpus-fast")
        self._running_engine().cpus(done)

    def console_tail(self) -> tuple[str, int]:
        """Return the latest console output and the number of bytes that came before it."""
        if self._console is None:
            return "", 0
        return self._console.ring.text(), self._console.ring.dropped

    def servers(self) -> list[dict[str, Any]]:
        """Say for `x-strato-info` which program serves each device."""
        return [] if self._engine is None else self._engine.servers()

    def add_share(self, tag: str, name: str, directory: Path, *, readonly: bool) -> None:
        """Show a folder below a share that has no folder of its own. Raises QmpCommandError, HostError."""
        self._devices.add_share(tag, name, directory, readonly=readonly)

    def remove_share(self, tag: str, name: str) -> None:
        """Take such a folder away, so that it can be unmounted. Raises as `add_share`."""
        self._devices.remove_share(tag, name)

    def metrics(self) -> dict[str, Any]:
        """Return what the machine and the devices that are served here count, for `x-strato-stats`."""
        machine = {} if self._engine is None else self._engine.metrics()
        return {"machine": machine, "devices": self._devices.metrics()}

    def pids(self) -> dict[str, int]:
        """Return the engine's processes by name, and our own."""
        return {"vmm": os.getpid(), **({} if self._engine is None else self._engine.pids())}

    def _running_engine(self) -> Engine:
        assert self._engine is not None  # implied by the operable states
        return self._engine

    def _announce(self, event: str, data: Mapping[str, Any]) -> None:
        if self.on_event is not None:
            self.on_event(event, data)

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
            self._announce(name, data)

    def ended(self, end: EngineEnd) -> None:
        """See `Observer`."""
        self._engine_running = False
        if self._console is not None:
            self._console.drain()
        guest = end.reason.startswith("guest-")
        # A guest that has panicked resets itself once it has said why.
        reset_by_panic = self._panic_seen and end.reason == "guest-reset"
        reason = "guest-panic" if reset_by_panic else end.reason
        self.observe(Trigger.ENDED, {"guest": guest, "reason": reason})
        kind = end.kind or _KINDS.get(end.reason, ExitKind.HOST_ERROR)
        if self._panic_seen:
            kind = ExitKind.GUEST_PANIC
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
        if self._engine is not None:
            self._engine.close()
        self._devices.close()
        if self._hotplug is not None:
            self._hotplug.close()
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

    def suspect(self, text: str) -> None:
        """See `Observer`."""
        # What ends well when the engine has ended: then the engine is to tell the cause, and its own end is
        # about to be seen.
        if self._engine_running:
            self._loop.call_later(BACKEND_VERDICT_S, lambda: self.lost(text))
        else:
            self.lost(text)

    def lost(self, text: str) -> None:
        """See `Observer`."""
        if self.report is None:
            self._log.error("lost", cause=text)
            self.finish(ExitKind.HOST_ERROR, text)
        self._stop_if_done()

    def _on_balloon(self) -> None:
        # A guest says so for each of its steps: clients hear once a second at most, and of the last one.
        if not self._balloon_told:
            self._balloon_told = True
            self._loop.call_later(BALLOON_EVENT_S, self._tell_balloon)

    def _tell_balloon(self) -> None:
        self._balloon_told = False
        self._announce("BALLOON_CHANGE", {"actual": self.balloon_bytes()})

    def _end_backends(self) -> None:
        for process in self._processes.living():
            process.signal(signal.SIGTERM)

    def _kill_all(self) -> None:
        for process in self._processes.living():
            self._log.warn("killed: it did not end in time", name=process.name, pid=process.pid)
            process.signal(signal.SIGKILL)

    def _stop_if_done(self) -> None:
        if self.report is not None and not self._engine_running and not self._processes.living():
            self._loop.stop()


def _set_descriptor_limit() -> None:
    # The vsock device holds a descriptor for each stream, a share one for each inode that the guest knows.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))


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


def _check_memory(config: VmConfig) -> None:
    size_mib = config.memory.size_mib
    host_mib = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> 20
    if size_mib > host_mib:
        raise HostError(
            f"Guest memory of {size_mib} MiB is more than the host's {host_mib} MiB: lower memory.size_mib"
        )


def _size_of(path: Path) -> int:
    try:
        with path.open("rb") as stream:
            return stream.seek(0, os.SEEK_END)
    except OSError:
        return 0  # removed or out of reach by now; the device goes on with what it has open


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
        Path(f"{config.vsock.socket}_seq").unlink(missing_ok=True)
    for pattern in ("fs*.sock", "vsock.sock"):
        for leftover in config.runtime_dir.glob(pattern):
            leftover.unlink(missing_ok=True)
