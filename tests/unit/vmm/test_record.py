"""A record beside a data class of the standard library: what is promised, both do."""

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from vmm import record_class
from vmm.record_class import MISSING

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[3]


class Made:
    """The same three classes, made by one of the two."""

    def __init__(self, decorate: Callable[..., Any], field: Callable[..., Any]) -> None:
        @decorate(frozen=True)
        class Point:
            """A point."""

            x: int
            y: int = 7
            tags: list[str] = field(default_factory=list)

            @property
            def sum(self) -> int:
                return self.x + self.y

        @decorate(frozen=True, kw_only=True)
        class Named:
            label: str = "none"
            size: int = field(metadata={"unit": "MiB"})
            checked: bool = False

            def __post_init__(self) -> None:
                if self.size < 0:
                    raise ValueError("size")

        @decorate
        class Cell:
            value: int
            seen: int = 0

        self.point: Any = Point
        self.named: Any = Named
        self.cell: Any = Cell


@pytest.fixture(params=["record", "dataclass"])
def made(request: pytest.FixtureRequest) -> Made:
    if request.param == "record":
        return Made(record_class.record, record_class.field)
    return Made(dataclasses.dataclass, dataclasses.field)


def test_values_come_by_position_by_name_and_by_default(made: Made) -> None:
    point = made.point(1, tags=["a"])

    assert (point.x, point.y, point.tags, point.sum) == (1, 7, ["a"], 8)
    assert made.named(size=3).label == "none"
    assert made.point.y == 7


def test_each_instance_gets_a_default_of_its_own_from_a_factory(made: Made) -> None:
    first, second = made.point(1), made.point(1)

    first.tags.append("mine")

    assert second.tags == []
    assert not hasattr(made.point, "tags")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [((), {}), ((1, 2, [], 4), {}), ((1,), {"x": 2}), ((1,), {"z": 2})],
    ids=["missing", "too many", "twice", "unknown"],
)
def test_wrong_values_are_a_type_error(made: Made, arguments: Any, named: Any) -> None:
    with pytest.raises(TypeError):
        made.point(*arguments, **named)


def test_fields_by_name_only_are_refused_by_position(made: Made) -> None:
    with pytest.raises(TypeError):
        made.named("label", 3)


def test_equality_goes_by_class_and_values(made: Made) -> None:
    assert made.point(1, 2) == made.point(1, 2)
    assert made.point(1, 2) != made.point(1, 3)
    assert made.cell(1) != made.point(1)
    assert made.point(1) != (1, 7, [])


def test_frozen_ones_have_a_hash_and_others_have_none(made: Made) -> None:
    assert hash(made.named(size=1)) == hash(made.named(size=1))
    with pytest.raises(TypeError, match="unhashable"):
        hash(made.cell(1))


def test_frozen_ones_cannot_be_changed_and_others_can(made: Made) -> None:
    point, cell = made.point(1), made.cell(1)

    with pytest.raises(dataclasses.FrozenInstanceError):
        point.x = 2
    with pytest.raises(dataclasses.FrozenInstanceError):
        del point.x
    cell.value = 5

    assert (point.x, cell.value) == (1, 5)


def test_text_names_class_and_values(made: Made) -> None:
    assert repr(made.point(1)).endswith("Point(x=1, y=7, tags=[])")


def test_checks_run_at_the_end_of_construction(made: Made) -> None:
    with pytest.raises(ValueError, match="size"):
        made.named(size=-1)
    with pytest.raises(ValueError, match="size"):
        dataclasses.replace(made.named(size=1), size=-1)


def test_functions_of_dataclasses_work(made: Made) -> None:
    point = made.point(1, tags=["a"])
    known: bool = dataclasses.is_dataclass(made.cell)

    assert known
    assert dataclasses.asdict(point) == {"x": 1, "y": 7, "tags": ["a"]}
    assert dataclasses.replace(point, x=3) == made.point(3, 7, ["a"])
    assert [(item.name, item.type) for item in dataclasses.fields(made.point)] == [
        ("x", int),
        ("y", int),
        ("tags", list[str]),
    ]
    assert dataclasses.fields(made.point)[1].default == 7
    assert dataclasses.fields(made.point)[2].default_factory is list
    assert dict(dataclasses.fields(made.named)[1].metadata) == {"unit": "MiB"}


def test_fields_and_replace_of_records() -> None:
    made = Made(record_class.record, record_class.field)
    x, y, tags = record_class.fields(made.point)

    assert (x.name, x.default, x.default_factory) == ("x", MISSING, MISSING)
    assert (y.default, tags.default_factory) == (7, list)
    assert record_class.is_record(made.point)
    assert not record_class.is_record(Made)
    assert record_class.replace(made.point(1), y=9) == made.point(1, 9)
    with pytest.raises(TypeError, match="z"):
        record_class.replace(made.point(1), z=9)


def test_import_and_use_load_neither_dataclasses_nor_inspect() -> None:
    code = (
        "import sys; sys.path[:0] = [sys.argv[1]]\n"
        "from vmm.record import field, record, replace\n"
        "@record(frozen=True)\n"
        "class Point:\n    x: int = 1\n"
        "assert replace(Point(), x=2).x == 2\n"
        "print({'dataclasses', 'inspect'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-IS", "-c", code, str(ROOT)], capture_output=True, text=True, check=True
    )

    assert done.stdout.strip() == "set()"
