"""What an engine is: it runs a MachinePlan and reports what it observes.

`vmm.machine.Machine` owns one engine. Operations are asynchronous: ``done`` is called from the event loop
with the result, or with a VmmError. State changes are reported to the observer, not through ``done``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..boards.base import MachinePlan
from ..config import EngineName
from ..errors import VmmError
from ..runstate import Trigger

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any, TypeAlias

Done: TypeAlias = "Callable[[Any | VmmError], None]"
"""Takes the result of an operation, or the error it failed with."""


@dataclass(frozen=True)
class Wiring:
    """Descriptors that connect a VM to the rest of strato-vmm; the engine borrows them during `start`."""

    console_fd: int
    """Stream socket of the guest's console."""
    backend_fds: Mapping[str, int] = field(default_factory=dict)
    """vhost-user sockets by device id: connected, and for interfaces those to connect to (O_PATH)."""


@dataclass(frozen=True)
class EngineEnd:
    """How the VM ended, in the words of QEMU's ShutdownCause; ``detail`` says more where there is more."""

    reason: str
    detail: str = ""


class Observer(ABC):
    """Receives what an engine observes; implemented by the machine."""

    @abstractmethod
    def observe(self, trigger: Trigger, data: Mapping[str, Any]) -> None:
        """Take note of a state change; ``data`` goes into the QMP event."""

    @abstractmethod
    def ended(self, end: EngineEnd) -> None:
        """Take note that no vCPU will run again. Called exactly once."""


class Engine(ABC):
    """Runs one VM."""

    name: EngineName
    max_slots: int

    @abstractmethod
    def kernel_arguments(self) -> tuple[str, ...]:
        """Return what this engine adds to the guest's command line."""

    @abstractmethod
    def start(self, plan: MachinePlan, wiring: Wiring) -> None:
        """Begin to run the plan. Raises HostError, EngineError, ConfigError."""

    @abstractmethod
    def attach(self) -> None:
        """Begin to report to the observer. Apart from `start`, so that imports overlap with the boot."""

    @abstractmethod
    def pids(self) -> dict[str, int]:
        """Return the processes of this engine by name."""

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
        """Change the carrier of a network interface."""

    @abstractmethod
    def cpus(self, done: Done) -> None:
        """Answer with the list of vCPUs as in `query-cpus-fast`."""

    @abstractmethod
    def quit(self) -> None:
        """End the VM without asking the guest; `Observer.ended` follows."""

    @abstractmethod
    def kill(self) -> None:
        """End the VM now, whatever state it is in; `Observer.ended` follows."""
