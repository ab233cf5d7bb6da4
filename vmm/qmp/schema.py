"""The commands that strato-vmm knows, with the types of their arguments.

One table: `query-commands` is generated from it, and arguments are checked against it before a handler
sees them. Names and shapes are QEMU's; our own begin with ``x-strato-``.
"""

from __future__ import annotations

from ..errors import QmpCommandError
from ..record import field, record

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any


@record(frozen=True)
class Argument:
    """One argument: its JSON type, and whether it may be left out."""

    kind: type
    optional: bool = False


@record(frozen=True)
class CommandSpec:
    """One command. ``loose``: what else is given is the handler's to check, as it depends on the rest."""

    arguments: dict[str, Argument] = field(default_factory=dict)
    loose: bool = False


_NONE = CommandSpec()
_STRING, _INTEGER, _BOOLEAN = Argument(str), Argument(int), Argument(bool)
_LIMIT = {
    name: Argument(int, optional=True)
    for name in ("bandwidth", "bandwidth_burst", "operations", "operations_burst")
}

COMMANDS: dict[str, CommandSpec] = {
    "qmp_capabilities": CommandSpec({"enable": Argument(list, optional=True)}),
    "query-version": _NONE,
    "query-commands": _NONE,
    "query-status": _NONE,
    "query-name": _NONE,
    "query-kvm": _NONE,
    "query-cpus-fast": _NONE,
    "query-block": _NONE,
    "query-balloon": _NONE,
    "query-memory-size-summary": _NONE,
    "stop": _NONE,
    "cont": _NONE,
    "quit": _NONE,
    "system_powerdown": _NONE,
    "system_reset": _NONE,
    "set_link": CommandSpec({"name": _STRING, "up": _BOOLEAN}),
    "balloon": CommandSpec({"value": _INTEGER}),
    "block_resize": CommandSpec(
        {
            "device": Argument(str, optional=True),
            "node-name": Argument(str, optional=True),
            "size": _INTEGER,
        }
    ),
    "getfd": CommandSpec({"fdname": _STRING}),
    "closefd": CommandSpec({"fdname": _STRING}),
    "add-fd": CommandSpec({"fdset-id": Argument(int, optional=True), "opaque": Argument(str, optional=True)}),
    "remove-fd": CommandSpec({"fdset-id": _INTEGER, "fd": Argument(int, optional=True)}),
    "blockdev-add": CommandSpec({"driver": _STRING, "node-name": _STRING}, loose=True),
    "blockdev-del": CommandSpec({"node-name": _STRING}),
    "netdev_add": CommandSpec({"type": _STRING, "id": _STRING}, loose=True),
    "netdev_del": CommandSpec({"id": _STRING}),
    "device_add": CommandSpec({"driver": _STRING, "id": _STRING}, loose=True),
    "device_del": CommandSpec({"id": _STRING}),
    "x-strato-info": _NONE,
    "x-strato-stats": _NONE,
    "x-strato-metrics": _NONE,
    "x-strato-query-slots": _NONE,
    "x-strato-console-tail": _NONE,
    "x-strato-set-link": CommandSpec({"id": _STRING, "up": _BOOLEAN}),
    "x-strato-add-share": CommandSpec(
        {
            "tag": _STRING,
            "name": _STRING,
            "directory": _STRING,
            "readonly": Argument(bool, optional=True),
        }
    ),
    "x-strato-remove-share": CommandSpec({"tag": _STRING, "name": _STRING}),
    "x-strato-reset-vsock": _NONE,
    "x-strato-set-net-limit": CommandSpec({"id": _STRING, "direction": _STRING, **_LIMIT}),
    "x-strato-set-block-limit": CommandSpec({"id": _STRING, **_LIMIT}),
}

_KIND_NAMES = {str: "string", bool: "boolean", list: "array", int: "integer", dict: "object"}


def check_arguments(name: str, arguments: object) -> dict[str, Any]:
    """Return the arguments of a known command once they fit. Raises QmpCommandError."""
    if not isinstance(arguments, dict):
        raise QmpCommandError("GenericError", "QMP input member 'arguments' must be an object")
    spec = COMMANDS[name]
    check_members(arguments, spec.arguments, loose=spec.loose)
    return arguments


def check_members(members: dict[str, Any], specs: dict[str, Argument], *, loose: bool = False) -> None:
    """Check the members of an object. Raises QmpCommandError for the first that does not fit."""
    for key in members:
        if key not in specs and not loose:
            raise QmpCommandError("GenericError", f"Parameter '{key}' is unexpected")
    for key, spec in specs.items():
        if key not in members:
            if spec.optional:
                continue
            raise QmpCommandError("GenericError", f"Parameter '{key}' is missing")
        if type(members[key]) is not spec.kind:
            raise QmpCommandError(
                "GenericError", f"Invalid parameter type for '{key}', expected: {_KIND_NAMES[spec.kind]}"
            )
