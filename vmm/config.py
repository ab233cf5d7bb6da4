"""VmConfig: the whole description of a VM, as the user or the shim asks for it.

Frozen dataclasses without behaviour; what is running lives elsewhere (`vmm.machine`). An instance that
exists is valid: construction checks every field and raises ConfigError with the JSON path of the culprit.
`load` and `parse` read JSON and TOML (see `vmm.decoding`); `dump` writes JSON that `parse` accepts.

The string below each field is its documentation; ``docs/vm-config.md`` is generated from it.
"""

import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from .errors import ConfigError

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


class BoardName(StrEnum):
    """The boards that exist."""

    MICROVM = "microvm"


class EngineName(StrEnum):
    """What may be asked for; ``auto`` is resolved by `vmm.engines.probe`."""

    AUTO = "auto"
    KVM = "kvm"
    TCG = "tcg"


class DriveCache(StrEnum):
    """What a flush means and whether the host's page cache is used."""

    NONE = "none"
    WRITEBACK = "writeback"
    DIRECT = "direct"


class ForbiddenCall(StrEnum):
    """What a system call does that strato-vmm has no use for."""

    KILL = "kill"
    LOG = "log"


class MemoryBackend(StrEnum):
    """What the guest's RAM is made of."""

    AUTO = "auto"
    ANONYMOUS = "anonymous"
    MEMFD = "memfd"
    FILE = "file"


class ShareCache(StrEnum):
    """How long the guest may trust what it has read from a share."""

    AUTO = "auto"
    ALWAYS = "always"
    NONE = "none"


@dataclass(frozen=True, kw_only=True)
class BootConfig:
    """What the VM boots."""

    kernel: Path
    """Guest kernel: an uncompressed ELF `vmlinux` with a PVH note (fastest), or a bzImage."""
    initrd: Path | None = None
    """Initial RAM disk (cpio, plain or compressed)."""
    cmdline: str = ""
    """Text appended to the kernel arguments of board and engine."""


@dataclass(frozen=True, kw_only=True)
class CpuConfig:
    """The virtual CPUs."""

    count: int = 1
    """Number of virtual CPUs, 1 to 64."""
    tsc_khz: int | None = None
    """Frequency of the host's time-stamp counter in kHz, for engine tcg; null: strato-vmm finds it out."""


@dataclass(frozen=True, kw_only=True)
class MemoryConfig:
    """The guest's RAM."""

    size_mib: int = 256
    """RAM in MiB, at least 32."""
    backend: MemoryBackend = MemoryBackend.AUTO
    """`anonymous`: private memory; `memfd`: memory that other processes can map; `file`: a private mapping of `file`; `auto`: `anonymous` with engine kvm, `memfd` with tcg, which offers nothing else."""  # noqa: E501
    file: Path | None = None
    """What the RAM holds at first (backend `file`): at least `size_mib` large, never written."""
    huge_pages: bool = False
    """Take the RAM from the host's reserved pages of 2 MiB (engine kvm, not with backend `file`). A balloon gives nothing back then."""  # noqa: E501
    prealloc: bool = False
    """Allocate all of the RAM before the guest starts (engine kvm)."""


@dataclass(frozen=True, kw_only=True)
class LimitConfig:
    """A limit of bytes and operations per second; 0 is none."""

    bandwidth: int = 0
    """Bytes per second, in the long run."""
    bandwidth_burst: int = 0
    """Bytes that may go through at once after a pause; 0 means as many as one second gives."""
    operations: int = 0
    """Operations (requests of a disk, packets of an interface) per second, in the long run."""
    operations_burst: int = 0
    """Operations that may go through at once after a pause; 0 means as many as one second gives."""


@dataclass(frozen=True, kw_only=True)
class DriveConfig:
    """A virtio-blk disk. The file is always used raw; its format is never guessed."""

    id: str
    """Name of the device, unique in the VM."""
    path: Path
    """Regular file or block device with the raw contents."""
    readonly: bool = False
    """Refuse writes from the guest."""
    serial: str | None = None
    """Serial number that the guest sees, at most 20 bytes."""
    cache: DriveCache = DriveCache.WRITEBACK
    """`writeback`: host page cache, flushes honoured; `direct`: O_DIRECT, flushes honoured; `none`: host page cache, flushes ignored (scratch disks only)."""  # noqa: E501
    limit: LimitConfig = field(default_factory=LimitConfig)
    """Limit of what the guest reads and writes."""


@dataclass(frozen=True, kw_only=True)
class NetConfig:
    """A virtio-net interface on a tap."""

    id: str
    """Name of the device, unique in the VM."""
    tap_fd: int | None = None
    """Number of an open tap descriptor (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR) passed to strato-vmm. Exactly one of `tap_fd` and `tap_name`."""  # noqa: E501
    tap_name: str | None = None
    """Name of an existing tap in strato-vmm's network namespace."""
    mac: str
    """The guest's MAC address, unicast."""
    mtu: int | None = None
    """MTU offered to the guest, 68 to 65535."""
    link_up: bool = True
    """Whether the guest sees a carrier at boot; `x-strato-set-link` changes it."""
    receive_limit: LimitConfig = field(default_factory=LimitConfig)
    """Limit of what the guest receives."""
    transmit_limit: LimitConfig = field(default_factory=LimitConfig)
    """Limit of what the guest sends."""


@dataclass(frozen=True, kw_only=True)
class VsockConfig:
    """The virtio-vsock device, reached over a unix socket with Firecracker's protocol."""

    guest_cid: int = MIN_GUEST_CID
    """The guest's context id, 3 or more."""
    socket: Path
    """Path of the socket for host-initiated connections; a guest connection to port N arrives on `<socket>_N`. Shorter than 100 bytes."""  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class RngConfig:
    """The entropy device, fed by the host's generator; limited, so that no guest keeps a host CPU busy."""

    enabled: bool = True
    """Whether the guest has the device."""
    rate_kib: int = 1024
    """KiB of random bytes a second, in the long run."""
    burst_kib: int = 1024
    """KiB given at once after a pause, so that a guest seeds itself without waiting."""


@dataclass(frozen=True, kw_only=True)
class BalloonConfig:
    """The balloon device, by which the guest gives memory back. Engine kvm only: under tcg there is none."""

    enabled: bool = True
    """Whether the guest has the device."""
    reporting: bool = True
    """Let the guest report free pages, which go back to the host by themselves."""
    deflate_on_oom: bool = True
    """Let the guest take memory back from the balloon before it kills a process for want of it."""
    statistics_s: int = 0
    """Seconds between two statistics of the guest in `x-strato-stats`; 0: none."""


@dataclass(frozen=True, kw_only=True)
class ShareConfig:
    """A folder of the host, shared with the guest by virtio-fs."""

    tag: str
    """Name to mount in the guest, unique in the VM, at most 36 bytes."""
    directory: Path | None = None
    """Folder of the host. Mounts that appear below it later become visible too. Null: an empty root, below which `x-strato-add-share` shows folders of the host."""  # noqa: E501
    cache: ShareCache = ShareCache.AUTO
    """`auto`: the guest revalidates after a second; `always`: never (host must not change files); `none`: always."""  # noqa: E501
    readonly: bool = False
    """Refuse writes from the guest."""


@dataclass(frozen=True, kw_only=True)
class ConsoleConfig:
    """The guest's console, hvc0."""

    log: Path | None = None
    """File to which the output is appended."""
    limit_kib: int = 1024
    """Largest size of the log in KiB; beyond half of it the file moves to `<log>.1`."""
    ring_kib: int = 64
    """KiB of the latest output kept in memory for `x-strato-console-tail` and exit.json."""
    stdio: bool = False
    """Connect the console to strato-vmm's standard input and output."""


@dataclass(frozen=True, kw_only=True)
class SerialConfig:
    """Serial port (ttyS0, output only) to debug a guest that does not reach its console; engine kvm only."""

    log: Path | None = None
    """File to which the output is appended; null: no port. With a port the kernel is not told to be quiet."""


@dataclass(frozen=True, kw_only=True)
class ProgramsConfig:
    """Programs that strato-vmm starts; null means found by default."""

    qemu: Path | None = None
    """The QEMU system emulator (engine tcg)."""
    virtiofsd: Path | None = None
    """Serves shares in the place of our own device (engine tcg): the C virtiofsd of QEMU, for comparisons."""
    vhost_device_vsock: Path | None = None
    """Serves vsock in the place of our own device (engine tcg): the crate vhost-device-vsock, for comparisons."""  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class JailConfig:
    """What strato-vmm sees of the host and what it can still do, once its guest runs."""

    enabled: bool = True
    """Whether strato-vmm is confined. `false` is for development: a guest that breaks out is then whoever has started it."""  # noqa: E501
    folders: tuple[Path, ...] = ()
    """Further folders of the host that strato-vmm sees, with what is mounted below them: for `x-strato-add-share`, `console.log`, `vsock.socket`."""  # noqa: E501
    forbidden_call: ForbiddenCall = ForbiddenCall.KILL
    """What a system call does that strato-vmm has no use for: `kill` ends the VM, `log` writes it to the kernel's log and lets it through."""  # noqa: E501


@dataclass(frozen=True, kw_only=True)
class VmConfig:
    """One virtual machine."""

    name: str
    """Name for logs and `query-name`."""
    board: BoardName = BoardName.MICROVM
    """The machine's shape: `microvm` (virtio-mmio, no PCI, no firmware)."""
    engine: EngineName = EngineName.AUTO
    """What runs the vCPUs: `kvm` (strato-vmm itself), `tcg` (a QEMU child that emulates them), `auto` (`kvm` where it works)."""  # noqa: E501
    runtime_dir: Path
    """Private folder for sockets and exit.json; must exist; path shorter than 80 bytes."""
    boot: BootConfig
    """Kernel, initial RAM disk and kernel arguments."""
    cpu: CpuConfig = field(default_factory=CpuConfig)
    """The virtual CPUs."""
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    """The guest's RAM."""
    drives: tuple[DriveConfig, ...] = ()
    """Disks, in the order in which the guest finds them (vda, vdb, …)."""
    nets: tuple[NetConfig, ...] = ()
    """Network interfaces, in the order in which the guest finds them (eth0, eth1, …)."""
    vsock: VsockConfig | None = None
    """The vsock device, or null for none."""
    shares: tuple[ShareConfig, ...] = ()
    """Shared folders."""
    console: ConsoleConfig = field(default_factory=ConsoleConfig)
    """The guest's console."""
    rng: RngConfig = field(default_factory=RngConfig)
    """The entropy device."""
    balloon: BalloonConfig = field(default_factory=BalloonConfig)
    """The balloon device."""
    serial: SerialConfig = field(default_factory=SerialConfig)
    """The serial port for debugging."""
    spare_slots: int = 4
    """Empty slots for devices that come while the VM runs (`device_add`), as far as the board has them. Engine kvm only."""  # noqa: E501
    programs: ProgramsConfig = field(default_factory=ProgramsConfig)
    """Programs to use instead of those found by default."""
    jail: JailConfig = field(default_factory=JailConfig)
    """The confinement of strato-vmm."""

    def __post_init__(self) -> None:
        check(self)


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
    if (memory.file is None) == (memory.backend is MemoryBackend.FILE):
        raise ConfigError("memory.file", "Must be set with backend file, and with no other")
    if memory.file is not None:
        _absolute("memory.file", memory.file)
    if memory.huge_pages and memory.backend is MemoryBackend.FILE:
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
    files = {"console.log": config.console.log}
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
