"""Fixtures of the containerd tests.

A module says with `DAEMONS = ALL_DAEMONS` that its tests run on every daemon; otherwise they run on the
newest. Daemons live for the session; after every test nothing may be left over.
"""

from collections.abc import Iterator

import pytest

from tests.framework.ctr import Ctr
from tests.framework.daemons import ALL_DAEMONS, DEFAULT_DAEMONS, DaemonOptions, TestDaemon
from tests.framework.leaks import LeakChecker
from tests.framework.runtime import Runtime, runtime_under_test


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "session_daemon" in metafunc.fixturenames:
        kinds = getattr(metafunc.module, "DAEMONS", DEFAULT_DAEMONS)
        every = metafunc.config.getoption("--every-daemon") or metafunc.config.getoption("--full")
        if every:
            kinds = ALL_DAEMONS
        # Not every day: a race of containerd's own (docs/limitations.md) loses one gRPC container in ten on a
        # machine that has other work.
        if not every or not runtime_under_test().is_strato:
            kinds = tuple(kind for kind in kinds if not kind.endswith("-grpc"))
        metafunc.parametrize("session_daemon", kinds, indirect=True, scope="session")


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
def daemon(session_daemon: TestDaemon) -> Iterator[TestDaemon]:
    """The daemon, running and empty; afterwards it is emptied again and nothing may be left on the host."""
    if not session_daemon.containerd.running:
        session_daemon.containerd.start()
    checker = LeakChecker(session_daemon.scope)
    yield session_daemon
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
