"""What an engine is: it runs a MachinePlan and reports what it observes.

`vmm.machine.Machine` owns one engine. Operations are asynchronous: ``done`` is called from the event loop
with the result, or with a VmmError. State changes are reported to the observer, not through ``done``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..boards.base import MachinePlan
from ..config import EngineName
from ..errors import VmmError
from ..runstate import Trigger

Done = Callable[[Any | VmmError], None]
"""Takes the result of an operation, or the error it failed with."""


@dataclass(frozen=True)
class Wiring:
    """Descriptors that connect a VM to the rest of strato-vmm; the engine borrows them during `start`."""

    console_fd: int
    """Stream socket of the guest's console."""
    backend_fds: Mapping[str, int] = field(default_factory=dict)
    """Connected vhost-user sockets by device id."""


@dataclass(frozen=True)
class EngineEnd:
    """How the VM ended, in the words of QEMU's ShutdownCause; ``detail`` says more where there is more."""

    reason: str
    detail: str = ""


class Observer(Protocol):
    """Receives what an engine observes; implemented by the machine."""

    def observe(self, trigger: Trigger, data: Mapping[str, Any]) -> None:
        """Take note of a state change; ``data`` goes into the QMP event."""

    def ended(self, end: EngineEnd) -> None:
        """Take note that no vCPU will run again. Called exactly once."""


class Engine(Protocol):
    """Runs one VM."""

    name: EngineName
    max_slots: int

    def kernel_arguments(self) -> tuple[str, ...]:
        """Return what this engine adds to the guest's command line."""

    def start(self, plan: MachinePlan, wiring: Wiring) -> None:
        """Begin to run the plan. Raises HostError, EngineError, ConfigError."""

    def attach(self) -> None:
        """Begin to report to the observer. Apart from `start`, so that imports overlap with the boot."""

    def pids(self) -> dict[str, int]:
        """Return the processes of this engine by name."""

    def pause(self, done: Done) -> None:
        """Stop all vCPUs; Trigger.PAUSED follows."""

    def resume(self, done: Done) -> None:
        """Let all vCPUs run; Trigger.RESUMED follows."""

    def reset(self, done: Done) -> None:
        """Reset the machine as by its reset line; Trigger.RESET follows."""

    def powerdown(self, done: Done) -> None:
        """Press the power button; Trigger.POWERDOWN follows."""

    def set_link(self, device_id: str, up: bool, done: Done) -> None:
        """Change the carrier of a network interface."""

    def cpus(self, done: Done) -> None:
        """Answer with the list of vCPUs as in `query-cpus-fast`."""

    def quit(self) -> None:
        """End the VM without asking the guest; `Observer.ended` follows."""

    def kill(self) -> None:
        """End the VM now, whatever state it is in; `Observer.ended` follows."""
