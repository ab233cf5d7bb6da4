"""Host spec -> guest spec and device requests: the one place that decides what a container gets.

A pure function, called by the shim once per Create (and `guest_process` once per Exec). `spec.select` has
by then copied the fields that `coverage` honours, with their types checked; here they are given their
meaning inside a guest. The guest's spec is built from that copy alone, so nothing unknown reaches the agent.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vmm.record import field, record

from ..errors import SpecError, SpecRefusedError
from .mounts import VolumeRequest, plan_mounts
from .spec import DroppedField, check_container_id, select, select_process, select_resources

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from typing import Any

__all__ = [
    "DroppedField",
    "GuestPlan",
    "TransformContext",
    "VolumeRequest",
    "guest_process",
    "guest_resources",
    "transform",
]

# linux: include/uapi/linux/capability.h, Linux 6.12.
_CAPABILITY_NAMES = (
    "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE "
    "NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT "
    "SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE "
    "AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ "
    "PERFMON BPF CHECKPOINT_RESTORE"
)
_CAPABILITIES = frozenset(f"CAP_{name}" for name in _CAPABILITY_NAMES.split())
# setrlimit(2).
_RLIMIT_NAMES = (
    "AS CORE CPU DATA FSIZE LOCKS MEMLOCK MSGQUEUE NICE NOFILE NPROC RSS RTPRIO RTTIME SIGPENDING STACK"
)
_RLIMITS = frozenset(f"RLIMIT_{name}" for name in _RLIMIT_NAMES.split())
# linux: Documentation/admin-guide/devices.txt.
# Every runtime makes these (runtime-spec: config-linux.md "Default Devices").
_DEFAULT_DEVICES = {
    "/dev/null": (1, 3),
    "/dev/zero": (1, 5),
    "/dev/full": (1, 7),
    "/dev/random": (1, 8),
    "/dev/urandom": (1, 9),
    "/dev/tty": (5, 0),
    "/dev/console": (5, 1),
    "/dev/ptmx": (5, 2),
}
# Devices that a kernel offers without hardware; the container gets its guest's.
_SOFTWARE_DEVICES = {*_DEFAULT_DEVICES.values(), (10, 200), (10, 229)}
_PTY_MAJORS = range(136, 144)
_HOST_NAMESPACES = ("mount", "pid", "ipc", "uts", "network")
_SHAREABLE = ("pid", "ipc", "uts")
_UNIFIED_PREFIXES = ("cpu.", "memory.", "pids.")
_SYSCTL_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_:./@-]*", re.ASCII)
_VERSION = re.compile(r"1\.\d+\.\d+([-+][0-9A-Za-z.+-]*)?", re.ASCII)
_PROPAGATION = ("", "private", "rprivate", "slave", "rslave", "unbindable", "runbindable")


@record(frozen=True)
class TransformContext:
    """Where things are in the guest.

    `guest_rootfs` and `guest_volumes` are this container's own: volume n is <guest_volumes>/<n>.
    `sandbox_member`: the container joins a sandbox, so that namespace paths mean the sandbox's namespaces;
    `guest_namespaces` has their guest paths by type. `bundle`: what relative host paths are relative to.
    """

    container_id: str
    guest_rootfs: str
    guest_volumes: str
    guest_netns: str
    sandbox_member: bool = False
    bundle: str = ""
    guest_namespaces: Mapping[str, str] = field(default_factory=dict)


@record(frozen=True)
class GuestPlan:
    """What `transform` decided: the guest's spec, and what the host has to provide for it.

    `netns_path`: the host's network namespace to use, None for a new one. `rootfs_path`: host directory of
    root.path. `host_cgroup`: linux.cgroupsPath as given, "" if missing. `cpuset_cpus` and `cpuset_mems`:
    host CPUs and memory nodes for the cgroup of the sandbox.
    """

    spec: dict[str, Any]
    volumes: tuple[VolumeRequest, ...]
    hostname: str
    resolv_conf_source: str | None
    dropped: tuple[DroppedField, ...]
    netns_path: str | None
    rootfs_path: str
    readonly: bool
    host_cgroup: str
    cpuset_cpus: str = ""
    cpuset_mems: str = ""


def transform(spec: Mapping[str, Any], context: TransformContext) -> GuestPlan:
    """The plan for one container. Raises SpecError and SpecRefusedError, both naming a JSON path."""
    check_container_id(context.container_id)
    guest, dropped = select(spec)
    if not _VERSION.fullmatch(guest["ociVersion"]):
        raise SpecError("$.ociVersion", f"Must be 1.x.y, not {guest['ociVersion'][:40]!r}")
    _check_process(guest["process"], dropped)
    linux: dict[str, Any] = guest["linux"]
    guest.pop("annotations", None)
    guest.pop("hooks", None)

    rootfs_path = guest["root"]["path"]
    if not rootfs_path:
        raise SpecError("$.root.path", "Must not be empty")
    guest["root"]["path"] = context.guest_rootfs

    plan = plan_mounts(guest.get("mounts", []), context.guest_volumes, context.bundle)
    guest["mounts"] = plan.mounts
    dropped += plan.dropped

    netns_path = _place_namespaces(linux, context, dropped)
    _choose_devices(linux)
    _check_linux(linux)
    resources: dict[str, Any] = linux.get("resources", {})
    _adapt_resources(resources, dropped)
    cpu: dict[str, Any] = resources.get("cpu", {})
    host_cgroup = linux.get("cgroupsPath", "")
    linux["cgroupsPath"] = f"/{context.container_id}"
    return GuestPlan(
        spec=guest,
        volumes=tuple(plan.volumes),
        hostname=guest.get("hostname", ""),
        resolv_conf_source=plan.resolv_conf_source,
        dropped=tuple(dropped),
        netns_path=netns_path,
        rootfs_path=_host_path(rootfs_path, context.bundle),
        readonly=guest["root"].get("readonly", False),
        host_cgroup=host_cgroup,
        cpuset_cpus=cpu.pop("cpus", ""),
        cpuset_mems=cpu.pop("mems", ""),
    )


def guest_process(process: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[DroppedField, ...]]:
    """The guest's form of an Exec's `process` object, and what was dropped. Raises as `transform` does."""
    guest, dropped = select_process(process)
    _check_process(guest, dropped)
    return guest, tuple(dropped)


def guest_resources(resources: Mapping[str, Any]) -> tuple[dict[str, Any], tuple[DroppedField, ...]]:
    """The guest's form of an Update's `linux.resources`, and what was dropped. Raises as `transform` does."""
    guest, dropped = select_resources(resources)
    _adapt_resources(guest, dropped)
    for name in ("cpus", "mems"):
        if guest.get("cpu", {}).pop(name, None) is not None:
            reason = "The CPUs of the host that a sandbox runs on are chosen when it starts"
            dropped.append(DroppedField(f"$.linux.resources.cpu.{name}", reason))
    return guest, tuple(dropped)


def _host_path(path: str, bundle: str) -> str:
    return path if path.startswith("/") or not bundle else f"{bundle}/{path}"


def _check_process(process: dict[str, Any], dropped: list[DroppedField]) -> None:
    if not process["args"]:
        raise SpecError("$.process.args", "Must name a program")
    if not process["cwd"].startswith("/"):
        raise SpecError("$.process.cwd", f"Must be an absolute path, not {process['cwd'][:200]!r}")
    for index, variable in enumerate(process.get("env", [])):
        if variable.find("=") < 1:
            raise SpecError(f"$.process.env[{index}]", f"Must be NAME=value, not {variable[:80]!r}")
    if not -1000 <= process.get("oomScoreAdj", 0) <= 1000:
        raise SpecError("$.process.oomScoreAdj", f"Must be -1000 to 1000, not {process['oomScoreAdj']}")
    seen: set[str] = set()
    for index, limit in enumerate(process.get("rlimits", [])):
        path = f"$.process.rlimits[{index}]"
        if limit["type"] not in _RLIMITS:
            raise SpecError(f"{path}.type", f"{limit['type'][:80]!r} is not a resource limit of Linux")
        if limit["type"] in seen:
            raise SpecError(f"{path}.type", f"{limit['type']!r} is set twice")
        seen.add(limit["type"])
        # Go's decoder gives 0 to what is left out; the agent's wants to see it.
        limit.setdefault("hard", 0)
        limit.setdefault("soft", 0)
        if limit["soft"] > limit["hard"]:
            raise SpecError(f"{path}.soft", f"{limit['soft']} is above the hard limit {limit['hard']}")
    for name, entries in process.get("capabilities", {}).items():
        process["capabilities"][name] = [c for c in entries if c in _CAPABILITIES]
        for index, capability in enumerate(entries):
            if capability not in _CAPABILITIES:
                where = f"$.process.capabilities.{name}[{index}]"
                dropped.append(DroppedField(where, f"{capability[:80]!r} is not a capability of Linux 6.12"))
    process["user"].setdefault("uid", 0)
    process["user"].setdefault("gid", 0)


def _place_namespaces(
    linux: dict[str, Any], context: TransformContext, dropped: list[DroppedField]
) -> str | None:
    # Gives every namespace its place in the guest; returns the host's network namespace, None for a new one.
    placed: dict[str, dict[str, str]] = {}
    netns_path: str | None = None
    for index, entry in enumerate(linux.get("namespaces", [])):
        kind, path, where = entry["type"], entry.get("path", ""), f"$.linux.namespaces[{index}]"
        if kind in placed:
            raise SpecError(f"{where}.type", f"Namespace {kind!r} is listed twice")
        if path and not path.startswith("/"):
            raise SpecError(f"{where}.path", f"Must be an absolute path, not {path[:200]!r}")
        if kind == "network":
            # docker's placeholder for a task that has no process yet
            netns_path = path if path and path != "/proc/0/ns/net" else None
            placed[kind] = {"type": kind, "path": context.guest_netns}
        elif kind == "cgroup" or (kind == "mount" and not path):
            placed[kind] = {"type": kind}
        elif kind in _SHAREABLE:
            placed[kind] = _shared_namespace(kind, path, where, context)
        elif kind == "user":
            # It has no rights over the network namespace, which is the sandbox's.
            raise SpecRefusedError(where, "A user namespace of the container's own is not supported")
        elif kind == "mount":
            raise SpecRefusedError(f"{where}.path", f"A guest cannot join a {kind} namespace of the host")
        else:
            reason = f"Namespace type {kind[:80]!r} is not offered; the guest has its own"
            dropped.append(DroppedField(where, reason))
    for kind in _HOST_NAMESPACES:
        if kind not in placed:
            raise SpecRefusedError(
                "$.linux.namespaces",
                f"Has no {kind!r} entry, which asks for the host's namespace; a microVM cannot share it",
            )
    placed.setdefault("cgroup", {"type": "cgroup"})
    linux["namespaces"] = list(placed.values())
    return netns_path


def _shared_namespace(kind: str, path: str, where: str, context: TransformContext) -> dict[str, str]:
    if not path:
        return {"type": kind}
    if not context.sandbox_member:
        raise SpecRefusedError(f"{where}.path", f"The {kind} namespace of {path!r} is not in this sandbox")
    guest_path = context.guest_namespaces.get(kind)
    if guest_path is None:
        raise SpecRefusedError(f"{where}.path", f"The sandbox's {kind} namespace cannot be shared yet")
    return {"type": kind, "path": guest_path}


def _choose_devices(linux: dict[str, Any]) -> None:
    kept = []
    for index, device in enumerate(linux.get("devices", [])):
        path, where = device["path"], f"$.linux.devices[{index}]"
        if not path.startswith("/dev/") or ".." in path.split("/"):
            raise SpecError(f"{where}.path", f"Must be below /dev, not {path[:200]!r}")
        numbers = (device.setdefault("major", 0), device.setdefault("minor", 0))
        if device["type"] == "p":
            kept.append(device)
        elif device["type"] not in ("c", "u") or numbers not in _SOFTWARE_DEVICES:
            raise SpecRefusedError(
                where, f"Device {path!r} ({device['type'][:8]} {numbers[0]}:{numbers[1]}) belongs to the host"
            )
        elif _DEFAULT_DEVICES.get(path) != numbers:  # the guest makes the default ones by itself
            kept.append(device)
    linux["devices"] = kept


def _check_linux(linux: dict[str, Any]) -> None:
    for name in linux.get("sysctl", {}):
        if not _SYSCTL_NAME.fullmatch(name) or ".." in name or "//" in name:
            raise SpecError("$.linux.sysctl", f"{name[:80]!r} is not the name of a kernel parameter")
    propagation = linux.get("rootfsPropagation", "")
    if propagation in ("shared", "rshared"):
        raise SpecRefusedError(
            "$.linux.rootfsPropagation", "A mount made in the guest cannot appear on the host"
        )
    if propagation not in _PROPAGATION:
        raise SpecError("$.linux.rootfsPropagation", f"{propagation[:80]!r} is not a mount propagation")
    if not propagation:
        linux.pop("rootfsPropagation", None)
    for name in ("maskedPaths", "readonlyPaths"):
        for index, path in enumerate(linux.get(name, [])):
            if not path.startswith("/"):
                raise SpecError(f"$.linux.{name}[{index}]", f"Must be an absolute path, not {path[:200]!r}")
    seccomp = linux.get("seccomp", {})
    actions = [("$.linux.seccomp.defaultAction", seccomp.get("defaultAction", ""))]
    for index, rule in enumerate(seccomp.get("syscalls", [])):
        actions.append((f"$.linux.seccomp.syscalls[{index}].action", rule["action"]))
    for where, action in actions:
        if action == "SCMP_ACT_NOTIFY":
            raise SpecRefusedError(where, "A seccomp agent of the host cannot serve guest processes")


def _adapt_resources(resources: dict[str, Any], dropped: list[DroppedField]) -> None:
    where = "$.linux.resources"
    rules = []
    for index, rule in enumerate(resources.get("devices", [])):
        if not set(rule.get("access", "")) <= set("rwm"):
            raise SpecError(
                f"{where}.devices[{index}].access", f"{rule['access'][:20]!r} is not made of r, w, m"
            )
        if rule.get("type", "") not in ("", "a", "b", "c", "p", "u"):
            raise SpecError(f"{where}.devices[{index}].type", f"{rule['type'][:20]!r} is not a device type")
        if not rule.get("type"):
            rule["type"] = "a"
        rule.setdefault("allow", False)
        if _rule_means_something(rule):
            rules.append(rule)
        else:
            reason = f"Allows device {rule.get('major')}:{rule.get('minor')} of the host"
            dropped.append(DroppedField(f"{where}.devices[{index}]", reason))
    if rules:
        resources["devices"] = rules
    else:
        resources.pop("devices", None)
    unified = resources.get("unified", {})
    for name in list(unified):
        if "/" in name or name in (".", ".."):
            raise SpecError(f"{where}.unified", f"{name[:80]!r} is not the name of a cgroup file")
        if not name.startswith(_UNIFIED_PREFIXES):
            del unified[name]
            dropped.append(
                DroppedField(f"{where}.unified[{name[:80]!r}]", "Not a file of cpu, memory or pids")
            )


def _rule_means_something(rule: Mapping[str, Any]) -> bool:
    # A number above zero names one device, anything else is a wildcard (runtime-spec: config-linux.md).
    if not rule["allow"]:
        return True
    major, minor = rule.get("major", -1), rule.get("minor", -1)
    if major < 0 and minor < 0:
        return True
    if rule["type"] not in ("c", "u"):
        return False
    return major in _PTY_MAJORS or (major, minor) in _SOFTWARE_DEVICES
