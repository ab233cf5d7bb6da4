"""What the values of a VmConfig may be. Pure; ConfigError names the culprit by its JSON path.

`vmm.config` checks each VmConfig that is made; devices that are added to a running VM are checked by
`vmm.hotplug`.
"""

from __future__ import annotations

import re
from pathlib import Path

from .errors import ConfigError

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from .config import DriveConfig, LimitConfig, MemoryConfig, NetConfig, ShareConfig, VmConfig

MAX_VCPUS = 64
MIN_MEMORY_MIB = 32
MAX_MEMORY_MIB = 1 << 20
MAX_TAG_BYTES = 36  # virtio 1.2, section 5.11.4: the tag field of virtio_fs_config
MAX_SERIAL_BYTES = 20  # virtio 1.2, section 5.2.6: VIRTIO_BLK_ID_BYTES
MAX_RUNTIME_DIR_BYTES = 80  # sun_path holds 108 bytes; names of our own are appended
MAX_SOCKET_PATH_BYTES = 100
MIN_GUEST_CID = 3  # 0 to 2 are reserved: vsock(7)
MAX_LIMIT = 1 << 48
MAX_SPARE_SLOTS = 31
MAX_CMDLINE_BYTES = 1500  # x86 COMMAND_LINE_SIZE is 2048; the board and the engine add their own arguments

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,31}")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")
_INTERFACE = re.compile(r"[^\s/:]{1,15}")  # IFNAMSIZ - 1
_FILE = "file"  # MemoryBackend.FILE


def check(config: VmConfig) -> None:
    """Check every value of a configuration. Raises ConfigError; does no I/O."""
    _text("name", config.name, 128)
    _absolute("runtime_dir", config.runtime_dir, MAX_RUNTIME_DIR_BYTES)
    _absolute("boot.kernel", config.boot.kernel)
    if config.boot.initrd is not None:
        _absolute("boot.initrd", config.boot.initrd)
    if len(config.boot.cmdline.encode()) > MAX_CMDLINE_BYTES or not _printable(config.boot.cmdline):
        raise ConfigError("boot.cmdline", f"Must be printable text of at most {MAX_CMDLINE_BYTES} bytes")
    _between("cpu.count", config.cpu.count, 1, MAX_VCPUS)
    if config.cpu.tsc_khz is not None:
        _between("cpu.tsc_khz", config.cpu.tsc_khz, 100_000, 100_000_000)
    _check_memory(config.memory)
    _between("balloon.statistics_s", config.balloon.statistics_s, 0, 3600)
    _between("spare_slots", config.spare_slots, 0, MAX_SPARE_SLOTS)
    if config.serial.log is not None:
        _absolute("serial.log", config.serial.log)
    _between("console.limit_kib", config.console.limit_kib, 2, 1 << 20)
    _between("console.ring_kib", config.console.ring_kib, 1, 1 << 10)
    if config.console.log is not None:
        _absolute("console.log", config.console.log)
    ids: set[str] = set()
    for index, drive in enumerate(config.drives):
        check_drive(f"drives[{index}]", drive)
        _unique(f"drives[{index}].id", drive.id, ids)
    for index, net in enumerate(config.nets):
        check_net(f"nets[{index}]", net)
        _unique(f"nets[{index}].id", net.id, ids)
    if config.vsock is not None:
        _between("vsock.guest_cid", config.vsock.guest_cid, MIN_GUEST_CID, 0xFFFF_FFFE)
        _absolute("vsock.socket", config.vsock.socket, MAX_SOCKET_PATH_BYTES)
    _between("rng.rate_kib", config.rng.rate_kib, 1, 1 << 30)
    _between("rng.burst_kib", config.rng.burst_kib, 64, 1 << 20)  # no request gets more than 64 KiB
    tags: set[str] = set()
    for index, share in enumerate(config.shares):
        check_share(f"shares[{index}]", share)
        _unique(f"shares[{index}].tag", share.tag, tags)
    for index, folder in enumerate(config.jail.folders):
        _absolute(f"jail.folders[{index}]", folder)
    if config.jail.enabled:
        _check_jail(config)


def _check_memory(memory: MemoryConfig) -> None:
    _between("memory.size_mib", memory.size_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB)
    if (memory.file is None) == (memory.backend == _FILE):
        raise ConfigError("memory.file", "Must be set with backend file, and with no other")
    if memory.file is not None:
        _absolute("memory.file", memory.file)
    if memory.huge_pages and memory.backend == _FILE:
        raise ConfigError("memory.huge_pages", "Backend file maps ordinary pages: remove one of the two")
    if memory.huge_pages and memory.size_mib % 2:
        raise ConfigError(
            "memory.size_mib", f"{memory.size_mib} is not a multiple of 2, the size of a huge page"
        )


def check_drive(path: str, drive: DriveConfig) -> None:
    """Check the values of a disk; ``path`` is where it stands. Raises ConfigError."""
    _identifier(_join(path, "id"), drive.id)
    _absolute(_join(path, "path"), drive.path)
    if drive.serial is not None:
        _text(_join(path, "serial"), drive.serial, MAX_SERIAL_BYTES)
    check_limit(_join(path, "limit"), drive.limit)


def check_net(path: str, net: NetConfig) -> None:
    """Check the values of an interface; ``path`` is where it stands. Raises ConfigError."""
    _identifier(_join(path, "id"), net.id)
    if (net.tap_fd is None) == (net.tap_name is None):
        raise ConfigError(path, "Exactly one of tap_fd and tap_name must be set")
    if net.tap_fd is not None:
        _between(_join(path, "tap_fd"), net.tap_fd, 3, 1 << 20)
    if net.tap_name is not None and not _INTERFACE.fullmatch(net.tap_name):
        raise ConfigError(_join(path, "tap_name"), f"{net.tap_name!r} is not an interface name")
    if not _MAC.fullmatch(net.mac) or int(net.mac[:2], 16) & 1:
        raise ConfigError(
            _join(path, "mac"), f"{net.mac!r} is not a unicast MAC address like 02:53:54:52:00:00"
        )
    if net.mtu is not None:
        _between(_join(path, "mtu"), net.mtu, 68, 65535)
    check_limit(_join(path, "receive_limit"), net.receive_limit)
    check_limit(_join(path, "transmit_limit"), net.transmit_limit)


def check_share(path: str, share: ShareConfig) -> None:
    """Check the values of a share; ``path`` is where it stands. Raises ConfigError."""
    _text(_join(path, "tag"), share.tag, MAX_TAG_BYTES)
    if share.directory is not None:
        _absolute(_join(path, "directory"), share.directory)


def _check_jail(config: VmConfig) -> None:
    files = {"console.log": config.console.log, "serial.log": config.serial.log}
    if config.vsock is not None:
        files["vsock.socket"] = config.vsock.socket
    for path, file in files.items():
        seen = (config.runtime_dir, *config.jail.folders)
        if file is not None and not any(file.is_relative_to(folder) for folder in seen):
            raise ConfigError(
                path, f"{file} is out of the jail: choose a place in runtime_dir or jail.folders"
            )
    for name in ("virtiofsd", "vhost_device_vsock"):
        if getattr(config.programs, name) is not None:
            reason = "This program cannot work in the jail: set jail.enabled to false"
            raise ConfigError(f"programs.{name}", reason)


def check_limit(path: str, limit: LimitConfig) -> None:
    """Check the values of a limit. Raises ConfigError."""
    for name in ("bandwidth", "bandwidth_burst", "operations", "operations_burst"):
        _between(_join(path, name), getattr(limit, name), 0, MAX_LIMIT)


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _between(path: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(path, f"{value} is not between {low} and {high}")


def _printable(text: str) -> bool:
    return all(character.isprintable() for character in text)


def _text(path: str, value: str, limit: int) -> None:
    if not value or len(value.encode()) > limit or not _printable(value):
        raise ConfigError(path, f"{value!r} must be 1 to {limit} bytes of printable text")


def _identifier(path: str, value: str) -> None:
    if not _ID.fullmatch(value):
        raise ConfigError(path, f"{value!r} must match {_ID.pattern}")


def _unique(path: str, value: str, seen: set[str]) -> None:
    if value in seen:
        raise ConfigError(path, f"{value!r} is used twice; names must be unique")
    seen.add(value)


def _absolute(path: str, value: Path, limit: int = 4096) -> None:
    if not value.is_absolute():
        raise ConfigError(path, f"{str(value)!r} must be an absolute path")
    if len(bytes(value)) >= limit or not _printable(str(value)):
        raise ConfigError(path, f"{str(value)!r} must be printable and shorter than {limit} bytes")
