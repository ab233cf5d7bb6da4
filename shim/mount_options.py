"""Mount options as text -> what mount(2) wants: flags, propagation changes, and data for the file system.

Used by `storage` for the mounts that containerd hands over. Free of I/O.
"""

import os
import posixpath
from collections.abc import Sequence

from vmm.record import record

from .errors import SpecRefusedError

# mount(2) copies one page of data; room is left for what an overlay adds to it, as containerd does.
OPTIONS_MAX = os.sysconf("SC_PAGE_SIZE") - 512

# linux: include/uapi/linux/mount.h, names as in mount(8)
_SET = {
    "ro": 0x1,
    "nosuid": 0x2,
    "nodev": 0x4,
    "noexec": 0x8,
    "sync": 0x10,
    "remount": 0x20,
    "mand": 0x40,
    "dirsync": 0x80,
    "nosymfollow": 0x100,
    "noatime": 0x400,
    "nodiratime": 0x800,
    "bind": 0x1000,
    "rbind": 0x1000 | 0x4000,
    "silent": 0x8000,
    "relatime": 0x200000,
    "iversion": 0x800000,
    "strictatime": 0x1000000,
    "lazytime": 0x2000000,
}
_CLEAR = {
    "defaults": 0,
    "rw": 0x1,
    "suid": 0x2,
    "dev": 0x4,
    "exec": 0x8,
    "async": 0x10,
    "nomand": 0x40,
    "symfollow": 0x100,
    "atime": 0x400,
    "diratime": 0x800,
    "loud": 0x8000,
    "norelatime": 0x200000,
    "noiversion": 0x800000,
    "nostrictatime": 0x1000000,
    "nolazytime": 0x2000000,
}
_REC = 0x4000
_PROPAGATION = {"unbindable": 1 << 17, "private": 1 << 18, "slave": 1 << 19, "shared": 1 << 20}
_PROPAGATION |= {f"r{name}": flag | _REC for name, flag in _PROPAGATION.items()}

# Options that only mean something to a helper program or to containerd's own mount code.
_REFUSED = ("loop", "uidmap", "gidmap", "X-containerd.")


@record(frozen=True)
class MountOptions:
    """`flags` for mount(2), `propagation` flags for one further call each, `data` for the file system."""

    flags: int
    propagation: tuple[int, ...]
    data: tuple[str, ...]


def parse_options(options: Sequence[str]) -> MountOptions:
    """Raises SpecRefusedError for options that mount(2) cannot express."""
    flags = 0
    propagation = []
    data = []
    for option in options:
        if option in _SET:
            flags |= _SET[option]
        elif option in _CLEAR:
            flags &= ~_CLEAR[option]
        elif option in _PROPAGATION:
            propagation.append(_PROPAGATION[option])
        elif option.partition("=")[0] in _REFUSED or option.startswith("X-containerd."):
            raise SpecRefusedError("rootfs", f"Mount option {option[:80]!r} is not supported")
        else:
            data.append(option)
    return MountOptions(flags, tuple(propagation), tuple(data))


def compact_lowerdirs(data: Sequence[str]) -> tuple[str, list[str]]:
    """An overlay's options with its lower directories relative to the returned directory.

    The directory is "" if the options cannot be shortened that way.
    """
    compact = list(data)
    for index, option in enumerate(data):
        name, _, value = option.partition("=")
        lowers = value.split(":")
        if name != "lowerdir" or "\\" in value or not all(lower.startswith("/") for lower in lowers):
            continue
        directory = posixpath.commonpath([posixpath.dirname(lower.rstrip("/")) for lower in lowers])
        if directory == "/":
            continue
        compact[index] = "lowerdir=" + ":".join(posixpath.relpath(lower, directory) for lower in lowers)
        return directory, compact
    return "", compact
