"""Which engine this host can run.

Some hosts offer a /dev/kvm that cannot run an unmodified kernel, so opening it proves little: the library
runs a few instructions of kernel mode in a throw-away VM. Its verdict is cached per boot; `strato doctor`
asks anew.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

from .. import VERSION, boot_cache
from ..engine_name import EngineName
from ..errors import EngineError
from ..log import Log
from ..record import record

CACHE = Path("/run/strato/engine.json")
KVM_DEVICE = Path("/dev/kvm")
KVM_ARCHITECTURES = ("x86_64",)


@record(frozen=True)
class Verdict:
    """The engine that ``auto`` means on this host, and why."""

    engine: EngineName
    reason: str


def resolve(wanted: EngineName, log: Log, *, proven: bool = False, cache: Path = CACHE) -> EngineName:
    """Return the engine to use. Raises EngineError for one that cannot run here.

    ``proven``: somebody has asked already whether kvm can.
    """
    if wanted is EngineName.TCG or (wanted is EngineName.KVM and proven):
        return wanted
    found = verdict(log, cache=cache)
    if wanted is EngineName.KVM and found.engine is not EngineName.KVM:
        raise EngineError(f"Engine kvm cannot run here: {found.reason}: set engine to tcg or auto")
    return found.engine


def verdict(log: Log, *, cache: Path = CACHE, anew: bool = False) -> Verdict:
    """Choose the engine for ``auto``; ``anew`` asks the host even if it has been asked since its boot."""
    if os.uname().machine not in KVM_ARCHITECTURES:
        return Verdict(EngineName.TCG, f"engine kvm is built for {', '.join(KVM_ARCHITECTURES)} only")
    try:
        kvm_fd = open_kvm()
    except EngineError as error:
        return Verdict(EngineName.TCG, str(error))
    try:
        usable, reason = _cached(cache) if not anew else (None, "")
        if usable is None:
            usable, reason = _asked(kvm_fd)
            facts = {"version": VERSION, "kvm_usable": usable, "reason": reason}
            boot_cache.write(cache, facts, log)
    finally:
        os.close(kvm_fd)
    return Verdict(EngineName.KVM if usable else EngineName.TCG, reason)


def open_kvm() -> int:
    """Open /dev/kvm. Raises EngineError that says why it cannot be."""
    try:
        return os.open(KVM_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENXIO, errno.ENODEV):
            raise EngineError(f"{KVM_DEVICE} does not exist") from error
        raise EngineError(f"{KVM_DEVICE} cannot be opened: {error.strerror}") from error


def _cached(cache: Path) -> tuple[bool | None, str]:
    facts = boot_cache.read(cache)
    usable, reason = facts.get("kvm_usable"), facts.get("reason")
    if facts.get("version") == VERSION and isinstance(usable, bool) and isinstance(reason, str):
        return usable, reason
    return None, ""


def _asked(kvm_fd: int) -> tuple[bool, str]:
    try:
        from .. import devices  # loads a library: only where there is no cached verdict

        return devices.probe(kvm_fd)
    except (ImportError, OSError) as error:
        return False, f"{KVM_DEVICE} cannot be tried: {error}"
