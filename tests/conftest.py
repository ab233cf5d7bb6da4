"""Set-up of every test session: one process tree, options, what a failure shows."""

import ctypes
from collections.abc import Iterator

import pytest

from tests.framework import bytecode, diagnostics
from tests.framework.daemons import TestDaemon
from tests.framework.engine import engine_in_use
from tests.lab import selection
from tests.lab.delegation import LabPlugin

PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="also run the tests marked full")
    parser.addoption("--every-daemon", action="store_true", help="run all containerd tests on every release")

    parser.addoption("--lab", action="store_true", help="run tests that need a VM in the KVM lab (tests/lab)")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--lab"):
        config.pluginmanager.register(LabPlugin(config))


def pytest_sessionstart(session: pytest.Session) -> None:
    # In its jail strato-vmm cannot keep what it compiles: a change would make all of its starts slower.
    bytecode.compile_packages()


@pytest.hookimpl(tryfirst=True)  # before marks are selected by -m
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    full = config.getoption("--full")
    skip = pytest.mark.skip(reason="marked full; give --full")
    for item in items:
        if not full and item.get_closest_marker("full"):
            item.add_marker(skip)
        if selection.belongs(item.nodeid, full=full):
            item.add_marker(pytest.mark.lab)


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("engine"):
        if marker.args[0] != engine_in_use():
            pytest.skip(f"engine {engine_in_use()}: {marker.kwargs['reason']}")


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
    if report.failed and isinstance(daemon, TestDaemon):
        report.sections += diagnostics.collect(daemon)
    return report  # type: ignore[return-value]
