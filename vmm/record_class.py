"""What a record is when the program runs (see `vmm.record`).

`dataclasses` writes and compiles four methods for each class, half a millisecond, and imports `inspect`: half
of strato-vmm's imports. Here the methods exist once, for all classes, and look up the fields of theirs. To
make an instance takes 2 us instead of 0.5; they are made by the dozen. `dataclasses.fields`, `replace`,
`asdict` and `is_dataclass` work on records too, and import what they need then.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, NoReturn, TypeVar

    _T = TypeVar("_T")


class _Missing:
    """The type of MISSING."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Any = _Missing()
"""The default of a field that has none."""


class Field:
    """One field: its name, its type as annotated, its default or default factory, and its metadata."""

    __slots__ = ("default", "default_factory", "metadata", "name", "type")

    def __init__(self, default: Any, default_factory: Any, metadata: Mapping[str, Any]) -> None:
        self.name = ""
        self.type: Any = None
        self.default = default
        self.default_factory = default_factory
        self.metadata = metadata


def field(
    *, default: Any = MISSING, default_factory: Any = MISSING, metadata: Mapping[str, Any] | None = None
) -> Any:
    """As `dataclasses.field`."""
    return Field(default, default_factory, metadata or {})


def record(
    cls: type[_T] | None = None, /, *, frozen: bool = False, kw_only: bool = False, eq: bool = True
) -> Any:
    """Make a class a record; as `dataclasses.dataclass` with these options."""
    if cls is None:
        return lambda cls: record(cls, frozen=frozen, kw_only=kw_only, eq=eq)
    fields_by_name = _collect(cls)
    members: dict[str, Any] = {
        "__record_fields__": fields_by_name,
        "__record_positional__": () if kw_only else tuple(fields_by_name),
        "__dataclass_fields__": _StandardFields(),
        "__init__": _init,
    }
    if "__repr__" not in cls.__dict__:
        members["__repr__"] = _repr
    if eq:
        members.update(__eq__=_eq, __hash__=_hash if frozen else None)
    if frozen:
        members.update(__setattr__=_refuse_change, __delattr__=_refuse_change)
    for name, member in members.items():
        setattr(cls, name, member)
    return cls


def fields(kind: Any) -> tuple[Field, ...]:
    """As `dataclasses.fields`, of a record or its class. Raises AttributeError for anything else."""
    return tuple(kind.__record_fields__.values())


def is_record(kind: object) -> bool:
    """Whether it is a record or the class of one, as `dataclasses.is_dataclass`."""
    return hasattr(kind, "__record_fields__")


def replace(instance: _T, /, **changes: Any) -> _T:
    """As `dataclasses.replace`. Raises TypeError for a field that does not exist."""
    return type(instance)(**{**_values(instance), **changes})


def _collect(cls: type) -> dict[str, Field]:
    collected: dict[str, Field] = {}
    for name, kind in cls.__annotations__.items():
        value = cls.__dict__.get(name, MISSING)
        item = value if isinstance(value, Field) else Field(value, MISSING, {})
        item.name, item.type = name, kind
        collected[name] = item
        if item.default is not MISSING:
            setattr(cls, name, item.default)  # a default is an attribute of the class too
        elif value is not MISSING:
            delattr(cls, name)
    return collected


def _init(self: Any, /, *arguments: Any, **named: Any) -> None:
    positional = self.__record_positional__
    if len(arguments) > len(positional):
        raise TypeError(f"{_name(self)} takes {len(positional)} values by position, not {len(arguments)}")
    values = self.__dict__  # past the __setattr__ of a frozen one
    values.update(zip(positional, arguments, strict=False))
    for name, item in self.__record_fields__.items():
        if name in values:
            continue
        if name in named:
            values[name] = named.pop(name)
        elif item.default_factory is not MISSING:
            values[name] = item.default_factory()
        elif item.default is not MISSING:
            values[name] = item.default
        else:
            raise TypeError(f"{_name(self)} needs a value for {name}")
    if named:
        name = next(iter(named))
        reason = "got two values for" if name in self.__record_fields__ else "has no field"
        raise TypeError(f"{_name(self)} {reason} {name}")
    after = getattr(self, "__post_init__", None)
    if after is not None:
        after()


def _name(instance: Any) -> str:
    return type(instance).__qualname__


def _values(instance: Any) -> dict[str, Any]:
    return {name: getattr(instance, name) for name in instance.__record_fields__}


def _repr(self: Any) -> str:
    return f"{_name(self)}({', '.join(f'{name}={value!r}' for name, value in _values(self).items())})"


def _eq(self: Any, other: object) -> bool:
    return _values(self) == _values(other) if type(self) is type(other) else NotImplemented


def _hash(self: Any) -> int:
    return hash(tuple(_values(self).values()))


def _refuse_change(self: Any, name: str, *_: Any) -> NoReturn:
    from dataclasses import FrozenInstanceError

    raise FrozenInstanceError(f"Field {name} of a {_name(self)} cannot be changed")


class _StandardFields:
    """`__dataclass_fields__`, by which `dataclasses` knows a class of its own; made when it is asked for."""

    def __get__(self, instance: object, owner: Any) -> dict[str, Any]:
        import dataclasses

        members = []
        for name, item in owner.__record_fields__.items():
            default = {"default": item.default} if item.default is not MISSING else {}
            if item.default_factory is not MISSING:
                default = {"default_factory": item.default_factory}
            members.append((name, item.type, dataclasses.field(**default, metadata=item.metadata)))
        # By name only, or fields without a default could not follow others.
        twin: Any = dataclasses.make_dataclass(owner.__name__, members, kw_only=True)
        standard: dict[str, Any] = twin.__dataclass_fields__
        owner.__dataclass_fields__ = standard
        return standard
