"""Devices: one constructor for each kind, one class for what all have in common.

A device has threads of its own from its first use (served, or plugged into a machine) to `Device.close`; no
call into Python ever comes from them. The constructors raise OSError with the library's sentence.
"""

from __future__ import annotations

from . import calls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from os import PathLike
    from types import TracebackType
    from typing import Any, Self

    from .events import EventRing

MAX_CONNECTIONS = 4096
"""Streams of a vsock device at a time, unless told otherwise."""


class Device:
    """A device that is served to one front end at a time, or plugged into a machine. A context manager."""

    def __init__(self, handle: Any) -> None:
        self._device = handle

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def serve(self, socket_fd: int) -> None:
        """Serve the vhost-user front end at the other end of a connected stream socket.

        The descriptor is duplicated: the caller may close its own at once. FRONT_END_GONE tells the end.
        """
        calls.device_serve(self._open(), socket_fd)

    def metrics(self) -> dict[str, int]:
        """Return the device's counters by name."""
        return calls.device_metrics(self._open())

    def close(self) -> None:
        """End the conversation, let what is in flight come to rest, end the threads. May be called twice."""
        device, self._device = self._device, None
        if device is not None:
            calls.device_destroy(device)

    def handle(self) -> Any:
        """Return the library's handle; for `vmm.devices.machine` only."""
        return self._open()

    def _open(self) -> Any:
        if self._device is None:
            raise ValueError("This device is closed")
        return self._device

    def abandon(self) -> None:
        """Forget the device without waiting for its threads, one of which will never come to rest."""
        self._device = None


class Limits:
    """Limits of a device: a rate per second and what may go through at once; 0 means none."""

    __slots__ = ("bandwidth", "bandwidth_burst", "operations", "operations_burst")

    def __init__(
        self, bandwidth: int = 0, bandwidth_burst: int = 0, operations: int = 0, operations_burst: int = 0
    ) -> None:
        self.bandwidth = bandwidth
        """Bytes per second."""
        self.bandwidth_burst = bandwidth_burst
        """Bytes; 0: as many as a second gives."""
        self.operations = operations
        self.operations_burst = operations_burst

    def values(self) -> tuple[int, int, int, int]:
        """Return the numbers in the order of the library's struct."""
        return (self.bandwidth, self.bandwidth_burst, self.operations, self.operations_burst)


NO_LIMITS = Limits()


class BlockDevice(Device):
    """A disk, which can be changed while it is in use."""

    def resize(self) -> int:
        """Take the file's size anew, tell the guest, and return the bytes that it sees."""
        return calls.block_resize(self._open())

    def grow(self, size: int) -> int:
        """Make a regular file that is smaller ``size`` bytes large, then as `resize`.

        OSError with EINVAL: it is larger, read-only, or a block device of another size.
        """
        return calls.block_grow(self._open(), size)

    def set_limits(self, limits: Limits) -> None:
        """Replace the limits."""
        calls.block_set_limits(self._open(), limits.values())


class VsockDevice(Device):
    """A socket device, whose connections can be ended all at once."""

    def reset_transport(self) -> None:
        """End all connections on both sides, soon, and tell the guest so; listeners stay."""
        calls.vsock_reset_transport(self._open())


class SharesDevice(Device):
    """A file-system device; one without a folder of its own has shares, which come and go."""

    def add_share(self, name: str, directory_fd: int, *, readonly: bool = False) -> None:
        """Show a folder as the directory ``name`` of the root."""
        calls.fs_add_share(self._open(), name, directory_fd, readonly)

    def remove_share(self, name: str, *, timeout_ms: int) -> None:
        """Take a folder away; afterwards it can be unmounted. TimeoutError: a request is still in flight."""
        calls.fs_remove_share(self._open(), name, timeout_ms)


class NetDevice(Device):
    """A network interface, which can be changed while it is in use; the changes come soon and in order."""

    def set_link(self, up: bool) -> None:
        """Plug the cable in or pull it."""
        calls.net_set_link(self._open(), up)

    def set_limits(self, *, receive: Limits | None = None, transmit: Limits | None = None) -> None:
        """Replace the limits of what the guest receives, and of what it sends."""
        calls.net_set_limits(
            self._open(),
            None if receive is None else receive.values(),
            None if transmit is None else transmit.values(),
        )

    def set_taps(self, tap_fds: Sequence[int]) -> None:
        """Replace the taps, one for each queue pair. The descriptors are duplicated."""
        calls.net_set_taps(self._open(), tap_fds)


def confine_threads(*, log_only: bool) -> None:
    """Confine every thread that the library starts from here on to its role; a call beyond it kills.

    With ``log_only`` the kernel writes such a call to its log and makes it. Raises OSError.
    """
    calls.confine_threads(1 if log_only else 0)


def seal_threads() -> None:
    """Confine the library's own thread that starts all others; more can still be started. Raises OSError."""
    calls.seal_threads()


class ConsoleDevice(Device):
    """A console, whose terminal may change its size."""

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest the size of the terminal behind the first port."""
        calls.console_resize(self._open(), columns, rows)


class ConsolePort:
    """A port of a console: where its bytes come from and go to. Descriptors become non-blocking."""

    __slots__ = ("console", "input_fd", "name", "output_fd")

    def __init__(
        self,
        *,
        name: str | None = None,
        input_fd: int | None = None,
        output_fd: int | None = None,
        console: bool = False,
    ) -> None:
        self.name = name
        """What programs of the guest find it by; only where there are several ports."""
        self.input_fd = input_fd
        self.output_fd = output_fd
        """None: what the guest writes is dropped."""
        self.console = console
        """The guest may use it as a terminal; the first port always is one."""

    def values(self) -> tuple[str | None, int, int, int]:
        """Return name and numbers in the order of the library's struct."""
        ends = [-1 if fd is None else fd for fd in (self.input_fd, self.output_fd)]
        return (self.name, ends[0], ends[1], int(self.console))


STATS = (
    "swap-in",
    "swap-out",
    "major-faults",
    "minor-faults",
    "free-memory",
    "total-memory",
    "available-memory",
    "disk-caches",
    "htlb-pgalloc",
    "htlb-pgfail",
    "oom-kill",
    "alloc-stall",
    "async-scan",
    "direct-scan",
    "async-reclaim",
    "direct-reclaim",
)
"""Statistics of a guest by tag (virtio 1.2, 5.5.6.4; from the eleventh on, Linux), in QEMU's spelling."""

_NOT_TOLD = 2**64 - 1


class BalloonInfo:
    """A balloon as it is now. What the guest says is not to be relied on."""

    __slots__ = ("actual_bytes", "discarded_bytes", "reported_bytes", "stats", "target_bytes", "updated_s")

    def __init__(self, sizes: tuple[int, int, int, int], updated_s: int, stats: Sequence[int]) -> None:
        self.target_bytes, self.actual_bytes, self.reported_bytes, self.discarded_bytes = sizes
        """Asked of the guest; given up, as it says; reported as free so far; gone back to the host so far."""
        self.updated_s = updated_s
        """When statistics came last, in seconds since the epoch; 0: never."""
        named = zip(STATS, stats, strict=True)
        self.stats = {name: value for name, value in named if value != _NOT_TOLD}
        """Statistics that the guest has told."""

    def counters(self) -> dict[str, int]:
        """Return the statistics and the time of the last, in the spelling of a device's counters."""
        named = {f"guest_{name.replace('-', '_')}": value for name, value in self.stats.items()}
        return {"stats_updated_s": self.updated_s, **named}


class BalloonDevice(Device):
    """A balloon, which takes memory from the guest and gives it back."""

    def __init__(self, handle: Any, *, asks: bool = False) -> None:
        super().__init__(handle)
        # A guest tells its statistics once in any case; of one that is not asked again they are no news.
        self._asks = asks

    def metrics(self) -> dict[str, int]:
        """Return the counters, and the guest's latest statistics if it is asked for them."""
        return {**super().metrics(), **(self.info().counters() if self._asks else {})}

    def set_target(self, size: int) -> None:
        """Ask the guest to give up ``size`` bytes of its memory in all; it does so as far as it can."""
        calls.balloon_set_target(self._open(), size)

    def info(self) -> BalloonInfo:
        """Return what was asked of the guest and what it says."""
        return BalloonInfo(*calls.balloon_info(self._open()))


def rng(events: EventRing, tag: int, name: str, *, rate: int, burst: int) -> Device:
    """Make an entropy device that gives at most ``rate`` bytes a second after ``burst`` bytes at once."""
    return Device(calls.rng_create(events.handle(), tag, name, rate, burst))


def vsock(
    events: EventRing,
    tag: int,
    name: str,
    *,
    guest_cid: int,
    path: str | PathLike[str],
    max_connections: int = MAX_CONNECTIONS,
) -> VsockDevice:
    """Make a socket device that listens at ``path`` at once."""
    return VsockDevice(calls.vsock_create(events.handle(), tag, name, guest_cid, path, max_connections))


_BLOCK_CACHES = {"writeback": 0, "none": 1, "direct": 2}
_ENGINES = {"auto": 0, "uring": 1, "pool": 2}
_FS_CACHES = {"auto": 0, "always": 1, "none": 2}


def block(
    events: EventRing,
    tag: int,
    name: str,
    *,
    fd: int,
    cache: str = "writeback",
    readonly: bool = False,
    serial: str | None = None,
    limits: Limits = NO_LIMITS,
    num_queues: int = 1,
    engine: str = "auto",
) -> BlockDevice:
    """Make a disk of a regular file or block device; ``cache`` as in `vmm.config.DriveCache`."""
    modes = (_BLOCK_CACHES[cache], int(readonly), _ENGINES[engine], num_queues)
    return BlockDevice(calls.block_create(events.handle(), tag, name, fd, modes, serial, limits.values()))


def fs(
    events: EventRing,
    tag: int,
    name: str,
    *,
    directory_fd: int | None,
    fs_tag: str,
    cache: str = "auto",
    readonly: bool = False,
    writeback: bool = False,
    remote_locks: bool = False,
    shares: int = 1,
) -> SharesDevice:
    """Make a share of a folder, or without one a root for shares.

    ``writeback`` and ``remote_locks`` as in `vmm.config.ShareConfig`; ``shares`` is how many such devices
    divide the process's descriptors.
    """
    modes = (_FS_CACHES[cache], int(readonly), int(writeback), int(remote_locks), shares)
    fd = -1 if directory_fd is None else directory_fd
    return SharesDevice(calls.fs_create(events.handle(), tag, name, fd, fs_tag, modes))


def net(
    events: EventRing,
    tag: int,
    name: str,
    *,
    taps: Sequence[int] | str,
    mac: bytes,
    mtu: int | None = None,
    link_up: bool = True,
    receive_limits: Limits = NO_LIMITS,
    transmit_limits: Limits = NO_LIMITS,
) -> NetDevice:
    """Make a network interface on open taps (one for each queue pair, duplicated) or on a tap by name."""
    modes = (mac, mtu or 0, int(link_up))
    limits = (receive_limits.values(), transmit_limits.values())
    return NetDevice(calls.net_create(events.handle(), tag, name, taps, modes, limits))


def console(
    events: EventRing,
    tag: int,
    name: str,
    *,
    ports: Sequence[ConsolePort],
    terminal: tuple[int, int] = (80, 25),
) -> ConsoleDevice:
    """Make a console of one or more ports; ``terminal`` is the columns and rows behind the first of them."""
    values = [port.values() for port in ports]
    return ConsoleDevice(calls.console_create(events.handle(), tag, name, values, terminal))


def balloon(
    events: EventRing,
    tag: int,
    name: str,
    *,
    deflate_on_oom: bool = True,
    reporting: bool = True,
    stats_interval_s: int = 0,
) -> BalloonDevice:
    """Make a balloon.

    ``deflate_on_oom``: the guest may take pages back rather than kill a program; ``reporting``: it tells of
    pages that are free anyway; ``stats_interval_s``: how often it is asked for statistics (0: it tells once).
    """
    modes = (int(deflate_on_oom), int(reporting), stats_interval_s)
    handle = calls.balloon_create(events.handle(), tag, name, modes)
    return BalloonDevice(handle, asks=stats_interval_s > 0)
