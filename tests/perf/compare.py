"""Two devices side by side: what one measurement is, and what their ratio must reach."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .measure import interleave, ratio, series
from .report import say

TOLERANCE = 0.05  # design rule: an interval within this of the bound has reached it


@dataclass(frozen=True)
class Sample:
    """One measurement: guest's nanoseconds and the device's nanoseconds of processor, for each operation; and
    those of everything on the host.
    """

    time_ns: float
    device_ns: float
    host_ns: float


@dataclass(frozen=True)
class Bound:
    """What the ratio ours ÷ theirs must reach: at most, or for throughput at least, a value."""

    value: float
    of_throughput: bool = False

    def missed(self, low: float, high: float) -> bool:
        """Whether an interval is surely outside."""
        if self.of_throughput:
            return high < self.value * (1 - TOLERANCE)
        return low > self.value * (1 + TOLERANCE)


@dataclass(frozen=True)
class Bounds:
    """The bounds of one comparison; None for what is told only."""

    time: Bound | None = None
    device_cpu: Bound | None = None
    host_cpu: Bound | None = None


class MeasuredVm(Protocol):
    """What a comparison needs of a VM."""

    def run(self, *words: str | Path | int, timeout_s: float) -> str:
        """Runs a program in the guest and returns what it printed."""

    def device_cpu_ns(self, name: str) -> int:
        """Processor time spent for one device."""

    def total_cpu_ns(self) -> int:
        """Processor time of the VM, vCPUs included, and of all that serves it."""


@dataclass(frozen=True)
class Side:
    """One of the two that are compared: its VM, the name of its device there, and where programs find that:
    a node, a mount point, or an address for each end of a stream.
    """

    vm: MeasuredVm
    device: str
    place: str
    host_place: str = ""

    def sample(self, run: Callable[[], str]) -> Sample:
        """Runs a program that prints nanoseconds and operations."""
        device, host = self.vm.device_cpu_ns(self.device), self.vm.total_cpu_ns()
        duration, operations = (int(word) for word in run().split())
        device, host = self.vm.device_cpu_ns(self.device) - device, self.vm.total_cpu_ns() - host
        return Sample(duration / operations, device / operations, host / operations)


def compare(
    title: str,
    unit: str,
    cases: Mapping[str, Callable[[], Sample]],
    rounds: int,
    bounds: Bounds,
    *,
    scale: int = 1,
) -> list[str]:
    """Prints all values and the ratios; what is surely out of bounds. The first case is ours."""
    samples = interleave(cases, rounds)
    over = []
    for what, bound, field in (
        ("time", bounds.time, "time_ns"),
        ("device CPU", bounds.device_cpu, "device_ns"),
        ("all host CPU", bounds.host_cpu, "host_ns"),
    ):
        values = {
            name: [getattr(one, field) * scale / 1000 for one in taken] for name, taken in samples.items()
        }
        for name, taken in values.items():
            say(f"{title}: {name}: {what} {series(taken, f'us/{unit}', 1)}")
        ours, theirs = values.values()
        if min(*ours, *theirs) <= 0:
            say(f"{title}: {what}: too small to compare")
            continue
        # Throughput is the inverse of time.
        found = ratio(theirs, ours) if bound and bound.of_throughput else ratio(ours, theirs)
        words = "throughput" if bound and bound.of_throughput else what
        relation = "at least" if bound and bound.of_throughput else "at most"
        wanted = f", wanted {relation} {bound.value}" if bound else ""
        missed = bound is not None and bound.missed(found.low, found.high)
        say(f"{title}: {words} {' ÷ '.join(values)} = {found}{wanted}{': MISSED' if missed else ''}")
        over += [f"{title} ({words})"] if missed else []
    return over
