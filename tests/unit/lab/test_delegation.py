"""`pytest --lab` against a test host that is none: the inner pytest runs here, as a child."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.framework.runtime import CHECKOUT

pytestmark = pytest.mark.unit

TESTS = """
import pytest

pytestmark = pytest.mark.filterwarnings("default")

def test_that_passes():
    pass

def test_that_fails():
    print("said by the test")
    assert 1 == 2, "the reason"

@pytest.mark.skip(reason="no need")
def test_that_is_skipped():
    pass

@pytest.fixture
def broken():
    yield
    raise RuntimeError("cannot clean up")

def test_that_leaves_something(broken):
    pass

def test_that_ends_pytest():
    import os
    lose = os.environ.get("LOSE")
    first = not os.path.exists(os.path.join(os.environ["RESULTS"], "1"))
    if lose and (lose != "freeze once" or first):
        os._exit(9)

def test_after_it():
    pass
"""

# The outer pytest with a stand-in for LabHost.
DRIVER = """
import os, subprocess, sys
from pathlib import Path

import pytest

from tests.lab import EmulatorError, LostHostError, delegation
from tests.lab.host import Outcome
from tests.lab.settings import RESULTS_VARIABLE


class Here:
    def __init__(self, command, settings):
        self.command = command
        parent = Path(os.environ["RESULTS"])
        self.results = parent / str(len([*parent.iterdir()]))
        self.results.mkdir()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def wait(self, listener):
        environment = {**os.environ, RESULTS_VARIABLE: str(self.results)}
        done = subprocess.run(self.command.words, env=environment, capture_output=True)
        listener.output(done.stdout + done.stderr)
        listener.progress()
        if done.returncode == 9 and os.environ["LOSE"] == "host":
            raise LostHostError("Test host was lost")
        if done.returncode == 9 and os.environ["LOSE"].startswith("freeze"):
            raise EmulatorError("Test host froze\\n--- console")
        return Outcome(done.returncode, 1.0, 2.0, 3.0)


delegation.LabHost = Here
sys.exit(pytest.main(sys.argv[1:]))
"""

CONFTEST = """
from tests.conftest import pytest_addoption, pytest_configure
"""


def run(directory: Path, *arguments: str, lose: str = "", engine: str = "tcg") -> tuple[int, str]:
    """The outer pytest's status and what it printed."""
    folder = directory / "tests/integration"
    folder.mkdir(parents=True)
    (folder / "test_sample.py").write_text(TESTS)
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (directory / "results").mkdir()
    (directory / "driver.py").write_text(DRIVER)
    environment = {
        **os.environ,
        "RESULTS": str(directory / "results"),
        "LOSE": lose,
        "STRATO_TEST_ENGINE": engine,
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, "driver.py", "--lab", "-ra", "--import-mode=importlib", "tests", *arguments],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_each_result_is_reported_outside(tmp_path: Path) -> None:
    status, text = run(tmp_path, "--junitxml=report.xml")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 4 passed, 1 skipped, 1 error" in text
    assert "AssertionError: the reason" in text
    assert "said by the test" in text
    assert "RuntimeError: cannot clean up" in text
    assert "no need" in text
    assert "KVM lab: test host up after 1.0 s" in text
    report = (tmp_path / "report.xml").read_text()
    assert re.search(r'errors="1" failures="1" skipped="1" tests="\d"', report)


def test_first_failure_ends_it_when_asked_to(tmp_path: Path) -> None:
    status, text = run(tmp_path, "--exitfirst")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 1 passed" in text
    assert "stopping after 1 failures" in text


def test_lost_host_fails_the_running_test_with_the_reason_and_those_after_it(tmp_path: Path) -> None:
    status, text = run(tmp_path, lose="host")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "3 failed, 2 passed, 1 skipped, 1 error" in text
    assert re.search(r"_ test_that_ends_pytest _+\nTest host was lost\n", text)
    assert re.search(
        r"_ test_after_it _+\nNot run: the test host was lost in \S+test_that_ends_pytest\n", text
    )


def test_frozen_host_is_replaced_once_for_a_test_and_told(tmp_path: Path) -> None:
    status, text = run(tmp_path, lose="freeze once")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "1 failed, 4 passed, 1 skipped, 1 error" in text
    assert re.search(
        r"the emulator lost a test host in \S+_pytest, which began anew in another: Test host froze\n", text
    )
    assert len([*(tmp_path / "results").iterdir()]) == 2


def test_test_in_which_two_hosts_freeze_has_failed(tmp_path: Path) -> None:
    status, text = run(tmp_path, lose="freeze always")

    assert status == pytest.ExitCode.TESTS_FAILED
    assert "3 failed, 2 passed, 1 skipped, 1 error" in text
    assert re.search(r"_ test_that_ends_pytest _+\nTest host froze\n", text)
    assert len([*(tmp_path / "results").iterdir()]) == 2


def test_pytest_that_dies_inside_fails_what_it_did_not_run_and_the_session(tmp_path: Path) -> None:
    status, text = run(tmp_path, lose="pytest")

    assert status == pytest.ExitCode.INTERRUPTED
    assert "3 failed, 2 passed, 1 skipped, 1 error" in text
    assert "pytest in the test host ended with 9" in text


def test_engine_that_is_not_built_skips_with_its_name(tmp_path: Path) -> None:
    status, text = run(tmp_path, engine="xen")

    assert status == pytest.ExitCode.OK
    assert "6 skipped" in text
    assert "engine xen is not built in this release" in text
