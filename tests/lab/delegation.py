"""`pytest --lab`: the tests that need a VM run in one test host, and each is reported as if it had run here.

The group is started when the other tests are through. A test host that is lost fails the test that was
running, with the console, and every test after it by name. Only where that is the emulator's doing
(EmulatorError), that test and those after it run in another one, and the summary says so; a test in which
two are lost has failed.
"""

import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.framework import compiler
from tests.framework.engine import VARIABLE as ENGINE_VARIABLE

from . import EmulatorError, LabError, LostHostError, selection
from .host import LabHost, Outcome
from .inside import REPORTS
from .settings import Command, LabSettings, inherited_environment

_FULL_FACTOR = 4
_KEPT_BYTES = 8192
_MOST_REPLACED = 3
# pytest's statuses that say nothing more than the reports do: all passed, some failed.
_ORDINARY = (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED)


class LabPlugin:
    """Registered by tests/conftest.py when --lab is given."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._outcome: Outcome | None = None
        self._replaced: dict[str, str] = {}
        """Tests in which the emulator lost a test host, and what was seen of it."""

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Iterator[None]:
        if self._config.option.collectonly:
            return (yield)
        inside = [item for item in session.items if selection.runs_inside(item.nodeid)]
        engine = inherited_environment(os.environ)[ENGINE_VARIABLE]
        if find_spec(f"vmm.engines.{engine}") is None:
            for item in inside:
                item.add_marker(pytest.mark.skip(reason=f"engine {engine} is not built in this release"))
            inside = []
        session.items[:] = [item for item in session.items if item not in inside]
        result = yield
        if inside:
            self._run(session, inside)
        return result

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for test, why in self._replaced.items():
            terminalreporter.write_line(
                f"KVM lab: the emulator lost a test host in {test}, which began anew in another: {why}"
            )
        if self._outcome is not None:
            terminalreporter.write_line(f"KVM lab: {self._outcome}")

    def _run(self, session: pytest.Session, items: Sequence[pytest.Item]) -> None:
        full = self._config.getoption("--full")
        settings = LabSettings()
        if full:
            settings = replace(settings, deadline_s=settings.deadline_s * _FULL_FACTOR)
        left = items
        try:
            compiler.compile_everything()
            while left:
                left = self._run_in_one_host(session, left, settings)
        except LabError as error:
            raise session.Interrupted(str(error)) from error

    def _run_in_one_host(
        self, session: pytest.Session, items: Sequence[pytest.Item], settings: LabSettings
    ) -> Sequence[pytest.Item]:
        """Runs tests; returns those that want another test host."""
        with LabHost(Command(inner_command(self._config, items)), settings) as host:
            relay = Relay(session, items, host.results / REPORTS)
            outcome = None
            try:
                outcome = host.wait(relay)
            except LostHostError as error:
                left = relay.left()
                test = left[0].nodeid if left else ""
                tried = test in self._replaced or len(self._replaced) == _MOST_REPLACED
                if isinstance(error, EmulatorError) and left and not tried:
                    self._replaced[test] = str(error).partition("\n")[0]
                    return left
                relay.fail_rest(str(error))
        if session.shouldfail:
            raise session.Failed(session.shouldfail)
        if outcome is not None:
            self._outcome = outcome
            relay.finish(outcome.status)
        return ()


class Relay:
    """Listens to a test host and hands on what its pytest writes down."""

    def __init__(self, session: pytest.Session, items: Sequence[pytest.Item], path: Path) -> None:
        self._session = session
        self._hook = session.config.hook
        self._items = {item.nodeid: item for item in items}
        self._left = dict.fromkeys(self._items)
        self._path = path
        self._offset = 0
        self._rest = b""
        self._output = b""

    def output(self, data: bytes) -> None:
        """See `Listener`."""
        self._output = (self._output + data)[-_KEPT_BYTES:]

    def console(self, line: str) -> None:
        """See `Listener`. Kept by the host; shown when it is lost."""

    def progress(self) -> None:
        """See `Listener`."""
        if not self._path.exists():
            return
        with self._path.open("rb") as stream:
            stream.seek(self._offset)
            data = stream.read()
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def left(self) -> list[pytest.Item]:
        """The tests that have not ended; the first of them was running when the test host was lost."""
        return [self._items[node_id] for node_id in self._left]

    def finish(self, status: int) -> None:
        """Take the status of the inner pytest: a test that it did not run has failed, and so has the session
        when the status says more than the reports do.
        """
        output = self._output.decode(errors="replace")
        why = f"pytest in the test host ended with {status}\n--- its output\n{output}"
        self.fail_rest(why)
        if status not in _ORDINARY:
            raise self._session.Interrupted(why)

    def fail_rest(self, why: str) -> None:
        """Report every test that has not ended as failed: the first with the reason, the others with its
        name.
        """
        first = next(iter(self._left), None)
        for node_id in [*self._left]:
            text = why if node_id == first else f"Not run: the test host was lost in {first}"
            self._begin(node_id)
            report = pytest.TestReport(
                nodeid=node_id,
                location=self._items[node_id].location,
                keywords={},
                outcome="failed",
                longrepr=text,
                when="call",
            )
            self._hook.pytest_runtest_logreport(report=report)
            self._end(node_id)

    def _take(self, document: dict[str, Any]) -> None:
        if "begins" in document:
            self._begin(document["begins"])
            return
        # JSON has lists only; pytest tells a skip's place by its being a tuple.
        for name in ("longrepr", "location"):
            if isinstance(document[name], list):
                document[name] = tuple(document[name])
        report = self._hook.pytest_report_from_serializable(config=self._session.config, data=document)
        self._hook.pytest_runtest_logreport(report=report)
        if report.when == "teardown":
            self._end(report.nodeid)

    def _begin(self, node_id: str) -> None:
        self._hook.pytest_runtest_logstart(nodeid=node_id, location=self._items[node_id].location)

    def _end(self, node_id: str) -> None:
        self._left.pop(node_id, None)
        self._hook.pytest_runtest_logfinish(nodeid=node_id, location=self._items[node_id].location)


def inner_command(config: pytest.Config, items: Sequence[pytest.Item]) -> list[str]:
    """The command line of the pytest inside: the same tests, with those options that decide how they run."""
    options = config.option
    command = [sys.executable, "-m", "pytest", "-p", "tests.lab.inside", "-p", "no:cacheprovider", "-v"]
    command += [f"--tb={options.tbstyle}", f"--maxfail={options.maxfail or 0}"]
    command += [name for name in ("--full", "--every-daemon") if config.getoption(name)]
    return [*command, *(item.nodeid for item in items)]
