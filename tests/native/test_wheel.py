"""The wheel: one file for every Python 3, with the native parts in it."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.native, pytest.mark.full]

ROOT = Path(__file__).resolve().parents[2]


def test_wheel_brings_working_native_parts(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = {**os.environ, "PIP_NO_INDEX": "1"}
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "wheel"), str(ROOT)]
    subprocess.run(build, env=offline, check=True, capture_output=True)
    (wheel,) = (tmp_path / "wheel").iterdir()
    assert wheel.name.startswith("strato_runtime-")
    assert "-py3-none-linux_" in wheel.name
    site = tmp_path / "site"
    subprocess.run(
        [*pip, "install", "--no-deps", "--target", str(site), str(wheel)],
        env=offline,
        check=True,
        capture_output=True,
    )
    script = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "from vmm import devices, paths, sys as native\n"
        "devices.EventRing().close()\n"
        "print(native.__file__)\n"
        "native.Pump().close()\n"
        "native.launch(str(paths.launcher()), ['--', '/bin/true'])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(site))
    assert not (site / "vmm" / "native").exists()
