"""What each QMP command does to the machine.

A handler gets checked arguments and ``done``, to be called once with the return value or a VmmError, now
or later. It may also raise a VmmError. The server calls `execute`; nothing here touches a socket.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from .. import VERSION
from ..config import LimitConfig
from ..engines.base import Done
from ..errors import QmpCommandError, VmmError
from ..exit_report import ExitKind
from ..machine import Machine
from ..runstate import RunState
from .block import block_info, disk_name
from .hotplug import HotplugCommands
from .schema import COMMANDS, check_arguments
from .session import Session

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any, TypeAlias

Handler: TypeAlias = "Callable[[dict[str, Any], Done], None]"


def version() -> dict[str, Any]:
    """Return the version in the shape that QMP clients expect of QEMU."""
    major, minor, micro = (int(part) for part in VERSION.split("."))
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": f"strato-{VERSION}"}


class Commands:
    """The handlers, bound to one machine."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._hotplug = HotplugCommands(machine).handlers
        self._handlers: dict[str, Handler] = {
            "query-version": lambda _, done: done(version()),
            "query-commands": lambda _, done: done([{"name": name} for name in sorted(COMMANDS)]),
            "query-status": self._query_status,
            "query-name": lambda _, done: done({"name": machine.config.name}),
            "query-kvm": self._query_kvm,
            "query-cpus-fast": self._query_cpus,
            "query-block": self._query_block,
            "query-balloon": lambda _, done: done({"actual": machine.balloon_bytes()}),
            "query-memory-size-summary": self._query_memory,
            "stop": lambda _, done: machine.stop(_empty(done)),
            "cont": lambda _, done: machine.cont(_empty(done)),
            "quit": self._quit,
            "system_powerdown": lambda _, done: machine.powerdown(_empty(done)),
            "system_reset": lambda _, done: machine.reset(_empty(done)),
            "set_link": lambda arguments, done: self._set_link(arguments["name"], arguments["up"], done),
            "balloon": self._balloon,
            "block_resize": self._block_resize,
            "x-strato-info": self._info,
            "x-strato-stats": lambda _, done: done(machine.metrics()),
            "x-strato-metrics": self._metrics,
            "x-strato-console-tail": self._console_tail,
            "x-strato-set-link": lambda arguments, done: self._set_link(
                arguments["id"], arguments["up"], done
            ),
            "x-strato-add-share": self._add_share,
            "x-strato-remove-share": self._remove_share,
            "x-strato-reset-vsock": self._reset_vsock,
            "x-strato-set-net-limit": self._set_net_limit,
            "x-strato-set-block-limit": self._set_block_limit,
        }

    def execute(self, name: object, arguments: object, done: Done, session: Session) -> None:
        """Run a command of a client. Raises VmmError when it is refused at once; ``done`` is not called
        then."""
        if not isinstance(name, str) or name not in COMMANDS:
            raise QmpCommandError("CommandNotFound", f"The command {name} has not been found")
        checked = check_arguments(name, arguments)
        if name == "qmp_capabilities":
            raise QmpCommandError(
                "CommandNotFound", "Capabilities negotiation is already complete, command ignored"
            )
        if name in self._hotplug:
            done(self._hotplug[name](checked, session))
        else:
            self._handlers[name](checked, done)

    def _query_status(self, _: dict[str, Any], done: Done) -> None:
        state = self._machine.state
        done({"status": str(state), "running": state is RunState.RUNNING, "singlestep": False})

    def _query_kvm(self, _: dict[str, Any], done: Done) -> None:
        from ..engines.probe import KVM_DEVICE

        done({"enabled": self._machine.engine_name == "kvm", "present": KVM_DEVICE.exists()})

    def _query_cpus(self, _: dict[str, Any], done: Done) -> None:
        members = ("cpu-index", "qom-path", "thread-id", "target")

        def trim(result: Any) -> None:
            if not isinstance(result, VmmError):
                result = [{key: cpu[key] for key in members if key in cpu} for cpu in result]
            done(result)

        self._machine.cpus(trim)

    def _query_block(self, _: dict[str, Any], done: Done) -> None:
        done([block_info(plan.id, drive, size) for plan, drive, size in self._machine.drives()])

    def _query_memory(self, _: dict[str, Any], done: Done) -> None:
        done({"base-memory": self._machine.config.memory.size_mib << 20, "plugged-memory": 0})

    def _balloon(self, arguments: dict[str, Any], done: Done) -> None:
        self._machine.set_balloon(arguments["value"])
        done({})

    def _block_resize(self, arguments: dict[str, Any], done: Done) -> None:
        # A disk and its node have one name, as `query-block` tells it.
        device_id = disk_name(arguments.get("device"), arguments.get("node-name"))
        try:
            self._machine.resize_drive(device_id, arguments["size"])
        except KeyError as error:
            raise QmpCommandError("DeviceNotFound", f"Device '{device_id}' not found") from error
        done({})

    def _reset_vsock(self, _: dict[str, Any], done: Done) -> None:
        self._machine.reset_vsock()
        done({})

    def _quit(self, _: dict[str, Any], done: Done) -> None:
        done({})
        self._machine.finish(ExitKind.QUIT, "Ended by QMP command quit")

    def _set_link(self, device_id: str, up: bool, done: Done) -> None:
        try:
            self._machine.set_link(device_id, up, _empty(done))
        except KeyError as error:
            raise QmpCommandError("DeviceNotFound", f"Device '{device_id}' not found") from error

    def _add_share(self, arguments: dict[str, Any], done: Done) -> None:
        readonly = arguments.get("readonly", False)
        self._machine.add_share(
            arguments["tag"], arguments["name"], Path(arguments["directory"]), readonly=readonly
        )
        done({})

    def _remove_share(self, arguments: dict[str, Any], done: Done) -> None:
        self._machine.remove_share(arguments["tag"], arguments["name"])
        done({})

    def _set_net_limit(self, arguments: dict[str, Any], done: Done) -> None:
        limit = {key: value for key, value in arguments.items() if key not in ("id", "direction")}
        try:
            self._machine.set_net_limit(arguments["id"], arguments["direction"], LimitConfig(**limit))
        except KeyError as error:
            raise QmpCommandError("DeviceNotFound", f"Device '{arguments['id']}' not found") from error
        done({})

    def _set_block_limit(self, arguments: dict[str, Any], done: Done) -> None:
        limit = {key: value for key, value in arguments.items() if key != "id"}
        try:
            self._machine.set_drive_limit(arguments["id"], LimitConfig(**limit))
        except KeyError as error:
            raise QmpCommandError("DeviceNotFound", f"Device '{arguments['id']}' not found") from error
        done({})

    def _metrics(self, _: dict[str, Any], done: Done) -> None:
        from ..metrics import exposition

        done({"text": exposition(self._machine.config.name, self._machine.metrics())})

    def _info(self, _: dict[str, Any], done: Done) -> None:
        machine = self._machine
        done(
            {
                "engine": machine.engine_name,
                "board": str(machine.config.board),
                "pids": machine.pids(),
                "phases_ms": machine.phases_ms,
                "backends": machine.servers(),
            }
        )

    def _console_tail(self, _: dict[str, Any], done: Done) -> None:
        data, dropped = self._machine.console_tail()
        done({"data": data, "dropped": dropped})


def _empty(done: Done) -> Done:
    # Engines may answer with whatever they have; these commands return nothing.
    return lambda result: done(result if isinstance(result, VmmError) else {})
