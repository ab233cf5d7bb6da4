"""VmConfig: the whole description of a VM, as the user or the shim asks for it.

Frozen records without behaviour; what is running lives elsewhere (`vmm.machine`). An instance that
exists is valid: construction checks every field (`vmm.config_check`) and raises ConfigError with the JSON
path of the culprit. `load` and `parse` read JSON and TOML (see `vmm.decoding`); `dump` writes JSON that
`parse` accepts.

The string below each field is its documentation; ``docs/vm-config.md`` is generated from it.
"""

from enum import StrEnum
from pathlib import Path

from .config_check import MIN_GUEST_CID, check
from .engine_name import EngineName as EngineName
from .record import field, record


class BoardName(StrEnum):
    """The boards that exist."""

    MICROVM = "microvm"


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


@record(frozen=True, kw_only=True)
class BootConfig:
    """What the VM boots."""

    kernel: Path
    """Guest kernel: an uncompressed ELF `vmlinux` with a PVH note (fastest), or a bzImage."""
    initrd: Path | None = None
    """Initial RAM disk (cpio, plain or compressed)."""
    cmdline: str = ""
    """Text appended to the kernel arguments of board and engine."""


@record(frozen=True, kw_only=True)
class CpuConfig:
    """The virtual CPUs."""

    count: int = 1
    """Number of virtual CPUs, 1 to 64."""
    tsc_khz: int | None = None
    """Frequency of the host's time-stamp counter in kHz, for engine tcg; null: strato-vmm finds it out."""
    kvm_proven: bool = False
    """Whether this host's KVM is known to run a kernel, for engine kvm; `false`: strato-vmm tries it."""


@record(frozen=True, kw_only=True)
class MemoryConfig:
    """The guest's RAM."""

    size_mib: int = 256
    """RAM in MiB, at least 32."""
    backend: MemoryBackend = MemoryBackend.AUTO
    """`anonymous`: private memory; `memfd`: memory that other processes can map; `file`: a private
    mapping of `file`; `auto`: `anonymous` with engine kvm, `memfd` with tcg, which offers nothing else."""
    file: Path | None = None
    """What the RAM holds at first (backend `file`): at least `size_mib` large, never written."""
    huge_pages: bool = False
    """Take the RAM from the host's reserved pages of 2 MiB (engine kvm, not with backend `file`). A
    balloon gives nothing back then."""
    prealloc: bool = False
    """Allocate all of the RAM before the guest starts (engine kvm)."""


@record(frozen=True, kw_only=True)
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


@record(frozen=True, kw_only=True)
class DriveConfig:
    """A virtio-blk disk. The file is always used raw; its format is never guessed."""

    id: str
    """Name of the device, unique in the VM."""
    path: Path
    """Regular file or block device with the raw contents. The command `block_resize` makes it larger
    while the VM runs."""
    readonly: bool = False
    """Refuse writes from the guest."""
    serial: str | None = None
    """Serial number that the guest sees, at most 20 bytes."""
    cache: DriveCache = DriveCache.WRITEBACK
    """`writeback`: host page cache, flushes honoured; `direct`: O_DIRECT, flushes honoured; `none`: host
    page cache, flushes ignored (scratch disks only)."""
    limit: LimitConfig = field(default_factory=LimitConfig)
    """Limit of what the guest reads and writes."""


@record(frozen=True, kw_only=True)
class NetConfig:
    """A virtio-net interface on a tap."""

    id: str
    """Name of the device, unique in the VM."""
    tap_fd: int | None = None
    """Number of an open tap descriptor (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR) passed to strato-vmm. Exactly
    one of `tap_fd` and `tap_name`."""
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


@record(frozen=True, kw_only=True)
class VsockConfig:
    """The virtio-vsock device, reached over a unix socket with Firecracker's protocol."""

    guest_cid: int = MIN_GUEST_CID
    """The guest's context id, 3 or more."""
    socket: Path
    """Path of the socket for host-initiated connections; a guest connection to port N arrives on
    `<socket>_N`. Programs with sockets of type SEQPACKET connect to `<socket>_seq` and send `CONNECT
    <port>\\n` as a message. Shorter than 100 bytes."""


@record(frozen=True, kw_only=True)
class RngConfig:
    """The entropy device, fed by the host's generator; limited, so that no guest keeps a host CPU busy."""

    enabled: bool = True
    """Whether the guest has the device."""
    rate_kib: int = 1024
    """KiB of random bytes a second, in the long run."""
    burst_kib: int = 1024
    """KiB given at once after a pause, so that a guest seeds itself without waiting."""


@record(frozen=True, kw_only=True)
class BalloonConfig:
    """The balloon device, by which the guest gives memory back. Engine kvm only: under tcg there is none."""

    enabled: bool = True
    """Whether the guest has the device."""
    reporting: bool = True
    """Let the guest report free pages, which go back to the host by themselves."""
    deflate_on_oom: bool = True
    """Let the guest take memory back from the balloon before it kills a process for want of it."""
    statistics_s: int = 0
    """Seconds between two statistics of the guest, which are the counters `guest_…` of the balloon in
    `x-strato-stats` (QEMU's names of them, `guest_free_memory` in bytes and so on) with the time of the
    latest, `stats_updated_s`; 0: none."""


@record(frozen=True, kw_only=True)
class ShareConfig:
    """A folder of the host, shared with the guest by virtio-fs."""

    tag: str
    """Name to mount in the guest, unique in the VM, at most 36 bytes."""
    directory: Path | None = None
    """Folder of the host. Mounts that appear below it later become visible too. Null: an empty root,
    below which `x-strato-add-share` shows folders of the host."""
    cache: ShareCache = ShareCache.AUTO
    """`auto`: the guest revalidates after a second; `always`: never (host must not change files);
    `none`: always."""
    readonly: bool = False
    """Refuse writes from the guest."""
    writeback: bool = False
    """Let the guest keep what it writes and hand it over later, in larger pieces, until `fsync` or
    `close`. Programs of the host must not use files meanwhile that the guest writes."""
    remote_locks: bool = False
    """Take the guest's locks (`fcntl`, `flock`) on the host's files, where the host and other VMs meet
    them; otherwise they are the guest's own. A call that would have to wait for a lock fails with
    EOPNOTSUPP. Only with `jail.enabled` false."""


@record(frozen=True, kw_only=True)
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


@record(frozen=True, kw_only=True)
class SerialConfig:
    """Serial port (ttyS0, output only) to debug a guest that does not reach its console; engine kvm only."""

    log: Path | None = None
    """File to which the output is appended; null: no port. With a port the kernel is not told to be quiet."""


@record(frozen=True, kw_only=True)
class ProgramsConfig:
    """Programs that strato-vmm starts; null means found by default."""

    qemu: Path | None = None
    """The QEMU system emulator (engine tcg)."""
    virtiofsd: Path | None = None
    """Serves shares in the place of our own device (engine tcg): the C virtiofsd of QEMU, for comparisons."""
    vhost_device_vsock: Path | None = None
    """Serves vsock in the place of our own device (engine tcg): the crate vhost-device-vsock, for
    comparisons."""


@record(frozen=True, kw_only=True)
class JailConfig:
    """What strato-vmm sees of the host and what it can still do, once its guest runs."""

    enabled: bool = True
    """Whether strato-vmm is confined. `false` is for development: a guest that breaks out is then
    whoever has started it."""
    folders: tuple[Path, ...] = ()
    """Further folders of the host that strato-vmm sees, with what is mounted below them: for
    `console.log`, `serial.log`, `vsock.socket`, and for shares and disks that are added later."""
    forbidden_call: ForbiddenCall = ForbiddenCall.KILL
    """What a system call does that strato-vmm has no use for: `kill` ends the VM, `log` writes it to the
    kernel's log and lets it through."""


@record(frozen=True, kw_only=True)
class VmConfig:
    """One virtual machine."""

    name: str
    """Name for logs and `query-name`."""
    board: BoardName = BoardName.MICROVM
    """The machine's shape: `microvm` (virtio-mmio, no PCI, no firmware)."""
    engine: EngineName = EngineName.AUTO
    """What runs the vCPUs: `kvm` (strato-vmm itself), `tcg` (a QEMU child that emulates them), `auto`
    (`kvm` where it works)."""
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
    """Empty slots for devices that come while the VM runs (`device_add`), as far as the board has them.
    Engine kvm only."""
    programs: ProgramsConfig = field(default_factory=ProgramsConfig)
    """Programs to use instead of those found by default."""
    jail: JailConfig = field(default_factory=JailConfig)
    """The confinement of strato-vmm."""

    def __post_init__(self) -> None:
        check(self)
