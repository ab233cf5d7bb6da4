"""Devices served by our own cores, on threads of this process (libstrato_vmm.so).

A `DeviceServer` belongs to one machine and owns all of its devices. The engine chooses how they meet the
guest: `make` gives one to be plugged into a machine of this process. Towards QEMU, `connect` and `listen`
give the end of a socket at once, and `serve` makes those devices. It is called when QEMU has been started:
its own start takes longer, and what it asks meanwhile waits in the sockets.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from ..boards.base import DeviceKind, DevicePlan
from ..config import LimitConfig, ShareConfig
from ..errors import HostError, QmpCommandError
from ..log import Log
from ..loop import EventLoop
from .base import Backend
from .making import limits, make

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any

    from ..devices import BalloonDevice, Device, DeviceEvent, EventRing, SharesDevice

PROGRAM = "libstrato_vmm.so"
"""What serves these devices, in `x-strato-info` and messages."""

MAX_WORDS = 8
"""Lines logged of one device's events of one kind: a guest decides how many there are."""


REMOVAL_TIMEOUT_MS = 2000
"""How long a removed share's last requests are waited for; everything else waits meanwhile."""


class DeviceServer:
    """The devices of one machine that are served here.

    ``prepare`` is called once before the first thing of the library is made. ``lost`` is told why a device
    cannot go on, ``front_end_gone`` that QEMU has let go of one, ``balloon_changed`` that the guest has given
    up another amount of memory.
    """

    def __init__(
        self,
        log: Log,
        *,
        prepare: Callable[[], None],
        lost: Callable[[str], None],
        front_end_gone: Callable[[str], None],
        balloon_changed: Callable[[], None],
    ) -> None:
        self._log = log
        self._prepare = prepare
        self._lost = lost
        self._front_end_gone = front_end_gone
        self._balloon_changed = balloon_changed
        self._waiting: list[tuple[DevicePlan, socket.socket]] = []
        self._devices: dict[int, tuple[DevicePlan, Device]] = {}
        self._shares = 0
        self._ring: EventRing | None = None
        self._listeners: dict[int, Callable[[DeviceEvent], None]] = {}
        self._next_tag = 0
        self._said: dict[tuple[int, int], int] = {}
        self.broken = False
        """Whether a thread of the library is no more, so that nothing here may be waited for any longer."""

    # --- devices for a machine of this process ----------------------------------------------------

    def ring(self) -> EventRing:
        """Return the ring of all events, made at the first call. Raises HostError."""
        if self._ring is None:
            try:
                from .. import devices
            except ImportError as error:
                raise HostError("Devices cannot be served") from error
            self._prepare()
            self._ring = devices.EventRing()
        return self._ring

    def listen_to_tag(self, listener: Callable[[DeviceEvent], None]) -> int:
        """Return a tag of the ring whose events are the listener's."""
        tag = self._tag()
        self._listeners[tag] = listener
        return tag

    def expect_shares(self, count: int) -> None:
        """Say how many share devices will divide the process's descriptors."""
        self._shares = count

    def make(self, plan: DevicePlan, *, fd: int | None = None) -> Device:
        """Make a device; ``fd`` as in `making.make`. It stays ours. Raises ConfigError, HostError."""
        ring = self.ring()
        tag = self._tag()
        device = make(plan, ring, tag, shares=max(1, self._shares), fd=fd)
        self._devices[tag] = (plan, device)
        return device

    def close_device(self, device_id: str) -> None:
        """End a device that has been unplugged; nothing happens when there is none of that name."""
        for tag, (plan, device) in list(self._devices.items()):
            if plan.id == device_id:
                del self._devices[tag]
                device.close()

    def _tag(self) -> int:
        self._next_tag += 1
        return self._next_tag - 1

    # --- devices for QEMU -------------------------------------------------------------------------

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

    def serve(self) -> None:
        """Make the devices and begin to serve them. Raises ConfigError, HostError."""
        while self._waiting:
            plan, connection = self._waiting.pop(0)
            with connection:
                device = self.make(plan)
                try:
                    device.serve(connection.fileno())
                except OSError as error:
                    raise HostError(f"Device {plan.id} cannot be served") from error

    # --- changes ----------------------------------------------------------------------------------

    def set_link(self, device_id: str, up: bool) -> None:
        """Change the carrier of an interface. Raises KeyError for one that is not served here."""
        from ..devices import NetDevice

        self._find(NetDevice, device_id).set_link(up)

    def set_net_limit(self, device_id: str, direction: str, limit: LimitConfig) -> None:
        """Replace a limit of an interface. Raises KeyError for one that is not served here."""
        from ..devices import NetDevice

        self._find(NetDevice, device_id).set_limits(**{direction: limits(limit)})

    def set_drive_limit(self, device_id: str, limit: LimitConfig) -> None:
        """Replace the limit of a disk. Raises KeyError for one that is not served here."""
        from ..devices import BlockDevice

        self._find(BlockDevice, device_id).set_limits(limits(limit))

    def resize_drive(self, device_id: str, size: int) -> None:
        """Let the guest see a disk of another size. Raises KeyError for an unknown one, HostError."""
        from ..devices import BlockDevice

        disk: BlockDevice = self._find(BlockDevice, device_id)
        try:
            disk.grow(size)
        except OSError as error:
            raise HostError(f"Disk '{device_id}' cannot become {size} bytes large") from error

    def reset_vsock(self) -> None:
        """End all vsock connections. Raises QmpCommandError without a device of ours, HostError."""
        from ..devices import VsockDevice

        for _, device in self._devices.values():
            if isinstance(device, VsockDevice):
                try:
                    device.reset_transport()
                except OSError as error:
                    raise HostError("Connections of vsock cannot be reset") from error
                return
        raise QmpCommandError("DeviceNotActive", "No vsock device is served here: the VM has none of ours")

    def set_balloon(self, size: int) -> None:
        """Ask the guest for so many bytes of its memory. Raises QmpCommandError without a balloon."""
        self._balloon().set_target(size)

    def balloon_bytes(self) -> int:
        """Return how many bytes the guest has given away. Raises QmpCommandError without a balloon."""
        return self._balloon().info().actual_bytes

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

    def _balloon(self) -> BalloonDevice:
        from ..devices import BalloonDevice

        for _, device in self._devices.values():
            if isinstance(device, BalloonDevice):
                return device
        raise QmpCommandError("DeviceNotActive", "No balloon device has been activated")

    def _find(self, kind: Any, device_id: str) -> Any:
        for plan, device in self._devices.values():
            if plan.id == device_id and isinstance(device, kind):
                return device
        raise KeyError(device_id)

    def _root_of_shares(self, tag: str) -> SharesDevice:
        from ..devices import SharesDevice

        for plan, device in self._devices.values():
            share = plan.source
            if isinstance(device, SharesDevice) and isinstance(share, ShareConfig) and share.tag == tag:
                if share.directory is not None:
                    raise QmpCommandError(
                        "GenericError", f"Share {tag!r} is the folder {share.directory} alone"
                    )
                return device
        raise QmpCommandError("DeviceNotFound", f"Share {tag!r} not found among those that are served here")

    # --- what they say ----------------------------------------------------------------------------

    def attach(self, loop: EventLoop) -> None:
        """Begin to take note of what the devices say."""
        if self._ring is not None:
            loop.add_reader(self._ring.fileno(), self.take_events)

    def metrics(self) -> list[dict[str, Any]]:
        """Return the counters of all devices."""
        return [
            {"device": plan.id, "kind": str(plan.kind), "counters": device.metrics()}
            for plan, device in self._devices.values()
        ]

    def servers(self) -> list[dict[str, Any]]:
        """Say of each device which program serves it."""
        return [
            {"device": plan.id, "program": PROGRAM, "pid": os.getpid()} for plan, _ in self._devices.values()
        ]

    def close(self) -> None:
        """End all devices: what is in flight comes to rest first."""
        for _, connection in self._waiting:
            connection.close()
        for _, device in self._devices.values():
            if self.broken:
                device.abandon()
            device.close()
        if self._ring is not None:
            self._ring.close()

    def take_events(self) -> None:
        """Take note of the events that wait."""
        assert self._ring is not None
        for event in self._ring.events():
            self._on_event(event)

    def _on_event(self, event: DeviceEvent) -> None:
        from ..devices import LIBRARY_TAG
        from ..devices import DeviceEventKind as Kind

        if event.tag == LIBRARY_TAG:
            # A thread may be waited for that is no more.
            self.broken = True
            self._lost(f"Bug in {PROGRAM}: {event.text}")
            return
        if event.tag in self._listeners:
            self._listeners[event.tag](event)
            return
        if event.tag not in self._devices:
            return  # last words of one that has been removed
        name = self._devices[event.tag][0].id
        match event.kind:
            case Kind.LOST | Kind.PANICKED:
                self._lost(f"Device {name} is lost: {event.text}")
            case Kind.FRONT_END_GONE:
                self._front_end_gone(f"Front end of device {name} has gone")
            case Kind.BALLOON_CHANGED:
                self._balloon_changed()
            case Kind.CONFIG_CHANGED:
                self._log.debug(event.text, device=name, count=event.count)
            case _:
                said = self._said.get((event.tag, event.kind), 0)
                self._said[event.tag, event.kind] = said + 1
                if said < MAX_WORDS:
                    self._log.warn(event.text, device=name, count=event.count)
