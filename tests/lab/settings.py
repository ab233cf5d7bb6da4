"""What a test host is made of, what it is to run, and how long it may take: values only."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests.framework.engine import EMULATED_VARIABLE
from tests.framework.engine import VARIABLE as ENGINE_VARIABLE
from tests.framework.patience import VARIABLE as PATIENCE_VARIABLE
from vmm.config import EngineName

RESULTS_VARIABLE = "STRATO_LAB_RESULTS"
"""Environment variable of the command: a folder whose content is carried out of the test host."""

# What belongs to a session or a folder of the machine that the test host does not have. Nothing that is
# written there survives, so Python may write bytecode, without which every start of a program is slow.
_DROPPED = re.compile(
    r"TMPDIR|XDG_RUNTIME_DIR|SSH_.*|DBUS_.*|DISPLAY|PWD|OLDPWD|SHLVL|_|PYTHONDONTWRITEBYTECODE"
)
_PATIENCE = "5"
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class LabSettings:
    """The machine and its limits."""

    cpus: int = 2
    memory_mib: int = 6144
    boot_s: float = 120.0
    """From QEMU's start until the command runs."""
    beat_s: float = 60.0
    """How long one of the vCPUs may go without a sign of life."""
    silence_s: float = 600.0
    """How long the command may go without printing anything."""
    deadline_s: float = 1800.0
    """For everything."""


@dataclass(frozen=True)
class Command:
    """What runs in the test host: in the folder and with the environment that it would have here."""

    words: Sequence[str]
    directory: Path = field(default_factory=Path.cwd)
    environment: Mapping[str, str] = field(default_factory=lambda: inherited_environment(os.environ))


def inherited_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """The part of an environment that makes sense in the test host and that a shell can export. Unless it
    says otherwise the tests there use engine kvm and are patient.
    """
    kept = {
        name: value
        for name, value in environment.items()
        if _NAME.fullmatch(name) and not _DROPPED.fullmatch(name)
    }
    defaults = {ENGINE_VARIABLE: EngineName.KVM, PATIENCE_VARIABLE: _PATIENCE}
    return {**defaults, **kept, EMULATED_VARIABLE: "1"}
