"""Devices that come and go while the VM runs.

As in QEMU the host's side and the device are named apart: a disk's file (`add_disk`) or a tap (`add_tap`) is
made first, then a device on it is put into a spare slot. The guest learns of neither coming nor going by
itself: whoever asks for a device binds it there (ARCHITECTURE.md, hot add), and unbinds it before it is taken
away.

One `Hotplug` belongs to a machine whose engine offers spare slots. It owns the descriptors that it was given.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path

from .boards.base import DeviceKind, DevicePlan, MachinePlan
from .config import DriveCache, DriveConfig, NetConfig, ShareConfig
from .config_check import check_drive, check_net, check_share
from .engines.base import Engine
from .errors import EngineError, QmpCommandError
from .record import record, replace

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any, NoReturn


FDSETS = Path("/dev/fdset")
MAX_FDSETS = 64
BUS_PREFIX = "virtio-mmio-bus."
"""QEMU's name of a slot, less its number."""


@record(frozen=True, kw_only=True)
class DiskNode:
    """The open file of a disk."""

    name: str
    path: Path
    fd: int
    readonly: bool
    cache: DriveCache


@record(frozen=True, kw_only=True)
class TapNode:
    """A tap, open or by its name."""

    name: str
    fd: int | None
    tap_name: str | None


class Hotplug:
    """See the module's docstring. Refusals are QmpCommandError in QEMU's classes."""

    def __init__(self, plan: MachinePlan, engine: Engine) -> None:
        if plan.layout is None:
            raise EngineError(
                f"Engine {engine.name} cannot add or remove devices while the VM runs: its slots are QEMU's"
            )
        self._slots = {slot.index for slot in plan.layout.slots}
        self._engine = engine
        self._fixed = plan.devices
        self._added: dict[str, DevicePlan] = {}
        self._users: dict[str, str] = {}
        self._disks: dict[str, DiskNode] = {}
        self._taps: dict[str, TapNode] = {}
        self._fdsets: dict[int, int] = {}

    @property
    def devices(self) -> list[DevicePlan]:
        """All devices, those of the configuration first."""
        return [*self._fixed, *self._added.values()]

    def slots(self) -> list[dict[str, Any]]:
        """Say of each slot what it is called in the guest and what it holds, for `x-strato-query-slots`."""
        held = {device.slot: device for device in self.devices}
        return [
            {
                "slot": slot,
                "guest-device": guest_device(slot),
                **({"device": held[slot].id, "kind": str(held[slot].kind)} if slot in held else {}),
            }
            for slot in sorted(self._slots)
        ]

    def close(self) -> None:
        """Close all descriptors."""
        for fdset in list(self._fdsets):
            os.close(self._fdsets.pop(fdset))
        for name in list(self._disks):
            os.close(self._disks.pop(name).fd)
        for name in list(self._taps):
            _close(self._taps.pop(name).fd)

    # --- the host's side --------------------------------------------------------------------------

    def add_fd(self, fd: int, fdset: int | None) -> dict[str, int]:
        """Keep a descriptor, ours from now on, as ``/dev/fdset/N``; answer as QEMU's `add-fd` does."""
        if fdset is None:
            fdset = next(number for number in itertools.count() if number not in self._fdsets)
        if fdset < 0 or fdset in self._fdsets or len(self._fdsets) >= MAX_FDSETS:
            os.close(fd)
            _refuse(
                f"Parameter 'fdset-id' does not accept {fdset}: a set holds one descriptor, "
                f"and there are {MAX_FDSETS} at most"
            )
        self._fdsets[fdset] = fd
        return {"fdset-id": fdset, "fd": fd}

    def remove_fd(self, fdset: int) -> None:
        """Close a descriptor that was added; disks that were opened from it stay."""
        if fdset not in self._fdsets:
            _refuse(f"File descriptor named 'fdset-id:{fdset}' not found")
        os.close(self._fdsets.pop(fdset))

    def open_in_fdset(self, path: Path) -> int | None:
        """Return a copy of the descriptor that a path below ``/dev/fdset`` names; None for other paths."""
        if path.parent != FDSETS:
            return None
        fd = self._fdsets.get(int(path.name)) if path.name.isdecimal() else None
        if fd is None:
            _refuse(f"Could not open '{path}': there is no such set of descriptors")
        return os.dup(fd)

    def add_disk(self, node: DiskNode) -> None:
        """Keep the file of a disk; its descriptor is ours from now on."""
        if node.name in self._disks or node.name in {device.id for device in self._fixed}:
            os.close(node.fd)
            _refuse(f"Duplicate nodes with node-name='{node.name}'")
        self._disks[node.name] = node

    def remove_disk(self, name: str) -> None:
        """Close the file of a disk that no device uses."""
        node = self._disks.get(name)
        if node is None:
            _refuse(f"Failed to find node with node-name='{name}'")
        self._require_unused(name)
        del self._disks[name]
        os.close(node.fd)

    def add_tap(self, node: TapNode) -> None:
        """Keep a tap; its descriptor is ours from now on."""
        if node.name in self._taps:
            _close(node.fd)
            _refuse(f"Duplicate ID '{node.name}' for netdev")
        self._taps[node.name] = node

    def remove_tap(self, name: str) -> None:
        """Let go of a tap that no device uses."""
        node = self._taps.get(name)
        if node is None:
            raise QmpCommandError("DeviceNotFound", f"Device '{name}' not found")
        self._require_unused(name)
        del self._taps[name]
        _close(node.fd)

    def _require_unused(self, name: str) -> None:
        if name in self._users:
            _refuse(f"Node {name} is in use by device {self._users[name]}: remove that first")

    # --- the devices ------------------------------------------------------------------------------

    def add_drive(self, device_id: str, node_name: str, *, serial: str | None, slot: int | None) -> None:
        """Put a disk on a node into a slot."""
        node = self._disks.get(node_name)
        if node is None:
            _refuse(f"Cannot find device='' nor node-name='{node_name}'")
        self._require_unused(node_name)
        drive = DriveConfig(
            id=device_id, path=node.path, readonly=node.readonly, serial=serial, cache=node.cache
        )
        check_drive("", drive)
        place = self._place(device_id, slot)
        self._plug(DevicePlan(slot=place, kind=DeviceKind.BLOCK, id=device_id, source=drive), fd=node.fd)
        self._users[node_name] = device_id

    def add_net(self, device_id: str, node_name: str, *, mac: str, mtu: int | None, slot: int | None) -> None:
        """Put an interface on a tap into a slot."""
        node = self._taps.get(node_name)
        if node is None:
            _refuse(f"Property 'virtio-net-device.netdev' can't find value '{node_name}'")
        self._require_unused(node_name)
        net = NetConfig(id=device_id, mac=mac, mtu=mtu, tap_fd=node.fd, tap_name=node.tap_name)
        check_net("", net)
        place = self._place(device_id, slot)
        if node.fd is not None:
            # The device takes what it is given; ours stays until the tap is removed.
            net = replace(net, tap_fd=os.dup(node.fd))
        self._plug(DevicePlan(slot=place, kind=DeviceKind.NET, id=device_id, source=net))
        self._users[node_name] = device_id

    def add_share(self, device_id: str, share: ShareConfig, *, slot: int | None) -> None:
        """Put a device for shared folders into a slot."""
        check_share("", share)
        for device in self.devices:
            if isinstance(device.source, ShareConfig) and device.source.tag == share.tag:
                _refuse(f"Tag {share.tag!r} is that of device {device.id}")
        place = self._place(device_id, slot)
        self._plug(DevicePlan(slot=place, kind=DeviceKind.FS, id=device_id, source=share))

    def remove(self, device_id: str) -> None:
        """Take an added device away; the guest must have let go of it."""
        device = self._added.get(device_id)
        if device is None:
            if any(fixed.id == device_id for fixed in self._fixed):
                _refuse(f"Device '{device_id}' was there from the start and stays")
            raise QmpCommandError("DeviceNotFound", f"Device '{device_id}' not found")
        self._engine.unplug(device)
        del self._added[device_id]
        self._users = {node: user for node, user in self._users.items() if user != device_id}

    def _place(self, device_id: str, wanted: int | None) -> int:
        if any(device.id == device_id for device in self.devices):
            _refuse(f"Duplicate device ID '{device_id}'")
        free = self._slots - {device.slot for device in self.devices}
        if wanted is not None and wanted not in free:
            _refuse(f"Bus '{BUS_PREFIX}{wanted}' does not accept a device: it is taken, or there is none")
        if not free:
            _refuse("No spare slot is left: remove a device, or set spare_slots higher")
        return min(free) if wanted is None else wanted

    def _plug(self, device: DevicePlan, *, fd: int | None = None) -> None:
        self._engine.plug(device, fd=fd)
        self._added[device.id] = device


def guest_device(slot: int) -> str:
    """Return the name of a slot's platform device in a Linux guest, which numbers them as it finds them."""
    return f"LNRO0005:{slot:02x}"


def _refuse(text: str) -> NoReturn:
    raise QmpCommandError("GenericError", text)


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)
