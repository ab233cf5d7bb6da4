"""Set-up of every test session: one process tree, options, what a failure shows."""

import ctypes
from collections.abc import Iterator

import pytest

from tests.framework import diagnostics
from tests.framework.daemons import TestDaemon

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the tests marked full")
    parser.addoption("--every-daemon", action="store_true", help="run all containerd tests on every release")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full"):
        return
    skip = pytest.mark.skip(reason="marked full; give --full")
    for item in items:
        if item.get_closest_marker("full"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def subreaper() -> Iterator[None]:
    """Makes orphans of everything the tests start children of this process (see framework/leaks.py)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "Cannot become a child subreaper")
    yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    report: pytest.TestReport = yield  # type: ignore[assignment]
    daemon = getattr(item, "funcargs", {}).get("daemon")
    if report.failed and report.when == "call" and isinstance(daemon, TestDaemon):
        report.sections += diagnostics.collect(daemon)
    return report  # type: ignore[return-value]
