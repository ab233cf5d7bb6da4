"""The one table of every field of config.json: its type, what Strato does with it, and why.

`spec.select` walks a host's config.json along this table, so a field that is missing here cannot reach the
guest, and `docs/oci-coverage.md` is generated from it (`python -m shim.oci.coverage`, compared by a test).
The fields are those of the OCI runtime specification 1.2 plus the Linux fields of 1.3, which
containerd 2.3 writes. A path names an object's members by `.name`, an array's entries by `[]` and a map's
values by `.*`.
"""

import sys
from collections.abc import Iterator
from enum import StrEnum
from functools import cache

from vmm.record import field, record


class Verdict(StrEnum):
    """What becomes of a field. Empty values (null, "", 0, false, [], {}) are never worth a word."""

    GUEST = "honoured in the guest"
    HOST = "honoured on the host"
    DROPPED = "dropped"
    REFUSED = "refused"


class Kind(StrEnum):
    """The JSON type of a field, with the integer widths of the specification's Go bindings."""

    STRING = "string"
    BOOL = "boolean"
    I64 = "int64"
    U64 = "uint64"
    U32 = "uint32"
    OBJECT = "object"
    OBJECTS = "array of objects"
    STRINGS = "array of strings"
    U32S = "array of uint32"
    STRING_MAP = "map of strings"
    OBJECT_MAP = "map of objects"
    ANY = "any"


@record(frozen=True)
class Field:
    """One row. `reason` is shown to whoever loses the field; `required` fields must be present."""

    path: str
    kind: Kind
    verdict: Verdict = Verdict.GUEST
    reason: str = ""
    required: bool = False


@record
class Node:
    """A row in its place in the tree; `strict`: an unknown member is refused instead of dropped."""

    row: Field
    strict: bool = False
    children: dict[str, "Node"] = field(default_factory=dict)


_S, _B, _I, _U, _W = Kind.STRING, Kind.BOOL, Kind.I64, Kind.U64, Kind.U32
_O, _OS, _SS, _SM, _OM, _ANY = (
    Kind.OBJECT,
    Kind.OBJECTS,
    Kind.STRINGS,
    Kind.STRING_MAP,
    Kind.OBJECT_MAP,
    Kind.ANY,
)
_GUEST, _HOST, _DROP, _REFUSE = Verdict.GUEST, Verdict.HOST, Verdict.DROPPED, Verdict.REFUSED

_OTHER_PLATFORM = "Belongs to another platform"
_NO_LSM = "The guest kernel runs no AppArmor or SELinux; the VM is the boundary"
_V1_ONLY = "Has no counterpart in cgroup v2, which the guest uses"
_HOST_BLOCK = "Names block devices of the host; the guest's files are on virtio-fs"
_HOST_HOOK = "Hooks are not run yet"

# Members that the specification does not know are dropped with a log line; inside these objects, where a
# member that is not understood could loosen a restriction, they are refused.
STRICT_OBJECTS = frozenset(
    {
        "hooks",
        "process.user",
        "process.capabilities",
        "linux.seccomp",
        "linux.seccomp.syscalls[]",
        "linux.seccomp.syscalls[].args[]",
        "linux.namespaces[]",
        "linux.resources.devices[]",
        "linux.uidMappings[]",
        "linux.gidMappings[]",
    }
)

FIELDS: tuple[Field, ...] = (
    Field("ociVersion", _S, _GUEST, "Any 1.x", required=True),
    Field("root", _O, required=True),
    Field("root.path", _S, _HOST, "Shared into the guest when the client passes no rootfs mounts", True),
    Field("root.readonly", _B),
    Field("hostname", _S, _GUEST, "Also the name of a new sandbox"),
    Field("domainname", _S),
    Field("annotations", _SM, _HOST, "Grouping and size of the sandbox; not passed to the guest"),
    # process
    Field("process", _O, required=True),
    Field("process.terminal", _B),
    Field("process.consoleSize", _O),
    Field("process.consoleSize.height", _U),
    Field("process.consoleSize.width", _U),
    Field("process.user", _O, required=True),
    Field("process.user.uid", _W),
    Field("process.user.gid", _W),
    Field("process.user.umask", _W),
    Field("process.user.additionalGids", Kind.U32S),
    Field("process.user.username", _S, _DROP, _OTHER_PLATFORM),
    Field("process.args", _SS, required=True),
    Field("process.commandLine", _S, _DROP, _OTHER_PLATFORM),
    Field("process.env", _SS),
    Field("process.cwd", _S, required=True),
    Field("process.capabilities", _O, _GUEST, "Names that Linux 6.12 does not know are dropped"),
    Field("process.capabilities.bounding", _SS),
    Field("process.capabilities.effective", _SS),
    Field("process.capabilities.inheritable", _SS),
    Field("process.capabilities.permitted", _SS),
    Field("process.capabilities.ambient", _SS),
    Field("process.rlimits", _OS),
    Field("process.rlimits[].type", _S, required=True),
    Field("process.rlimits[].hard", _U),
    Field("process.rlimits[].soft", _U),
    Field("process.noNewPrivileges", _B),
    Field("process.apparmorProfile", _S, _DROP, _NO_LSM),
    Field("process.selinuxLabel", _S, _DROP, _NO_LSM),
    Field("process.oomScoreAdj", _I),
    Field("process.scheduler", _O),
    Field("process.scheduler.policy", _S, required=True),
    Field("process.scheduler.nice", _I),
    Field("process.scheduler.priority", _I),
    Field("process.scheduler.flags", _SS),
    Field("process.scheduler.runtime", _U),
    Field("process.scheduler.deadline", _U),
    Field("process.scheduler.period", _U),
    Field("process.ioPriority", _O),
    Field("process.ioPriority.class", _S, required=True),
    Field("process.ioPriority.priority", _I),
    Field("process.execCPUAffinity", _ANY, _DROP, "Names CPUs of the host; the guest has its own"),
    # mounts
    Field("mounts", _OS, _GUEST, "See the page's section on mounts"),
    Field("mounts[].destination", _S, required=True),
    Field("mounts[].type", _S),
    Field("mounts[].source", _S),
    Field("mounts[].options", _SS),
    Field("mounts[].uidMappings", _ANY, _REFUSE, "Id-mapped mounts are not supported"),
    Field("mounts[].gidMappings", _ANY, _REFUSE, "Id-mapped mounts are not supported"),
    # hooks
    Field("hooks", _O),
    Field("hooks.prestart", _OS, _REFUSE, _HOST_HOOK),
    Field("hooks.createRuntime", _OS, _REFUSE, _HOST_HOOK),
    Field("hooks.createContainer", _OS, _REFUSE, _HOST_HOOK),
    Field("hooks.startContainer", _OS, _REFUSE, _HOST_HOOK),
    Field("hooks.poststart", _OS, _REFUSE, _HOST_HOOK),
    Field("hooks.poststop", _OS, _REFUSE, _HOST_HOOK),
    # linux
    Field("linux", _O, required=True),
    Field("linux.namespaces", _OS, _GUEST, "See the page's section on namespaces"),
    Field("linux.namespaces[].type", _S, required=True),
    Field("linux.namespaces[].path", _S),
    Field("linux.uidMappings", _OS),
    Field("linux.uidMappings[].containerID", _W),
    Field("linux.uidMappings[].hostID", _W),
    Field("linux.uidMappings[].size", _W),
    Field("linux.gidMappings", _OS),
    Field("linux.gidMappings[].containerID", _W),
    Field("linux.gidMappings[].hostID", _W),
    Field("linux.gidMappings[].size", _W),
    Field(
        "linux.timeOffsets", _ANY, _REFUSE, "The guest's clocks follow the host's; offsets are not supported"
    ),
    Field("linux.devices", _OS, _GUEST, "See the page's section on devices"),
    Field("linux.devices[].path", _S, required=True),
    Field("linux.devices[].type", _S, required=True),
    Field("linux.devices[].major", _I),
    Field("linux.devices[].minor", _I),
    Field("linux.devices[].fileMode", _W),
    Field("linux.devices[].uid", _W),
    Field("linux.devices[].gid", _W),
    Field("linux.netDevices", _ANY, _REFUSE, "Network devices of the host cannot be moved into a guest"),
    Field(
        "linux.cgroupsPath",
        _S,
        _HOST,
        "The sandbox's processes run there; in the guest it is /<container id>",
    ),
    Field(
        "linux.sysctl",
        _SM,
        _GUEST,
        "Set in the container's namespaces or, failing that, in its guest's kernel",
    ),
    Field("linux.rootfsPropagation", _S, _GUEST, "But shared and rshared: mounts do not leave the guest"),
    Field("linux.maskedPaths", _SS),
    Field("linux.readonlyPaths", _SS),
    Field("linux.mountLabel", _S, _DROP, _NO_LSM),
    Field("linux.personality", _O),
    Field("linux.personality.domain", _S, required=True),
    Field("linux.personality.flags", _SS),
    Field("linux.intelRdt", _ANY, _DROP, "Concerns the caches of the host's CPUs"),
    Field("linux.memoryPolicy", _ANY, _DROP, "Names memory nodes of the host; the guest has one"),
    # linux.seccomp
    Field("linux.seccomp", _O),
    Field("linux.seccomp.defaultAction", _S, required=True),
    Field("linux.seccomp.defaultErrnoRet", _W),
    Field("linux.seccomp.architectures", _SS),
    Field("linux.seccomp.flags", _SS),
    Field(
        "linux.seccomp.listenerPath", _S, _REFUSE, "A seccomp agent of the host cannot serve guest processes"
    ),
    Field("linux.seccomp.listenerMetadata", _S, _DROP, "Means nothing without listenerPath"),
    Field("linux.seccomp.syscalls", _OS),
    Field("linux.seccomp.syscalls[].names", _SS, required=True),
    Field("linux.seccomp.syscalls[].action", _S, required=True),
    Field("linux.seccomp.syscalls[].errnoRet", _W),
    Field("linux.seccomp.syscalls[].args", _OS),
    Field("linux.seccomp.syscalls[].args[].index", _W, required=True),
    Field("linux.seccomp.syscalls[].args[].value", _U, required=True),
    Field("linux.seccomp.syscalls[].args[].valueTwo", _U),
    Field("linux.seccomp.syscalls[].args[].op", _S, required=True),
    # linux.resources
    Field("linux.resources", _O, _GUEST, "In the guest's cgroup; memory and CPU limits also size the VM"),
    Field("linux.resources.devices", _OS, _GUEST, "But rules that name other devices of the host"),
    Field("linux.resources.devices[].allow", _B),
    Field("linux.resources.devices[].type", _S),
    Field("linux.resources.devices[].major", _I),
    Field("linux.resources.devices[].minor", _I),
    Field("linux.resources.devices[].access", _S),
    Field("linux.resources.memory", _O),
    Field("linux.resources.memory.limit", _I),
    Field("linux.resources.memory.reservation", _I),
    Field("linux.resources.memory.swap", _I, _DROP, "The guest has no swap, so nothing exceeds the limit"),
    Field("linux.resources.memory.kernel", _I, _DROP, _V1_ONLY),
    Field("linux.resources.memory.kernelTCP", _I, _DROP, _V1_ONLY),
    Field("linux.resources.memory.swappiness", _U, _DROP, _V1_ONLY),
    Field("linux.resources.memory.disableOOMKiller", _B, _DROP, _V1_ONLY),
    Field("linux.resources.memory.useHierarchy", _B, _DROP, "cgroup v2 is always hierarchical"),
    Field("linux.resources.memory.checkBeforeUpdate", _B, _DROP, "Concerns updates only"),
    Field("linux.resources.cpu", _O),
    Field("linux.resources.cpu.shares", _U),
    Field("linux.resources.cpu.quota", _I),
    Field("linux.resources.cpu.burst", _U),
    Field("linux.resources.cpu.period", _U),
    Field("linux.resources.cpu.idle", _I),
    Field("linux.resources.cpu.realtimeRuntime", _I, _REFUSE, _V1_ONLY),
    Field("linux.resources.cpu.realtimePeriod", _U, _REFUSE, _V1_ONLY),
    Field(
        "linux.resources.cpu.cpus", _S, _HOST, "Names CPUs of the host: the cpuset of the sandbox's cgroup"
    ),
    Field(
        "linux.resources.cpu.mems",
        _S,
        _HOST,
        "Names memory nodes of the host: the cpuset of the sandbox's cgroup",
    ),
    Field("linux.resources.pids", _O),
    Field("linux.resources.pids.limit", _I),
    Field("linux.resources.blockIO", _ANY, _DROP, _HOST_BLOCK),
    Field("linux.resources.hugepageLimits", _ANY, _DROP, "The guest has no huge pages to limit"),
    Field("linux.resources.network", _ANY, _DROP, _V1_ONLY),
    Field("linux.resources.rdma", _ANY, _DROP, "The guest has no RDMA devices"),
    Field("linux.resources.unified", _SM, _GUEST, "Files cpu.*, memory.* and pids.*; others are dropped"),
    # other platforms
    Field("vm", _ANY, _REFUSE, "Kernel and hypervisor are chosen by Strato's configuration only"),
    Field("windows", _ANY, _DROP, _OTHER_PLATFORM),
    Field("solaris", _ANY, _DROP, _OTHER_PLATFORM),
    Field("zos", _ANY, _DROP, _OTHER_PLATFORM),
    Field("freebsd", _ANY, _DROP, _OTHER_PLATFORM),
)


@cache
def tree() -> Node:
    """The table as a tree; an array's or map's entry is its child `[]` or `*`."""
    root = Node(Field("", Kind.OBJECT))
    for row in FIELDS:
        node = root
        for name in _steps(row.path):
            node = node.children.setdefault(name, Node(row))
        node.row = row
    for path in STRICT_OBJECTS:
        node = root
        for name in _steps(path):
            node = node.children[name]
        node.strict = True
    return root


def _steps(path: str) -> Iterator[str]:
    for name in path.split("."):
        yield name.removesuffix("[]")
        if name.endswith("[]"):
            yield "[]"


def render_markdown() -> str:
    """`docs/oci-coverage.md` as text."""
    lines = [_PREFACE, "| field | type | what Strato does | why |", "|---|---|---|---|"]
    for row in FIELDS:
        name = f"`{row.path}`" + (" (required)" if row.required else "")
        lines.append(f"| {name} | {row.kind} | {row.verdict} | {row.reason} |")
    return "\n".join([*lines, ""])


_PREFACE = """\
<!-- Generated from shim/oci/coverage.py by `python -m shim.oci.coverage`; do not edit. -->
# What becomes of each field of config.json

Every field of the OCI runtime specification is honoured, or dropped with a log line because it means
nothing inside a microVM, or refused when the container is created. A refusal names the field by its JSON
path, for example `$.mounts[3].type`. Empty values are ignored. Fields that the specification does not know
are dropped with a log line; inside hooks, users, capabilities, seccomp, namespaces, id mappings and device
rules they are refused. A field whose name differs from a known one only in upper and lower case is refused.

## Mounts

| mount | what Strato does |
|---|---|
| proc, sysfs, tmpfs, devpts, mqueue | made in the guest with all options |
| cgroup, cgroup2 | cgroup v2 of the guest, the container's own part of it |
| bind of a directory or regular file | a live two-way share; `ro` is enforced on the host as well |
| bind of a block or character device, a socket or a fifo | refused: such a file works on its own kernel only |
| bind of /dev/null, zero, full, random, urandom, tty | the guest's device of that name |
| bind of anything else below /dev | refused |
| bind of /sys/fs/cgroup | cgroup v2 of the guest |
| bind of anything else below /proc or /sys | refused: it would show the host's kernel, not the guest's |
| bind onto /dev/shm of a directory called shm | a tmpfs in the guest, as shared memory does not work over a share |
| bind onto a file below /proc | only the files that LXCFS serves (cpuinfo, meminfo, stat, uptime, …) |
| option shared or rshared | refused: a mount made in the guest cannot appear on the host |
| option slave or rslave | later mounts of the host appear below the share |
| option private, rprivate or none of these | later mounts of the host do not appear |
| any other type | refused |

A socket inside a shared directory is visible but cannot be connected to from the other side.

## Namespaces

| entry | what Strato does |
|---|---|
| mount, pid, ipc, uts without a path | new, in the guest |
| cgroup | always new, in the guest |
| network without a path | new on the host, its interfaces appear in the guest |
| network with a path | that namespace's interfaces appear in the guest; the host's own namespace is refused |
| pid, ipc, uts with a path | refused, unless the container joins a sandbox whose namespaces are meant |
| user | refused: the sandbox's network namespace would be out of its reach |
| no mount, pid, ipc, uts or network entry (the host's namespace) | refused: a guest cannot be given a namespace of the host |
| time and unknown types | dropped |

## Devices

`/dev/{null,zero,full,random,urandom,tty,console,ptmx,fuse,net/tun}` and fifos are made in the guest, where they are
the guest kernel's. Every other device belongs to the host and is refused, so a
privileged container needs `privileged_without_host_devices = true` in containerd's configuration. Rules of the device cgroup are
honoured when they are wildcards, denials, or name one of these devices or a pseudo terminal.

## The table
"""  # noqa: E501


if __name__ == "__main__":
    sys.stdout.write(render_markdown())
