"""System calls that Python lacks: namespaces, mounts, taps, process attributes, the TSC frequency.

Thin and stateless. Called by the shim, strato-vmm and ``strato doctor``. Everything raises OSError with a
sentence that names the objects. Namespace and mount calls act on the calling thread.
"""

from __future__ import annotations

from . import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from typing import Final

    StrPath = str | PathLike[str]

# linux/sched.h
CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUTS: Final = 0x04000000
CLONE_NEWIPC: Final = 0x08000000
CLONE_NEWNET: Final = 0x40000000

# linux/mount.h
MS_RDONLY: Final = 0x1
MS_NOSUID: Final = 0x2
MS_NODEV: Final = 0x4
MS_NOEXEC: Final = 0x8
MS_REMOUNT: Final = 0x20
MS_BIND: Final = 0x1000
MS_MOVE: Final = 0x2000
MS_REC: Final = 0x4000
MS_UNBINDABLE: Final = 0x20000
MS_PRIVATE: Final = 0x40000
MS_SLAVE: Final = 0x80000
MS_SHARED: Final = 0x100000
MNT_DETACH: Final = 0x2
UMOUNT_NOFOLLOW: Final = 0x8
OPEN_TREE_CLONE: Final = 0x1
MOVE_MOUNT_F_EMPTY_PATH: Final = 0x4
MOVE_MOUNT_T_EMPTY_PATH: Final = 0x40
MOUNT_ATTR_RDONLY: Final = 0x1
AT_FDCWD: Final = -100
AT_EMPTY_PATH: Final = 0x1000
AT_RECURSIVE: Final = 0x8000

CLOSE_RANGE_CLOEXEC: Final = 0x4  # linux/close_range.h
_LAST_FD: Final = 2**32 - 1


def unshare(flags: int) -> None:
    """Leave the shared namespaces named by CLONE_NEW* flags and get new ones (unshare(2))."""
    calls.unshare(flags)


def setns(fd: int, nstype: int = 0) -> None:
    """Enter the namespace behind a descriptor (setns(2))."""
    calls.setns(fd, nstype)


def mount(
    source: StrPath | None,
    target: StrPath,
    fstype: str | None = None,
    flags: int = 0,
    data: str | None = None,
) -> None:
    """Mount, or change a mount (mount(2))."""
    calls.mount(source, target, fstype, flags, data)


def umount(target: StrPath, flags: int = 0) -> None:
    """Unmount (umount2(2))."""
    calls.umount(target, flags)


def open_tree(path: StrPath, flags: int = 0, *, dirfd: int = AT_FDCWD) -> int:
    """Open a mount, or with OPEN_TREE_CLONE a detached copy of it; the caller owns the CLOEXEC descriptor."""
    return calls.open_tree(dirfd, path, flags)


def move_mount(
    from_path: StrPath,
    to_path: StrPath,
    flags: int = 0,
    *,
    from_dirfd: int = AT_FDCWD,
    to_dirfd: int = AT_FDCWD,
) -> None:
    """Attach or move a mount (move_mount(2))."""
    calls.move_mount(from_dirfd, from_path, to_dirfd, to_path, flags)


def mount_setattr(
    path: StrPath,
    flags: int = 0,
    *,
    set_attributes: int = 0,
    clear_attributes: int = 0,
    propagation: int = 0,
    dirfd: int = AT_FDCWD,
) -> None:
    """Change the MOUNT_ATTR_* flags or the propagation of a mount (with AT_RECURSIVE: of a tree)."""
    calls.mount_setattr(dirfd, path, flags, (set_attributes, clear_attributes, propagation, 0))


def pivot_root(new_root: StrPath, put_old: StrPath) -> None:
    """Make ``new_root`` the root of the mount namespace (pivot_root(2))."""
    calls.pivot_root(new_root, put_old)


def set_child_subreaper(enable: bool = True) -> None:
    """Make orphaned descendants children of this process."""
    calls.set_child_subreaper(enable)


def set_parent_death_signal(signal: int) -> None:
    """Get ``signal`` when the thread that forked this process ends; 0 switches it off."""
    calls.set_parent_death_signal(signal)


def close_range(first: int, last: int = _LAST_FD, *, flags: int = 0) -> None:
    """Close (or with CLOSE_RANGE_CLOEXEC mark) the descriptors from ``first`` to ``last``."""
    calls.close_range(first, last, flags)


def set_process_name(name: str) -> None:
    """Set what ps and top show as the command (15 bytes; the rest is cut)."""
    calls.set_process_name(name)


class PathUse:
    """What a path is good for, once a thread has restricted itself."""

    READ: Final = 0
    """To be read."""
    FOLDER: Final = 1
    """Regular files and sockets may come, go and change."""
    TREE: Final = 2
    """Anything but executing it."""
    DEVICE: Final = 3
    """A device or disk: to be read, written and asked (ioctl)."""
    DEVICE_READONLY: Final = 4
    """A device or disk: to be read and asked."""


def forbid_gains() -> None:
    """Leave nothing to gain by executing a program: no capability, no set-id bit. For ever."""
    calls.forbid_gains()


def restrict_paths(paths: Sequence[tuple[str, int]]) -> int:
    """Restrict this thread, and those it starts from here on, to these paths (PathUse) and what is below.

    After `forbid_gains`. Returns the version of Landlock that the kernel has; 0: none, nothing has changed.
    """
    return calls.restrict_paths(paths)


def confine_control(*, log_only: bool) -> None:
    """Leave this thread without capabilities and with strato-vmm's own system calls; any other one kills.

    With ``log_only`` the kernel writes such a call to its log and makes it.
    """
    calls.confine_control(1 if log_only else 0)


def set_dumpable(enable: bool) -> None:
    """Allow or forbid others of the same user to look into this process, and core dumps."""
    calls.set_dumpable(enable)


def open_tap(netns_fd: int | None, name: str, *, mtu: int | None = None, up: bool = True) -> int:
    """Make a non-persistent tap with virtio-net headers and return its descriptor (CLOEXEC, non-blocking).

    The interface lives in the given network namespace (None: the caller's) until the descriptor is closed.
    """
    return calls.open_tap(-1 if netns_fd is None else netns_fd, name, 0 if mtu is None else mtu, up)


def netlink_socket(netns_fd: int) -> int:
    """Return a CLOEXEC NETLINK_ROUTE socket that works on the given network namespace."""
    return calls.netlink_socket(netns_fd)


class TscMethod:
    """How the frequency of the time stamp counter is found."""

    BEST: Final = 0
    """The first of the others that this host offers, in their order."""
    KVM: Final = 1
    """KVM_GET_TSC_KHZ: exactly what the host kernel believes."""
    PERF: Final = 2
    """The scale in a perf event page: exactly what the host kernel uses."""
    MEASURED: Final = 3
    """Against CLOCK_MONOTONIC_RAW over 25 ms; good to a few ppm."""


_METHOD_NAMES = {1: "kvm", 2: "perf", 3: "measured"}


class TscReading:
    """A frequency and how it was found."""

    __slots__ = ("khz", "method")

    def __init__(self, method: int, khz: int) -> None:
        self.method = method
        """A TscMethod, never BEST."""
        self.khz = khz

    @property
    def method_name(self) -> str:
        """``kvm``, ``perf`` or ``measured``."""
        return _METHOD_NAMES[self.method]

    def __repr__(self) -> str:
        return f"TscReading({self.method_name}, {self.khz} kHz)"


def read_tsc(method: int = TscMethod.BEST) -> TscReading:
    """Find the TSC frequency. Raises OSError when the host does not offer the method."""
    return TscReading(*calls.tsc(method))


def tsc_khz() -> int:
    """Return the frequency of the time stamp counter in kHz, by the best method that this host offers."""
    return read_tsc().khz
