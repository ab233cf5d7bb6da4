"""What a VM counts as text that Prometheus reads (exposition format 0.0.4). Does no I/O."""

from __future__ import annotations

from collections.abc import Iterator

TYPE_CHECKING = False  # importing typing costs 4 ms of strato-vmm's start
if TYPE_CHECKING:
    from typing import Any


def exposition(vm: str, counted: dict[str, Any]) -> str:
    """Return the text for what `x-strato-stats` answers: one family for each counter of each kind of
    device."""
    families: dict[str, list[str]] = {}
    for name, labels, value in _samples(vm, counted):
        text = ",".join(f'{key}="{_escaped(content)}"' for key, content in labels.items())
        families.setdefault(name, []).append(f"{name}{{{text}}} {value}")
    lines: list[str] = []
    for name, samples in sorted(families.items()):
        lines += [f"# TYPE {name} untyped", *samples]
    return "".join(f"{line}\n" for line in lines)


def _samples(vm: str, counted: dict[str, Any]) -> Iterator[tuple[str, dict[str, str], int]]:
    for name, value in counted["machine"].items():
        yield f"strato_vm_{name}", {"vm": vm}, value
    for device in counted["devices"]:
        labels = {"vm": vm, "device": device["device"]}
        for name, value in device["counters"].items():
            yield f"strato_{device['kind']}_{name}", labels, value


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
