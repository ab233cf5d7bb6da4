"""The commands that strato-vmm knows, with the types of their arguments.

One table: `query-commands` is generated from it, and arguments are checked against it before a handler
sees them. Names and shapes are QEMU's; our own begin with ``x-strato-``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import QmpCommandError

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any


@dataclass(frozen=True)
class Argument:
    """One argument: its JSON type, and whether it may be left out."""

    kind: type
    optional: bool = False


@dataclass(frozen=True)
class CommandSpec:
    """One command."""

    arguments: dict[str, Argument] = field(default_factory=dict)


_NONE = CommandSpec()

COMMANDS: dict[str, CommandSpec] = {
    "qmp_capabilities": CommandSpec({"enable": Argument(list, optional=True)}),
    "query-version": _NONE,
    "query-commands": _NONE,
    "query-status": _NONE,
    "query-name": _NONE,
    "query-kvm": _NONE,
    "query-cpus-fast": _NONE,
    "stop": _NONE,
    "cont": _NONE,
    "quit": _NONE,
    "system_powerdown": _NONE,
    "system_reset": _NONE,
    "set_link": CommandSpec({"name": Argument(str), "up": Argument(bool)}),
    "x-strato-info": _NONE,
    "x-strato-stats": _NONE,
    "x-strato-console-tail": _NONE,
    "x-strato-set-link": CommandSpec({"id": Argument(str), "up": Argument(bool)}),
    "x-strato-add-share": CommandSpec(
        {
            "tag": Argument(str),
            "name": Argument(str),
            "directory": Argument(str),
            "readonly": Argument(bool, optional=True),
        }
    ),
    "x-strato-remove-share": CommandSpec({"tag": Argument(str), "name": Argument(str)}),
    "x-strato-set-net-limit": CommandSpec(
        {
            "id": Argument(str),
            "direction": Argument(str),
            "bandwidth": Argument(int, optional=True),
            "bandwidth_burst": Argument(int, optional=True),
            "operations": Argument(int, optional=True),
            "operations_burst": Argument(int, optional=True),
        }
    ),
}

_KIND_NAMES = {str: "string", bool: "boolean", list: "array", int: "integer"}


def check_arguments(name: str, arguments: object) -> dict[str, Any]:
    """Return the arguments of a known command once they fit. Raises QmpCommandError."""
    if not isinstance(arguments, dict):
        raise QmpCommandError("GenericError", "QMP input member 'arguments' must be an object")
    specs = COMMANDS[name].arguments
    for key in arguments:
        if key not in specs:
            raise QmpCommandError("GenericError", f"Parameter '{key}' is unexpected")
    for key, spec in specs.items():
        if key not in arguments:
            if spec.optional:
                continue
            raise QmpCommandError("GenericError", f"Parameter '{key}' is missing")
        if type(arguments[key]) is not spec.kind:
            raise QmpCommandError(
                "GenericError", f"Invalid parameter type for '{key}', expected: {_KIND_NAMES[spec.kind]}"
            )
    return arguments
