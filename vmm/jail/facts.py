"""What strato-vmm cannot find out in its jail, found out by whoever starts it: the shim and the CLI.

Inside there are no caches, no PATH and nothing of the host but what the configuration names. Works on a
configuration in its JSON form, as `view` does.
"""

from __future__ import annotations

from .. import paths
from ..engine_name import EngineName
from ..engines import host_clock, probe
from ..log import Log

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any


def completed(document: Mapping[str, Any], log: Log) -> dict[str, Any]:
    """Return a configuration with the engine chosen, and with what that engine has to know of the host.

    Nothing that the configuration says is replaced, but for engine ``auto``. Raises EngineError for an engine
    that cannot run here, HostError, ProgramNotFoundError.
    """
    engine = probe.resolve(EngineName(document.get("engine") or EngineName.AUTO), log)
    cpu, programs = dict(document.get("cpu") or {}), dict(document.get("programs") or {})
    if engine is EngineName.KVM:
        cpu["kvm_proven"] = True
    else:
        cpu["tsc_khz"] = cpu.get("tsc_khz") or host_clock.tsc_khz(log)
        programs["qemu"] = programs.get("qemu") or str(paths.qemu())
    return {**document, "engine": str(engine), "cpu": cpu, "programs": programs}
