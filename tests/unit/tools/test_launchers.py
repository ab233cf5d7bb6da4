"""The generated programs."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.errors import InstallError
from tools.launchers import PROGRAMS, launcher_text, write_launchers

pytestmark = pytest.mark.unit


def _fake_packages(folder: Path) -> None:
    for module in PROGRAMS.values():
        path = folder / Path(*module.split("."))
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.with_suffix(".py").write_text("import sys\ndef main():\n    return len(sys.argv) + 40\n")


@pytest.mark.parametrize("name", sorted(PROGRAMS))
def test_launcher_calls_main_and_passes_arguments_and_status(tmp_path: Path, name: str) -> None:
    _fake_packages(tmp_path)
    write_launchers(tmp_path / "bin", Path(sys.executable), [tmp_path])

    done = subprocess.run([tmp_path / "bin" / name, "one"], capture_output=True, check=False, cwd="/")

    assert (done.returncode, done.stdout, done.stderr) == (42, b"", b"")


def test_launcher_imports_nothing_of_site_and_ignores_the_environment(tmp_path: Path) -> None:
    _fake_packages(tmp_path)
    (tmp_path / "vmm" / "cli.py").write_text("import sys\ndef main():\n    return 'site' in sys.modules\n")
    write_launchers(tmp_path / "bin", Path(sys.executable), [tmp_path])

    done = subprocess.run([tmp_path / "bin" / "strato"], env={"PYTHONPATH": "/nowhere"}, check=False)

    assert done.returncode == 0


@pytest.mark.parametrize("python", [Path("/with space/python"), Path("/" + "x" * 300)])
def test_launcher_interpreter_unfit_for_a_shebang_is_refused(python: Path) -> None:
    with pytest.raises(InstallError, match="cannot stand in a shebang line"):
        launcher_text("vmm.cli", python, [])


def test_write_launchers_unchanged_files_are_not_touched(tmp_path: Path) -> None:
    first = write_launchers(tmp_path, Path(sys.executable), [])
    inodes = [path.stat().st_ino for path in first]

    second = write_launchers(tmp_path, Path(sys.executable), [])

    assert [path.stat().st_ino for path in second] == inodes
