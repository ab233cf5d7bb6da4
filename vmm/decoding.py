"""Turning JSON and TOML into VmConfig and back.

Unknown fields and wrong types are refused with the JSON path and with what to do. The decoder walks the
annotations of the records, so that a new field needs no code here. Called by strato-vmm, the CLI and
tests; `load` reads a file or descriptor, everything else does no I/O.
"""

from __future__ import annotations

import json
import os
import types
from enum import StrEnum
from pathlib import Path

from .config import VmConfig
from .errors import ConfigError
from .record import MISSING, fields, is_record

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any, TypeVar

    _T = TypeVar("_T")

MAX_CONFIG_BYTES = 1 << 20

_NAMES: dict[object, str] = {str: "a string", int: "an integer", bool: "true or false", Path: "a path"}


def load(source: int | Path) -> VmConfig:
    """Read a configuration: JSON from a descriptor, which is closed, or a file of JSON or (``.toml``) TOML.

    Relative paths in a file are relative to the file's folder. Raises ConfigError.
    """
    try:
        if isinstance(source, int):
            with os.fdopen(source, "rb") as stream:
                data = stream.read(MAX_CONFIG_BYTES + 1)
            return parse(data)
        with source.open("rb") as stream:
            data = stream.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError("", f"Configuration {source} cannot be read") from error
    base = source.absolute().parent
    return parse(data, toml=source.suffix == ".toml", base=base)


def parse(data: bytes, *, toml: bool = False, base: Path | None = None) -> VmConfig:
    """Parse and check a configuration. ``base`` makes relative paths absolute. Raises ConfigError."""
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError("", f"Configuration is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        if toml:
            import tomllib  # 9 ms, and only people write TOML

            document: object = tomllib.loads(data.decode())
        else:
            document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ConfigError("", f"Configuration is not valid {'TOML' if toml else 'JSON'}") from error
    return decode(VmConfig, document, base=base)


def dump(config: VmConfig) -> str:
    """Return the configuration as JSON; `parse` gives back an equal VmConfig."""
    return json.dumps(encode(config), indent=2)


def encode(value: object) -> Any:
    """Turn a configuration record (or a part of one) into JSON values."""
    if is_record(value) and not isinstance(value, type):
        return {item.name: encode(getattr(value, item.name)) for item in fields(value)}
    if isinstance(value, tuple | list):
        return [encode(item) for item in value]
    if isinstance(value, Path | StrEnum):
        return str(value)
    return value


def decode(kind: type[_T], value: object, path: str = "", *, base: Path | None = None) -> _T:
    """Build a configuration record from JSON values. Raises ConfigError."""
    result: _T = _decode(kind, value, path, base)
    return result


def _decode(kind: Any, value: Any, path: str, base: Path | None) -> Any:
    if is_record(kind):
        return _decode_record(kind, value, path, base)
    origin = getattr(kind, "__origin__", type(kind))
    if origin is types.UnionType:  # only `X | None` is used
        if value is None:
            return None
        return _decode(kind.__args__[0], value, path, base)
    if origin is tuple:
        if not isinstance(value, list):
            raise ConfigError(path, f"{_shown(value)} is not a list")
        item_kind = kind.__args__[0]
        return tuple(_decode(item_kind, item, f"{path}[{index}]", base) for index, item in enumerate(value))
    return _decode_scalar(kind, value, path, base)


def _decode_scalar(kind: Any, value: Any, path: str, base: Path | None) -> object:
    if isinstance(kind, type) and issubclass(kind, StrEnum):
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(kind)
            raise ConfigError(path, f"{_shown(value)} is not one of {known}") from None
    wanted = str if kind is Path else kind
    if type(value) is not wanted:  # exact: True is an int to isinstance
        raise ConfigError(path, f"{_shown(value)} is not {_NAMES[kind]}")
    if kind is Path:
        if not value:
            raise ConfigError(path, "Must not be empty")
        return base / value if base is not None else Path(value)
    return value


def _decode_record(kind: Any, value: object, path: str, base: Path | None) -> object:
    if not isinstance(value, dict):
        raise ConfigError(path, f"{_shown(value)} is not an object")
    known = {item.name: item for item in fields(kind)}
    for name in value:
        if name not in known:
            names = ", ".join(known)
            raise ConfigError(_join(path, str(name)), f"Unknown field: remove it or use one of {names}")
    arguments: dict[str, object] = {}
    for name, item in known.items():
        if name in value:
            arguments[name] = _decode(item.type, value[name], _join(path, name), base)
        elif item.default is MISSING and item.default_factory is MISSING:
            raise ConfigError(_join(path, name), "Missing: this field has no default")
    built: object = kind(**arguments)
    return built


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _shown(value: object) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
