"""From a device of the plan to a device of libstrato_vmm.so: one function for each kind.

Called by `vmm.backends.in_process`; what is opened here is closed again, since the library keeps duplicates.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from ..boards.base import DeviceKind, DevicePlan
from ..config import (
    BalloonConfig,
    DriveConfig,
    LimitConfig,
    NetConfig,
    RngConfig,
    ShareConfig,
    VsockConfig,
)
from ..errors import ConfigError, HostError

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from ..devices import Device, EventRing, Limits


def make(plan: DevicePlan, ring: EventRing, tag: int, *, shares: int, fd: int | None) -> Device:
    """Make a device. ``shares`` is how many share devices the VM has; ``fd`` the console's socket, or the
    open file of a disk that is not to be opened by its path. Raises ConfigError, HostError.
    """
    try:
        return _make(plan, ring, tag, shares, fd)
    except OSError as error:
        raise HostError(f"Device {plan.id} cannot be made") from error


def _make(plan: DevicePlan, ring: EventRing, tag: int, shares: int, fd: int | None) -> Device:
    from .. import devices

    match plan.source:
        case VsockConfig(guest_cid=cid, socket=path):
            return devices.vsock(ring, tag, plan.id, guest_cid=cid, path=path)
        case RngConfig(rate_kib=rate, burst_kib=burst):
            return devices.rng(ring, tag, plan.id, rate=rate << 10, burst=burst << 10)
        case BalloonConfig() as balloon:
            return devices.balloon(
                *(ring, tag, plan.id),
                deflate_on_oom=balloon.deflate_on_oom,
                reporting=balloon.reporting,
                stats_interval_s=balloon.statistics_s,
            )
        case DriveConfig() as drive:
            with nullcontext(fd) if fd is not None else _file(drive, plan) as disk:
                return devices.block(
                    *(ring, tag, drive.id),
                    fd=disk,
                    cache=str(drive.cache),
                    readonly=drive.readonly,
                    serial=drive.serial,
                    limits=limits(drive.limit),
                )
        case ShareConfig() as share:
            with _folder(share.directory, plan) as folder:
                return devices.fs(
                    *(ring, tag, plan.id),
                    directory_fd=folder,
                    fs_tag=share.tag,
                    cache=str(share.cache),
                    readonly=share.readonly,
                    writeback=share.writeback,
                    remote_locks=share.remote_locks,
                    shares=shares,
                )
        case NetConfig() as net:
            return _net(net, ring, tag)
        case None if fd is not None and plan.kind is DeviceKind.CONSOLE:
            port = devices.ConsolePort(input_fd=fd, output_fd=fd, console=True)
            return devices.console(ring, tag, plan.id, ports=[port])
        case _:
            raise HostError(f"Device {plan.id} of kind {plan.kind} has no core")


def limits(limit: LimitConfig) -> Limits:
    """Return a limit of the configuration as the library's."""
    from .. import devices

    return devices.Limits(limit.bandwidth, limit.bandwidth_burst, limit.operations, limit.operations_burst)


def _net(net: NetConfig, ring: EventRing, tag: int) -> Device:
    from .. import devices

    try:
        return devices.net(
            *(ring, tag, net.id),
            taps=net.tap_name or [-1 if net.tap_fd is None else net.tap_fd],
            mac=bytes.fromhex(net.mac.replace(":", "")),
            mtu=net.mtu,
            link_up=net.link_up,
            receive_limits=limits(net.receive_limit),
            transmit_limits=limits(net.transmit_limit),
        )
    finally:
        if net.tap_fd is not None:
            # The device has its own now; the tap is to live exactly as long as that.
            with suppress(OSError):
                os.close(net.tap_fd)


def _file(drive: DriveConfig, plan: DevicePlan) -> AbstractContextManager[int]:
    return opened(drive.path, os.O_RDONLY if drive.readonly else os.O_RDWR, "drives", plan.id)


def _folder(path: Path | None, plan: DevicePlan) -> AbstractContextManager[int | None]:
    if path is None:
        return nullcontext()
    return opened(path, os.O_PATH | os.O_DIRECTORY, "shares", plan.id)


@contextmanager
def opened(path: Path, flags: int, section: str, device_id: str) -> Iterator[int]:
    """Open what a device is made of, for the length of a block. Raises ConfigError, HostError."""
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigError(section, f"{path} of device {device_id} does not exist") from error
    except OSError as error:
        raise HostError(f"{path} of device {device_id} cannot be opened") from error
    try:
        yield fd
    finally:
        os.close(fd)
