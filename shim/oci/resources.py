"""The VM's size from a container's limits, the orchestrator's annotations and the configuration.

Called by the shim once per sandbox, before the VM starts; pure. The container's own limits are enforced by
the guest's cgroup, so a VM is never smaller than a limit plus what the guest needs for itself.
"""

from __future__ import annotations

from collections.abc import Mapping

from vmm.record import record

from ..errors import SpecError, SpecRefusedError
from . import spec as oci_spec

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from typing import Any

ANNOTATION_VCPUS = "io.strato.vcpus"
ANNOTATION_MEMORY_MIB = "io.strato.memory_mib"
# What containerd's CRI plugin writes on a pod's sandbox (containerd: internal/cri/annotations).
_CRI_CPU_QUOTA = "io.kubernetes.cri.sandbox-cpu-quota"
_CRI_CPU_PERIOD = "io.kubernetes.cri.sandbox-cpu-period"
_CRI_MEMORY = "io.kubernetes.cri.sandbox-memory"

_MIB = 1 << 20
# Guest RAM is backed by huge pages where the host has them.
_MEMORY_STEP_MIB = 2
# linux: kernel/sched/core.c default_cfs_period, in µs; what a quota without a period means.
_DEFAULT_PERIOD_US = 100_000
# cgroup v1 shows "no limit" as the largest page-aligned 63-bit number; no machine comes near.
_UNLIMITED_BYTES = 1 << 60


@record(frozen=True)
class SizeSettings:
    """The configuration's part. `allowed_annotations`: those that may override the computed size."""

    default_vcpus: int = 1
    default_memory_mib: int = 256
    memory_overhead_mib: int = 64
    max_vcpus: int = 32
    max_memory_mib: int = 65536
    allowed_annotations: frozenset[str] = frozenset()


@record(frozen=True)
class VmSize:
    """Number of virtual CPUs, and guest RAM in MiB (a multiple of 2)."""

    vcpus: int
    memory_mib: int


def vm_size(spec: Mapping[str, Any], annotations: Mapping[str, str], settings: SizeSettings) -> VmSize:
    """The size of the VM for a sandbox whose first container has this (host) spec.

    `annotations` are the spec's and, where the client has them apart, the pod's. Raises SpecError for values
    that are no numbers, and SpecRefusedError for a size above the configured maximum or an annotation that
    the configuration does not allow; both name the field.
    """
    return VmSize(_vcpus(spec, annotations, settings), _memory_mib(spec, annotations, settings))


def _vcpus(spec: Mapping[str, Any], annotations: Mapping[str, str], settings: SizeSettings) -> int:
    asked = _override(annotations, ANNOTATION_VCPUS, settings)
    where = _annotation_path(ANNOTATION_VCPUS)
    if asked is None:
        names = ("linux", "resources", "cpu")
        container = _cpus(oci_spec.integer(spec, *names, "quota"), oci_spec.integer(spec, *names, "period"))
        pod = _cpus(_number(annotations, _CRI_CPU_QUOTA), _number(annotations, _CRI_CPU_PERIOD))
        where = "$.linux.resources.cpu.quota" if container >= pod else _annotation_path(_CRI_CPU_QUOTA)
        asked = max(settings.default_vcpus, container, pod)
    if asked > settings.max_vcpus:
        reason = f"{asked} CPUs are more than this host's max_vcpus of {settings.max_vcpus}"
        raise SpecRefusedError(where, reason)
    return asked


def _memory_mib(spec: Mapping[str, Any], annotations: Mapping[str, str], settings: SizeSettings) -> int:
    asked = _override(annotations, ANNOTATION_MEMORY_MIB, settings)
    where = _annotation_path(ANNOTATION_MEMORY_MIB)
    if asked is None:
        container = _limit_mib(oci_spec.integer(spec, "linux", "resources", "memory", "limit"))
        pod = _limit_mib(_number(annotations, _CRI_MEMORY))
        where = "$.linux.resources.memory.limit" if container >= pod else _annotation_path(_CRI_MEMORY)
        limit = max(container, pod)
        asked = max(settings.default_memory_mib, limit + settings.memory_overhead_mib if limit else 0)
    asked += -asked % _MEMORY_STEP_MIB
    if asked > settings.max_memory_mib:
        reason = (
            f"A VM of {asked} MiB (the guest's own {settings.memory_overhead_mib} MiB included) "
            f"is above this host's max_memory_mib of {settings.max_memory_mib}"
        )
        raise SpecRefusedError(where, reason)
    return asked


def _cpus(quota: int | None, period: int | None) -> int:
    # Whole CPUs that a quota is worth; 0 for no limit (kernel: quota -1 or unset).
    if quota is None or quota <= 0:
        return 0
    return -(-quota // (period if period and period > 0 else _DEFAULT_PERIOD_US))


def _limit_mib(limit: int | None) -> int:
    # A limit in bytes as MiB, rounded up; 0 for no limit.
    if limit is None or limit <= 0 or limit >= _UNLIMITED_BYTES:
        return 0
    return -(-limit // _MIB)


def _override(annotations: Mapping[str, str], name: str, settings: SizeSettings) -> int | None:
    value = _number(annotations, name)
    if value is None:
        return None
    if name not in settings.allowed_annotations:
        raise SpecRefusedError(_annotation_path(name), "Is not among the annotations that this host allows")
    if value < 1:
        raise SpecError(_annotation_path(name), f"Must be at least 1, not {value}")
    return value


def _number(annotations: Mapping[str, str], name: str) -> int | None:
    text = annotations.get(name)
    if not text:
        return None
    if len(text) > 20 or not text.isascii() or not text.removeprefix("-").isdecimal():
        raise SpecError(_annotation_path(name), f"Must be a whole number, not {text[:40]!r}")
    return int(text)


def _annotation_path(name: str) -> str:
    return f"$.annotations[{name!r}]"
