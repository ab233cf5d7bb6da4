"""What an engine is: it runs a MachinePlan and reports what it observes.

`vmm.machine.Machine` owns one engine. Call order: `build`, `start`, `attach`, operations, `close`. Operations
are asynchronous: ``done`` is called from the event loop with the result, or with a VmmError; some raise it at
once. State changes are reported to the observer, not through ``done``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from ..backends.in_process import DeviceServer
from ..boards.base import DevicePlan, MachinePlan
from ..config import EngineName
from ..errors import EngineError, VmmError
from ..exit_report import ExitKind
from ..log import Log
from ..loop import EventLoop
from ..processes import ProcessTable
from ..record import record
from ..runstate import Trigger

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any, TypeAlias

Done: TypeAlias = "Callable[[Any | VmmError], None]"
"""Takes the result of an operation, or the error it failed with."""


@record(frozen=True)
class EngineEnd:
    """How the VM ended, in the words of QEMU's ShutdownCause; ``detail`` says more where there is more."""

    reason: str
    detail: str = ""
    kind: ExitKind | None = None
    """What it was, where the reason does not tell."""


class Observer(ABC):
    """Receives what an engine observes; implemented by the machine."""

    @abstractmethod
    def phase(self, name: str) -> None:
        """Note that a phase of the boot is over."""

    @abstractmethod
    def observe(self, trigger: Trigger, data: Mapping[str, Any]) -> None:
        """Take note of a state change; ``data`` goes into the QMP event."""

    @abstractmethod
    def ended(self, end: EngineEnd) -> None:
        """Take note that no vCPU will run again. Called exactly once."""

    @abstractmethod
    def lost(self, text: str) -> None:
        """Take note that something outside the guest has died without which the VM cannot go on."""

    @abstractmethod
    def suspect(self, text: str) -> None:
        """As `lost`, but of something that ends well when the engine has ended."""


@record(frozen=True, kw_only=True)
class EngineHost:
    """What an engine gets of strato-vmm."""

    loop: EventLoop
    processes: ProcessTable
    devices: DeviceServer
    observer: Observer
    log: Log


class Engine(ABC):
    """Runs one VM."""

    name: EngineName

    @abstractmethod
    def build(self, plan: MachinePlan, console_fd: int) -> None:
        """Make the VM and its devices, paused. ``console_fd``, a stream socket, becomes the guest's console
        and may be closed afterwards. Raises HostError, EngineError, ConfigError.
        """

    @abstractmethod
    def start(self) -> None:
        """Let the vCPUs run for the first time; Trigger.STARTED follows. Raises HostError, EngineError."""

    @abstractmethod
    def attach(self) -> None:
        """Begin to report to the observer. Apart from `start`, so that imports overlap with the boot."""

    @abstractmethod
    def pids(self) -> dict[str, int]:
        """Return the processes of this engine by name."""

    @abstractmethod
    def servers(self) -> list[dict[str, Any]]:
        """Say for each device which program serves it (``device``, ``program``, ``pid``)."""

    @abstractmethod
    def pause(self, done: Done) -> None:
        """Stop all vCPUs; Trigger.PAUSED follows."""

    @abstractmethod
    def resume(self, done: Done) -> None:
        """Let all vCPUs run; Trigger.RESUMED follows."""

    @abstractmethod
    def reset(self, done: Done) -> None:
        """Reset the machine as by its reset line; Trigger.RESET follows."""

    @abstractmethod
    def powerdown(self, done: Done) -> None:
        """Press the power button; Trigger.POWERDOWN follows."""

    @abstractmethod
    def set_link(self, device_id: str, up: bool, done: Done) -> None:
        """Change the carrier of a network interface, whose device knows of it already."""

    @abstractmethod
    def cpus(self, done: Done) -> None:
        """Answer with the list of vCPUs as in `query-cpus-fast`."""

    def metrics(self) -> dict[str, int]:
        """Return the engine's own counters by name; empty for one that has none."""
        return {}

    def plug(self, device: DevicePlan, *, fd: int | None) -> None:
        """Put a new device into a spare slot of the VM; ``fd`` as in `vmm.backends.making.make`.

        Raises EngineError, HostError, ConfigError.
        """
        raise EngineError(f"Engine {self.name} cannot add devices to a VM")

    def unplug(self, device: DevicePlan) -> None:
        """Take a device out of its slot and end it. Raises EngineError, HostError."""
        raise EngineError(f"Engine {self.name} cannot remove devices from a VM")

    @abstractmethod
    def quit(self) -> None:
        """End the VM without asking the guest; `Observer.ended` follows."""

    def close(self) -> None:
        """Give back what the engine holds; to be called once, before its devices are closed."""
        return
