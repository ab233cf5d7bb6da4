"""Fixtures of the containerd tests.

A module says with `DAEMONS = ALL_DAEMONS` that its tests run on every daemon; otherwise they run on the
newest. Daemons live for the session; after every test nothing may be left over.
"""

import os
import re
from collections.abc import Iterator

import pytest
from _pytest.runner import runtestprotocol

from tests.framework import containerd_log
from tests.framework.command import run
from tests.framework.ctr import Ctr
from tests.framework.daemons import ALL_DAEMONS, DEFAULT_DAEMONS, DaemonOptions, TestDaemon
from tests.framework.leaks import LeakChecker
from tests.framework.runtime import Runtime, runtime_under_test

LOST = pytest.StashKey[list[str]]()
REPEATED = pytest.StashKey[list[str]]()
CLEANED = pytest.StashKey[list[str]]()
GRPC_ATTEMPTS = 3


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "session_daemon" in metafunc.fixturenames:
        kinds = getattr(metafunc.module, "DAEMONS", DEFAULT_DAEMONS)
        if metafunc.config.getoption("--every-daemon") or metafunc.config.getoption("--full"):
            kinds = ALL_DAEMONS
        if not runtime_under_test().is_strato:
            kinds = tuple(kind for kind in kinds if not kind.endswith("-grpc"))
        apart = [marker.args[0] for marker in metafunc.definition.iter_markers("not_on")]
        kinds = tuple(kind for kind in kinds if not any(re.search(one, kind) for one in apart))
        metafunc.parametrize("session_daemon", kinds, indirect=True, scope="session")


def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Runs a test on the gRPC daemon once more, and says so, where containerd's log shows that containerd
    gave up a healthy shim (framework/containerd_log.py). Every other failure stands at once.
    """
    callspec = getattr(item, "callspec", None)
    if callspec is None or not str(callspec.params.get("session_daemon")).endswith("-grpc"):
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    for left in reversed(range(GRPC_ATTEMPTS)):
        item.stash[LOST] = []
        reports = runtestprotocol(item, nextitem=nextitem, log=False)
        if left == 0 or not item.stash[LOST] or not any(report.failed for report in reports):
            break
        item.config.stash.setdefault(REPEATED, []).append(item.nodeid)
    for report in reports:
        item.ihook.pytest_runtest_logreport(report=report)
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    return True


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if repeated := config.stash.get(REPEATED, []):
        terminalreporter.section("repeated because containerd gave up a healthy gRPC shim")
        for node_id in repeated:
            terminalreporter.write_line(node_id)
    if cleaned := config.stash.get(CLEANED, []):
        terminalreporter.section("cleaned up by the tests: containerd had removed the bundle too early")
        for node_id in cleaned:
            terminalreporter.write_line(node_id)


@pytest.fixture(scope="session")
def runtime() -> Runtime:
    """The runtime under test."""
    return runtime_under_test()


@pytest.fixture(scope="session")
def session_daemon(request: pytest.FixtureRequest, runtime: Runtime) -> Iterator[TestDaemon]:
    """One running daemon per kind; tests use `daemon`."""
    with TestDaemon(DaemonOptions(kind=request.param, runtime=runtime)) as daemon:
        yield daemon


@pytest.fixture
def daemon(request: pytest.FixtureRequest, session_daemon: TestDaemon) -> Iterator[TestDaemon]:
    """The daemon, running and empty; afterwards it is emptied again and nothing may be left on the host."""
    if not session_daemon.containerd.running:
        session_daemon.containerd.start()
    checker = LeakChecker(session_daemon.scope)
    log_begin = session_daemon.containerd.log_path.stat().st_size
    yield session_daemon
    log = session_daemon.log_lines(log_begin)
    request.node.stash[LOST] = containerd_log.lost_before_use(log)
    for command in containerd_log.clean_ups_not_run(log):
        run(command, env={**os.environ, "STRATO_CONFIG": str(session_daemon.config_path)}).check()
        request.config.stash.setdefault(CLEANED, []).append(request.node.nodeid)
    session_daemon.write_config()
    if not session_daemon.containerd.running:
        session_daemon.containerd.start()
    session_daemon.ctr.remove_all()
    checker.assert_clean(ignored=[session_daemon.containerd.pid])


@pytest.fixture
def ctr(daemon: TestDaemon) -> Ctr:
    """The client of the daemon."""
    return daemon.ctr


@pytest.fixture
def strato_only(runtime: Runtime) -> None:
    """For tests of what only a microVM does."""
    if not runtime.is_strato:
        pytest.skip("only a microVM does this")
