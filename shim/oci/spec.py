"""Reading config.json: JSON text -> checked values, every complaint with the JSON path of the field.

Called by `bundle`, `transform` and `resources`; free of I/O. Whatever the input, only SpecError and
SpecRefusedError leave this module: config.json is no more trusted than any other file from disk.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

from vmm.record import record

from ..errors import SpecError, SpecRefusedError
from .coverage import Kind, Node, Verdict, tree

TYPE_CHECKING = False  # importing typing costs 2 ms, and the VM has not been started yet
if TYPE_CHECKING:
    from typing import Any, NoReturn

# containerd allows 76 characters (containerd: pkg/identifiers), isula and docker use 64.
_CONTAINER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
_INTEGER_RANGE = {
    Kind.I64: (-(1 << 63), (1 << 63) - 1),
    Kind.U64: (0, (1 << 64) - 1),
    Kind.U32: (0, (1 << 32) - 1),
}


@record(frozen=True)
class DroppedField:
    """A field that the guest does not get, and why; the caller logs it."""

    json_path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.json_path} is dropped: {self.reason}"


def parse(text: bytes | str, where: str = "$") -> dict[str, Any]:
    """JSON text -> object. Raises SpecError for anything else, NaN and absurd nesting included."""

    def refuse_constant(name: str) -> NoReturn:
        raise SpecError(where, f"{name} is not JSON")

    try:
        value = json.loads(text, parse_constant=refuse_constant)
    except (ValueError, RecursionError) as error:  # ValueError: bad JSON, bad UTF-8, integers of 5000 digits
        raise SpecError(where, f"Not JSON: {error}") from error
    if not isinstance(value, dict):
        raise SpecError(where, f"Must be an object, not {_type_name(value)}")
    return value


def process_from_json(text: bytes | str) -> dict[str, Any]:
    """The OCI `process` object of an Exec request; give it to `transform.guest_process`."""
    return parse(text, "$.process")


def check_container_id(container_id: str) -> str:
    """The id itself; SpecError unless it can be a file name and a cgroup's name."""
    if not _CONTAINER_ID.fullmatch(container_id):
        raise SpecError(
            "container id",
            f"{container_id[:140]!r} must be 1 to 128 letters, digits, '_', '.' or '-', no punctuation first",
        )
    return container_id


def select(spec: Mapping[str, Any]) -> tuple[dict[str, Any], list[DroppedField]]:
    """A copy of what `coverage` honours of `spec`, every value of its right type, and what was dropped.

    Empty optional values are left out of the copy. Raises SpecError for a wrong type or a missing field
    and SpecRefusedError for a field that `coverage` refuses.
    """
    walk = _Walk()
    return walk.members(spec, tree(), "$"), walk.dropped


def select_process(process: Mapping[str, Any]) -> tuple[dict[str, Any], list[DroppedField]]:
    """As `select`, for a `process` object alone."""
    walk = _Walk()
    return walk.members(process, tree().children["process"], "$.process"), walk.dropped


def select_resources(resources: Mapping[str, Any]) -> tuple[dict[str, Any], list[DroppedField]]:
    """As `select`, for a `linux.resources` object alone."""
    walk = _Walk()
    node = tree().children["linux"].children["resources"]
    return walk.members(resources, node, "$.linux.resources"), walk.dropped


def lookup(spec: Mapping[str, Any], *names: str) -> object:
    """The value at $.name1.name2…, or None where a part is missing; SpecError if a parent is no object."""
    value: object = spec
    path = "$"
    for name in names:
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise SpecError(path, f"Must be an object, not {_type_name(value)}")
        value = value.get(name)
        path = _member(path, name)
    return value


def integer(spec: Mapping[str, Any], *names: str) -> int | None:
    """The integer at $.name1.name2…, or None if it is missing. Raises SpecError."""
    value = lookup(spec, *names)
    if value is None:
        return None
    return _integer(value, Kind.I64 if isinstance(value, int) and value < 0 else Kind.U64, _path(names))


def string(spec: Mapping[str, Any], *names: str) -> str:
    """The string at $.name1.name2…, or "" if it is missing. Raises SpecError."""
    value = lookup(spec, *names)
    return "" if value is None else _string(value, _path(names))


def annotations_of(spec: Mapping[str, Any]) -> dict[str, str]:
    """`$.annotations`, empty if missing. Raises SpecError."""
    value = lookup(spec, "annotations")
    return {} if value is None else _string_map(value, "$.annotations")


class _Walk:
    # One pass over a spec along the table; `dropped` collects on the way.

    def __init__(self) -> None:
        self.dropped: list[DroppedField] = []

    def members(self, value: object, node: Node, path: str) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise SpecError(path, f"Must be an object, not {_type_name(value)}")
        kept: dict[str, Any] = {}
        for name, member in value.items():
            child = node.children.get(name) if isinstance(name, str) else None
            if child is None:
                self.unknown(name, member, node, path)
                continue
            if member is None:
                continue
            result = self.value(member, child, _member(path, name))
            if result is not None:
                kept[name] = result
        for name, child in node.children.items():
            if child.row.required and name not in kept:
                raise SpecError(_member(path, name), "Is required")
        return kept

    def unknown(self, name: object, member: object, node: Node, path: str) -> None:
        if not isinstance(name, str):
            raise SpecError(path, f"Has a name that is no string: {name!r}")
        where = _member(path, name)
        # Go's decoder ignores case, so other runtimes would take this for the field itself.
        twin = next((known for known in node.children if known.casefold() == name.casefold()), None)
        if twin is not None:
            raise SpecError(where, f"Must be spelled {twin!r}")
        if _is_empty(member):
            return
        if node.strict:
            raise SpecRefusedError(where, "Is not known to the OCI runtime specification")
        self.dropped.append(DroppedField(where, "Is not known to the OCI runtime specification"))

    def value(self, value: object, node: Node, path: str) -> object:
        row = node.row
        if row.verdict in (Verdict.DROPPED, Verdict.REFUSED):
            if _is_empty(value):
                return None
            if row.verdict is Verdict.REFUSED:
                raise SpecRefusedError(f"{path}[0]" if isinstance(value, list) else path, row.reason)
            self.dropped.append(DroppedField(path, row.reason))
            return None
        return self.checked(value, node, path)

    def checked(self, value: object, node: Node, path: str) -> object:
        kind = node.row.kind
        if kind is Kind.OBJECT:
            return self.members(value, node, path)
        if kind is Kind.OBJECTS:
            entry = node.children["[]"]
            return [self.members(item, entry, f"{path}[{i}]") for i, item in enumerate(_list(value, path))]
        if kind is Kind.STRING:
            return _string(value, path)
        if kind is Kind.STRINGS:
            return [_string(item, f"{path}[{i}]") for i, item in enumerate(_list(value, path))]
        if kind is Kind.STRING_MAP:
            return _string_map(value, path)
        if kind is Kind.U32S:
            return [_integer(item, Kind.U32, f"{path}[{i}]") for i, item in enumerate(_list(value, path))]
        if kind is Kind.BOOL:
            if not isinstance(value, bool):
                raise SpecError(path, f"Must be true or false, not {_type_name(value)}")
            return value
        return _integer(value, kind, path)


_EMPTY: tuple[object, ...] = (None, "", 0, False, [], {})


def _is_empty(value: object) -> bool:
    # An object of empty members is empty too; no deeper, so that nesting cannot exhaust the stack.
    if isinstance(value, Mapping):
        return all(member in _EMPTY for member in value.values())
    return value in _EMPTY


def _list(value: object, path: str) -> list[object]:
    if not isinstance(value, list):
        raise SpecError(path, f"Must be an array, not {_type_name(value)}")
    return value


def _string(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise SpecError(path, f"Must be a string, not {_type_name(value)}")
    if "\0" in value:
        raise SpecError(path, "Must not contain a NUL character")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise SpecError(path, "Must not contain half a surrogate pair") from error
    return value


def _string_map(value: object, path: str) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise SpecError(path, f"Must be an object, not {_type_name(value)}")
    return {_string(name, path): _string(item, _member(path, str(name))) for name, item in value.items()}


def _integer(value: object, kind: Kind, path: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise SpecError(path, f"Must be an integer, not {_type_name(value)}")
    low, high = _INTEGER_RANGE[kind]
    if not low <= value <= high:
        raise SpecError(path, f"Is outside of {kind}: {hex(value)[:40]}")
    return value


def _path(names: tuple[str, ...]) -> str:
    path = "$"
    for name in names:
        path = _member(path, name)
    return path


def _member(path: str, name: str) -> str:
    # $.a.b, or $.a['b.c'] where the name is not a plain word; printable whatever the name is.
    if name.isidentifier() and name.isascii():
        return f"{path}.{name}"
    return f"{path}[{name[:80]!a}]"


def _type_name(value: object) -> str:
    names: dict[type, str] = {
        dict: "an object",
        list: "an array",
        str: "a string",
        bool: "a boolean",
        int: "an integer",
        float: "a number with a fraction",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
