"""The same file-system load through our fs core, through C virtiofsd and on the host: the same results."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from .cases import Case, script
from .differences import Traces, parse, unexplained
from .generic_cases import GENERIC, random_calls
from .posix_cases import POSIX
from .workbench import Policy, Workbench, workbench

pytestmark = pytest.mark.differential

SEEDS, LONG_SEEDS = (1, 2), tuple(range(3, 13))
GROUPS: dict[str, list[Case]] = {
    **{name: list(cases()) for name, cases in {**POSIX, **GENERIC}.items()},
    **{f"random-{seed}": list(random_calls(seed, 400)) for seed in SEEDS},
}
LONG_GROUPS = {f"random-{seed}": list(random_calls(seed, 2000)) for seed in LONG_SEEDS}
# load and its arguments: seed, count, more
LOADS = {
    "random": ("1", "2000"),
    "random-direct": ("2", "1500", "direct"),
    "tree": ("3", "500"),
    "churn": ("4", "150"),
    "folder": ("5", "3000"),
}
LONG_LOADS = {
    **{f"random-seed-{seed}": (str(seed), "20000") for seed in LONG_SEEDS},
    **{f"random-direct-seed-{seed}": (str(seed), "10000", "direct") for seed in LONG_SEEDS[:3]},
    "tree-long": ("6", "4000"),
    "folder-long": ("8", "10000"),
    "churn-long": ("7", "3000"),
}
FULL = pytest.mark.full
POLICIES = {
    "auto": Policy(),
    "always": Policy("always"),
    "none": Policy("none"),
    "writeback": Policy(writeback=True),
}


@pytest.fixture(
    scope="module",
    params=["auto", *(pytest.param(name, marks=FULL) for name in POLICIES if name != "auto")],
)
def bench(request: pytest.FixtureRequest, programs: dict[str, Path]) -> Iterator[Workbench]:
    """One VM for all tests of a policy."""
    scripts = {f"cases-{name}": script(cases) for name, cases in {**GROUPS, **LONG_GROUPS}.items()}
    with workbench(POLICIES[request.param], programs, scripts) as made:
        yield made


def check_group(bench: Workbench, name: str, cases: list[Case]) -> None:
    outcome = bench.everywhere("script", [f"/cases-{name}"], [])
    traces = Traces(parse(outcome.ours), parse(outcome.reference), parse(outcome.native))
    assert len(traces.reference) == sum(len(entry.lines) for entry in cases)
    found = unexplained(cases, traces, bench.policy.cache)
    assert not found, f"{len(found)} differences:\n" + "\n".join(found[:60])


def check_load(bench: Workbench, name: str, words: tuple[str, ...]) -> None:
    load = name.partition("-")[0]
    if load == "random" and bench.policy.writeback:
        words += ("kept-back",)
    outcome = bench.everywhere("stress", [load], words)
    assert outcome.ours == outcome.reference == outcome.native
    assert outcome.ours


@pytest.mark.parametrize("name", GROUPS)
def test_calls_give_the_same_results(bench: Workbench, name: str) -> None:
    check_group(bench, name, GROUPS[name])


@pytest.mark.parametrize("name", LOADS)
def test_load_gives_the_same_digest(bench: Workbench, name: str) -> None:
    check_load(bench, name, LOADS[name])


@FULL
@pytest.mark.parametrize("name", LONG_GROUPS)
def test_many_random_calls_give_the_same_results(bench: Workbench, name: str) -> None:
    check_group(bench, name, LONG_GROUPS[name])


@FULL
@pytest.mark.parametrize("name", LONG_LOADS)
def test_long_load_gives_the_same_digest(bench: Workbench, name: str) -> None:
    check_load(bench, name, LONG_LOADS[name])


def test_writes_that_the_guest_keeps_back_give_the_same_results(programs: dict[str, Path]) -> None:
    groups = ("holes", "size-time")
    scripts = {f"cases-{name}": script(GROUPS[name]) for name in groups}
    with workbench(POLICIES["writeback"], programs, scripts) as bench:
        for name in groups:
            check_group(bench, name, GROUPS[name])
        check_load(bench, "random", LOADS["random"])
