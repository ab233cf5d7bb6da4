"""What the guest kernel costs, per fragment: boot time from initcalls, memory from object sizes.

Pure functions; `tools.kernel_report` feeds them with measured boots. Three limits to what the numbers
say: a first call pays under TCG for translating code that others then reuse; code that runs before the
initcalls (memory, scheduler, processors) has no owner but `core`; size counts a fragment's own objects,
not what they pull in.
"""

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .attribution import CORE

# A fragment is reported by name when its initcalls take longer than this.
THRESHOLD_US = 5000

_RETURNED = re.compile(r"initcall (\w+)\+\S+(?: \[\w+\])? returned -?\d+ after (\d+) usecs")
_STAMPED = re.compile(r"<\d+>\[ *(\d+\.\d+)\] (.*)")

# Points of a boot by a part of a line that the kernel logs there.
_MILESTONES = {
    "memory set up": "SLUB: HWalign",
    "processors up": "smp: Brought up",
    "drivers up": "registered taskstats version",
    "user space": "as init process",
}


@dataclass(frozen=True)
class FragmentCost:
    """Median time of a fragment's initcalls in microseconds, its size, its slowest initcalls."""

    name: str
    boot_us: float
    size_bytes: int
    slowest: tuple[tuple[str, float], ...]


def initcall_times(log: str) -> dict[str, int]:
    """Microseconds of every initcall in the log of a boot with initcall_debug."""
    return {match[1]: int(match[2]) for match in _RETURNED.finditer(log)}


def milestones(log: str) -> dict[str, float]:
    """Seconds of guest time at which a boot reached each known point."""
    found: dict[str, float] = {}
    for line in log.splitlines():
        if match := _STAMPED.match(line):
            for name, part in _MILESTONES.items():
                if part in match[2]:
                    found.setdefault(name, float(match[1]))
    return found


def costs(
    boots: Sequence[Mapping[str, int]], owners: Mapping[str, str], sizes: Mapping[str, int]
) -> tuple[FragmentCost, ...]:
    """Cost of every fragment, the slowest first: medians over boots, so that one hiccup changes nothing."""
    calls: dict[str, dict[str, float]] = defaultdict(dict)
    for function in {name for boot in boots for name in boot}:
        median = statistics.median(boot[function] for boot in boots if function in boot)
        calls[owners.get(function, CORE)][function] = median
    names = set(calls) | set(sizes)
    table = (
        FragmentCost(
            name,
            sum(calls[name].values()) if name in calls else 0.0,
            sizes.get(name, 0),
            tuple(sorted(calls.get(name, {}).items(), key=lambda call: call[1], reverse=True)[:3]),
        )
        for name in names
    )
    return tuple(sorted(table, key=lambda cost: (-cost.boot_us, cost.name)))


def render(table: Sequence[FragmentCost]) -> str:
    """The cost table as Markdown; fragments below the threshold are one line."""
    lines = ["| fragment | initcalls, ms | objects, KiB | slowest initcalls, ms |", "|---|---|---|---|"]
    small = [cost for cost in table if cost.boot_us <= THRESHOLD_US]
    for cost in table:
        if cost not in small:
            slowest = ", ".join(f"{name} {time / 1000:.1f}" for name, time in cost.slowest)
            lines.append(
                f"| {cost.name} | {cost.boot_us / 1000:.1f} | {cost.size_bytes // 1024} | {slowest} |"
            )
    if small:
        names = ", ".join(cost.name for cost in small)
        time = sum(cost.boot_us for cost in small) / 1000
        size = sum(cost.size_bytes for cost in small) // 1024
        lines.append(f"| {names} | {time:.1f} together | {size} | |")
    return "\n".join(lines) + "\n"
