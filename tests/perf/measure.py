"""Measuring by comparison: cases take turns inside one run, and what counts is the ratio of neighbours."""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

_T = TypeVar("_T")

# Student's t for a two-sided 95 % interval, by degrees of freedom; beyond the table the normal quantile is
# near enough.
_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26, 14: 2.14, 19: 2.09}


@dataclass(frozen=True)
class Ratio:
    """Paired ratios of two cases: geometric mean with its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} (95 % interval {self.low:.2f} to {self.high:.2f})"


def interleave(cases: Mapping[str, Callable[[], _T]], rounds: int) -> dict[str, list[_T]]:
    """Runs all cases in turn, `rounds` times after one warm-up; the measured values by case."""
    for case in cases.values():
        case()
    values: dict[str, list[_T]] = {name: [] for name in cases}
    for number in range(rounds):
        # Every other round goes backwards, so that no case always follows the same one.
        order = list(cases)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            values[name].append(cases[name]())
    return values


def ratio(numerators: list[float], denominators: list[float]) -> Ratio:
    """The ratio of two equally long series, pair by pair."""
    logs = [math.log(a / b) for a, b in zip(numerators, denominators, strict=True)]
    mean = statistics.fmean(logs)
    if len(logs) < 2:
        return Ratio(math.exp(mean), 0.0, math.inf)
    freedom = len(logs) - 1
    quantile = min((value for key, value in _T95.items() if key <= freedom), default=12.71)
    half = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def series(values: list[float], unit: str = "s", digits: int = 3) -> str:
    """Median and all raw values of a series, ready for printing."""
    raw = " ".join(f"{value:.{digits}f}" for value in values)
    return f"median {statistics.median(values):.{digits}f} {unit} [{raw}]"
