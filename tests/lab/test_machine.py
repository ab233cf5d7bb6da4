"""Test hosts as they are: what a command finds there, how they are lost, and that they leave nothing."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.framework import host
from tests.framework.command import eventually
from tests.framework.leaks import reap_orphans
from tests.framework.runtime import CHECKOUT
from tests.framework.vm import processes_naming
from tools import bare_boot
from tools.cache import Cache

from . import LostHostError, probe
from .host import LabHost, Outcome
from .settings import Command, LabSettings

pytestmark = pytest.mark.lab

SETTINGS = LabSettings(boot_s=300)
PROGRAM = [sys.executable, "-m", "tests.lab"]


class Recorder:
    """Keeps what a command printed, and calls `progress` of the test's making."""

    def __init__(self) -> None:
        self.printed = b""
        self.kernel: list[str] = []

    def output(self, data: bytes) -> None:
        self.printed += data

    def console(self, line: str) -> None:
        self.kernel.append(line)

    def progress(self) -> None:
        pass


@dataclass(frozen=True)
class Finding:
    """What tests/lab/probe.py found, and how its test host went."""

    inside: dict[str, Any]
    outcome: Outcome
    printed: bytes


@pytest.fixture(scope="module")
def finding() -> Finding:
    """One test host, probed."""
    bare_boot.probe_image(Cache())  # there is no compiler's place to build it in inside
    recorder = Recorder()
    command = Command([sys.executable, "-m", "tests.lab.probe"], directory=CHECKOUT)
    with LabHost(command, SETTINGS) as lab:
        outcome = lab.wait(recorder)
        path = lab.results / "probe.json"
        assert path.exists(), recorder.printed.decode(errors="replace")
        return Finding(json.loads(path.read_text()), outcome, recorder.printed)


def test_exit_status_and_output_are_carried_out(finding: Finding) -> None:
    assert finding.outcome.status == probe.STATUS
    assert finding.printed == b"probe done\n"


def test_kvm_boots_the_guest_kernel_to_user_space(finding: Finding) -> None:
    assert finding.inside["kvm_api_version"] == 12  # the only one there is
    assert bare_boot.REACHED in finding.inside["boot"]


def test_guests_can_have_a_stable_clock(finding: Finding) -> None:
    assert finding.inside["clock"] == "tsc"


def test_cgroup_v2_has_the_controllers_that_containers_use(finding: Finding) -> None:
    assert {"cpu", "cpuset", "io", "memory", "pids"} <= set(finding.inside["controllers"])


def test_network_reaches_nobody(finding: Finding) -> None:
    assert finding.inside["links"] == ["lo"]


def test_modules_of_the_kernel_can_be_loaded(finding: Finding) -> None:
    assert finding.inside["module"] == "0"


def test_user_namespaces_can_be_made(finding: Finding) -> None:
    assert finding.inside["user_namespace"] == "0 0"


def test_written_files_do_not_survive(finding: Finding) -> None:
    assert finding.inside["written"] == "gone in the end"
    assert not probe.WRITTEN.exists()


def test_files_of_the_machine_cannot_be_written_even_through_a_writable_mount(finding: Finding) -> None:
    assert finding.inside["machine_mount"].endswith("virtiofs machine rw")
    assert finding.inside["machine_answer"] == "Read-only file system"


def test_panic_is_told_with_the_console() -> None:
    command = Command(["sh", "-c", "echo last words; sleep 1; echo c >/proc/sysrq-trigger"])
    recorder = Recorder()

    with (
        LabHost(command, SETTINGS) as lab,
        pytest.raises(LostHostError, match="sysrq triggered crash") as lost,
    ):
        lab.wait(recorder)

    assert str(lost.value).startswith("Test host ended before its command")
    assert recorder.printed == b"last words\n"


class Freezer(Recorder):
    """Stops QEMU as soon as the command has printed."""

    def __init__(self, lab: LabHost) -> None:
        super().__init__()
        self._lab = lab

    def output(self, data: bytes) -> None:
        super().output(data)
        os.kill(self._lab.pid, signal.SIGSTOP)


def test_frozen_test_host_is_given_up() -> None:
    command = Command(["sh", "-c", "echo running; sleep 1000"])

    with LabHost(command, replace(SETTINGS, beat_s=5)) as lab:
        with pytest.raises(LostHostError, match="froze: no sign of life of vCPU"):
            lab.wait(Freezer(lab))
        directory = lab.directory

    assert not directory.exists()
    assert processes_naming(str(directory)) == []


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A folder that a test host is told to make its own in; with a short path, for sockets."""
    directory = Path(tempfile.mkdtemp(prefix="lab-"))
    yield directory
    shutil.rmtree(directory)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 130), (signal.SIGKILL, -9)]
)
def test_nothing_is_left_of_one_that_is_interrupted(scratch: Path, number: int, status: int) -> None:
    mounts = host.mounts()
    environment = {**os.environ, "TMPDIR": str(scratch)}
    with subprocess.Popen([*PROGRAM, "sleep", "1000"], cwd=CHECKOUT, env=environment) as process:
        eventually(lambda: len(_programs(scratch)) == 3, "QEMU and its two file servers run")
        process.send_signal(number)
        assert process.wait(60) == status

    eventually(lambda: _programs(scratch) == [], "all of them are gone")
    reap_orphans()
    assert host.mounts() == mounts
    # Nobody is left to remove a folder when the one that would is killed.
    assert number == signal.SIGKILL or list(scratch.iterdir()) == []


def _programs(scratch: Path) -> list[str]:
    return [line for line in processes_naming(str(scratch)) if "virtiofsd" in line or "-display none" in line]
