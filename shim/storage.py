"""The directory that a sandbox shares with its guest: root file systems and volumes, as mounts.

Owned by the shim, one per sandbox, below the sandbox's state directory:

    shared/rootfs/<container id>       the container's root file system
    shared/volumes/<container id>/<n>  the n-th bind mount of its spec
    staging/                           where a bind is finished before it appears in shared/

The mounts live in the shim's private mount namespace (`enter_private_namespace`), so they vanish with it, and
the host's mountinfo never shows them. `shared` is a bind of itself: shared, so that what is mounted below it
reaches the VMM's namespace, and read-only, so that a guest cannot write beside the mounts (the shim makes
mount points through descriptors of the directory beneath). No mount propagates from here to the host.
Nothing in there is a program or a device to the host: the guest has its own kernel for that, and a VMM that
has been taken over must not open a device that its guest has made.

`remove_leftovers` is for the `delete` verb: the shim is dead, its mounts are gone, directories remain.
Calls may block as long as the host's file systems do; they may be made from any thread of the shim.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vmm.record import record

from .errors import HostError, SpecError, SpecRefusedError
from .mount_options import OPTIONS_MAX, compact_lowerdirs, parse_options
from .oci.spec import check_container_id
from .oci.transform import VolumeRequest

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from typing import Protocol
else:
    Protocol = object

# linux: include/uapi/linux/mount.h, sched.h, include/linux/fs.h
MS_RDONLY, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC = 0x1, 0x20, 0x1000, 0x2000, 0x4000
MS_PRIVATE, MS_SLAVE, MS_SHARED = 1 << 18, 1 << 19, 1 << 20
MNT_DETACH, UMOUNT_NOFOLLOW = 2, 8
CLONE_NEWNS, CLONE_FS = 0x00020000, 0x00000200

MS_NOSUID, MS_NODEV, MS_NOEXEC = 0x2, 0x4, 0x8
_INERT = MS_NOSUID | MS_NODEV | MS_NOEXEC
_DIRECTORY = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_STACK_MAX = 4096  # mounts on one point; only bounds a loop


class MountCalls(Protocol):
    """The system calls used here; the module `vmm.sys` has them. They raise OSError."""

    def unshare(self, flags: int, /) -> None: ...

    def mount(
        self, source: str | None, target: str, fstype: str | None, flags: int, data: str | None, /
    ) -> None: ...

    def umount(self, target: str, flags: int, /) -> None: ...


@record(frozen=True)
class RootfsMount:
    """One mount of containerd's CreateTaskRequest.rootfs; `target` is a path below the root, mostly empty."""

    type: str
    source: str
    target: str = ""
    options: tuple[str, ...] = ()


def enter_private_namespace(calls: MountCalls | None = None) -> None:
    """Gives this process a mount namespace of its own: the host's later mounts arrive, its own never leave.

    To be called before the process has other threads. Raises HostError.
    """
    system = calls or _system_calls()
    try:
        system.unshare(CLONE_NEWNS)
        system.mount(None, "/", None, MS_REC | MS_SLAVE, None)
    except OSError as error:
        raise HostError(f"Cannot enter a private mount namespace: {error.strerror}") from error


class SharedDirectory:
    """The shared tree of one sandbox. Create, `prepare()`, add and remove, `close()` (idempotent)."""

    def __init__(self, root: Path, *, calls: MountCalls | None = None) -> None:
        self.root = root
        self.rootfs_directory = root / "rootfs"
        self.volumes_directory = root / "volumes"
        self._staging = root.parent / "staging"
        self._calls = calls or _system_calls()
        self._descriptors = ExitStack()
        self._rootfs_fd = -1
        self._volumes_fd = -1

    def prepare(self) -> None:
        """Makes the directories and their mounts. Raises HostError."""
        remove_leftovers(self.root)  # a shim that died here may have left directories
        try:
            self._staging.mkdir(mode=0o700)
            self.root.mkdir(mode=0o755)
            self.rootfs_directory.mkdir(mode=0o755)
            self.volumes_directory.mkdir(mode=0o755)
            self._rootfs_fd = self._open_directory(self.rootfs_directory)
            self._volumes_fd = self._open_directory(self.volumes_directory)
            staging, root = str(self._staging), str(self.root)
            self._mount(staging, staging, MS_BIND)
            self._mount(None, staging, MS_PRIVATE)
            self._mount(root, root, MS_BIND)
            self._make_inert(self.root, recursive=False, flags=MS_RDONLY)
            self._mount(None, root, MS_PRIVATE)
            self._mount(None, root, MS_SHARED)
        except OSError as error:
            raise HostError(f"Cannot prepare the shared directory {self.root}: {error}") from error

    def add_rootfs(self, container_id: str, mounts: Sequence[RootfsMount], host_root: str | None) -> None:
        """Puts the container's root file system in its place.

        `mounts` are mounted one over the other as containerd would; without any, `host_root` (root.path of
        the spec, a directory that is mounted already) is shown. Raises SpecError, SpecRefusedError,
        HostError; after an error nothing is left.
        """
        check_container_id(container_id)
        if not mounts and not host_root:
            raise SpecError("$.root.path", "There is neither a rootfs mount nor a root directory")
        target = self.rootfs_directory / container_id
        try:
            os.mkdir(container_id, 0o755, dir_fd=self._rootfs_fd)
            if host_root and not mounts:
                with self._open_source(host_root, "$.root.path") as (descriptor, mode):
                    if not stat.S_ISDIR(mode):
                        raise SpecError("$.root.path", f"{host_root!r} is not a directory")
                    self._show(descriptor, target, directory=True, recursive=True)
            for mount in mounts:
                self._mount_rootfs(mount, target)
        except OSError as error:
            self._remove_rootfs(container_id)
            raise HostError(f"Cannot mount the root file system of {container_id}: {error}") from error
        except BaseException:
            self._remove_rootfs(container_id)
            raise

    def add_volume(self, container_id: str, request: VolumeRequest) -> None:
        """Shows a directory or regular file of the host as volumes/<container id>/<index>.

        Raises SpecError (the source is missing), SpecRefusedError (a device, socket or fifo), HostError.
        """
        check_container_id(container_id)
        target = self.volumes_directory / container_id / str(request.index)
        try:
            with suppress(FileExistsError):
                os.mkdir(container_id, 0o755, dir_fd=self._volumes_fd)
            with self._open_source(request.source, request.json_path) as (descriptor, mode):
                if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
                    reason = f"{request.source!r} is a {_file_type(mode)}; only directories and regular files"
                    raise SpecRefusedError(request.json_path, f"{reason} can be shared with a guest")
                self._make_point(container_id, request.index, directory=stat.S_ISDIR(mode))
                self._show(
                    descriptor,
                    target,
                    directory=stat.S_ISDIR(mode),
                    recursive=request.recursive,
                    readonly=request.readonly,
                    slave=request.propagation in ("slave", "rslave"),
                )
        except OSError as error:
            raise HostError(
                f"Cannot share {request.source!r} ({request.json_path}) with {container_id}: {error}"
            ) from error

    def remove_container(self, container_id: str) -> None:
        """Unmounts and removes all of a container. Idempotent. Raises HostError if something stays."""
        check_container_id(container_id)
        try:
            self._remove_rootfs(container_id)
            self._remove_volumes(container_id)
        except OSError as error:
            raise HostError(f"Cannot remove the mounts of {container_id}: {error}") from error

    def close(self) -> None:
        """Removes every container, the mounts and the directories. Idempotent. Raises HostError."""
        if self._rootfs_fd < 0:
            return
        ids = {*_names(self.rootfs_directory), *_names(self.volumes_directory)}
        for container_id in sorted(ids):
            self.remove_container(container_id)
        try:
            for name in _names(self._staging):
                self._detach(self._staging / name)
            self._detach(self.root)
            self._detach(self._staging)
        except OSError as error:
            raise HostError(f"Cannot unmount the shared directory {self.root}: {error}") from error
        finally:
            self._descriptors.close()
            self._rootfs_fd = self._volumes_fd = -1
        remove_leftovers(self.root)

    # ---- the root file system ----

    def _mount_rootfs(self, mount: RootfsMount, target: Path) -> None:
        options = parse_options(mount.options)
        if "/" in mount.type or "." in mount.type:
            raise SpecRefusedError("rootfs", f"Mount type {mount.type!r} needs a mount helper")
        if mount.target:
            target = _inside(target, mount.target)
        flags = options.flags
        if mount.type == "bind":
            flags |= MS_BIND
        if flags & MS_BIND:
            self._mount(mount.source, str(target), flags & (MS_BIND | MS_REC))
            self._make_inert(target, recursive=bool(flags & MS_REC), flags=flags & ~MS_REC)
        else:
            self._mount_anything(mount, target, flags | _INERT, options.data)
        for propagation in options.propagation:
            self._mount(None, str(target), propagation)

    def _mount_anything(self, mount: RootfsMount, target: Path, flags: int, data: Sequence[str]) -> None:
        text = ",".join(data)
        if len(text.encode()) < OPTIONS_MAX:
            self._calls.mount(mount.source, str(target), mount.type, flags, text or None)
            return
        directory, compact = compact_lowerdirs(data)
        text = ",".join(compact)
        if not directory or len(text.encode()) >= OPTIONS_MAX:
            raise HostError(f"The options of the {mount.type} mount do not fit into {OPTIONS_MAX} bytes")

        def mount_there() -> None:
            # A thread that no longer shares the working directory with the others.
            self._calls.unshare(CLONE_FS)
            os.chdir(directory)
            self._calls.mount(mount.source, str(target), mount.type, flags, text)

        _in_thread(mount_there)

    def _remove_rootfs(self, container_id: str) -> None:
        self._detach(self.rootfs_directory / container_id)
        with suppress(FileNotFoundError):
            os.rmdir(container_id, dir_fd=self._rootfs_fd)

    # ---- volumes ----

    def _make_point(self, container_id: str, index: int, *, directory: bool) -> None:
        parent = os.open(container_id, _DIRECTORY, dir_fd=self._volumes_fd)
        try:
            _make_empty(str(index), directory=directory, dir_fd=parent)
        finally:
            os.close(parent)

    def _remove_volumes(self, container_id: str) -> None:
        try:
            parent = os.open(container_id, _DIRECTORY, dir_fd=self._volumes_fd)
        except FileNotFoundError:
            return
        try:
            for name in _names(self.volumes_directory / container_id):
                self._detach(self.volumes_directory / container_id / name)
                _remove_empty(name, dir_fd=parent)
        finally:
            os.close(parent)
        os.rmdir(container_id, dir_fd=self._volumes_fd)

    # ---- mounts ----

    def _show(
        self,
        descriptor: int,
        target: Path,
        *,
        directory: bool,
        recursive: bool,
        readonly: bool = False,
        slave: bool = False,
    ) -> None:
        # Binds the file behind a descriptor to target. The bind gets its attributes in the staging directory,
        # so the guest never sees it without them; a private bind must lose its master before it gets the
        # VMM's copy as a slave, or that copy would follow the host instead.
        stage = self._staging / f"{target.parent.name}.{target.name}"
        _make_empty(str(stage), directory=directory)
        extent = MS_REC if recursive else 0
        try:
            self._mount(f"/proc/self/fd/{descriptor}", str(stage), MS_BIND | extent)
            self._mount(None, str(stage), (MS_SLAVE if slave else MS_PRIVATE) | MS_REC)
            self._make_inert(stage, recursive=recursive, flags=MS_RDONLY if readonly else 0)
            self._calls.mount(str(stage), str(target), None, MS_MOVE, None)
        finally:
            self._detach(stage)
            _remove_empty(str(stage))

    def _mount(self, source: str | None, target: str, flags: int) -> None:
        self._calls.mount(source, target, None, flags, None)

    def _make_inert(self, target: Path, *, recursive: bool, flags: int = 0) -> None:
        """Adds `flags` to a bind; for a recursive one to all mounts below, which may be stricter already."""
        for point in reversed(_mount_points(str(target))) if recursive else [str(target)]:
            kept = os.statvfs(point).f_flag & MS_RDONLY  # a remount takes away what it does not repeat
            self._mount(None, point, MS_REMOUNT | MS_BIND | _INERT | kept | flags)

    def _detach(self, target: Path) -> None:
        # All that is mounted on target, with all below; nothing if target is missing or no mount point.
        for _ in range(_STACK_MAX):
            try:
                self._calls.umount(str(target), MNT_DETACH | UMOUNT_NOFOLLOW)
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.ENOENT):
                    return
                raise

    @contextmanager
    def _open_source(self, source: str, json_path: str) -> Iterator[tuple[int, int]]:
        # A descriptor, so that what is checked is what is mounted.
        try:
            descriptor = os.open(source, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise SpecError(json_path, f"There is no {source!r} on the host") from error
        try:
            yield descriptor, os.fstat(descriptor).st_mode
        finally:
            os.close(descriptor)

    def _open_directory(self, path: Path) -> int:
        descriptor = os.open(path, _DIRECTORY)
        self._descriptors.callback(os.close, descriptor)
        return descriptor


def remove_leftovers(root: Path) -> None:
    """Removes the directories of a SharedDirectory whose mounts are gone. Idempotent.

    Removes empty directories and empty files only, and nothing on another file system than `root`'s, so it
    cannot touch what a mount shows. Raises HostError if something stays.
    """
    try:
        for top in (root, root.parent / "staging"):
            if top.exists():
                _remove_empty_tree(top, top.lstat().st_dev)
    except OSError as error:
        raise HostError(f"Cannot remove the shared directory {root}: {error}") from error


def _remove_empty_tree(path: Path, device: int) -> None:
    for entry in list(os.scandir(path)):
        status = entry.stat(follow_symlinks=False)
        if status.st_dev != device:
            raise OSError(errno.EBUSY, "Something is mounted on it", entry.path)
        if stat.S_ISDIR(status.st_mode):
            _remove_empty_tree(Path(entry.path), device)
        elif stat.S_ISREG(status.st_mode) and status.st_size == 0:
            Path(entry.path).unlink()
    path.rmdir()


def _make_empty(path: str, *, directory: bool, dir_fd: int | None = None) -> None:
    if directory:
        os.mkdir(path, 0o755, dir_fd=dir_fd)
    else:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        os.close(os.open(path, flags, 0o644, dir_fd=dir_fd))


def _remove_empty(path: str, *, dir_fd: int | None = None) -> None:
    try:
        os.rmdir(path, dir_fd=dir_fd)
    except NotADirectoryError:
        os.unlink(path, dir_fd=dir_fd)
    except FileNotFoundError:
        return


def _names(directory: Path) -> list[str]:
    try:
        return [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []


def _inside(root: Path, target: str) -> Path:
    # A rootfs mount's target; the image's own links must not lead it out of the root.
    path = root / target.lstrip("/")
    if ".." in path.parts or os.path.realpath(path) != str(path):
        raise SpecRefusedError("rootfs", f"Mount target {target!r} leads outside of the root file system")
    return path


def _mount_points(top: str) -> list[str]:
    # The mount points at and below top, in the order in which they were mounted (proc(5), mountinfo).
    points = []
    for line in Path("/proc/thread-self/mountinfo").read_text(errors="surrogateescape").splitlines():
        point = line.split(" ")[4].encode("latin-1", "surrogateescape").decode("unicode_escape")
        point = os.fsdecode(point.encode("latin-1"))
        if point == top or point.startswith(f"{top}/"):
            points.append(point)
    return points


def _file_type(mode: int) -> str:
    names = {stat.S_IFBLK: "block device", stat.S_IFCHR: "character device"}
    names |= {stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket"}
    return names.get(stat.S_IFMT(mode), "special file")


def _in_thread(action: _Action) -> None:
    # Runs action in a thread of its own and raises here what it raised there.
    failures: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="mount")
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


class _Action(Protocol):
    def __call__(self) -> None: ...


def _system_calls() -> MountCalls:
    import vmm.sys  # not needed by the delete verb

    return vmm.sys
