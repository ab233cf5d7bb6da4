"""Containers of a runtime that `make install` has put in place: nothing of the checkout has a part in it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.framework.daemons import DaemonOptions, TestDaemon
from tests.framework.leaks import LeakChecker
from tests.framework.runtime import CHECKOUT, STRATO, Runtime
from tests.framework.sandbox import processes_of

pytestmark = [pytest.mark.containerd, pytest.mark.usefixtures("strato_only")]

SYSTEM_PYTHON = Path("/usr/bin/python3")


@pytest.fixture
def prefix(tmp_path: Path) -> Iterator[Path]:
    """Where the installed programs are, as they know it themselves; outside of that nothing is touched."""
    python = SYSTEM_PYTHON if SYSTEM_PYTHON.exists() else Path(sys.executable)
    place, root = tmp_path / "usr", tmp_path / "root"
    options = (f"--prefix={place}", f"--destdir={root}", f"--python={python}")
    tools = (sys.executable, "-m", "tools")
    subprocess.run([*tools, "install", *options], cwd=CHECKOUT, check=True)
    place.symlink_to(root / place.relative_to("/"))
    yield place
    subprocess.run([*tools, "uninstall", *options], cwd=CHECKOUT, check=True)
    assert list(root.rglob("*")) == []


def mapped_files(pid: int) -> str:
    """What a process has mapped, by path."""
    return Path(f"/proc/{pid}/maps").read_text(errors="replace")


def test_container_runs_from_an_installation_beside_containerd(prefix: Path) -> None:
    with TestDaemon(DaemonOptions("2.3", Runtime(STRATO, (prefix / "bin",)))) as daemon:
        checker = LeakChecker(daemon.scope)
        name = daemon.ctr.run_detached("sleep", "1000")
        assert daemon.ctr.exec(name, "uname", "-r").check().text.endswith("-strato")
        processes = processes_of(daemon, name)
        commands = {entry.pid: entry.command for entry in processes.everything}
        for kind, pid in processes.pids.items():
            assert f"{CHECKOUT}/" not in commands[pid], kind
            assert f"{CHECKOUT}/" not in mapped_files(pid), kind
        assert str(prefix.resolve()) in mapped_files(processes.pids["vmm"])
        daemon.ctr.remove(name)
        checker.assert_clean()
