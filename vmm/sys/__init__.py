"""The objects of libstrato_sys.so: plumbing that Python lacks, and the byte pump.

Three layers: the C header (``vmm/native/sys/include/strato_sys.h``), `vmm.sys.calls` (one to one, checked),
and the objects here. Importing loads the library, compares versions and struct sizes (LibraryMismatchError),
and costs less than 3 ms; for that reason nothing here imports enum, typing, dataclasses or pathlib. At run
time only ``_cffi_backend`` is needed.
"""

from . import host
from .errors import LibraryMismatchError, NativeBugError, PumpOwnerError
from .host import (
    PathUse,
    TscMethod,
    TscReading,
    close_range,
    confine_control,
    forbid_gains,
    mount,
    mount_setattr,
    move_mount,
    netlink_socket,
    open_tap,
    open_tree,
    pivot_root,
    read_tsc,
    restrict_paths,
    set_child_subreaper,
    set_dumpable,
    set_parent_death_signal,
    set_process_name,
    setns,
    tsc_khz,
    umount,
    unshare,
)
from .launch import Launched, LaunchError, launch
from .pump import Pump, PumpEvent, PumpEventKind, PumpState, PumpStats

__all__ = [
    "LaunchError",
    "Launched",
    "LibraryMismatchError",
    "NativeBugError",
    "PathUse",
    "Pump",
    "PumpEvent",
    "PumpEventKind",
    "PumpOwnerError",
    "PumpState",
    "PumpStats",
    "TscMethod",
    "TscReading",
    "close_range",
    "confine_control",
    "forbid_gains",
    "host",
    "launch",
    "mount",
    "mount_setattr",
    "move_mount",
    "netlink_socket",
    "open_tap",
    "open_tree",
    "pivot_root",
    "read_tsc",
    "restrict_paths",
    "set_child_subreaper",
    "set_dumpable",
    "set_parent_death_signal",
    "set_process_name",
    "setns",
    "tsc_khz",
    "umount",
    "unshare",
]
