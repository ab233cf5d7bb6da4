"""Which engine this host can run.

The only built engine is tcg. When kvm is built, `verdict` will run a few kernel-mode instructions in a
throw-away VM (some hosts offer a /dev/kvm that cannot run an unmodified kernel) and cache the result per
boot; until then it says honestly what it has looked at.
"""

import errno
import os
from dataclasses import dataclass
from pathlib import Path

from ..config import EngineName
from ..errors import EngineError

KVM_DEVICE = Path("/dev/kvm")


@dataclass(frozen=True)
class Verdict:
    """The engine that ``auto`` means on this host, and why."""

    engine: EngineName
    reason: str


def verdict() -> Verdict:
    """Choose the engine for ``auto``."""
    return Verdict(EngineName.TCG, f"engine kvm is not built in this release ({kvm_state()})")


def kvm_state() -> str:
    """Say in words whether /dev/kvm opens. Opening it proves little: see the module."""
    try:
        os.close(os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            return f"{KVM_DEVICE} does not exist"
        return f"{KVM_DEVICE} cannot be opened: {error.strerror}"
    return f"{KVM_DEVICE} can be opened, its use is untested"


def resolve(wanted: EngineName) -> EngineName:
    """Return the engine to use. Raises EngineError for one that is not built."""
    match wanted:
        case EngineName.AUTO:
            return verdict().engine
        case EngineName.TCG:
            return EngineName.TCG
        case EngineName.KVM:
            raise EngineError("Engine kvm is not built in this release: set engine to tcg or auto")
