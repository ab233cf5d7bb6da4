"""Devices served by our own cores, on threads of this process (libstrato_vmm.so).

A `DeviceServer` belongs to one machine. `connect` gives the engine its end of a socketpair at once; `serve`
loads the library and makes the devices. It is called when the engine has been started: its own start takes
longer, and what it asks meanwhile waits in the sockets.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from io import FileIO
from pathlib import Path

from ..boards.base import DeviceKind, DevicePlan
from ..config import DriveConfig, LimitConfig, NetConfig, RngConfig, ShareConfig, VsockConfig
from ..errors import ConfigError, HostError, QmpCommandError
from ..log import Log
from ..loop import EventLoop
from .base import Backend

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from typing import Any

    from ..devices import Device, DeviceEvent, EventRing, Limits, NetDevice, SharesDevice

PROGRAM = "libstrato_vmm.so"
"""What serves these devices, in `x-strato-info` and messages."""

MAX_WORDS = 8
"""Lines logged of one device's events of one kind: a guest decides how many there are."""


REMOVAL_TIMEOUT_MS = 2000
"""How long a removed share's last requests are waited for; everything else waits meanwhile."""


class DeviceServer:
    """The devices of one machine that are served here.

    ``lost`` is told why a device cannot go on, ``front_end_gone`` that the engine has let go of one.
    """

    def __init__(
        self, log: Log, *, lost: Callable[[str], None], front_end_gone: Callable[[str], None]
    ) -> None:
        self._log = log
        self._lost = lost
        self._front_end_gone = front_end_gone
        self._waiting: list[tuple[DevicePlan, socket.socket]] = []
        self._plans: list[DevicePlan] = []
        self._devices: list[Device] = []
        self._nets: dict[str, NetDevice] = {}
        self._shares = 0
        self._broken = False
        self._ring: EventRing | None = None
        self._said: dict[tuple[int, int], int] = {}

    def connect(self, device: DevicePlan) -> Backend:
        """Return the engine's end of a connection on which the device will be served."""
        engine, ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._waiting.append((device, ours))
        self._shares += device.kind is DeviceKind.FS
        return Backend(device=device, connection=engine, program=PROGRAM, pid=os.getpid())

    def listen(self, device: DevicePlan, directory: Path) -> Backend:
        """Return a socket to which the engine connects for itself; its name is gone on return.

        QEMU's network front end takes no connected one: net_vhost_claim_chardev wants an address, in QEMU 10
        too. Raises HostError.
        """
        path = directory / f"net{device.slot}.sock"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._waiting.append((device, listener))
        try:
            path.unlink(missing_ok=True)
            listener.bind(str(path))
            try:
                listener.listen(1)
                address = FileIO(os.open(path, os.O_PATH | os.O_CLOEXEC))
            finally:
                path.unlink()
        except OSError as error:
            raise HostError(f"Socket {path} of device {device.id} cannot be made") from error
        return Backend(device=device, connection=address, program=PROGRAM, pid=os.getpid())

    def set_link(self, device_id: str, up: bool) -> None:
        """Change the carrier of an interface that is served here."""
        if device_id in self._nets:
            self._nets[device_id].set_link(up)

    def set_net_limit(self, device_id: str, direction: str, limit: LimitConfig) -> None:
        """Replace a limit of an interface. Raises KeyError for one that is not served here."""
        self._nets[device_id].set_limits(**{direction: _limits(limit)})

    def serve(self) -> None:
        """Make the devices and begin to serve them. Raises HostError."""
        if not self._waiting:
            return
        try:
            from .. import devices
        except ImportError as error:
            raise HostError("Devices cannot be served") from error
        self._ring = devices.EventRing()
        while self._waiting:
            plan, connection = self._waiting.pop(0)
            with connection:
                try:
                    device = self._make(plan, self._ring, len(self._devices))
                    self._devices.append(device)
                    self._plans.append(plan)
                    device.serve(connection.fileno())
                except OSError as error:
                    raise HostError(f"Device {plan.id} cannot be served") from error

    def add_share(self, tag: str, name: str, directory: Path, *, readonly: bool) -> None:
        """Show a folder below the root of the share ``tag``. Raises QmpCommandError, HostError."""
        device = self._root_of_shares(tag)
        try:
            descriptor = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise HostError(f"Folder {directory} cannot be shared as {name!r}: {error.strerror}") from error
        try:
            device.add_share(name, descriptor, readonly=readonly)
        except (OSError, ValueError) as error:
            raise HostError(f"Folder {directory} cannot be shared as {name!r}") from error
        finally:
            os.close(descriptor)

    def remove_share(self, tag: str, name: str) -> None:
        """Take a folder away; no descriptor below it is left afterwards. Raises as `add_share`."""
        try:
            self._root_of_shares(tag).remove_share(name, timeout_ms=REMOVAL_TIMEOUT_MS)
        except (OSError, ValueError) as error:
            raise HostError(f"Share {name!r} of {tag!r} cannot be removed") from error

    def _root_of_shares(self, tag: str) -> SharesDevice:
        from ..devices import SharesDevice

        for plan, device in zip(self._plans, self._devices, strict=True):
            share = plan.source
            if isinstance(device, SharesDevice) and isinstance(share, ShareConfig) and share.tag == tag:
                if share.directory is not None:
                    raise QmpCommandError(
                        "GenericError", f"Share {tag!r} is the folder {share.directory} alone"
                    )
                return device
        raise QmpCommandError("DeviceNotFound", f"Share {tag!r} not found among those that are served here")

    def attach(self, loop: EventLoop) -> None:
        """Begin to take note of what the devices say."""
        if self._ring is not None:
            loop.add_reader(self._ring.fileno(), self._on_events)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the counters of all devices."""
        return [
            {"device": plan.id, "kind": str(plan.kind), "counters": device.metrics()}
            for plan, device in zip(self._plans, self._devices, strict=True)
        ]

    def close(self) -> None:
        """End all devices: what is in flight comes to rest first."""
        for _, connection in self._waiting:
            connection.close()
        for device in self._devices:
            if self._broken:
                device.abandon()
            device.close()
        if self._ring is not None:
            self._ring.close()

    def _make(self, plan: DevicePlan, ring: EventRing, tag: int) -> Device:
        from .. import devices

        match plan.source:
            case VsockConfig(guest_cid=cid, socket=path):
                return devices.vsock(ring, tag, plan.id, guest_cid=cid, path=path)
            case RngConfig(rate_kib=rate, burst_kib=burst):
                return devices.rng(ring, tag, plan.id, rate=rate << 10, burst=burst << 10)
            case DriveConfig() as drive:
                with _opened(drive.path, os.O_RDONLY if drive.readonly else os.O_RDWR, plan) as fd:
                    return devices.block(
                        *(ring, tag, plan.id),
                        fd=fd,
                        cache=str(drive.cache),
                        readonly=drive.readonly,
                        serial=drive.serial,
                    )
            case ShareConfig() as share:
                with _folder(share.directory, plan) as fd:
                    return devices.fs(
                        *(ring, tag, plan.id),
                        directory_fd=fd,
                        fs_tag=share.tag,
                        cache=str(share.cache),
                        readonly=share.readonly,
                        shares=self._shares,
                    )
            case NetConfig() as net:
                return self._make_net(net, ring, tag)
            case _:
                raise HostError(f"Device {plan.id} of kind {plan.kind} has no core")

    def _make_net(self, net: NetConfig, ring: EventRing, tag: int) -> Device:
        from .. import devices

        device = devices.net(
            *(ring, tag, net.id),
            taps=net.tap_name or [-1 if net.tap_fd is None else net.tap_fd],
            mac=bytes.fromhex(net.mac.replace(":", "")),
            mtu=net.mtu,
            link_up=net.link_up,
            receive_limits=_limits(net.receive_limit),
            transmit_limits=_limits(net.transmit_limit),
        )
        self._nets[net.id] = device
        if net.tap_fd is not None:
            # The device has its own now; the tap is to live exactly as long as that.
            with suppress(OSError):
                os.close(net.tap_fd)
        return device

    def _on_events(self) -> None:
        assert self._ring is not None
        for event in self._ring.events():
            self._on_event(event)

    def _on_event(self, event: DeviceEvent) -> None:
        from ..devices import LIBRARY_TAG
        from ..devices import DeviceEventKind as Kind

        if event.tag == LIBRARY_TAG:
            # A thread may be waited for that is no more: nothing here may be waited for any longer.
            self._broken = True
            self._lost(f"Bug in {PROGRAM}: {event.text}")
            return
        name = self._plans[event.tag].id
        match event.kind:
            case Kind.LOST | Kind.PANICKED:
                self._lost(f"Device {name} is lost: {event.text}")
            case Kind.FRONT_END_GONE:
                self._front_end_gone(f"Front end of device {name} has gone")
            case Kind.CONFIG_CHANGED:
                self._log.debug(event.text, device=name, count=event.count)
            case _:
                said = self._said.get((event.tag, event.kind), 0)
                self._said[event.tag, event.kind] = said + 1
                if said < MAX_WORDS:
                    self._log.warn(event.text, device=name, count=event.count)


def _limits(limit: LimitConfig) -> Limits:
    from .. import devices

    return devices.Limits(limit.bandwidth, limit.bandwidth_burst, limit.operations, limit.operations_burst)


@contextmanager
def _opened(path: Path, flags: int, plan: DevicePlan) -> Iterator[int]:
    try:
        fd = os.open(path, flags | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise ConfigError(_section(plan), f"{path} of device {plan.id} does not exist") from error
    except OSError as error:
        raise HostError(f"{path} of device {plan.id} cannot be opened") from error
    try:
        yield fd
    finally:
        os.close(fd)


def _folder(path: Path | None, plan: DevicePlan) -> AbstractContextManager[int | None]:
    if path is None:
        return nullcontext()
    return _opened(path, os.O_PATH | os.O_DIRECTORY, plan)


def _section(plan: DevicePlan) -> str:
    return "shares" if plan.kind is DeviceKind.FS else "drives"
