"""Python's format, lint and types."""

import subprocess
import sys

import pytest

from tests.framework.runtime import CHECKOUT

pytestmark = pytest.mark.style


@pytest.mark.parametrize(
    "arguments",
    [
        pytest.param(("ruff", "check", "--no-cache", "."), id="ruff-check"),
        pytest.param(("ruff", "format", "--no-cache", "--check", "."), id="ruff-format"),
        pytest.param(("mypy", "--strict", "shim", "vmm", "tests", "tools", "rootfs"), id="mypy"),
    ],
)
def test_python_is_clean(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
