"""The mounts of a spec: which are made in the guest, and which bind mounts become shared volumes.

Called by `transform` with values that `spec.select` has checked; free of I/O, so what a bind's source is
(a directory, a file, a device) is found out later by `shim.storage`. The rules are told to users on the
generated page docs/oci-coverage.md.
"""

from __future__ import annotations

import posixpath
from collections.abc import Sequence

from vmm.record import record

from ..errors import SpecError, SpecRefusedError
from .spec import DroppedField

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from typing import Any

# Mount types that are made by the guest's kernel alone.
GUEST_TYPES = frozenset({"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"})
KNOWN_TYPES = (*sorted(GUEST_TYPES), "bind")

# runtime-spec: config.md "Linux mount options", those that act on the mount rather than the file system.
_PROPAGATIONS = frozenset(
    {"private", "rprivate", "slave", "rslave", "shared", "rshared", "unbindable", "runbindable"}
)
_ATTRIBUTES = frozenset(
    {
        *("ro", "rw", "suid", "nosuid", "dev", "nodev", "exec", "noexec", "atime", "noatime"),
        *("diratime", "nodiratime", "relatime", "norelatime", "strictatime", "nostrictatime"),
        *("defaults", "sync", "async", "dirsync", "mand", "nomand"),
    }
)
_RECURSIVE_ATTRIBUTES = frozenset(
    {
        *("rro", "rrw", "rsuid", "rnosuid", "rdev", "rnodev", "rexec", "rnoexec", "ratime", "rnoatime"),
        *("rdiratime", "rnodiratime", "rrelatime", "rnorelatime", "rstrictatime", "rnostrictatime"),
        *("rsymfollow", "rnosymfollow"),
    }
)
_REFUSED_OPTIONS = {
    "shared": "A mount made in the guest cannot appear on the host",
    "rshared": "A mount made in the guest cannot appear on the host",
    "idmap": "Id-mapped mounts are not supported",
    "ridmap": "Id-mapped mounts are not supported",
    "tmpcopyup": "Copying the image's files into a tmpfs is not supported",
    "remount": "There is nothing to mount again",
    "loop": "Loop devices are not supported",
}

# A bind of one of these is the guest's own device: it behaves alike on every kernel.
_GUEST_DEVICES = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))
# What LXCFS serves, and what runc allows to be covered inside /proc (opencontainers/runc: checkProcMount).
_COVERABLE_PROC = frozenset(
    f"/proc/{name}"
    for name in ("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo")
) | {"/proc/net/dev", "/proc/sys/kernel/ns_last_pid", "/proc/sys/crypto/fips_enabled"}

_HOST_TREES = {
    "/dev": "belongs to the host's devices",
    "/proc": "shows the host's kernel, but the container runs on the guest's",
    "/sys": "shows the host's kernel, but the container runs on the guest's",
}

# containerd's and docker's default for /dev/shm.
_SHM_OPTIONS = ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]


@record(frozen=True)
class VolumeRequest:
    """A file or directory of the host that the guest must see as <guest_volumes>/<index>.

    `options` are the mount's options as the client gave them; `json_path` is where the source stands.
    """

    index: int
    source: str
    recursive: bool
    readonly: bool
    propagation: str
    options: tuple[str, ...]
    json_path: str


@record
class MountPlan:
    """What `plan_mounts` collects. `resolv_conf_source` is the host file bound onto /etc/resolv.conf."""

    mounts: list[dict[str, Any]]
    volumes: list[VolumeRequest]
    dropped: list[DroppedField]
    resolv_conf_source: str | None = None


def plan_mounts(mounts: Sequence[dict[str, Any]], guest_volumes: str, bundle: str) -> MountPlan:
    """Decide every mount, in order. A relative bind source is relative to `bundle` (runtime-spec: config.md).

    Raises SpecError and SpecRefusedError.
    """
    plan = MountPlan([], [], [])
    for index, mount in enumerate(mounts):
        path = f"$.mounts[{index}]"
        destination = _destination(mount["destination"], path)
        options: list[str] = mount.get("options", [])
        kind: str = mount.get("type", "")
        _refuse_options(options, path)
        if kind == "bind" or "bind" in options or "rbind" in options:
            _plan_bind(plan, mount, destination, path, guest_volumes=guest_volumes, bundle=bundle)
        elif kind in GUEST_TYPES:
            plan.mounts.append(_guest_mount(kind, mount.get("source", ""), destination, options))
        else:
            raise SpecRefusedError(
                f"{path}.type", f"Mount type {kind[:80]!r} is none of {', '.join(KNOWN_TYPES)}"
            )
    return plan


def _destination(text: str, path: str) -> str:
    if not text:
        raise SpecError(f"{path}.destination", "Must not be empty")
    if ".." in text.split("/"):
        raise SpecError(f"{path}.destination", f"Must not contain '..': {text!r}")
    # Relative destinations are allowed up to version 1.0 and mean the container's root.
    destination = posixpath.normpath("/" + text.lstrip("/"))
    if destination == "/":
        raise SpecRefusedError(f"{path}.destination", "Nothing can be mounted on the container's root")
    return destination


def _refuse_options(options: Sequence[str], path: str) -> None:
    for number, option in enumerate(options):
        reason = _REFUSED_OPTIONS.get(option.partition("=")[0])
        if reason is not None:
            raise SpecRefusedError(f"{path}.options[{number}]", f"Option {option[:80]!r}: {reason}")
        if "," in option and "=" not in option:
            raise SpecError(f"{path}.options[{number}]", f"One option each, not {option[:80]!r}")


def _guest_mount(kind: str, source: str, destination: str, options: Sequence[str]) -> dict[str, Any]:
    kind = "cgroup2" if kind == "cgroup" else kind  # the guest has nothing else
    # Podman's way to say that tmpfs is to start empty, which is what happens.
    kept = [option for option in options if option != "notmpcopyup"]
    return {"destination": destination, "type": kind, "source": source or kind, "options": kept}


def _plan_bind(
    plan: MountPlan, mount: dict[str, Any], destination: str, path: str, *, guest_volumes: str, bundle: str
) -> None:
    source = _bind_source(mount.get("source", ""), bundle, path)
    options: list[str] = mount.get("options", [])
    if destination == "/proc" or (destination.startswith("/proc/") and destination not in _COVERABLE_PROC):
        raise SpecRefusedError(
            f"{path}.destination", f"{destination!r} is not a file of /proc that may be covered"
        )
    if source in _GUEST_DEVICES:
        plan.mounts.append(_bind(source, destination, options))
        return
    if source == "/sys/fs/cgroup":
        kept = [option for option in options if option in _ATTRIBUTES]
        plan.mounts.append(_guest_mount("cgroup2", "cgroup", destination, kept))
        plan.dropped.append(DroppedField(f"{path}.source", "The guest has cgroups of its own"))
        return
    for tree, reason in _HOST_TREES.items():
        if source == tree or source.startswith(f"{tree}/"):
            raise SpecRefusedError(f"{path}.source", f"{source!r} {reason}")
    if destination == "/dev/shm" and posixpath.basename(source) == "shm":
        # The engines' own shared memory directories. A share cannot be mapped by two processes as one memory.
        plan.mounts.append(_guest_mount("tmpfs", "shm", destination, _SHM_OPTIONS))
        plan.dropped.append(DroppedField(f"{path}.source", "Shared memory is a tmpfs of 64 MiB in the guest"))
        return
    index = len(plan.volumes)
    plan.volumes.append(
        VolumeRequest(
            index=index,
            source=source,
            recursive="rbind" in options,
            readonly=_last_of(options, ("ro", "rro"), ("rw", "rrw")),
            propagation=next((o for o in reversed(options) if o in _PROPAGATIONS), "rprivate"),
            options=tuple(options),
            json_path=f"{path}.source",
        )
    )
    kept = []
    for number, option in enumerate(options):
        if option in _ATTRIBUTES or option in _RECURSIVE_ATTRIBUTES or option in _PROPAGATIONS:
            kept.append(option)
        elif option not in ("bind", "rbind"):
            reason = f"Option {option[:80]!r} means nothing for a shared volume"
            plan.dropped.append(DroppedField(f"{path}.options[{number}]", reason))
    kept.insert(0, "rbind" if "rbind" in options else "bind")
    plan.mounts.append(_bind(f"{guest_volumes}/{index}", destination, kept))
    if destination == "/etc/resolv.conf":
        plan.resolv_conf_source = source


def _bind(source: str, destination: str, options: Sequence[str]) -> dict[str, Any]:
    kept = list(options) if "bind" in options or "rbind" in options else ["bind", *options]
    return {"destination": destination, "type": "bind", "source": source, "options": kept}


def _bind_source(text: str, bundle: str, path: str) -> str:
    if not text:
        raise SpecError(f"{path}.source", "A bind mount needs a source")
    joined = posixpath.join(bundle, text)
    if not joined.startswith("/"):
        raise SpecError(f"{path}.source", f"Must be an absolute path, not {text!r}")
    if ".." in joined.split("/"):  # where that leads depends on links, so the checks of the source would lie
        raise SpecError(f"{path}.source", f"Must not contain '..': {joined!r}")
    return "/" + posixpath.normpath(joined).lstrip("/")


def _last_of(options: Sequence[str], yes: Sequence[str], no: Sequence[str]) -> bool:
    # The later option wins, as with mount(8).
    verdict = False
    for option in options:
        verdict = option in yes or (verdict and option not in no)
    return verdict
