"""The Python side of libstrato_sys.so: generated code, versions, imports, error table."""

import errno
import os
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from vmm import VERSION, paths
from vmm.libraries import library_path
from vmm.sys import NativeBugError, PumpOwnerError
from vmm.sys.errors import native_error
from vmm.sys.launch import LaunchError, _started_pid

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[4]


@pytest.mark.parametrize("name", ["sys/_strato_sys.py", "devices/_strato_vmm.py"])
def test_generated_module_matches_the_header(name: str) -> None:
    generator = runpy.run_path(str(ROOT / "vmm" / "native" / "generate.py"))
    module = ROOT / "vmm" / name
    assert generator["generated_source"](module) == module.read_text()


def test_versions_of_both_languages_are_equal() -> None:
    cargo = tomllib.loads((ROOT / "vmm" / "native" / "Cargo.toml").read_text())
    assert cargo["workspace"]["package"]["version"] == VERSION


@pytest.mark.parametrize("override", ["", "/somewhere/else"])
def test_library_path_equals_that_of_vmm_paths(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.LIBRARY_DIR_VARIABLE, override)
    assert library_path("libx.so") == str(paths.library_dir() / "libx.so")


def run_python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False
    )


@pytest.mark.parametrize("package", ["vmm.sys", "vmm.devices"])
def test_import_needs_nothing_heavy(package: str) -> None:
    site = next(path for path in sys.path if path.endswith("site-packages"))
    code = (
        f"import sys, os; sys.path[:0] = [{str(ROOT)!r}, {site!r}]; "
        f"before = set(sys.modules); import {package}; "
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('vmm')))"
    )
    done = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"__future__", "_cffi_backend", "errno"}


@pytest.mark.parametrize("package", ["vmm.sys", "vmm.devices"])
def test_missing_library_is_an_import_error_that_says_what_to_do(package: str, tmp_path: Path) -> None:
    done = run_python(f"import {package}", STRATO_LIBRARY_DIR=str(tmp_path))
    assert done.returncode == 1
    assert "LibraryMismatchError: Native library" in done.stderr
    assert "make build" in done.stderr


@pytest.mark.parametrize("package", ["vmm.sys", "vmm.devices"])
def test_library_of_another_version_is_refused(package: str) -> None:
    done = run_python(f"import vmm; vmm.VERSION = '9.9.9'\nimport {package}")
    assert "but this package is 9.9.9" in done.stderr


def test_native_error_keeps_the_sentence_and_picks_the_class() -> None:
    assert type(native_error(errno.ENOENT, "Gone")) is FileNotFoundError
    assert type(native_error(errno.EOWNERDEAD, "Forked")) is PumpOwnerError
    assert type(native_error(errno.ENOTRECOVERABLE, "Bug")) is NativeBugError
    assert native_error(errno.EINVAL, "Bad thing").strerror == "Bad thing"


def test_status_line_is_parsed() -> None:
    assert _started_pid("pid 12\n", "l") == 12
    with pytest.raises(LaunchError, match=r"^Cannot frob$"):
        _started_pid("error Cannot frob\n", "l")
    with pytest.raises(LaunchError, match="died before it reported"):
        _started_pid("", "l")
