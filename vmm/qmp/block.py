"""Disks in QMP: the shapes of `query-block`, `blockdev-add` and `block_resize`. Does no I/O."""

from __future__ import annotations

from pathlib import Path

from ..config import DriveCache, DriveConfig
from ..errors import QmpCommandError
from ..record import record
from .schema import Argument, check_members

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any

PROTOCOL_DRIVERS = ("file", "host_device")

_CACHE = {"direct": Argument(bool, optional=True), "no-flush": Argument(bool, optional=True)}
_COMMON = {
    "driver": Argument(str),
    "node-name": Argument(str, optional=True),
    "read-only": Argument(bool, optional=True),
    "cache": Argument(dict, optional=True),
}


@record(frozen=True)
class DiskRequest:
    """What `blockdev-add` asks for."""

    name: str
    path: Path
    readonly: bool
    cache: DriveCache


def disk_request(arguments: dict[str, Any]) -> DiskRequest:
    """Read the arguments of `blockdev-add`: a file or block device, alone or below the driver raw.

    Raises QmpCommandError for what QEMU has and we have not, such as other formats.
    """
    outer = inner = arguments
    if arguments["driver"] == "raw":
        check_members(arguments, {**_COMMON, "file": Argument(dict)})
        inner = arguments["file"]
    check_members(inner, {**_COMMON, "filename": Argument(str)})
    if inner["driver"] not in PROTOCOL_DRIVERS:
        raise QmpCommandError("GenericError", f"Unknown driver '{inner['driver']}'")
    path = Path(inner["filename"])
    if not path.is_absolute():
        raise QmpCommandError("GenericError", f"Parameter 'filename' must be an absolute path, not '{path}'")
    return DiskRequest(
        name=arguments["node-name"],
        path=path,
        readonly=bool(outer.get("read-only", inner.get("read-only", False))),
        cache=_cache(outer.get("cache", inner.get("cache", {}))),
    )


def _cache(wanted: dict[str, Any]) -> DriveCache:
    check_members(wanted, _CACHE)
    if wanted.get("no-flush"):
        if wanted.get("direct"):
            raise QmpCommandError("GenericError", "Cache modes 'direct' and 'no-flush' exclude each other")
        return DriveCache.NONE
    return DriveCache.DIRECT if wanted.get("direct") else DriveCache.WRITEBACK


def disk_name(device: str | None, node: str | None) -> str:
    """Return the one name of a disk that a command gives by device or by node. Raises QmpCommandError."""
    names = [name for name in (device, node) if name is not None]
    if len(names) != 1:
        raise QmpCommandError("GenericError", "Exactly one of 'device' and 'node-name' must be given")
    return names[0]


def block_info(device_id: str, drive: DriveConfig, size: int) -> dict[str, Any]:
    """Return the entry of a disk in `query-block` (QEMU's BlockInfo with its mandatory members)."""
    limit = drive.limit
    return {
        "device": device_id,
        "qdev": f"/machine/peripheral/{device_id}/virtio-backend",
        "type": "unknown",
        "removable": False,
        "locked": False,
        "io-status": "ok",
        "inserted": {
            "file": str(drive.path),
            "node-name": device_id,
            "drv": "raw",
            "ro": drive.readonly,
            "backing_file_depth": 0,
            "encrypted": False,
            "detect_zeroes": "off",
            "write_threshold": 0,
            "bps": limit.bandwidth,
            "bps_rd": 0,
            "bps_wr": 0,
            "iops": limit.operations,
            "iops_rd": 0,
            "iops_wr": 0,
            "cache": {
                "writeback": True,
                "direct": drive.cache is DriveCache.DIRECT,
                "no-flush": drive.cache is DriveCache.NONE,
            },
            "image": {
                "filename": str(drive.path),
                "format": "raw",
                "virtual-size": size,
                "dirty-flag": False,
            },
        },
    }
