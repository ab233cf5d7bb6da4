"""The commands by which disks, interfaces and shares come and go while the VM runs.

`HotplugCommands` translates QEMU's objects into calls of `vmm.hotplug.Hotplug`; each handler answers at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..config import ShareCache, ShareConfig
from ..errors import HostError, QmpCommandError
from ..hotplug import BUS_PREFIX, DiskNode, TapNode
from ..machine import Machine
from .block import disk_request
from .schema import Argument, check_members
from .session import Session

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any, TypeAlias

Handler: TypeAlias = "Callable[[dict[str, Any], Session], Any]"

_DEVICE = {"driver": Argument(str), "id": Argument(str), "bus": Argument(str, optional=True)}
_TAP = {
    "type": Argument(str),
    "id": Argument(str),
    "fd": Argument(str, optional=True),
    "ifname": Argument(str, optional=True),
    # QEMU runs scripts unless these are "no"; we never do.
    "script": Argument(str, optional=True),
    "downscript": Argument(str, optional=True),
    "vhost": Argument(bool, optional=True),
}


class HotplugCommands:
    """The handlers, bound to one machine. All raise VmmError."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.handlers: dict[str, Handler] = {
            "getfd": self._getfd,
            "closefd": self._closefd,
            "add-fd": self._add_fd,
            "remove-fd": self._remove_fd,
            "blockdev-add": self._blockdev_add,
            "blockdev-del": self._blockdev_del,
            "netdev_add": self._netdev_add,
            "netdev_del": self._netdev_del,
            "device_add": self._device_add,
            "device_del": self._device_del,
            "x-strato-query-slots": lambda _, __: machine.hotplug("x-strato-query-slots").slots(),
        }
        self._makers: dict[str, Callable[[dict[str, Any], int | None], None]] = {
            "virtio-blk-device": self._add_drive,
            "virtio-net-device": self._add_net,
            "x-strato-fs-device": self._add_share,
        }

    def _getfd(self, arguments: dict[str, Any], session: Session) -> Any:
        session.name_received(arguments["fdname"])
        return {}

    def _closefd(self, arguments: dict[str, Any], session: Session) -> Any:
        os.close(session.take_named(arguments["fdname"]))
        return {}

    def _blockdev_add(self, arguments: dict[str, Any], _: Session) -> Any:
        hotplug = self._machine.hotplug("blockdev-add")
        wanted = disk_request(arguments)
        name, path, readonly = wanted.name, wanted.path, wanted.readonly
        fd = hotplug.open_in_fdset(path)
        if fd is None:
            try:
                fd = os.open(path, (os.O_RDONLY if readonly else os.O_RDWR) | os.O_CLOEXEC)
            except OSError as error:
                raise HostError(f"Could not open '{path}': {error.strerror}") from error
        hotplug.add_disk(DiskNode(name=name, path=path, fd=fd, readonly=readonly, cache=wanted.cache))
        return {}

    def _add_fd(self, arguments: dict[str, Any], session: Session) -> Any:
        hotplug = self._machine.hotplug("add-fd")
        return hotplug.add_fd(session.take_received(), arguments.get("fdset-id"))

    def _remove_fd(self, arguments: dict[str, Any], _: Session) -> Any:
        self._machine.hotplug("remove-fd").remove_fd(arguments["fdset-id"])
        return {}

    def _blockdev_del(self, arguments: dict[str, Any], _: Session) -> Any:
        self._machine.hotplug("blockdev-del").remove_disk(arguments["node-name"])
        return {}

    def _netdev_add(self, arguments: dict[str, Any], session: Session) -> Any:
        hotplug = self._machine.hotplug("netdev_add")
        if arguments["type"] != "tap":
            raise QmpCommandError(
                "GenericError", f"Netdev type '{arguments['type']}' is not available: use tap"
            )
        check_members(arguments, _TAP)
        if arguments.get("vhost"):
            raise QmpCommandError("GenericError", "Parameter 'vhost' must be off: packets are moved here")
        fd_name, tap_name = arguments.get("fd"), arguments.get("ifname")
        if (fd_name is None) == (tap_name is None):
            raise QmpCommandError("GenericError", "Exactly one of 'fd' and 'ifname' must be given")
        fd = None if fd_name is None else _descriptor(fd_name, session)
        hotplug.add_tap(TapNode(name=arguments["id"], fd=fd, tap_name=tap_name))
        return {}

    def _netdev_del(self, arguments: dict[str, Any], _: Session) -> Any:
        self._machine.hotplug("netdev_del").remove_tap(arguments["id"])
        return {}

    def _device_add(self, arguments: dict[str, Any], _: Session) -> Any:
        maker = self._makers.get(arguments["driver"])
        if maker is None:
            known = ", ".join(self._makers)
            raise QmpCommandError(
                "GenericError",
                f"'{arguments['driver']}' is not a valid device model name: use one of {known}",
            )
        maker(arguments, _slot(arguments.get("bus")))
        return {}

    def _device_del(self, arguments: dict[str, Any], _: Session) -> Any:
        self._machine.remove_device(arguments["id"])
        return {}

    def _add_drive(self, arguments: dict[str, Any], slot: int | None) -> None:
        optional = {"serial": Argument(str, optional=True)}
        check_members(arguments, {**_DEVICE, "drive": Argument(str), **optional})
        self._machine.hotplug("device_add").add_drive(
            arguments["id"], arguments["drive"], serial=arguments.get("serial"), slot=slot
        )

    def _add_net(self, arguments: dict[str, Any], slot: int | None) -> None:
        optional = {"host_mtu": Argument(int, optional=True)}
        check_members(arguments, {**_DEVICE, "netdev": Argument(str), "mac": Argument(str), **optional})
        self._machine.hotplug("device_add").add_net(
            *(arguments["id"], arguments["netdev"]),
            mac=arguments["mac"],
            mtu=arguments.get("host_mtu"),
            slot=slot,
        )

    def _add_share(self, arguments: dict[str, Any], slot: int | None) -> None:
        optional = {
            "directory": Argument(str, optional=True),
            "readonly": Argument(bool, optional=True),
            "cache": Argument(str, optional=True),
        }
        check_members(arguments, {**_DEVICE, "tag": Argument(str), **optional})
        directory, cache = arguments.get("directory"), arguments.get("cache", ShareCache.AUTO)
        if cache not in list(ShareCache):
            raise QmpCommandError("GenericError", f"Parameter 'cache' does not accept value '{cache}'")
        share = ShareConfig(
            tag=arguments["tag"],
            directory=None if directory is None else Path(directory),
            readonly=arguments.get("readonly", False),
            cache=ShareCache(cache),
        )
        self._machine.hotplug("device_add").add_share(arguments["id"], share, slot=slot)


def _slot(bus: object) -> int | None:
    if bus is None:
        return None
    number = str(bus).removeprefix(BUS_PREFIX)
    if not number.isdecimal() or number == bus:
        raise QmpCommandError("GenericError", f"Bus '{bus}' not found: slots are called {BUS_PREFIX}N")
    return int(number)


def _descriptor(name: str, session: Session) -> int:
    """Return a descriptor named by `getfd`, or a copy of one that is open here, by its number."""
    if not name.isdecimal():
        return session.take_named(name)
    try:
        return os.dup(int(name))
    except OSError as error:
        raise QmpCommandError("GenericError", f"File descriptor {name} is not open") from error
