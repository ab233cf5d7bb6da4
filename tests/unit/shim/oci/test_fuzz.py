"""Seeded mutations of real-looking specs: whatever comes in, only spec errors come out."""

import copy
import json
import random
from typing import Any

import pytest

from shim.errors import SpecError
from shim.oci.resources import SizeSettings, vm_size
from shim.oci.spec import annotations_of, parse, process_from_json
from shim.oci.transform import guest_process

from .samples import NAMES, plan, sample

pytestmark = pytest.mark.unit

_ODD: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1 << 31,
        1 << 63,
        1 << 64,
        -(1 << 70),
        1.5,
        float("inf"),
        "",
        "a",
        "/",
        "..",
        "\0",
    ),
    *(
        "\ud800",
        "é",
        "x" * 5000,
        [],
        [None],
        [[]],
        {},
        {"": None},
        {"a": {"b": {}}},
        {"type": 3},
        ["ro"],
        "-1",
        b"x",
    ),
)


def _nodes(value: Any, found: list[tuple[Any, Any]]) -> list[tuple[Any, Any]]:
    if isinstance(value, dict | list):
        for key in value if isinstance(value, dict) else range(len(value)):
            found.append((value, key))
            _nodes(value[key], found)
    return found


def _mutate(spec: dict[str, Any], dice: random.Random) -> None:
    for _ in range(dice.randint(1, 3)):
        parent, key = dice.choice(_nodes(spec, []) or [(spec, "")])
        action = dice.randrange(5)
        if action == 0 and len(spec) > 1:
            del parent[key]
        elif action == 1:
            other, other_key = dice.choice(_nodes(spec, []))
            parent[key] = copy.deepcopy(other[other_key])
        elif action == 2 and isinstance(parent, dict):
            parent[dice.choice(["x", "", "a.b", "\0", "\ud800", str(key).upper()])] = dice.choice(_ODD)
        elif action == 3 and isinstance(parent, list):
            parent.insert(dice.randrange(len(parent) + 1), dice.choice(_ODD))
        else:
            parent[key] = copy.deepcopy(dice.choice(_ODD))


@pytest.mark.parametrize("name", NAMES)
def test_mutated_spec_raises_nothing_but_spec_errors(name: str) -> None:
    dice = random.Random(f"strato {name}")
    original = sample(name)
    outcomes = {"passed": 0, "refused": 0}
    for _ in range(1500):
        spec = copy.deepcopy(original)
        _mutate(spec, dice)
        try:
            vm_size(spec, annotations_of(spec), SizeSettings())
            result = plan(spec)
            json.dumps(result.spec).encode()
            str(result)
            outcomes["passed"] += 1
        except SpecError as error:
            assert error.json_path
            str(error).encode()
            outcomes["refused"] += 1

    assert min(outcomes.values()) > 100


def test_mutated_process_raises_nothing_but_spec_errors() -> None:
    dice = random.Random(7)
    for _ in range(1500):
        process = {"process": sample("docker")["process"], "x": [1]}
        _mutate(process, dice)
        try:
            guest_process(process.get("process", {}))
        except SpecError as error:
            str(error).encode()


def test_mutated_text_raises_nothing_but_spec_errors() -> None:
    dice = random.Random(11)
    text = json.dumps(sample()).encode()
    for _ in range(500):
        damaged = bytearray(text)
        for _ in range(dice.randint(1, 4)):
            damaged[dice.randrange(len(damaged))] = dice.randrange(256)
        try:
            plan(parse(bytes(damaged[: dice.choice([len(damaged), dice.randrange(len(damaged))])])))
        except SpecError as error:
            str(error).encode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        "NaN",
        '{"a": NaN}',
        "[" * 100_000,
        '{"a":' * 100_000,
        '{"a": ' + "9" * 5000 + "}",
        "{}x",
    ],
)
def test_text_that_is_no_object_is_a_spec_error(text: str) -> None:
    with pytest.raises(SpecError):
        process_from_json(text)


def test_deep_unknown_member_is_dropped() -> None:
    spec = sample()
    nested: dict[str, Any] = {}
    for _ in range(400):
        nested = {"a": nested}
    spec["future"] = nested

    assert [note.json_path for note in plan(spec).dropped] == ["$.future"]
