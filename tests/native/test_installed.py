"""`make install` of the built runtime, run from its prefix as a user would."""

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tools import layout
from tools.install import Destination
from vmm.cli.doctor import BUILT_PARTS

pytestmark = pytest.mark.native

_SYSTEM_PYTHON = Path("/usr/bin/python3")
_PREFIX = Path("/opt/strato")


def _tools(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "tools", *arguments], cwd=layout.CHECKOUT, check=True)


@pytest.fixture
def installed(tmp_path: Path) -> Iterator[Destination]:
    """The runtime below a temporary DESTDIR; uninstalled at the end, which must leave nothing."""
    python = _SYSTEM_PYTHON if _SYSTEM_PYTHON.exists() else Path(sys.executable)
    options = (f"--prefix={_PREFIX}", f"--destdir={tmp_path}", f"--python={python}")
    _tools("install", *options)
    yield Destination(_PREFIX, tmp_path, python)
    _tools("uninstall", *options)
    assert list(tmp_path.iterdir()) == []


def _run_in_place(installed: Destination, command: str) -> str:
    """Run a command with the installed tree mounted where it belongs, in a mount namespace of its own."""
    mounted = (
        "mount -t tmpfs none /opt && mkdir /opt/strato && "
        f"mount --bind {shlex.quote(str(installed.real(_PREFIX)))} /opt/strato && {command}"
    )
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", mounted], capture_output=True, text=True, check=False, cwd="/"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_installed_runtime_uses_only_its_own_parts(installed: Destination) -> None:
    assert "containerd-shim-strato-v2 " in _run_in_place(
        installed, "/opt/strato/bin/containerd-shim-strato-v2 -v"
    )

    report = _run_in_place(installed, "/opt/strato/bin/strato doctor")

    for name in BUILT_PARTS:
        assert f"/opt/strato/lib/strato/{name}" in report
    assert str(layout.CHECKOUT) not in report
