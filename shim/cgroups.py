"""The host cgroup of a sandbox: where VMM and holders run, and what the host's limits and counters see.

`linux.cgroupsPath` names it, as a path ("/kubepods/burstable/pod1/c1") or in systemd's spelling
("slice:prefix:name", which becomes the directories that systemd would use). Hosts come in three kinds:
v2 alone (one directory), v1, and hybrid (v1 with an empty v2 tree beside; treated as v1, as runc does).

The shim creates the directories and keeps a record of those that were not there before
(`SandboxCgroup.created`, in state.json); `remove` takes that record, so the `delete` verb can undo the work
of a dead shim. Imports nothing heavy. Limits inside the sandbox are the guest's business; of the host's knobs
only the cpuset is set.
"""

import errno
import os
import select
import signal
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from vmm.record import field, record

from .errors import HostError, SpecError

_JSON_PATH = "$.linux.cgroupsPath"
_CPUSET_FILES = ("cpuset.cpus", "cpuset.mems")
# Mount options of v1 that are no controllers (linux: kernel/cgroup/cgroup-v1.c, cgroup1_show_options).
_V1_OPTIONS = {"rw", "ro", "xattr", "noprefix", "clone_children", "cpuset_v2_mode", "favordynmods"}
# v1 has no event for "the last process left"; v2's is waited for with poll.
_RETRY_S = 0.01
_REMOVE_DEADLINE_S = 2.0
# v2 controllers that make the counters which containerd and kubelet read (kernel: cgroup-v2.rst).
_CONTROLLERS = ("cpu", "cpuset", "io", "memory", "pids")


@record(frozen=True)
class Hierarchy:
    """One mounted cgroup tree. `controllers` of a v1 tree; `own`: this process's path in it."""

    mount_point: str
    version: int
    controllers: frozenset[str]
    own: str


@record
class SandboxCgroup:
    """The directories of one sandbox. `create`, use `directories`, `remove` (idempotent)."""

    path: str
    container_id: str
    hierarchies: tuple[Hierarchy, ...] | None = None
    directories: tuple[Path, ...] = ()
    created: list[str] = field(default_factory=list)

    def create(self, *, cpus: str = "", mems: str = "") -> None:
        """Makes the directories; `cpus` and `mems` are the cpuset of the sandbox ("" for the parent's).

        An empty `path` asks for nothing: the sandbox stays in the cgroup of the shim. After an error nothing
        is left. Raises SpecError, HostError.
        """
        relative = translate(self.path)
        if relative is None:
            return
        found = find_hierarchies() if self.hierarchies is None else self.hierarchies
        directories = []
        try:
            for tree in found:
                parts = [*_parts(tree.own), *relative.parts] if relative.below_own else relative.parts
                directory = self._make(tree, parts)
                directories.append(directory)
                if tree.version == 2 or "cpuset" in tree.controllers:
                    for name, value in zip(_CPUSET_FILES, (cpus, mems), strict=True):
                        if value:
                            _write(directory / name, value)
        except OSError as error:
            remove(self.created, deadline_s=0)
            raise HostError(f"Cannot create cgroup {self.path!r} of {self.container_id}: {error}") from error
        self.directories = tuple(directories)

    def remove(self, *, deadline_s: float = _REMOVE_DEADLINE_S) -> None:
        """Ends what is still in the sandbox's own directory, and removes what `create` made.

        strato-launch may have been killed after it let its child go and before it told who that is. Raises
        HostError if processes stay beyond the deadline.
        """
        for directory in self.directories:
            if str(directory) in self.created:
                _kill_members(directory)
        remove(self.created, deadline_s=deadline_s)
        self.created.clear()
        self.directories = ()

    def _make(self, tree: Hierarchy, parts: Sequence[str]) -> Path:
        directory = Path(tree.mount_point)
        for part in parts:
            if tree.version == 2:
                _enable_controllers(directory)
            parent, directory = directory, directory / part
            with suppress(FileExistsError):
                directory.mkdir(mode=0o755)
                self.created.append(str(directory))
            if tree.version == 1 and "cpuset" in tree.controllers:
                _inherit_cpuset(parent, directory)
        return directory


@record(frozen=True)
class RelativePath:
    """A cgroup path as names; `below_own`: relative to this process's cgroup instead of the root."""

    parts: tuple[str, ...]
    below_own: bool


def translate(path: str) -> RelativePath | None:
    """linux.cgroupsPath -> directories; None for an empty path. Raises SpecError."""
    if not path:
        return None
    pieces = path.split(":")
    if len(pieces) == 3 and "/" not in pieces[0]:
        return RelativePath(_systemd_parts(*pieces), below_own=False)
    parts = tuple(_parts(path))
    if not parts:
        raise SpecError(_JSON_PATH, f"{path!r} is the root of all cgroups")
    return RelativePath(parts, below_own=not path.startswith("/"))


def find_hierarchies(mountinfo: str | None = None, own: str | None = None) -> tuple[Hierarchy, ...]:
    """The trees that a container is placed in: all of v1 if there is any, otherwise the one of v2.

    The arguments are the texts of /proc/self/mountinfo and /proc/self/cgroup, read if None.
    """
    if mountinfo is None:
        mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    if own is None:
        own = Path("/proc/self/cgroup").read_text(errors="surrogateescape")
    paths = dict(_own_paths(own))
    v1: dict[frozenset[str], Hierarchy] = {}
    v2: Hierarchy | None = None
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        kind, _, super_options = after.split(" ", 2)
        mount_point = before.split(" ")[4]
        if kind == "cgroup2" and v2 is None:
            v2 = Hierarchy(mount_point, 2, frozenset(), paths.get(frozenset(), "/"))
        elif kind == "cgroup":
            controllers = frozenset(super_options.split(",")) - _V1_OPTIONS
            controllers = frozenset(name for name in controllers if not name.startswith("release_agent="))
            v1.setdefault(controllers, Hierarchy(mount_point, 1, controllers, paths.get(controllers, "/")))
    if v1:
        return tuple(v1.values())
    return () if v2 is None else (v2,)


def remove(created: Iterable[str], *, deadline_s: float = _REMOVE_DEADLINE_S) -> None:
    """Removes directories that `SandboxCgroup.create` recorded, deepest first. Idempotent.

    A directory with processes is waited for until `deadline_s` have passed: they are dying. One in which
    somebody else has made a cgroup stays (another sandbox's, or systemd's). Raises HostError for a directory
    that keeps processes.
    """
    deadline = time.monotonic() + deadline_s
    busy = []
    for path in sorted(created, key=lambda name: (name.count("/"), name), reverse=True):
        directory = Path(path)
        if not _remove_one(directory, deadline) and not _has_children(directory):
            busy.append(path)
    if busy:
        raise HostError(f"Cannot remove cgroup {', '.join(busy)}: processes are still in it")


def _kill_members(directory: Path) -> None:
    with suppress(OSError):  # it may be gone
        for line in (directory / "cgroup.procs").read_text().split():
            # 0 stands for a process that this pid namespace does not see.
            if int(line) not in (0, os.getpid()):
                with suppress(ProcessLookupError):
                    os.kill(int(line), signal.SIGKILL)


def _remove_one(directory: Path, deadline: float) -> bool:
    while True:
        try:
            directory.rmdir()
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise HostError(f"Cannot remove cgroup {directory}: {error.strerror}") from error
            left = deadline - time.monotonic()
            if left <= 0 or _has_children(directory):
                return False
            _wait_for_exit(directory, left)
        else:
            return True


def _wait_for_exit(directory: Path, timeout_s: float) -> None:
    # Returns when the cgroup may have become empty.
    try:
        descriptor = os.open(directory / "cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # v1, or gone
        time.sleep(min(_RETRY_S, timeout_s))
        return
    try:
        if b"populated 1" in os.read(descriptor, 4096):
            poller = select.poll()
            poller.register(descriptor, select.POLLPRI)
            poller.poll(timeout_s * 1000)
        else:
            time.sleep(min(_RETRY_S, timeout_s))
    except OSError:
        return
    finally:
        os.close(descriptor)


def _has_children(directory: Path) -> bool:
    with suppress(OSError), os.scandir(directory) as entries:
        return any(entry.is_dir(follow_symlinks=False) for entry in entries)
    return False


def _parts(path: str) -> Iterator[str]:
    for part in path.split("/"):
        if part in ("", "."):
            continue
        # A name that the kernel uses for its own files would be one, not a directory.
        if part == ".." or "\0" in part or "\n" in part or len(os.fsencode(part)) > 255:
            raise SpecError(_JSON_PATH, f"{path[:200]!r} is not the path of a cgroup")
        yield part


def _systemd_parts(slice_name: str, prefix: str, name: str) -> tuple[str, ...]:
    # systemd.slice(5): "a-b.slice" is inside "a.slice"; runc's naming of the unit.
    slice_name = slice_name or "system.slice"
    if not name or any("/" in text or text in (".", "..") for text in (slice_name, prefix, name)):
        raise SpecError(_JSON_PATH, f"{name[:80]!r} is not the name of a systemd unit")
    words = slice_name.removesuffix(".slice").split("-")
    if not slice_name.endswith(".slice") or ("" in words and slice_name != "-.slice"):
        raise SpecError(_JSON_PATH, f"{slice_name[:80]!r} is not the name of a systemd slice")
    parts = []
    if slice_name != "-.slice":
        parts = ["-".join(words[: count + 1]) + ".slice" for count in range(len(words))]
    unit = name if name.endswith((".slice", ".scope")) else "-".join(filter(None, (prefix, name))) + ".scope"
    return tuple(_parts("/".join([*parts, unit])))


def _own_paths(text: str) -> Iterator[tuple[frozenset[str], str]]:
    # /proc/self/cgroup, see cgroups(7): "4:memory:/a", "1:name=systemd:/b", "0::/c"
    for line in text.splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        yield frozenset(filter(None, controllers.split(","))), path


def _enable_controllers(directory: Path) -> None:
    # Counters below need the controller here. Best effort: a cgroup that holds processes refuses.
    with suppress(OSError):
        available = set((directory / "cgroup.controllers").read_text().split())
        enabled = set((directory / "cgroup.subtree_control").read_text().split())
        for name in _CONTROLLERS:
            if name in available - enabled:
                with suppress(OSError):
                    _write(directory / "cgroup.subtree_control", f"+{name}")


def _inherit_cpuset(parent: Path, directory: Path) -> None:
    # A new v1 cpuset is empty and takes no process (kernel: cgroup-v1/cpusets.rst).
    for name in _CPUSET_FILES:
        if not (directory / name).read_text().strip():
            _write(directory / name, (parent / name).read_text().strip())


def _write(path: Path, text: str) -> None:
    # One write(2), and no O_CREAT: cgroup files exist or the kernel lacks the feature.
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)
