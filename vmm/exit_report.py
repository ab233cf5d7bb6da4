"""How a VM ended: the kinds, the exit status of strato-vmm, and exit.json in the runtime folder."""

import json
import os
from enum import IntEnum, StrEnum
from pathlib import Path

from .record import record

FILE_NAME = "exit.json"


class ExitKind(StrEnum):
    """Why strato-vmm ended."""

    GUEST_SHUTDOWN = "guest-shutdown"
    """The guest powered itself off."""
    GUEST_RESET = "guest-reset"
    """The guest reset itself; strato-vmm never restarts a VM."""
    GUEST_PANIC = "guest-panic"
    """The guest's kernel panicked."""
    TRIPLE_FAULT = "triple-fault"
    """The guest failed even to handle that it failed to handle a fault: its kernel is broken (engine kvm)."""
    VCPU_FAILED = "vcpu-failed"
    """KVM could not run a vCPU any further (engine kvm)."""
    QUIT = "quit"
    """A client asked for it (QMP `quit`)."""
    CONFIG_ERROR = "config-error"
    """The configuration cannot be used."""
    HOST_ERROR = "host-error"
    """Something on the host is missing or has died."""
    SIGNAL = "signal"
    """SIGTERM, SIGINT or SIGHUP."""


class ExitCode(IntEnum):
    """Exit statuses of strato-vmm."""

    OK = 0
    """The guest powered off, or a client asked to quit."""
    INTERNAL = 1
    """A bug in strato-vmm: there is a traceback on stderr and no exit.json."""
    CONFIG = 2
    """Wrong command line or configuration."""
    HOST = 3
    """Something on the host is missing or has died."""
    PANIC = 4
    """The guest's kernel panicked, or met a triple fault."""
    RESET = 5
    """The guest reset itself."""
    SIGNAL = 6
    """Ended by a signal."""


_CODES = {
    ExitKind.GUEST_SHUTDOWN: ExitCode.OK,
    ExitKind.QUIT: ExitCode.OK,
    ExitKind.GUEST_RESET: ExitCode.RESET,
    ExitKind.GUEST_PANIC: ExitCode.PANIC,
    ExitKind.TRIPLE_FAULT: ExitCode.PANIC,
    ExitKind.VCPU_FAILED: ExitCode.HOST,
    ExitKind.CONFIG_ERROR: ExitCode.CONFIG,
    ExitKind.HOST_ERROR: ExitCode.HOST,
    ExitKind.SIGNAL: ExitCode.SIGNAL,
}


@record(frozen=True)
class ExitReport:
    """What exit.json holds."""

    kind: ExitKind
    message: str
    console_tail: str = ""

    @property
    def code(self) -> ExitCode:
        """The exit status that belongs to the kind."""
        return _CODES[self.kind]

    def write(self, directory: Path) -> None:
        """Write exit.json, whole or not at all. Raises OSError."""
        text = json.dumps(
            {"kind": str(self.kind), "message": self.message, "console_tail": self.console_tail}
        )
        temporary = directory / f".{FILE_NAME}.{os.getpid()}"
        temporary.write_text(text)
        temporary.replace(directory / FILE_NAME)


def read(directory: Path) -> ExitReport:
    """Read exit.json. Raises OSError, ValueError, KeyError."""
    document = json.loads((directory / FILE_NAME).read_text())
    return ExitReport(ExitKind(document["kind"]), str(document["message"]), str(document["console_tail"]))
